//! Questions to shards and to the mesh that wait for answers.

use super::takes::TakeKey;
use crate::address::NodeId;
use crate::message::{ConnectionKey, Placement, PopId, Ticket};
use crate::metrics::{self, MeshReport, Report};
use crate::protocol::api::{Code, Fault, Reply, TakenTag, Tally};
use crate::protocol::position::Position;
use crate::slot_map::{SlotKey, SlotMap};

/// The number of questions of one shard that may wait at a time. Beyond it calls fail with 103.
const QUESTIONS_MAX: usize = 1 << 16;

/// The reply that a question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asker {
    /// The connection that made the call.
    pub key: ConnectionKey,
    /// The number of the reply among the connection's replies.
    pub reply: u64,
}

/// A question that all answers have come for, or that has timed out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SettledQuestion {
    /// Who asked.
    pub asker: Asker,
    /// The sum of the answers, or the fault.
    pub answer: Result<Reply, Fault>,
    /// The kind of the question.
    pub kind: QuestionKind,
    /// When the question was asked, on the shard's clock.
    pub asked_us: u64,
}

/// The kind of a question, which decides who is asked, how the answers add up, and what a timeout
/// means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuestionKind {
    /// `mesh.publish`: asks everybody who may have subscribers. The tallies add up; a missing one
    /// adds nothing.
    Publish,
    /// `mesh.publish` with channels that have a home: asks the homes, and for other channels those who may have
    /// subscribers. A home tells how many tallies follow.
    PlacedPublish {
        /// Whether the answer has the position of the message.
        answers_position: bool,
    },
    /// `mesh.send`: asks the client's shard.
    Send,
    /// `conn.call`: asks the client's shard.
    Call,
    /// `user.send`: asks all shards and the mesh. The tallies add up; a missing one adds nothing.
    UserSend,
    /// `user.call`: asks all shards and the mesh. The tallies add up; a missing one adds nothing.
    UserCall,
    /// `queue.pop`: asks the homes of the topics, which must all agree.
    Pop(PopId),
    /// `queue.unpop`: asks the homes of the topics, which must all agree.
    Unpop,
    /// `queue.push`: asks the home of the topic.
    Push,
    /// `queue.take`: asks the homes of the topics on this node, which must all agree. Then the take waits.
    Take(TakeKey),
    /// `queue.ack` and `queue.nack` of taken events: asks the homes of their topics. The stale tags add up.
    Settle,
    /// `/metrics`: asks all shards and the mesh. A missing answer is left out.
    Report,
    /// `/v1/nodes`: asks the mesh.
    Nodes,
    /// `admin.reload`: asks the node.
    Reload,
    /// A list of administration: the part `lists` asks shards of all nodes, and answers in time.
    List,
    /// `tap.start`: asks all shards of the grid. A missing answer is named.
    Tap,
}

/// One answer to a question, from any of those who were asked.
#[derive(Debug)]
pub(crate) enum Answer {
    /// A part of a publish is carried out.
    Published(Tally),
    /// The home of a channel has accepted a publish.
    Placed(Placement),
    /// A shard's state for `/metrics`.
    Report(Box<Report>),
    /// The mesh's state for `/metrics`.
    Mesh(Box<MeshReport>),
    /// A shard of a node watches for a tap, or has too many taps.
    Tapping {
        /// The node.
        node: NodeId,
        /// Whether the shard watches.
        is_watching: bool,
    },
    /// The acknowledgement of taken events is carried out, except for these.
    Settled(Vec<TakenTag>),
    /// Anything else is done, or failed.
    Done(Result<Reply, Fault>),
}

