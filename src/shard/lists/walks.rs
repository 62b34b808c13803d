//! Walks through a shard's clients, channels and back ends, for lists of back ends of any node.
//!
//! A walk goes on in slices, which have a budget and a pace: however many lists are walked, they take about a
//! twentieth of the shard's time. A walk keeps no more than the rows of one page.

use std::collections::{BTreeMap, VecDeque};

use crate::address::ShardAddress;
use crate::message::{
    BackendsQuestion, ClientsPart, ClientsQuestion, ConnectionKey, GridMessage, ListAnswer,
    ListMessage, NamesPart, NamesQuestion, SlottedClient, Ticket, UsersQuestion,
};
use crate::protocol::api::{BackendRow, ChannelRow, USER_CONNECTIONS_MAX, UserConnection, UserRow};
use crate::shard::turn::Turn;

/// The number of walks in progress on one shard. A further question is answered with [`ListAnswer::Busy`].
const WALKS_MAX: usize = 64;

/// The least time between two slices, in milliseconds.
const PACE_MS: u64 = 4;

/// The work of one slice, in units of about 50 ns: see [`Budget`].
const UNITS_PER_SLICE: usize = 4096;

/// The work that is left in a slice.
#[derive(Clone, Copy, Debug)]
pub(in crate::shard) struct Budget(usize);

impl Budget {
    /// The units of an empty slot, or of a channel.
    pub(crate) const SLOT: usize = 1;
    /// The units of a client or a back end.
    pub(crate) const CLIENT: usize = 4;
    /// The units of a row that is found: to make it, to gather it, and to write and send it as JSON.
    pub(crate) const ROW: usize = 40;

    /// Whether nothing is left.
    pub(crate) fn is_spent(self) -> bool {
        self.0 == 0
    }

    /// Takes units out. The last work of a slice may exceed the budget.
    pub(crate) fn spend(&mut self, units: usize) {
        self.0 = self.0.saturating_sub(units);
    }
}

/// The state of a walk, for the part that owns what is walked through.
#[derive(Debug)]
pub(in crate::shard) enum Walk {
    /// A walk through clients.
    Client(ClientWalk),
    /// A walk through channels.
    Channel(ChannelWalk),
    /// A walk through back ends.
    Backend(BackendWalk),
    /// A walk through the connections of users.
    UserInfo(UserInfoWalk),
}

/// Whether a walk has reached its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::shard) enum Reached {
    /// The walk goes on in another slice.
    Pause,
    /// The walk is complete.
    End,
}

/// A walk through the clients of a shard, in the order of their slots.
#[derive(Debug)]
pub(in crate::shard) struct ClientWalk {
    /// The question that the walk answers.
    pub question: Box<ClientsQuestion>,
    /// The clients found: at most as many as are asked for.
    pub rows: Vec<SlottedClient>,
    /// The next slot to look at. `None`: there is none.
    pub next: Option<u32>,
    /// The slots to look at from `next` on, in ascending order. `None`: they are not chosen yet.
    pub slots: Option<Slots>,
}

/// The slots that a walk looks at.
#[derive(Debug)]
pub(in crate::shard) enum Slots {
    /// All slots of the table.
    All,
    /// Chosen slots, at most [`SLOTS_CHOSEN_MAX`].
    Chosen {
        /// The slots.
        slots: VecDeque<u32>,
        /// Whether more are to be chosen after these.
        is_cut: bool,
    },
}

/// The number of slots that a walk chooses at a time.
pub(in crate::shard) const SLOTS_CHOSEN_MAX: usize = 1024;

impl ClientWalk {
    /// Whether as many clients are found as are asked for.
    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= self.question.max as usize
    }
}

/// A walk through the channels of a shard, in no order. Keeps the first names.
#[derive(Debug)]
pub(in crate::shard) struct ChannelWalk {
    question: Box<NamesQuestion>,
    /// The index of the next channel.
    pub next: u32,
    // The numbers of subscribers by name: at most as many as are asked for. A channel that is met twice,
    // because it was closed and opened again meanwhile, counts once.
    first: BTreeMap<Box<str>, u64>,
    is_cut: bool,
}

impl ChannelWalk {
    fn new(question: Box<NamesQuestion>) -> Self {
        Self { question, next: 0, first: BTreeMap::new(), is_cut: false }
    }

    /// Takes a channel in if it is one of the first. `clients` counts its subscribers.
    pub(crate) fn offer(&mut self, name: &str, clients: impl FnOnce() -> u64) {
        if !self.question.matches(name) {
            return;
        }
        let max = self.question.max as usize;
        let last = self.first.last_key_value().filter(|_| self.first.len() >= max);
        if last.is_some_and(|(last, _)| name > &**last) {
            self.is_cut = true;
            return;
        }
        self.first.insert(name.into(), clients());
        if self.first.len() > max {
            self.first.pop_last();
            self.is_cut = true;
        }
    }

