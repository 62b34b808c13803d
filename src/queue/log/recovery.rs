//! Builds a log from its files.
//!
//! Only the last segment is read: its checkpoint tells the state before it, and its records what has happened
//! since. So a start takes as long with a large backlog as with a small one.

use std::collections::BTreeMap;

use super::format::{self, BATCH_MAGIC, Batch, DelayedRecord, Parsed, Record, SegmentHead};
use super::pending::Pending;
use super::reader::{CUT_OFF, INVALID, MISSING, NOT_DELAYED, UNKNOWN};
use super::segments::Segment;
use super::settled::{Settled, held_below};
use super::{
    BATCH_BYTES_MAX, Damage, GroupIndex, HandedOut, Log, LogGroup, LogId, Read, SegmentNumber,
};
use crate::message::{Credit, DelayedEvent, MessageNumber};
use crate::protocol::frame::{self, Frame, Kind};

/// The bytes of one read.
const READ_BYTES: usize = 1 << 20;

/// A log that was recovered. [`Log::set_groups`] is called first.
#[derive(Debug)]
pub struct Recovered {
    /// The log.
    pub log: Log,
    /// Bytes at the end of the last file that were being written when the last run of the node ended.
    pub torn_bytes: u64,
    /// Events that a group had not settled, and whose file is gone.
    pub missing: u64,
    /// Whether the bytes held are an estimate: files have gone, or a segment was begun, before the acknowledgements of
    /// their events were written.
    pub is_estimated: bool,
}

/// A recovery in progress.
#[derive(Debug)]
pub struct Recovery {
    // Of a log without files.
    new_id: LogId,
    topic: Box<str>,
    segment_bytes: u64,
    // The files, and their sizes.
    files: BTreeMap<SegmentNumber, u64>,
    // Later files, whose creation was not completed.
    unfinished: Vec<SegmentNumber>,
    // What was read of the last file and is not parsed, and its offset.
    buffer: Vec<u8>,
    at: u64,
    // Where the first invalid batch begins.
    invalid: Option<Damage>,
    log: Option<Log>,
}

impl Recovery {
    /// Begins to recover a topic's log from these files and their sizes. If there are none, a log of this id begins.
    pub fn new(
        new_id: LogId,
        topic: &str,
        segment_bytes: u64,
        files: impl IntoIterator<Item = (SegmentNumber, u64)>,
    ) -> Self {
        let mut files: BTreeMap<_, _> = files.into_iter().collect();
        // The last file may have been created, and nothing written to it.
        let empty = files.last_entry().filter(|last| *last.get() == 0);
        let unfinished = empty.map(|last| last.remove_entry().0).into_iter().collect();
        Self {
            new_id,
            topic: topic.into(),
            segment_bytes,
            files,
            unfinished,
            buffer: Vec::new(),
            at: 0,
            invalid: None,
            log: None,
        }
    }

    /// The next part to read; `None` once [`Self::finish`] may be called.
    pub fn poll_read(&self) -> Option<Read> {
        let (&segment, &bytes) = self.files.last_key_value()?;
        let at = self.at + self.buffer.len() as u64;
        let length = (bytes.saturating_sub(at)).min(READ_BYTES as u64) as usize;
        (length > 0).then_some(Read { segment, at, length })
    }

    /// Takes the bytes of the last [`Self::poll_read`], which may be fewer than it asked for.
    ///
    /// # Errors
    /// The log is damaged.
    pub fn handle_read(&mut self, bytes: &[u8]) -> Result<(), Damage> {
        let (&segment, length) = self.files.iter_mut().next_back().expect("a file was read");
        self.buffer.extend_from_slice(bytes);
        if bytes.is_empty() {
            *length = self.at + self.buffer.len() as u64;
        }
        let is_end = self.at + self.buffer.len() as u64 >= *length;
        if self.log.is_none() {
            self.parse_start(segment, is_end)?;
        }
        if self.log.is_some() && self.invalid.is_none() {
            self.parse(segment, is_end)?;
        }
        match &self.invalid {
            Some(damage) if is_end => self.judge(damage.clone()),
            // What was being written is one batch.
            Some(damage) if self.buffer.len() > BATCH_BYTES_MAX => Err(damage.clone()),
            _ => Ok(()),
        }
    }

