//! Delivers one frame to all subscribers of a channel, in slices within a work budget.

use std::collections::VecDeque;
use std::rc::Rc;

use super::Shard;
use super::channels::ChannelIndex;
use super::commands::Asked;
use super::connection::{Phase, Queued};
use super::replies::WAITING_MAX;
use crate::message::{Answer, Command, ConnectionKey};
use crate::metrics::Counters;
use crate::protocol::api::Tally;
use crate::protocol::deflate::{Deflater, Window};
use crate::protocol::frame::Frame;

/// Subscribers that one slice of a walk reaches: some 50 µs. A channel with no more is done in one
/// go.
const SLICE: usize = 1024;

/// Subscribers that all publishes of a turn reach together, most of all those that are done in one
/// go; the rest wait for later turns.
const REACHED_PER_TURN: usize = 4 * SLICE;

/// Slices per turn, over all walks that are under way.
const SLICES_PER_TURN: usize = 1;

/// Connections of those that are written to in a turn, and bytes: for one that was slow to read as
/// much may have gathered as its bound allows.
const SENDS_PER_TURN: usize = 32;
const BYTES_PER_TURN: usize = 256 * 1024;

/// Subscribers that are reached, while walks are under way, before any of them is written to: so that
/// of a burst of publishes each gets one write.
const GATHERED_MAX: usize = 32 * SLICE;

/// What is left for fan-outs to do in a turn: some 0.3 ms in all, for which others wait.
#[derive(Debug)]
pub struct Budget {
    reachable: usize,
    sends: usize,
    bytes: usize,
    // Reached since there was no walk under way.
    gathered: usize,
}

impl Default for Budget {
    fn default() -> Self {
        let (reachable, sends, bytes) = (REACHED_PER_TURN, SENDS_PER_TURN, BYTES_PER_TURN);
        Self { reachable, sends, bytes, gathered: 0 }
    }
}

impl Budget {
    /// A turn begins, with or without walks under way. After one that had more bytes to write than
    /// it might, nobody is reached: more would gather than is written.
    pub(super) fn begin_turn(&mut self, is_walking: bool) {
        let gathered = if is_walking { self.gathered } else { 0 };
        let is_behind = self.bytes == 0;
        *self = Self { gathered, ..Self::default() };
        if is_behind {
            self.reachable = 0;
        }
    }

    fn reach(&mut self, count: usize) {
        self.reachable = self.reachable.saturating_sub(count);
        self.gathered += count;
    }

    /// Whether one more of those that a fan-out reached may be written to.
    pub(super) fn may_send(&self, is_walking: bool) -> bool {
        self.sends > 0 && self.bytes > 0 && (!is_walking || self.gathered >= GATHERED_MAX)
    }

