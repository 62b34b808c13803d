//! Connections whose reading is paused: control frames in the read-ahead, and clients that
//! disconnect before it is processed.
//!
//! # Control frames
//!
//! Reading pauses while the topic is full, the context lacks a key, the message rate is used up, or
//! too many calls are unanswered. Up to [`READ_AHEAD_BYTES_MAX`](super::READ_AHEAD_BYTES_MAX) are
//! still received. Pings, pongs and a client's close frame are taken out of these bytes, even from
//! behind data frames. A peer that does not read (`Pause::Outbound`) gets no pongs, because they
//! would only queue up.
//!
//! Once the read-ahead is full, pongs can no longer arrive, and their absence does not count as
//! silence. The node still sends pings. If the peer is gone, the kernel notices (a reset, or
//! TCP_USER_TIMEOUT), and the next ping fails. A peer that accepts no bytes for `limits.idle_ms` is
//! closed as idle. If that timeout exceeds 17 minutes, the kernel alone decides.
//!
//! # Pending closes
//!
//! A client that disconnects while its topic is full or its rate is used up gets a pending close.
//! The node answers the client's close frame at once with the same code, closes the socket, and
//! delivers no more calls. The read-ahead is still processed as room appears, and counts towards
//! the backlog of the topic. The close event follows the last message, with the client's own code.
//! If the node discards the rest, for instance because it is short of memory, the close event
//! carries the reason for that instead.
//!
//! A device that makes calls gets no answers after it has disconnected. The calls that it made before are
//! carried out.
//!
//! A client that is held for a missing context key gets no pending close. The client's unprocessed
//! messages are dropped, as they would be if no back end ever set the key.

use super::lifecycle::{ABNORMAL_CLOSURE, end_reason};
use super::{Connection, Connections, Pause, Pauses, Phase, ReadAhead, Stage};
use crate::message::ConnectionKey;
use crate::protocol::close::{self, Closed, Reason};
use crate::protocol::frame::{Opcode, put_frame};
use crate::protocol::scanner::ControlFrames;
use crate::shard::trail::By;
use crate::shard::turn::{Step, Turn};

/// The close event of a client that disconnected, reported once its messages are processed.
#[derive(Debug)]
pub(super) struct PendingClose {
    /// The close code to report.
    pub code: u16,
    /// The reason to report.
    pub reason: Box<str>,
    /// Who closed the connection, for the log.
    pub by: By,
    // Unprocessed bytes at the time of the disconnect.
    bytes: usize,
}

/// Reasons for a pause after which the messages of a disconnected client are still processed.
const KEEPS_BACKLOG: Pauses = Pauses::of(&[Pause::Topic, Pause::Rate, Pause::Answers]);

/// Reasons for a pause during which the read-ahead is scanned for control frames.
const SCANS_CONTROL_FRAMES: Pauses =
    Pauses::of(&[Pause::Topic, Pause::Rate, Pause::Hold, Pause::Answers]);

impl Connection {
    /// Whether the read-ahead is to be scanned for control frames.
    fn may_scan_read_ahead(&self) -> bool {
        self.pauses.intersects(SCANS_CONTROL_FRAMES)
            && !self.is_paused_for(Pause::Outbound)
            && self.phase == Phase::Open
            && !self.read_ahead.is_empty()
    }

    /// Whether backpressure, and not the peer, has stopped the receiving: the read-ahead is full.
    pub fn is_backpressured(&self) -> bool {
        self.is_receive_stopped
            && self.pauses.intersects(SCANS_CONTROL_FRAMES)
            && !self.is_paused_for(Pause::Outbound)
    }

    /// Returns since when the peer has been silent, in milliseconds on the shard's clock. While
    /// receiving is stopped, only the batch in flight counts: the peer is silent for as long as it
    /// accepts none of its bytes.
    pub fn silent_since_ms(&self, now_ms: u64) -> u64 {
        if !self.is_backpressured() {
            return if self.is_queued_to_read { now_ms } else { self.last_received_ms };
        }
        let in_flight_ms = self.outbound.in_flight_ms(now_ms).unwrap_or(0);
        self.last_received_ms.max(now_ms.saturating_sub(in_flight_ms))
    }

