//! One run of a source: messages of its engine, until their calls are carried out and the engine knows it.
//!
//! A message is held from the time when it is taken until the engine has acknowledged it. Calls begin in the order of
//! the messages, without waiting for the ones before, because a shard keeps their order. Only events of `queue.push`
//! with the same topic and key wait for each other: a full topic refuses one, and may take the next.
//!
//! An engine gives a message to somebody else if it hears nothing for long. So it is told from time to time which
//! messages are held.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{SourceRun, SourceWork};
use crate::bridge::pauses::RetryPauses;
use crate::metrics::CallSourceReport;
use crate::protocol::api::{Code, Fault};
use crate::protocol::call_source::{CallOrder, CallSource};

/// The most messages of a source that are held. With this many, no more are taken.
const HELD_MAX: usize = 64;

/// The longest call, in bytes.
const CALL_BYTES_MAX: usize = 1 << 20;

/// The time after which an engine is told again which messages are held, in milliseconds: a third of the time after
/// which NATS gives a message to somebody else.
const HOLD_MS: u64 = 10_000;

/// A message of an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::bridge) struct CallMessage {
    /// What tells the message from all others of its source.
    pub id: Box<str>,
    /// What acknowledges the message.
    pub receipt: Box<str>,
    /// The call, as JSON. `None`: the message has none.
    pub text: Option<Vec<u8>>,
}

/// Messages that an engine hears about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::bridge) struct Receipts {
    /// The messages whose calls have been carried out.
    pub done: Vec<Box<str>>,
    /// The messages that are still held. Empty most times.
    pub held: Vec<Box<str>>,
}

/// The number of a held message in its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::bridge) struct HeldId(u64);

/// A message that the engine has not acknowledged.
#[derive(Debug)]
struct HeldMessage {
    id: HeldId,
    message_id: Box<str>,
    receipt: Box<str>,
    text: Vec<u8>,
    order: CallOrder,
    // How often the call was refused for lack of room.
    failures: u32,
    stage: HeldStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HeldStage {
    // The call begins at this time.
    Due(u64),
    Calling,
    Done,
    // The engine is being told that the message is done.
    Acknowledging,
}

/// What an engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EngineStage {
    // Nothing until this time.
    Idle(u64),
    Busy,
}

/// The state of a run.
pub(super) struct SourceRunner {
    source: Arc<CallSource>,
    run: SourceRun,
    // In the order of the engine.
    held: VecDeque<HeldMessage>,
    next: HeldId,
    taking: EngineStage,
    acknowledging: EngineStage,
    // The next time when the engine is told which messages are held.
    hold_ms: u64,
    // When calls were last looked for. One that was due then and has not begun waits for another one.
    polled_ms: u64,
    take_failures: u32,
    acknowledge_failures: u32,
    // Whether a call has failed that no repetition would help, and none has succeeded since.
    has_wrong_calls: bool,
    // Whether a call waits for room, and none has succeeded since.
    is_blocked: bool,
    has_news: bool,
    figures: CallSourceReport,
    pauses: RetryPauses,
}

impl SourceRunner {
    /// Begins a run.
    pub(super) fn new(source: Arc<CallSource>, run: SourceRun, random: u64) -> Self {
        let name = source.name.clone();
        Self {
            source,
            run,
            held: VecDeque::new(),
            next: HeldId(0),
            taking: EngineStage::Idle(0),
            acknowledging: EngineStage::Idle(0),
            hold_ms: 0,
            polled_ms: 0,
            take_failures: 0,
            acknowledge_failures: 0,
            has_wrong_calls: false,
            is_blocked: false,
            has_news: true,
            figures: CallSourceReport::new(name),
            pauses: RetryPauses::new(random),
        }
    }

    /// The settings of the source.
    pub(super) fn source(&self) -> &Arc<CallSource> {
        &self.source
    }

    /// The number of the run.
    pub(super) fn run(&self) -> SourceRun {
        self.run
    }

    /// Returns what the engine has to do next.
    pub(super) fn poll_work(&mut self, now_ms: u64) -> Option<SourceWork> {
        if self.acknowledging.is_due(now_ms)
            && let Some(receipts) = self.take_receipts(now_ms)
        {
            self.acknowledging = EngineStage::Busy;
            return Some(SourceWork::Acknowledge(Arc::new(receipts)));
        }
        // A few large answers of the engine cost less than many small ones.
        if self.taking.is_due(now_ms) && self.held.len() <= HELD_MAX / 2 {
            self.taking = EngineStage::Busy;
            return Some(SourceWork::Take(HELD_MAX - self.held.len()));
        }
        None
    }

