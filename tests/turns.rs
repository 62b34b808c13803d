//! Fan-outs are bounded within one turn of a shard. A shard is a value here: no socket, no clock.

#[path = "support/shard.rs"]
mod shard_value;

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{Batch, Listener, Now, Priority, Shard};
use shard_value::{call, upgraded};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// The number of subscribers of the channel. One slice of a fan-out reaches them all.
const CLIENTS: u64 = 1000;

const PUBLISHES: u64 = 200;

const PUBLISH: &str = r#"{"m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#;

/// The number of deliveries that a turn makes, not counting the rest of the publish that reaches the bound.
const REACHED_MAX: u64 = 5 * 1024;

/// The bounds on fan-out writes in one turn: connections and bytes. The last write may exceed the bytes.
const SENDS_MAX: usize = 32;

/// The same while nobody else has output, after some turns.
const SENDS_MAX_ALONE: usize = 1024;
const BYTES_MAX: usize = 256 * 1024;

#[test]
fn publishes_that_arrive_together_are_carried_out_over_several_turns() {
    let (mut shard, back_end) = crowd(CLIENTS);
    shard.handle_bytes(NOW, back_end, &mut call(PUBLISH).repeat(PUBLISHES as usize));

    let (mut turns, mut before) = (0, 0);
    loop {
        let delivered = shard.inspect().counters().delivered;
        assert!(delivered - before <= REACHED_MAX, "a turn reached {}", delivered - before);
        if shard.poll_timeout() != Some(0) {
            break;
        }
        before = delivered;
        shard.handle_turn(NOW);
        turns += 1;
    }
    assert_eq!(shard.inspect().counters().delivered, CLIENTS * PUBLISHES);
    assert!(turns > 1, "it was one turn");
}

#[test]
fn each_subscriber_gets_a_burst_of_publishes_in_one_write() {
    let (mut shard, back_end) = crowd(CLIENTS);
    let burst: Vec<String> = (10..26).map(|number| number.to_string()).collect();
    let published = burst.iter().flat_map(|text| call_publish("a", text));
    shard.handle_bytes(NOW, back_end, &mut published.collect::<Vec<u8>>());
    let mut written = BTreeMap::new();
    while is_busy(&shard) {
        for (key, batch) in bulk_batches(&mut shard) {
            assert_eq!(written.insert(key.index, batch), None, "{key:?} was written to twice");
        }
        shard.handle_turn(NOW);
    }
    let all: Vec<u8> = burst.iter().flat_map(|text| server_frame(text)).collect();
    assert_eq!(written.len() as u64, CLIENTS);
    written.values().for_each(|batch| assert_eq!(*batch, [&all[..]]));
}

#[test]
fn the_bytes_copied_to_join_a_burst_are_bounded() {
    let (mut shard, back_end) = crowd(CLIENTS);
    shard.handle_bytes(NOW, back_end, &mut publish("a", 1000).repeat(32));
    let mut written = 0;
    while is_busy(&shard) {
        for (_, runs) in bulk_batches(&mut shard) {
            assert!(runs.iter().all(|run| run.len() <= 4096), "joined to more");
            written += runs.concat().len();
        }
        shard.handle_turn(NOW);
    }
    assert_eq!(written, CLIENTS as usize * 32 * (4 + 1000));
}

#[test]
fn frames_of_bursts_keep_their_order_with_other_frames_between_them() {
    let (mut shard, back_end) = crowd(100);
    let both = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a,b");
    for _ in 0..50 {
        upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=b");
    }
    urgent_writes(&mut shard);
    let published = [("a", "1"), ("a", "2"), ("b", "3"), ("a", "4"), ("a", "5"), ("b", "6")];
    let mut input: Vec<u8> =
        published.iter().flat_map(|(channel, text)| call_publish(channel, text)).collect();
    shard.handle_bytes(NOW, back_end, &mut input);
    // A client that subscribes in the middle of a burst gets only the frames that follow.
    let late = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=b");
    urgent_writes(&mut shard);
    shard.handle_bytes(NOW, back_end, &mut call_publish("b", "7"));
    let mut written: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    while is_busy(&shard) {
        for (key, batch) in bulk_batches(&mut shard) {
            written.entry(key.index).or_default().extend(batch.concat());
        }
        shard.handle_turn(NOW);
    }
    let frames = |texts: &[&str]| texts.iter().flat_map(|text| server_frame(text)).collect();
    let expected: Vec<u8> = frames(&["1", "2", "3", "4", "5", "6", "7"]);
    assert_eq!(written[&both.index], expected);
    assert_eq!(written[&late.index], frames(&["7"]));
    let (of_a, of_b): (Vec<u8>, Vec<u8>) =
        (frames(&["1", "2", "4", "5"]), frames(&["3", "6", "7"]));
    let count = |bytes: &[u8]| written.values().filter(|written| *written == bytes).count();
    assert_eq!((count(&of_a), count(&of_b)), (100, 50));
}

