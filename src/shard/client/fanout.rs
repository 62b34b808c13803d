//! Delivers one frame to all subscribers of a channel, in slices within a work budget.

use std::collections::VecDeque;

use hashbrown::HashMap;

use super::Clients;
use super::channels::{ChannelIndex, IN_ONE_GO, WalkNumber};
use super::variants::{COALESCE_MIN_SUBSCRIBERS, LastFrames, Variants};
use crate::message::{Answer, BackendId, Command};
use crate::protocol::api::{Code, Fault, Tally};
use crate::protocol::frame::{Frame, QUEUED_FRAME_BYTES};
use crate::shard::connection::WAITING_MAX;
use crate::shard::connection::{Connections, Phase, WriteQueue};
use crate::shard::memory::Shortage;
use crate::shard::turn::{Requester, Step, Turn};

/// Subscribers that one slice of a walk reaches: some 50 µs. A channel with no more is done in one
/// go.
const SLICE: usize = 1024;

/// Subscribers that all publishes of a turn reach together: those that are done in one go, and of
/// walks that are under way one slice. The rest wait for later turns.
const REACHED_PER_TURN: usize = 4 * SLICE;

/// Connections of those that are written to in a turn, and bytes, but for what had gathered for the
/// last.
const SENDS_PER_TURN: usize = 32;
const BYTES_PER_TURN: usize = 256 * 1024;

/// Bytes that gather for subscribers, while walks are under way, before any of them is written to: so
/// that of a burst of publishes each gets one write.
const GATHERED_BYTES: usize = 4 * 1024 * 1024;

/// Bytes that publishes of a turn may add after a turn that had more to write than it might: less than
/// is written in one, so that what waits gets less, and so much that small publishes go on.
const BYTES_AFTER_OVERRUN: usize = BYTES_PER_TURN / 4;

/// What is left for fan-outs to do in a turn, which is from one [`Shard::handle_turn`] to the next:
/// so whoever has nothing to do with them waits for some 0.5 ms at a time.
#[derive(Debug)]
pub struct Budget {
    // Subscribers to reach, and bytes to add for them.
    reachable: usize,
    addable_bytes: usize,
    // Of those who were reached to write to.
    sends: usize,
    bytes: usize,
    // Added since there was no walk under way.
    gathered_bytes: usize,
    // The turn before had more to write.
    has_overrun: bool,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            reachable: REACHED_PER_TURN,
            addable_bytes: usize::MAX,
            sends: SENDS_PER_TURN,
            bytes: BYTES_PER_TURN,
            gathered_bytes: 0,
            has_overrun: false,
        }
    }
}

impl Budget {
    /// A turn begins, with or without walks under way.
    fn begin_turn(&mut self, is_walking: bool) {
        let has_overrun = self.bytes == 0;
        *self = Self {
            addable_bytes: if has_overrun { BYTES_AFTER_OVERRUN } else { usize::MAX },
            gathered_bytes: if is_walking { self.gathered_bytes } else { 0 },
            has_overrun,
            ..Self::default()
        };
    }

    /// Subscribers that a frame of so many bytes may still reach.
    fn may_reach(&self, bytes: usize) -> usize {
        match self.addable_bytes {
            0 => 0,
            // One at least, however large.
            addable => self.reachable.min((addable / bytes).max(1)),
        }
    }

    fn reach(&mut self, count: usize, bytes: usize) {
        self.reachable = self.reachable.saturating_sub(count);
        self.addable_bytes = self.addable_bytes.saturating_sub(bytes);
        self.gathered_bytes += bytes;
    }

    /// Somebody has to be written to before more is added.
    fn end_gathering(&mut self) {
        self.gathered_bytes = GATHERED_BYTES;
    }

    /// Whether one more of those that a fan-out reached may be written to.
    fn may_send(&self, is_walking: bool) -> bool {
        let is_gathering = is_walking && !self.has_overrun && self.gathered_bytes < GATHERED_BYTES;
        self.sends > 0 && self.bytes > 0 && !is_gathering
    }

