//! Channels with history in a grid: one shard's part of each node.
//!
//! A channel has one responsible shard on every node, chosen by the hash of its name. These shards speak to each other
//! about the channel. One of them is its *home*, which gives messages their numbers. Some are *holders*, which have a copy of
//! the history. Each is the *relay* of its node: publishes and recoveries of the node go through it to the home, and
//! messages of the home go through it to the subscribers of the node.
//!
//! | file | subject |
//! |---|---|
//! | `channel.rs` | what one node is to one channel |
//! | `claim.rs` | how a node becomes home, and what becomes of the history |
//! | `home.rs` | publishes, copies and deliveries at the home; the holder's side of them |
//! | `relay.rs` | how a node reaches the home |
//! | `deliveries.rs` | messages that not all nodes have delivered yet |
//! | `shared.rs` | what all channels of a shard share |
//! | `limits.rs` | bounds |
//!
//! `docs/internals/history.md` says why this is right.

mod channel;
mod claim;
mod deliveries;
mod home;
mod limits;
mod relay;
mod shared;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;

use super::ChannelPolicy;
use super::histories::Histories;
use super::keys::UsedKeys;
use super::members::{JOIN_MS, Members};
use crate::address::{Incarnation, NodeId, ShardId};
use crate::message::{ChannelMessage, HomePublish, PlacedPublish, Ticket};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::frame::Frame;
use crate::protocol::position::{Epoch, Position};
use channel::{GridChannel, Role, answer_unknown};
use deliveries::Deliveries;
pub use limits::GridLimits;
use shared::{ChannelContext, Shared, Wakes};

/// How long after a gap in which this node did not run the loss of a session means that the others may have gone on
/// without it, in milliseconds. A session outlives the gap by less.
const SUSPICION_MS: u64 = 10_000;

/// The pause before a node that did not find the home looks for it again, and before a node that was outvoted claims again,
/// in milliseconds.
const RETRY_MS: u64 = 100;

/// The interval in which claims that repair copies follow those that have ended, in milliseconds.
const CLAIMS_MS: u64 = 5;

/// The interval in which channels that nobody uses are looked for, in milliseconds, and the channels that one search visits.
const SWEEP_MS: u64 = 1000;
const SWEPT_CHANNELS: usize = 4096;

/// One shard's part of all channels with history. Messages and the time go in, [`ChannelOutput`] comes out.
#[derive(Debug)]
pub struct GridChannels {
    shared: Shared,
    channels: HashMap<Arc<str>, GridChannel>,
    // Channels whose copies are to be repaired, or whose split is to be found, and those of them that are claimed now.
    to_claim: VecDeque<Arc<str>>,
    claimed: Vec<Arc<str>>,
    // When to see whether one of those has ended.
    claims_ms: u64,
    // Channels that the sweep in progress has yet to visit, and when the next one begins.
    to_sweep: Vec<Arc<str>>,
    sweep_ms: u64,
}

/// What the shard has to do for a channel.
#[derive(Debug)]
pub enum ChannelOutput {
    /// Send a message to the responsible shard of another node.
    Send(NodeId, Arc<str>, Box<ChannelMessage>),
    /// Deliver a message to the subscribers of this node. With a receipt, [`GridChannels::handle_delivered`] has to be
    /// called with it.
    Deliver(Arc<PlacedPublish>, Option<DeliveryReceipt>),
    /// Subscribers of this node have missed messages of the channel: devices have to recover.
    Lapse(Arc<str>),
    /// Answers [`GridChannels::recover`].
    Recovered(Ticket, RecoveredMessages),
    /// Answers [`GridChannels::recover`]: the home was not found in time.
    NotRecovered(Ticket),
    /// Answers [`GridChannels::publish`].
    Placed(Ticket, Result<(Position, Tally), Fault>),
    /// Answers [`GridChannels::follow`].
    Followed(Ticket),
}

/// Whom to tell how many subscribers of this node a message has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliveryReceipt {
    home: NodeId,
    ticket: Ticket,
}

/// The messages that were published since a position.
#[derive(Debug)]
pub struct RecoveredMessages {
    /// The channel.
    pub channel: Arc<str>,
    /// The place behind the last one.
    pub position: Position,
    /// The messages in order, each with the place behind it. `None`: some may be missing, or they are too large together.
    pub missed: Option<Vec<(Position, Frame)>>,
}

