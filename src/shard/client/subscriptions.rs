//! Subscribing and unsubscribing clients. Clients that have ended are unsubscribed in slices,
//! because a crowd of them with all their channels could take seconds.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::Clients;
use super::channels::{ChannelIndex, ChannelMember, Subscription};
use super::functions::no_such_client;
use super::presence::member_of;
use crate::message::{ClientReply, ConnectionKey};
use crate::protocol::api::{Code, Fault};
use crate::shard::connection::{Client, Connection, Connections, Stage};
use crate::shard::turn::Turn;

/// Subscriptions of ended clients removed in one turn, which takes about 0.2 ms.
const UNSUBSCRIBES_PER_TURN: usize = 2048;

/// Number of names up to which duplicates are found by comparison, without a set.
const COMPARED: usize = 16;

/// The ended clients that still have subscriptions.
#[derive(Debug)]
pub(super) struct UnsubscribeQueue {
    // The connections of these clients, which stay in the table until all subscriptions are
    // removed. The number of connections bounds the queue.
    clients: VecDeque<ConnectionKey>,
    // Subscriptions that may still be removed in this turn.
    left: usize,
}

impl Default for UnsubscribeQueue {
    fn default() -> Self {
        Self { clients: VecDeque::new(), left: UNSUBSCRIBES_PER_TURN }
    }
}

impl UnsubscribeQueue {
    /// Whether an ended client still has subscriptions, so that the next turn begins at once.
    pub(super) fn is_waiting(&self) -> bool {
        !self.clients.is_empty()
    }
}

/// Removes duplicate names, in linear time. The search stops as soon as there are more than `max`
/// names.
///
/// # Errors
/// There are more than `max` distinct names.
pub(super) fn distinct<'n>(
    names: impl IntoIterator<Item = &'n str>,
    max: usize,
) -> Result<Vec<&'n str>, TooManyNames> {
    let mut found: Vec<&str> = Vec::new();
    let mut seen = HashSet::new();
    for name in names {
        if found.len() == COMPARED && seen.is_empty() {
            seen.extend(found.iter().copied());
        }
        let is_known = match seen.is_empty() {
            true => found.contains(&name),
            false => !seen.insert(name),
        };
        if is_known {
            continue;
        }
        if found.len() == max {
            return Err(TooManyNames);
        }
        found.push(name);
    }
    Ok(found)
}

/// More distinct names than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooManyNames;

impl Client {
    /// Whether the client is subscribed to this channel.
    pub(super) fn is_in(&self, channel: ChannelIndex) -> bool {
        self.place_of(channel).is_some()
    }

    /// Returns the index of the client's subscription to this channel.
    fn place_of(&self, channel: ChannelIndex) -> Option<usize> {
        self.subscriptions.iter().position(|known| known.channel == channel)
    }
}

impl Connection {
    /// Updates a subscription whose member moved to another position in the channel.
    pub(super) fn move_subscription(&mut self, member: ChannelMember, to: Subscription) {
        let known = self.subscriptions().and_then(|known| known.get_mut(member.place as usize));
        let known = known.expect("a member knows the place of its subscription");
        debug_assert_eq!(known.channel, to.channel);
        *known = to;
    }
}