    fn finish(self) -> NamesPart<ChannelRow> {
        let rows = self.first.into_iter().map(|(name, clients)| ChannelRow { name, clients });
        NamesPart { rows: rows.collect(), is_cut: self.is_cut }
    }
}

/// A walk through the back ends of a shard, in the order of their ids.
#[derive(Debug)]
pub(in crate::shard) struct BackendWalk {
    /// The question that the walk answers.
    pub question: Box<BackendsQuestion>,
    /// The back end that was looked at last.
    pub last: Option<ConnectionKey>,
    // The back ends found: at most as many as are asked for.
    rows: Vec<BackendRow>,
    is_cut: bool,
}

impl BackendWalk {
    fn new(question: Box<BackendsQuestion>) -> Self {
        Self { question, last: None, rows: Vec::new(), is_cut: false }
    }

    /// Adds a back end that is asked for. Returns false if the walk has as many as are asked for.
    pub(crate) fn add(&mut self, row: BackendRow) -> bool {
        self.is_cut = self.rows.len() >= self.question.page.max as usize;
        if !self.is_cut {
            self.rows.push(row);
        }
        !self.is_cut
    }

    /// Returns what was found. A walk that has found something by its deadline ends the page there.
    fn finish(self, reached: Reached) -> ListAnswer {
        let Self { rows, is_cut, .. } = self;
        match reached {
            Reached::Pause if rows.is_empty() => ListAnswer::Unfinished,
            Reached::Pause => ListAnswer::Backend(Box::new(NamesPart { rows, is_cut: true })),
            Reached::End => ListAnswer::Backend(Box::new(NamesPart { rows, is_cut })),
        }
    }
}

/// A walk through the connections of users on a shard, in the order of the users and of their slots.
#[derive(Debug)]
pub(in crate::shard) struct UserInfoWalk {
    question: Box<UsersQuestion>,
    // The index of the current user.
    at: usize,
    /// The first slot of the current user's connections that was not looked at.
    pub from: u32,
    // The users found, with at most `USER_CONNECTIONS_MAX` connections.
    rows: Vec<UserRow>,
    connections: usize,
    is_cut: bool,
}

impl UserInfoWalk {
    fn new(question: Box<UsersQuestion>) -> Self {
        Self { question, at: 0, from: 0, rows: Vec::new(), connections: 0, is_cut: false }
    }

    /// Returns the current user. `None`: all were looked up.
    pub(crate) fn user(&self) -> Option<&str> {
        self.question.users.get(self.at).map(|user| &**user)
    }

    /// Goes on to the next user.
    pub(crate) fn pass_user(&mut self) {
        (self.at, self.from) = (self.at + 1, 0);
    }

    /// Adds a connection of the current user. Returns false if there are more than an answer may have.
    pub(crate) fn add(&mut self, connection: UserConnection) -> bool {
        let Some(user) = self.question.users.get(self.at) else { return true };
        self.is_cut = self.connections >= USER_CONNECTIONS_MAX;
        if self.is_cut {
            return false;
        }
        self.connections += 1;
        match self.rows.last_mut().filter(|row| row.user == *user) {
            Some(row) => row.connections.push(connection),
            None => {
                let (user, connections) = (user.clone(), vec![connection]);
                self.rows.push(UserRow { user, connections });
            }
        }
        true
    }

    fn finish(self, reached: Reached) -> ListAnswer {
        let Self { rows, is_cut, .. } = self;
        match reached {
            Reached::Pause => ListAnswer::Unfinished,
            Reached::End => ListAnswer::User(Box::new(NamesPart { rows, is_cut })),
        }
    }
}

impl NamesQuestion {
    /// Whether a name is asked for.
    pub(in crate::shard) fn matches(&self, name: &str) -> bool {
        name.starts_with(&*self.prefix) && self.after.as_deref().is_none_or(|after| after < name)
    }
}

/// The walks of one shard.
#[derive(Debug, Default)]
pub(super) struct Walks {
    // At most `WALKS_MAX`. They take turns.
    walks: VecDeque<AskedWalk>,
    // When the next slice may begin, on the shard's clock.
    next_slice_ms: u64,
}

/// A walk, and who has asked for it.
#[derive(Debug)]
struct AskedWalk {
    asker: ShardAddress,
    ticket: Ticket,
    // When the walk is answered with what it has found.
    deadline_ms: u64,
    walk: Walk,
}

impl Walks {
    /// Begins a walk through clients.
    pub(super) fn begin_clients(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<ClientsQuestion>,
    ) {
        let (within_ms, next) = (question.within_ms, Some(question.from));
        let walk = ClientWalk { question, rows: Vec::new(), next, slots: None };
        self.begin(turn, asker, ticket, within_ms, Walk::Client(walk));
    }

    /// Begins a walk through channels.
    pub(super) fn begin_channels(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<NamesQuestion>,
    ) {
        let within_ms = question.within_ms;
        self.begin(turn, asker, ticket, within_ms, Walk::Channel(ChannelWalk::new(question)));
    }

