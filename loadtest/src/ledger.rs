//! Accounts for one source's numbered messages at one receiver: exactly once, and in order.

use std::collections::HashSet;
use std::ops::AddAssign;

use serde::Serialize;

/// The arrivals of messages 0, 1, 2, … of one source.
#[derive(Clone, Default)]
pub struct Ledger {
    /// One more than the highest number that has arrived.
    next: u32,
    /// Numbers below `next` that have not arrived.
    missing: HashSet<u32>,
    doubled: u64,
    misordered: u64,
}

/// The number of messages that did not arrive as they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Messages that never arrived.
    pub lost: u64,
    /// Messages that arrived again.
    pub doubled: u64,
    /// Messages that arrived after a later one.
    pub misordered: u64,
}

impl From<u32> for Ledger {
    /// A ledger for messages that start at `next`.
    fn from(next: u32) -> Self {
        Self { next, ..Self::default() }
    }
}

impl Ledger {
    /// Notes an arrival; true if it is the first with this number.
    pub fn observe(&mut self, sequence: u32) -> bool {
        if sequence >= self.next {
            self.missing.extend(self.next..sequence);
            self.next = sequence + 1;
            return true;
        }
        let is_late = self.missing.remove(&sequence);
        self.misordered += u64::from(is_late);
        self.doubled += u64::from(!is_late);
        is_late
    }

    /// One more than the highest number that has arrived.
    pub fn next(&self) -> u32 {
        self.next
    }

    /// The damage if the numbers below `sent` were sent and no more arrive.
    pub fn damage(&self, sent: u32) -> Damage {
        let lost = self.missing.len() as u64 + u64::from(sent.saturating_sub(self.next));
        Damage { lost, doubled: self.doubled, misordered: self.misordered }
    }
}

impl Damage {
    /// The sum of all kinds of damage.
    pub fn total(&self) -> u64 {
        self.lost + self.doubled + self.misordered
    }

    /// Whether there is no damage.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

impl AddAssign for Damage {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.misordered += other.misordered;
    }
}

impl std::iter::Sum for Damage {
    fn sum<I: Iterator<Item = Self>>(parts: I) -> Self {
        parts.fold(Self::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damage(arrivals: &[u32], sent: u32) -> Damage {
        let mut ledger = Ledger::default();
        arrivals.iter().for_each(|&sequence| {
            ledger.observe(sequence);
        });
        ledger.damage(sent)
    }

    #[test]
    fn all_once_in_order_is_no_damage() {
        assert!(damage(&[0, 1, 2], 3).is_none());
    }

    #[test]
    fn what_never_arrives_is_lost_wherever_it_stood() {
        assert_eq!(damage(&[1, 3], 6), Damage { lost: 4, ..Damage::default() });
        assert_eq!(damage(&[], 2), Damage { lost: 2, ..Damage::default() });
    }

    #[test]
    fn what_arrives_late_is_misordered_not_lost() {
        assert_eq!(damage(&[0, 2, 1], 3), Damage { misordered: 1, ..Damage::default() });
    }

    #[test]
    fn what_arrives_again_is_doubled_even_after_it_came_late() {
        let expected = Damage { doubled: 2, misordered: 1, lost: 0 };
        assert_eq!(damage(&[0, 2, 1, 1, 2], 3), expected);
    }

    #[test]
    fn one_who_came_late_misses_nothing_from_before() {
        let mut ledger = Ledger::from(7);
        assert_eq!([7, 9].map(|sequence| ledger.observe(sequence)), [true, true]);
        assert_eq!(ledger.damage(0), Damage { lost: 1, ..Damage::default() });
    }

    #[test]
    fn only_the_first_arrival_counts_as_one() {
        let mut ledger = Ledger::default();
        assert_eq!(
            [1, 0, 0, 1].map(|sequence| ledger.observe(sequence)),
            [true, true, false, false]
        );
    }
}
