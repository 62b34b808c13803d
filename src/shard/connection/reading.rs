//! Reading from connections: at once, in a later turn, or after a pause.

use super::{Connections, Pause, Phase, READ_AHEAD_BYTES_MAX, ReadAhead};
use crate::message::ConnectionKey;
use crate::shard::turn::{Action, Turn};

impl Connections {
    /// Takes note that a queued connection is about to be read. Returns false if reading is paused.
    pub fn is_to_resume(&mut self, key: ConnectionKey) -> bool {
        self.get(key).is_some_and(|connection| {
            connection.is_queued_to_read = false;
            !connection.is_paused()
        })
    }

    /// Takes the read-ahead, unless reading is paused or a message is partly inflated. The caller
    /// returns what it has not processed with [`Self::put_back_read_ahead`].
    pub fn take_read_ahead(&mut self, key: ConnectionKey) -> Option<ReadAhead> {
        let connection = self.get(key)?;
        let may = !connection.is_paused() && !connection.is_inflating;
        may.then(|| std::mem::take(&mut connection.read_ahead))
    }

    /// Puts back the unprocessed rest of the read-ahead.
    pub fn put_back_read_ahead(&mut self, key: ConnectionKey, held: ReadAhead) {
        if let Some(connection) = self.get(key) {
            connection.read_ahead = held;
        }
    }

    /// Appends unprocessed input to the read-ahead. Tells the driver to stop receiving if that is
    /// full.
    pub fn push_read_ahead(&mut self, turn: &mut Turn, key: ConnectionKey, input: &[u8]) {
        if input.is_empty() {
            return;
        }
        let Some(connection) = self.get(key) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        connection.read_ahead.push(input);
        self.scan_read_ahead(turn, key);
        let Some(connection) = self.get(key) else { return };
        let may_stop = connection.phase == Phase::Open && !connection.is_read_closed;
        if connection.read_ahead.is_full() && !connection.is_receive_stopped && may_stop {
            connection.is_receive_stopped = true;
            turn.actions.push_back(Action::Pause(key));
        }
    }

    /// Decides what follows after a queued connection was read: it is queued again, closed, or
    /// received from again.
    pub fn after_reading(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.record_slice(turn, key);
        let Some(connection) = self.get(key) else { return };
        // A connection that was queued again while it was read stays in the queue, unless it was
        // paused too: the queue skips paused connections.
        if connection.is_queued_to_read && !connection.is_paused() {
            return;
        }
        // A disconnected client that is held for a context key has nothing to wait for.
        let has_ended = connection.is_read_closed || connection.has_pending_close;
        let is_over = has_ended && connection.is_paused_for(Pause::Hold);
        if connection.is_paused() && !is_over {
            return self.scan_and_receive(turn, key);
        }
        if connection.has_pending_close {
            return self.report_pending_close(turn, key);
        }
        connection.last_received_ms = turn.now.ms;
        match connection.is_read_closed {
            true => self.end_after_input(turn, key),
            false => self.receive_again(turn, key),
        }
    }

    /// Scans the read-ahead of a connection that is still paused, and receives again if half of it
    /// is free.
    fn scan_and_receive(&mut self, turn: &mut Turn, key: ConnectionKey) {
        self.scan_read_ahead(turn, key);
        let Some(connection) = self.get(key) else { return };
        if connection.is_receive_stopped && connection.read_ahead.len() <= READ_AHEAD_BYTES_MAX / 2
        {
            connection.last_received_ms = turn.now.ms;
            self.receive_again(turn, key);
        }
    }

    /// Handles received bytes. Returns true if the caller has to read the bytes now. Otherwise they
    /// were added to the read-ahead.
    pub fn handle_bytes(&mut self, turn: &mut Turn, key: ConnectionKey, input: &[u8]) -> bool {
        let Some(connection) = self.get(key) else { return false };
        turn.counters.received_bytes += input.len() as u64;
        connection.record_received(input.len());
        connection.last_received_ms = turn.now.ms;
        connection.is_pinged = false;
        if connection.is_paused()
            || connection.is_queued_to_read
            || !connection.read_ahead.is_empty()
        {
            self.push_read_ahead(turn, key, input);
            return false;
        }
        if connection.is_heavy || !turn.work.takes(input.len()) {
            self.push_read_ahead(turn, key, input);
            self.read_later(turn, key);
            return false;
        }
        true
    }

    /// Pauses reading from a connection for this reason.
    pub fn pause(&mut self, key: ConnectionKey, reason: Pause) {
        if let Some(connection) = self.get(key) {
            connection.pauses.insert(reason);
        }
    }

    /// Removes a reason for a pause. When no reason is left, the connection is read in a later
    /// step, never in the middle of another connection's work.
    pub fn unpause(&mut self, turn: &mut Turn, key: ConnectionKey, reason: Pause) {
        let Some(connection) = self.get(key) else { return };
        if !connection.is_paused_for(reason) {
            return;
        }
        connection.pauses.remove(reason);
        if !connection.is_paused() {
            self.read_later(turn, key);
        }
    }

    pub(super) fn receive_again(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if std::mem::take(&mut connection.is_receive_stopped) {
            turn.actions.push_back(Action::Resume(key));
        }
    }

    /// Queues a connection to be read in a later turn, unless it is queued already.
    pub fn read_later(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let is_read = connection.phase == Phase::Open || connection.has_pending_close;
        if connection.is_queued_to_read || !is_read {
            return;
        }
        connection.is_queued_to_read = true;
        turn.work.wait(key, connection.is_heavy, connection.is_inflating);
    }

    /// Records whether a connection that was just read used up its slice, and queues it if input is
    /// left.
    pub fn record_slice(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let is_spent = turn.work.is_slice_spent();
        let Some(connection) = self.get(key) else { return };
        connection.is_heavy = is_spent;
        if is_spent && !connection.is_paused() && connection.has_input() {
            self.read_later(turn, key);
        }
    }
}
