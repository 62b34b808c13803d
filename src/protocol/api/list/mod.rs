//! The lists of administration, of the members of a channel, and of named users and channels: what a call asks for, and
//! what is answered.
//!
//! `read.rs`: the parameters. `write.rs`: the answers as JSON. `backends.rs`: `backend.list`. `info.rs`: `user.info` and
//! `channel.info`. `groups.rs`: the groups of a topic. `sinks.rs`: the sinks of a topic.

mod backends;
mod groups;
mod info;
mod read;
mod sinks;
mod write;

use std::fmt;
use std::str::FromStr;

pub use backends::{BackendRow, BackendsCall, TOPICS_SHOWN_MAX};
pub use groups::GroupRow;
pub use info::{NamedRows, USER_CONNECTIONS_MAX, UserConnection, UserRow};
pub(super) use read::read_list;
pub use sinks::{FAILURE_BYTES_MAX, SinkRow};
pub(super) use write::put_listing;

use crate::address::networks::Network;
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};

/// The most entries of a page, and the most client ids that a `client.list` may name.
pub const PAGE_MAX: usize = 1000;

/// The number of entries of a page for a call that names none.
const PAGE_DEFAULT: usize = 100;

/// The longest user that a list shows, in bytes. A longer one is cut.
pub const USER_BYTES_MAX: usize = 255;

/// A method that lists something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListMethod {
    /// `node.list`
    Node,
    /// `client.list`
    Client,
    /// `channel.list`
    Channel,
    /// `topic.list`
    Topic,
    /// `backend.list`
    Backend,
    /// `channel.members`
    Members,
    /// `user.info`
    UserInfo,
    /// `channel.info`
    ChannelInfo,
}

impl ListMethod {
    /// Whether the method needs the role `admin`. The others need `read`.
    pub fn is_for_admins(self) -> bool {
        match self {
            Self::Node | Self::Client | Self::Channel | Self::Topic | Self::Backend => true,
            Self::Members | Self::UserInfo | Self::ChannelInfo => false,
        }
    }
}

/// A call of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListCall {
    /// `node.list`
    Node,
    /// `client.list`
    Client(Box<ClientsCall>),
    /// `channel.list`
    Channel(NamesCall),
    /// `topic.list`
    Topic(NamesCall),
    /// `backend.list`
    Backend(Box<BackendsCall>),
    /// `channel.members`: the clients of one channel.
    Members(Box<ClientsCall>),
    /// `user.info`: the users, in ascending order and each once. From 1 to
    /// [`USERS_PER_CALL_MAX`](super::USERS_PER_CALL_MAX).
    UserInfo(Vec<Box<str>>),
    /// `channel.info`: the channels, in ascending order and each once. From 1 to [`PAGE_MAX`].
    ChannelInfo(Vec<Box<str>>),
}

impl ListCall {
    /// Returns the method.
    pub fn method(&self) -> ListMethod {
        match self {
            Self::Node => ListMethod::Node,
            Self::Client(_) => ListMethod::Client,
            Self::Channel(_) => ListMethod::Channel,
            Self::Topic(_) => ListMethod::Topic,
            Self::Backend(_) => ListMethod::Backend,
            Self::Members(_) => ListMethod::Members,
            Self::UserInfo(_) => ListMethod::UserInfo,
            Self::ChannelInfo(_) => ListMethod::ChannelInfo,
        }
    }

    /// Returns the name of the method.
    pub fn name(&self) -> &'static str {
        match self.method() {
            ListMethod::Node => "node.list",
            ListMethod::Client => "client.list",
            ListMethod::Channel => "channel.list",
            ListMethod::Topic => "topic.list",
            ListMethod::Backend => "backend.list",
            ListMethod::Members => "channel.members",
            ListMethod::UserInfo => "user.info",
            ListMethod::ChannelInfo => "channel.info",
        }
    }
}

/// The parameters of `client.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsCall {
    /// The conditions that each client has to meet.
    pub filter: ClientFilter,
    /// The only node to list clients of.
    pub node: Option<NodeId>,
    /// Where the page begins.
    pub after: Option<ClientCursor>,
    /// The most clients of the page.
    pub max: usize,
}

/// The conditions of a `client.list`. A client has to meet all that are there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientFilter {
    /// The only clients to list, in ascending order. At most [`PAGE_MAX`].
    pub clients: Option<Vec<ClientId>>,
    /// The `user_id` of the client's context, as text.
    pub user: Option<Box<str>>,
    /// A channel that the client is subscribed to.
    pub channel: Option<Box<str>>,
    /// A network that contains the client's address.
    pub address: Option<Network>,
    /// The path of the client's route.
    pub route: Option<Box<str>>,
}

/// A place in the list of all clients, which is in the order of nodes and of places within a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientCursor {
    /// The node.
    pub node: NodeId,
    /// The place within the node. A client keeps its place while it is connected.
    pub place: u64,
}

impl fmt::Display for ClientCursor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}-{}", self.node.number(), self.place)
    }
}

impl FromStr for ClientCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (node, place) = text.split_once('-').ok_or(())?;
        let node = node.parse().ok().and_then(NodeId::new).ok_or(())?;
        let cursor = Self { node, place: place.parse().map_err(drop)? };
        // Every cursor has one form.
        if cursor.to_string() == text { Ok(cursor) } else { Err(()) }
    }
}

/// The parameters of `channel.list` and `topic.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamesCall {
    /// The beginning of the names to list.
    pub prefix: Box<str>,
    /// The name that the page follows.
    pub after: Option<Box<str>>,
    /// The most names of the page.
    pub max: usize,
}

