//! The order in which connections are written to, and what follows a write.

use std::collections::VecDeque;

use super::{Batch, BufferPool, Connection, Connections, Pause, Phase, Stage};
use crate::message::ConnectionKey;
use crate::shard::turn::Turn;

/// The priority of a connection with something to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// Connections written to by a message for one client or few, or by an answer. Urgent connections are
    /// written to first.
    Urgent = 1,
    /// Connections written to by fan-outs to more clients only. Bulk connections are written to last, within a
    /// budget per turn.
    Bulk = 2,
}

/// The connections with something to write, in the order of their turns.
///
/// Each queue contains a connection at most once, so its length is bounded by the number of
/// connections. The entry of a connection that has been written to otherwise, or removed, stays
/// until its turn, and is then skipped. [`Connection::queued_writes`] says which queues contain a
/// connection.
#[derive(Debug, Default)]
pub struct WriteQueues {
    urgent: VecDeque<ConnectionKey>,
    bulk: VecDeque<ConnectionKey>,
}

impl WriteQueues {
    /// Whether no connection is queued.
    pub fn is_empty(&self) -> bool {
        self.urgent.is_empty() && self.bulk.is_empty()
    }

    /// Whether a connection is queued as bulk.
    pub(super) fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    /// Queues a connection with this priority, unless it is queued so already.
    pub fn push(&mut self, priority: Priority, key: ConnectionKey, connection: &mut Connection) {
        if connection.queued_writes.insert(priority) {
            self.queue(priority).push_back(key);
        }
    }

    /// Appends bytes for this connection only to its outbound queue, and queues the connection as
    /// urgent.
    pub(super) fn write_with(
        &mut self,
        buffer_pool: &mut BufferPool,
        key: ConnectionKey,
        connection: &mut Connection,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        if matches!(connection.phase, Phase::Open | Phase::Flushing) {
            connection.outbound.push_with(buffer_pool, put);
            if connection.outbound.is_ready() {
                self.push(Priority::Urgent, key, connection);
            }
        }
    }

    fn pop(&mut self, priority: Priority) -> Option<ConnectionKey> {
        self.queue(priority).pop_front()
    }

    fn queue(&mut self, priority: Priority) -> &mut VecDeque<ConnectionKey> {
        match priority {
            Priority::Urgent => &mut self.urgent,
            Priority::Bulk => &mut self.bulk,
        }
    }
}

/// The write queues that contain a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuedWrites(u8);

impl QueuedWrites {
    /// Whether neither queue contains the connection.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Adds a queue. Returns false if it was added before.
    fn insert(&mut self, priority: Priority) -> bool {
        let before = std::mem::replace(self, Self(self.0 | priority as u8));
        before != *self
    }

    fn remove(&mut self, priority: Priority) {
        self.0 &= !(priority as u8);
    }
}

/// The next connection to write to, its batch, and the number of bytes.
#[derive(Debug)]
pub struct PolledWrite {
    /// The connection to write to.
    pub key: ConnectionKey,
    /// Everything that was queued for it.
    pub batch: Batch,
    /// The size of the batch in bytes.
    pub bytes: usize,
}

/// The work of the shard after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Usual,
    /// Look for written events of a consumer, which their topics wait for, or for written answers to takes.
    Events,
    /// Look for more to write, for room in the outbound queue, or for the end of the connection.
    Awaited,
}

impl Connections {
    /// Notes that bytes of the batch in flight were written.
    pub fn handle_written(&mut self, turn: &mut Turn, key: ConnectionKey, bytes: usize) -> Written {
        let Some(connection) = self.get(key) else { return Written::Usual };
        turn.counters.sent_bytes += bytes as u64;
        connection.record_written(bytes);
        connection.outbound.written(bytes);
        let has_events = match &mut connection.stage {
            Stage::Backend(backend) => {
                backend.written += bytes as u64;
                !backend.unwritten_events.is_empty()
            }
            Stage::Http(http) => http.note_written(bytes),
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => false,
        };
        let is_open = connection.phase == Phase::Open && !connection.is_paused();
        match has_events {
            true => Written::Events,
            false if is_open && connection.outbound.is_flushed() => Written::Usual,
            false => Written::Awaited,
        }
    }

