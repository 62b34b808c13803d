//! How a shard goes down: clients first and at a pace, then, when its topics are given out, back
//! ends.

use super::connection::{Connection, Connections, Listener};
use super::turn::{Action, Turn};

/// Connections told per turn.
const SLICE: usize = 256;

/// How far a shard is.
#[derive(Clone, Copy, Debug)]
enum Drain {
    /// Clients are told, each in its time: from this place on.
    TellClients(Walk),
    /// Back ends still get what is in the topics.
    AwaitTopics,
    /// Back ends are told: from this place on.
    TellBackends(u32),
    /// All were told.
    Ended,
}

/// A walk through the connections that takes its time.
#[derive(Clone, Copy, Debug)]
struct Walk {
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

/// The end of a shard, while its node goes down.
#[derive(Debug, Default)]
pub struct Draining {
    // None: the node does not go down.
    stage: Option<Drain>,
}

impl Draining {
    /// The node goes down: clients are told within `over_ms`, beginning with the next turn.
    pub fn begin(&mut self, turn: &mut Turn, connections: &Connections, over_ms: u64) {
        if self.stage.is_none() {
            let (since_ms, total) = (turn.now.ms, connections.len());
            let walk = Walk { next: 0, told: 0, total, since_ms, over_ms };
            self.stage = Some(Drain::TellClients(walk));
            turn.is_draining = true;
            turn.actions.push_back(Action::StopAccepting);
        }
    }

    /// The topics are given out, or their time is up: back ends are told too.
    pub fn begin_with_backends(&mut self) {
        if matches!(self.stage, Some(Drain::TellClients(_) | Drain::AwaitTopics)) {
            self.stage = Some(Drain::TellBackends(0));
        }
    }

    /// Whether all clients were told to end.
    pub fn has_told_clients(&self) -> bool {
        matches!(self.stage, Some(Drain::AwaitTopics | Drain::Ended))
    }

    /// Whether all connections were told to end.
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Some(Drain::Ended))
    }

    /// When the next connections are to be told, in milliseconds of the shard's clock.
    pub fn next_turn(&self, now_ms: u64) -> Option<u64> {
        match self.stage? {
            Drain::TellClients(_) => Some(now_ms + PACE_MS),
            Drain::TellBackends(_) => Some(0),
            Drain::AwaitTopics | Drain::Ended => None,
        }
    }

    /// Tells some more connections.
    pub fn handle_turn(&mut self, turn: &mut Turn, connections: &mut Connections) {
        match self.stage {
            Some(Drain::TellClients(walk)) => self.tell_clients(turn, connections, walk),
            Some(Drain::TellBackends(from)) => {
                let (keys, next) = connections.keys(from, SLICE);
                self.stage = Some(next.map_or(Drain::Ended, Drain::TellBackends));
                keys.into_iter().for_each(|key| connections.drain_connection(turn, key));
            }
            Some(Drain::AwaitTopics | Drain::Ended) | None => {}
        }
    }

    fn tell_clients(&mut self, turn: &mut Turn, connections: &mut Connections, walk: Walk) {
        let (keys, next) = connections.keys(walk.next, walk.due(turn.now.ms));
        let told = walk.told + keys.len();
        self.stage = Some(match next {
            Some(next) => Drain::TellClients(Walk { next, told, ..walk }),
            None => Drain::AwaitTopics,
        });
        for key in keys {
            // One that parts has ended: what it sent before still gets its time.
            let is_told = |connection: &mut Connection| {
                connection.listener != Listener::Api && !connection.has_pending_close
            };
            if connections.get(key).is_some_and(is_told) {
                connections.drain_connection(turn, key);
            }
        }
    }
}