/// The answer to a [`ListCall`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The answer to `node.list`.
    Node(NodeList),
    /// The answer to `client.list`.
    Client(Page<ClientRow, ClientCursor>),
    /// The answer to `channel.list`.
    Channel(Page<ChannelRow, Box<str>>),
    /// The answer to `topic.list`.
    Topic(Page<TopicRow, Box<str>>),
    /// The answer to `backend.list`.
    Backend(Page<BackendRow, Box<str>>),
    /// The answer to `channel.members`.
    Members(Page<ClientRow, ClientCursor>),
    /// The answer to `user.info`.
    UserInfo(NamedRows<UserRow>),
    /// The answer to `channel.info`.
    ChannelInfo(NamedRows<ChannelRow>),
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<R, C> {
    /// The entries.
    pub rows: Vec<R>,
    /// Where the next page begins. `None`: this is the last one.
    pub next: Option<C>,
    /// The nodes that did not answer, of which entries may be missing.
    pub missing: Vec<NodeId>,
}

/// A client in the answer to `client.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientRow {
    /// The id of the client.
    pub client: ClientId,
    /// The `user_id` of the client's context, as text: at most [`USER_BYTES_MAX`] of it.
    pub user: Option<Box<str>>,
    /// The address that the client connected from.
    pub remote: Remote,
    /// The path of the client's route.
    pub path: Box<str>,
    /// When the client connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The number of channels that the client is subscribed to.
    pub channels: u64,
    /// Bytes in the client's outbound queue.
    pub buffered: u64,
}

/// A channel in the answer to `channel.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelRow {
    /// The name of the channel.
    pub name: Box<str>,
    /// The number of subscribers.
    pub clients: u64,
}

/// A topic in the answer to `topic.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicRow {
    /// The name of the topic.
    pub name: Box<str>,
    /// Messages held, including those in flight to consumers.
    pub messages: u64,
    /// Bytes of messages held.
    pub bytes: u64,
    /// The age of the oldest waiting message, in milliseconds; 0 if none waits.
    pub oldest_ms: u64,
    /// The number of consumers that are connected to the nodes that have answered.
    pub consumers: u64,
    /// Messages in flight to consumers.
    pub in_flight: u64,
    /// Whether the topic is on disk, on any node.
    pub is_on_disk: bool,
    /// The groups of the topic's consumers: the default group, then the others by name.
    pub groups: Vec<GroupRow>,
    /// The sinks of the topic, sorted by name.
    pub sinks: Vec<SinkRow>,
}

/// An entry of a list that is sorted by name. Each shard that knows the name has a part of the entry.
pub trait NamedRow {
    /// Returns the name.
    fn name(&self) -> &str;

    /// Adds the part of another shard.
    fn add(&mut self, other: Self);
}

impl NamedRow for ChannelRow {
    fn name(&self) -> &str {
        &self.name
    }

    fn add(&mut self, other: Self) {
        self.clients = self.clients.saturating_add(other.clients);
    }
}

impl NamedRow for TopicRow {
    fn name(&self) -> &str {
        &self.name
    }

    fn add(&mut self, other: Self) {
        self.messages = self.messages.saturating_add(other.messages);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        self.consumers = self.consumers.saturating_add(other.consumers);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.is_on_disk |= other.is_on_disk;
        groups::add_groups(&mut self.groups, other.groups);
        sinks::add_sinks(&mut self.sinks, other.sinks);
    }
}

/// The answer to `node.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeList {
    /// The nodes, in the order of their ids.
    pub nodes: Vec<NodeEntry>,
    /// The nodes that did not answer.
    pub missing: Vec<NodeId>,
}

/// A node in the answer to `node.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The node's id.
    pub node: NodeId,
    /// The state of the node.
    pub state: NodeStanding,
    /// The version of gridcast that the node runs. `None`: unknown, because there is no session with the
    /// node.
    pub version: Option<String>,
    /// How long ago the node was lost, in milliseconds. `None`: the state is another one.
    pub lost_ms: Option<u64>,
    /// The figures of the node. `None`: the node did not answer.
    pub figures: Option<NodeFigures>,
}

/// The state of a node, by its own account or as the asked node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeStanding {
    /// The node works.
    Up,
    /// The node is about to shut down, and still takes connections: `/readyz` answers 503.
    LameDuck,
    /// The node is shutting down.
    Draining,
    /// The node has answered, and other nodes suspect that it is dead.
    Suspected,
    /// There is a link to the node, and it did not answer in time.
    Silent,
    /// The node is a member of the grid, and there is no link to it.
    Unreachable,
    /// The node has crashed, hangs or is cut off, and is no member of the grid any more.
    Lost,
}

impl NodeStanding {
    /// Returns the name of the state in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::LameDuck => "lame_duck",
            Self::Draining => "draining",
            Self::Suspected => "suspected",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::Lost => "lost",
        }
    }
}

/// The figures of a node: the sums over its shards, and facts about its process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFigures {
    /// How long the node has been running, in milliseconds.
    pub uptime_ms: u64,
    /// The number of connected clients.
    pub clients: u64,
    /// The number of back ends on the WebSocket API.
    pub backends: u64,
    /// Messages received from clients.
    pub received: PerSecond,
    /// Messages queued for clients.
    pub delivered: PerSecond,
    /// How the shards reach the kernel: `io_uring` or `epoll`.
    pub driver: Box<str>,
    /// The number of shards, each of which has a core.
    pub cores: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The memory budget, in bytes.
    pub memory_limit_bytes: u64,
}

/// A rate, in tenths of an event per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerSecond(pub u64);
