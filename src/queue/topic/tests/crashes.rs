//! Runs of a node with a topic on disk, compared with a model. A run ends with a crash between any two steps: a push, a
//! write, a sync, a hand-out, an acknowledgement, a refusal, a take, an answer of a sink's engine. The disk is that of the
//! log's simulation. `GRIDCAST_TOPIC_SEEDS=N` sets the number of seeds.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::*;
use crate::message::{DelayedNumber, LogChange, SinkFigures, SinkRun, Ticket, ToLog};
use crate::protocol::frame::Kind;
use crate::queue::log::tests::disk::{Disk, Failure, Random};
use crate::queue::log::{Log, LogKeeper};

const SEEDS: u64 = 100;

/// Crashes of one seed.
const CRASHES: u32 = 5;

/// Steps of a run that does not crash before.
const STEPS_MAX: u64 = 120;

/// Clients, few so that many events share a lane.
const CLIENTS: u64 = 4;

/// The time to acknowledge an event, where there is one, in microseconds.
const ACK_US: u64 = 5_000;

/// Unix time at the first start, in microseconds.
const UNIX_START_US: u64 = 1_800_000_000_000_000;

/// Added to the numbers of delayed events, in the tickets of their back ends.
const DELAYED_TICKET: u64 = 1 << 63;

const SINK: &str = "engine";

/// The index of the sink's group, after the default group and `audit`.
const OF_SINK: usize = 2;

/// What the disk of all runs has to keep.
struct Model {
    // Unix time at which the last run has ended, in microseconds.
    unix_us: u64,
    // Every event that may exist, by number: its client and its data.
    events: BTreeMap<MessageNumber, (u64, String)>,
    // Events that somebody was told are stored.
    promised: BTreeSet<MessageNumber>,
    // Every delayed event that may exist.
    delayed: BTreeMap<DelayedNumber, DelayedOfModel>,
    // The delayed events that were added to the others in this run, by their new numbers.
    due: BTreeMap<MessageNumber, DelayedNumber>,
    groups: [ModelGroup; 3],
}

impl Model {
    fn new() -> Self {
        let groups = [(); 3].map(|()| ModelGroup::default());
        let (events, promised) = (BTreeMap::new(), BTreeSet::new());
        let (delayed, due) = (BTreeMap::new(), BTreeMap::new());
        Self { unix_us: UNIX_START_US, events, promised, delayed, due, groups }
    }

    /// Checks that each delayed event that somebody was told is stored is delayed in the log or an event, and none is both.
    fn check_delayed(&mut self, log: &Log) {
        let found: BTreeSet<_> = log.delayed().map(|event| event.number).collect();
        let ended = self.due.iter().filter(|&(&number, _)| number < log.stored());
        let ended: BTreeSet<_> = ended.map(|(_, &delayed)| delayed).collect();
        assert!(found.is_disjoint(&ended), "an event is delayed and not");
        for (number, delayed) in &self.delayed {
            let is_there = found.contains(number) || ended.contains(number);
            assert!(is_there || !delayed.is_promised, "{number:?} is lost");
        }
        self.delayed.retain(|number, _| found.contains(number));
        assert_eq!(self.delayed.len(), found.len(), "no delayed event was invented");
        self.due.clear();
    }
}

/// A delayed event.
struct DelayedOfModel {
    client: u64,
    data: String,
    // Unix time in microseconds.
    due_us: u64,
    is_promised: bool,
}

#[derive(Default)]
struct ModelGroup {
    // Acknowledged, or in the dead topic.
    settled: BTreeSet<MessageNumber>,
    // Those of them that are written.
    durable: BTreeSet<MessageNumber>,
    // Handed out in any run.
    handed: BTreeSet<MessageNumber>,
    // Refused events, and the Unix time in milliseconds before which they must not be handed out.
    delayed: BTreeMap<MessageNumber, u64>,
    // Those of them that are written.
    durably_delayed: BTreeMap<MessageNumber, u64>,
}

/// What a consumer is.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Plain,
    Acknowledging,
    Take,
}

