//! Announces this node's interest to the others, and tells shards when all nodes know of it.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Mesh;
use super::link::{Lane, LinkEffect, LinkId};
use super::links::control_effect;
use super::liveness::LEASE_MS;
use super::numbers::{AnnouncementNumber, ChannelHash};
use super::wire::{self, Control};
use crate::address::ShardId;
use crate::message::{FromMesh, InterestChange};

/// Allowance for clocks of two machines that run at different rates, in milliseconds.
const LEASE_SLACK_MS: u64 = 50;

/// Channels per message of a whole interest: 512 KiB.
const CHANNELS_PER_MESSAGE: usize = 1 << 16;

/// This node's announcements, and who waits for them to be known.
#[derive(Debug)]
pub(super) struct Announcements {
    last: AnnouncementNumber,
    // Announcements within the last lease, oldest first: at most one per turn. A node that has not
    // confirmed one may still rely on the interest before it.
    recent: VecDeque<Announced>,
    // No node can still be unaware of announcements up to this one.
    expired: AnnouncementNumber,
    // Changes that shards wait for, by announcement.
    waiting: VecDeque<WaitingChange>,
}

#[derive(Clone, Copy, Debug)]
struct Announced {
    number: AnnouncementNumber,
    at_ms: u64,
}

/// A change of a shard's interest.
#[derive(Clone, Copy, Debug)]
struct WaitingChange {
    // The announcement that includes it.
    announcement: AnnouncementNumber,
    shard: ShardId,
    // The shard's own number of the change.
    change: InterestChange,
}

impl Default for Announcements {
    fn default() -> Self {
        // The interest of a node that has just started, which is empty, is the first announcement.
        let first = AnnouncementNumber(1);
        Self { last: first, recent: VecDeque::new(), expired: first, waiting: VecDeque::new() }
    }
}

impl Announcements {
    /// Lets a shard wait until its change is known. With `is_pending`, the next announcement will
    /// include the change; otherwise the last one has.
    pub(super) fn wait(&mut self, is_pending: bool, shard: ShardId, change: InterestChange) {
        let announcement = AnnouncementNumber(self.last.0 + u64::from(is_pending));
        self.waiting.push_back(WaitingChange { announcement, shard, change });
    }

    /// How many changes are waited for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When the oldest unconfirmed announcement expires, if a change waits for any.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        self.recent.front().map(|announced| announced.at_ms + LEASE_MS + LEASE_SLACK_MS)
    }

    /// The number of a new announcement.
    fn begin(&mut self, now_ms: u64) -> AnnouncementNumber {
        self.last.0 += 1;
        self.recent.push_back(Announced { number: self.last, at_ms: now_ms });
        self.last
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some(&Announced { number, at_ms }) = self.recent.front()
            && at_ms + LEASE_MS + LEASE_SLACK_MS <= now_ms
        {
            self.expired = number;
            self.recent.pop_front();
        }
    }

    /// The next change that all nodes know of, if they have all confirmed up to `confirmed`; `None`: there
    /// are no other nodes.
    fn poll_known(
        &mut self,
        confirmed: Option<AnnouncementNumber>,
    ) -> Option<(ShardId, InterestChange)> {
        let known = confirmed.map(|confirmed| confirmed.max(self.expired));
        let first = self.waiting.front()?;
        if known.is_some_and(|known| first.announcement > known) {
            return None;
        }
        self.waiting.pop_front().map(|change| (change.shard, change.change))
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        assert!(self.expired <= self.last, "an announcement expires after it is made");
        let numbers = self.recent.iter().map(|announced| announced.number);
        let expected = self.expired.0 + 1..=self.last.0;
        assert!(numbers.eq(expected.map(AnnouncementNumber)), "recent ones are those in between");
        assert!(self.recent.iter().is_sorted_by_key(|announced| announced.at_ms));
        assert!(self.waiting.iter().is_sorted_by_key(|waiting| waiting.announcement));
        let next = self.last.0 + 1;
        assert!(self.waiting.back().is_none_or(|waiting| waiting.announcement.0 <= next));
    }
}

impl Mesh {
    /// Announces to every node which channels have become wanted here, and which are not any more.
    pub(super) fn announce_changes(&mut self, now_ms: u64) {
        if !self.local_interest.has_changes() {
            return;
        }
        let (on, off) = self.local_interest.take_changes();
        let number = Some(self.announcements.begin(now_ms));
        let mut bytes = Vec::new();
        wire::put_control(&mut bytes, &Control::Interest { number, is_whole: false, on, off });
        let bytes = Bytes::from(bytes);
        for link in self.peers.values().filter_map(|peer| peer.link) {
            self.effects.push_back(LinkEffect::Send(link, Lane::Control, bytes.clone()));
        }
    }

