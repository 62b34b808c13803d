//! The log of one topic on disk: what its files contain, how it is recovered, and which files may go. Pure: a
//! [`Log`] says which files to write and read ([`Task`], [`Read`]), and is told what came of it.
//!
//! A log is a sequence of *segments*, one file each. A segment begins with a header and a *checkpoint*, which
//! holds the state of all groups. Events, acknowledgements and the other records follow, in *batches*. A batch is
//! written and synced before the next one is written, and an event is *stored* once its batch is synced.
//! `docs/internals/topic-log.md` draws the format.
//!
//! ```text
//! header │ checkpoint │ batch │ batch │ …           00000000000000000001.log, full
//! header │ checkpoint │ batch │ batch ┊ torn        00000000000000000002.log, the last one
//! ```
//!
//! - `format.rs`: the bytes. `settled.rs`: the events that a group has settled.
//! - `segments.rs`: the files of a log. `pending.rs`: records that are not written yet.
//! - `recovery.rs`: builds a log from its files. `reader.rs`: reads events back.
//! - `delayed.rs`: delayed events. `check.rs`: checks a whole segment.
//! - `keeper.rs`: a log in use, between the topic's home and the files.
//!
//! # What may be lost
//!
//! A crash leaves the last batch incomplete at worst. Recovery cuts it off, since nobody was told that its events are
//! stored. A batch that is invalid although valid ones follow was damaged after it was written: recovery refuses
//! such a log, and names file and offset. In the segments before the last one, damage is found when they are read.
//!
//! The delay of a group's event, and how often it was handed out in vain, are on disk. They are not worth a sync of their own, so
//! the latest of them may be forgotten in a crash.

mod check;
mod delayed;
mod format;
mod keeper;
mod pending;
mod reader;
mod recovery;
mod segments;
mod settled;
#[cfg(test)]
pub(in crate::queue) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::address::ClientId;
use crate::message::{Credit, FailedTries, MessageNumber};
pub use crate::message::{GroupIndex, LogId, StoredEvent};
pub use check::{SegmentContents, check_segment};
use delayed::DelayedEvents;
use format::SEGMENT_HEAD_BYTES;
pub use keeper::LogKeeper;
use pending::{Pending, SealedBatch};
pub use reader::Reader;
pub use recovery::{Recovered, Recovery};
use segments::{Segment, Segments};
use settled::Settled;

/// The most bytes of records in a batch, unless a single record is larger. Bounds what one sync waits for, and
/// what one read returns.
const BATCH_BYTES: usize = 1 << 20;

/// The most bytes of a batch that recovery believes in. The largest event has 64 MiB, and a checkpoint is smaller.
const BATCH_BYTES_MAX: usize = 80 << 20;

/// The most bytes of records of events that were handed out in vain, and that wait to be written. Further ones are left to
/// the checkpoint of the next segment. Small in tests, which reach it then.
const RETRIES_BYTES_MAX: usize = if cfg!(test) { 256 } else { 1 << 20 };

/// The number of a segment. Later segments have higher numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The name of the segment's file.
    pub fn file_name(self) -> String {
        format!("{:020}.log", self.0)
    }

    /// The segment of a file with this name, unless it is another file.
    pub fn of_file_name(name: &str) -> Option<Self> {
        let digits = name.strip_suffix(".log").filter(|digits| digits.len() == 20)?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { digits.parse().ok().map(Self) } else { None }
    }
}

/// A change of the files of a log. Once it has been carried out, [`Log::handle_done`] is to be called. If it fails,
/// [`Log::poll_task`] returns it again, with the same bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Task<'a> {
    /// Create a file or replace it, write the bytes, sync the file, then sync the directory.
    Create(SegmentNumber, &'a [u8]),
    /// Write the bytes at the offset, and sync the file.
    Append(SegmentNumber, u64, &'a [u8]),
    /// Cut the file off at the offset, and sync the file.
    Truncate(SegmentNumber, u64),
    /// Remove the file. It does not matter if it comes back after a crash.
    Remove(SegmentNumber),
}

/// A part of a segment to read. A file that ends earlier yields fewer bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// The segment.
    pub segment: SegmentNumber,
    /// The offset in the file.
    pub at: u64,
    /// The number of bytes.
    pub length: usize,
}

/// A part of a log that is not what was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentNumber,
    /// The offset in the file.
    pub at: u64,
    /// The damage, for people.
    pub why: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: offset {}: {}", self.segment.file_name(), self.at, self.why)
    }
}

