//! The files of a log.

use std::collections::BTreeMap;

use super::{LogGroup, SegmentNumber};
use crate::message::MessageNumber;

/// A segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The number of the first event.
    pub first: MessageNumber,
    /// The number after that of the last event.
    pub end: MessageNumber,
    /// The size of the file.
    pub bytes: u64,
}

/// The segments of a log. The last one is written to.
#[derive(Debug, Default)]
pub(super) struct Segments {
    by_number: BTreeMap<SegmentNumber, Segment>,
    bytes: u64,
    /// The file that recovery has found torn, and where to cut it off.
    pub cut: Option<(SegmentNumber, u64)>,
    /// A file to remove.
    pub removable: Option<SegmentNumber>,
    /// Files to remove that recovery has found and that belong to no segment.
    pub leftovers: Vec<SegmentNumber>,
}

impl Segments {
    /// Adds a segment.
    pub(super) fn insert(&mut self, number: SegmentNumber, segment: Segment) {
        self.bytes += segment.bytes;
        self.by_number.insert(number, segment);
    }

    /// Begins a segment with this event. The file has so many bytes.
    pub(super) fn begin(&mut self, number: SegmentNumber, first: MessageNumber, bytes: u64) {
        self.insert(number, Segment { first, end: first, bytes });
    }

    /// Notes that so many events and bytes were added to the last segment.
    pub(super) fn extend(&mut self, events: u64, bytes: u64) {
        let (_, last) = self.by_number.iter_mut().next_back().expect("there is a segment");
        last.end.0 += events;
        last.bytes += bytes;
        self.bytes += bytes;
    }

    /// The segment that is written to.
    pub(super) fn last(&self) -> Option<(SegmentNumber, &Segment)> {
        self.by_number.iter().next_back().map(|(&number, segment)| (number, segment))
    }

    /// The number of the next segment.
    pub(super) fn next_number(&self) -> SegmentNumber {
        SegmentNumber(self.last().map_or(1, |(number, _)| number.0 + 1))
    }

    /// The segment that holds an event, or the next one if the file with the event was removed.
    pub(super) fn with(&self, event: MessageNumber) -> Option<(SegmentNumber, &Segment)> {
        let mut segments = self.by_number.iter();
        segments
            .find(|(_, segment)| segment.end > event)
            .map(|(&number, segment)| (number, segment))
    }

    /// The segment with this number, unless it was removed.
    pub(super) fn get(&self, number: SegmentNumber) -> Option<&Segment> {
        self.by_number.get(&number)
    }

    /// All segments, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (SegmentNumber, &Segment)> {
        self.by_number.iter().map(|(&number, segment)| (number, segment))
    }

    /// The size of all files.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Finds a file to remove: a segment before the last whose events every group has settled.
    pub(super) fn find_removable(&mut self, groups: &[LogGroup]) {
        self.removable = self.leftovers.last().copied();
        let Some((last, _)) = self.last() else { return };
        if self.removable.is_none() {
            let is_settled = |segment: &Segment| {
                groups.iter().all(|group| group.settled.covers(segment.first, segment.end))
            };
            let mut full = self.by_number.range(..last);
            let found = full.find(|(_, segment)| is_settled(segment));
            self.removable = found.map(|(&number, _)| number);
        }
    }

    /// Forgets the file that was to be removed; false if there was none.
    pub(super) fn remove_removable(&mut self) -> bool {
        let Some(number) = self.removable.take() else { return false };
        self.leftovers.retain(|&other| other != number);
        let removed = self.by_number.remove(&number);
        self.bytes -= removed.map_or(0, |segment| segment.bytes);
        true
    }
}