    /// Announces the whole interest on a new link, in parts. Only the last part has a number. Takes the
    /// memory of the encoded parts, and of one part that is not encoded yet.
    pub(super) fn announce_whole_interest(&mut self, link: LinkId) {
        let mut channels = self.local_interest.channels();
        let mut is_whole = true;
        loop {
            let on: Vec<ChannelHash> = channels.by_ref().take(CHANNELS_PER_MESSAGE).collect();
            let is_last = channels.len() == 0;
            let number = is_last.then_some(self.announcements.last);
            let part = Control::Interest { number, is_whole, on, off: Vec::new() };
            self.effects.push_back(control_effect(link, &part));
            if is_last {
                return;
            }
            is_whole = false;
        }
    }

    /// Tells shards which of their changes are known to every node that could publish without asking.
    pub(super) fn tell_what_is_known(&mut self, now_ms: u64) {
        self.announcements.expire(now_ms);
        if self.announcements.waiting.is_empty() {
            return;
        }
        let never = AnnouncementNumber(0);
        let confirmed = self.peers.values().map(|peer| peer.confirmed.unwrap_or(never)).min();
        while let Some((shard, change)) = self.announcements.poll_known(confirmed) {
            self.tell_shard(shard, FromMesh::InterestKnown(change));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::tests::mesh;

    const SHARD: ShardId = ShardId(1);

    #[test]
    fn a_change_is_known_once_all_have_confirmed_it_or_its_lease_has_ended() {
        let mut announcements = Announcements::default();
        let confirmed = |number| Some(AnnouncementNumber(number));
        announcements.wait(false, SHARD, InterestChange(7));
        assert_eq!(
            announcements.poll_known(confirmed(0)),
            Some((SHARD, InterestChange(7))),
            "it was announced"
        );
        announcements.wait(true, SHARD, InterestChange(8));
        assert_eq!(announcements.begin(100), AnnouncementNumber(2));
        announcements.wait(true, SHARD, InterestChange(9));
        announcements.check();
        assert_eq!(announcements.begin(200), AnnouncementNumber(3));
        assert_eq!(announcements.poll_known(confirmed(1)), None);
        assert_eq!(announcements.poll_known(confirmed(2)), Some((SHARD, InterestChange(8))));
        assert_eq!(announcements.poll_known(confirmed(2)), None);
        assert_eq!(announcements.poll_timeout(), Some(100 + LEASE_MS + LEASE_SLACK_MS));
        announcements.expire(199 + LEASE_MS + LEASE_SLACK_MS);
        assert_eq!(announcements.poll_known(confirmed(2)), None);
        announcements.expire(200 + LEASE_MS + LEASE_SLACK_MS);
        announcements.check();
        assert_eq!(announcements.poll_known(confirmed(2)), Some((SHARD, InterestChange(9))));
    }

    #[test]
    fn a_large_interest_is_announced_in_parts_of_which_the_last_has_the_number() {
        for count in
            [0, 1, CHANNELS_PER_MESSAGE, CHANNELS_PER_MESSAGE + 1, 2 * CHANNELS_PER_MESSAGE]
        {
            let mut mesh = mesh(0, 1, 0);
            for number in 0..count {
                mesh.local_interest.set(ChannelHash(number as u64), SHARD, true);
            }
            mesh.announce_whole_interest(LinkId(1));
            let (mut wholes, mut numbers, mut all) = (Vec::new(), Vec::new(), Vec::new());
            while let Some(effect) = mesh.poll_effect() {
                let LinkEffect::Send(LinkId(1), Lane::Control, bytes) = effect else { panic!() };
                let Ok(Control::Interest { number, is_whole, on, off }) =
                    wire::read_control(&bytes[4..])
                else {
                    panic!()
                };
                assert!(on.len() <= CHANNELS_PER_MESSAGE && off.is_empty());
                wholes.push(is_whole);
                numbers.push(number);
                all.extend(on);
            }
            let parts = count.div_ceil(CHANNELS_PER_MESSAGE).max(1);
            assert!(wholes.iter().enumerate().all(|(at, is_whole)| *is_whole == (at == 0)));
            let last = Some(AnnouncementNumber(1));
            let expected: Vec<_> = (1..=parts).map(|part| last.filter(|_| part == parts)).collect();
            assert_eq!(numbers, expected);
            all.sort_unstable();
            assert!(all.iter().copied().eq((0..count as u64).map(ChannelHash)));
        }
    }

    #[test]
    fn without_other_nodes_every_change_is_known() {
        let mut announcements = Announcements::default();
        announcements.wait(true, SHARD, InterestChange(7));
        assert_eq!(announcements.poll_known(None), Some((SHARD, InterestChange(7))));
    }
}
