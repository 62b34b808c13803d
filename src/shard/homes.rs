//! The channels whose home this shard is. The home gives each message its place in the history of the channel, has all
//! shards with subscribers deliver it, and tells devices what they have missed.
//!
//! A shard carries out the commands of one home in order, so that every subscriber gets the messages of a channel in the
//! order of their places.

use std::sync::Arc;

use hashbrown::HashMap;

use super::memory::Shortage;
use super::settings::Settings;
use super::turn::Turn;
use super::work;
use crate::address::{ClientId, ShardId};
use crate::channel::histories::Histories;
use crate::channel::keys::{PublishKey, TooManyKeys, UsedKey, UsedKeys};
use crate::message::{
    BackendId, HomePublish, LocalCommand, LocalMessage, PlacedPublish, Placement, RecoveryAnswer,
    RecoveryQuestion, Requester, Ticket,
};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::protocol::position::{Epoch, Position};
use crate::slot_map::{SlotKey, SlotMap};

/// The most messages that wait until all shards have delivered them, and the most bytes. Further publishes are answered
/// with 103. A shard keeps what waits behind a large publish, and must not drop any of it.
const DELIVERIES_MAX: usize = 8192;
const DELIVERY_BYTES_MAX: usize = 16 << 20;

/// Messages dropped from histories in one turn while the node is short of memory.
const DROPPED_PER_TURN: usize = 256;

/// The most publishes that wait for the delivery of an earlier one with the same key.
const REPEATED_MAX: usize = 1024;

/// The channels whose home the shard is.
#[derive(Debug)]
pub(super) struct ChannelHomes {
    histories: Histories,
    keys: UsedKeys,
    deliveries: SlotMap<HomeDelivery>,
    delivery_bytes: usize,
    // Publishes that wait for the delivery of an earlier one, by channel and key.
    repeated: HashMap<PublishKey, Vec<Requester>>,
    repeated_count: usize,
}

/// A message that some shards have not delivered yet.
#[derive(Debug)]
struct HomeDelivery {
    asker: Requester,
    key: Option<PublishKey>,
    position: Option<Position>,
    tally: Tally,
    awaited: usize,
    bytes: usize,
}

/// What becomes of a publish at the home of its channel.
#[derive(Debug)]
pub(super) enum Accepted {
    /// The message is to be delivered.
    New(AcceptedPublish),
    /// The message was delivered earlier, with the same key.
    Repeated(Placement),
    /// The message is being delivered, with the same key.
    InDelivery(PublishKey),
}

/// A message that is to be delivered, and is in the history of its channel.
#[derive(Debug)]
pub(super) struct AcceptedPublish {
    /// The message.
    pub placed: Arc<PlacedPublish>,
    key: Option<PublishKey>,
}

impl ChannelHomes {
    /// Creates the home of no channel yet. `first_unix_ms` is later than the start of any earlier run of the node.
    pub(super) fn new(shard: ShardId, settings: &Settings, first_unix_ms: u64) -> Self {
        let (node, shard) = (u64::from(settings.node.number()), u64::from(shard.0));
        let epoch = Epoch(first_unix_ms << 22 | node << 12 | shard);
        Self {
            histories: Histories::new(settings.node, epoch, settings.channels.history_bytes),
            keys: UsedKeys::default(),
            deliveries: SlotMap::default(),
            delivery_bytes: 0,
            repeated: HashMap::new(),
            repeated_count: 0,
        }
    }

    /// The histories.
    pub(super) fn histories(&self) -> &Histories {
        &self.histories
    }

    /// Checks the sums.
    ///
    /// # Panics
    /// One is wrong.
    pub(super) fn check(&self) {
        self.histories.check();
        let deliveries = self.deliveries.iter().map(|(_, delivery)| delivery.bytes);
        assert_eq!(self.delivery_bytes, deliveries.sum::<usize>(), "bytes in delivery");
        let repeated = self.repeated.values().map(Vec::len);
        assert_eq!(self.repeated_count, repeated.sum::<usize>(), "repeated publishes");
    }

    /// The number of idempotency keys that are remembered.
    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Gives a message its place in the history of its channel, unless its key was used before.
    ///
    /// # Errors
    /// Too many messages are being delivered, or too many keys are remembered.
    pub(super) fn accept(
        &mut self,
        turn: &mut Turn,
        HomePublish { publish, key }: HomePublish,
    ) -> Result<Accepted, Fault> {
        if self.deliveries.len() >= DELIVERIES_MAX || self.delivery_bytes >= DELIVERY_BYTES_MAX {
            return Err(too_many(
                turn,
                "too many messages of channels with history are being delivered",
            ));
        }
        let channel = publish.channel.clone();
        if let Some(key) = &key {
            match self.keys.take(&channel, key, turn.now.ms) {
                Ok(None) => {}
                Ok(Some(used)) => {
                    turn.counters.repeated += 1;
                    return Ok(match used {
                        UsedKey::InDelivery => Accepted::InDelivery((channel, key.clone())),
                        UsedKey::Delivered { position, tally } => {
                            Accepted::Repeated(Placement { position, tally, awaited: 0 })
                        }
                    });
                }
                Err(TooManyKeys) => return Err(too_many(turn, "k: too many keys are in use")),
            }
        }
        let policy = turn.settings.channels.history_of(&channel);
        let dropped = self.histories.dropped();
        let position = policy.map(|policy| {
            self.histories.append(&channel, policy, publish.frame.clone(), turn.now.ms)
        });
        turn.counters.limits.history_bytes += self.histories.dropped() - dropped;
        turn.counters.placed += u64::from(position.is_some());
        let placed = Arc::new(PlacedPublish { publish, position });
        Ok(Accepted::New(AcceptedPublish { placed, key: key.map(|key| (channel, key)) }))
    }

