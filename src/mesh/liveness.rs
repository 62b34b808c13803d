//! Whether a node answers pings, and for how long its announced interest can be relied on.

/// Time for which a node's interest is trusted to be complete, in milliseconds after the last ping that it
/// answered was sent. A subscribe waits for a silent node at most this long, so the lease must be shorter
/// than `limits.answer_ms`.
pub(super) const LEASE_MS: u64 = 1000;

/// Interval between two pings of a node, in milliseconds.
pub(super) const PING_MS: u64 = 300;

/// Time from the end of the lease until the link is closed, in milliseconds, if no ping is answered.
/// The transport notices when nothing arrives here. This notices when nothing arrives at the peer.
const UNANSWERED_MS: u64 = 1500;

/// The state of one peer's pings and lease. All times are on the clock of the mesh, in milliseconds.
#[derive(Debug)]
pub(super) struct Liveness {
    ping_due_ms: u64,
    // The end of the lease. Time in which this node did not run extends it. `None`: no ping was
    // answered on this link.
    answers_until_ms: Option<u64>,
    // The lease has ended, and calls waiting for the node have failed.
    is_silent: bool,
    // The node has announced its whole interest on this link.
    has_whole_interest: bool,
    // Until when the announced interest is trusted. Time in which this node did not run ends it.
    trusted_until_ms: Option<u64>,
}

impl Liveness {
    /// The state at the start of a link.
    pub(super) fn new(now_ms: u64) -> Self {
        Self {
            ping_due_ms: now_ms,
            answers_until_ms: None,
            is_silent: false,
            has_whole_interest: false,
            trusted_until_ms: None,
        }
    }

    /// Whether the lease has ended. Calls for a silent node's clients fail at once, and publishes do
    /// not wait for it, so that a sequence of calls does not wait for one deadline after the other.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// Whether the known interest of the node includes all that it has announced to anybody.
    pub(super) fn is_trusted(&self, now_ms: u64) -> bool {
        self.trusted_until_ms().is_some_and(|until_ms| now_ms <= until_ms)
    }

    /// Until when the node's interest is trusted; `None`: not now.
    pub(super) fn trusted_until_ms(&self) -> Option<u64> {
        self.trusted_until_ms.filter(|_| self.has_whole_interest)
    }

    /// Notes that the known interest is incomplete: the link is lost, or the node announces its whole
    /// interest anew.
    pub(super) fn handle_incomplete_interest(&mut self) {
        self.has_whole_interest = false;
    }

    /// Notes that the node has announced its whole interest.
    pub(super) fn handle_whole_interest(&mut self) {
        self.has_whole_interest = true;
    }

    /// Handles the answer to the ping that was sent at `sent_ms`. `resumed_ms` is when this node last
    /// resumed after a gap in which it did not run.
    pub(super) fn handle_pong(&mut self, now_ms: u64, sent_ms: u64, resumed_ms: Option<u64>) {
        // The time is an echo that the peer may get wrong. A time in the future counts as now, and an old
        // one takes nothing back that a later answer has given.
        let sent_ms = sent_ms.min(now_ms);
        let until_ms = Some(sent_ms + LEASE_MS);
        self.answers_until_ms = self.answers_until_ms.max(until_ms);
        if resumed_ms.is_none_or(|resumed_ms| resumed_ms < sent_ms) {
            self.trusted_until_ms = self.trusted_until_ms.max(until_ms);
        }
        self.is_silent = false;
    }

    /// Ends trust after a gap in which this node did not run. `now_ms` does not include the gap.
    pub(super) fn handle_gap(&mut self, now_ms: u64) {
        self.trusted_until_ms = None;
        // A ping of this very millisecond would count as sent before the gap.
        self.ping_due_ms = self.ping_due_ms.min(now_ms + 1);
    }

    /// Whether the node has just become silent. True once per silence.
    pub(super) fn poll_silence(&mut self, now_ms: u64) -> bool {
        let has_ended = self.answers_until_ms.is_some_and(|until_ms| until_ms <= now_ms);
        has_ended && !std::mem::replace(&mut self.is_silent, true)
    }

    /// Whether the node has been silent for so long that the link is to be closed.
    pub(super) fn is_unanswering(&self, now_ms: u64) -> bool {
        self.answers_until_ms.is_some_and(|until_ms| until_ms + UNANSWERED_MS <= now_ms)
    }

