//! How a node becomes home of a channel, and what becomes of the history.
//!
//! Under one claim the set of holders never changes, and the home delivers nothing before all of them have it. So each holder
//! of a claim has everything that was delivered under it. A node that has promised to respect a greater claim takes
//! nothing of a smaller one, so what it has told the claimant stays true.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::RETRY_MS;
use super::channel::{GridChannel, Role};
use super::home::{Home, UnconfirmedPublish};
use super::shared::ChannelContext;
use crate::address::NodeId;
use crate::channel::members::JOIN_MS;
use crate::message::{
    Ballot, COPIES_MAX, ChannelMessage, HistoryPart, Holding, HomeClaim, REIGNS_MAX, Reign,
};
use crate::protocol::position::{Position, Serial};

/// How long a home that lets another node become home takes no messages, in milliseconds. The other one has claimed by then,
/// or does not want to.
const MOVE_MS: u64 = 500;

/// A claim of this node that other nodes have not agreed to yet, or whose history is on its way.
#[derive(Debug)]
pub(super) struct Claiming {
    claim: HomeClaim,
    // Nodes that have not answered.
    awaited: BTreeSet<NodeId>,
    answers: BTreeMap<NodeId, Holding>,
    // Whether a node has become reachable meanwhile, which has to be asked too.
    is_stale: bool,
    // The node that sends the history.
    source: Option<NodeId>,
    // Messages that this node has numbered as home, and has not delivered.
    pending: VecDeque<UnconfirmedPublish>,
}

