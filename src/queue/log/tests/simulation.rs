//! Runs of a node that use a log on a simulated disk and end with a crash, compared with a model.
//! `GRIDCAST_LOG_SEEDS=N` sets the number of seeds.

use std::collections::{BTreeMap, BTreeSet};

use super::disk::{Disk, Failure, Random};
use super::{group_names, number_of_groups};
use crate::address::ClientId;
use crate::message::{DelayedNumber, FailedTries, MessageNumber};
use crate::protocol::frame::{self, Frame, Kind};
use crate::queue::log::{GroupIndex, Log, NewlyStored, Reader};

const SEEDS: u64 = 2000;

/// What has to be true of a log, whatever its disk does.
struct Model {
    groups: Vec<ModelGroup>,
    // Every event that was ever appended and may exist.
    events: BTreeMap<MessageNumber, (ClientId, Vec<u8>)>,
    // Reported as stored: all below.
    stored: MessageNumber,
    // Every delayed event that was ever appended and may exist: its client, its time and its data.
    delayed: BTreeMap<DelayedNumber, (ClientId, u64, Vec<u8>)>,
    // Reported as stored: all below, of this run.
    stored_delayed: DelayedNumber,
    // Delayed events that were stored before this run.
    recovered_delayed: BTreeSet<DelayedNumber>,
    // The delayed events that were added to the others in this run, by their new numbers.
    due: BTreeMap<MessageNumber, DelayedNumber>,
    // The bytes held are an estimate.
    is_estimated: bool,
}

#[derive(Default)]
struct ModelGroup {
    settled: BTreeSet<MessageNumber>,
    handed_out: BTreeSet<MessageNumber>,
    // What was noted of events that were handed out in vain: what is written, then what may be.
    failed: BTreeMap<MessageNumber, Vec<FailedTries>>,
    // Read, and not settled.
    in_memory: BTreeMap<MessageNumber, usize>,
    next: MessageNumber,
    is_consumed: bool,
    // A change to `is_consumed` is written.
    may_hand_out: bool,
}

impl Model {
    fn new() -> Self {
        let groups = (0..number_of_groups()).map(|_| ModelGroup::default()).collect();
        Self {
            groups,
            events: BTreeMap::new(),
            stored: MessageNumber(0),
            delayed: BTreeMap::new(),
            stored_delayed: DelayedNumber(0),
            recovered_delayed: BTreeSet::new(),
            due: BTreeMap::new(),
            is_estimated: false,
        }
    }

    fn note_stored(&mut self, stored: NewlyStored) {
        self.stored.0 += stored.events;
        self.stored_delayed.0 += stored.delayed;
    }

    /// Whether a delayed event was reported as stored, in this run or before.
    fn is_promised(&self, number: DelayedNumber) -> bool {
        number < self.stored_delayed || self.recovered_delayed.contains(&number)
    }

    /// Checks that each delayed event that was reported as stored is either delayed or an event, and none is both.
    fn check_delayed(&mut self, log: &Log) {
        let found: BTreeSet<_> = log.delayed().map(|event| event.number).collect();
        for event in log.delayed() {
            let expected = &self.delayed[&event.number];
            let payload = event.frame.payload().to_vec();
            assert_eq!(&(event.client, event.due_ms, payload), expected);
        }
        let stored = log.stored();
        let ended = self.due.iter().filter(|&(&number, _)| number < stored);
        let ended: BTreeSet<_> = ended.map(|(_, &delayed)| delayed).collect();
        assert!(found.is_disjoint(&ended), "an event is delayed and not");
        for &number in self.delayed.keys() {
            let is_there = found.contains(&number) || ended.contains(&number);
            assert!(is_there || !self.is_promised(number), "{number:?} is lost");
        }
        self.delayed.retain(|number, _| found.contains(number));
        self.due.clear();
        self.recovered_delayed = found;
        self.stored_delayed = log.delayed.next();
    }