    /// So many bytes are written to one.
    pub(super) fn send(&mut self, bytes: usize) {
        self.sends -= 1;
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A walk through a channel's members that is under way.
#[derive(Debug)]
pub struct Walk {
    channel: ChannelIndex,
    at: usize,
    end: usize,
    forms: Forms,
    tally: Tally,
}

/// A frame in the forms in which subscribers get it. The compressed ones are made when the first
/// subscriber needs them, once.
#[derive(Debug)]
struct Forms {
    plain: Rc<Frame>,
    compressed: [Option<Rc<Frame>>; Window::COUNT],
}

impl Forms {
    fn of(frame: Frame) -> Self {
        Self { plain: Rc::new(frame), compressed: Default::default() }
    }

    /// The one for a subscriber who agreed on this window, or on none.
    fn get(
        &mut self,
        window: Option<Window>,
        deflater: &mut Deflater,
        counters: &mut Counters,
    ) -> &Rc<Frame> {
        let plain = &self.plain;
        let Some(window) = window else { return plain };
        self.compressed[window as usize].get_or_insert_with(|| {
            let body = deflater.body(Some(window), plain.kind(), plain.payload());
            counters.compressions += u64::from(body.is_deflated);
            match body.is_deflated {
                true => Rc::new(Frame::of(&body)),
                false => plain.clone(),
            }
        })
    }
}

/// What one back end asked for and this shard has not done yet: a walk, and the commands that came
/// behind it. They wait, so that all that a back end asks for takes effect in its order; those of
/// other back ends do not.
#[derive(Debug)]
pub struct Lane {
    asked: Asked,
    walk: Walk,
    behind: VecDeque<(Asked, Command)>,
    behind_bytes: usize,
}

/// Commands of one back end, and bytes of their frames, that wait behind a walk: what is beyond
/// fails with 103. The back end is held back by its unanswered calls before that, unless they have
/// run out of time.
const BEHIND_MAX: usize = WAITING_MAX;
const BEHIND_BYTES: usize = 16 * 1024 * 1024;

impl Lane {
    /// Lets a command wait; false if too much does.
    pub(super) fn take(&mut self, asked: Asked, command: &Command) -> bool {
        let bytes = frame_bytes(command);
        if self.behind.len() >= BEHIND_MAX || self.behind_bytes + bytes > BEHIND_BYTES {
            return false;
        }
        self.behind_bytes += bytes;
        self.behind.push_back((asked, command.clone()));
        true
    }

    fn next(&mut self) -> Option<(Asked, Command)> {
        let next = self.behind.pop_front()?;
        self.behind_bytes -= frame_bytes(&next.1);
        Some(next)
    }

    /// Its back end is gone: it consumes nothing when its turn comes. Gives what is not to be
    /// carried out any more.
    pub(super) fn forget_joins(&mut self) -> Vec<Asked> {
        let is_join = |(_, command): &(Asked, Command)| matches!(command, Command::Join(..));
        let joins = self.behind.iter().filter(|behind| is_join(behind));
        let forgotten = joins.map(|(asked, _)| *asked).collect();
        self.behind.retain(|behind| !is_join(behind));
        forgotten
    }
}

fn frame_bytes(command: &Command) -> usize {
    match command {
        Command::Send(_, frame) | Command::Publish(_, frame) => frame.bytes().len(),
        _ => 0,
    }
}

impl Shard {
    /// Begins to deliver a frame; gives the tally if that was all, else the rest of the walk: all
    /// of it where this turn has reached enough.
    pub(super) fn publish(&mut self, channel: &str, frame: Frame) -> Result<Tally, Walk> {
        let Some(channel) = self.channels.find(channel) else { return Ok(Tally::default()) };
        let end = self.channels.begin_walk(channel);
        let forms = Forms::of(frame);
        let mut walk = Walk { channel, at: 0, end, forms, tally: Tally::default() };
        match self.budget.reachable > 0 && self.walk(&mut walk) {
            true => Ok(walk.tally),
            false => Err(walk),
        }
    }

    /// One slice; true when the walk is over.
    fn walk(&mut self, walk: &mut Walk) -> bool {
        let end = walk.end.min(walk.at + SLICE);
        let plain_bytes = walk.forms.plain.bytes().len();
        let mut slow = Vec::new();
        for member in self.channels.members(walk.channel, walk.at, end) {
            let (key, connection) = self.connections.at(member);
            let window = connection.compression;
            let frame = walk.forms.get(window, &mut self.deflater, &mut self.counters);
            let bytes = frame.bytes().len();
            if connection.phase != Phase::Open || !connection.takes(bytes) {
                walk.tally.failed += 1;
                self.counters.limits.outbound_bytes += u64::from(connection.phase == Phase::Open);
                if connection.is_too_slow_for(bytes) {
                    slow.push(key);
                }
                continue;
            }
            connection.outbound.push_shared(&mut self.spare, frame.clone());
            self.counters.note_compressed(plain_bytes - bytes);
            walk.tally.delivered += 1;
            if connection.queued == Queued::No && connection.outbound.is_ready() {
                connection.queued = Queued::Bulk;
                self.bulk.push_back(key);
            }
        }
        self.budget.reach(end - walk.at);
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
        for _ in 0..SLICES_PER_TURN {
            if self.budget.reachable == 0 {
                return;
            }
            let Some(from) = self.turns.pop_front() else { return };
            let Some(mut lane) = self.lanes.remove(&from) else { continue };
            if !self.walk(&mut lane.walk) {
                self.lanes.insert(from, lane);
                self.turns.push_back(from);
                continue;
            }
            self.answer(lane.asked, Answer::Published(lane.walk.tally));
            self.catch_up(lane);
        }
    }

    /// Carries out what waited behind a walk, up to the next one that takes longer.
    fn catch_up(&mut self, mut lane: Lane) {
        while let Some((asked, command)) = lane.next() {
            self.carry_out(asked, command);
            if let Some(opened) = self.lanes.get_mut(&asked.backend) {
                (opened.behind, opened.behind_bytes) = (lane.behind, lane.behind_bytes);
                return;
            }
        }
    }

    /// Lets a walk go on in later turns.
    pub(super) fn open_lane(&mut self, asked: Asked, walk: Walk) {
        let lane = Lane { asked, walk, behind: VecDeque::new(), behind_bytes: 0 };
        self.lanes.insert(asked.backend, lane);
        self.turns.push_back(asked.backend);
    }
}
