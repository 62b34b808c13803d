//! The budget for fan-outs in a turn: subscribers visited, and fan-out writes.

/// Subscribers visited by one slice of a walk, which takes about 50 µs. A channel with no more is
/// done in one slice.
pub(super) const SLICE: usize = 1024;

/// The most subscribers of a message that is written as soon as a message for one client is, ahead of fan-outs. Such a
/// publish counts as so many sends.
pub(super) const FEW: usize = 4;

/// Subscribers visited in one turn by all publishes together. One slice of these is for pending
/// publishes. What exceeds the limit waits for later turns.
const REACHED_PER_TURN: usize = 4 * SLICE;

/// Fan-out writes per turn: connections and bytes. The last batch may exceed the bytes. While nobody
/// waits for them and no publish is pending, the connections double from turn to turn, up to [`SENDS_PER_TURN_MAX`].
const SENDS_PER_TURN: usize = 32;
const BYTES_PER_TURN: usize = 256 * 1024;

/// The most fan-out writes of a turn: some 2 to 5 ms of the kernel's work, which whoever comes first
/// waits for.
const SENDS_PER_TURN_MAX: usize = 1024;

/// Time after output for others during a fan-out in which turns keep to [`SENDS_PER_TURN`], in
/// milliseconds.
const SHARING_MS: u64 = 50;

/// Bytes collected in outbound queues while publishes are pending, before fan-out writes begin. A
/// burst of publishes then costs each subscriber one write.
const GATHERED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that publishes may add in a turn after one that ran out of its byte budget. Less than a
/// turn writes, so that the backlog shrinks, but enough for small publishes to go on.
const BYTES_AFTER_OVERRUN: usize = BYTES_PER_TURN / 4;

/// The remaining budget for fan-outs in a turn, which lasts from one `Shard::handle_turn` to the
/// next. The budget limits the delay of other work: to about 0.5 ms per turn while there is some, and
/// to [`SENDS_PER_TURN_MAX`] for the first that comes.
#[derive(Debug)]
pub(super) struct FanoutBudget {
    // Subscribers that may still be visited, and bytes that may still be queued for them. `None`:
    // any number of bytes.
    reachable: usize,
    addable_bytes: Option<usize>,
    // Fan-out writes still allowed: connections and bytes.
    sends: usize,
    bytes: usize,
    // Fan-out writes allowed in this turn in total.
    sends_max: usize,
    // Whether the previous turn has begun fan-out writes that are not all done, so that output for
    // others, if there is some, had to wait for them.
    is_continuing: bool,
    // Until when turns stay short.
    shared_until_ms: u64,
    // Bytes queued since no publish was pending.
    gathered_bytes: usize,
    // Whether the previous turn ran out of its byte budget.
    has_overrun: bool,
}

impl Default for FanoutBudget {
    fn default() -> Self {
        Self {
            reachable: REACHED_PER_TURN,
            addable_bytes: None,
            sends: SENDS_PER_TURN,
            bytes: BYTES_PER_TURN,
            sends_max: SENDS_PER_TURN,
            is_continuing: false,
            shared_until_ms: 0,
            gathered_bytes: 0,
            has_overrun: false,
        }
    }
}

impl FanoutBudget {
    /// Renews the budget for a turn. `has_backlog`: fan-out writes are left over from earlier turns.
    pub(super) fn begin_turn(&mut self, now_ms: u64, is_walking: bool, has_backlog: bool) {
        let has_overrun = self.bytes == 0;
        let is_continuing = has_backlog && self.sends < self.sends_max;
        let is_shared = now_ms < self.shared_until_ms;
        // While publishes are pending, slow turns collect more of them for each write.
        let sends_max = match is_continuing && !is_shared && !is_walking {
            true => (self.sends_max * 2).min(SENDS_PER_TURN_MAX),
            false => SENDS_PER_TURN,
        };
        *self = Self {
            sends: sends_max,
            sends_max,
            is_continuing,
            shared_until_ms: self.shared_until_ms,
            addable_bytes: has_overrun.then_some(BYTES_AFTER_OVERRUN),
            gathered_bytes: if is_walking { self.gathered_bytes } else { 0 },
            has_overrun,
            ..Self::default()
        };
    }

