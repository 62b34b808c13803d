//! How connections begin and end.

use super::{Connection, Connections, Listener, Pause, Pauses, Phase, ReadAhead, Stage};
use crate::address::remote::Remote;
use crate::message::ConnectionKey;
use crate::protocol::api::TapEvent;
use crate::protocol::close::{self, Reason};
use crate::protocol::frame::{Opcode, Violation, put_close, put_frame};
use crate::shard::trail::{self, By, Entry};
use crate::shard::turn::{Action, ClientGone, Step, Turn};

/// How long a closing connection may take to read what is queued and to close its end.
const LINGER_MS: u64 = 5000;

/// The code in a close event when the peer sent no close frame (1006, RFC 6455, section 7.1.5).
/// This code never appears in a frame.
pub(super) const ABNORMAL_CLOSURE: u16 = 1006;

/// Reasons for which the node closes a consumer that does not read or does not answer. Each takes seconds to
/// arise on a connection, which bounds the lines in the log.
const NOT_READING: [&str; 2] = [close::IDLE.text, close::SLOW_CLIENT.text];

/// Returns the reason reported for a connection that ended without a close frame.
pub(super) fn end_reason(is_broken: bool) -> &'static str {
    match is_broken {
        true => "connection broke",
        false => "connection ended without a close frame",
    }
}

impl Connections {
    /// Adds the connection of an accepted socket.
    pub fn accept(&mut self, turn: &mut Turn, listener: Listener, remote: Remote) -> ConnectionKey {
        turn.counters.connections += 1;
        let now = turn.now;
        let mut connection = Connection::new(remote, listener, now);
        connection.set_outbound_max(turn.settings.limits.outbound_bytes);
        if turn.settings.has_access_log {
            connection.begin_access_record(now.ms);
        }
        let key = self.insert(connection);
        trail::note(turn.trail(key), Entry::Accepted(remote, listener));
        let deadline_ms = now.ms + turn.settings.limits.handshake_ms;
        self.set_timer(turn, key, deadline_ms);
        key
    }

    /// Closes a connection with a close frame if it belongs to a client.
    pub fn close_client(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Reason) {
        if self.get(key).is_some_and(|connection| connection.client().is_some()) {
            self.close_with(turn, key, reason);
        }
    }

    /// Estimates the memory held by all connections in bytes, without the batches in flight; see
    /// [`Inspection`](crate::shard::Inspection).
    pub fn held_bytes(&self) -> usize {
        let (keys, _) = self.keys(0, usize::MAX);
        let held = keys.into_iter().filter_map(|key| {
            let connection = self.peek(key)?;
            let outbound = &connection.outbound;
            let beside_outbound = connection.held_bytes() - outbound.charge();
            Some(beside_outbound + outbound.freed_bytes())
        });
        held.sum()
    }

    /// Returns the part of [`Self::held_bytes`] in the read-ahead of connections.
    pub fn read_ahead_bytes(&self) -> usize {
        let (keys, _) = self.keys(0, usize::MAX);
        keys.into_iter().filter_map(|key| Some(self.peek(key)?.read_ahead.held_bytes())).sum()
    }

    /// Returns the part of [`Self::held_bytes`] in the assemblers of clients.
    pub fn assembler_bytes(&self) -> usize {
        let (keys, _) = self.keys(0, usize::MAX);
        let held = keys.into_iter().filter_map(|key| match &self.peek(key)?.stage {
            Stage::Client(client) => Some(client.assembler.held_bytes()),
            _ => None,
        });
        held.sum()
    }

    /// Handles the end of the stream, or an error of the socket if `is_broken`.
    pub fn handle_end(&mut self, turn: &mut Turn, key: ConnectionKey, is_broken: bool) {
        let Some(connection) = self.get(key) else { return };
        connection.is_read_closed = true;
        connection.is_broken |= is_broken;
        if connection.has_pending_close {
            return self.close_pending_socket(turn, key);
        }
        // A device that has closed its end could not send anything after the handshake.
        if connection.has_parked_handshake() {
            return self.close_broken(turn, key);
        }
        if self.end_paused(turn, key) {
            return;
        }
        let Some(connection) = self.get(key) else { return };
        let waits_for_its_turn = !connection.is_paused() && connection.has_input();
        if is_broken && connection.pauses != Pauses::of(&[Pause::Topic]) && !waits_for_its_turn {
            self.close_broken(turn, key);
        } else if connection.is_paused_for(Pause::Hold)
            || (!connection.is_paused() && !connection.has_input())
        {
            self.end_after_input(turn, key);
        }
        // In all other cases the connection ends after its read-ahead is processed.
    }

