//! What all channels of one shard share: who is reachable, the histories, what is sent, and when to look at a channel again.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use hashbrown::HashMap;

use super::ChannelOutput;
use super::deliveries::Deliveries;
use super::limits::GridLimits;
use super::relay::Relayed;
use crate::address::NodeId;
use crate::address::placement::{hash, mix};
use crate::channel::ChannelPolicy;
use crate::channel::histories::Histories;
use crate::channel::history::ChannelHistory;
use crate::channel::keys::UsedKeys;
use crate::channel::members::Members;
use crate::message::{ChannelMessage, Ticket};
use crate::protocol::position::Epoch;

/// What all channels share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) members: Members,
    pub(super) histories: Histories,
    pub(super) keys: UsedKeys,
    pub(super) deliveries: Deliveries,
    // What the epochs of reigns are made of.
    pub(super) epoch: Epoch,
    pub(super) claims: u64,
    pub(super) tickets: u64,
    pub(super) outputs: VecDeque<ChannelOutput>,
    // Messages of this node to itself.
    pub(super) own_messages: VecDeque<(Arc<str>, ChannelMessage)>,
    pub(super) wakes: Wakes,
    // Nodes with a session from before this node did not run for a while. Until then, the loss of such a session means that
    // the others may have gone on without this node.
    pub(super) suspects: BTreeSet<NodeId>,
    pub(super) suspicious_until_ms: u64,
    // Whether the node shuts down, and becomes home no more.
    pub(super) is_leaving: bool,
    pub(super) relayed: Relayed,
    // How long a publish waits for a home, in milliseconds.
    pub(super) answer_ms: u64,
    pub(super) limits: GridLimits,
}

/// When to look at channels again: for each one the earliest time.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    order: BTreeSet<(u64, Arc<str>)>,
    by_name: HashMap<Arc<str>, u64>,
}

impl Wakes {
    /// The earliest time of all, in milliseconds.
    pub(super) fn next(&self) -> Option<u64> {
        self.order.first().map(|(due_ms, _)| *due_ms)
    }

    /// Has a channel looked at at this time, unless it is looked at earlier.
    pub(super) fn set(&mut self, due_ms: u64, name: &Arc<str>) {
        if self.by_name.get(name).is_some_and(|earlier_ms| *earlier_ms <= due_ms) {
            return;
        }
        if let Some(later_ms) = self.by_name.insert(name.clone(), due_ms) {
            self.order.remove(&(later_ms, name.clone()));
        }
        self.order.insert((due_ms, name.clone()));
    }

    /// Returns a channel to look at now.
    pub(super) fn take_due(&mut self, now_ms: u64) -> Option<Arc<str>> {
        let (_, name) = self.order.first().filter(|(due_ms, _)| *due_ms <= now_ms)?.clone();
        self.remove(&name);
        Some(name)
    }

    /// Looks at a channel no more.
    pub(super) fn remove(&mut self, name: &Arc<str>) {
        if let Some(due_ms) = self.by_name.remove(name) {
            self.order.remove(&(due_ms, name.clone()));
        }
    }

    /// Checks that both indexes agree.
    ///
    /// # Panics
    /// They do not.
    pub(super) fn check(&self) {
        assert_eq!(self.order.len(), self.by_name.len(), "wake-ups");
    }
}

/// What a channel needs besides its own state.
pub(super) struct ChannelContext<'c> {
    pub(super) name: &'c Arc<str>,
    pub(super) policy: ChannelPolicy,
    pub(super) now_ms: u64,
    pub(super) shared: &'c mut Shared,
}

impl ChannelContext<'_> {
    /// This node.
    pub(super) fn own(&self) -> NodeId {
        self.shared.members.own()
    }

    /// Sends a message about the channel to a node, which may be this one.
    pub(super) fn send(&mut self, to: NodeId, message: ChannelMessage) {
        match to == self.own() {
            true => self.shared.own_messages.push_back((self.name.clone(), message)),
            false => {
                let output = ChannelOutput::Send(to, self.name.clone(), Box::new(message));
                self.shared.outputs.push_back(output);
            }
        }
    }

    /// The history of the channel, if any is held.
    pub(super) fn history(&self) -> Option<&ChannelHistory> {
        self.shared.histories.of(self.name)
    }

    /// Whether this node should be the home, as far as it knows.
    pub(super) fn should_be_home(&self) -> bool {
        self.shared.members.home(self.now_ms, self.name) == Some(self.own())
    }

    /// Has the channel looked at at this time, or earlier.
    pub(super) fn wake_at(&mut self, ms: u64) {
        self.shared.wakes.set(ms, self.name);
    }
}

impl Shared {
    /// A ticket that this shard has not used.
    pub(super) fn next_ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// Whether the loss of a node means that the others may have gone on without this one.
    pub(super) fn is_suspect(&self, node: NodeId, now_ms: u64) -> bool {
        now_ms < self.suspicious_until_ms && self.suspects.contains(&node)
    }

    /// An epoch that no other reign has, almost surely.
    pub(super) fn next_epoch(&mut self, channel: &str) -> Epoch {
        self.claims += 1;
        Epoch(mix(self.epoch.0 ^ mix(self.claims)) ^ mix(hash(channel.as_bytes())))
    }
}
