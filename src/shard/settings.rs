//! The settings that the shards of a node receive when they start, and again when the configuration is
//! reloaded. Mutable state that the shards share is in [`super::node_state`].

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use hashbrown::HashMap;

use super::connection::Listener;
use super::rate::Rate;
use super::users::Users;
use crate::address::NodeId;
use crate::address::listen::ListenAddress;
use crate::address::networks::Networks;
use crate::address::remote::Remote;
use crate::channel::ChannelPolicy;
use crate::message::LogFacts;
use crate::protocol::admission::AdmissionHook;
use crate::protocol::credentials::{FingerprintKey, User};
use crate::protocol::http;
use crate::protocol::token::TokenRule;
use crate::queue::topic::{ACK_S_DEFAULT, Policy, UNSTORED_MAX};
use crate::queue::{Bounds, WhenFull};

/// All settings of a node, the same for each of its shards.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The id of the node.
    pub node: NodeId,
    /// The number of shards of the node.
    pub shards: usize,
    /// Whether the node has a mesh, through which it may reach other nodes.
    pub has_mesh: bool,
    /// The back ends' listener.
    pub api: ApiSettings,
    /// The clients' listeners.
    pub edges: Vec<EdgeSettings>,
    /// Limits of topics.
    pub queue: QueueSettings,
    /// Limits and timeouts of connections.
    pub limits: LimitSettings,
    /// Channels with settings of their own.
    pub channels: ChannelSettings,
    /// Whether each connection leaves a line in the log when it ends.
    pub has_access_log: bool,
    /// Facts about the process that the node runs in.
    pub process: Process,
}

/// Facts about the process, and about the grid around it.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// The Unix time in milliseconds that a client id contains when the shard's clock shows 0.
    /// Later than in all earlier runs of the node. `None`: taken from the system clock.
    pub first_unix_ms: Option<u64>,
    /// The number of nodes, this one included, that must have been reachable before `/readyz`
    /// reports ready. With 0 or 1 the node waits for no other.
    pub nodes_expected: usize,
    /// How the shards reach the kernel: `io_uring` or `epoll`. Empty in tests without sockets.
    pub driver: &'static str,
    /// The addresses that the node listens on, for the start page. `None` in tests without sockets.
    pub endpoints: Option<Arc<Endpoints>>,
    /// The bounds of topics at the start of the node, if a reload may have changed them.
    pub first_bounds: Option<Bounds>,
    /// The logs of the topics on disk, as they were at the start of the node.
    pub logs: Arc<HashMap<Arc<str>, LogFacts>>,
}

/// The addresses that a node listens on.
#[derive(Clone, Debug)]
pub struct Endpoints {
    /// The API, for back ends.
    pub api: Endpoint,
    /// The edges, for clients, in the order of [`Settings::edges`].
    pub edges: Vec<Endpoint>,
}

/// The address of a listener.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The address. With a configured port of 0, the port is the one that the system has chosen.
    pub address: ListenAddress,
    /// Whether the listener uses TLS.
    pub has_tls: bool,
}

impl Settings {
    /// Returns the bounds of topics at the start of the node. The credit with which a topic and its feeders begin
    /// follows from them, because a reload reaches the shards at different times.
    pub fn first_bounds(&self) -> Bounds {
        self.process.first_bounds.unwrap_or(self.queue.bounds)
    }

    /// Whether the configuration names a topic: a route or presence feeds it, it has rules of its own, or it is the dead topic
    /// of another.
    pub fn names_topic(&self, topic: &str) -> bool {
        let rules = &self.queue.rules;
        let is_dead_topic = || rules.values().any(|rules| rules.dead.as_deref() == Some(topic));
        rules.contains_key(topic) || self.topics().any(|fed| &**fed == topic) || is_dead_topic()
    }

