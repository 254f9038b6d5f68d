//! NSQ's wire, both directions: frames, commands, error codes, negotiation. No Redis, no axum, no
//! policy.
