//! The settings of a node, as its shards are told them when they start. They do not change, and hold
//! no live state: that is in [`super::node_state`].

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::rate::Rate;
use crate::address::NodeId;
use crate::protocol::credentials::{FingerprintKey, User};
use crate::protocol::http;
use crate::protocol::token::TokenRule;
use crate::queue::{Bounds, WhenFull};

/// All settings of a node, the same for each of its shards.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The id of the node.
    pub node: NodeId,
    /// How many shards the node has.
    pub shards: usize,
    /// Whether the node has a mesh, through which it may reach other nodes.
    pub has_mesh: bool,
    /// The back ends' listener.
    pub api: Api,
    /// The clients' listeners.
    pub edges: Vec<Edge>,
    /// Topics.
    pub queue: Queue,
    /// Bounds and times.
    pub limits: Limits,
    /// The process that the node runs in.
    pub process: Process,
}

/// Facts about the process, and about the grid around it.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Unix milliseconds that client ids have when the node's own time is 0, later than those of
    /// earlier lives. `None`: what the clock says.
    pub first_unix_ms: Option<u64>,
    /// Nodes, this one included, that must have been seen before the node is ready. With 0 and 1 it
    /// waits for no other.
    pub nodes_expected: usize,
    /// Where the node listens, for the page of the first minute. `None`: nowhere, as in a test.
    pub endpoints: Option<Arc<Endpoints>>,
}

/// Where a node listens.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// For back ends.
    pub api: Endpoint,
    /// For clients, in the order of [`Settings::edges`].
    pub edges: Vec<Endpoint>,
}

/// The address of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    /// IP address and port, the one that the system picked where that was left to it.
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub has_tls: bool,
}

impl Settings {
    /// Whether a route puts events into this topic.
    pub fn feeds(&self, topic: &str) -> bool {
        let mut routes = self.edges.iter().flat_map(|edge| &edge.routes);
        routes.any(|route| route.topic.as_deref() == Some(topic))
    }

    /// A copy whose routes and names no other shard counts references to: they are counted per
    /// message, and a count that cores share costs more the more of them there are.
    pub fn unshared(&self) -> Self {
        let route = |route: &Arc<Route>| {
            let topic = route.topic.as_deref().map(Arc::from);
            Arc::new(Route { topic, ..Route::clone(route) })
        };
        let edge =
            |edge: &Edge| Edge { routes: edge.routes.iter().map(route).collect(), ..edge.clone() };
        Self { edges: self.edges.iter().map(edge).collect(), ..self.clone() }
    }
}

/// The back ends' listener.
#[derive(Clone, Debug)]
pub struct Api {
    /// `HOST:PORT` at which back ends reach this node.
    pub advertise: SocketAddr,
    /// Web origins that may call the API from a browser, in lower case.
    pub origins: Vec<String>,
    /// Users of the API. Without any, there is no authentication.
    pub users: Arc<[User]>,
    /// The key for fingerprints of credentials, which no two processes share.
    pub fingerprint_key: FingerprintKey,
    /// Limits of a request.
    pub http: http::Limits,
}

/// One clients' listener.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The port that it listens on, for the page of the first minute.
    pub port: u16,
    /// Its routes.
    pub routes: Vec<Arc<Route>>,
}

/// One route of an edge.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Its path, exactly.
    pub path: String,
    /// Where what happens on it is told; `None`: nowhere.
    pub topic: Option<Arc<str>>,
    /// Whether a client that came is told.
    pub tells_open: bool,
    /// Whether what a client sends is told.
    pub tells_message: bool,
    /// Whether a client that went is told.
    pub tells_close: bool,
    /// Patterns of channels that a client may subscribe to when it connects: a name, or a beginning
    /// with `*` behind it.
    pub subscribe: Vec<String>,
    /// What a client sends after its first message waits until its context has this key.
    pub hold_until: Option<Box<str>>,
    /// Web origins that it is open to, in lower case; `None`: all.
    pub origins: Option<Vec<String>>,
    /// Subprotocols that a client may ask for.
    pub subprotocols: Vec<String>,
    /// The tokens that a client needs one of; `None`: it needs none.
    pub token: Option<Arc<TokenRule>>,
    /// Whether it sends each message back.
    pub echo: bool,
    /// Whether clients may agree on compressed messages.
    pub compression: bool,
    /// The longest message from a client, in bytes.
    pub message_bytes: usize,
    /// The most that waits for one client, in bytes.
    pub outbound_bytes: usize,
    /// Messages that one client may send; `None`: any number.
    pub messages: Option<Rate>,
}

impl Route {
    /// Whether a client may subscribe itself to this channel.
    pub fn allows(&self, channel: &str) -> bool {
        self.subscribe.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => channel.starts_with(start),
            None => channel == pattern,
        })
    }
}

/// Topics.
#[derive(Clone, Debug)]
pub struct Queue {
    /// How much each holds.
    pub bounds: Bounds,
    /// What happens beyond it.
    pub when_full: WhenFull,
    /// How many there are on the node, at most.
    pub topics: usize,
}

impl Queue {
    /// The longest encoded event that a topic takes, in bytes: three quarters of what it holds. The rest
    /// may be lent to other shards for good.
    pub fn event_bytes_max(&self) -> usize {
        self.bounds.bytes / 4 * 3
    }
}

/// Bounds and times of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Limits of a client's handshake.
    pub edge_http: http::Limits,
    /// The longest message of a back end, in bytes.
    pub api_message_bytes: usize,
    /// The most that waits for one back end, in bytes.
    pub outbound_bytes: usize,
    /// Whether a client that reads too slowly is closed, or only misses messages.
    pub close_slow_clients: bool,
    /// Channels that one client is subscribed to, at most.
    pub channels_per_client: usize,
    /// Of each address, at the edge.
    pub addresses: AddressLimits,
    /// Time for a request head, a body, a handshake.
    pub handshake_ms: u64,
    /// Silence after which a ping is sent.
    pub ping_ms: u64,
    /// Silence after which a connection is closed.
    pub idle_ms: u64,
    /// How long a call waits for other shards.
    pub answer_ms: u64,
}

/// What one address (of IPv6: one /64 network) may do at the edge.
#[derive(Clone, Debug, Default)]
pub struct AddressLimits {
    /// Connections at a time; `None`: any number.
    pub connections: Option<NonZeroU32>,
    /// Handshakes, each of which takes a connection then; `None`: any number.
    pub handshakes: Option<Rate>,
}

impl AddressLimits {
    /// Whether there is one.
    pub fn are_there(&self) -> bool {
        self.connections.is_some() || self.handshakes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_name_or_a_beginning() {
        let subscribe = vec!["user-*".into(), "news".into()];
        let route = Route { subscribe, ..Route::default() };
        let allowed = ["user-", "user-7", "news"].map(|channel| route.allows(channel));
        let refused = ["user", "new", "newsroom", "", "*"].map(|channel| route.allows(channel));
        assert_eq!((allowed, refused), ([true; 3], [false; 5]));
    }
}