struct Taker {
    group: usize,
    role: Role,
    pop: PopId,
    // In flight to it, in order.
    out: Vec<MessageNumber>,
}

/// One run of the node.
struct Life<'w> {
    random: &'w mut Random,
    disk: &'w mut Disk,
    model: &'w mut Model,
    topic: Topic,
    keeper: LogKeeper,
    sent: VecDeque<ToLog>,
    now_us: u64,
    unix_start_us: u64,
    takers: BTreeMap<u32, Taker>,
    // Taken over HTTP and neither acknowledged nor refused, with the group.
    taken: Vec<(usize, PopId, MessageNumber)>,
    to_sink: Vec<MessageNumber>,
    next_index: u32,
    // The numbers of the next event and the next delayed event that the log is given.
    next_to_log: MessageNumber,
    next_delayed: DelayedNumber,
}

/// The node has crashed.
struct Crash;

impl<'w> Life<'w> {
    /// Starts the node on what the last run has left, and checks that it is what was promised.
    fn start(random: &'w mut Random, disk: &'w mut Disk, model: &'w mut Model) -> Self {
        let mut log = disk.recover().expect("a crash is no damage").log;
        log.set_groups(&[None, Some("audit".into()), Some(SINK.into())]);
        let stored = log.stored();
        model.check_delayed(&log);
        assert!(model.promised.iter().all(|&number| number < stored), "stored events are there");
        model.events.retain(|&number, _| number < stored);
        for (index, group) in (0..).map(GroupIndex).zip(&mut model.groups) {
            let left = disk.read_all(&log, index).expect("the log is readable");
            let left: BTreeSet<_> = left.iter().map(|event| event.number).collect();
            // An acknowledgement that was not synced may be forgotten, but none is invented.
            let settled: BTreeSet<_> =
                model.events.keys().copied().filter(|number| !left.contains(number)).collect();
            assert!(settled.is_subset(&group.settled), "{index:?} has lost an event");
            assert!(settled.is_superset(&group.durable), "{index:?} has forgotten one");
            group.durable.clone_from(&settled);
            group.settled = settled;
            group.durably_delayed.retain(|number, _| !group.settled.contains(number));
            group.delayed.clone_from(&group.durably_delayed);
        }
        let unix_start_us = model.unix_us;
        let keeper = LogKeeper::new("orders".into(), log);
        let bounds = Bounds { messages: 1 + random.below(200) as usize, bytes: 1 << 20 };
        let mut topic = Topic::new(NODE, bounds, WhenFull::Hold, 1).with_groups(&["audit".into()]);
        topic.set_sinks(&[SINK.into()]);
        let ack_us = if random.happens(50) { ACK_US } else { 0 };
        let tries = if random.happens(50) { 1 + random.below(3) as u16 } else { 0 };
        topic.set_policy(Policy { ack_us, tries, age_max_us: 0 });
        let facts = keeper.facts();
        let topic = topic.on_disk(&facts);
        Self {
            random,
            disk,
            model,
            topic,
            keeper,
            sent: VecDeque::new(),
            now_us: 0,
            unix_start_us,
            takers: BTreeMap::new(),
            taken: Vec::new(),
            to_sink: Vec::new(),
            next_index: 0,
            next_to_log: facts.stored,
            next_delayed: facts.next_delayed,
        }
    }

    fn run(mut self) {
        for _ in 0..self.random.below(STEPS_MAX) {
            self.step();
            if self.pump(70).is_err() {
                break;
            }
        }
        self.disk.bytes_max = None;
        self.disk.crash(self.random);
        self.model.unix_us = self.unix_start_us + self.now_us;
    }

    /// Does something that those around the topic do.
    fn step(&mut self) {
        match self.random.below(13) {
            0..=2 => (0..=self.random.below(4)).for_each(|_| self.push()),
            3 => self.join(),
            4 | 5 => self.finish_some(),
            6 => self.refuse_some(),
            7 => self.remove_one(),
            8 => self.end_take(),
            9 => self.settle_taken(),
            10 => self.run_sink(),
            11 => self.push_delayed(),
            _ if self.random.happens(50) => {
                self.now_us += self.random.below(2 * ACK_US);
                self.topic.handle_timeout(self.now_us);
            }
            _ => {
                let is_full = self.random.happens(30);
                let room = self.random.below(300) as usize;
                self.disk.bytes_max = is_full.then(|| self.disk.used() + room);
            }
        }
        self.handle_effects();
    }

