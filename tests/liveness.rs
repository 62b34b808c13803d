//! Which connections count as alive: a shard as a value, and a clock that only steps.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::{NodeId, ShardAddress, ShardId};
use gridcast::message::{ConnectionKey, Message, Party};
use gridcast::shard::settings::{Edge, Limits, Route, Settings};
use gridcast::shard::{Action, Listener, Now, Shard};
use shard_value::upgraded;

const PING_MS: u64 = 300;
const IDLE_MS: u64 = 600;

/// How late a timer may fire.
const TICK_MS: u64 = 16;

const PING: &[u8] = &[0x89, 0];

/// One shard with the routes of a test.
struct Node {
    shard: Shard,
    now: Now,
}

impl Node {
    fn new(routes: Vec<Route>) -> Self {
        let edges = vec![Edge { port: 6790, routes: routes.into_iter().map(Arc::new).collect() }];
        let base = shard_value::settings();
        let limits = Limits { ping_ms: PING_MS, idle_ms: IDLE_MS, ..base.limits.clone() };
        Self::with(&Settings { edges, limits, ..base })
    }

    fn with(settings: &Settings) -> Self {
        let now = at(1_000_000);
        Self { shard: Shard::new(ShardId(0), settings, now), now }
    }

    fn open(&mut self, listener: Listener, path: &str) -> ConnectionKey {
        let key = upgraded(&mut self.shard, self.now, listener, path);
        assert!(self.written(key).starts_with(b"HTTP/1.1 101"));
        key
    }

    fn receive(&mut self, key: ConnectionKey, bytes: &[u8]) {
        self.shard.handle_bytes(self.now, key, &mut bytes.to_vec());
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now = at(self.now.ms + ms);
        self.shard.handle_turn(self.now);
    }

    fn tell(&mut self, message: Message) {
        let node = NodeId::new(1).expect("1 is at most 1023");
        let control = Party::Shard(ShardAddress { node, shard: ShardId(0) });
        self.shard.handle_message(self.now, control, message);
    }

    /// Takes what is to be written to a connection; its socket takes all of it.
    fn written(&mut self, key: ConnectionKey) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let next = self.shard.poll_urgent_write().or_else(|| self.shard.poll_bulk_write());
            let Some((to, batch)) = next else { return all };
            let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
            self.shard.recycle(batch);
            self.shard.handle_written(self.now, to, bytes.len(), true);
            if to == key {
                all.extend(bytes);
            }
        }
    }

    /// What is to be done with a connection's socket.
    fn actions(&mut self, key: ConnectionKey) -> Vec<Action> {
        let is_about = |action: &Action| match action {
            Action::Pause(to) | Action::Resume(to) | Action::Shutdown(to) | Action::Close(to) => {
                *to == key
            }
            Action::StopAccepting => false,
        };
        std::iter::from_fn(|| self.shard.poll_action()).filter(is_about).collect()
    }
}

fn at(ms: u64) -> Now {
    Now { ms, us: ms * 1000, unix_ms: 1_790_000_000_000 + ms }
}

/// The code of a close frame that stands at the end of what was written.
fn close_code(written: &[u8]) -> Option<u16> {
    let at = written.iter().rposition(|&byte| byte == 0x88)?;
    Some(u16::from_be_bytes(*written.get(at + 2..)?.first_chunk()?))
}

// Peers that read.

#[test]
fn a_client_that_drains_a_full_socket_is_alive_and_one_that_stops_is_not() {
    let mut node = Node::new(vec![shard_value::route()]);
    let client = node.open(Listener::Edge(0), "/ws");
    node.pass_ms(PING_MS + TICK_MS);
    assert_eq!(node.written(client), PING);
    for _ in 0..20 {
        node.pass_ms(200);
        node.shard.handle_drained(node.now, client);
        assert_eq!(close_code(&node.written(client)), None, "though it reads");
    }
    node.pass_ms(IDLE_MS + 50);
    assert_eq!(close_code(&node.written(client)), Some(1001));
}

