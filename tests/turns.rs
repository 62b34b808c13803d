//! What one back end can make of one turn of a shard. A shard is a value here: no socket, no clock.

use std::sync::Arc;

use gridcast::address::{NodeId, ShardId};
use gridcast::message::ConnectionKey;
use gridcast::protocol::credentials::FingerprintKey;
use gridcast::protocol::http;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::settings::{Api, Edge, Limits, Queue, Route, Settings};
use gridcast::shard::{Listener, Now, Shard};

const NOW: Now = Now { ms: 0, us: 0, unix_ms: 1_700_000_000_000 };

/// Subscribers of the channel: one slice of a walk reaches them all.
const CLIENTS: u64 = 1000;

const PUBLISHES: u64 = 200;

/// The bound on what a turn reaches, and the publish that meets it.
const REACHED_MAX: u64 = 33 * 1024;

#[test]
fn publishes_that_came_at_once_are_done_over_several_turns_and_all_done() {
    let mut shard = Shard::new(ShardId(0), &settings(), NOW);
    for _ in 0..CLIENTS {
        upgraded(&mut shard, Listener::Edge(0), "/ws?channels=a");
    }
    let back_end = upgraded(&mut shard, Listener::Api, "/ws/v1");
    shard.handle_turn(NOW);
    shard.handle_bytes(NOW, back_end, &mut publish().repeat(PUBLISHES as usize));

    let (mut turns, mut before) = (0, 0);
    loop {
        let delivered = shard.counters().delivered;
        assert!(delivered - before <= REACHED_MAX, "a turn reached {}", delivered - before);
        if shard.poll_timeout() != Some(0) {
            break;
        }
        before = delivered;
        shard.handle_turn(NOW);
        turns += 1;
    }
    assert_eq!(shard.counters().delivered, CLIENTS * PUBLISHES);
    assert!(turns > 1, "it was one turn");
}

fn upgraded(shard: &mut Shard, listener: Listener, path: &str) -> ConnectionKey {
    let remote = ([127, 0, 0, 1], 50_000).into();
    let key = shard.handle_accepted(NOW, listener, remote).expect("the node is not going down");
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes();
    shard.handle_bytes(NOW, key, &mut request);
    key
}

/// The frame of a call, with a mask of zeros.
fn publish() -> Vec<u8> {
    let call = br#"{"m":"mesh.publish","p":{"c":"a","d":"b"},"i":1}"#;
    [&[0x81, 0x80 | call.len() as u8, 0, 0, 0, 0], &call[..]].concat()
}

fn settings() -> Settings {
    let http = http::Limits { head_bytes: 4096, headers: 50, body_bytes: 4096 };
    let route = Route {
        path: "/ws".into(),
        subscribe: vec!["*".into()],
        message_bytes: 4096,
        outbound_bytes: 1 << 20,
        ..Route::default()
    };
    Settings {
        node: NodeId::new(1).expect("1 is a node"),
        shards: 1,
        has_mesh: false,
        api: Api {
            users: Vec::new().into(),
            quotas: Vec::new().into(),
            fingerprint_key: FingerprintKey::new([0; 32]),
            advertise: ([127, 0, 0, 1], 6789).into(),
            origins: Vec::new(),
            http: http.clone(),
        },
        edges: vec![Edge { port: 6790, routes: vec![Arc::new(route)] }],
        queue: Queue {
            bounds: Bounds { messages: 16, bytes: 8192 },
            when_full: WhenFull::Hold,
            topics: 2,
        },
        limits: Limits {
            edge_http: http,
            api_message_bytes: 4096,
            outbound_bytes: 1 << 20,
            close_slow_clients: true,
            channels_per_client: 2,
            handshake_ms: 10_000,
            ping_ms: 30_000,
            idle_ms: 60_000,
            addresses: Default::default(),
            answer_ms: 1500,
        },
    }
}
