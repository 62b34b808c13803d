//! A back end at work: it publishes or sends numbered messages and takes the answers.

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
    /// So many at once, the next when all those are answered.
    AtOnce(u32),
    /// So many a second, of all back ends together.
    PerSecond(u32),
}

/// One connection and what it publishes: to each of its destinations in turn, each of which is a
/// source of its own, with numbers from 0.
pub struct BackEnd {
    publisher: Publisher,
    destinations: Vec<Destination>,
    first_source: u32,
    bytes: usize,
    /// Of the message that was written last.
    text: Vec<u8>,
    /// What each answer is to tell, where answers tell anything.
    pub reached: Tally,
    /// The requests that were answered so.
    pub answers: Ledger,
}

impl BackEnd {
    /// One whose messages have `bytes` bytes; those to the first of `destinations`, of which there
    /// is one at least, are those of `first_source`.
    pub fn new(
        publisher: Publisher,
        destinations: Vec<Destination>,
        first_source: u32,
        bytes: usize,
    ) -> Self {
        let (reached, answers) = (Tally { s: 0, f: 0 }, Ledger::default());
        Self { publisher, destinations, first_source, bytes, text: Vec::new(), reached, answers }
    }

    /// Sends the requests `numbers`, `at_once` at a time: the next when all those are answered. A
    /// latency is the time from when their writing began to when an answer came.
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

    /// Sends the requests `numbers`, each when it is due by `pace`, and takes the answers beside it.
    /// A latency is the time from when a request was due to when its answer came.
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

    /// An answer with another tally than it should have is missing in the ledger.
    fn check_answer(&mut self, i: u32, sent: &Range<u32>, tally: Option<Tally>) -> Result<()> {
        ensure!(sent.contains(&i), "an answer to request {i}, which was not sent");
        if tally.is_none_or(|tally| tally == self.reached) {
            self.answers.observe(i);
        }
        Ok(())
    }
}

/// Has every back end do the requests `numbers`, or as many as it can before the deadline.
///
/// # Errors
/// Those of [`BackEnd::work`].
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

/// Cuts `numbers` into bursts of `burst` numbers, the last one perhaps shorter.
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
