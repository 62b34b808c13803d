//! Delivers a frame to all subscribers of a channel, in slices within a budget per turn.
//!
//! A *walk* visits the members of a channel in order. A channel that fits in one slice is done at
//! once. A longer walk becomes a [`PendingPublish`] and continues in later turns, alternating with
//! the pending publishes of other back ends.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::Clients;
use super::budget::{FEW, FanoutBudget, SLICE};
use super::channels::{ChannelIndex, Channels, WalkNumber};
use super::for_users::{UserWalk, held_bytes_for_users};
use super::variants::{COALESCE_MIN_SUBSCRIBERS, LastFrames, VariantMaker, Variants};
use crate::address::ClientId;
use crate::message::{BackendId, ClientCommand, ConnectionKey, LocalCommand, Publish, Requester};
use crate::protocol::api::{Code, Fault, MessageOrigin, Tally, TapEvent};
use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};
use crate::protocol::position::Position;
use crate::shard::connection::WAITING_MAX;
use crate::shard::connection::{Connection, Connections, Phase, Priority};
use crate::shard::memory::Shortage;
use crate::shard::turn::{ShardCommand, Step, Turn};

/// The progress of one publish through a channel's members.
#[derive(Debug)]
pub(crate) struct PublishWalk {
    channel: ChannelIndex,
    // The number among the channel's walks. `None` for a walk within one turn.
    number: Option<WalkNumber>,
    at: usize,
    end: usize,
    variants: Variants,
    // The place behind the message. `None`: the channel has no history.
    position: Option<Position>,
    // The connections of clients that do not get the message, sorted.
    excluded: Vec<ConnectionKey>,
    // Whether the message is an event of the device protocol, which only devices get that speak it.
    is_event: bool,
    tally: Tally,
}

impl PublishWalk {
    /// Whether some subscribers may not get the message: see [`Self::leaves_out`].
    fn may_leave_out(&self) -> bool {
        !self.excluded.is_empty() || self.position.is_some() || self.is_event
    }

    /// Whether a subscriber does not get the message: the publish excludes the client, the message is among those that
    /// the client gets with the answer of the home, or it is an event that the client does not understand.
    fn leaves_out(&self, channels: &Channels, key: ConnectionKey, connection: &Connection) -> bool {
        self.excluded.binary_search(&key).is_ok()
            || self.is_event && !connection.form.is_enveloped()
            || self.position.is_some()
                && connection.is_recovering
                && connection.recovers(channels.name(self.channel))
    }
}

/// A publish that continues in later turns, and the later commands of the same back end. The
/// commands wait so that the commands of one back end take effect in order. Commands of other back
/// ends do not wait.
#[derive(Debug)]
pub(super) struct PendingPublish {
    requester: Requester,
    walk: PendingWalk,
    queued: QueuedCommands,
}

/// A walk that continues in later turns.
#[derive(Debug)]
pub(crate) enum PendingWalk {
    /// Through the members of a channel.
    Channel(Box<PublishWalk>),
    /// Through the connections of users.
    Users(Box<UserWalk>),
}

impl From<Box<PublishWalk>> for PendingWalk {
    fn from(walk: Box<PublishWalk>) -> Self {
        Self::Channel(walk)
    }
}

impl From<Box<UserWalk>> for PendingWalk {
    fn from(walk: Box<UserWalk>) -> Self {
        Self::Users(walk)
    }
}

#[derive(Debug, Default)]
struct QueuedCommands {
    commands: VecDeque<(Requester, ShardCommand)>,
    // Memory taken by the commands, in bytes.
    bytes: usize,
}

/// Bounds of the commands queued behind one publish: their number, and their memory in bytes.
/// Further commands fail with 103. The limit of unanswered calls usually stops the back end
/// earlier, unless those calls have timed out or name many channels each.
const QUEUED_COMMANDS_MAX: usize = 16 * WAITING_MAX;
const QUEUED_COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

