//! The events that a group has settled: all below a number, and ranges above it.
//!
//! There is at most one range more than there are unsettled events between them. Those are in memory, waiting or in
//! flight, and the topic bounds their number.

use std::collections::BTreeMap;

use crate::message::MessageNumber;

/// A set of settled events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settled {
    // All events below are settled.
    below: u64,
    // First numbers of ranges, and the numbers after their ends. Disjoint, not adjacent, above `below`.
    above: BTreeMap<u64, u64>,
}

impl Settled {
    /// All events below a number.
    pub(super) fn below(number: MessageNumber) -> Self {
        Self { below: number.0, above: BTreeMap::new() }
    }

    /// Adds an event. Returns false if it was in the set.
    pub(super) fn add(&mut self, number: MessageNumber) -> bool {
        let is_new = !self.contains(number);
        if is_new {
            self.add_range(number, MessageNumber(number.0 + 1));
        }
        is_new
    }

    /// Adds the events from `first` to before `end`.
    pub(super) fn add_range(&mut self, first: MessageNumber, end: MessageNumber) {
        let (mut first, mut end) = (first.0.max(self.below), end.0);
        if first >= end {
            return;
        }
        // Merges with the range before, and with those that begin in this one or right behind it.
        if let Some((&start, &stop)) = self.above.range(..=first).next_back()
            && stop >= first
        {
            (first, end) = (start, end.max(stop));
        }
        while let Some((&start, &stop)) = self.above.range(first..=end).next() {
            end = end.max(stop);
            self.above.remove(&start);
        }
        if first == self.below {
            self.below = end;
        } else {
            self.above.insert(first, end);
        }
    }

    /// Whether an event is in the set.
    pub(super) fn contains(&self, number: MessageNumber) -> bool {
        self.next_unsettled(number) != number
    }

    /// Whether all events from `first` to before `end` are in the set.
    pub(super) fn covers(&self, first: MessageNumber, end: MessageNumber) -> bool {
        self.next_unsettled(first) >= end
    }

    /// The first event at or after this number that is not in the set.
    pub(super) fn next_unsettled(&self, number: MessageNumber) -> MessageNumber {
        let number = number.0.max(self.below);
        let range = self.above.range(..=number).next_back();
        MessageNumber(range.map_or(number, |(_, &end)| end.max(number)))
    }

    /// The number of events below `end` that are not in the set.
    pub(super) fn unsettled_below(&self, end: MessageNumber) -> u64 {
        self.gaps(end).map(|(first, end)| end - first).sum()
    }

    /// All events below this number are in the set.
    pub(super) fn lowest(&self) -> MessageNumber {
        MessageNumber(self.below)
    }

    /// The ranges above [`Self::lowest`], each with the number after its end.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.above.iter().map(|(&first, &end)| (first, end))
    }

    /// The ranges of events below `end` that are not in the set.
    fn gaps(&self, end: MessageNumber) -> impl Iterator<Item = (u64, u64)> {
        let starts = std::iter::once(self.below).chain(self.above.values().copied());
        let stops = self.above.keys().copied().chain([u64::MAX]);
        let gaps = starts.zip(stops).map(move |(start, stop)| (start, stop.min(end.0)));
        gaps.filter(|(start, stop)| start < stop)
    }
}

/// The number of events below `end` that at least one of the groups has not settled.
pub(super) fn held_below<'a>(end: MessageNumber, groups: impl Iterator<Item = &'a Settled>) -> u64 {
    let mut gaps: Vec<_> = groups.flat_map(|settled| settled.gaps(end)).collect();
    gaps.sort_unstable();
    let (mut held, mut counted) = (0, 0);
    for (first, end) in gaps {
        held += end.saturating_sub(first.max(counted));
        counted = counted.max(end);
    }
    held
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_of_ranges_is_a_set_of_numbers(
            below in 0..8u64,
            ranges in proptest::collection::vec((0..64u64, 0..6u64), 0..40),
        ) {
            let mut settled = Settled::below(MessageNumber(below));
            let mut numbers: BTreeSet<u64> = (0..below).collect();
            for (first, length) in ranges {
                settled.add_range(MessageNumber(first), MessageNumber(first + length));
                numbers.extend(first..first + length);
            }
            for number in 0..80 {
                prop_assert_eq!(settled.contains(MessageNumber(number)), numbers.contains(&number));
                let next = (number..).find(|number| !numbers.contains(number)).unwrap();
                prop_assert_eq!(settled.next_unsettled(MessageNumber(number)).0, next);
                let unsettled = (0..number).filter(|number| !numbers.contains(number)).count();
                prop_assert_eq!(settled.unsettled_below(MessageNumber(number)), unsettled as u64);
                let others = [Settled::below(MessageNumber(30)), settled.clone()];
                let held = (0..number).filter(|&n| n >= 30 || !numbers.contains(&n)).count();
                prop_assert_eq!(held_below(MessageNumber(number), others.iter()), held as u64);
            }
            // One range more than the events between them at most.
            let last = settled.ranges().last().map_or(0, |(_, end)| end);
            let between = settled.unsettled_below(MessageNumber(last));
            prop_assert!(settled.ranges().count() as u64 <= between + 1);
        }
    }
}
