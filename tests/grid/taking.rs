//! Events taken over HTTP in a grid: any node hands out the events of every node, and takes their tags.

use serde_json::{Value, json};

use crate::support::{DEADLINE, Grid, Http, Server, until_within};

const TOPIC: &str = "[[topic]]\nname = \"plain\"\nack_s = 1\n";

#[track_caller]
fn ask(node: &Server, path: &str, params: &Value) -> Value {
    let answer: Value = serde_json::from_str(&node.post(path, &params.to_string())).expect("JSON");
    assert_eq!(answer["E"], Value::Null, "{answer}");
    answer["r"].clone()
}

#[track_caller]
fn take(node: &Server, wait_ms: u64) -> Vec<Value> {
    let params = json!({ "t": ["plain"], "max": 1000, "wait_ms": wait_ms });
    let taken = ask(node, "/v1/queue/take", &params);
    taken["events"].as_array().expect("a list of events").clone()
}

/// Takes until there are this many events.
#[track_caller]
fn take_all(node: &Server, count: usize) -> Vec<Value> {
    let mut events = Vec::new();
    until_within(DEADLINE, || {
        events.extend(take(node, 1000));
        events.len() >= count
    });
    events
}

fn tags(events: &[Value]) -> Vec<Value> {
    events.iter().map(|event| event["g"].clone()).collect()
}

fn data(event: &Value) -> &str {
    event["d"]["frame"]["data"].as_str().expect("a message of a client")
}

fn settled(stale: &[Value]) -> Value {
    json!({ "s": true, "stale": stale })
}

#[test]
fn events_of_every_node_are_taken_at_one_and_acknowledged_at_another() {
    let grid = Grid::with(3, "[[topic]]\nname = \"plain\"\nack_s = 600\n");
    grid.wait_until_whole();
    let mut devices: Vec<_> = grid.nodes.iter().map(|node| node.device("/plain")).collect();
    for number in 0..50 {
        devices.iter_mut().for_each(|device| device.send_text(&number.to_string()));
    }
    let events = take_all(&grid.nodes[1], 150);
    for node in 1..=3 {
        let of_node = events.iter().filter(|event| event["n"] == node).map(data);
        assert!(of_node.eq((0..50).map(|number| number.to_string())), "of node {node}, in order");
    }
    let (given_back, done) = events.split_at(30);
    let nack = json!({ "g": tags(given_back) });
    assert_eq!(ask(&grid.nodes[0], "/v1/queue/nack", &nack), settled(&[]));
    let ack = json!({ "g": tags(done) });
    assert_eq!(ask(&grid.nodes[2], "/v1/queue/ack", &ack), settled(&[]));
    let stale = ask(&grid.nodes[0], "/v1/queue/ack", &ack);
    let mut stale = stale["stale"].as_array().expect("a list of tags").clone();
    let mut expected = tags(done);
    stale.sort_by_key(Value::to_string);
    expected.sort_by_key(Value::to_string);
    assert_eq!(stale, expected, "they are settled");
    let again = take_all(&grid.nodes[2], 30);
    assert_eq!(again.len(), 30);
    assert!(again.iter().all(|event| event["redelivered"] == true));
    // A back end on a WebSocket can settle them too.
    let mut socket = grid.nodes[1].backend();
    let answer = socket.ask("queue.ack", &json!({ "g": tags(&again) }));
    assert_eq!(answer["r"], settled(&[]));
    assert!(take(&grid.nodes[0], 100).is_empty());
}

#[test]
fn a_take_waits_for_events_of_other_nodes() {
    let grid = Grid::with(2, TOPIC);
    grid.wait_until_whole();
    let mut device = grid.nodes[1].device("/plain");
    let mut waiting = grid.nodes[0].http();
    let params = json!({ "t": ["plain"], "wait_ms": 30_000 }).to_string();
    waiting.send(grid.nodes[0].raw("POST", "/v1/queue/take", "", &params));
    let has_joined = || {
        let rows = ask(&grid.nodes[1], "/v1/topic/list", &json!({}));
        let rows = rows["topics"].as_array().expect("a list").clone();
        rows.iter().any(|row| row["t"] == "plain" && row["consumers"] == 1)
    };
    until_within(DEADLINE, has_joined);
    device.send_text("late");
    let answer = waiting.response().json();
    let events = answer["r"]["events"].as_array().expect("a list of events");
    assert_eq!(events.iter().map(data).collect::<Vec<_>>(), ["late"]);
    let ack = json!({ "g": tags(events) });
    assert_eq!(ask(&grid.nodes[1], "/v1/queue/ack", &ack), settled(&[]));
}

#[test]
fn a_node_that_is_killed_takes_its_events_with_it_and_leaves_what_it_had_taken() {
    let mut grid = Grid::with(3, TOPIC);
    grid.wait_until_whole();
    let mut devices: Vec<_> = grid.nodes.iter().map(|node| node.device("/plain")).collect();
    devices.iter_mut().for_each(|device| device.send_text("before"));
    let before = take_all(&grid.nodes[0], 3);
    let mut of_dying: Vec<Value> = before.clone();
    of_dying.retain(|event| event["n"] == 3);
    // A take waits on the node when it is killed.
    let mut waiting: Http = grid.nodes[2].http();
    let params = json!({ "t": ["plain"], "wait_ms": 30_000 }).to_string();
    waiting.send(grid.nodes[2].raw("POST", "/v1/queue/take", "", &params));
    grid.nodes[2].kill();
    drop(waiting);
    devices[0].send_text("after");
    // The home learns that the node is lost, and hands out again what that had.
    let mut after = Vec::new();
    until_within(DEADLINE, || {
        after.extend(take(&grid.nodes[1], 1000));
        after.iter().any(|event| data(event) == "after")
    });
    let is_lost = || {
        let answer =
            grid.nodes[1].post("/v1/queue/ack", &json!({ "g": tags(&of_dying) }).to_string());
        let answer: Value = serde_json::from_str(&answer).expect("JSON");
        answer["r"] == settled(&tags(&of_dying))
    };
    until_within(DEADLINE, is_lost);
    assert_eq!(ask(&grid.nodes[1], "/v1/queue/ack", &json!({ "g": tags(&after) }))["s"], true);
}
