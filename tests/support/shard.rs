//! A shard as a value: its settings, and connections without sockets.

#![allow(dead_code, reason = "each test uses its own part of this")]

use std::collections::BTreeMap;
use std::sync::Arc;

use gridcast::address::{NodeId, ShardId};
use gridcast::message::ConnectionKey;
use gridcast::protocol::credentials::{FingerprintKey, Roles, Scheme, Secret, User};
use gridcast::protocol::http;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::node_state::NodeState;
use gridcast::shard::settings::{
    ApiSettings, LimitSettings, Process, QueueSettings, RouteSettings, Settings,
};
use gridcast::shard::{Action, Batch, Listener, Now, Priority, Shard};

/// The settings of a node of one shard, without a mesh, edges and users.
pub fn settings() -> Settings {
    let http = http::RequestLimits { head_bytes: 65_536, headers: 100, body_bytes: 1 << 20 };
    Settings {
        node: NodeId::new(1).expect("1 is at most 1023"),
        shards: 1,
        has_mesh: false,
        api: ApiSettings {
            users: Default::default(),
            fingerprint_key: FingerprintKey::new([0; 32]),
            proxy: None,
            advertise: ([127, 0, 0, 1], 6789).into(),
            origins: Vec::new(),
            http,
        },
        edges: Vec::new(),
        queue: QueueSettings {
            bounds: Bounds { messages: 65_536, bytes: 64 << 20 },
            when_full: WhenFull::Hold,
            topics: 1024,
            rules: Arc::default(),
            sinks: Arc::default(),
        },
        channels: Default::default(),
        has_access_log: false,
        process: Process::default(),
        limits: LimitSettings {
            edge_http: http,
            api_message_bytes: 1 << 20,
            outbound_bytes: 1 << 20,
            close_slow_clients: true,
            channels_per_client: 1024,
            addresses: Default::default(),
            handshake_ms: 10_000,
            ping_ms: 120_000,
            idle_ms: 240_000,
            answer_ms: 1500,
        },
    }
}

/// The first shard of a node with these settings.
pub fn shard(settings: &Settings, now: Now) -> Shard {
    let state = NodeState::new(settings, Arc::default());
    Shard::new(ShardId(0), settings, Arc::new(state), now)
}

/// The route `/ws`, which allows any channel.
pub fn route() -> RouteSettings {
    RouteSettings {
        path: "/ws".into(),
        subscribe: vec!["*".into()],
        message_bytes: 65_536,
        outbound_bytes: 1 << 20,
        ..RouteSettings::default()
    }
}

/// A user who may do everything from anywhere, and presents this token.
pub fn user(name: &str, token: &str) -> User {
    User {
        name: name.into(),
        scheme: Scheme::Bearer,
        secret: Secret::Plain(token.into()),
        roles: Roles::ALL,
        from: Default::default(),
        requests_per_s: 0,
    }
}

/// Returns the next batch that a shard writes, urgent ones first.
pub fn poll_write(shard: &mut Shard) -> Option<(ConnectionKey, Batch)> {
    shard.poll_write(Priority::Urgent).or_else(|| shard.poll_write(Priority::Bulk))
}

pub fn bytes_of(batch: &Batch) -> Vec<u8> {
    batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect()
}

/// Runs turns until a shard has nothing left to do. Adds its output to that of each connection, by index.
pub fn settle(shard: &mut Shard, now: Now, written: &mut BTreeMap<u32, Vec<u8>>) {
    for _ in 0..100_000 {
        shard.handle_turn(now);
        while let Some((key, batch)) = poll_write(shard) {
            let bytes = bytes_of(&batch);
            shard.recycle(batch);
            shard.handle_written(now, key, bytes.len(), true);
            written.entry(key.index).or_default().extend(bytes);
        }
        while let Some(action) = shard.poll_action() {
            if let Action::Close(key) = action {
                shard.handle_closed(key);
            }
        }
        let is_due = shard.poll_timeout().is_some_and(|due_ms| due_ms <= now.ms);
        if !is_due && !shard.inspect().has_writes() {
            return;
        }
    }
    panic!("the shard asks for turns without end");
}

/// Opens a connection that asks for a WebSocket at a path, of a client or a back end.
pub fn upgraded(shard: &mut Shard, now: Now, listener: Listener, path: &str) -> ConnectionKey {
    let remote = ([127, 0, 0, 1], 50_000).into();
    let key = shard.handle_accepted(now, listener, remote).expect("the node is not going down");
    let mut request = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    .into_bytes();
    shard.handle_bytes(now, key, &mut request);
    key
}

/// The frame of a call, with a mask of zeros.
pub fn call(json: &str) -> Vec<u8> {
    [&client_head(0x81, json.len())[..], json.as_bytes()].concat()
}

/// The head of a client's frame with this first byte, with a mask of zeros.
pub fn client_head(first: u8, length: usize) -> Vec<u8> {
    let mut head = vec![first];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 126 => head.push(0x80 | short),
        (_, Ok(long)) => {
            head.push(0xFE);
            head.extend_from_slice(&long.to_be_bytes());
        }
        _ => {
            head.push(0xFF);
            head.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    head.extend_from_slice(&[0; 4]);
    head
}