    /// Returns how many subscribers may still get a frame of this size.
    pub(super) fn may_reach(&self, bytes: usize) -> usize {
        match self.addable_bytes {
            None => self.reachable,
            Some(0) => 0,
            // At least one subscriber, however large the frame.
            Some(addable) => self.reachable.min((addable / bytes).max(1)),
        }
    }

    /// Counts subscribers that got a frame, and the bytes queued for them.
    pub(super) fn reach(&mut self, count: usize, bytes: usize) {
        self.reachable = self.reachable.saturating_sub(count);
        self.addable_bytes = self.addable_bytes.map(|addable| addable.saturating_sub(bytes));
        self.gathered_bytes += bytes;
    }

    /// Lets fan-out writes begin, because an outbound queue needs room.
    pub(super) fn end_gathering(&mut self) {
        self.gathered_bytes = GATHERED_BYTES;
    }

    /// Whether one more fan-out write is allowed in this turn.
    pub(super) fn may_send(&self, is_walking: bool) -> bool {
        let is_gathering = is_walking && !self.has_overrun && self.gathered_bytes < GATHERED_BYTES;
        self.sends > 0 && self.bytes > 0 && !is_gathering
    }

    /// Notes output for others than the receivers of publishes.
    pub(super) fn note_others(&mut self, now_ms: u64) {
        if self.is_continuing {
            self.shared_until_ms = now_ms + SHARING_MS;
            self.sends = self.sends.min(SENDS_PER_TURN);
        }
    }

    /// Counts a fan-out write of this many bytes.
    pub(super) fn send(&mut self, bytes: usize) {
        self.sends -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins a turn at this time with a backlog, and sends what the turn allows.
    fn sends_in_turn(budget: &mut FanoutBudget, now_ms: u64) -> usize {
        budget.begin_turn(now_ms, false, true);
        let mut sends = 0;
        while budget.may_send(false) {
            budget.send(100);
            sends += 1;
        }
        sends
    }

    #[test]
    fn turns_grow_while_nobody_else_has_output() {
        let mut budget = FanoutBudget::default();
        let turns = [0; 8].map(|now_ms| sends_in_turn(&mut budget, now_ms));
        assert_eq!(turns, [32, 64, 128, 256, 512, 1024, 1024, 1024]);
        budget.begin_turn(0, true, true);
        assert_eq!(budget.sends, SENDS_PER_TURN, "a publish is pending");
        sends_in_turn(&mut budget, 0);
        budget.begin_turn(0, false, false);
        assert_eq!(sends_in_turn(&mut budget, 0), 32, "a new fan-out");
    }

    #[test]
    fn turns_are_short_for_a_while_after_output_for_others() {
        let mut budget = FanoutBudget::default();
        for _ in 0..4 {
            sends_in_turn(&mut budget, 0);
        }
        budget.begin_turn(1, false, true);
        budget.note_others(1);
        assert!((0..SENDS_PER_TURN).all(|_| {
            budget.send(100);
            true
        }));
        assert!(!budget.may_send(false));
        let turns = [2, SHARING_MS, 1 + SHARING_MS, 1 + SHARING_MS];
        assert_eq!(turns.map(|now_ms| sends_in_turn(&mut budget, now_ms)), [32, 32, 64, 128]);
    }

    #[test]
    fn the_answer_to_a_publish_does_not_shorten_its_own_fan_out() {
        let mut budget = FanoutBudget::default();
        budget.begin_turn(0, false, false);
        budget.note_others(0);
        let turns = [0; 3].map(|now_ms| sends_in_turn(&mut budget, now_ms));
        assert_eq!(turns, [32, 64, 128]);
    }
}
