//! A shard's part in the queue: its clients feed topics, and it is the home shard of some topics.
//!
//! - `feeders.rs`: events of this shard's clients on their way to the home shards of their topics.
//! - `home_topics.rs`: the topics whose home is this shard. `home_topics/pushes.rs`: events of
//!   back ends for them. `list.rs`: finds them for `topic.list`. `sinks.rs`: their sinks.
//!   `logs.rs`: the logs of those on disk.
//!
//! If this shard is the home of a topic that its clients feed, an event goes there directly. All
//! other messages go through the turn, as between two shards.

mod feeders;
mod home_topics;
mod list;
mod logs;
mod sinks;

use std::sync::Arc;

use crate::address::ShardId;
use crate::message::{ConnectionKey, Credit, Event, EventNotice, FromFeeder};
use crate::protocol::api;
use crate::queue::feeder::{Deferred, Ended};
use crate::shard::connection::Connections;
use crate::shard::settings::Settings;
use crate::shard::turn::{ClientEvent, Turn};
use feeders::Feeders;
use home_topics::HomeTopics;

/// The feeders of topics, and the topics whose home is this shard.
#[derive(Debug)]
pub(super) struct Topics {
    /// Events of this shard's clients, on their way to the homes of their topics.
    pub(super) feeders: Feeders,
    /// The topics whose home is this shard.
    pub(super) home: HomeTopics,
}

impl Topics {
    /// Creates the topics of all routes: their feeders, and those whose home is this shard.
    pub(super) fn new(shard: ShardId, settings: &Settings) -> Self {
        Self { feeders: Feeders::new(settings), home: HomeTopics::new(shard, settings) }
    }

    /// Applies the turn's reloaded settings to topics, and creates those of new routes.
    pub(super) fn handle_reload(&mut self, turn: &mut Turn) {
        self.feeders.handle_settings(&turn.settings);
        self.home.handle_reload(turn);
    }

    /// Puts an event into its topic. If there is no room, the event waits and its client is not
    /// read from.
    pub(super) fn feed(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        fed: ClientEvent,
    ) {
        let ClientEvent { topic, event, from } = fed;
        if let Some(event) = self.feeders.feed(turn, connections, &topic, event, from) {
            self.push(turn, &topic, event);
        }
    }

    /// Puts the last event of a client into its topic. While the topic is crowded, the event is not
    /// encoded yet: only what it is made of is kept.
    pub(super) fn feed_last(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        ended: Ended,
    ) {
        if let Some(ended) = self.feeders.defer_last(topic, ended) {
            self.encode_last(turn, connections, topic, &ended);
        }
    }

    /// Encodes the last event of a client and puts it into its topic.
    fn encode_last(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        ended: &Ended,
    ) {
        let Ended { client, code, reason, context } = ended;
        let frame = turn.encode_event(topic, *client, |out| {
            api::put_close(out, *code, reason, context.as_deref());
        });
        match frame {
            Some(frame) => {
                // In a grid, another node watches the client until the event has left the topic.
                let notice = match turn.settings.has_mesh {
                    true => EventNotice::Left,
                    false => EventNotice::Nothing,
                };
                let event = Event { client: *client, frame, notice };
                self.feed(
                    turn,
                    connections,
                    ClientEvent { topic: topic.clone(), event, from: None },
                );
            }
            None => turn.send_left(topic, *client),
        }
    }

    /// Handles credit from the home of a topic: pushes the events that wait for it.
    pub(super) fn handle_credit(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        topic: &Arc<str>,
        credit: Credit,
    ) {
        self.feeders.grant(topic, credit);
        self.push_waiting(turn, connections, topic);
    }

    fn push(&mut self, turn: &mut Turn, topic: &Arc<str>, event: Event) {
        if let Some(event) = self.home.push(turn, topic, event) {
            turn.send_to_own_home(topic, FromFeeder::Push(event));
        }
    }

    /// Pushes the waiting events that there is credit for, and reads from their clients again.
    fn push_waiting(&mut self, turn: &mut Turn, connections: &mut Connections, topic: &Arc<str>) {
        while let Some(event) = self.feeders.poll_ready(turn, connections, topic) {
            self.push(turn, topic, event);
        }
        self.feeders.ask_for_room(turn, topic);
    }

    /// Pushes the events that waited for the end of a memory shortage.
    pub(super) fn feed_again(&mut self, turn: &mut Turn, connections: &mut Connections) {
        for topic in self.feeders.waited_for() {
            self.push_waiting(turn, connections, &topic);
        }
    }