impl PendingPublish {
    /// Queues a command. Returns the command if the queue is full.
    fn take(&mut self, requester: Requester, command: ShardCommand) -> Option<ShardCommand> {
        let (queued, bytes) = (&mut self.queued, held_bytes(&command));
        let is_bounded_elsewhere = matches!(command, ShardCommand::Local(LocalCommand::Deliver(_)));
        let is_full = !is_bounded_elsewhere
            && (queued.commands.len() >= QUEUED_COMMANDS_MAX
                || queued.bytes + bytes > QUEUED_COMMAND_BYTES_MAX);
        if is_full {
            return Some(command);
        }
        queued.bytes += bytes;
        queued.commands.push_back((requester, command));
        None
    }

    /// Drops the queued `Join` commands of a back end that has disconnected, and returns their
    /// requesters.
    fn forget_joins(&mut self) -> Vec<Requester> {
        let is_join = |(_, command): &(Requester, ShardCommand)| {
            matches!(command, ShardCommand::Local(LocalCommand::Join(..)))
        };
        let commands = &mut self.queued.commands;
        let joins = commands.iter().filter(|behind| is_join(behind));
        let forgotten = joins.map(|(requester, _)| *requester).collect();
        commands.retain(|behind| !is_join(behind));
        forgotten
    }
}

/// Returns the memory that a queued command takes, in bytes.
fn held_bytes(command: &ShardCommand) -> usize {
    // A queue that grows by doubling has up to twice the capacity that it needs.
    2 * size_of::<(Requester, ShardCommand)>()
        + match command {
            ShardCommand::Client(ClientCommand::Send(_, frame)) => {
                frame.bytes().len() + QUEUED_FRAME_BYTES
            }
            ShardCommand::Client(ClientCommand::Call(_, function)) => function.held_bytes(),
            ShardCommand::Local(LocalCommand::Publish(Publish { channel, frame, excluded })) => {
                let excluded = excluded.as_ref().map_or(0, |excluded| excluded.len());
                let excluded_bytes = excluded * size_of::<ClientId>();
                channel.len() + frame.bytes().len() + QUEUED_FRAME_BYTES + excluded_bytes
            }
            // Its home bounds what is being delivered.
            ShardCommand::Local(LocalCommand::Deliver(_)) => 0,
            ShardCommand::Local(LocalCommand::Recover(answer)) => {
                answer.missed.as_ref().map_or(0, |missed| {
                    missed.iter().map(|(_, frame)| frame.bytes().len() + QUEUED_FRAME_BYTES).sum()
                })
            }
            ShardCommand::Local(LocalCommand::ForUsers(command)) => held_bytes_for_users(command),
            ShardCommand::Local(LocalCommand::Join(topic, _) | LocalCommand::Leave(topic)) => {
                topic.len()
            }
            ShardCommand::Local(LocalCommand::Push(push)) => {
                let key_bytes = push.key.as_ref().map_or(0, |key| key.len());
                push.topic.len() + key_bytes + push.frame.bytes().len() + QUEUED_FRAME_BYTES
            }
            ShardCommand::Local(LocalCommand::Report) => 0,
        }
}

/// The publishes in progress on a shard.
#[derive(Debug, Default)]
pub(super) struct Fanout {
    publishes: HashMap<BackendId, PendingPublish>,
    // The back ends with a pending publish, in the order of their next slices.
    round_robin: VecDeque<BackendId>,
    /// How much all walks may do in this turn.
    pub(super) budget: FanoutBudget,
    // The frames queued last by the publish that ended last. Cleared when a turn begins without a
    // pending publish.
    last_frames: Option<(ChannelIndex, LastFrames)>,
}

impl Fanout {
    /// Whether a publish is pending.
    pub(super) fn is_walking(&self) -> bool {
        !self.round_robin.is_empty()
    }

    /// Takes the frames that a frame for this channel may be coalesced with.
    fn take_last_frames(&mut self, channel: ChannelIndex) -> LastFrames {
        let last_frames = self.last_frames.take().filter(|(of, _)| *of == channel);
        last_frames.map(|(_, last_frames)| last_frames).unwrap_or_default()
    }

