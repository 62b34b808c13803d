//! What waits to be written to one connection: a bounded queue of whole frames.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::protocol::frame::Frame;

/// Bytes of small answers that are put together in one chunk before another is begun.
const CHUNK_BYTES: usize = 16 * 1024;

/// A run of bytes on its way to a socket.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// A frame that other connections of the shard get too. The inner count is the core's own; the
    /// one that cores share was touched once for all of them.
    Shared(Rc<Frame>),
    /// Bytes for this connection alone.
    Own(Vec<u8>),
}

impl Chunk {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(frame) => frame.bytes(),
            Self::Own(bytes) => bytes,
        }
    }
}

/// Chunks that go out together. Empty ones go around, so that nothing is allocated per send.
pub type Batch = VecDeque<Chunk>;

/// The outbound queue of one connection.
#[derive(Debug, Default)]
pub struct Outbound {
    chunks: Batch,
    // Bytes in chunks.
    queued: usize,
    // Bytes taken by the driver and not yet written.
    in_flight: usize,
}

impl Outbound {
    /// Bytes that wait, those in flight included.
    pub fn buffered(&self) -> usize {
        self.queued + self.in_flight
    }

    /// Whether there is something to take and nothing in flight: at most one send at a time.
    pub fn is_ready(&self) -> bool {
        !self.chunks.is_empty() && self.in_flight == 0
    }

    /// Whether all was written.
    pub fn is_flushed(&self) -> bool {
        self.chunks.is_empty() && self.in_flight == 0
    }

    /// Takes an empty batch from a pool if there is none to push to: an idle connection has none.
    pub fn prepare(&mut self, pool: &mut Vec<Batch>) {
        if self.chunks.capacity() == 0
            && let Some(batch) = pool.pop()
        {
            self.chunks = batch;
        }
    }

    /// Adds a frame that others get too.
    pub fn push_shared(&mut self, frame: Rc<Frame>) {
        self.queued += frame.bytes().len();
        self.chunks.push_back(Chunk::Shared(frame));
    }

    /// Adds bytes for this connection alone, as `put` appends them.
    pub fn push_with(&mut self, put: impl FnOnce(&mut Vec<u8>)) {
        match self.chunks.back_mut() {
            Some(Chunk::Own(bytes)) if bytes.len() < CHUNK_BYTES => {
                let before = bytes.len();
                put(bytes);
                self.queued += bytes.len() - before;
            }
            _ => {
                let mut bytes = Vec::new();
                put(&mut bytes);
                self.queued += bytes.len();
                self.chunks.push_back(Chunk::Own(bytes));
            }
        }
    }

    /// Gives all that waits to the driver and takes an empty batch for it.
    pub fn take(&mut self) -> Batch {
        debug_assert!(self.in_flight == 0);
        self.in_flight = std::mem::take(&mut self.queued);
        std::mem::take(&mut self.chunks)
    }

    /// So many bytes of what was taken are written.
    pub fn written(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.in_flight);
        self.in_flight = self.in_flight.saturating_sub(bytes);
    }

    /// Forgets the shared frames that wait: of a back end, the events.
    pub fn drop_shared(&mut self) {
        self.chunks.retain(|chunk| matches!(chunk, Chunk::Own(_)));
        self.queued = self.chunks.iter().map(|chunk| chunk.bytes().len()).sum();
    }

    /// Forgets what waits, to make room for the words that end the connection. What is in flight
    /// goes out whole.
    pub fn clear(&mut self) {
        self.chunks.clear();
        self.queued = 0;
    }
}
