//! `backend.list`: the call, and a row of the answer.

use super::{NamedRow, NamesCall};
use crate::address::NodeId;
use crate::address::remote::Remote;

/// The most topics that a row names.
pub const TOPICS_SHOWN_MAX: usize = 8;

/// The parameters of `backend.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendsCall {
    /// The topic that each back end has to consume. `None`: any, or none.
    pub topic: Option<Box<str>>,
    /// The page. Names are the ids of back ends.
    pub page: NamesCall,
}

/// A back end in the answer to `backend.list`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRow {
    /// The id of the connection. Ids sort by node, shard and slot.
    pub id: Box<str>,
    /// The node that the back end is connected to.
    pub node: NodeId,
    /// The name of the user. `None`: the API has no users.
    pub user: Option<Box<str>>,
    /// The address that the back end connected from.
    pub remote: Remote,
    /// When the back end connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The number of topics that the back end consumes.
    pub topic_count: u64,
    /// The first topics: at most [`TOPICS_SHOWN_MAX`].
    pub topics: Vec<Box<str>>,
    /// The group in which the back end consumes. `None`: the default group.
    pub group: Option<Box<str>>,
    /// Events handed to the back end that are not written, or not acknowledged.
    pub in_flight: u64,
    /// Bytes in the back end's outbound queue.
    pub buffered: u64,
    /// How long the back end has neither read nor acknowledged, in milliseconds. 0: nothing waits for it.
    pub stalled_ms: u64,
}

impl NamedRow for BackendRow {
    fn name(&self) -> &str {
        &self.id
    }

    /// Keeps this row: a back end is on one shard.
    fn add(&mut self, _: Self) {}
}