    /// Yields the topics of the routes, and of channels whose presence back ends are told of, repeated ones too.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<str>> {
        let routes = self.edges.iter().flat_map(EdgeSettings::open_routes);
        let presence = self.channels.rules.iter().filter_map(|rule| rule.presence.as_ref());
        let of_routes = routes.filter_map(|(_, route)| route.topic.as_ref());
        of_routes.chain(presence.filter_map(|rule| rule.topic.as_ref()))
    }

    /// Returns the proxies in front of a listener.
    pub fn proxy(&self, listener: Listener) -> Option<&ProxySettings> {
        match listener {
            Listener::Api => self.api.proxy.as_deref(),
            Listener::Edge(edge) => self.edges[usize::from(edge)].proxy.as_deref(),
        }
    }

    /// Returns the settings of a reloaded configuration with the same node, shards and listeners. Users and
    /// routes keep their indices, by which connections refer to them.
    ///
    /// # Errors
    /// There have been too many users or routes since the start of the node.
    pub fn reloaded(&self, new: Self, users: &[User]) -> Result<Self, TooManyReloaded> {
        let users = self.api.users.reloaded(users).ok_or(TooManyReloaded::Users)?;
        let edges = self.edges.iter().zip(new.edges);
        let edges = edges.map(|(edge, new)| edge.reloaded(new));
        let rules = self.queue.reloaded_rules(&new.queue);
        Ok(Self {
            queue: QueueSettings { rules, ..new.queue },
            edges: edges.collect::<Result<_, _>>()?,
            api: ApiSettings { users, ..new.api },
            channels: self.channels.clone(),
            process: Process { first_bounds: Some(self.first_bounds()), ..self.process.clone() },
            ..new
        })
    }

    /// Returns a copy that shares no routes and topic names with other shards. Their reference
    /// counts change with every message, and a count that several cores change is slow.
    pub fn unshared(&self) -> Self {
        let route = |route: &Arc<RouteSettings>| {
            let topic = route.topic.as_deref().map(Arc::from);
            Arc::new(RouteSettings { topic, ..RouteSettings::clone(route) })
        };
        let edge = |edge: &EdgeSettings| EdgeSettings {
            routes: edge.routes.iter().map(route).collect(),
            ..edge.clone()
        };
        Self { edges: self.edges.iter().map(edge).collect(), ..self.clone() }
    }
}

/// Why a configuration cannot be reloaded. A restart of the node accepts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooManyReloaded {
    /// More than [`users::INDICES_MAX`](super::users::INDICES_MAX) users since the start of the node.
    Users,
    /// More than [`ROUTES_MAX`] routes of one edge since the start of the node.
    Routes,
}

impl fmt::Display for TooManyReloaded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Users => "users",
            Self::Routes => "routes",
        };
        write!(formatter, "too many different {what} since the start of the node; restart it")
    }
}

/// The proxies in front of a listener, which tell for whom they connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// The addresses of the proxies. From other addresses neither headers nor requests are believed.
    pub from: Networks,
    /// How they tell it.
    pub method: ProxyMethod,
}

/// How a proxy tells for whom it connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyMethod {
    /// Each connection begins with a header of the PROXY protocol.
    Protocol,
    /// Each request has `X-Forwarded-For` or `Forwarded`.
    Forwarded,
}

impl ProxySettings {
    /// Whether a connection from this address is one of a proxy that uses `method`.
    pub fn trusts(&self, remote: Remote, method: ProxyMethod) -> bool {
        self.method == method && self.from.contains(remote.ip())
    }
}

/// The back ends' listener.
#[derive(Clone, Debug)]
pub struct ApiSettings {
    /// The address at which back ends reach this node.
    pub advertise: ListenAddress,
    /// Web origins that may call the API from a browser, in lower case.
    pub origins: Vec<String>,
    /// The users of the API. If there are none, requests need no authentication.
    pub users: Users,
    /// The key for fingerprints of credentials; each process has a random one.
    pub fingerprint_key: FingerprintKey,
    /// Limits of a request to the API.
    pub http: http::RequestLimits,
    /// The proxies in front of the API. `None`: there are none.
    pub proxy: Option<Arc<ProxySettings>>,
}

/// One listener for clients.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    /// The configured port, for the start page.
    pub port: u16,
    /// The routes of the edge, including those that a reload removed. At most [`ROUTES_MAX`].
    pub routes: Vec<Arc<RouteSettings>>,
    /// The proxies in front of the edge. `None`: there are none.
    pub proxy: Option<Arc<ProxySettings>>,
}

/// The largest number of routes of an edge, including removed ones. Beyond it a reload is refused.
pub const ROUTES_MAX: usize = 1 << 16;

impl EdgeSettings {
    /// Yields the routes that accept clients, with their indices.
    pub fn open_routes(&self) -> impl Iterator<Item = (usize, &Arc<RouteSettings>)> {
        self.routes.iter().enumerate().filter(|(_, route)| !route.is_removed)
    }

