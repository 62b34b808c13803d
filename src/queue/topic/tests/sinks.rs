//! Sinks of a topic.

use super::*;
use crate::message::{SinkFigures, SinkRun};
use crate::queue::topic::sink::{WINDOW_BYTES, WINDOW_MESSAGES};

const RUN: SinkRun = SinkRun(1);

fn with_sinks(messages: usize, when_full: WhenFull, names: &[&str]) -> Topic {
    let mut topic = topic(messages, when_full);
    let names: Vec<Arc<str>> = names.iter().map(|&name| name.into()).collect();
    topic.set_sinks(&names);
    assert!(topic.set_default_group(false));
    topic
}

/// Takes all events for sinks, as the numbers in their frames.
fn taken(topic: &mut Topic) -> Vec<(String, u64)> {
    let mut out = Vec::new();
    loop {
        let mut events = Vec::new();
        let polled = topic.poll_sink(|(_, item)| events.push(number(&item.frame)));
        let Some((sink, _)) = polled else { break };
        out.extend(events.into_iter().map(|event| (sink.to_string(), event)));
    }
    topic.check();
    out
}

fn numbers(taken: Vec<(String, u64)>) -> Vec<u64> {
    taken.into_iter().map(|(_, number)| number).collect()
}

fn settle(topic: &mut Topic, sink: &str, run: SinkRun, settled: &[u64]) {
    let settled: Vec<_> = settled.iter().map(|&number| MessageNumber(number)).collect();
    topic.sink_reported(0, sink, run, &settled, SinkFigures::default());
    topic.check();
}

#[test]
fn a_sink_gets_every_event_in_order_once_it_has_begun_and_frees_the_room() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a"]);
    (0..3).for_each(|message| push(&mut topic, message % 2, message));
    assert!(!topic.has_sink_events() && taken(&mut topic).is_empty());
    topic.begin_sink("b", RUN);
    topic.begin_new_sink("a", RUN);
    topic.begin_new_sink("a", SinkRun(9));
    assert_eq!(numbers(taken(&mut topic)), [0, 1, 2]);
    assert_eq!((topic.messages(), topic.in_flight()), (3, 3));
    settle(&mut topic, "a", RUN, &[1]);
    assert_eq!((topic.messages(), topic.in_flight()), (2, 2));
    settle(&mut topic, "a", RUN, &[0, 2, 1]);
    assert_eq!((topic.messages(), topic.has_sink_backlog()), (0, false));
}

#[test]
fn a_new_run_gets_the_events_of_the_last_one_again_and_reports_of_that_are_ignored() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a"]);
    topic.begin_sink("a", RUN);
    (0..3).for_each(|message| push(&mut topic, 1, message));
    taken(&mut topic);
    settle(&mut topic, "a", RUN, &[0]);
    push(&mut topic, 1, 3);
    topic.begin_sink("a", SinkRun(2));
    settle(&mut topic, "a", RUN, &[1]);
    assert_eq!(numbers(taken(&mut topic)), [1, 2, 3]);
    settle(&mut topic, "a", SinkRun(2), &[1, 2, 3]);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn groups_consumers_and_sinks_get_every_event_and_the_last_frees_the_room() {
    let mut topic = topic(100, WhenFull::Hold);
    topic.set_sinks(&["a".into(), "b".into()]);
    joined(&mut topic, 1, PLAIN);
    topic.begin_sink("a", RUN);
    topic.begin_sink("b", RUN);
    push(&mut topic, 1, 0);
    assert_eq!(delivered(&mut topic), [(1, 0)]);
    assert_eq!(taken(&mut topic), [("a".to_owned(), 0), ("b".to_owned(), 0)]);
    settle(&mut topic, "a", RUN, &[0]);
    topic.written(0, consumer(1), 1);
    assert_eq!(topic.messages(), 1);
    settle(&mut topic, "b", RUN, &[0]);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn a_window_bounds_what_a_sink_has() {
    let mut topic = with_sinks(1 << 16, WhenFull::Hold, &["a"]);
    topic.begin_sink("a", RUN);
    let count = WINDOW_MESSAGES as u64 + 10;
    (0..count).for_each(|message| push(&mut topic, message % 7, message));
    assert_eq!(taken(&mut topic).len(), WINDOW_MESSAGES);
    settle(&mut topic, "a", RUN, &[5, 6]);
    assert_eq!(numbers(taken(&mut topic)), [count - 10, count - 9]);

    let bounds = Bounds { messages: 100, bytes: 1 << 30 };
    let mut topic = Topic::new(NODE, bounds, WhenFull::Hold, 1);
    topic.set_sinks(&["a".into()]);
    topic.begin_sink("a", RUN);
    let frame = Frame::from_encoded(&vec![0; WINDOW_BYTES / 2 + 1]);
    for _ in 0..3 {
        let client = ClientId::from_value(1);
        topic.push(0, FEEDER, Event::new(client, frame.clone()));
    }
    let mut events = 0;
    topic.poll_sink(|_| events += 1);
    assert_eq!((events, topic.has_sink_events()), (2, false));
}

#[test]
fn a_sink_that_goes_takes_its_events_with_it_and_one_that_stays_keeps_them() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a", "b"]);
    topic.begin_sink("a", RUN);
    (0..4).for_each(|message| push(&mut topic, 1, message));
    taken(&mut topic);
    topic.set_sinks(&["b".into(), "c".into()]);
    assert_eq!(topic.messages(), 4);
    topic.begin_sink("c", RUN);
    assert!(taken(&mut topic).is_empty(), "a new sink gets what comes from now on");
    topic.begin_sink("b", RUN);
    assert_eq!(numbers(taken(&mut topic)), [0, 1, 2, 3]);
    assert_eq!(topic.take_dropped(), 0);
    topic.set_sinks(&[]);
    assert_eq!((topic.messages(), topic.take_dropped()), (0, 4));
    topic.check();
}

