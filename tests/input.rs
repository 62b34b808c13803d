//! Fairness: how the work of reading input is divided among connections. A shard is a value here: no socket, no
//! clock. The tests count the work of a turn.

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::message::{
    ClientReply, ConnectionKey, FromShard, GridMessage, LocalMessage, ToShard,
};
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Action, Chunk, Listener, Now, Priority, Shard};
use shard_value::{call, upgraded};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// The number of bytes that the runtime receives at a time.
const RECEIVED: usize = 8 * 1024;

/// An empty masked ping, and the empty pong that answers it.
const PING: [u8; 6] = [0x89, 0x80, 0, 0, 0, 0];
const PONG: [u8; 2] = [0x8A, 0];

/// The number of frames in a connection's slice of a turn.
const FRAMES_PER_SLICE: usize = 128;

/// The number of frames that are answered in a turn: the budgets of light and of heavy connections, each exceeded by
/// at most one slice.
const FRAMES_PER_TURN: usize = 8192 + 2048 + 4 * FRAMES_PER_SLICE;

/// The additional budget of short input in a turn.
const SHORT_PER_TURN: usize = 2048;

/// The bounds on other work of a turn.
const LEAVES_PER_TURN: u64 = 2048;
const TIMERS_PER_TURN: usize = 1024;

/// The number of turns within which a call is answered, whatever others send.
const TURNS_MAX: usize = 1;

const PUBLISH_TO_ALL: &str = r#"{"m":"mesh.publish","p":{"c":"all","d":"b"},"i":1}"#;

/// The length of a message of zeros. Longer than what one call inflates, and than what is compressed.
const MESSAGE_BYTES: usize = 1 << 20;

fn shard() -> Shard {
    let message_bytes = 16 << 20;
    let outbound_bytes = 64 << 20;
    let echo = RouteSettings {
        path: "/echo".into(),
        echo: true,
        compression: true,
        message_bytes,
        outbound_bytes,
        ..RouteSettings::default()
    };
    let routes = vec![Arc::new(shard_value::route()), Arc::new(echo)];
    let edges = vec![EdgeSettings { proxy: None, port: 0, routes }];
    shard_value::shard(&Settings { edges, ..shard_value::settings() }, NOW)
}

/// Runs one turn as the runtime does; returns what was written to each connection.
fn turn(shard: &mut Shard) -> BTreeMap<u32, Vec<u8>> {
    shard.handle_turn(NOW);
    writes(shard)
}

fn writes(shard: &mut Shard) -> BTreeMap<u32, Vec<u8>> {
    let mut written: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    while let Some((key, batch)) =
        shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
    {
        let bytes: Vec<u8> = batch.iter().flat_map(Chunk::bytes).copied().collect();
        shard.handle_written(NOW, key, bytes.len(), true);
        shard.recycle(batch);
        written.entry(key.index).or_default().extend(bytes);
    }
    written
}

/// Runs turns until nothing is left to do; returns what was written to each connection, and the number of turns.
fn finish(shard: &mut Shard) -> (BTreeMap<u32, Vec<u8>>, usize) {
    let (mut all, mut turns) = (writes(shard), 0);
    while shard.poll_timeout() == Some(0) || shard.inspect().has_writes() {
        for (key, bytes) in turn(shard) {
            all.entry(key).or_default().extend(bytes);
        }
        turns += 1;
        assert!(turns < 100_000, "it never ends");
    }
    (all, turns)
}

fn clients(shard: &mut Shard, count: usize, path: &str) -> Vec<ConnectionKey> {
    let keys = (0..count).map(|_| upgraded(shard, NOW, Listener::Edge(0), path)).collect();
    writes(shard);
    keys
}

/// Connects clients on the echo route that have negotiated compression.
fn compressing_clients(shard: &mut Shard, count: usize) -> Vec<ConnectionKey> {
    let remote = ([127, 0, 0, 1], 50_000).into();
    let mut keys = Vec::new();
    for _ in 0..count {
        let key = shard.handle_accepted(NOW, Listener::Edge(0), remote).expect("accepted");
        let mut request = b"GET /echo HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\
            Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            .to_vec();
        shard.handle_bytes(NOW, key, &mut request);
        keys.push(key);
    }
    writes(shard);
    keys
}

/// A masked binary frame of about a thousand bytes that inflates to [`MESSAGE_BYTES`].
fn bomb() -> Vec<u8> {
    let deflated = miniz_oxide::deflate::compress_to_vec(&vec![0; MESSAGE_BYTES], 9);
    let payload = [&deflated[..], &[0]].concat();
    let [high, low] = u16::try_from(payload.len()).expect("it is short").to_be_bytes();
    [&[0xC2, 0x80 | 126, high, low, 0, 0, 0, 0], &payload[..]].concat()
}