    /// Begins a turn of the shard. Returns true if [`Self::poll_admitted`] may have something to
    /// admit.
    #[inline]
    pub(super) fn begin_round(&mut self) -> bool {
        let has_crowded = self.feeders.has_crowded();
        if has_crowded {
            self.feeders.begin_round();
        }
        has_crowded
    }

    /// Admits what was deferred, within the budget of a turn: feeds the last events of clients that
    /// have ended, and returns the next connection to read from. That connection is admitted until
    /// the next call.
    pub(super) fn poll_admitted(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
    ) -> Option<ConnectionKey> {
        while let Some((topic, deferred)) = self.feeders.poll_deferred(turn) {
            match deferred {
                Deferred::Connection(key) => {
                    if self.feeders.admit(connections, key) {
                        return Some(key);
                    }
                }
                Deferred::Ended(ended) => self.encode_last(turn, connections, &topic, &ended),
            }
        }
        None
    }

    /// Returns when the next turn has something to do, in milliseconds of the shard's clock. A time
    /// in the past means at once.
    #[inline]
    pub(super) fn next_turn(&self) -> Option<u64> {
        if self.feeders.can_admit() { Some(0) } else { self.home.next_turn() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{
        FromConsumer, GridMessage, LocalMessage, PopId, Terms, ToConsumer, ToFeeder,
    };
    use crate::protocol::frame::Frame;
    use crate::shard::connection::{Listener, Pause};
    use crate::shard::fixture::{self, TOPIC};
    use crate::shard::turn::Step;

    fn fed(number: usize, from: ConnectionKey) -> ClientEvent {
        let client = crate::address::ClientId::from_value(number as u64);
        let frame = Frame::from_encoded(format!("event {number}").as_bytes());
        let event = Event::new(client, frame);
        ClientEvent { topic: TOPIC.into(), event, from: Some(from) }
    }

    /// Hands the messages that topics of this shard left for it back to them, until there are none.
    /// Returns the number of events for the consumer.
    fn deliver(topics: &mut Topics, turn: &mut Turn, connections: &mut Connections) -> usize {
        let own = turn.address.shard;
        let mut delivered = 0;
        loop {
            topics.home.handle_turn(turn);
            let steps = fixture::steps(turn);
            if steps.is_empty() {
                return delivered;
            }
            for step in steps {
                let Step::Message(message) = step else { panic!("{step:?}") };
                match message {
                    LocalMessage::FromFeeder(topic, message) => {
                        topics.home.handle_feeder(turn, own, &topic, message);
                    }
                    LocalMessage::ToFeeder(topic, ToFeeder::Credit(credit)) => {
                        topics.handle_credit(turn, connections, &topic, credit);
                    }
                    LocalMessage::Grid(GridMessage::ToConsumer { message, .. }) => {
                        assert!(matches!(message, ToConsumer::Deliver(_)));
                        delivered += 1;
                    }
                    message => panic!("{message:?}"),
                }
            }
        }
    }

    #[test]
    fn events_that_do_not_fit_a_topic_wait_and_pause_their_client_until_a_consumer_takes_some() {
        let settings = fixture::settings();
        let events_max = settings.queue.bounds.messages;
        let mut topics = Topics::new(ShardId(0), &settings);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let client = fixture::accepted(&mut turn, &mut connections, Listener::Edge(0));
        let is_paused = |connections: &mut Connections| {
            connections.get(client).unwrap().is_paused_for(Pause::Topic)
        };
        for number in 0..events_max {
            topics.feed(&mut turn, &mut connections, fed(number, client));
            deliver(&mut topics, &mut turn, &mut connections);
            assert!(!is_paused(&mut connections), "event {number} fits");
        }
        topics.feed(&mut turn, &mut connections, fed(events_max, client));
        deliver(&mut topics, &mut turn, &mut connections);
        assert!(is_paused(&mut connections) && topics.feeders.waiting_bytes() > 0);
        assert_eq!(topics.home.messages(), events_max);

        let key = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        let backend = turn.backend_id(key);
        let terms =
            Terms { pop: PopId(1), group: None, window_bytes: 1 << 20, unsettled_max: None };
        let topic: Arc<str> = TOPIC.into();
        assert_eq!(topics.home.join(&mut turn, &topic, backend, &terms), Ok(()));
        topics.home.start(&mut turn, &topic, backend);
        assert_eq!(deliver(&mut topics, &mut turn, &mut connections), events_max);
        let written = FromConsumer::Written(events_max as u32);
        topics.home.handle_consumer(&mut turn, &topic, backend, written);
        let delivered = deliver(&mut topics, &mut turn, &mut connections);
        assert_eq!(delivered, 1, "the event that waited");
        assert!(!is_paused(&mut connections) && topics.feeders.waiting_bytes() == 0);
        topics.home.check();
    }
}