    /// Ends a connection whose peer closed its end, after all input was processed. Pending answers
    /// are still written.
    pub fn end_after_input(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_broken {
            return self.close_broken(turn, key);
        }
        match (&mut connection.stage, connection.phase) {
            (Stage::Http(http), Phase::Open) if !http.replies.is_empty() => http.is_last = true,
            (Stage::Backend(backend), Phase::Open) if !backend.replies.is_empty() => {}
            (_, Phase::Open) => {
                self.detach(turn, key, ABNORMAL_CLOSURE, end_reason(false), By::Peer);
                self.finish(turn, key);
            }
            (_, Phase::Flushing) => {}
            (_, Phase::Lingering | Phase::Closed) => self.close(turn, key),
        }
    }

    /// Ends a broken connection, to which nothing can be written any more.
    pub fn close_broken(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.detach(turn, key, ABNORMAL_CLOSURE, end_reason(true), By::Peer);
        self.close(turn, key);
    }

    /// Closes a WebSocket connection with a close frame, which answers the peer's if it sent one. A
    /// back end's pending answers are written before the close frame.
    pub fn close_after_answers(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        closed: close::Closed,
        by: By,
    ) {
        let backend = self.get(key).and_then(Connection::backend);
        if let Some(backend) = backend.filter(|backend| !backend.replies.is_empty()) {
            backend.close = Some((closed, by));
            return self.pause(key, Pause::Ending);
        }
        self.detach(turn, key, closed.event_code(), &closed.reason, by);
        self.answer_close(turn, key, &closed);
        self.finish(turn, key);
    }

    /// Writes the close frame that answers the peer's, unless one was written before.
    pub fn answer_close(&mut self, turn: &mut Turn, key: ConnectionKey, closed: &close::Closed) {
        match closed.code {
            Some(code) => self.write_close(turn, key, code, &closed.reason),
            None if self.is_open(key) => {
                self.write_with(turn, key, |out| put_frame(out, Opcode::Close, b""));
            }
            None => {}
        }
    }

    fn write_close(&mut self, turn: &mut Turn, key: ConnectionKey, code: u16, text: &str) {
        if self.is_open(key) {
            self.write_with(turn, key, |out| put_close(out, code, text));
        }
    }

    fn is_open(&mut self, key: ConnectionKey) -> bool {
        self.get(key).is_some_and(|connection| connection.phase == Phase::Open)
    }

    /// Closes a WebSocket connection for a reason of the node's own.
    pub fn close_with(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Reason) {
        self.close_for(turn, key, reason.code, reason.text, By::Node);
    }

    /// Closes a connection because the peer violated the protocol or the message size limit.
    /// Pending answers are written first, including the answer to the handshake.
    pub fn close_for_violation(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        violation: Violation,
    ) {
        turn.counters.violations += 1;
        if violation == Violation::TooLarge {
            self.count_too_large(turn, key);
        }
        let Reason { code, text } = violation.reason();
        let closed = close::Closed { code: Some(code), reason: text.into() };
        self.close_after_answers(turn, key, closed, By::Node);
    }

    fn count_too_large(&mut self, turn: &mut Turn, key: ConnectionKey) {
        match self.get(key).map(|connection| connection.listener) {
            Some(Listener::Edge(_)) => turn.counters.limits.edge_message_bytes += 1,
            Some(Listener::Api) => turn.counters.limits.api_message_bytes += 1,
            None => {}
        }
    }

    /// Closes a WebSocket connection with this code and reason. A device is told before when to come back, if it should.
    pub fn close_for(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        code: u16,
        text: &str,
        by: By,
    ) {
        self.drop_recovery(key);
        self.hint_close(turn, key, code);
        self.detach(turn, key, code, text, by);
        self.write_close(turn, key, code, text);
        self.finish(turn, key);
    }

    /// Closes a slow consumer with 1013. Its outbound queue is dropped, because a peer that reads
    /// slowly would keep the memory occupied.
    pub fn close_slow(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.slow_closed += 1;
        if let Some(connection) = self.get(key) {
            connection.outbound.clear();
        }
        self.close_with(turn, key, close::SLOW_CLIENT);
    }

