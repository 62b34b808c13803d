//! How a node reaches the home of a channel: its publishes and questions on the way there, and the home's messages for its
//! subscribers.
//!
//! A relay *attaches* to the home. The home answers with the place of its last delivered message, and sends later ones in order,
//! so nothing is missing between. Whenever the relay may have missed something, it attaches again and says which place
//! its subscribers know.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::home::unknown_outcome;
use super::limits::GridLimits;
use super::shared::ChannelContext;
use super::{ChannelOutput, DeliveryReceipt, RETRY_MS, RecoveredMessages};
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{
    Attachment, Ballot, ChannelMessage, DeliveredMessage, HomePublish, PlacedPublish, Publish,
    Ticket,
};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};
use crate::protocol::position::Position;

/// How long a device waits for what it has missed, in milliseconds. A home that was lost is replaced sooner.
const RECOVERY_MS: u64 = 10_000;

/// How long a subscribe waits for the home, in milliseconds.
const FOLLOW_MS: u64 = 1000;

/// What all relays of one shard hold.
#[derive(Debug, Default)]
pub(super) struct Relayed {
    publishes: usize,
    bytes: usize,
    questions: usize,
}

impl Relayed {
    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub(super) fn check<'r>(&self, relays: impl Iterator<Item = &'r Relay>, limits: &GridLimits) {
        let mut sum = Self::default();
        for relay in relays {
            sum.publishes += relay.publishes.len();
            sum.bytes += relay.publishes.iter().map(|publish| publish.bytes).sum::<usize>();
            sum.questions += relay.questions.len();
            let sent = relay.publishes.iter().filter(|publish| publish.is_sent).count();
            assert_eq!(relay.in_flight, sent, "publishes that were sent");
        }
        let all = |sum: &Self| (sum.publishes, sum.bytes, sum.questions);
        assert_eq!(all(self), all(&sum), "what relays hold");
        assert!(self.publishes <= limits.publishes, "room for publishes");
        assert!(self.bytes <= limits.publish_bytes, "room for the bytes of publishes");
        assert!(self.questions <= limits.questions, "room for questions");
    }
}

/// A node's way to the home of a channel.
#[derive(Debug, Default)]
pub(super) struct Relay {
    // The shards of this node with subscribers.
    followers: BTreeSet<ShardId>,
    link: RelayLink,
    // The number of the last attempt to attach.
    attachment: Attachment,
    // The place up to which the subscribers got all messages. `None`: they have no place yet.
    position: Option<Position>,
    // Whether a message may have been lost while the subscribers had no place.
    is_doubtful: bool,
    // Publishes, in order.
    publishes: VecDeque<RelayedPublish>,
    // The number of those that were sent, and the home that they were sent to.
    in_flight: usize,
    sent_to: Option<(NodeId, Ballot)>,
    questions: VecDeque<RelayedQuestion>,
    // Subscribes that wait until the home knows of the subscribers, and until when.
    waiters: Vec<(u64, Ticket)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RelayLink {
    #[default]
    Detached,
    Attaching(NodeId),
    Attached(NodeId, Ballot),
}

#[derive(Debug)]
struct RelayedPublish {
    ticket: Ticket,
    publish: HomePublish,
    is_sent: bool,
    until_ms: u64,
    bytes: usize,
}

#[derive(Debug)]
struct RelayedQuestion {
    ticket: Ticket,
    since: Option<Position>,
    bytes_max: u64,
    is_sent: bool,
    until_ms: u64,
}

fn bytes_of(HomePublish { publish, key }: &HomePublish) -> usize {
    let excluded = publish.excluded.as_ref().map_or(0, |excluded| excluded.len());
    let key = key.as_ref().map_or(0, |key| key.len());
    let frame = QUEUED_FRAME_BYTES + publish.frame.bytes().len();
    frame + key + excluded * size_of::<ClientId>()
}

impl Relay {
    /// Whether this is the attempt to attach that a home may answer.
    pub(super) fn is_attaching(&self, home: NodeId, attachment: Attachment) -> bool {
        self.link == RelayLink::Attaching(home) && self.attachment == attachment
    }

    /// Whether the node needs no home.
    pub(super) fn is_unused(&self) -> bool {
        self.followers.is_empty() && self.publishes.is_empty() && self.questions.is_empty()
    }