    /// Returns the messages that the engine has to hear about, if there are any.
    fn take_receipts(&mut self, now_ms: u64) -> Option<Receipts> {
        let mut receipts = Receipts::default();
        let is_hold_due = !self.held.is_empty() && now_ms >= self.hold_ms;
        for held in &mut self.held {
            if held.stage == HeldStage::Done {
                held.stage = HeldStage::Acknowledging;
                receipts.done.push(held.receipt.clone());
            } else if is_hold_due {
                receipts.held.push(held.receipt.clone());
            }
        }
        if is_hold_due {
            self.hold_ms = now_ms + HOLD_MS;
        }
        (!receipts.done.is_empty() || !receipts.held.is_empty()).then_some(receipts)
    }

    /// Handles messages that the engine has given, or why it has failed.
    pub(super) fn handle_taken(&mut self, now_ms: u64, taken: Result<Vec<CallMessage>, String>) {
        match taken {
            Ok(messages) => {
                self.taking = EngineStage::Idle(now_ms);
                self.take_failures = 0;
                self.note_success();
                if self.held.is_empty() {
                    self.hold_ms = now_ms + HOLD_MS;
                }
                messages.into_iter().for_each(|message| self.hold(now_ms, message));
            }
            Err(why) => {
                self.take_failures = self.take_failures.saturating_add(1);
                let pause_ms = self.pauses.next_ms(self.take_failures);
                self.taking = EngineStage::Idle(now_ms + pause_ms);
                self.note_failure(&why);
            }
        }
    }

    fn hold(&mut self, now_ms: u64, message: CallMessage) {
        let CallMessage { id: message_id, receipt, text } = message;
        if let Some(held) = self.held.iter_mut().find(|held| held.message_id == message_id) {
            // The engine has given up waiting for the acknowledgement. It expects one of this delivery.
            held.receipt = receipt;
            return;
        }
        let id = self.next;
        self.next.0 += 1;
        self.has_news = true;
        self.figures.messages += 1;
        self.figures.in_flight += 1;
        let wrong = match &text {
            None => Some("the message has no call"),
            Some(text) if text.len() > CALL_BYTES_MAX => Some("the call is longer than 1 MiB"),
            Some(_) => None,
        };
        let text = text.filter(|_| wrong.is_none()).unwrap_or_default();
        let (order, failures) = (CallOrder::of(&text), 0);
        let stage = wrong.map_or(HeldStage::Due(now_ms), |_| HeldStage::Done);
        if let Some(why) = wrong {
            self.figures.wrong_messages += 1;
            self.note_wrong(&message_id, why);
        }
        self.held.push_back(HeldMessage { id, message_id, receipt, text, order, failures, stage });
    }

    /// Handles the end of an acknowledgement.
    pub(super) fn handle_acknowledged(&mut self, now_ms: u64, done: Result<(), String>) {
        match done {
            Ok(()) => {
                self.acknowledging = EngineStage::Idle(now_ms);
                self.acknowledge_failures = 0;
                self.has_news = true;
                self.held.retain(|held| held.stage != HeldStage::Acknowledging);
                self.figures.in_flight = self.held.len() as u64;
            }
            Err(why) => {
                self.acknowledge_failures = self.acknowledge_failures.saturating_add(1);
                let pause_ms = self.pauses.next_ms(self.acknowledge_failures);
                self.acknowledging = EngineStage::Idle(now_ms + pause_ms);
                let again = self.held.iter_mut();
                let again = again.filter(|held| held.stage == HeldStage::Acknowledging);
                again.for_each(|held| held.stage = HeldStage::Done);
                self.note_failure(&why);
            }
        }
    }

    /// Returns the next call to carry out, and the message that it belongs to.
    pub(super) fn poll_call(&mut self, now_ms: u64) -> Option<(HeldId, Vec<u8>)> {
        self.polled_ms = now_ms;
        let at = self.next_call(now_ms)?;
        let held = &mut self.held[at];
        held.stage = HeldStage::Calling;
        Some((held.id, held.text.clone()))
    }

    /// Returns the place of the first message whose call is due, and that waits for none before it.
    fn next_call(&self, now_ms: u64) -> Option<usize> {
        // One call that waits for its repetition delays those behind it.
        let mut waits = false;
        self.held.iter().position(|held| {
            let HeldStage::Due(due_ms) = held.stage else { return false };
            let may_begin = match &held.order {
                CallOrder::Any => true,
                CallOrder::Arrival => !std::mem::replace(&mut waits, true),
                CallOrder::Push(_) => !self.is_pushed_before(held),
            };
            may_begin && due_ms <= now_ms
        })
    }

    /// Whether an event of the same order before a message is not in its topic yet.
    fn is_pushed_before(&self, message: &HeldMessage) -> bool {
        let mut before = self.held.iter().take_while(|held| held.id != message.id);
        before.any(|held| {
            let is_pushed = matches!(held.stage, HeldStage::Done | HeldStage::Acknowledging);
            !is_pushed && held.order == message.order
        })
    }

