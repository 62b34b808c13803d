//! The clients of a shard: who is there, what they send, which channels they are subscribed to, and what
//! back ends do with them.
//!
//! - `handshake.rs`: how a client comes in. `messages.rs`: what it sends.
//! - `subscriptions.rs`: how it joins channels and leaves them. `channels.rs`: the channels.
//! - `fanout.rs`: publishes to the subscribers of a channel. `variants.rs`: what each of them gets.
//! - `functions.rs`: single messages to a client, and functions that back ends call on it.
//! - `announce.rs`: what other nodes are told of channels and clients. `context.rs`: a client's context.

mod announce;
mod channels;
mod context;
mod fanout;
mod functions;
mod handshake;
mod messages;
mod subscriptions;
mod variants;

use std::sync::Arc;

use hashbrown::HashMap;

use crate::address::{ClientId, IdSource};
use crate::message::ConnectionKey;
use crate::protocol::deflate::{Deflater, Inflater};
use crate::queue::feeder::Ended;
use crate::shard::connection::{Connections, Stage};
use crate::shard::interest::ShardInterest;
use crate::shard::turn::{ClientGone, Turn};
use announce::Announcements;
use channels::Channels;
use fanout::Fanout;
use subscriptions::UnsubscribeQueue;

pub use channels::Subscription;
pub use context::Context;

/// The clients of one shard, and the channels that they are subscribed to.
pub struct Clients {
    ids: IdSource,
    by_id: HashMap<ClientId, ConnectionKey>,
    channels: Channels,
    unsubscribing: UnsubscribeQueue,
    fanout: Fanout,
    announcements: Announcements,
    deflater: Deflater,
    inflater: Inflater,
}

impl Clients {
    /// No clients yet. Their ids come from `ids`.
    pub fn new(turn: &Turn, ids: IdSource) -> Self {
        Self {
            ids,
            by_id: HashMap::new(),
            channels: Channels::new(
                turn.settings.has_mesh,
                ShardInterest::new(turn.address.shard, turn.state.interest.clone()),
            ),
            unsubscribing: UnsubscribeQueue::default(),
            fanout: Fanout::default(),
            announcements: Announcements::default(),
            deflater: Deflater::default(),
            inflater: Inflater::default(),
        }
    }

    /// How many clients there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether a channel has subscribers here.
    pub fn has_channel(&self, name: &str) -> bool {
        self.channels.find(name).is_some()
    }

    /// How many channels have subscribers here.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// A client has ended, though what it sent before is still read: no call reaches it any more.
    pub fn handle_disconnected(&mut self, client: ClientId) {
        self.by_id.remove(&client);
    }

    /// A client has ended: takes it out of its channels. Gives the topic that is to hear of it, and how
    /// the client ended, if its route says so.
    pub fn handle_gone(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        gone: ClientGone,
    ) -> Option<(Arc<str>, Ended)> {
        let ClientGone { key, code, reason } = gone;
        let connection = connections.get(key)?;
        let route = connection.route(&turn.settings);
        let Stage::Unsubscribing(client) = std::mem::replace(&mut connection.stage, Stage::Ending)
        else {
            return None;
        };
        self.by_id.remove(&client.id);
        let topic = route.filter(|route| route.tells_close).and_then(|route| route.topic.clone());
        let told = topic.map(|topic| {
            let context = client.context.json().map(Box::from);
            (topic, Ended { client: client.id, code, reason, context })
        });
        self.begin_unsubscribing(connections, key, client);
        connections.forget_if_unsubscribed(key);
        told
    }

    /// Whether a turn has something to do at once: a publish that goes on, or channels to be left.
    pub fn is_waiting(&self) -> bool {
        self.fanout.is_walking() || self.unsubscribing.is_waiting()
    }
}