impl QuestionKind {
    /// Returns the fault for a question that has timed out.
    fn timeout_fault(self) -> Fault {
        let (code, message) = match self {
            Self::Publish | Self::Send | Self::UserSend => (Code::SendFailed, "no answer in time"),
            Self::PlacedPublish { .. } => {
                (Code::SendFailed, "no answer in time; the message may be published")
            }
            Self::Call | Self::UserCall => (Code::ExecutionFailed, "no answer in time"),
            Self::Push => {
                (Code::ConsumptionFailed, "no answer in time; the event may be in the topic")
            }
            Self::Settle => {
                (Code::ConsumptionFailed, "no answer in time; some of the events may be settled")
            }
            Self::Pop(_) | Self::Take(_) => (Code::ConsumptionFailed, "no answer in time"),
            Self::Unpop => (Code::CancelFailed, "no answer in time"),
            Self::Report | Self::Nodes | Self::List | Self::Tap => {
                (Code::ExecutionFailed, "no answer in time")
            }
            Self::Reload => {
                (Code::ExecutionFailed, "no answer in time; the log says how the reload ends")
            }
        };
        Fault::new(code, message)
    }
}

/// The questions of one shard: at most [`QUESTIONS_MAX`]. A ticket is the key of its question.
#[derive(Debug, Default)]
pub(super) struct PendingQuestions {
    questions: SlotMap<Question>,
}

#[derive(Debug)]
struct Question {
    asker: Asker,
    kind: QuestionKind,
    asked_us: u64,
    // Answers that are still missing.
    awaited: usize,
    tally: Tally,
    // Homes that have not accepted the publish yet, and the place that the last of them has given it.
    unplaced: usize,
    position: Option<Position>,
    reports: Vec<Report>,
    mesh: Option<Box<MeshReport>>,
    // The nodes that are asked for a tap, once for each shard that does not watch yet.
    unwatching: Vec<NodeId>,
    // The tags that have settled nothing.
    stale: Vec<TakenTag>,
    outcome: Result<Reply, Fault>,
}

impl PendingQuestions {
    /// Creates an empty table for a node that was started at this Unix time in milliseconds. The
    /// first tickets follow from that time, so that a ticket of an earlier run rarely names a
    /// question of this one. The mesh does not deliver answers to an earlier run, either.
    pub(super) fn new(started_unix_ms: u64) -> Self {
        Self { questions: SlotMap::new(started_unix_ms as u32) }
    }

    /// Returns the number of questions that wait.
    pub(super) fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether there is room for one more question.
    pub(super) fn has_room(&self) -> bool {
        self.len() < QUESTIONS_MAX
    }

    /// Opens a question that `awaited` answers settle; returns its ticket.
    pub(super) fn open(
        &mut self,
        now_us: u64,
        asker: Asker,
        kind: QuestionKind,
        awaited: usize,
    ) -> Ticket {
        let question = Question {
            asker,
            kind,
            asked_us: now_us,
            awaited,
            tally: Tally::default(),
            unplaced: 0,
            position: None,
            reports: Vec::new(),
            mesh: None,
            unwatching: Vec::new(),
            stale: Vec::new(),
            outcome: Ok(Reply::Done),
        };
        Ticket(self.questions.insert(question).to_bits())
    }

    /// Notes which nodes an open question for a tap was sent to, once for each shard.
    pub(super) fn await_tapping(&mut self, ticket: Ticket, nodes: Vec<NodeId>) {
        if let Some(question) = self.questions.get_mut(SlotKey::from_bits(ticket.0)) {
            question.unwatching = nodes;
        }
    }

    /// Notes how many homes are asked to accept an open publish.
    pub(super) fn await_placements(&mut self, ticket: Ticket, homes: usize) {
        if let Some(question) = self.questions.get_mut(SlotKey::from_bits(ticket.0)) {
            question.unplaced = homes;
        }
    }

    /// Notes tags of an open question that have settled nothing.
    pub(super) fn note_stale(&mut self, ticket: Ticket, stale: Vec<TakenTag>) {
        if let Some(question) = self.questions.get_mut(SlotKey::from_bits(ticket.0)) {
            question.stale = stale;
        }
    }

    /// Returns when a question was asked, on the shard's clock; `None` if it was settled.
    pub(super) fn asked_us(&self, ticket: Ticket) -> Option<u64> {
        Some(self.questions.get(SlotKey::from_bits(ticket.0))?.asked_us)
    }