#[test]
fn fan_out_writes_of_one_turn_are_bounded() {
    for bytes in [1, 20_000, 200_000] {
        let (mut shard, back_end) = crowd(100);
        shard.handle_bytes(NOW, back_end, &mut publish("a", bytes).repeat(2));
        let (mut written, mut sends_max) = (0, SENDS_MAX);
        while is_busy(&shard) {
            let writes = bulk_writes(&mut shard);
            let sizes: Vec<usize> = writes.iter().map(|(_, bytes)| *bytes).collect();
            assert!(sizes.len() <= sends_max, "{} writes in a turn", sizes.len());
            // Nobody else has output, so turns grow.
            sends_max = (2 * sends_max).min(SENDS_MAX_ALONE);
            let before_last: usize = sizes.iter().rev().skip(1).sum();
            assert!(before_last < BYTES_MAX, "{before_last} bytes before the last write of a turn");
            written += sizes.iter().sum::<usize>();
            shard.handle_turn(NOW);
        }
        let head = if bytes < 126 { 2 } else { 4 + 6 * usize::from(bytes > 0xFFFF) };
        assert_eq!(written, 2 * 100 * (head + bytes));
    }
}

#[test]
fn a_client_that_reads_is_not_counted_as_slow_if_publishes_are_faster_than_writes() {
    for publishers in [1, 8] {
        let (mut shard, first) = crowd(CLIENTS);
        let mut back_ends = vec![first];
        while back_ends.len() < publishers {
            back_ends.push(upgraded(&mut shard, NOW, Listener::Api, "/ws/v1"));
        }
        urgent_writes(&mut shard);
        let publish = publish("a", 64 * 1024);
        // Each back end publishes again as soon as it gets its answer.
        let mut left = 48;
        let mut answered = back_ends.clone();
        while is_busy(&shard) || !answered.is_empty() {
            for back_end in answered.drain(..).take(left).collect::<Vec<_>>() {
                left -= 1;
                shard.handle_bytes(NOW, back_end, &mut publish.clone());
            }
            let is_back_end = |key: &ConnectionKey| back_ends.contains(key);
            answered.extend(urgent_writes(&mut shard).into_iter().filter(is_back_end));
            answered
                .extend(bulk_writes(&mut shard).iter().map(|write| write.0).filter(is_back_end));
            shard.handle_turn(NOW);
        }
        let counters = shard.inspect().counters();
        assert_eq!((counters.failed, counters.slow_closed), (0, 0), "{publishers} publishers");
        assert_eq!(counters.delivered, CLIENTS * 48, "{publishers} publishers");
    }
}

#[test]
fn full_small_queues_are_written_before_more_is_added() {
    let (mut shard, back_end) = crowd_of(narrow(), CLIENTS);
    shard.handle_bytes(NOW, back_end, &mut publish("a", 300).repeat(20));
    let mut turns = 0;
    while is_busy(&shard) {
        bulk_writes(&mut shard);
        shard.handle_turn(NOW);
        turns += 1;
    }
    let counters = shard.inspect().counters();
    assert_eq!((counters.delivered, counters.failed), (20 * CLIENTS, 0));
    // Three frames fit a queue, so each client gets at least seven writes.
    assert!(turns < 10 * CLIENTS / SENDS_MAX as u64, "{turns} turns");
}

