//! Decides what is handed to nsqd and when; drives one state machine per shard. Knows neither Redis
//! nor NSQ, only the traits.

mod settings;

pub use settings::Config;
