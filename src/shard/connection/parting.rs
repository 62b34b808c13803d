//! What is heard of connections that are not read from: their control frames, and their end.
//!
//! A connection is held back while its topic is full, its route's key is missing, its rate is used up, or
//! too many of its calls wait. [`HELD_BYTES`](super::HELD_BYTES) of it are read ahead. Pings
//! and pongs are taken out of them, and a client's close frame, whatever data stands in front. Once the
//! read-ahead is full of data, the connection cannot be heard, and what it does not say is not held against
//! it. It is pinged all the same. If its peer has gone, the kernel finds out (a reset, or TCP_USER_TIMEOUT),
//! and the next ping fails. If it takes no bytes for `limits.idle_ms`, it is closed as silent; where that
//! is over 17 minutes, the kernel alone decides. One that does not read what waits for it
//! (`Pause::Outbound`) is not answered: its pongs would wait too.
//!
//! A client that ends while its topic is full or its rate is used up *parts*: its close frame is answered
//! at once with its own code, its socket is closed, and nobody finds it any more. What it sent before
//! is still read as there is room, and its close event comes behind that, with its own code: nothing is
//! dropped in silence. If the node has to drop what is left, for want of memory, say, the close event
//! says so instead. Until then it keeps its read-ahead, which counts among what waits for the topic. A
//! client that is held for its route's key waits for nothing: what it sent after its first message is
//! dropped with it, as it would be if nobody ever set the key.

use super::lifecycle::{BROKEN_OFF, end_reason};
use super::{Connection, Connections, Held, Pause, Phase, Stage};
use crate::message::ConnectionKey;
use crate::protocol::close::{self, Closed, Reason};
use crate::protocol::frame::{Opcode, put_frame};
use crate::protocol::scanner::Heard;
use crate::shard::trail::By;
use crate::shard::turn::{Step, Turn};

/// A client that has ended, while what it sent before is still read.
#[derive(Debug)]
pub struct Parting {
    pub code: u16,
    pub reason: Box<str>,
    pub by: By,
    // Bytes that it had sent and that were not read when it ended.
    bytes: usize,
}

/// Reasons to hold a client whose messages are still wanted once it has ended.
const WANTED: u8 = Pause::Topic as u8 | Pause::Rate as u8;

/// Reasons for which control frames are looked for among what is held.
const SCANNED: u8 = WANTED | Pause::Hold as u8 | Pause::Answers as u8;

impl Connection {
    /// Whether control frames are to be looked for among what is held.
    fn is_listened_to(&self) -> bool {
        self.paused & SCANNED != 0
            && !self.is_paused_for(Pause::Outbound)
            && self.phase == Phase::Open
            && !self.held.is_empty()
    }

    /// Whether it is held back for a reason that is not its own fault, with so much read ahead that no
    /// more is received.
    pub fn is_unheard(&self) -> bool {
        self.is_stopped && self.paused & SCANNED != 0 && !self.is_paused_for(Pause::Outbound)
    }

    /// Since when the peer has been silent, on the shard's clock. A peer that is not read from is judged
    /// by one thing alone: whether it takes the batch in flight.
    pub fn silent_since_ms(&self, now_ms: u64) -> u64 {
        if !self.is_unheard() {
            return if self.is_resuming { now_ms } else { self.heard_ms };
        }
        let in_flight_ms = self.outbound.in_flight_ms(now_ms).unwrap_or(0);
        self.heard_ms.max(now_ms.saturating_sub(in_flight_ms))
    }

    /// Whether it is held back, and what it sent is wanted all the same.
    fn is_wanted(&self) -> bool {
        let is_wanted = self.paused & WANTED != 0 && self.paused & !WANTED == 0;
        is_wanted && self.phase == Phase::Open
    }
}

