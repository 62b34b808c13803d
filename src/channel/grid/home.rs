//! Publishes, copies and deliveries at the home of a channel, and the holder's side of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::channel::{Attaching, GridChannel, Role};
use super::deliveries::{NodeDelivery, PlacingAsker};
use super::shared::ChannelContext;
use crate::address::{ClientId, NodeId};
use crate::channel::history::{ChannelHistory, KeptMessage};
use crate::channel::keys::{TooManyKeys, UsedKey};
use crate::message::{
    AppendedMessage, Attachment, Ballot, ChannelMessage, DeliveredMessage, HistoryMessage,
    HistoryPart, HomeClaim, HomePublish, Reign, Ticket,
};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};
use crate::protocol::position::{Position, Serial};

/// What the home of a channel knows.
#[derive(Debug)]
pub(super) struct Home {
    ballot: Ballot,
    // The last message that each holder has confirmed. `None`: the holder has not got the history yet.
    holders: BTreeMap<NodeId, Option<Serial>>,
    // Nodes with a copy that is needed no more, once all holders have theirs.
    idle: Vec<NodeId>,
    // The last message that was delivered. `None`: some holder has not got the history yet.
    delivered: Option<Serial>,
    // Whether the home has to claim again before its next message.
    is_stale: bool,
    // Until when the home takes no messages, so that another node may become home.
    moving_until_ms: Option<u64>,
    attached: BTreeMap<NodeId, Attached>,
    // Messages that not all holders have confirmed, in order.
    pending: VecDeque<UnconfirmedPublish>,
}

/// A node that reaches the home.
#[derive(Debug)]
struct Attached {
    attachment: Attachment,
    follows: bool,
}

/// A message that not all holders have.
#[derive(Debug)]
pub(super) struct UnconfirmedPublish {
    /// The number of the message.
    pub serial: Serial,
    asker: PlacingAsker,
    key: Option<Box<str>>,
    frame: Frame,
    excluded: Option<Arc<Vec<ClientId>>>,
}

impl UnconfirmedPublish {
    fn bytes(&self) -> usize {
        let excluded = self.excluded.as_ref().map_or(0, |excluded| excluded.len());
        QUEUED_FRAME_BYTES + self.frame.bytes().len() + excluded * size_of::<ClientId>()
    }

    /// Answers the publish with an error.
    pub(super) fn fail(self, context: &mut ChannelContext<'_>) {
        context.shared.deliveries.remove_pending(self.bytes());
        context.shared.settle_publish(self.asker, context.name, self.key, Err(unknown_outcome()));
    }
}

/// The answer to a publish whose home was lost or replaced meanwhile.
pub(super) fn unknown_outcome() -> Fault {
    let why = "the home of the channel has changed; whether the message was published is unknown";
    Fault::new(Code::ExecutionFailed, why)
}

impl Home {
    pub(super) fn new(
        claim: HomeClaim,
        idle: Vec<NodeId>,
        is_stale: bool,
        pending: VecDeque<UnconfirmedPublish>,
    ) -> Self {
        Self {
            ballot: claim.ballot,
            holders: claim.holders.into_iter().map(|node| (node, None)).collect(),
            idle,
            delivered: None,
            is_stale,
            moving_until_ms: None,
            attached: BTreeMap::new(),
            pending,
        }
    }

    pub(super) fn ballot(&self) -> Ballot {
        self.ballot
    }

    /// Whether all holders have got the history.
    pub(super) fn is_ready(&self) -> bool {
        self.delivered.is_some()
    }

    pub(super) fn is_stale(&self) -> bool {
        self.is_stale
    }

    pub(super) fn make_stale(&mut self) {
        self.is_stale = true;
    }

    /// Takes no messages for a while, and then none before it has claimed again: so of the messages that were sent to it under
    /// one claim, it takes none behind one that it has not taken. Returns false if there is something to finish before.
    pub(super) fn begin_moving(&mut self, until_ms: u64) -> bool {
        let may_move = self.is_ready() && self.pending.is_empty();
        if may_move {
            self.moving_until_ms = Some(until_ms);
            self.is_stale = true;
        }
        may_move
    }

    /// Until when the home takes no messages, so that another node may become home.
    pub(super) fn moving_until_ms(&self) -> Option<u64> {
        self.moving_until_ms
    }

    /// Takes messages again, if no other node has become home in time.
    pub(super) fn end_moving(&mut self, now_ms: u64) {
        self.moving_until_ms = self.moving_until_ms.filter(|until_ms| *until_ms > now_ms);
    }

