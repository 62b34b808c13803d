//! Topics across nodes: consumers anywhere, clients anywhere.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use serde_json::{Value, json};

use crate::support::{DEADLINE, Grid, SUCCESS, Server, Socket, until_within};

/// Clients that feed, and what each sends.
const CLIENTS: usize = 6;
const MESSAGES: usize = 300;

/// Each client sends so many messages, which tell whose and the how manieth they are.
fn feed(clients: &mut [Socket], messages: Range<usize>) {
    for number in messages {
        for (client, socket) in clients.iter_mut().enumerate() {
            socket.send_text(&format!("{client} {number}"));
        }
    }
}

/// Clients on nodes in turn.
fn clients(nodes: &[Server]) -> Vec<Socket> {
    nodes.iter().cycle().take(CLIENTS).map(|node| node.device("/plain")).collect()
}

/// Events received of each client, in order.
#[derive(Debug, Default, PartialEq)]
struct Received(BTreeMap<usize, Vec<usize>>);

impl Received {
    fn note(&mut self, event: &Value) {
        let data = event["d"]["frame"]["data"].as_str().expect("a client's message");
        let (client, number) = data.split_once(' ').expect("two numbers");
        let client = self.0.entry(client.parse().expect("a number")).or_default();
        client.push(number.parse().expect("a number"));
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Nothing is missing, doubled, or out of its client's order.
    #[track_caller]
    fn assert_whole(&self) {
        for client in 0..CLIENTS {
            let numbers = self.0.get(&client).map_or(&[][..], |numbers| numbers);
            assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>(), "of client {client}");
        }
    }
}

/// A consumer that acknowledges each event when it has it.
struct Acknowledging {
    socket: Socket,
    events: VecDeque<Value>,
}

impl Acknowledging {
    fn new(node: &Server) -> Self {
        let mut socket = node.backend();
        let pop = r#"{"m":"queue.pop","p":{"t":["plain"],"a":true,"w":50},"i":12345}"#;
        assert_eq!(socket.call(pop), SUCCESS);
        Self { socket, events: VecDeque::new() }
    }

    /// The next event, once its acknowledgement is answered.
    #[track_caller]
    fn next(&mut self) -> Value {
        if self.events.is_empty() {
            let event = self.socket.event();
            self.events.push_back(event);
        }
        let event = self.events.pop_front().expect("it was there or has just come");
        let ack = json!({ "m": "queue.ack", "p": { "g": event["g"] }, "i": 12345 });
        self.socket.send_text(&ack.to_string());
        loop {
            let mut message: Value = serde_json::from_str(&self.socket.text()).expect("JSON");
            if message["e"] != "queue.pop" {
                assert_eq!(message["r"], json!({ "s": true }));
                return event;
            }
            self.events.push_back(message["p"].take());
        }
    }
}

#[test]
fn a_consumer_on_any_node_gets_the_events_of_clients_of_every_node() {
    let grid = Grid::new(3);
    for through in &grid.nodes {
        let mut consumer = through.consumer("messages");
        for (holder, node) in grid.nodes.iter().zip(1..) {
            let mut client = holder.device("/ws");
            let mut event = consumer.event();
            assert_eq!((&event["n"], &event["t"]), (&json!(node), &json!("messages")));
            assert_eq!(event["d"]["event"], "open");
            let id = event["c"].take();
            client.send_text("text \u{1f980}");
            client.send_binary(&[0, 1, 254, 255]);
            for (kind, data) in [("text", "text \u{1f980}"), ("binary", "AAH+/w==")] {
                let frame = json!({ "frame": { "type": kind, "data": data, "finish": true } });
                let event = consumer.event();
                assert_eq!(event, json!({ "n": node, "c": id, "t": "messages", "d": frame }));
            }
            client.send_close(1000, "");
            let event = consumer.event();
            assert_eq!((&event["c"], &event["d"]["event"]), (&id, &json!("close")));
        }
        assert_eq!(consumer.done("queue.unpop", &json!({})), json!({ "s": true }));
    }
}

