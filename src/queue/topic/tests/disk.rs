//! A topic on disk and its log as values, with files in a map.

mod delayed;
mod tries;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::message::{Ticket, ToLog};
use crate::protocol::frame::Kind;
use crate::queue::log::{Log, LogId, LogKeeper, Recovery, SegmentNumber, Task};

const TOPIC: &str = "orders";

/// Small, so that a run begins many segments.
const SEGMENT_BYTES: u64 = 4096;

/// Unix time at 0 on the clock of the topic, in microseconds.
const UNIX_START_US: u64 = 1_800_000_000_000_000;

/// A topic with the group `audit`, its log, and the files.
struct Bench {
    topic: Topic,
    keeper: LogKeeper,
    files: BTreeMap<SegmentNumber, Vec<u8>>,
    // Changes that the topic has made and the log has not taken.
    sent: VecDeque<ToLog>,
    now_us: u64,
    unix_start_us: u64,
}

fn log_groups() -> Vec<Option<Arc<str>>> {
    vec![None, Some("audit".into())]
}

impl Bench {
    fn new(messages: usize) -> Self {
        Self::open(BTreeMap::new(), messages)
    }

    /// A node that finds these files.
    fn open(files: BTreeMap<SegmentNumber, Vec<u8>>, messages: usize) -> Self {
        let log = recover(&files);
        let keeper = LogKeeper::new(TOPIC.into(), log);
        let bounds = Bounds { messages, bytes: 64 << 20 };
        let topic = Topic::new(NODE, bounds, WhenFull::Hold, 1).with_groups(&["audit".into()]);
        let topic = topic.on_disk(&keeper.facts());
        Self {
            topic,
            keeper,
            files,
            sent: VecDeque::new(),
            now_us: 0,
            unix_start_us: UNIX_START_US,
        }
    }

    /// Passes on what the topic has for the log.
    fn send(&mut self) {
        if self.topic.update_log() {
            let changes = self.topic.take_log_changes();
            let topic = TOPIC.into();
            self.sent.push_back(ToLog { topic, unix_start_us: self.unix_start_us, changes });
        }
    }

    /// Lets the log take all changes, write, read once for each group that waits, and tell the topic. Repeats that
    /// until nothing is left to do.
    fn store(&mut self) {
        loop {
            self.send();
            while let Some(changes) = self.sent.pop_front() {
                self.keeper.handle_changes(changes);
            }
            self.write();
            if let Some(read) = self.keeper.poll_read() {
                let file = &self.files[&read.segment];
                let from = read.at as usize;
                let bytes = &file[from..file.len().min(from + read.length)];
                self.keeper.handle_read(bytes).expect("nothing is damaged");
            }
            let Some(message) = self.keeper.poll_news() else {
                if self.keeper.has_reads() {
                    continue;
                }
                return;
            };
            self.topic.handle_news(self.now_us, self.unix_start_us, message.news);
            self.topic.check();
        }
    }

    fn write(&mut self) {
        while let Some(task) = self.keeper.poll_task() {
            match task {
                Task::Create(segment, bytes) => drop(self.files.insert(segment, bytes.to_vec())),
                Task::Append(segment, at, bytes) => {
                    let file = self.files.get_mut(&segment).expect("it was created");
                    file.truncate(at as usize);
                    file.extend_from_slice(bytes);
                }
                Task::Truncate(segment, length) => {
                    self.files.get_mut(&segment).expect("it is there").truncate(length as usize);
                }
                Task::Remove(segment) => drop(self.files.remove(&segment)),
            }
            self.keeper.handle_done();
        }
    }

    fn push(&mut self, client: u64, data: &str) -> bool {
        let frame = Frame::message(Kind::Text, data.as_bytes());
        let event = Event::new(ClientId::from_value(client), frame);
        let until_ms = self.now_us / 1000 + 1500;
        self.topic.offer_stored(self.now_us, event, requester(client), until_ms)
    }