    /// Whether a ping is to be sent now.
    pub(super) fn poll_ping(&mut self, now_ms: u64) -> bool {
        let is_due = self.ping_due_ms <= now_ms;
        if is_due {
            self.ping_due_ms = now_ms + PING_MS;
        }
        is_due
    }

    /// When the next ping is due.
    pub(super) fn ping_due_ms(&self) -> u64 {
        self.ping_due_ms
    }

    /// When the lease ends, if it has not.
    pub(super) fn lease_end_ms(&self, now_ms: u64) -> Option<u64> {
        self.answers_until_ms.filter(|&until_ms| until_ms > now_ms)
    }

    /// Asserts the invariants.
    pub(super) fn check(&self) {
        // An answer extends the lease, and trust by no more than that. A gap ends trust alone.
        assert!(self.trusted_until_ms <= self.answers_until_ms, "trusted beyond the lease");
        assert!(!self.is_silent || self.answers_until_ms.is_some(), "silent before an answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_the_ping_and_needs_the_whole_interest() {
        let mut liveness = Liveness::new(5000);
        assert!(liveness.poll_ping(5000) && !liveness.poll_ping(5299) && liveness.poll_ping(5300));
        liveness.handle_pong(5400, 5000, None);
        assert!(!liveness.is_trusted(5400), "its interest is not known");
        liveness.handle_whole_interest();
        assert!(liveness.is_trusted(6000) && !liveness.is_trusted(6001));
        assert_eq!(liveness.trusted_until_ms(), Some(6000));
        liveness.handle_incomplete_interest();
        assert_eq!(liveness.trusted_until_ms(), None);
        liveness.check();
    }

    #[test]
    fn silence_is_told_once_and_ends_with_an_answer() {
        let mut liveness = Liveness::new(0);
        assert!(!liveness.poll_silence(9999), "a node that has not answered yet is not silent");
        liveness.handle_pong(100, 100, None);
        assert_eq!((liveness.lease_end_ms(1099), liveness.lease_end_ms(1100)), (Some(1100), None));
        assert!(!liveness.poll_silence(1099) && liveness.poll_silence(1100));
        assert!(!liveness.poll_silence(1101) && liveness.is_silent());
        assert!(!liveness.is_unanswering(2599) && liveness.is_unanswering(2600));
        liveness.handle_pong(2600, 2600, None);
        assert!(!liveness.is_silent() && !liveness.is_unanswering(2600));
        liveness.check();
    }

    #[test]
    fn no_time_that_a_peer_echoes_breaks_the_invariants_or_shortens_the_lease() {
        let times = [0, 1, 999, 1400, 1500, 1501, 1502, 3000, u64::MAX];
        for resumed_ms in [None, Some(0), Some(1500), Some(2000)] {
            for (first, second) in times.iter().flat_map(|one| times.map(|two| (*one, two))) {
                let mut liveness = Liveness::new(0);
                liveness.handle_whole_interest();
                liveness.handle_pong(2000, first, resumed_ms);
                let ends_ms = liveness.answers_until_ms;
                let trusted_ms = liveness.trusted_until_ms();
                liveness.handle_pong(2001, second, resumed_ms);
                liveness.check();
                assert!(liveness.answers_until_ms >= ends_ms, "{first}, {second}");
                assert!(liveness.trusted_until_ms() >= trusted_ms, "{first}, {second}");
                assert!(liveness.answers_until_ms <= Some(2001 + LEASE_MS), "{first}, {second}");
            }
        }
    }

    #[test]
    fn a_gap_ends_trust_until_a_later_ping_is_answered_and_keeps_the_lease() {
        let mut liveness = Liveness::new(0);
        liveness.handle_whole_interest();
        liveness.handle_pong(1000, 1000, None);
        liveness.handle_gap(1500);
        assert!(!liveness.is_trusted(1500) && !liveness.poll_silence(1999));
        liveness.handle_pong(1501, 1400, Some(1500));
        assert!(!liveness.is_trusted(1501), "the ping was sent before the gap");
        liveness.handle_pong(1502, 1501, Some(1500));
        assert!(liveness.is_trusted(1502));
        liveness.check();
    }
}