    /// The recovered log.
    ///
    /// # Errors
    /// The log is damaged.
    pub fn finish(self) -> Result<Recovered, Damage> {
        let torn_bytes = self.buffer.len() as u64;
        let Some(mut log) = self.log else {
            // Before a file is complete, no other is removed: the one before has to be there.
            let last = self.files.last_key_value().map(|(&segment, _)| segment);
            let first = SegmentNumber(1);
            if let Some(segment) = last.or(self.unfinished.last().copied().filter(|&n| n > first)) {
                return Err(Damage { segment, at: 0, why: "the file is empty" });
            }
            let mut log = Log::new(self.new_id, &self.topic, self.segment_bytes);
            log.segments.leftovers = self.unfinished;
            return Ok(Recovered { log, torn_bytes: 0, missing: 0, is_estimated: false });
        };
        let (last, of) = log.segments.last().expect("the last file is a segment");
        log.segments.cut = Some((last, of.bytes));
        log.segments.leftovers = self.unfinished;
        let known = |number: &SegmentNumber| log.segments.get(*number).is_some();
        let unknown: Vec<_> = self.files.keys().copied().filter(|n| !known(n)).collect();
        log.segments.leftovers.extend(unknown);
        let missing = log.forget_missing(&self.files);
        let is_estimated = log.fit_held();
        for group in &mut log.groups {
            group.redelivered_below = match group.handed_out {
                HandedOut::Any => log.stored,
                HandedOut::Below(number) => number,
            };
            group.handed_out = HandedOut::Below(group.redelivered_below);
        }
        log.pending = Pending::new(log.stored);
        Ok(Recovered { log, torn_bytes, missing, is_estimated })
    }

    /// Reads the head of the last file and its checkpoint.
    fn parse_start(&mut self, segment: SegmentNumber, is_end: bool) -> Result<(), Damage> {
        let torn = |at, why| Damage { segment, at, why };
        match format::segment_head(&self.buffer, segment, &self.topic) {
            SegmentHead::Foreign(why) => Err(torn(0, why)),
            SegmentHead::Torn => {
                self.invalid = Some(torn(0, "the head of the file is damaged"));
                Ok(())
            }
            SegmentHead::Valid { first, log, end } => {
                match format::parse_batch(&self.buffer[end..]) {
                    Parsed::Batch(batch) => {
                        let log = Log::new(log, &self.topic, self.segment_bytes);
                        let log = begun(log, segment, first, &batch);
                        let mut log = log.map_err(|why| torn(end as u64, why))?;
                        let bytes = end + batch.bytes;
                        log.segments.extend(0, bytes as u64);
                        self.log = Some(log);
                        self.skip(bytes);
                        Ok(())
                    }
                    Parsed::NeedsBytes(_) if !is_end => Ok(()),
                    Parsed::NeedsBytes(_) | Parsed::Invalid => {
                        self.invalid = Some(torn(end as u64, INVALID));
                        Ok(())
                    }
                }
            }
        }
    }

    /// Applies the batches that are there.
    fn parse(&mut self, segment: SegmentNumber, is_end: bool) -> Result<(), Damage> {
        let log = self.log.as_mut().expect("the checkpoint was read");
        let mut offset = 0;
        while offset < self.buffer.len() {
            let damage = |why| Damage { segment, at: self.at + offset as u64, why };
            match format::parse_batch(&self.buffer[offset..]) {
                Parsed::Batch(batch) => {
                    log.apply(&batch).map_err(damage)?;
                    offset += batch.bytes;
                }
                Parsed::NeedsBytes(_) if !is_end => break,
                Parsed::NeedsBytes(_) => {
                    self.invalid = Some(damage(CUT_OFF));
                    break;
                }
                Parsed::Invalid => {
                    self.invalid = Some(damage(INVALID));
                    break;
                }
            }
        }
        log.segments.extend(0, offset as u64);
        self.skip(offset);
        Ok(())
    }

    fn skip(&mut self, bytes: usize) {
        self.buffer.drain(..bytes);
        self.at += bytes as u64;
    }

    /// Decides what the invalid end of the last file is, all of which was read: a write that was not completed, or
    /// damage.
    fn judge(&mut self, damage: Damage) -> Result<(), Damage> {
        let is_torn = self.buffer.len() <= BATCH_BYTES_MAX && !holds_batch(&self.buffer[1..]);
        // A file that another one follows was complete before that was begun.
        if !is_torn || !self.unfinished.is_empty() {
            return Err(damage);
        }
        if self.log.is_none() {
            // Before a file is complete, no other is removed: the one before has to be there.
            if self.files.len() == 1 && damage.segment.0 > 1 {
                return Err(damage);
            }
            self.give_up(damage.segment);
        }
        Ok(())
    }

    /// Ignores the last file, whose creation was not completed.
    fn give_up(&mut self, segment: SegmentNumber) {
        self.files.remove(&segment);
        self.unfinished.push(segment);
        self.buffer.clear();
        (self.at, self.invalid) = (0, None);
    }
}

