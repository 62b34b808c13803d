//! What waits to be written to one connection: a bounded queue of whole frames.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};

/// Bytes of small answers that are put together in one chunk before another is begun.
const CHUNK_BYTES: usize = 16 * 1024;

/// A run of bytes on its way to a socket.
#[derive(Clone, Debug)]
pub enum Chunk {
    /// A frame that other connections of the shard get too, or several in a row. The inner count is
    /// the core's own; the one that cores share was touched once for all of them.
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

    /// Memory that the chunk takes in a queue beside its bytes. A shared frame is charged to each of
    /// its receivers: any of them may be the last one that keeps it.
    fn overhead(&self) -> usize {
        match self {
            Self::Shared(_) => QUEUED_FRAME_BYTES,
            Self::Own(bytes) => QUEUED_FRAME_BYTES + bytes.capacity() - bytes.len(),
        }
    }
}

/// Chunks that go out together.
pub type Batch = VecDeque<Chunk>;

/// Memory that a chunk's place in a batch takes, which has at most twice the room that it needs.
const PLACE_BYTES: usize = 2 * size_of::<Chunk>();

/// Chunks that [`freed_bytes`] looks at. A batch may have thousands.
const SAMPLED_CHUNKS: usize = 16;

/// Memory that dropping a batch would free, estimated from some of its chunks. A frame that others
/// keep too counts by its share: dropping all batches that hold it frees it once.
pub fn freed_bytes(batch: &Batch) -> usize {
    let step = batch.len().div_ceil(SAMPLED_CHUNKS).max(1);
    let sample = batch.iter().step_by(step);
    let (count, bytes) = sample.fold((0, 0), |(count, bytes), chunk| {
        let of_chunk = match chunk {
            Chunk::Own(bytes) => QUEUED_FRAME_BYTES + bytes.capacity(),
            Chunk::Shared(frame) => {
                let references = Rc::strong_count(frame) * frame.references();
                let frame_bytes = frame.bytes().len() + QUEUED_FRAME_BYTES - PLACE_BYTES;
                PLACE_BYTES + frame_bytes / references
            }
        };
        (count + 1, bytes + of_chunk)
    });
    bytes * batch.len() / count.max(1)
}

/// How long a batch is in flight before its connection counts as a slow reader, in milliseconds.
pub const SLOW_MS: u64 = 250;

/// The unit in which the time since a batch was taken is counted, in milliseconds.
const TICK_MS: u64 = 16;

/// Empty batches and buffers that go around, so that nothing is allocated per send (but over TLS,
/// which copies what it seals). An idle connection has none.
#[derive(Debug, Default)]
pub struct BufferPool {
    batches: Vec<Batch>,
    buffers: Vec<Vec<u8>>,
}

/// What is kept: so many batches of so many chunks, 6 MiB in all, and buffers of so many bytes, 1 MiB
/// in all. What is more or larger goes back to the allocator.
const BATCHES_MAX: usize = 4096;
const BATCH_CHUNKS_MAX: usize = 64;
const BUFFERS_MAX: usize = 256;
const BUFFER_BYTES_MAX: usize = 4096;

impl BufferPool {
    /// Takes what a batch is made of.
    pub fn keep(&mut self, mut batch: Batch) {
        while let Some(chunk) = batch.pop_front() {
            if let Chunk::Own(mut bytes) = chunk
                && self.buffers.len() < BUFFERS_MAX
                && bytes.capacity() <= BUFFER_BYTES_MAX
            {
                bytes.clear();
                self.buffers.push(bytes);
            }
        }
        let is_worth_keeping = (1..=BATCH_CHUNKS_MAX).contains(&batch.capacity());
        if self.batches.len() < BATCHES_MAX && is_worth_keeping {
            self.batches.push(batch);
        }
    }
}

/// The outbound queue of one connection.
#[derive(Debug, Default)]
pub struct Outbound {
    chunks: Batch,
    // Bytes in chunks.
    queued: usize,
    // Bytes taken by the driver and not yet written.
    in_flight: usize,
    // What the chunks that wait take beside their bytes, and what those in flight do.
    overhead: u32,
    overhead_in_flight: u32,
    // Bytes at the front of chunks, all our own, that no clearing may drop.
    kept: u32,
    // The tick in which the batch in flight was taken. Ticks come again after 17 minutes: then a slow
    // reader passes for another one for 250 ms.
    taken_tick: u16,
    // Nothing of it goes for now.
    is_withheld: bool,
}

impl Outbound {
    /// Bytes that wait, those in flight included.
    pub fn buffered(&self) -> usize {
        self.queued + self.in_flight
    }

    /// Memory that all of it takes: the bytes of [`Self::buffered`], and what each chunk takes beside
    /// them. Limits are compared with this.
    pub fn charge(&self) -> usize {
        self.buffered() + self.overhead as usize + self.overhead_in_flight as usize
    }

    /// Whether the driver has some of it.
    pub fn is_in_flight(&self) -> bool {
        self.in_flight > 0
    }