    fn push(&mut self) {
        let (number, client) = (self.topic.next_number, self.random.below(CLIENTS));
        let data = format!("{} {}", number.0, "x".repeat(self.random.below(60) as usize));
        let event =
            Event::new(ClientId::from_value(client), Frame::message(Kind::Text, data.as_bytes()));
        let requester = Requester { ticket: Ticket(number.0), backend: consumer(u32::MAX) };
        if self.topic.offer_stored(self.now_us, event, requester, u64::MAX) {
            self.model.events.insert(number, (client, data));
        }
    }

    fn push_delayed(&mut self) {
        let (number, client) = (self.next_delayed, self.random.below(CLIENTS));
        let data = format!("delayed {}", "x".repeat(self.random.below(60) as usize));
        let event =
            Event::new(ClientId::from_value(client), Frame::message(Kind::Text, data.as_bytes()));
        let requester =
            Requester { ticket: Ticket(DELAYED_TICKET | number.0), backend: consumer(u32::MAX) };
        let due_us = self.now_us + 1 + self.random.below(3 * ACK_US);
        if self.topic.offer_delayed_stored(due_us, event, requester, u64::MAX) {
            self.next_delayed.0 += 1;
            let due_us = self.unix_start_us + due_us;
            let delayed = DelayedOfModel { client, data, due_us, is_promised: false };
            assert!(self.model.delayed.insert(number, delayed).is_none());
        }
    }

    /// Notes the numbers of events that the topic gives the log, and those of delayed events that come due.
    fn note_changes(&mut self, changes: &[LogChange]) {
        for change in changes {
            match change {
                LogChange::AddDue { number, .. } => {
                    let delayed = &self.model.delayed[number];
                    let now_us = self.unix_start_us + self.now_us;
                    assert!(now_us >= delayed.due_us, "{number:?} comes before its time");
                    let event = (delayed.client, delayed.data.clone());
                    assert!(self.model.events.insert(self.next_to_log, event).is_none());
                    self.model.due.insert(self.next_to_log, *number);
                }
                LogChange::Add { .. } => {
                    assert!(self.model.events.contains_key(&self.next_to_log));
                }
                _ => continue,
            }
            self.next_to_log.0 += 1;
        }
    }

    fn join(&mut self) {
        let group = self.random.below(2) as usize;
        let role = match self.random.below(3) {
            0 => Role::Plain,
            1 => Role::Acknowledging,
            _ => Role::Take,
        };
        self.join_as(group, role);
    }

    fn join_as(&mut self, group: usize, role: Role) {
        self.next_index += 1;
        let (index, pop) = (self.next_index, PopId(self.next_index.into()));
        let name = (group == 1).then(|| Arc::from("audit"));
        let unsettled_max = (role != Role::Plain).then(|| 1 + self.random.below(4) as usize);
        let terms = Terms { pop, group: name, window_bytes: 1 << 16, unsettled_max };
        self.topic.join(self.now_us, consumer(index), &terms).expect("the group exists");
        self.topic.start(self.now_us, consumer(index));
        self.takers.insert(index, Taker { group, role, pop, out: Vec::new() });
    }

    /// One of the consumers for which this is true.
    fn any(&mut self, is_wanted: impl Fn(&Taker) -> bool) -> Option<u32> {
        let wanted = self.takers.iter().filter(|(_, taker)| is_wanted(taker));
        let wanted: Vec<u32> = wanted.map(|(&index, _)| index).collect();
        let at = self.random.below(wanted.len().max(1) as u64) as usize;
        wanted.get(at).copied()
    }

