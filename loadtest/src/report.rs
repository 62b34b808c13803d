//! What the runs of a scenario came to: a row of the table, and JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::latency::{Latencies, Percentiles};
use crate::ledger::Damage;
use crate::meter::Cost;
use crate::scenario::Scenario;

/// The name of our own server.
pub const GRIDCAST: &str = "gridcast";

/// One run of a scenario.
pub struct Run {
    /// Units of work that were done, each with its latency.
    units: u64,
    cost: Cost,
    latency_us: Percentiles<f64>,
    curve: Vec<(f64, f64)>,
    damage: Damage,
    memory_bytes: Option<u64>,
    figures: Vec<(String, f64)>,
    beside: Option<Beside>,
}

/// What was seen of the server and of a peer that took more than its share.
#[derive(Clone, Serialize)]
pub struct Beside {
    /// Bytes of the server's memory before the peer came.
    pub memory_before: u64,
    /// Most of it while it was there.
    pub memory_peak: u64,
    /// What was left of it after.
    pub memory_after: u64,
    /// CPU time of the server by wall-clock time.
    pub server_cpu_share: f64,
    /// How late the probe was with its messages by its own fault, at most.
    pub probe_own_delay_us: f64,
    /// What an echo without a server took beside it: all but one in a hundred, and the longest.
    pub control_p99_us: f64,
    pub control_max_us: f64,
    /// The probe's calls that were answered with an error, and its connections that ended.
    pub errors: u64,
    /// Whether the server was still there at the end.
    pub has_lived: bool,
    /// What became of the peer.
    pub fate: String,
}

impl Run {
    /// A run that did at `cost` as many units of work as there are latencies.
    pub fn new(cost: Cost, latencies: &Latencies, damage: Damage) -> Self {
        let (units, latency_us) = (latencies.count(), latencies.percentiles_us());
        let curve = latencies.curve_us();
        let (memory_bytes, figures, beside) = (None, Vec::new(), None);
        Self { units, cost, latency_us, curve, damage, memory_bytes, figures, beside }
    }

    /// Adds by how much the server's memory has grown for all units.
    pub fn with_memory(self, bytes: u64) -> Self {
        Self { memory_bytes: Some(bytes), ..self }
    }

    /// Adds a figure that only some scenarios have; `name` tells its unit.
    pub fn with_figure(mut self, name: impl Into<String>, value: f64) -> Self {
        self.figures.push((name.into(), value));
        self
    }

    /// Adds what was seen beside the units of work.
    pub fn with_beside(self, beside: Beside) -> Self {
        Self { beside: Some(beside), ..self }
    }

    fn rate(&self) -> f64 {
        self.units as f64 / self.cost.elapsed.as_secs_f64()
    }

    fn cpu_us_per_unit(&self) -> f64 {
        self.cost.cpu().as_secs_f64() * 1e6 / self.units as f64
    }

    fn client_cpu_us_per_unit(&self) -> f64 {
        self.cost.client_cpu.as_secs_f64() * 1e6 / self.units as f64
    }

    fn memory_bytes_per_unit(&self) -> Option<f64> {
        self.memory_bytes.map(|bytes| bytes as f64 / self.units as f64)
    }
}

/// A figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` if there are no figures.
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (&min, &max) = (figures.first()?, figures.last()?);
        let middle = figures.len() / 2;
        // Of an even number, the mean of the two in the middle.
        let median = (figures[middle] + figures[(figures.len() - 1) / 2]) / 2.0;
        Some(Self { median, min, max })
    }
}

/// All runs of a scenario.
#[derive(Serialize)]
pub struct Report {
    pub scenario: String,
    pub server: String,
    pub unit: &'static str,
    pub runs: usize,
    pub units: u64,
    pub units_per_second: Spread,
    pub server_cpu_us_per_unit: Spread,
    /// What the load test itself took: to be less than what the server did, or it is the load test
    /// that is measured.
    pub client_cpu_us_per_unit: Spread,
    pub latency_us: Percentiles<Spread>,
    pub server_memory_bytes_per_unit: Option<Spread>,
    /// What only some scenarios have, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<(String, Spread)>,
    #[serde(flatten)]
    pub damage: Damage,
    /// Quantiles and their latencies in µs, the medians of the runs.
    pub curve: Vec<(f64, f64)>,
    /// What was done at a given rate, and perhaps at others too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<String>,
    /// Of each run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Beside>,
}

