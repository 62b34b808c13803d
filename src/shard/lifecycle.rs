//! How connections begin, are read from, pause, go silent and end.

use std::net::SocketAddr;

use super::connection::{
    Connection, Connections, HELD_BYTES, Held, Listener, Pause, Phase, Queued, Stage,
};
use super::outbound::Batch;
use super::timers::Timer;
use super::trail::{self, By, Entry};
use super::turn::{Action, ClientGone, Step, Turn};
use crate::message::ConnectionKey;
use crate::protocol::close::{self, Reason};
use crate::protocol::frame::{Opcode, Violation, put_close, put_frame};

/// How long a connection that ends may take to read our last words and shut its end.
const LINGER_MS: u64 = 5000;

/// What a close event says when the peer sent no close frame (RFC 6455,
/// section 7.1.5: neither 1005 nor this one travels in a frame).
pub(super) const BROKEN_OFF: u16 = 1006;

/// How a connection without a close frame ended.
pub(super) fn end_reason(is_broken: bool) -> &'static str {
    match is_broken {
        true => "connection broke",
        false => "connection ended without a close frame",
    }
}

/// What a write leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing waits for it.
    Usual,
    /// Events for a back end were in the queue: their topics may be told.
    Events,
    /// More is to be written, or the connection waits for room in its queue or for its end.
    Awaited,
}

impl Connections {
    /// Adds the connection of a socket that was accepted.
    pub fn accept(
        &mut self,
        turn: &mut Turn,
        listener: Listener,
        remote: SocketAddr,
    ) -> ConnectionKey {
        turn.counters.connections += 1;
        let now = turn.now;
        let mut connection = Connection::new(remote, listener, (now.ms, now.unix_ms));
        connection.set_outbound_max(turn.settings.limits.outbound_bytes);
        let key = self.insert(connection);
        trail::note(turn.trail(key), Entry::Accepted(remote, listener));
        let deadline_ms = now.ms + turn.settings.limits.handshake_ms;
        self.set_timer(turn, key, deadline_ms);
        key
    }

    /// So many bytes of the batch in flight are written.
    pub fn handle_written(&mut self, turn: &mut Turn, key: ConnectionKey, bytes: usize) -> Written {
        let Some(connection) = self.get(key) else { return Written::Usual };
        turn.counters.sent_bytes += bytes as u64;
        connection.outbound.written(bytes);
        let has_events = connection.backend().is_some_and(|backend| {
            backend.written += bytes as u64;
            !backend.deliveries.is_empty()
        });
        let is_open = connection.phase == Phase::Open && connection.paused == 0;
        match has_events {
            true => Written::Events,
            false if is_open && connection.outbound.is_flushed() => Written::Usual,
            false => Written::Awaited,
        }
    }

    /// The next connection that a single command wrote to, and all that waits for it.
    pub fn poll_urgent(&mut self, turn: &Turn) -> Option<(ConnectionKey, Batch)> {
        loop {
            let key = self.urgent.pop_front()?;
            if let Some((batch, _)) = self.take_batch(turn, key) {
                return Some((key, batch));
            }
        }
    }

    /// The next connection that only a fan-out wrote to, all that waits for it, and how many bytes that
    /// is.
    pub fn poll_bulk(&mut self, turn: &Turn) -> Option<(ConnectionKey, Batch, usize)> {
        loop {
            let key = self.bulk.pop_front()?;
            if let Some((batch, bytes)) = self.take_batch(turn, key) {
                return Some((key, batch, bytes));
            }
        }
    }

    /// All that waits for a connection, and how many bytes that is.
    fn take_batch(&mut self, turn: &Turn, key: ConnectionKey) -> Option<(Batch, usize)> {
        let connection = self.get(key)?;
        connection.queued = Queued::No;
        let is_ready = connection.phase != Phase::Closed && connection.outbound.is_ready();
        is_ready.then(|| (connection.outbound.take(turn.now.ms), connection.outbound.buffered()))
    }

