//! Limits of clients, users and addresses. Shards are values here, and the test sets the clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::num::NonZeroU32;
use std::sync::Arc;

use gridcast::address::{Incarnation, NodeId, ShardId};
use gridcast::message::{ConnectionKey, FromMesh, FromShard, GridMessage, LocalMessage, ToShard};
use gridcast::metrics::Counters;
use gridcast::protocol::credentials::{Roles, Scheme, Secret, User};
use gridcast::protocol::http;
use gridcast::queue::Bounds;
use gridcast::shard::node_state::NodeState;
use gridcast::shard::rate::Rate;
use gridcast::shard::settings::{
    AddressLimits, ApiSettings, EdgeSettings, LimitSettings, Process, QueueSettings, RouteSettings,
    Settings,
};
use gridcast::shard::{Action, Listener, Now, Priority, Shard};

const UPGRADE: &str = "Host: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

const NODE: NodeId = NodeId::new(7).expect("7 is a node");

const PING_MS: u64 = 300;
const IDLE_MS: u64 = 600;

/// The time by which a timer may be late, in milliseconds.
const TICK_MS: u64 = 16;

fn settings(shards: usize) -> Settings {
    let base = shard_value::settings();
    let http = http::RequestLimits { head_bytes: 4096, headers: 20, body_bytes: 4096 };
    Settings {
        node: NODE,
        shards,
        api: ApiSettings { http, ..base.api },
        edges: vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route(None))] }],
        queue: QueueSettings {
            bounds: Bounds { messages: 100, bytes: 100_000 },
            topics: 2,
            ..base.queue
        },
        limits: LimitSettings {
            edge_http: http::RequestLimits { body_bytes: 0, ..http },
            api_message_bytes: 4096,
            outbound_bytes: 100_000,
            channels_per_client: 2,
            ping_ms: PING_MS,
            idle_ms: IDLE_MS,
            answer_ms: 500,
            ..base.limits
        },
        ..base
    }
}

fn route(messages: Option<Rate>) -> RouteSettings {
    RouteSettings {
        path: "/echo".into(),
        echo: true,
        message_bytes: 1000,
        outbound_bytes: 100_000,
        messages,
        ..RouteSettings::default()
    }
}

/// The shards of a node. Messages between them are delivered by [`Node::deliver`].
struct Node {
    shards: Vec<Shard>,
    now: Now,
}

impl Node {
    fn new(settings: &Settings) -> Self {
        let now = at(1_000_000);
        let state = Arc::new(NodeState::new(settings, Arc::default()));
        let shard = |index| Shard::new(ShardId(index as u8), settings, state.clone(), now);
        Self { shards: (0..settings.shards).map(shard).collect(), now }
    }

    fn accept(&mut self, shard: usize, listener: Listener, host: u8) -> ConnectionKey {
        let remote = ([10, 0, 0, host], 5000).into();
        let key = self.shards[shard].handle_accepted(self.now, listener, remote);
        key.expect("the node is up")
    }

    fn receive(&mut self, shard: usize, key: ConnectionKey, bytes: &[u8]) {
        self.shards[shard].handle_bytes(self.now, key, &mut bytes.to_vec());
    }

    /// Opens a connection that asks for a WebSocket at `target`, with these header lines.
    fn open(&mut self, listener: Listener, target: &str, headers: &str) -> ConnectionKey {
        let key = self.accept(0, listener, 1);
        self.receive(0, key, format!("GET {target} HTTP/1.1\r\n{UPGRADE}{headers}\r\n").as_bytes());
        assert!(self.written(0).starts_with("HTTP/1.1 101"));
        key
    }

    fn pass_ms(&mut self, ms: u64) {
        self.now = at(self.now.ms + ms);
        self.shards.iter_mut().for_each(|shard| shard.handle_turn(self.now));
    }

    /// Delivers the messages between the shards.
    fn deliver(&mut self) {
        for from in 0..self.shards.len() {
            while let Some(message) = self.shards[from].poll_message() {
                let FromShard::Local(to, message) = message else { panic!("there is no mesh") };
                let message = ToShard::Local(ShardId(from as u8), message);
                self.shards[to.index()].handle_message(self.now, message);
            }
        }
        self.pass_ms(0);
    }

