//! The report as one self-contained page of HTML, with the table and the plots.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;

use crate::markdown;
use crate::plot::{self, Axis, Line};
use crate::report::Report;

const STYLE: &str = "body{font:15px sans-serif;max-width:1200px;margin:2em auto;padding:0 1em}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1em 0}\
td,th{border:1px solid #ccc;padding:.25em .6em;text-align:right}\
td:first-child,th:first-child{text-align:left}svg{margin:.5em}";

const LATENCY: Axis = Axis { title: "latency, µs", label: plain };
/// The axis of quantiles, plotted as 1 / (1 - quantile), so that the tail has room.
const PERCENTILE: Axis = Axis { title: "percentile", label: percentile };
const RATE: Axis = Axis { title: "per second", label: plain };
const CONNECTIONS: Axis = Axis { title: "connections", label: plain };
const MEMORY: Axis = Axis { title: "bytes", label: plain };

fn plain(value: f64) -> String {
    match value {
        10.0.. => format!("{value:.0}"),
        _ => format!("{value:.1}"),
    }
}

fn percentile(odds: f64) -> String {
    let percent = (1.0 - 1.0 / odds) * 100.0;
    // One part in 100 needs none, one in 1000 one. What rounding adds needs none either.
    let digits = (odds.log10() - 2.0 - 1e-6).ceil().clamp(0.0, 3.0) as usize;
    format!("{percent:.digits$}")
}

/// The page of all `reports`, with the description of the `machine` above them.
///
/// # Errors
/// A plot could not be drawn.
pub fn page(machine: &str, reports: &[Report]) -> Result<String> {
    let mut page = format!(
        "<!doctype html><meta charset=utf-8><title>gridcast: load test</title><style>{STYLE}\
         </style><h1>gridcast: load test</h1><p>{}</p>",
        escape(machine)
    );
    for table in markdown::tables(reports) {
        write_table(&mut page, &table);
    }
    for (title, plots) in [
        ("Throughput against latency", throughput_plots(reports)?),
        ("Memory against connections", memory_plot(reports)?.into_iter().collect()),
        ("Latency by percentile", latency_plots(reports)?),
    ] {
        if !plots.is_empty() {
            write!(page, "<h2>{title}</h2>{}", plots.concat()).expect("a string takes it");
        }
    }
    Ok(page)
}

fn write_table(page: &mut String, table: &markdown::Table) {
    page.push_str("<table>");
    for (number, row) in table.rows().enumerate() {
        page.push_str("<tr>");
        let tag = if number == 0 { "th" } else { "td" };
        for cell in row {
            write!(page, "<{tag}>{}</{tag}>", escape(cell))
                .expect("a string takes what is written");
        }
        page.push_str("</tr>");
    }
    page.push_str("</table>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One plot per scenario, with a line per server.
fn latency_plots(reports: &[Report]) -> Result<Vec<String>> {
    let scenarios = reports.chunk_by(|a, b| a.scenario == b.scenario);
    let plot = |reports: &[Report]| {
        let line = |report: &Report| Line {
            name: report.server.clone(),
            points: report.curve.iter().map(|&(at, us)| (1.0 / (1.0 - at), us)).collect(),
        };
        let lines: Vec<_> = reports.iter().map(line).collect();
        plot::draw(&reports[0].scenario, &PERCENTILE, &LATENCY, &lines)
    };
    Ok(scenarios.map(plot).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

/// One plot per scenario that was run at several rates.
fn throughput_plots(reports: &[Report]) -> Result<Vec<String>> {
    let mut kinds = BTreeMap::<&str, BTreeMap<String, Vec<(f64, f64)>>>::new();
    for report in reports {
        let Some(kind) = &report.sweep else { continue };
        let lines = kinds.entry(kind).or_default();
        let latency = &report.latency_us;
        for (name, us) in [("p50", latency.p50.median), ("p99", latency.p99.median)] {
            let line = lines.entry(format!("{}, {name}", report.server)).or_default();
            line.push((report.units_per_second.median, us));
        }
    }
    let plot = |(kind, lines): (&str, BTreeMap<String, Vec<_>>)| {
        let lines = lines.into_iter().map(|(name, points)| Line { name, points });
        plot::draw(kind, &RATE, &LATENCY, &lines.collect::<Vec<_>>())
    };
    Ok(kinds.into_iter().map(plot).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn memory_plot(reports: &[Report]) -> Result<Option<String>> {
    let mut lines = BTreeMap::<&str, Vec<(f64, f64)>>::new();
    for report in reports {
        let Some(memory) = &report.server_memory_bytes_per_unit else { continue };
        let connections = report.units as f64 / report.runs as f64;
        lines.entry(&report.server).or_default().push((connections, connections * memory.median));
    }
    let lines = lines.into_iter().map(|(name, points)| Line { name: name.into(), points });
    let title = "user memory of idle connections";
    plot::draw(title, &CONNECTIONS, &MEMORY, &lines.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_has_the_digits_that_tell_it_from_the_next() {
        let label = |quantile: f64| percentile(1.0 / (1.0 - quantile));
        let labels = [0.5, 0.9, 0.99, 0.995, 0.999].map(label);
        assert_eq!(labels, ["50", "90", "99", "99.5", "99.9"]);
    }

    #[test]
    fn what_html_would_take_for_its_own_is_escaped() {
        assert_eq!(escape("a<b & c>d"), "a&lt;b &amp; c&gt;d");
    }
}