impl Clients {
    /// Subscribes a client to all of these channels, or to none if that exceeds the limit.
    pub(in crate::shard) fn subscribe<T: AsRef<str>>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channels: &[T],
    ) -> Result<ClientReply, Fault> {
        let limit = turn.settings.limits.channels_per_client;
        let client = connections.get(key).and_then(Connection::client);
        let client = client.ok_or_else(no_such_client)?;
        let is_new = |name: &&str| !self.channels.find(name).is_some_and(|at| client.is_in(at));
        let names = channels.iter().map(AsRef::as_ref).filter(is_new);
        let Ok(new) = distinct(names, limit.saturating_sub(client.subscriptions.len())) else {
            turn.counters.limits.channels_per_client += 1;
            let message = format!("more than {limit} channels for one client");
            return Err(Fault::new(Code::ExecutionFailed, message));
        };
        client.subscriptions.reserve_exact(new.len());
        for channel in new {
            let place = client.subscriptions.len() as u32;
            let member = ChannelMember { connection: key.index, place };
            client.subscriptions.push(self.channels.subscribe(channel, member));
            self.enter(turn, channel, || member_of(client));
        }
        Ok(ClientReply::Done)
    }

    /// Whether a client is subscribed to a channel.
    pub(crate) fn is_subscribed(&self, client: &Client, channel: &str) -> bool {
        self.channels.find(channel).is_some_and(|channel| client.is_in(channel))
    }

    /// Returns the test of [`Self::is_subscribed`], for a part that does not know clients.
    pub(crate) fn membership(&self) -> impl Fn(&Client, &str) -> bool {
        |client, channel| self.is_subscribed(client, channel)
    }

    /// Ends a client's subscriptions to these channels.
    pub(crate) fn unsubscribe<T: AsRef<str>>(
        &mut self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channels: &[T],
    ) {
        for channel in channels {
            let Some(index) = self.channels.find(channel.as_ref()) else { continue };
            let Some(client) = connections.get(key).and_then(Connection::client) else {
                return;
            };
            let Some(place) = client.place_of(index) else { continue };
            let left = client.subscriptions.swap_remove(place);
            if let Some(&moved) = client.subscriptions.get(place) {
                self.channels.set_place(moved, place as u32);
            }
            self.leave(turn.now.ms, channel.as_ref(), || member_of(client));
            self.unsubscribe_at(connections, left);
        }
    }

    fn unsubscribe_at(&mut self, connections: &mut Connections, subscription: Subscription) {
        self.channels.unsubscribe(subscription, |member, subscription| {
            connections.at(member.connection).1.move_subscription(member, subscription);
        });
    }

    /// Unsubscribes an ended client from its channels. What exceeds the turn's budget is queued for
    /// later turns.
    pub(crate) fn begin_unsubscribing(
        &mut self,
        now_ms: u64,
        connections: &mut Connections,
        key: ConnectionKey,
        client: Box<Client>,
    ) {
        if !self.unsubscribe_some(now_ms, connections, key, client) {
            self.unsubscribing.clients.push_back(key);
        }
    }

    /// Continues to unsubscribe ended clients, in order, within the budget of a turn.
    pub(crate) fn continue_unsubscribing(&mut self, now_ms: u64, connections: &mut Connections) {
        self.unsubscribing.left = UNSUBSCRIBES_PER_TURN;
        while self.unsubscribing.left > 0
            && let Some(key) = self.unsubscribing.clients.pop_front()
        {
            let Some(connection) = connections.get(key) else { continue };
            let stage = std::mem::replace(&mut connection.stage, Stage::Ending);
            let Stage::Unsubscribing(client) = stage else { continue };
            if !self.unsubscribe_some(now_ms, connections, key, client) {
                return self.unsubscribing.clients.push_front(key);
            }
            connections.forget_if_closed(key);
        }
    }

    /// Ends as many subscriptions as the turn's budget allows. Returns true when none is left.
    fn unsubscribe_some(
        &mut self,
        now_ms: u64,
        connections: &mut Connections,
        key: ConnectionKey,
        mut client: Box<Client>,
    ) -> bool {
        // Subscriptions are taken from the end of the list, so that the client's others do not
        // move.
        while self.unsubscribing.left > 0
            && let Some(subscription) = client.subscriptions.pop()
        {
            self.unsubscribing.left -= 1;
            self.leave_at(now_ms, subscription, &client);
            self.unsubscribe_at(connections, subscription);
        }
        let is_done = client.subscriptions.is_empty();
        if !is_done && let Some(connection) = connections.get(key) {
            connection.stage = Stage::Unsubscribing(client);
        }
        is_done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_names_are_removed_in_order_of_first_appearance() {
        for count in [1, COMPARED, COMPARED + 1, 1000] {
            let names: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let twice = || names.iter().chain(&names).map(String::as_str);
            assert_eq!(distinct(twice(), count), Ok(names.iter().map(String::as_str).collect()));
            assert_eq!(distinct(twice(), count - 1), Err(TooManyNames), "{count}");
        }
        assert_eq!(distinct([], 0), Ok(Vec::new()));
    }
}
