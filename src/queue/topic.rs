//! One topic: a bounded store of messages, and the groups of consumers that read them.
//!
//! Every group gets every message. A message leaves the topic when the last group has settled it. A topic without
//! configured groups has the default group alone.
//!
//! Within a group, consumers compete. The messages of one client form a *lane*. Messages leave a lane in order,
//! and all messages of a lane that are in flight are in flight to the same consumer. So a client's messages
//! arrive in order even when a consumer dies and its unwritten messages go to another. Which consumer a lane is
//! for follows from the client's id (`hash_slots.rs`), and stays the same while the set of consumers does. While
//! another consumer has messages of a lane in flight, or while the lane is delayed, the lane is *parked*.
//!
//! The cost of changing the set of consumers does not depend on how many lanes wait. Handing out messages
//! because of a change, and requeueing those of consumers that are gone, is spread over several turns if
//! there are many ([`Topic::handle_turn`]).
//!
//! - `group.rs`: one group. `lease.rs`: messages that are refused or not acknowledged in time.
//! - `taken.rs`: messages that back ends have taken over HTTP.
//! - `sink.rs`: the group of a sink, which carries every message to an engine.
//! - `figures.rs`: the state of the topic in numbers.
//! - `disk.rs`: a topic whose events are handed out once they are stored.
//! - `held.rs`: what the topic holds for all groups, and messages for the dead topic.
//! - `pushed.rs`: messages without credit, of back ends and for a dead topic. `delayed.rs`: messages for later.
//! - `bounds.rs`: bounds that change while messages wait. `dropping.rs`: drops what is too old, or for which a full
//!   topic has no room.
//!
//! Times are in microseconds.

mod bounds;
mod delayed;
mod disk;
mod dropping;
mod figures;
mod group;
mod held;
mod lease;
mod pushed;
mod sink;
mod taken;

use std::sync::Arc;

use hashbrown::HashMap;

use super::consumers::Item;
use super::room::Room;
use super::{Bounds, WhenFull};
use crate::address::{ClientId, NodeId, ShardId};
use crate::message::{
    BackendId, Credit, Delivery, Event, EventNotice, GroupIndex, MessageNumber, PopId, PushReceipt,
    Requester, Terms,
};
use crate::protocol::frame::Frame;
pub use delayed::DELAYED_MAX;
use delayed::Delayed;
use disk::StoredFor;
pub use disk::UNSTORED_MAX;
use group::Group;
use held::Held;
use sink::SinkGroup;
pub use sink::{Handed, SINK_EVENTS_MAX};

/// Messages in flight to one consumer that does not acknowledge. Further ones stay in the topic until some of
/// them were written. (A consumer that acknowledges says in its `queue.pop` how many it takes.)
const WINDOW_MESSAGES: usize = 1024;

/// Messages that a topic moves per turn because its consumers changed. The others move in later turns.
const MOVED_PER_TURN: usize = 1024;

/// Time without room after which a consumer counts as stalled, in microseconds: messages that wait for it go
/// to the others, until it finishes one.
const STALLED_US: u64 = 1_000_000;

/// Time without a finished message after which a consumer is closed, in microseconds, if another could take
/// its messages. While they are in flight, later messages of the same clients have to wait.
const EVICTION_US: u64 = 10_000_000;

/// The time that a consumer has to acknowledge a message, in seconds, in topics without settings of their own.
pub const ACK_S_DEFAULT: u64 = 30;

/// Consumers of one group of a topic. The `queue.pop` of a further one is refused with 201.
const CONSUMERS_MAX: usize = 1024;

