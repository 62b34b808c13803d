//! The table of a shard's connections, and the queues of those with something to write.

use std::collections::BTreeSet;
use std::ops::Bound;

use hashbrown::HashMap;

use super::Connection;
use super::pending_close::PendingClose;
use super::writing::WriteQueues;
use crate::message::ConnectionKey;
use crate::slot_map::SlotMap;

/// All connections of a shard. A connection never moves, and growth copies nothing.
#[derive(Debug)]
pub struct Connections {
    slots: SlotMap<Connection, { ConnectionKey::GENERATION_BITS }>,
    pub(super) write_queues: WriteQueues,
    // Clients that disconnected before all their messages were processed, and the number of bytes
    // in their read-ahead. Bounded by the number of connections, and each by `READ_AHEAD_BYTES_MAX`
    // and a receive buffer.
    pub(super) pending_closes: HashMap<ConnectionKey, PendingClose>,
    pub(super) pending_close_bytes: usize,
    // The number of connections at the start of the shutdown. 0: none has begun.
    len_at_drain: usize,
    // Connections in `Stage::Backend`.
    pub(super) backends: BTreeSet<ConnectionKey>,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            slots: SlotMap::in_whole_blocks(),
            write_queues: WriteQueues::default(),
            pending_closes: HashMap::new(),
            pending_close_bytes: 0,
            len_at_drain: 0,
            backends: BTreeSet::new(),
        }
    }
}

impl Connections {
    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Notes that the node begins to shut down, so that [`Self::largest_len`] does not fall any more.
    pub fn note_drain(&mut self) {
        self.len_at_drain = self.len();
    }

    /// Returns the number of connections; during a shutdown, the number at its start.
    pub fn largest_len(&self) -> usize {
        self.len().max(self.len_at_drain)
    }

    /// Returns the number of back ends on the WebSocket API.
    pub fn backends(&self) -> usize {
        self.backends.len()
    }

    /// Remembers a connection that has become a back end's, until it is detached.
    pub fn note_backend(&mut self, key: ConnectionKey) {
        self.backends.insert(key);
    }

    /// Returns the back end that follows another one in the order of keys. `None`: the first one.
    pub fn backend_after(&self, last: Option<ConnectionKey>) -> Option<ConnectionKey> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.backends.range((from, Bound::Unbounded)).next().copied()
    }

    /// Returns the number of unprocessed bytes from clients that have disconnected.
    pub fn pending_close_bytes(&self) -> usize {
        self.pending_close_bytes
    }

    /// Whether a client has disconnected before all its messages were processed.
    pub fn has_pending_closes(&self) -> bool {
        !self.pending_closes.is_empty()
    }

    /// Whether a connection waits to be written to.
    pub fn has_writes(&self) -> bool {
        !self.write_queues.is_empty()
    }

    /// Whether a connection waits for a fan-out write.
    pub fn has_bulk_writes(&self) -> bool {
        self.write_queues.has_bulk()
    }

    /// Adds a connection and returns its key.
    pub fn insert(&mut self, connection: Connection) -> ConnectionKey {
        self.slots.insert(connection)
    }

    /// Removes a connection. The key is invalid from then on.
    pub fn remove(&mut self, key: ConnectionKey) {
        self.slots.remove(key);
    }

    /// Returns the connection with this key, unless it was removed.
    pub fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        self.slots.get_mut(key)
    }

    /// Returns the connection with this key for reading, unless it was removed.
    pub fn peek(&self, key: ConnectionKey) -> Option<&Connection> {
        self.slots.get(key)
    }

    /// Returns the connection at an index, with its key, for reading.
    pub fn peek_at(&self, index: u32) -> Option<(ConnectionKey, &Connection)> {
        self.slots.at(index)
    }

    /// All indices of connections are below this one.
    pub fn index_end(&self) -> u32 {
        self.slots.index_end()
    }

    /// Returns the connection at an index known to be in use, with its key, and the write queues.
    pub fn at(&mut self, index: u32) -> (ConnectionKey, &mut Connection, &mut WriteQueues) {
        let (key, connection) =
            self.slots.at_mut(index).expect("members of channels are connections");
        (key, connection, &mut self.write_queues)
    }

    /// Returns the connection with this key, unless it was removed, and the write queues.
    pub(super) fn get_with_queues(
        &mut self,
        key: ConnectionKey,
    ) -> Option<(&mut Connection, &mut WriteQueues)> {
        Some((self.slots.get_mut(key)?, &mut self.write_queues))
    }

    /// Returns the keys of up to `count` connections from index `from` on, and the index to
    /// continue at.
    pub fn keys(&self, from: u32, count: usize) -> (Vec<ConnectionKey>, Option<u32>) {
        let found = self.slots.iter_from(from).take(count);
        let keys: Vec<ConnectionKey> = found.map(|(key, _)| key).collect();
        let next = keys.last().map_or(from, |last| last.index + 1);
        let has_more = keys.len() == count && next < self.slots.index_end();
        (keys, has_more.then_some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Listener;
    use super::*;
    use crate::shard::turn::Now;

    fn connection() -> Connection {
        Connection::new(([127, 0, 0, 1], 1).into(), Listener::Api, Now::default())
    }

    #[test]
    fn a_key_is_invalid_after_its_connection_was_removed() {
        let mut connections = Connections::default();
        let first = connections.insert(connection());
        connections.remove(first);
        connections.remove(first);
        let second = connections.insert(connection());
        assert_eq!(second.index, first.index);
        assert!(connections.get(first).is_none() && connections.get(second).is_some());
        assert_eq!(connections.len(), 1);
    }

    #[test]
    fn a_connection_stays_where_it_is_however_many_there_are() {
        let mut connections = Connections::default();
        let first = connections.insert(connection());
        let place: *const Connection = connections.peek(first).unwrap();
        let last = (0..2500).map(|_| connections.insert(connection())).last();
        assert_eq!(last.map(|last| last.index), Some(2500));
        assert!(std::ptr::eq(place, connections.peek(first).unwrap()));
    }

    #[test]
    fn keys_in_slices_return_every_connection_once() {
        let mut connections = Connections::default();
        let mut keys: Vec<_> = (0..2500).map(|_| connections.insert(connection())).collect();
        connections.remove(keys.remove(1500));
        let (mut met, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let (slice, next) = connections.keys(at, 700);
            met.extend(slice);
            from = next;
        }
        assert_eq!(met, keys);
        assert_eq!(connections.keys(0, 0), (vec![], Some(0)));
        assert_eq!(connections.keys(2400, 100), (keys[2399..].to_vec(), None));
        assert_eq!(Connections::default().keys(0, 0), (vec![], None));
    }
}
