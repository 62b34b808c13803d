//! The bytes of a segment. All numbers are little-endian.
//!
//! ```text
//! segment  magic 8 │ version 4 │ name length 4 │ segment 8 │ first event 8 │ log 8 │ name │ checksum 4 │ batches …
//! batch    magic 4 │ length 4 │ checksum 4 │ first event 8 │ records …
//! record   type 1 │ length 4 │ content …
//! ```
//!
//! Checksums are CRC-32C. That of a segment covers all before it, that of a batch its other fields and its records.

use super::segments::Segment;
use super::{BATCH_BYTES_MAX, GroupIndex, HandedOut, LogGroup, LogId, SegmentNumber};
use crate::address::ClientId;
use crate::message::{Credit, DelayedEvent, DelayedNumber, FailedTries, MessageNumber};

/// The version of the format. A log of another version is refused.
pub(super) const VERSION: u32 = 1;

/// The head of a segment, without the topic's name.
pub(super) const SEGMENT_HEAD_BYTES: usize = 44;

/// The head of a batch.
pub(super) const BATCH_HEAD_BYTES: usize = 20;

const SEGMENT_MAGIC: &[u8; 8] = b"gridcast";

/// The first byte never occurs in UTF-8, so no event contains something that looks like a batch.
pub(super) const BATCH_MAGIC: [u8; 4] = [0xFF, b'G', b'C', b'B'];

const RECORD_HEAD_BYTES: usize = 5;

const EVENT: u8 = 1;
const SETTLED: u8 = 2;
const HANDED_OUT: u8 = 3;
const HELD: u8 = 4;
const SEGMENTS: u8 = 5;
const GROUP: u8 = 6;
const RETRY: u8 = 7;
const DELAYED: u8 = 8;
const DUE: u8 = 9;

/// A record of a batch.
#[derive(Debug)]
pub(super) enum Record<'a> {
    /// An event. Its number follows from its place: events are numbered without gaps.
    Event(EventRecord<'a>),
    /// A delayed event, which has no number among the events. In a checkpoint too, behind the groups.
    Delayed(DelayedRecord<'a>),
    /// An event that was delayed until now. It counts as an event, and the delayed one is no more.
    Due(DelayedNumber, EventRecord<'a>),
    /// A group has settled the events from `first` to before `end`. `freed`: those that every group has settled now.
    Settled { group: GroupIndex, first: MessageNumber, end: MessageNumber, freed: Credit },
    /// What may have been handed out to a group from now on.
    HandedOut(GroupIndex, HandedOut),
    /// An event was handed out to a group in vain. In a checkpoint too, behind the groups.
    Retry(GroupIndex, MessageNumber, FailedTries),
    /// Checkpoint: what the topic holds.
    Held(Credit),
    /// Checkpoint: the segments before this one.
    Segments(Vec<(SegmentNumber, Segment)>),
    /// Checkpoint: a group. The groups follow in the order of their indices.
    Group(GroupRecord<'a>),
}

/// An event in a batch.
#[derive(Debug)]
pub(super) struct EventRecord<'a> {
    /// The client that sent the event.
    pub client: ClientId,
    /// When the event was appended.
    pub unix_ms: u64,
    /// The event as JSON text.
    pub json: &'a [u8],
}

/// A delayed event in a batch.
#[derive(Debug)]
pub(super) struct DelayedRecord<'a> {
    /// The number among the delayed events.
    pub number: DelayedNumber,
    /// The client in whose place a back end has sent the event.
    pub client: ClientId,
    /// When the event is due.
    pub due_ms: u64,
    /// The event as JSON text.
    pub json: &'a [u8],
}

/// A group in a checkpoint.
#[derive(Debug)]
pub(super) struct GroupRecord<'a> {
    /// The name; empty for the default group.
    pub name: &'a str,
    /// What may have been handed out.
    pub handed_out: HandedOut,
    /// All events below are settled.
    pub lowest: MessageNumber,
    /// Further settled events: first numbers, and the numbers after the ends.
    pub ranges: Vec<(MessageNumber, MessageNumber)>,
}

