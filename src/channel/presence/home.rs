//! The channels with presence whose home one shard is.

mod back_ends;

pub use back_ends::PresenceChange;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::{LeavingMember, NameTable, PresencePlaces, SessionChange, Telling, parts};
use crate::address::{NodeId, ShardAddress};
use crate::message::{Beginning, PresenceMessage, PresenceNews, PresentMember};

/// The memory of a member, without the name, in bytes.
const SEAT_BYTES: usize = 256;

/// The memory of what back ends were told of a member, without the name, in bytes.
const TOLD_BYTES: usize = 128;

/// How long the clients of a node have been gone when the loss of the node is noticed, in milliseconds: at least as long as
/// a node without a link is waited for, and usually the idle time of a link before that.
const SILENCE_MS: u64 = 3000;

/// How long a member waits for a report, in milliseconds, when a node was lost. The nodes notice a loss within less.
const LOST_WAIT_MS: u64 = 750;

/// How long a member waits for a report, in milliseconds, when the home has moved to a node that has joined.
const MOVED_WAIT_MS: u64 = 3000;

/// The longest time until the loss of a node is noticed, in milliseconds.
const LOSS_MS: u64 = 5000;

/// The age of a channel, in milliseconds, at which a shard that comes from another home has heard other things than
/// this one has told. A home that moves gets all shards within less.
const SPLIT_MS: u64 = 5000;

/// How long after that back ends are told again who is there, in milliseconds: the shards have reported by then.
const RETELL_MS: u64 = 1000;

/// What holds for the members of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PresenceTerms {
    /// How long a member has no client before the member leaves, in milliseconds.
    pub grace_ms: u64,
    /// Whether back ends are told.
    pub has_topic: bool,
}

/// The channels with presence whose home the shard is.
///
/// A member without a client on any shard leaves at once: the shards wait for the grace. Only members whom no shard has reported
/// anew, after a node was lost or the home has moved, wait here for a while. A node is lost when it has been silent for
/// some seconds, so its members wait for what is left of the grace, at least 0.75 s.
///
/// All of it is bounded by memory. A member for whom there is no room is refused: nobody is told.
#[derive(Debug)]
pub struct HomePresence {
    channels: NameTable<Arc<str>, Attendance>,
    // The members that no shard has reported.
    leaving: BTreeSet<LeavingMember>,
    // Changes that back ends are to be told of, each at most once.
    untold: VecDeque<(Arc<str>, PresentMember)>,
    // Channels of which back ends are told again, by the time in milliseconds.
    retold: BTreeSet<(u64, Arc<str>)>,
    // Until when shards may report to this home because its node or theirs has joined.
    joins_until_ms: u64,
    // Until when shards may report to this home that have heard of another one.
    heals_until_ms: u64,
    // Channels that may have another standby. One that is gone may be among them.
    guarded: VecDeque<Arc<str>>,
    // Taken out in the same turn.
    messages: VecDeque<(ShardAddress, PresenceMessage)>,
    members: usize,
    bytes: usize,
    bytes_max: usize,
    refused: u64,
}

/// Who is in a channel. Removed with the last member, once everybody was told.
#[derive(Debug)]
struct Attendance {
    since_ms: u64,
    // Until when shards may be about to go to another home.
    moves_until_ms: u64,
    // Whether a user has left.
    has_left: bool,
    lost_wait_ms: u64,
    seats: NameTable<PresentMember, Seat>,
    listeners: Vec<ReportingShard>,
    // What back ends were told. No member: whether the channel is occupied. `None`: the channel has no topic.
    told: Option<NameTable<PresentMember, Telling>>,
    standby: Option<ShardAddress>,
}

/// A shard that reports the channel.
#[derive(Debug)]
struct ReportingShard {
    shard: ShardAddress,
    members: usize,
    // How long those whom the shard knows of wait for a report.
    wait_ms: u64,
    // Whether the shard has reported whom it has, if it had reported to another home before.
    has_reported: bool,
}

/// A member: the shards with clients. Without any, the member is leaving.
#[derive(Debug, Default)]
struct Seat {
    shards: Vec<ShardAddress>,
    leaves_at_ms: Option<u64>,
    // Whether this home has told of the member. Otherwise only some shards know of the member, from an earlier home.
    is_announced: bool,
    // Whether this home may have told back ends that the member has left, and an earlier home that it has joined.
    is_doubtful: bool,
}

