//! One connection between a peer and its shard: what two kernels and a driver do with its bytes.

use std::collections::VecDeque;

use gridcast::message::ConnectionKey;
use gridcast::shard::{Batch, Now, Shard, freed_bytes};

use crate::random::Random;

/// How the peer ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The peer shuts down its end after the bytes it sent.
    Shut,
    /// The connection is reset: bytes in flight are lost.
    Reset,
}

#[derive(PartialEq, Eq)]
enum Reading {
    Armed,
    // Cancelled: what had come before may still be handed over.
    Stopping,
    Not,
}

/// Output that the driver has to write.
struct Sending {
    // What `bytes` are copied from. The driver keeps it until all is written.
    batch: Batch,
    bytes: Vec<u8>,
    at: usize,
    // Taken by the peer's kernel; the shard is not told yet.
    unreported: usize,
    // The peer's kernel took nothing for a while.
    was_full: bool,
}

/// A connection, as the driver and the kernels hold it.
pub struct Line {
    pub shard: usize,
    pub key: ConnectionKey,
    /// From the peer, not yet received.
    pub inbound: VecDeque<u8>,
    pub end: Option<End>,
    /// Bytes that the peer's side takes at present.
    pub room: usize,
    /// Bytes that the shard knows to be written.
    pub reported: u64,
    /// Our side sends nothing more, and all it sent is with the peer.
    pub is_shut: bool,
    /// The driver has closed the socket.
    pub is_gone: bool,
    reading: Reading,
    sending: Option<Sending>,
    is_closing: bool,
}

impl Line {
    pub fn new(shard: usize, key: ConnectionKey) -> Self {
        Self {
            shard,
            key,
            inbound: VecDeque::new(),
            end: None,
            room: usize::MAX,
            reported: 0,
            is_shut: false,
            is_gone: false,
            reading: Reading::Armed,
            sending: None,
            is_closing: false,
        }
    }

    /// Whether something can happen here without anybody else.
    pub fn is_busy(&self) -> bool {
        let has_input = !self.inbound.is_empty() || self.end.is_some();
        let can_write = self.sending.as_ref().is_some_and(|sending| {
            sending.unreported > 0 || self.room > 0 || self.end == Some(End::Reset)
        });
        !self.is_gone
            && (self.is_closing || can_write || (has_input && self.reading != Reading::Not))
    }

    /// Whether the shard takes more input from it.
    pub fn is_read(&self) -> bool {
        self.reading == Reading::Armed
    }

    pub fn stop_reading(&mut self) {
        if self.reading == Reading::Armed {
            self.reading = Reading::Stopping;
        }
    }

    pub fn read_again(&mut self) {
        self.reading = Reading::Armed;
    }

    pub fn close(&mut self) {
        (self.is_closing, self.is_shut) = (true, true);
    }

    /// The driver takes a batch; gives its length.
    pub fn send(&mut self, batch: Batch, shard: &mut Shard) -> usize {
        assert!(self.sending.is_none(), "a connection has one send in flight");
        let bytes: Vec<u8> = batch.iter().flat_map(|chunk| chunk.bytes()).copied().collect();
        assert!(!bytes.is_empty(), "nobody writes nothing");
        let length = bytes.len();
        if self.is_closing || self.is_gone {
            shard.recycle(batch);
        } else {
            self.sending = Some(Sending { batch, bytes, at: 0, unreported: 0, was_full: false });
        }
        length
    }

    /// Memory that the batch in flight takes. A frame that others wait for too counts by its share.
    pub fn sending_bytes(&self) -> usize {
        self.sending.as_ref().map_or(0, |sending| freed_bytes(&sending.batch))
    }

    /// The same if the peer has no room for it; `None`: it has room.
    pub fn blocked_bytes(&self) -> Option<usize> {
        let is_blocked = self.sending.is_some() && self.room == 0 && !self.is_closing;
        is_blocked.then(|| self.sending_bytes())
    }

    /// The driver is done with the batch in flight.
    fn drop_batch(&mut self, shard: &mut Shard) {
        if let Some(sending) = self.sending.take() {
            shard.recycle(sending.batch);
        }
    }

    /// Receives or writes a little, or finishes to close. Gives what the peer's side took.
    pub fn step(&mut self, random: &mut Random, now: Now, shard: &mut Shard) -> Vec<u8> {
        if self.is_gone {
            return Vec::new();
        }
        if self.is_closing {
            if random.one_in(2) {
                self.is_gone = true;
                self.drop_batch(shard);
                shard.handle_closed(self.key);
            }
            return Vec::new();
        }
        if random.one_in(2) {
            self.receive(random, now, shard);
            return self.write(random, now, shard);
        }
        let taken = self.write(random, now, shard);
        self.receive(random, now, shard);
        taken
    }

    fn receive(&mut self, random: &mut Random, now: Now, shard: &mut Shard) {
        if self.reading == Reading::Not || random.one_in(4) {
            return;
        }
        if self.reading == Reading::Stopping && random.one_in(2) {
            self.reading = Reading::Not;
            return;
        }
        if self.end == Some(End::Reset) && random.one_in(2) {
            self.inbound.clear();
        }
        if self.inbound.is_empty() {
            if let Some(end) = self.end {
                self.reading = Reading::Not;
                shard.handle_end(now, self.key, end == End::Reset);
            }
            return;
        }
        let most = if random.one_in(2) { self.inbound.len() } else { 9.min(self.inbound.len()) };
        let count = random.between(1, most);
        let mut bytes: Vec<u8> = self.inbound.drain(..count).collect();
        shard.handle_bytes(now, self.key, &mut bytes);
    }

    fn write(&mut self, random: &mut Random, now: Now, shard: &mut Shard) -> Vec<u8> {
        let mut taken = Vec::new();
        let Some(sending) = &mut self.sending else { return taken };
        if sending.unreported == 0 {
            if self.end == Some(End::Reset) {
                self.drop_batch(shard);
                shard.handle_end(now, self.key, true);
                return taken;
            }
            let most = self.room.min(sending.bytes.len() - sending.at);
            sending.was_full |= self.room == 0;
            if most == 0 || random.one_in(4) {
                return taken;
            }
            let count = if random.one_in(2) { most } else { random.between(1, most) };
            self.room -= count;
            taken.extend_from_slice(&sending.bytes[sending.at..sending.at + count]);
            sending.at += count;
            sending.unreported = count;
        }
        if random.one_in(2) {
            let count = std::mem::take(&mut sending.unreported);
            self.reported += count as u64;
            let is_done = sending.at == sending.bytes.len();
            if std::mem::take(&mut sending.was_full) {
                shard.handle_drained(now, self.key);
            }
            if is_done {
                self.drop_batch(shard);
            }
            shard.handle_written(now, self.key, count, is_done);
        }
        taken
    }
}
