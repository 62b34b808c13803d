//! The columns of the lists, and the cells of their rows.

use serde_json::Value;

use crate::cli::table::{Column, Row, Side};
use crate::cli::units;

/// A list of the API, and how its rows are shown to people.
pub(super) struct ListView {
    pub(super) method: &'static str,
    /// The field of the result that holds the rows.
    pub(super) field: &'static str,
    /// What people call the rows.
    pub(super) noun: &'static str,
    pub(super) is_paged: bool,
    pub(super) columns: &'static [Column],
    /// Formats a row at a time in Unix milliseconds.
    pub(super) row: fn(&Value, u64) -> Row,
}

const fn left(title: &'static str) -> Column {
    Column { title, side: Side::Left }
}

const fn right(title: &'static str) -> Column {
    Column { title, side: Side::Right }
}

pub(super) const NODES: ListView = ListView {
    method: "node.list",
    field: "nodes",
    noun: "nodes",
    is_paged: false,
    columns: &[
        right("NODE"),
        left("STATE"),
        left("VERSION"),
        right("UPTIME"),
        right("CLIENTS"),
        right("BACK ENDS"),
        right("IN/S"),
        right("OUT/S"),
        right("MEMORY"),
        right("OF"),
        right("CORES"),
        left("DRIVER"),
    ],
    row: |node, _| Row {
        cells: vec![
            text(node, "id"),
            state(node),
            text(node, "version"),
            number(node, "uptime", units::duration_ms),
            number(node, "clients", units::count),
            number(node, "backends", units::count),
            text(node, "in_per_s"),
            text(node, "out_per_s"),
            number(node, "memory", units::bytes),
            number(node, "memory_max", units::bytes),
            text(node, "cores"),
            text(node, "driver"),
        ],
        is_alarming: node["state"] != "up",
    },
};

pub(super) const CLIENTS: ListView = ListView {
    method: "client.list",
    field: "clients",
    noun: "clients",
    is_paged: true,
    columns: &[
        left("CLIENT"),
        right("NODE"),
        left("USER"),
        left("REMOTE"),
        left("ROUTE"),
        right("CONNECTED"),
        right("CHANNELS"),
        right("BUFFERED"),
    ],
    row: |client, now_ms| Row {
        cells: vec![
            text(client, "c"),
            text(client, "n"),
            text(client, "u"),
            text(client, "remote"),
            text(client, "path"),
            number(client, "since", |since| units::ago(since, now_ms)),
            number(client, "channels", units::count),
            number(client, "buffered", units::bytes),
        ],
        is_alarming: false,
    },
};

pub(super) const CHANNELS: ListView = ListView {
    method: "channel.list",
    field: "channels",
    noun: "channels",
    is_paged: true,
    columns: &[left("CHANNEL"), right("CLIENTS")],
    row: |channel, _| Row {
        cells: vec![text(channel, "c"), number(channel, "clients", units::count)],
        is_alarming: false,
    },
};

pub(super) const TOPICS: ListView = ListView {
    method: "topic.list",
    field: "topics",
    noun: "topics",
    is_paged: true,
    columns: &[
        left("TOPIC"),
        left("STORE"),
        right("EVENTS"),
        right("BYTES"),
        right("OLDEST"),
        right("IN FLIGHT"),
        right("STALLED"),
        right("CONSUMERS"),
        left("GROUPS"),
        left("SINKS"),
    ],
    row: |topic, _| Row {
        cells: vec![
            text(topic, "t"),
            text(topic, "store"),
            number(topic, "messages", units::count),
            number(topic, "bytes", units::bytes),
            number(topic, "oldest_ms", units::duration_ms),
            number(topic, "in_flight", units::count),
            stalled_ms(topic).map_or_else(|| "-".to_owned(), units::duration_ms),
            number(topic, "consumers", units::count),
            groups(topic),
            sinks(topic),
        ],
        is_alarming: is_behind(topic),
    },
};

/// The state of a node, and how long ago it was lost.
fn state(node: &Value) -> String {
    let state = text(node, "state").replace('_', " ");
    match node["lost_ms"].as_u64() {
        Some(ms) => format!("{state} {}", units::ago_ms(ms)),
        None => state,
    }
}

/// From when on a topic is alarming whose oldest event waits, or of which no event in flight is finished, in
/// milliseconds.
const BEHIND_MS: u64 = 10_000;

