//! A record of the faults and their times, which decides how strict the rules are.

use std::collections::HashMap;

/// How long after the last fault counts need not be right, in milliseconds: SPEC gives a grid 5
/// seconds, and a frozen or cut off node may not know for 2.5 that it was.
const RECOVERY_MS: u64 = 7500;

/// A session that holds for so long after something was said over it has carried it.
const CARRIED_MS: u64 = 12_000;

/// All faults of a run.
#[derive(Default)]
pub struct Weather {
    // From, to; the last is u64::MAX while it lasts.
    troubles: Vec<(u64, u64)>,
    frozen: Vec<(usize, u64, u64)>,
    // By two nodes: when the first began or ceased to reach the second.
    reach: HashMap<(usize, usize), Vec<(u64, bool)>>,
    pub sessions_lost: u64,
}

impl Weather {
    /// Something was wrong at this time.
    pub fn note_trouble(&mut self, at: u64) {
        match self.troubles.last_mut() {
            Some((_, to)) if at <= *to => *to = (*to).max(at + RECOVERY_MS),
            _ => self.troubles.push((at, at + RECOVERY_MS)),
        }
    }

    /// A node begins to be frozen.
    pub fn note_frozen(&mut self, node: usize, at: u64) {
        self.frozen.push((node, at, u64::MAX));
    }

    /// Notes that a node is no longer frozen.
    pub fn note_thawed(&mut self, node: usize, at: u64) {
        if let Some(frozen) = self.frozen.iter_mut().rev().find(|frozen| frozen.0 == node) {
            frozen.2 = at;
        }
    }

    /// One node says that another is there or not.
    pub fn note_reach(&mut self, node: usize, other: usize, at: u64, is_there: bool) {
        self.sessions_lost += u64::from(!is_there);
        self.reach.entry((node, other)).or_default().push((at, is_there));
    }

    /// Nobody was in reach of a node that starts.
    pub fn note_start(&mut self, node: usize, others: usize, at: u64) {
        for other in (0..others).filter(|&other| other != node) {
            self.reach.entry((node, other)).or_default().push((at, false));
        }
    }

    /// Whether nothing was wrong in this time, and before it long enough.
    pub fn is_calm(&self, from: u64, to: u64) -> bool {
        !self.troubles.iter().any(|trouble| trouble.0 <= to && from <= trouble.1)
    }

    /// How long a node was frozen in this time, in milliseconds.
    pub fn frozen_ms(&self, node: usize, from: u64, to: u64) -> u64 {
        let of_node = self.frozen.iter().filter(|frozen| frozen.0 == node);
        of_node.map(|frozen| frozen.2.min(to).saturating_sub(frozen.1.max(from))).sum()
    }

    /// Whether two nodes had a session at this time that carried all that was said then.
    pub fn is_carried(&self, one: usize, two: usize, at: u64) -> bool {
        one == two || (self.is_within_reach(one, two, at) && self.is_within_reach(two, one, at))
    }

    fn is_within_reach(&self, node: usize, other: usize, at: u64) -> bool {
        let Some(changes) = self.reach.get(&(node, other)) else { return false };
        let before = changes.iter().rev().find(|change| change.0 < at);
        let is_lost = |change: &(u64, bool)| (at..=at + CARRIED_MS).contains(&change.0);
        before.is_some_and(|change| change.1) && !changes.iter().any(is_lost)
    }

    /// Whether one of two nodes lost the other since.
    pub fn has_lost(&self, one: usize, two: usize, since: u64) -> bool {
        [(one, two), (two, one)].iter().any(|pair| {
            self.reach.get(pair).is_some_and(|changes| changes.iter().any(|c| since <= c.0))
        })
    }
}