/// Returns the number of turns until a call of a back end is answered.
fn turns_of_a_call(shard: &mut Shard, back_end: ConnectionKey) -> usize {
    let mut publish = call(r#"{"m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#);
    shard.handle_bytes(NOW, back_end, &mut publish);
    let mut written = writes(shard);
    for turns in 0..100 {
        if written.contains_key(&back_end.index) {
            return turns;
        }
        written = turn(shard);
    }
    panic!("no answer in 100 turns");
}

#[test]
fn a_connection_is_read_for_one_slice_of_a_turn_and_continues_later() {
    let mut shard = shard();
    let sender = clients(&mut shard, 1, "/ws")[0];
    let count = RECEIVED / PING.len();
    shard.handle_bytes(NOW, sender, &mut PING.repeat(count));
    let first = writes(&mut shard)[&sender.index].len() / PONG.len();
    assert_eq!(first, FRAMES_PER_SLICE);
    let (rest, turns) = finish(&mut shard);
    assert_eq!(rest[&sender.index], PONG.repeat(count - first));
    assert_eq!(turns, 1, "alone, a connection has all of the turn");
}

#[test]
fn a_publish_is_answered_while_a_thousand_clients_ping_without_pause() {
    let mut shard = shard();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let senders = clients(&mut shard, 1000, "/ws");
    for round in 0..20 {
        for &sender in &senders {
            if shard.inspect().is_receiving(sender) {
                shard.handle_bytes(NOW, sender, &mut PING.repeat(RECEIVED / PING.len()));
            }
        }
        let pongs: usize = writes(&mut shard).values().map(|bytes| bytes.len() / PONG.len()).sum();
        assert!(pongs <= FRAMES_PER_TURN, "{pongs} frames were answered in a turn");
        let turns = turns_of_a_call(&mut shard, back_end);
        assert!(turns <= TURNS_MAX, "round {round}: {turns} turns");
    }
}

#[test]
fn a_refused_request_costs_more_than_a_frame() {
    let mut shard = shard();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let remote = ([127, 0, 0, 1], 50_000).into();
    let mut accept = || shard.handle_accepted(NOW, Listener::Edge(0), remote).expect("accepted");
    let senders: Vec<ConnectionKey> = (0..100).map(|_| accept()).collect();
    let request = b"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\n";
    let count = RECEIVED / request.len();
    for &sender in &senders {
        shard.handle_bytes(NOW, sender, &mut request.repeat(count));
    }
    let answers =
        |bytes: &Vec<u8>| bytes.windows(12).filter(|part| part == b"HTTP/1.1 404").count();
    let first: Vec<usize> = writes(&mut shard).values().map(answers).collect();
    assert!(first.iter().all(|&answered| answered <= FRAMES_PER_SLICE / 4), "{first:?}");
    assert!(turns_of_a_call(&mut shard, back_end) <= TURNS_MAX);
    let (rest, _) = finish(&mut shard);
    let rest: usize = rest.values().map(answers).sum();
    assert_eq!(first.iter().sum::<usize>() + rest, senders.len() * count);
}

#[test]
fn many_connections_with_short_input_do_not_use_up_a_turn() {
    let mut shard = shard();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let remote = ([127, 0, 0, 1], 50_000).into();
    let request = b"GET /nobody HTTP/1.1\r\nHost: a\r\n\r\n".repeat(28);
    let input = [request, PING.repeat(1020 / PING.len())];
    let http: Vec<ConnectionKey> = (0..500)
        .map(|_| shard.handle_accepted(NOW, Listener::Edge(0), remote).expect("accepted"))
        .collect();
    let pinging = clients(&mut shard, 500, "/ws");
    for round in 0..10 {
        for (sender, input) in http
            .iter()
            .map(|sender| (sender, &input[0]))
            .chain(pinging.iter().map(|sender| (sender, &input[1])))
        {
            assert!(input.len() <= 1024);
            if shard.inspect().is_receiving(*sender) {
                shard.handle_bytes(NOW, *sender, &mut input.clone());
            }
        }
        let answers = |bytes: &Vec<u8>| match bytes.starts_with(b"HTTP") {
            true => bytes.windows(12).filter(|part| part == b"HTTP/1.1 404").count() * 4,
            false => bytes.len() / PONG.len(),
        };
        let units: usize = writes(&mut shard).values().map(answers).sum();
        assert!(units <= FRAMES_PER_TURN + SHORT_PER_TURN, "{units} units in a turn");
        let turns = turns_of_a_call(&mut shard, back_end);
        // The first input of the crowd goes before the call, since nothing is known of those connections yet.
        assert!(turns <= 10 * TURNS_MAX, "round {round}: {turns} turns");
    }
}

#[test]
fn timers_of_answered_calls_do_not_delay_others() {
    // The test itself is the second shard. Each call to it leaves a timer behind.
    let settings = Settings { shards: 2, ..shard_value::settings() };
    let mut shard = shard_value::shard(&settings, NOW);
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    writes(&mut shard);
    let far = 1u64 << 11;
    let mut send = call(&format!(r#"{{"m":"mesh.send","p":{{"c":{},"d":""}}}}"#, 1u64 << 12 | far));
    for _ in 0..5 * TIMERS_PER_TURN {
        shard.handle_bytes(NOW, back_end, &mut send.clone());
        shard.handle_turn(NOW);
        while let Some(message) = shard.poll_message() {
            let FromShard::Local(other, LocalMessage::Grid(GridMessage::Ask { ticket, .. })) =
                message
            else {
                panic!("not a question")
            };
            let answer = GridMessage::Answer(ticket, Ok(ClientReply::Done));
            shard.handle_message(NOW, ToShard::Local(other, LocalMessage::Grid(answer)));
        }
        writes(&mut shard);
    }
    send.clear();
    shard.handle_turn(Now { ms: 10_000, us: 10_000_000, ..NOW });
    let due_ms = shard.poll_timeout().expect("the back end is pinged some time");
    assert!(due_ms > 10_000, "timers were left over, due at {due_ms}");
}

#[test]
fn a_long_compressed_message_is_inflated_in_slices_and_echoed_completely() {
    let mut shard = shard();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let senders = compressing_clients(&mut shard, 20);
    let message = vec![0; MESSAGE_BYTES];
    for &sender in &senders {
        shard.handle_bytes(NOW, sender, &mut bomb());
    }
    assert!(writes(&mut shard).is_empty(), "a message was inflated at once");
    assert!(turns_of_a_call(&mut shard, back_end) <= TURNS_MAX);
    let (written, turns) = finish(&mut shard);
    assert!(turns >= 10, "all were inflated in {turns} turns");
    for sender in senders {
        // A message of this length is not compressed. It is echoed after a head of ten bytes.
        assert!(written[&sender.index][10..] == message, "not what was sent");
    }
}

#[test]
fn clients_that_close_together_are_unsubscribed_in_slices() {
    let mut shard = shard();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let channels_of = |client: u32| (0..500).map(move |n| format!("{client}-{n}"));
    let path = |client: u32| {
        let names: Vec<String> = channels_of(client).chain(["all".to_owned()]).collect();
        format!("/ws?channels={}", names.join(","))
    };
    let keys: Vec<ConnectionKey> =
        (0..40).map(|client| clients(&mut shard, 1, &path(client))[0]).collect();
    let all = shard.inspect().report().channels;
    assert_eq!(all, 40 * 500 + 1);
    for &key in &keys {
        shard.handle_end(NOW, key, true);
        assert_eq!(shard.poll_action(), Some(Action::Close(key)));
        shard.handle_closed(key);
    }
    assert_eq!(shard.inspect().report().clients, 0);
    // A closed client is neither reached nor counted, even if it is not unsubscribed yet.
    shard.handle_bytes(NOW, back_end, &mut call(PUBLISH_TO_ALL));
    let answer = writes(&mut shard).remove(&back_end.index).expect("it is answered");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains(r#""r":{"s":0,"f":0}"#), "{answer}");
    let mut before = all;
    while shard.poll_timeout() == Some(0) {
        let now = shard.inspect().report().channels;
        assert!(before - now <= LEAVES_PER_TURN, "{} in a turn", before - now);
        before = now;
        turn(&mut shard);
    }
    assert_eq!((shard.inspect().report().channels, shard.inspect().connections()), (0, 1));
}

#[test]
fn input_received_before_a_connection_broke_is_processed_after_its_slice() {
    let mut shard = shard();
    let sender = clients(&mut shard, 1, "/ws")[0];
    let count = 1000;
    shard.handle_bytes(NOW, sender, &mut [0x81, 0x80, 0, 0, 0, 0].repeat(count));
    assert!(shard.inspect().counters().client_messages < count as u64);
    shard.handle_end(NOW, sender, true);
    finish(&mut shard);
    assert_eq!(shard.inspect().counters().client_messages, count as u64);
    assert_eq!(shard.poll_action(), Some(Action::Close(sender)));
}

#[test]
fn connections_that_time_out_together_are_closed_in_slices() {
    let mut shard = shard();
    let count = 3000;
    let keys = clients(&mut shard, count, "/ws");
    let late = Now { ms: 121_000, us: 121_000_000, ..NOW };
    let mut pinged = 0;
    while shard.poll_timeout().is_some_and(|due_ms| due_ms <= late.ms) {
        shard.handle_turn(late);
        let now = writes(&mut shard).len();
        assert!(now <= TIMERS_PER_TURN, "{now} in a turn");
        pinged += now;
    }
    assert_eq!(pinged, keys.len());
}
