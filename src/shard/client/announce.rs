//! Tells the mesh, and through it every node, about this shard's channels and clients.

use std::collections::VecDeque;

use super::Clients;
use super::channels::ChannelChange;
use crate::message::{ClientReply, ConnectionKey, InterestChange, Requester, ToMesh};
use crate::protocol::api::Tally;
use crate::shard::connection::Connections;
use crate::shard::turn::Turn;

/// Minimum interval between two announcements of the number of clients, in milliseconds.
const CLIENTS_MS: u64 = 500;

/// Changes of interest announced to the mesh, and the answers that wait until all nodes know them.
#[derive(Debug, Default)]
pub(super) struct InterestAnnouncements {
    // The number of the last change of interest known to all nodes.
    known: InterestChange,
    // The number of clients last announced, and when, in milliseconds on the shard's clock.
    clients: u64,
    clients_ms: u64,
    // Answers by the change of interest that they wait for, in order. Each pending question or
    // handshake has at most one entry, and each device up to 128.
    waiting: VecDeque<(InterestChange, WaitingForInterest)>,
}

/// The work that waits until every node knows of a change of interest.
#[derive(Debug)]
enum WaitingForInterest {
    /// Answer the subscribe of a back end.
    Answer(Requester),
    /// Answer the subscribe of a back end for all connections of some users.
    Tally(Requester, Tally),
    /// Release the output of a client: the answer to its handshake, or to a subscribe of its own.
    Output(ConnectionKey),
}

impl Clients {
    /// Tells the mesh which channels gained their first subscriber on this shard or lost their
    /// last. Announces the number of clients from time to time.
    pub(crate) fn announce(&mut self, turn: &mut Turn) {
        while let Some(ChannelChange { number, channel, has_subscribers }) =
            self.channels.poll_change()
        {
            let interest = ToMesh::Interest { change: number, channel, is_on: has_subscribers };
            turn.send_to_mesh(interest);
        }
        if self.next_announcement(turn).is_some_and(|due_ms| due_ms <= turn.now.ms) {
            let clients = self.by_id.len() as u64;
            (self.announcements.clients, self.announcements.clients_ms) = (clients, turn.now.ms);
            turn.send_to_mesh(ToMesh::Clients(clients));
        }
    }

    /// Returns when the number of clients is announced next, in milliseconds on the shard's clock.
    /// `None` if the announced number is up to date.
    #[inline]
    pub(crate) fn next_announcement(&self, turn: &Turn) -> Option<u64> {
        let is_news = self.announcements.clients != self.by_id.len() as u64;
        (turn.settings.has_mesh && is_news).then_some(self.announcements.clients_ms + CLIENTS_MS)
    }

    /// Answers a subscribe once every node knows of these channels, because only then does a
    /// publish through any node reach the client. Returns false if all nodes know already.
    pub(super) fn answer_when_known<T: AsRef<str>>(
        &mut self,
        requester: Requester,
        of: &[T],
    ) -> bool {
        self.wait_for(of, WaitingForInterest::Answer(requester))
    }

    /// Answers a subscribe for users once every node knows of these channels. Returns false if all nodes
    /// know already.
    pub(super) fn tally_when_known<T: AsRef<str>>(
        &mut self,
        requester: Requester,
        tally: Tally,
        of: &[T],
    ) -> bool {
        self.wait_for(of, WaitingForInterest::Tally(requester, tally))
    }

    /// Withholds the output of a client until every node knows of these channels.
    pub(super) fn withhold_until_known<T: AsRef<str>>(
        &mut self,
        connections: &mut Connections,
        key: ConnectionKey,
        of: &[T],
    ) {
        if self.wait_for(of, WaitingForInterest::Output(key)) {
            connections.withhold_output(key);
        }
    }

    /// Queues an answer until the latest change of interest of these channels is known. Queued
    /// answers stay in order. Returns false if the change is known already.
    fn wait_for<T: AsRef<str>>(&mut self, channels: &[T], waiting: WaitingForInterest) -> bool {
        let of = |channel: &T| self.channels.change_of(channel.as_ref());
        let change = channels.iter().filter_map(of).max();
        let Some(change) = change.filter(|change| *change > self.announcements.known) else {
            return false;
        };
        let last = self.announcements.waiting.back().map_or(change, |(last, _)| *last);
        self.announcements.waiting.push_back((change.max(last), waiting));
        true
    }

    /// Handles the news that every node knows all changes of interest up to this one.
    pub(crate) fn handle_interest_known(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        change: InterestChange,
    ) {
        self.announcements.known = change;
        while self.announcements.waiting.front().is_some_and(|(number, _)| *number <= change) {
            let Some((_, waiting)) = self.announcements.waiting.pop_front() else { return };
            match waiting {
                WaitingForInterest::Answer(requester) => {
                    turn.answer(requester, Ok(ClientReply::Done))
                }
                WaitingForInterest::Tally(requester, tally) => {
                    turn.answer_publish(requester, Ok(tally));
                }
                WaitingForInterest::Output(key) => connections.release_output(turn, key),
            }
        }
    }
}
