//! What a shard shows of itself to tests, and at the end of its life.

use super::connection::{Connections, Reading};
use super::memory::Shortage;
use super::topics::Topics;
use crate::message::ConnectionKey;

/// How far a shard is in going down with its node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainState {
    /// The node goes down.
    pub is_draining: bool,
    /// No client is left here, and nothing that a consumer could take.
    pub is_quiet: bool,
    /// All connections were told, and none is left. What is in the topics may go to consumers on other
    /// nodes all the same.
    pub is_drained: bool,
}

/// A look into a shard. Most of it costs a look at each connection or topic.
pub struct Inspection<'s> {
    pub(super) connections: &'s Connections,
    pub(super) topics: &'s Topics,
    pub(super) shortage: Shortage,
}

impl Inspection<'_> {
    /// How short the node is of memory, as the shard was told last.
    pub fn shortage(&self) -> Shortage {
        self.shortage
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Messages that wait in the topics whose home this is, those not yet written included.
    pub fn queued_messages(&self) -> usize {
        self.topics.messages()
    }

    /// Bytes that wait here for room in topics: encoded events, and what is kept of clients that are gone.
    pub fn waiting_bytes(&self) -> usize {
        self.topics.waiting_bytes()
    }

    /// Memory that the connections hold, as an estimate, without the batches in flight, which the driver
    /// has. A frame that waits for several of them counts once.
    pub fn held_bytes(&self) -> usize {
        self.connections.held_bytes()
    }

    /// The part of [`Self::held_bytes`] that connections have sent and that is not read yet.
    pub fn read_ahead_bytes(&self) -> usize {
        self.connections.read_ahead_bytes()
    }

    /// Says how far the requests of a back end are read; `None` if it is none.
    ///
    /// # Panics
    /// The back end is held back although so few requests wait that it is to be read again.
    pub fn reading_of(&self, key: ConnectionKey) -> Option<Reading> {
        self.connections.reading_of(key)
    }

    /// Checks that what the topics note in several places agrees.
    ///
    /// # Panics
    /// It does not.
    pub fn check_invariants(&self) {
        self.topics.check();
    }
}
