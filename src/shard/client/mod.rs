//! The clients of a shard: handshakes, messages, channel subscriptions, and commands of back ends.
//!
//! - `handshake.rs`: checks and answers the request of a new client. `question.rs`: what a handshake may
//!   need from outside the shard. `messages.rs`: reads a client's messages. `device.rs`: calls of devices.
//!   `renewal.rs`: new tokens of devices.
//!   `recovery.rs`: what devices have missed.
//! - `subscriptions.rs`: subscribes and unsubscribes clients. `channels.rs`: the table of channels.
//! - `fanout.rs`: delivers publishes to the subscribers of a channel. `budget.rs`: how much of a turn that may take. `variants.rs`: the plain and
//!   compressed variants of a frame.
//! - `functions.rs`: messages to one client, and functions that back ends call on it.
//! - `list.rs`: finds clients and channels for lists of administration.
//! - `presence.rs`: who is in channels with presence.
//! - `announce.rs`: tells other nodes about channels and clients. `context.rs`: a client's context.
//! - `user_index.rs`: the clients by user. `for_users.rs`: commands for all connections of some users.

mod announce;
mod budget;
mod channels;
mod context;
mod device;
mod fanout;
mod for_users;
mod functions;
mod handshake;
mod list;
mod messages;
mod presence;
mod question;
mod recovery;
mod renewal;
mod subscriptions;
mod user_index;
mod variants;

use std::sync::Arc;

use hashbrown::HashMap;

use crate::address::{ClientId, IdSource};
use crate::message::ConnectionKey;
use crate::protocol::api::Parser;
use crate::protocol::deflate::{Deflater, Inflater};
use crate::queue::feeder::Ended;
use crate::shard::connection::{Connection, Connections, Stage};
use crate::shard::interest::ShardInterest;
use crate::shard::taps::TapSet;
use crate::shard::turn::{ClientGone, Turn};
use announce::InterestAnnouncements;
use channels::Channels;
use fanout::Fanout;
use presence::Presence;
use subscriptions::UnsubscribeQueue;
use user_index::UserIndex;

pub(super) use channels::Subscription;
pub(super) use context::Context;
pub(super) use fanout::PendingWalk;
pub(super) use handshake::HandshakeChecks;
pub(super) use question::{Granted, KeyLookup, Need, Progress};

/// The clients of one shard, and the channels that they are subscribed to.
pub(super) struct Clients {
    ids: IdSource,
    by_id: HashMap<ClientId, ConnectionKey>,
    // Those of `by_id` that have a user.
    users: UserIndex,
    channels: Channels,
    unsubscribing: UnsubscribeQueue,
    presence: Box<Presence>,
    fanout: Fanout,
    announcements: InterestAnnouncements,
    deflater: Deflater,
    inflater: Inflater,
    // The parser of devices' calls.
    parser: Parser,
    // A reusable buffer for a message in its envelope.
    envelope: Vec<u8>,
}

impl Clients {
    /// Creates the part without clients. `ids` provides the ids of new clients.
    pub(super) fn new(turn: &Turn, ids: IdSource) -> Self {
        Self {
            ids,
            by_id: HashMap::new(),
            users: UserIndex::default(),
            channels: Channels::new(
                turn.settings.has_mesh,
                ShardInterest::new(turn.address.shard, turn.state.interest.clone()),
            ),
            unsubscribing: UnsubscribeQueue::default(),
            presence: Box::new(Presence::new(turn)),
            fanout: Fanout::default(),
            announcements: InterestAnnouncements::default(),
            deflater: Deflater::default(),
            inflater: Inflater::default(),
            parser: Parser::default(),
            envelope: Vec::new(),
        }
    }

    /// Returns the number of clients.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Checks that exactly the clients with a user are in the index of users. Visits every client.
    ///
    /// # Panics
    /// One is missing, or one too many is there.
    pub(super) fn check_users(&self, connections: &Connections) {
        let mut with_user = 0;
        for key in self.by_id.values() {
            let stage = connections.peek(*key).map(|connection| &connection.stage);
            let Some(Stage::Client(client)) = stage else { panic!("{key:?} is no client") };
            if let Some(user) = self.users.hash_of(&client.context) {
                let found = self.users.connections(user, key.index).next();
                assert_eq!(found, Some(key.index), "a client is not in the index of users");
                with_user += 1;
            }
        }
        assert_eq!(self.users.len(), with_user, "clients that are gone are in the index of users");
    }

    /// Returns the taps that match a client. None match a client that is not on this shard.
    pub(super) fn taps_of(&self, connections: &Connections, client: ClientId) -> TapSet {
        let key = self.by_id.get(&client);
        let connection = key.and_then(|&key| connections.peek(key));
        let tapped = connection.and_then(|connection| connection.tapped());
        tapped.map(|(_, taps)| taps).unwrap_or_default()
    }

    /// Whether a channel has subscribers on this shard.
    pub(super) fn has_channel(&self, name: &str) -> bool {
        self.channels.find(name).is_some()
    }

    /// Returns the number of channels with subscribers on this shard.
    pub(super) fn channels(&self) -> usize {
        self.channels.len()
    }

    /// Handles the disconnect of a client whose messages are still being processed: no call reaches
    /// it any more.
    pub(super) fn handle_disconnected(&mut self, connections: &mut Connections, client: ClientId) {
        let Some(key) = self.by_id.remove(&client) else { return };
        if let Some(client) = connections.get(key).and_then(Connection::client) {
            self.users.remove(self.users.hash_of(&client.context), key.index);
        }
    }

    /// Handles the end of a client, and unsubscribes it from its channels. Returns the topic and
    /// the close event, if the client's route reports closes.
    pub(super) fn handle_gone(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        gone: ClientGone,
    ) -> Option<(Arc<str>, Ended)> {
        let ClientGone { key, code, reason } = gone;
        let connection = connections.get(key)?;
        let route = connection.route(&turn.settings);
        let Stage::Unsubscribing(mut client) =
            std::mem::replace(&mut connection.stage, Stage::Ending)
        else {
            return None;
        };
        client.device = None;
        self.by_id.remove(&client.id);
        self.users.remove(self.users.hash_of(&client.context), key.index);
        let topic = route.filter(|route| route.tells_close).and_then(|route| route.topic.clone());
        let told = topic.map(|topic| {
            let context = client.context.json().map(Box::from);
            (topic, Ended { client: client.id, code, reason, context })
        });
        self.begin_unsubscribing(turn.now.ms, connections, key, client);
        connections.forget_if_unsubscribed(key);
        told
    }

    /// Whether the next turn has work at once: a pending publish, or clients to unsubscribe.
    pub(super) fn is_waiting(&self) -> bool {
        self.fanout.is_walking() || self.unsubscribing.is_waiting()
    }
}