    /// Handles the end of a call.
    pub(super) fn handle_called(&mut self, now_ms: u64, id: HeldId, outcome: Result<(), Fault>) {
        let Some(held) = self.held.iter_mut().find(|held| held.id == id) else { return };
        self.has_news = true;
        match outcome {
            Ok(()) => {
                held.stage = HeldStage::Done;
                (self.has_wrong_calls, self.is_blocked) = (false, false);
                self.figures.calls += 1;
            }
            Err(fault) if needs_room(&fault) => {
                held.failures = held.failures.saturating_add(1);
                held.stage = HeldStage::Due(now_ms + self.pauses.next_ms(held.failures));
                self.figures.repeated_calls += 1;
                self.note_blocked(&fault);
            }
            Err(fault) => {
                held.stage = HeldStage::Done;
                let message_id = held.message_id.clone();
                match fault.code {
                    Code::InvalidArgument => self.figures.wrong_messages += 1,
                    _ => self.figures.failed_calls += 1,
                }
                self.note_fault(&message_id, &fault);
            }
        }
    }

    /// Logs that a call has failed. A device that has gone is nothing to worry about.
    fn note_fault(&mut self, message_id: &str, fault: &Fault) {
        let why = format!("{}: {}", fault.code.number(), fault.message);
        match fault.code {
            Code::SendFailed | Code::ExecutionFailed => {
                tracing::debug!("source {:?}: message {message_id}: {why}", self.source.name);
            }
            _ => self.note_wrong(message_id, &why),
        }
    }

    /// Logs that a message is lost. A back end with a defect would fill the log: after the first one, until a call
    /// succeeds, at level `debug`.
    fn note_wrong(&mut self, message_id: &str, why: &str) {
        let name = &self.source.name;
        match std::mem::replace(&mut self.has_wrong_calls, true) {
            false => tracing::warn!("source {name:?}: message {message_id} is dropped: {why}"),
            true => tracing::debug!("source {name:?}: message {message_id} is dropped: {why}"),
        }
    }

    fn note_blocked(&mut self, fault: &Fault) {
        let (name, why) = (&self.source.name, &fault.message);
        if !std::mem::replace(&mut self.is_blocked, true) {
            tracing::warn!("source {name:?}: {why}; the call is repeated until there is room");
        }
    }

    fn note_failure(&mut self, why: &str) {
        self.has_news = true;
        self.figures.retries += 1;
        let (name, engine) = (&self.source.name, &self.source.engine);
        match std::mem::replace(&mut self.figures.is_failing, true) {
            // An engine that is down would fill the log.
            true => tracing::debug!("source {name:?}: {engine}: {why}"),
            false => tracing::warn!("source {name:?}: {engine}: {why}; tried again"),
        }
    }

    fn note_success(&mut self) {
        if std::mem::take(&mut self.figures.is_failing) {
            self.has_news = true;
            tracing::info!("source {:?}: {} works again", self.source.name, self.source.engine);
        }
    }

    /// Returns the figures, if they have changed.
    pub(super) fn poll_figures(&mut self) -> Option<Box<CallSourceReport>> {
        std::mem::take(&mut self.has_news).then(|| Box::new(self.figures.clone()))
    }

    /// Returns when the run has something to do. Called when there is nothing to do now.
    pub(super) fn poll_timeout(&self) -> Option<u64> {
        let mut times = Vec::new();
        if let EngineStage::Idle(at_ms) = self.taking
            && self.held.len() <= HELD_MAX / 2
        {
            times.push(at_ms);
        }
        if let EngineStage::Idle(at_ms) = self.acknowledging
            && !self.held.is_empty()
        {
            let has_done = self.held.iter().any(|held| held.stage == HeldStage::Done);
            times.push(if has_done { at_ms } else { at_ms.max(self.hold_ms) });
        }
        let due_ms = |held: &HeldMessage| match held.stage {
            HeldStage::Due(due_ms) => Some(due_ms).filter(|due_ms| *due_ms > self.polled_ms),
            _ => None,
        };
        times.extend(self.held.iter().filter_map(due_ms));
        times.into_iter().min()
    }
}

impl EngineStage {
    fn is_due(self, now_ms: u64) -> bool {
        matches!(self, Self::Idle(at_ms) if at_ms <= now_ms)
    }
}

/// Whether a call is repeated: there was no room for it, or it is not known whether there was.
fn needs_room(fault: &Fault) -> bool {
    matches!(fault.code, Code::TooManyRequests | Code::ConsumptionFailed)
}

#[cfg(test)]
mod tests;