    /// A connection that waited to be read is next: true if nothing pauses it.
    pub fn is_to_resume(&mut self, key: ConnectionKey) -> bool {
        self.get(key).is_some_and(|connection| {
            connection.is_resuming = false;
            connection.paused == 0
        })
    }

    /// Takes out what was received of a connection and not read, unless it is paused or half inflated;
    /// to be given back with [`Self::keep_held`].
    pub fn take_held(&mut self, key: ConnectionKey) -> Option<Held> {
        let connection = self.get(key)?;
        let may = connection.paused == 0 && !connection.is_inflating;
        may.then(|| std::mem::take(&mut connection.held))
    }

    /// Gives back what is left of it.
    pub fn keep_held(&mut self, key: ConnectionKey, held: Held) {
        if let Some(connection) = self.get(key) {
            connection.held = held;
        }
    }

    /// Keeps what cannot be read yet.
    pub fn hold(&mut self, turn: &mut Turn, key: ConnectionKey, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.held.push(input);
        self.hear_held(turn, key);
        let Some(connection) = self.get(key) else { return };
        let may_stop = connection.phase == Phase::Open && !connection.is_ended;
        if connection.held.is_full() && !connection.is_stopped && may_stop {
            connection.is_stopped = true;
            turn.actions.push_back(Action::Pause(key));
        }
    }

    /// A connection that had waited was read: lets it wait again, ends it, or receives from it again once
    /// all is read.
    pub fn after_reading(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.note_slice(turn, key);
        let Some(connection) = self.get(key) else { return };
        // Room that came while it was read has queued it again. What pauses it since then is judged here:
        // the queue passes over a connection that is paused.
        if connection.is_resuming && connection.paused == 0 {
            return;
        }
        // Who is held for a key and has ended waits for nothing.
        let has_ended = connection.is_ended || connection.is_parting;
        let is_over = has_ended && connection.is_paused_for(Pause::Hold);
        if connection.paused != 0 && !is_over {
            return self.hear_again(turn, key);
        }
        if connection.is_parting {
            return self.depart_as_parted(turn, key);
        }
        connection.heard_ms = turn.now.ms;
        match connection.is_ended {
            true => self.end(turn, key),
            false => self.receive_again(turn, key),
        }
    }

    /// A connection was read on and is held back again: what is held may tell something, and there may be
    /// room for more.
    fn hear_again(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.hear_held(turn, key);
        let Some(connection) = self.get(key) else { return };
        if connection.is_stopped && connection.held.len() <= HELD_BYTES / 2 {
            connection.heard_ms = turn.now.ms;
            self.receive_again(turn, key);
        }
    }

    /// Sets the time at which a connection is looked at next, on the shard's clock: the earliest of this
    /// one, the end of its token and the end of the time for its half-read message.
    pub fn set_timer(&mut self, turn: &mut Turn, key: ConnectionKey, deadline_ms: u64) {
        if let Some(connection) = self.get(key) {
            let left_ms = connection.expires_unix_ms().saturating_sub(turn.now.unix_ms);
            let message_due_ms = connection.message_due_ms(turn.settings.limits.idle_ms);
            let deadline_ms = deadline_ms
                .min(turn.now.ms.saturating_add(left_ms))
                .min(message_due_ms.unwrap_or(u64::MAX));
            connection.set_timer_tick(turn.timers.set(deadline_ms, Timer::Connection(key)));
        }
    }

    /// Closes a connection if it is a client that is not gone yet.
    pub fn close_client(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Reason) {
        if self.get(key).is_some_and(|connection| connection.client().is_some()) {
            self.close_with(turn, key, reason);
        }
    }

    /// Memory that connections hold, as an estimate; see [`super::Shard::held_bytes`].
    pub fn held_bytes(&mut self) -> usize {
        let (keys, _) = self.keys(0, usize::MAX);
        let held = keys.into_iter().filter_map(|key| {
            let connection = self.get(key)?;
            let outbound = &connection.outbound;
            let beside_outbound = connection.held_bytes() - outbound.charge();
            Some(beside_outbound + outbound.freed_bytes() + outbound.charge_in_flight())
        });
        held.sum()
    }

