//! Open-loop timing: messages are due at a constant rate, whether or not earlier ones have arrived.
//!
//! The latency of a message counts from when it was due, also if it was sent late because the server or this
//! process was slow. So no stall is left out.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::sync::Semaphore;

/// Time before the first message is due, so that senders are ready.
const LEAD: Duration = Duration::from_millis(5);

/// The times at which the messages of one sender are due.
pub struct Pace {
    first: Instant,
    period: Duration,
    /// The number of due messages that were not taken.
    due: Arc<Semaphore>,
    taken: u32,
}

impl Pace {
    /// The paces of `senders` senders, which take turns, at `rate` messages per second for all of them and with
    /// `each` messages per sender.
    ///
    /// A separate thread keeps the time, since the runtime's timers have a resolution of a millisecond.
    pub fn start(rate: u32, senders: u32, each: u32) -> Vec<Self> {
        let distance = Duration::from_secs(1) / rate;
        let start = Instant::now() + LEAD;
        let pace = |sender| Self {
            first: start + distance * sender,
            period: distance * senders,
            due: Arc::new(Semaphore::new(0)),
            taken: 0,
        };
        let paces: Vec<_> = (0..senders).map(pace).collect();
        let due = paces.iter().map(|pace| Arc::downgrade(&pace.due)).collect();
        thread::spawn(move || keep_time(start, distance, due, each));
        paces
    }

    /// Waits until messages are due, and takes all due ones. Returns their numbers, which count from 0.
    ///
    /// # Errors
    /// None in practice: a pace is never closed.
    pub async fn next(&mut self) -> Result<Range<u32>> {
        self.due.acquire().await?.forget();
        let more = self.due.forget_permits(Semaphore::MAX_PERMITS);
        let first = self.taken;
        self.taken += 1 + more as u32;
        Ok(first..self.taken)
    }

    /// When the message `number` is due.
    pub fn instant(&self, number: u32) -> Instant {
        self.first + self.period * number
    }
}

/// Makes messages due, until all are or no sender waits any more.
fn keep_time(start: Instant, distance: Duration, senders: Vec<Weak<Semaphore>>, each: u32) {
    let mut due = start;
    for _ in 0..each {
        let mut is_awaited = false;
        for sender in &senders {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if let Some(sender) = sender.upgrade() {
                sender.add_permits(1);
                is_awaited = true;
            }
            due += distance;
        }
        if !is_awaited {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_sender_gets_all_its_messages_and_none_before_it_is_due() {
        for mut pace in Pace::start(10_000, 3, 20) {
            let mut next = 0;
            while next < 20 {
                let due = pace.next().await.expect("a pace is never closed");
                assert_eq!(due.start, next);
                assert!(pace.instant(due.end - 1) <= Instant::now());
                next = due.end;
            }
            assert_eq!((next, pace.due.available_permits()), (20, 0));
        }
    }

    #[tokio::test]
    async fn senders_take_turns() {
        let paces = Pace::start(1_000, 2, 1);
        let distance = paces[1].instant(0) - paces[0].instant(0);
        assert_eq!(distance, Duration::from_millis(1));
        assert_eq!(paces[0].instant(1) - paces[1].instant(0), distance);
    }
}