    /// How long the batch in flight has been so, in milliseconds; `None`: nothing is in flight. Starts at
    /// 0 again after 17 minutes.
    pub fn in_flight_ms(&self, now_ms: u64) -> Option<u64> {
        let ticks = tick(now_ms).wrapping_sub(self.taken_tick);
        self.is_in_flight().then_some(u64::from(ticks) * TICK_MS)
    }

    /// Whether a batch has been in flight for [`SLOW_MS`] or longer.
    pub fn is_slow(&self, now_ms: u64) -> bool {
        self.in_flight_ms(now_ms).is_some_and(|ms| ms >= SLOW_MS)
    }

    /// Memory that giving up what waits would free; see [`freed_bytes`]. What is in flight does not count.
    pub fn freed_bytes(&self) -> usize {
        freed_bytes(&self.chunks)
    }

    /// Whether there is something to take and nothing in flight: at most one send at a time.
    pub fn is_ready(&self) -> bool {
        !self.chunks.is_empty() && self.in_flight == 0 && !self.is_withheld
    }

    /// Whether what waits is not to go for now.
    pub fn withhold(&mut self, is_withheld: bool) {
        self.is_withheld = is_withheld;
    }

    /// Whether all was written.
    pub fn is_flushed(&self) -> bool {
        self.chunks.is_empty() && self.in_flight == 0
    }

    /// Adds a frame that others get too.
    pub fn push_shared(&mut self, buffer_pool: &mut BufferPool, frame: Rc<Frame>) {
        self.queued += frame.bytes().len();
        self.overhead += QUEUED_FRAME_BYTES as u32;
        self.push(buffer_pool, Chunk::Shared(frame));
    }

    /// Puts `coalesced`, which is `last_frame` and so many bytes more, in the place of `last_frame`, if that is what
    /// waits last; false if it is not. So frames that follow each other for many are one run of bytes.
    #[inline]
    pub fn coalesce(
        &mut self,
        last_frame: &Rc<Frame>,
        coalesced: &Rc<Frame>,
        more_bytes: usize,
    ) -> bool {
        match self.chunks.back_mut() {
            Some(Chunk::Shared(last)) if Rc::ptr_eq(last, last_frame) => {
                debug_assert_eq!(coalesced.bytes().len(), last_frame.bytes().len() + more_bytes);
                self.queued += more_bytes;
                *last = coalesced.clone();
                true
            }
            _ => false,
        }
    }

    /// Adds bytes for this connection alone, as `put` appends them.
    pub fn push_with(&mut self, buffer_pool: &mut BufferPool, put: impl FnOnce(&mut Vec<u8>)) {
        match self.chunks.back_mut() {
            Some(Chunk::Own(bytes)) if bytes.len() < CHUNK_BYTES => {
                let (length, unused) = (bytes.len(), bytes.capacity() - bytes.len());
                put(bytes);
                self.queued += bytes.len() - length;
                self.overhead -= unused as u32;
                self.overhead += (bytes.capacity() - bytes.len()) as u32;
            }
            _ => {
                let mut bytes = buffer_pool.buffers.pop().unwrap_or_default();
                put(&mut bytes);
                self.queued += bytes.len();
                let chunk = Chunk::Own(bytes);
                self.overhead += chunk.overhead() as u32;
                self.push(buffer_pool, chunk);
            }
        }
    }

    /// Adds what is counted already.
    fn push(&mut self, buffer_pool: &mut BufferPool, chunk: Chunk) {
        if self.chunks.capacity() == 0
            && let Some(batch) = buffer_pool.batches.pop()
        {
            self.chunks = batch;
        }
        self.chunks.push_back(chunk);
    }

    /// Gives all that waits to the driver and takes an empty batch for it.
    pub fn take(&mut self, now_ms: u64) -> Batch {
        debug_assert!(self.in_flight == 0);
        self.taken_tick = tick(now_ms);
        self.in_flight = std::mem::take(&mut self.queued);
        self.overhead_in_flight = std::mem::take(&mut self.overhead);
        self.kept = 0;
        std::mem::take(&mut self.chunks)
    }

    /// So many bytes of what was taken are written.
    pub fn written(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.in_flight);
        self.in_flight = self.in_flight.saturating_sub(bytes);
        if self.in_flight == 0 {
            self.overhead_in_flight = 0;
        }
    }

    /// Forgets the shared frames that wait: of a back end, the events.
    pub fn drop_shared(&mut self) {
        self.chunks.retain(|chunk| matches!(chunk, Chunk::Own(_)));
        self.count_again();
    }

    /// Keeps what waits now, of which nothing is shared, whatever is cleared: answers to requests,
    /// without which no frame that follows could be understood.
    pub fn keep(&mut self) {
        self.kept = self.queued.try_into().unwrap_or(u32::MAX);
    }

    /// Forgets what waits, to make room for the words that end the connection. What is in flight
    /// goes out whole, and what is to be kept.
    pub fn clear(&mut self) {
        let mut left = self.kept as usize;
        self.chunks.retain_mut(|chunk| match chunk {
            Chunk::Own(bytes) if left > 0 => {
                bytes.truncate(left);
                left -= bytes.len();
                true
            }
            _ => false,
        });
        self.count_again();
        if self.chunks.is_empty() {
            // A long batch is memory of its own.
            self.chunks = Batch::new();
        }
    }

    fn count_again(&mut self) {
        self.queued = self.chunks.iter().map(|chunk| chunk.bytes().len()).sum();
        self.overhead = self.chunks.iter().map(Chunk::overhead).sum::<usize>() as u32;
    }
}

