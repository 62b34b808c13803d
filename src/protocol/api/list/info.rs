//! `user.info` and `channel.info`: what is known of the users or channels that a call names.

use super::{ChannelRow, NamedRow};
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};

/// The most connections that the answer to a `user.info` may have. A call for users who have more fails.
pub const USER_CONNECTIONS_MAX: usize = 10_000;

/// The answer to a call that names what it asks for: a row for each name, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRows<R> {
    /// The rows.
    pub rows: Vec<R>,
    /// The nodes that did not answer, whose part is missing.
    pub missing: Vec<NodeId>,
}

/// A user in the answer to `user.info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserRow {
    /// The user, as text.
    pub user: Box<str>,
    /// The connections of the user, in the order of client ids: none if the user is offline.
    pub connections: Vec<UserConnection>,
}

/// A connection of a user in the answer to `user.info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserConnection {
    /// The id of the client.
    pub client: ClientId,
    /// When the client connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The address that the client connected from.
    pub remote: Remote,
}

impl NamedRow for UserRow {
    fn name(&self) -> &str {
        &self.user
    }

    fn add(&mut self, other: Self) {
        self.connections.extend(other.connections);
    }
}

impl UserRow {
    /// Returns the row of a user who is offline.
    pub fn offline(user: Box<str>) -> Self {
        Self { user, connections: Vec::new() }
    }
}

impl ChannelRow {
    /// Returns the row of a channel without subscribers.
    pub fn empty(name: Box<str>) -> Self {
        Self { name, clients: 0 }
    }
}
