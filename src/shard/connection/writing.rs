//! The order in which connections are written to, and what follows a write.

use super::{Batch, Connections, Pause, Phase, WriteQueue};
use crate::message::ConnectionKey;
use crate::shard::turn::Turn;

/// The priority of a connection with something to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Connections written to by a command for one client, or by an answer. Urgent connections are
    /// written to first.
    Urgent,
    /// Connections written to by fan-outs only. Bulk connections are written to last, within a
    /// budget per turn.
    Bulk,
}

/// A fan-out write: the next connection, its batch, and the number of bytes.
#[derive(Debug)]
pub struct BulkWrite {
    /// The connection to write to.
    pub key: ConnectionKey,
    /// Everything that was queued for it.
    pub batch: Batch,
    /// The size of the batch in bytes.
    pub bytes: usize,
}

/// What the shard has to do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Usual,
    /// Look for written events of a consumer, which their topics wait for.
    Events,
    /// Look for more to write, for room in the outbound queue, or for the end of the connection.
    Awaited,
}

impl Connections {
    /// Notes that bytes of the batch in flight were written.
    pub fn handle_written(&mut self, turn: &mut Turn, key: ConnectionKey, bytes: usize) -> Written {
        let Some(connection) = self.get(key) else { return Written::Usual };
        turn.counters.sent_bytes += bytes as u64;
        connection.outbound.written(bytes);
        let has_events = connection.backend().is_some_and(|backend| {
            backend.written += bytes as u64;
            !backend.unwritten_events.is_empty()
        });
        let is_open = connection.phase == Phase::Open && !connection.is_paused();
        match has_events {
            true => Written::Events,
            false if is_open && connection.outbound.is_flushed() => Written::Usual,
            false => Written::Awaited,
        }
    }

    /// Returns the next urgent connection with its batch.
    pub fn poll_urgent(&mut self, turn: &Turn) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = self.urgent.pop_front()?;
            if let Some((batch, _)) = self.take_batch(turn, key) {
                return Some((key, batch));
            }
        }
    }

    /// Returns the next connection written to by fan-outs only, with its batch.
    pub fn poll_bulk(&mut self, turn: &Turn) -> Option<BulkWrite> {
        loop {
            let key = self.bulk.pop_front()?;
            if let Some((batch, bytes)) = self.take_batch(turn, key) {
                return Some(BulkWrite { key, batch, bytes });
            }
        }
    }

    /// Takes the outbound queue of a connection as a batch, with the number of bytes.
    fn take_batch(&mut self, turn: &Turn, key: ConnectionKey) -> Option<(Batch, usize)> {
        let connection = self.get(key)?;
        connection.write_queue = WriteQueue::Neither;
        let is_ready = connection.phase != Phase::Closed && connection.outbound.is_ready();
        is_ready.then(|| (connection.outbound.take(turn.now.ms), connection.outbound.buffered()))
    }

    /// Queues a connection to be written to, as urgent.
    pub fn queue_write(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key)
            && connection.write_queue != WriteQueue::Urgent
            && connection.outbound.is_ready()
        {
            connection.write_queue = WriteQueue::Urgent;
            self.urgent.push_back(key);
        }
    }

    /// Appends bytes for this connection only to its outbound queue.
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

    /// Decides what follows after a whole batch was written: the next batch, or the shutdown of a
    /// closing connection.
    pub fn after_batch(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let half_empty = connection.unread_charge() <= connection.outbound_max() / 2;
        if connection.phase == Phase::Flushing && connection.outbound.is_flushed() {
            return self.shut_down(turn, key);
        }
        if connection.write_queue == WriteQueue::Neither && connection.outbound.is_ready() {
            // The connection was just written to, so its newer output queues behind the others.
            connection.write_queue = WriteQueue::Bulk;
            self.bulk.push_back(key);
        }
        if half_empty {
            self.unpause(turn, key, Pause::Outbound);
        }
    }
}