    /// Bytes were received. True if they are to be read now; otherwise they are held.
    pub fn handle_bytes(&mut self, turn: &mut Turn, key: ConnectionKey, input: &[u8]) -> bool {
        let Some(connection) = self.get(key) else { return false };
        turn.counters.received_bytes += input.len() as u64;
        connection.heard_ms = turn.now.ms;
        connection.is_pinged = false;
        if connection.paused != 0 || connection.is_resuming || !connection.held.is_empty() {
            self.hold(turn, key, input);
            return false;
        }
        if connection.is_heavy || !turn.work.takes(input.len()) {
            self.hold(turn, key, input);
            self.read_later(turn, key);
            return false;
        }
        true
    }

    /// The peer sends nothing more.
    pub fn handle_end(&mut self, turn: &mut Turn, key: ConnectionKey, is_broken: bool) {
        let Some(connection) = self.get(key) else { return };
        connection.is_ended = true;
        connection.is_broken |= is_broken;
        if connection.is_parting {
            return self.end_parting_socket(turn, key);
        }
        if self.end_held(turn, key) {
            return;
        }
        let Some(connection) = self.get(key) else { return };
        let waits_for_its_turn = connection.paused == 0 && connection.has_input();
        if is_broken && connection.paused != Pause::Topic as u8 && !waits_for_its_turn {
            self.break_off(turn, key);
        } else if connection.is_paused_for(Pause::Hold)
            || (connection.paused == 0 && !connection.has_input())
        {
            self.end(turn, key);
        }
        // Otherwise what it sent before counts first: the end comes when that is read.
    }

    /// Notes that a connection has something to write.
    pub fn queue_write(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.get(key)
            && connection.queued != Queued::Urgent
            && connection.outbound.is_ready()
        {
            connection.queued = Queued::Urgent;
            self.urgent.push_back(key);
        }
    }

    /// Puts bytes for this connection alone into its outbound queue.
    pub fn write_with(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        put: impl FnOnce(&mut Vec<u8>),
    ) {
        if let Some(connection) = self.get(key)
            && matches!(connection.phase, Phase::Open | Phase::Flushing)
        {
            connection.outbound.push_with(&mut turn.spare, put);
            self.queue_write(key);
        }
    }

    /// All of a batch is written: there may be more, or it was the last.
    pub fn after_batch(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let half_empty = connection.unread_charge() <= connection.outbound_max() / 2;
        if connection.phase == Phase::Flushing && connection.outbound.is_flushed() {
            return self.shut(turn, key);
        }
        if connection.queued == Queued::No && connection.outbound.is_ready() {
            // It has had its send: what came meanwhile goes behind the others.
            connection.queued = Queued::Bulk;
            self.bulk.push_back(key);
        }
        if half_empty {
            self.unpause(turn, key, Pause::Outbound);
        }
    }

    /// Stops reading from a connection for this reason.
    pub fn pause(&mut self, key: ConnectionKey, reason: Pause) {
        if let Some(connection) = self.get(key) {
            connection.paused |= reason as u8;
        }
    }

    /// This reason is gone. What was received meanwhile is read in a later step: never in the
    /// middle of another connection's work.
    pub fn unpause(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Pause) {
        let Some(connection) = self.get(key) else { return };
        if !connection.is_paused_for(reason) {
            return;
        }
        connection.paused &= !(reason as u8);
        if connection.paused == 0 {
            self.read_later(turn, key);
        }
    }

    fn receive_again(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if std::mem::take(&mut connection.is_stopped) {
            turn.actions.push_back(Action::Resume(key));
        }
    }

    /// The peer shut its end and all it sent is read. It may still wait for answers.
    pub fn end(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_broken {
            return self.break_off(turn, key);
        }
        match (&mut connection.stage, connection.phase) {
            (Stage::Http(http), Phase::Open) if !http.replies.is_empty() => http.is_last = true,
            (Stage::Backend(backend), Phase::Open) if !backend.replies.is_empty() => {}
            (_, Phase::Open) => {
                self.depart(turn, key, BROKEN_OFF, end_reason(false), By::Peer);
                self.finish(turn, key);
            }
            (_, Phase::Flushing) => {}
            (_, Phase::Lingering | Phase::Closed) => self.close(turn, key),
        }
    }

