//! A topic on disk: its events are handed out once its log has stored them.
//!
//! The topic passes changes to the log and hears what has become of them, at some later time. The log gives events
//! their numbers, in the order in which they are added. Each group holds a window of events in memory. A new event
//! enters the window at once if the group has all earlier ones, and there is room. Otherwise the group gets the event
//! later, when it is read from the files. So memory is bounded whatever the backlog.
//!
//! - Credit: a shard that feeds the topic is given new credit when its events are stored. What is not stored is bounded
//!   by [`UNSTORED_MAX`].
//! - Marks: before the first consumer of a group is handed anything, the log notes that the group has consumers. Some time after
//!   the last one has gone, it notes that too. After a restart, events that such a group may have been handed are marked as
//!   redelivered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::held::Held;
use super::{Burial, Effect, Topic};
use crate::address::{ClientId, ShardId};
use crate::message::{
    BackendId, Credit, DelayedNumber, Event, EventNotice, GroupIndex, LogChange, LogFacts, LogNews,
    MessageNumber, Requester, StoredEvent,
};
use crate::protocol::frame::Frame;
use crate::queue::Bounds;
use crate::queue::consumers::Item;

/// The most that a topic on disk holds unstored, the credit of its feeders included.
pub const UNSTORED_MAX: Bounds = Bounds { messages: 1 << 16, bytes: 64 << 20 };

/// Events of one group in memory. More are read when half of them are settled.
const WINDOW_MESSAGES: usize = 1 << 14;

/// Bytes of these events. The last batch that is read may exceed them.
const WINDOW_BYTES: usize = 8 << 20;

/// The time after its last consumer has gone, in microseconds, after which the log notes that a group has none. Back ends that
/// take events one request after the other need no two notes for each.
const UNCONSUMED_US: u64 = 10_000_000;

/// The part of a topic that deals with its log.
#[derive(Debug)]
pub(super) struct OnDisk {
    // The default group, if there is one, then the others, then the sinks.
    groups: Vec<GroupOnDisk>,
    has_default_group: bool,
    // Events below are stored.
    stored: MessageNumber,
    // Events that are not stored, in order.
    unstored: VecDeque<Unstored>,
    // Delayed events that are not stored, in order, and the number of the first of them.
    pub(super) unstored_delayed: VecDeque<UnstoredDelayed>,
    pub(super) stored_delayed: DelayedNumber,
    // All delayed events, stored or not, within DELAYED_MAX.
    pub(super) delayed: Credit,
    // For the log, in order.
    changes: Vec<LogChange>,
    // For the log too: events that were handed out in vain, which are in memory, how often and until when they wait.
    retries: BTreeMap<(GroupIndex, MessageNumber), (u16, u64)>,
    // Dropped events whose room was released, and that the log has not reported as free.
    released: Credit,
}

/// One group, as far as it concerns the log.
#[derive(Debug)]
struct GroupOnDisk {
    // The group has got, or has settled, all events below.
    next: MessageNumber,
    in_memory: Credit,
    is_reading: bool,
    mark: Mark,
    // When it was first seen that the group has no consumers, in microseconds, while the log notes that it has.
    unconsumed_since_us: Option<u64>,
    // Consumers that wait for the mark.
    starting: Vec<BackendId>,
    // Events that were dropped while a read was in progress, which may bring them. At most as many as the windows of
    // the other groups hold.
    dropped: BTreeSet<MessageNumber>,
}

/// Whether the log has noted that a group has consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    /// The group has none.
    Unconsumed,
    /// The group has consumers, which may be handed events.
    Consumed,
    /// A change is being written, to this.
    Changing { to_consumed: bool },
}

/// An event that is not stored.
#[derive(Debug)]
struct Unstored {
    source: StoredFor,
    client: ClientId,
    since_us: u64,
    notice: EventNotice,
    frame: Frame,
}

/// A delayed event that is not stored.
#[derive(Debug)]
pub(super) struct UnstoredDelayed {
    pub source: StoredFor,
    pub due_us: u64,
    pub event: Event,
}

