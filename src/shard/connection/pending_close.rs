//! What is heard of connections that are not read from: their control frames, and their end.
//!
//! A connection is held back while its topic is full, its route's key is missing, its rate is used up, or
//! too many of its calls wait. [`READ_AHEAD_BYTES_MAX`](super::READ_AHEAD_BYTES_MAX) of it are read ahead. Pings
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

use super::lifecycle::{ABNORMAL_CLOSURE, end_reason};
use super::{Connection, Connections, Pause, Phase, ReadAhead, Stage};
use crate::message::ConnectionKey;
use crate::protocol::close::{self, Closed, Reason};
use crate::protocol::frame::{Opcode, put_frame};
use crate::protocol::scanner::Heard;
use crate::shard::trail::By;
use crate::shard::turn::{Step, Turn};

/// A client that has ended, while what it sent before is still read.
#[derive(Debug)]
pub struct PendingClose {
    pub code: u16,
    pub reason: Box<str>,
    pub by: By,
    // Bytes that it had sent and that were not read when it ended.
    bytes: usize,
}

/// Reasons to hold a client whose messages are still wanted once it has ended.
const KEEPS_BACKLOG: u8 = Pause::Topic as u8 | Pause::Rate as u8;

/// Reasons for which control frames are looked for among what is held.
const SCANS_CONTROL_FRAMES: u8 = KEEPS_BACKLOG | Pause::Hold as u8 | Pause::Answers as u8;

impl Connection {
    /// Whether control frames are to be looked for among what is held.
    fn may_scan_read_ahead(&self) -> bool {
        self.paused & SCANS_CONTROL_FRAMES != 0
            && !self.is_paused_for(Pause::Outbound)
            && self.phase == Phase::Open
            && !self.read_ahead.is_empty()
    }

    /// Whether it is held back for a reason that is not its own fault, with so much read ahead that no
    /// more is received.
    pub fn is_backpressured(&self) -> bool {
        self.is_receive_stopped
            && self.paused & SCANS_CONTROL_FRAMES != 0
            && !self.is_paused_for(Pause::Outbound)
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
    fn keeps_backlog(&self) -> bool {
        let keeps_backlog = self.paused & KEEPS_BACKLOG != 0 && self.paused & !KEEPS_BACKLOG == 0;
        keeps_backlog && self.phase == Phase::Open
    }
}

impl Connections {
    /// Answers the control frames among what is held of a connection.
    pub fn scan_read_ahead(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !connection.may_scan_read_ahead() {
            return;
        }
        let may_deflate = connection.compression.is_some();
        let (frame_left, takes_close) = match &connection.stage {
            Stage::Client(client) => (client.assembler.frame_left(), true),
            // Its answers come first.
            Stage::Backend(backend) => (backend.assembler.frame_left(), false),
            Stage::Http(_) | Stage::Unsubscribing(_) | Stage::Ending => return,
        };
        let Heard { ping, close } =
            connection.read_ahead.scan(frame_left, may_deflate, takes_close);
        if let Some(payload) = ping {
            self.write_with(turn, key, |out| put_frame(out, Opcode::Pong, &payload));
        }
        match close {
            None => {}
            Some(Ok(closed)) => self.close_paused(turn, key, closed, By::Peer),
            Some(Err(violation)) => {
                turn.counters.violations += 1;
                let reason = violation.reason();
                let closed = Closed { code: Some(reason.code), reason: reason.text.into() };
                self.close_paused(turn, key, closed, By::Node);
            }
        }
    }

    /// A client that is held back has sent a close frame.
    fn close_paused(&mut self, turn: &mut Turn, key: ConnectionKey, closed: Closed, by: By) {
        if !self.defer_close(turn, key, closed.event_code(), &closed.reason, by) {
            return self.close_after_answers(turn, key, closed, by);
        }
        self.answer_close(turn, key, &closed);
        self.finish(turn, key);
    }

    /// A client that is held back has ended: what it sent before is still read. False if there is no
    /// need: it may depart at once.
    pub fn defer_close(
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
        if !connection.keeps_backlog() || !connection.has_input() || self.is_echo(turn, key) {
            return false;
        }
        let Some(connection) = self.get(key) else { return false };
        connection.has_pending_close = true;
        let bytes = connection.read_ahead.len();
        self.pending_closes.insert(key, PendingClose { code, reason: reason.into(), by, bytes });
        self.pending_close_bytes += bytes;
        turn.push_step(Step::ClientDisconnected(id));
        true
    }

    fn is_echo(&mut self, turn: &Turn, key: ConnectionKey) -> bool {
        let connection = self.get(key);
        let route = connection.and_then(|connection| connection.route(&turn.settings));
        route.is_some_and(|route| route.echo)
    }

    /// The connection of a client that is held back has ended. False if it is no such client, or one that
    /// may still read the echo of what it sent.
    pub fn end_paused(&mut self, turn: &mut Turn, key: ConnectionKey) -> bool {
        let Some(connection) = self.get(key) else { return false };
        let is_client = matches!(connection.stage, Stage::Client(_));
        let is_broken = connection.is_broken;
        if !is_client || !connection.keeps_backlog() || (!is_broken && self.is_echo(turn, key)) {
            return false;
        }
        let parts = self.defer_close(turn, key, ABNORMAL_CLOSURE, end_reason(is_broken), By::Peer);
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
        if !self.defer_close(turn, key, code, text, By::Node) {
            return self.close_with(turn, key, close::IDLE);
        }
        self.answer_close(turn, key, &Closed { code: Some(code), reason: text.into() });
        self.finish(turn, key);
    }

    /// All that a client sent before it ended is read, or is not wanted: it departs as it ended.
    pub fn report_pending_close(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(PendingClose { code, reason, by, .. }) = self.pending_closes.get_mut(&key) else {
            return;
        };
        let (code, reason, by) = (*code, std::mem::take(reason), *by);
        self.detach(turn, key, code, &reason, by);
    }

    /// What a parting client sent is not read any more.
    pub fn discard_pending_close(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !std::mem::take(&mut connection.has_pending_close) {
            return;
        }
        (connection.read_ahead, connection.paused) = (ReadAhead::default(), 0);
        if let Some(pending) = self.pending_closes.remove(&key) {
            self.pending_close_bytes -= pending.bytes;
        }
    }

    /// The peer of a parting client has shut its end too, or its connection broke.
    pub fn close_pending_socket(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_broken || connection.phase != Phase::Flushing {
            self.close(turn, key);
        }
    }
}
