//! Publishes and commands for users, to other nodes and from them, and the tallies that answer them.

use std::sync::Arc;

use super::Mesh;
use super::link::Lane;
use super::numbers::ChannelHash;
use super::pending::{Counted, Counter, NewPublish, PublishAsker};
use super::sessions::Peer;
use super::wire::{AddressedMessage, MeshMessage};

use crate::address::{NodeId, ShardId};
use crate::message::{FromMesh, Publish, Requester, Ticket, UserAction, UserCommand};
use crate::protocol::api::Tally;

impl Mesh {
    /// Publishes for one of this node's shards on all other nodes that have subscribers or may have.
    pub(super) fn publish(
        &mut self,
        now_ms: u64,
        from: ShardId,
        requester: Requester,
        publish: Publish,
    ) {
        let hash = self.hasher.hash(&publish.channel);
        let is_for_all = publish.excluded.is_none();
        let has_room = self.pending.has_room();
        let (mut asked, mut awaited, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for node in self.interested_nodes(now_ms, hash) {
            let Some(peer) = self.peers.get(&node) else { continue };
            let is_asked = has_room && peer.session.takes_calls();
            asked.extend(is_asked.then_some(node));
            // A silent node is asked, since it may still receive the message, but not waited for.
            let is_awaited = is_asked && !peer.liveness.is_silent();
            if is_awaited { &mut awaited } else { &mut silent }.push(Counter::Node(node));
        }
        let asker = PublishAsker::Shard(from, requester.ticket);
        if asked.is_empty() {
            let (tally, channel) = (Tally::default(), Some(hash));
            return self.tell_counted(Counted { asker, channel, tally, silent });
        }
        let channel = Some(hash);
        let deadline_ms = self.tally_deadline_ms(now_ms);
        let new = NewPublish { asker, channel, is_for_all, awaited, silent, deadline_ms };
        let ticket = self.pending.open(new);
        let message = MeshMessage::Publish(Requester { ticket, ..requester }, publish);
        let message = AddressedMessage::Mesh(message);
        for node in asked {
            self.send(node, Lane::Shard(from), &message);
        }
        if let Some(counted) = self.pending.poll_counted(ticket) {
            self.tell_counted(counted);
        }
    }

    /// The deadline of a tally. The asker waits for `answer_ms`, so the sum must arrive a little earlier.
    fn tally_deadline_ms(&self, now_ms: u64) -> u64 {
        now_ms + self.settings.answer_ms * 9 / 10
    }

    /// The nodes that have subscribers of a channel, and those whose interest is not known for certain. May
    /// include a node whose session has ended.
    ///
    /// Runs for every publish, so the channel is looked up once, not once per peer, and peers are looked at
    /// only while one of them is not trusted.
    pub(super) fn interested_nodes(&self, now_ms: u64, channel: ChannelHash) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.remote_interest.nodes(channel).collect();
        let known = nodes.len();
        nodes.extend(self.subscribing_there.destinations(channel));
        let are_all_trusted = self.all_trusted_until_ms.is_some_and(|until_ms| now_ms <= until_ms);
        if !are_all_trusted {
            let is_doubtful = |(_, peer): &(&NodeId, &Peer)| !peer.liveness.is_trusted(now_ms);
            nodes.extend(self.peers.iter().filter(is_doubtful).map(|(&node, _)| node));
        }
        if nodes.len() > known {
            nodes.sort_unstable();
            nodes.dedup();
        }
        nodes
    }

    /// Publishes for another node on this node's shards that have subscribers or may have.
    pub(super) fn publish_here(
        &mut self,
        now_ms: u64,
        from: NodeId,
        requester: Requester,
        publish: Publish,
    ) {
        let hash = self.hasher.hash(&publish.channel);
        let asker = PublishAsker::Node(from, requester.ticket);
        let mut shards = self.local_interest.shards(hash);
        self.subscribing_here.destinations(hash).for_each(|shard| shards.set(shard, true));
        if !shards.is_empty() && !self.pending.has_room() {
            // Without an answer, the other node counts this one's last known subscribers.
            return;
        }
        if shards.is_empty() {
            let (tally, channel) = (Tally::default(), Some(hash));
            return self.tell_counted(Counted { asker, channel, tally, silent: Vec::new() });
        }
        let awaited = shards.iter().map(Counter::Shard).collect();
        let deadline_ms = self.tally_deadline_ms(now_ms);
        let is_for_all = publish.excluded.is_none();
        let (silent, channel) = (Vec::new(), Some(hash));
        let new = NewPublish { asker, channel, is_for_all, awaited, silent, deadline_ms };
        let ticket = self.pending.open(new);
        for shard in shards.iter() {
            let message = FromMesh::Publish(Requester { ticket, ..requester }, publish.clone());
            self.tell_shard(shard, message);
        }
    }

