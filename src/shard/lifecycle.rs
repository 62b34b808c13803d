//! How connections begin to write, pause, go silent and end.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::connection::{Connection, Held, Listener, Pause, Phase, Queued, Stage};
use super::timers::Timer;
use super::trail::{self, By, Entry};
use super::{Action, Shard};
use crate::message::{ConnectionKey, Message};
use crate::protocol::close::{self, Reason};
use crate::protocol::frame::{Opcode, Violation, put_close, put_frame};

/// How long a connection that ends may take to read our last words and shut its end.
const LINGER_MS: u64 = 5000;

/// Timers that fire in one turn: some 2 ms if each closes a connection.
const TIMERS_PER_TURN: usize = 1024;

/// What a close event says when the peer sent no close frame, or one without a code (RFC 6455,
/// section 7.1.5: these two never travel in a frame).
const NO_CODE: u16 = 1005;
const BROKEN_OFF: u16 = 1006;

impl Shard {
    /// Notes that a connection has something to write.
    pub(super) fn queue_write(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connections.get(key)
            && connection.queued != Queued::Urgent
            && connection.outbound.is_ready()
        {
            connection.queued = Queued::Urgent;
            self.urgent.push_back(key);
        }
    }

    /// Puts bytes for this connection alone into its outbound queue.
    pub(super) fn write_with(&mut self, key: ConnectionKey, put: impl FnOnce(&mut Vec<u8>)) {
        if let Some(connection) = self.connections.get(key)
            && matches!(connection.phase, Phase::Open | Phase::Flushing)
        {
            connection.outbound.push_with(&mut self.spare, put);
            self.queue_write(key);
        }
    }

    /// All of a batch is written: there may be more, or it was the last.
    pub(super) fn after_batch(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        let half_empty = connection.unread_charge() <= connection.outbound_max() / 2;
        if connection.phase == Phase::Flushing && connection.outbound.is_flushed() {
            return self.shut(key);
        }
        if connection.queued == Queued::No && connection.outbound.is_ready() {
            // It has had its send: what came meanwhile goes behind the others.
            connection.queued = Queued::Bulk;
            self.bulk.push_back(key);
        }
        if half_empty {
            self.unpause(key, Pause::Outbound);
        }
    }

    /// Stops reading from a connection for this reason.
    pub(super) fn pause(&mut self, key: ConnectionKey, reason: Pause) {
        if let Some(connection) = self.connections.get(key) {
            connection.paused |= reason as u8;
        }
    }

    /// This reason is gone. What was received meanwhile is read in a later step: never in the
    /// middle of another connection's work.
    pub(super) fn unpause(&mut self, key: ConnectionKey, reason: Pause) {
        let Some(connection) = self.connections.get(key) else { return };
        if !connection.is_paused_for(reason) {
            return;
        }
        connection.paused &= !(reason as u8);
        if connection.paused == 0 {
            self.read_later(key);
        }
    }

    /// Reads what is held of a connection, and ends it or receives from it again once all is read.
    pub(super) fn resume(&mut self, key: ConnectionKey) {
        self.read_held(key);
        self.note_slice(key);
        let Some(connection) = self.connections.get(key) else { return };
        if connection.is_resuming {
            return;
        }
        // Who is held and has ended waits for nothing.
        let is_over = connection.is_ended && connection.is_paused_for(Pause::Hold);
        if connection.paused != 0 && !is_over {
            return;
        }
        connection.heard_ms = self.now.ms;
        match connection.is_ended {
            true => self.end(key),
            false => self.receive_again(key),
        }
    }

    fn receive_again(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        if std::mem::take(&mut connection.is_stopped) {
            self.actions.push_back(Action::Resume(key));
        }
    }

    /// The peer shut its end and all it sent is read. It may still wait for answers.
    pub(super) fn end(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.is_broken {
            return self.break_off(key);
        }
        match (&mut connection.stage, connection.phase) {
            (Stage::Http(http), Phase::Open) if !http.replies.is_empty() => http.is_last = true,
            (Stage::Backend(backend), Phase::Open) if !backend.replies.is_empty() => {}
            (_, Phase::Open) => {
                self.depart(key, BROKEN_OFF, "connection ended without a close frame", By::Peer);
                self.finish(key);
            }
            (_, Phase::Flushing) => {}
            (_, Phase::Lingering | Phase::Closed) => self.close(key),
        }
    }