    /// Makes a publish wait for the delivery of an earlier one with the same key.
    ///
    /// # Errors
    /// Too many wait.
    pub(super) fn wait_for_delivery(
        &mut self,
        turn: &mut Turn,
        requester: Requester,
        key: PublishKey,
    ) -> Result<(), Fault> {
        if self.repeated_count >= REPEATED_MAX {
            return Err(too_many(
                turn,
                "k: too many publishes with keys that were used a moment ago",
            ));
        }
        self.repeated_count += 1;
        self.repeated.entry(key).or_default().push(requester);
        Ok(())
    }

    /// Notes that all subscribers were reached at once.
    pub(super) fn finish(&mut self, turn: &mut Turn, accepted: AcceptedPublish, tally: Tally) {
        self.settle_key(turn, accepted.key, accepted.placed.position, tally);
    }

    /// Notes that shards have yet to deliver a message. Their tallies go to the asker. Returns the requester for them.
    pub(super) fn begin_delivery(
        &mut self,
        turn: &Turn,
        asker: Requester,
        accepted: AcceptedPublish,
        Placement { position, tally, awaited }: Placement,
    ) -> Requester {
        let publish = &accepted.placed.publish;
        let excluded = publish.excluded.as_ref().map_or(0, |excluded| excluded.len());
        let bytes = QUEUED_FRAME_BYTES
            + publish.frame.bytes().len()
            + publish.channel.len()
            + excluded * size_of::<ClientId>();
        let (key, awaited) = (accepted.key, awaited as usize);
        self.delivery_bytes += bytes;
        let delivery = HomeDelivery { asker, key, position, tally, awaited, bytes };
        let ticket = Ticket(self.deliveries.insert(delivery).to_bits());
        Requester { ticket, backend: BackendId::of_home(turn.address) }
    }

    /// Handles the tally of a shard that has delivered a message.
    pub(super) fn handle_delivered(&mut self, turn: &mut Turn, ticket: Ticket, tally: Tally) {
        let slot = SlotKey::from_bits(ticket.0);
        let Some(delivery) = self.deliveries.get_mut(slot) else { return };
        delivery.tally += tally;
        delivery.awaited -= 1;
        let (asker, is_over) = (delivery.asker, delivery.awaited == 0);
        turn.answer_publish(asker, Ok(tally));
        if is_over && let Some(delivery) = self.deliveries.remove(slot) {
            self.delivery_bytes -= delivery.bytes;
            self.settle_key(turn, delivery.key, delivery.position, delivery.tally);
        }
    }

    /// Answers a device's shard.
    pub(super) fn handle_question(
        &mut self,
        turn: &mut Turn,
        from: ShardId,
        question: RecoveryQuestion,
    ) {
        let RecoveryQuestion { connection, channel, since, bytes_max } = question;
        let settings = turn.settings.clone();
        let Some(policy) = settings.channels.history_of(&channel) else { return };
        let recovered = self.histories.recover(&channel, policy, since, bytes_max, turn.now.ms);
        let (position, missed) = (recovered.position, recovered.missed);
        turn.work.spend(work::of_missed(missed.as_ref().map_or(0, Vec::len)));
        let answer = RecoveryAnswer { connection, channel, position, missed };
        // Behind the messages that were sent to the shard before.
        let requester =
            Requester { ticket: Ticket(u64::MAX), backend: BackendId::of_home(turn.address) };
        turn.ask_local(from, requester, LocalCommand::Recover(Box::new(answer)));
    }

    /// Whether a channel or a key is remembered.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        self.histories.channels() > 0 || !self.keys.is_empty()
    }

    /// Forgets what is too old, and what the node has no memory for, some at a time. `is_followed` says whether a channel
    /// may have subscribers.
    pub(super) fn handle_turn(
        &mut self,
        turn: &mut Turn,
        is_followed: impl Fn(&Turn, &str) -> bool,
    ) {
        self.keys.expire(turn.now.ms);
        self.histories.sweep(turn.now.ms, |channel| is_followed(turn, channel));
        if turn.is_short(Shortage::Arrivals) {
            let dropped = self.histories.drop_oldest(DROPPED_PER_TURN) as u64;
            turn.counters.limits.memory_bytes += dropped;
        }
    }

    /// Returns when [`Self::handle_turn`] has work next, in milliseconds on the shard's clock.
    #[inline]
    pub(super) fn next_turn(&self) -> Option<u64> {
        if !self.has_work() {
            return None;
        }
        let times = [self.histories.next_sweep(), self.keys.next_expiry()];
        times.into_iter().flatten().min()
    }

    /// Remembers what a publish with a key has reached, and answers those that have repeated it meanwhile.
    fn settle_key(
        &mut self,
        turn: &mut Turn,
        key: Option<PublishKey>,
        position: Option<Position>,
        tally: Tally,
    ) {
        let Some(key) = key else { return };
        self.keys.settle(&key.0, &key.1, position, tally);
        let repeated = self.repeated.remove(&key).unwrap_or_default();
        self.repeated_count -= repeated.len();
        for requester in repeated {
            answer(turn, requester, Placement { position, tally, awaited: 0 });
        }
    }
}

/// Answers a publish at its home.
pub(super) fn answer(turn: &mut Turn, requester: Requester, placement: Placement) {
    let shard = requester.backend.at.shard;
    turn.send_local(shard, LocalMessage::Placed(requester.ticket, placement));
}

fn too_many(turn: &mut Turn, why: &'static str) -> Fault {
    turn.counters.limits.publishes += 1;
    Fault::new(Code::TooManyRequests, why)
}
