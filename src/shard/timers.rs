//! The timer wheel of a shard, with an entry per connection or pending answer.

/// Resolution of the timers, in milliseconds.
const TICK_MS: u64 = 16;

/// Slots of the wheel, which covers about 65 s. A timer with a later deadline fires early, from the
/// last slot, and its receiver sets it again.
const SLOTS: usize = 4096;

/// Timers that fire in one turn: about 2 ms if each closes a connection.
pub(super) const TIMERS_PER_TURN: usize = 1024;

/// The purpose of a timer. Entries are never removed, so the receiver checks whether the timer still
/// applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The deadline of a connection.
    Connection(crate::message::ConnectionKey),
    /// The time at which a client that used up its message rate may be read again.
    Rate(crate::message::ConnectionKey),
    /// The deadline of a device's new token that waits for keys.
    Token(crate::message::ConnectionKey),
    /// The deadline of a pending answer.
    Ticket(crate::message::Ticket),
}

/// A hashed timer wheel. Setting a timer pushes an entry. Advancing to the next occupied slot scans
/// a bitmap. Each connection and pending answer has one valid entry; stale ones stay until they
/// fire.
#[derive(Debug)]
pub struct Timers {
    slots: Vec<Vec<Timer>>,
    // One bit per slot, set if the slot is not empty.
    occupied: Vec<u64>,
    // All ticks below this one have fired.
    next_tick: u64,
    // The first tick whose slot is not empty. Cached, because every turn needs it twice.
    first_due: Option<u64>,
    // The entries left of the slot that is firing, last first, and its tick.
    due: Vec<Timer>,
    due_tick: u64,
}

impl Timers {
    /// Creates an empty wheel that starts at `now_ms`.
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

    /// Adds a timer. Returns the tick at which it fires, which is before `deadline_ms` if that is
    /// beyond the end of the wheel.
    pub fn set(&mut self, deadline_ms: u64, timer: Timer) -> u64 {
        let tick =
            deadline_ms.div_ceil(TICK_MS).clamp(self.next_tick, self.next_tick + SLOTS as u64 - 1);
        let slot = tick as usize % SLOTS;
        self.slots[slot].push(timer);
        self.occupied[slot / 64] |= 1 << (slot % 64);
        self.first_due = Some(self.first_due.map_or(tick, |first| first.min(tick)));
        tick
    }

    /// Returns the next timer that is due, with its tick.
    pub fn pop_due(&mut self, now_ms: u64) -> Option<(u64, Timer)> {
        if self.due.is_empty() && !self.take_slot(now_ms) {
            return None;
        }
        self.due.pop().map(|timer| (self.due_tick, timer))
    }

    /// Takes the entries of the next due slot. Returns false if there is none.
    fn take_slot(&mut self, now_ms: u64) -> bool {
        let now_tick = now_ms / TICK_MS;
        let Some(tick) = self.first_due.filter(|&tick| tick <= now_tick) else {
            // No timer is due yet, so the wheel advances to the present time.
            self.next_tick = self.next_tick.max(now_tick);
            return false;
        };
        let slot = tick as usize % SLOTS;
        self.occupied[slot / 64] &= !(1 << (slot % 64));
        std::mem::swap(&mut self.slots[slot], &mut self.due);
        self.due.reverse();
        self.due_tick = tick;
        self.next_tick = tick + 1;
        self.first_due = self.find_first_due();
        true
    }

    /// Returns when the next timer fires, in milliseconds.
    pub fn next_deadline(&self) -> Option<u64> {
        match self.due.is_empty() {
            true => self.first_due.map(|tick| tick * TICK_MS),
            false => Some(self.due_tick * TICK_MS),
        }
    }

    /// Returns the first tick from next_tick on whose slot is not empty.
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
            Timer::Connection(_) | Timer::Rate(_) | Timer::Token(_) => unreachable!("none was set"),
        })
        .collect()
    }

    #[test]
    fn timers_fire_in_order_never_early_and_at_most_a_tick_late() {
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
    fn a_deadline_beyond_the_wheel_fires_at_its_end() {
        let mut timers = Timers::new(0);
        timers.set(10_000_000, Timer::Ticket(Ticket(1)));
        assert_eq!(timers.next_deadline(), Some((SLOTS as u64 - 1) * TICK_MS));
    }

    #[test]
    fn a_wheel_that_was_empty_for_long_fires_new_timers_on_time() {
        let mut timers = Timers::new(0);
        assert!(fired(&mut timers, 500_000).is_empty());
        timers.set(500_100, Timer::Ticket(Ticket(1)));
        assert!(fired(&mut timers, 500_050).is_empty());
        assert_eq!(fired(&mut timers, 500_120), [1]);
    }
}