    /// The connection broke: nothing can be written to it any more.
    pub fn break_off(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.depart(turn, key, BROKEN_OFF, end_reason(true), By::Peer);
        self.close(turn, key);
    }

    /// The peer sent a close frame, which is answered with its own words, or is to get one. A back
    /// end that still waits for answers gets them first.
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
        self.depart(turn, key, closed.event_code(), &closed.reason, by);
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

    /// Ends a WebSocket connection from our side.
    pub fn close_with(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Reason) {
        self.close_for(turn, key, reason.code, reason.text, By::Node);
    }

    /// Ends it because the peer broke the protocol, or a limit of it. What it asked before is still
    /// answered first: the handshake's own answer may be among that.
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

    /// Ends a WebSocket connection with this code and reason.
    pub fn close_for(
        &mut self,
        turn: &mut Turn,
        key: ConnectionKey,
        code: u16,
        text: &str,
        by: By,
    ) {
        self.depart(turn, key, code, text, by);
        self.write_close(turn, key, code, text);
        self.finish(turn, key);
    }

    /// Ends it with 1013 because it reads too slowly. What waits for it is given up: it would keep
    /// the memory for as long as the peer cares to read slowly.
    pub fn close_slow(&mut self, turn: &mut Turn, key: ConnectionKey) {
        turn.counters.slow_closed += 1;
        if let Some(connection) = self.get(key) {
            connection.outbound.clear();
        }
        self.close_with(turn, key, close::SLOW_CLIENT);
    }

    /// Takes a connection out of all that it takes part in, and tells those who asked to be told.
    /// What waits for it can still be written.
    ///
    /// The close event of a client that parted says why it departs now: if not all that it sent was read,
    /// the code by which it parted would hide that.
    pub fn depart(&mut self, turn: &mut Turn, key: ConnectionKey, code: u16, reason: &str, by: By) {
        self.forget_parting(key);
        let trail = turn.trail(key);
        let Some(connection) = self.get(key) else { return };
        match &connection.stage {
            Stage::Client(c) => trail::note(trail, Entry::Closed(Some(c.id), by, code, reason)),
            Stage::Backend(_) => trail::note(trail, Entry::Closed(None, by, code, reason)),
            Stage::Http(_) | Stage::Ending => {}
            Stage::Leaving(_) => return,
        }
        match std::mem::replace(&mut connection.stage, Stage::Ending) {
            Stage::Client(client) => {
                // It stays in its place: other members of its channels may still move it.
                connection.stage = Stage::Leaving(client);
                let reason = reason.into();
                turn.leave(Step::ClientGone(ClientGone { key, code, reason }));
            }
            Stage::Backend(backend) if backend.has_consumed => {
                // They go to other consumers.
                connection.outbound.drop_shared();
                let unwritten = backend.deliveries.into_iter().map(|(_, _, topic)| topic);
                let topics = backend.topics.into_iter().chain(unwritten).collect();
                turn.leave(Step::ConsumerGone(key, topics));
            }
            Stage::Backend(_) | Stage::Http(_) | Stage::Leaving(_) | Stage::Ending => {}
        }
    }

    /// Writes what waits, then shuts our end.
    pub fn finish(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let deadline = turn.now.ms + LINGER_MS;
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.phase = Phase::Flushing;
        if !connection.is_parting {
            connection.held = Held::default();
            connection.paused = 0;
        }
        // To see the peer's end it must be received from; what it says is not listened to.
        self.receive_again(turn, key);
        let is_flushed = self.get(key).is_some_and(|c| c.outbound.is_flushed());
        self.set_timer(turn, key, deadline);
        if is_flushed {
            self.shut(turn, key);
        }
    }

    fn shut(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.is_ended {
            return self.close(turn, key);
        }
        connection.phase = Phase::Lingering;
        turn.actions.push_back(Action::Shutdown(key));
    }

