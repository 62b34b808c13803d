//! Writing the answers of a connection, in the order of its requests.

use super::replies::{FollowUp, ReadyAnswer, Shape, WAITING_MAX, WAITING_MIN, put_message};
use super::{Connection, Connections, Pause, Phase, Stage};
use crate::message::ConnectionKey;
use crate::protocol::api::{Fault, Reply};
use crate::shard::memory::Shortage;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::{Step, Turn};

/// How far the requests of a back end were read. Used by tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadProgress {
    /// Received bytes that are not processed yet. Control frames may have been removed.
    pub unread_bytes: usize,
    /// Whether reading is paused because too many answers are pending.
    pub is_paused: bool,
}

impl Connection {
    /// Pauses reading if the peer does not read its answers, or has too many pending.
    #[inline]
    fn pause_if_congested(&mut self, turn: &mut Turn) {
        let is_unread = !self.is_broken
            && (self.unread_charge() > self.outbound_max()
                || self.outbound.is_in_flight() && turn.is_short(Shortage::Frames));
        let is_waiting = self.has_too_many_pending(WAITING_MAX, 1);
        if is_unread || is_waiting {
            self.note_congestion(turn, is_unread, is_waiting);
        }
    }

    /// Pauses reading for unread or for pending answers, and counts what is new.
    fn note_congestion(&mut self, turn: &mut Turn, is_unread: bool, is_waiting: bool) {
        let is_new = |reason| !self.is_paused_for(reason);
        let limits = &mut turn.counters.limits;
        limits.outbound_bytes += u64::from(is_unread && is_new(Pause::Outbound));
        limits.calls_waiting += u64::from(is_waiting && is_new(Pause::Answers));
        if is_unread {
            self.pauses.insert(Pause::Outbound);
        }
        if is_waiting {
            self.pauses.insert(Pause::Answers);
        }
    }
}

impl Connections {
    /// Returns how far the requests of a back end were read; see
    /// [`crate::shard::Inspection::read_progress_of`].
    pub fn read_progress_of(&self, key: ConnectionKey) -> Option<ReadProgress> {
        let connection = self.peek(key)?;
        if !matches!(connection.stage, Stage::Backend(_)) {
            return None;
        }
        let unread_bytes = connection.read_ahead.len();
        let is_paused = connection.is_paused_for(Pause::Answers);
        let waits_for_much = connection.has_too_many_pending(WAITING_MIN + 1, 2);
        assert!(!is_paused || waits_for_much, "{key:?} is paused for nothing");
        Some(ReadProgress { unread_bytes, is_paused })
    }

    /// Pauses reading from a connection that does not read its answers, or has too many pending.
    pub fn pause_if_congested(&mut self, turn: &mut Turn, key: ConnectionKey) {
        if let Some(connection) = self.get(key) {
            connection.pause_if_congested(turn);
        }
    }

    /// Does what [`Self::pause_if_congested`] does, for an open connection that makes requests.
    pub fn pause_requests_if_congested(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.phase == Phase::Open && connection.replies().is_some() {
            connection.pause_if_congested(turn);
        }
    }

    /// Writes the answer to a call, behind the pending answers of earlier calls.
    pub fn reply(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        shape: &Shape,
        answer: &Result<Reply, Fault>,
    ) {
        if let Err(fault) = answer {
            turn.counters.faults += 1;
            trail::note(turn.trail(key), Entry::Failed(fault));
        }
        let mut scratch = std::mem::take(&mut turn.scratch);
        match shape {
            Shape::Message(id) => {
                self.reply_bytes(turn, key, |out| put_message(out, &mut scratch, answer, id));
            }
            Shape::Response(shape) => {
                let date = turn.date();
                let put = |out: &mut Vec<u8>| shape.put_answer(out, &mut scratch, date, answer);
                self.reply_bytes(turn, key, put);
            }
            Shape::Bridge(call) => turn.answer_bridge(*call, answer),
        }
        turn.scratch = scratch;
    }

    /// Writes an answer encoded by `put`, behind the pending answers of earlier requests.
    pub fn reply_bytes(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        let Some((connection, queues)) = self.get_with_queues(key) else { return };
        connection.record_backend_message(false);
        let Some(replies) = connection.replies() else { return };
        if replies.is_empty() {
            return queues.write_with(&mut turn.buffer_pool, key, connection, put);
        }
        let mut bytes = Vec::new();
        put(&mut bytes);
        replies.push_ready(bytes);
    }

    /// Writes the answers that no earlier answer holds up.
    pub fn write_replies(&mut self, turn: &mut Turn, key: ConnectionKey) {
        while let Some(connection) = self.get(key)
            && let Some(ReadyAnswer { bytes, follow_up }) =
                connection.replies().and_then(|replies| replies.poll_ready())
        {
            self.write_with(turn, key, |out| out.extend_from_slice(&bytes));
            match follow_up {
                Some(FollowUp::Pop(pop)) => turn.push_step(Step::PopAnswered(key, pop)),
                Some(FollowUp::Take(take)) => turn.push_step(Step::TakeAnswered(key, take)),
                Some(FollowUp::Tap) => turn.push_step(Step::TapAnswered(key)),
                None => {}
            }
        }
        let Some(connection) = self.get(key) else { return };
        let Some(is_last) = connection.replies().map(|replies| replies.is_empty()) else { return };
        self.unpause_if_answered(turn, key);
        if is_last {
            self.after_last_reply(turn, key);
        }
    }

    /// Closes a connection that was waiting only for its last pending answer.
    fn after_last_reply(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.replies().is_some_and(|replies| replies.has_parked()) {
            return turn.push_step(Step::CallDue(key));
        }
        let is_draining = connection.is_paused_for(Pause::Ending);
        let is_read_closed = connection.is_read_closed
            && !connection.is_paused()
            && connection.read_ahead.is_empty();
        match &mut connection.stage {
            Stage::Http(http) if http.is_last => self.finish(turn, key),
            Stage::Backend(backend) => match backend.close.take() {
                Some((closed, by)) => self.close_after_answers(turn, key, closed, by),
                None if is_draining => self.close_for_drain(turn, key),
                None if is_read_closed => self.end_after_input(turn, key),
                None => {}
            },
            _ if is_draining => self.close_for_drain(turn, key),
            Stage::Client(_) if !is_read_closed => self.resume_subscribe(turn, key),
            _ if is_read_closed => self.end_after_input(turn, key),
            _ => {}
        }
    }
}
