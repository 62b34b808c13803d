//! Latencies of a run, as clients observe them.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest latency that is recorded, which is that of the longest run. Longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);
const SIGNIFICANT_DIGITS: u8 = 3;

/// Points per curve.
const QUANTILES: [f64; 13] =
    [0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999];

/// The latencies of all tasks of a run, in a fixed 250 KB.
pub struct Latencies(Mutex<Histogram<u64>>);

/// Percentiles of a distribution: in microseconds for one run, as spreads for several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles<T> {
    /// The median.
    pub p50: T,
    /// The 90th percentile.
    pub p90: T,
    /// The 99th percentile.
    pub p99: T,
    /// The 99.9th percentile.
    #[serde(rename = "p99.9")]
    pub p99_9: T,
    /// The maximum.
    pub max: T,
}

impl Default for Latencies {
    fn default() -> Self {
        let max_ns = LATENCY_MAX.as_nanos() as u64;
        let histogram = Histogram::new_with_bounds(1, max_ns, SIGNIFICANT_DIGITS);
        Self(Mutex::new(histogram.expect("the bounds are constants that the histogram allows")))
    }
}

impl Latencies {
    /// Records a latency.
    pub fn record(&self, latency: Duration) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram().saturating_record(latency_ns);
    }

    /// Discards all latencies.
    pub fn forget(&self) {
        self.histogram().reset();
    }

    /// The percentiles so far, in microseconds; zeros without latencies.
    pub fn percentiles_us(&self) -> Percentiles<f64> {
        let histogram = self.histogram();
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            max: histogram.max() as f64 / 1000.0,
        }
    }

    /// The latencies so far at some quantiles, in microseconds.
    pub fn curve_us(&self) -> Vec<(f64, f64)> {
        let histogram = self.histogram();
        let at = |quantile| (quantile, histogram.value_at_quantile(quantile) as f64 / 1000.0);
        QUANTILES.map(at).to_vec()
    }

    /// The number of latencies so far.
    pub fn count(&self) -> u64 {
        self.histogram().len()
    }

    fn histogram(&self) -> MutexGuard<'_, Histogram<u64>> {
        // A panic elsewhere cannot leave the histogram inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Percentiles<T> {
    /// Computes each percentile with the same function, which is told how to read it from a run.
    pub fn each(rule: impl Fn(fn(&Percentiles<f64>) -> f64) -> T) -> Self {
        Self {
            p50: rule(|run| run.p50),
            p90: rule(|run| run.p90),
            p99: rule(|run| run.p99),
            p99_9: rule(|run| run.p99_9),
            max: rule(|run| run.max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_in_microseconds() {
        let latencies = Latencies::default();
        (1..=1000).for_each(|us| latencies.record(Duration::from_micros(us)));
        let percentiles = latencies.percentiles_us();
        for (found, expected) in [(percentiles.p50, 500.0), (percentiles.p99_9, 999.0)] {
            assert!((found - expected).abs() <= expected / 500.0, "{found} is not {expected}");
        }
    }

    #[test]
    fn no_latencies_are_zeros() {
        assert_eq!(Latencies::default().percentiles_us().max, 0.0);
    }
}