impl Report {
    /// Sums up the runs of `scenario` against `server`, of which there is at least one.
    pub fn new(scenario: &Scenario, server: String, runs: &[Run]) -> Self {
        let spread = |figure: &dyn Fn(&Run) -> f64| {
            Spread::of(runs.iter().map(figure)).expect("there is at least one run")
        };
        Self {
            scenario: scenario.title(),
            server,
            unit: scenario.unit(),
            runs: runs.len(),
            units: runs.iter().map(|run| run.units).sum(),
            units_per_second: spread(&Run::rate),
            server_cpu_us_per_unit: spread(&Run::cpu_us_per_unit),
            client_cpu_us_per_unit: spread(&Run::client_cpu_us_per_unit),
            latency_us: Percentiles::each(|percentile| spread(&|run| percentile(&run.latency_us))),
            server_memory_bytes_per_unit: Spread::of(
                runs.iter().filter_map(Run::memory_bytes_per_unit),
            ),
            curve: curve(runs),
            sweep: scenario.sweep(),
            figures: figures(runs),
            damage: runs.iter().map(|run| run.damage).sum(),
            beside: runs.iter().filter_map(|run| run.beside.clone()).collect(),
        }
    }

    /// It is of somebody else's server, or nothing was lost, doubled or misordered in any run, and it lived.
    pub fn is_sound(&self) -> bool {
        let is_fine = |beside: &Beside| beside.has_lived && beside.errors == 0;
        self.server != GRIDCAST || self.damage.is_none() && self.beside.iter().all(is_fine)
    }
}

/// The median of each point of the runs' curves, which have the same quantiles.
fn curve(runs: &[Run]) -> Vec<(f64, f64)> {
    let quantiles = runs.iter().take(1).flat_map(|run| &run.curve).map(|point| point.0).enumerate();
    let median = |(at, quantile): (usize, f64)| {
        let latencies = runs.iter().filter_map(|run| Some(run.curve.get(at)?.1));
        Some((quantile, Spread::of(latencies)?.median))
    };
    quantiles.filter_map(median).collect()
}

/// The spread of each figure that the first run has, and so have the others.
fn figures(runs: &[Run]) -> Vec<(String, Spread)> {
    let names = runs.iter().take(1).flat_map(|run| &run.figures).map(|(name, _)| name);
    let of_all = |name: &String| {
        let figures = runs.iter().flat_map(|run| &run.figures);
        Spread::of(figures.filter(|figure| figure.0 == *name).map(|figure| figure.1))
    };
    names.filter_map(|name| Some((name.clone(), of_all(name)?))).collect()
}

/// The heading of the table whose rows are the displayed reports.
pub fn heading() -> String {
    let latencies = format!(
        "{:>10} {:>10} {:>10} {:>10} {:>10}",
        "p50 µs", "p90 µs", "p99 µs", "p99.9 µs", "max µs"
    );
    format!(
        "Rate, server CPU (user and system) and memory: median (least–most) of the runs; the load \
         test's own CPU per unit and latencies: median of the runs, max of all.\n\n\
         {:<44} {:<8} {:>10} {:>30} {:>24} {:>9} {latencies} {:>6} {:>7} {:>10} {:>22}",
        "scenario",
        "server",
        "unit",
        "units/s",
        "CPU µs/unit",
        "client",
        "lost",
        "doubled",
        "misordered",
        "bytes/unit"
    )
}

/// A row of the table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |Spread { median, min, max }: Spread, digits: usize| {
            format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
        };
        write!(f, "{:<44} {:<8} {:>10} ", self.scenario, self.server, self.unit)?;
        write!(f, "{:>30} ", range(self.units_per_second, 0))?;
        write!(f, "{:>24} ", range(self.server_cpu_us_per_unit, 2))?;
        write!(f, "{:>9.2} ", self.client_cpu_us_per_unit.median)?;
        let Percentiles { p50, p90, p99, p99_9, max } = self.latency_us;
        for latency_us in [p50.median, p90.median, p99.median, p99_9.median, max.max] {
            write!(f, "{latency_us:>10.1} ")?;
        }
        let Damage { lost, doubled, misordered } = self.damage;
        write!(f, "{lost:>6} {doubled:>7} {misordered:>10} ")?;
        let memory = self.server_memory_bytes_per_unit.map(|bytes| range(bytes, 0));
        write!(f, "{:>22}", memory.as_deref().unwrap_or("–"))?;
        for (name, figure) in &self.figures {
            write!(f, "\n    {name}: {}", range(*figure, 1))?;
        }
        self.beside.iter().try_for_each(|beside| write!(f, "\n    {beside}"))
    }
}

/// A line below the row.
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

#[derive(Serialize)]
struct Document<'a> {
    server_cpus: &'a [usize],
    scenarios: &'a [Report],
}

/// Writes all reports to the file at `path`.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, server_cpus: &[usize], reports: &[Report]) -> Result<()> {
    let document = Document { server_cpus, scenarios: reports };
    let mut json = serde_json::to_string_pretty(&document)?;
    json.push('\n');
    fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_the_extremes() {
        let odd = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!(odd, Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        let even = Spread::of([4.0, 1.0, 2.0, 3.0].into_iter());
        assert_eq!(even, Some(Spread { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Spread::of(std::iter::empty()), None);
    }
}
