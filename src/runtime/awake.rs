//! A clock for deadlines that does not count time in which the thread could not run.
//!
//! A process may be stopped (SIGSTOP, a debugger, a frozen cgroup), its machine suspended, or its
//! threads starved of CPU. Bytes that peers sent meanwhile wait in the kernel. To charge none of that to
//! a peer, the clock stops during such a gap and until the waiting input has been read, which postpones
//! every deadline. Pure: the time is passed in.

/// The lateness of a reading, in microseconds, above which a gap is assumed.
const GAP_US: u64 = 250_000;

/// A monotonic clock of one thread, in microseconds, that leaves out gaps.
#[derive(Debug)]
pub struct AwakeClock {
    // On the steady clock: the last reading, and when the next one was due. last_us <= due_us
    last_us: u64,
    due_us: u64,
    // Time left out so far: asleep_us <= last_us.
    asleep_us: u64,
    state: ClockState,
    // How long the clock may stand still after a gap.
    catch_up_us: u64,
    gap_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClockState {
    Running,
    // The clock stands still until this time of the steady clock, or until `caught_up`.
    CatchingUp(u64),
    // The clock runs although not all waiting input has been read. Otherwise it would stand still
    // forever in a thread that is always late. Only the part of a gap above GAP_US is left out.
    Behind,
}

impl AwakeClock {
    /// Creates a clock that starts at 0 and stands still for at most `catch_up_us` after a gap.
    pub fn new(catch_up_us: u64) -> Self {
        let state = ClockState::Running;
        Self { last_us: 0, due_us: 0, asleep_us: 0, state, catch_up_us, gap_us: None }
    }

    /// Reads the clock. `us` is the time of the steady clock.
    pub fn read(&mut self, us: u64) -> u64 {
        let us = us.max(self.last_us);
        let (step_us, late_us) = (us - self.last_us, us.saturating_sub(self.due_us));
        (self.last_us, self.due_us) = (us, us);
        match self.state {
            ClockState::CatchingUp(until_us) => {
                self.asleep_us += step_us;
                if until_us <= us {
                    self.state = ClockState::Behind;
                }
            }
            ClockState::Running if late_us > GAP_US => {
                self.asleep_us += step_us;
                self.state = ClockState::CatchingUp(us + self.catch_up_us);
                self.gap_us = Some(late_us);
            }
            ClockState::Behind if late_us > GAP_US => {
                self.asleep_us += late_us - GAP_US;
                self.gap_us = Some(late_us);
            }
            ClockState::Running | ClockState::Behind => {}
        }
        us - self.asleep_us
    }

    /// Notes that the thread will wait for at most `us`. That wait is not a gap.
    pub fn wait(&mut self, us: u64) {
        self.due_us = self.last_us.saturating_add(us);
    }

    /// Whether a gap was detected and [`Self::caught_up`] has not been called since.
    pub fn is_behind(&self) -> bool {
        self.state != ClockState::Running
    }

    /// Whether the clock has stood still after a gap for the longest allowed time.
    pub fn has_waited_to_catch_up(&self) -> bool {
        self.state == ClockState::Behind
    }

    /// Notes that all waiting input has been read.
    pub fn caught_up(&mut self) {
        self.state = ClockState::Running;
    }

    /// Returns the length of a gap that was detected since the last call, in microseconds.
    pub fn take_gap(&mut self) -> Option<u64> {
        self.gap_us.take()
    }

    /// Converts a time of this clock to the steady clock, assuming no further gap.
    pub fn steady_us(&self, awake_us: u64) -> u64 {
        awake_us.saturating_add(self.asleep_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_planned_wait_counts_and_a_gap_does_not() {
        let mut clock = AwakeClock::new(SECOND);
        clock.wait(2 * SECOND);
        assert_eq!(clock.read(2 * SECOND), 2 * SECOND);
        assert_eq!(clock.take_gap(), None);
        clock.wait(100_000);
        assert_eq!(clock.read(12 * SECOND), 2 * SECOND, "ten seconds were slept");
        assert_eq!(clock.take_gap(), Some(10 * SECOND - 100_000));
        assert_eq!(clock.steady_us(3 * SECOND), 13 * SECOND);
    }

    #[test]
    fn it_stands_still_until_what_arrived_is_taken_in() {
        let mut clock = AwakeClock::new(SECOND);
        clock.read(5 * SECOND);
        let stands = clock.read(5 * SECOND);
        assert!(clock.is_behind());
        assert_eq!(clock.read(5 * SECOND + 200_000), stands);
        clock.caught_up();
        assert_eq!(clock.read(5 * SECOND + 300_000), stands + 100_000);
    }

    #[test]
    fn a_thread_that_is_always_late_does_not_stop_its_clock() {
        let mut clock = AwakeClock::new(SECOND);
        let mut last = clock.read(0);
        for turn in 1..100 {
            last = clock.read(turn * SECOND);
        }
        // A quarter of a second counts for each turn once the time to catch up has passed.
        assert!((97 * GAP_US..99 * GAP_US).contains(&last), "{last}");
    }

    #[test]
    fn it_never_goes_back_whatever_the_steps() {
        let mut clock = AwakeClock::new(SECOND);
        let (mut now, mut last) = (0, 0);
        for step in 0..1000u64 {
            now += [0, 1, 1000, 240_000, 260_000, 3 * SECOND][(step * 7 % 6) as usize];
            let read = clock.read(now);
            assert!(read >= last && read <= now);
            last = read;
            match step % 5 {
                0 => clock.wait(300_000),
                1 => clock.caught_up(),
                _ => {}
            }
        }
    }
}