    /// Whether somebody needs the home.
    pub(super) fn has_work(&self) -> bool {
        !self.is_ready()
            || !self.pending.is_empty()
            || self.attached.values().any(|attached| attached.follows)
    }

    /// Ends the reign. Returns the messages that were not delivered.
    pub(super) fn into_pending(self) -> VecDeque<UnconfirmedPublish> {
        self.pending
    }

    /// Ends the reign. Returns the messages that were not delivered, and the nodes that reached the home.
    pub(super) fn into_parts(self) -> (VecDeque<UnconfirmedPublish>, Vec<(NodeId, Attachment)>) {
        let attached = self.attached.into_iter();
        (self.pending, attached.map(|(node, attached)| (node, attached.attachment)).collect())
    }

    /// The nodes that hold the history too.
    pub(super) fn holders(&self) -> impl Iterator<Item = NodeId> {
        self.holders.keys().copied()
    }

    /// Notes that a node is unreachable. Returns whether it is a holder, so that the home has to claim again.
    pub(super) fn handle_node_down(&mut self, node: NodeId) -> bool {
        self.attached.remove(&node);
        self.holders.contains_key(&node)
    }

    /// The last message that all holders have.
    fn held_by_all(&self, last: Serial) -> Option<Serial> {
        self.holders.values().try_fold(last, |least, &held| Some(least.min(held?)))
    }
}

impl GridChannel {
    /// The home, if it may take messages and answer questions under this claim.
    fn serving(&mut self, context: &ChannelContext<'_>, ballot: Ballot) -> Option<&mut Home> {
        let is_known = context.history().is_some();
        match &mut self.role {
            Role::Home(home)
                if home.ballot == ballot
                    && home.is_ready()
                    && !home.is_stale
                    && home.moving_until_ms.is_none()
                    && is_known =>
            {
                Some(home)
            }
            _ => None,
        }
    }

    pub(super) fn handle_publish(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        ticket: Ticket,
        publish: HomePublish,
    ) {
        let HomePublish { publish, key } = publish;
        if self.serving(context, ballot).is_none() {
            return context.send(from, ChannelMessage::NotTaken(ticket));
        }
        let asker = PlacingAsker { node: from, ticket };
        let (frame, excluded) = (publish.frame, publish.excluded);
        let pending = UnconfirmedPublish { serial: Serial(0), asker, key, frame, excluded };
        if let Some(pending) = self.check_publish(context, pending) {
            self.append(context, pending);
        }
    }

    /// Refuses a message that finds no room, or whose key was used before.
    fn check_publish(
        &mut self,
        context: &mut ChannelContext<'_>,
        pending: UnconfirmedPublish,
    ) -> Option<UnconfirmedPublish> {
        let shared = &mut *context.shared;
        let too_many = |why| Err(Fault::new(Code::TooManyRequests, why));
        if !shared.deliveries.has_room(pending.bytes(), &shared.limits) {
            let why = "too many messages of channels with history are being delivered";
            shared.answer_publish(pending.asker, context.name, too_many(why));
            return None;
        }
        let Some(key) = &pending.key else { return Some(pending) };
        let answer = match shared.keys.take(context.name, key, context.now_ms) {
            Ok(None) => return Some(pending),
            Ok(Some(UsedKey::Delivered { position: Some(position), tally })) => {
                Ok((position, tally))
            }
            Ok(Some(_)) => {
                let key = (context.name.clone(), key.clone());
                let UnconfirmedPublish { asker: PlacingAsker { node, ticket }, .. } = pending;
                match shared.deliveries.wait_for(key, PlacingAsker { node, ticket }, &shared.limits)
                {
                    Ok(()) => return None,
                    Err(fault) => {
                        shared.answer_publish(
                            PlacingAsker { node, ticket },
                            context.name,
                            Err(fault),
                        );
                        return None;
                    }
                }
            }
            Err(TooManyKeys) => too_many("k: too many keys are in use"),
        };
        shared.answer_publish(pending.asker, context.name, answer);
        None
    }

