//! A node whose every bound is soon met.

use std::num::NonZeroU32;
use std::sync::Arc;

use gridcast::address::NodeId;
use gridcast::protocol::credentials::FingerprintKey;
use gridcast::protocol::http;
use gridcast::queue::{Bounds, WhenFull};
use gridcast::shard::rate::Rate;
use gridcast::shard::settings::{
    AddressLimits, ApiSettings, EdgeSettings, LimitSettings, Process, QueueSettings, RouteSettings,
    Settings,
};

/// The topics that routes feed.
pub const TOPICS: [&str; 2] = ["t", "h"];

/// The settings that the bits of `shape` mean.
pub fn settings(shape: u8) -> Settings {
    let bit = |number: u8| shape >> number & 1 == 1;
    let http = http::RequestLimits { head_bytes: 512, headers: 8, body_bytes: 128 };
    let when_full = match shape >> 2 & 3 {
        0 | 1 => WhenFull::Hold,
        2 => WhenFull::DropOldest,
        _ => WhenFull::Close,
    };
    let shards = if bit(0) { 2 } else { 1 };
    Settings {
        node: node_id(),
        shards,
        has_mesh: false,
        api: ApiSettings {
            users: Default::default(),
            fingerprint_key: FingerprintKey::new([0; 32]),
            proxy: None,
            advertise: ([127, 0, 0, 1], 6789).into(),
            origins: vec!["http://a".into()],
            http,
        },
        edges: vec![EdgeSettings {
            proxy: None,
            port: 6790,
            routes: routes(Rate::new(if bit(7) { 2 } else { 0 })),
        }],
        queue: QueueSettings {
            bounds: Bounds { messages: if bit(1) { 3 } else { 16 }, bytes: 8192 },
            when_full,
            topics: 2,
            rules: Arc::default(),
            sinks: Arc::default(),
        },
        channels: Default::default(),
        has_access_log: false,
        process: Process::default(),
        limits: LimitSettings {
            edge_http: http,
            api_message_bytes: 512,
            outbound_bytes: 1024,
            close_slow_clients: bit(4),
            channels_per_client: 2,
            addresses: AddressLimits {
                connections: NonZeroU32::new(if bit(5) { 2 } else { 0 }),
                handshakes: Rate::new(if bit(6) { 3 } else { 0 }),
            },
            handshake_ms: 1000,
            ping_ms: 3000,
            idle_ms: 6000,
            answer_ms: 500,
        },
    }
}

/// The node of all these settings.
pub fn node_id() -> NodeId {
    NodeId::new(7).expect("7 is at most 1023")
}

fn routes(messages: Option<Rate>) -> Vec<Arc<RouteSettings>> {
    let route = |path: &str| RouteSettings {
        path: path.into(),
        subscribe: vec!["*".into()],
        message_bytes: 256,
        outbound_bytes: 512,
        messages,
        ..RouteSettings::default()
    };
    let telling = |path: &str, topic: &str| RouteSettings {
        topic: Some(topic.into()),
        tells_open: true,
        tells_message: true,
        tells_close: true,
        ..route(path)
    };
    [
        telling("/ws", TOPICS[0]),
        RouteSettings { hold_until: Some("k".into()), ..telling("/hold", TOPICS[1]) },
        RouteSettings { echo: true, compression: true, ..route("/echo") },
        route("/quiet"),
    ]
    .map(Arc::new)
    .into()
}
