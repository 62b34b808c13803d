//! Records that are not written yet, as batches that are ready to be written.
//!
//! Bounded by the topic: it grants no credit while too much waits to be stored, and acknowledgements are of events
//! in memory.

use std::collections::VecDeque;

use super::{BATCH_BYTES, GroupIndex, HandedOut, format};
use crate::address::ClientId;
use crate::message::{Credit, DelayedEvent, DelayedNumber, FailedTries, MessageNumber};
use crate::protocol::frame;

/// A batch whose bytes are complete.
#[derive(Debug, Default)]
pub(super) struct SealedBatch {
    /// The bytes to write.
    pub bytes: Vec<u8>,
    /// The number of events.
    pub events: u64,
    /// The events and the delayed events, and the bytes of their frames. Without events that were delayed before.
    pub added: Credit,
    /// The delayed events.
    pub delayed: Vec<DelayedEvent>,
    /// The delayed events that are among the other events now.
    pub due: Vec<DelayedNumber>,
    /// Events that every group has settled by this batch.
    pub freed: Credit,
    // The bytes of records of events that were handed out in vain.
    retry_bytes: usize,
    // Whether somebody waits for this batch.
    is_urgent: bool,
}

/// Events in a row that one group has settled.
#[derive(Debug)]
struct Run {
    group: GroupIndex,
    first: MessageNumber,
    end: MessageNumber,
    freed: Credit,
}

/// The records that are not written yet.
#[derive(Debug)]
pub(super) struct Pending {
    // The number of the next event.
    next: MessageNumber,
    batches: VecDeque<SealedBatch>,
    // Not encoded yet, since the next acknowledgement may continue it. Belongs to the last batch.
    run: Option<Run>,
    bytes: usize,
    retry_bytes: usize,
}

impl Pending {
    /// Nothing. The next event has this number.
    pub(super) fn new(next: MessageNumber) -> Self {
        Self { next, batches: VecDeque::new(), run: None, bytes: 0, retry_bytes: 0 }
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Whether somebody waits for a record.
    pub(super) fn is_urgent(&self) -> bool {
        self.batches.iter().any(|batch| batch.is_urgent)
    }

    /// The bytes of all records.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of records of events that were handed out in vain.
    pub(super) fn retry_bytes(&self) -> usize {
        self.retry_bytes
    }

    /// Adds an event, and returns its number.
    pub(super) fn add_event(
        &mut self,
        client: ClientId,
        unix_ms: u64,
        json: &[u8],
    ) -> MessageNumber {
        let number = self.next;
        self.add(|batch| {
            format::put_event(&mut batch.bytes, client, unix_ms, json);
            batch.events += 1;
            batch.added.messages += 1;
            batch.added.bytes += frame::message_bytes(json.len());
            batch.is_urgent = true;
        });
        self.next.0 += 1;
        number
    }

    /// Adds a delayed event.
    pub(super) fn add_delayed(&mut self, event: DelayedEvent) {
        self.add(|batch| {
            format::put_delayed(&mut batch.bytes, &event);
            batch.added.messages += 1;
            batch.added.bytes += event.frame.bytes().len();
            batch.delayed.push(event);
            batch.is_urgent = true;
        });
    }

    /// Adds an event that was delayed until now.
    pub(super) fn add_due(&mut self, unix_ms: u64, event: &DelayedEvent) -> MessageNumber {
        let number = self.next;
        self.add(|batch| {
            format::put_due(&mut batch.bytes, unix_ms, event);
            batch.events += 1;
            batch.due.push(event.number);
            batch.is_urgent = true;
        });
        self.next.0 += 1;
        number
    }

    /// Adds an event that a group has settled.
    pub(super) fn add_settled(&mut self, group: GroupIndex, number: MessageNumber, freed: Credit) {
        if let Some(run) = &mut self.run
            && (run.group, run.end) == (group, number)
        {
            run.end.0 += 1;
            run.freed.messages += freed.messages;
            run.freed.bytes += freed.bytes;
        } else {
            self.end_run();
            self.add(|_| {});
            let end = MessageNumber(number.0 + 1);
            self.run = Some(Run { group, first: number, end, freed });
        }
    }

    /// Adds what is known of an event that was handed out in vain.
    pub(super) fn add_retry(
        &mut self,
        group: GroupIndex,
        number: MessageNumber,
        failed: FailedTries,
    ) {
        let mut added = 0;
        self.add(|batch| {
            let before = batch.bytes.len();
            format::put_retry(&mut batch.bytes, group, number, failed);
            added = batch.bytes.len() - before;
            batch.retry_bytes += added;
        });
        self.retry_bytes += added;
    }

    /// Adds what may be handed out to a group.
    pub(super) fn add_handed_out(&mut self, group: GroupIndex, handed_out: HandedOut) {
        self.add(|batch| {
            format::put_handed_out(&mut batch.bytes, group, handed_out);
            batch.is_urgent = true;
        });
    }

    /// The next batch to write.
    pub(super) fn seal(&mut self) -> Option<SealedBatch> {
        if self.batches.len() == 1 {
            self.end_run();
        }
        let mut batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes.len();
        self.retry_bytes -= batch.retry_bytes;
        format::end_batch(&mut batch.bytes, 0);
        Some(batch)
    }

    /// Changes the last batch, or a new one if that is full.
    fn add(&mut self, change: impl FnOnce(&mut SealedBatch)) {
        if self.batches.back().is_none_or(|batch| batch.bytes.len() >= BATCH_BYTES) {
            self.end_run();
            let mut batch = SealedBatch::default();
            format::begin_batch(&mut batch.bytes, self.next);
            self.bytes += batch.bytes.len();
            self.batches.push_back(batch);
        }
        let batch = self.batches.back_mut().expect("there is one now");
        let before = batch.bytes.len();
        change(batch);
        self.bytes += batch.bytes.len() - before;
    }

    fn end_run(&mut self) {
        let Some(Run { group, first, end, freed }) = self.run.take() else { return };
        let batch = self.batches.back_mut().expect("a run belongs to the last batch");
        let before = batch.bytes.len();
        format::put_settled(&mut batch.bytes, group, first, end, freed);
        batch.freed.messages += freed.messages;
        batch.freed.bytes += freed.bytes;
        self.bytes += batch.bytes.len() - before;
    }
}