    /// Gives a message its number, and sends it to the holders.
    fn append(&mut self, context: &mut ChannelContext<'_>, mut pending: UnconfirmedPublish) {
        let Role::Home(home) = &mut self.role else { return };
        let (policy, now_ms) = (context.policy, context.now_ms);
        let Some(history) = context.history() else { return };
        let (last, latest) = (history.last(), history.reign());
        let reign = match latest.filter(|reign| reign.ballot == home.ballot) {
            Some(reign) => reign,
            None => {
                let epoch = context.shared.next_epoch(context.name);
                let reign = Reign { epoch, ballot: home.ballot, first: last.next() };
                context.shared.histories.begin(context.name, &policy, reign, now_ms);
                reign
            }
        };
        let (key, frame) = (pending.key.clone(), pending.frame.clone());
        let message = HistoryMessage { age_ms: 0, key, frame };
        let kept = KeptMessage::from_message(message.clone(), now_ms);
        pending.serial = context.shared.histories.push(context.name, &policy, kept, now_ms);
        context.shared.deliveries.add_pending(pending.bytes());
        let appended = AppendedMessage { reign, serial: pending.serial, message };
        for &node in home.holders.keys() {
            let appended = Box::new(appended.clone());
            context.send(node, ChannelMessage::Append(home.ballot, appended));
        }
        home.pending.push_back(pending);
        self.deliver_held(context);
    }

    /// Takes a message of the home.
    pub(super) fn handle_append(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        appended: AppendedMessage,
    ) {
        let AppendedMessage { reign, serial, message } = appended;
        let history = context.history().map(|history| (history.last(), history.reign()));
        let is_next = history.is_some_and(|(last, _)| last.next() == serial);
        if self.promised() != Some(ballot) || self.accepted() != Some(ballot) || !is_next {
            let promised = self.promised().unwrap_or(ballot).max(ballot);
            return context.send(from, ChannelMessage::Outvoted(promised));
        }
        let (policy, now_ms) = (context.policy, context.now_ms);
        if history.and_then(|(_, latest)| latest) != Some(reign) {
            if reign.first != serial {
                return context.send(from, ChannelMessage::Outvoted(ballot));
            }
            context.shared.histories.begin(context.name, &policy, reign, now_ms);
        }
        let message = KeptMessage::from_message(message, now_ms);
        context.shared.histories.push(context.name, &policy, message, now_ms);
        context.send(from, ChannelMessage::Confirm(ballot, serial));
    }

    /// Takes a part of the history from the home.
    pub(super) fn handle_install(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        part: HistoryPart,
    ) {
        let promised = self.promised();
        if promised != Some(ballot) || ballot.node != from {
            let promised = promised.unwrap_or(ballot).max(ballot);
            return context.send(from, ChannelMessage::Outvoted(promised));
        }
        if part.replaces {
            self.accepted = None;
        }
        let (is_last, policy, now_ms) = (part.is_last, context.policy, context.now_ms);
        if !context.shared.histories.adopt(context.name, &policy, part, now_ms) {
            self.accepted = None;
            return context.send(from, ChannelMessage::Outvoted(ballot));
        }
        if is_last {
            (self.accepted, self.is_whole) = (self.promised.clone(), true);
            let last = context.history().map(ChannelHistory::last).unwrap_or_default();
            context.send(from, ChannelMessage::Confirm(ballot, last));
        }
    }

    pub(super) fn handle_confirm(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        serial: Serial,
    ) {
        let Role::Home(home) = &mut self.role else { return };
        let Some(held) = home.holders.get_mut(&from).filter(|_| home.ballot == ballot) else {
            return;
        };
        *held = (*held).max(Some(serial));
        match home.is_ready() {
            true => self.deliver_held(context),
            false => self.check_readiness(context),
        }
    }

    pub(super) fn handle_forget(&mut self, context: &mut ChannelContext<'_>, ballot: Ballot) {
        if self.promised() == Some(ballot) {
            self.accepted = None;
            context.shared.histories.clear(context.name);
        }
    }

    /// Begins to serve once all holders have the history.
    pub(super) fn check_readiness(&mut self, context: &mut ChannelContext<'_>) {
        let Role::Home(home) = &mut self.role else { return };
        let Some(history) = context.history() else { return };
        let last = history.last();
        if home.is_ready() || home.held_by_all(last).is_none_or(|held| held < last) {
            return;
        }
        home.delivered = Some(last);
        let keys: Vec<(Box<str>, Position)> = history
            .keys()
            .filter_map(|(key, serial, _)| Some((key.into(), history.position(serial)?)))
            .collect();
        for node in std::mem::take(&mut home.idle) {
            context.send(node, ChannelMessage::Forget(home.ballot));
        }
        // The subscribers get these messages when their nodes attach, so nobody counts them.
        for pending in std::mem::take(&mut home.pending) {
            context.shared.deliveries.remove_pending(pending.bytes());
            let position = context.history().and_then(|history| history.position(pending.serial));
            let outcome = position.map(|position| (position, Tally::default()));
            let outcome = outcome.ok_or_else(unknown_outcome);
            context.shared.settle_publish(pending.asker, context.name, pending.key, outcome);
        }
        for (key, position) in keys {
            context.shared.keys.restore(context.name, &key, position, context.now_ms);
        }
        for (node, attaching) in std::mem::take(&mut self.attaching) {
            self.attach(context, node, attaching);
        }
    }

