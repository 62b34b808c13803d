//! Delayed events on disk.

use super::*;
use crate::queue::topic::DELAYED_MAX;

impl Bench {
    fn push_delayed(&mut self, client: u64, data: &str, due_us: u64) -> bool {
        let frame = Frame::message(Kind::Text, data.as_bytes());
        let event = Event::new(ClientId::from_value(client), frame);
        let until_ms = self.now_us / 1000 + 1500;
        self.topic.offer_delayed_stored(due_us, event, requester(client), until_ms)
    }

    /// Lets the topic look at the time, and the log store what comes of it.
    fn pass_to(&mut self, now_us: u64) {
        self.now_us = now_us;
        self.topic.handle_timeout(now_us);
        self.store();
    }
}

#[test]
fn a_delayed_event_is_answered_once_it_is_stored_and_comes_when_it_is_due() {
    let mut bench = Bench::new(8);
    bench.join(1, None);
    bench.store();
    assert!(bench.push_delayed(5, "later", 2_000_000));
    bench.send();
    assert!(effects(&mut bench.topic).is_empty() && bench.topic.has_unstored());
    bench.store();
    let stored = effects(&mut bench.topic);
    assert!(matches!(stored[..], [Effect::Stored(of)] if of == requester(5)), "{stored:?}");
    // Events of the same client do not wait for it.
    assert!(bench.push(5, "now"));
    bench.store();
    assert_eq!(bench.texts(), ["now"]);
    bench.pass_to(1_999_999);
    assert_eq!(bench.texts(), [""; 0]);
    bench.pass_to(2_000_000);
    let [(_, text, number, is_redelivered)] = &bench.handed()[..] else { panic!("one event") };
    assert_eq!((&text[..], *number, *is_redelivered), ("later", MessageNumber(1), false));
}

#[test]
fn a_back_end_whose_delayed_event_is_not_stored_in_time_is_told_so_once() {
    let mut bench = Bench::new(8);
    assert!(bench.push_delayed(5, "later", 9_000_000));
    assert_eq!(bench.topic.take_late(1499), []);
    assert_eq!(bench.topic.take_late(1500), [requester(5)]);
    assert_eq!(bench.topic.take_late(9999), []);
    bench.store();
    let stored = effects(&mut bench.topic);
    assert!(!stored.iter().any(|effect| matches!(effect, Effect::Stored(_))), "{stored:?}");
}

#[test]
fn delays_go_on_after_a_restart_and_what_is_overdue_comes_at_once_in_order() {
    let mut bench = Bench::new(1024);
    let week_us = 7 * 86_400_000_000;
    let delays =
        [("late", 3_000_000), ("early", 1_000_000), ("next", 6_000_000), ("last", week_us)];
    for (client, (text, due_us)) in (5..).zip(delays) {
        assert!(bench.push_delayed(client, text, due_us));
    }
    bench.store();
    // Several segments, each with a checkpoint. The files before it go.
    bench.join(1, None);
    bench.join(2, Some("audit"));
    bench.store();
    for number in 0..40 {
        bench.push(7, &format!("{number} {}", "x".repeat(400)));
        bench.store();
        for (of, _, number, _) in bench.handed() {
            bench.topic.settled(0, consumer(of), &[number]);
        }
        bench.store();
    }
    assert_eq!(bench.topic.messages(), 4);
    let first = bench.files.keys().next().expect("there is a file");
    assert!(first.0 > 3, "{first:?}");

    // Five seconds later, on another clock.
    let mut restarted = Bench::open(bench.files, 1024);
    restarted.unix_start_us = UNIX_START_US + 5_000_000;
    restarted.join(3, None);
    restarted.store();
    assert_eq!(restarted.topic.messages(), 4);
    restarted.pass_to(0);
    assert_eq!(restarted.texts(), ["early", "late"]);
    restarted.pass_to(999_999);
    assert_eq!(restarted.texts(), [""; 0]);
    restarted.pass_to(1_000_000);
    assert_eq!(restarted.texts(), ["next"]);
    restarted.pass_to(week_us);
    assert_eq!(restarted.texts(), ["last"]);
    // None comes a second time.
    let mut restarted = Bench::open(restarted.files, 1024);
    restarted.unix_start_us = UNIX_START_US + 2 * week_us;
    restarted.join(3, None);
    restarted.store();
    restarted.pass_to(0);
    assert_eq!(restarted.texts(), ["early", "late", "next", "last"]);
    assert_eq!(restarted.topic.messages(), 4);
}

#[test]
fn a_delayed_event_takes_room_once_and_gives_it_back_when_it_is_settled() {
    let mut bench = Bench::new(2);
    bench.join(1, None);
    bench.join(2, Some("audit"));
    bench.store();
    assert!(bench.push_delayed(5, "one", 1_000_000));
    assert!(bench.push_delayed(6, "two", 1_000_000));
    bench.store();
    assert!(!bench.push(7, "no room"), "delayed events hold the room");
    bench.pass_to(1_000_000);
    assert!(!bench.push(7, "no room"), "the events that came of them hold it");
    for (of, _, number, _) in bench.handed() {
        bench.topic.settled(bench.now_us, consumer(of), &[number]);
    }
    bench.store();
    assert_eq!(bench.topic.messages(), 0);
    assert!(bench.push(7, "room"));
}

#[test]
fn a_topic_on_disk_delays_a_bounded_number_of_events_and_bytes() {
    let mut bench = Bench::new(1 << 17);
    let large = "x".repeat(DELAYED_MAX.bytes / 2);
    assert!(bench.push_delayed(5, &large, 1_000_000));
    assert!(!bench.topic.may_delay(large.len()));
    assert!(!bench.push_delayed(5, &large, 1_000_000), "too many bytes");
    for number in 1..DELAYED_MAX.messages {
        assert!(bench.push_delayed(5, "x", 1_000_000));
        // The topic bounds what is not stored too.
        if number.is_multiple_of(1 << 14) {
            bench.store();
        }
    }
    assert!(!bench.push_delayed(5, "x", 1_000_000), "too many events");
    assert!(bench.push(5, "now"), "an event without a delay has room");
    bench.store();
    let mut restarted = Bench::open(bench.files, 1 << 17);
    restarted.store();
    assert!(!restarted.push_delayed(5, "x", 1_000_000), "after a restart too");
    restarted.pass_to(1_000_000);
    assert!(restarted.push_delayed(5, "x", 2_000_000), "some have come due");
}
