//! The integration tests: the real binary, a real Redis, a real nsqd, each started by its test.

mod support;
