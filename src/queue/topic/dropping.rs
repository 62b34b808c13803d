//! Drops messages that wait: those that are too old, and in a full topic the oldest ones to make room.
//!
//! A message is dropped from all groups in which it waits. Groups that have it in flight keep it, and its room is
//! released when the last of them has settled it. A topic on disk settles a dropped message in its log, also for
//! groups that have not read it yet (`disk.rs`).

use super::Topic;
use super::sink::SinkGroup;
use crate::address::ClientId;
use crate::message::MessageNumber;
use crate::queue::WhenFull;
use crate::queue::consumers::age_us;

/// Messages that a check drops because they are too old. The next check drops the others.
const AGED_PER_CHECK: usize = 1 << 14;

impl Topic {
    /// Drops the oldest message that waits in a group, from all groups in which it waits; false if there is none.
    /// Where the message is in flight, its room is released later.
    pub(super) fn drop_oldest(&mut self) -> bool {
        let Some((number, client)) = self.oldest() else { return false };
        self.drop_waiting(number, client);
        self.dropped += 1;
        true
    }

    /// Lets the next turn make room, if the topic drops its oldest and is over its bounds or has too little room for
    /// those who ask.
    pub(super) fn note_lack_of_room(&mut self) {
        let lacks_room = self.held.room.lacks_room() || self.held.room.is_exceeded();
        self.must_make_room |= self.when_full == WhenFull::DropOldest && lacks_room;
    }

    /// Drops messages that wait and are too old.
    pub(super) fn drop_aged(&mut self, now_us: u64) {
        if self.held.policy.age_max_us == 0 {
            return;
        }
        let mut left = AGED_PER_CHECK;
        while left > 0
            && let Some((number, client)) = self.oldest()
            && self.oldest_since_us().is_some_and(|since_us| self.is_aged(now_us, since_us))
        {
            self.drop_waiting(number, client);
            self.aged += 1;
            left -= 1;
        }
        self.held.grant_to_asking();
    }

    /// Whether a message that arrived at this time is too old.
    pub(super) fn is_aged(&self, now_us: u64, since_us: i64) -> bool {
        let age_max_us = self.held.policy.age_max_us;
        age_max_us > 0 && age_us(now_us, since_us) >= age_max_us
    }

    fn oldest(&self) -> Option<(MessageNumber, ClientId)> {
        let of_groups = self.all_groups().filter_map(|group| group.lanes.oldest());
        of_groups.chain(self.sinks.iter().filter_map(SinkGroup::oldest)).min()
    }

    /// Drops the first waiting message of a client from all groups in which it waits.
    fn drop_waiting(&mut self, number: MessageNumber, client: ClientId) {
        let mut bytes = None;
        self.each_group(|group, held| {
            if let Some(item) = group.lanes.drop_first(client, number) {
                group.backlog -= 1;
                bytes = Some(item.frame.bytes().len());
                held.forget(group.place, client, &item);
            }
        });
        for sink in &mut self.sinks {
            bytes = sink.drop_first(&mut self.held, number).or(bytes);
        }
        if let Some(bytes) = bytes
            && self.is_on_disk()
        {
            self.drop_stored(number, client, bytes);
        }
    }
}
