//! The table of a shard's connections, and the queues of those with something to write.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::Connection;
use super::pending_close::PendingClose;
use crate::message::ConnectionKey;

/// Connections per block of the table.
const BLOCK: usize = 1024;

/// All connections of a shard. The table grows by blocks, so that a connection never moves and
/// growth copies nothing.
#[derive(Debug, Default)]
pub struct Connections {
    blocks: Vec<Vec<TableSlot>>,
    free: Vec<u32>,
    count: usize,
    // Connections with something to write. Commands for one client and answers come before
    // fan-outs, so that a large channel does not delay a single message. An entry may be stale: a
    // connection that becomes urgent stays in `bulk` as well.
    pub(in crate::shard) urgent: VecDeque<ConnectionKey>,
    pub(in crate::shard) bulk: VecDeque<ConnectionKey>,
    // Clients that disconnected before all their messages were processed, and the number of bytes
    // in their read-ahead. Bounded by the number of connections, and each by `READ_AHEAD_BYTES_MAX`
    // and a receive buffer.
    pub(super) pending_closes: HashMap<ConnectionKey, PendingClose>,
    pub(super) pending_close_bytes: usize,
}

#[derive(Debug)]
struct TableSlot {
    generation: u32,
    connection: Option<Connection>,
}

impl Connections {
    /// Returns the number of connections.
    pub fn len(&self) -> usize {
        self.count
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
        !self.urgent.is_empty() || !self.bulk.is_empty()
    }

    /// Adds a connection and returns its key.
    pub fn insert(&mut self, connection: Connection) -> ConnectionKey {
        self.count += 1;
        if let Some(index) = self.free.pop() {
            let place = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
            place.connection = Some(connection);
            return ConnectionKey { index, generation: place.generation };
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let index = (self.blocks.len() - 1) * BLOCK;
        let block = self.blocks.last_mut().expect("one was just made");
        block.push(TableSlot { generation: 0, connection: Some(connection) });
        ConnectionKey { index: (index + block.len() - 1) as u32, generation: 0 }
    }

    /// Removes a connection. The key is invalid from then on.
    pub fn remove(&mut self, key: ConnectionKey) {
        if self.get(key).is_none() {
            return;
        }
        let place = &mut self.blocks[key.index as usize / BLOCK][key.index as usize % BLOCK];
        place.connection = None;
        place.generation = (place.generation + 1) & ConnectionKey::GENERATION_MAX;
        self.free.push(key.index);
        self.count -= 1;
    }

    /// Returns the connection with this key, unless it was removed.
    pub fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        let place =
            self.blocks.get_mut(key.index as usize / BLOCK)?.get_mut(key.index as usize % BLOCK)?;
        place.connection.as_mut().filter(|_| place.generation == key.generation)
    }

    /// Returns the connection with this key for reading, unless it was removed.
    pub fn peek(&self, key: ConnectionKey) -> Option<&Connection> {
        let place = self.blocks.get(key.index as usize / BLOCK)?.get(key.index as usize % BLOCK)?;
        place.connection.as_ref().filter(|_| place.generation == key.generation)
    }

    /// Returns the connection at an index known to be in use, with its key.
    pub fn at(&mut self, index: u32) -> (ConnectionKey, &mut Connection) {
        let place = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        let key = ConnectionKey { index, generation: place.generation };
        (key, place.connection.as_mut().expect("members of channels are connections"))
    }

    /// Returns the keys of up to `count` connections from index `from` on, and the index to
    /// continue at.
    pub fn keys(&self, from: u32, count: usize) -> (Vec<ConnectionKey>, Option<u32>) {
        let places = self.blocks.len() * BLOCK;
        let mut keys = Vec::new();
        for index in from as usize..places {
            if keys.len() == count {
                return (keys, Some(index as u32));
            }
            let place = self.blocks[index / BLOCK].get(index % BLOCK);
            if let Some(TableSlot { generation, connection: Some(_) }) = place {
                keys.push(ConnectionKey { index: index as u32, generation: *generation });
            }
        }
        (keys, None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Listener;
    use super::*;
    use crate::shard::turn::Now;

    fn connection() -> Connection {
        Connection::new("127.0.0.1:1".parse().unwrap(), Listener::Api, Now::default())
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
    }
}