    /// So many bytes are written to one.
    fn send(&mut self, bytes: usize) {
        self.sends -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A walk through a channel's members that is under way.
#[derive(Debug)]
pub struct Walk {
    channel: ChannelIndex,
    number: WalkNumber,
    at: usize,
    end: usize,
    variants: Variants,
    tally: Tally,
}

/// What one back end asked for and this shard has not done yet: a walk, and the commands that came
/// behind it. They wait, so that all that a back end asks for takes effect in its order; those of
/// other back ends do not.
#[derive(Debug)]
pub struct PendingPublish {
    requester: Requester,
    walk: Box<Walk>,
    queued: QueuedCommands,
}

#[derive(Debug, Default)]
struct QueuedCommands {
    commands: VecDeque<(Requester, Command)>,
    // Memory that they take.
    bytes: usize,
}

/// Commands of one back end, and the memory that they take, that wait behind a walk: what is beyond
/// fails with 103. The back end is held back by its unanswered calls before that, unless they have
/// run out of time.
const QUEUED_COMMANDS_MAX: usize = WAITING_MAX;
const QUEUED_COMMAND_BYTES_MAX: usize = 16 * 1024 * 1024;

impl PendingPublish {
    /// Lets a command wait; false if too much does.
    fn take(&mut self, requester: Requester, command: Command) -> bool {
        let (queued, bytes) = (&mut self.queued, held_bytes(&command));
        if queued.commands.len() >= QUEUED_COMMANDS_MAX
            || queued.bytes + bytes > QUEUED_COMMAND_BYTES_MAX
        {
            return false;
        }
        queued.bytes += bytes;
        queued.commands.push_back((requester, command));
        true
    }

    /// Its back end is gone: it consumes nothing when its turn comes. Gives what is not to be
    /// carried out any more.
    fn forget_joins(&mut self) -> Vec<Requester> {
        let is_join = |(_, command): &(Requester, Command)| matches!(command, Command::Join(..));
        let commands = &mut self.queued.commands;
        let joins = commands.iter().filter(|behind| is_join(behind));
        let forgotten = joins.map(|(requester, _)| *requester).collect();
        commands.retain(|behind| !is_join(behind));
        forgotten
    }
}

/// Memory that a command takes while it waits.
fn held_bytes(command: &Command) -> usize {
    // A queue that grows by doubling has room for twice as many.
    2 * size_of::<(Requester, Command)>()
        + match command {
            Command::Send(_, frame) => frame.bytes().len() + QUEUED_FRAME_BYTES,
            Command::Publish(channel, frame) => {
                channel.len() + frame.bytes().len() + QUEUED_FRAME_BYTES
            }
            Command::Call(_, function) => function.held_bytes(),
            Command::Join(topic, _) | Command::Leave(topic) => topic.len(),
            Command::Nodes | Command::Report => 0,
        }
}

/// The publishes of a shard that are under way.
#[derive(Debug, Default)]
pub struct Fanout {
    publishes: HashMap<BackendId, PendingPublish>,
    // The lanes in the order of their turns.
    round_robin: VecDeque<BackendId>,
    budget: Budget,
    // Of the publish that ended last, until a turn begins without walks under way.
    last_frames: Option<(ChannelIndex, LastFrames)>,
}

impl Fanout {
    /// Whether a walk goes on.
    pub fn is_walking(&self) -> bool {
        !self.round_robin.is_empty()
    }

    /// What a frame for this channel may be coalesced to.
    fn take_last_frames(&mut self, channel: ChannelIndex) -> LastFrames {
        let last_frames = self.last_frames.take().filter(|(of, _)| *of == channel);
        last_frames.map(|(_, last_frames)| last_frames).unwrap_or_default()
    }

    /// Of a walk that is over, for the next frame; gives its tally.
    fn keep_last_frames(&mut self, walk: Walk) -> Tally {
        if walk.end >= COALESCE_MIN_SUBSCRIBERS {
            self.last_frames = Some((walk.channel, walk.variants.into_last_frames()));
        }
        walk.tally
    }
}

impl Clients {
    /// Begins to deliver a frame; gives the tally if that was all, else the rest of the walk: all
    /// of it where this turn has reached enough.
    pub fn publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        channel: &str,
        frame: Frame,
    ) -> Result<Tally, Box<Walk>> {
        let Some(channel) = self.channels.find(channel) else { return Ok(Tally::default()) };
        let (end, number) = (self.channels.end(channel), IN_ONE_GO);
        let variants = Variants::of(frame, self.fanout.take_last_frames(channel));
        let mut walk = Walk { channel, number, at: 0, end, variants, tally: Tally::default() };
        match self.walk(turn, connections, &mut walk, SLICE) {
            true => Ok(self.fanout.keep_last_frames(walk)),
            false => Err(Box::new(walk)),
        }
    }

    /// Up to so many members, as the turn's budget allows, or up to one who has to be written to
    /// first; true when the walk is over.
    fn walk(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        walk: &mut Walk,
        most: usize,
    ) -> bool {
        let plain_bytes = walk.variants.plain().bytes().len();
        let most = most.min(self.fanout.budget.may_reach(plain_bytes));
        let mut end = walk.end.min(walk.at + most);
        let (mut slow, mut pushed_bytes) = (Vec::new(), 0);
        let (mut delivered, mut compressed, mut saved_bytes) = (0, 0, 0);
        let is_short = turn.is_short(Shortage::Frames);
        for (at, member) in self.channels.members(walk.channel, walk.number, walk.at, end) {
            let (key, connection) = connections.at(member.connection);
            if connection.phase != Phase::Open {
                // Its client is gone and has not left this channel yet.
                continue;
            }
            let window = connection.compression;
            let variant = walk.variants.get(window, &mut self.deflater, &mut turn.counters);
            let bytes = variant.frame_bytes();
            let is_shed = is_short && connection.outbound.is_in_flight();
            if !connection.takes(bytes) || is_shed {
                if connection.waits_for_us() {
                    // What fills it waits for its turn, not for the peer.
                    connection.queued = WriteQueue::Urgent;
                    connections.urgent.push_back(key);
                    self.fanout.budget.end_gathering();
                    end = at;
                    break;
                }
                walk.tally.failed += 1;
                match is_shed {
                    true => turn.counters.note_shed_frames(1),
                    false => turn.counters.limits.outbound_bytes += 1,
                }
                if connection.is_too_slow_for(bytes) {
                    slow.push(key);
                }
                continue;
            }
            variant.push(&mut connection.outbound, &mut turn.buffer_pool);
            compressed += u64::from(bytes < plain_bytes);
            saved_bytes += plain_bytes - bytes;
            delivered += 1;
            pushed_bytes += bytes;
            if connection.queued == WriteQueue::No && connection.outbound.is_ready() {
                connection.queued = WriteQueue::Bulk;
                connections.bulk.push_back(key);
            }
        }
        walk.tally.delivered += delivered;
        turn.counters.note_compressed(compressed, saved_bytes);
        self.fanout.budget.reach(end - walk.at, pushed_bytes);
        walk.at = end;
        let is_over = end == walk.end;
        if !is_over && walk.number == IN_ONE_GO {
            walk.number = self.channels.begin_walk(walk.channel);
        }
        if turn.settings.limits.close_slow_clients {
            slow.into_iter().for_each(|key| connections.close_slow(turn, key));
        }
        if is_over {
            turn.counters.delivered += walk.tally.delivered;
            turn.counters.failed += walk.tally.failed;
        }
        if is_over && walk.number != IN_ONE_GO {
            self.channels.end_walk(walk.channel, walk.number, |member, subscription| {
                connections.at(member.connection).1.move_subscription(member, subscription);
            });
        }
        is_over
    }

    /// Lets a command wait if a publish of its back end is under way; gives it back if none is.
    ///
    /// # Errors
    /// Too much waits behind that publish.
    pub fn queue_behind_publish(
        &mut self,
        requester: Requester,
        command: Command,
    ) -> Result<Option<Command>, Fault> {
        let Some(publish) = self.fanout.publishes.get_mut(&requester.backend) else {
            return Ok(Some(command));
        };
        match publish.take(requester, command) {
            true => Ok(None),
            false => {
                let why = "too much waits behind a large publish";
                Err(Fault::new(Code::TooManyRequests, why))
            }
        }
    }

    /// Whether a publish of this back end is under way.
    pub fn has_pending_publish(&self, backend: BackendId) -> bool {
        self.fanout.publishes.contains_key(&backend)
    }

    /// How many publishes are under way.
    pub fn pending_publishes(&self) -> usize {
        self.fanout.publishes.len()
    }

    /// A back end that consumed is gone: what waits behind a publish of it makes it no consumer any more.
    pub fn handle_backend_gone(&mut self, turn: &mut Turn, backend: BackendId) {
        let publish = self.fanout.publishes.get_mut(&backend);
        for requester in publish.map(PendingPublish::forget_joins).unwrap_or_default() {
            let fault = Fault::new(Code::ConsumptionFailed, "the connection is gone");
            turn.answer(requester, Answer::Done(Err(fault)));
        }
    }

    /// A turn begins: fan-outs have a new budget.
    pub fn begin_turn(&mut self) {
        let is_walking = self.fanout.is_walking();
        if !is_walking {
            self.fanout.last_frames = None;
        }
        self.fanout.budget.begin_turn(is_walking);
    }

    /// Whether one more of the connections that only a fan-out reached may be written to in this turn.
    pub fn may_send(&self) -> bool {
        self.fanout.budget.may_send(self.fanout.is_walking())
    }

    /// Notes that so many bytes are written to one of them.
    pub fn note_sent(&mut self, bytes: usize) {
        self.fanout.budget.send(bytes);
    }

    /// Goes on with the walks, each in its turn.
    pub fn continue_publishes(&mut self, turn: &mut Turn, connections: &mut Connections) {
        let mut left = SLICE;
        for _ in 0..self.fanout.round_robin.len() {
            if left == 0 || self.fanout.budget.may_reach(1) == 0 {
                return;
            }
            let Some(from) = self.fanout.round_robin.pop_front() else { return };
            let Some(mut publish) = self.fanout.publishes.remove(&from) else { continue };
            let at = publish.walk.at;
            let is_over = self.walk(turn, connections, &mut publish.walk, left);
            left = left.saturating_sub(publish.walk.at - at);
            if !is_over {
                self.fanout.publishes.insert(from, publish);
                self.fanout.round_robin.push_back(from);
                continue;
            }
            let tally = self.fanout.keep_last_frames(*publish.walk);
            turn.answer(publish.requester, Answer::Published(tally));
            // In their order: if one of them walks again, the others wait behind that.
            for (requester, command) in publish.queued.commands {
                turn.push_step(Step::Execute(requester, command));
            }
        }
    }

    /// Lets a walk go on in later turns.
    pub fn defer_publish(&mut self, requester: Requester, walk: Box<Walk>) {
        let publish = PendingPublish { requester, walk, queued: QueuedCommands::default() };
        self.fanout.publishes.insert(requester.backend, publish);
        self.fanout.round_robin.push_back(requester.backend);
    }
}
