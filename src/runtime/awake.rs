//! The clock by which a thread keeps deadlines: time in which it could not run does not count.
//!
//! A process may be stopped (SIGSTOP, a debugger, a frozen cgroup), its machine suspended, its threads
//! starved of CPU. What peers sent meanwhile lies in the kernel. So the clock stands still over a gap,
//! and until what has arrived is taken in: every deadline moves by as much. Pure: the time goes in.

/// A reading that comes so much later than it was meant to, in microseconds, follows a gap.
const GAP_US: u64 = 250_000;

/// A clock of one thread, in microseconds, that leaves out gaps.
#[derive(Debug)]
pub struct AwakeClock {
    // On the steady clock: the last reading, and by when the next one was meant to come.
    // last_us <= due_us
    last_us: u64,
    due_us: u64,
    // Time left out so far. Never more than last_us.
    asleep_us: u64,
    state: State,
    // How long the clock stands still at most after a gap.
    catch_up_us: u64,
    gap_us: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    // Stands still until this time on the steady clock, or until `caught_up`.
    CatchingUp(u64),
    // Runs, though not all that arrived is taken in: a thread that is always late would otherwise
    // stand still for ever. Only the excess of its gaps is left out.
    Behind,
}

impl AwakeClock {
    /// A clock that starts at 0, and stands still for `catch_up_us` at most after a gap.
    pub fn new(catch_up_us: u64) -> Self {
        let state = State::Running;
        Self { last_us: 0, due_us: 0, asleep_us: 0, state, catch_up_us, gap_us: None }
    }

    /// Reads the clock, when the steady clock says `us`.
    pub fn read(&mut self, us: u64) -> u64 {
        let us = us.max(self.last_us);
        let (step_us, late_us) = (us - self.last_us, us.saturating_sub(self.due_us));
        (self.last_us, self.due_us) = (us, us);
        match self.state {
            State::CatchingUp(until_us) => {
                self.asleep_us += step_us;
                if until_us <= us {
                    self.state = State::Behind;
                }
            }
            State::Running if late_us > GAP_US => {
                self.asleep_us += step_us;
                self.state = State::CatchingUp(us + self.catch_up_us);
                self.gap_us = Some(late_us);
            }
            State::Behind if late_us > GAP_US => {
                self.asleep_us += late_us - GAP_US;
                self.gap_us = Some(late_us);
            }
            State::Running | State::Behind => {}
        }
        us - self.asleep_us
    }

    /// Notes that the thread now waits for `us` at most, which is no gap.
    pub fn wait(&mut self, us: u64) {
        self.due_us = self.last_us.saturating_add(us);
    }

    /// Whether a gap was noticed and [`Self::caught_up`] was not called since.
    pub fn is_behind(&self) -> bool {
        self.state != State::Running
    }

    /// Whether the clock stood still after a gap for as long as it may.
    pub fn has_waited_to_catch_up(&self) -> bool {
        self.state == State::Behind
    }

    /// Notes that all that had arrived is taken in.
    pub fn caught_up(&mut self) {
        self.state = State::Running;
    }

    /// The length of a gap that was noticed since the last call.
    pub fn take_gap(&mut self) -> Option<u64> {
        self.gap_us.take()
    }

    /// When the steady clock reads this, if there is no further gap.
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
        // A quarter of a second for each turn, once it had its time to catch up.
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