    fn join(&mut self, index: u32, group: Option<&str>) {
        let group = group.map(Arc::from);
        let terms = Terms { pop: PopId(1), group, window_bytes: 1 << 24, unsettled_max: Some(64) };
        self.topic.join(self.now_us, consumer(index), &terms).expect("the group exists");
        self.topic.start(self.now_us, consumer(index));
    }

    /// Which consumer was handed what, and whether it was marked.
    fn handed(&mut self) -> Vec<(u32, String, MessageNumber, bool)> {
        let delivery = |effect| match effect {
            Effect::Deliver(to, delivery) => {
                let data = String::from_utf8(delivery.frame.payload().to_vec()).expect("text");
                Some((to.connection.index, data, delivery.number, delivery.is_redelivered))
            }
            _ => None,
        };
        effects(&mut self.topic).into_iter().filter_map(delivery).collect()
    }

    fn texts(&mut self) -> Vec<String> {
        self.handed().into_iter().map(|(_, text, ..)| text).collect()
    }
}

fn recover(files: &BTreeMap<SegmentNumber, Vec<u8>>) -> Log {
    let sizes = files.iter().map(|(&segment, bytes)| (segment, bytes.len() as u64));
    let mut recovery = Recovery::new(LogId(7), TOPIC, SEGMENT_BYTES, sizes);
    while let Some(read) = recovery.poll_read() {
        let (file, from) = (&files[&read.segment], read.at as usize);
        recovery.handle_read(&file[from..from + read.length]).expect("nothing is damaged");
    }
    let mut log = recovery.finish().expect("nothing is damaged").log;
    log.set_groups(&log_groups());
    log
}

fn requester(number: u64) -> Requester {
    Requester { ticket: Ticket(number), backend: consumer(99) }
}

#[test]
fn an_event_is_answered_and_handed_out_once_it_is_stored() {
    let mut bench = Bench::new(8);
    bench.join(1, None);
    bench.store();
    assert!(bench.push(5, "a"));
    bench.send();
    assert!(effects(&mut bench.topic).is_empty() && bench.topic.has_unstored());
    bench.store();
    let effects = effects(&mut bench.topic);
    let is_stored = |effect: &Effect| matches!(effect, Effect::Stored(of) if *of == requester(5));
    assert!(effects.iter().any(is_stored), "{effects:?}");
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Deliver(..))), "{effects:?}");
}

#[test]
fn a_back_end_whose_event_is_not_stored_in_time_is_told_so_once() {
    let mut bench = Bench::new(8);
    assert!(bench.push(5, "a"));
    assert_eq!(bench.topic.take_late(1499), []);
    assert_eq!(bench.topic.take_late(1500), [requester(5)]);
    assert_eq!(bench.topic.take_late(9999), []);
    bench.store();
    let stored = effects(&mut bench.topic);
    assert!(!stored.iter().any(|effect| matches!(effect, Effect::Stored(_))), "{stored:?}");
}

#[test]
fn a_shard_gets_new_credit_when_its_events_are_stored() {
    let mut bench = Bench::new(64);
    let share = bench.topic.held.room.wanted_by(FEEDER);
    assert_eq!(share, Credit::default(), "the credit of the start");
    for number in 0..16 {
        let frame = Frame::message(Kind::Text, b"x");
        let client = ClientId::from_value(number);
        bench.topic.push(0, FEEDER, Event::new(client, frame));
    }
    let credit = |bench: &mut Bench| {
        let effects = effects(&mut bench.topic);
        effects.iter().any(|effect| matches!(effect, Effect::Grant(FEEDER, _)))
    };
    bench.send();
    assert!(!credit(&mut bench), "nothing is stored");
    bench.store();
    assert!(credit(&mut bench));
}

