//! Heartbeats and idle timeouts: which connections count as alive. A shard is a value here, and the test sets the clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::message::{ConnectionKey, FromNode, ToShard};
use gridcast::queue::Bounds;
use gridcast::shard::rate::Rate;
use gridcast::shard::settings::{
    EdgeSettings, LimitSettings, QueueSettings, RouteSettings, Settings,
};
use gridcast::shard::{Action, Listener, Now, Priority, Shard, ShedRound, Shortage, Usage};
use shard_value::upgraded;

const PING_MS: u64 = 300;
const IDLE_MS: u64 = 600;

/// The time by which a timer may be late, in milliseconds.
const TICK_MS: u64 = 16;

/// The time that an ending connection has to take its last bytes, in milliseconds.
const LINGER_MS: u64 = 5000;

const PING: &[u8] = &[0x89, 0];

/// One shard with the routes of a test.
struct Node {
    shard: Shard,
    now: Now,
}

impl Node {
    fn new(routes: Vec<RouteSettings>) -> Self {
        let edges = vec![EdgeSettings {
            proxy: None,
            port: 6790,
            routes: routes.into_iter().map(Arc::new).collect(),
        }];
        let base = shard_value::settings();
        let limits = LimitSettings { ping_ms: PING_MS, idle_ms: IDLE_MS, ..base.limits.clone() };
        let bounds = Bounds { messages: 4, bytes: 100_000 };
        let queue = QueueSettings { bounds, ..base.queue.clone() };
        Self::with(&Settings { edges, limits, queue, ..base })
    }

    fn with(settings: &Settings) -> Self {
        let now = at(1_000_000);
        Self { shard: shard_value::shard(settings, now), now }
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

    fn tell(&mut self, message: FromNode) {
        self.shard.handle_message(self.now, ToShard::Node(message));
    }

    /// Writes all output of a connection; returns it.
    fn written(&mut self, key: ConnectionKey) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let next = self
                .shard
                .poll_write(Priority::Urgent)
                .or_else(|| self.shard.poll_write(Priority::Bulk));
            let Some((to, batch)) = next else { return all };
            let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
            self.shard.recycle(batch);
            self.shard.handle_written(self.now, to, bytes.len(), true);
            if to == key {
                all.extend(bytes);
            }
        }
    }

    /// Returns the actions for the socket of a connection.
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

/// Returns the code of the close frame at the end of some output.
fn close_code(written: &[u8]) -> Option<u16> {
    let at = written.iter().rposition(|&byte| byte == 0x88)?;
    Some(u16::from_be_bytes(*written.get(at + 2..)?.first_chunk()?))
}

// Pings.

#[test]
fn a_silent_client_is_pinged_as_often_as_configured_however_long_it_may_be_silent() {
    let base = shard_value::settings();
    let limits = LimitSettings { ping_ms: PING_MS, idle_ms: 100 * PING_MS, ..base.limits.clone() };
    let edges = vec![EdgeSettings {
        proxy: None,
        port: 6790,
        routes: vec![Arc::new(shard_value::route())],
    }];
    let mut node = Node::with(&Settings { edges, limits, ..base });
    let client = node.open(Listener::Edge(0), "/ws");
    for _ in 0..5 {
        node.pass_ms(PING_MS + TICK_MS);
        assert_eq!(node.written(client), PING);
        node.receive(client, &frame(0x8a, b""));
    }
    // A client that does not answer is pinged once, and closed after the idle timeout.
    node.pass_ms(PING_MS + TICK_MS);
    assert_eq!(node.written(client), PING);
    node.pass_ms(98 * PING_MS);
    assert_eq!(node.written(client), b"");
    node.pass_ms(PING_MS + TICK_MS);
    assert_eq!(close_code(&node.written(client)), Some(1001));
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
        node.pass_ms(200);
    }
    node.pass_ms(IDLE_MS);
    assert_eq!(close_code(&node.written(client)), Some(1001));
}

// Clients that are paused.

/// Why a client is held back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    ByFullTopic,
    ForKey,
    ByRate,
}

const HELD: [Held; 3] = [Held::ByFullTopic, Held::ForKey, Held::ByRate];