#[test]
fn bytes_that_only_the_kernel_took_do_not_prove_that_a_client_is_alive() {
    let mut node = Node::new(vec![shard_value::route()]);
    let client = node.open(Listener::Edge(0), "/ws?channels=a");
    let back_end = node.open(Listener::Api, "/ws/v1");
    for _ in 0..3 {
        let publish = shard_value::call(r#"{"m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#);
        node.receive(back_end, &publish);
        node.pass_ms(0);
        let written = node.written(client);
        assert!(written.windows(3).any(|part| part == [0x81, 1, b'b']), "{written:?}");
        node.pass_ms(PING_MS);
    }
    assert_eq!(close_code(&node.written(client)), Some(1001));
}

// Messages that are never finished.

/// Feeds `piece` every `every_ms`, and a pong with it; how long the connection lives, in milliseconds.
fn life_ms(node: &mut Node, key: ConnectionKey, every_ms: u64, piece: &[u8]) -> u64 {
    let pong = [0x8A, 0x80, 0, 0, 0, 0];
    let start_ms = node.now.ms;
    while node.now.ms < start_ms + 100 * IDLE_MS {
        node.pass_ms(every_ms);
        if let Some(code) = close_code(&node.written(key)) {
            assert_eq!(code, 1008);
            return node.now.ms - start_ms;
        }
        // Control frames may stand between fragments, not within one.
        node.receive(key, piece);
        if piece.is_empty() || piece[0] == 0 {
            node.receive(key, &pong);
        }
    }
    panic!("it lives on")
}

#[test]
fn a_message_that_is_never_finished_ends_though_pings_are_answered() {
    let begun = [0x01, 0x81, 0, 0, 0, 0, b'a'];
    for (listener, path) in [(Listener::Edge(0), "/ws"), (Listener::Api, "/ws/v1")] {
        let mut node = Node::new(vec![shard_value::route()]);
        let key = node.open(listener, path);
        node.receive(key, &begun);
        let lived_ms = life_ms(&mut node, key, 50, b"");
        assert!((IDLE_MS..IDLE_MS + 100).contains(&lived_ms), "{lived_ms}");
    }
}

#[test]
fn bytes_that_trickle_in_and_empty_fragments_do_not_keep_a_message_for_ever() {
    let begun = [0x01, 0xFE, 0xFF, 0xFF, 0, 0, 0, 0];
    let empty_fragment = [0x00, 0x80, 0, 0, 0, 0];
    let of_one_byte = [0x01, 0x81, 0, 0, 0, 0, b'a'];
    let trickles: [(&[u8], &[u8]); 2] = [(&begun, b"a"), (&of_one_byte, &empty_fragment)];
    for (first, piece) in trickles {
        let mut node = Node::new(vec![shard_value::route()]);
        let key = node.open(Listener::Edge(0), "/ws");
        node.receive(key, first);
        let lived_ms = life_ms(&mut node, key, 50, piece);
        assert!((IDLE_MS..IDLE_MS + 200).contains(&lived_ms), "{lived_ms}");
    }
}

#[test]
fn a_large_message_may_take_longer_than_the_time_of_silence_if_it_keeps_coming() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.open(Listener::Edge(0), "/ws");
    node.receive(key, &[0x82, 0xFE, 0xFD, 0xE8, 0, 0, 0, 0]);
    for _ in 0..65_000 / 1000 {
        node.pass_ms(IDLE_MS / 3);
        assert_eq!(close_code(&node.written(key)), None);
        node.receive(key, &[0; 1000]);
    }
    assert_eq!(node.shard.counters().client_messages, 1);
}

// Nodes that go down.

#[test]
fn a_request_whose_body_is_still_arriving_when_the_node_goes_down_is_answered() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.shard.handle_accepted(node.now, Listener::Api, ([127, 0, 0, 1], 5000).into());
    let key = key.expect("the node is up");
    let body = r#"{"c":"a","d":"b"}"#;
    let (first, last) = body.split_at(5);
    let head = "POST /v1/mesh/publish HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    node.receive(key, format!("{head}Content-Length: {}\r\n\r\n{first}", body.len()).as_bytes());
    node.tell(Message::Drain { over_ms: 100 });
    node.pass_ms(200);
    node.tell(Message::DrainBackends);
    node.pass_ms(200);
    assert_eq!(node.actions(key), []);
    node.receive(key, last.as_bytes());
    let answer = String::from_utf8(node.written(key)).expect("a response is text");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\"f\":0}}"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(node.actions(key), [Action::Shutdown(key)]);
}

#[test]
fn a_connection_between_two_requests_ends_when_the_node_goes_down() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.shard.handle_accepted(node.now, Listener::Api, ([127, 0, 0, 1], 5000).into());
    let key = key.expect("the node is up");
    node.receive(key, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    assert!(node.written(key).starts_with(b"HTTP/1.1 200"));
    node.tell(Message::Drain { over_ms: 100 });
    node.tell(Message::DrainBackends);
    node.pass_ms(200);
    assert_eq!(node.actions(key), [Action::Shutdown(key)]);
}