    pub(super) fn publish(
        &mut self,
        context: &mut ChannelContext<'_>,
        ticket: Ticket,
        publish: HomePublish,
    ) -> Result<(), Fault> {
        let (relayed, limits) = (&mut context.shared.relayed, &context.shared.limits);
        let bytes = bytes_of(&publish);
        if relayed.publishes >= limits.publishes || relayed.bytes + bytes > limits.publish_bytes {
            let why = "too many messages wait for the homes of their channels";
            return Err(Fault::new(Code::TooManyRequests, why));
        }
        relayed.publishes += 1;
        relayed.bytes += bytes;
        let until_ms = context.now_ms + context.shared.answer_ms;
        let publish = RelayedPublish { ticket, publish, is_sent: false, until_ms, bytes };
        self.publishes.push_back(publish);
        self.advance(context);
        if self.publishes.iter().any(|publish| !publish.is_sent) {
            context.wake_at(until_ms);
        }
        Ok(())
    }

    pub(super) fn recover(
        &mut self,
        context: &mut ChannelContext<'_>,
        ticket: Ticket,
        since: Option<Position>,
        bytes_max: u64,
    ) -> Result<(), Fault> {
        if context.shared.relayed.questions >= context.shared.limits.questions {
            let why = "too many devices recover at once";
            return Err(Fault::new(Code::TooManyRequests, why));
        }
        context.shared.relayed.questions += 1;
        let until_ms = context.now_ms + RECOVERY_MS;
        let question = RelayedQuestion { ticket, since, bytes_max, is_sent: false, until_ms };
        self.questions.push_back(question);
        context.wake_at(until_ms);
        self.advance(context);
        Ok(())
    }

    pub(super) fn follow(
        &mut self,
        context: &mut ChannelContext<'_>,
        shard: ShardId,
        ticket: Ticket,
    ) {
        let is_first = self.followers.is_empty();
        self.followers.insert(shard);
        if !is_first && self.position.is_some() && matches!(self.link, RelayLink::Attached(..)) {
            return context.shared.outputs.push_back(ChannelOutput::Followed(ticket));
        }
        let until_ms = context.now_ms + FOLLOW_MS;
        self.waiters.push((until_ms, ticket));
        context.wake_at(until_ms);
        match is_first {
            true => self.attach_anew(context),
            false => self.advance(context),
        }
    }

    pub(super) fn unfollow(&mut self, context: &mut ChannelContext<'_>, shard: ShardId) {
        if self.followers.remove(&shard) && self.followers.is_empty() {
            (self.position, self.is_doubtful) = (None, false);
            self.attach_anew(context);
        }
    }

    /// Tells the home that the node has subscribers now, or none any more.
    fn attach_anew(&mut self, context: &mut ChannelContext<'_>) {
        match self.link {
            RelayLink::Attaching(home) | RelayLink::Attached(home, _) => {
                self.attach_to(context, home);
            }
            RelayLink::Detached => self.advance(context),
        }
    }

    /// A node claims to be home: the relay attaches there.
    pub(super) fn handle_new_home(&mut self, context: &mut ChannelContext<'_>, home: NodeId) {
        match self.is_unused() {
            true => self.link = RelayLink::Detached,
            false => self.attach_to(context, home),
        }
    }

    /// Has the node that should be home claim the channel, since this node is home and should not be.
    pub(super) fn seek_new_home(&mut self, context: &mut ChannelContext<'_>) {
        if let Some(home) = context.shared.members.home(context.now_ms, context.name)
            && self.link != RelayLink::Attaching(home)
        {
            self.attach_to(context, home);
        }
    }

    /// Attaches to this node, which is home, if the relay has not found another home.
    pub(super) fn return_to_own(&mut self, context: &mut ChannelContext<'_>) {
        if self.link == RelayLink::Detached && !self.is_unused() {
            self.attach_to(context, context.own());
        }
    }

    /// Takes a step towards the home, if the node needs one, and sends what waits for it.
    fn advance(&mut self, context: &mut ChannelContext<'_>) {
        match self.link {
            RelayLink::Detached if !self.is_unused() => {
                match context.shared.members.home(context.now_ms, context.name) {
                    Some(home) => self.attach_to(context, home),
                    None => context.wake_at(context.now_ms + RETRY_MS),
                }
            }
            RelayLink::Attached(home, ballot) => self.send_waiting(context, home, ballot),
            RelayLink::Detached | RelayLink::Attaching(_) => {}
        }
    }

