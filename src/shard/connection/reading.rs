//! How connections are read from: at once, later, or not for as long as something pauses them.

use super::{Connections, HELD_BYTES, Held, Pause, Phase};
use crate::message::ConnectionKey;
use crate::shard::turn::{Action, Turn};

impl Connections {
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

    pub(super) fn receive_again(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if std::mem::take(&mut connection.is_stopped) {
            turn.actions.push_back(Action::Resume(key));
        }
    }

    /// Lets a connection wait for a turn in which it is read again.
    pub fn read_later(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        let is_read = connection.phase == Phase::Open || connection.is_parting;
        if connection.is_resuming || !is_read {
            return;
        }
        connection.is_resuming = true;
        turn.work.wait(key, connection.is_heavy, connection.is_inflating);
    }

    /// Notes whether a connection that was just read spent its slice, and lets it wait if some of
    /// its input is left.
    pub fn note_slice(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let is_spent = turn.work.is_slice_spent();
        let Some(connection) = self.get(key) else { return };
        connection.is_heavy = is_spent;
        if is_spent && connection.paused == 0 && connection.has_input() {
            self.read_later(turn, key);
        }
    }
}
