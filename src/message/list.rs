//! Questions of a list of administration to shards of any node, and the answers.

use crate::protocol::api::{
    BackendRow, ChannelRow, ClientFilter, ClientRow, NodeStanding, PerSecond, TopicRow, UserRow,
};

/// A message of a list, with the ticket of the list.
#[derive(Debug)]
pub enum ListMessage {
    /// Asks a shard for its part of a list.
    Ask(ListQuestion),
    /// Answers a question.
    Answer(ListAnswer),
}

/// The part of a list that a shard is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListQuestion {
    /// The figures of the shard, for `node.list`.
    Figures,
    /// Some of the shard's clients, for `client.list`.
    Client(Box<ClientsQuestion>),
    /// Some of the shard's channels, for `channel.list`.
    Channel(Box<NamesQuestion>),
    /// Some of the topics whose home the shard is, for `topic.list`.
    Topic(Box<NamesQuestion>),
    /// Some of the back ends on the shard, for `backend.list`.
    Backend(Box<BackendsQuestion>),
    /// The connections of users on the shard, for `user.info`.
    UserInfo(Box<UsersQuestion>),
    /// The subscribers of channels on the shard, for `channel.info`: at most
    /// [`PAGE_MAX`](crate::protocol::api::PAGE_MAX) channels, in ascending order.
    ChannelInfo(Vec<Box<str>>),
}

/// Asks for clients in the order of their slots in the shard's table of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientsQuestion {
    /// The conditions that each client has to meet.
    pub filter: ClientFilter,
    /// The slot to begin with.
    pub from: u32,
    /// The most clients to return: at least 1.
    pub max: u32,
    /// The time after which the shard answers with what it has found, in milliseconds.
    pub within_ms: u32,
}

/// Asks for names in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesQuestion {
    /// The beginning of the names.
    pub prefix: Box<str>,
    /// The name that all names have to follow.
    pub after: Option<Box<str>>,
    /// The most names to return: at least 1.
    pub max: u32,
    /// The time after which the shard gives up, in milliseconds.
    pub within_ms: u32,
}

/// Asks for back ends in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendsQuestion {
    /// The topic that each back end has to consume. `None`: any, or none.
    pub topic: Option<Box<str>>,
    /// The page. Names are the ids of back ends.
    pub page: NamesQuestion,
}

/// Asks for all connections of users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsersQuestion {
    /// The users, in ascending order: at most
    /// [`USERS_PER_CALL_MAX`](crate::protocol::api::USERS_PER_CALL_MAX).
    pub users: Vec<Box<str>>,
    /// The time after which the shard gives up, in milliseconds.
    pub within_ms: u32,
}

/// A shard's part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListAnswer {
    /// Answers [`ListQuestion::Figures`].
    Figures(Box<ShardFigures>),
    /// Answers [`ListQuestion::Client`].
    Client(Box<ClientsPart>),
    /// Answers [`ListQuestion::Channel`] and [`ListQuestion::ChannelInfo`].
    Channel(Box<NamesPart<ChannelRow>>),
    /// Answers [`ListQuestion::Topic`].
    Topic(Box<NamesPart<TopicRow>>),
    /// Answers [`ListQuestion::Backend`].
    Backend(Box<NamesPart<BackendRow>>),
    /// Answers [`ListQuestion::UserInfo`]. If it is cut, the users have more connections than an answer may have.
    User(Box<NamesPart<UserRow>>),
    /// The shard gathers too many lists at once.
    Busy,
    /// The shard has not finished in time, and has nothing to show for it.
    Unfinished,
}

/// Some clients of a shard, in the order of their slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientsPart {
    /// The clients found.
    pub rows: Vec<SlottedClient>,
    /// The first slot that was not looked at. `None`: no slot is left.
    pub next: Option<u32>,
}

/// A client, and its slot in the shard's table of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlottedClient {
    /// The slot.
    pub slot: u32,
    /// The client.
    pub row: ClientRow,
}

/// Some names that a shard knows, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamesPart<R> {
    /// The first names.
    pub rows: Vec<R>,
    /// Whether more names follow.
    pub is_cut: bool,
}

/// The figures of one shard, for `node.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardFigures {
    /// The number of connected clients.
    pub clients: u64,
    /// The number of back ends on the WebSocket API.
    pub backends: u64,
    /// Messages received from clients.
    pub received: PerSecond,
    /// Messages queued for clients.
    pub delivered: PerSecond,
    /// Facts about the node's process. Only the first shard of a node tells them.
    pub process: Option<ProcessFacts>,
}

/// Facts about the process of a node, for `node.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// The state of the node, by its own account.
    pub state: NodeStanding,
    /// How long the node has been running, in milliseconds.
    pub uptime_ms: u64,
    /// How the shards reach the kernel: `io_uring` or `epoll`.
    pub driver: Box<str>,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The memory budget, in bytes.
    pub memory_limit_bytes: u64,
}
