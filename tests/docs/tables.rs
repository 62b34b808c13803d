//! Tables of the reference against the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use gridcast::protocol::api::Code;

use super::page::{Page, root};
use super::support::{Server, command};

/// The cells of each row of a page's tables.
fn rows(page: &str) -> Vec<Vec<String>> {
    let page = Page::read(page);
    let lines = page.text.lines().filter(|line| line.starts_with("| ") || line.starts_with("|-"));
    let cells = |line: &str| {
        let line = line.trim_matches('|');
        line.split(" | ").map(|cell| cell.trim().trim_end_matches('|').trim().to_owned()).collect()
    };
    lines.map(cells).collect()
}

/// Returns the texts between backticks.
fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The metrics of a node with a mesh, each with its help, and the labels of limits.
fn metrics() -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mesh = "[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\n";
    let node = "[node]\nid = 1\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n";
    let server = Server::start(&format!("{node}{mesh}"));
    let text = server.get("/metrics").body;
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP "));
    let helps = helps.map(|line| {
        let (name, help) = line.split_once(' ').expect("a name and its help");
        // The reference names histograms without their unit.
        let is_histogram = text.contains(&format!("# TYPE {name} histogram\n"));
        let short = name.strip_prefix("gridcast_").unwrap_or(name);
        let short = if is_histogram { short.trim_end_matches("_seconds") } else { short };
        (short.to_owned(), help.trim_end_matches('.').to_owned())
    });
    let limits = text.lines().filter_map(|line| {
        line.strip_prefix("gridcast_limits_hit_total{limit=\"")?.split('"').next()
    });
    (helps.collect(), limits.map(str::to_owned).collect())
}

#[test]
fn every_metric_is_in_the_reference_with_its_help_and_no_other() {
    let (helps, limits) = metrics();
    let rows = rows("docs/reference/metrics.md");
    let known = rows.iter().filter_map(|row| {
        let name = code(&row[0]).first()?.split('{').next()?.to_owned();
        Some((name, row[1].clone()))
    });
    assert_eq!(known.collect::<BTreeMap<_, _>>(), helps);
    let rows = self::rows("docs/reference/limits.md");
    let labels = rows.iter().filter(|row| row.len() == 5).flat_map(|row| code(&row[4]));
    assert_eq!(labels.collect::<BTreeSet<_>>(), limits);
}

#[test]
fn every_code_is_in_the_reference_with_its_status() {
    let rows = rows("docs/reference/errors.md");
    let known = rows.iter().filter(|row| row.len() == 3);
    let known = known.filter_map(|row| Some((row[0].parse().ok()?, row[2].parse().ok()?)));
    let codes = (0..1000).filter_map(Code::from_number);
    let codes = codes.map(|code| (code.number(), code.http_status()));
    assert_eq!(known.collect::<Vec<(u64, u16)>>(), codes.collect::<Vec<_>>());
}

/// The numbers in the reasons of HTTP, as the code has them.
#[test]
fn every_status_is_in_the_reference() {
    let code = fs::read_to_string(root().join("src/protocol/http/response.rs")).expect("code");
    let reasons = code.split_once("fn reason(").expect("the table").1;
    let statuses = reasons.lines().filter_map(|line| line.trim().split_once(" => \""));
    let statuses = statuses.filter_map(|(status, _)| status.parse::<u16>().ok());
    // Successes, and those that only X-Error-Mode gives.
    let statuses = statuses.filter(|status| ![200, 204, 304, 500, 502].contains(status));
    let rows = rows("docs/reference/errors.md");
    let known = rows.iter().filter(|row| row.len() == 2).filter_map(|row| row[0].parse().ok());
    assert_eq!(known.collect::<BTreeSet<u16>>(), statuses.collect());
}

#[test]
fn every_close_code_is_in_the_reference_with_its_words() {
    let code = fs::read_to_string(root().join("src/protocol/close.rs")).expect("code");
    let reasons = code.lines().filter_map(|line| line.split_once("Reason = reason("));
    let reasons = reasons.map(|(_, rest)| {
        let (number, text) = rest.split_once(", \"").expect("a code and words");
        (number.to_owned(), text.trim_end_matches("\");").to_owned())
    });
    let rows = rows("docs/reference/close-codes.md");
    let known = rows.iter().filter(|row| row.len() == 4 && row[1].starts_with('`'));
    let known = known.map(|row| (row[0].clone(), row[1].trim_matches('`').to_owned()));
    assert_eq!(known.collect::<BTreeSet<_>>(), reasons.collect());
}

#[test]
fn every_command_is_in_the_reference() {
    let help = command(&["--help"]).output().expect("gridcast runs");
    let help = String::from_utf8(help.stdout).expect("text");
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    // A line that is indented further goes on with the text of the one before.
    let names = commands.filter_map(|line| line.strip_prefix("  ")?.split(' ').next());
    let commands: Vec<_> = names.filter(|name| !name.is_empty()).collect();
    assert!(commands.contains(&"serve"), "{commands:?}");
    let page = Page::read("docs/reference/command-line.md").text;
    for command in commands {
        assert!(page.contains(&format!("`gridcast {command}")), "{command} is not");
    }
}
