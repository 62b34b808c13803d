//! What one node is to one channel.

use std::collections::BTreeMap;

use super::SUSPICION_MS;
use super::claim::Claiming;
use super::home::Home;
use super::relay::Relay;
use super::shared::ChannelContext;
use crate::address::NodeId;
use crate::channel::ChannelPolicy;
use crate::channel::history::ChannelHistory;
use crate::message::{Attachment, Ballot, ChannelMessage, Holding, HomeClaim};
use crate::protocol::api::Tally;
use crate::protocol::position::Position;

/// What this node is to a channel.
#[derive(Debug)]
pub(super) struct GridChannel {
    pub(super) policy: ChannelPolicy,
    // The greatest claim that is respected.
    pub(super) promised: Option<HomeClaim>,
    // The claim whose home has completed the copy of the history. `None`: there is no copy.
    pub(super) accepted: Option<HomeClaim>,
    // Whether nobody can have gone on without this node since, as far as it can tell by itself.
    pub(super) is_whole: bool,
    pub(super) role: Role,
    // The greatest round heard of, and when this node may claim again.
    pub(super) round: u64,
    pub(super) claim_after_ms: u64,
    // When this node looks whether another one should be home in its place.
    pub(super) move_ms: Option<u64>,
    // Nodes that wait for this one to be home.
    pub(super) attaching: BTreeMap<NodeId, Attaching>,
    pub(super) relay: Relay,
    // Whether the claim that is to be repeated waits for others.
    pub(super) is_queued: bool,
    pub(super) used_ms: u64,
}

/// What this node does for a channel, besides holding a copy and relaying.
#[derive(Debug)]
pub(super) enum Role {
    /// Nothing.
    Idle,
    /// This node claims to be home.
    Claiming(Claiming),
    /// This node is home.
    Home(Home),
}

/// The wish of a node to reach the home.
#[derive(Debug)]
pub(super) struct Attaching {
    pub(super) attachment: Attachment,
    pub(super) follows: bool,
    pub(super) position: Option<Position>,
}

impl GridChannel {
    pub(super) fn new(policy: ChannelPolicy, now_ms: u64) -> Self {
        Self {
            policy,
            promised: None,
            accepted: None,
            is_whole: false,
            role: Role::Idle,
            round: 0,
            claim_after_ms: 0,
            move_ms: None,
            attaching: BTreeMap::new(),
            relay: Relay::default(),
            is_queued: false,
            used_ms: now_ms,
        }
    }

    /// The greatest claim that this node respects.
    pub(super) fn promised(&self) -> Option<Ballot> {
        self.promised.as_ref().map(|claim| claim.ballot)
    }

    /// The claim whose home has completed the copy.
    pub(super) fn accepted(&self) -> Option<Ballot> {
        self.accepted.as_ref().map(|claim| claim.ballot)
    }

    /// What this node tells claimants.
    pub(super) fn holding(&self, context: &ChannelContext<'_>) -> Holding {
        // Parts of a copy are no copy.
        let history = context.history().filter(|_| self.accepted.is_some());
        Holding {
            promised: self.promised.clone(),
            accepted: self.accepted.clone().filter(|_| history.is_some()),
            is_whole: self.is_whole,
            reigns: history.map_or_else(Vec::new, |history| history.reigns().collect()),
            last: history.map(ChannelHistory::last).unwrap_or_default(),
        }
    }