/// The one who waits for an event to be stored.
#[derive(Debug)]
pub(super) enum StoredFor {
    /// A shard that feeds the topic, for new credit.
    Shard(ShardId),
    /// A back end, until a time in milliseconds.
    Push(Requester, u64),
    /// A topic whose dead topic this is.
    Burial(Burial),
    /// Nobody.
    Nobody,
}

impl OnDisk {
    /// Whether the log notes of a group that it has consumers.
    pub(super) fn has_marks(&self) -> bool {
        self.groups.iter().any(|group| group.mark == Mark::Consumed)
    }

    /// Whether something is to be told to the log.
    pub(super) fn has_changes(&self) -> bool {
        !self.changes.is_empty() || !self.retries.is_empty()
    }

    /// Adds an event to the log.
    fn add(&mut self, now_us: u64, source: StoredFor, event: Event) {
        let (client, since_us, frame) = (event.client, now_us, event.frame.clone());
        self.changes.push(LogChange::Add { client, since_us, frame });
        self.await_stored(now_us, source, event);
    }

    /// Adds a delayed event to the log.
    pub(super) fn add_delayed(&mut self, delayed: UnstoredDelayed) {
        let (due_us, Event { client, frame, .. }) = (delayed.due_us, &delayed.event);
        self.changes.push(LogChange::AddDelayed { client: *client, due_us, frame: frame.clone() });
        self.delayed.messages += 1;
        self.delayed.bytes += frame.bytes().len();
        self.unstored_delayed.push_back(delayed);
    }

    /// Adds a stored delayed event to the other events of the log.
    pub(super) fn add_due(&mut self, now_us: u64, number: DelayedNumber, event: Event) {
        self.changes.push(LogChange::AddDue { number, since_us: now_us });
        self.delayed.messages -= 1;
        self.delayed.bytes -= event.frame.bytes().len();
        self.await_stored(now_us, StoredFor::Nobody, event);
    }

    /// Notes that the log was given an event, which it has not stored.
    fn await_stored(&mut self, since_us: u64, source: StoredFor, event: Event) {
        let Event { client, frame, notice } = event;
        self.unstored.push_back(Unstored { source, client, since_us, notice, frame });
    }

    /// Notes that an event was handed out in vain, and may be handed out again from `until_us` on.
    pub(super) fn note_retry(&mut self, group: GroupIndex, item: &Item, until_us: u64) {
        self.retries.insert((group, item.number), (item.tries, until_us));
    }

    /// Notes that a group has settled an event.
    pub(super) fn settle(&mut self, group: GroupIndex, item: &Item) {
        let bytes = item.frame.bytes().len();
        let of_group = &mut self.groups[usize::from(group.0)];
        of_group.in_memory.messages -= 1;
        of_group.in_memory.bytes -= bytes;
        self.changes.push(LogChange::Settle { group, number: item.number, bytes });
    }

    /// The part of what the log reports as free whose room was not released before.
    fn freed_now(&mut self, freed: Credit) -> Credit {
        let known = Credit {
            messages: freed.messages.min(self.released.messages),
            bytes: freed.bytes.min(self.released.bytes),
        };
        self.released.messages -= known.messages;
        self.released.bytes -= known.bytes;
        Credit { messages: freed.messages - known.messages, bytes: freed.bytes - known.bytes }
    }

    /// Whether a group may be handed events.
    fn is_consumed(&self, group: GroupIndex) -> bool {
        self.groups[usize::from(group.0)].mark == Mark::Consumed
    }
}

impl GroupOnDisk {
    fn new(next: MessageNumber) -> Self {
        let in_memory = Credit::default();
        Self {
            next,
            in_memory,
            is_reading: false,
            mark: Mark::Unconsumed,
            unconsumed_since_us: None,
            starting: Vec::new(),
            dropped: BTreeSet::new(),
        }
    }

