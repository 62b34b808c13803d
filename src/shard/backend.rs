//! Back ends on the WebSocket API: requests in, answers out in their order.

use super::Shard;
use super::connection::{Pause, Stage};
use super::memory::Shortage;
use super::replies::{Ready, Shape, WAITING_MAX, WAITING_MIN};
use super::trail::{self, By, Entry};
use crate::message::ConnectionKey;
use crate::protocol::api::{Fault, Reply};
use crate::protocol::assembler::{Payload, Received};
use crate::protocol::frame::{Kind, Opcode, put_frame};

impl Shard {
    /// Reads requests until the input is empty or the connection is paused or ended.
    pub(super) fn read_backend(&mut self, key: ConnectionKey, input: &mut &mut [u8]) {
        let max = self.settings.limits.api_message_bytes;
        let Some(connection) = self.connections.get(key) else { return };
        let Some(backend) = connection.backend() else { return };
        let mut assembler = std::mem::take(&mut backend.assembler);
        let received = assembler.read(input, max, None);
        backend.assembler = assembler;
        match received {
            Ok(None) => backend.assembler.note_unfinished(self.now.ms),
            Ok(Some(Received::Message(kind, payload))) => self.read_request(key, kind, payload),
            Ok(Some(Received::Ping(payload))) => {
                self.write_with(key, |out| put_frame(out, Opcode::Pong, &payload));
                self.note_unfinished(key);
            }
            Ok(Some(Received::Pong)) => self.note_unfinished(key),
            Ok(Some(Received::Inflating)) => {}
            Ok(Some(Received::Close(closed))) => self.close_after_answers(key, closed, By::Peer),
            Err(violation) => self.close_for_violation(key, violation),
        }
        self.pause_if_unread(key);
    }

    /// A control frame was read. A message may have begun before it in the same bytes.
    pub(super) fn note_unfinished(&mut self, key: ConnectionKey) {
        let now_ms = self.now.ms;
        match self.connections.get(key).map(|connection| &mut connection.stage) {
            Some(Stage::Client(client)) => client.assembler.note_unfinished(now_ms),
            Some(Stage::Backend(backend)) => backend.assembler.note_unfinished(now_ms),
            _ => {}
        }
    }

    fn read_request(&mut self, key: ConnectionKey, kind: Kind, mut payload: Payload<'_>) {
        if kind == Kind::Text && *payload == *b"ping" {
            return self.reply_bytes(key, |out| {
                put_frame(out, Opcode::Data(Kind::Text), b"pong");
            });
        }
        // The parser is taken out while what it read is carried out: the call borrows from it.
        let mut parser = std::mem::take(&mut self.parser);
        let request = parser.request(&mut payload);
        let call = self.admit_call(key, request.call);
        self.call(key, Shape::Message(request.id.into()), call);
        self.parser = parser;
    }

    /// A back end that does not read its answers, or waits for too many, asks nothing more
    /// meanwhile.
    pub(super) fn pause_if_unread(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let is_unread = !connection.is_broken
            && (connection.unread_charge() > connection.outbound_max()
                || connection.outbound.is_in_flight() && self.shedding.is_short(Shortage::Frames));
        let is_waiting = connection.waits_for_too_much(WAITING_MAX, 1);
        let is_new = |reason| !connection.is_paused_for(reason);
        let limits = &mut self.counters.limits;
        limits.outbound_bytes += u64::from(is_unread && is_new(Pause::Outbound));
        limits.calls_waiting += u64::from(is_waiting && is_new(Pause::Answers));
        if is_unread {
            self.pause(key, Pause::Outbound);
        }
        if is_waiting {
            self.pause(key, Pause::Answers);
        }
    }

    /// Answers a call at once, behind the answers that are still waited for.
    pub(super) fn reply(
        &mut self,
        key: ConnectionKey,
        shape: &Shape,
        answer: &Result<Reply, Fault>,
    ) {
        if let Err(fault) = answer {
            self.counters.faults += 1;
            trail::note(self.trail(key), Entry::Failed(fault));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        let date = self.date();
        self.reply_bytes(key, |out| shape.put(out, &mut scratch, date, answer));
        self.scratch = scratch;
    }

    /// Likewise, with bytes as `put` appends them.
    pub(super) fn reply_bytes(&mut self, key: ConnectionKey, put: impl FnOnce(&mut Vec<u8>)) {
        let Some(connection) = self.connections.get(key) else { return };
        let Some(replies) = connection.replies() else { return };
        if replies.is_empty() {
            return self.write_with(key, put);
        }
        let mut bytes = Vec::new();
        put(&mut bytes);
        replies.ready(bytes);
    }

    /// Writes the answers whose turn it is.
    pub(super) fn write_replies(&mut self, key: ConnectionKey) {
        while let Some(connection) = self.connections.get(key)
            && let Some(Ready { bytes, then_start }) =
                connection.replies().and_then(|replies| replies.poll_ready())
        {
            self.write_with(key, |out| out.extend_from_slice(&bytes));
            if let Some(pop) = then_start {
                self.start_consuming(key, pop);
            }
        }
        let Some(connection) = self.connections.get(key) else { return };
        let Some(is_last) = connection.replies().map(|replies| replies.is_empty()) else { return };
        if !connection.waits_for_too_much(WAITING_MIN + 1, 2) {
            self.unpause(key, Pause::Answers);
        }
        if is_last {
            self.after_last_reply(key);
        }
    }

    /// No answer is waited for any more: a connection that ends with them ends.
    fn after_last_reply(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let is_draining = connection.is_paused_for(Pause::Ending);
        let is_ended = connection.is_ended && connection.paused == 0 && connection.held.is_empty();
        match &mut connection.stage {
            Stage::Http(http) if http.is_last => self.finish(key),
            Stage::Backend(backend) => match backend.close.take() {
                Some((closed, by)) => self.close_after_answers(key, closed, by),
                None if is_draining => self.close_for_drain(key),
                None if is_ended => self.end(key),
                None => {}
            },
            _ if is_draining => self.close_for_drain(key),
            _ if is_ended => self.end(key),
            _ => {}
        }
    }
}