impl GridChannels {
    /// Creates the part of a shard on a node that was started now. The epoch is unique among all shards of all nodes, also
    /// those of earlier runs. Messages may take `bytes_max` bytes of memory together. A publish waits up to `answer_ms` for
    /// a home.
    pub fn new(own: NodeId, epoch: Epoch, bytes_max: usize, answer_ms: u64, now_ms: u64) -> Self {
        Self::with_limits(own, epoch, GridLimits::for_history_bytes(bytes_max), answer_ms, now_ms)
    }

    /// Creates the part of a shard with other bounds than the usual ones.
    pub fn with_limits(
        own: NodeId,
        epoch: Epoch,
        limits: GridLimits,
        answer_ms: u64,
        now_ms: u64,
    ) -> Self {
        Self {
            shared: Shared {
                members: Members::new(own, now_ms + JOIN_MS),
                histories: Histories::in_grid(own, epoch, limits.history_bytes),
                keys: UsedKeys::default(),
                deliveries: Deliveries::default(),
                epoch,
                claims: 0,
                tickets: 0,
                outputs: VecDeque::new(),
                own_messages: VecDeque::new(),
                wakes: Wakes::default(),
                suspects: BTreeSet::new(),
                suspicious_until_ms: 0,
                is_leaving: false,
                relayed: relay::Relayed::default(),
                answer_ms,
                limits,
            },
            channels: HashMap::new(),
            to_claim: VecDeque::new(),
            claimed: Vec::new(),
            claims_ms: 0,
            to_sweep: Vec::new(),
            sweep_ms: now_ms,
        }
    }

    /// The histories.
    pub fn histories(&self) -> &Histories {
        &self.shared.histories
    }

    /// The number of channels that the shard takes part in.
    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The number of idempotency keys that are remembered.
    pub fn keys(&self) -> usize {
        self.shared.keys.len()
    }

    /// Publishes to a channel. Answered with [`ChannelOutput::Placed`], in the order of the calls for one channel, unless one
    /// of them fails.
    ///
    /// # Errors
    /// Too many publishes wait, or too many channels are in use.
    pub fn publish(
        &mut self,
        now_ms: u64,
        policy: &ChannelPolicy,
        publish: HomePublish,
    ) -> Result<Ticket, Fault> {
        let ticket = self.shared.next_ticket();
        let name = publish.publish.channel.clone();
        self.with(now_ms, &name, policy, |channel, context| {
            channel.relay.publish(context, ticket, publish)
        })??;
        Ok(ticket)
    }

    /// Asks what was published since a position. Answered with [`ChannelOutput::Recovered`] or
    /// [`ChannelOutput::NotRecovered`].
    ///
    /// # Errors
    /// Too many such questions wait, or too many channels are in use.
    pub fn recover(
        &mut self,
        now_ms: u64,
        name: &Arc<str>,
        policy: &ChannelPolicy,
        since: Option<Position>,
        bytes_max: usize,
    ) -> Result<Ticket, Fault> {
        let ticket = self.shared.next_ticket();
        self.with(now_ms, name, policy, |channel, context| {
            channel.relay.recover(context, ticket, since, bytes_max as u64)
        })??;
        Ok(ticket)
    }

    /// Notes that a shard of this node has its first subscriber of a channel. Answered with [`ChannelOutput::Followed`] when
    /// later messages reach it, or when the home was not found in time.
    ///
    /// # Errors
    /// Too many channels are in use.
    pub fn follow(
        &mut self,
        now_ms: u64,
        name: &Arc<str>,
        policy: &ChannelPolicy,
        shard: ShardId,
    ) -> Result<Ticket, Fault> {
        let ticket = self.shared.next_ticket();
        self.with(now_ms, name, policy, |channel, context| {
            channel.relay.follow(context, shard, ticket);
        })?;
        Ok(ticket)
    }

    /// Notes that a shard of this node has no subscriber of a channel any more.
    pub fn unfollow(&mut self, now_ms: u64, name: &Arc<str>, shard: ShardId) {
        self.with_known(now_ms, name, |channel, context| {
            channel.relay.unfollow(context, shard);
        });
    }

    /// Notes how many subscribers of this node a message has reached.
    pub fn handle_delivered(
        &mut self,
        now_ms: u64,
        name: &Arc<str>,
        receipt: DeliveryReceipt,
        tally: Tally,
    ) {
        let DeliveryReceipt { home, ticket } = receipt;
        self.with_known(now_ms, name, |_, context| {
            context.send(home, ChannelMessage::Delivered(ticket, tally));
        });
    }

