//! What is refused or closed, and in which order, when the node is short of memory.

use std::collections::HashMap;
use std::sync::Arc;

use gridcast::message::ConnectionKey;
use gridcast::shard::settings::{EdgeSettings, RouteSettings, Settings};
use gridcast::shard::{
    Batch, Listener, Now, Priority, Shard, ShedRound, Shortage, Usage, freed_bytes,
};

use crate::shard_value::{self, bytes_of, call, client_head, poll_write, upgraded};
use crate::{NOW, OUTBOUND_BYTES, closed, is_open, publish, settings, write_to};

/// The usage of a node with a budget of 1,000 MB.
fn usage(megabytes: u64, before: Shortage) -> Usage {
    let (bytes, limit_bytes) = (megabytes * 1_000_000, 1_000_000_000);
    Usage { bytes, limit_bytes, shortage: before.after(bytes, limit_bytes) }
}

/// Tells the usage to a shard whose sockets all have room.
fn tell(shard: &mut Shard, usage: Usage) {
    shard.handle_memory(NOW, usage, &ShedRound::default(), |_| None);
}

/// A shard with a back end and with clients, each of which is subscribed to a channel of its own: `0`, `1`, and so on.
/// All handshakes are written.
fn node_of(clients: usize) -> (Shard, Vec<ConnectionKey>, ConnectionKey) {
    let mut shard = shard_value::shard(&settings(1, OUTBOUND_BYTES), NOW);
    let open = |number| format!("/ws?channels={number}");
    let clients: Vec<_> = (0..clients)
        .map(|number| upgraded(&mut shard, NOW, Listener::Edge(0), &open(number)))
        .collect();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
        let bytes = bytes_of(&batch).len();
        shard.handle_written(NOW, key, bytes, true);
    }
    (shard, clients, back_end)
}

