//! The parts and how they are wired. Each function here names one part's constructor.

use tokio::sync::watch;

use crate::app::stage::Stage;
use crate::app::{Doors, StartError};
use crate::config::Config;
use crate::phase::Phase;

/// What runs, by the steps of a stop.
#[derive(Debug)]
pub(super) struct Parts {
    /// The TCP and HTTP doors.
    pub(super) doors: Stage,
    /// Pollers and claims.
    pub(super) dispatch: Stage,
    /// Connections to nsqd.
    pub(super) forward: Stage,
    /// Connections to Redis.
    pub(super) store: Stage,
}

impl Parts {
    /// Starts store → forward → dispatch → doors.
    pub(super) async fn start(
        config: Config,
        doors: Doors,
        phases: watch::Receiver<Phase>,
    ) -> Result<Self, StartError> {
        drop((config, doors, phases));
        tokio::task::yield_now().await;
        Err(StartError::Store(
            "the store, dispatch and the doors are not yet part of this build".into(),
        ))
    }
}