impl From<Damage> for std::io::Error {
    fn from(damage: Damage) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, damage.to_string())
    }
}

/// The events of a group that may have been handed out in a run of the node that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HandedOut {
    /// Events below this number.
    Below(MessageNumber),
    /// All events: the group has consumers.
    Any,
}

/// A group, as the log keeps it.
#[derive(Clone, Debug)]
struct LogGroup {
    // None: the default group.
    name: Option<Arc<str>>,
    settled: Settled,
    // Unsettled events that were handed out in vain. They were in memory, so the topic bounds their number.
    failed: BTreeMap<MessageNumber, FailedTries>,
    handed_out: HandedOut,
    // Events below this number were recovered, and may have been handed out before.
    redelivered_below: MessageNumber,
}

/// The log of one topic.
#[derive(Debug)]
pub struct Log {
    id: LogId,
    topic: Box<str>,
    segment_bytes: u64,
    groups: Vec<LogGroup>,
    segments: Segments,
    // Below this number, events are stored. pending.first() == stored while no batch is being written.
    stored: MessageNumber,
    // What the events hold that not every group has settled, as the batches in the files say.
    // Delayed events too.
    held: Credit,
    delayed: DelayedEvents,
    pending: Pending,
    writing: Option<Writing>,
    // The next batch begins a segment, because the groups have changed.
    must_begin_segment: bool,
    // Events that were handed out in vain have no record: a checkpoint is to tell of them.
    has_unrecorded_retries: bool,
    // The last segment has nothing but its checkpoint. A batch follows, however long the checkpoint is.
    is_segment_new: bool,
    // The last write has failed.
    is_failing: bool,
}

/// A change that is being carried out, or has failed and is tried again.
#[derive(Debug)]
enum Writing {
    Segment(SegmentNumber, Vec<u8>),
    Batch(SealedBatch),
}

/// The number of events that are stored by a change of the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewlyStored {
    /// Events with numbers, also those that were delayed before.
    pub events: u64,
    /// Delayed events.
    pub delayed: u64,
}

/// The state of a group after recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFacts {
    /// The name; `None`: the default group.
    pub name: Option<Arc<str>>,
    /// Events that the group has not settled.
    pub backlog: u64,
}

impl Log {
    /// A log without files and groups. [`Self::set_groups`] is called first.
    pub fn new(id: LogId, topic: &str, segment_bytes: u64) -> Self {
        Self {
            id,
            topic: topic.into(),
            segment_bytes,
            groups: Vec::new(),
            segments: Segments::default(),
            stored: MessageNumber(0),
            held: Credit::default(),
            delayed: DelayedEvents::default(),
            pending: Pending::new(MessageNumber(0)),
            writing: None,
            must_begin_segment: true,
            has_unrecorded_retries: false,
            is_segment_new: false,
            is_failing: false,
        }
    }

    /// Gives the log these groups; `None` is the default group. A new group gets the events from now on. What only a
    /// removed group had not settled is released. Returns removed groups. To be called before anything else.
    pub fn set_groups(&mut self, names: &[Option<Arc<str>>]) -> Vec<Option<Arc<str>>> {
        let next = self.stored;
        let mut before = std::mem::take(&mut self.groups);
        let is_same = before.iter().map(|group| &group.name).eq(names);
        let was_empty = before.is_empty();
        for name in names {
            let at = before.iter().position(|group| group.name == *name);
            let group = at.map(|at| before.remove(at));
            let group = group.unwrap_or_else(|| LogGroup::new(name.clone(), next));
            self.groups.push(group);
        }
        if !is_same && !was_empty {
            self.must_begin_segment = true;
            self.fit_held();
        }
        before.into_iter().map(|group| group.name).collect()
    }

    /// The identity of the log.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// The name of the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// The events that are stored have lower numbers.
    pub fn stored(&self) -> MessageNumber {
        self.stored
    }

    /// Events that not every group has settled, and delayed events, with the bytes of their frames. Without those that
    /// are not written yet.
    pub fn held(&self) -> Credit {
        self.held
    }

