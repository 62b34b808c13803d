//! What the home of a channel tells back ends, and remembers to have told them. The standby, which goes on with it when the
//! home is lost.

use std::sync::Arc;

use super::{
    Attendance, HomePresence, PresencePlaces, PresenceTerms, TOLD_BYTES, Telling, name_bytes, parts,
};
use crate::message::{PresenceMessage, PresenceNews, PresentMember};

/// A change that back ends are told of.
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

impl PresenceChange {
    fn new(channel: Arc<str>, member: PresentMember, is_present: bool) -> Self {
        match (member, is_present) {
            (None, true) => Self::Occupied(channel),
            (Some(user), true) => Self::Joined(channel, user),
            (Some(user), false) => Self::Left(channel, user),
            (None, false) => Self::Vacated(channel),
        }
    }

    /// The channel.
    pub fn channel(&self) -> &Arc<str> {
        match self {
            Self::Occupied(channel) | Self::Vacated(channel) => channel,
            Self::Joined(channel, _) | Self::Left(channel, _) => channel,
        }
    }

    /// The user who comes or goes. `None`: the channel is occupied or vacated.
    pub fn user(&self) -> Option<&Arc<str>> {
        match self {
            Self::Joined(_, user) | Self::Left(_, user) => Some(user),
            Self::Occupied(_) | Self::Vacated(_) => None,
        }
    }

    /// Whether somebody comes.
    pub fn is_arrival(&self) -> bool {
        matches!(self, Self::Occupied(_) | Self::Joined(..))
    }

    fn into_parts(self) -> (Arc<str>, PresentMember, bool) {
        match self {
            Self::Occupied(channel) => (channel, None, true),
            Self::Joined(channel, user) => (channel, Some(user), true),
            Self::Left(channel, user) => (channel, Some(user), false),
            Self::Vacated(channel) => (channel, None, false),
        }
    }
}

impl HomePresence {
    /// Tells back ends again who is in a channel.
    pub(super) fn retell(&mut self, channel: &Arc<str>) {
        let Some(attendance) = self.channels.get(channel) else { return };
        let announced = attendance.seats.iter().filter(|(_, seat)| seat.is_announced);
        let announced = announced.filter(|(member, _)| member.is_some());
        let members = announced.map(|(member, _)| member.clone());
        for member in members.chain([None]).collect::<Vec<_>>() {
            self.distrust(channel, &member);
            self.tell(channel, member, true);
        }
    }

    /// Notes that back ends may not know that a member is present.
    pub(super) fn distrust(&mut self, channel: &str, member: &PresentMember) {
        let told = self.channels.get_mut(channel).and_then(|known| known.told.as_mut());
        if let Some(told) = told.and_then(|told| told.get_mut(member)) {
            told.is_told = false;
        }
    }

    /// Queues what back ends are to be told of a member, if the channel has a topic.
    pub(super) fn tell(&mut self, channel: &Arc<str>, member: PresentMember, is_present: bool) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(told) = &mut attendance.told else { return };
        let bytes = TOLD_BYTES + name_bytes(&member);
        let told = told.entry(member.clone()).or_insert_with(|| {
            self.bytes += bytes;
            Telling::default()
        });
        if told.set(is_present) {
            self.untold.push_back((channel.clone(), member));
        } else if told.is_over() {
            self.forget_told(channel, &member);
        }
    }

    /// Notes that a member is not present any more. Back ends are told, unless another home tells them.
    pub(super) fn untell(&mut self, channel: &Arc<str>, member: &PresentMember, is_told: bool) {
        match is_told {
            true => self.tell(channel, member.clone(), false),
            false => self.forget_told(channel, member),
        }
    }

    /// Notes that back ends know that a member is present.
    pub(super) fn note_told(&mut self, channel: &Arc<str>, member: PresentMember) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let Some(told) = &mut attendance.told else { return };
        let bytes = TOLD_BYTES + name_bytes(&member);
        told.entry(member).or_insert_with(|| {
            self.bytes += bytes;
            Telling::KNOWN
        });
    }

    pub(super) fn forget_told(&mut self, channel: &str, member: &PresentMember) {
        let told = self.channels.get_mut(channel).and_then(|known| known.told.as_mut());
        if told.is_some_and(|told| told.remove(member).is_some()) {
            self.bytes -= TOLD_BYTES + name_bytes(member);
        }
    }

    /// Returns the next change that back ends are to be told of. If they are not, [`Self::tell_again`] has it told later.
    pub fn poll_change(&mut self) -> Option<PresenceChange> {
        while let Some((channel, member)) = self.untold.pop_front() {
            let told = self.channels.get_mut(&channel).and_then(|known| known.told.as_mut());
            let Some(told) = told.and_then(|told| told.get_mut(&member)) else { continue };
            let change = told.poll();
            if told.is_over() {
                self.forget_told(&channel, &member);
                self.remove_if_over(&channel);
            }
            if let Some(is_present) = change {
                return Some(PresenceChange::new(channel, member, is_present));
            }
        }
        None
    }

    /// Whether back ends are to be told of something.
    pub fn has_changes(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Notes that back ends could not be told of a change.
    pub fn tell_again(&mut self, now_ms: u64, change: PresenceChange) {
        let (channel, member, was_present) = change.into_parts();
        let terms = PresenceTerms { grace_ms: 0, has_topic: true };
        let attendance = self.channels.entry(channel.clone());
        let attendance = attendance.or_insert_with(|| Attendance::new(now_ms, terms));
        let Some(told) = &mut attendance.told else { return };
        let bytes = TOLD_BYTES + name_bytes(&member);
        let told = told.entry(member.clone()).or_insert_with(|| {
            self.bytes += bytes;
            Telling::default()
        });
        told.is_told = !was_present;
        if told.must_queue() {
            self.untold.push_back((channel, member));
        } else if told.is_over() {
            self.forget_told(&channel, &member);
            self.remove_if_over(&channel);
        }
    }

    /// Finds the standbys of up to `most` channels anew. Returns whether there may be more.
    pub fn guard_some(&mut self, places: &PresencePlaces, most: usize) -> bool {
        for _ in 0..most {
            let Some(channel) = self.guarded.pop_front() else { return false };
            self.guard(&channel, places);
        }
        !self.guarded.is_empty()
    }

    /// Whether [`Self::guard_some`] has something to do.
    pub fn is_guarding(&self) -> bool {
        !self.guarded.is_empty()
    }

    /// Tells the standby of a channel, if it is another one than before.
    pub(super) fn guard(&mut self, channel: &Arc<str>, places: &PresencePlaces) {
        let Some(attendance) = self.channels.get_mut(channel) else { return };
        let is_home = places.home(channel) == places.own();
        let standby = match is_home && attendance.told.is_some() {
            true => places.standby(channel),
            false => None,
        };
        let earlier = std::mem::replace(&mut attendance.standby, standby);
        if earlier == standby {
            return;
        }
        let users = attendance.seats.keys().flatten().cloned();
        let users = parts(users).map(PresenceNews::WereThere);
        let begin = std::iter::once(PresenceNews::Guard).chain(users);
        let begin = standby.into_iter().zip(std::iter::once(begin));
        for (standby, news) in begin {
            let messages =
                news.map(|news| (standby, PresenceMessage { channel: channel.clone(), news }));
            self.messages.extend(messages);
        }
        let end = PresenceMessage { channel: channel.clone(), news: PresenceNews::Unguard };
        self.messages.extend(earlier.map(|earlier| (earlier, end)));
    }
}