#[test]
fn publishes_to_few_do_not_wait_for_one_to_many() {
    let (mut shard, back_end) = crowd(20 * CLIENTS);
    let others: Vec<ConnectionKey> = (0..500)
        .map(|number| {
            let path = format!("/ws?channels=few-{number}");
            shard.handle_turn(NOW);
            upgraded(&mut shard, NOW, Listener::Edge(0), &path);
            upgraded(&mut shard, NOW, Listener::Api, "/ws/v1")
        })
        .collect();
    shard.handle_bytes(NOW, back_end, &mut publish("a", 16 * 1024));
    shard.handle_turn(NOW);
    urgent_writes(&mut shard);
    for (number, &other) in others.iter().enumerate() {
        shard.handle_bytes(NOW, other, &mut publish(&format!("few-{number}"), 10));
    }
    let mut answered = 0;
    for _ in 0..3 {
        shard.handle_turn(NOW);
        answered += urgent_writes(&mut shard).iter().filter(|key| others.contains(key)).count();
        bulk_writes(&mut shard);
    }
    assert_eq!(answered, others.len(), "answered within three turns");
    assert!(shard.inspect().counters().delivered < 20 * CLIENTS, "while the other goes on");
}

/// A shard with subscribers of the channel `a` and a back end.
fn crowd(clients: u64) -> (Shard, ConnectionKey) {
    crowd_of(shard_value::route(), clients)
}

fn crowd_of(route: RouteSettings, clients: u64) -> (Shard, ConnectionKey) {
    let edges = vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }];
    let settings = Settings { edges, ..shard_value::settings() };
    let mut shard = shard_value::shard(&settings, NOW);
    for _ in 0..clients {
        upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a");
        shard.handle_turn(NOW);
    }
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    shard.handle_turn(NOW);
    // Writes the responses to the handshakes.
    urgent_writes(&mut shard);
    (shard, back_end)
}

fn is_busy(shard: &Shard) -> bool {
    shard.inspect().has_writes() || shard.poll_timeout() == Some(0)
}

/// Returns the fan-out writes of one turn: the connection and the number of bytes of each.
fn bulk_writes(shard: &mut Shard) -> Vec<(ConnectionKey, usize)> {
    let bytes = |runs: &[Vec<u8>]| runs.iter().map(Vec::len).sum();
    bulk_batches(shard).into_iter().map(|(key, runs)| (key, bytes(&runs))).collect()
}

/// Returns the fan-out writes of one turn: the connection and the chunks of each.
fn bulk_batches(shard: &mut Shard) -> Vec<(ConnectionKey, Vec<Vec<u8>>)> {
    urgent_writes(shard);
    let mut writes = Vec::new();
    while let Some((key, batch)) = shard.poll_write(Priority::Bulk) {
        writes.push((key, batch.iter().map(|chunk| chunk.bytes().to_vec()).collect()));
        done(shard, key, batch);
    }
    writes
}

/// Returns the connections that one turn writes to because of single commands.
fn urgent_writes(shard: &mut Shard) -> Vec<ConnectionKey> {
    let mut keys = Vec::new();
    while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
        done(shard, key, batch);
        keys.push(key);
    }
    keys
}

/// Reports a batch as written; returns its length in bytes.
fn done(shard: &mut Shard, key: ConnectionKey, batch: Batch) -> usize {
    let bytes = batch.iter().map(|chunk| chunk.bytes().len()).sum();
    shard.recycle(batch);
    shard.handle_written(NOW, key, bytes, true);
    bytes
}

/// The frame of a publish of this number of bytes, with a mask of zeros.
fn publish(channel: &str, bytes: usize) -> Vec<u8> {
    call_publish(channel, &"x".repeat(bytes))
}

fn call_publish(channel: &str, data: &str) -> Vec<u8> {
    let json = format!(r#"{{"m":"mesh.publish","p":{{"c":"{channel}","d":"{data}"}},"i":1}}"#);
    call(&json)
}

/// The frame that a subscriber gets for a text of at most 125 bytes.
fn server_frame(text: &str) -> Vec<u8> {
    [&[0x81, text.len() as u8], text.as_bytes()].concat()
}

/// A route whose clients have an outbound queue of one kilobyte.
fn narrow() -> RouteSettings {
    RouteSettings { outbound_bytes: 1024, ..shard_value::route() }
}
