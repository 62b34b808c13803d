//! Messages of homes that not all nodes have delivered yet, and the publishes that wait for them.

use std::collections::VecDeque;
use std::sync::Arc;

use hashbrown::HashMap;

use super::ChannelOutput;
use super::limits::GridLimits;
use super::shared::Shared;
use crate::address::NodeId;
use crate::channel::keys::PublishKey;
use crate::message::{ChannelMessage, Ticket};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::position::Position;
use crate::slot_map::{SlotKey, SlotMap};

/// How long a publish waits for nodes that do not say whom they have reached, in milliseconds. Their subscribers get the
/// message all the same, or recover it.
const DELIVERY_MS: u64 = 1000;

/// So many entries more than twice the messages the list of deadlines may have. They are of messages that were delivered in
/// time, and go when there are more.
const OVER_MAX: usize = 1024;

/// A publish at its home, to be answered.
#[derive(Debug)]
pub(super) struct PlacingAsker {
    /// The node that it came from.
    pub node: NodeId,
    /// The ticket of the answer.
    pub ticket: Ticket,
}

/// The messages that homes of one shard have taken, until they are delivered.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    deliveries: SlotMap<NodeDelivery>,
    // In the order of their deadlines.
    order: VecDeque<(u64, SlotKey)>,
    // Messages that holders do not have yet, and the bytes of those and of the ones in delivery.
    pending: usize,
    bytes: usize,
    // Publishes that wait for an earlier one with the same key.
    repeated: HashMap<PublishKey, Vec<PlacingAsker>>,
    repeated_count: usize,
}

/// A message that some nodes have yet to deliver.
#[derive(Debug)]
pub(super) struct NodeDelivery {
    /// The publish.
    pub asker: PlacingAsker,
    /// The channel.
    pub channel: Arc<str>,
    /// The idempotency key.
    pub key: Option<Box<str>>,
    /// The place behind the message.
    pub position: Position,
    /// The nodes that have yet to say whom they have reached.
    pub awaited: Vec<NodeId>,
    /// The subscribers reached so far.
    pub tally: Tally,
    /// The bytes of the message.
    pub bytes: usize,
}

impl Deliveries {
    /// Whether another message of this size can be taken.
    pub(super) fn has_room(&self, bytes: usize, limits: &GridLimits) -> bool {
        self.deliveries.len() + self.pending < limits.deliveries
            && self.bytes + bytes <= limits.delivery_bytes
    }

    /// Notes a message that the holders do not have yet.
    pub(super) fn add_pending(&mut self, bytes: usize) {
        self.pending += 1;
        self.bytes += bytes;
    }

    /// Notes that the holders have a message, or that it is given up.
    pub(super) fn remove_pending(&mut self, bytes: usize) {
        self.pending -= 1;
        self.bytes -= bytes;
    }

    /// Makes a publish wait for an earlier one with the same key.
    ///
    /// # Errors
    /// Too many wait.
    pub(super) fn wait_for(
        &mut self,
        key: PublishKey,
        asker: PlacingAsker,
        limits: &GridLimits,
    ) -> Result<(), Fault> {
        if self.repeated_count >= limits.repeated {
            let why = "k: too many publishes with keys that were used a moment ago";
            return Err(Fault::new(Code::TooManyRequests, why));
        }
        self.repeated_count += 1;
        self.repeated.entry(key).or_default().push(asker);
        Ok(())
    }

    /// Returns when the next publish is answered at the latest.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        self.order.front().map(|(due_ms, _)| *due_ms)
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub(super) fn check(&self, limits: &GridLimits) {
        let repeated = self.repeated.values().map(Vec::len);
        assert_eq!(self.repeated_count, repeated.sum::<usize>(), "repeated publishes");
        assert!(self.deliveries.len() <= self.order.len(), "each delivery has a deadline");
        assert!(self.order.len() <= 2 * self.deliveries.len() + OVER_MAX + 2, "deadlines");
        let sum = self.deliveries.len() + self.pending;
        assert!(sum <= limits.deliveries && self.bytes <= limits.delivery_bytes, "room");
        assert!(self.repeated_count <= limits.repeated, "room for repeated publishes");
        let bytes: usize = self.deliveries.iter().map(|(_, delivery)| delivery.bytes).sum();
        assert!(bytes <= self.bytes && (self.pending > 0 || bytes == self.bytes), "bytes");
    }
}