impl GridChannel {
    /// Claims the channel for this node, again if it is the home already.
    pub(super) fn claim(&mut self, context: &mut ChannelContext<'_>) {
        let holding = self.holding(context);
        let pending = match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Idle => VecDeque::new(),
            Role::Claiming(claiming) => claiming.pending,
            Role::Home(home) => home.into_pending(),
        };
        let own = context.own();
        self.round = 1 + self.round.max(self.promised().map_or(0, |ballot| ballot.round));
        let copies = context.policy.copies.min(COPIES_MAX);
        let mut holders = context.shared.members.ranked(context.name);
        holders.truncate(copies.saturating_sub(1));
        let claim = HomeClaim { ballot: Ballot { round: self.round, node: own }, holders };
        self.promised = Some(claim.clone());
        let awaited: BTreeSet<NodeId> = context.shared.members.others().collect();
        for &node in &awaited {
            context.send(node, ChannelMessage::Claim(claim.clone()));
        }
        let answers = BTreeMap::from([(own, holding)]);
        let (is_stale, source) = (false, None);
        self.role = Role::Claiming(Claiming { claim, awaited, answers, is_stale, source, pending });
        self.relay.handle_new_home(context, own);
        self.conclude(context);
    }

    /// Claims the channel if somebody waits for this node to be home.
    pub(super) fn claim_if_wanted(&mut self, context: &mut ChannelContext<'_>) {
        if self.attaching.is_empty() || self.is_claiming() {
            return;
        }
        if !context.should_be_home() {
            return self.refuse_attaching(context);
        }
        match self.claim_after_ms <= context.now_ms {
            true => self.claim(context),
            false => context.wake_at(self.claim_after_ms),
        }
    }

    /// Claims the channel again, because the reachable nodes have changed: holders may be needed, and other nodes may have
    /// gone on by themselves.
    pub(super) fn repair(&mut self, context: &mut ChannelContext<'_>) {
        let is_stale = match &self.role {
            Role::Idle => false,
            Role::Claiming(claiming) => claiming.is_stale,
            Role::Home(home) => home.is_stale(),
        };
        if is_stale {
            self.claim_or_step_down(context);
        }
    }

    /// Lets another node become home, if it should be, once this node has nothing to finish.
    fn move_home(&mut self, context: &mut ChannelContext<'_>) {
        let Role::Home(home) = &mut self.role else { return self.move_ms = None };
        if context.should_be_home() {
            self.move_ms = None;
        } else if home.begin_moving(context.now_ms + MOVE_MS) {
            self.move_ms = None;
            context.wake_at(context.now_ms + MOVE_MS);
            self.relay.seek_new_home(context);
        } else {
            self.move_ms = Some(context.now_ms + RETRY_MS);
            context.wake_at(context.now_ms + RETRY_MS);
        }
    }

    pub(super) fn handle_claim(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        claim: HomeClaim,
    ) {
        self.round = self.round.max(claim.ballot.round);
        if claim.ballot.node != from || claim.holders.len() >= COPIES_MAX {
            return;
        }
        if let Some(ballot) = self.promised().filter(|ballot| *ballot >= claim.ballot) {
            return context.send(from, ChannelMessage::Outvoted(ballot));
        }
        self.step_down(context);
        let (holding, ballot) = (self.holding(context), claim.ballot);
        self.promised = Some(claim);
        context.send(from, ChannelMessage::Promise(ballot, Box::new(holding)));
        self.relay.handle_new_home(context, from);
    }

    pub(super) fn handle_promise(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        holding: Holding,
    ) {
        let Role::Claiming(claiming) = &mut self.role else { return };
        if claiming.claim.ballot == ballot && claiming.awaited.remove(&from) {
            claiming.answers.insert(from, holding);
            self.conclude(context);
        }
    }

    pub(super) fn handle_outvoted(&mut self, context: &mut ChannelContext<'_>, ballot: Ballot) {
        self.round = self.round.max(ballot.round);
        let own = match &self.role {
            Role::Idle => return,
            Role::Claiming(claiming) => claiming.claim.ballot,
            Role::Home(home) => home.ballot(),
        };
        if ballot >= own {
            self.step_down(context);
            // Nodes that claim in turn should not do so at the same times.
            let after_ms = RETRY_MS / 2 + u64::from(context.own().number()) % 8 * (RETRY_MS / 8);
            self.claim_after_ms = context.now_ms + after_ms;
        }
    }

    /// Stops being home, or claiming to be.
    pub(super) fn step_down(&mut self, context: &mut ChannelContext<'_>) {
        let (pending, attached) = match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Idle => (VecDeque::new(), Vec::new()),
            Role::Claiming(claiming) => (claiming.pending, Vec::new()),
            Role::Home(home) => home.into_parts(),
        };
        for (node, attachment) in attached {
            context.send(node, ChannelMessage::NotHome(attachment));
        }
        self.refuse_attaching(context);
        self.fail_pending(context, pending);
    }

    /// Takes back messages that were numbered and not delivered. A holder may have them nevertheless.
    fn fail_pending(
        &mut self,
        context: &mut ChannelContext<'_>,
        pending: VecDeque<UnconfirmedPublish>,
    ) {
        if let Some(first) = pending.front() {
            let last = Serial(first.serial.0 - 1);
            context.shared.histories.truncate(context.name, last, context.now_ms);
        }
        for pending in pending {
            pending.fail(context);
        }
    }

    pub(super) fn refuse_attaching(&mut self, context: &mut ChannelContext<'_>) {
        for (node, attaching) in std::mem::take(&mut self.attaching) {
            context.send(node, ChannelMessage::NotHome(attaching.attachment));
        }
    }

    /// Decides about the history when all nodes have answered.
    fn conclude(&mut self, context: &mut ChannelContext<'_>) {
        let own = context.own();
        let Role::Claiming(claiming) = &mut self.role else { return };
        if !claiming.awaited.is_empty() || claiming.source.is_some() {
            return;
        }
        if claiming.is_stale {
            return self.claim_or_step_down(context);
        }
        match source_of(own, &claiming.answers) {
            Some(source) if source == own => self.become_home(context),
            Some(source) => {
                claiming.source = Some(source);
                let ballot = claiming.claim.ballot;
                let pending = std::mem::take(&mut claiming.pending);
                self.fail_pending(context, pending);
                let behind = context.history().and_then(|history| history.place());
                context.send(source, ChannelMessage::Fetch(ballot, behind));
            }
            None => {
                let ballot = claiming.claim.ballot;
                let pending = std::mem::take(&mut claiming.pending);
                self.fail_pending(context, pending);
                context.shared.histories.clear(context.name);
                let epoch = context.shared.next_epoch(context.name);
                let reign = Reign { epoch, ballot, first: Serial(1) };
                let (policy, now_ms) = (context.policy, context.now_ms);
                context.shared.histories.begin(context.name, &policy, reign, now_ms);
                self.become_home(context);
            }
        }
    }

    pub(super) fn handle_fetch(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        behind: Option<Position>,
    ) {
        let known = context.history().filter(|_| self.promised() == Some(ballot));
        let Some(history) = known else {
            // Without the history, the claimant has to begin anew.
            let promised = self.promised().unwrap_or(ballot).max(ballot);
            return context.send(from, ChannelMessage::Outvoted(promised));
        };
        for part in history.parts_behind(behind, context.now_ms) {
            context.send(from, ChannelMessage::Fetched(ballot, Box::new(part)));
        }
    }

    pub(super) fn handle_fetched(
        &mut self,
        context: &mut ChannelContext<'_>,
        from: NodeId,
        ballot: Ballot,
        part: HistoryPart,
    ) {
        let Role::Claiming(claiming) = &mut self.role else { return };
        if claiming.claim.ballot != ballot || claiming.source != Some(from) {
            return;
        }
        if part.replaces {
            self.accepted = None;
        }
        let (is_last, now_ms, policy) = (part.is_last, context.now_ms, context.policy);
        match context.shared.histories.adopt(context.name, &policy, part, now_ms) {
            false => {
                self.accepted = None;
                self.claim(context);
            }
            true if is_last => self.become_home(context),
            true => {}
        }
    }

    fn become_home(&mut self, context: &mut ChannelContext<'_>) {
        let Role::Claiming(claiming) = std::mem::replace(&mut self.role, Role::Idle) else {
            return;
        };
        let Claiming { claim, answers, is_stale, pending, .. } = claiming;
        (self.accepted, self.is_whole) = (Some(claim.clone()), true);
        let Some(history) = context.history() else { return };
        let mut messages = Vec::new();
        for &node in &claim.holders {
            let place = answers.get(&node).and_then(place_of);
            for part in history.parts_behind(place, context.now_ms) {
                messages.push((node, ChannelMessage::Install(claim.ballot, Box::new(part))));
            }
        }
        for (node, message) in messages {
            context.send(node, message);
        }
        let is_idle = |(node, holding): &(NodeId, Holding)| {
            *node != context.own() && !claim.holders.contains(node) && !holding.reigns.is_empty()
        };
        let idle = answers.into_iter().filter(is_idle).map(|(node, _)| node).collect();
        self.role = Role::Home(Home::new(claim, idle, is_stale, pending));
        self.check_readiness(context);
    }

    pub(super) fn handle_node_up(
        &mut self,
        context: &mut ChannelContext<'_>,
        node: NodeId,
        is_known: bool,
    ) {
        // By then the node may be home.
        let move_ms = context.now_ms + JOIN_MS + RETRY_MS;
        self.move_ms = Some(move_ms);
        context.wake_at(move_ms);
        // The home of the copy may have gone on without this node. If it was started again, that is lost.
        if is_known && self.accepted().is_some_and(|ballot| ballot.node == node) {
            self.is_whole = false;
        }
        match &mut self.role {
            Role::Idle => {}
            Role::Claiming(claiming) => claiming.is_stale = true,
            Role::Home(home) => home.make_stale(),
        }
    }

    pub(super) fn handle_node_down(&mut self, context: &mut ChannelContext<'_>, node: NodeId) {
        let accepted_of = self.accepted().map(|ballot| ballot.node);
        let is_suspect = context.shared.is_suspect(node, context.now_ms);
        if is_suspect && (accepted_of == Some(node) || accepted_of == Some(context.own())) {
            self.is_whole = false;
        }
        self.attaching.remove(&node);
        match &mut self.role {
            Role::Idle => {}
            Role::Claiming(claiming) => {
                let is_needed =
                    claiming.claim.holders.contains(&node) || claiming.source == Some(node);
                match claiming.awaited.remove(&node) || is_needed {
                    // What this node has answered itself is in doubt now.
                    true if is_suspect => self.step_down(context),
                    true if is_needed => self.claim_or_step_down(context),
                    true => self.conclude(context),
                    false => {}
                }
            }
            Role::Home(home) => match home.handle_node_down(node) {
                true if is_suspect => self.step_down(context),
                true => self.claim_or_step_down(context),
                false => {}
            },
        }
        self.relay.handle_node_down(context, node);
    }

    /// Claims again, unless this node shuts down.
    fn claim_or_step_down(&mut self, context: &mut ChannelContext<'_>) {
        match context.shared.is_leaving {
            true => self.step_down(context),
            false => self.claim(context),
        }
    }

    pub(super) fn handle_timeout(&mut self, context: &mut ChannelContext<'_>) {
        if let Role::Home(home) = &mut self.role {
            home.end_moving(context.now_ms);
            self.relay.return_to_own(context);
        }
        if self.move_ms.is_some_and(|move_ms| move_ms <= context.now_ms) {
            self.move_home(context);
        }
        self.claim_if_wanted(context);
        self.relay.handle_timeout(context);
        // The earliest time alone was remembered.
        let moving_until_ms = match &self.role {
            Role::Home(home) => home.moving_until_ms(),
            Role::Idle | Role::Claiming(_) => None,
        };
        let times = [self.move_ms, moving_until_ms, self.relay.next_timeout()];
        if let Some(due_ms) = times.into_iter().flatten().min() {
            context.wake_at(due_ms);
        }
    }

    /// This node did not run for a while: the others may have gone on without it. A home asks them before it answers anybody.
    pub(super) fn handle_gap(&mut self) {
        match &mut self.role {
            Role::Idle => {}
            Role::Claiming(claiming) => claiming.is_stale = true,
            Role::Home(home) => home.make_stale(),
        }
    }
}

