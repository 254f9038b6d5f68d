//! The wire of the model store when it is compared with a real Redis.

use std::time::Duration;

use super::model::Request;
use super::model::link::{Fate, Wire};

/// Nothing befalls a request, and it takes no time.
#[derive(Debug)]
pub(crate) struct Calm;

impl Wire for Calm {
    fn fate(&self, _request: Request) -> Fate {
        Fate::Answered {
            out: Duration::ZERO,
            back: Duration::ZERO,
        }
    }
    fn reconnect(&self) -> Duration {
        Duration::ZERO
    }

    fn loses_wake(&self) -> bool {
        false
    }
}
