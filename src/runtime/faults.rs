//! Injects rare behaviour of the kernel into tests of both drivers, chosen by a seed: refused requests,
//! short reads and writes, cancellations that miss, and late completions.
//!
//! A refused request never reaches the kernel. A ring submits a no-op in its place, whose completion gets
//! the error, so that no effect of a real request is lost.
#![deny(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use io_uring::{cqueue, opcode, squeue};

use super::ring::{Completed, RingRequest, user_data};
use crate::message::ConnectionKey;

/// The longest delay of a completion, in turns.
const TURNS_MAX: usize = 6;

/// IORING_CQE_F_BUFFER and IORING_CQE_BUFFER_SHIFT of the kernel's interface.
const NAMES_BUFFER: u32 = 1;
const BUFFER_SHIFT: u32 = 16;

/// A random number generator: splitmix64.
#[derive(Debug, Default)]
pub struct Random(u64);

impl Random {
    /// Creates a generator. Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Returns a number below `end`, which must be at least 1.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    /// Returns one of several values.
    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len())]
    }
}

/// The faults to inject into one ring or poller. The default is none.
#[derive(Debug, Default)]
pub struct Faults {
    random: Random,
    // One fault in this many chances. 0: never.
    odds: usize,
    // The test's peers run between turns on the same thread, so a wait for them would never end.
    never_waits: bool,
    // The number of cancellations that miss from now on.
    cancels_to_miss: usize,
    // The errors of refused requests, by user data.
    refused: HashMap<u64, i32>,
    // Delayed completions, each with its remaining turns, in order.
    held: Vec<(usize, Completed)>,
    // The next receive that takes a buffer seems to fail.
    fails_next_receive: bool,
}

impl Faults {
    /// Injects a fault once in `odds` chances.
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

    /// Stops new faults. Delayed completions still follow.
    pub fn stop(&mut self) {
        self.odds = 0;
    }

    /// Whether no completion is delayed and no refused request is left.
    pub(super) fn are_settled(&self) -> bool {
        self.held.is_empty() && self.refused.is_empty()
    }

    /// Adds a failed receive whose completion names a buffer that was not consumed.
    pub(super) fn fail_receive_and_keep(&mut self, key: ConnectionKey, buffer: u16) {
        let user_data = user_data(RingRequest::Receive, key);
        let flags = NAMES_BUFFER | u32::from(buffer) << BUFFER_SHIFT;
        self.held.push((0, Completed { user_data, result: -libc::EAGAIN, flags }));
    }

    /// Turns the next receive that takes a buffer into a failed one that has consumed it.
    pub(super) fn fail_receive_and_consume(&mut self) {
        self.fails_next_receive = true;
    }

    pub(super) fn strikes(&mut self) -> bool {
        self.odds > 0 && self.random.below(self.odds) == 0
    }

    /// Returns the request, or a no-op in its place.
    pub(super) fn replaced(
        &mut self,
        request: RingRequest,
        key: ConnectionKey,
        entry: squeue::Entry,
    ) -> squeue::Entry {
        let is_missed = request == RingRequest::Cancel && self.cancels_to_miss > 0;
        self.cancels_to_miss -= usize::from(is_missed);
        if !is_missed && !self.strikes() {
            return entry;
        }
        let error = self.random.pick(errors_of(request));
        let twin = self.refused.insert(user_data(request, key), error);
        let may_have_twin = request == RingRequest::Cancel;
        assert!(twin.is_none() || may_have_twin, "two at a time: {request:?} {key:?}");
        opcode::Nop::new().build()
    }

    /// Returns the error of a request that the poller is to refuse.
    pub(super) fn refusal(&mut self, request: RingRequest) -> Option<io::Error> {
        let strikes = self.strikes();
        strikes.then(|| io::Error::from_raw_os_error(self.random.pick(errors_of(request))))
    }

    /// Returns how many of `bytes` a send writes, or a receive reads.
    pub(super) fn shortened(&mut self, bytes: usize) -> usize {
        match bytes > 0 && self.strikes() {
            true => 1 + self.random.below(bytes),
            false => bytes,
        }
    }

    /// Shortens a gathered send, in the middle of a run.
    pub(super) fn shorten_runs(&mut self, runs: &mut Vec<libc::iovec>) {
        if !runs.is_empty() && self.strikes() {
            runs.truncate(1 + self.random.below(runs.len()));
            let last = runs.last_mut().expect("one is left");
            last.iov_len = 1 + self.random.below(last.iov_len.max(1));
        }
    }

    /// Returns how long to wait for the kernel.
    pub(super) fn wait(&self, wait: Duration) -> Duration {
        if self.never_waits { Duration::ZERO } else { wait }
    }

    /// Returns completions that were held back long enough, and new ones that are not held back. Completions of one
    /// request keep their order, as they do in the kernel.
    pub(super) fn delayed(
        &mut self,
        completed: impl Iterator<Item = Completed>,
    ) -> std::vec::IntoIter<Completed> {
        for mut completed in completed {
            if let Some(error) = self.refused.remove(&completed.user_data) {
                completed.result = -error;
            }
            if self.fails_next_receive && cqueue::buffer_select(completed.flags).is_some() {
                self.fails_next_receive = false;
                completed.result = -libc::EAGAIN;
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
}

/// The errors with which the kernel may refuse a request.
fn errors_of(request: RingRequest) -> &'static [i32] {
    match request {
        RingRequest::Accept => &[libc::EMFILE, libc::ENFILE, libc::ECONNABORTED, libc::EAGAIN],
        RingRequest::Receive => &[libc::ENOBUFS, libc::EAGAIN, libc::ECANCELED, libc::EINTR],
        RingRequest::Send => &[libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM],
        RingRequest::Writable | RingRequest::Wake => &[libc::ECANCELED, libc::EINTR],
        // The request is between two queues of the kernel, and the cancellation finds nothing.
        RingRequest::Cancel => &[libc::ENOENT],
    }
}