/// For how long the group that stalls longest has finished none of its events in flight, in milliseconds.
fn stalled_ms(topic: &Value) -> Option<u64> {
    entries(topic, "groups").filter_map(|group| group["stalled_ms"].as_u64()).max()
}

/// Whether events wait for long or for a group that nobody reads, none in flight is finished, or a sink does not
/// deliver. Events that were taken over HTTP are in flight, and need no consumer.
fn is_behind(topic: &Value) -> bool {
    let is_unread = |group: &Value| {
        let figure = |name: &str| group[name].as_u64().unwrap_or(0);
        figure("consumers") == 0 && figure("backlog") > figure("in_flight")
    };
    let oldest_ms = topic["oldest_ms"].as_u64();
    entries(topic, "groups").any(is_unread)
        || oldest_ms.max(stalled_ms(topic)).is_some_and(|ms| ms >= BEHIND_MS)
        || entries(topic, "sinks").any(|sink| sink["up"] == false)
}

fn entries<'v>(topic: &'v Value, field: &str) -> impl Iterator<Item = &'v Value> {
    topic[field].as_array().into_iter().flatten()
}

/// The groups of a topic, each with its backlog and consumers. A topic with the default group alone has none to
/// show.
fn groups(topic: &Value) -> String {
    let group = |group: &Value| {
        let name = group["name"].as_str().unwrap_or("default");
        let backlog = number(group, "backlog", units::count);
        format!("{name} ({backlog} for {})", number(group, "consumers", units::count))
    };
    match entries(topic, "groups").all(|group| group["name"].is_null()) {
        true => "-".to_owned(),
        false => entries(topic, "groups").map(group).collect::<Vec<_>>().join(", "),
    }
}

/// The sinks of a topic, each with what its engine has not acknowledged, and why it does not.
fn sinks(topic: &Value) -> String {
    let sink = |sink: &Value| {
        let backlog = number(sink, "backlog", units::count);
        let error = sink["error"].as_str().map_or(String::new(), |why| format!(": {why}"));
        format!("{} ({backlog}{error})", text(sink, "name"))
    };
    let sinks: Vec<String> = entries(topic, "sinks").map(sink).collect();
    if sinks.is_empty() { "-".to_owned() } else { sinks.join(", ") }
}

pub(super) const BACKENDS: ListView = ListView {
    method: "backend.list",
    field: "backends",
    noun: "back ends",
    is_paged: true,
    columns: &[
        right("NODE"),
        left("USER"),
        left("REMOTE"),
        right("CONNECTED"),
        left("CONSUMES"),
        left("GROUP"),
        right("IN FLIGHT"),
        right("BUFFERED"),
        right("STALLED"),
    ],
    row: |backend, now_ms| Row {
        cells: vec![
            text(backend, "n"),
            text(backend, "u"),
            text(backend, "remote"),
            number(backend, "since", |since| units::ago(since, now_ms)),
            topics(backend),
            text(backend, "group"),
            number(backend, "in_flight", units::count),
            number(backend, "buffered", units::bytes),
            number(backend, "stalled_ms", units::duration_ms),
        ],
        is_alarming: backend["stalled_ms"].as_u64().is_some_and(|ms| ms >= STALLED_MS),
    },
};

/// From when on a back end that neither reads nor acknowledges is alarming, in milliseconds.
const STALLED_MS: u64 = 5000;