    fn holds_less_than(&self, part: usize) -> bool {
        self.in_memory.messages < WINDOW_MESSAGES / part
            && self.in_memory.bytes < WINDOW_BYTES / part
    }

    fn take(&mut self, bytes: usize) {
        self.in_memory.messages += 1;
        self.in_memory.bytes += bytes;
    }
}

impl Topic {
    /// Puts an empty topic on disk. Its groups and sinks are those of the log, in their order, and never change.
    pub fn on_disk(mut self, facts: &LogFacts) -> Self {
        let places = (0..).map(GroupIndex);
        let default_group = self.has_default_group.then_some(&mut self.default_group.place);
        let of_groups = self.groups.iter_mut().map(|group| &mut group.place);
        let of_sinks = self.sinks.iter_mut().map(|sink| &mut sink.place);
        let all = default_group.into_iter().chain(of_groups).chain(of_sinks);
        let count = all.zip(places).map(|(place, index)| *place = index).count();
        assert_eq!(count, facts.unsettled.len(), "the groups of the log are those of the topic");
        self.held.room.put_on_disk(facts.held, UNSTORED_MAX);
        self.held.disk = Some(Box::new(OnDisk {
            groups: facts.unsettled.iter().map(|&next| GroupOnDisk::new(next)).collect(),
            has_default_group: self.has_default_group,
            stored: facts.stored,
            unstored: VecDeque::new(),
            unstored_delayed: VecDeque::new(),
            stored_delayed: facts.next_delayed,
            delayed: Credit::default(),
            changes: Vec::new(),
            retries: BTreeMap::new(),
            released: Credit::default(),
        }));
        self.next_number = facts.stored;
        self.is_plain = false;
        self
    }

    /// Whether the topic is on disk.
    pub fn is_on_disk(&self) -> bool {
        self.held.disk.is_some()
    }

    /// Whether events are not stored yet.
    pub fn has_unstored(&self) -> bool {
        self.held
            .disk
            .as_ref()
            .is_some_and(|disk| !disk.unstored.is_empty() || !disk.unstored_delayed.is_empty())
    }

    /// Adds an event that a back end has pushed, if there is room; false if there is none. [`Effect::Stored`] follows,
    /// or the requester is among [`Self::take_late`].
    pub fn offer_stored(
        &mut self,
        now_us: u64,
        event: Event,
        requester: Requester,
        until_ms: u64,
    ) -> bool {
        let has_room = self.take_room(event.frame.bytes().len());
        if has_room {
            self.store(now_us, StoredFor::Push(requester, until_ms), event);
        }
        has_room
    }

    /// Adds an event, which has taken its room.
    pub(super) fn store(&mut self, now_us: u64, source: StoredFor, event: Event) {
        let bytes = event.frame.bytes().len();
        let disk = self.held.disk.as_mut().expect("only topics on disk store events");
        disk.add(now_us, source, event);
        self.next_number.0 += 1;
        self.held.room.note_unstored(bytes);
    }

    /// Takes the back ends whose events were not stored in time.
    pub fn take_late(&mut self, now_ms: u64) -> Vec<Requester> {
        let Some(disk) = &mut self.held.disk else { return Vec::new() };
        let mut late = Vec::new();
        let events = disk.unstored.iter_mut().map(|unstored| &mut unstored.source);
        let delayed = disk.unstored_delayed.iter_mut().map(|unstored| &mut unstored.source);
        for source in events.chain(delayed) {
            if let StoredFor::Push(requester, until_ms) = *source
                && until_ms <= now_ms
            {
                late.push(requester);
                *source = StoredFor::Nobody;
            }
        }
        late
    }

    /// Lets a consumer compete once the log says that its group has consumers.
    pub(super) fn start_on_disk(&mut self, now_us: u64, id: BackendId) {
        let Some(disk) = &mut self.held.disk else { return };
        for group in all_groups(&mut self.default_group, disk.has_default_group, &mut self.groups) {
            let of_group = &mut disk.groups[usize::from(group.place.0)];
            match of_group.mark {
                Mark::Consumed => group.start(now_us, id),
                _ if group.has_joined(id) => of_group.starting.push(id),
                _ => {}
            }
        }
    }