/// Appends the head of a segment.
pub(super) fn put_segment_head(
    out: &mut Vec<u8>,
    number: SegmentNumber,
    first: MessageNumber,
    log: LogId,
    topic: &str,
) {
    let start = out.len();
    out.extend_from_slice(SEGMENT_MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(topic.len() as u32).to_le_bytes());
    out.extend_from_slice(&number.0.to_le_bytes());
    put_numbers(out, &[first.0, log.0]);
    out.extend_from_slice(topic.as_bytes());
    let checksum = crc32c::crc32c(&out[start..]);
    out.extend_from_slice(&checksum.to_le_bytes());
}

/// The result of reading the head of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SegmentHead {
    /// The head is valid.
    Valid {
        /// The number of the first event.
        first: MessageNumber,
        /// The log.
        log: LogId,
        /// The offset at which the head ends.
        end: usize,
    },
    /// The file ends within the head, or the head is not what was written.
    Torn,
    /// The head is valid, and of something else.
    Foreign(&'static str),
}

/// Reads the head of a segment of a topic.
pub(super) fn segment_head(bytes: &[u8], number: SegmentNumber, topic: &str) -> SegmentHead {
    let mut fields = Fields(bytes);
    let head = || {
        let magic = fields.take(8)?;
        let (version, name_bytes) = (fields.u32()?, fields.u32()?);
        let (segment, first, log) = (fields.u64()?, fields.number()?, LogId(fields.u64()?));
        let name = fields.take(name_bytes as usize)?;
        let end = bytes.len() - fields.0.len();
        let is_valid = magic == SEGMENT_MAGIC && fields.u32()? == crc32c::crc32c(&bytes[..end]);
        is_valid.then_some((version, segment, first, log, name, end + 4))
    };
    match { head }() {
        None => SegmentHead::Torn,
        Some((version, ..)) if version != VERSION => {
            SegmentHead::Foreign("the format is of another version of gridcast")
        }
        Some((_, segment, _, _, name, _)) if segment != number.0 || name != topic.as_bytes() => {
            SegmentHead::Foreign("the file belongs to another topic or has another number")
        }
        Some((_, _, first, log, _, end)) => SegmentHead::Valid { first, log, end },
    }
}

/// Begins a batch. Records follow, then [`end_batch`] with the value that this returns.
pub(super) fn begin_batch(out: &mut Vec<u8>, first: MessageNumber) -> usize {
    let start = out.len();
    out.extend_from_slice(&BATCH_MAGIC);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&first.0.to_le_bytes());
    start
}

/// Ends a batch: fills in its length and its checksum.
pub(super) fn end_batch(out: &mut [u8], start: usize) {
    let length = (out.len() - start - BATCH_HEAD_BYTES) as u32;
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
    let checksum = batch_checksum(&out[start..]);
    out[start + 8..start + 12].copy_from_slice(&checksum.to_le_bytes());
}

fn batch_checksum(batch: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&batch[4..8]), &batch[12..])
}

/// A valid batch.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    /// The number of the first event, or of the next one if there is none.
    pub first: MessageNumber,
    /// The length with the head.
    pub bytes: usize,
    records: &'a [u8],
}

/// The result of reading a batch.
#[derive(Debug)]
pub(super) enum Parsed<'a> {
    /// A valid batch.
    Batch(Batch<'a>),
    /// The batch has this many bytes, more than are there.
    NeedsBytes(usize),
    /// No batch begins here, or it is not what was written.
    Invalid,
}