    /// Carries out a command for users on all other nodes, for one of this node's shards. A node whose tally does
    /// not come in time adds nothing to the sum: how many connections the users have there is not known.
    pub(super) fn carry_out_for_users(
        &mut self,
        now_ms: u64,
        from: ShardId,
        requester: Requester,
        command: Arc<UserCommand>,
    ) {
        let has_room = self.pending.has_room();
        let is_call = matches!(command.action, UserAction::Call(_));
        let (mut asked, mut awaited, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        for (&node, peer) in &self.peers {
            let is_silent = peer.liveness.is_silent();
            // A silent node may still receive a message. A function is not called long after its answer.
            let is_asked = has_room && peer.session.takes_calls() && !(is_call && is_silent);
            asked.extend(is_asked.then_some(node));
            let is_awaited = is_asked && !is_silent;
            if is_awaited { &mut awaited } else { &mut silent }.push(Counter::Node(node));
        }
        let (asker, tally) = (PublishAsker::Shard(from, requester.ticket), Tally::default());
        if asked.is_empty() {
            return self.tell_counted(Counted { asker, channel: None, tally, silent });
        }
        for channel in command.channels_to_subscribe() {
            let (until_ms, hash) = (now_ms + self.settings.answer_ms, self.hasher.hash(channel));
            for &node in &asked {
                self.subscribing_there.note(until_ms, hash, node);
            }
        }
        let deadline_ms = self.tally_deadline_ms(now_ms);
        let is_for_all = false;
        let new = NewPublish { asker, channel: None, is_for_all, awaited, silent, deadline_ms };
        let ticket = self.pending.open(new);
        let message = MeshMessage::ForUsers(Requester { ticket, ..requester }, command);
        let message = AddressedMessage::Mesh(message);
        for node in asked {
            self.send(node, Lane::Shard(from), &message);
        }
        if let Some(counted) = self.pending.poll_counted(ticket) {
            self.tell_counted(counted);
        }
    }

    /// Carries out a command for users on all shards of this node, for another node.
    pub(super) fn carry_out_for_users_here(
        &mut self,
        now_ms: u64,
        from: NodeId,
        requester: Requester,
        command: Arc<UserCommand>,
    ) {
        if !self.pending.has_room() {
            return;
        }
        let shards = || (0..self.settings.shards).map(|shard| ShardId(shard as u8));
        let awaited = shards().map(Counter::Shard).collect();
        let shards: Vec<ShardId> = shards().collect();
        for channel in command.channels_to_subscribe() {
            let (until_ms, hash) = (now_ms + self.settings.answer_ms, self.hasher.hash(channel));
            for &shard in &shards {
                self.subscribing_here.note(until_ms, hash, shard);
            }
        }
        let ticket = self.pending.open(NewPublish {
            asker: PublishAsker::Node(from, requester.ticket),
            channel: None,
            is_for_all: false,
            awaited,
            silent: Vec::new(),
            deadline_ms: self.tally_deadline_ms(now_ms),
        });
        for shard in shards {
            let requester = Requester { ticket, ..requester };
            self.tell_shard(shard, FromMesh::ForUsers(requester, command.clone()));
        }
    }

    /// Adds the tally of a shard or node.
    pub(super) fn count(&mut self, ticket: Ticket, from: Counter, tally: Tally) {
        let Some(added) = self.pending.count(ticket, from, tally) else { return };
        if let Counter::Node(node) = from
            && let Some(channel) = added.channel
            && added.is_of_all
        {
            let subscribers = tally.delivered.saturating_add(tally.failed);
            self.remote_interest.note_subscribers(channel, node, subscribers);
        }
        if let Some(counted) = self.pending.poll_counted(ticket) {
            self.tell_counted(counted);
        }
    }

    /// Sends the sum to the asker. Nodes that did not answer count with their last known subscribers.
    pub(super) fn tell_counted(&mut self, counted: Counted) {
        let Counted { asker, channel, mut tally, silent } = counted;
        let mut has_silent_shards = false;
        for counter in silent {
            match counter {
                Counter::Node(node) => {
                    let last_known =
                        channel.map_or(0, |channel| self.remote_interest.last_known(channel, node));
                    tally.failed = tally.failed.saturating_add(last_known);
                    self.uncounted += 1;
                }
                Counter::Shard(_) => has_silent_shards = true,
            }
        }
        match asker {
            PublishAsker::Shard(shard, ticket) => {
                self.tell_shard(shard, FromMesh::Published(ticket, tally));
            }
            // Without an answer, the other node counts this one's last known subscribers. They are nearer
            // to the truth than a part of the sum.
            PublishAsker::Node(..) if has_silent_shards => {}
            PublishAsker::Node(node, ticket) => {
                let message = AddressedMessage::Mesh(MeshMessage::Published(ticket, tally));
                self.send(node, Lane::Mesh, &message);
            }
        }
    }
}
