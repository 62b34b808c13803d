//! One wheel for all that a shard does later: each entry a connection or a pending answer.

/// How fine time is cut, in milliseconds: nothing here needs to be more exact.
const TICK_MS: u64 = 16;

/// Slots of the wheel: about 65 s. What is due later waits in the last slot and comes out early: whoever
/// is told sets it again.
const SLOTS: usize = 4096;

/// Timers that fire in one turn: some 2 ms if each closes a connection.
pub const TIMERS_PER_TURN: usize = 1024;

/// What an entry is about. Whoever is told looks whether it is still true: entries are never
/// removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// A connection's deadline.
    Connection(crate::message::ConnectionKey),
    /// When a client that sent too much may be read from again.
    Rate(crate::message::ConnectionKey),
    /// A pending answer's.
    Ticket(crate::message::Ticket),
}

/// A hashed wheel. Setting costs a push; time passing costs the slots passed.
#[derive(Debug)]
pub struct Timers {
    slots: Vec<Vec<Timer>>,
    // One bit a slot that is not empty.
    occupied: Vec<u64>,
    // Ticks below it are done.
    next_tick: u64,
    // The first of those whose slot is not empty: every turn asks for it twice.
    first_due: Option<u64>,
    // What is left of a slot whose time has come, the last first, and its tick.
    due: Vec<Timer>,
    due_tick: u64,
}

impl Timers {
    /// An empty wheel that starts at `now_ms`.
    pub fn new(now_ms: u64) -> Self {
        Self {
            slots: vec![Vec::new(); SLOTS],
            occupied: vec![0; SLOTS / 64],
            next_tick: now_ms / TICK_MS,
            first_due: None,
            due: Vec::new(),
            due_tick: 0,
        }
    }

    /// Adds an entry; gives the tick at which it comes out, which may be before `deadline_ms` if
    /// that is beyond the wheel.
    pub fn set(&mut self, deadline_ms: u64, timer: Timer) -> u64 {
        let tick =
            deadline_ms.div_ceil(TICK_MS).clamp(self.next_tick, self.next_tick + SLOTS as u64 - 1);
        let slot = tick as usize % SLOTS;
        self.slots[slot].push(timer);
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.first_due = Some(self.first_due.map_or(tick, |first| first.min(tick)));
        tick
    }

    /// Takes out the next entry that is due, with the tick at which it lay.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<(u64, Timer)> {
        if self.due.is_empty() && !self.take_slot(now_ms) {
            return None;
        }
        self.due.pop().map(|timer| (self.due_tick, timer))
    }

    /// Takes the entries of the next slot that is due; false when there is none.
    fn take_slot(&mut self, now_ms: u64) -> bool {
        let tick = self.first_due.unwrap_or(u64::MAX / TICK_MS);
        if tick * TICK_MS > now_ms {
            // Nothing lies before it, so the wheel may turn: new entries then land where time is.
            self.next_tick = self.next_tick.max(now_ms / TICK_MS).min(tick);
            return false;
        }
        let slot = tick as usize % SLOTS;
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        std::mem::swap(&mut self.slots[slot], &mut self.due);
        self.due.reverse();
        self.due_tick = tick;
        self.next_tick = tick + 1;
        self.first_due = self.find_first_due();
        true
    }

    /// When the next entry comes out, in milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        match self.due.is_empty() {
            true => self.first_due.map(|tick| tick * TICK_MS),
            false => Some(self.due_tick * TICK_MS),
        }
    }

    /// The first tick from next_tick on whose slot is not empty.
    fn find_first_due(&self) -> Option<u64> {
        let start = self.next_tick as usize % SLOTS;
        let words = self.occupied.len();
        for step in 0..=words {
            let word = (start / 64 + step) % words;
            let mask = match step {
                0 => !0 << (start % 64),
                _ if step == words => !(!0 << (start % 64)),
                _ => !0,
            };
            let bits = self.occupied[word] & mask;
            if bits != 0 {
                let slot = word * 64 + bits.trailing_zeros() as usize;
                return Some(self.next_tick + ((slot + SLOTS - start) % SLOTS) as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Ticket;

    fn fired(timers: &mut Timers, now_ms: u64) -> Vec<u64> {
        let due = std::iter::from_fn(|| timers.pop_due(now_ms));
        due.map(|(_, timer)| match timer {
            Timer::Ticket(ticket) => ticket.0,
            Timer::Connection(_) | Timer::Rate(_) => unreachable!("none was set"),
        })
        .collect()
    }

    #[test]
    fn entries_come_out_in_order_not_early_and_at_most_a_tick_late() {
        let mut timers = Timers::new(1_000_000);
        let mut delays: Vec<u64> = (0..400).map(|n| n * 157 % 60_000).collect();
        for &delay in &delays {
            timers.set(1_000_000 + delay, Timer::Ticket(Ticket(delay)));
        }
        delays.sort_unstable();
        let mut out = Vec::new();
        for now in (1_000_000..1_061_000).step_by(7) {
            for delay in fired(&mut timers, now) {
                assert!(1_000_000 + delay <= now && now < 1_000_000 + delay + TICK_MS + 7);
                out.push(delay / TICK_MS);
            }
        }
        assert!(out.is_sorted() && out.len() == delays.len());
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn what_is_beyond_the_wheel_comes_out_at_its_end() {
        let mut timers = Timers::new(0);
        timers.set(10_000_000, Timer::Ticket(Ticket(1)));
        assert_eq!(timers.next_deadline(), Some((SLOTS as u64 - 1) * TICK_MS));
    }

    #[test]
    fn a_wheel_that_was_long_empty_fires_new_entries_on_time() {
        let mut timers = Timers::new(0);
        assert!(fired(&mut timers, 500_000).is_empty());
        timers.set(500_100, Timer::Ticket(Ticket(1)));
        assert!(fired(&mut timers, 500_050).is_empty());
        assert_eq!(fired(&mut timers, 500_120), [1]);
    }
}
