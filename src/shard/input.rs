//! Reads the input of connections: at once, in a later turn, or after a pause.

use super::backend::Caller;
use super::connection::{Phase, Shape, Stage};
use super::{Shard, work};
use crate::message::ConnectionKey;
use crate::protocol::api;

impl Shard {
    /// Reads from connections that were paused or used up their slice, and from clients whose topic
    /// has room again, within the budgets of a turn.
    pub(super) fn read_waiting(&mut self) {
        self.turn.work.begin_round();
        while let Some(key) = self.turn.work.poll_waiting() {
            if self.connections.is_to_resume(key) {
                self.resume(key);
            }
        }
        if self.topics.begin_round() {
            while let Some(key) = self.topics.poll_admitted(&mut self.turn, &mut self.connections) {
                self.resume(key);
            }
        }
        self.route();
    }

    /// Continues a partly inflated message, then the read-ahead of a connection.
    fn resume(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connections.get(key) else { return };
        self.turn.work.begin_slice(connection.is_heavy);
        if connection.is_inflating {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            self.clients.read(turn, connections, key, &mut Default::default());
            self.route();
        }
        if let Some(mut held) = self.connections.take_read_ahead(key) {
            let left = self.read(key, held.unread());
            self.connections.put_back_read_ahead(key, held.keep_last(left));
        }
        self.connections.after_reading(&mut self.turn, key);
        self.route();
    }

    /// Reads input until all is processed, the connection's slice of the turn is spent, or the
    /// connection is paused. Returns the number of unprocessed bytes.
    pub(super) fn read(&mut self, key: ConnectionKey, mut input: &mut [u8]) -> usize {
        while !input.is_empty() {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            let Some(connection) = connections.get(key) else { return 0 };
            if connection.phase != Phase::Open && !connection.has_pending_close {
                return 0;
            }
            if connection.is_paused() || turn.work.is_slice_spent() {
                return input.len();
            }
            let before = input.len();
            let makes_requests = !matches!(connection.stage, Stage::Client(_));
            match &connection.stage {
                Stage::Http(_) => self.read_http(key, &mut input),
                Stage::Client(_) => {
                    match self.topics.feeders.defers(turn, connection, key, input) {
                        Some(topic) => self.topics.feeders.defer(turn, connections, key, &topic),
                        None => self.clients.read(turn, connections, key, &mut input),
                    }
                }
                Stage::Backend(_) => {
                    if let Some(mut request) =
                        self.backends.read(turn, connections, key, &mut input)
                    {
                        // The parser stays borrowed during the call, because the call refers to its
                        // buffers.
                        let mut parser = self.backends.lend_parser();
                        match request.parse(turn, &mut parser) {
                            Ok(api::ApiRequest { id, call }) => {
                                self.call(Caller { key, shape: Shape::Message(id.into()) }, call);
                            }
                            Err(violation) => connections.close_for_violation(turn, key, violation),
                        }
                        self.backends.return_parser(parser);
                    }
                }
                Stage::Unsubscribing(_) | Stage::Ending => return 0,
            }
            self.turn.work.spend(1 + work::of_bytes(before - input.len()));
            self.route();
            if makes_requests {
                // After the steps, because their answers count.
                self.connections.pause_requests_if_congested(&mut self.turn, key);
            }
        }
        0
    }
}
