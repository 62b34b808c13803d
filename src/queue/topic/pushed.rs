//! Messages without credit: events that back ends push, and messages for a dead topic.

use super::{Burial, StoredFor, Topic, WhenFull};
use crate::message::{Credit, Event};

impl Topic {
    /// Adds an event without credit if there is room; false if there is none. A topic that drops its oldest
    /// makes room.
    pub fn offer(&mut self, now_us: u64, event: Event) -> bool {
        let has_room = self.take_room(event.frame.bytes().len());
        match self.is_on_disk() {
            true if has_room => self.store(now_us, StoredFor::Nobody, event),
            false if has_room => self.add(now_us, event),
            _ => {}
        }
        has_room
    }

    /// Adds an event of another topic, which it was handed out in too often. `None`: [`Effect::DeadStored`] tells when
    /// the event is in; otherwise whether it is.
    ///
    /// [`Effect::DeadStored`]: super::Effect::DeadStored
    pub fn offer_dead(&mut self, now_us: u64, event: Event, burial: Burial) -> Option<bool> {
        if !self.is_on_disk() {
            return Some(self.offer(now_us, event));
        }
        if !self.take_room(event.frame.bytes().len()) {
            return Some(false);
        }
        self.store(now_us, StoredFor::Burial(burial), event);
        None
    }

    /// Takes room for an event without credit; false if there is none.
    pub(super) fn take_room(&mut self, bytes: usize) -> bool {
        let needed = Credit { messages: 1, bytes };
        if self.when_full == WhenFull::DropOldest && !self.must_make_room {
            while self.held.room.lacks(needed) && self.drop_oldest() {}
        }
        let has_room = self.held.room.has(needed);
        if has_room {
            self.held.room.take_unlent(bytes);
        }
        has_room
    }

    /// Asks for [`Effect::RoomForPush`] once there is room for an event of this many bytes. Returns false if
    /// nothing may wait for room ([`WhenFull::Close`]).
    pub fn wait_for_room(&mut self, bytes: usize) -> bool {
        if self.when_full == WhenFull::Close {
            return false;
        }
        if !self.is_fed {
            self.begin_feeding();
        }
        self.held.room.ask_for_push(bytes);
        self.held.grant_to_asking();
        true
    }

    /// Whether feeders, or events of back ends, wait for room. Who comes later waits behind them.
    pub fn has_waiting(&self) -> bool {
        self.held.room.has_asking()
    }

    /// Notes that the event which [`Self::wait_for_room`] was called for has taken its room, or waits no more.
    pub fn end_waiting(&mut self) {
        self.held.room.end_push_grant();
        self.held.grant_to_asking();
    }
}
