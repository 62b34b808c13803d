//! The tables of the cases in `tests/README.md`.

use std::fmt;
use std::{env, fs};

use super::cases::{Case, End, NAMED, Outcome, Section, Trickle};
use super::frames::Broken;
use super::strangers::Stranger;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/README.md");
const BEGIN: &str = "<!-- made by tests/hostile: begin -->\n";
const FINISH: &str = "<!-- made by tests/hostile: end -->\n";

/// Set, it has the page rewritten.
const WRITE: &str = "GRIDCAST_WRITE_TABLE";

/// Bytes of frames that are shown.
const HEXADECIMAL: usize = 20;

/// Bytes of text beyond which a request is long, and characters of a long one that are shown.
const LONG: usize = 300;
const BEGINNING: usize = 60;

/// Compares the page with the tables, or brings it up to date.
pub fn check(table: &str) {
    let page = fs::read_to_string(FILE).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the page has a place for the table");
    let (found, after) = rest.split_once(FINISH).expect("the place has an end");
    if env::var_os(WRITE).is_some() {
        let page = [before, BEGIN, table, FINISH, after].concat();
        fs::write(FILE, page).expect("the page can be written");
    } else {
        assert!(found == table, "tests/README.md is old: {WRITE}=1 cargo test --test hostile");
    }
}

/// The tables.
pub fn render(
    sections: &[Section],
    trickles: &[Trickle],
    broken: &[Broken],
    strangers: &[Stranger],
) -> String {
    let mut page = String::new();
    for Section { title, cases } in sections {
        page += &format!("\n| {title} | sent | API | edge |\n|---|---|---|---|\n");
        page.extend(cases.iter().map(row));
    }
    page += "\n| Too slow | sent | API | edge |\n|---|---|---|---|\n";
    page.extend(trickles.iter().map(trickle_row));
    page += "\n| Frames on an open WebSocket | sent | closed with |\n|---|---|---|\n";
    page.extend(broken.iter().map(broken_row));
    page += "\n| Bodies of those who may not call | head | answer |\n|---|---|---|\n";
    page.extend(strangers.iter().map(stranger_row));
    page + "\n"
}

fn broken_row(Broken { what, sent, code }: &Broken) -> String {
    let bytes: Vec<_> = sent.iter().take(HEXADECIMAL).map(|byte| format!("{byte:02x}")).collect();
    let more = if sent.len() > HEXADECIMAL { " …" } else { "" };
    format!("| {what} | `{}`{more} | {code} |\n", bytes.join(" "))
}

fn stranger_row(Stranger { what, head, status }: &Stranger) -> String {
    format!("| {what} | {} | {status}, closed |\n", shown(head.as_bytes()))
}

fn row(Case { what, sent, api, edge }: &Case) -> String {
    format!("| {what} | {} | {} | {} |\n", shown(sent), told(*api), told(*edge))
}

fn trickle_row(Trickle { what, start, endless, api, edge }: &Trickle) -> String {
    let sent = match (start.is_empty(), endless.is_empty()) {
        (true, _) => String::new(),
        (false, true) => shown(start.as_bytes()),
        (false, false) => {
            format!("{}, then {} …", shown(start.as_bytes()), shown(endless.as_bytes()))
        }
    };
    format!("| {what} | {sent} | {} | {} |\n", told(*api), told(*edge))
}

/// The bytes as text, what has a name by its name; of very long ones the beginning.
fn shown(sent: &[u8]) -> String {
    let mut text = sent.escape_ascii().to_string();
    for (name, bytes) in NAMED {
        text = text.replace(&bytes.as_bytes().escape_ascii().to_string(), name);
    }
    let text = text.replace("\\\"", "\"").replace('|', "\\|");
    match text.char_indices().nth(BEGINNING) {
        Some((cut, _)) if text.len() > LONG => format!("`{}`… ({} B)", &text[..cut], sent.len()),
        _ => format!("`{text}`"),
    }
}

fn told(outcome: Option<Outcome>) -> String {
    outcome.map_or("–".to_owned(), |outcome| outcome.to_string())
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(status) = self.status {
            write!(f, "{status}, ")?;
        }
        if let Some((name, value)) = self.header {
            write!(f, "`{name}: {value}`, ")?;
        }
        f.write_str(match self.end {
            End::Closed => "closed",
            End::Open => "open",
            End::Switched => "WebSocket",
        })
    }
}
