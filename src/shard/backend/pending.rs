//! Questions that were asked of other shards and are not answered yet.

use crate::message::{Answer, ConnectionKey, Ticket};
use crate::metrics::{self, MeshReport, Report};
use crate::protocol::api::{Code, Fault, Reply, Tally};

/// Questions of one shard that may wait at the same time. Beyond it calls fail with 103.
const QUESTIONS_MAX: usize = 1 << 16;

/// A question whose answers are all here, or whose time is up.
#[derive(Debug, PartialEq, Eq)]
pub struct Settled {
    /// The connection that asked.
    pub asker: ConnectionKey,
    /// The number of its reply.
    pub reply: u64,
    /// What it is told.
    pub answer: Result<Reply, Fault>,
    /// What it asked.
    pub kind: Kind,
    /// When, on the shard's clock.
    pub asked_us: u64,
}

/// What a question asks, which decides how its answers add up and what silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Of those who may have subscribers; the tallies add up, and silence adds nothing.
    Publish,
    /// Of the client's shard.
    Send,
    /// Of the client's shard.
    Call,
    /// Of the homes of the topics: all must agree. The number of the asker's `queue.pop`.
    Pop(u64),
    /// Likewise.
    Unpop,
    /// Of all shards and the mesh: how things stand there. Those that are silent are left out.
    Report,
    /// Of the mesh: which nodes there are.
    Nodes,
}

impl Kind {
    fn silence(self) -> Fault {
        let (code, message) = match self {
            Self::Publish | Self::Send => (Code::SendFailed, "no answer in time"),
            Self::Call => (Code::ExecutionFailed, "no answer in time"),
            Self::Pop(_) => (Code::ConsumptionFailed, "no answer in time"),
            Self::Unpop => (Code::CancelFailed, "no answer in time"),
            Self::Report | Self::Nodes => (Code::ExecutionFailed, "no answer in time"),
        };
        Fault::new(code, message)
    }
}

/// The questions of one shard.
#[derive(Debug, Default)]
pub struct Pending {
    slots: Vec<Slot>,
    free: Vec<u32>,
    // Of new slots: another in each life of the node, so that no answer of an earlier one fits.
    generation: u32,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    question: Option<Question>,
}

#[derive(Debug)]
struct Question {
    asker: ConnectionKey,
    reply: u64,
    kind: Kind,
    asked_us: u64,
    awaited: usize,
    tally: Tally,
    reports: Vec<Report>,
    mesh: Option<Box<MeshReport>>,
    outcome: Result<Reply, Fault>,
}

impl Pending {
    /// None yet, of a node that was started then.
    pub fn new(started_ms: u64) -> Self {
        Self { generation: started_ms as u32, ..Self::default() }
    }

    /// Questions that wait.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether there is room for one more question.
    pub fn has_room(&self) -> bool {
        self.len() < QUESTIONS_MAX
    }

    /// A question that `awaited` answers settle.
    pub fn open(
        &mut self,
        now_us: u64,
        (asker, reply): (ConnectionKey, u64),
        kind: Kind,
        awaited: usize,
    ) -> Ticket {
        let question = Question {
            asker,
            reply,
            kind,
            asked_us: now_us,
            awaited,
            tally: Tally::default(),
            reports: Vec::new(),
            mesh: None,
            outcome: Ok(Reply::Done),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: self.generation, question: None });
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.question = Some(question);
        Ticket(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// When a question was asked, on the shard's clock; `None` if it was answered.
    pub fn asked_us(&mut self, ticket: Ticket) -> Option<u64> {
        Some(self.find(ticket)?.question.as_ref()?.asked_us)
    }

    /// One answer; gives the whole if it was the last. An answer that comes too late is dropped.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) -> Option<Settled> {
        let question = self.find(ticket)?.question.as_mut()?;
        match answer {
            Answer::Published(tally) => question.tally += tally,
            Answer::Report(report) => question.reports.push(*report),
            Answer::Mesh(report) => question.mesh = Some(report),
            Answer::Done(Err(fault)) => question.outcome = Err(fault),
            Answer::Done(Ok(reply)) if question.outcome.is_ok() => question.outcome = Ok(reply),
            Answer::Done(Ok(_)) => {}
        }
        question.awaited -= 1;
        if question.awaited > 0 {
            return None;
        }
        self.close(ticket, |question| match (question.kind, &question.outcome) {
            (Kind::Publish | Kind::Report, Ok(_)) => Ok(question.sum()),
            _ => question.outcome,
        })
    }