#[test]
fn a_consumer_is_handed_nothing_before_the_log_says_that_there_is_one() {
    let mut bench = Bench::new(8);
    assert!(bench.push(5, "a"));
    bench.store();
    bench.join(1, None);
    bench.send();
    assert_eq!(bench.texts(), [""; 0]);
    bench.store();
    assert_eq!(bench.texts(), ["a"]);
    // A consumer that comes later need not wait.
    bench.join(2, None);
    bench.topic.gone(consumer(1));
    assert_eq!(bench.texts(), ["a"]);
    // One that comes soon after the last has gone need not wait either.
    bench.topic.gone(consumer(2));
    bench.topic.handle_timeout(1_000_000);
    bench.send();
    bench.join(3, None);
    bench.send();
    assert_eq!(bench.texts(), ["a"]);
    // When none has come for 10 s, the log says so, and then hears of the next one before it is handed anything.
    bench.topic.gone(consumer(3));
    bench.topic.handle_timeout(2_000_000);
    bench.topic.handle_timeout(11_999_999);
    assert!(!bench.topic.update_log(), "{:?}", bench.topic.take_log_changes());
    assert!(bench.sent.is_empty(), "{:?}", bench.sent);
    bench.topic.handle_timeout(12_000_000);
    bench.send();
    bench.join(4, None);
    bench.send();
    assert_eq!(bench.texts(), [""; 0]);
    bench.store();
    assert_eq!(bench.texts(), ["a"]);
}

#[test]
fn an_event_that_was_taken_and_not_acknowledged_is_redelivered_after_a_restart() {
    let mut bench = Bench::new(100);
    bench.push(1, "a");
    bench.push(2, "b");
    bench.join(7, None);
    bench.topic.start(bench.now_us, consumer(7));
    bench.store();
    let numbers: Vec<_> = bench.handed().into_iter().map(|(_, _, number, _)| number).collect();
    bench.topic.end_take(bench.now_us, consumer(7), &numbers);
    bench.store();
    assert!(bench.topic.settle_taken(bench.now_us, &[(PopId(1), numbers[0])], None).is_empty());
    bench.store();
    let mut restarted = Bench::open(bench.files, 100);
    restarted.join(8, None);
    restarted.topic.start(restarted.now_us, consumer(8));
    restarted.store();
    let handed = restarted.handed();
    let [(8, data, number, true)] = &handed[..] else { panic!("{handed:?}") };
    assert_eq!((&data[..], *number), ("b", numbers[1]));
}

#[test]
fn a_group_that_lags_reads_what_memory_does_not_hold_and_nothing_twice() {
    let mut bench = Bench::new(1024);
    bench.join(1, None);
    // 24 MiB, three times what a group holds in memory.
    let text = |number: u64| format!("{number:04} {}", "x".repeat(1 << 18));
    for number in 0..96 {
        assert!(bench.push(number % 7, &text(number)), "{number}");
        bench.store();
    }
    let in_memory: usize = bench.topic.groups[0].backlog;
    assert!((16..48).contains(&in_memory), "{in_memory}");
    let mut got = Vec::new();
    loop {
        let handed = bench.handed();
        let numbers: Vec<_> = handed.iter().map(|(_, _, number, _)| *number).collect();
        if handed.is_empty() {
            break;
        }
        got.extend(handed.into_iter().map(|(_, text, ..)| text));
        bench.topic.settled(0, consumer(1), &numbers);
        bench.store();
    }
    let numbers: BTreeSet<u64> = got.iter().map(|text| text[..4].parse().unwrap()).collect();
    assert_eq!((numbers.len(), got.len()), (96, 96));
    assert_eq!(bench.topic.messages(), 96, "the other group has settled nothing");
    bench.join(2, Some("audit"));
    bench.store();
    let mut count = 0;
    loop {
        let numbers: Vec<_> = bench.handed().iter().map(|(_, _, number, _)| *number).collect();
        if numbers.is_empty() {
            break;
        }
        count += numbers.len();
        bench.topic.settled(0, consumer(2), &numbers);
        bench.store();
    }
    assert_eq!((count, bench.topic.messages(), bench.files.len()), (96, 0, 1));
}

