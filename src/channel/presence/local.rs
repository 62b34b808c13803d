//! The clients of one shard in channels with presence, and whom its devices know.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::hash_map::Entry;

use super::{LeavingMember, NameTable, PresencePlaces, Telling, parts};
use crate::address::{NodeId, ShardAddress};
use crate::message::{Beginning, PresenceMessage, PresenceNews, PresentMember};

/// The memory of a user whom the devices of the shard know, without the name, in bytes.
const KNOWN_BYTES: usize = 96;

/// One shard's channels with presence: those with clients on the shard, and those whose standby the shard is.
///
/// The members of channels are bounded by the subscriptions of the shard's clients. The users that devices know are
/// bounded by memory; of a user for whom there is no room, devices are not told.
#[derive(Debug)]
pub struct LocalPresence {
    rooms: NameTable<Arc<str>, LocalRoom>,
    // The members without a client.
    leaving: BTreeSet<LeavingMember>,
    // Users of whom devices are to be told, each at most once.
    untold: VecDeque<(Arc<str>, Arc<str>)>,
    // Rooms whose home may be another one than before. A room that is gone may be among them.
    moving: VecDeque<Arc<str>>,
    messages: VecDeque<(ShardAddress, PresenceMessage)>,
    known: usize,
    bytes: usize,
    bytes_max: usize,
    refused: u64,
}

/// A channel on this shard. Removed with its last member, unless the shard is its standby.
#[derive(Debug, Default)]
struct LocalRoom {
    members: NameTable<PresentMember, LocalMember>,
    // The users who are present as the home says.
    known: NameTable<Arc<str>, Telling>,
    // The home that the members are reported to.
    home: Option<ShardAddress>,
    // Whether the shard has lost the home that the members were reported to.
    has_lost_home: bool,
    // Whether a home has taken a report, so that others were told of the channel.
    is_confirmed: bool,
    // Whether the home is to be found anew. Until then reports go to the one before, if it is not lost.
    is_moving: bool,
    guard: Guard,
    grace_ms: u64,
}

#[derive(Debug, Default)]
struct LocalMember {
    clients: u32,
    leaves_at_ms: Option<u64>,
}

/// Whether the shard is the standby of a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Guard {
    #[default]
    No,
    /// The standby of this home.
    Of(ShardAddress),
    /// The standby of a home that is lost.
    Orphaned,
}

