//! When a shard has to be called next.

use super::Shard;

/// Later than any deadline. This runs every turn: a number for "never" takes a few instructions, and comparing `Option`s
/// takes hundreds.
const NEVER: u64 = u64::MAX;

impl Shard {
    /// Returns the latest time for the next call of [`Self::handle_turn`], on the clock of
    /// [`Now::ms`](super::Now::ms). A time in the past means at once. `None`: no call is needed before the next
    /// input.
    #[inline]
    pub fn poll_timeout(&self) -> Option<u64> {
        if self.turn.work.is_waiting() || self.clients.is_waiting() || self.reload.is_pending() {
            return Some(0);
        }
        let usual = earliest([
            self.turn.timers.next_deadline(),
            self.topics.next_turn(),
            self.clients.next_announcement(&self.turn),
        ]);
        let first = match has_rare_deadlines(self) {
            true => usual.min(first_rare_deadline(self)),
            false => usual,
        };
        (first != NEVER).then_some(first)
    }
}

/// Whether a part has work that there is none of in most turns. To test for work costs less than to ask for its time.
#[inline]
fn has_rare_deadlines(shard: &Shard) -> bool {
    shard.turn.is_draining
        || shard.last_wills.has_work()
        || shard.api_access.next_verification().is_some()
        || shard.shedding.next_turn().is_some()
        || shard.lists.has_work()
        || shard.taps.has_work(&shard.turn)
        || shard.backends.has_takes()
        || shard.homes.has_work()
        || shard.clients.has_presence_work()
}

/// Returns the first time at which such work goes on, or [`NEVER`].
#[inline(never)]
fn first_rare_deadline(shard: &Shard) -> u64 {
    earliest([
        shard.draining.next_turn(shard.turn.now.ms),
        shard.last_wills.next_turn(shard.turn.now.ms),
        shard.api_access.next_verification(),
        shard.clients.next_presence(),
        shard.shedding.next_turn(),
        shard.lists.next_turn(),
        shard.taps.next_turn(&shard.turn),
        shard.backends.next_take(),
        shard.homes.next_turn(),
    ])
}

/// Returns the earliest of these times, or [`NEVER`].
fn earliest<const N: usize>(times: [Option<u64>; N]) -> u64 {
    times.into_iter().fold(NEVER, |first, time| first.min(time.unwrap_or(NEVER)))
}
