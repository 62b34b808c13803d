//! Taps over nodes: a back end of one watches devices of another.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{DEADLINE, Grid, Socket};

/// Returns the next event of a tap.
fn told(tapper: &mut Socket) -> Value {
    let mut event: Value = serde_json::from_str(&tapper.text()).expect("an event is JSON");
    assert_eq!(event["e"], "tap", "{event}");
    event["p"].take()
}

/// Reads the next event of a tap, which must be this one; returns it.
#[track_caller]
fn expect(tapper: &mut Socket, what: &str) -> Value {
    let event = told(tapper);
    assert_eq!(event["what"], what, "{event}");
    event
}

#[test]
fn the_life_of_a_device_is_watched_from_another_node() {
    let grid = Grid::new(2);
    let mut tapper = grid.nodes[0].backend();
    let started = tapper.done("tap.start", &json!({ "address": "127.0.0.1" }));
    assert_eq!(started, json!({ "s": true, "missing": [] }));

    let refused = Socket::connect(grid.nodes[1].edge, "/nowhere?token=s3cret", "");
    assert_eq!(refused.err().expect("there is no such route").status, 404);
    let event = expect(&mut tapper, "refuse");
    assert_eq!((&event["status"], &event["path"]), (&json!(404), &json!("/nowhere")));
    assert_eq!((&event["why"], &event["node"]), (&json!("no such route"), &json!(2)));

    let mut device = grid.nodes[1].device("/ws");
    let event = expect(&mut tapper, "connect");
    assert_eq!(event["remote"], json!(device.address()));
    let id = event["c"].as_str().expect("an id").to_owned();
    device.send_text("hello");
    assert_eq!(expect(&mut tapper, "in")["d"], "hello");
    grid.nodes[1].backend().done("mesh.send", &json!({ "c": id, "d": "welcome" }));
    assert_eq!(device.text(), "welcome");
    assert_eq!(expect(&mut tapper, "out")["d"], "welcome");
    assert_eq!(expect(&mut tapper, "call")["m"], "mesh.send");
    device.send_close(4001, "bye");
    let event = expect(&mut tapper, "close");
    let of_event = (&event["c"], &event["code"], &event["reason"], &event["by"]);
    assert_eq!(of_event, (&json!(id), &json!(4001), &json!("bye"), &json!("peer")));
}

#[test]
fn a_tap_is_answered_without_a_frozen_node_and_watches_a_node_that_joins() {
    let mut grid = Grid::new(2);
    grid.nodes[1].freeze();
    let mut tapper = grid.nodes[0].backend();
    let started = tapper.done("tap.start", &json!({ "address": "127.0.0.1" }));
    // On a busy machine the node may be lost before it is asked.
    assert!([json!([2]), json!([])].contains(&started["missing"]), "{started}");
    grid.nodes[1].kill();
    grid.restart(1);
    grid.wait_until_whole();
    grid.join();
    grid.wait_until_whole();
    for (number, node) in grid.nodes.iter().enumerate() {
        // A node that has joined may not know of the tap yet.
        let start = Instant::now();
        tapper.set_patience(Duration::from_millis(200));
        let event = loop {
            let _device = node.device("/ws");
            if let Ok(message) = tapper.try_read() {
                break message;
            }
            assert!(start.elapsed() < DEADLINE, "node {} does not watch", number + 1);
        };
        assert!(format!("{event:?}").contains("tap"), "{event:?}");
        drain(&mut tapper);
    }
}

/// Reads until nothing comes for a while.
fn drain(tapper: &mut Socket) {
    while tapper.try_read().is_ok() {}
}

#[test]
fn a_tapper_that_does_not_read_delays_nobody_and_stays_connected() {
    const MESSAGES: u64 = 3000;
    let grid = Grid::new(2);
    let mut finder = grid.nodes[0].backend();
    finder.done("tap.start", &json!({ "address": "127.0.0.1" }));
    let mut device = grid.nodes[1].device("/echo");
    let id = expect(&mut finder, "connect")["c"].clone();
    finder.done("tap.stop", &json!({}));

    let mut tapper = Socket::connect_with_small_buffer(grid.nodes[0].api, "/ws/v1");
    tapper.done("tap.start", &json!({ "c": id, "max_per_s": 1000 }));
    let text = "x".repeat(1000);
    for _ in 0..MESSAGES {
        device.send_text(&text);
        assert_eq!(device.text(), text);
    }
    let (mut events, mut lost) = (0, 0);
    while events + lost < 2 * MESSAGES {
        let event = told(&mut tapper);
        match event["n"].as_u64() {
            Some(count) => lost += count,
            None => events += 1,
        }
    }
    assert_eq!(events + lost, 2 * MESSAGES, "each event is told or counted");
    assert_eq!(tapper.done("tap.stop", &json!({})), json!({ "s": true }));
}