impl LocalPresence {
    /// Creates the part without channels. The users that devices know take at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            rooms: NameTable::default(),
            leaving: BTreeSet::new(),
            untold: VecDeque::new(),
            moving: VecDeque::new(),
            messages: VecDeque::new(),
            known: 0,
            bytes: 0,
            bytes_max,
            refused: 0,
        }
    }

    /// Whether the shard has no channel with presence.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty()
    }

    /// Adds a client of a member to a channel, whose members leave when they have had no client for `grace_ms` milliseconds.
    pub fn enter(
        &mut self,
        places: &PresencePlaces,
        channel: &str,
        member: PresentMember,
        grace_ms: u64,
    ) {
        if !self.rooms.contains_key(channel) {
            self.rooms.insert(channel.into(), LocalRoom::default());
        }
        let Some((channel, room)) = get(&mut self.rooms, channel) else { return };
        room.grace_ms = grace_ms;
        let known = room.members.get_mut(&member);
        if let Some(known) = known {
            known.clients += 1;
            if let Some(at_ms) = known.leaves_at_ms.take() {
                self.leaving.remove(&LeavingMember { at_ms, channel, member });
            }
            return;
        }
        room.members.insert(member.clone(), LocalMember { clients: 1, leaves_at_ms: None });
        match room.home {
            Some(home) => {
                let news = PresenceNews::Present(vec![member]);
                self.messages.push_back((home, PresenceMessage { channel, news }));
            }
            None if room.is_moving => {}
            None => room.report(&channel, places.home(&channel), &mut self.messages),
        }
    }

    /// Removes a client of a member from a channel.
    pub fn leave(&mut self, now_ms: u64, channel: &str, member: PresentMember) {
        let Some((channel, room)) = get(&mut self.rooms, channel) else { return };
        let Some(known) = room.members.get_mut(&member) else { return };
        known.clients = known.clients.saturating_sub(1);
        if known.clients == 0 && known.leaves_at_ms.is_none() {
            let at_ms = now_ms.saturating_add(room.grace_ms);
            known.leaves_at_ms = Some(at_ms);
            self.leaving.insert(LeavingMember { at_ms, channel, member });
        }
    }

    /// Reports up to `most` members as absent whose grace is over. Returns whether more are due.
    pub fn expire(&mut self, now_ms: u64, most: usize) -> bool {
        for _ in 0..most {
            let Some(first) = self.leaving.first().filter(|first| first.at_ms <= now_ms) else {
                return false;
            };
            let LeavingMember { channel, member, .. } = first.clone();
            self.leaving.pop_first();
            let Some(room) = self.rooms.get_mut(&channel) else { continue };
            room.members.remove(&member);
            let is_empty = room.members.is_empty();
            if let Some(home) = room.home {
                let message = PresenceMessage {
                    channel: channel.clone(),
                    news: PresenceNews::Absent(member),
                };
                self.messages.push_back((home, message));
            }
            if is_empty {
                (room.home, room.has_lost_home, room.is_confirmed) = (None, false, false);
                self.remove_if_over(&channel);
            }
        }
        self.next_expiry().is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Returns when the next grace is over, in milliseconds. `None`: nobody is leaving.
    pub fn next_expiry(&self) -> Option<u64> {
        self.leaving.first().map(|first| first.at_ms)
    }

    /// Handles the news that the session with a node has ended, or that a new one has begun: nothing that was reported to
    /// it counts. [`Self::move_some`] finds the homes of channels anew.
    pub fn handle_session(&mut self, node: NodeId) {
        for (channel, room) in &mut self.rooms {
            if room.home.is_some_and(|home| home.node == node) {
                (room.home, room.has_lost_home) = (None, true);
            }
            if matches!(room.guard, Guard::Of(home) if home.node == node) {
                room.guard = Guard::Orphaned;
            }
            if !std::mem::replace(&mut room.is_moving, true) {
                self.moving.push_back(channel.clone());
            }
        }
    }

    /// Reports up to `most` channels to their homes that have another one than before. Returns whether there may be more.
    pub fn move_some(&mut self, places: &PresencePlaces, most: usize) -> bool {
        for _ in 0..most {
            let Some(channel) = self.moving.pop_front() else { return false };
            let Some(room) = self.rooms.get_mut(&channel).filter(|room| room.is_moving) else {
                continue;
            };
            room.is_moving = false;
            let home = places.home(&channel);
            let is_to_hand_over = match room.guard {
                Guard::No => false,
                Guard::Of(_) => home == places.own(),
                Guard::Orphaned => true,
            };
            if is_to_hand_over {
                room.guard = Guard::No;
            }
            if !room.members.is_empty() && room.home != Some(home) {
                if let Some(earlier) = room.home {
                    let end = PresenceMessage { channel: channel.clone(), news: PresenceNews::End };
                    self.messages.push_back((earlier, end));
                }
                room.report(&channel, home, &mut self.messages);
            } else if is_to_hand_over {
                room.hand_over(&channel, home, &mut self.messages);
            }
            self.remove_if_over(&channel);
        }
        !self.moving.is_empty()
    }

    /// Whether [`Self::move_some`] has something to do.
    pub fn is_moving(&self) -> bool {
        !self.moving.is_empty()
    }

    /// Handles a message of a home.
    pub fn handle(&mut self, from: ShardAddress, message: PresenceMessage) {
        let PresenceMessage { channel, news } = message;
        if news == PresenceNews::Guard {
            self.rooms.entry(channel).or_default().guard = Guard::Of(from);
            return;
        }
        let Some(room) = self.rooms.get_mut(&channel) else { return };
        if news == PresenceNews::Unguard {
            if room.guard == Guard::Of(from) {
                room.guard = Guard::No;
            }
            return self.remove_if_over(&channel);
        }
        let is_guarded = room.members.is_empty() && room.guard == Guard::Of(from);
        if room.home != Some(from) && !is_guarded {
            // An earlier home.
            return;
        }
        let is_first = !room.is_confirmed;
        let is_part = matches!(&news, PresenceNews::WereThere(users) if !users.is_empty());
        room.is_confirmed |= room.home == Some(from) && !is_part;
        match news {
            PresenceNews::WereThere(users) => {
                users.into_iter().for_each(|user| self.learn(&channel, user, is_first));
            }
            PresenceNews::Joined(users) => {
                users.into_iter().for_each(|user| self.learn(&channel, user, false));
            }
            PresenceNews::Left(user) => self.unlearn(&channel, user),
            // Messages to a home.
            _ => {}
        }
    }

    fn learn(&mut self, channel: &Arc<str>, user: Arc<str>, is_known: bool) {
        let Some(room) = self.rooms.get_mut(channel) else { return };
        let is_silent = is_known || room.members.is_empty();
        match room.known.entry(user.clone()) {
            Entry::Occupied(mut known) => {
                if known.get_mut().set(true) {
                    self.untold.push_back((channel.clone(), user));
                }
            }
            Entry::Vacant(place) => {
                let bytes = KNOWN_BYTES + user.len();
                if self.bytes + bytes > self.bytes_max {
                    self.refused += 1;
                    return;
                }
                (self.bytes, self.known) = (self.bytes + bytes, self.known + 1);
                let known =
                    place.insert(if is_silent { Telling::KNOWN } else { Telling::default() });
                if known.set(true) {
                    self.untold.push_back((channel.clone(), user));
                }
            }
        }
    }

    fn unlearn(&mut self, channel: &Arc<str>, user: Arc<str>) {
        let Some(room) = self.rooms.get_mut(channel) else { return };
        let Some(known) = room.known.get_mut(&user) else { return };
        if room.members.is_empty() {
            // No device is to be told.
            *known = Telling { is_queued: known.is_queued, ..Telling::default() };
        }
        if known.set(false) {
            self.untold.push_back((channel.clone(), user));
        } else if known.is_over() {
            self.forget(channel, &user);
        }
    }

    fn forget(&mut self, channel: &str, user: &str) {
        let room = self.rooms.get_mut(channel);
        if room.is_some_and(|room| room.known.remove(user).is_some()) {
            (self.bytes, self.known) = (self.bytes - KNOWN_BYTES - user.len(), self.known - 1);
        }
    }

    fn remove_if_over(&mut self, channel: &str) {
        let Some(room) = self.rooms.get(channel) else { return };
        if !room.members.is_empty() || room.guard != Guard::No {
            return;
        }
        let bytes = room.known.keys().map(|user| KNOWN_BYTES + user.len()).sum::<usize>();
        (self.bytes, self.known) = (self.bytes - bytes, self.known - room.known.len());
        self.rooms.remove(channel);
    }

    /// Whether devices are to be told of somebody.
    pub fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Returns the next user of whom the devices of a channel are to be told: whether the user joins, or else leaves.
    pub fn poll_told(&mut self) -> Option<(Arc<str>, Arc<str>, bool)> {
        while let Some((channel, user)) = self.untold.pop_front() {
            let room = self.rooms.get_mut(&channel);
            let Some(known) = room.and_then(|room| room.known.get_mut(&user)) else { continue };
            let told = known.poll();
            if known.is_over() {
                self.forget(&channel, &user);
            }
            if let Some(is_join) = told {
                return Some((channel, user, is_join));
            }
        }
        None
    }

    /// Returns the next message to a home.
    pub fn poll_message(&mut self) -> Option<(ShardAddress, PresenceMessage)> {
        self.messages.pop_front()
    }

    /// Whether there are messages to homes.
    pub fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// How often there was no room for a user since the last call.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// The memory of the users that devices know, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether the shard has members of a channel.
    pub fn has_members(&self, channel: &str) -> bool {
        self.rooms.get(channel).is_some_and(|room| !room.members.is_empty())
    }

    /// Iterates over the users who are in a channel, as far as the devices of this shard are told, or will be.
    pub fn users(&self, channel: &str) -> impl Iterator<Item = &Arc<str>> {
        let known = self.rooms.get(channel).into_iter().flat_map(|room| &room.known);
        known.filter(|(_, known)| known.is_present).map(|(user, _)| user)
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub fn check(&self) {
        let rooms = || self.rooms.values();
        let known = || rooms().flat_map(|room| room.known.keys());
        assert_eq!(self.bytes, known().map(|user| KNOWN_BYTES + user.len()).sum::<usize>());
        assert_eq!(self.known, known().count(), "users that devices know");
        assert!(self.bytes <= self.bytes_max);
        let leaving = rooms().flat_map(|room| room.members.values());
        let leaving = leaving.filter(|member| member.leaves_at_ms.is_some()).count();
        assert_eq!(self.leaving.len(), leaving, "members that are leaving");
        assert!(rooms().all(|room| !room.members.is_empty() || room.guard != Guard::No));
        assert!(
            rooms().all(|room| room.is_moving || room.members.is_empty() || room.home.is_some())
        );
        assert!(rooms().all(|room| !room.is_moving || !self.moving.is_empty()));
    }
}

impl LocalRoom {
    /// Reports all members to a home.
    fn report(
        &mut self,
        channel: &Arc<str>,
        home: ShardAddress,
        messages: &mut VecDeque<(ShardAddress, PresenceMessage)>,
    ) {
        let beginning = match (self.home, self.has_lost_home) {
            _ if !self.is_confirmed && self.known.is_empty() => Beginning::New,
            (_, true) => Beginning::Lost,
            // The standby of a home knows what the home has told.
            (None, false) if self.guard == Guard::Of(home) => Beginning::New,
            (_, false) => Beginning::Moved,
        };
        (self.home, self.has_lost_home) = (Some(home), false);
        let mut send =
            |news| messages.push_back((home, PresenceMessage { channel: channel.clone(), news }));
        send(PresenceNews::Begin(beginning));
        if beginning != Beginning::New {
            parts(self.known_users()).for_each(|users| send(PresenceNews::Known(users)));
        }
        parts(self.members.keys().cloned())
            .for_each(|members| send(PresenceNews::Present(members)));
    }

    /// Tells a home whom the lost one has told of.
    fn hand_over(
        &self,
        channel: &Arc<str>,
        home: ShardAddress,
        messages: &mut VecDeque<(ShardAddress, PresenceMessage)>,
    ) {
        let mut send =
            |news| messages.push_back((home, PresenceMessage { channel: channel.clone(), news }));
        let is_reporting = !self.members.is_empty();
        if !is_reporting {
            send(PresenceNews::Begin(Beginning::Lost));
        }
        parts(self.known_users()).for_each(|users| send(PresenceNews::Known(users)));
        if !is_reporting {
            send(PresenceNews::End);
        }
    }

    fn known_users(&self) -> impl Iterator<Item = Arc<str>> {
        self.known.iter().filter(|(_, known)| known.is_present).map(|(user, _)| user.clone())
    }
}

/// Returns the entry of a channel, with the shared name.
fn get<'r>(
    rooms: &'r mut NameTable<Arc<str>, LocalRoom>,
    channel: &str,
) -> Option<(Arc<str>, &'r mut LocalRoom)> {
    match rooms.entry_ref(channel) {
        hashbrown::hash_map::EntryRef::Occupied(entry) => {
            let name = entry.key().clone();
            Some((name, entry.into_mut()))
        }
        hashbrown::hash_map::EntryRef::Vacant(_) => None,
    }
}
