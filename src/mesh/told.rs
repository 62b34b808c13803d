//! What other nodes are told of our interest, and how far they know of it.

use std::collections::VecDeque;

use bytes::Bytes;

use super::Mesh;
use super::link::{Effect, Lane, LinkId};
use super::peers::LEASE_MS;
use super::wire::{self, Control};
use crate::address::ShardId;
use crate::message::{Message, Party};

/// Clocks of two machines do not run at the very same rate.
const LEASE_SLACK_MS: u64 = 50;

/// Channels per message while the whole interest is told.
const CHANNELS_AT_ONCE: usize = 1 << 16;

/// How far the other nodes know of our interest.
#[derive(Debug)]
pub struct Told {
    // The number of the last change that was told.
    number: u64,
    // When those were told that some node may still rely on not knowing: one a turn at most, for as
    // long as a lease.
    recent: VecDeque<(u64, u64)>,
    // Up to which nobody may.
    expired: u64,
    // Changes that shards wait for: by our number, and by the shard's own.
    waiting: VecDeque<(u64, ShardId, u64)>,
}

impl Default for Told {
    fn default() -> Self {
        // 0 says that more is to come.
        Self { number: 1, recent: VecDeque::new(), expired: 1, waiting: VecDeque::new() }
    }
}

impl Told {
    /// A shard waits until its change is known, which the next telling will have if there is one.
    pub fn wait(&mut self, is_untold: bool, shard: ShardId, number: u64) {
        self.waiting.push_back((self.number + u64::from(is_untold), shard, number));
    }

    /// How many changes are waited for.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// When silence is as good as knowledge for some change.
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        self.recent.front().map(|(_, told_ms)| told_ms + LEASE_MS + LEASE_SLACK_MS)
    }

    fn expire(&mut self, now_ms: u64) {
        while let Some(&(number, told_ms)) = self.recent.front()
            && told_ms + LEASE_MS + LEASE_SLACK_MS <= now_ms
        {
            self.expired = number;
            self.recent.pop_front();
        }
    }
}

impl Mesh {
    /// Tells every node which channels are wanted here since it was last told, and which are not.
    pub(super) fn tell_interest(&mut self, now_ms: u64) {
        if !self.own.has_changes() {
            return;
        }
        let (on, off) = self.own.take_changes();
        self.told.number += 1;
        self.told.recent.push_back((self.told.number, now_ms));
        let interest = Control::Interest { number: self.told.number, is_whole: false, on, off };
        let mut bytes = Vec::new();
        wire::put_control(&mut bytes, &interest);
        let bytes = Bytes::from(bytes);
        for link in self.peers.values().filter_map(|peer| peer.link) {
            self.effects.push_back(Effect::Send(link, Lane::Control, bytes.clone()));
        }
    }

    pub(super) fn tell_whole_interest(&mut self, link: LinkId) {
        let mut channels = self.own.channels().peekable();
        let (mut is_whole, mut says) = (true, Vec::new());
        loop {
            let on: Vec<u64> = channels.by_ref().take(CHANNELS_AT_ONCE).collect();
            let is_last = channels.peek().is_none();
            let number = if is_last { self.told.number } else { 0 };
            says.push(Control::Interest { number, is_whole, on, off: Vec::new() });
            is_whole = false;
            if is_last {
                break;
            }
        }
        drop(channels);
        for control in says {
            self.say(link, &control);
        }
    }

    /// Tells shards which of their changes every node knows, or those that could publish without
    /// asking.
    pub(super) fn tell_what_is_known(&mut self, now_ms: u64) {
        self.told.expire(now_ms);
        if self.told.waiting.is_empty() {
            return;
        }
        let expired = self.told.expired;
        let known = self.peers.values().map(|peer| peer.known.max(expired)).min();
        let known = known.unwrap_or(u64::MAX);
        while let Some(&(number, shard, change)) = self.told.waiting.front()
            && number <= known
        {
            self.told.waiting.pop_front();
            self.outbox.push_back((shard, Party::Mesh, Message::InterestKnown(change)));
        }
    }
}
