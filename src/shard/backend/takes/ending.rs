//! The end of a take: its answer is written, or its connection is gone.

use std::collections::BTreeMap;

use super::table::{TakeKey, TakeStage, taker};
use crate::message::{ConnectionKey, FromConsumer};
use crate::shard::backend::Backends;
use crate::shard::backend::consumers::TopicHome;
use crate::shard::connection::{Connection, Connections, Stage, UnwrittenTake};
use crate::shard::turn::Turn;

impl Backends {
    /// Answers the waiting takes of a connection without events: its peer will not send any more, so it may be
    /// gone.
    pub(in crate::shard) fn handle_take_end(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        connection: ConnectionKey,
    ) {
        if self.takes.is_empty() {
            return;
        }
        for key in self.takes.of_connection(connection) {
            match self.takes.takes.get_mut(key).map(|take| &mut take.stage) {
                Some(TakeStage::Joining { is_ended }) => *is_ended = true,
                Some(TakeStage::Waiting(_)) => self.answer_empty(turn, connections, key),
                Some(TakeStage::Answered(_)) | None => {}
            }
        }
    }

    /// Ends the takes of a connection that has become a WebSocket behind them. Nobody follows their answers any
    /// more: the leases bring back what is lost.
    pub(in crate::shard) fn handle_take_upgrade(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        connection: ConnectionKey,
    ) {
        if connections.get(connection).is_none_or(|c| matches!(c.stage, Stage::Http(_))) {
            return;
        }
        self.handle_take_end(turn, connections, connection);
        for key in self.takes.of_connection(connection) {
            self.takes.remove_answered(key);
        }
    }

    /// Removes the takes of a connection whose socket is closed. Their events wait again.
    pub(in crate::shard) fn handle_take_closed(
        &mut self,
        turn: &mut Turn,
        connection: ConnectionKey,
    ) {
        if self.takes.is_empty() {
            return;
        }
        for key in self.takes.of_connection(connection) {
            self.abandon_take(turn, key);
        }
    }

    /// Follows the answer to a take, which is queued, until it is written.
    pub(in crate::shard) fn handle_take_answered(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        connection: ConnectionKey,
        key: TakeKey,
    ) {
        match connections.get(connection) {
            Some(Connection { stage: Stage::Http(http), outbound, .. }) => {
                let left = outbound.buffered();
                http.unwritten_takes.push_back(UnwrittenTake { left, take: key });
            }
            _ => self.abandon_take(turn, key),
        }
    }

    /// Forgets the takes of a connection whose answers were written.
    pub(in crate::shard::backend) fn handle_takes_written(
        &mut self,
        connections: &mut Connections,
        connection: ConnectionKey,
    ) {
        let Some(Stage::Http(http)) = connections.get(connection).map(|c| &mut c.stage) else {
            return;
        };
        while let Some(&UnwrittenTake { left: 0, take }) = http.unwritten_takes.front() {
            http.unwritten_takes.pop_front();
            self.takes.remove(take);
        }
    }

    /// Removes a take whose answer does not reach its back end. Its events wait again.
    fn abandon_take(&mut self, turn: &mut Turn, key: TakeKey) {
        match self.takes.takes.get(key).map(|take| &take.stage) {
            None => return,
            Some(TakeStage::Answered(_)) => self.give_back(turn, key),
            Some(TakeStage::Joining { .. } | TakeStage::Waiting(_)) => {
                self.leave(turn, key, &BTreeMap::new());
            }
        }
        self.takes.remove(key);
    }

    fn give_back(&self, turn: &mut Turn, key: TakeKey) {
        let Some(take) = self.takes.takes.get(key) else { return };
        let TakeStage::Answered(kept) = &take.stage else { return };
        for (TopicHome { node, topic }, numbers) in kept {
            let message = FromConsumer::GiveBack { pop: take.pop, numbers: numbers.clone() };
            turn.send_to_home(*node, topic, taker(turn, key), message);
        }
    }
}