/// The number of messages that a held client has sent. Each is `m` and its number.
const SENT: usize = 9;

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload].concat()
}

/// A client that has sent [`SENT`] messages and is paused before the last of them.
fn held_client(why: Held) -> (Node, ConnectionKey) {
    let route = RouteSettings {
        topic: Some("events".into()),
        tells_message: true,
        tells_close: true,
        hold_until: (why == Held::ForKey).then(|| "user".into()),
        messages: Rate::new(if why == Held::ByRate { 1 } else { 0 }),
        ..shard_value::route()
    };
    let mut node = Node::new(vec![route]);
    let client = node.open(Listener::Edge(0), "/ws");
    let sent = (0..SENT).flat_map(|number| frame(0x81, format!("m{number}").as_bytes()));
    node.receive(client, &sent.collect::<Vec<u8>>());
    node.pass_ms(0);
    assert!(node.shard.inspect().counters().client_messages < SENT as u64, "{why:?}");
    (node, client)
}

/// Returns all events that a consumer gets within a minute. Clients answer pings meanwhile.
fn consumed(node: &mut Node) -> String {
    let consumer = node.open(Listener::Api, "/ws/v1");
    let pop = shard_value::call(r#"{"m":"queue.pop","p":{"t":["events"]},"i":1}"#);
    node.receive(consumer, &pop);
    let mut all = Vec::new();
    for _ in 0..600 {
        node.pass_ms(100);
        all.extend(node.written(consumer));
        node.receive(consumer, &frame(0x8A, b""));
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// Returns the position in the consumed events of each message of a held client, and then of its close event.
fn places(why: Held, consumed: &str) -> Vec<Option<usize>> {
    // If the context key is never set, the messages after the first one are dropped.
    let wanted = if why == Held::ForKey { 1 } else { SENT };
    let messages = (0..wanted).map(|number| consumed.find(&format!("\"m{number}\"")));
    messages.chain([consumed.find("\"event\":\"close\"")]).collect()
}

#[test]
fn a_paused_client_is_answered_its_pings_and_its_pongs_count() {
    for why in HELD {
        let (mut node, client) = held_client(why);
        node.receive(client, &frame(0x89, b"hi"));
        assert_eq!(node.written(client), [0x8A, 2, b'h', b'i'], "{why:?}");
        let mut pings = 0;
        for _ in 0..100 {
            node.pass_ms(PING_MS / 3);
            let written = node.written(client);
            assert_eq!(close_code(&written), None, "{why:?} {} {written:?}", node.now.ms);
            if written == PING {
                pings += 1;
                node.receive(client, &frame(0x8A, b""));
            }
        }
        assert!(pings > 10, "{why:?}: {pings}");
    }
}

#[test]
fn a_paused_client_that_answers_no_ping_is_closed() {
    for why in [Held::ByFullTopic, Held::ForKey] {
        let (mut node, client) = held_client(why);
        node.pass_ms(PING_MS + TICK_MS);
        assert_eq!(node.written(client), PING, "{why:?}");
        node.pass_ms(IDLE_MS - PING_MS + TICK_MS);
        assert_eq!(close_code(&node.written(client)), Some(1001), "{why:?}");
    }
}

#[test]
fn a_paused_client_s_close_frame_is_answered_at_once_and_reported_after_its_messages() {
    for why in HELD {
        let (mut node, client) = held_client(why);
        node.receive(client, &frame(0x88, &4321u16.to_be_bytes()));
        assert_eq!(node.written(client), [0x88, 2, 0x10, 0xE1], "{why:?}");
        assert_eq!(node.actions(client), [Action::Shutdown(client)], "{why:?}");
        node.shard.handle_end(node.now, client, false);
        assert_eq!(node.actions(client), [Action::Close(client)], "{why:?}");
        node.shard.handle_closed(client);
        let consumed = consumed(&mut node);
        let places = places(why, &consumed);
        assert!(places.iter().all(Option::is_some), "{why:?} {places:?} {consumed}");
        assert!(places.is_sorted() && consumed.contains("4321"), "{why:?} {consumed}");
        assert_eq!(node.shard.inspect().connections(), 1, "{why:?}: the consumer");
    }
}

#[test]
fn a_paused_client_whose_connection_ends_is_closed_and_its_messages_arrive() {
    for why in HELD {
        for is_broken in [false, true] {
            let (mut node, client) = held_client(why);
            node.shard.handle_end(node.now, client, is_broken);
            assert_eq!(node.actions(client), [Action::Close(client)], "{why:?} {is_broken}");
            node.shard.handle_closed(client);
            let consumed = consumed(&mut node);
            // If a connection breaks, only messages that waited for a full topic are sure to be delivered.
            let places = places(why, &consumed);
            assert!(places.iter().all(Option::is_some), "{why:?} {places:?} {consumed}");
            assert!(places.is_sorted() && consumed.contains("1006"), "{why:?} {consumed}");
            assert_eq!(node.shard.inspect().connections(), 1, "{why:?}: the consumer");
        }
    }
}

/// How a client ends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Shut,
    Broken,
    CloseFrame,
}

#[test]
fn a_client_that_ended_at_a_full_topic_and_is_then_held_for_a_key_is_reported() {
    for end in [End::Shut, End::Broken, End::CloseFrame] {
        let route = RouteSettings {
            topic: Some("events".into()),
            tells_open: true,
            tells_message: true,
            tells_close: true,
            ..shard_value::route()
        };
        let held = RouteSettings {
            path: "/held".into(),
            hold_until: Some("user".into()),
            ..route.clone()
        };
        let mut node = Node::new(vec![route, held]);
        let other = node.open(Listener::Edge(0), "/ws");
        // That and its open event fill the topic, so the open event of the client under test waits.
        node.receive(other, &frame(0x81, b"other").repeat(3));
        let client = node.open(Listener::Edge(0), "/held");
        let sent = (0..SENT).flat_map(|number| frame(0x81, format!("m{number}").as_bytes()));
        node.receive(client, &sent.collect::<Vec<u8>>());
        if end == End::CloseFrame {
            node.receive(client, &frame(0x88, &4321u16.to_be_bytes()));
            assert_eq!(close_code(&node.written(client)), Some(4321));
        }
        node.shard.handle_end(node.now, client, end == End::Broken);
        assert!(node.actions(client).contains(&Action::Close(client)), "{end:?}");
        node.shard.handle_closed(client);
        // The first message gets room while it is read. The second one is dropped.
        let consumed = consumed(&mut node);
        assert!(consumed.contains("\"m0\"") && !consumed.contains("\"m1\""), "{end:?} {consumed}");
        let closed = consumed.matches("\"event\":\"close\"").count();
        assert_eq!(closed, 2, "{end:?}: the other, which is silent, and this one: {consumed}");
    }
}

#[test]
fn a_client_whose_messages_are_dropped_after_its_end_is_reported_with_the_reason() {
    let (mut node, client) = held_client(Held::ByFullTopic);
    node.receive(client, &frame(0x81, &[b'x'; 100]).repeat(50));
    node.receive(client, &frame(0x88, &4321u16.to_be_bytes()));
    assert_eq!(close_code(&node.written(client)), Some(4321), "its end is in order");
    node.shard.handle_end(node.now, client, false);
    node.shard.handle_closed(client);
    let (bytes, limit_bytes) = (64_000, 64_000);
    for shortage in [Shortage::Holders, Shortage::None] {
        let usage = Usage { bytes, limit_bytes, shortage };
        node.shard.handle_memory(node.now, usage, &ShedRound::default(), |_| None);
        node.pass_ms(200);
    }
    assert_eq!(node.shard.inspect().counters().shed_holders, 1);
    let consumed = consumed(&mut node);
    assert!(
        consumed.contains(r#""event":"close","code":1013,"reason":"short of memory"#),
        "{consumed}"
    );
    assert_eq!(node.shard.inspect().connections(), 1, "the consumer");
}

#[test]
fn a_client_that_is_paused_again_when_it_is_resumed_counts_as_alive() {
    let route = RouteSettings {
        topic: Some("events".into()),
        tells_message: true,
        hold_until: Some("user".into()),
        outbound_bytes: 300,
        ..shard_value::route()
    };
    let mut node = Node::new(vec![route]);
    let client = node.open(Listener::Edge(0), "/ws");
    let pings = frame(0x89, &[b'x'; 125]).repeat(4);
    // The first message gets room at once. The second one is held until the context has the key.
    let messages = [frame(0x81, b"m0"), frame(0x81, b"m1")].concat();
    node.receive(client, &[pings, messages, frame(0x89, b"hi")].concat());
    assert_eq!(node.shard.inspect().counters().client_messages, 0, "its pongs are not read");
    let mut written = Vec::new();
    for _ in 0..10 {
        written.extend(node.written(client));
        node.pass_ms(0);
    }
    assert_eq!(node.shard.inspect().counters().client_messages, 1);
    assert!(written.ends_with(&[0x8A, 2, b'h', b'i']), "{written:?}");
}

#[test]
fn a_client_whose_read_ahead_is_full_is_pinged_but_not_closed_as_idle() {
    for why in [Held::ByFullTopic, Held::ForKey] {
        let (mut node, client) = held_client(why);
        node.receive(client, &frame(0x81, &[b'x'; 100]).repeat(160));
        assert_eq!(node.actions(client), [Action::Pause(client)], "{why:?}");
        for _ in 0..20 {
            node.pass_ms(PING_MS + TICK_MS);
            assert_eq!(node.written(client), PING, "{why:?}");
        }
    }
    let (mut node, client) = held_client(Held::ByFullTopic);
    node.receive(client, &frame(0x81, &[b'x'; 100]).repeat(160));
    node.actions(client);
    consumed(&mut node);
    assert_eq!(node.shard.inspect().counters().client_messages, SENT as u64 + 160);
    let actions = node.actions(client);
    assert!(actions.contains(&Action::Resume(client)), "{actions:?}");
}

#[test]
fn a_client_whose_read_ahead_is_full_and_that_takes_no_bytes_is_closed() {
    for why in [Held::ByFullTopic, Held::ForKey] {
        let (mut node, client) = held_client(why);
        node.receive(client, &frame(0x81, &[b'x'; 100]).repeat(160));
        assert_eq!(node.actions(client), [Action::Pause(client)], "{why:?}");
        node.pass_ms(PING_MS + TICK_MS);
        // The ping is in flight, and the socket takes none of it.
        assert!(node.shard.poll_write(Priority::Urgent).is_some(), "{why:?}");
        node.pass_ms(IDLE_MS - TICK_MS);
        assert_eq!(node.shard.inspect().counters().limits.idle_ms, 0, "{why:?}");
        // The socket takes bytes once more, and then never again.
        node.shard.handle_drained(node.now, client);
        node.pass_ms(IDLE_MS - TICK_MS);
        assert_eq!(node.shard.inspect().counters().limits.idle_ms, 0, "{why:?}");
        node.pass_ms(2 * TICK_MS);
        assert_eq!(node.shard.inspect().counters().limits.idle_ms, 1, "{why:?}");
        node.pass_ms(LINGER_MS + TICK_MS);
        assert_eq!(node.actions(client).last(), Some(&Action::Close(client)), "{why:?}");
        node.shard.handle_closed(client);
        consumed(&mut node);
        assert_eq!(node.shard.inspect().connections(), 1, "{why:?}: the consumer");
    }
}

#[test]
fn clients_that_end_at_a_full_topic_keep_a_bounded_number_of_bytes() {
    let (mut node, client) = held_client(Held::ByFullTopic);
    let mut clients = vec![client];
    let mut parted = 0;
    while let Some(client) = clients.pop() {
        node.receive(client, &frame(0x81, &[b'x'; 100]).repeat(140));
        node.shard.handle_end(node.now, client, true);
        assert_eq!(node.actions(client), [Action::Close(client)]);
        node.shard.handle_closed(client);
        parted += 1;
        let key = upgraded(&mut node.shard, node.now, Listener::Edge(0), "/ws");
        if node.written(key).starts_with(b"HTTP/1.1 101") {
            clients.push(key);
        }
        assert!(parted < 10_000, "clients come in and go without end");
    }
    assert!(parted > 100, "{parted}");
    let consumed = consumed(&mut node);
    assert_eq!(consumed.matches("\"event\":\"close\"").count(), parted);
    assert_eq!(node.shard.inspect().connections(), 2, "the consumer, and the one that was refused");
}

#[test]
fn a_back_end_with_unanswered_calls_is_answered_its_pings() {
    let settings = shard_value::settings();
    let mut node = Node::with(&Settings { shards: 2, ..settings });
    let back_end = node.open(Listener::Api, "/ws/v1");
    // The client is on the other shard, which never answers.
    let client = 1 << 12 | 1 << 11;
    let call = format!(r#"{{"m":"conn.call","p":{{"c":"{client}","f":"info","a":[]}},"i":1}}"#);
    for _ in 0..2500 {
        node.receive(back_end, &shard_value::call(&call));
    }
    assert!(node.shard.inspect().counters().limits.calls_waiting > 0, "it is held back");
    node.written(back_end);
    node.receive(back_end, &frame(0x89, b"hi"));
    assert_eq!(node.written(back_end), [0x8A, 2, b'h', b'i']);
}

// Messages that are never completed.

/// Feeds `piece` and a pong every `every_ms`; returns how long the connection lives, in milliseconds.
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
fn a_message_that_is_never_completed_times_out_even_if_pings_are_answered() {
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
fn a_message_that_begins_right_before_a_ping_or_a_pong_times_out_too() {
    let begun = [0x01, 0x81, 0, 0, 0, 0, b'a'];
    for control in [0x89, 0x8A] {
        for (listener, path) in [(Listener::Edge(0), "/ws"), (Listener::Api, "/ws/v1")] {
            let mut node = Node::new(vec![shard_value::route()]);
            let key = node.open(listener, path);
            node.receive(key, &[&begun[..], &[control, 0x80, 0, 0, 0, 0]].concat());
            let lived_ms = life_ms(&mut node, key, 50, b"");
            assert!((IDLE_MS..IDLE_MS + 100).contains(&lived_ms), "{lived_ms}");
        }
    }
}

#[test]
fn slow_bytes_and_empty_fragments_do_not_extend_a_message_without_limit() {
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
fn a_large_message_may_take_longer_than_the_idle_timeout_if_it_keeps_arriving() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.open(Listener::Edge(0), "/ws");
    node.receive(key, &[0x82, 0xFE, 0xFD, 0xE8, 0, 0, 0, 0]);
    for _ in 0..65_000 / 1000 {
        node.pass_ms(IDLE_MS / 3);
        assert_eq!(close_code(&node.written(key)), None);
        node.receive(key, &[0; 1000]);
    }
    assert_eq!(node.shard.inspect().counters().client_messages, 1);
}

// Nodes that shut down.

#[test]
fn a_request_whose_body_is_still_arriving_at_shutdown_is_answered() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.shard.handle_accepted(node.now, Listener::Api, ([127, 0, 0, 1], 5000).into());
    let key = key.expect("the node is up");
    let body = r#"{"c":"a","d":"b"}"#;
    let (first, last) = body.split_at(5);
    let head = "POST /v1/mesh/publish HTTP/1.1\r\nHost: 127.0.0.1\r\n";
    node.receive(key, format!("{head}Content-Length: {}\r\n\r\n{first}", body.len()).as_bytes());
    node.tell(FromNode::Drain { over_ms: 100 });
    node.pass_ms(200);
    node.tell(FromNode::DrainBackends);
    node.pass_ms(200);
    assert_eq!(node.actions(key), []);
    node.receive(key, last.as_bytes());
    let answer = String::from_utf8(node.written(key)).expect("a response is text");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\"f\":0}}"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("connection: close"), "{answer}");
    assert_eq!(node.actions(key), [Action::Shutdown(key)]);
}

#[test]
fn a_connection_between_two_requests_is_closed_at_shutdown() {
    let mut node = Node::new(vec![shard_value::route()]);
    let key = node.shard.handle_accepted(node.now, Listener::Api, ([127, 0, 0, 1], 5000).into());
    let key = key.expect("the node is up");
    node.receive(key, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
    assert!(node.written(key).starts_with(b"HTTP/1.1 200"));
    node.tell(FromNode::Drain { over_ms: 100 });
    node.tell(FromNode::DrainBackends);
    node.pass_ms(200);
    assert_eq!(node.actions(key), [Action::Shutdown(key)]);
}
