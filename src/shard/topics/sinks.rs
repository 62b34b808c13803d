//! Sinks of the topics whose home is this shard: events for the bridge, and its reports.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use super::home_topics::HomeTopics;
use crate::message::{FromSink, SinkEvent, SinkEvents, SinkRun};
use crate::protocol::sink::encoded_name;
use crate::queue::topic::Handed;
use crate::shard::settings::QueueSettings;
use crate::shard::turn::{Now, Turn};

/// Topics with events for their sinks, and the beginnings of the events' ids.
#[derive(Debug, Default)]
pub(super) struct OutgoingEvents {
    // Each topic once.
    due: VecDeque<Arc<str>>,
    known: HashSet<Arc<str>>,
    id_prefixes: HashMap<Arc<str>, Arc<str>>,
    // The latest run of each sink. A sink that a reload adds may begin before this shard has the settings.
    runs: HashMap<Arc<str>, SinkRun>,
    // Unix time at 0 on the shard's clock, in microseconds. See `OutgoingEvents::unix_start_us`.
    unix_start_us: u64,
}

/// The least change of the system's clock that counts, in microseconds.
const CLOCK_STEP_US: u64 = 1_000_000;

impl OutgoingEvents {
    /// Forgets the runs of sinks that are not configured any more.
    pub(super) fn handle_settings(&mut self, queue: &QueueSettings) {
        let is_configured =
            |sink: &Arc<str>| queue.sinks.values().any(|sinks| sinks.contains(sink));
        self.runs.retain(|sink, _| is_configured(sink));
    }

    /// Notes that a topic has events for a sink.
    pub(super) fn note(&mut self, topic: &Arc<str>) {
        if self.known.insert(topic.clone()) {
            self.due.push_back(topic.clone());
        }
    }

    /// Returns the Unix time at 0 on the shard's clock, in microseconds. The same for all events unless the system's
    /// clock is set, so that an event that is handed out again has the same time.
    pub(super) fn unix_start_us(&mut self, now: Now) -> u64 {
        let start_us = (now.unix_ms * 1000).saturating_sub(now.us);
        if start_us.abs_diff(self.unix_start_us) >= CLOCK_STEP_US {
            self.unix_start_us = start_us;
        }
        self.unix_start_us
    }

    /// Whether events of a topic have ids. The topic is kept then, so that its numbers do not repeat.
    pub(super) fn has_named(&self, topic: &str) -> bool {
        self.id_prefixes.contains_key(topic)
    }

    /// Returns the beginning of the ids of a topic's events. The numbers that follow do not repeat before the node
    /// starts again ([`Self::has_named`]), and no two runs of a node start at the same time.
    fn id_prefix(&mut self, turn: &Turn, topic: &Arc<str>) -> Arc<str> {
        let made = || {
            if let Some(log) = turn.settings.process.logs.get(topic) {
                // Numbers do not repeat in the life of the log.
                let node = turn.settings.node.number();
                return format!("{node}.{}.{}.", log.id.0, encoded_name(topic)).into();
            }
            let start_ms = turn.settings.process.first_unix_ms.unwrap_or(turn.now.unix_ms);
            let node = turn.settings.node.number();
            format!("{node}.{start_ms}.{}.", encoded_name(topic)).into()
        };
        self.id_prefixes.entry(topic.clone()).or_insert_with(made).clone()
    }
}

impl HomeTopics {
    /// Returns events for a sink that takes some, at most [`SINK_EVENTS_MAX`](crate::queue::topic::SINK_EVENTS_MAX).
    pub(in crate::shard) fn poll_sink_events(&mut self, turn: &Turn) -> Option<SinkEvents> {
        while let Some(topic) = self.outgoing.due.front().cloned() {
            if let Some(events) = self.take_sink_events(turn, &topic) {
                return Some(events);
            }
            self.outgoing.due.pop_front();
            self.outgoing.known.remove(&topic);
        }
        None
    }

    fn take_sink_events(&mut self, turn: &Turn, topic: &Arc<str>) -> Option<SinkEvents> {
        let unix_start_us = self.outgoing.unix_start_us(turn.now);
        let home = self.topic_mut(topic)?;
        let mut events = Vec::new();
        let take = |(client, item): &Handed| {
            events.push(SinkEvent {
                number: item.number,
                client: *client,
                arrived_unix_ms: unix_start_us.saturating_add_signed(item.since_us) / 1000,
                frame: item.frame.clone(),
            });
        };
        let (sink, run) = home.poll_sink(take)?;
        let id_prefix = self.outgoing.id_prefix(turn, topic);
        Some(SinkEvents { sink, run, id_prefix, events })
    }

