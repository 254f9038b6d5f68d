//! Numbers for people: histograms, shares, ratios. Pure.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::Failure;

/// Longest time that a histogram tells apart: an hour, in us.
const LONGEST_US: u64 = 3_600_000_000;
/// Significant digits.
const DIGITS: u8 = 3;

/// An empty histogram of us.
pub(super) fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).map_err(Failure::because)
}

/// Percentiles, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

impl Percentiles {
    /// `None` when nothing was recorded.
    pub(super) fn of(histogram: &Histogram<u64>) -> Option<Self> {
        let at = |quantile| share(histogram.value_at_quantile(quantile), 1_000);
        (!histogram.is_empty()).then(|| Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: share(histogram.max(), 1_000),
        })
    }
}

/// `part` of `whole`.
#[expect(
    clippy::cast_precision_loss,
    reason = "for people, who read three digits"
)]
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// The whole number below a positive one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "what is beyond the range is cut to it"
)]
pub(super) fn whole(number: f64) -> u64 {
    number as u64
}