/// A request of a topic to its owner.
#[derive(Debug)]
pub enum Effect {
    /// Deliver a message to a consumer.
    Deliver(BackendId, Delivery),
    /// Tell a consumer that it has not acknowledged these messages in time.
    Expired(BackendId, Vec<MessageNumber>),
    /// Grant credit to a feeding shard.
    Grant(ShardId, Credit),
    /// Close a consumer that takes nothing while others would.
    Evict(BackendId),
    /// Refuse a feeding shard the room that it has asked for.
    Refuse(ShardId),
    /// Ask a feeding shard to return the credit that exceeds this.
    Recall(ShardId, Credit),
    /// There is room for the event of a back end that [`Topic::wait_for_room`] was called for.
    RoomForPush,
    /// Tell a back end that the event which it has pushed is stored.
    Stored(Requester),
    /// Tell the home of a topic that the event for which it asked [`Topic::offer_dead`] is stored.
    DeadStored(Burial),
    /// Tell the client's shard that the watched event of the client has left the topic.
    EventLeft(ClientId),
    /// Tell the client's shard that an event of the client is stored.
    EventStored(ClientId, PushReceipt),
    /// Move a message to the dead topic. [`Topic::buried`] takes the answer.
    Bury {
        /// The client that sent the message.
        client: ClientId,
        /// The encoded event.
        frame: Frame,
        /// How often the message was handed out.
        tries: u16,
        /// Why it was not settled.
        why: &'static str,
    },
}

/// A message on its way to a dead topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Burial {
    /// The shard that waits for the answer.
    pub asker: ShardId,
    /// The topic that has the message until then.
    pub from: Arc<str>,
}

/// Why a back end cannot become a consumer.
#[derive(Debug, PartialEq, Eq)]
pub enum JoinError {
    /// The back end is a consumer already.
    Repeated,
    /// The group has [`CONSUMERS_MAX`] consumers.
    TooMany,
    /// The topic has no group of that name.
    UnknownGroup,
    /// The topic has no default group.
    NoDefaultGroup,
}

/// What happens to messages that are not acknowledged, or grow old.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The time that a consumer has to acknowledge a message, in microseconds. 0: any.
    pub ack_us: u64,
    /// How often a message is handed out before it goes to the dead topic. 0: any number of times.
    pub tries: u16,
    /// The age beyond which waiting messages are dropped, in microseconds. 0: any.
    pub age_max_us: u64,
}

/// A topic, at its home.
#[derive(Debug)]
pub struct Topic {
    node: NodeId,
    when_full: WhenFull,
    window_messages: usize,
    next_number: MessageNumber,
    held: Held,
    // Messages for later.
    delayed: Delayed,

    // Consumers
    default_group: Group,
    has_default_group: bool,
    // At most as many as the configuration names.
    groups: Vec<Group>,
    sinks: Vec<SinkGroup>,
    // Whether the default group is the only group, and the topic is in memory. Most topics are like that.
    is_plain: bool,
    // Whether changed bounds have left messages to drop, or requests to answer.
    must_make_room: bool,
    has_asked_for_turn: bool,

    // Whether a shard has ever fed the topic. Feeders keep their credit, so such a topic is never dropped.
    is_fed: bool,
    dropped: u64,
    aged: u64,
}

impl Topic {
    /// An empty topic with the default group, on a node of `shards` shards. Each shard starts with
    /// [`Room::share`] credit.
    pub fn new(node: NodeId, bounds: Bounds, when_full: WhenFull, shards: usize) -> Self {
        Self {
            node,
            when_full,
            window_messages: window_messages(bounds, when_full),
            next_number: MessageNumber(0),
            held: Held::new(Room::new(bounds, shards)),
            delayed: Delayed::default(),
            default_group: Group::new(node, None),
            has_default_group: true,
            groups: Vec::new(),
            sinks: Vec::new(),
            is_plain: true,
            must_make_room: false,
            has_asked_for_turn: false,
            is_fed: false,
            dropped: 0,
            aged: 0,
        }
    }

    /// Adds groups to the default group. The topic is empty.
    pub fn with_groups(mut self, names: &[Arc<str>]) -> Self {
        debug_assert_eq!(self.messages(), 0, "groups are added to an empty topic");
        self.groups = names.iter().map(|name| Group::new(self.node, Some(name.clone()))).collect();
        self.note_groups();
        self
    }

