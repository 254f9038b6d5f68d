//! Asks the nsqlookupds which nsqds there are, each at its own pace, and gives the pool what they say
//! together. One that does not answer is asked again sooner; what it said last still counts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::forward::link::Backoff;
use crate::forward::metrics::PollResult;
use crate::forward::nodes::{self, Directory, Nodes};
use crate::forward::pool::NsqdPool;
use crate::forward::settings::Config;
use crate::http_client::{Answer, Bounds, HttpClient};

/// How long an nsqlookupd may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer, in bytes: thousands of nsqds with hundreds of topics.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// The first pause before one that did not answer is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// Answers without the envelope that nsqlookupds before 1.0 put around them.
const ACCEPT: &str = "application/vnd.nsq; version=1.0";

/// What all questions share.
#[derive(Debug)]
pub(super) struct Discovery {
    client: HttpClient,
    config: Arc<Config>,
    directory: Mutex<Directory>,
}

impl Discovery {
    /// Of the nsqlookupds of `config`; `None` if there are none.
    pub(super) fn new(config: &Arc<Config>) -> Option<Arc<Self>> {
        let lookupds = config.lookupd_http_addresses.len();
        if lookupds == 0 {
            return None;
        }
        let client = HttpClient::new(
            Bounds {
                connect: config.dial_timeout,
                request: ANSWER_TIMEOUT,
                body_bytes_max: ANSWER_BYTES_MAX,
            },
            None,
        );
        match client {
            Ok(client) => Some(Arc::new(Self {
                client,
                config: Arc::clone(config),
                directory: Mutex::new(Directory::new(lookupds)),
            })),
            Err(error) => {
                warn!(%error, "nsqlookupd cannot be asked");
                None
            }
        }
    }

    /// Asks one nsqlookupd again and again until `stop`.
    pub(super) async fn poll(
        self: Arc<Self>,
        lookupd: usize,
        pool: Arc<NsqdPool>,
        stop: CancellationToken,
    ) {
        let Some(address) = self.config.lookupd_http_addresses.get(lookupd).cloned() else {
            return;
        };
        let interval = self.config.lookupd_poll_interval;
        let mut backoff = Backoff::new(AGAIN_AFTER.min(interval), interval);
        let mut told = false;
        let polls = async {
            loop {
                match self.ask(&address).await {
                    Ok(nodes) => {
                        pool.metrics.polled(PollResult::Answered);
                        if told {
                            info!(lookupd = %address, "nsqlookupd answers again");
                        }
                        told = false;
                        backoff.reset();
                        self.answered(lookupd, nodes, &pool);
                        self.pause(&pool).await;
                    }
                    Err(error) => {
                        pool.metrics.polled(PollResult::Failed);
                        if told {
                            debug!(lookupd = %address, %error, "nsqlookupd still does not answer");
                        } else {
                            warn!(lookupd = %address, %error, "nsqlookupd does not answer");
                        }
                        told = true;
                        sleep(backoff.next()).await;
                    }
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = polls => {}
        }
    }

    async fn ask(&self, address: &str) -> Result<Nodes, String> {
        let url = format!("http://{address}/nodes");
        let answer = self.client.get(&url, &[], ACCEPT).await;
        let body = answer.and_then(Answer::success);
        let body = body.map_err(|error| error.to_string())?;
        nodes::parse(&body).map_err(|error| error.to_string())
    }

    fn answered(&self, lookupd: usize, nodes: Nodes, pool: &NsqdPool) {
        // Held over both, so that an older picture does not take the place of a newer one.
        let mut directory = self
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        directory.answered(lookupd, nodes);
        pool.learn(directory.nodes());
    }

    /// Until it is time to ask again: after an interval, cut by up to a quarter at random, so that
    /// instances do not ask in step; sooner when no nsqd has been reachable for a while.
    async fn pause(&self, pool: &NsqdPool) {
        let interval = self.config.lookupd_poll_interval;
        let interval = interval.mul_f64(0.75 + fastrand::f64() / 4.0);
        let lonely = async {
            let while_away = self.config.backoff_max;
            loop {
                pool.wait_unavailable().await;
                if timeout(while_away, pool.wait_ready()).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(interval) => {}
            () = lonely => {}
        }
    }
}
