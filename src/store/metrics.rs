//! This module's metric families.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What the store counts. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    packs: Counter,
    records: Counter,
    records_per_pack: Histogram,
    /// 1 while the connection that inserts go through is up.
    pub(super) up: Gauge,
}

impl Metrics {
    /// Makes the families known to `registry`.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            packs: Counter::default(),
            records: Counter::default(),
            records_per_pack: Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0]),
            up: Gauge::default(),
        };
        registry.register(
            "packs_stored",
            "Packs written to Redis",
            metrics.packs.clone(),
        );
        registry.register(
            "records_stored",
            "Messages written to Redis",
            metrics.records.clone(),
        );
        registry.register(
            "records_per_pack",
            "Messages per pack, averaged over each insert",
            metrics.records_per_pack.clone(),
        );
        registry.register(
            "redis_up",
            "1 while the connection to Redis that inserts go through is up",
            metrics.up.clone(),
        );
        metrics
    }

    pub(super) fn inserted(&self, packs: usize, records: usize) {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        self.packs.inc_by(u64::from(count(packs)));
        self.records.inc_by(u64::from(count(records)));
        if packs > 0 {
            self.records_per_pack
                .observe(f64::from(count(records)) / f64::from(count(packs)));
        }
    }
}