    /// Adds or removes the default group. Returns false, and keeps the group, if it is to be removed and has
    /// consumers or messages.
    pub fn set_default_group(&mut self, is_wanted: bool) -> bool {
        let is_used = self.default_group.consumers.len() > 0 || self.default_group.backlog > 0;
        self.has_default_group = is_wanted || is_used;
        self.note_groups();
        self.has_default_group == is_wanted
    }

    fn note_groups(&mut self) {
        self.is_plain = self.has_default_group
            && self.groups.is_empty()
            && self.sinks.is_empty()
            && !self.is_on_disk();
    }

    /// Applies a policy. Messages that are in flight fall under it too.
    pub fn set_policy(&mut self, policy: Policy) {
        self.held.policy = policy;
    }

    /// The next effect.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.held.effects.pop_front()
    }

    /// Whether [`Self::handle_turn`] is to be called in the next turn. True once per such turn.
    pub fn poll_unfinished(&mut self) -> bool {
        let is_unfinished = self.default_group.is_unfinished()
            || self.must_make_room
            || self.groups.iter().any(Group::is_unfinished);
        is_unfinished && !std::mem::replace(&mut self.has_asked_for_turn, true)
    }

    /// Whether the topic has consumers.
    pub fn has_consumers(&self) -> bool {
        self.all_groups().any(|group| group.consumers.len() > 0)
    }

    /// Whether [`Self::handle_timeout`] is to be called regularly.
    pub fn needs_checks(&self) -> bool {
        self.held.policy.age_max_us > 0
            || self.has_consumers()
            || self.has_unstored()
            || self.held.disk.as_ref().is_some_and(|disk| disk.has_marks())
            || self.held.has_dead()
            || !self.delayed.is_empty()
            || self.all_groups().any(|group| group.lanes.has_delayed() || !group.taken.is_empty())
    }

    /// Whether a back end consumes the topic, or has messages of it in flight.
    pub fn knows(&self, id: BackendId) -> bool {
        self.all_groups().any(|group| group.consumers.find(id).is_some())
    }

    /// Whether the topic holds nothing, has no consumers, and was never fed.
    pub fn is_idle(&self) -> bool {
        !self.is_fed
            && self.held.room.held().messages == 0
            && !self.has_consumers()
            && !self.is_on_disk()
    }

    /// Adds an event, for which the shard had credit.
    pub fn push(&mut self, now_us: u64, from: ShardId, event: Event) {
        if !self.is_fed {
            self.begin_feeding();
        }
        self.held.room.take(from, event.frame.bytes().len());
        if !self.is_plain && self.is_on_disk() {
            return self.store(now_us, StoredFor::Shard(from), event);
        }
        self.held.top_up(from);
        let (client, notice) = (event.client, event.notice);
        self.add(now_us, event);
        if let EventNotice::Stored(receipt) = notice {
            self.held.effects.push_back(Effect::EventStored(client, receipt));
        }
    }

    /// Adds an event of a topic in memory.
    fn add(&mut self, now_us: u64, event: Event) {
        let Event { client, frame, notice } = event;
        let is_watched = notice.is_left();
        let number = self.next_number;
        self.next_number.0 += 1;
        let item = Item {
            number,
            since_us: now_us as i64,
            is_redelivered: false,
            tries: 0,
            is_watched,
            frame,
        };
        match self.is_plain {
            true => self.default_group.push(&mut self.held, now_us, client, item),
            false => self.add_to_groups(now_us, client, &item),
        }
    }

    #[cold]
    fn add_to_groups(&mut self, now_us: u64, client: ClientId, item: &Item) {
        let groups = usize::from(self.has_default_group) + self.groups.len() + self.sinks.len();
        if groups > 1 {
            self.held.share(item.number, groups);
        }
        for sink in &mut self.sinks {
            sink.push(client, item.clone());
        }
        for group in &mut self.groups {
            group.push(&mut self.held, now_us, client, item.clone());
        }
        if self.has_default_group {
            self.default_group.push(&mut self.held, now_us, client, item.clone());
        }
        if groups == 0 {
            // A reload has removed the last sink of a topic without a default group.
            self.dropped += 1;
            self.held.forget(GroupIndex(0), client, item);
        }
    }

    /// Makes a back end a consumer of a group on these terms. It is handed nothing before [`Self::start`].
    ///
    /// # Errors
    /// There is no such group, the back end is a consumer already, or there are too many.
    pub fn join(&mut self, now_us: u64, id: BackendId, terms: &Terms) -> Result<(), JoinError> {
        if !self.groups.is_empty() && self.consumes(id) {
            return Err(JoinError::Repeated);
        }
        let window_messages = self.window_messages;
        let group = match &terms.group {
            None if !self.has_default_group => return Err(JoinError::NoDefaultGroup),
            None => &mut self.default_group,
            Some(_) => {
                let mut groups = self.groups.iter_mut();
                let group = groups.find(|group| group.name == terms.group);
                group.ok_or(JoinError::UnknownGroup)?
            }
        };
        group.join(now_us, id, terms, window_messages)
    }

    /// Whether a back end has joined a group and not left it.
    fn consumes(&self, id: BackendId) -> bool {
        self.all_groups().any(|group| group.has_joined(id))
    }

    /// Lets a consumer compete, whose `queue.pop` has been answered.
    pub fn start(&mut self, now_us: u64, id: BackendId) {
        if self.is_on_disk() {
            return self.start_on_disk(now_us, id);
        }
        self.each_group(|group, _| group.start(now_us, id));
    }

    /// Stops a consumer; false if it was none. Unwritten messages stay with it, since its connection lives.
    /// Messages that it has not acknowledged are requeued.
    pub fn leave(&mut self, id: BackendId) -> bool {
        let mut has_left = false;
        self.each_group(|group, held| has_left |= group.leave(held, id));
        has_left
    }

    /// Removes a consumer whose connection is gone. Its unfinished messages are requeued, ahead of later
    /// ones.
    pub fn gone(&mut self, id: BackendId) {
        self.each_group(|group, _| group.gone(id));
    }

    /// Removes all consumers on an unreachable node. Their unfinished messages are requeued.
    pub fn node_gone(&mut self, node: NodeId) {
        self.each_group(|group, _| group.node_gone(node));
    }

    /// Finishes the first `count` messages in flight to a consumer, which were written.
    pub fn written(&mut self, now_us: u64, id: BackendId, count: u32) {
        if self.groups.is_empty() {
            return self.default_group.written(&mut self.held, now_us, id, count);
        }
        self.written_in_groups(now_us, id, count);
    }

    /// Finishes messages in the order of the pops for which they were handed out: a back end may have left one
    /// group and joined another before all messages of the first were written.
    #[cold]
    fn written_in_groups(&mut self, now_us: u64, id: BackendId, count: u32) {
        for _ in 0..count {
            let groups = std::iter::once(&mut self.default_group).chain(&mut self.groups);
            let with_messages = groups.filter(|group| group.first_pop(id).is_some());
            let Some(group) = with_messages.min_by_key(|group| group.first_pop(id)) else { return };
            group.written(&mut self.held, now_us, id, 1);
        }
    }

    /// Finishes messages that a consumer has acknowledged. Numbers of messages that are not in flight to it
    /// are ignored.
    pub fn settled(&mut self, now_us: u64, id: BackendId, numbers: &[MessageNumber]) {
        self.each_group(|group, held| group.settled(held, now_us, id, numbers));
    }

    /// Takes back messages that a consumer has refused. They and later messages of their clients wait
    /// until `until_us` before the group hands them out.
    pub fn refused(
        &mut self,
        now_us: u64,
        id: BackendId,
        numbers: &[MessageNumber],
        until_us: u64,
    ) {
        self.each_group(|group, held| group.refused(held, now_us, id, numbers, until_us));
    }

    /// Requeues a message that was handed out for a `queue.pop` which its consumer has cancelled, ahead of
    /// later messages of the same client.
    pub fn returned(&mut self, now_us: u64, id: BackendId, number: MessageNumber, pop: PopId) {
        self.each_group(|group, held| group.returned(held, now_us, id, number, pop));
    }

    /// Handles the answer of the dead topic to [`Effect::Bury`]. A dead topic on disk answers once the message is
    /// stored there.
    pub fn buried(&mut self, was_taken: bool) {
        self.held.buried(was_taken);
    }

    /// Takes the request of a shard that lacks credit for a message of this many bytes.
    pub fn want_credit(&mut self, from: ShardId, bytes: usize) {
        if !self.is_fed {
            self.begin_feeding();
        }
        self.held.room.ask(from, bytes);
        if self.when_full == WhenFull::DropOldest && !self.must_make_room {
            let wanted = self.held.room.wanted_by(from);
            while self.held.room.lacks(wanted) && self.drop_oldest() {}
        }
        self.held.grant_to_asking();
        if self.when_full == WhenFull::Close && self.held.room.refuse(from) {
            self.held.effects.push_back(Effect::Refuse(from));
        }
    }

    /// Continues what a change of the consumers has left to do. To be called once per turn after
    /// [`Self::poll_unfinished`] has asked for it.
    pub fn handle_turn(&mut self, now_us: u64) {
        self.has_asked_for_turn = false;
        let mut left = MOVED_PER_TURN;
        if self.must_make_room {
            left = self.make_room(left);
        }
        self.each_group(|group, held| left = group.handle_turn(held, now_us, left));
        // The next turn begins with another group, so that all of them advance.
        if self.groups.len() > 1 && left == 0 {
            self.groups.rotate_left(1);
        }
    }

    /// Checks what depends on the time: consumers that take nothing, messages that were not acknowledged in
    /// time, delays, and the age of messages.
    pub fn handle_timeout(&mut self, now_us: u64) {
        self.add_due(now_us);
        self.each_group(|group, held| group.handle_timeout(held, now_us));
        self.held.bury_next();
        self.drop_aged(now_us);
        self.note_consumers(Some(now_us));
    }

    /// Asserts the invariants. Costs a look at every lane.
    pub fn check(&self) {
        if let Some(disk) = &self.held.disk {
            self.held.room.check();
            self.sinks.iter().for_each(SinkGroup::check);
            return self.check_disk(disk);
        }
        let (mut first, delayed) = (self.default_group.check(self.next_number), self.delayed.sum());
        first.messages += delayed.messages;
        first.bytes += delayed.bytes;
        self.held.check(self.is_plain.then_some(first));
        self.sinks.iter().for_each(SinkGroup::check);
        if self.is_plain {
            return;
        }
        let mut shared: HashMap<MessageNumber, u32> = HashMap::new();
        for group in self.all_groups() {
            group.check(self.next_number);
            group.numbers().for_each(|number| *shared.entry(number).or_default() += 1);
        }
        let of_sinks = self.sinks.iter().flat_map(SinkGroup::numbers);
        of_sinks
            .chain(self.held.dead_numbers())
            .for_each(|number| *shared.entry(number).or_default() += 1);
        let messages = shared.len() + delayed.messages;
        assert_eq!(self.held.room.held().messages, messages, "messages held");
        // A message of a single group has no entry.
        for (number, groups) in &shared {
            let noted = self.held.shared().get(number).unwrap_or(&1);
            assert_eq!(noted, groups, "groups that have not settled {number:?}");
        }
        let has_all = self.held.shared().keys().all(|number| shared.contains_key(number));
        assert!(has_all, "messages that no group has");
    }

    fn all_groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.default_group).chain(&self.groups)
    }

    fn each_group(&mut self, mut change: impl FnMut(&mut Group, &mut Held)) {
        change(&mut self.default_group, &mut self.held);
        for group in &mut self.groups {
            change(group, &mut self.held);
        }
    }
}

/// The most messages in flight to a consumer that does not acknowledge.
fn window_messages(bounds: Bounds, when_full: WhenFull) -> usize {
    match when_full {
        // At most half of the topic is in flight to one consumer, so that there is some to drop.
        WhenFull::DropOldest => WINDOW_MESSAGES.min(bounds.messages / 2).max(1),
        WhenFull::Hold | WhenFull::Close => WINDOW_MESSAGES,
    }
}

#[cfg(test)]
mod tests;