impl HomePresence {
    /// Creates a home without channels. Members take at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            channels: NameTable::default(),
            leaving: BTreeSet::new(),
            untold: VecDeque::new(),
            retold: BTreeSet::new(),
            joins_until_ms: 0,
            heals_until_ms: 0,
            guarded: VecDeque::new(),
            messages: VecDeque::new(),
            members: 0,
            bytes: 0,
            bytes_max,
            refused: 0,
        }
    }

    /// Handles a message of a shard with clients in a channel.
    pub fn handle(
        &mut self,
        now_ms: u64,
        from: ShardAddress,
        message: PresenceMessage,
        places: &PresencePlaces,
        terms: impl FnOnce(&str) -> PresenceTerms,
    ) {
        let PresenceMessage { channel, news } = message;
        match news {
            PresenceNews::Begin(beginning) => {
                self.begin(now_ms, from, &channel, beginning, places, terms);
            }
            PresenceNews::Known(users) => {
                users.into_iter().for_each(|user| self.add_known(now_ms, from, &channel, user));
            }
            PresenceNews::Present(members) => {
                let is_arrival = self.is_arrival(from, &channel, &members);
                for member in members {
                    self.add_present(from, &channel, member, is_arrival);
                }
            }
            PresenceNews::Absent(member) => {
                let is_home = places.home(&channel) == places.own();
                self.remove_from(now_ms, from, &channel, &member, is_home);
            }
            PresenceNews::End => {
                let attendance = self.channels.get_mut(&channel);
                let is_member = |known: &ReportingShard| known.shard == from && known.members > 0;
                if let Some(attendance) = attendance
                    && attendance.listeners.iter().any(is_member)
                {
                    attendance.moves_until_ms = now_ms + MOVED_WAIT_MS;
                }
                self.drop_listener(now_ms, &channel, from, MOVED_WAIT_MS);
            }
            // Messages of a home.
            _ => {}
        }
    }

    fn begin(
        &mut self,
        now_ms: u64,
        from: ShardAddress,
        channel: &Arc<str>,
        beginning: Beginning,
        places: &PresencePlaces,
        terms: impl FnOnce(&str) -> PresenceTerms,
    ) {
        self.drop_listener(now_ms, channel, from, MOVED_WAIT_MS);
        if !self.channels.contains_key(channel) {
            let attendance = Attendance::new(now_ms, terms(channel));
            self.channels.insert(channel.clone(), attendance);
            self.guard(channel, places);
        }
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let wait_ms = match beginning {
            Beginning::Lost if now_ms >= self.joins_until_ms => attendance.lost_wait_ms,
            _ => MOVED_WAIT_MS,
        };
        if beginning != Beginning::New {
            // Other shards follow.
            attendance.moves_until_ms = attendance.moves_until_ms.max(now_ms + wait_ms);
        }
        let has_reported = beginning == Beginning::New;
        attendance.listeners.push(ReportingShard {
            shard: from,
            members: 0,
            wait_ms,
            has_reported,
        });
        let is_new = beginning == Beginning::New;
        let announced = attendance.seats.iter().filter(|(_, seat)| seat.is_announced);
        let users = announced.filter_map(|(member, _)| member.clone());
        for users in parts(users) {
            let news = match is_new {
                true => PresenceNews::WereThere(users),
                false => PresenceNews::Joined(users),
            };
            self.messages.push_back((from, PresenceMessage { channel: channel.clone(), news }));
        }
        if !is_new && attendance.told.is_some() {
            if now_ms < self.heals_until_ms || attendance.has_told_otherwise(now_ms) {
                self.retold.insert((now_ms + RETELL_MS, channel.clone()));
            }
            self.note_told(channel, None);
            // Clients without a user may have been told of, too.
            let attendance = self.channels.get(channel);
            if attendance.is_some_and(|known| !known.seats.contains_key(&None))
                && self.takes(channel, &None)
            {
                self.add_seat(channel, None, Seat::default());
                self.wait(channel, None, now_ms + wait_ms);
            }
        }
    }

    /// Adds a user whom the devices of a shard know, so that somebody has told back ends.
    fn add_known(&mut self, now_ms: u64, from: ShardAddress, channel: &Arc<str>, user: Arc<str>) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let member = Some(user.clone());
        if attendance.seats.contains_key(&member) {
            return;
        }
        let listener = attendance.listeners.iter().find(|listener| listener.shard == from);
        let Some(wait_ms) = listener.map(|listener| listener.wait_ms) else { return };
        if !self.takes(channel, &member) {
            let news = PresenceNews::Left(user);
            return self
                .messages
                .push_back((from, PresenceMessage { channel: channel.clone(), news }));
        }
        let is_doubtful =
            now_ms < self.heals_until_ms || self.channels[channel].has_told_otherwise(now_ms);
        self.add_seat(channel, member.clone(), Seat { is_doubtful, ..Seat::default() });
        self.wait(channel, member.clone(), now_ms + wait_ms);
        self.note_told(channel, member);
    }

    /// Whether a report is of a member who has just come, and not of those whom a shard had when it came from another home.
    fn is_arrival(&mut self, from: ShardAddress, channel: &str, members: &[PresentMember]) -> bool {
        let attendance = self.channels.get_mut(channel);
        let listeners = attendance.into_iter().flat_map(|known| &mut known.listeners);
        let listener = listeners.into_iter().find(|listener| listener.shard == from);
        let has_reported =
            listener.is_some_and(|listener| std::mem::replace(&mut listener.has_reported, true));
        has_reported && members.len() == 1
    }

    fn add_present(
        &mut self,
        from: ShardAddress,
        channel: &Arc<str>,
        member: PresentMember,
        is_arrival: bool,
    ) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        if !attendance.listeners.iter().any(|listener| listener.shard == from) {
            return;
        }
        if !attendance.seats.contains_key(&member) {
            if !self.takes(channel, &member) {
                return;
            }
            self.add_seat(channel, member.clone(), Seat::default());
        }
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(seat) = attendance.seats.get_mut(&member) else { return };
        let was_announced = std::mem::replace(&mut seat.is_announced, true);
        if !was_announced && let Some(user) = member.clone() {
            self.announce(channel, PresenceNews::Joined(vec![user]));
        }
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(seat) = attendance.seats.get_mut(&member) else { return };
        if !seat.shards.contains(&from) {
            seat.shards.push(from);
            let listener = attendance.listeners.iter_mut().find(|listener| listener.shard == from);
            let Some(listener) = listener else { return };
            listener.members += 1;
            if listener.members == 1 {
                // Confirms the report.
                let (channel, news) = (channel.clone(), PresenceNews::WereThere(Vec::new()));
                self.messages.push_back((from, PresenceMessage { channel, news }));
            }
        }
        if let Some(at_ms) = seat.leaves_at_ms.take() {
            let (channel, member) = (channel.clone(), member.clone());
            self.leaving.remove(&LeavingMember { at_ms, channel, member });
        }
        // Whoever is known of and comes anew may have left when the earlier home was the home.
        let is_doubtful = std::mem::take(&mut seat.is_doubtful) || is_arrival && !was_announced;
        self.tell(channel, None, true);
        if member.is_some() {
            if is_doubtful {
                self.distrust(channel, &member);
            }
            self.tell(channel, member, true);
        }
    }

    /// Removes the clients of a member on a shard, which has waited for the grace.
    fn remove_from(
        &mut self,
        now_ms: u64,
        from: ShardAddress,
        channel: &Arc<str>,
        member: &PresentMember,
        is_home: bool,
    ) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(seat) = attendance.seats.get_mut(member) else { return };
        let Some(at) = seat.shards.iter().position(|&shard| shard == from) else { return };
        seat.shards.swap_remove(at);
        let is_gone = seat.shards.is_empty();
        if let Some(at) = attendance.listeners.iter().position(|listener| listener.shard == from) {
            attendance.listeners[at].members -= 1;
            if attendance.listeners[at].members == 0 {
                attendance.listeners.swap_remove(at);
            }
        }
        // Shards that have gone to another home may have the member.
        let must_wait = !is_home || now_ms < attendance.moves_until_ms;
        match is_gone {
            true if must_wait => self.wait(channel, member.clone(), now_ms + MOVED_WAIT_MS),
            true => self.end_seat(channel, member, true),
            false => {}
        }
        self.remove_if_over(channel);
    }

    /// Drops what a shard has reported of a channel. Members who are nowhere else wait for so long.
    fn drop_listener(
        &mut self,
        now_ms: u64,
        channel: &Arc<str>,
        shard: ShardAddress,
        wait_ms: u64,
    ) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(at) = attendance.listeners.iter().position(|known| known.shard == shard) else {
            return;
        };
        attendance.listeners.swap_remove(at);
        let mut waiting = Vec::new();
        for (member, seat) in &mut attendance.seats {
            if let Some(at) = seat.shards.iter().position(|&known| known == shard) {
                seat.shards.swap_remove(at);
                if seat.shards.is_empty() {
                    waiting.push(member.clone());
                }
            }
        }
        waiting.into_iter().for_each(|member| self.wait(channel, member, now_ms + wait_ms));
        self.remove_if_over(channel);
    }

    /// Handles the beginning of a session with a node, or the end of one: nothing that its shards have reported before
    /// counts. [`Self::guard_some`] finds the standbys of channels anew.
    pub fn handle_session(&mut self, now_ms: u64, node: NodeId, change: SessionChange) {
        let is_beginning = change != SessionChange::Ended;
        if is_beginning {
            self.joins_until_ms = now_ms + MOVED_WAIT_MS;
        }
        if change == SessionChange::Rejoined {
            self.heals_until_ms = now_ms + SPLIT_MS;
        }
        let mut lost = Vec::new();
        for (channel, attendance) in &mut self.channels {
            if attendance.standby.is_some_and(|standby| standby.node == node) {
                attendance.standby = None;
            }
            if attendance.told.is_some() {
                self.guarded.push_back(channel.clone());
                if change == SessionChange::Rejoined {
                    // Both sides may have told back ends that users of the other one have left.
                    self.retold.insert((now_ms + RETELL_MS, channel.clone()));
                }
            }
            let shards = attendance.listeners.iter().map(|listener| listener.shard);
            let wait_ms = if is_beginning { MOVED_WAIT_MS } else { attendance.lost_wait_ms };
            lost.extend(
                shards
                    .filter(|shard| shard.node == node)
                    .map(|shard| (channel.clone(), shard, wait_ms)),
            );
        }
        for (channel, shard, wait_ms) in lost {
            self.drop_listener(now_ms, &channel, shard, wait_ms);
        }
    }

    /// Lets up to `most` members leave whom no shard has reported, and tells back ends again of as many channels. Returns
    /// whether more are due.
    pub fn expire(&mut self, now_ms: u64, places: &PresencePlaces, most: usize) -> bool {
        for _ in 0..most {
            let Some(first) = self.leaving.first().filter(|first| first.at_ms <= now_ms) else {
                break;
            };
            let LeavingMember { channel, member, .. } = first.clone();
            self.leaving.pop_first();
            let Some(attendance) = self.channels.get(&channel) else { continue };
            let is_reported = !attendance.listeners.is_empty();
            let is_home = places.home(&channel) == places.own();
            if !is_home && is_reported && now_ms < attendance.moves_until_ms + LOSS_MS {
                // The shards that still report may be lost ones. The others have gone to another home.
                self.wait(&channel, member, now_ms + LOSS_MS);
                continue;
            }
            // If all shards have gone to another home, that one tells back ends.
            self.end_seat(&channel, &member, is_home || is_reported);
            self.remove_if_over(&channel);
        }
        for _ in 0..most {
            let Some((at_ms, channel)) = self.retold.pop_first() else { break };
            if at_ms > now_ms {
                self.retold.insert((at_ms, channel));
                break;
            }
            self.retell(&channel);
        }
        self.next_expiry().is_some_and(|at_ms| at_ms <= now_ms)
    }

    /// Returns when [`Self::expire`] has something to do next, in milliseconds.
    pub fn next_expiry(&self) -> Option<u64> {
        let leaving = self.leaving.first().map(|first| first.at_ms);
        let retold = self.retold.first().map(|first| first.0);
        leaving.into_iter().chain(retold).min()
    }

    fn takes(&mut self, channel: &str, member: &PresentMember) -> bool {
        let has_topic = self.channels.get(channel).is_some_and(|known| known.told.is_some());
        let bytes =
            SEAT_BYTES + if has_topic { 2 * TOLD_BYTES } else { 0 } + 2 * name_bytes(member);
        let has_room = self.bytes + bytes <= self.bytes_max;
        self.refused += u64::from(!has_room);
        has_room
    }

    fn add_seat(&mut self, channel: &str, member: PresentMember, seat: Seat) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let bytes = SEAT_BYTES + name_bytes(&member);
        if attendance.seats.insert(member, seat).is_none() {
            (self.bytes, self.members) = (self.bytes + bytes, self.members + 1);
        }
    }

    /// Makes a member without clients leave at this time, unless a shard reports the member.
    fn wait(&mut self, channel: &Arc<str>, member: PresentMember, at_ms: u64) {
        let attendance = self.channels.get_mut(channel);
        let Some(seat) = attendance.and_then(|known| known.seats.get_mut(&member)) else { return };
        let channel = channel.clone();
        if let Some(at_ms) = seat.leaves_at_ms.replace(at_ms) {
            let (channel, member) = (channel.clone(), member.clone());
            self.leaving.remove(&LeavingMember { at_ms, channel, member });
        }
        self.leaving.insert(LeavingMember { at_ms, channel, member });
    }

    /// Ends the presence of a member.
    fn end_seat(&mut self, channel: &Arc<str>, member: &PresentMember, is_told: bool) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        if attendance.seats.remove(member).is_none() {
            return;
        }
        let bytes = SEAT_BYTES + name_bytes(member);
        (self.bytes, self.members) = (self.bytes - bytes, self.members - 1);
        let is_empty = attendance.seats.is_empty();
        if let Some(user) = member.clone() {
            attendance.has_left = true;
            self.announce(channel, PresenceNews::Left(user));
            self.untell(channel, member, is_told);
        }
        if is_empty {
            self.untell(channel, &None, is_told);
        }
    }

    /// Sends news to all shards that report a channel, and to the standby.
    fn announce(&mut self, channel: &Arc<str>, news: PresenceNews) {
        let Some(attendance) = self.channels.get(channel) else { return };
        let listeners = attendance.listeners.iter().map(|listener| listener.shard);
        let standby = attendance.standby.filter(|&standby| {
            attendance.listeners.iter().all(|listener| listener.shard != standby)
        });
        let receivers = listeners.chain(standby);
        let message =
            |shard| (shard, PresenceMessage { channel: channel.clone(), news: news.clone() });
        self.messages.extend(receivers.map(message));
    }

    fn remove_if_over(&mut self, channel: &Arc<str>) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let is_over = attendance.seats.is_empty() && attendance.listeners.is_empty();
        if is_over
            && let Some(told) = &mut attendance.told
            && let Some(occupied) = told.get_mut(&None)
            && occupied.is_present
        {
            // A home that was lost told of members whom nobody knows by name.
            self.tell(channel, None, false);
        }
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        if !is_over || attendance.told.as_ref().is_some_and(|told| !told.is_empty()) {
            return;
        }
        let end = PresenceMessage { channel: channel.clone(), news: PresenceNews::Unguard };
        self.messages.extend(attendance.standby.take().map(|standby| (standby, end)));
        self.channels.remove(channel);
    }

    /// Returns the next message to a shard.
    pub fn poll_message(&mut self) -> Option<(ShardAddress, PresenceMessage)> {
        self.messages.pop_front()
    }

    /// Whether there are messages to shards.
    pub fn has_messages(&self) -> bool {
        !self.messages.is_empty()
    }

    /// The number of channels whose home the shard is.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The number of members of all channels. All clients of a channel without a user are one.
    pub fn members(&self) -> usize {
        self.members
    }

    /// The memory of members, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many members were refused since the last call, for lack of room.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub fn check(&self) {
        let all = || self.channels.values();
        let seats = || all().flat_map(|attendance| &attendance.seats);
        let told = || all().flat_map(|attendance| attendance.told.iter().flatten());
        let seat_bytes: usize = seats().map(|(member, _)| SEAT_BYTES + name_bytes(member)).sum();
        let told_bytes: usize = told().map(|(member, _)| TOLD_BYTES + name_bytes(member)).sum();
        assert_eq!(self.bytes, seat_bytes + told_bytes, "bytes of members");
        assert_eq!(self.members, seats().count(), "members");
        let is_waiting = |(_, seat): &(&PresentMember, &Seat)| seat.leaves_at_ms.is_some();
        assert!(seats().all(|of| is_waiting(&of) == of.1.shards.is_empty()), "nobody waits for it");
        assert_eq!(self.leaving.len(), seats().filter(is_waiting).count(), "members that leave");
        assert!(self.untold.len() >= told().filter(|(_, told)| told.is_queued).count());
        for attendance in all() {
            for listener in &attendance.listeners {
                let of = attendance.seats.values().filter(|s| s.shards.contains(&listener.shard));
                assert_eq!(listener.members, of.count(), "members on {:?}", listener.shard);
            }
        }
    }
}

impl Attendance {
    /// Whether back ends may have been told of the channel otherwise than by an earlier home.
    fn has_told_otherwise(&self, now_ms: u64) -> bool {
        self.has_left || now_ms >= self.since_ms + SPLIT_MS
    }

    fn new(now_ms: u64, terms: PresenceTerms) -> Self {
        Self {
            since_ms: now_ms,
            moves_until_ms: 0,
            has_left: false,
            lost_wait_ms: terms.grace_ms.saturating_sub(SILENCE_MS).max(LOST_WAIT_MS),
            seats: NameTable::default(),
            listeners: Vec::new(),
            told: terms.has_topic.then(NameTable::default),
            standby: None,
        }
    }
}

fn name_bytes(member: &PresentMember) -> usize {
    member.as_ref().map_or(0, |user| user.len())
}
