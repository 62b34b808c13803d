//! The messages of one receiver, checked one by one.
//!
//! Each source sends an opening message, which warms up the server, before the measured ones, and a closing
//! message after them, before which a duplicate would have to arrive.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tokio::time;

use crate::latency::Latencies;
use crate::ledger::{Damage, Ledger};
use crate::payload::Payload;

/// The numbers of a source's opening, measured and closing messages.
pub fn stages(measured: u32) -> [Range<u32>; 3] {
    [0..1, 1..measured + 1, measured + 1..measured + 2]
}

/// The arrivals at all receivers of a run.
#[derive(Default)]
pub struct Arrivals {
    /// Latencies of the measured messages.
    pub latencies: Latencies,
    awaited: AtomicI64,
    all_here: Notify,
}

impl Arrivals {
    /// Sets the number of arrivals to wait for. To be called before the messages are sent.
    pub fn expect(&self, count: u64) {
        self.awaited.store(count.cast_signed(), Ordering::Release);
    }

    /// Waits until all expected messages have arrived.
    pub async fn all(&self) {
        self.all_here.notified().await;
    }

    /// Waits until all expected messages have arrived, or until `deadline`.
    pub async fn all_before(&self, deadline: time::Instant) {
        // Messages that have not arrived by then are missing in their inboxes.
        let _ = time::timeout_at(deadline, self.all()).await;
    }

    fn count_one(&self) {
        if self.awaited.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.all_here.notify_one();
        }
    }
}

/// The messages that one receiver expects: the same number from each of its sources.
#[derive(Clone)]
pub struct Inbox {
    sources: Range<u32>,
    ledgers: Vec<Ledger>,
    measured: Range<u32>,
    sent: u32,
    bytes: usize,
    remaining: u64,
    arrivals: Arc<Arrivals>,
}

impl Inbox {
    /// An inbox for `measured` messages of `bytes` bytes from each source, and the opening and closing ones.
    pub fn new(sources: Range<u32>, measured: u32, bytes: usize, arrivals: &Arc<Arrivals>) -> Self {
        let [_, measured, closing] = stages(measured);
        Self {
            ledgers: vec![Ledger::default(); sources.len()],
            remaining: sources.len() as u64 * u64::from(closing.end),
            sources,
            measured,
            sent: closing.end,
            bytes,
            arrivals: Arc::clone(arrivals),
        }
    }

    /// Takes a message that arrived at `received`.
    ///
    /// # Errors
    /// The message is not an expected one: it was altered, or is for another receiver.
    pub fn take(&mut self, text: &[u8], received: Instant) -> Result<Payload> {
        let payload = Payload::parse(text, self.bytes)
            .filter(|payload| {
                payload.sequence < self.sent && self.sources.contains(&payload.source)
            })
            .with_context(|| {
                let text = String::from_utf8_lossy(text);
                format!("a message arrived that was not sent: {text:.80}")
            })?;
        let source = (payload.source - self.sources.start) as usize;
        if self.ledgers[source].observe(payload.sequence) {
            self.remaining -= 1;
            if self.measured.contains(&payload.sequence) {
                self.arrivals.latencies.record(payload.age_at(received));
            }
            self.arrivals.count_one();
        }
        Ok(payload)
    }

    /// Whether every message has arrived.
    pub fn is_complete(&self) -> bool {
        self.remaining == 0
    }

    /// The messages lost, doubled or misordered, if no more arrive.
    pub fn damage(&self) -> Damage {
        self.ledgers.iter().map(|ledger| ledger.damage(self.sent)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> (Arc<Arrivals>, Inbox) {
        let arrivals = Arc::default();
        let inbox = Inbox::new(4..6, 1, 40, &arrivals);
        (arrivals, inbox)
    }

    fn take(inbox: &mut Inbox, source: u32, sequence: u32) -> Result<Payload> {
        let sent = Instant::now();
        inbox.take(Payload::at(source, sequence, sent).text(40).as_bytes(), sent)
    }

    #[test]
    fn an_inbox_is_complete_with_every_message_of_every_source() {
        let (_, mut inbox) = inbox();
        for source in 4..6 {
            for sequence in 0..3 {
                assert!(!inbox.is_complete());
                take(&mut inbox, source, sequence).expect("it was to come");
            }
        }
        assert!(inbox.is_complete() && inbox.damage().is_none());
    }

    #[test]
    fn a_message_that_was_not_sent_is_an_error() {
        let (_, mut inbox) = inbox();
        for (source, sequence, bytes) in [(3, 0, 40), (6, 0, 40), (4, 3, 40), (4, 0, 41)] {
            let text = Payload::now(source, sequence).text(bytes);
            assert!(inbox.take(text.as_bytes(), Instant::now()).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn all_have_arrived_when_each_came_a_first_time() {
        let (arrivals, mut inbox) = inbox();
        arrivals.expect(2);
        for sequence in [0, 0] {
            take(&mut inbox, 4, sequence).expect("it was to come");
        }
        assert_eq!(arrivals.awaited.load(Ordering::Acquire), 1);
        take(&mut inbox, 4, 1).expect("it was to come");
        arrivals.all().await;
    }
}
