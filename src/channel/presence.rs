//! Who is in the channels of one home: users who come and go, and channels that are occupied and vacated.
//!
//! Shards report how many clients of each user they have in a channel, as absolute numbers: a report that is repeated
//! changes nothing. A user has joined at the first client, and has left once all shards have had none for the grace of
//! the channel, so that a client that comes back in time is not noticed. What a node has reported is dropped when the node
//! is lost. A shard that reports anew, after a session with it has ended, says first that it begins and last that this is
//! all: what it did not repeat is dropped then.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use crate::address::{NodeId, ShardAddress};

/// The channels with presence whose home one shard is.
#[derive(Debug)]
pub struct Presence {
    channels: HashMap<Arc<str>, Attendance>,
    // The members without a client, by the time at which they leave.
    leaving: BTreeSet<LeavingMember>,
    changes: VecDeque<PresenceChange>,
    // Numbers that were reported, and the most of them.
    counts: usize,
    counts_max: usize,
}

/// The members of a channel. Removed with the last one.
type Attendance = HashMap<PresentMember, Seat>;

/// A user. `None`: all clients without a user.
type PresentMember = Option<Arc<str>>;

/// The clients of a member. Without any, the member is leaving.
#[derive(Debug, Default)]
struct Seat {
    counts: Vec<ReportedCount>,
    leaves_at_ms: Option<u64>,
}

/// The clients of a member on one shard: at least 1.
#[derive(Debug)]
struct ReportedCount {
    shard: ShardAddress,
    clients: u32,
    grace_ms: u64,
    // Whether the shard reports anew, and has not repeated the number yet.
    is_stale: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct LeavingMember {
    at_ms: u64,
    channel: Arc<str>,
    member: PresentMember,
}

/// The report of a shard: how many of its clients of a user are subscribed to a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PresenceReport {
    /// The channel.
    pub channel: Arc<str>,
    /// The user. `None`: clients without a user.
    pub user: Option<Arc<str>>,
    /// The number of clients.
    pub clients: u32,
    /// How long the user has no client before the user has left, in milliseconds.
    pub grace_ms: u64,
    /// Whether an earlier home knew of the user, so that everybody was told already.
    pub was_told: bool,
}

/// A change that subscribers and back ends are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PresenceChange {
    /// The channel has its first client.
    Occupied(Arc<str>),
    /// The first client of a user has come to the channel.
    Joined(Arc<str>, Arc<str>),
    /// The last client of a user has gone from the channel, and the grace is over.
    Left(Arc<str>, Arc<str>),
    /// The last client has gone from the channel, and the grace is over.
    Vacated(Arc<str>),
}

/// There is no room for more numbers. The report is not taken: nobody is told of the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyPresent;

impl Presence {
    /// Creates a home that keeps at most this many numbers: one for each shard, channel and user. Each takes about 200 bytes,
    /// and its texts.
    pub fn new(counts_max: usize) -> Self {
        let (channels, leaving, changes) = (HashMap::new(), BTreeSet::new(), VecDeque::new());
        Self { channels, leaving, changes, counts: 0, counts_max }
    }