/// The bench of a topic that is full with these events: one of each client, from 1 on.
fn filled(when_full: WhenFull) -> Bench {
    let mut bench = Bench::new(8);
    bench.topic.set_bounds(Bounds { messages: 8, bytes: 64 << 20 }, when_full);
    for (client, text) in (1..).zip(["a", "b", "c", "d", "e", "f"]) {
        assert!(bench.push(client, text));
        bench.store();
    }
    effects(&mut bench.topic);
    bench
}

#[test]
fn a_full_topic_on_disk_drops_its_oldest_for_all_groups_and_for_good() {
    let mut bench = filled(WhenFull::DropOldest);
    assert!(bench.push(7, "g") && bench.push(8, "h"));
    assert_eq!((bench.topic.take_dropped(), bench.topic.messages()), (2, 6));
    bench.store();
    assert_eq!(bench.topic.messages(), 6, "the room of a dropped event is released once");
    let mut restarted = Bench::open(bench.files, 8);
    assert_eq!(restarted.topic.messages(), 6);
    restarted.join(1, None);
    restarted.join(2, Some("audit"));
    restarted.store();
    let mut texts = restarted.texts();
    texts.sort_unstable();
    assert_eq!(texts, ["c", "c", "d", "d", "e", "e", "f", "f", "g", "g", "h", "h"]);
}

#[test]
fn an_event_in_flight_is_not_dropped_from_its_consumer_and_keeps_its_room() {
    let mut bench = filled(WhenFull::DropOldest);
    bench.join(1, None);
    bench.store();
    let handed = bench.handed();
    assert_eq!(handed.len(), 6);
    assert!(!bench.push(7, "g"), "all events are in flight in one group");
    assert_eq!((bench.topic.take_dropped(), bench.topic.messages()), (6, 6));
    let numbers: Vec<_> = handed.iter().map(|(_, _, number, _)| *number).collect();
    bench.topic.settled(0, consumer(1), &numbers);
    bench.store();
    assert_eq!(bench.topic.messages(), 0);
    assert!(bench.push(7, "g"));
}

#[test]
fn events_grow_old_on_disk_too_also_over_a_restart() {
    let policy = Policy { age_max_us: 3_000_000, ..Policy::default() };
    let mut bench = filled(WhenFull::Hold);
    bench.topic.set_policy(policy);
    bench.topic.handle_timeout(2_999_999);
    assert_eq!((bench.topic.take_aged(), bench.topic.messages()), (0, 6));
    bench.store();
    let files = bench.files.clone();
    bench.topic.handle_timeout(3_000_000);
    assert_eq!((bench.topic.take_aged(), bench.topic.messages()), (6, 0));
    bench.store();
    assert_eq!(Bench::open(bench.files, 8).topic.messages(), 0);
    // The events have waited for two seconds before the clock of this run began.
    let mut restarted = Bench::open(files, 8);
    restarted.unix_start_us += 2_000_000;
    restarted.topic.set_policy(policy);
    restarted.store();
    restarted.topic.handle_timeout(999_999);
    assert_eq!(restarted.topic.take_aged(), 0);
    restarted.topic.handle_timeout(1_000_000);
    assert_eq!((restarted.topic.take_aged(), restarted.topic.messages()), (6, 0));
    restarted.store();
    assert_eq!(restarted.topic.messages(), 0);
}

#[test]
fn an_event_that_is_too_old_when_it_is_read_is_not_handed_out() {
    let mut restarted = Bench::open(filled(WhenFull::Hold).files, 8);
    restarted.unix_start_us += 4_000_000;
    restarted.topic.set_policy(Policy { age_max_us: 3_000_000, ..Policy::default() });
    restarted.join(1, None);
    restarted.store();
    assert_eq!(restarted.texts(), [""; 0]);
    assert_eq!((restarted.topic.take_aged(), restarted.topic.messages()), (6, 0));
}