    /// Detaches a connection from its role as client or back end, and pushes the steps that report
    /// the end. The outbound queue can still be written.
    ///
    /// A pending close is discarded: the code given here is reported instead. The client's own code
    /// would hide that some of its messages were not processed.
    pub fn detach(&mut self, turn: &mut Turn, key: ConnectionKey, code: u16, reason: &str, by: By) {
        self.discard_pending_close(key);
        self.drop_recovery(key);
        self.record_end(turn, key, Some(code));
        let trail = turn.trail(key);
        let mut is_backend = false;
        let Some(connection) = self.get(key) else { return };
        match &connection.stage {
            Stage::Client(c) => {
                let client = Some(c.id);
                trail::note(trail, Entry::Closed { client, by, code, reason });
                if connection.is_tapped() {
                    let event = TapEvent::Close { code, reason, by: by.name() };
                    turn.tap_client(connection, event);
                }
            }
            Stage::Backend(backend) => {
                is_backend = true;
                trail::note(trail, Entry::Closed { client: None, by, code, reason });
                if by == By::Node && NOT_READING.contains(&reason) && !backend.topics.is_empty() {
                    let user = turn.user_name(backend.grant.user);
                    trail::warn_of_consumer(user, connection.remote, &backend.topics, reason);
                }
                if backend.is_tapping {
                    turn.push_step(Step::TapperGone(key));
                }
            }
            Stage::Http(_) | Stage::Ending => {}
            Stage::Unsubscribing(_) => return,
        }
        match std::mem::replace(&mut connection.stage, Stage::Ending) {
            Stage::Client(client) => {
                // The client keeps its index: unsubscribing other members may still move it.
                connection.stage = Stage::Unsubscribing(client);
                let reason = reason.into();
                turn.push_step(Step::ClientGone(ClientGone { key, code, reason }));
            }
            Stage::Backend(backend) if backend.has_consumed => {
                // The unwritten events go to other consumers.
                connection.outbound.drop_shared();
                let unwritten = backend.unwritten_events.into_iter().map(|event| event.topic);
                let topics = backend.topics.into_iter().chain(unwritten).collect();
                turn.push_step(Step::ConsumerGone(key, topics));
            }
            Stage::Backend(_) | Stage::Http(_) | Stage::Unsubscribing(_) | Stage::Ending => {}
        }
        if is_backend {
            self.backends.remove(&key);
        }
        if self.get(key).is_some_and(|connection| connection.is_socket_closed) {
            self.log_access(turn, key);
        }
    }

    /// Stops reading, writes the outbound queue, then shuts down our end.
    pub fn finish(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let deadline = turn.now.ms + LINGER_MS;
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.phase = Phase::Flushing;
        if !connection.has_pending_close {
            connection.read_ahead = ReadAhead::default();
            connection.pauses = Pauses::default();
        }
        // Receiving goes on, to notice that the peer closes. All input is discarded.
        self.receive_again(turn, key);
        let is_flushed = self.get(key).is_some_and(|c| c.outbound.is_flushed());
        self.set_timer(turn, key, deadline);
        if is_flushed {
            self.shut_down(turn, key);
        }
    }

    pub(super) fn shut_down(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_read_closed {
            return self.close(turn, key);
        }
        connection.phase = Phase::Lingering;
        turn.actions.push_back(Action::Shutdown(key));
    }

    /// Closes the socket without waiting for the outbound queue.
    pub fn close(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Closed {
            connection.phase = Phase::Closed;
            connection.outbound.clear();
            turn.actions.push_back(Action::Close(key));
        }
    }

    /// Removes a connection whose socket is closed. A client that is being unsubscribed, or has a
    /// pending close, is only marked.
    pub fn forget_connection(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        match connection.stage {
            Stage::Unsubscribing(_) => connection.is_socket_closed = true,
            _ if connection.has_pending_close => connection.is_socket_closed = true,
            _ => self.remove(key),
        }
    }

    /// Removes a connection whose socket is closed, if its client is unsubscribed from all
    /// channels.
    pub fn forget_if_unsubscribed(&mut self, key: ConnectionKey) {
        let is_left = |connection: &mut Connection| matches!(connection.stage, Stage::Ending);
        if self.get(key).is_some_and(is_left) {
            self.forget_if_closed(key);
        }
    }

    /// Removes a connection if its socket is closed.
    pub fn forget_if_closed(&mut self, key: ConnectionKey) {
        if self.get(key).is_some_and(|connection| connection.is_socket_closed) {
            self.remove(key);
        }
    }

    /// Closes one connection because the node shuts down. A partly received API request is still
    /// received and answered, within `limits.handshake_ms` and the time for draining. A connection
    /// with pending answers is not read from, and closes after the last answer.
    pub fn drain_connection(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if let Stage::Http(http) = &mut connection.stage
            && http.is_mid_request
            && connection.listener == Listener::Api
        {
            http.is_draining = true;
            return;
        }
        match connection.replies().is_none_or(|replies| replies.is_empty()) {
            true => self.close_for_drain(turn, key),
            false => self.pause(key, Pause::Ending),
        }
    }

    /// Closes a connection without pending answers because the node shuts down.
    pub fn close_for_drain(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        match connection.stage {
            Stage::Http(_) => self.finish(turn, key),
            Stage::Client(_) | Stage::Backend(_) => self.close_with(turn, key, close::GOING_AWAY),
            Stage::Unsubscribing(_) | Stage::Ending => {}
        }
    }
}
