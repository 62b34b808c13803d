//! Checks the whole of a segment, where recovery and reading look only at what they need.

use std::collections::BTreeSet;

use super::format::{self, Parsed, Record, SegmentHead};
use super::reader::{CUT_OFF, INVALID, MISSING, NOT_DELAYED, UNKNOWN};
use super::{Damage, SegmentNumber};
use crate::message::MessageNumber;

/// The contents of a segment that is not damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentContents {
    /// The number of the first event.
    pub first: MessageNumber,
    /// The number after that of the last event.
    pub end: MessageNumber,
}

/// Checks a segment whose bytes are all there: the head, every checksum, every record, the numbers of the events.
///
/// # Errors
/// Something is not what was written.
pub fn check_segment(
    topic: &str,
    segment: SegmentNumber,
    bytes: &[u8],
) -> Result<SegmentContents, Damage> {
    let damage = |at: usize, why| Damage { segment, at: at as u64, why };
    let (first, mut at) = match format::segment_head(bytes, segment, topic) {
        SegmentHead::Valid { first, end, .. } => (first, end),
        SegmentHead::Torn => return Err(damage(0, "the head of the file is damaged")),
        SegmentHead::Foreign(why) => return Err(damage(0, why)),
    };
    let (mut next, start) = (first, at);
    let mut delayed = BTreeSet::new();
    while at < bytes.len() {
        let batch = match format::parse_batch(&bytes[at..]) {
            Parsed::Batch(batch) => batch,
            Parsed::NeedsBytes(_) => return Err(damage(at, CUT_OFF)),
            Parsed::Invalid => return Err(damage(at, INVALID)),
        };
        if batch.first != next {
            return Err(damage(at, MISSING));
        }
        for record in batch.records() {
            match record {
                Some(Record::Event(_)) => next.0 += 1,
                Some(Record::Delayed(event)) => drop(delayed.insert(event.number)),
                Some(Record::Due(number, _)) if delayed.remove(&number) => next.0 += 1,
                Some(Record::Due(..)) => return Err(damage(at, NOT_DELAYED)),
                Some(_) => {}
                None => return Err(damage(at, UNKNOWN)),
            }
        }
        at += batch.bytes;
    }
    if at == start {
        return Err(damage(at, CUT_OFF));
    }
    Ok(SegmentContents { first, end: next })
}
