//! `backend.list`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::grid::{BackEnd, Grid};

/// Walks all pages of back ends; returns their rows.
#[track_caller]
fn backends(grid: &mut Grid, asker: &BackEnd, mut params: Value) -> Vec<Value> {
    let mut all = Vec::new();
    for _ in 0..1000 {
        let page = grid.ask(asker, "backend.list", params.clone());
        let rows = page["backends"].as_array().expect("a list");
        assert!(rows.len() as u64 <= params["max"].as_u64().unwrap_or(100), "{page}");
        assert_eq!(page["missing"], json!([]));
        all.extend(rows.iter().cloned());
        params["after"] = page["next"].clone();
        if params["after"].is_null() {
            return all;
        }
    }
    panic!("the walk does not end");
}

/// The one back end that consumes a topic.
#[track_caller]
fn consumer_of(grid: &mut Grid, asker: &BackEnd, topic: &str) -> Value {
    let rows = backends(grid, asker, json!({ "topic": topic }));
    let [row] = &rows[..] else { panic!("{rows:?}") };
    row.clone()
}

#[test]
fn every_back_end_of_the_grid_is_listed_once_in_pages_of_any_size() {
    let mut grid = Grid::new(&[2, 1, 3]);
    let asker = grid.back_end(1);
    for node in [0, 1, 2, 2, 0, 2, 0] {
        grid.back_end(node);
    }
    // Clients lie between the back ends.
    for place in grid.places() {
        grid.client(place, "/ws");
    }
    grid.back_end(0);
    for max in [1, 2, 3, 9, 1000] {
        let rows = backends(&mut grid, &asker, json!({ "max": max }));
        let nodes: Vec<u64> = rows.iter().filter_map(|row| row["n"].as_u64()).collect();
        assert_eq!(nodes, [1, 1, 1, 1, 2, 2, 3, 3, 3], "in pages of {max}");
        let ids: BTreeSet<&str> = rows.iter().filter_map(|row| row["b"].as_str()).collect();
        assert_eq!(ids.len(), 9);
    }
}

#[test]
fn a_back_end_is_listed_with_what_it_consumes_until_it_is_gone() {
    let mut grid = Grid::new(&[1, 1]);
    let (asker, consumer) = (grid.back_end(0), grid.back_end(1));
    let topics: Vec<String> = (0..10).map(|index| format!("t{index}")).collect();
    grid.ask(&consumer, "queue.pop", json!({ "t": topics }));
    let row = consumer_of(&mut grid, &asker, "t9");
    assert_eq!(row["t"], json!(topics[..8]), "{row}");
    assert_eq!((&row["topics"], &row["group"]), (&json!(10), &Value::Null));
    assert_eq!((&row["n"], &row["u"]), (&json!(2), &Value::Null));
    assert_eq!((&row["in_flight"], &row["stalled_ms"]), (&json!(0), &json!(0)));
    assert_eq!(backends(&mut grid, &asker, json!({ "topic": "t" })), [] as [Value; 0]);

    grid.ask(&consumer, "queue.unpop", json!({}));
    assert_eq!(backends(&mut grid, &asker, json!({ "topic": "t9" })), [] as [Value; 0]);
    assert_eq!(backends(&mut grid, &asker, json!({})).len(), 2);
    grid.close(&consumer);
    assert_eq!(backends(&mut grid, &asker, json!({})).len(), 1);
}

#[test]
fn a_back_end_that_does_not_read_or_does_not_acknowledge_is_told_by_its_row() {
    let mut grid = Grid::new(&[1, 1]);
    let (asker, deaf, late) = (grid.back_end(0), grid.back_end(1), grid.back_end(1));
    let busy = grid.back_end(0);
    grid.ask(&deaf, "queue.pop", json!({ "t": ["deaf"] }));
    grid.ask(&late, "queue.pop", json!({ "t": ["late"], "a": true }));
    grid.ask(&busy, "queue.pop", json!({ "t": ["busy"] }));
    grid.stop_reading(&deaf);
    for topic in ["deaf", "late", "busy"] {
        grid.ask(&asker, "queue.push", json!({ "t": topic, "d": "x" }));
    }
    (0..3000).for_each(|_| grid.turn_and_write());
    let row = consumer_of(&mut grid, &asker, "busy");
    assert_eq!((&row["in_flight"], &row["stalled_ms"]), (&json!(0), &json!(0)), "{row}");
    let deaf = consumer_of(&mut grid, &asker, "deaf");
    assert_eq!(deaf["in_flight"], 1);
    assert!(deaf["buffered"].as_u64() > Some(0), "{deaf}");
    let row = consumer_of(&mut grid, &asker, "late");
    assert_eq!((&row["in_flight"], &row["buffered"]), (&json!(1), &json!(0)), "{row}");
    for row in [&deaf, &row] {
        assert!((2900..3200).contains(&row["stalled_ms"].as_u64().expect("a number")), "{row}");
    }
    // An acknowledgement is progress.
    grid.send(&late, "queue.ack", json!({ "g": 1 }));
    grid.turn_and_write();
    let row = consumer_of(&mut grid, &asker, "late");
    assert_eq!((&row["in_flight"], &row["stalled_ms"]), (&json!(0), &json!(0)), "{row}");
}

#[test]
fn a_back_end_that_does_not_answer_a_ping_is_told_by_its_row() {
    let mut grid = Grid::new(&[1, 1]);
    grid.set_limits(|limits| (limits.ping_ms, limits.idle_ms) = (3000, 9000));
    let (asker, silent) = (grid.back_end(0), grid.back_end(1));
    grid.ask(&silent, "queue.pop", json!({ "t": ["silent"] }));
    let mut stalled_ms = Vec::new();
    for _ in 0..4 {
        (0..2000).for_each(|_| grid.turn_and_write());
        // The calls of the asker keep it from being pinged.
        let row = consumer_of(&mut grid, &asker, "silent");
        assert_eq!((&row["in_flight"], &row["buffered"]), (&json!(0), &json!(0)), "{row}");
        stalled_ms.push(row["stalled_ms"].as_u64().expect("a number"));
    }
    assert!(stalled_ms[0] == 0 && stalled_ms.is_sorted(), "{stalled_ms:?}");
    assert!((4700..5100).contains(&stalled_ms[3]), "{stalled_ms:?}");
    // Whatever it sends shows that it is alive.
    grid.send(&silent, "queue.unpop", json!({}));
    grid.turn_and_write();
    let rows = backends(&mut grid, &asker, json!({}));
    assert!(rows.iter().all(|row| row["stalled_ms"] == 0), "{rows:?}");
}

#[test]
fn back_ends_of_a_node_that_does_not_answer_are_missing() {
    let mut grid = Grid::new(&[1, 1]);
    let (asker, _) = (grid.back_end(0), grid.back_end(1));
    grid.frozen.insert(1);
    let page = grid.ask(&asker, "backend.list", json!({}));
    assert_eq!(page["backends"].as_array().map(Vec::len), Some(1));
    assert_eq!((&page["missing"], &page["next"]), (&json!([2]), &Value::Null));
}
