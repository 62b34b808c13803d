//! Delayed events of a log: stored, and not yet among the events that the groups get.
//!
//! A delayed event has a record of its own, and none of the numbers of events. Once it is due, one further record adds it to
//! the events and ends the delay, so a crash leaves it delayed or makes it an event. The checkpoint of each segment
//! holds all delayed events: none of them keeps an earlier file, and recovery finds them in the last one.

use std::collections::BTreeMap;

use super::Log;
use crate::address::ClientId;
use crate::message::{DelayedEvent, DelayedNumber, MessageNumber};
use crate::protocol::frame::Frame;

/// The delayed events whose records are written. The topic bounds their number and bytes.
#[derive(Debug, Default)]
pub(super) struct DelayedEvents {
    events: BTreeMap<DelayedNumber, DelayedEvent>,
    next: DelayedNumber,
}

impl DelayedEvents {
    /// The events, in the order of their numbers.
    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = &DelayedEvent> {
        self.events.values()
    }

    /// The next delayed event gets this number.
    pub(super) fn next(&self) -> DelayedNumber {
        self.next
    }

    /// Adds events that were written, and removes those that have come due.
    pub(super) fn apply(&mut self, added: Vec<DelayedEvent>, due: &[DelayedNumber]) {
        self.events.extend(added.into_iter().map(|event| (event.number, event)));
        for number in due {
            self.events.remove(number);
        }
    }

    /// Adds an event that recovery has found.
    pub(super) fn recover(&mut self, event: DelayedEvent) {
        self.next = self.next.max(DelayedNumber(event.number.0 + 1));
        self.events.insert(event.number, event);
    }

    /// Removes an event that has come due, as recovery has found; false if there is none.
    pub(super) fn end(&mut self, number: DelayedNumber) -> bool {
        self.events.remove(&number).is_some()
    }
}

impl Log {
    /// Adds a delayed event. It is stored once [`Self::handle_done`] has counted it.
    pub fn append_delayed(&mut self, client: ClientId, due_ms: u64, frame: Frame) -> DelayedNumber {
        let number = self.delayed.next;
        self.delayed.next.0 += 1;
        self.pending.add_delayed(DelayedEvent { number, client, due_ms, frame });
        number
    }

    /// Adds a stored delayed event to the events. Returns its number among them, as [`Self::append`] does.
    ///
    /// # Panics
    /// There is no such delayed event. Each is added once.
    pub fn append_due(&mut self, number: DelayedNumber, unix_ms: u64) -> MessageNumber {
        let event = self.delayed.events.get(&number).expect("a delayed event is stored first");
        self.pending.add_due(unix_ms, event)
    }

    /// The delayed events that are stored, in the order of their numbers.
    pub fn delayed(&self) -> impl ExactSizeIterator<Item = &DelayedEvent> {
        self.delayed.iter()
    }
}