    fn attach_to(&mut self, context: &mut ChannelContext<'_>, home: NodeId) {
        self.attachment.0 += 1;
        self.link = RelayLink::Attaching(home);
        self.questions.iter_mut().for_each(|question| question.is_sent = false);
        let (attachment, position) = (self.attachment, self.position);
        let follows = !self.followers.is_empty();
        context.send(home, ChannelMessage::Attach { attachment, follows, position });
    }

    pub(super) fn handle_attached(
        &mut self,
        context: &mut ChannelContext<'_>,
        home: NodeId,
        ballot: Ballot,
        position: Position,
        missed: Option<Vec<(Position, Frame)>>,
    ) {
        self.link = RelayLink::Attached(home, ballot);
        if !self.followers.is_empty() {
            let is_gap = match (self.position, missed) {
                (None, _) => self.is_doubtful,
                (Some(known), None) => known != position,
                (Some(_), Some(missed)) => {
                    for (position, frame) in missed {
                        deliver(context, position, frame, None, None);
                    }
                    false
                }
            };
            if is_gap {
                context.shared.outputs.push_back(ChannelOutput::Lapse(context.name.clone()));
            }
            (self.position, self.is_doubtful) = (Some(position), false);
        }
        for (_, ticket) in self.waiters.drain(..) {
            context.shared.outputs.push_back(ChannelOutput::Followed(ticket));
        }
        self.send_waiting(context, home, ballot);
    }

    /// Sends what waits for the home. Messages that were sent to it under another claim come first: until their fate is
    /// known, later ones wait, so that they keep their order.
    fn send_waiting(&mut self, context: &mut ChannelContext<'_>, home: NodeId, ballot: Ballot) {
        for question in self.questions.iter_mut().filter(|question| !question.is_sent) {
            question.is_sent = true;
            let RelayedQuestion { ticket, since, bytes_max, .. } = *question;
            let question = ChannelMessage::Recover { ballot, ticket, since, bytes_max };
            context.send(home, question);
        }
        if self.in_flight > 0 && self.sent_to != Some((home, ballot)) {
            return;
        }
        self.sent_to = Some((home, ballot));
        // Of those that were sent under the same claim, none is refused without the later ones.
        for waiting in self.publishes.range_mut(self.in_flight..) {
            waiting.is_sent = true;
            self.in_flight += 1;
            let publish = Box::new(waiting.publish.clone());
            context.send(home, ChannelMessage::Publish(ballot, waiting.ticket, publish));
        }
    }

    pub(super) fn handle_not_home(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        attachment: Attachment,
    ) {
        let home = match self.link {
            RelayLink::Detached => return,
            RelayLink::Attaching(home) | RelayLink::Attached(home, _) => home,
        };
        if home == from && self.attachment == attachment {
            self.link = RelayLink::Detached;
            context.wake_at(context.now_ms + RETRY_MS);
        }
    }

    /// Handles the news that the home has not taken a publish or a question. It has claimed again, or is home no longer.
    pub(super) fn handle_not_taken(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ticket: Ticket,
    ) {
        if let Some(at) = self.publish_at(ticket)
            && std::mem::replace(&mut self.publishes[at].is_sent, false)
        {
            self.in_flight -= 1;
        }
        if let Some(question) = self.questions.iter_mut().find(|waiting| waiting.ticket == ticket) {
            question.is_sent = false;
        }
        match self.link {
            RelayLink::Attached(home, _) if home == from => self.attach_to(context, home),
            _ => self.advance(context),
        }
    }

    /// Where a publish waits. The tickets of later ones are greater.
    fn publish_at(&self, ticket: Ticket) -> Option<usize> {
        self.publishes.binary_search_by_key(&ticket.0, |waiting| waiting.ticket.0).ok()
    }

    pub(super) fn handle_placed(
        &mut self,
        context: &mut ChannelContext<'_>,
        ticket: Ticket,
        outcome: Result<(Position, Tally), Fault>,
    ) {
        let at = self.publish_at(ticket);
        let Some(publish) = at.and_then(|at| self.publishes.remove(at)) else { return };
        self.in_flight -= usize::from(publish.is_sent);
        context.shared.relayed.publishes -= 1;
        context.shared.relayed.bytes -= publish.bytes;
        context.shared.outputs.push_back(ChannelOutput::Placed(ticket, outcome));
        self.advance(context);
    }