    /// Handles the news of the log. `unix_start_us` is the Unix time at 0 on the shard's clock, in microseconds.
    pub fn handle_news(&mut self, now_us: u64, unix_start_us: u64, news: LogNews) {
        for _ in 0..news.stored {
            self.take_stored(now_us);
        }
        self.take_delayed_news(unix_start_us, news.stored_delayed, news.recovered);
        for group in news.marked {
            self.take_mark(now_us, group);
        }
        for read in news.read {
            let place = usize::from(read.group.0);
            for event in read.events {
                self.take_read(now_us, unix_start_us, place, event);
            }
            let of_group = &mut self.disk_mut().groups[place];
            of_group.next = of_group.next.max(read.next);
            of_group.is_reading = false;
            of_group.dropped.clear();
        }
        let freed = self.disk_mut().freed_now(news.freed);
        self.held.room.release_stored(freed);
        self.held.grant_to_asking();
        self.note_lack_of_room();
    }

    /// Drops a stored event for the groups that have not got it from the log. Its room is released at once, unless a
    /// group has the event, or it is on the way to the dead topic.
    pub(super) fn drop_stored(&mut self, number: MessageNumber, client: ClientId, bytes: usize) {
        let is_held = self.all_groups().any(|group| group.has(client, number))
            || self.sinks.iter().any(|sink| sink.has(number))
            || self.held.dead_numbers().any(|dead| dead == number);
        let disk = self.disk_mut();
        for (group, of_group) in (0..).map(GroupIndex).zip(&mut disk.groups) {
            if of_group.next <= number {
                disk.changes.push(LogChange::Settle { group, number, bytes });
                if of_group.is_reading {
                    of_group.dropped.insert(number);
                }
            }
        }
        if !is_held {
            let dropped = Credit { messages: 1, bytes };
            disk.released.messages += 1;
            disk.released.bytes += bytes;
            self.held.room.release_stored(dropped);
        }
    }

    /// Takes the first event that was not stored and is now.
    fn take_stored(&mut self, now_us: u64) {
        let disk = self.held.disk.as_mut().expect("only topics on disk have logs");
        let Some(Unstored { source, client, since_us, notice, frame }) = disk.unstored.pop_front()
        else {
            return;
        };
        let number = disk.stored;
        disk.stored.0 += 1;
        let bytes = frame.bytes().len();
        self.held.room.note_stored(bytes);
        match source {
            StoredFor::Shard(shard) => self.held.top_up(shard),
            StoredFor::Push(requester, _) => self.held.effects.push_back(Effect::Stored(requester)),
            StoredFor::Burial(burial) => self.held.effects.push_back(Effect::DeadStored(burial)),
            StoredFor::Nobody => {}
        }
        match notice {
            EventNotice::Nothing => {}
            EventNotice::Left => self.held.effects.push_back(Effect::EventLeft(client)),
            EventNotice::Stored(receipt) => {
                self.held.effects.push_back(Effect::EventStored(client, receipt));
            }
        }
        let since_us = since_us as i64;
        let item =
            Item { number, since_us, is_redelivered: false, tries: 0, is_watched: false, frame };
        for place in 0..self.disk_mut().groups.len() {
            let of_group = &mut self.disk_mut().groups[place];
            if of_group.next == number && of_group.holds_less_than(1) {
                of_group.next.0 += 1;
                of_group.take(bytes);
                self.push_to(now_us, place, client, item.clone());
            }
        }
    }

