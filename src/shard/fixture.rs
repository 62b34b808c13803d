//! A fixture for the unit tests of the parts: settings, a turn, and connections without sockets.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::connection::{Client, Connections, Listener, Stage};
use super::node_state::NodeState;
use super::settings::{
    ApiSettings, EdgeSettings, LimitSettings, Process, QueueSettings, RouteSettings, Settings,
};
use super::turn::{Now, Step, Turn};
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{ConnectionKey, FromShard};
use crate::protocol::credentials::FingerprintKey;
use crate::protocol::http;
use crate::queue::{Bounds, WhenFull};

/// The address of the peer of each connection.
pub const REMOTE: Remote = Remote::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), Some(50_000));

/// The topic of the route `/ws`.
pub const TOPIC: &str = "topic";

/// The settings of a node of one shard, without a mesh and without users. Its one edge has the
/// route `/ws`, which feeds [`TOPIC`].
pub fn settings() -> Settings {
    let http = http::RequestLimits { head_bytes: 65_536, headers: 100, body_bytes: 1 << 20 };
    let route = RouteSettings {
        path: "/ws".into(),
        topic: Some(TOPIC.into()),
        tells_open: true,
        tells_message: true,
        tells_close: true,
        message_bytes: 65_536,
        outbound_bytes: 1 << 20,
        ..RouteSettings::default()
    };
    Settings {
        node: NodeId::new(1).expect("1 is a node id"),
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
        edges: vec![EdgeSettings { proxy: None, port: 8080, routes: vec![Arc::new(route)] }],
        queue: QueueSettings {
            bounds: Bounds { messages: 16, bytes: 1 << 20 },
            when_full: WhenFull::Hold,
            topics: 16,
            rules: Arc::default(),
            sinks: Arc::default(),
        },
        limits: LimitSettings {
            edge_http: http,
            api_message_bytes: 1 << 20,
            outbound_bytes: 1 << 20,
            close_slow_clients: true,
            channels_per_client: 16,
            addresses: Default::default(),
            handshake_ms: 10_000,
            ping_ms: 120_000,
            idle_ms: 240_000,
            answer_ms: 1500,
        },
        channels: Default::default(),
        has_access_log: false,
        process: Process::default(),
    }
}

/// The first turn of the node's first shard, at 1000 ms of the shard's clock.
pub fn turn(settings: Settings) -> Turn {
    let state = NodeState::new(&settings, Arc::default());
    let now = Now { ms: 1000, us: 1_000_000, unix_ms: 1_700_000_000_000 };
    Turn::new(ShardId(0), &Arc::new(settings), Arc::new(state), now)
}

/// A connection that was accepted from [`REMOTE`].
pub fn accepted(
    turn: &mut Turn,
    connections: &mut Connections,
    listener: Listener,
) -> ConnectionKey {
    connections.accept(turn, listener, REMOTE)
}

/// A client with this id on the route `/ws`, without a handshake.
pub fn client(turn: &mut Turn, connections: &mut Connections, id: ClientId) -> ConnectionKey {
    let key = accepted(turn, connections, Listener::Edge(0));
    let connection = connections.get(key).expect("it was accepted");
    connection.set_outbound_max(turn.settings.edges[0].routes[0].outbound_bytes);
    connection.stage = Stage::Client(Box::new(Client::new(id, 0)));
    key
}

/// Takes out the steps that parts left to each other.
pub fn steps(turn: &mut Turn) -> Vec<Step> {
    std::iter::from_fn(|| turn.poll_step()).collect()
}

/// Takes out the messages to other shards and to the mesh.
pub fn messages(turn: &mut Turn) -> Vec<FromShard> {
    std::iter::from_fn(|| turn.poll_message()).collect()
}