    /// The connection broke: nothing can be written to it any more.
    pub(super) fn break_off(&mut self, key: ConnectionKey) {
        self.depart(key, BROKEN_OFF, "connection broke", By::Peer);
        self.close(key);
    }

    /// The peer sent a close frame, which is answered with its own words, or is to get one. A back
    /// end that still waits for answers gets them first.
    pub(super) fn close_after_answers(
        &mut self,
        key: ConnectionKey,
        closed: close::Closed,
        by: By,
    ) {
        let backend = self.connections.get(key).and_then(Connection::backend);
        if let Some(backend) = backend.filter(|backend| !backend.replies.is_empty()) {
            backend.close = Some((closed, by));
            return self.pause(key, Pause::Ending);
        }
        self.depart(key, closed.code.unwrap_or(NO_CODE), &closed.reason, by);
        self.write_with(key, |out| match closed.code {
            Some(code) => put_close(out, code, &closed.reason),
            None => put_frame(out, Opcode::Close, b""),
        });
        self.finish(key);
    }

    /// Ends a WebSocket connection from our side.
    pub(super) fn close_with(&mut self, key: ConnectionKey, reason: Reason) {
        self.close_for(key, reason.code, reason.text, By::Node);
    }

    /// Ends it because the peer broke the protocol, or a limit of it. What it asked before is still
    /// answered first: the handshake's own answer may be among that.
    pub(super) fn close_for_violation(&mut self, key: ConnectionKey, violation: Violation) {
        self.counters.violations += 1;
        if violation == Violation::TooLarge {
            self.count_too_large(key);
        }
        let Reason { code, text } = violation.reason();
        let closed = close::Closed { code: Some(code), reason: text.into() };
        self.close_after_answers(key, closed, By::Node);
    }

    fn count_too_large(&mut self, key: ConnectionKey) {
        match self.connections.get(key).map(|connection| connection.listener) {
            Some(Listener::Edge(_)) => self.counters.limits.edge_message_bytes += 1,
            Some(Listener::Api) => self.counters.limits.api_message_bytes += 1,
            None => {}
        }
    }

    /// Ends a WebSocket connection with this code and reason.
    pub(super) fn close_for(&mut self, key: ConnectionKey, code: u16, text: &str, by: By) {
        self.depart(key, code, text, by);
        self.write_with(key, |out| put_close(out, code, text));
        self.finish(key);
    }

    /// Ends it with 1013 because it reads too slowly. What waits for it is given up: it would keep
    /// the memory for as long as the peer cares to read slowly.
    pub(super) fn close_slow(&mut self, key: ConnectionKey) {
        self.counters.slow_closed += 1;
        if let Some(connection) = self.connections.get(key) {
            connection.outbound.clear();
        }
        self.close_with(key, close::SLOW_CLIENT);
    }

    /// Takes a connection out of all that it takes part in, and tells those who asked to be told.
    /// What waits for it can still be written.
    pub(super) fn depart(&mut self, key: ConnectionKey, code: u16, reason: &str, by: By) {
        let trail = self.trail(key);
        let Some(connection) = self.connections.get(key) else { return };
        match &connection.stage {
            Stage::Client(c) => trail::note(trail, Entry::Closed(Some(c.id), by, code, reason)),
            Stage::Backend(_) => trail::note(trail, Entry::Closed(None, by, code, reason)),
            Stage::Http(_) | Stage::Ending => {}
            Stage::Leaving(_) => return,
        }
        match std::mem::replace(&mut connection.stage, Stage::Ending) {
            Stage::Client(client) => self.client_gone(key, client, code, reason),
            Stage::Backend(backend) if backend.has_consumed => {
                // They go to other consumers.
                connection.outbound.drop_shared();
                let unwritten = backend.deliveries.into_iter().map(|(_, _, topic)| topic);
                self.consumer_gone(key, &backend.topics.into_iter().chain(unwritten).collect());
            }
            Stage::Backend(_) | Stage::Http(_) | Stage::Leaving(_) | Stage::Ending => {}
        }
    }

    /// Writes what waits, then shuts our end.
    pub(super) fn finish(&mut self, key: ConnectionKey) {
        let deadline = self.now.ms + LINGER_MS;
        let Some(connection) = self.connections.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.phase = Phase::Flushing;
        connection.held = Held::default();
        connection.paused = 0;
        // To see the peer's end it must be received from; what it says is not listened to.
        self.receive_again(key);
        let is_flushed = self.connections.get(key).is_some_and(|c| c.outbound.is_flushed());
        self.set_timer(key, deadline);
        if is_flushed {
            self.shut(key);
        }
    }

