//! The figures of a scenario over several runs: a row of the table, and JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::latency::Percentiles;
use crate::ledger::Damage;
use crate::run::{Beside, Run};
use crate::scenario::Scenario;

/// The name of gridcast in reports.
pub const GRIDCAST: &str = "gridcast";

/// A figure over several runs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// The spread of some figures; `None` without figures.
    fn of(figures: impl Iterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.collect();
        figures.sort_by(f64::total_cmp);
        let (&min, &max) = (figures.first()?, figures.last()?);
        let middle = figures.len() / 2;
        // For an even number of figures, the mean of the two in the middle.
        let median = (figures[middle] + figures[(figures.len() - 1) / 2]) / 2.0;
        Some(Self { median, min, max })
    }
}

/// The summary of all runs of a scenario.
#[derive(Serialize)]
pub struct Report {
    pub scenario: String,
    pub server: String,
    pub unit: &'static str,
    pub runs: usize,
    pub units: u64,
    pub units_per_second: Spread,
    pub server_cpu_us_per_unit: Spread,
    /// CPU time of the load test. If it exceeds the server's, the load test may be the bottleneck.
    pub client_cpu_us_per_unit: Spread,
    pub latency_us: Percentiles<Spread>,
    pub server_memory_bytes_per_unit: Option<Spread>,
    /// Figures of this scenario alone, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<(String, Spread)>,
    #[serde(flatten)]
    pub damage: Damage,
    /// Quantiles and their latencies in µs, the medians of the runs.
    pub curve: Vec<(f64, f64)>,
    /// The title without the rate, for scenarios that run at a given rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<String>,
    /// Observations of each run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    beside: Vec<Beside>,
}

impl Report {
    /// Summarises the runs of `scenario` against `server`, which are not empty.
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

    /// Whether the server is another one, or gridcast had no damage and no errors in any run and stayed alive.
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

/// The spread of each figure. All runs have the same figures.
fn figures(runs: &[Run]) -> Vec<(String, Spread)> {
    let names = runs.iter().take(1).flat_map(|run| &run.figures).map(|(name, _)| name);
    let of_all = |name: &String| {
        let figures = runs.iter().flat_map(|run| &run.figures);
        Spread::of(figures.filter(|figure| figure.0 == *name).map(|figure| figure.1))
    };
    names.filter_map(|name| Some((name.clone(), of_all(name)?))).collect()
}

/// The heading of the table of reports.
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

/// A report as a row of the table.
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
