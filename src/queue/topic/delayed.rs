//! Messages that a back end has pushed for later. They take room from the start, and come into the topic when
//! their time has come, as if they arrived then. A topic that drops its oldest does not drop them.

use std::collections::{BTreeMap, VecDeque};

use super::Topic;
use crate::message::{Credit, Event};

/// Messages whose time has come that a check moves into the topic. The next check moves the others.
const DUE_PER_CHECK: usize = 4096;

/// The messages for later, within the bounds of their topic.
#[derive(Debug, Default)]
pub(super) struct Delayed {
    // By the time at which they come into the topic, in microseconds. No entry is empty.
    events: BTreeMap<u64, VecDeque<Event>>,
    count: usize,
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
        let events = self.events.values().flatten();
        events.fold(Credit::default(), |sum, event| Credit {
            messages: sum.messages + 1,
            bytes: sum.bytes + event.frame.bytes().len(),
        })
    }

    fn push(&mut self, due_us: u64, event: Event) {
        self.events.entry(due_us).or_default().push_back(event);
        self.count += 1;
    }

    fn pop_due(&mut self, now_us: u64) -> Option<Event> {
        let mut first = self.events.first_entry().filter(|first| *first.key() <= now_us)?;
        let event = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        self.count -= 1;
        event
    }
}

impl Topic {
    /// Adds an event that is handed out from `due_us` on, if there is room; false if there is none.
    pub fn offer_delayed(&mut self, due_us: u64, event: Event) -> bool {
        let has_room = self.take_room(event.frame.bytes().len());
        if has_room {
            self.delayed.push(due_us, event);
        }
        has_room
    }

    /// Moves messages whose time has come into the topic.
    pub(super) fn add_due(&mut self, now_us: u64) {
        for _ in 0..DUE_PER_CHECK {
            let Some(event) = self.delayed.pop_due(now_us) else { return };
            self.add(now_us, event);
        }
    }
}