    /// Writes all output of a shard; returns it.
    fn written(&mut self, shard: usize) -> String {
        let shard = &mut self.shards[shard];
        let mut all = Vec::new();
        while let Some((key, batch)) =
            shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
        {
            let before = all.len();
            batch.iter().for_each(|chunk| all.extend_from_slice(chunk.bytes()));
            shard.handle_written(self.now, key, all.len() - before, true);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Closes the sockets that a shard wants closed; returns their number.
    fn closed(&mut self, shard: usize) -> usize {
        let shard = &mut self.shards[shard];
        let mut closed = 0;
        while let Some(action) = shard.poll_action() {
            if let Action::Close(key) = action {
                shard.handle_closed(key);
                closed += 1;
            }
        }
        closed
    }

    fn counters(&self) -> Counters {
        self.shards.iter().fold(Counters::default(), |mut all, shard| {
            all += shard.inspect().counters();
            all
        })
    }
}

fn at(ms: u64) -> Now {
    Now { ms, us: ms * 1000, unix_ms: 1_790_000_000_000 + ms }
}

/// A client's text message, with a mask of zeros.
fn message(text: &str) -> Vec<u8> {
    let head = [0x81, 0x80 | text.len() as u8, 0, 0, 0, 0];
    [&head[..], text.as_bytes()].concat()
}

fn limited_client(per_s: u32) -> (Node, ConnectionKey) {
    let mut settings = settings(1);
    settings.edges[0].routes = vec![Arc::new(route(Rate::new(per_s)))];
    let mut node = Node::new(&settings);
    let client = node.open(Listener::Edge(0), "/echo", "");
    (node, client)
}

#[test]
fn a_client_over_its_message_rate_is_read_at_that_rate_and_loses_nothing() {
    let (mut node, client) = limited_client(10);
    let all: Vec<u8> = (0..40).flat_map(|number| message(&format!("<{number}>"))).collect();
    node.receive(0, client, &all);
    assert_eq!(node.written(0).matches('<').count(), 10, "a second's worth at once");
    let mut heard: Vec<usize> = Vec::new();
    let mut text = String::new();
    for _ in 0..4 {
        let before = text.matches('<').count();
        for _ in 0..100 {
            node.pass_ms(10);
            text += &node.written(0);
            node.receive(0, client, &pong());
        }
        heard.push(text.matches('<').count() - before);
    }
    // A timer is not more precise than a tick.
    assert!(heard[..3].iter().all(|count| (9..=11).contains(count)), "{heard:?}");
    let places: Vec<_> = (10..40).map(|number| text.find(&format!("<{number}>"))).collect();
    assert!(places.is_sorted() && places[0].is_some(), "all of it, in order: {text:?}");
    assert!((30..=31).contains(&node.counters().limits.messages_per_s));
}

/// An empty pong.
fn pong() -> [u8; 6] {
    [0x8A, 0x80, 0, 0, 0, 0]
}

#[test]
fn a_client_that_is_paused_for_its_rate_counts_as_alive() {
    let (mut node, client) = limited_client(1);
    node.receive(0, client, &[message("<1>"), message("<2>")].concat());
    assert!(node.written(0).contains("<1>"));
    // Longer than the silence before a ping, and before the connection is closed.
    let mut pings = 0;
    for _ in 0..9 {
        node.pass_ms(100);
        let written = node.written(0);
        assert!(!written.contains('<') && node.closed(0) == 0);
        if !written.is_empty() {
            pings += 1;
            node.receive(0, client, &pong());
        }
    }
    assert!(pings > 1);
    node.pass_ms(120);
    assert!(node.written(0).contains("<2>"));
}

#[test]
fn the_end_of_a_client_is_reported_after_its_messages() {
    let (mut node, client) = limited_client(1);
    node.receive(0, client, &[message("<1>"), message("<2>")].concat());
    node.shards[0].handle_end(node.now, client, false);
    assert!(node.written(0).contains("<1>"));
    assert_eq!(node.closed(0), 0);
    node.pass_ms(1020);
    assert!(node.written(0).contains("<2>"));
    node.pass_ms(0);
    assert_eq!((node.closed(0), node.shards[0].inspect().connections()), (1, 0));
    node.pass_ms(100_000);
    assert_eq!(node.shards[0].poll_timeout(), None, "nothing wakes for it any more");
}

/// A node with one user that has this quota of calls per second.
fn node_with_user(shards: usize, requests_per_s: u32) -> Node {
    let mut settings = settings(shards);
    let user = User {
        name: "app".into(),
        scheme: Scheme::Bearer,
        secret: Secret::Plain("secret".into()),
        roles: Roles::ALL,
        from: Default::default(),
        requests_per_s,
    };
    settings.api.users = vec![user].into();
    Node::new(&settings)
}

const CREDENTIALS: &str = "Authorization: Bearer secret\r\n";

fn publish(headers: &str) -> Vec<u8> {
    let body = r#"{"c":"a","d":"x"}"#;
    let length = body.len();
    format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\
         {CREDENTIALS}{headers}\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn the_quota_of_a_user_holds_for_all_shards_together() {
    let mut node = node_with_user(2, 5);
    let keys = [0, 1].map(|shard| node.accept(shard, Listener::Api, 1));
    for _ in 0..4 {
        for shard in [0, 1] {
            node.receive(shard, keys[shard], &publish(""));
        }
        node.deliver();
        node.deliver();
    }
    let answers = node.written(0) + &node.written(1);
    assert_eq!(answers.matches(r#"{"E":null"#).count(), 5, "{answers}");
    assert_eq!(answers.matches(r#"{"E":{"c":103"#).count(), 3, "{answers}");
    assert_eq!(answers.matches("HTTP/1.1 200").count(), 8, "{answers}");
    assert_eq!(node.counters().limits.requests_per_s, 3);
    node.receive(0, keys[0], &publish("X-Error-Mode: status\r\n"));
    let refused = node.written(0);
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("\r\nRetry-After: 1\r\n"));
    node.pass_ms(200);
    node.receive(1, keys[1], &publish(""));
    node.deliver();
    node.deliver();
    assert!(node.written(1).contains(r#"{"E":null"#));
}

#[test]
fn calls_over_quota_leave_a_websocket_open_and_pings_do_not_count() {
    let mut node = node_with_user(1, 2);
    let backend = node.open(Listener::Api, "/ws/v1", CREDENTIALS);
    let call = message(r#"{"m":"mesh.publish","p":{"c":"a","d":"x"},"i":1}"#);
    let calls = [&call[..], &message("ping"), &call, &call, &message("ping")].concat();
    node.receive(0, backend, &calls);
    let answers = node.written(0);
    assert_eq!(answers.matches(r#"{"E":null"#).count(), 2, "{answers}");
    assert_eq!(answers.matches(r#"{"E":{"c":103"#).count(), 1, "{answers}");
    assert_eq!(answers.matches("pong").count(), 2, "{answers}");
    node.pass_ms(500);
    node.receive(0, backend, &call);
    assert!(node.written(0).contains(r#"{"E":null"#));
}

#[test]
fn a_call_behind_too_many_unanswered_ones_is_read_later_and_then_has_its_full_time() {
    const CALLS: usize = 300;
    let mut settings = settings(2);
    settings.limits.outbound_bytes = 6000;
    (settings.limits.ping_ms, settings.limits.idle_ms) = (60_000, 120_000);
    let answer_ms = settings.limits.answer_ms;
    let mut node = Node::new(&settings);
    let back_end = node.open(Listener::Api, "/ws/v1", "");
    let client = u64::from(NODE.number()) << 12 | 1 << 11;
    for number in 0..CALLS {
        let params = format!(r#"{{"c":"{client}","f":"info","a":[]}}"#);
        let call = format!(r#"{{"m":"conn.call","p":{params},"i":{number}}}"#);
        node.receive(0, back_end, &message(&call));
    }
    // The other shard, which has the client, never answers.
    let (mut read_ms, mut answered, mut answered_ms) = (Vec::new(), 0, node.now.ms);
    while answered < CALLS {
        while let Some(message) = node.shards[0].poll_message() {
            let is_question =
                matches!(message, FromShard::Local(_, LocalMessage::Grid(GridMessage::Ask { .. })));
            read_ms.extend(is_question.then_some(node.now.ms));
        }
        let is_paused =
            node.shards[0].inspect().read_progress_of(back_end).expect("it is there").is_paused;
        let waits = read_ms.len() > answered;
        assert!(waits || !is_paused && node.now.ms <= answered_ms + 1, "the rest is read");
        for _ in node.written(0).matches("no answer in time") {
            let took_ms = node.now.ms - read_ms[answered];
            assert!((answer_ms..=answer_ms + TICK_MS).contains(&took_ms), "{took_ms} ms");
            (answered, answered_ms) = (answered + 1, node.now.ms);
        }
        node.pass_ms(1);
    }
    assert!(node.counters().limits.calls_waiting > 1, "it was held back, again and again");
}

#[test]
fn a_call_has_its_full_time_even_beyond_the_reach_of_the_timer_wheel() {
    for answer_ms in [1000, 65_000, 66_000, 200_000] {
        let mut settings = settings(2);
        settings.limits =
            LimitSettings { ping_ms: 1 << 20, idle_ms: 1 << 21, answer_ms, ..settings.limits };
        let mut node = Node::new(&settings);
        let back_end = node.open(Listener::Api, "/ws/v1", "");
        // The other shard, which has the client, never answers.
        let client = u64::from(NODE.number()) << 12 | 1 << 11;
        let params = format!(r#"{{"c":"{client}","f":"info","a":[]}}"#);
        node.receive(0, back_end, &message(&format!(r#"{{"m":"conn.call","p":{params},"i":1}}"#)));
        let (called_ms, mut answer) = (node.now.ms, String::new());
        while answer.is_empty() && node.now.ms < called_ms + 2 * answer_ms {
            node.pass_ms(TICK_MS);
            answer = node.written(0);
        }
        assert!(answer.contains("no answer in time"), "{answer}");
        let took_ms = node.now.ms - called_ms;
        assert!((answer_ms..=answer_ms + 2 * TICK_MS).contains(&took_ms), "{took_ms} ms");
    }
}

fn node_with_addresses(connections: u32, handshakes_per_s: u32) -> Node {
    let mut settings = settings(3);
    settings.limits.addresses = AddressLimits {
        connections: NonZeroU32::new(connections),
        handshakes: Rate::new(handshakes_per_s),
    };
    Node::new(&settings)
}

#[test]
fn the_connection_limit_of_an_address_holds_for_all_shards_together() {
    let mut node = node_with_addresses(2, 0);
    let mut keys = Vec::new();
    for shard in [0, 1, 2, 0, 1, 2] {
        keys.push((shard, node.accept(shard, Listener::Edge(0), 1)));
        node.accept(shard, Listener::Api, 1);
    }
    let other = node.accept(1, Listener::Edge(0), 2);
    node.deliver();
    node.deliver();
    let is_there =
        |node: &mut Node, (shard, key): (usize, _)| node.shards[shard].inspect().is_receiving(key);
    assert!(is_there(&mut node, (1, other)), "another address has its own");
    let stayed: Vec<_> = keys.iter().copied().filter(|&key| is_there(&mut node, key)).collect();
    assert_eq!(stayed.len(), 2);
    assert_eq!((0..3).map(|shard| node.closed(shard)).sum::<usize>(), 4);
    assert_eq!(node.counters().limits.connections_per_address, 4);
    // One connection closes, so another one fits.
    let (shard, key) = stayed[0];
    node.shards[shard].handle_end(node.now, key, true);
    node.closed(shard);
    node.deliver();
    let next = (2, node.accept(2, Listener::Edge(0), 1));
    node.deliver();
    node.deliver();
    assert!(is_there(&mut node, next));
}

#[test]
fn a_connection_is_not_read_before_its_address_is_admitted() {
    let mut node = node_with_addresses(0, 1);
    let mut answers = String::new();
    for shard in [0, 1, 2] {
        let key = node.accept(shard, Listener::Edge(0), 1);
        assert!(!node.shards[shard].inspect().is_receiving(key));
        node.receive(shard, key, format!("GET /echo HTTP/1.1\r\n{UPGRADE}\r\n").as_bytes());
        answers += &node.written(shard);
    }
    assert!(answers.matches("HTTP").count() <= 1, "only the home itself knows at once");
    node.deliver();
    node.deliver();
    answers.extend((0..3).map(|shard| node.written(shard)));
    assert_eq!(answers.matches("HTTP/1.1 101").count(), 1, "{answers}");
    assert_eq!(answers.matches("HTTP").count(), 1, "the others are closed without a word");
    assert_eq!(node.counters().limits.handshakes_per_address_s, 2);
}

#[test]
fn a_connection_that_is_closed_before_it_is_counted_does_not_stay_counted() {
    let mut node = node_with_addresses(1, 0);
    for shard in [0, 1, 2, 0, 1, 2] {
        let key = node.accept(shard, Listener::Edge(0), 1);
        node.shards[shard].handle_end(node.now, key, true);
        assert_eq!(node.closed(shard), 1);
        node.deliver();
        node.deliver();
        node.deliver();
        let counted: u64 = node.shards.iter().map(|shard| shard.inspect().report().addresses).sum();
        assert_eq!(counted, 0);
    }
    assert_eq!(node.counters().limits.connections_per_address, 0);
}

#[test]
fn each_connection_counts_as_one_handshake() {
    let mut node = node_with_addresses(0, 10);
    let key = node.accept(0, Listener::Edge(0), 1);
    node.deliver();
    node.deliver();
    let unknown = format!("GET /unknown HTTP/1.1\r\n{UPGRADE}\r\n");
    node.receive(0, key, unknown.repeat(2).as_bytes());
    let answers = node.written(0);
    assert_eq!(answers.matches("HTTP/1.1 404").count(), 1, "{answers}");
    assert!(answers.contains("Connection: close\r\n"), "{answers}");
}

#[test]
fn without_limits_no_shard_is_asked_about_an_address() {
    let mut node = Node::new(&settings(3));
    for shard in [0, 1, 2] {
        let key = node.accept(shard, Listener::Edge(0), 1);
        assert!(node.shards[shard].inspect().is_receiving(key));
        assert!(node.shards[shard].poll_message().is_none());
    }
}

#[test]
fn no_client_is_refused_when_the_system_clock_is_set_back() {
    let mut node = Node::new(&settings(1));
    // More clients than there are ids in one millisecond and in the second that ids may be ahead.
    for _ in 0..5000 {
        let before = Now { unix_ms: node.now.unix_ms - 3_600_000, ..node.now };
        node.now = Now { ms: before.ms + 1, us: before.us + 1000, ..before };
        node.shards[0].handle_turn(node.now);
        let key = node.open(Listener::Edge(0), "/echo", "");
        node.shards[0].handle_end(node.now, key, true);
        while let Some(action) = node.shards[0].poll_action() {
            if let Action::Close(key) = action {
                node.shards[0].handle_closed(key);
            }
        }
        node.now.unix_ms += 3_600_000;
    }
    assert_eq!(node.shards[0].inspect().counters().limits.client_ids, 0);
}

#[test]
fn a_node_is_ready_once_the_expected_number_of_nodes_was_reachable() {
    let process = Process { nodes_expected: 3, ..Process::default() };
    let mut node = Node::new(&Settings { has_mesh: true, process, ..settings(1) });
    let hear = |node: &mut Node, message| {
        node.shards[0].handle_message(node.now, ToShard::Mesh(message));
    };
    let other = |number| NodeId::new(number).expect("a node");
    let up =
        |number| FromMesh::NodeUp { node: other(number), shards: 1, incarnation: Incarnation(1) };
    let readiness = |node: &mut Node| {
        let key = node.accept(0, Listener::Api, 1);
        node.receive(0, key, b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let response = node.written(0);
        response[9..12].to_owned() + response.rsplit("\r\n").next().expect("a body")
    };
    assert_eq!(readiness(&mut node), "5031 of 3 nodes have been seen\n");
    hear(&mut node, up(1));
    // A restarted node does not count twice.
    hear(&mut node, FromMesh::NodeDown(other(1)));
    hear(&mut node, up(1));
    assert_eq!(readiness(&mut node), "5032 of 3 nodes have been seen\n");
    hear(&mut node, FromMesh::NodeDown(other(1)));
    hear(&mut node, up(2));
    assert_eq!(readiness(&mut node), "200ready\n");
    hear(&mut node, FromMesh::NodeDown(other(2)));
    assert_eq!(readiness(&mut node), "200ready\n");
}
