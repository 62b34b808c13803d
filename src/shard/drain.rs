//! Shuts a shard down gracefully: closes its clients at a limited rate, then, when its topics are
//! empty, its back ends.

use super::connection::{Connection, Connections, Listener};
use super::turn::{Action, Turn};

/// The number of connections closed per turn.
const SLICE: usize = 256;

/// The stages of a graceful shutdown.
#[derive(Clone, Copy, Debug)]
enum DrainStage {
    /// Clients are being closed, spread over the drain time.
    CloseClients(PacedWalk),
    /// Back ends still receive what is in the topics.
    AwaitTopics,
    /// Back ends are being closed, from this place in the table of connections on.
    CloseBackends(u32),
    /// All connections were told to close.
    Ended,
}

/// A walk through the table of connections that is spread over a time.
#[derive(Clone, Copy, Debug)]
struct PacedWalk {
    // The place in the table to go on from.
    next: u32,
    // Connections visited so far.
    visited: usize,
    // Connections at the start of the walk.
    total: usize,
    since_ms: u64,
    over_ms: u64,
}

impl PacedWalk {
    /// Returns how many connections may be visited now, at most [`SLICE`]. The first slice is due
    /// at once, so few clients are not spread.
    fn due(&self, now_ms: u64) -> usize {
        let passed = now_ms.saturating_sub(self.since_ms).min(self.over_ms);
        let by_now = self.total as u64 * passed / self.over_ms.max(1);
        (SLICE + by_now as usize).saturating_sub(self.visited).min(SLICE)
    }
}

/// The time between two slices of clients, in milliseconds.
const PACE_MS: u64 = 20;

/// The graceful shutdown of a shard.
#[derive(Debug, Default)]
pub(super) struct Draining {
    // None: the node is not shutting down.
    stage: Option<DrainStage>,
}

impl Draining {
    /// Begins to shut down: stops accepting, and closes the clients within `over_ms`, beginning
    /// with the next turn. Ignored if the shutdown has begun already.
    pub(super) fn begin(&mut self, turn: &mut Turn, connections: &mut Connections, over_ms: u64) {
        if self.stage.is_none() {
            connections.note_drain();
            let (since_ms, total) = (turn.now.ms, connections.len());
            let walk = PacedWalk { next: 0, visited: 0, total, since_ms, over_ms };
            self.stage = Some(DrainStage::CloseClients(walk));
            turn.is_draining = true;
            turn.actions.push_back(Action::StopAccepting);
        }
    }

    /// Closes the back ends too, beginning with the next turn: the topics of the node are empty, or
    /// the time for that is up. Ignored unless a shutdown has begun.
    pub(super) fn begin_with_backends(&mut self) {
        if matches!(self.stage, Some(DrainStage::CloseClients(_) | DrainStage::AwaitTopics)) {
            self.stage = Some(DrainStage::CloseBackends(0));
        }
    }

    /// Whether all clients were told to close.
    pub(super) fn has_closed_clients(&self) -> bool {
        matches!(self.stage, Some(DrainStage::AwaitTopics | DrainStage::Ended))
    }

    /// Whether all connections were told to close.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.stage, Some(DrainStage::Ended))
    }

    /// Returns when the next connections are to be closed, in milliseconds of the shard's clock.
    /// `None`: only a message goes on.
    pub(super) fn next_turn(&self, now_ms: u64) -> Option<u64> {
        match self.stage? {
            DrainStage::CloseClients(_) => Some(now_ms + PACE_MS),
            DrainStage::CloseBackends(_) => Some(0),
            DrainStage::AwaitTopics | DrainStage::Ended => None,
        }
    }

    /// Closes the connections that are due, at most [`SLICE`].
    pub(super) fn handle_turn(&mut self, turn: &mut Turn, connections: &mut Connections) {
        match self.stage {
            Some(DrainStage::CloseClients(walk)) => self.close_clients(turn, connections, walk),
            Some(DrainStage::CloseBackends(from)) => {
                let (keys, next) = connections.keys(from, SLICE);
                self.stage = Some(next.map_or(DrainStage::Ended, DrainStage::CloseBackends));
                keys.into_iter().for_each(|key| connections.drain_connection(turn, key));
            }
            Some(DrainStage::AwaitTopics | DrainStage::Ended) | None => {}
        }
    }

    fn close_clients(&mut self, turn: &mut Turn, connections: &mut Connections, walk: PacedWalk) {
        let (keys, next) = connections.keys(walk.next, walk.due(turn.now.ms));
        let visited = walk.visited + keys.len();
        self.stage = Some(match next {
            Some(next) => DrainStage::CloseClients(PacedWalk { next, visited, ..walk }),
            None => DrainStage::AwaitTopics,
        });
        for key in keys {
            // A parting client is closed once its remaining messages are read.
            let is_closed_now = |connection: &mut Connection| {
                connection.listener != Listener::Api && !connection.has_pending_close
            };
            if connections.get(key).is_some_and(is_closed_now) {
                connections.drain_connection(turn, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::ConnectionKey;
    use crate::shard::fixture;

    fn closed(turn: &mut Turn) -> Vec<ConnectionKey> {
        let closed = turn.actions.drain(..).filter_map(|action| match action {
            Action::Shutdown(key) | Action::Close(key) => Some(key),
            _ => None,
        });
        closed.collect()
    }

    #[test]
    fn clients_are_closed_at_a_limited_rate_and_back_ends_after_the_topics() {
        let (mut turn, mut connections) =
            (fixture::turn(fixture::settings()), Connections::default());
        let mut accept = |listener| fixture::accepted(&mut turn, &mut connections, listener);
        let backend = accept(Listener::Api);
        let clients: Vec<_> = (0..3 * SLICE - 1).map(|_| accept(Listener::Edge(0))).collect();
        let mut draining = Draining::default();
        draining.begin_with_backends();
        assert_eq!(draining.next_turn(turn.now.ms), None, "nothing is closed before the shutdown");
        draining.begin(&mut turn, &mut connections, 2000);
        assert!(turn.is_draining && turn.actions.contains(&Action::StopAccepting));
        let mut told = Vec::new();
        for passed_ms in [0, 1000, 2000, 2000] {
            turn.now.ms = 1000 + passed_ms;
            draining.handle_turn(&mut turn, &mut connections);
            let now_closed = closed(&mut turn);
            assert!(now_closed.len() <= SLICE, "{passed_ms}: {}", now_closed.len());
            told.extend(now_closed);
        }
        told.sort_unstable_by_key(|key| key.index);
        assert_eq!(told, clients);
        assert!(draining.has_closed_clients() && !draining.has_ended());
        draining.begin_with_backends();
        for _ in 0..4 {
            draining.handle_turn(&mut turn, &mut connections);
        }
        assert_eq!(closed(&mut turn), [backend]);
        assert!(draining.has_ended());
    }
}