    /// Returns the edge of a reloaded configuration: a path keeps its index.
    fn reloaded(&self, new: Self) -> Result<Self, TooManyReloaded> {
        let mut added = new.routes;
        let mut routes: Vec<Arc<RouteSettings>> = Vec::with_capacity(self.routes.len());
        for known in &self.routes {
            routes.push(match added.iter().position(|route| route.path == known.path) {
                Some(at) => added.remove(at),
                None => Arc::new(RouteSettings { is_removed: true, ..RouteSettings::clone(known) }),
            });
        }
        routes.append(&mut added);
        match routes.len() <= ROUTES_MAX {
            true => Ok(Self { port: self.port, routes, proxy: new.proxy }),
            false => Err(TooManyReloaded::Routes),
        }
    }
}

/// One route of an edge.
#[derive(Clone, Debug, Default)]
pub struct RouteSettings {
    /// The path, which a request must match exactly.
    pub path: String,
    /// Whether a reload removed the route. Its clients are closed.
    pub is_removed: bool,
    /// The topic that receives the events of the route's clients; `None`: there are no events.
    pub topic: Option<Arc<str>>,
    /// Whether there is an event when a client connects.
    pub tells_open: bool,
    /// Whether there is an event for each message of a client.
    pub tells_message: bool,
    /// Whether there is an event when a client has disconnected.
    pub tells_close: bool,
    /// Patterns of channels that a client may subscribe to by itself: a name, or a prefix followed by `*`.
    pub subscribe: Vec<String>,
    /// The key that a client's context must have before messages after the first one are processed.
    pub hold_until: Option<Box<str>>,
    /// Web origins from which clients may connect, in lower case; `None`: all.
    pub origins: Option<Vec<String>>,
    /// WebSocket subprotocols that a client may ask for.
    pub subprotocols: Vec<String>,
    /// The rule for tokens of clients; `None`: clients need no token.
    pub token: Option<Arc<TokenRule>>,
    /// The back end that decides which clients may connect; `None`: clients are not asked about.
    pub admit: Option<Arc<AdmissionHook>>,
    /// Whether each message is sent back to its client.
    pub echo: bool,
    /// Whether clients may negotiate compressed messages (RFC 7692).
    pub compression: bool,
    /// The longest message from a client, in bytes.
    pub message_bytes: usize,
    /// The outbound queue of one client, in bytes. See [`LimitSettings::close_slow_clients`] for when it
    /// is full.
    pub outbound_bytes: usize,
    /// The rate at which one client may send messages; `None`: any rate.
    pub messages: Option<Rate>,
}

impl RouteSettings {
    /// Whether a client may subscribe to a channel by itself.
    pub fn allows(&self, channel: &str) -> bool {
        self.subscribe.iter().any(|pattern| matches(pattern, channel))
    }
}

/// Channels with settings of their own, which no reload changes.
#[derive(Clone, Debug, Default)]
pub struct ChannelSettings {
    /// The rules. The first one that matches a channel counts.
    pub rules: Arc<[ChannelRule]>,
    /// The memory of all histories of one shard, in bytes.
    pub history_bytes: usize,
    /// The memory of the users in channels with presence on one shard, in bytes.
    pub presence_bytes: usize,
}

/// A rule for channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRule {
    /// The name of the channel, or a prefix followed by `*`.
    pub pattern: Box<str>,
    /// The bounds of the history of each channel. `None`: the channels have no history.
    pub history: Option<ChannelPolicy>,
    /// How it is told who comes and goes. `None`: it is not.
    pub presence: Option<PresenceRule>,
}

/// How it is told who comes to a channel, and who goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceRule {
    /// How long a user has no connection in the channel before the user leaves, in milliseconds.
    pub grace_ms: u64,
    /// The topic that is told, too. `None`: only devices are told.
    pub topic: Option<Arc<str>>,
}

impl ChannelSettings {
    /// Returns what is kept of a channel. `None`: the channel has no history.
    #[inline]
    pub fn history_of(&self, channel: &str) -> Option<&ChannelPolicy> {
        // Most nodes have no rules.
        if self.rules.is_empty() { None } else { self.matching_history(channel) }
    }

    fn matching_history(&self, channel: &str) -> Option<&ChannelPolicy> {
        self.rule_of(channel)?.history.as_ref()
    }