/// The topics of a back end, with the number of those that the row does not name.
fn topics(backend: &Value) -> String {
    let names: Vec<&str> =
        backend["t"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let count = backend["topics"].as_u64().unwrap_or(0);
    match (names.join(","), count.saturating_sub(names.len() as u64)) {
        (named, _) if named.is_empty() => "-".to_owned(),
        (named, 0) => named,
        (named, more) => format!("{named} and {} more", units::count(more)),
    }
}

/// A field as text. What is not known is a dash.
fn text(row: &Value, field: &str) -> String {
    match &row[field] {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A field that is a whole number, with its unit.
fn number(row: &Value, field: &str, format: impl FnOnce(u64) -> String) -> String {
    row[field].as_u64().map_or_else(|| text(row, field), format)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_list_has_a_cell_for_each_column() {
        for list in [NODES, CLIENTS, CHANNELS, TOPICS, BACKENDS] {
            let row = (list.row)(&json!({}), 0);
            assert_eq!(row.cells.len(), list.columns.len(), "{}", list.method);
            assert!(row.cells.iter().all(|cell| cell == "-"), "{row:?}");
        }
    }

    #[test]
    fn numbers_have_their_units() {
        let node = json!({
            "id": 1, "state": "lame_duck", "version": "0.1.0", "uptime": 7_200_000, "clients": 51_200,
            "backends": 4, "in_per_s": 812.4, "out_per_s": 20480, "driver": "io_uring", "cores": 8,
            "memory": 734_003_200_u64, "memory_max": 12_884_901_888_u64,
        });
        let row = (NODES.row)(&node, 0);
        let expected = [
            "1",
            "lame duck",
            "0.1.0",
            "2 h",
            "51,200",
            "4",
            "812.4",
            "20480",
            "700.0 MiB",
            "12.0 GiB",
            "8",
            "io_uring",
        ];
        assert_eq!(row.cells, expected);
        assert!(row.is_alarming);
        let client = json!({"c": "7", "since": 1_000, "buffered": 2048, "channels": 2});
        assert_eq!((CLIENTS.row)(&client, 181_000).cells[5..], ["3 min ago", "2", "2.0 KiB"]);
    }

    #[test]
    fn a_lost_node_says_since_when() {
        let row = (NODES.row)(&json!({"id": 2, "state": "lost", "lost_ms": 130_000}), 0);
        assert_eq!(row.cells[..4], ["2", "lost 2 min ago", "-", "-"]);
        assert!(row.is_alarming);
    }

    #[test]
    fn a_back_end_that_does_not_read_is_alarming() {
        let row = |stalled_ms| {
            let value = json!({"t": ["a", "b"], "topics": 1200, "stalled_ms": stalled_ms});
            (BACKENDS.row)(&value, 0)
        };
        assert_eq!(row(0).cells[4], "a,b and 1,198 more");
        assert!(row(STALLED_MS).is_alarming && !row(STALLED_MS - 1).is_alarming);
        assert_eq!((BACKENDS.row)(&json!({"t": [], "topics": 0}), 0).cells[4], "-");
    }

    #[test]
    fn a_group_that_nobody_reads_is_alarming() {
        let row = |backlog, in_flight, consumers| {
            let group = |name, backlog, consumers| json!({"name": name, "backlog": backlog, "in_flight": in_flight, "consumers": consumers});
            let groups = [group(None, 2000, 1), group(Some("billing"), backlog, consumers)];
            (TOPICS.row)(&json!({"groups": groups}), 0)
        };
        assert_eq!(row(1, 0, 0).cells[8], "default (2,000 for 1), billing (1 for 0)");
        assert!(row(1, 0, 0).is_alarming && !row(1, 0, 1).is_alarming && !row(0, 0, 0).is_alarming);
        assert!(!row(1, 1, 0).is_alarming, "it was taken");
        let plain = (TOPICS.row)(&json!({"groups": [{"name": null, "backlog": 3}]}), 0);
        assert!(plain.cells[8] == "-" && plain.is_alarming);
    }

    #[test]
    fn a_topic_whose_events_nobody_finishes_is_alarming() {
        let row = |stalled_ms| {
            let group = |name, stalled_ms| json!({"name": name, "backlog": 9, "in_flight": 9, "consumers": 1, "stalled_ms": stalled_ms});
            (TOPICS.row)(&json!({"groups": [group(None, 0), group(Some("a"), stalled_ms)]}), 0)
        };
        assert_eq!(row(BEHIND_MS).cells[6], "10 s");
        assert!(row(BEHIND_MS).is_alarming && !row(BEHIND_MS - 1).is_alarming);
    }

    #[test]
    fn a_topic_whose_consumers_are_too_slow_is_alarming() {
        let row = |oldest_ms| {
            let group = json!({"name": null, "backlog": 9, "in_flight": 1, "consumers": 1, "stalled_ms": 5});
            (TOPICS.row)(&json!({"oldest_ms": oldest_ms, "groups": [group]}), 0)
        };
        assert_eq!(row(BEHIND_MS).cells[4], "10 s");
        assert!(row(BEHIND_MS).is_alarming && !row(BEHIND_MS - 1).is_alarming);
    }

    #[test]
    fn a_sink_that_does_not_deliver_is_alarming_and_says_why() {
        let row = |up: bool, error: Option<&str>| {
            let sink = json!({"name": "s", "backlog": 1200, "up": up, "error": error});
            (TOPICS.row)(&json!({"messages": 1200, "consumers": 0, "sinks": [sink]}), 0)
        };
        let down = row(false, Some("refused"));
        assert_eq!(down.cells[9], "s (1,200: refused)");
        assert!(down.is_alarming && !row(true, None).is_alarming);
    }
}