    /// Delivers the messages that all holders have.
    fn deliver_held(&mut self, context: &mut ChannelContext<'_>) {
        let Role::Home(home) = &mut self.role else { return };
        let last = context.history().map(ChannelHistory::last).unwrap_or_default();
        let Some(held) = home.held_by_all(last) else { return };
        while home.pending.front().is_some_and(|pending| pending.serial <= held)
            && let Some(pending) = home.pending.pop_front()
        {
            home.delivered = Some(pending.serial);
            let bytes = pending.bytes();
            context.shared.deliveries.remove_pending(bytes);
            let UnconfirmedPublish { serial, asker, key, frame, excluded } = pending;
            let Some(position) = context.history().and_then(|history| history.position(serial))
            else {
                let outcome = Err(unknown_outcome());
                context.shared.settle_publish(asker, context.name, key, outcome);
                continue;
            };
            let followers = home.attached.iter().filter(|(_, attached)| attached.follows);
            let awaited: Vec<NodeId> = followers.map(|(&node, _)| node).collect();
            let channel = context.name.clone();
            let tally = Tally::default();
            let delivery = NodeDelivery {
                asker,
                channel,
                key,
                position,
                awaited: awaited.clone(),
                tally,
                bytes,
            };
            let ticket = context.shared.begin_delivery(context.now_ms, delivery);
            for node in awaited {
                let (frame, excluded) = (frame.clone(), excluded.clone());
                let message = DeliveredMessage { ticket, position, frame, excluded };
                context.send(node, ChannelMessage::Deliver(home.ballot, Box::new(message)));
            }
        }
    }

    pub(super) fn handle_attach(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        attaching: Attaching,
    ) {
        let is_known = context.history().is_some();
        match &self.role {
            Role::Home(home) if home.moving_until_ms.is_some() => {
                context.send(from, ChannelMessage::NotHome(attaching.attachment));
            }
            Role::Home(home) if home.is_ready() && !home.is_stale && is_known => {
                self.attach(context, from, attaching);
            }
            Role::Home(home) if home.is_ready() => {
                // The history is to be checked, or was dropped for lack of memory.
                self.attaching.insert(from, attaching);
                self.claim(context);
            }
            Role::Home(_) | Role::Claiming(_) => {
                self.attaching.insert(from, attaching);
            }
            Role::Idle => {
                self.attaching.insert(from, attaching);
                self.claim_if_wanted(context);
            }
        }
    }

    fn attach(&mut self, context: &mut ChannelContext<'_>, node: NodeId, attaching: Attaching) {
        let Role::Home(home) = &mut self.role else { return };
        let Attaching { attachment, follows, position } = attaching;
        let bytes_max = context.shared.limits.missed_bytes;
        let Some((position, missed)) =
            home.delivered.and_then(|delivered| missed(context, delivered, position, bytes_max))
        else {
            return context.send(node, ChannelMessage::NotHome(attachment));
        };
        home.attached.insert(node, Attached { attachment, follows });
        let ballot = home.ballot;
        context.send(node, ChannelMessage::Attached { attachment, ballot, position, missed });
    }

    pub(super) fn handle_recover(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        ticket: Ticket,
        since: Option<Position>,
        bytes_max: u64,
    ) {
        let delivered = self.serving(context, ballot).and_then(|home| home.delivered);
        let recovered =
            delivered.and_then(|delivered| missed(context, delivered, since, bytes_max as usize));
        let answer = match recovered {
            Some((position, missed)) => ChannelMessage::Recovered { ticket, position, missed },
            None => ChannelMessage::NotTaken(ticket),
        };
        context.send(from, answer);
    }
}

/// Messages in order, each with the place behind it.
type PlacedFrames = Vec<(Position, Frame)>;

/// The place behind the last delivered message, and the delivered messages behind another place. `None`: the history is
/// unknown.
fn missed(
    context: &ChannelContext<'_>,
    delivered: Serial,
    since: Option<Position>,
    bytes_max: usize,
) -> Option<(Position, Option<PlacedFrames>)> {
    let history = context.history()?;
    // Whoever got a message that this home has not delivered got it of another one, on another side of a split.
    let since = since.filter(|since| since.serial <= delivered);
    let missed = since.and_then(|since| history.messages_behind(since, bytes_max));
    let missed = missed.map(|mut missed| {
        missed.retain(|(position, _)| position.serial <= delivered);
        missed
    });
    Some((history.position(delivered)?, missed))
}
