//! Who is in a channel, over the whole grid.
//!
//! One shard of one node is the *home* of a channel: [`PresencePlaces`]. Each shard with clients in the channel reports
//! to it which users it has ([`LocalPresence`]): a user when the first client comes, and the end when the last one has been gone
//! for the grace of the channel. The home ([`HomePresence`]) adds up what the shards report, and tells all of them who joins and
//! who leaves. So each shard knows who is present as far as its devices were told, and tells them only what they do not know:
//! whatever is told twice, or by a new home, changes nothing.
//!
//! # When the home moves
//!
//! A shard that has another home from now on tells it first whom its devices know, then whom it has itself. The new home takes the users
//! that anybody knows for present. Those whom no shard reports within a moment leave: see [`HomePresence`]. So nobody joins
//! again who was there before, and who has gone with a lost node leaves.
//!
//! # Back ends
//!
//! The home also tells back ends, if the channel has a topic: in addition when the channel is occupied by its first client, and
//! vacated by its last. A channel whose clients were all on its home would be forgotten if that node were lost. So the home has a *standby*, the
//! shard that becomes the home when the node of the home is lost, which follows the channel as if it had clients in it.

mod home;
mod local;

pub use home::{HomePresence, PresenceChange, PresenceTerms};
pub use local::LocalPresence;

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(not(test))]
use hashbrown::DefaultHashBuilder as NameHasher;
use hashbrown::HashMap;
#[cfg(test)]
use tests::NameHasher;

use crate::address::placement::{channel_score, home_of_channel};
use crate::address::{Incarnation, NodeId, ShardAddress};
use crate::message::{MEMBERS_PER_MESSAGE_MAX, PresentMember};

/// Where channels have their homes, as one shard sees it: on the reachable nodes with the highest score.
#[derive(Debug)]
pub struct PresencePlaces {
    own: ShardAddress,
    // The reachable nodes with their numbers of shards, this one included.
    nodes: BTreeMap<NodeId, usize>,
    // The last run of each other node that was ever reachable.
    seen: BTreeMap<NodeId, Incarnation>,
}

/// A change of the session with another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// A session with a run of the node that was not known before has begun.
    Joined,
    /// A session with a run of the node that was reachable before has begun: it was cut off, or did not run.
    Rejoined,
    /// The session has ended.
    Ended,
}

impl PresencePlaces {
    /// The places on a node with so many shards that reaches no other node.
    pub fn new(own: ShardAddress, shards: usize) -> Self {
        Self { own, nodes: [(own.node, shards)].into(), seen: BTreeMap::new() }
    }

    /// This shard.
    pub fn own(&self) -> ShardAddress {
        self.own
    }

    /// Adds a node that has become reachable.
    pub fn add(&mut self, node: NodeId, shards: usize, incarnation: Incarnation) -> SessionChange {
        self.nodes.insert(node, shards);
        match self.seen.insert(node, incarnation) == Some(incarnation) {
            true => SessionChange::Rejoined,
            false => SessionChange::Joined,
        }
    }

    /// Removes a node that has become unreachable.
    pub fn remove(&mut self, node: NodeId) {
        self.nodes.remove(&node);
    }

    /// The home of a channel.
    pub fn home(&self, channel: &str) -> ShardAddress {
        let first = self.nodes.keys().max_by_key(|&&node| channel_score(node, channel));
        self.on(*first.unwrap_or(&self.own.node), channel)
    }

    /// The shard that is the home of a channel when the node of the present home is lost. `None`: no other node is
    /// reachable.
    pub fn standby(&self, channel: &str) -> Option<ShardAddress> {
        let home = self.home(channel).node;
        let others = self.nodes.keys().filter(|&&node| node != home);
        let second = others.max_by_key(|&&node| channel_score(node, channel));
        second.map(|&node| self.on(node, channel))
    }

    fn on(&self, node: NodeId, channel: &str) -> ShardAddress {
        let shards = self.nodes.get(&node).copied().unwrap_or(1);
        ShardAddress { node, shard: home_of_channel(channel, shards) }
    }
}

/// A table by names of channels or users, which devices choose: the hash has a seed, except in tests, which repeat what
/// has happened.
type NameTable<K, V> = HashMap<K, V, NameHasher>;

/// Whether somebody is present, and whether those who want to know were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Telling {
    is_present: bool,
    is_told: bool,
    is_queued: bool,
}

impl Telling {
    /// Someone who is present, as everybody knows.
    const KNOWN: Self = Self { is_present: true, is_told: true, is_queued: false };

    /// Notes whether somebody is present. Returns whether the change has to be queued.
    fn set(&mut self, is_present: bool) -> bool {
        self.is_present = is_present;
        self.must_queue()
    }

    fn must_queue(&mut self) -> bool {
        let is_news = self.is_present != self.is_told;
        is_news && !std::mem::replace(&mut self.is_queued, true)
    }

    /// Takes the change out of the queue. `None`: there is none any more.
    fn poll(&mut self) -> Option<bool> {
        self.is_queued = false;
        let is_news = self.is_present != self.is_told;
        self.is_told = self.is_present;
        is_news.then_some(self.is_present)
    }

    /// Whether nobody has to remember anything.
    fn is_over(&self) -> bool {
        *self == Self::default()
    }
}

/// A member without clients, by the time at which the member leaves.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LeavingMember {
    at_ms: u64,
    channel: Arc<str>,
    member: PresentMember,
}

/// Splits a list into lists that fit a message.
fn parts<T>(all: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut all = all.fuse();
    std::iter::from_fn(move || {
        let part: Vec<T> = all.by_ref().take(MEMBERS_PER_MESSAGE_MAX).collect();
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests;