    /// Adds an answer; returns the settled question if it was the last one. An answer to a question
    /// that is settled already is ignored.
    pub(super) fn answer(&mut self, ticket: Ticket, answer: Answer) -> Option<SettledQuestion> {
        let key = SlotKey::from_bits(ticket.0);
        let question = self.questions.get_mut(key)?;
        match answer {
            Answer::Published(tally) => question.tally += tally,
            Answer::Placed(Placement { position, tally, awaited }) => {
                question.tally += tally;
                question.awaited += awaited as usize;
                question.unplaced = question.unplaced.saturating_sub(1);
                question.position = position;
            }
            Answer::Report(report) => question.reports.push(*report),
            Answer::Mesh(report) => question.mesh = Some(report),
            Answer::Tapping { node, is_watching } => question.note_tapping(node, is_watching),
            Answer::Settled(stale) => question.stale.extend(stale),
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
            (
                QuestionKind::Publish
                | QuestionKind::PlacedPublish { .. }
                | QuestionKind::UserSend
                | QuestionKind::UserCall
                | QuestionKind::Report
                | QuestionKind::Tap
                | QuestionKind::Settle,
                Ok(_),
            ) => Ok(question.sum()),
            _ => question.outcome,
        }))
    }

    /// Settles a question that has timed out; `None` if it was settled before.
    pub(super) fn expire(&mut self, ticket: Ticket) -> Option<SettledQuestion> {
        let question = self.questions.remove(SlotKey::from_bits(ticket.0))?;
        Some(question.settle(|question| match question.kind {
            QuestionKind::Publish
            | QuestionKind::UserSend
            | QuestionKind::UserCall
            | QuestionKind::Report
            | QuestionKind::Tap => Ok(question.sum()),
            QuestionKind::PlacedPublish { .. } if question.unplaced == 0 => Ok(question.sum()),
            kind => Err(kind.timeout_fault()),
        }))
    }
}

impl Question {
    /// Notes the answer of one shard of a node to the question for a tap.
    fn note_tapping(&mut self, node: NodeId, is_watching: bool) {
        let place = self.unwatching.iter().position(|asked| *asked == node);
        if let Some(place) = place.filter(|_| is_watching) {
            self.unwatching.swap_remove(place);
        }
    }

    /// Settles the question with the outcome that its answers lead to.
    fn settle(self, outcome: impl FnOnce(Self) -> Result<Reply, Fault>) -> SettledQuestion {
        let Self { asker, kind, asked_us, .. } = self;
        SettledQuestion { asker, answer: outcome(self), kind, asked_us }
    }