#[test]
fn what_waits_on_every_node_goes_to_the_first_consumer_in_order() {
    let grid = Grid::new(3);
    let mut clients = clients(&grid.nodes);
    feed(&mut clients, 0..MESSAGES);
    let mut consumer = grid.nodes[1].consumer("plain");
    let mut received = Received::default();
    (0..CLIENTS * MESSAGES).for_each(|_| received.note(&consumer.event()));
    received.assert_whole();
}

#[test]
fn a_consumer_on_the_client_s_own_node_is_preferred() {
    let grid = Grid::new(3);
    let mut consumers = [0, 1, 2].map(|index| grid.nodes[index].consumer("plain"));
    for (node, number) in grid.nodes.iter().zip(1..) {
        let mut client = node.device("/plain");
        (0..100).for_each(|_| client.send_text("data"));
        for _ in 0..100 {
            assert_eq!(consumers[number - 1].event()["n"], number);
        }
    }
    // Without one there, those elsewhere get them.
    let [first, mut second, mut third] = consumers;
    first.reset();
    let mut clients: Vec<_> = (0..20).map(|_| grid.nodes[0].device("/plain")).collect();
    clients.iter_mut().for_each(|client| client.send_text("data"));
    let mut came = 0;
    second.set_patience(std::time::Duration::from_millis(10));
    third.set_patience(std::time::Duration::from_millis(10));
    until_within(DEADLINE, || {
        came += [&mut second, &mut third].into_iter().filter_map(|c| c.try_read().ok()).count();
        came == 20
    });
}

#[test]
fn what_a_consumer_leaves_another_node_s_takes_over_in_order() {
    let grid = Grid::new(3);
    // All on one node: both consumers are elsewhere.
    let mut clients = clients(&grid.nodes[..1]);
    let mut leaving = grid.nodes[1].consumer("plain");
    feed(&mut clients, 0..MESSAGES / 3);
    let mut received = Received::default();
    (0..CLIENTS * 10).for_each(|_| received.note(&leaving.event()));
    let mut staying = grid.nodes[2].consumer("plain");
    feed(&mut clients, MESSAGES / 3..MESSAGES);
    leaving.send_text(r#"{"m":"queue.unpop","p":{},"i":12345}"#);
    loop {
        let mut message: Value = serde_json::from_str(&leaving.text()).expect("JSON");
        match message["e"] == "queue.pop" {
            true => received.note(&message["p"].take()),
            false => break assert_eq!(message["r"], json!({ "s": true })),
        }
    }
    while received.len() < CLIENTS * MESSAGES {
        received.note(&staying.event());
    }
    received.assert_whole();
}

#[test]
fn what_a_consumer_that_dies_has_not_acknowledged_goes_to_another_node_s() {
    let grid = Grid::new(3);
    let mut clients = clients(&grid.nodes);
    let mut dying = Acknowledging::new(&grid.nodes[1]);
    feed(&mut clients, 0..MESSAGES);
    let mut received = Received::default();
    (0..CLIENTS * MESSAGES / 3).for_each(|_| received.note(&dying.next()));
    let mut heir = Acknowledging::new(&grid.nodes[2]);
    dying.socket.reset();
    while received.len() < CLIENTS * MESSAGES {
        received.note(&heir.next());
    }
    received.assert_whole();
}

#[test]
fn every_group_gets_events_of_clients_on_every_node() {
    let grid = Grid::with(2, "[[topic]]\nname = \"plain\"\ngroups = [\"billing\"]\n");
    grid.wait_until_whole();
    let nodes = &grid.nodes;
    let consumers = [json!({ "t": ["plain"] }), json!({ "t": ["plain"], "group": "billing" })];
    let mut consumers = consumers.map(|params| {
        let mut socket = nodes[0].backend();
        assert_eq!(socket.ask("queue.pop", &params)["r"]["s"], true);
        socket
    });
    let mut devices = [nodes[0].device("/plain"), nodes[1].device("/plain")];
    devices.iter_mut().for_each(|device| device.send_text("hello"));
    for consumer in &mut consumers {
        let mut from: Vec<u64> = (0..2)
            .map(|_| {
                let event: Value = serde_json::from_str(&consumer.text()).expect("JSON");
                event["p"]["n"].as_u64().expect("a node")
            })
            .collect();
        from.sort_unstable();
        assert_eq!(from, [1, 2]);
    }
}