#[test]
fn an_event_for_the_dead_topic_is_settled_once_that_has_taken_it() {
    let mut bench = Bench::new(8);
    bench.topic.set_policy(Policy { tries: 1, ..Policy::default() });
    bench.push(1, "a");
    bench.join(1, None);
    bench.store();
    let number = bench.handed()[0].2;
    bench.topic.refused(0, consumer(1), &[number], 0);
    let dead = effects(&mut bench.topic);
    assert!(matches!(dead[..], [Effect::Bury { tries: 1, why: "nack", .. }]), "{dead:?}");
    bench.store();
    // A crash here: the event is in the log.
    let mut restarted = Bench::open(bench.files.clone(), 8);
    restarted.join(1, None);
    restarted.store();
    assert_eq!(restarted.texts(), ["a"]);
    bench.topic.buried(true);
    bench.store();
    let mut restarted = Bench::open(bench.files, 8);
    restarted.join(1, None);
    restarted.store();
    assert_eq!(restarted.texts(), [""; 0]);
}

#[test]
fn a_dead_topic_on_disk_answers_once_it_has_stored_the_event() {
    let mut bench = Bench::new(8);
    let burial = Burial { asker: FEEDER, from: "orders".into() };
    assert_eq!(bench.topic.offer_dead(0, event(1, 1), burial.clone()), None);
    assert!(effects(&mut bench.topic).is_empty());
    bench.store();
    let stored = effects(&mut bench.topic);
    assert!(matches!(&stored[..], [Effect::DeadStored(of)] if *of == burial), "{stored:?}");
    let mut full = filled(WhenFull::Hold);
    assert_eq!(full.topic.offer_dead(0, event(1, 1), burial), Some(false));
}

/// Numbers from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What has to be true, over all runs of a node.
#[derive(Default)]
struct Model {
    // By group: what was handed out, and what was acknowledged and the log has heard of it.
    handed: [BTreeSet<String>; 2],
    settled: [BTreeSet<String>; 2],
    stored: BTreeSet<String>,
    next: u64,
}

impl Model {
    /// Takes what consumers were handed, in one run: in order for each client, and marked if it was handed out before.
    fn take(
        &mut self,
        handed: Vec<(u32, String, MessageNumber, bool)>,
        latest: &mut BTreeMap<(u32, u64), u64>,
        in_flight: &mut Vec<(u32, String, MessageNumber)>,
    ) {
        for (to, text, number, is_marked) in handed {
            let (client, event) = text.split_once(' ').expect("client and number");
            let (client, event): (u64, u64) = (client.parse().unwrap(), event.parse().unwrap());
            let group = to as usize / 10;
            let before = latest.insert((to / 10, client), event);
            assert!(before.is_none_or(|before| before < event), "{text} after {before:?}");
            let was_handed = !self.handed[group].insert(text.clone());
            assert!(is_marked || !was_handed, "{text} was handed out before");
            in_flight.push((to, text, number));
        }
    }
}

