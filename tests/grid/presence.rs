//! Who is told to come and go when nodes die, freeze and end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Grid, Server, Socket};

const CHANNEL: &str = "[[channel]]\nmatch = \"room\"\npresence = true\npresence_grace_s = 0\n\
                       topic = \"presence\"\n";

/// The longest wait for what is promised within 5 s. A machine that is busy with other tests gets ten times that.
const TOLD_MAX: Duration = Duration::from_secs(50);

/// A device of a user, which speaks the device protocol and is subscribed to `room`.
fn person(node: &Server, user: &str) -> Socket {
    let mut consumer = node.consumer("messages");
    let protocol = "Sec-WebSocket-Protocol: gridcast.v1\r\n";
    let mut device = Socket::connect(node.edge, "/ws", protocol).expect("the edge grants it");
    device.set_patience(TOLD_MAX);
    // The devices of a node that ends are reported too.
    let opened = std::iter::repeat_with(|| consumer.event()).find(|of| of["d"]["event"] == "open");
    let id = opened.expect("a device has connected")["c"].as_str().expect("an id").to_owned();
    let mut backend = node.backend();
    backend.conn_call(&id, "set_context_value", json!(["user_id", user]));
    backend.conn_call(&id, "subscribe", json!(["room"]));
    device
}

/// Reads who comes or goes.
#[track_caller]
fn told(device: &mut Socket) -> String {
    let told: Value = serde_json::from_str(&device.text()).expect("JSON");
    assert_eq!(told["p"]["c"], "room", "{told}");
    let word = |value: &Value| value.as_str().expect("a word").to_owned();
    format!("{} {}", word(&told["e"]), word(&told["p"]["u"]))
}

#[test]
fn users_of_a_node_that_is_killed_leave_and_those_who_are_elsewhere_too_do_not() {
    let mut grid = Grid::with(3, CHANNEL);
    let mut consumer = grid.nodes[0].consumer("presence");
    consumer.set_patience(TOLD_MAX);
    let mut watcher = person(&grid.nodes[0], "watcher");
    let ada = person(&grid.nodes[1], "ada");
    assert_eq!(told(&mut watcher), "join ada");
    let _ada_again = person(&grid.nodes[2], "ada");
    let _bob = person(&grid.nodes[2], "bob");
    assert_eq!(told(&mut watcher), "join bob");

    let died = Instant::now();
    grid.nodes[2].kill();
    assert_eq!(told(&mut watcher), "leave bob");
    println!("leave {:?} after the death", died.elapsed());
    let _bob = person(&grid.nodes[1], "bob");
    assert_eq!(told(&mut watcher), "join bob");
    drop(ada);
    assert_eq!(told(&mut watcher), "leave ada");

    // The events of back ends come at least once, and the last of each user is right.
    let here = BTreeMap::from([("ada", "leave"), ("bob", "join"), ("watcher", "join")]);
    let here = here.into_iter().map(|(user, event)| (user.to_owned(), event.to_owned()));
    let here: BTreeMap<String, String> = here.collect();
    let mut last = BTreeMap::new();
    while last != here {
        let event = consumer.event();
        let word = |key: &str| event["d"][key].as_str().map(str::to_owned);
        if let (Some(user), Some(what)) = (word("user"), word("event")) {
            last.insert(user, what);
        }
        consumer.send_text(&json!({ "m": "queue.ack", "p": { "g": event["g"] } }).to_string());
    }
}

#[test]
fn users_of_a_node_that_freezes_leave_and_join_again_when_it_goes_on() {
    let grid = Grid::with(2, CHANNEL);
    let mut watcher = person(&grid.nodes[0], "watcher");
    let _bob = person(&grid.nodes[1], "bob");
    assert_eq!(told(&mut watcher), "join bob");
    grid.nodes[1].freeze();
    assert_eq!(told(&mut watcher), "leave bob");
    grid.nodes[1].thaw();
    assert_eq!(told(&mut watcher), "join bob");
}

#[test]
fn users_of_a_node_that_ends_leave() {
    let mut grid = Grid::with(2, CHANNEL);
    let mut watcher = person(&grid.nodes[0], "watcher");
    let _bob = person(&grid.nodes[1], "bob");
    assert_eq!(told(&mut watcher), "join bob");
    grid.nodes[1].terminate();
    assert_eq!(told(&mut watcher), "leave bob");
    let _bob = person(&grid.nodes[0], "bob");
    assert_eq!(told(&mut watcher), "join bob");
}