    /// Begins a walk through the connections of users.
    pub(super) fn begin_users(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<UsersQuestion>,
    ) {
        let within_ms = question.within_ms;
        self.begin(turn, asker, ticket, within_ms, Walk::UserInfo(UserInfoWalk::new(question)));
    }

    /// Begins a walk through back ends.
    pub(super) fn begin_backends(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<BackendsQuestion>,
    ) {
        let within_ms = question.page.within_ms;
        self.begin(turn, asker, ticket, within_ms, Walk::Backend(BackendWalk::new(question)));
    }

    fn begin(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        within_ms: u32,
        walk: Walk,
    ) {
        if self.walks.len() >= WALKS_MAX {
            turn.counters.limits.lists += 1;
            return answer(turn, asker, ticket, ListAnswer::Busy);
        }
        let deadline_ms = turn.now.ms + u64::from(within_ms);
        self.walks.push_back(AskedWalk { asker, ticket, deadline_ms, walk });
    }

    /// Continues the walks by one slice, if one is due. `step` continues a walk within a budget.
    #[inline]
    pub(super) fn handle_turn(
        &mut self,
        turn: &mut Turn,
        step: impl FnMut(&Turn, &mut Walk, &mut Budget) -> Reached,
    ) {
        if !self.walks.is_empty() && turn.now.ms >= self.next_slice_ms {
            self.continue_walks(turn, step);
        }
    }

    #[inline(never)]
    fn continue_walks(
        &mut self,
        turn: &mut Turn,
        mut step: impl FnMut(&Turn, &mut Walk, &mut Budget) -> Reached,
    ) {
        self.next_slice_ms = turn.now.ms + PACE_MS;
        let mut budget = Budget(UNITS_PER_SLICE);
        while !budget.is_spent()
            && let Some(mut asked) = self.walks.pop_front()
        {
            let reached = step(turn, &mut asked.walk, &mut budget);
            if reached == Reached::Pause && turn.now.ms < asked.deadline_ms {
                self.walks.push_back(asked);
            } else {
                answer(turn, asked.asker, asked.ticket, asked.walk.finish(reached));
            }
        }
    }

    /// Returns when the next slice may begin, on the shard's clock. `None`: no walk is in progress.
    pub(super) fn next_turn(&self) -> Option<u64> {
        (!self.walks.is_empty()).then_some(self.next_slice_ms)
    }
}

impl Walk {
    fn finish(self, reached: Reached) -> ListAnswer {
        match self {
            Self::Client(ClientWalk { rows, next, .. }) => {
                ListAnswer::Client(Box::new(ClientsPart { rows, next }))
            }
            Self::Channel(walk) if reached == Reached::End => {
                ListAnswer::Channel(Box::new(walk.finish()))
            }
            Self::Backend(walk) => walk.finish(reached),
            Self::UserInfo(walk) => walk.finish(reached),
            // A name that was not looked at may come before all that were.
            Self::Channel(_) => ListAnswer::Unfinished,
        }
    }
}

/// Answers a question of a list.
pub(in crate::shard) fn answer(
    turn: &mut Turn,
    asker: ShardAddress,
    ticket: Ticket,
    answer: ListAnswer,
) {
    turn.send_grid(asker, GridMessage::List(ticket, ListMessage::Answer(answer)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientId;

    #[test]
    fn a_walk_keeps_no_more_connections_than_an_answer_may_have() {
        let users = ["ada", "bob"].map(Box::from).into();
        let mut walk = UserInfoWalk::new(Box::new(UsersQuestion { users, within_ms: 100 }));
        let connection = |number: usize| UserConnection {
            client: ClientId::from_value(number as u64),
            since_ms: 1,
            remote: ([127, 0, 0, 1], 1).into(),
        };
        assert!(walk.add(connection(0)));
        walk.pass_user();
        assert!((1..USER_CONNECTIONS_MAX).all(|number| walk.add(connection(number))));
        assert!(!walk.add(connection(USER_CONNECTIONS_MAX)));
        let ListAnswer::User(part) = walk.finish(Reached::End) else { panic!("not of users") };
        let lengths: Vec<_> = part.rows.iter().map(|row| row.connections.len()).collect();
        assert_eq!((lengths, part.is_cut), (vec![1, USER_CONNECTIONS_MAX - 1], true));
    }

    #[test]
    fn the_first_names_are_kept_once_in_whatever_order_they_are_met() {
        let question = NamesQuestion { prefix: "".into(), after: None, max: 2, within_ms: 100 };
        let mut walk = ChannelWalk::new(Box::new(question));
        for (name, clients) in [("d", 1), ("b", 2), ("c", 3), ("a", 4), ("b", 5)] {
            walk.offer(name, || clients);
        }
        let part = walk.finish();
        let rows: Vec<_> = part.rows.iter().map(|row| (&*row.name, row.clients)).collect();
        assert_eq!((rows, part.is_cut), (vec![("a", 4), ("b", 5)], true));
    }
}
