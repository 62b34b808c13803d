//! Changes the bounds of a topic while messages wait in it.
//!
//! A topic over its new bounds takes no more messages until it is below them. With `drop_oldest` the excess is
//! dropped, in slices. Feeding shards return the credit beyond their new share when they are asked to.

use super::{Effect, Topic, window_messages};
use crate::address::ShardId;
use crate::message::Credit;
use crate::queue::{Bounds, WhenFull};

impl Topic {
    /// Applies new bounds. Messages in the topic stay, unless it is to drop its oldest.
    pub fn set_bounds(&mut self, bounds: Bounds, when_full: WhenFull) {
        self.when_full = when_full;
        self.window_messages = window_messages(bounds, when_full);
        self.held.room.set_bounds(bounds);
        self.set_windows();
        // Feeders of a topic that was never fed have the credit of the start, and may not exist yet.
        if self.is_fed {
            self.recall();
        }
        self.must_make_room = true;
    }

    /// Whether these are the bounds of the topic, and this is what it does when it is full.
    pub fn has_bounds(&self, bounds: Bounds, when_full: WhenFull) -> bool {
        self.held.room.bounds() == bounds && self.when_full == when_full
    }

    /// Takes back credit that a feeding shard has returned.
    pub fn returned_credit(&mut self, from: ShardId, credit: Credit) {
        self.held.room.take_back(from, credit);
        self.held.grant_to_asking();
    }

    /// Notes that the topic is fed. Its feeders began with the credit of the start, which may exceed their share
    /// by now.
    #[cold]
    pub(super) fn begin_feeding(&mut self) {
        self.is_fed = true;
        self.recall();
    }

    /// Drops up to `max` messages that exceed changed bounds, or whose room shards ask for, and answers the
    /// requests that waited. Returns how many more may be dropped in this turn.
    pub(super) fn make_room(&mut self, max: usize) -> usize {
        let mut left = max;
        loop {
            self.held.grant_to_asking();
            let lacks_room = self.held.room.is_exceeded() || self.held.room.lacks_room();
            if self.when_full != WhenFull::DropOldest || !lacks_room {
                break;
            }
            if left == 0 {
                return 0;
            }
            if !self.drop_oldest() {
                break;
            }
            left -= 1;
        }
        self.must_make_room = false;
        if self.when_full == WhenFull::Close {
            let refused = std::iter::from_fn(|| self.held.room.refuse_next());
            self.held.effects.extend(refused.map(Effect::Refuse));
        }
        left
    }

    fn recall(&mut self) {
        let recalled = self.held.room.to_recall();
        self.held.effects.extend(recalled.map(|(shard, most)| Effect::Recall(shard, most)));
    }

    /// Gives consumers that do not acknowledge the window of the new bounds. A window may have grown, so each is
    /// offered what waits.
    fn set_windows(&mut self) {
        let window_messages = self.window_messages;
        self.each_group(|group, _| group.set_windows(window_messages));
    }
}