    /// Compares a recovered log with what was promised.
    fn check_recovered(&mut self, disk: &Disk, log: &Log) {
        assert!(log.stored() >= self.stored, "stored events are there");
        let stored = log.stored();
        self.events.retain(|&number, _| number < stored);
        assert_eq!(self.events.len() as u64, stored.0, "no event was invented");
        self.check_delayed(log);
        let mut unsettled = BTreeSet::new();
        for (index, group) in self.groups.iter_mut().enumerate() {
            let events = disk.read_all(log, GroupIndex(index as u16)).expect("the log is readable");
            let mut failed = BTreeMap::new();
            assert!(events.is_sorted_by_key(|event| event.number));
            let numbers: BTreeSet<_> = events.iter().map(|event| event.number).collect();
            assert_eq!(numbers.len(), events.len(), "each event comes once");
            for number in self.events.keys() {
                let is_settled = group.settled.contains(number);
                assert!(is_settled || numbers.contains(number), "{number:?} is lost in {index}");
            }
            for event in &events {
                let (client, json) = &self.events[&event.number];
                assert_eq!((event.client, event.frame.payload()), (*client, &json[..]));
                if group.handed_out.contains(&event.number) {
                    assert!(event.is_redelivered, "{:?} in {index}", event.number);
                }
                let noted = group.failed.remove(&event.number);
                let noted = noted.unwrap_or_else(|| vec![FailedTries::default()]);
                assert!(noted.contains(&event.failed), "{event:?}: {noted:?}");
                failed.insert(event.number, vec![event.failed]);
                // An acknowledgement that was not synced may be forgotten.
                group.settled.remove(&event.number);
            }
            unsettled.extend(numbers);
            group.failed = failed;
            group.in_memory.clear();
            group.next = MessageNumber(0);
            (group.is_consumed, group.may_hand_out) = (false, false);
        }
        let messages = unsettled.len() + self.delayed.len();
        assert_eq!(log.held().messages, messages, "messages held");
        let events = unsettled.iter().map(|number| self.events[number].1.len());
        let delayed = self.delayed.values().map(|(_, _, json)| json.len());
        let bytes: usize = events.chain(delayed).map(frame::message_bytes).sum();
        if bytes == 0 || !self.is_estimated {
            assert_eq!(log.held().bytes, bytes, "bytes held");
        }
        self.stored = stored;
    }
}

/// One run of a node: opens the log, uses it, and ends with a crash or in order.
fn run(random: &mut Random, disk: &mut Disk, model: &mut Model, is_last: bool) {
    let recovered = disk.recover().expect("a crash is no damage");
    model.is_estimated |= recovered.is_estimated;
    let mut log = recovered.log;
    log.set_groups(&group_names());
    model.check_recovered(disk, &log);
    let mut readers: Vec<Reader> = (0..number_of_groups()).map(|_| Reader::default()).collect();
    for _ in 0..random.below(60) {
        match random.below(13) {
            0..=3 => {
                for _ in 0..=random.below(4) {
                    let client = ClientId::from_value(random.below(5));
                    let json = vec![b'a'; random.below(80) as usize];
                    let number = log.append(client, 7, &json);
                    let before = model.events.insert(number, (client, json));
                    assert_eq!(before, None);
                }
            }
            4 | 5 => {
                let group = random.below(number_of_groups() as u64) as usize;
                read_some(disk, &log, model, &mut readers[group], group);
            }
            6 | 7 => settle_some(random, &mut log, model),
            8 => {
                let index = random.below(number_of_groups() as u64) as usize;
                let group = &mut model.groups[index];
                group.is_consumed = !group.is_consumed;
                group.may_hand_out = false;
                log.set_consumed(GroupIndex(index as u16), group.is_consumed, group.next);
            }
            9 => fail_some(random, &mut log, model),
            10 => delay_some(random, &mut log, model),
            11 => end_some_delays(random, &mut log, model),
            _ => {
                disk.bytes_max =
                    random.happens(30).then(|| disk.used() + random.below(300) as usize);
            }
        }
        if random.happens(60) && !write_all(random, disk, &mut log, model) {
            return disk.crash(random);
        }
        hand_out(model);
    }
    disk.bytes_max = None;
    match is_last {
        true => while !log.is_written() && write_all(random, disk, &mut log, model) {},
        false => disk.crash(random),
    }
}

