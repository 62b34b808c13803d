//! How a shard goes down: clients first and at a pace, then, when its topics are given out, back
//! ends.

use super::connection::{Connection, Connections, Listener, Pause, Stage};
use super::turn::Turn;
use super::{Action, Shard};
use crate::message::ConnectionKey;
use crate::protocol::close;

/// Connections told per turn.
const SLICE: usize = 256;

/// How far a shard is.
#[derive(Clone, Copy, Debug)]
pub enum Drain {
    /// Clients are told, each in its time: from this place on.
    Clients(Walk),
    /// Back ends still get what is in the topics.
    Topics,
    /// Back ends are told: from this place on.
    Backends(u32),
    /// All were told.
    Ended,
}

/// A walk through the connections that takes its time.
#[derive(Clone, Copy, Debug)]
pub struct Walk {
    next: u32,
    told: usize,
    // Connections there were at the start.
    total: usize,
    since_ms: u64,
    over_ms: u64,
}

impl Walk {
    /// How many may be told now. A first slice goes at once: few clients need no pace.
    fn due(&self, now_ms: u64) -> usize {
        let passed = now_ms.saturating_sub(self.since_ms).min(self.over_ms);
        let by_now = self.total as u64 * passed / self.over_ms.max(1);
        (SLICE + by_now as usize).saturating_sub(self.told).min(SLICE)
    }
}

/// How often clients are told while a shard keeps the pace, in milliseconds.
const PACE_MS: u64 = 20;

impl Shard {
    /// The node goes down: clients are told within `over_ms`.
    pub(super) fn begin_drain(&mut self, over_ms: u64) {
        if self.draining.is_none() {
            let (since_ms, total) = (self.turn.now.ms, self.connections.len());
            let walk = Walk { next: 0, told: 0, total, since_ms, over_ms };
            self.draining = Some(Drain::Clients(walk));
            self.turn.is_draining = true;
            self.turn.actions.push_back(Action::StopAccepting);
        }
    }

    /// The topics are given out, or their time is up: back ends are told too.
    pub(super) fn begin_drain_of_backends(&mut self) {
        if matches!(self.draining, Some(Drain::Clients(_) | Drain::Topics)) {
            self.draining = Some(Drain::Backends(0));
        }
    }

    /// Whether the node goes down, no client is left here, and nothing that a consumer could take.
    pub fn is_quiet(&self) -> bool {
        matches!(self.draining, Some(Drain::Topics | Drain::Ended))
            && self.clients.is_empty()
            && !self.connections.has_parting()
            && !self.topics.has_work()
    }

    /// When the next connections are to be told.
    pub(super) fn next_drain(&self) -> Option<u64> {
        match self.draining? {
            Drain::Clients(_) => Some(self.turn.now.ms + PACE_MS),
            Drain::Backends(_) => Some(0),
            Drain::Topics | Drain::Ended => None,
        }
    }

    /// Tells some more connections.
    pub(super) fn drain_slice(&mut self) {
        match self.draining {
            Some(Drain::Clients(walk)) => self.drain_clients(walk),
            Some(Drain::Backends(from)) => {
                let (keys, next) = self.connections.keys(from, SLICE);
                self.draining = Some(next.map_or(Drain::Ended, Drain::Backends));
                keys.into_iter()
                    .for_each(|key| self.connections.drain_connection(&mut self.turn, key));
            }
            Some(Drain::Topics | Drain::Ended) | None => {}
        }
    }

    fn drain_clients(&mut self, walk: Walk) {
        let (keys, next) = self.connections.keys(walk.next, walk.due(self.turn.now.ms));
        let told = walk.told + keys.len();
        self.draining = Some(match next {
            Some(next) => Drain::Clients(Walk { next, told, ..walk }),
            None => Drain::Topics,
        });
        for key in keys {
            // One that parts has ended: what it sent before still gets its time.
            let is_told = |connection: &mut Connection| {
                connection.listener != Listener::Api && !connection.is_parting
            };
            if self.connections.get(key).is_some_and(is_told) {
                self.connections.drain_connection(&mut self.turn, key);
            }
        }
    }
}

impl Connections {
    /// Tells one connection to end. A half-read API request is read to its end and answered, as long as
    /// `limits.handshake_ms` and the drain allow. A connection that waits for answers asks nothing more,
    /// and ends with the last one.
    fn drain_connection(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        if let Stage::Http(http) = &mut connection.stage
            && http.is_mid_request
            && connection.listener == Listener::Api
        {
            http.is_draining = true;
            return;
        }
        match connection.replies().is_none_or(|replies| replies.is_empty()) {
            true => self.close_for_drain(turn, key),
            false => self.pause(key, Pause::Ending),
        }
    }

    /// Ends one connection because the node goes down.
    pub fn close_for_drain(&mut self, turn: &mut Turn, key: ConnectionKey) {
        let Some(connection) = self.get(key) else { return };
        match connection.stage {
            Stage::Http(_) => self.finish(turn, key),
            Stage::Client(_) | Stage::Backend(_) => self.close_with(turn, key, close::GOING_AWAY),
            Stage::Leaving(_) | Stage::Ending => {}
        }
    }
}