    /// Returns the sum of the answers.
    fn sum(self) -> Reply {
        match self.kind {
            QuestionKind::Report => {
                let mesh = self.mesh.map(|report| *report);
                Reply::Page(metrics::CONTENT_TYPE, metrics::render(self.reports, mesh))
            }
            QuestionKind::Tap => {
                let mut missing = self.unwatching;
                missing.sort_unstable();
                missing.dedup();
                Reply::Tapping(missing)
            }
            QuestionKind::Settle => Reply::Settled(self.stale),
            QuestionKind::PlacedPublish { answers_position: true } => match self.position {
                Some(position) => Reply::Placed(self.tally, position),
                None => Reply::Published(self.tally),
            },
            _ => Reply::Published(self.tally),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::position::{Epoch, Serial};

    fn asker(reply: u64) -> Asker {
        Asker { key: ConnectionKey { index: 1, generation: 2 }, reply }
    }

    #[test]
    fn tallies_add_up_and_a_missing_one_adds_nothing() {
        let mut pending = PendingQuestions::default();
        let tally = |delivered, failed| Answer::Published(Tally { delivered, failed });
        let all = pending.open(5, asker(7), QuestionKind::Publish, 2);
        assert_eq!(pending.answer(all, tally(3, 1)), None);
        let settled = pending.answer(all, tally(2, 0)).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Published(Tally { delivered: 5, failed: 1 })));
        let some = pending.open(5, asker(8), QuestionKind::Publish, 2);
        assert_eq!(pending.answer(some, tally(3, 0)), None);
        let settled = pending.expire(some).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Published(Tally { delivered: 3, failed: 0 })));
    }

    #[test]
    fn a_publish_waits_for_its_homes_and_for_as_many_tallies_as_they_say() {
        let mut pending = PendingQuestions::default();
        let tally = Tally { delivered: 1, failed: 0 };
        let position = Position { epoch: Epoch(1), serial: Serial(2) };
        let placement =
            |awaited| Answer::Placed(Placement { position: Some(position), tally, awaited });
        let open = |pending: &mut PendingQuestions, answers_position| {
            let kind = QuestionKind::PlacedPublish { answers_position };
            let ticket = pending.open(5, asker(1), kind, 1);
            pending.await_placements(ticket, 1);
            ticket
        };
        let ticket = open(&mut pending, true);
        assert_eq!(pending.answer(ticket, placement(2)), None);
        assert_eq!(pending.answer(ticket, Answer::Published(tally)), None);
        let settled = pending.answer(ticket, Answer::Published(tally)).unwrap();
        let sum = Tally { delivered: 3, failed: 0 };
        assert_eq!(settled.answer, Ok(Reply::Placed(sum, position)));
        let ticket = open(&mut pending, false);
        let settled = pending.answer(ticket, placement(0)).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Published(tally)));
        let ticket = open(&mut pending, true);
        assert_eq!(pending.answer(ticket, placement(1)), None);
        assert_eq!(pending.expire(ticket).unwrap().answer, Ok(Reply::Placed(tally, position)));
        let ticket = open(&mut pending, true);
        let expired = pending.expire(ticket).unwrap();
        assert_eq!(
            expired.answer,
            Err(expired.kind.timeout_fault()),
            "nobody knows whether it is published"
        );
    }

    #[test]
    fn a_late_answer_is_not_taken_for_one_to_a_newer_question() {
        let mut pending = PendingQuestions::default();
        let old = pending.open(5, asker(1), QuestionKind::Send, 1);
        assert_eq!(pending.expire(old).unwrap().answer, Err(QuestionKind::Send.timeout_fault()));
        let new = pending.open(5, asker(2), QuestionKind::Send, 1);
        assert_eq!(pending.answer(old, Answer::Done(Ok(Reply::Done))), None);
        assert_eq!(pending.expire(old), None);
        assert_eq!(pending.answer(new, Answer::Done(Ok(Reply::Done))).unwrap().asker.reply, 2);
    }

    #[test]
    fn a_tap_names_the_nodes_with_a_shard_that_does_not_watch() {
        let mut pending = PendingQuestions::default();
        let [one, two, three] = [1, 2, 3].map(|id| NodeId::new(id).unwrap());
        let answer = |node, is_watching| Answer::Tapping { node, is_watching };
        let open = |pending: &mut PendingQuestions| {
            let ticket = pending.open(5, asker(1), QuestionKind::Tap, 5);
            pending.await_tapping(ticket, vec![one, two, two, three, three]);
            ticket
        };
        let ticket = open(&mut pending);
        for (node, is_watching) in [(one, true), (two, true), (three, true), (three, true)] {
            assert_eq!(pending.answer(ticket, answer(node, is_watching)), None);
        }
        let settled = pending.answer(ticket, answer(two, false)).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Tapping(vec![two])));
        let ticket = open(&mut pending);
        assert_eq!(pending.answer(ticket, answer(two, true)), None);
        let settled = pending.expire(ticket).unwrap();
        assert_eq!(settled.answer, Ok(Reply::Tapping(vec![one, two, three])));
    }

    #[test]
    fn one_fault_fails_the_whole_question() {
        let mut pending = PendingQuestions::default();
        let ticket = pending.open(5, asker(1), QuestionKind::Pop(PopId(1)), 3);
        let fault = Fault::new(Code::ConsumptionFailed, "full");
        assert_eq!(pending.answer(ticket, Answer::Done(Ok(Reply::Done))), None);
        assert_eq!(pending.answer(ticket, Answer::Done(Err(fault.clone()))), None);
        let settled = pending.answer(ticket, Answer::Done(Ok(Reply::Done))).unwrap();
        assert_eq!((settled.answer, settled.kind), (Err(fault), QuestionKind::Pop(PopId(1))));
        assert_eq!(settled.asked_us, 5);
    }
}