    /// Handles a message of a sink.
    pub(in crate::shard) fn handle_sink(
        &mut self,
        turn: &mut Turn,
        topic: &Arc<str>,
        sink: &Arc<str>,
        message: FromSink,
    ) {
        let now_us = turn.now.us;
        if let FromSink::Begin(run) = message {
            self.outgoing.runs.insert(sink.clone(), run);
        }
        self.change(turn, topic, |home| match message {
            FromSink::Begin(run) => home.begin_sink(sink, run),
            FromSink::Report { run, settled, figures } => {
                home.sink_reported(now_us, sink, run, &settled, *figures);
            }
        });
    }

    /// Gives a topic in memory the sinks of the turn's settings, and its default group. Those of a topic on disk are
    /// set at the start of the node.
    pub(super) fn set_sinks(&mut self, turn: &mut Turn, topic: &Arc<str>) {
        let settings = turn.settings.clone();
        if settings.process.logs.contains_key(topic) {
            return;
        }
        let has_default_group = settings.queue.has_default_group(topic);
        let sinks = settings.queue.sinks_of(topic);
        let runs = sinks.iter().filter_map(|sink| Some((sink, *self.outgoing.runs.get(sink)?)));
        let runs: Vec<_> = runs.collect();
        let mut is_done = true;
        self.change(turn, topic, |home| {
            home.set_sinks(sinks);
            for (sink, run) in runs {
                home.begin_new_sink(sink, run);
            }
            is_done = home.set_default_group(has_default_group);
        });
        if !is_done {
            tracing::warn!(
                "not applied, needs a restart: the topic {topic:?} keeps its default group, which has \
                 consumers or messages. Set default_group in its [[topic]]: true to keep the group, or false"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientId, ShardId};
    use crate::message::{Event, FromFeeder};
    use crate::protocol::frame::Frame;
    use crate::shard::fixture;

    #[test]
    fn a_sink_that_begins_before_the_shard_has_its_settings_gets_its_events() {
        let settings = fixture::settings();
        let mut home = HomeTopics::new(ShardId(0), &settings);
        let mut turn = fixture::turn(settings);
        let (topic, sink): (Arc<str>, Arc<str>) = ("orders".into(), "s".into());
        home.handle_sink(&mut turn, &topic, &sink, FromSink::Begin(SinkRun(3)));
        let mut settings = turn.settings.as_ref().clone();
        settings.queue.sinks = Arc::new(HashMap::from([(topic.clone(), vec![sink.clone()])]));
        turn.settings = Arc::new(settings);
        home.handle_reload(&mut turn);
        let event = Event::new(ClientId::from_value(1), Frame::from_encoded(b"x"));
        home.handle_feeder(&mut turn, ShardId(0), &topic, FromFeeder::Push(event));
        let events = home.poll_sink_events(&turn).expect("an event");
        assert_eq!((&*events.sink, events.run, events.events.len()), ("s", SinkRun(3), 1));
        // Handed out again later, with the same time.
        let time_ms = events.events[0].arrived_unix_ms;
        home.handle_sink(&mut turn, &topic, &sink, FromSink::Begin(SinkRun(4)));
        turn.now.unix_ms += 1;
        let again = home.poll_sink_events(&turn).expect("the event");
        assert_eq!((again.run, again.events[0].arrived_unix_ms), (SinkRun(4), time_ms));
        assert_eq!(again.id_prefix, events.id_prefix);
    }

    #[test]
    fn ids_do_not_repeat_when_a_sink_goes_and_comes_back() {
        let without = fixture::settings();
        let (topic, sink): (Arc<str>, Arc<str>) = ("pushed".into(), "s".into());
        let mut with = without.clone();
        with.queue.sinks = Arc::new(HashMap::from([(topic.clone(), vec![sink.clone()])]));
        let mut home = HomeTopics::new(ShardId(0), &with);
        let mut turn = fixture::turn(with.clone());
        let mut number_of_next = |run| {
            home.handle_sink(&mut turn, &topic, &sink, FromSink::Begin(SinkRun(run)));
            let event = Event::new(ClientId::of_no_client(1), Frame::from_encoded(b"x"));
            home.change(&mut turn, &topic, |home| assert!(home.offer(0, event)));
            let events = home.poll_sink_events(&turn).expect("an event").events;
            for settings in [&without, &with] {
                turn.settings = Arc::new(settings.clone());
                home.handle_reload(&mut turn);
            }
            events[0].number.0
        };
        assert_eq!((number_of_next(1), number_of_next(2)), (0, 1));
    }
}