impl Connections {
    /// Answers the control frames among what is held of a connection.
    pub fn hear_held(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !connection.is_listened_to() {
            return;
        }
        let may_deflate = connection.compression.is_some();
        let (frame_left, takes_close) = match &connection.stage {
            Stage::Client(client) => (client.assembler.frame_left(), true),
            // Its answers come first.
            Stage::Backend(backend) => (backend.assembler.frame_left(), false),
            Stage::Http(_) | Stage::Leaving(_) | Stage::Ending => return,
        };
        let Heard { ping, close } = connection.held.scan(frame_left, may_deflate, takes_close);
        if let Some(payload) = ping {
            self.write_with(turn, key, |out| put_frame(out, Opcode::Pong, &payload));
        }
        match close {
            None => {}
            Some(Ok(closed)) => self.close_held(turn, key, closed, By::Peer),
            Some(Err(violation)) => {
                turn.counters.violations += 1;
                let reason = violation.reason();
                let closed = Closed { code: Some(reason.code), reason: reason.text.into() };
                self.close_held(turn, key, closed, By::Node);
            }
        }
    }

    /// A client that is held back has sent a close frame.
    fn close_held(&mut self, turn: &mut Turn, key: ConnectionKey, closed: Closed, by: By) {
        if !self.part(turn, key, closed.event_code(), &closed.reason, by) {
            return self.close_after_answers(turn, key, closed, by);
        }
        self.answer_close(turn, key, &closed);
        self.finish(turn, key);
    }

    /// A client that is held back has ended: what it sent before is still read. False if there is no
    /// need: it may depart at once.
    pub fn part(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        code: u16,
        reason: &str,
        by: By,
    ) -> bool {
        let Some(connection) = self.get(key) else { return false };
        let Stage::Client(client) = &connection.stage else { return false };
        let id = client.id;
        // Nobody would read an echo.
        if !connection.is_wanted() || !connection.has_input() || self.is_echo(turn, key) {
            return false;
        }
        let Some(connection) = self.get(key) else { return false };
        connection.is_parting = true;
        let bytes = connection.held.len();
        self.parting.insert(key, Parting { code, reason: reason.into(), by, bytes });
        self.parted_bytes += bytes;
        turn.leave(Step::ClientParted(id));
        true
    }

    fn is_echo(&mut self, turn: &Turn, key: ConnectionKey) -> bool {
        let connection = self.get(key);
        let route = connection.and_then(|connection| connection.route(&turn.settings));
        route.is_some_and(|route| route.echo)
    }

    /// The connection of a client that is held back has ended. False if it is no such client, or one that
    /// may still read the echo of what it sent.
    pub fn end_held(&mut self, turn: &mut Turn, key: ConnectionKey) -> bool {
        let Some(connection) = self.get(key) else { return false };
        let is_client = matches!(connection.stage, Stage::Client(_));
        let is_broken = connection.is_broken;
        if !is_client || !connection.is_wanted() || (!is_broken && self.is_echo(turn, key)) {
            return false;
        }
        let parts = self.part(turn, key, BROKEN_OFF, end_reason(is_broken), By::Peer);
        match (is_broken, parts) {
            (true, true) => self.close(turn, key),
            (true, false) => self.break_off(turn, key),
            (false, true) => self.finish(turn, key),
            (false, false) => self.end(turn, key),
        }
        true
    }

    /// Closes a connection whose peer is silent.
    pub fn close_silent(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.limits.idle_ms += 1;
        let Reason { code, text } = close::IDLE;
        if !self.part(turn, key, code, text, By::Node) {
            return self.close_with(turn, key, close::IDLE);
        }
        self.answer_close(turn, key, &Closed { code: Some(code), reason: text.into() });
        self.finish(turn, key);
    }

    /// All that a client sent before it ended is read, or is not wanted: it departs as it ended.
    pub fn depart_as_parted(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(Parting { code, reason, by, .. }) = self.parting.get_mut(&key) else { return };
        let (code, reason, by) = (*code, std::mem::take(reason), *by);
        self.depart(turn, key, code, &reason, by);
    }

    /// What a parting client sent is not read any more.
    pub fn forget_parting(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !std::mem::take(&mut connection.is_parting) {
            return;
        }
        (connection.held, connection.paused) = (Held::default(), 0);
        if let Some(parting) = self.parting.remove(&key) {
            self.parted_bytes -= parting.bytes;
        }
    }

    /// The peer of a parting client has shut its end too, or its connection broke.
    pub fn end_parting_socket(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_broken || connection.phase != Phase::Flushing {
            self.close(turn, key);
        }
    }
}
