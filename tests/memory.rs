//! What peers can make a shard hold. A shard is a value here: no socket, no clock.

#![forbid(unsafe_code)]

#[path = "support/shard.rs"]
mod shard_value;

use std::sync::Arc;

use gridcast::address::{IdLayout, IdSource, NodeId, ShardAddress, ShardId};
use gridcast::message::{ConnectionKey, Message, Party};
use gridcast::shard::interest::Interest;
use gridcast::shard::settings::{Edge, Route, Settings};
use gridcast::shard::{Listener, Now, Shard};
use shard_value::{call, upgraded};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// What may wait for a client or a back end.
const OUTBOUND_BYTES: usize = 1 << 20;

/// What an empty message takes in a queue at least: its place there, an allocation for the frame, and
/// one for its counts.
const EMPTY_MESSAGE_BYTES: usize = 24 + 48 + 32;

fn settings(shards: usize, outbound_bytes: usize) -> Settings {
    let route = Route { outbound_bytes, ..shard_value::route() };
    let edges = vec![Edge { port: 6790, routes: vec![Arc::new(route)] }];
    let interest = Arc::new(Interest::new(shards));
    Settings { shards, interest, edges, ..shard_value::settings() }
}

fn publish(data: &str) -> Vec<u8> {
    let json = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}"}},"i":1}}"#);
    if json.len() < 126 { call(&json) } else { long_call(&json) }
}

/// The frame of a call of any length, with a mask of zeros.
fn long_call(json: &str) -> Vec<u8> {
    let length = (json.len() as u64).to_be_bytes();
    [&[0x81, 0xFF], &length[..], &[0; 4], json.as_bytes()].concat()
}

/// Writes all that waits for the back end; what waits for the client stays in flight for good.
fn write_to(shard: &mut Shard, back_end: ConnectionKey) -> String {
    let mut text = Vec::new();
    while let Some((key, batch)) = shard.poll_urgent_write().or_else(|| shard.poll_bulk_write()) {
        if key != back_end {
            continue;
        }
        let before = text.len();
        batch.iter().for_each(|chunk| text.extend_from_slice(chunk.bytes()));
        shard.handle_written(NOW, key, text.len() - before, true);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Publishes of `data` that a client with so much room takes though it reads nothing.
fn taken_unread(outbound_bytes: usize, data: &str) -> usize {
    let mut shard = Shard::new(ShardId(0), &settings(1, outbound_bytes), NOW);
    let client = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a");
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    // The answers to the handshakes.
    while let Some((key, batch)) = shard.poll_urgent_write() {
        let bytes = batch.iter().map(|chunk| chunk.bytes().len()).sum();
        shard.handle_written(NOW, key, bytes, true);
    }
    assert_ne!(client, back_end);
    for _ in 0..1 << 20 {
        shard.handle_bytes(NOW, back_end, &mut publish(data));
        write_to(&mut shard, back_end);
        shard.handle_turn(NOW);
        if shard.counters().failed > 0 {
            break;
        }
    }
    assert_eq!(shard.counters().slow_closed, 1);
    shard.counters().delivered as usize
}

#[test]
fn small_messages_are_charged_what_they_hold_and_not_their_bytes() {
    for data in ["", "12345678901234567890"] {
        let taken = taken_unread(OUTBOUND_BYTES, data);
        let held = taken * (EMPTY_MESSAGE_BYTES + data.len());
        assert!(held <= OUTBOUND_BYTES, "{taken} messages of {} bytes hold {held}", data.len());
        assert!(held >= OUTBOUND_BYTES / 2, "{taken} messages of {} bytes", data.len());
    }
}

#[test]
fn a_message_as_long_as_the_limit_is_taken_by_an_empty_queue() {
    // With its head of four bytes.
    let longest = "x".repeat(2000 - 4);
    assert_eq!(taken_unread(2000, &longest), 1);
}

/// The client id of a client that shard 1 would have.
fn client_of_the_other() -> String {
    let node = NodeId::new(1).expect("1 is a node");
    let mut ids = IdSource::new(node, ShardId(1), IdLayout::new(2), NOW.unix_ms);
    ids.next(NOW.unix_ms).expect("the first of this moment").to_string()
}

#[test]
fn ids_of_requests_are_bounded_in_bytes_while_answers_are_waited_for_and_come_back_as_sent() {
    let mut shard = Shard::new(ShardId(0), &settings(2, OUTBOUND_BYTES), NOW);
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    write_to(&mut shard, back_end);
    let client = client_of_the_other();
    let id = |number: u32| format!("\"{number}{}\"", "x".repeat(200_000));
    for number in 10..40 {
        let json = format!(
            r#"{{"m":"conn.call","p":{{"c":"{client}","f":"info","a":[]}},"i":{}}}"#,
            id(number)
        );
        shard.handle_bytes(NOW, back_end, &mut long_call(&json));
    }
    // The other shard is frozen.
    let mut tickets = Vec::new();
    let mut text = String::new();
    for round in 0..30 {
        while let Some((_, message)) = shard.poll_message() {
            if let Message::Ask { ticket, .. } = message {
                tickets.push(ticket);
            }
        }
        assert!(tickets.len() <= 6, "{} ids of 200 KB are held", tickets.len());
        if round == 0 {
            assert_eq!(tickets.len(), 6, "as many as the outbound limit allows, and one");
            assert!(!shard.is_receiving(back_end), "what follows stays with the sender");
        }
        let other = ShardAddress { node: NodeId::new(1).expect("a node"), shard: ShardId(1) };
        for ticket in tickets.drain(..) {
            let answer = gridcast::message::Answer::Done(Ok(gridcast::protocol::api::Reply::Done));
            let message = Message::Answer(ticket, answer);
            shard.handle_message(NOW, Party::Shard(other), message);
        }
        shard.handle_turn(NOW);
        text += &write_to(&mut shard, back_end);
    }
    let places: Vec<_> = (10..40).map(|number| text.find(&id(number))).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "each, in order");
    assert!(shard.is_receiving(back_end));
}