impl Shared {
    /// Begins a delivery. Returns the ticket by which nodes say whom they have reached.
    pub(super) fn begin_delivery(&mut self, now_ms: u64, delivery: NodeDelivery) -> Ticket {
        self.deliveries.bytes += delivery.bytes;
        let slot = self.deliveries.deliveries.insert(delivery);
        let Deliveries { deliveries, order, .. } = &mut self.deliveries;
        if order.len() > 2 * deliveries.len() + OVER_MAX {
            order.retain(|(_, slot)| deliveries.get(*slot).is_some());
        }
        order.push_back((now_ms + DELIVERY_MS, slot));
        let ticket = Ticket(slot.to_bits());
        self.end_if_delivered(slot);
        ticket
    }

    /// Notes whom a node has reached.
    pub(super) fn note_delivered(&mut self, node: NodeId, ticket: Ticket, tally: Tally) {
        let slot = SlotKey::from_bits(ticket.0);
        let Some(delivery) = self.deliveries.deliveries.get_mut(slot) else { return };
        if let Some(at) = delivery.awaited.iter().position(|awaited| *awaited == node) {
            delivery.awaited.swap_remove(at);
            delivery.tally += tally;
            self.end_if_delivered(slot);
        }
    }

    /// Waits for an unreachable node no longer.
    pub(super) fn forget_receiver(&mut self, node: NodeId) {
        let slots = self.deliveries.deliveries.iter().map(|(slot, _)| Ticket(slot.to_bits()));
        let tickets: Vec<Ticket> = slots.collect();
        for ticket in tickets {
            self.note_delivered(node, ticket, Tally::default());
        }
    }

    /// Answers publishes that have waited long enough.
    pub(super) fn expire_deliveries(&mut self, now_ms: u64) {
        while let Some((due_ms, slot)) = self.deliveries.order.front().copied() {
            let is_over = self.deliveries.deliveries.get(slot).is_none();
            if !is_over && due_ms > now_ms {
                return;
            }
            self.deliveries.order.pop_front();
            if let Some(delivery) = self.deliveries.deliveries.get_mut(slot) {
                delivery.awaited.clear();
                self.end_if_delivered(slot);
            }
        }
    }

    fn end_if_delivered(&mut self, slot: SlotKey) {
        let delivery = self.deliveries.deliveries.get(slot);
        if delivery.is_none_or(|delivery| !delivery.awaited.is_empty()) {
            return;
        }
        if let Some(delivery) = self.deliveries.deliveries.remove(slot) {
            self.deliveries.bytes -= delivery.bytes;
            let NodeDelivery { asker, channel, key, position, tally, .. } = delivery;
            self.settle_publish(asker, &channel, key, Ok((position, tally)));
        }
        while let Some((_, slot)) = self.deliveries.order.front()
            && self.deliveries.deliveries.get(*slot).is_none()
        {
            self.deliveries.order.pop_front();
        }
    }

    /// Answers a publish, and those that have repeated it meanwhile.
    pub(super) fn settle_publish(
        &mut self,
        asker: PlacingAsker,
        channel: &Arc<str>,
        key: Option<Box<str>>,
        outcome: Result<(Position, Tally), Fault>,
    ) {
        let mut askers = vec![asker];
        if let Some(key) = key {
            match &outcome {
                Ok((position, tally)) => self.keys.settle(channel, &key, Some(*position), *tally),
                Err(_) => self.keys.release(channel, &key),
            }
            let repeated = self.deliveries.repeated.remove(&(channel.clone(), key));
            let repeated = repeated.unwrap_or_default();
            self.deliveries.repeated_count -= repeated.len();
            askers.extend(repeated);
        }
        for asker in askers {
            self.answer_publish(asker, channel, outcome.clone());
        }
    }

    /// Answers a publish.
    pub(super) fn answer_publish(
        &mut self,
        PlacingAsker { node, ticket }: PlacingAsker,
        channel: &Arc<str>,
        outcome: Result<(Position, Tally), Fault>,
    ) {
        let answer = ChannelMessage::Placed(ticket, outcome);
        match node == self.members.own() {
            true => self.own_messages.push_back((channel.clone(), answer)),
            false => {
                let answer = Box::new(answer);
                self.outputs.push_back(ChannelOutput::Send(node, channel.clone(), answer));
            }
        }
    }
}
