//! Reads the events of a group back from the files, in order.

use super::format::{self, Parsed, Record, SegmentHead};
use super::{Damage, GroupIndex, Log, Read, SegmentNumber};
use crate::message::{MessageNumber, StoredEvent};
use crate::protocol::frame::{Frame, Kind};

/// The bytes of one read, unless a batch is larger.
const READ_BYTES: usize = 256 << 10;

/// Where a group reads.
#[derive(Debug, Default)]
pub struct Reader {
    // The next event to read, if the group has not settled it.
    next: MessageNumber,
    place: Option<Place>,
    // Bytes that the next batch needs.
    needed: usize,
    // Bytes of the last read.
    asked: usize,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    segment: SegmentNumber,
    // Between two batches, or at the head of the segment.
    at: u64,
    // The number of the next event from here.
    first: MessageNumber,
}

impl Reader {
    /// Skips the events below a number, which the group has got.
    pub fn skip_to(&mut self, number: MessageNumber) {
        self.next = self.next.max(number);
    }

    /// The events before this number have been read, or are settled.
    pub fn next(&self) -> MessageNumber {
        self.next
    }
}

impl Log {
    /// The next part to read for a group. `None`: all stored events have been read.
    pub fn poll_read(&self, group: GroupIndex, reader: &mut Reader) -> Option<Read> {
        let settled = &self.groups[usize::from(group.0)].settled;
        reader.next = settled.next_unsettled(reader.next);
        if reader.next >= self.stored {
            return None;
        }
        // Events whose file is gone are settled, so there is a segment.
        let (segment, &of) = self.segments.with(reader.next)?;
        let is_there = |place: &Place| place.segment == segment && place.first <= reader.next;
        let start = Place { segment, at: 0, first: of.first };
        let place = reader.place.filter(is_there).unwrap_or(start);
        if reader.place.is_none_or(|before| !is_there(&before)) {
            reader.needed = 0;
        }
        reader.place = Some(place);
        let left = (of.bytes - place.at) as usize;
        reader.asked = READ_BYTES.max(reader.needed).min(left);
        Some(Read { segment, at: place.at, length: reader.asked })
    }

    /// Takes the bytes of the last [`Self::poll_read`]. Returns events that the group has not settled: all of the
    /// batches that were read. There may be none although more can be read.
    ///
    /// # Errors
    /// The bytes are not what was written.
    pub fn handle_read(
        &self,
        group: GroupIndex,
        reader: &mut Reader,
        bytes: &[u8],
    ) -> Result<Vec<StoredEvent>, Damage> {
        let mut place = reader.place.expect("a part was asked for");
        let segment = self.segments.get(place.segment).map_or(0, |segment| segment.bytes);
        let is_end = bytes.len() < reader.asked || place.at + bytes.len() as u64 >= segment;
        let mut events = Vec::new();
        let mut offset = self.after_head(&place, bytes)?;
        let damage =
            |at: usize, why| Damage { segment: place.segment, at: place.at + at as u64, why };
        loop {
            match format::parse_batch(&bytes[offset..]) {
                Parsed::NeedsBytes(_) if is_end && offset < bytes.len() => {
                    return Err(damage(offset, CUT_OFF));
                }
                Parsed::NeedsBytes(needed) => {
                    reader.needed = needed + if place.at == 0 { offset } else { 0 };
                    break;
                }
                Parsed::Invalid => return Err(damage(offset, INVALID)),
                Parsed::Batch(batch) if batch.first != place.first => {
                    return Err(damage(offset, MISSING));
                }
                Parsed::Batch(batch) => {
                    for record in batch.records() {
                        match record {
                            Some(Record::Event(event) | Record::Due(_, event)) => {
                                let number = place.first;
                                place.first.0 += 1;
                                events.extend(self.wanted(group, reader, number, &event));
                            }
                            Some(_) => {}
                            None => return Err(damage(offset, UNKNOWN)),
                        }
                    }
                    offset += batch.bytes;
                }
            }
        }
        let damage_at_end = place.at + offset as u64;
        place.at = damage_at_end;
        reader.place = Some(place);
        reader.next = reader.next.max(place.first);
        // A segment without the events that it should have would be read forever.
        let expected = self.segments.get(place.segment).map_or(place.first, |segment| segment.end);
        if is_end && offset == bytes.len() && place.first < expected {
            return Err(Damage { segment: place.segment, at: damage_at_end, why: MISSING });
        }
        Ok(events)
    }

    /// The offset of the first batch in the bytes that were read at a place.
    fn after_head(&self, place: &Place, bytes: &[u8]) -> Result<usize, Damage> {
        if place.at > 0 {
            return Ok(0);
        }
        let why = match format::segment_head(bytes, place.segment, &self.topic) {
            SegmentHead::Valid { log, .. } if log != self.id => "the file belongs to another log",
            SegmentHead::Valid { first, end, .. } if first == place.first => return Ok(end),
            SegmentHead::Valid { .. } => MISSING,
            SegmentHead::Torn => "the head of the file is damaged",
            SegmentHead::Foreign(why) => why,
        };
        Err(Damage { segment: place.segment, at: 0, why })
    }

    fn wanted(
        &self,
        group: GroupIndex,
        reader: &Reader,
        number: MessageNumber,
        event: &format::EventRecord<'_>,
    ) -> Option<StoredEvent> {
        let group = &self.groups[usize::from(group.0)];
        (number >= reader.next && !group.settled.contains(number)).then(|| StoredEvent {
            number,
            client: event.client,
            unix_ms: event.unix_ms,
            is_redelivered: number < group.redelivered_below,
            failed: group.failed.get(&number).copied().unwrap_or_default(),
            frame: Frame::message(Kind::Text, event.json),
        })
    }
}

/// Why a batch is not what was written.
pub(super) const INVALID: &str = "the data is damaged: its checksum is wrong";
pub(super) const CUT_OFF: &str = "the file ends within a batch";
pub(super) const MISSING: &str = "events are missing";
pub(super) const NOT_DELAYED: &str = "a record names an event that is not delayed";
pub(super) const UNKNOWN: &str =
    "a record is of a kind that this version of gridcast does not know";