/// One run of a node: consumers come, events are pushed, some are acknowledged, and the node is killed.
fn run(random: &mut Random, files: BTreeMap<SegmentNumber, Vec<u8>>, model: &mut Model) -> Bench {
    let mut bench = Bench::open(files, 256);
    let (mut latest, mut in_flight) = (BTreeMap::new(), Vec::new());
    let mut requested: BTreeMap<u64, String> = BTreeMap::new();
    let mut joined = BTreeSet::new();
    for _ in 0..random.below(80) {
        match random.below(8) {
            0..=2 => {
                let client = random.below(4);
                let text = format!("{client} {}", model.next);
                let frame = Frame::message(Kind::Text, text.as_bytes());
                let event = Event::new(ClientId::from_value(client), frame);
                let requester = requester(model.next);
                if bench.topic.offer_stored(bench.now_us, event, requester, u64::MAX) {
                    requested.insert(model.next, text);
                    model.next += 1;
                }
            }
            3 => {
                let index = [1, 2, 11, 12][random.below(4) as usize];
                if joined.insert(index) {
                    bench.join(index, (index > 10).then_some("audit"));
                }
            }
            4 | 5 => {
                for (to, text, number) in std::mem::take(&mut in_flight) {
                    match random.below(3) {
                        0 => in_flight.push((to, text, number)),
                        _ => {
                            bench.topic.settled(bench.now_us, consumer(to), &[number]);
                            model.settled[to as usize / 10].insert(text);
                        }
                    }
                }
            }
            _ => bench.store(),
        }
        for effect in effects(&mut bench.topic) {
            match effect {
                Effect::Stored(requester) => {
                    model.stored.extend(requested.remove(&requester.ticket.0));
                }
                Effect::Deliver(to, delivery) => {
                    let text = String::from_utf8(delivery.frame.payload().to_vec()).unwrap();
                    let marked = delivery.is_redelivered;
                    let handed = vec![(to.connection.index, text, delivery.number, marked)];
                    model.take(handed, &mut latest, &mut in_flight);
                }
                _ => {}
            }
        }
    }
    bench
}

#[test]
fn whatever_was_stored_comes_to_every_group_in_order_however_often_the_node_is_killed() {
    for seed in 0..400 {
        let (mut random, mut model) = (Random(seed), Model::default());
        let mut files = BTreeMap::new();
        for _ in 0..4 {
            files = run(&mut random, files, &mut model).files;
        }
        // The last run hands out what is left.
        let mut bench = Bench::open(files, 256);
        let (mut latest, mut in_flight) = (BTreeMap::new(), Vec::new());
        bench.join(1, None);
        bench.join(11, Some("audit"));
        loop {
            bench.store();
            let handed = bench.handed();
            if handed.is_empty() {
                break;
            }
            model.take(handed, &mut latest, &mut in_flight);
            for (to, text, number) in in_flight.drain(..) {
                bench.topic.settled(0, consumer(to), &[number]);
                model.settled[to as usize / 10].insert(text);
            }
        }
        for group in 0..2 {
            let lost: Vec<_> = model.stored.difference(&model.settled[group]).collect();
            assert!(lost.is_empty(), "seed {seed}, group {group}: {lost:?} is lost");
        }
        assert_eq!((bench.topic.messages(), bench.files.len().min(1)), (0, 1), "seed {seed}");
    }
}

#[test]
fn an_event_that_is_too_old_where_it_waits_and_where_it_is_read_counts_once() {
    let mut bench = Bench::new(1024);
    bench.topic.set_policy(Policy { age_max_us: 1_000_000, ..Policy::default() });
    bench.join(1, None);
    bench.join(2, Some("audit"));
    // 16 MiB, twice what a group holds in memory.
    for number in 0..64 {
        assert!(bench.push(number, &"x".repeat(1 << 18)), "{number}");
        bench.store();
    }
    let handed = bench.handed();
    let of = |index| handed.iter().filter(move |(to, ..)| *to == index).map(|(_, _, n, _)| *n);
    let (first, second): (Vec<_>, Vec<_>) = (of(1).collect(), of(2).collect());
    assert!(first == second && (16..48).contains(&first.len()), "{}", first.len());
    // The other group reads the rest, which waits there.
    bench.topic.settled(bench.now_us, consumer(2), &second);
    bench.topic.gone(consumer(2));
    bench.store();
    bench.now_us += 2_000_000;
    bench.topic.settled(bench.now_us, consumer(1), &first);
    bench.store();
    bench.topic.handle_timeout(bench.now_us);
    bench.store();
    let aged = 64 - first.len() as u64;
    assert_eq!((bench.topic.take_aged(), bench.topic.messages()), (aged, 0));
}
