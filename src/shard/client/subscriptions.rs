//! How clients join channels and leave them. A client that is gone leaves in slices: many that go at
//! once, each with all the channels it may have, would take seconds.

use std::collections::VecDeque;

use hashbrown::HashSet;

use super::Clients;
use super::channels::{ChannelIndex, Member, Subscription};
use super::functions::no_such_client;
use crate::message::ConnectionKey;
use crate::protocol::api::{Code, Fault, Reply};
use crate::shard::connection::{Client, Connection, Connections, Stage};
use crate::shard::turn::Turn;

/// Subscriptions of clients that are gone which end in one turn: some 0.2 ms.
const UNSUBSCRIBES_PER_TURN: usize = 2048;

/// Names among which a repeated one is found by comparing, without a set.
const COMPARED: usize = 16;

/// The clients that are gone and have channels left to leave.
#[derive(Debug)]
pub struct UnsubscribeQueue {
    // Their connections, which stay in the table until they have left. As many at most as there are
    // connections; a client keeps its place there meanwhile.
    clients: VecDeque<ConnectionKey>,
    // Subscriptions that may still end in this turn.
    left: usize,
}

impl Default for UnsubscribeQueue {
    fn default() -> Self {
        Self { clients: VecDeque::new(), left: UNSUBSCRIBES_PER_TURN }
    }
}

impl UnsubscribeQueue {
    /// Whether a client has channels left to leave: the next turn is to begin at once.
    pub fn is_waiting(&self) -> bool {
        !self.clients.is_empty()
    }
}

/// Takes each name once, in time that grows with their number. The rest is not looked at once there
/// are more than `max`.
///
/// # Errors
/// More than `max` different names.
pub fn distinct<'n>(
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

/// More different names than there may be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooManyNames;

impl Client {
    /// Whether it is subscribed to this channel.
    fn is_in(&self, channel: ChannelIndex) -> bool {
        self.place_of(channel).is_some()
    }

    /// The index of its subscription to this channel.
    fn place_of(&self, channel: ChannelIndex) -> Option<usize> {
        self.subscriptions.iter().position(|known| known.channel == channel)
    }
}

impl Connection {
    /// Notes that the client's position in a channel changed.
    pub(super) fn move_subscription(&mut self, member: Member, to: Subscription) {
        let known = self.subscriptions().and_then(|known| known.get_mut(member.place as usize));
        let known = known.expect("a member knows the place of its subscription");
        debug_assert_eq!(known.channel, to.channel);
        *known = to;
    }
}

impl Clients {
    /// Subscribes a client: to all of the channels, or to none if that is too many.
    pub(super) fn subscribe<T: AsRef<str>>(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channels: &[T],
    ) -> Result<Reply, Fault> {
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
            let member = Member { connection: key.index, place };
            client.subscriptions.push(self.channels.subscribe(channel, member));
        }
        Ok(Reply::Done)
    }

    /// Ends a client's subscriptions to these channels, where it has one.
    pub fn unsubscribe(
        &mut self,
        connections: &mut Connections,
        key: ConnectionKey,
        channels: &[Box<str>],
    ) {
        for channel in channels {
            let Some(index) = self.channels.find(channel) else { continue };
            let Some(client) = connections.get(key).and_then(Connection::client) else {
                return;
            };
            let Some(place) = client.place_of(index) else { continue };
            let left = client.subscriptions.swap_remove(place);
            if let Some(&moved) = client.subscriptions.get(place) {
                self.channels.set_place(moved, place as u32);
            }
            self.unsubscribe_at(connections, left);
        }
    }

    fn unsubscribe_at(&mut self, connections: &mut Connections, subscription: Subscription) {
        self.channels.unsubscribe(subscription, |member, subscription| {
            connections.at(member.connection).1.move_subscription(member, subscription);
        });
    }

    /// Takes a client that is gone out of its channels: at once if the turn allows, else in later
    /// turns. Its connection keeps what is left.
    pub fn begin_unsubscribing(
        &mut self,
        connections: &mut Connections,
        key: ConnectionKey,
        client: Box<Client>,
    ) {
        if !self.unsubscribe_some(connections, key, client) {
            self.unsubscribing.clients.push_back(key);
        }
    }

    /// Goes on with the clients that are gone, in the order in which they went.
    pub fn continue_unsubscribing(&mut self, connections: &mut Connections) {
        self.unsubscribing.left = UNSUBSCRIBES_PER_TURN;
        while self.unsubscribing.left > 0
            && let Some(key) = self.unsubscribing.clients.pop_front()
        {
            let Some(connection) = connections.get(key) else { continue };
            let stage = std::mem::replace(&mut connection.stage, Stage::Ending);
            let Stage::Unsubscribing(client) = stage else { continue };
            if !self.unsubscribe_some(connections, key, client) {
                return self.unsubscribing.clients.push_front(key);
            }
            connections.forget_if_closed(key);
        }
    }

    /// Ends as many subscriptions as the turn allows; true when none is left.
    fn unsubscribe_some(
        &mut self,
        connections: &mut Connections,
        key: ConnectionKey,
        mut client: Box<Client>,
    ) -> bool {
        // From the end of the list on, so that no subscription of this client moves.
        while self.unsubscribing.left > 0
            && let Some(subscription) = client.subscriptions.pop()
        {
            self.unsubscribing.left -= 1;
            self.unsubscribe_at(connections, subscription);
        }
        let has_left = client.subscriptions.is_empty();
        if !has_left && let Some(connection) = connections.get(key) {
            connection.stage = Stage::Unsubscribing(client);
        }
        has_left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_is_taken_once_in_the_order_of_its_first_place() {
        for count in [1, COMPARED, COMPARED + 1, 1000] {
            let names: Vec<String> = (0..count).map(|n| n.to_string()).collect();
            let twice = || names.iter().chain(&names).map(String::as_str);
            assert_eq!(distinct(twice(), count), Ok(names.iter().map(String::as_str).collect()));
            assert_eq!(distinct(twice(), count - 1), Err(TooManyNames), "{count}");
        }
        assert_eq!(distinct([], 0), Ok(Vec::new()));
    }
}
