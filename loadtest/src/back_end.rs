//! A back end that publishes or sends numbered messages, and reads the answers.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::answer::Tally;
use crate::latency::Latencies;
use crate::ledger::Ledger;
use crate::pace::Pace;
use crate::payload::Payload;
use crate::publisher::{Destination, Publisher};
use crate::tasks::{in_parallel, until};

/// How requests follow each other.
#[derive(Clone, Copy)]
pub enum Load {
    /// A number of calls at once, and the next ones when all are answered.
    AtOnce(u32),
    /// A number of calls per second, of all back ends together.
    PerSecond(u32),
}

/// One connection that publishes to each of its destinations in turn. The messages to each destination have
/// their own source, and numbers from 0.
pub struct BackEnd {
    publisher: Publisher,
    destinations: Vec<Destination>,
    first_source: u32,
    bytes: usize,
    /// The last message written.
    text: Vec<u8>,
    /// The expected tally of each answer, for protocols whose answers have one.
    pub reached: Tally,
    /// The requests that were answered as expected.
    pub answers: Ledger,
}

impl BackEnd {
    /// A back end whose messages have `bytes` bytes. The messages to the first of `destinations`, which are not
    /// empty, have the source `first_source`.
    pub fn new(
        publisher: Publisher,
        destinations: Vec<Destination>,
        first_source: u32,
        bytes: usize,
    ) -> Self {
        let (reached, answers) = (Tally { s: 0, f: 0 }, Ledger::default());
        Self { publisher, destinations, first_source, bytes, text: Vec::new(), reached, answers }
    }

    /// Sends the requests `numbers`, `at_once` at a time, the next ones when all are answered. A latency is the
    /// time from the start of writing a batch to the arrival of an answer.
    ///
    /// # Errors
    /// The connection ended, or an answer reports a failure.
    pub async fn work(
        &mut self,
        numbers: Range<u32>,
        at_once: u32,
        latencies: &Latencies,
    ) -> Result<()> {
        for batch in bursts(numbers, at_once) {
            let written = Instant::now();
            for number in batch.clone() {
                self.feed(number, written)?;
            }
            self.publisher.flush().await?;
            for number in batch.clone() {
                let (i, tally) = self.publisher.answer(number).await?;
                self.check_answer(i, &batch, tally)?;
                latencies.record(self.publisher.received_at().saturating_duration_since(written));
            }
        }
        Ok(())
    }

    /// Sends the requests `numbers`, each when it is due by `pace`, and reads the answers concurrently. A
    /// latency is the time from when a request was due to the arrival of its answer.
    ///
    /// # Errors
    /// The connection ended, or an answer reports a failure.
    pub async fn work_at(
        &mut self,
        numbers: Range<u32>,
        mut pace: Pace,
        latencies: &Latencies,
    ) -> Result<()> {
        let (mut fed, mut answered) = (numbers.start, numbers.start);
        while answered < numbers.end {
            tokio::select! {
                due = pace.next(), if fed < numbers.end => {
                    for at in due? {
                        self.feed(numbers.start + at, pace.instant(at))?;
                        fed += 1;
                    }
                    self.publisher.flush().await?;
                }
                answer = self.publisher.answer(answered), if answered < fed => {
                    let (i, tally) = answer?;
                    self.check_answer(i, &(numbers.start..fed), tally)?;
                    let due = pace.instant(i - numbers.start);
                    latencies.record(self.publisher.received_at().saturating_duration_since(due));
                    answered += 1;
                }
            }
        }
        Ok(())
    }

    fn feed(&mut self, number: u32, due: Instant) -> Result<()> {
        let count = self.destinations.len() as u32;
        let (turn, of) = (number / count, number % count);
        Payload::at(self.first_source + of, turn, due).write(&mut self.text, self.bytes);
        self.publisher.feed(number, &self.destinations[of as usize], &self.text)
    }

    /// Notes an answer in the ledger, unless its tally is not the expected one.
    fn check_answer(&mut self, i: u32, sent: &Range<u32>, tally: Option<Tally>) -> Result<()> {
        ensure!(sent.contains(&i), "an answer to request {i}, which was not sent");
        if tally.is_none_or(|tally| tally == self.reached) {
            self.answers.observe(i);
        }
        Ok(())
    }
}

/// Has every back end send the requests `numbers`, or as many as possible before the deadline.
///
/// # Errors
/// A connection ended, or an answer reports a failure.
pub async fn work(
    back_ends: Vec<BackEnd>,
    numbers: Range<u32>,
    load: Load,
    latencies: &Arc<Latencies>,
    deadline: tokio::time::Instant,
) -> Result<Vec<BackEnd>> {
    let mut paces = match load {
        Load::AtOnce(_) => vec![],
        Load::PerSecond(rate) => Pace::start(rate, back_ends.len() as u32, numbers.len() as u32),
    };
    let working = in_parallel(back_ends, |mut back_end| {
        let (numbers, latencies, pace) = (numbers.clone(), Arc::clone(latencies), paces.pop());
        async move {
            let working = async {
                match (pace, load) {
                    (Some(pace), _) => back_end.work_at(numbers, pace, &latencies).await,
                    (None, Load::AtOnce(count)) => back_end.work(numbers, count, &latencies).await,
                    (None, Load::PerSecond(_)) => bail!("a back end without a pace"),
                }
            };
            until(deadline, working).await?;
            Ok(back_end)
        }
    });
    working.await
}

/// Splits `numbers` into bursts of `burst` numbers. The last one may be shorter.
pub fn bursts(numbers: Range<u32>, burst: u32) -> impl Iterator<Item = Range<u32>> {
    let end = numbers.end;
    numbers.step_by(burst as usize).map(move |first| first..end.min(first.saturating_add(burst)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_cover_every_number_once() {
        let cut: Vec<_> = bursts(1..8, 3).collect();
        assert_eq!(cut, [1..4, 4..7, 7..8]);
        assert_eq!(bursts(0..0, 3).count(), 0);
    }
}
