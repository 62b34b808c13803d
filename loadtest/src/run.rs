//! The measured outcome of one run of a scenario.

use std::fmt;

use serde::Serialize;

use crate::latency::{Latencies, Percentiles};
use crate::ledger::Damage;
use crate::meter::Cost;

/// One run of a scenario.
pub struct Run {
    /// Completed units of work. Each has a latency.
    pub units: u64,
    /// CPU time and elapsed time.
    pub cost: Cost,
    /// Latencies in µs.
    pub latency_us: Percentiles<f64>,
    /// Quantiles and their latencies in µs.
    pub curve: Vec<(f64, f64)>,
    /// Messages lost, doubled or misordered.
    pub damage: Damage,
    /// Growth of the server's memory, if the scenario measures it.
    pub memory_bytes: Option<u64>,
    /// Figures of this scenario alone, by name.
    pub figures: Vec<(String, f64)>,
    /// Observations of the server, if the scenario makes any.
    pub beside: Option<Beside>,
}

/// Observations of the server while a peer takes more than its share.
#[derive(Clone, Serialize)]
pub struct Beside {
    /// Memory of the server before the peer connects, in bytes.
    pub memory_before: u64,
    /// Peak memory of the server during the attack, in bytes.
    pub memory_peak: u64,
    /// Memory of the server after the attack, in bytes.
    pub memory_after: u64,
    /// CPU time of the server by wall-clock time.
    pub server_cpu_share: f64,
    /// Longest delay that the probe itself caused.
    pub probe_own_delay_us: f64,
    /// 99th percentile of an echo without a server, measured at the same time.
    pub control_p99_us: f64,
    /// Longest echo without a server.
    pub control_max_us: f64,
    /// Error answers to the probe's calls, and connections of the probe that ended.
    pub errors: u64,
    /// Whether the server was alive at the end.
    pub has_lived: bool,
    /// Outcome of the attack.
    pub fate: String,
}

impl Run {
    /// A run of as many units of work as there are latencies.
    pub fn new(cost: Cost, latencies: &Latencies, damage: Damage) -> Self {
        let (units, latency_us) = (latencies.count(), latencies.percentiles_us());
        let curve = latencies.curve_us();
        let (memory_bytes, figures, beside) = (None, Vec::new(), None);
        Self { units, cost, latency_us, curve, damage, memory_bytes, figures, beside }
    }

    /// Adds the growth of the server's memory over all units.
    pub fn with_memory(self, bytes: u64) -> Self {
        Self { memory_bytes: Some(bytes), ..self }
    }

    /// Adds a figure of this scenario alone. `name` includes the unit.
    pub fn with_figure(mut self, name: impl Into<String>, value: f64) -> Self {
        self.figures.push((name.into(), value));
        self
    }

    /// Adds observations of the server.
    pub fn with_beside(self, beside: Beside) -> Self {
        Self { beside: Some(beside), ..self }
    }

    /// Units of work per second.
    pub fn rate(&self) -> f64 {
        self.units as f64 / self.cost.elapsed.as_secs_f64()
    }

    /// CPU time of the servers per unit of work, in µs.
    pub fn cpu_us_per_unit(&self) -> f64 {
        self.cost.cpu().as_secs_f64() * 1e6 / self.units as f64
    }

    /// CPU time of the load test per unit of work, in µs.
    pub fn client_cpu_us_per_unit(&self) -> f64 {
        self.cost.client_cpu.as_secs_f64() * 1e6 / self.units as f64
    }

    /// Growth of the server's memory per unit of work.
    pub fn memory_bytes_per_unit(&self) -> Option<f64> {
        self.memory_bytes.map(|bytes| bytes as f64 / self.units as f64)
    }
}

/// A line below the row of the table.
impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, peak, after] = [self.memory_before, self.memory_peak, self.memory_after]
            .map(|bytes| bytes as f64 / 1e6);
        let (cpu, own_delay) = (self.server_cpu_share * 100.0, self.probe_own_delay_us);
        write!(f, "memory {before:.1} MB, at most {peak:.1}, then {after:.1}; CPU {cpu:.0} %; ")?;
        let (p99, max) = (self.control_p99_us, self.control_max_us);
        write!(f, "the probe's own delay {own_delay:.0} µs, an echo without a server 99 % ")?;
        write!(f, "{p99:.0} µs, at most {max:.0}; errors {}; {}", self.errors, self.fate)?;
        if self.has_lived { Ok(()) } else { write!(f, "; THE SERVER ENDED") }
    }
}