    /// Part of what is in flight to a consumer, which is no longer in flight.
    fn some_of(&mut self, index: u32) -> Vec<MessageNumber> {
        let percent = self.random.below(101);
        let out = std::mem::take(&mut self.takers.get_mut(&index).expect("it is there").out);
        let (some, left) = out.into_iter().partition(|_| self.random.happens(percent));
        self.takers.get_mut(&index).expect("it is there").out = left;
        some
    }

    /// Lets a consumer write or acknowledge events.
    fn finish_some(&mut self) {
        let Some(index) = self.any(|taker| taker.role != Role::Take) else { return };
        let (group, role) = (self.takers[&index].group, self.takers[&index].role);
        let numbers = match role {
            Role::Acknowledging => self.some_of(index),
            // They are written in order.
            _ => {
                let out = &mut self.takers.get_mut(&index).expect("it is there").out;
                out.drain(..self.random.below(out.len() as u64 + 1) as usize).collect()
            }
        };
        self.model.groups[group].handed.extend(&numbers);
        self.model.groups[group].settled.extend(&numbers);
        match role {
            Role::Acknowledging => self.topic.settled(self.now_us, consumer(index), &numbers),
            _ => self.topic.written(self.now_us, consumer(index), numbers.len() as u32),
        }
    }

    fn refuse_some(&mut self) {
        let Some(index) = self.any(|taker| taker.role == Role::Acknowledging) else { return };
        let numbers = self.some_of(index);
        let until_us = self.now_us + self.random.below(ACK_US);
        self.topic.refused(self.now_us, consumer(index), &numbers, until_us);
        self.note_delay(self.takers[&index].group, &numbers, until_us);
    }

    /// Notes that events were refused, and wait. Those that were handed out too often do not.
    fn note_delay(&mut self, group: usize, numbers: &[MessageNumber], until_us: u64) {
        if until_us > self.now_us {
            let until_ms = (self.unix_start_us + until_us) / 1000;
            let of_group = self.topic.all_groups().nth(group).expect("it has two");
            let waits = |number: &&MessageNumber| {
                let client = ClientId::from_value(self.model.events[number].0);
                of_group.lanes.has(client, **number)
            };
            let delayed = numbers.iter().filter(waits).map(|&number| (number, until_ms));
            self.model.groups[group].delayed.extend(delayed.collect::<Vec<_>>());
        }
    }

    fn remove_one(&mut self) {
        let Some(index) = self.any(|_| true) else { return };
        self.takers.remove(&index);
        self.topic.gone(consumer(index));
    }

    /// Ends a take: its back end gets the first events in flight to it.
    fn end_take(&mut self) {
        let Some(index) = self.any(|taker| taker.role == Role::Take) else { return };
        let Taker { group, pop, mut out, .. } = self.takers.remove(&index).expect("it is there");
        out.truncate(self.random.below(out.len() as u64 + 1) as usize);
        self.model.groups[group].handed.extend(&out);
        self.taken.extend(out.iter().map(|&number| (group, pop, number)));
        self.topic.end_take(self.now_us, consumer(index), &out);
    }

    /// Acknowledges or refuses some of what was taken, also what has gone to others since.
    fn settle_taken(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        let (some, left) = taken.into_iter().partition(|_| self.random.happens(40));
        self.taken = left;
        let some: Vec<(usize, PopId, MessageNumber)> = some;
        let until_us = self.random.happens(40).then(|| self.now_us + self.random.below(ACK_US));
        for (group, pop, number) in some {
            let stale = self.topic.settle_taken(self.now_us, &[(pop, number)], until_us);
            if stale.is_empty() && until_us.is_none() {
                self.model.groups[group].settled.insert(number);
            } else if let Some(until_us) = until_us
                && stale.is_empty()
            {
                self.note_delay(group, &[number], until_us);
            }
        }
    }