    /// The time of a question is up; `None` if it was answered.
    pub fn expire(&mut self, ticket: Ticket) -> Option<Settled> {
        self.find(ticket)?;
        self.close(ticket, |question| match question.kind {
            Kind::Publish | Kind::Report => Ok(question.sum()),
            kind => Err(kind.silence()),
        })
    }

    fn find(&mut self, ticket: Ticket) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(ticket.0 as u32 as usize)?;
        let is_current = u64::from(slot.generation) == ticket.0 >> 32 && slot.question.is_some();
        is_current.then_some(slot)
    }

    fn close(
        &mut self,
        ticket: Ticket,
        outcome: impl FnOnce(Question) -> Result<Reply, Fault>,
    ) -> Option<Settled> {
        let slot = self.find(ticket)?;
        slot.generation = slot.generation.wrapping_add(1);
        let question = slot.question.take()?;
        self.free.push(ticket.0 as u32);
        let Question { asker, reply, kind, asked_us, .. } = question;
        Some(Settled { asker, reply, answer: outcome(question), kind, asked_us })
    }
}

impl Question {
    /// What its answers add up to.
    fn sum(self) -> Reply {
        match self.kind {
            Kind::Report => {
                let mesh = self.mesh.map(|report| *report);
                Reply::Page(metrics::CONTENT_TYPE, metrics::render(self.reports, mesh))
            }
            _ => Reply::Published(self.tally),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: ConnectionKey = ConnectionKey { index: 1, generation: 2 };

    #[test]
    fn tallies_add_up_and_silence_adds_nothing() {
        let mut pending = Pending::default();
        let tally = |delivered, failed| Answer::Published(Tally { delivered, failed });
        let all = pending.open(5, (ASKER, 7), Kind::Publish, 2);
        assert_eq!(pending.answer(all, tally(3, 1)), None);
        let settled = pending.answer(all, tally(2, 0)).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Published(Tally { delivered: 5, failed: 1 })));
        let some = pending.open(5, (ASKER, 8), Kind::Publish, 2);
        assert_eq!(pending.answer(some, tally(3, 0)), None);
        let settled = pending.expire(some).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Published(Tally { delivered: 3, failed: 0 })));
    }

    #[test]
    fn an_answer_that_comes_too_late_reaches_nobody_else() {
        let mut pending = Pending::default();
        let old = pending.open(5, (ASKER, 1), Kind::Send, 1);
        assert_eq!(pending.expire(old).unwrap().answer, Err(Kind::Send.silence()));
        let new = pending.open(5, (ASKER, 2), Kind::Send, 1);
        assert_eq!(pending.answer(old, Answer::Done(Ok(Reply::Done))), None);
        assert_eq!(pending.expire(old), None);
        assert_eq!(pending.answer(new, Answer::Done(Ok(Reply::Done))).unwrap().reply, 2);
    }

    #[test]
    fn one_fault_among_many_answers_is_the_answer() {
        let mut pending = Pending::default();
        let ticket = pending.open(5, (ASKER, 1), Kind::Pop(1), 3);
        let fault = Fault::new(Code::ConsumptionFailed, "full");
        assert_eq!(pending.answer(ticket, Answer::Done(Ok(Reply::Done))), None);
        assert_eq!(pending.answer(ticket, Answer::Done(Err(fault.clone()))), None);
        let settled = pending.answer(ticket, Answer::Done(Ok(Reply::Done))).unwrap();
        assert_eq!((settled.answer, settled.kind), (Err(fault), Kind::Pop(1)));
        assert_eq!(settled.asked_us, 5);
    }
}
