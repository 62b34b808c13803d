//! Messages that a back end has pushed for later. They take room from the start, and come into the topic when
//! their time has come, as if they arrived then. A topic that drops its oldest does not drop them.
//!
//! A topic on disk stores a delayed message first. When its time has come, one record of the log adds it to the others and
//! ends the delay. After a restart, the first news of the log bring the delayed messages back.

use std::collections::{BTreeMap, VecDeque};

use super::disk::{StoredFor, UnstoredDelayed};
use super::{Effect, Topic};
use crate::message::{Credit, DelayedEvent, DelayedNumber, Event, Requester};
use crate::queue::Bounds;

/// The most delayed messages of a topic on disk. Each new file of the log begins with all of them.
pub const DELAYED_MAX: Bounds = Bounds { messages: 1 << 16, bytes: 16 << 20 };

/// Messages whose time has come that a check moves into the topic. The next check moves the others.
const DUE_PER_CHECK: usize = 4096;

/// The messages for later, within the bounds of their topic.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    // By the time at which they come into the topic, in microseconds. No entry is empty.
    events: BTreeMap<u64, VecDeque<DelayedMessage>>,
    count: usize,
}

/// A message for later.
#[derive(Debug)]
struct DelayedMessage {
    event: Event,
    // The number in the log of a topic on disk.
    number: Option<DelayedNumber>,
}

impl Delayed {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The number of messages.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// The number of messages, and their bytes. Costs a look at every message.
    pub(super) fn sum(&self) -> Credit {
        let messages = self.events.values().flatten();
        messages.fold(Credit::default(), |sum, message| Credit {
            messages: sum.messages + 1,
            bytes: sum.bytes + message.event.frame.bytes().len(),
        })
    }

    fn push(&mut self, due_us: u64, event: Event, number: Option<DelayedNumber>) {
        self.events.entry(due_us).or_default().push_back(DelayedMessage { event, number });
        self.count += 1;
    }

    fn pop_due(&mut self, now_us: u64) -> Option<DelayedMessage> {
        let mut first = self.events.first_entry().filter(|first| *first.key() <= now_us)?;
        let message = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        self.count -= 1;
        message
    }
}

impl Topic {
    /// Adds an event that is handed out from `due_us` on, if there is room; false if there is none.
    pub fn offer_delayed(&mut self, due_us: u64, event: Event) -> bool {
        let has_room = self.take_room(event.frame.bytes().len());
        if has_room {
            self.delayed.push(due_us, event, None);
        }
        has_room
    }

    /// Adds a delayed event to a topic on disk, as [`Self::offer_delayed`] does, if [`Self::may_delay`] allows it too.
    /// [`Effect::Stored`] follows, or the requester is among [`Self::take_late`].
    pub fn offer_delayed_stored(
        &mut self,
        due_us: u64,
        event: Event,
        requester: Requester,
        until_ms: u64,
    ) -> bool {
        let bytes = event.frame.bytes().len();
        let has_room = self.may_delay(bytes) && self.take_room(bytes);
        if has_room {
            self.held.room.note_unstored(bytes);
            let source = StoredFor::Push(requester, until_ms);
            self.disk_mut().add_delayed(UnstoredDelayed { source, due_us, event });
        }
        has_room
    }

    /// Whether a further event of this many bytes may be delayed. A topic on disk delays at most [`DELAYED_MAX`].
    pub fn may_delay(&self, bytes: usize) -> bool {
        let delayed = self.held.disk.as_ref().map(|disk| disk.delayed);
        delayed.is_none_or(|delayed| {
            delayed.messages < DELAYED_MAX.messages && delayed.bytes + bytes <= DELAYED_MAX.bytes
        })
    }

    /// Moves messages whose time has come into the topic.
    pub(super) fn add_due(&mut self, now_us: u64) {
        for _ in 0..DUE_PER_CHECK {
            let Some(DelayedMessage { event, number }) = self.delayed.pop_due(now_us) else {
                return;
            };
            match number {
                None => self.add(now_us, event),
                Some(number) => self.store_due(now_us, number, event),
            }
        }
    }

    /// Lets the log add a delayed event to the others. The event keeps its room.
    fn store_due(&mut self, now_us: u64, number: DelayedNumber, event: Event) {
        self.held.room.note_unstored(event.frame.bytes().len());
        self.next_number.0 += 1;
        self.disk_mut().add_due(now_us, number, event);
    }

    /// Takes the news of delayed events: how many of those that were not stored are now, and those of an earlier run.
    pub(super) fn take_delayed_news(
        &mut self,
        unix_start_us: u64,
        stored: u64,
        mut recovered: Vec<DelayedEvent>,
    ) {
        // Those that are overdue come in the order of their times too.
        recovered.sort_by_key(|event| event.due_ms);
        for DelayedEvent { number, client, due_ms, frame } in recovered {
            let due_us = due_ms.saturating_mul(1000).saturating_sub(unix_start_us);
            let delayed = &mut self.disk_mut().delayed;
            delayed.messages += 1;
            delayed.bytes += frame.bytes().len();
            self.delayed.push(due_us, Event::new(client, frame), Some(number));
        }
        for _ in 0..stored {
            let disk = self.disk_mut();
            let Some(UnstoredDelayed { source, due_us, event }) = disk.unstored_delayed.pop_front()
            else {
                return;
            };
            let number = disk.stored_delayed;
            disk.stored_delayed.0 += 1;
            self.held.room.note_stored(event.frame.bytes().len());
            if let StoredFor::Push(requester, _) = source {
                self.held.effects.push_back(Effect::Stored(requester));
            }
            self.delayed.push(due_us, event, Some(number));
        }
    }
}
