//! What a shard counts, each in its own memory.

/// Counters of one shard since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections taken.
    pub connections: u64,
    /// Messages from clients.
    pub client_messages: u64,
    /// Messages from clients on routes that tell nobody.
    pub discarded: u64,
    /// Messages from clients that were lost: too large for their topic, or refused by a full one.
    pub refused: u64,
    /// Frames put into outbound queues by send and publish.
    pub delivered: u64,
    /// Frames that found the queue full.
    pub failed: u64,
    /// Clients closed because they read too slowly.
    pub slow_closed: u64,
    /// Calls that were not answered in time.
    pub late_answers: u64,
}

impl std::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.connections += other.connections;
        self.client_messages += other.client_messages;
        self.discarded += other.discarded;
        self.refused += other.refused;
        self.delivered += other.delivered;
        self.failed += other.failed;
        self.slow_closed += other.slow_closed;
        self.late_answers += other.late_answers;
    }
}