fn tick(now_ms: u64) -> u16 {
    (now_ms / TICK_MS) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clearing_leaves_what_is_kept_and_no_more() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"101"));
        outbound.keep();
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"frame"));
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"shared")));
        outbound.clear();
        assert_eq!(outbound.buffered(), 3);
        let batch = outbound.take(0);
        assert_eq!(batch.iter().map(Chunk::bytes).collect::<Vec<_>>(), [b"101"]);
        outbound.written(3);
        outbound.push_with(&mut buffer_pool, |out| out.extend_from_slice(b"frame"));
        outbound.clear();
        assert!(outbound.is_flushed());
    }

    #[test]
    fn what_a_queue_is_charged_covers_what_it_holds_and_ends_with_it() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        for number in 0..1000 {
            outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"12")));
            outbound.push_with(&mut buffer_pool, |out| out.resize(out.len() + number, 0));
        }
        // An Rc and an Arc have two counts each, an allocation begins with a word and is a multiple of
        // 16 bytes, and a deque has at most twice the room that it needs.
        let own: usize = outbound
            .chunks
            .iter()
            .map(|chunk| match chunk {
                Chunk::Shared(_) => (16 + 16 + 8 + 8) + (16 + 2 + 8 + 6),
                Chunk::Own(bytes) => bytes.capacity() + 8 + 15,
            })
            .sum();
        let held = own + outbound.chunks.capacity() * size_of::<Chunk>();
        let charge = outbound.charge();
        assert!((held..held * 3 / 2).contains(&charge), "{charge} for {held}");
        assert_eq!(outbound.buffered(), 1000 * 2 + (0..1000).sum::<usize>());
        let bytes = outbound.buffered();
        let batch = outbound.take(0);
        assert_eq!((outbound.charge(), outbound.buffered()), (charge, bytes), "it is in flight");
        outbound.written(bytes - 1);
        assert!(outbound.charge() > outbound.buffered(), "a batch is kept until all is written");
        outbound.written(1);
        assert_eq!(outbound.charge(), 0);
        drop(batch);
        outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(b"12")));
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        outbound.drop_shared();
        assert!((1..=1 + QUEUED_FRAME_BYTES + 16).contains(&outbound.charge()));
        outbound.clear();
        assert_eq!(outbound.charge(), 0);
    }

    #[test]
    fn a_shared_frame_is_freed_once_by_all_that_hold_it() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        let frame = Rc::new(Frame::from_encoded(&[0; 20_000]));
        let others: Vec<_> = (0..99).map(|_| frame.clone()).collect();
        outbound.push_shared(&mut buffer_pool, frame);
        assert!((200..400).contains(&outbound.freed_bytes()), "{}", outbound.freed_bytes());
        drop(others);
        assert!(outbound.freed_bytes() >= 20_000, "nobody else holds it");
        let other_core = match outbound.chunks.front() {
            Some(Chunk::Shared(frame)) => Frame::clone(frame),
            _ => panic!("a frame was pushed"),
        };
        assert!((10_000..11_000).contains(&outbound.freed_bytes()));
        drop(other_core);
        let bytes = outbound.freed_bytes();
        assert_eq!(freed_bytes(&outbound.take(0)), bytes, "the driver weighs it as the queue does");
    }

    #[test]
    fn what_a_long_batch_would_free_is_estimated_from_a_part_of_it() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        for _ in 0..1001 {
            outbound.push_shared(&mut buffer_pool, Rc::new(Frame::from_encoded(&[0; 100])));
        }
        let charge = outbound.charge();
        assert_eq!(outbound.freed_bytes(), charge);
        assert_eq!(Outbound::default().freed_bytes(), 0);
    }

    #[test]
    fn a_connection_is_slow_once_a_batch_was_in_flight_for_some_time() {
        let (mut outbound, mut buffer_pool) = (Outbound::default(), BufferPool::default());
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        assert!(!outbound.is_slow(1 << 20), "what waits for us is not slow");
        let taken_ms = 16 * 65_530;
        outbound.take(taken_ms);
        outbound.push_with(&mut buffer_pool, |out| out.push(0));
        assert!(!outbound.is_slow(taken_ms + SLOW_MS - 16));
        assert!(outbound.is_slow(taken_ms + SLOW_MS + 16));
        outbound.written(1);
        assert!(!outbound.is_slow(taken_ms + SLOW_MS + 16), "all that was taken is written");
    }
}
