//! How connections are written to.

use super::{Batch, Connections, Pause, Phase, WriteQueue};
use crate::message::ConnectionKey;
use crate::shard::turn::Turn;

/// Which of the connections with something to write go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Those that a single command meant.
    Urgent,
    /// Those that only a fan-out reached.
    Bulk,
}

/// What a write leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing waits for it.
    Usual,
    /// Events for a back end were in the queue: their topics may be told.
    Events,
    /// More is to be written, or the connection waits for room in its queue or for its end.
    Awaited,
}

impl Connections {
    /// So many bytes of the batch in flight are written.
    pub fn handle_written(&mut self, turn: &mut Turn, key: ConnectionKey, bytes: usize) -> Written {
        let Some(connection) = self.get(key) else { return Written::Usual };
        turn.counters.sent_bytes += bytes as u64;
        connection.outbound.written(bytes);
        let has_events = connection.backend().is_some_and(|backend| {
            backend.written += bytes as u64;
            !backend.deliveries.is_empty()
        });
        let is_open = connection.phase == Phase::Open && connection.paused == 0;
        match has_events {
            true => Written::Events,
            false if is_open && connection.outbound.is_flushed() => Written::Usual,
            false => Written::Awaited,
        }
    }

    /// The next connection that a single command wrote to, and all that waits for it.
    pub fn poll_urgent(&mut self, turn: &Turn) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = self.urgent.pop_front()?;
            if let Some((batch, _)) = self.take_batch(turn, key) {
                return Some((key, batch));
            }
        }
    }

    /// The next connection that only a fan-out wrote to, all that waits for it, and how many bytes that
    /// is.
    pub fn poll_bulk(&mut self, turn: &Turn) -> Option<(ConnectionKey, Batch, usize)> {
        loop {
            let key = self.bulk.pop_front()?;
            if let Some((batch, bytes)) = self.take_batch(turn, key) {
                return Some((key, batch, bytes));
            }
        }
    }

    /// All that waits for a connection, and how many bytes that is.
    fn take_batch(&mut self, turn: &Turn, key: ConnectionKey) -> Option<(Batch, usize)> {
        let connection = self.get(key)?;
        connection.queued = WriteQueue::No;
        let is_ready = connection.phase != Phase::Closed && connection.outbound.is_ready();
        is_ready.then(|| (connection.outbound.take(turn.now.ms), connection.outbound.buffered()))
    }

    /// Notes that a connection has something to write.
    pub fn queue_write(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key)
            && connection.queued != WriteQueue::Urgent
            && connection.outbound.is_ready()
        {
            connection.queued = WriteQueue::Urgent;
            self.urgent.push_back(key);
        }
    }

    /// Puts bytes for this connection alone into its outbound queue.
    pub fn write_with(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(connection) = self.get(key)
            && matches!(connection.phase, Phase::Open | Phase::Flushing)
        {
            connection.outbound.push_with(&mut turn.buffer_pool, put);
            self.queue_write(key);
        }
    }

    /// All of a batch is written: there may be more, or it was the last.
    pub fn after_batch(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let half_empty = connection.unread_charge() <= connection.outbound_max() / 2;
        if connection.phase == Phase::Flushing && connection.outbound.is_flushed() {
            return self.shut(turn, key);
        }
        if connection.queued == WriteQueue::No && connection.outbound.is_ready() {
            // It has had its send: what came meanwhile goes behind the others.
            connection.queued = WriteQueue::Bulk;
            self.bulk.push_back(key);
        }
        if half_empty {
            self.unpause(turn, key, Pause::Outbound);
        }
    }
}