    fn take_read(&mut self, now_us: u64, unix_start_us: u64, place: usize, event: StoredEvent) {
        let StoredEvent { number, client, unix_ms, is_redelivered, failed, frame } = event;
        let since_us = (unix_ms * 1000).cast_signed().saturating_sub_unsigned(unix_start_us);
        let until_us = failed.until_ms.saturating_mul(1000).saturating_sub(unix_start_us);
        let is_aged = self.is_aged(now_us, since_us);
        let of_group = &mut self.disk_mut().groups[place];
        if of_group.dropped.contains(&number) {
            return;
        }
        if is_aged {
            // Where the event waits already, it counts when it is dropped there.
            let waits = self.all_groups().any(|group| group.lanes.has(client, number))
                || self.sinks.iter().any(|sink| sink.waits(number));
            self.aged += u64::from(!waits);
            return self.drop_stored(number, client, frame.bytes().len());
        }
        of_group.take(frame.bytes().len());
        let (tries, is_watched) = (failed.tries, false);
        let is_redelivered = is_redelivered || tries > 0;
        let item = Item { number, since_us, is_redelivered, tries, is_watched, frame };
        match self.group_at(place) {
            Some(group) if until_us > now_us => group.push_delayed(client, item, until_us),
            _ => self.push_to(now_us, place, client, item),
        }
    }

    /// Adds a stored event to the group at a place of the log.
    fn push_to(&mut self, now_us: u64, place: usize, client: ClientId, item: Item) {
        let has_default_group = self.disk_mut().has_default_group;
        let first_sink = self.groups.len() + usize::from(has_default_group);
        if let Some(sink) = place.checked_sub(first_sink) {
            return self.sinks[sink].push(client, item);
        }
        let groups = all_groups(&mut self.default_group, has_default_group, &mut self.groups);
        if let Some(group) = groups.into_iter().nth(place) {
            group.push(&mut self.held, now_us, client, item);
        }
    }

    /// The group at a place of the log, unless that is a sink.
    fn group_at(&mut self, place: usize) -> Option<&mut super::group::Group> {
        let has_default_group = self.disk_mut().has_default_group;
        all_groups(&mut self.default_group, has_default_group, &mut self.groups)
            .into_iter()
            .nth(place)
    }

    fn take_mark(&mut self, now_us: u64, group: GroupIndex) {
        let of_group = &mut self.disk_mut().groups[usize::from(group.0)];
        let Mark::Changing { to_consumed } = of_group.mark else { return };
        of_group.mark = if to_consumed { Mark::Consumed } else { Mark::Unconsumed };
        if to_consumed {
            for id in std::mem::take(&mut of_group.starting) {
                self.start_on_disk(now_us, id);
            }
        }
    }

    pub(super) fn disk_mut(&mut self) -> &mut OnDisk {
        self.held.disk.as_mut().expect("only topics on disk have logs")
    }

    /// Derives what the log is to be told and to read from the state of the groups. Returns whether
    /// [`Self::take_log_changes`] has some.
    pub fn update_log(&mut self) -> bool {
        self.note_consumers(None);
        self.note_windows();
        self.held.disk.as_ref().is_some_and(|disk| disk.has_changes())
    }

    /// Takes the changes for the log.
    pub fn take_log_changes(&mut self) -> Vec<LogChange> {
        let Some(disk) = &mut self.held.disk else { return Vec::new() };
        let retries = std::mem::take(&mut disk.retries).into_iter();
        let retry = |((group, number), (tries, until_us))| LogChange::Retry {
            group,
            number,
            tries,
            until_us,
        };
        disk.changes.extend(retries.map(retry));
        std::mem::take(&mut disk.changes)
    }