/// Reads the batch at the start of `bytes`.
pub(super) fn parse_batch(bytes: &[u8]) -> Parsed<'_> {
    let magic = &bytes[..bytes.len().min(4)];
    if *magic != BATCH_MAGIC[..magic.len()] {
        return Parsed::Invalid;
    }
    let mut fields = Fields(&bytes[magic.len()..]);
    let (Some(length), Some(checksum), Some(first)) = (fields.u32(), fields.u32(), fields.u64())
    else {
        return Parsed::NeedsBytes(BATCH_HEAD_BYTES);
    };
    let end = BATCH_HEAD_BYTES + length as usize;
    if end > BATCH_BYTES_MAX {
        return Parsed::Invalid;
    }
    match bytes.get(..end) {
        None => Parsed::NeedsBytes(end),
        Some(batch) if batch_checksum(batch) != checksum => Parsed::Invalid,
        Some(batch) => Parsed::Batch(Batch {
            first: MessageNumber(first),
            bytes: end,
            records: &batch[BATCH_HEAD_BYTES..],
        }),
    }
}

impl<'a> Batch<'a> {
    /// The records. `None`: a record that this version of gridcast does not know; none follow.
    pub(super) fn records(&self) -> impl Iterator<Item = Option<Record<'a>>> + use<'a> {
        let mut fields = Fields(self.records);
        std::iter::from_fn(move || {
            if fields.0.is_empty() {
                return None;
            }
            let record = fields.record();
            if record.is_none() {
                fields.0 = &[];
            }
            Some(record)
        })
    }
}

