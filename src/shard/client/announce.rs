//! What the mesh, and through it every node, is told of this shard's channels and clients.

use std::collections::VecDeque;

use super::Clients;
use crate::message::{Answer, ConnectionKey, Message, Party};
use crate::protocol::api::Reply;
use crate::shard::connection::Connections;
use crate::shard::turn::{Requester, Turn};

/// Between two times that the mesh is told how many clients there are, in milliseconds.
const CLIENTS_MS: u64 = 500;

/// What the mesh was told, and what waits until all nodes know it.
#[derive(Debug, Default)]
pub struct Announcements {
    // The last change of interest that all nodes know of.
    known: u64,
    // How many clients there were when the mesh was last told, and when that was.
    clients: u64,
    clients_ms: u64,
    // By the change of interest that each waits for, in order. One entry per question or handshake at
    // most, which have bounds of their own.
    waiting: VecDeque<(u64, Waiting)>,
}

/// What is done once a change of interest is known everywhere.
#[derive(Debug)]
enum Waiting {
    /// A subscribe is answered.
    Answer(Requester),
    /// A client's handshake is answered.
    Handshake(ConnectionKey),
}

impl Clients {
    /// Tells the mesh which channels have got their first subscriber here, or lost their last, and, now
    /// and then, how many clients there are.
    pub fn announce(&mut self, turn: &mut Turn) {
        while let Some((number, channel, is_on)) = self.channels.poll_change() {
            turn.send(Party::Mesh, Message::Interest(number, channel, is_on));
        }
        if self.next_announcement(turn).is_some_and(|due_ms| due_ms <= turn.now.ms) {
            let clients = self.by_id.len() as u64;
            (self.announcements.clients, self.announcements.clients_ms) = (clients, turn.now.ms);
            turn.send(Party::Mesh, Message::Clients(clients));
        }
    }

    /// When the mesh is to be told how many clients there are, in milliseconds of the shard's clock.
    #[inline]
    pub fn next_announcement(&self, turn: &Turn) -> Option<u64> {
        let is_news = self.announcements.clients != self.by_id.len() as u64;
        (turn.settings.has_mesh && is_news).then_some(self.announcements.clients_ms + CLIENTS_MS)
    }

    /// Answers a subscribe when every node knows of these channels: only then does a publish through
    /// any of them reach the client. False if all know already.
    pub(super) fn answer_when_known<T: AsRef<str>>(
        &mut self,
        requester: Requester,
        of: &[T],
    ) -> bool {
        self.wait_for(of, Waiting::Answer(requester))
    }

    /// Withholds the answer to a handshake until every node knows of these channels.
    pub(super) fn withhold_until_known<T: AsRef<str>>(
        &mut self,
        connections: &mut Connections,
        key: ConnectionKey,
        of: &[T],
    ) {
        if self.wait_for(of, Waiting::Handshake(key))
            && let Some(connection) = connections.get(key)
        {
            connection.outbound.withhold(true);
        }
    }

    /// Waits for the last change of interest that one of these channels came with, or one after it, so
    /// that what waits is in order. False if it is known already.
    fn wait_for<T: AsRef<str>>(&mut self, channels: &[T], waiting: Waiting) -> bool {
        let of = |channel: &T| self.channels.change_of(channel.as_ref());
        let change = channels.iter().map(of).max().unwrap_or(0);
        if change <= self.announcements.known {
            return false;
        }
        let last = self.announcements.waiting.back().map_or(0, |(last, _)| *last);
        self.announcements.waiting.push_back((change.max(last), waiting));
        true
    }

    /// All changes of interest up to this one are known to every node.
    pub fn handle_interest_known(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        change: u64,
    ) {
        self.announcements.known = change;
        while self.announcements.waiting.front().is_some_and(|(number, _)| *number <= change) {
            let Some((_, waiting)) = self.announcements.waiting.pop_front() else { return };
            match waiting {
                Waiting::Answer(requester) => turn.answer(requester, Answer::Done(Ok(Reply::Done))),
                Waiting::Handshake(key) => {
                    if let Some(connection) = connections.get(key) {
                        connection.outbound.withhold(false);
                    }
                    connections.queue_write(key);
                }
            }
        }
    }
}