    /// The size of all files together, in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.segments.bytes()
    }

    /// The groups, and what they have not settled.
    pub fn group_facts(&self) -> impl Iterator<Item = GroupFacts> {
        self.groups.iter().map(|group| {
            let backlog = group.settled.unsettled_below(self.stored);
            GroupFacts { name: group.name.clone(), backlog }
        })
    }

    /// Adds an event. It is stored once [`Self::stored`] has passed its number, which is returned.
    pub fn append(&mut self, client: ClientId, unix_ms: u64, json: &[u8]) -> MessageNumber {
        self.pending.add_event(client, unix_ms, json)
    }

    /// Notes that a group has settled a stored event, whose frame has `bytes` bytes. Returns whether every
    /// group has settled it now.
    pub fn settle(&mut self, group: GroupIndex, number: MessageNumber, bytes: usize) -> bool {
        let of_group = &mut self.groups[usize::from(group.0)];
        if number >= self.stored || !of_group.settled.add(number) {
            return false;
        }
        of_group.failed.remove(&number);
        let is_free = self.groups.iter().all(|group| group.settled.contains(number));
        let freed = if is_free { Credit { messages: 1, bytes } } else { Credit::default() };
        self.pending.add_settled(group, number, freed);
        is_free
    }

    /// Notes that a stored event was handed out to a group in vain. The number of tries grows each time.
    pub fn note_retry(&mut self, group: GroupIndex, number: MessageNumber, failed: FailedTries) {
        let of_group = &mut self.groups[usize::from(group.0)];
        if number >= self.stored || of_group.settled.contains(number) {
            return;
        }
        of_group.note_failed(number, failed);
        match self.pending.retry_bytes() < RETRIES_BYTES_MAX {
            true => self.pending.add_retry(group, number, failed),
            false => self.has_unrecorded_retries = true,
        }
    }

    /// Notes that a group has consumers from now on, or has none any more. Before its first consumer is handed
    /// anything, this has to be written: [`Self::is_written`]. `below`: the group was handed no later events.
    pub fn set_consumed(&mut self, group: GroupIndex, is_consumed: bool, below: MessageNumber) {
        let of_group = &mut self.groups[usize::from(group.0)];
        let below = below.max(of_group.redelivered_below);
        of_group.handed_out = if is_consumed { HandedOut::Any } else { HandedOut::Below(below) };
        self.pending.add_handed_out(group, of_group.handed_out);
    }

    /// Whether all that was added is in the files, and synced.
    pub fn is_written(&self) -> bool {
        self.writing.is_none() && self.pending.is_empty() && !self.has_unrecorded_retries
    }

    /// Whether events or changes of consumers wait to be written. Acknowledgements may wait for more of them.
    pub fn is_urgent(&self) -> bool {
        self.writing.is_some() || self.pending.is_urgent()
    }

    /// Events and bytes that are not written yet, the batch that is being written included.
    pub fn unwritten_bytes(&self) -> usize {
        let writing = match &self.writing {
            Some(Writing::Batch(batch)) => batch.bytes.len(),
            Some(Writing::Segment(..)) | None => 0,
        };
        writing + self.pending.bytes()
    }

    /// The next change of the files. Files are removed once the acknowledgements of their events are written, or while
    /// writing fails, since the disk may be full.
    pub fn poll_task(&mut self) -> Option<Task<'_>> {
        let is_next = self.segments.cut.is_none() && self.segments.removable.is_none();
        // The number of a leftover is used again, so that goes first.
        let has_leftovers = !self.segments.leftovers.is_empty();
        if is_next && (has_leftovers || self.is_failing || self.is_written()) {
            self.segments.find_removable(&self.groups);
        }
        if let Some((segment, length)) = self.segments.cut {
            return Some(Task::Truncate(segment, length));
        }
        if let Some(segment) = self.segments.removable {
            return Some(Task::Remove(segment));
        }
        if self.writing.is_none() {
            self.writing = self.next_write();
        }
        Some(match self.writing.as_ref()? {
            Writing::Segment(segment, bytes) => Task::Create(*segment, bytes),
            Writing::Batch(batch) => {
                let (number, segment) = self.segments.last().expect("a segment is begun first");
                Task::Append(number, segment.bytes, &batch.bytes)
            }
        })
    }

    /// Notes that the task of the last [`Self::poll_task`] was carried out. Returns what is stored by that.
    pub fn handle_done(&mut self) -> NewlyStored {
        if self.segments.cut.take().is_some() || self.segments.remove_removable() {
            return NewlyStored::default();
        }
        self.is_failing = false;
        match self.writing.take() {
            Some(Writing::Segment(number, bytes)) => {
                self.must_begin_segment = false;
                self.is_segment_new = true;
                self.segments.begin(number, self.stored, bytes.len() as u64);
                NewlyStored::default()
            }
            Some(Writing::Batch(batch)) => {
                self.is_segment_new = false;
                self.segments.extend(batch.events, batch.bytes.len() as u64);
                self.stored.0 += batch.events;
                self.held.messages += batch.added.messages;
                self.held.bytes += batch.added.bytes;
                self.held.messages = self.held.messages.saturating_sub(batch.freed.messages);
                self.held.bytes = self.held.bytes.saturating_sub(batch.freed.bytes);
                if self.held.messages == 0 {
                    // The bytes may have been an estimate.
                    self.held.bytes = 0;
                }
                let delayed = batch.delayed.len() as u64;
                self.delayed.apply(batch.delayed, &batch.due);
                NewlyStored { events: batch.events, delayed }
            }
            None => NewlyStored::default(),
        }
    }

    /// Notes that the task of the last [`Self::poll_task`] has failed. It is tried again.
    pub fn handle_failed(&mut self) {
        self.is_failing = true;
    }

    fn next_write(&mut self) -> Option<Writing> {
        let is_full = |(_, segment): (_, &Segment)| {
            segment.bytes >= self.segment_bytes && !self.is_segment_new
        };
        if self.pending.is_empty() && !self.has_unrecorded_retries {
            return None;
        }
        // A batch follows each new segment while there is one, whatever is handed out in vain meanwhile.
        let needs_checkpoint =
            self.has_unrecorded_retries && (!self.is_segment_new || self.pending.is_empty());
        let last = self.segments.last();
        if self.must_begin_segment || needs_checkpoint || last.is_none_or(is_full) {
            self.has_unrecorded_retries = false;
            let number = self.segments.next_number();
            return Some(Writing::Segment(number, self.first_bytes(number)));
        }
        self.pending.seal().map(Writing::Batch)
    }

    /// The header and the checkpoint of a new segment.
    fn first_bytes(&self, number: SegmentNumber) -> Vec<u8> {
        let mut out = Vec::with_capacity(SEGMENT_HEAD_BYTES + 1024);
        format::put_segment_head(&mut out, number, self.stored, self.id, &self.topic);
        let start = format::begin_batch(&mut out, self.stored);
        format::put_held(&mut out, self.held);
        format::put_segments(&mut out, self.segments.iter());
        for group in &self.groups {
            format::put_group(&mut out, group);
        }
        for (index, group) in (0..).map(GroupIndex).zip(&self.groups) {
            for (&number, &failed) in &group.failed {
                format::put_retry(&mut out, index, number, failed);
            }
        }
        self.delayed.iter().for_each(|event| format::put_delayed(&mut out, event));
        format::end_batch(&mut out, start);
        out
    }

    /// Counts the messages held anew, after groups or files have gone, and estimates their bytes from that. Returns false
    /// if the count was right.
    fn fit_held(&mut self) -> bool {
        let held = settled::held_below(self.stored, self.groups.iter().map(|g| &g.settled))
            + self.delayed.iter().len() as u64;
        let before = self.held.messages.max(1) as u128;
        let bytes = self.held.bytes as u128 * u128::from(held) / before;
        let is_wrong = held as usize != self.held.messages;
        if is_wrong {
            self.held = Credit { messages: held as usize, bytes: bytes as usize };
        }
        is_wrong
    }
}

impl LogGroup {
    /// A group that gets the events from this number on.
    fn new(name: Option<Arc<str>>, from: MessageNumber) -> Self {
        let settled = Settled::below(from);
        let (failed, handed_out) = (BTreeMap::new(), HandedOut::Below(from));
        Self { name, settled, failed, handed_out, redelivered_below: MessageNumber(0) }
    }

    /// Notes the failed tries of an event, unless more are known: a checkpoint tells of tries whose records follow it.
    fn note_failed(&mut self, number: MessageNumber, failed: FailedTries) {
        let known = self.failed.entry(number).or_insert(failed);
        if failed.tries >= known.tries {
            *known = failed;
        }
    }

    /// Notes that the events from `first` to before `end` are settled.
    fn settle(&mut self, first: MessageNumber, end: MessageNumber) {
        self.settled.add_range(first, end);
        while let Some((&number, _)) = self.failed.range(first..end.max(first)).next() {
            self.failed.remove(&number);
        }
    }
}