/// Carries out tasks until there are none or one fails. Returns false after a crash.
fn write_all(random: &mut Random, disk: &mut Disk, log: &mut Log, model: &mut Model) -> bool {
    while let Some(task) = log.poll_task() {
        match disk.carry_out(random, &task) {
            Ok(()) => model.note_stored(log.handle_done()),
            Err(Failure::Crash) => return false,
            Err(Failure::Full | Failure::Broken) => {
                log.handle_failed();
                return true;
            }
        }
        assert_eq!(model.stored, log.stored());
    }
    assert!(log.is_written());
    for group in &mut model.groups {
        group.may_hand_out = group.is_consumed;
        for noted in group.failed.values_mut() {
            noted.drain(..noted.len() - 1);
        }
    }
    true
}

fn read_some(disk: &Disk, log: &Log, model: &mut Model, reader: &mut Reader, index: usize) {
    let group = GroupIndex(index as u16);
    let Some(read) = log.poll_read(group, reader) else { return };
    let events = log.handle_read(group, reader, &disk.read(read)).expect("the log is readable");
    let of_group = &mut model.groups[index];
    for event in events {
        assert!(event.number >= of_group.next && event.number < log.stored());
        of_group.next = MessageNumber(event.number.0 + 1);
        of_group.in_memory.insert(event.number, event.frame.bytes().len());
    }
    of_group.next = of_group.next.max(reader.next());
}

fn hand_out(model: &mut Model) {
    for group in model.groups.iter_mut().filter(|group| group.may_hand_out) {
        group.handed_out.extend(group.in_memory.keys());
    }
}

fn fail_some(random: &mut Random, log: &mut Log, model: &mut Model) {
    let index = random.below(number_of_groups() as u64) as usize;
    let group = &mut model.groups[index];
    for &number in group.handed_out.iter().filter(|number| group.in_memory.contains_key(number)) {
        if random.happens(30) {
            let noted = group.failed.entry(number).or_insert_with(|| vec![FailedTries::default()]);
            let tries = noted[noted.len() - 1].tries + 1;
            let failed = FailedTries { tries, until_ms: random.below(99) };
            log.note_retry(GroupIndex(index as u16), number, failed);
            noted.push(failed);
        }
    }
}

fn delay_some(random: &mut Random, log: &mut Log, model: &mut Model) {
    for _ in 0..=random.below(3) {
        let (client, due_ms) = (ClientId::from_value(random.below(5)), random.below(99));
        let json = vec![b'd'; random.below(80) as usize];
        let frame = Frame::message(Kind::Text, &json);
        let number = log.append_delayed(client, due_ms, frame);
        let before = model.delayed.insert(number, (client, due_ms, json));
        assert_eq!(before, None);
    }
}

fn end_some_delays(random: &mut Random, log: &mut Log, model: &mut Model) {
    let stored: Vec<_> = log.delayed().map(|event| event.number).collect();
    for number in stored {
        let has_ended = model.due.values().any(|&ended| ended == number);
        if !has_ended && random.happens(40) {
            let event = log.append_due(number, 7);
            let (client, _, json) = model.delayed[&number].clone();
            assert_eq!(model.events.insert(event, (client, json)), None);
            model.due.insert(event, number);
        }
    }
}

fn settle_some(random: &mut Random, log: &mut Log, model: &mut Model) {
    let index = random.below(number_of_groups() as u64) as usize;
    let group = &mut model.groups[index];
    let is_stubborn = random.happens(50);
    let numbers: Vec<_> = group.in_memory.iter().map(|(&number, &bytes)| (number, bytes)).collect();
    for (number, bytes) in numbers {
        // Some events stay for long, so that files behind them are removed.
        if group.handed_out.contains(&number) && !(is_stubborn && number.0.is_multiple_of(7)) {
            log.settle(GroupIndex(index as u16), number, bytes);
            group.in_memory.remove(&number);
            group.settled.insert(number);
        }
    }
}

#[test]
fn every_stored_event_that_is_not_settled_comes_again_whatever_the_disk_does() {
    let seeds = std::env::var("GRIDCAST_LOG_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let outcome = std::panic::catch_unwind(|| {
            let (mut random, mut disk, mut model) = (Random(seed), Disk::default(), Model::new());
            for _ in 0..6 {
                run(&mut random, &mut disk, &mut model, false);
            }
            run(&mut random, &mut disk, &mut model, true);
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}