    pub(super) fn handle_message(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        message: ChannelMessage,
    ) {
        self.used_ms = context.now_ms;
        match message {
            ChannelMessage::Claim(claim) => self.handle_claim(context, from, claim),
            ChannelMessage::Promise(ballot, holding) => {
                self.handle_promise(context, from, ballot, *holding);
            }
            ChannelMessage::Outvoted(ballot) => self.handle_outvoted(context, ballot),
            ChannelMessage::Fetch(ballot, behind) => {
                self.handle_fetch(context, from, ballot, behind)
            }
            ChannelMessage::Fetched(ballot, part) => {
                self.handle_fetched(context, from, ballot, *part);
            }
            ChannelMessage::Install(ballot, part) => {
                self.handle_install(context, from, ballot, *part);
            }
            ChannelMessage::Append(ballot, appended) => {
                self.handle_append(context, from, ballot, *appended);
            }
            ChannelMessage::Confirm(ballot, serial) => {
                self.handle_confirm(context, from, ballot, serial);
            }
            ChannelMessage::Forget(ballot) => self.handle_forget(context, ballot),
            ChannelMessage::Attach { attachment, follows, position } => {
                let attaching = Attaching { attachment, follows, position };
                self.handle_attach(context, from, attaching);
            }
            ChannelMessage::Attached { attachment, ballot, position, missed } => {
                if self.relay.is_attaching(from, attachment) {
                    self.relay.handle_attached(context, from, ballot, position, missed);
                }
            }
            ChannelMessage::NotHome(attachment) => {
                self.relay.handle_not_home(context, from, attachment);
            }
            ChannelMessage::Publish(ballot, ticket, publish) => {
                self.handle_publish(context, from, ballot, ticket, *publish);
            }
            ChannelMessage::NotTaken(ticket) => self.relay.handle_not_taken(context, from, ticket),
            ChannelMessage::Placed(ticket, outcome) => {
                self.relay.handle_placed(context, ticket, outcome);
            }
            ChannelMessage::Deliver(ballot, message) => {
                self.relay.handle_deliver(context, from, ballot, *message);
            }
            ChannelMessage::Delivered(ticket, tally) => {
                context.shared.note_delivered(from, ticket, tally);
            }
            ChannelMessage::Recover { ballot, ticket, since, bytes_max } => {
                self.handle_recover(context, from, ballot, ticket, since, bytes_max);
            }
            ChannelMessage::Recovered { ticket, position, missed } => {
                self.relay.handle_recovered(context, from, ticket, position, missed);
            }
        }
    }

    /// Whether nobody would miss the channel if it were forgotten. `is_crowded`: room for other channels is scarce, so an
    /// empty history is not kept for its positions.
    pub(super) fn is_unused(&self, context: &ChannelContext<'_>, is_crowded: bool) -> bool {
        let keep_ms = match self.accepted.is_none() || is_crowded {
            true => SUSPICION_MS,
            false => self.policy.keep_ms.max(SUSPICION_MS),
        };
        !self.is_queued
            && self.attaching.is_empty()
            && self.relay.is_unused()
            && match &self.role {
                Role::Idle => true,
                Role::Claiming(_) => false,
                Role::Home(home) => !home.has_work(),
            }
            && context.history().is_none_or(ChannelHistory::is_empty)
            // The home tells when it needs the copy no longer.
            && self.accepted().is_none_or(|ballot| !context.shared.members.has(ballot.node))
            && self.used_ms + keep_ms <= context.now_ms
    }

    /// Whether a claim of this node is in progress, or its holders have not got the history yet.
    pub(super) fn is_claiming(&self) -> bool {
        match &self.role {
            Role::Idle => false,
            Role::Claiming(_) => true,
            Role::Home(home) => !home.is_ready(),
        }
    }
}

/// Answers a message about a channel that this node does not take part in. Whoever asks for nothing gets no answer.
pub(super) fn answer_unknown(own: NodeId, message: ChannelMessage) -> Option<ChannelMessage> {
    Some(match message {
        ChannelMessage::Claim(claim) => match claim.holders.contains(&own) {
            true => ChannelMessage::Outvoted(claim.ballot),
            // A node that holds and sends nothing has nothing to break its promise with.
            false => ChannelMessage::Promise(claim.ballot, Box::default()),
        },
        ChannelMessage::Fetch(ballot, _)
        | ChannelMessage::Install(ballot, _)
        | ChannelMessage::Append(ballot, _) => ChannelMessage::Outvoted(ballot),
        ChannelMessage::Attach { attachment, .. } => ChannelMessage::NotHome(attachment),
        ChannelMessage::Publish(_, ticket, _) | ChannelMessage::Recover { ticket, .. } => {
            ChannelMessage::NotTaken(ticket)
        }
        ChannelMessage::Deliver(_, message) => {
            ChannelMessage::Delivered(message.ticket, Tally::default())
        }
        ChannelMessage::Promise(..)
        | ChannelMessage::Outvoted(_)
        | ChannelMessage::Fetched(..)
        | ChannelMessage::Confirm(..)
        | ChannelMessage::Forget(_)
        | ChannelMessage::Attached { .. }
        | ChannelMessage::NotHome(_)
        | ChannelMessage::NotTaken(_)
        | ChannelMessage::Placed(..)
        | ChannelMessage::Delivered(..)
        | ChannelMessage::Recovered { .. } => return None,
    })
}