/// Publishes to the channel of one client.
fn publish_to(shard: &mut Shard, back_end: ConnectionKey, channel: usize, bytes: usize) {
    let data = "x".repeat(bytes);
    let json = format!(r#"{{"m":"mesh.publish","p":{{"c":"{channel}","d":"{data}"}},"i":1}}"#);
    shard.handle_bytes(NOW, back_end, &mut call(&json));
}

/// The batches in flight of connections whose sockets are full.
#[derive(Default)]
struct FullSockets(HashMap<ConnectionKey, Batch>);

impl FullSockets {
    /// Takes all output of the shard. The sockets of these clients are full; the others take everything.
    fn take_writes(&mut self, shard: &mut Shard, now: Now, clients: &[ConnectionKey]) {
        while let Some((key, batch)) = poll_write(shard) {
            if clients.contains(&key) {
                self.0.insert(key, batch);
                continue;
            }
            let bytes = bytes_of(&batch).len();
            drop(batch);
            shard.handle_written(now, key, bytes, true);
        }
    }

    fn blocked_bytes(&self, key: ConnectionKey) -> Option<usize> {
        self.0.get(&key).map(freed_bytes)
    }

    /// Runs one turn with this usage; returns the connections that the shard closes at once.
    fn turn(
        &mut self,
        shard: &mut Shard,
        ms: u64,
        usage: Usage,
        round: &ShedRound,
    ) -> Vec<ConnectionKey> {
        let now = Now { ms, ..NOW };
        shard.handle_memory(now, usage, round, |key| self.blocked_bytes(key));
        shard.handle_turn(now);
        let closed = closed(shard);
        closed.iter().for_each(|key| drop(self.0.remove(key)));
        closed
    }
}

/// The time at which a connection counts as a slow reader if its socket is full since time 0.
const SLOW_MS: u64 = 300;

#[test]
fn near_the_budget_slow_readers_with_the_largest_queues_are_closed_and_no_more_than_needed() {
    let (mut shard, clients, back_end) = node_of(20);
    for (number, _) in clients.iter().enumerate() {
        // Four hold 400 KB, the others 20.
        publish_to(&mut shard, back_end, number, if number % 5 == 0 { 400_000 } else { 20_000 });
    }
    let (round, mut sockets) = (ShedRound::default(), FullSockets::default());
    shard.handle_turn(NOW);
    sockets.take_writes(&mut shard, NOW, &clients);
    let limit_bytes = 2_400_000;
    let mut used = 4 * 400_000 + 16 * 20_000;
    let mut shortage = Shortage::None;
    let mut gone = Vec::new();
    for ms in (0..2000).step_by(5) {
        shortage = shortage.after(used, limit_bytes);
        let usage = Usage { bytes: used, limit_bytes, shortage };
        let closed = sockets.turn(&mut shard, ms, usage, &round);
        used -= 400_000 * closed.len() as u64;
        gone.extend(closed);
    }
    assert_eq!(gone, [clients[0]], "80 % are in use: one of the largest brings that below 75");
    let counters = shard.inspect().counters();
    assert_eq!((counters.shed_readers, counters.limits.memory_bytes), (1, 1));
    assert_eq!(shard.poll_timeout().map(|ms| ms > 3000), Some(true), "nothing more to look for");
}

#[test]
fn a_slow_reader_is_closed_for_its_own_queue_and_a_fast_one_is_not() {
    let (mut shard, clients, back_end) = node_of(3);
    let (round, mut sockets) = (ShedRound::default(), FullSockets::default());
    let slow = &clients[..1];
    for channel in 0..2 {
        publish_to(&mut shard, back_end, channel, 100_000);
    }
    let short = usage(850, Shortage::None);
    assert_eq!(sockets.turn(&mut shard, 0, short, &round), [], "nothing is written yet");
    sockets.take_writes(&mut shard, NOW, slow);
    publish_to(&mut shard, back_end, 0, 100_000);
    let mut gone = Vec::new();
    for ms in (0..=SLOW_MS + 200).step_by(10) {
        // Just queued, and written in the same turn.
        publish_to(&mut shard, back_end, 2, 50_000);
        let closed = sockets.turn(&mut shard, ms, short, &round);
        assert!(closed.is_empty() || ms >= 250, "after {ms} ms");
        gone.extend(closed);
        sockets.take_writes(&mut shard, Now { ms, ..NOW }, slow);
    }
    assert_eq!(gone, slow);
    assert_eq!(shard.inspect().counters().shed_readers, 1);
    assert!(clients[1..].iter().all(|&key| is_open(&mut shard, key)));
}

/// A shard with a back end and with clients that are subscribed to the channel `a`. All handshakes are written.
fn crowd(clients: usize) -> (Shard, Vec<ConnectionKey>, ConnectionKey) {
    let mut shard = shard_value::shard(&settings(1, OUTBOUND_BYTES), NOW);
    let clients: Vec<_> = (0..clients)
        .map(|_| upgraded(&mut shard, NOW, Listener::Edge(0), "/ws?channels=a"))
        .collect();
    let back_end = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    FullSockets::default().take_writes(&mut shard, NOW, &[]);
    (shard, clients, back_end)
}

#[test]
fn no_client_is_closed_for_a_frame_that_all_subscribers_share() {
    let (mut shard, clients, back_end) = crowd(100);
    let (round, mut sockets) = (ShedRound::default(), FullSockets::default());
    shard.handle_bytes(NOW, back_end, &mut publish(&"x".repeat(20_480)));
    // Topics or contexts use the rest of the memory.
    let short = usage(810, Shortage::None);
    for ms in (0..2000).step_by(5) {
        assert_eq!(sockets.turn(&mut shard, ms, short, &round), [], "after {ms} ms");
        sockets.take_writes(&mut shard, Now { ms, ..NOW }, &clients);
    }
    assert_eq!(shard.inspect().counters().limits.memory_bytes, 0);
    // The others have read the frame, so all of it is charged to the client that has not.
    let (slow, others) = clients.split_first().expect("there are clients");
    for key in others {
        let bytes = sockets.0.remove(key).expect("it is blocked");
        let bytes = bytes_of(&bytes).len();
        shard.handle_written(NOW, *key, bytes, true);
    }
    let closed: Vec<_> = (2000..2300)
        .step_by(5)
        .flat_map(|ms| sockets.turn(&mut shard, ms, short, &round))
        .collect();
    assert_eq!(closed, [*slow]);
}

#[test]
fn many_shards_together_free_about_the_excess() {
    const SHARDS: usize = 32;
    const CLIENTS: usize = 10;
    const QUEUE_BYTES: u64 = 50_000;
    let round = ShedRound::default();
    let mut shards: Vec<_> = (0..SHARDS).map(|_| shard_of_slow_readers(CLIENTS, 50_000)).collect();
    // The excess is 5 MB. Slow readers hold 16 MB, half a megabyte in each shard.
    let (limit_bytes, before) = (100_000_000, 80_000_000);
    let (mut used, mut closed) = (before, 0);
    let mut shortage = Shortage::None;
    for ms in (SLOW_MS..1500).step_by(5) {
        shortage = shortage.after(used, limit_bytes);
        let told = Usage { bytes: used, limit_bytes, shortage };
        for (shard, sockets) in &mut shards {
            closed += sockets.turn(shard, ms, told, &round).len() as u64;
        }
        // What was closed takes some turns to be free.
        if ms % 20 == 0 {
            used = before - closed * QUEUE_BYTES;
        }
    }
    let freed = closed * QUEUE_BYTES;
    assert!((5_000_000..=5_000_000 + QUEUE_BYTES).contains(&freed), "{freed} bytes are free");
}

/// A shard with clients that have full sockets and this number of bytes in flight each.
fn shard_of_slow_readers(clients: usize, bytes: usize) -> (Shard, FullSockets) {
    let (mut shard, clients, back_end) = node_of(clients);
    let mut sockets = FullSockets::default();
    for channel in 0..clients.len() {
        publish_to(&mut shard, back_end, channel, bytes);
        shard.handle_turn(NOW);
        sockets.take_writes(&mut shard, NOW, &clients);
    }
    assert_eq!(sockets.0.len(), clients.len());
    (shard, sockets)
}

#[test]
fn an_ending_connection_is_closed_once_and_only_if_its_socket_is_full() {
    let (mut shard, clients, back_end) = node_of(2);
    let (round, mut sockets) = (ShedRound::default(), FullSockets::default());
    for channel in 0..2 {
        publish_to(&mut shard, back_end, channel, 100_000);
    }
    shard.handle_turn(NOW);
    sockets.take_writes(&mut shard, NOW, &clients[..1]);
    for &client in &clients {
        // A close frame.
        shard.handle_bytes(NOW, client, &mut client_head(0x88, 0));
    }
    sockets.take_writes(&mut shard, NOW, &clients[..1]);
    let closed: Vec<_> = (SLOW_MS..1000)
        .step_by(5)
        .flat_map(|ms| sockets.turn(&mut shard, ms, usage(850, Shortage::None), &round))
        .collect();
    assert_eq!(closed, [clients[0]]);
    assert_eq!(shard.inspect().counters().limits.memory_bytes, 1);
}

#[test]
fn when_memory_is_short_clients_are_refused_and_health_checks_are_answered() {
    let (mut shard, _, back_end) = node_of(1);
    tell(&mut shard, usage(849, Shortage::None));
    assert!(!shard.inspect().shortage().closes_arrivals(true));
    tell(&mut shard, usage(850, Shortage::None));
    let mut answer = |listener, path: &str| {
        let key = upgraded(&mut shard, NOW, listener, path);
        let text = write_to(&mut shard, key);
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(answer(Listener::Edge(0), "/ws"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(answer(Listener::Api, "/readyz"), "HTTP/1.1 503 Service Unavailable");
    assert_eq!(answer(Listener::Api, "/healthz"), "HTTP/1.1 200 OK");
    assert_eq!(answer(Listener::Api, "/metrics"), "HTTP/1.1 200 OK");
    assert!(shard.inspect().shortage().closes_arrivals(true), "a handshake of TLS is not begun");
    assert!(!shard.inspect().shortage().closes_arrivals(false));
    assert_eq!(shard.inspect().counters().shed_arrivals, 1);
    // Existing connections continue.
    publish_to(&mut shard, back_end, 0, 10);
    assert!(write_to(&mut shard, back_end).contains(r#"{"s":1,"f":0}"#));
    tell(&mut shard, usage(799, Shortage::Arrivals));
    let key = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws");
    assert!(write_to(&mut shard, key).starts_with("HTTP/1.1 101"));
}

#[test]
fn a_consumer_can_connect_and_empty_the_topics_that_fill_the_memory() {
    let route = RouteSettings {
        topic: Some("events".into()),
        tells_message: true,
        ..RouteSettings::clone(&settings(1, OUTBOUND_BYTES).edges[0].routes[0])
    };
    let edges = vec![EdgeSettings { proxy: None, port: 6790, routes: vec![Arc::new(route)] }];
    let mut shard = shard_value::shard(&Settings { edges, ..settings(1, 1000) }, NOW);
    let client = upgraded(&mut shard, NOW, Listener::Edge(0), "/ws");
    shard.handle_bytes(NOW, client, &mut [&client_head(0x81, 5)[..], b"hello"].concat());
    assert_eq!(shard.inspect().queued_messages(), 1);
    tell(&mut shard, usage(960, Shortage::Holders));
    let consumer = upgraded(&mut shard, NOW, Listener::Api, "/ws/v1");
    let pop = r#"{"m":"queue.pop","p":{"t":["events"]},"i":1}"#;
    shard.handle_bytes(NOW, consumer, &mut call(pop));
    let mut heard = write_to(&mut shard, consumer);
    shard.handle_turn(NOW);
    heard += &write_to(&mut shard, consumer);
    assert!(heard.starts_with("HTTP/1.1 101") && heard.contains("hello"), "{heard}");
    assert_eq!(shard.inspect().queued_messages(), 0);
}

#[test]
fn when_memory_is_shorter_frames_fail_for_clients_with_unread_data_and_reach_the_others() {
    let (mut shard, _, back_end) = node_of(2);
    // The first frame stays in flight.
    publish_to(&mut shard, back_end, 0, 10);
    write_to(&mut shard, back_end);
    tell(&mut shard, usage(900, Shortage::None));
    for (channel, tally) in [(0, r#"{"s":0,"f":1}"#), (1, r#"{"s":1,"f":0}"#)] {
        publish_to(&mut shard, back_end, channel, 10);
        let answer = write_to(&mut shard, back_end);
        assert!(answer.contains(tally), "{answer}");
    }
    assert_eq!(
        (shard.inspect().counters().shed_frames, shard.inspect().counters().slow_closed),
        (1, 0)
    );
    tell(&mut shard, usage(849, Shortage::Frames));
    publish_to(&mut shard, back_end, 0, 10);
    assert!(write_to(&mut shard, back_end).contains(r#"{"s":1,"f":0}"#));
}

#[test]
fn when_memory_is_shortest_the_largest_connections_are_closed_whatever_they_hold() {
    let (mut shard, clients, back_end) = node_of(3);
    // A message and a request that are never completed.
    let mut half = [&client_head(0x82, 40_000)[..], &[0; 39_000]].concat();
    shard.handle_bytes(NOW, clients[1], &mut half);
    let remote = ([127, 0, 0, 1], 1).into();
    let request = shard.handle_accepted(NOW, Listener::Api, remote).expect("the node is up");
    let head = "POST /v1/mesh/send HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50000\r\n\r\n";
    shard.handle_bytes(NOW, request, &mut [head.as_bytes(), &[b' '; 45_000]].concat());
    tell(&mut shard, usage(940, Shortage::None));
    shard.handle_turn(NOW);
    assert_eq!(
        shard.inspect().counters().limits.memory_bytes,
        0,
        "there is no outbound queue to give up"
    );
    tell(&mut shard, usage(950, Shortage::Frames));
    let mut told = String::new();
    for ms in [200, 400, 600] {
        let (now, short) = (Now { ms, ..NOW }, usage(950, Shortage::Frames));
        shard.handle_memory(now, short, &ShedRound::default(), |_| None);
        shard.handle_turn(now);
        while let Some((key, batch)) = shard.poll_write(Priority::Urgent) {
            let bytes = bytes_of(&batch);
            told += &String::from_utf8_lossy(&bytes);
            shard.handle_written(NOW, key, bytes.len(), true);
        }
    }
    assert!(told.contains("HTTP/1.1 503") && told.contains("\r\nRetry-After: "), "{told}");
    assert!(told.contains("short of memory, try again later"), "{told}");
    let counters = shard.inspect().counters();
    assert_eq!(counters.shed_holders, 2);
    assert!([clients[0], clients[2], back_end].into_iter().all(|key| is_open(&mut shard, key)));
    assert!(shard.inspect().shortage().closes_arrivals(false));
}

#[test]
fn a_higher_step_sheds_at_once_what_a_lower_step_left_open() {
    let (mut shard, clients, _) = node_of(2);
    let mut half = [&client_head(0x82, 40_000)[..], &[0; 39_000]].concat();
    shard.handle_bytes(NOW, clients[1], &mut half);
    let round = ShedRound::default();
    let mut turn = |ms, megabytes, before| {
        shard.handle_memory(Now { ms, ..NOW }, usage(megabytes, before), &round, |_| None);
        shard.inspect().counters().shed_holders
    };
    assert_eq!(turn(200, 900, Shortage::None), 0, "nobody is a slow reader");
    assert_eq!(turn(201, 960, Shortage::Frames), 1, "the largest connection is closed");
}

#[test]
fn an_excess_that_grows_within_a_round_is_shed_within_the_round() {
    let (mut shard, _) = shard_of_slow_readers(4, 400_000);
    let round = ShedRound::default();
    let mut turn = |ms, bytes| {
        let usage = Usage { bytes, limit_bytes: 10_000_000, shortage: Shortage::Holders };
        shard.handle_memory(Now { ms, ..NOW }, usage, &round, |_| Some(400_000));
        shard.inspect().counters().limits.memory_bytes
    };
    assert_eq!(turn(SLOW_MS, 7_700_000), 1, "one connection holds more than the excess");
    assert_eq!(turn(SLOW_MS + 10, 7_700_000), 1, "its memory will be free by the end of the round");
    assert_eq!(turn(SLOW_MS + 20, 8_000_000), 2, "the excess has grown to two connections");
}