    /// Tells the log which groups have got their first consumer. Given the time, also which have had none for long enough.
    pub(super) fn note_consumers(&mut self, now_us: Option<u64>) {
        let Some(disk) = &mut self.held.disk else { return };
        let groups = all_groups(&mut self.default_group, disk.has_default_group, &mut self.groups);
        let is_consumed = |group: &super::group::Group| {
            // Who has taken a message may not be connected.
            group.consumers.len() > 0 || !group.taken.is_empty()
        };
        let of_groups = groups.into_iter().map(|group| (group.place, is_consumed(group)));
        let of_sinks = self.sinks.iter().map(|sink| (sink.place, sink.has_begun()));
        for (group, is_consumed) in of_groups.chain(of_sinks) {
            let of_group = &mut disk.groups[usize::from(group.0)];
            match of_group.mark {
                Mark::Unconsumed if is_consumed => {}
                Mark::Consumed if !is_consumed => {
                    let Some(now_us) = now_us else { continue };
                    let since_us = *of_group.unconsumed_since_us.get_or_insert(now_us);
                    if now_us.saturating_sub(since_us) < UNCONSUMED_US {
                        continue;
                    }
                }
                Mark::Unconsumed | Mark::Consumed | Mark::Changing { .. } => {
                    of_group.unconsumed_since_us = None;
                    continue;
                }
            }
            of_group.unconsumed_since_us = None;
            of_group.mark = Mark::Changing { to_consumed: is_consumed };
            let below = of_group.next;
            disk.changes.push(LogChange::Consume { group, is_consumed, below });
        }
    }

    /// Reads more for groups that have settled half of what they hold in memory.
    fn note_windows(&mut self) {
        let Some(disk) = &mut self.held.disk else { return };
        for (index, group) in (0..).map(GroupIndex).zip(&mut disk.groups) {
            if !group.is_reading && group.next < disk.stored && group.holds_less_than(2) {
                group.is_reading = true;
                disk.changes.push(LogChange::Read { group: index, from: group.next });
            }
        }
    }

    /// Whether a sink may be handed events: the log knows that there is a sink.
    pub(super) fn is_open(held: &Held, sink: GroupIndex) -> bool {
        held.disk.as_ref().is_none_or(|disk| disk.is_consumed(sink))
    }

    /// Events that a group has not got from the log.
    pub(super) fn unread(&self, group: GroupIndex) -> u64 {
        let disk = self.held.disk.as_ref();
        disk.map_or(0, |disk| disk.stored.0 - disk.groups[usize::from(group.0)].next.0)
    }

    /// Asserts the invariants of a topic on disk.
    pub(super) fn check_disk(&self, disk: &OnDisk) {
        let unstored = disk.unstored.iter().map(|unstored| unstored.frame.bytes().len());
        let delayed = disk.unstored_delayed.iter().map(|delayed| delayed.event.frame.bytes().len());
        let delayed = Credit { messages: delayed.len(), bytes: delayed.sum() };
        let messages = unstored.len() + delayed.messages;
        let unstored = Credit { messages, bytes: unstored.sum::<usize>() + delayed.bytes };
        assert_eq!(self.held.room.unstored(), unstored, "events that are not stored");
        let stored = self.delayed.sum();
        let messages = stored.messages + delayed.messages;
        let delayed = Credit { messages, bytes: stored.bytes + delayed.bytes };
        assert_eq!(disk.delayed, delayed, "delayed events");
        let next_number = disk.stored.0 + disk.unstored.len() as u64;
        assert_eq!(self.next_number, MessageNumber(next_number));
        for group in self.all_groups() {
            let mut in_memory = group.check(disk.stored);
            if group.name.is_some() || disk.has_default_group {
                let dead = self.held.dead_of(group.place);
                in_memory.messages += dead.messages;
                in_memory.bytes += dead.bytes;
                assert_eq!(disk.groups[usize::from(group.place.0)].in_memory, in_memory);
            }
        }
        for sink in &self.sinks {
            let in_memory = disk.groups[usize::from(sink.place.0)].in_memory;
            assert_eq!(in_memory.messages, sink.backlog());
        }
    }
}

/// The groups of a topic on disk, in the order of the log.
fn all_groups<'a>(
    default_group: &'a mut super::group::Group,
    has_default_group: bool,
    groups: &'a mut [super::group::Group],
) -> impl IntoIterator<Item = &'a mut super::group::Group> {
    has_default_group.then_some(default_group).into_iter().chain(groups)
}