fn put_record(out: &mut Vec<u8>, kind: u8, put: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[kind, 0, 0, 0, 0]);
    put(out);
    let length = (out.len() - start - RECORD_HEAD_BYTES) as u32;
    out[start + 1..start + RECORD_HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

/// Appends an event.
pub(super) fn put_event(out: &mut Vec<u8>, client: ClientId, unix_ms: u64, json: &[u8]) {
    put_record(out, EVENT, |out| {
        put_numbers(out, &[client.value(), unix_ms]);
        out.extend_from_slice(json);
    });
}

/// Appends a delayed event.
pub(super) fn put_delayed(out: &mut Vec<u8>, event: &DelayedEvent) {
    put_record(out, DELAYED, |out| {
        put_numbers(out, &[event.number.0, event.client.value(), event.due_ms]);
        out.extend_from_slice(event.frame.payload());
    });
}

/// Appends an event that was delayed.
pub(super) fn put_due(out: &mut Vec<u8>, unix_ms: u64, event: &DelayedEvent) {
    put_record(out, DUE, |out| {
        put_numbers(out, &[event.number.0, event.client.value(), unix_ms]);
        out.extend_from_slice(event.frame.payload());
    });
}

/// Appends a range of events that a group has settled.
pub(super) fn put_settled(
    out: &mut Vec<u8>,
    group: GroupIndex,
    first: MessageNumber,
    end: MessageNumber,
    freed: Credit,
) {
    put_record(out, SETTLED, |out| {
        out.extend_from_slice(&group.0.to_le_bytes());
        put_numbers(out, &[first.0, end.0, freed.messages as u64, freed.bytes as u64]);
    });
}

/// Appends what is known of an event that was handed out in vain.
pub(super) fn put_retry(
    out: &mut Vec<u8>,
    group: GroupIndex,
    number: MessageNumber,
    failed: FailedTries,
) {
    put_record(out, RETRY, |out| {
        out.extend_from_slice(&group.0.to_le_bytes());
        put_numbers(out, &[number.0]);
        out.extend_from_slice(&failed.tries.to_le_bytes());
        put_numbers(out, &[failed.until_ms]);
    });
}

/// Appends what may be handed out to a group from now on.
pub(super) fn put_handed_out(out: &mut Vec<u8>, group: GroupIndex, handed_out: HandedOut) {
    put_record(out, HANDED_OUT, |out| {
        out.extend_from_slice(&group.0.to_le_bytes());
        put_mark(out, handed_out);
    });
}

fn put_mark(out: &mut Vec<u8>, handed_out: HandedOut) {
    match handed_out {
        HandedOut::Below(number) => {
            out.push(0);
            put_numbers(out, &[number.0]);
        }
        HandedOut::Any => {
            out.push(1);
            put_numbers(out, &[0]);
        }
    }
}

/// Appends what the topic holds.
pub(super) fn put_held(out: &mut Vec<u8>, held: Credit) {
    put_record(out, HELD, |out| put_numbers(out, &[held.messages as u64, held.bytes as u64]));
}

/// Appends the table of segments.
pub(super) fn put_segments<'a>(
    out: &mut Vec<u8>,
    segments: impl Iterator<Item = (SegmentNumber, &'a Segment)>,
) {
    put_record(out, SEGMENTS, |out| {
        for (number, segment) in segments {
            put_numbers(out, &[number.0, segment.first.0, segment.end.0, segment.bytes]);
        }
    });
}

/// Appends a group.
pub(super) fn put_group(out: &mut Vec<u8>, group: &LogGroup) {
    put_record(out, GROUP, |out| {
        let name = group.name.as_deref().unwrap_or_default();
        out.extend_from_slice(&(name.len() as u16).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        put_mark(out, group.handed_out);
        put_numbers(out, &[group.settled.lowest().0]);
        group.settled.ranges().for_each(|(first, end)| put_numbers(out, &[first, end]));
    });
}

/// The bytes of a record that are not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(self.take(1)?[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn number(&mut self) -> Option<MessageNumber> {
        self.u64().map(MessageNumber)
    }

    fn credit(&mut self) -> Option<Credit> {
        Some(Credit { messages: self.u64()? as usize, bytes: self.u64()? as usize })
    }

    fn mark(&mut self) -> Option<HandedOut> {
        match (self.u8()?, self.number()?) {
            (0, number) => Some(HandedOut::Below(number)),
            (1, _) => Some(HandedOut::Any),
            _ => None,
        }
    }

    /// Reads what is left as an event.
    fn event(&mut self) -> Option<EventRecord<'a>> {
        let (client, unix_ms) = (ClientId::from_value(self.u64()?), self.u64()?);
        Some(EventRecord { client, unix_ms, json: self.0 })
    }

    /// Reads items until nothing is left.
    fn all<T>(mut self, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let mut items = Vec::new();
        while !self.0.is_empty() {
            items.push(item(&mut self)?);
        }
        Some(items)
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let (kind, length) = (self.u8()?, self.u32()?);
        let mut content = Fields(self.take(length as usize)?);
        Some(match kind {
            EVENT => Record::Event(content.event()?),
            DELAYED => Record::Delayed(DelayedRecord {
                number: DelayedNumber(content.u64()?),
                client: ClientId::from_value(content.u64()?),
                due_ms: content.u64()?,
                json: content.0,
            }),
            DUE => Record::Due(DelayedNumber(content.u64()?), content.event()?),
            SETTLED => Record::Settled {
                group: GroupIndex(content.u16()?),
                first: content.number()?,
                end: content.number()?,
                freed: content.credit()?,
            },
            HANDED_OUT => Record::HandedOut(GroupIndex(content.u16()?), content.mark()?),
            RETRY => Record::Retry(
                GroupIndex(content.u16()?),
                content.number()?,
                FailedTries { tries: content.u16()?, until_ms: content.u64()? },
            ),
            HELD => Record::Held(content.credit()?),
            SEGMENTS => Record::Segments(content.all(|fields| {
                let number = SegmentNumber(fields.u64()?);
                let (first, end) = (fields.number()?, fields.number()?);
                Some((number, Segment { first, end, bytes: fields.u64()? }))
            })?),
            GROUP => {
                let name_bytes = content.u16()?;
                let name = str::from_utf8(content.take(usize::from(name_bytes))?).ok()?;
                let (handed_out, lowest) = (content.mark()?, content.number()?);
                let ranges = content.all(|fields| Some((fields.number()?, fields.number()?)))?;
                Record::Group(GroupRecord { name, handed_out, lowest, ranges })
            }
            _ => return None,
        })
    }
}