    fn run_sink(&mut self) {
        if self.random.happens(20) {
            self.topic.begin_sink(SINK, SinkRun(u64::from(self.next_index)));
            self.next_index += 1;
            self.to_sink.clear();
        }
        let mut handed = Vec::new();
        let run = self.topic.poll_sink(|(client, item)| handed.push((*client, item.clone())));
        for (client, item) in handed {
            let data = String::from_utf8(item.frame.payload().to_vec()).expect("text");
            let sent = (item.number, &data[..], item.is_redelivered);
            self.check_handed(OF_SINK, client, sent, &self.to_sink);
            self.model.groups[OF_SINK].handed.insert(item.number);
            self.to_sink.push(item.number);
        }
        let Some((_, run)) = run else { return };
        let (done, left) =
            std::mem::take(&mut self.to_sink).into_iter().partition(|_| self.random.happens(60));
        self.to_sink = left;
        let done: Vec<MessageNumber> = done;
        self.model.groups[OF_SINK].settled.extend(&done);
        self.topic.sink_reported(self.now_us, SINK, run, &done, SinkFigures::default());
    }

    /// Checks an event that a group hands out. `out`: what is in flight to the one who gets it.
    fn check_handed(
        &self,
        group: usize,
        client: ClientId,
        item: (MessageNumber, &str, bool),
        out: &[MessageNumber],
    ) {
        let (number, data, is_redelivered) = item;
        let (of, expected) = &self.model.events[&number];
        assert_eq!((client, data), (ClientId::from_value(*of), &expected[..]));
        assert!(
            number < self.keeper.log().stored(),
            "{number:?} is handed out before it is stored"
        );
        let ModelGroup { settled, handed, .. } = &self.model.groups[group];
        assert!(!settled.contains(&number), "{number:?} is handed out after it was settled");
        // Engines recognise what comes again by its id.
        let now_ms = (self.unix_start_us + self.now_us) / 1000;
        let until_ms = self.model.groups[group].delayed.get(&number).copied().unwrap_or(0);
        assert!(now_ms >= until_ms, "{number:?} comes before its delay is over");
        let is_known = group == OF_SINK || is_redelivered || !handed.contains(&number);
        assert!(is_known, "{number:?} is not marked");
        for (earlier, (client, _)) in self.model.events.range(..number) {
            let is_done = client != of || settled.contains(earlier) || out.contains(earlier);
            let is_dead = || self.topic.held.dead_numbers().any(|dead| dead == *earlier);
            assert!(is_done || is_dead(), "{number:?} has overtaken {earlier:?} in group {group}");
        }
    }

    fn handle_effects(&mut self) {
        for effect in effects(&mut self.topic) {
            match effect {
                Effect::Deliver(to, delivery) => self.take(to.connection.index, &delivery),
                Effect::Expired(id, numbers) => {
                    if let Some(taker) = self.takers.get_mut(&id.connection.index) {
                        taker.out.retain(|number| !numbers.contains(number));
                    }
                }
                Effect::Stored(Requester { ticket, .. }) if ticket.0 >= DELAYED_TICKET => {
                    let number = DelayedNumber(ticket.0 - DELAYED_TICKET);
                    self.model.delayed.get_mut(&number).expect("it exists").is_promised = true;
                }
                Effect::Stored(requester) => {
                    self.model.promised.insert(MessageNumber(requester.ticket.0));
                }
                Effect::Bury { .. } => self.bury(),
                Effect::Evict(id) => {
                    self.takers.remove(&id.connection.index);
                    self.topic.gone(id);
                }
                _ => {}
            }
        }
        if !self.topic.held.effects.is_empty() {
            self.handle_effects();
        }
    }

    fn take(&mut self, index: u32, delivery: &Delivery) {
        let data = String::from_utf8(delivery.frame.payload().to_vec()).expect("text");
        let Taker { group, role, out, .. } = &self.takers[&index];
        let (group, role, number) = (*group, *role, delivery.number);
        let (client, _) = self.model.events[&number];
        let item = (number, &data[..], delivery.is_redelivered);
        self.check_handed(group, ClientId::from_value(client), item, out);
        self.takers.get_mut(&index).expect("it is there").out.push(number);
        // The back end of a take gets events when the take ends, and others without acknowledgements when they are written.
        if role == Role::Acknowledging {
            self.model.groups[group].handed.insert(number);
        }
    }

