//! `channel.list` and `topic.list`.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::grid::{BackEnd, Grid};

/// Walks all pages of channels; returns their names and counts.
#[track_caller]
fn channels(grid: &mut Grid, back_end: &BackEnd, prefix: &str, max: usize) -> Vec<(String, u64)> {
    let mut params = json!({ "prefix": prefix, "max": max });
    let mut all = Vec::new();
    for _ in 0..10_000 {
        let page = grid.ask(back_end, "channel.list", params.clone());
        let rows = page["channels"].as_array().expect("a list");
        assert!(rows.len() <= max && page["missing"] == json!([]), "{page}");
        let name = |row: &Value| row["c"].as_str().map(str::to_owned).expect("a name");
        all.extend(rows.iter().map(|row| (name(row), row["clients"].as_u64().expect("a number"))));
        params["after"] = page["next"].clone();
        if params["after"].is_null() {
            return all;
        }
    }
    panic!("the walk does not end");
}

#[test]
fn channels_are_sorted_and_their_clients_counted_over_shards_and_nodes() {
    let mut grid = Grid::new(&[2, 3, 1]);
    let back_end = grid.back_end(2);
    let mut expected = BTreeMap::new();
    let places = grid.places();
    for index in 0..600 {
        // Some channels are on one shard alone, others on all.
        let name = format!("c{}", index * index % 97);
        grid.client(places[index % places.len()], &format!("/ws?channels={name},all"));
        *expected.entry(name).or_insert(0) += 1;
    }
    expected.insert("all".into(), 600);
    let sorted: Vec<_> = expected.into_iter().collect();
    for max in [1, 5, 1000] {
        assert_eq!(channels(&mut grid, &back_end, "", max), sorted, "in pages of {max}");
    }
    let some: Vec<_> = sorted.into_iter().filter(|(name, _)| name.starts_with("c1")).collect();
    assert!(some.len() > 3);
    assert_eq!(channels(&mut grid, &back_end, "c1", 2), some);
    assert_eq!(channels(&mut grid, &back_end, "d", 2), []);
}

#[test]
fn a_channel_with_many_names_before_it_is_found_over_several_turns() {
    let mut grid = Grid::new(&[1]);
    let back_end = grid.back_end(0);
    for index in 0..1000 {
        let names = (0..10).map(|channel| format!("{:05}", 99_999 - (index * 10 + channel)));
        let path = format!("/ws?channels={}", names.collect::<Vec<_>>().join(","));
        grid.client((0, 0), &path);
    }
    let asked_ms = grid.now.ms;
    let all = channels(&mut grid, &back_end, "", 1000);
    assert!(all.is_sorted() && all.len() == 10_000);
    assert!(grid.now.ms - asked_ms >= 10 * 8, "ten pages of three slices each");
}

#[test]
fn a_node_that_does_not_answer_is_named_and_the_others_are_counted() {
    let mut grid = Grid::new(&[1, 2]);
    let back_end = grid.back_end(0);
    for place in grid.places() {
        grid.client(place, "/ws?channels=news");
    }
    grid.frozen.insert(1);
    let page = grid.ask(&back_end, "channel.list", json!({}));
    assert_eq!(page["channels"], json!([{ "c": "news", "clients": 1 }]));
    assert_eq!((&page["missing"], &page["next"]), (&json!([2]), &Value::Null));
    let page = grid.ask(&back_end, "topic.list", json!({}));
    assert_eq!(page["missing"], json!([2]));
}

#[test]
fn topics_are_summed_over_their_homes() {
    let mut grid = Grid::new(&[2, 3]);
    let consumers = [grid.back_end(0), grid.back_end(1)];
    for back_end in &consumers {
        grid.ask(back_end, "queue.pop", json!({ "t": ["a", "b"] }));
    }
    let back_end = grid.back_end(0);
    let topic = |name: &str, consumers: u64| {
        json!({
            "t": name, "store": "memory", "messages": 0, "bytes": 0, "oldest_ms": 0, "in_flight": 0,
            "consumers": consumers, "groups": [{
                "name": null, "backlog": 0, "in_flight": 0, "stalled_ms": 0, "consumers": consumers,
                "redelivered": 0, "dead": 0,
            }], "sinks": [],
        })
    };
    // Each consumer consumes on both nodes, and counts once.
    let page = grid.ask(&back_end, "topic.list", json!({}));
    assert_eq!(page["topics"], json!([topic("a", 2), topic("b", 2)]));
    let first = grid.ask(&back_end, "topic.list", json!({ "max": 1 }));
    assert_eq!((&first["topics"], &first["next"]), (&json!([topic("a", 2)]), &json!("a")));
    let second = grid.ask(&back_end, "topic.list", json!({ "max": 1, "after": "a" }));
    assert_eq!((&second["topics"], &second["next"]), (&json!([topic("b", 2)]), &Value::Null));
}