    /// Handles a message of another node about a channel.
    pub fn handle_message(
        &mut self,
        now_ms: u64,
        from: NodeId,
        name: &Arc<str>,
        policy: &ChannelPolicy,
        message: ChannelMessage,
    ) {
        if !self.shared.members.has(from) {
            return;
        }
        let begins = matches!(message, ChannelMessage::Claim(_) | ChannelMessage::Attach { .. });
        if self.channels.contains_key(name) || begins && self.has_room() {
            // There is room, so the channel can be opened.
            let _ = self.with(now_ms, name, policy, |channel, context| {
                channel.handle_message(context, from, message);
            });
        } else if let Some(answer) = answer_unknown(self.shared.members.own(), message) {
            let output = ChannelOutput::Send(from, name.clone(), Box::new(answer));
            self.shared.outputs.push_back(output);
        }
    }

    /// Notes that a node has become reachable. Earlier messages from it were of another session.
    pub fn handle_node_up(&mut self, now_ms: u64, node: NodeId, incarnation: Incarnation) {
        self.handle_node_down(now_ms, node);
        self.shared.suspects.remove(&node);
        let is_known = self.shared.members.add(now_ms, node, incarnation);
        for name in self.names() {
            self.with_known(now_ms, &name, |channel, context| {
                channel.handle_node_up(context, node, is_known);
            });
            self.queue_claim(name);
        }
    }

    /// Notes that a node is unreachable. Messages in flight in both directions are lost.
    pub fn handle_node_down(&mut self, now_ms: u64, node: NodeId) {
        if !self.shared.members.has(node) {
            return;
        }
        self.shared.members.remove(node);
        self.shared.forget_receiver(node);
        for name in self.names() {
            self.with_known(now_ms, &name, |channel, context| {
                channel.handle_node_down(context, node)
            });
        }
    }

    /// Notes that this node did not run for a while. The others may have gone on without it.
    pub fn handle_gap(&mut self, now_ms: u64) {
        self.shared.suspects = self.shared.members.others().collect();
        self.shared.suspicious_until_ms = now_ms + SUSPICION_MS;
        self.shared.members.delay_own(now_ms + JOIN_MS);
        for name in self.names() {
            self.with_known(now_ms, &name, |channel, _| channel.handle_gap());
            self.queue_claim(name);
        }
    }

    /// Notes that the node shuts down. It stays home as long as it is reachable, and then does not go on by itself.
    pub fn handle_leave(&mut self) {
        self.shared.is_leaving = true;
        self.shared.members.delay_own(u64::MAX);
    }

    /// Does what is due, some at a time.
    pub fn handle_turn(&mut self, now_ms: u64) {
        while let Some(name) = self.shared.wakes.take_due(now_ms) {
            self.with_known(now_ms, &name, GridChannel::handle_timeout);
        }
        self.shared.expire_deliveries(now_ms);
        self.continue_claims(now_ms);
        self.settle(now_ms);
        self.shared.keys.expire(now_ms);
        self.sweep(now_ms);
    }

    /// Returns when [`Self::handle_turn`] is due, in milliseconds.
    pub fn next_turn(&self) -> Option<u64> {
        let sweep_ms = (!self.channels.is_empty()).then_some(self.sweep_ms);
        let times = [
            self.shared.wakes.next(),
            self.shared.deliveries.next_expiry(),
            self.shared.keys.next_expiry(),
            sweep_ms,
            (!self.to_claim.is_empty()).then_some(self.claims_ms),
        ];
        times.into_iter().flatten().min()
    }

    /// Returns what the shard has to do next.
    pub fn poll_output(&mut self) -> Option<ChannelOutput> {
        self.shared.outputs.pop_front()
    }

    /// Drops up to `count` messages, the oldest of all channels, because the node is short of memory. Returns the number
    /// of dropped messages.
    pub fn drop_oldest(&mut self, count: usize) -> usize {
        self.shared.histories.drop_oldest(count)
    }

    /// Checks that sums are right and that the roles fit each other. Visits every channel.
    ///
    /// # Panics
    /// Something is wrong.
    pub fn check(&self) {
        self.shared.histories.check();
        self.shared.wakes.check();
        let limits = &self.shared.limits;
        self.shared.deliveries.check(limits);
        self.shared.relayed.check(self.channels.values().map(|channel| &channel.relay), limits);
        assert!(self.channels.len() <= limits.channels, "room for channels");
        assert!(self.to_claim.len() <= self.channels.len(), "each channel waits once");
        assert!(self.claimed.len() <= limits.claims, "claims in progress");
        for channel in self.channels.values() {
            if let Role::Home(home) = &channel.role {
                assert_eq!(Some(home.ballot()), channel.promised(), "a home respects its claim");
                assert_eq!(Some(home.ballot()), channel.accepted(), "a home has its history");
            }
        }
    }