    fn shut(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.is_ended {
            return self.close(key);
        }
        connection.phase = Phase::Lingering;
        self.actions.push_back(Action::Shutdown(key));
    }

    /// Closes the socket at once.
    pub(super) fn close(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        if connection.phase != Phase::Closed {
            connection.phase = Phase::Closed;
            connection.outbound.clear();
            self.actions.push_back(Action::Close(key));
        }
    }

    /// Fires what is due, as much as one turn may: the rest waits for the next.
    pub(super) fn fire_timers(&mut self) {
        for _ in 0..TIMERS_PER_TURN {
            let Some((tick, timer)) = self.timers.pop_due(self.now.ms) else { break };
            match timer {
                Timer::Ticket(ticket) => self.expire(ticket),
                Timer::Connection(key) => self.check_connection(key, tick),
                Timer::Rate(key) => self.unpause(key, Pause::Rate),
            }
        }
        self.check_topics();
    }

    fn check_connection(&mut self, key: ConnectionKey, tick: u64) {
        let now_ms = self.now.ms;
        let limits = self.settings.limits.clone();
        let Some(connection) = self.connections.get(key) else { return };
        if !connection.is_due_at(tick) || connection.phase == Phase::Closed {
            return;
        }
        if connection.expires_unix_ms() <= self.now.unix_ms {
            self.counters.expired += 1;
            return self.close_with(key, close::TOKEN_EXPIRED);
        }
        if connection.message_due_ms(limits.idle_ms).is_some_and(|due_ms| due_ms <= now_ms) {
            self.counters.limits.unfinished_message += 1;
            return self.close_with(key, close::UNFINISHED);
        }
        // Silence while it waits for us does not count; silence while we wait for it does.
        let for_us = [Pause::Topic, Pause::Answers, Pause::Rate];
        let waits_for_us = connection.is_resuming
            || for_us.into_iter().any(|reason| connection.is_paused_for(reason));
        let is_stranger = connection.is_stranger();
        let silent_since = if waits_for_us { now_ms } else { connection.heard_ms };
        let deadline = match (&connection.stage, connection.phase) {
            (_, Phase::Flushing | Phase::Lingering) | (Stage::Leaving(_) | Stage::Ending, _) => {
                return self.close(key);
            }
            (Stage::Http(http), _) if http.parked.is_some() => http.started_ms + limits.answer_ms,
            (Stage::Http(http), _) if !http.replies.is_empty() => now_ms + limits.answer_ms,
            (Stage::Http(http), _) if is_stranger => http.accepted_ms + limits.handshake_ms,
            (Stage::Http(http), _) if http.is_mid_request || !http.has_answered => {
                http.started_ms + limits.handshake_ms
            }
            (Stage::Http(_), _) => silent_since + limits.idle_ms,
            (_, _) if connection.is_pinged => silent_since + limits.idle_ms,
            (_, _) => silent_since + limits.ping_ms,
        };
        if now_ms < deadline {
            return self.set_timer(key, deadline);
        }
        match &connection.stage {
            Stage::Http(http) if http.parked.is_some() => self.give_up_verdict(key),
            Stage::Http(http) if http.is_mid_request => self.refuse_slow_request(key),
            Stage::Http(http) => {
                match http.has_answered && !is_stranger {
                    true => self.counters.limits.idle_ms += 1,
                    false => self.counters.limits.handshake_ms += 1,
                }
                self.finish(key);
            }
            _ if connection.is_pinged => {
                self.counters.limits.idle_ms += 1;
                self.close_with(key, close::IDLE);
            }
            _ => {
                connection.is_pinged = true;
                self.write_with(key, |out| put_frame(out, Opcode::Ping, b""));
                self.set_timer(key, silent_since + limits.idle_ms);
            }
        }
    }

    /// Tells the homes of topics that a consumer is gone, which had to do with these topics.
    fn consumer_gone(&mut self, key: ConnectionKey, topics: &BTreeSet<Arc<str>>) {
        self.gone_everywhere(key, topics);
        let backend = self.backend_id(key);
        for shard in self.other_shards() {
            self.outbox.push_back((self.beside(shard), Message::BackendGone(backend)));
        }
        self.handle_backend_gone(backend);
    }
}