    /// Answers for the dead topic.
    fn bury(&mut self) {
        let number = self.topic.held.dead_numbers().next().expect("one is on its way");
        let held =
            |topic: &Topic| [0, 1].map(|group| topic.held.dead_of(GroupIndex(group)).messages);
        let before = held(&self.topic);
        self.topic.buried(self.random.happens(70));
        let after = held(&self.topic);
        for group in [0, 1] {
            if after[group] < before[group] {
                self.model.groups[group].settled.insert(number);
            }
        }
    }

    /// Moves what is between the topic, the log and the disk, each with this chance.
    fn pump(&mut self, percent: u64) -> Result<(), Crash> {
        if self.random.happens(percent) && self.topic.update_log() {
            let changes = self.topic.take_log_changes();
            self.note_changes(&changes);
            let topic = "orders".into();
            self.sent.push_back(ToLog { topic, unix_start_us: self.unix_start_us, changes });
        }
        while self.random.happens(percent)
            && let Some(changes) = self.sent.pop_front()
        {
            self.keeper.handle_changes(changes);
        }
        if self.random.happens(percent) {
            self.write()?;
        }
        if self.random.happens(percent)
            && let Some(read) = self.keeper.poll_read()
        {
            self.keeper.handle_read(&self.disk.read(read)).expect("nothing is damaged");
        }
        if self.random.happens(percent)
            && let Some(message) = self.keeper.poll_news()
        {
            self.topic.handle_news(self.now_us, self.unix_start_us, message.news);
            self.handle_effects();
        }
        let is_told = self.sent.is_empty()
            && !self.topic.held.disk.as_ref().expect("it is on disk").has_changes();
        if is_told && self.keeper.log().is_written() {
            for group in &mut self.model.groups {
                group.durable.clone_from(&group.settled);
                group.durably_delayed.clone_from(&group.delayed);
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Crash> {
        while let Some(task) = self.keeper.poll_task() {
            match self.disk.carry_out(self.random, &task) {
                Ok(()) => self.keeper.handle_done(),
                Err(failure) => {
                    self.keeper.handle_failed();
                    return if failure == Failure::Crash { Err(Crash) } else { Ok(()) };
                }
            }
        }
        Ok(())
    }

    /// Lets every group finish all events, on a disk that works again. Every stored event has come to every group.
    fn finish(mut self) {
        self.disk.bytes_max = None;
        self.topic.set_policy(Policy::default());
        self.topic.begin_sink(SINK, SinkRun(u64::MAX));
        self.join_as(0, Role::Acknowledging);
        self.join_as(1, Role::Acknowledging);
        for _ in 0..10_000 {
            for index in [1, 2] {
                let taker = self.takers.get_mut(&index).expect("it is there");
                let numbers = std::mem::take(&mut taker.out);
                self.model.groups[taker.group].settled.extend(&numbers);
                self.topic.settled(self.now_us, consumer(index), &numbers);
            }
            self.run_sink();
            self.now_us += 1_000;
            self.topic.handle_timeout(self.now_us);
            self.handle_effects();
            // What fails here is repeated.
            let _ = self.pump(100);
            if self.topic.messages() == 0 && !self.topic.has_unstored() {
                break;
            }
        }
        let all: BTreeSet<_> = self.model.events.keys().copied().collect();
        for group in &self.model.groups {
            assert_eq!(group.settled, all, "every group has settled every event");
        }
        assert_eq!(self.topic.messages(), 0, "no event is delayed for ever");
        assert_eq!(self.keeper.log().delayed().len(), 0);
    }
}

#[test]
fn every_stored_event_comes_to_every_group_in_order_whenever_the_node_crashes() {
    let seeds = std::env::var("GRIDCAST_TOPIC_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(SEEDS) {
        let outcome = std::panic::catch_unwind(|| {
            let (mut random, mut disk, mut model) = (Random(seed), Disk::default(), Model::new());
            for _ in 0..CRASHES {
                Life::start(&mut random, &mut disk, &mut model).run();
            }
            Life::start(&mut random, &mut disk, &mut model).finish();
        });
        assert!(outcome.is_ok(), "seed {seed}");
    }
}
