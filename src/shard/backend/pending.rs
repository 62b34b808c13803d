//! Questions that were asked of other shards and are not answered yet.

use crate::message::{Answer, ConnectionKey, Ticket};
use crate::metrics::{self, MeshReport, Report};
use crate::protocol::api::{Code, Fault, Reply, Tally};
use crate::slot_map::{SlotKey, SlotMap};

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

/// The questions of one shard. A ticket is the key of its question.
#[derive(Debug, Default)]
pub struct Pending {
    questions: SlotMap<Question>,
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
    /// An empty table of a node that was started at this time. Answers to questions of an earlier run of the
    /// node are dropped, since their tickets have other generations.
    pub fn new(started_ms: u64) -> Self {
        Self { questions: SlotMap::new(started_ms as u32) }
    }

    /// Questions that wait.
    pub fn len(&self) -> usize {
        self.questions.len()
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
        Ticket(self.questions.insert(question).to_bits())
    }

    /// When a question was asked, on the shard's clock; `None` if it was answered.
    pub fn asked_us(&self, ticket: Ticket) -> Option<u64> {
        Some(self.questions.get(SlotKey::from_bits(ticket.0))?.asked_us)
    }

    /// One answer; gives the whole if it was the last. An answer that comes too late is dropped.
    pub fn answer(&mut self, ticket: Ticket, answer: Answer) -> Option<Settled> {
        let key = SlotKey::from_bits(ticket.0);
        let question = self.questions.get_mut(key)?;
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
        let question = self.questions.remove(key)?;
        Some(question.settle(|question| match (question.kind, &question.outcome) {
            (Kind::Publish | Kind::Report, Ok(_)) => Ok(question.sum()),
            _ => question.outcome,
        }))
    }

    /// The time of a question is up; `None` if it was answered.
    pub fn expire(&mut self, ticket: Ticket) -> Option<Settled> {
        let question = self.questions.remove(SlotKey::from_bits(ticket.0))?;
        Some(question.settle(|question| match question.kind {
            Kind::Publish | Kind::Report => Ok(question.sum()),
            kind => Err(kind.silence()),
        }))
    }
}

impl Question {
    fn settle(self, outcome: impl FnOnce(Self) -> Result<Reply, Fault>) -> Settled {
        let Self { asker, reply, kind, asked_us, .. } = self;
        Settled { asker, reply, answer: outcome(self), kind, asked_us }
    }

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