/// The node whose history goes on. `None`: messages that were delivered may be missing in all of them, so that no earlier
/// position may be trusted.
fn source_of(own: NodeId, answers: &BTreeMap<NodeId, Holding>) -> Option<NodeId> {
    let is_source = |holding: &Holding| {
        let is_whole = holding.is_whole
            || holding.accepted.as_ref().is_some_and(|claim| nobody_went_on(claim, answers));
        is_whole && place_of(holding).is_some()
    };
    let accepted = answers.values().filter(|holding| is_source(holding));
    let accepted = accepted.filter_map(ballot_of).max()?;
    let sources = answers
        .iter()
        .filter(|(_, holding)| is_source(holding) && ballot_of(holding) == Some(accepted));
    let (&source, longest) = sources.max_by_key(|(node, holding)| (holding.last, **node == own))?;
    let is_continued = |holding: &Holding| {
        let has_no_later_copy = ballot_of(holding) <= Some(accepted);
        let is_harmless =
            |claim: &HomeClaim| claim.ballot <= accepted || has_delivered_nothing(claim, answers);
        // A copy without messages was delivered to nobody.
        let is_empty = holding.reigns.first().is_none_or(|reign| holding.last < reign.first);
        let is_covered = is_empty || place_of(holding).is_some_and(|place| covers(longest, place));
        has_no_later_copy && is_covered && holding.promised.as_ref().is_none_or(is_harmless)
    };
    answers.values().all(is_continued).then_some(source)
}

