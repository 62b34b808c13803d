//! Delivers one frame to all subscribers of a channel, in slices within a work budget.

use std::collections::VecDeque;
use std::rc::Rc;

use super::Shard;
use super::channels::ChannelIndex;
use super::connection::{Phase, Queued};
use super::replies::WAITING_MAX;
use crate::message::{Answer, BackendId, Command, ConnectionKey, Ticket};
use crate::protocol::api::Tally;
use crate::protocol::frame::Frame;

/// Subscribers that one slice of a walk reaches: some 50 µs. A channel with no more is done in one
/// go.
const SLICE: usize = 1024;

/// Slices per turn, over all walks.
const SLICES_PER_TURN: usize = 8;

/// A walk through a channel's members that is under way.
#[derive(Debug)]
pub struct Walk {
    channel: ChannelIndex,
    at: usize,
    end: usize,
    frame: Rc<Frame>,
    tally: Tally,
}

/// What one back end asked for and this shard has not done yet: a walk, and the commands that came
/// behind it. They wait, so that all that a back end asks for takes effect in its order; those of
/// other back ends do not.
#[derive(Debug)]
pub struct Lane {
    ticket: Ticket,
    walk: Walk,
    behind: VecDeque<(Ticket, Command)>,
    behind_bytes: usize,
}

/// Commands of one back end, and bytes of their frames, that wait behind a walk: what is beyond
/// fails with 103. The back end is held back by its unanswered calls before that, unless they have
/// run out of time.
const BEHIND_MAX: usize = WAITING_MAX;
const BEHIND_BYTES: usize = 16 * 1024 * 1024;

impl Lane {
    /// Lets a command wait; false if too much does.
    pub(super) fn take(&mut self, ticket: Ticket, command: &Command) -> bool {
        let bytes = match command {
            Command::Send(_, frame) | Command::Publish(_, frame) => frame.bytes().len(),
            _ => 0,
        };
        if self.behind.len() >= BEHIND_MAX || self.behind_bytes + bytes > BEHIND_BYTES {
            return false;
        }
        self.behind_bytes += bytes;
        self.behind.push_back((ticket, command.clone()));
        true
    }

    /// Its back end is gone: it consumes nothing when its turn comes.
    pub(super) fn forget_joins(&mut self) {
        self.behind.retain(|(_, command)| !matches!(command, Command::Join(..)));
    }
}

impl Shard {
    /// Begins to deliver a frame; gives the tally if that was all, else the rest of the walk.
    pub(super) fn publish(&mut self, channel: &str, frame: Frame) -> Result<Tally, Walk> {
        let Some(channel) = self.channels.find(channel) else { return Ok(Tally::default()) };
        let end = self.channels.begin_walk(channel);
        let frame = Rc::new(frame);
        let mut walk = Walk { channel, at: 0, end, frame, tally: Tally::default() };
        match self.walk(&mut walk) {
            true => Ok(walk.tally),
            false => Err(walk),
        }
    }

    /// One slice; true when the walk is over.
    fn walk(&mut self, walk: &mut Walk) -> bool {
        let end = walk.end.min(walk.at + SLICE);
        let bytes = walk.frame.bytes().len();
        let mut slow = Vec::new();
        for member in self.channels.members(walk.channel, walk.at, end) {
            let (key, connection) = self.connections.at(member);
            if connection.phase != Phase::Open || !connection.takes(bytes) {
                walk.tally.failed += 1;
                self.counters.limits.outbound_bytes += u64::from(connection.phase == Phase::Open);
                if connection.is_too_slow_for(bytes) {
                    slow.push(key);
                }
                continue;
            }
            connection.outbound.prepare(&mut self.batches);
            connection.outbound.push_shared(walk.frame.clone());
            walk.tally.delivered += 1;
            if connection.queued == Queued::No && connection.outbound.is_ready() {
                connection.queued = Queued::Bulk;
                self.bulk.push_back(key);
            }
        }
        walk.at = end;
        self.close_slow_ones(slow);
        let is_over = end == walk.end;
        if is_over {
            self.counters.delivered += walk.tally.delivered;
            self.counters.failed += walk.tally.failed;
            let connections = &mut self.connections;
            self.channels.end_walk(walk.channel, |member, subscription| {
                connections.at(member).1.move_subscription(subscription);
            });
        }
        is_over
    }

    fn close_slow_ones(&mut self, slow: Vec<ConnectionKey>) {
        if self.settings.limits.close_slow_clients {
            for key in slow {
                self.close_slow(key);
            }
        }
    }

    /// Goes on with the walks, each in its turn.
    pub(super) fn walk_lanes(&mut self) {
        for _ in 0..SLICES_PER_TURN.min(self.turns.len()) {
            let Some(from) = self.turns.pop_front() else { return };
            let Some(mut lane) = self.lanes.remove(&from) else { continue };
            if !self.walk(&mut lane.walk) {
                self.lanes.insert(from, lane);
                self.turns.push_back(from);
                continue;
            }
            self.answer(from.shard, lane.ticket, Answer::Published(lane.walk.tally));
            self.catch_up(from, lane.behind);
        }
    }

    /// Carries out what waited behind a walk, up to the next one that takes longer.
    fn catch_up(&mut self, from: BackendId, behind: VecDeque<(Ticket, Command)>) {
        for (ticket, command) in behind {
            self.carry_out(from, ticket, command);
        }
    }

    /// Lets a walk go on in later turns.
    pub(super) fn open_lane(&mut self, from: BackendId, ticket: Ticket, walk: Walk) {
        let lane = Lane { ticket, walk, behind: VecDeque::new(), behind_bytes: 0 };
        self.lanes.insert(from, lane);
        self.turns.push_back(from);
    }
}
