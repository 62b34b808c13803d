//! Events on disk that are handed out in vain, over a restart.

use super::*;
use crate::message::StoredEvent;
use crate::queue::log::Reader;

#[test]
fn tries_and_delays_go_on_after_a_restart() {
    let mut bench = Bench::new(100);
    bench.now_us = 7_000_000;
    let policy = Policy { tries: 2, ..Policy::default() };
    bench.topic.set_policy(policy);
    bench.join(1, None);
    bench.join(2, Some("audit"));
    for (client, text) in [(5, "a"), (5, "b"), (6, "c")] {
        bench.push(client, text);
    }
    bench.store();
    let handed = bench.handed();
    let first = handed.iter().find(|(of, text, ..)| (*of, &text[..]) == (1, "a"));
    let number = first.expect("it was handed out").2;
    bench.topic.refused(bench.now_us, consumer(1), &[number], bench.now_us + 2_000_000);
    bench.store();
    // A second later, on another clock.
    let mut restarted = Bench::open(bench.files, 100);
    restarted.topic.set_policy(policy);
    restarted.unix_start_us = UNIX_START_US + 8_000_000;
    restarted.join(3, None);
    restarted.join(4, Some("audit"));
    restarted.store();
    let texts = |bench: &mut Bench| {
        let mut texts: Vec<_> =
            bench.handed().into_iter().map(|(of, text, _, again)| (of, text, again)).collect();
        texts.sort_unstable();
        texts
    };
    let again = |of, text: &str| (of, text.to_owned(), true);
    let audit = [again(4, "a"), again(4, "b"), again(4, "c")];
    assert_eq!(texts(&mut restarted), [&[again(3, "c")][..], &audit].concat());
    restarted.now_us = 999_999;
    restarted.topic.handle_timeout(restarted.now_us);
    assert_eq!(texts(&mut restarted), []);
    restarted.now_us = 1_000_000;
    restarted.topic.handle_timeout(restarted.now_us);
    restarted.topic.handle_turn(restarted.now_us);
    assert_eq!(texts(&mut restarted), [again(3, "a"), again(3, "b")]);
    // The second try was the last one.
    restarted.topic.refused(restarted.now_us, consumer(3), &[number], 0);
    let effects = effects(&mut restarted.topic);
    let is_dead = |effect: &Effect| matches!(effect, Effect::Bury { tries: 2, .. });
    assert!(effects.iter().any(is_dead), "{effects:?}");
}

#[test]
fn what_was_tried_in_vain_outlasts_its_file_and_not_its_event() {
    let mut bench = Bench::new(1024);
    bench.topic.set_policy(Policy { tries: 3, ..Policy::default() });
    bench.join(1, None);
    bench.push(5, "a");
    bench.push(6, "b");
    bench.store();
    let numbers: Vec<_> = bench.handed().iter().map(|(_, _, number, _)| *number).collect();
    bench.topic.refused(0, consumer(1), &numbers, 0);
    bench.topic.settled(0, consumer(1), &numbers[1..]);
    bench.store();
    let numbers: Vec<_> = bench.handed().iter().map(|(_, _, number, _)| *number).collect();
    assert_eq!(numbers.len(), 2);
    bench.topic.settled(0, consumer(1), &numbers[1..]);
    // Several segments, each with a checkpoint.
    for number in 0..40 {
        bench.push(7, &format!("{number} {}", "x".repeat(400)));
        bench.store();
    }
    assert!(bench.files.len() > 3);
    let log = recover(&bench.files);
    let tries = |event: &StoredEvent| (event.number, event.failed.tries);
    let mut reader = Reader::default();
    let read = log.poll_read(GroupIndex(0), &mut reader).expect("there is something");
    let file = &bench.files[&read.segment];
    let end = file.len().min(read.at as usize + read.length);
    let events = log.handle_read(GroupIndex(0), &mut reader, &file[read.at as usize..end]);
    let events: Vec<_> = events.expect("nothing is damaged").iter().map(tries).collect();
    assert_eq!(events[..2], [(MessageNumber(0), 1), (MessageNumber(2), 0)]);
}