    /// Takes the report of a shard.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn report(
        &mut self,
        shard: ShardAddress,
        report: PresenceReport,
        now_ms: u64,
    ) -> Result<(), TooManyPresent> {
        let PresenceReport { channel, user, clients, grace_ms, was_told } = report;
        let known = self.channels.get_mut(&channel).and_then(|room| room.get_mut(&user));
        let count =
            known.and_then(|seat| seat.counts.iter_mut().find(|count| count.shard == shard));
        match (count, clients) {
            (Some(count), 1..) => {
                (count.clients, count.grace_ms, count.is_stale) = (clients, grace_ms, false);
            }
            (Some(_), 0) => {
                let is_gone = |count: &ReportedCount| count.shard == shard;
                self.drop_counts(&channel, &user, is_gone, now_ms);
            }
            (None, 0) => {}
            (None, 1..) => {
                if self.counts >= self.counts_max {
                    return Err(TooManyPresent);
                }
                self.counts += 1;
                let count = ReportedCount { shard, clients, grace_ms, is_stale: false };
                self.seat(channel, user, count, was_told);
            }
        }
        Ok(())
    }

    /// Adds the first clients of a member on a shard.
    fn seat(
        &mut self,
        channel: Arc<str>,
        member: PresentMember,
        count: ReportedCount,
        was_told: bool,
    ) {
        let room = self.channels.entry(channel.clone()).or_default();
        let is_first = room.is_empty();
        let is_known = room.contains_key(&member);
        let seat = room.entry(member.clone()).or_default();
        seat.counts.push(count);
        if let Some(at_ms) = seat.leaves_at_ms.take() {
            self.leaving.remove(&LeavingMember { at_ms, channel, member });
        } else if !was_told && !is_known {
            if is_first {
                self.changes.push_back(PresenceChange::Occupied(channel.clone()));
            }
            self.changes.extend(member.map(|user| PresenceChange::Joined(channel, user)));
        }
    }

    /// Drops numbers of a member. If none is left, the member leaves after the longest grace of those dropped.
    fn drop_counts(
        &mut self,
        channel: &Arc<str>,
        member: &PresentMember,
        is_gone: impl Fn(&ReportedCount) -> bool,
        now_ms: u64,
    ) {
        let room = self.channels.get_mut(channel);
        let Some(seat) = room.and_then(|room| room.get_mut(member)) else { return };
        let grace_ms =
            seat.counts.iter().filter(|count| is_gone(count)).map(|count| count.grace_ms);
        let Some(grace_ms) = grace_ms.max() else { return };
        let before = seat.counts.len();
        seat.counts.retain(|count| !is_gone(count));
        self.counts -= before - seat.counts.len();
        if seat.counts.is_empty() {
            let at_ms = now_ms.saturating_add(grace_ms);
            seat.leaves_at_ms = Some(at_ms);
            let (channel, member) = (channel.clone(), member.clone());
            self.leaving.insert(LeavingMember { at_ms, channel, member });
        }
    }

    /// Drops the numbers of all members for which `is_gone` holds.
    fn drop_everywhere(&mut self, is_gone: impl Fn(&ReportedCount) -> bool, now_ms: u64) {
        let rooms = self.channels.iter();
        let seats = rooms.flat_map(|(channel, room)| room.iter().map(move |seat| (channel, seat)));
        let concerned = seats.filter(|(_, (_, seat))| seat.counts.iter().any(&is_gone));
        let concerned: Vec<_> =
            concerned.map(|(channel, (member, _))| (channel.clone(), member.clone())).collect();
        for (channel, member) in concerned {
            self.drop_counts(&channel, &member, &is_gone, now_ms);
        }
    }

    /// Drops what the shards of a lost node have reported.
    pub fn handle_node_lost(&mut self, node: NodeId, now_ms: u64) {
        self.drop_everywhere(|count| count.shard.node == node, now_ms);
    }

    /// Begins to take all reports of a shard anew.
    pub fn begin_anew(&mut self, shard: ShardAddress) {
        let seats = self.channels.values_mut().flat_map(|room| room.values_mut());
        let counts = seats.flat_map(|seat| &mut seat.counts);
        counts.filter(|count| count.shard == shard).for_each(|count| count.is_stale = true);
    }

    /// Drops what a shard has not repeated since [`Self::begin_anew`].
    pub fn end_anew(&mut self, shard: ShardAddress, now_ms: u64) {
        self.drop_everywhere(|count| count.shard == shard && count.is_stale, now_ms);
    }

    /// Lets up to `most` members leave whose grace is over. Returns whether more are due.
    pub fn expire(&mut self, now_ms: u64, most: usize) -> bool {
        for _ in 0..most {
            let Some(first) = self.leaving.first().filter(|first| first.at_ms <= now_ms) else {
                return false;
            };
            let LeavingMember { channel, member, .. } = first.clone();
            self.leaving.pop_first();
            let Some(room) = self.channels.get_mut(&channel) else { continue };
            room.remove(&member);
            let is_empty = room.is_empty();
            self.changes.extend(member.map(|user| PresenceChange::Left(channel.clone(), user)));
            if is_empty {
                self.channels.remove(&channel);
                self.changes.push_back(PresenceChange::Vacated(channel));
            }
        }
        self.next_expiry().is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Returns when the next grace is over, in milliseconds. `None`: nobody is leaving.
    pub fn next_expiry(&self) -> Option<u64> {
        self.leaving.first().map(|first| first.at_ms)
    }

    /// Returns the next change, in the order in which they have happened.
    pub fn poll_change(&mut self) -> Option<PresenceChange> {
        self.changes.pop_front()
    }

    /// Iterates over the users who are in a channel, those among them whose grace is not over.
    pub fn users(&self, channel: &str) -> impl Iterator<Item = &Arc<str>> {
        self.channels.get(channel).into_iter().flat_map(|room| room.keys().flatten())
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub fn check(&self) {
        let seats = || self.channels.values().flat_map(|room| room.values());
        assert!(self.channels.values().all(|room| !room.is_empty()), "a room without members");
        assert_eq!(self.counts, seats().map(|seat| seat.counts.len()).sum::<usize>());
        assert!(seats().all(|seat| seat.counts.is_empty() == seat.leaves_at_ms.is_some()));
        let leaving = seats().filter(|seat| seat.leaves_at_ms.is_some()).count();
        assert_eq!(self.leaving.len(), leaving, "members that are leaving");
    }
}

#[cfg(test)]
mod tests;