    /// Keeps the last frames of a finished publish for coalescing, and returns its tally.
    fn keep_last_frames(&mut self, walk: &mut PublishWalk) -> Tally {
        if walk.end >= COALESCE_MIN_SUBSCRIBERS {
            self.last_frames = Some((walk.channel, walk.variants.take_last_frames()));
        }
        walk.tally
    }
}

impl Clients {
    /// Publishes a frame to the subscribers on this shard, except to the excluded clients. With a position, the channel
    /// has a history: a device that misses the message is closed, so that it recovers.
    ///
    /// # Errors
    /// The publish needs more than one slice, or the turn's budget is spent. Returns the rest of
    /// the walk, for [`Self::defer_publish`].
    pub(crate) fn publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        channel: &str,
        frame: Frame,
        position: Option<Position>,
        excluded: Option<&[ClientId]>,
    ) -> Result<Tally, Box<PublishWalk>> {
        let Some(channel) = self.channels.find(channel) else { return Ok(Tally::default()) };
        let end = self.channels.end(channel);
        let variants = Variants::of(frame, self.fanout.take_last_frames(channel));
        if (2..=FEW).contains(&end) {
            turn.work.spend(end as u32 - 1);
        }
        let excluded = excluded.map_or_else(Vec::new, |excluded| self.connections_of(excluded));
        let tally = Tally::default();
        let (number, at) = (None, 0);
        let is_event = false;
        let mut walk =
            PublishWalk { channel, number, at, end, variants, position, excluded, is_event, tally };
        match self.walk(turn, connections, &mut walk, SLICE) {
            true => Ok(self.fanout.keep_last_frames(&mut walk)),
            false => Err(Box::new(walk)),
        }
    }

    /// Sends an event of the device protocol to the subscribers on this shard that speak it, except to the excluded ones,
    /// which are sorted. `event` is the whole message.
    ///
    /// # Errors
    /// The event needs more than one slice, or the turn's budget is spent. Returns the rest of the walk, for
    /// [`Self::defer_publish`].
    pub(super) fn publish_event(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        channel: &str,
        event: Frame,
        excluded: Vec<ConnectionKey>,
    ) -> Result<(), Box<PublishWalk>> {
        let Some(channel) = self.channels.find(channel) else { return Ok(()) };
        let (end, variants) =
            (self.channels.end(channel), Variants::of(event, LastFrames::default()));
        let (number, at, position, is_event) = (None, 0, None, true);
        let tally = Tally::default();
        let mut walk =
            PublishWalk { channel, number, at, end, variants, position, excluded, is_event, tally };
        match self.walk(turn, connections, &mut walk, SLICE) {
            true => Ok(()),
            false => Err(Box::new(walk)),
        }
    }

    /// Whether another walk may begin in this turn.
    pub(super) fn may_walk(&self) -> bool {
        self.fanout.budget.may_reach(1) > 0
    }

    /// Returns the connections of those clients that are on this shard, sorted.
    fn connections_of(&self, clients: &[ClientId]) -> Vec<ConnectionKey> {
        let keys = clients.iter().filter_map(|client| self.by_id.get(client).copied());
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        keys
    }

    /// Visits up to `most` members, within the turn's budget, and counts deliveries. The walk stops early at a member
    /// whose full outbound queue this shard has not written yet. Returns true at the end of the
    /// walk.
    fn walk(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        walk: &mut PublishWalk,
        most: usize,
    ) -> bool {
        let published_bytes = walk.variants.published().bytes().len();
        let most = most.min(self.fanout.budget.may_reach(published_bytes));
        let mut end = walk.end.min(walk.at + most);
        let mut slow = Vec::new();
        let is_short = turn.is_short(Shortage::Frames);
        let may_leave_out = walk.may_leave_out();
        let priority = if walk.end <= FEW { Priority::Urgent } else { Priority::Bulk };
        for (at, member) in self.channels.members(walk.channel, walk.number, walk.at, end) {
            let (key, connection, write_queues) = connections.at(member.connection);
            if connection.phase != Phase::Open {
                // The client is gone and not unsubscribed from this channel yet.
                continue;
            }
            if may_leave_out && walk.leaves_out(&self.channels, key, connection) {
                continue;
            }
            let variant = match walk.variants.made(connection.form) {
                Some(variant) => variant,
                None => {
                    let channel = Some(self.channels.name(walk.channel));
                    let origin = MessageOrigin { channel, position: walk.position };
                    let origin = (!walk.is_event).then_some(origin);
                    let maker = VariantMaker {
                        deflater: &mut self.deflater,
                        envelope: &mut self.envelope,
                        counters: &mut turn.counters,
                    };
                    walk.variants.make(connection.form, origin, maker)
                }
            };
            let bytes = variant.frame_bytes();
            let is_shed = is_short && connection.outbound.is_in_flight();
            if !connection.has_room_for(bytes) || is_shed {
                if connection.is_awaiting_write() {
                    // The queue is full because this shard has not written it yet.
                    write_queues.push(Priority::Urgent, key, connection);
                    self.fanout.budget.end_gathering();
                    end = at;
                    break;
                }
                walk.tally.failed += 1;
                match is_shed {
                    true => turn.counters.note_shed_frames(1),
                    false => turn.counters.limits.outbound_bytes += 1,
                }
                let must_recover = walk.position.is_some() && connection.form.is_enveloped();
                let is_to_close =
                    turn.settings.limits.close_slow_clients && connection.is_too_slow_for(bytes);
                if is_to_close || must_recover {
                    slow.push(key);
                }
                continue;
            }
            variant.push(&mut connection.outbound, &mut turn.buffer_pool);
            if connection.is_observed() {
                let published = walk.variants.published();
                let event = TapEvent::Out(published.kind(), published.payload());
                turn.observe_message(connection, event);
            }
            if connection.queued_writes.is_empty() && connection.outbound.is_ready() {
                write_queues.push(priority, key, connection);
            }
        }
        let appended = walk.variants.take_appended();
        walk.tally.delivered += appended.frames;
        turn.counters.note_compressed(appended.compressed, appended.saved_bytes);
        self.fanout.budget.reach(end - walk.at, appended.bytes);
        walk.at = end;
        let is_over = end == walk.end;
        if !is_over && walk.number.is_none() {
            walk.number = Some(self.channels.begin_walk(walk.channel));
        }
        slow.into_iter().for_each(|key| connections.close_slow(turn, key));
        if is_over {
            let delivered = match walk.is_event {
                false => &mut turn.counters.delivered,
                true => &mut turn.counters.presence_events,
            };
            *delivered += walk.tally.delivered;
            turn.counters.failed += walk.tally.failed;
        }
        if is_over && let Some(number) = walk.number {
            self.channels.end_walk(walk.channel, number, |member, subscription| {
                connections.at(member.connection).1.move_subscription(member, subscription);
            });
        }
        is_over
    }

    /// Queues a command behind the pending publish of its back end. Returns the command if there is
    /// no such publish.
    ///
    /// # Errors
    /// Too many commands are queued behind the publish: returns the command.
    pub(crate) fn queue_behind_publish(
        &mut self,
        requester: Requester,
        command: ShardCommand,
    ) -> Result<Option<ShardCommand>, ShardCommand> {
        let Some(publish) = self.fanout.publishes.get_mut(&requester.backend) else {
            return Ok(Some(command));
        };
        publish.take(requester, command).map_or(Ok(None), Err)
    }

    /// Whether a publish of this back end is pending.
    pub(crate) fn has_pending_publish(&self, backend: BackendId) -> bool {
        self.fanout.publishes.contains_key(&backend)
    }

    /// Returns the number of pending publishes.
    pub(crate) fn pending_publishes(&self) -> usize {
        self.fanout.publishes.len()
    }

    /// Handles the disconnect of a consumer: its queued `Join` commands fail.
    pub(crate) fn handle_backend_gone(&mut self, turn: &mut Turn, backend: BackendId) {
        let publish = self.fanout.publishes.get_mut(&backend);
        for requester in publish.map(PendingPublish::forget_joins).unwrap_or_default() {
            let fault = Fault::new(Code::ConsumptionFailed, "the connection is gone");
            turn.answer(requester, Err(fault));
        }
    }

    /// Renews the fan-out budget for a new turn.
    pub(crate) fn begin_turn(&mut self, now_ms: u64, has_backlog: bool) {
        let is_walking = self.fanout.is_walking();
        if !is_walking {
            self.fanout.last_frames = None;
        }
        self.fanout.budget.begin_turn(now_ms, is_walking, has_backlog);
    }

    /// Whether one more fan-out write is allowed in this turn.
    pub(crate) fn may_send(&self) -> bool {
        self.fanout.budget.may_send(self.fanout.is_walking())
    }

    /// Notes a write that is not of a fan-out.
    pub(crate) fn note_urgent(&mut self, now_ms: u64) {
        self.fanout.budget.note_others(now_ms);
    }

    /// Counts a fan-out write of this many bytes.
    pub(crate) fn note_sent(&mut self, bytes: usize) {
        self.fanout.budget.send(bytes);
    }

    /// Continues the pending publishes, in turn. No step may be waiting: the commands queued behind
    /// a finished publish become steps, and a waiting step could be a later command of the same
    /// back end.
    pub(crate) fn continue_publishes(&mut self, turn: &mut Turn, connections: &mut Connections) {
        debug_assert!(!turn.has_steps(), "queued commands come before later ones");
        let mut left = SLICE;
        for _ in 0..self.fanout.round_robin.len() {
            if left == 0 || self.fanout.budget.may_reach(1) == 0 {
                return;
            }
            let Some(from) = self.fanout.round_robin.pop_front() else { return };
            let Some(mut publish) = self.fanout.publishes.remove(&from) else { continue };
            let is_over = match &mut publish.walk {
                PendingWalk::Channel(walk) => {
                    let at = walk.at;
                    let is_over = self.walk(turn, connections, walk, left);
                    left = left.saturating_sub(walk.at - at);
                    is_over
                }
                PendingWalk::Users(walk) => {
                    let (is_over, visited) = self.walk_users(turn, connections, walk, left);
                    left = left.saturating_sub(visited);
                    is_over
                }
            };
            if !is_over {
                self.fanout.publishes.insert(from, publish);
                self.fanout.round_robin.push_back(from);
                continue;
            }
            match publish.walk {
                // Nobody waits for the answer.
                PendingWalk::Channel(walk) if walk.is_event => {}
                PendingWalk::Channel(mut walk) => {
                    let tally = self.fanout.keep_last_frames(&mut walk);
                    turn.answer_publish(publish.requester, Ok(tally));
                }
                PendingWalk::Users(walk) => self.answer_users(turn, publish.requester, *walk),
            }
            // The commands are executed in order. If a command is a long publish, the later
            // commands queue behind it.
            for (requester, command) in publish.queued.commands {
                turn.push_step(Step::Execute(requester, command));
            }
        }
    }

    /// Keeps the rest of a publish for later turns.
    pub(crate) fn defer_publish(&mut self, requester: Requester, walk: PendingWalk) {
        let publish = PendingPublish { requester, walk, queued: QueuedCommands::default() };
        self.fanout.publishes.insert(requester.backend, publish);
        self.fanout.round_robin.push_back(requester.backend);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{ClientId, IdLayout, IdSource, ShardId};
    use crate::message::Ticket;
    use crate::shard::connection::Listener;
    use crate::shard::fixture;
    use crate::shard::settings::{RouteSettings, Settings};

    /// The parts of a shard with so many subscribers of channel "a".
    fn subscribed(count: u64) -> (Turn, Connections, Clients, Vec<ConnectionKey>) {
        subscribed_with(fixture::settings(), count)
    }

    fn subscribed_with(
        settings: Settings,
        count: u64,
    ) -> (Turn, Connections, Clients, Vec<ConnectionKey>) {
        let ids = IdSource::new(settings.node, ShardId(0), IdLayout::new(1), 1);
        let (mut turn, mut connections) = (fixture::turn(settings), Connections::default());
        let mut clients = Clients::new(&turn, ids);
        let keys = (1..=count).map(|id| {
            let client = ClientId::from_value(id);
            let key = fixture::client(&mut turn, &mut connections, client);
            clients.by_id.insert(client, key);
            clients.subscribe(&mut turn, &mut connections, key, &["a"]).unwrap();
            key
        });
        let keys = keys.collect();
        (turn, connections, clients, keys)
    }

    #[test]
    fn excluded_clients_get_nothing_and_do_not_count_however_many_turns_the_walk_takes() {
        let (mut turn, mut connections, mut clients, keys) = subscribed(SLICE as u64 + 10);
        let excluded = [3, SLICE as u64 + 5, u64::MAX].map(ClientId::from_value);
        let frame = Frame::from_encoded(b"frame");
        let at = fixture::accepted(&mut turn, &mut connections, Listener::Api);
        let requester = Requester { ticket: Ticket(1), backend: turn.backend_id(at) };
        let walk = clients.publish(&mut turn, &mut connections, "a", frame, None, Some(&excluded));
        clients.defer_publish(requester, walk.expect_err("it takes two slices").into());
        while clients.is_waiting() {
            clients.begin_turn(0, false);
            clients.continue_publishes(&mut turn, &mut connections);
        }
        assert_eq!(turn.counters.delivered, SLICE as u64 + 8);
        let mut written = Vec::new();
        while let Some(write) = connections.poll_write(&turn, Priority::Bulk) {
            written.push(write.key);
        }
        let left_out: Vec<_> = keys.iter().filter(|key| !written.contains(key)).collect();
        assert_eq!(left_out, [&keys[2], &keys[SLICE + 4]]);
    }

    #[test]
    fn a_subscriber_with_a_full_queue_is_queued_to_be_written_once() {
        let mut settings = fixture::settings();
        let frame = Frame::from_encoded(&[0; 1000]);
        let mut route = RouteSettings::clone(&settings.edges[0].routes[0]);
        route.outbound_bytes = frame.bytes().len() + QUEUED_FRAME_BYTES;
        settings.edges[0].routes = vec![route.into()];
        let count = FEW + 1;
        let (mut turn, mut connections, mut clients, keys) =
            subscribed_with(settings, count as u64);

        let first = clients.publish(&mut turn, &mut connections, "a", frame.clone(), None, None);
        assert_eq!(first.unwrap().delivered, count as u64);
        for number in 0..3 {
            let at = fixture::accepted(&mut turn, &mut connections, Listener::Api);
            let requester = Requester { ticket: Ticket(number), backend: turn.backend_id(at) };
            let walk = clients.publish(&mut turn, &mut connections, "a", frame.clone(), None, None);
            clients.defer_publish(requester, walk.expect_err("the queue is full").into());
            clients.continue_publishes(&mut turn, &mut connections);
        }
        assert_eq!(connections.queued_writes(), [1, count]);
        let write = connections.poll_write(&turn, Priority::Urgent).unwrap();
        assert_eq!((write.key, write.bytes), (keys[0], 1000));
    }

    #[test]
    fn a_message_for_few_is_written_before_a_fan_out_that_came_first() {
        let many = FEW + 1;
        let (mut turn, mut connections, mut clients, keys) = subscribed((many + FEW) as u64);
        for &key in &keys[..FEW] {
            clients.unsubscribe(&turn, &mut connections, key, &["a"]);
            clients.subscribe(&mut turn, &mut connections, key, &["few"]).unwrap();
        }
        let frame = Frame::from_encoded(b"frame");
        for (channel, count) in [("a", many), ("few", FEW)] {
            let done =
                clients.publish(&mut turn, &mut connections, channel, frame.clone(), None, None);
            assert_eq!(done.unwrap().delivered, count as u64);
        }
        assert_eq!(connections.queued_writes(), [FEW, many]);
        let urgent: Vec<_> = (0..FEW)
            .filter_map(|_| connections.poll_write(&turn, Priority::Urgent))
            .map(|write| write.key)
            .collect();
        assert_eq!(urgent, keys[..FEW]);
    }
}