    /// Closes the socket at once.
    pub fn close(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Closed {
            connection.phase = Phase::Closed;
            connection.outbound.clear();
            turn.actions.push_back(Action::Close(key));
        }
    }

    pub fn check_connection(&mut self, turn: &mut Turn, key: ConnectionKey, tick: u64) {
        let now_ms = turn.now.ms;
        let limits = turn.settings.limits.clone();
        let Some(connection) = self.get(key) else { return };
        if !connection.is_due_at(tick) || connection.phase == Phase::Closed {
            return;
        }
        if connection.phase == Phase::Open && connection.expires_unix_ms() <= turn.now.unix_ms {
            turn.counters.expired += 1;
            return self.close_with(turn, key, close::TOKEN_EXPIRED);
        }
        if connection.message_due_ms(limits.idle_ms).is_some_and(|due_ms| due_ms <= now_ms) {
            turn.counters.limits.unfinished_message += 1;
            return self.close_with(turn, key, close::UNFINISHED);
        }
        // Silence while it cannot be heard does not count.
        let is_unheard = connection.is_unheard();
        let waits_for_us = connection.is_resuming || is_unheard;
        // Where there are no users, nobody has anything to show.
        let is_stranger = connection.is_stranger() && !turn.settings.api.users.is_empty();
        let silent_since = if waits_for_us { now_ms } else { connection.heard_ms };
        let deadline = match (&connection.stage, connection.phase) {
            (_, Phase::Flushing | Phase::Lingering) | (Stage::Leaving(_) | Stage::Ending, _) => {
                return self.close(turn, key);
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
        let is_websocket = matches!(connection.stage, Stage::Client(_) | Stage::Backend(_));
        if is_unheard && is_websocket && connection.outbound.is_flushed() {
            // Nobody may be there: then the kernel finds out.
            self.write_with(turn, key, |out| put_frame(out, Opcode::Ping, b""));
            return self.set_timer(turn, key, now_ms + limits.ping_ms);
        }
        if now_ms < deadline {
            return self.set_timer(turn, key, deadline);
        }
        match &connection.stage {
            Stage::Http(http) if http.parked.is_some() => turn.leave(Step::VerdictLate(key)),
            Stage::Http(http) if http.is_mid_request => self.refuse_slow_request(turn, key),
            Stage::Http(http) => {
                match http.has_answered && !is_stranger {
                    true => turn.counters.limits.idle_ms += 1,
                    false => turn.counters.limits.handshake_ms += 1,
                }
                self.finish(turn, key);
            }
            _ if connection.is_pinged => self.close_silent(turn, key),
            _ => {
                connection.is_pinged = true;
                // A ping that comes late leaves as much time for its answer as one that is on time.
                connection.heard_ms = silent_since.max(now_ms.saturating_sub(limits.ping_ms));
                let due_ms = connection.heard_ms + limits.idle_ms;
                self.write_with(turn, key, |out| put_frame(out, Opcode::Ping, b""));
                // Looks again when a peer that answers at once would be due for the next ping.
                self.set_timer(turn, key, due_ms.min(now_ms + limits.ping_ms));
            }
        }
    }
}

impl Connections {
    /// Forgets a connection whose socket is closed, unless its client has channels to leave, or parts.
    pub fn forget_connection(&mut self, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        match connection.stage {
            Stage::Leaving(_) => connection.is_socket_closed = true,
            _ if connection.is_parting => connection.is_socket_closed = true,
            _ => self.remove(key),
        }
    }

    /// Forgets a connection whose socket is closed and whose client has no channel to leave any more.
    pub fn forget_if_left(&mut self, key: ConnectionKey) {
        let is_left = |connection: &mut Connection| matches!(connection.stage, Stage::Ending);
        if self.get(key).is_some_and(is_left) {
            self.forget_if_closed(key);
        }
    }

    /// Forgets a connection whose socket is closed.
    pub fn forget_if_closed(&mut self, key: ConnectionKey) {
        if self.get(key).is_some_and(|connection| connection.is_socket_closed) {
            self.remove(key);
        }
    }
}