/// Whether a valid batch begins somewhere in these bytes. A checkpoint does not count: it is written together with the
/// head of its file, and may be there although the head is not.
fn holds_batch(bytes: &[u8]) -> bool {
    let mut places = memchr::memmem::find_iter(bytes, &BATCH_MAGIC);
    places.any(|at| match format::parse_batch(&bytes[at..]) {
        Parsed::Batch(batch) => !matches!(batch.records().next(), Some(Some(Record::Held(_)))),
        Parsed::NeedsBytes(_) | Parsed::Invalid => false,
    })
}

/// Fills an empty log with what a checkpoint says. The segment that it begins has no bytes yet.
fn begun(
    mut log: Log,
    segment: SegmentNumber,
    first: MessageNumber,
    checkpoint: &Batch<'_>,
) -> Result<Log, &'static str> {
    log.must_begin_segment = false;
    log.stored = first;
    for record in checkpoint.records() {
        match record.ok_or(UNKNOWN)? {
            Record::Held(held) => log.held = held,
            Record::Segments(segments) => {
                segments.into_iter().for_each(|(number, of)| log.segments.insert(number, of));
            }
            Record::Group(group) => {
                let mut settled = Settled::below(group.lowest);
                group.ranges.iter().for_each(|&(first, end)| settled.add_range(first, end));
                let name = (!group.name.is_empty()).then(|| group.name.into());
                let (handed_out, redelivered_below) = (group.handed_out, MessageNumber(0));
                let failed = BTreeMap::new();
                log.groups.push(LogGroup { name, settled, failed, handed_out, redelivered_below });
            }
            Record::Retry(group, number, failed) => {
                log.group_mut(group)?.note_failed(number, failed);
            }
            Record::Delayed(event) => log.delayed.recover(recovered(&event)),
            Record::Event(_) | Record::Due(..) | Record::Settled { .. } | Record::HandedOut(..) => {
                return Err("the file does not begin with a checkpoint");
            }
        }
    }
    log.segments.insert(segment, Segment { first, end: first, bytes: 0 });
    Ok(log)
}

fn recovered(event: &DelayedRecord<'_>) -> DelayedEvent {
    let DelayedRecord { number, client, due_ms, json } = *event;
    DelayedEvent { number, client, due_ms, frame: Frame::message(Kind::Text, json) }
}

impl Log {
    /// Applies a batch of the last segment.
    fn apply(&mut self, batch: &Batch<'_>) -> Result<(), &'static str> {
        if batch.first != self.stored {
            return Err(MISSING);
        }
        let mut events = 0;
        let (mut added, mut removed) = (Credit::default(), Credit::default());
        for record in batch.records() {
            match record.ok_or(UNKNOWN)? {
                Record::Event(event) => {
                    events += 1;
                    added.messages += 1;
                    added.bytes += frame::message_bytes(event.json.len());
                }
                Record::Delayed(event) => {
                    added.messages += 1;
                    added.bytes += frame::message_bytes(event.json.len());
                    self.delayed.recover(recovered(&event));
                }
                Record::Due(number, _) if self.delayed.end(number) => events += 1,
                Record::Due(..) => return Err(NOT_DELAYED),
                Record::Settled { group, first, end, freed } => {
                    self.group_mut(group)?.settle(first, end);
                    removed.messages += freed.messages;
                    removed.bytes += freed.bytes;
                }
                Record::HandedOut(group, handed_out) => {
                    self.group_mut(group)?.handed_out = handed_out;
                }
                Record::Retry(group, number, failed) => {
                    self.group_mut(group)?.note_failed(number, failed);
                }
                Record::Held(_) | Record::Segments(_) | Record::Group(_) => {
                    return Err("a checkpoint is not at the beginning of its file");
                }
            }
        }
        self.stored.0 += events;
        self.segments.extend(events, 0);
        self.held.messages = (self.held.messages + added.messages).saturating_sub(removed.messages);
        self.held.bytes = (self.held.bytes + added.bytes).saturating_sub(removed.bytes);
        Ok(())
    }

    fn group_mut(&mut self, group: GroupIndex) -> Result<&mut LogGroup, &'static str> {
        self.groups.get_mut(usize::from(group.0)).ok_or("a record names an unknown group")
    }

    /// Counts events as settled whose file is gone: it was removed when all of them were, but their
    /// acknowledgements may not have been synced. Returns how many were unsettled.
    fn forget_missing(&mut self, files: &BTreeMap<SegmentNumber, u64>) -> u64 {
        let segments: Vec<_> = self.segments.iter().map(|(n, segment)| (n, *segment)).collect();
        let before = held_below(self.stored, self.groups.iter().map(|g| &g.settled));
        for (number, segment) in segments.into_iter().filter(|(n, _)| !files.contains_key(n)) {
            for group in &mut self.groups {
                group.settle(segment.first, segment.end);
            }
            self.segments.removable = Some(number);
            self.segments.remove_removable();
        }
        let after = held_below(self.stored, self.groups.iter().map(|g| &g.settled));
        before - after
    }
}
