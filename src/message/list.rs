//! Questions of a list of administration to shards of any node, and the answers.

use crate::protocol::api::{NodeStanding, PerSecond};

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
}

/// A shard's part of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListAnswer {
    /// Answers [`ListQuestion::Figures`].
    Figures(Box<ShardFigures>),
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
