//! Passes the steps of the parts on.

use super::Shard;
use super::backend::{Answer, Caller};
use super::client::Need;
use super::connection::{Connection, Replies};
use super::turn::Step;
use crate::protocol::api::Reply;

impl Shard {
    /// Passes the steps that the parts have pushed to their receivers, in order, until none is
    /// left. Handling one step pushes a bounded number of further steps.
    #[inline]
    pub(super) fn route(&mut self) {
        // Most input causes no step.
        if self.turn.has_steps() {
            self.pass_on_steps();
        }
    }

    #[inline(never)]
    fn pass_on_steps(&mut self) {
        while let Some(step) = self.turn.poll_step() {
            let (turn, connections) = (&mut self.turn, &mut self.connections);
            match step {
                Step::Message(message) => {
                    let own = turn.address.shard;
                    self.dispatch_local(own, message);
                }
                Step::Event(fed) => self.topics.feed(turn, connections, fed),
                Step::ClientOpened(key) => {
                    self.last_wills.register(turn, connections, key);
                    if turn.taps.is_active() {
                        let is_in = self.clients.membership();
                        self.taps.handle_opened(turn, connections, key, is_in);
                    }
                }
                Step::ClientChanged(key) => {
                    let is_in = self.clients.membership();
                    self.taps.handle_changed(turn, connections, key, is_in);
                }
                Step::SubscribeDue(key) => self.clients.continue_subscribe(turn, connections, key),
                Step::TokenOffered(key, progress) => {
                    let (admissions, now_ms) = (&mut self.admissions, turn.now.ms);
                    let keys = |source: &_| admissions.lookup(now_ms, source);
                    let clients = &mut self.clients;
                    if let Some((Need::Keys(source), bytes)) =
                        clients.check_offered_token(turn, connections, key, keys, progress)
                    {
                        admissions.park_token(turn, key, source, bytes);
                    }
                }
                Step::CallDue(key) => {
                    let replies = connections.get(key).and_then(Connection::replies);
                    if let Some(parked) = replies.and_then(Replies::take_parked) {
                        parked.resume(|shape, call| self.call(Caller { key, shape }, Ok(call)));
                        self.connections.write_replies(&mut self.turn, key);
                    }
                }
                Step::TakeAnswered(key, take) => {
                    self.backends.handle_take_answered(turn, connections, key, take);
                }
                Step::TapAnswered(key) => self.taps.handle_answered(key),
                Step::TapperGone(key) => self.taps.stop(turn, key),
                Step::ClientDisconnected(client) => {
                    self.clients.handle_disconnected(connections, client);
                }
                Step::ClientGone(gone) => {
                    if let Some((topic, ended)) = self.clients.handle_gone(turn, connections, gone)
                    {
                        self.last_wills.keep(turn, &topic, ended.client);
                        self.topics.feed_last(turn, connections, &topic, ended);
                    }
                }
                Step::ConsumerGone(key, topics) => self.backends.handle_gone(turn, key, &topics),
                Step::PopAnswered(key, pop) => {
                    self.backends.start_consuming(turn, connections, key, pop);
                }
                Step::Execute(requester, command) => self.execute_command(requester, command),
                Step::ParkedTimedOut(key) => {
                    if !self.admissions.handle_timeout(turn, key) {
                        self.api_access.handle_verification_timeout(turn, connections, key);
                    }
                }
                Step::HandshakeSettled(key, settled) => self.continue_handshake(key, settled),
                Step::Admitted(key, admitted) => self.answer_parked(key, admitted),
                Step::Listed(ticket, listing) => {
                    let answer = Answer::Done(listing.map(Reply::List));
                    self.backends.handle_answer(turn, connections, ticket, answer);
                }
                Step::Counted(key, is_admitted) => self.answer_counted(key, is_admitted),
            }
        }
    }
}