/// The claim whose home has completed a copy.
fn ballot_of(holding: &Holding) -> Option<Ballot> {
    holding.accepted.as_ref().map(|claim| claim.ballot)
}

/// Whether the home of a claim and all its holders have answered, and have their copies from this claim still. Whoever went on
/// with the history would have got it from one of them, which would have promised to respect a later claim.
fn nobody_went_on(claim: &HomeClaim, answers: &BTreeMap<NodeId, Holding>) -> bool {
    let mut copies = claim.holders.iter().chain([&claim.ballot.node]);
    copies.all(|node| {
        answers.get(node).is_some_and(|holding| ballot_of(holding) == Some(claim.ballot))
    })
}

/// Whether a claim has certainly led to no delivery: the claimant, or a holder without which it could deliver nothing, has
/// known of the claim and has not the history that belongs to it.
fn has_delivered_nothing(claim: &HomeClaim, answers: &BTreeMap<NodeId, Holding>) -> bool {
    let mut witnesses = claim.holders.iter().chain([&claim.ballot.node]);
    witnesses.any(|node| {
        answers.get(node).is_some_and(|holding| {
            let has_known = holding.promised.as_ref().map(|known| known.ballot);
            has_known >= Some(claim.ballot) && ballot_of(holding) < Some(claim.ballot)
        })
    })
}

/// The place behind the last message that a node holds.
fn place_of(holding: &Holding) -> Option<Position> {
    holding.accepted.as_ref()?;
    let of_last = holding.reigns.iter().rev().find(|reign| reign.first <= holding.last);
    let reign = of_last.or(holding.reigns.first())?;
    Some(Position { epoch: reign.epoch, serial: holding.last })
}

/// Whether a position is a place in the history that a node holds.
fn covers(holding: &Holding, position: Position) -> bool {
    debug_assert!(holding.reigns.len() <= REIGNS_MAX);
    let reigns = &holding.reigns;
    let Some(at) = reigns.iter().position(|reign| reign.epoch == position.epoch) else {
        return false;
    };
    let end = reigns.get(at + 1).map_or(holding.last.0, |next| next.first.0 - 1);
    let begin = reigns[at].first.0.saturating_sub(1);
    (begin..=end).contains(&position.serial.0)
}