    pub(super) fn handle_recovered(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ticket: Ticket,
        position: Position,
        missed: Option<Vec<(Position, Frame)>>,
    ) {
        if !matches!(self.link, RelayLink::Attached(home, _) if home == from) {
            // The question is asked again, behind the messages of the new home.
            return;
        }
        let is_it = |question: &RelayedQuestion| question.ticket == ticket && question.is_sent;
        if let Some(at) = self.questions.iter().position(is_it) {
            self.questions.remove(at);
            context.shared.relayed.questions -= 1;
            let channel = context.name.clone();
            let recovered = RecoveredMessages { channel, position, missed };
            context.shared.outputs.push_back(ChannelOutput::Recovered(ticket, recovered));
        }
    }

    pub(super) fn handle_deliver(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        message: DeliveredMessage,
    ) {
        let DeliveredMessage { ticket, position, frame, excluded } = message;
        if self.link != RelayLink::Attached(from, ballot) || self.followers.is_empty() {
            // The home sends the message again when the relay has attached, if there are subscribers.
            return context.send(from, ChannelMessage::Delivered(ticket, Tally::default()));
        }
        self.position = Some(position);
        deliver(context, position, frame, excluded, Some(DeliveryReceipt { home: from, ticket }));
    }

    pub(super) fn handle_node_down(&mut self, context: &mut ChannelContext<'_>, node: NodeId) {
        if self.sent_to.is_some_and(|(home, _)| home == node) {
            (self.sent_to, self.in_flight) = (None, 0);
            self.fail_publishes(context, |publish| publish.is_sent, unknown_outcome);
        }
        match self.link {
            RelayLink::Attaching(home) | RelayLink::Attached(home, _) if home == node => {
                self.link = RelayLink::Detached;
                self.is_doubtful |= self.position.is_none() && !self.followers.is_empty();
                self.advance(context);
            }
            _ => {}
        }
    }

    /// Returns when a publish, a question or a subscribe has waited long enough, in milliseconds.
    pub(super) fn next_timeout(&self) -> Option<u64> {
        let unsent = self.publishes.len() > self.in_flight;
        let publish = self.publishes.iter().find(|publish| unsent && !publish.is_sent);
        let times = [
            publish.map(|publish| publish.until_ms),
            self.questions.front().map(|question| question.until_ms),
            self.waiters.first().map(|(until_ms, _)| *until_ms),
        ];
        times.into_iter().flatten().min()
    }

    fn fail_publishes(
        &mut self,
        context: &mut ChannelContext<'_>,
        is_failed: impl Fn(&RelayedPublish) -> bool,
        fault: impl Fn() -> Fault,
    ) {
        if !self.publishes.iter().any(&is_failed) {
            return;
        }
        let (failed, rest): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.publishes).into_iter().partition(is_failed);
        self.publishes = rest;
        for publish in failed {
            context.shared.relayed.publishes -= 1;
            context.shared.relayed.bytes -= publish.bytes;
            let outcome = Err(fault());
            context.shared.outputs.push_back(ChannelOutput::Placed(publish.ticket, outcome));
        }
    }

    pub(super) fn handle_timeout(&mut self, context: &mut ChannelContext<'_>) {
        let now_ms = context.now_ms;
        for (_, ticket) in self.waiters.extract_if(.., |(until_ms, _)| *until_ms <= now_ms) {
            context.shared.outputs.push_back(ChannelOutput::Followed(ticket));
        }
        while self.questions.front().is_some_and(|question| question.until_ms <= now_ms)
            && let Some(question) = self.questions.pop_front()
        {
            context.shared.relayed.questions -= 1;
            context.shared.outputs.push_back(ChannelOutput::NotRecovered(question.ticket));
        }
        let is_late = |publish: &RelayedPublish| !publish.is_sent && publish.until_ms <= now_ms;
        self.fail_publishes(context, is_late, || {
            let why = "the home of the channel cannot be reached; the message was not published";
            Fault::new(Code::ExecutionFailed, why)
        });
        self.advance(context);
    }
}

/// Has the subscribers of this node get a message.
fn deliver(
    context: &mut ChannelContext<'_>,
    position: Position,
    frame: Frame,
    excluded: Option<Arc<Vec<ClientId>>>,
    receipt: Option<DeliveryReceipt>,
) {
    let publish = Publish { channel: context.name.clone(), frame, excluded };
    let placed = Arc::new(PlacedPublish { publish, position: Some(position) });
    context.shared.outputs.push_back(ChannelOutput::Deliver(placed, receipt));
}
