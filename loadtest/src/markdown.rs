//! The report as tables in Markdown, as in the performance page.

use std::fmt;

use crate::report::{GRIDCAST, Report, Spread};

/// A table, whose first row is the heading.
pub struct Table(Vec<Vec<String>>);

impl Table {
    /// The rows, including the heading.
    pub fn rows(&self) -> impl Iterator<Item = &[String]> {
        self.0.iter().map(Vec::as_slice)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, row) in self.rows().enumerate() {
            writeln!(f, "| {} |", row.join(" | "))?;
            if number == 0 {
                writeln!(f, "|{}", "---|".repeat(row.len()))?;
            }
        }
        Ok(())
    }
}

/// The tables that are not empty, of: work and CPU compared with other servers, memory compared with other
/// servers, and figures of single scenarios.
pub fn tables(reports: &[Report]) -> Vec<Table> {
    let tables = [work(reports), memory(reports), figures(reports)];
    tables.into_iter().filter(|table| table.0.len() > 1).collect()
}

/// One row per scenario: gridcast's figures, and the CPU of each other server, also as a multiple of
/// gridcast's.
fn work(reports: &[Report]) -> Table {
    let others = others(reports);
    let heading =
        ["scenario", "unit", "CPU µs/unit", "client's", "per second", "p50 µs", "p99 µs", "lost"];
    let mut rows = vec![with_others(heading.map(String::from).to_vec(), &others)];
    for (own, same) in scenarios(reports) {
        let latency = &own.latency_us;
        let row = vec![
            own.scenario.clone(),
            own.unit.into(),
            spread(&own.server_cpu_us_per_unit),
            number(own.client_cpu_us_per_unit.median),
            number(own.units_per_second.median),
            number(latency.p50.median),
            number(latency.p99.median),
            own.damage.total().to_string(),
        ];
        let of = |report: &Report| Some(report.server_cpu_us_per_unit.median);
        rows.push(with_others(row, &compare(own, same, &others, of)));
    }
    Table(rows)
}

/// One row per scenario that opens connections.
fn memory(reports: &[Report]) -> Table {
    let others = others(reports);
    let mut rows =
        vec![with_others(vec!["user memory, bytes each".into(), GRIDCAST.into()], &others)];
    for (own, same) in scenarios(reports) {
        let Some(bytes) = &own.server_memory_bytes_per_unit else { continue };
        let of = |report: &Report| Some(report.server_memory_bytes_per_unit.as_ref()?.median);
        let row = vec![own.scenario.clone(), spread(bytes)];
        rows.push(with_others(row, &compare(own, same, &others, of)));
    }
    Table(rows)
}

/// One row per scenario and figure.
fn figures(reports: &[Report]) -> Table {
    let others = others(reports);
    let heading = ["scenario", "figure", GRIDCAST].map(String::from).to_vec();
    let mut rows = vec![with_others(heading, &others)];
    for (own, same) in scenarios(reports) {
        for (name, figure) in &own.figures {
            let of = |report: &Report| {
                let figure = report.figures.iter().find(|figure| figure.0 == *name)?;
                Some(figure.1.median)
            };
            let row = vec![own.scenario.clone(), name.clone(), spread(figure)];
            rows.push(with_others(row, &compare(own, same, &others, of)));
        }
    }
    Table(rows)
}

/// The other servers, in the order of their first report.
fn others(reports: &[Report]) -> Vec<String> {
    let mut others = Vec::new();
    for report in reports {
        if report.server != GRIDCAST && !others.contains(&report.server) {
            others.push(report.server.clone());
        }
    }
    others
}

/// The report of gridcast for each scenario, and all reports of the scenario.
fn scenarios(reports: &[Report]) -> impl Iterator<Item = (&Report, &[Report])> {
    let scenarios = reports.chunk_by(|a, b| a.scenario == b.scenario);
    scenarios.filter_map(|same| Some((same.iter().find(|it| it.server == GRIDCAST)?, same)))
}

/// One cell for each of `others`.
fn compare(
    own: &Report,
    same: &[Report],
    others: &[String],
    figure: impl Fn(&Report) -> Option<f64>,
) -> Vec<String> {
    let cell = |other: &String| {
        let theirs = figure(same.iter().find(|report| report.server == *other)?)?;
        Some(format!("{} ({:.1}×)", number(theirs), theirs / figure(own)?))
    };
    others.iter().map(|other| cell(other).unwrap_or("–".into())).collect()
}

fn with_others(mut row: Vec<String>, others: &[String]) -> Vec<String> {
    row.extend_from_slice(others);
    row
}

fn spread(Spread { median, min, max }: &Spread) -> String {
    format!("{} ({}–{})", number(*median), number(*min), number(*max))
}

/// Formats a number with about three digits, and with separators of thousands.
fn number(value: f64) -> String {
    match value.abs() {
        ..1.0 => format!("{value:.2}"),
        1.0..100.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{:.0}", value.abs());
            let groups: Vec<_> =
                digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
            format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        let numbers = [0.456, 6.25, 99.94, 541.2, 1_234_567.0, -1_500.0].map(number);
        assert_eq!(numbers, ["0.46", "6.2", "99.9", "541", "1,234,567", "-1,500"]);
    }

    #[test]
    fn a_table_is_markdown() {
        let table = Table(vec![vec!["a".into(), "b".into()], vec!["1".into(), "2".into()]]);
        assert_eq!(table.to_string(), "| a | b |\n|---|---|\n| 1 | 2 |\n");
    }
}