    /// Returns for how long the peer of a WebSocket has not answered a ping, in milliseconds. 0: no ping waits for its
    /// answer. Pings are sent after `ping_ms` of silence.
    pub fn unanswered_ms(&self, now_ms: u64, ping_ms: u64) -> u64 {
        match self.is_pinged && !self.is_backpressured() && !self.is_queued_to_read {
            // `last_received_ms` is as long before the ping.
            true => now_ms.saturating_sub(self.last_received_ms + ping_ms),
            false => 0,
        }
    }

    /// Whether the read-ahead would still be processed if the client disconnected now.
    fn keeps_backlog(&self) -> bool {
        let keeps_backlog = self.is_paused() && self.pauses.is_within(KEEPS_BACKLOG);
        keeps_backlog && self.phase == Phase::Open
    }
}

impl Connections {
    /// Answers the control frames in the read-ahead of a connection.
    pub fn scan_read_ahead(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !connection.may_scan_read_ahead() {
            return;
        }
        let may_deflate = connection.form.window().is_some();
        let (frame_left, takes_close) = match &connection.stage {
            Stage::Client(client) => (client.assembler.frame_left(), true),
            // A back end gets its pending answers before the close frame.
            Stage::Backend(backend) => (backend.assembler.frame_left(), false),
            Stage::Http(_) | Stage::Unsubscribing(_) | Stage::Ending => return,
        };
        let ControlFrames { ping, close } =
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

    /// Handles the close frame of a paused connection.
    fn close_paused(&mut self, turn: &mut Turn, key: ConnectionKey, closed: Closed, by: By) {
        if !self.defer_close(turn, key, closed.event_code(), &closed.reason, by) {
            return self.close_after_answers(turn, key, closed, by);
        }
        self.answer_close(turn, key, &closed);
        self.finish(turn, key);
    }

    /// Keeps the close event of a paused client until its read-ahead is processed. Returns false if
    /// there is nothing to wait for, so that the client can be detached at once.
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
        // A disconnected client reads no echoes.
        if !connection.keeps_backlog() || !connection.has_input() || self.is_echo(turn, key) {
            return false;
        }
        let Some(connection) = self.get(key) else { return false };
        connection.has_pending_close = true;
        connection.forget_answers();
        let bytes = connection.read_ahead.len();
        self.pending_closes.insert(key, PendingClose { code, reason: reason.into(), by, bytes });
        self.pending_close_bytes += bytes;
        turn.push_step(Step::ClientDisconnected(id));
        self.unpause(turn, key, Pause::Answers);
        true
    }

    fn is_echo(&mut self, turn: &Turn, key: ConnectionKey) -> bool {
        let connection = self.get(key);
        let route = connection.and_then(|connection| connection.route(&turn.settings));
        route.is_some_and(|route| route.echo)
    }

    /// Handles the end of the stream of a paused client. Returns false if the connection is not a
    /// paused client, or if the client may still read its echoes.
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
            (true, false) => self.close_broken(turn, key),
            (false, true) => self.finish(turn, key),
            (false, false) => self.end_after_input(turn, key),
        }
        true
    }

    /// Closes a connection whose idle timeout has expired.
    pub fn close_silent(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.limits.idle_ms += 1;
        let Reason { code, text } = close::IDLE;
        if !self.defer_close(turn, key, code, text, By::Node) {
            return self.close_with(turn, key, close::IDLE);
        }
        self.answer_close(turn, key, &Closed { code: Some(code), reason: text.into() });
        self.finish(turn, key);
    }

    /// Detaches a disconnected client whose read-ahead is processed, and reports its pending close
    /// event.
    pub fn report_pending_close(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(PendingClose { code, reason, by, .. }) = self.pending_closes.get_mut(&key) else {
            return;
        };
        let (code, reason, by) = (*code, std::mem::take(reason), *by);
        self.detach(turn, key, code, &reason, by);
    }

    /// Discards the read-ahead and the pending close of a client.
    pub fn discard_pending_close(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if !std::mem::take(&mut connection.has_pending_close) {
            return;
        }
        (connection.read_ahead, connection.pauses) = (ReadAhead::default(), Pauses::default());
        if let Some(pending) = self.pending_closes.remove(&key) {
            self.pending_close_bytes -= pending.bytes;
        }
    }

    /// Closes the socket of a client with a pending close, after its peer closed too or the
    /// connection broke.
    pub fn close_pending_socket(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_broken || connection.phase != Phase::Flushing {
            self.close(turn, key);
        }
    }
}