    fn names(&self) -> Vec<Arc<str>> {
        self.channels.keys().cloned().collect()
    }

    fn has_room(&self) -> bool {
        self.channels.len() < self.shared.limits.channels
    }

    /// Has a channel, which begins now if it is not known, handle something, and then everything that follows from it on
    /// this node.
    ///
    /// # Errors
    /// The channel is not known, and there is no room for it.
    fn with<T>(
        &mut self,
        now_ms: u64,
        name: &Arc<str>,
        policy: &ChannelPolicy,
        handle: impl FnOnce(&mut GridChannel, &mut ChannelContext<'_>) -> T,
    ) -> Result<T, Fault> {
        let has_room = self.has_room();
        let channel = match self.channels.entry_ref(name) {
            EntryRef::Occupied(known) => known.into_mut(),
            EntryRef::Vacant(new) if has_room => new.insert(GridChannel::new(*policy, now_ms)),
            EntryRef::Vacant(_) => {
                let why = "too many channels with history are in use on this node";
                return Err(Fault::new(Code::TooManyRequests, why));
            }
        };
        (channel.policy, channel.used_ms) = (*policy, now_ms);
        let shared = &mut self.shared;
        let result = handle(channel, &mut ChannelContext { name, policy: *policy, now_ms, shared });
        self.settle(now_ms);
        Ok(result)
    }

    fn with_known(
        &mut self,
        now_ms: u64,
        name: &Arc<str>,
        handle: impl FnOnce(&mut GridChannel, &mut ChannelContext<'_>),
    ) {
        if let Some(channel) = self.channels.get_mut(name) {
            let (policy, shared) = (channel.policy, &mut self.shared);
            handle(channel, &mut ChannelContext { name, policy, now_ms, shared });
        }
        self.settle(now_ms);
    }

    /// Handles the messages of this node to itself.
    fn settle(&mut self, now_ms: u64) {
        let own = self.shared.members.own();
        while let Some((name, message)) = self.shared.own_messages.pop_front() {
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            let (policy, shared) = (channel.policy, &mut self.shared);
            let mut context = ChannelContext { name: &name, policy, now_ms, shared };
            channel.handle_message(&mut context, own, message);
        }
    }

    /// Has a channel claimed again once fewer claims are in progress, if it has to be.
    fn queue_claim(&mut self, name: Arc<str>) {
        if let Some(channel) = self.channels.get_mut(&name)
            && !matches!(channel.role, Role::Idle)
            && !std::mem::replace(&mut channel.is_queued, true)
        {
            self.to_claim.push_back(name);
        }
    }

    /// Repairs the copies of channels whose holders have changed, some at a time.
    fn continue_claims(&mut self, now_ms: u64) {
        if self.to_claim.is_empty() || now_ms < self.claims_ms {
            return;
        }
        let channels = &self.channels;
        self.claimed.retain(|name| channels.get(name).is_some_and(GridChannel::is_claiming));
        while self.claimed.len() < self.shared.limits.claims
            && let Some(name) = self.to_claim.pop_front()
        {
            self.with_known(now_ms, &name, |channel, context| {
                channel.is_queued = false;
                channel.repair(context);
            });
            self.claimed.push(name);
        }
        self.claims_ms = now_ms + CLAIMS_MS;
    }

    /// Forgets channels that nobody uses.
    fn sweep(&mut self, now_ms: u64) {
        if self.channels.is_empty() || now_ms < self.sweep_ms {
            return;
        }
        self.sweep_ms = now_ms + SWEEP_MS;
        if self.to_sweep.is_empty() {
            self.to_sweep = self.names();
        }
        let is_crowded = self.channels.len() > self.shared.limits.channels / 2;
        // The histories are kept as long as their channels.
        self.shared.histories.sweep(now_ms, |_| true);
        for _ in 0..SWEPT_CHANNELS {
            let Some(name) = self.to_sweep.pop() else { return };
            let Some(channel) = self.channels.get(&name) else { continue };
            let (policy, shared) = (channel.policy, &mut self.shared);
            let mut context = ChannelContext { name: &name, policy, now_ms, shared };
            if channel.is_unused(&context, is_crowded) {
                if let Role::Home(home) = &channel.role {
                    for node in home.holders() {
                        context.send(node, ChannelMessage::Forget(home.ballot()));
                    }
                }
                self.channels.remove(&name);
                self.shared.histories.clear(&name);
                self.shared.wakes.remove(&name);
            }
        }
    }
}