#[test]
fn a_topic_without_a_default_group_refuses_consumers_that_name_no_group() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a"]);
    assert_eq!(topic.join(0, consumer(1), &PLAIN), Err(JoinError::NoDefaultGroup));
}

#[test]
fn a_default_group_in_use_is_kept() {
    let mut topic = topic(100, WhenFull::Hold);
    push(&mut topic, 1, 0);
    assert!(!topic.set_default_group(false));
    joined(&mut topic, 1, PLAIN);
    assert_eq!(delivered(&mut topic), [(1, 0)]);
    topic.written(0, consumer(1), 1);
    assert!(!topic.set_default_group(false));
    topic.leave(consumer(1));
    assert!(topic.set_default_group(false));
}

#[test]
fn a_full_topic_drops_the_oldest_event_that_no_sink_has() {
    let mut topic = with_sinks(4, WhenFull::DropOldest, &["a", "b"]);
    topic.begin_sink("a", RUN);
    push(&mut topic, 1, 0);
    assert_eq!(numbers(taken(&mut topic)), [0]);
    (1..6).for_each(|message| push(&mut topic, 1, message));
    assert!(topic.take_dropped() > 0);
    topic.begin_sink("b", RUN);
    let all = taken(&mut topic);
    let of_b: Vec<u64> =
        all.into_iter().filter(|(sink, _)| sink == "b").map(|(_, number)| number).collect();
    assert!(of_b.is_sorted() && of_b.last() == Some(&5), "{of_b:?}");
}

#[test]
fn an_event_that_is_too_old_is_dropped_unless_the_sink_has_it() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a", "b"]);
    topic.set_policy(Policy { age_max_us: 1000, ..Policy::default() });
    topic.begin_sink("a", RUN);
    push(&mut topic, 1, 0);
    taken(&mut topic);
    topic.handle_timeout(1000);
    assert_eq!(topic.take_aged(), 1);
    topic.begin_sink("b", RUN);
    assert!(taken(&mut topic).is_empty());
    settle(&mut topic, "a", RUN, &[0]);
    assert_eq!(topic.messages(), 0);
}

#[test]
fn the_figures_of_a_sink_outlast_its_run() {
    let mut topic = with_sinks(100, WhenFull::Hold, &["a"]);
    topic.begin_sink("a", RUN);
    (0..3).for_each(|message| push(&mut topic, 1, message));
    taken(&mut topic);
    let figures = SinkFigures {
        delivered: 2,
        batches: 1,
        retries: 5,
        in_flight: 1,
        failure: Some("down".into()),
        ..Default::default()
    };
    topic.sink_reported(0, "a", RUN, &[MessageNumber(0), MessageNumber(1)], figures);
    let report = topic.report("t", 3_000).sinks.remove(0);
    assert_eq!((report.lag, report.lag_ms, report.delivered, report.is_up), (1, 3, 2, false));
    assert_eq!(report.failure.as_deref(), Some("down"));
    topic.begin_sink("a", SinkRun(2));
    let report = topic.report("t", 3_000).sinks.remove(0);
    assert_eq!((report.delivered, report.retries, report.in_flight), (2, 5, 0));
    assert!(report.is_up && report.failure.is_none());
}