    /// Whether it is told of any channel who comes and goes.
    pub fn has_presence(&self) -> bool {
        self.rules.iter().any(|rule| rule.presence.is_some())
    }

    /// Returns how it is told who comes to a channel and goes. `None`: it is not.
    pub fn presence_of(&self, channel: &str) -> Option<&PresenceRule> {
        self.rule_of(channel)?.presence.as_ref()
    }

    fn rule_of(&self, channel: &str) -> Option<&ChannelRule> {
        self.rules.iter().find(|rule| matches(&rule.pattern, channel))
    }
}

/// Whether a channel matches a pattern: a name, or a prefix followed by `*`.
fn matches(pattern: &str, channel: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => channel.starts_with(start),
        None => channel == pattern,
    }
}

/// The limits of topics.
#[derive(Clone, Debug)]
pub struct QueueSettings {
    /// The number of messages and bytes that one topic holds.
    pub bounds: Bounds,
    /// The treatment of messages for a full topic.
    pub when_full: WhenFull,
    /// The number of topics on the node. Further ones are refused.
    pub topics: usize,
    /// Topics with rules of their own. A reload keeps their groups, and adds and removes no topics.
    pub rules: Arc<HashMap<Box<str>, TopicRules>>,
    /// The names of the sinks of each topic that has some.
    pub sinks: Arc<HashMap<Arc<str>, Vec<Arc<str>>>>,
}

/// The rules of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRules {
    /// The groups besides the default group.
    pub groups: Vec<Arc<str>>,
    /// Whether there is a default group. `None`: if the topic has no sink.
    pub default_group: Option<bool>,
    /// The number of messages and bytes that the topic holds.
    pub bounds: Bounds,
    /// What happens when the topic is full.
    pub when_full: WhenFull,
    /// What happens to messages that are not acknowledged, or grow old.
    pub policy: Policy,
    /// The topic that takes messages which were handed out too often.
    pub dead: Option<Arc<str>>,
    /// Whether the events of the topic are on disk.
    pub is_on_disk: bool,
}

impl TopicRules {
    /// Returns the most bytes of messages that the topic holds in memory, before they are on disk.
    fn memory_bytes(&self) -> usize {
        let bytes = self.bounds.bytes;
        if self.is_on_disk { bytes.min(UNSTORED_MAX.bytes) } else { bytes }
    }
}

/// The beginning of the name of a sink's group in the log of a topic. No group of such a topic has such a name.
pub const SINK_GROUP: &str = "sink:";

impl QueueSettings {
    /// Returns the length of the longest encoded event that a topic takes, in bytes: three quarters
    /// of the topic's bytes. The rest may be in use permanently, as credit of other shards.
    pub fn event_bytes_max(&self, topic: &str) -> usize {
        let bytes = match self.rules.is_empty() {
            true => self.bounds.bytes,
            false => self.rules.get(topic).map_or(self.bounds.bytes, TopicRules::memory_bytes),
        };
        bytes / 4 * 3
    }

    /// Returns the rules of a topic.
    pub fn rules_of(&self, topic: &str) -> TopicRules {
        let policy = Policy { ack_us: ACK_S_DEFAULT * 1_000_000, ..Policy::default() };
        self.rules.get(topic).cloned().unwrap_or_else(|| TopicRules {
            groups: Vec::new(),
            default_group: None,
            bounds: self.bounds,
            when_full: self.when_full,
            policy,
            dead: None,
            is_on_disk: false,
        })
    }

    /// Returns the names of the groups in the log of a topic on disk: the default group (`None`) if there is one, the
    /// other groups, the sinks.
    pub fn log_groups(&self, topic: &str) -> Vec<Option<Arc<str>>> {
        let default_group = self.has_default_group(topic).then_some(None);
        let groups = self.rules.get(topic).map(|rules| &rules.groups[..]).unwrap_or_default();
        let sinks = self.sinks_of(topic).iter();
        let sinks = sinks.map(|sink| Some(format!("{SINK_GROUP}{sink}").into()));
        default_group.into_iter().chain(groups.iter().cloned().map(Some)).chain(sinks).collect()
    }

    /// Returns the names of a topic's sinks.
    pub fn sinks_of(&self, topic: &str) -> &[Arc<str>] {
        self.sinks.get(topic).map_or(&[], |sinks| &sinks[..])
    }

