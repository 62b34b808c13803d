//! Clients that wait until fewer events wait for room in their topic: before their next message is
//! decoded, or, of one that is gone, before its last event is encoded.

use std::sync::Arc;

use super::Shard;
use super::connection::{Client, Pause};
use super::settings::Route;
use super::topics::Topics;
use crate::message::ConnectionKey;
use crate::protocol::api;
use crate::queue::feeder::{Deferred, Ended, Feeder};

/// Deferred clients that have their turn in one turn of the shard, of all topics together. Each
/// crowded topic has one at least.
const ADMITTED_PER_TURN: usize = 256;

impl Topics {
    /// The topic that a connection on this route waits for before what it sent next is decoded, if it
    /// is to wait. Control frames need not, if they do not come within a message.
    pub fn defers<'r>(
        &self,
        key: ConnectionKey,
        client: &Client,
        route: &'r Route,
        input: &[u8],
    ) -> Option<&'r Arc<str>> {
        if self.crowded.is_empty() || self.admitted == Some(key) {
            return None;
        }
        let feeds = route.tells_message && !route.echo;
        let is_control = client.assembler.is_idle() && input.first().is_some_and(|b| b & 8 != 0);
        let topic = route.topic.as_ref().filter(|_| feeds && !is_control)?;
        self.is_crowded(topic).then_some(topic)
    }

    fn is_crowded(&self, topic: &Arc<str>) -> bool {
        self.feeders.get(topic).is_some_and(Feeder::is_crowded)
    }

    /// Notes that events wait in a topic, which may be crowded now.
    pub(super) fn note_crowded(&mut self, topic: &Arc<str>) {
        if self.is_crowded(topic) {
            self.crowded.insert(topic.clone());
        }
    }

    /// Whether somebody who was deferred can have its turn.
    pub(super) fn has_turns(&self) -> bool {
        self.crowded.iter().any(|topic| self.feeders.get(topic).is_some_and(Feeder::has_turn))
    }

    /// Bytes that wait here for room in topics: encoded events, and what is kept of clients that are
    /// gone. Costs a look at each topic. What clients that wait have sent is theirs.
    pub fn waiting_bytes(&self) -> usize {
        self.feeders.values().map(Feeder::waiting_bytes).sum()
    }
}

impl Shard {
    /// Bytes that wait here for room in topics; see [`Topics::waiting_bytes`].
    pub fn waiting_bytes(&self) -> usize {
        self.topics.waiting_bytes()
    }

    /// Lets a connection wait before what it sent next is decoded.
    pub(super) fn defer(&mut self, key: ConnectionKey, topic: &Arc<str>) {
        self.turn.counters.limits.topic += 1;
        if let Some(feeder) = self.topics.feeders.get_mut(topic) {
            feeder.defer(Deferred::Connection(key));
            self.connections.pause(key, Pause::Topic);
        }
    }

    /// Puts the last event of a client, which is gone, into its topic, or keeps what it is made of.
    pub(super) fn feed_end(
        &mut self,
        topic: &Arc<str>,
        client: &Client,
        (code, reason): (u16, &str),
    ) {
        let (client, context) = (client.id, client.context.json());
        if self.topics.crowded.is_empty() || !self.topics.is_crowded(topic) {
            return self.feed_last(topic, client, |out| api::put_close(out, code, reason, context));
        }
        if let Some(feeder) = self.topics.feeders.get_mut(topic) {
            let (reason, context) = (reason.into(), context.map(Box::from));
            feeder.defer(Deferred::Ended(Box::new(Ended { client, code, reason, context })));
        }
    }

    /// Gives some of those who were deferred their turn.
    pub(super) fn admit_deferred(&mut self) {
        if self.topics.crowded.is_empty() {
            return;
        }
        let crowded: Vec<Arc<str>> = self.topics.crowded.iter().cloned().collect();
        let each = (ADMITTED_PER_TURN / crowded.len()).max(1);
        for topic in crowded {
            for count in 0..each {
                if count > 0 && !self.turn.work.takes(usize::MAX) {
                    break;
                }
                let feeder = self.topics.feeders.get_mut(&topic);
                match feeder.and_then(Feeder::poll_deferred) {
                    Some(Deferred::Connection(key)) => self.admit_message(key),
                    Some(Deferred::Ended(ended)) => {
                        let Ended { client, code, reason, context } = *ended;
                        self.feed_last(&topic, client, |out| {
                            api::put_close(out, code, &reason, context.as_deref());
                        });
                    }
                    None => break,
                }
            }
            if !self.topics.is_crowded(&topic) {
                self.topics.crowded.remove(&topic);
            }
        }
    }

    /// Reads on from a connection that was deferred: one message, if others wait for their turn.
    fn admit_message(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        // It may have been closed meanwhile.
        if !connection.is_paused_for(Pause::Topic) {
            return;
        }
        connection.paused &= !(Pause::Topic as u8);
        if connection.paused == 0 {
            self.topics.admitted = Some(key);
            self.resume(key);
            self.topics.admitted = None;
        }
    }
}
