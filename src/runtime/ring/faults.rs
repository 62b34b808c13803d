//! What the kernel may do and rarely does, from a seed, for the tests: requests that it refuses, sends
//! that it cuts short, cancellations that miss, completions that come late.
//!
//! A request that is refused never reaches the kernel: in its place goes one that does nothing, whose
//! completion is then given the error. So nothing that the kernel did is ever lost.
#![deny(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue};

use super::{Completed, Request, user_data};
use crate::message::ConnectionKey;

/// The longest that a completion is held back, in turns.
const TURNS_MAX: usize = 6;

/// The source of chance: a splitmix64 generator.
#[derive(Debug, Default)]
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }
}

/// The faults of one ring; by default none.
#[derive(Debug, Default)]
pub struct Faults {
    random: Random,
    // A fault once in so many chances; 0: never.
    odds: usize,
    // The peers act between two turns, on the same thread: to wait for them is to wait for ever.
    never_waits: bool,
    // So many of the next cancellations miss in any case.
    cancels_to_miss: usize,
    // The errors of requests that were refused, by their user data.
    refused: HashMap<u64, i32>,
    // Completions held back for so many turns, in order.
    held: Vec<(usize, Completed)>,
    // Receive buffers that the kernel has given and not got back.
    lent: BTreeSet<u16>,
}

impl Faults {
    /// Faults once in `odds` chances.
    pub fn new(seed: u64, odds: usize) -> Self {
        Self { random: Random::new(seed), odds, never_waits: true, ..Self::default() }
    }

    /// No faults.
    pub fn none() -> Self {
        Self { never_waits: true, ..Self::default() }
    }

    /// No faults but that the next cancellation misses.
    pub fn miss_one_cancel() -> Self {
        Self { cancels_to_miss: 1, ..Self::none() }
    }

    /// No new ones; what is under way goes on.
    pub fn stop(&mut self) {
        self.odds = 0;
    }

    /// Whether no buffer and no completion is out.
    pub fn are_settled(&self) -> bool {
        self.lent.is_empty() && self.held.is_empty() && self.refused.is_empty()
    }

    fn strikes(&mut self) -> bool {
        self.odds > 0 && self.random.below(self.odds) == 0
    }

    /// The request, or one that does nothing in its place.
    pub(super) fn replaced(
        &mut self,
        request: Request,
        key: ConnectionKey,
        entry: squeue::Entry,
    ) -> squeue::Entry {
        let is_missed = request == Request::Cancel && self.cancels_to_miss > 0;
        self.cancels_to_miss -= usize::from(is_missed);
        if !is_missed && !self.strikes() {
            return entry;
        }
        let errors: &[i32] = match request {
            Request::Accept => &[libc::EMFILE, libc::ENFILE, libc::ECONNABORTED, libc::EAGAIN],
            Request::Receive => &[libc::ENOBUFS, libc::EAGAIN, libc::ECANCELED, libc::EINTR],
            Request::Send => &[libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM],
            Request::Writable | Request::Wake => &[libc::ECANCELED, libc::EINTR],
            // It comes while the request is between two queues, and finds nothing.
            Request::Cancel => &[libc::ENOENT],
        };
        let error = self.random.pick(errors);
        let twin = self.refused.insert(user_data(request, key), error);
        let may_have_twin = request == Request::Cancel;
        assert!(twin.is_none() || may_have_twin, "two at a time: {request:?} {key:?}");
        opcode::Nop::new().build()
    }

    /// How many of so many bytes a send takes.
    pub(super) fn shortened(&mut self, bytes: usize) -> usize {
        match bytes > 0 && self.strikes() {
            true => 1 + self.random.below(bytes),
            false => bytes,
        }
    }

    /// Cuts what a send takes short, in the middle of a run.
    pub(super) fn shorten_runs(&mut self, runs: &mut Vec<libc::iovec>) {
        if !runs.is_empty() && self.strikes() {
            runs.truncate(1 + self.random.below(runs.len()));
            let last = runs.last_mut().expect("one is left");
            last.iov_len = 1 + self.random.below(last.iov_len.max(1));
        }
    }

    /// How long to wait for the kernel.
    pub(super) fn wait(&self, wait: Duration) -> Duration {
        if self.never_waits { Duration::ZERO } else { wait }
    }

    /// What was held back long enough, and what is not held back of what has come. Completions of one
    /// request keep their order, as they do in the kernel.
    pub(super) fn delayed(
        &mut self,
        completed: impl Iterator<Item = Completed>,
    ) -> std::vec::IntoIter<Completed> {
        for mut completed in completed {
            if let Some(error) = self.refused.remove(&completed.user_data) {
                completed.result = -error;
            }
            if let Some(id) = cqueue::buffer_select(completed.flags) {
                assert!(self.lent.insert(id), "buffer {id} was given while it was ours");
            }
            let turns = if self.strikes() { 1 + self.random.below(TURNS_MAX) } else { 0 };
            self.held.push((turns, completed));
        }
        let (mut due, mut held) = (Vec::new(), Vec::<(usize, Completed)>::new());
        for (turns, completed) in self.held.drain(..) {
            let is_behind = held.iter().any(|(_, other)| other.user_data == completed.user_data);
            match turns > 0 || is_behind {
                true => held.push((turns.saturating_sub(1), completed)),
                false => due.push(completed),
            }
        }
        self.held = held;
        due.into_iter()
    }

    /// A buffer goes back to the kernel.
    pub(super) fn given_back(&mut self, id: u16) {
        assert!(self.lent.remove(&id), "buffer {id} went back twice");
    }
}