    /// Whether a topic has a default group: the one that consumers join who name no group.
    pub fn has_default_group(&self, topic: &str) -> bool {
        let configured = self.rules.get(topic).and_then(|rules| rules.default_group);
        configured.unwrap_or_else(|| self.sinks_of(topic).is_empty())
    }

    /// Returns the topic that takes messages which were handed out too often in this one.
    pub fn dead_topic_of(&self, topic: &str) -> Option<&Arc<str>> {
        self.rules.get(topic)?.dead.as_ref()
    }

    /// Returns reloaded rules of the same topics, with the groups of the start. A topic on disk keeps its default
    /// group too, or has none.
    fn reloaded_rules(&self, new: &Self) -> Arc<HashMap<Box<str>, TopicRules>> {
        let rules = self.rules.iter().map(|(name, known)| {
            let rules = new.rules.get(name).unwrap_or(known).clone();
            let (groups, is_on_disk) = (known.groups.clone(), known.is_on_disk);
            let is_fixed = is_on_disk || rules.is_on_disk;
            let default_group = if is_fixed { known.default_group } else { rules.default_group };
            (name.clone(), TopicRules { groups, default_group, is_on_disk, ..rules })
        });
        Arc::new(rules.collect())
    }
}

/// Limits and timeouts of connections.
#[derive(Clone, Debug)]
pub struct LimitSettings {
    /// Limits of a client's handshake.
    pub edge_http: http::RequestLimits,
    /// The longest message of a back end, in bytes.
    pub api_message_bytes: usize,
    /// The outbound queue of one back end, in bytes. A back end whose queue is full is not read
    /// from.
    pub outbound_bytes: usize,
    /// Whether a client is closed when a message does not fit its outbound queue. The message
    /// counts as failed in any case.
    pub close_slow_clients: bool,
    /// The number of channels that one client may be subscribed to. Further subscribes fail.
    pub channels_per_client: usize,
    /// Limits of each address at the edges.
    pub addresses: AddressLimits,
    /// The time within which a request head, a body or a handshake must be complete, in
    /// milliseconds.
    pub handshake_ms: u64,
    /// The silence after which a ping is sent, in milliseconds.
    pub ping_ms: u64,
    /// The silence after which a connection is closed, in milliseconds.
    pub idle_ms: u64,
    /// The time that a call waits for other shards and nodes, in milliseconds.
    pub answer_ms: u64,
}

/// Limits of one address at the edges. A /64 network of IPv6 counts as one address.
#[derive(Clone, Debug, Default)]
pub struct AddressLimits {
    /// The number of connections at a time; `None`: any number.
    pub connections: Option<NonZeroU32>,
    /// The rate of handshakes. Accepting a connection counts as one. `None`: any rate.
    pub handshakes: Option<Rate>,
}

impl AddressLimits {
    /// Whether any of the limits is set.
    pub fn is_any_set(&self) -> bool {
        self.connections.is_some() || self.handshakes.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(paths: &[&str]) -> EdgeSettings {
        let route = |path: &&str| {
            Arc::new(RouteSettings { path: (*path).into(), ..RouteSettings::default() })
        };
        EdgeSettings { port: 1, routes: paths.iter().map(route).collect(), proxy: None }
    }

    #[test]
    fn a_path_keeps_its_index_when_routes_are_reloaded() {
        let open = |edge: &EdgeSettings| {
            let routes = edge.open_routes().map(|(index, route)| (index, route.path.clone()));
            routes.collect::<Vec<_>>()
        };
        let at = |index: usize, path: &str| (index, path.to_owned());
        let edge = edge(&["/a", "/b"]).reloaded(edge(&["/c", "/b"])).expect("few routes");
        assert_eq!(open(&edge), [at(1, "/b"), at(2, "/c")]);
        let edge = edge.reloaded(self::edge(&["/a"])).expect("few routes");
        assert_eq!((open(&edge), edge.routes.len()), (vec![at(0, "/a")], 3));
    }

    #[test]
    fn a_pattern_is_a_name_or_a_prefix() {
        let subscribe = vec!["user-*".into(), "news".into()];
        let route = RouteSettings { subscribe, ..RouteSettings::default() };
        let allowed = ["user-", "user-7", "news"].map(|channel| route.allows(channel));
        let refused = ["user", "new", "newsroom", "", "*"].map(|channel| route.allows(channel));
        assert_eq!((allowed, refused), ([true; 3], [false; 5]));
    }
}