    /// Returns the next connection of this priority that is ready, with its batch.
    // Inlined: called for each send.
    #[inline]
    pub fn poll_write(&mut self, turn: &Turn, priority: Priority) -> Option<PolledWrite> {
        loop {
            let key = self.write_queues.pop(priority)?;
            let Some(connection) = self.get(key) else { continue };
            connection.queued_writes.remove(priority);
            if connection.phase != Phase::Closed && connection.outbound.is_ready() {
                let batch = connection.outbound.take(turn.now.ms);
                return Some(PolledWrite { key, batch, bytes: connection.outbound.buffered() });
            }
        }
    }

    /// Returns the lengths of the urgent and the bulk queue, with the entries to be skipped.
    #[cfg(test)]
    pub fn queued_writes(&self) -> [usize; 2] {
        [self.write_queues.urgent.len(), self.write_queues.bulk.len()]
    }

    /// Queues a connection to be written to, as urgent.
    pub fn queue_write(&mut self, key: ConnectionKey) {
        if let Some((connection, queues)) = self.get_with_queues(key)
            && connection.outbound.is_ready()
        {
            queues.push(Priority::Urgent, key, connection);
        }
    }

    /// Appends bytes for this connection only to its outbound queue.
    pub fn write_with(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some((connection, queues)) = self.get_with_queues(key) {
            queues.write_with(&mut turn.buffer_pool, key, connection, put);
        }
    }

    /// Decides what follows after a whole batch was written: the next batch, or the shutdown of a
    /// closing connection.
    pub fn after_batch(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some((connection, queues)) = self.get_with_queues(key) else { return };
        let half_empty = connection.unread_charge() <= connection.outbound_max() / 2;
        if connection.phase == Phase::Flushing && connection.outbound.is_flushed() {
            return self.shut_down(turn, key);
        }
        if connection.queued_writes.is_empty() && connection.outbound.is_ready() {
            // The connection was just written to, so its newer output queues behind the others.
            queues.push(Priority::Bulk, key, connection);
        }
        if half_empty {
            self.unpause(turn, key, Pause::Outbound);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::Listener;
    use super::*;
    use crate::protocol::frame::Frame;
    use crate::shard::fixture;

    #[test]
    fn each_queue_contains_a_connection_at_most_once() {
        let mut turn = fixture::turn(fixture::settings());
        let mut connections = Connections::default();
        let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        for _ in 0..3 {
            // A fan-out queues the connection, and an answer makes it urgent.
            let (connection, queues) = connections.get_with_queues(key).unwrap();
            let frame = Rc::new(Frame::from_encoded(b"fan-out"));
            connection.outbound.push_shared(&mut turn.buffer_pool, frame);
            queues.push(Priority::Bulk, key, connection);
            connections.write_with(&mut turn, key, |out| out.extend_from_slice(b"answer"));
            connections.queue_write(key);
            assert_eq!(connections.queued_writes(), [1, 1]);

            let polled = connections.poll_write(&turn, Priority::Urgent).unwrap();
            assert_eq!((polled.key, polled.batch.len()), (key, 2));
            connections.handle_written(&mut turn, key, polled.bytes);
        }
        assert!(connections.poll_write(&turn, Priority::Bulk).is_none(), "all is written");
        assert!(connections.poll_write(&turn, Priority::Urgent).is_none());
        let connection = connections.get(key).unwrap();
        assert!(connection.queued_writes.is_empty() && !connections.has_writes());
    }

    #[test]
    fn output_that_was_skipped_while_in_flight_is_queued_again_once_that_is_written() {
        let mut turn = fixture::turn(fixture::settings());
        let mut connections = Connections::default();
        let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        connections.write_with(&mut turn, key, |out| out.extend_from_slice(b"first"));
        let first = connections.poll_write(&turn, Priority::Urgent).unwrap();
        connections.write_with(&mut turn, key, |out| out.extend_from_slice(b"second"));
        let (connection, queues) = connections.get_with_queues(key).unwrap();
        queues.push(Priority::Bulk, key, connection);
        assert!(connections.poll_write(&turn, Priority::Bulk).is_none(), "a batch is in flight");
        connections.handle_written(&mut turn, key, first.bytes);
        connections.after_batch(&mut turn, key);
        assert_eq!(connections.poll_write(&turn, Priority::Bulk).unwrap().bytes, b"second".len());
    }
}
