//! Lists of administration: gathers the parts of a list from shards of all nodes, and finds the shard's own.
//!
//! - `mod.rs`: the lists in progress. `nodes.rs`, `clients.rs`, `names.rs`: `node.list`, `client.list` and `channel.members`, and
//!   `channel.list`, `topic.list` and `backend.list`. `info.rs`: `user.info` and `channel.info`.
//! - `walks.rs`: walks through the shard's own clients, channels and back ends. `throughput.rs`: messages per second.

mod clients;
mod info;
mod names;
mod nodes;
mod throughput;
mod walks;

use crate::address::{NodeId, ShardAddress, ShardId};
use crate::message::{
    BackendsQuestion, ClientsQuestion, GridMessage, KnownNodes, ListAnswer, ListMessage,
    ListQuestion, NamesPart, NamesQuestion, Ticket, ToMesh, UsersQuestion,
};
use crate::metrics::Counters;
use crate::protocol::api::{
    BackendRow, BackendsCall, ChannelRow, Code, Fault, LinkState, ListCall, Listing, MeshRow,
    NamesCall, TopicRow, USER_CONNECTIONS_MAX, UserRow,
};
use crate::shard::turn::{Step, Turn};
use clients::ClientsInProgress;
use info::InfoInProgress;
use names::NamesInProgress;
use nodes::NodesInProgress;
use throughput::Throughput;
use walks::Walks;

pub(super) use throughput::Rates;
pub(super) use walks::{
    BackendWalk, Budget, ChannelWalk, ClientWalk, Reached, SLOTS_CHOSEN_MAX, Slots, UserInfoWalk,
    Walk, answer,
};

/// The number of lists that one shard gathers at a time. Beyond it a call fails with 103.
const LISTS_MAX: usize = 16;

/// The lists that back ends of this shard have asked for, and what the shard tells of itself.
#[derive(Debug)]
pub(super) struct Lists {
    // At most `LISTS_MAX`.
    gathered: Vec<Gathered>,
    walks: Walks,
    throughput: Throughput,
    // When the shard was created, on its clock.
    started_ms: u64,
}

/// A list in progress.
#[derive(Debug)]
struct Gathered {
    ticket: Ticket,
    // When the list is answered with what has come, on the shard's clock.
    deadline_ms: u64,
    // Whether the mesh has not told the nodes yet.
    awaits_mesh: bool,
    // The time that shards have for their parts, in milliseconds.
    within_ms: u32,
    list: ListInProgress,
}

/// The parts of a list that have arrived.
#[derive(Debug)]
enum ListInProgress {
    Node(NodesInProgress),
    Client(ClientsInProgress),
    Members(ClientsInProgress),
    Channel(NamesCall, NamesInProgress<ChannelRow>),
    Topic(NamesCall, NamesInProgress<TopicRow>),
    Backend(Box<BackendsCall>, NamesInProgress<BackendRow>),
    UserInfo(InfoInProgress<UserRow>),
    ChannelInfo(InfoInProgress<ChannelRow>),
}

impl Lists {
    /// Creates the part of a shard that is created now.
    pub(super) fn new(now_ms: u64) -> Self {
        let (gathered, walks) = (Vec::new(), Walks::default());
        Self { gathered, walks, throughput: Throughput::new(now_ms), started_ms: now_ms }
    }

    /// Returns how long the shard has been running, in milliseconds.
    pub(super) fn uptime_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.started_ms)
    }

    /// Returns how many messages the shard receives and delivers per second.
    pub(super) fn rates(&self, now_ms: u64, counters: &Counters) -> Rates {
        self.throughput.rates(now_ms, counters)
    }

    /// Whether one more list may be gathered.
    pub(super) fn has_room(&self) -> bool {
        self.gathered.len() < LISTS_MAX
    }

    /// Begins to gather a list. A [`Step::Listed`] with the ticket follows. In a grid the mesh is asked for the
    /// nodes first.
    pub(super) fn begin(&mut self, turn: &mut Turn, ticket: Ticket, call: ListCall) {
        // The question that the list answers times out after `answer_ms`. Shards have half of it, so that a node
        // that does not answer is told from one that has much to look through.
        let (now_ms, answer_ms) = (turn.now.ms, turn.settings.limits.answer_ms);
        let walk_ms = answer_ms / 2;
        let list = match call {
            ListCall::Node => ListInProgress::Node(NodesInProgress::default()),
            ListCall::Client(call) => {
                ListInProgress::Client(ClientsInProgress::new(call, now_ms + walk_ms))
            }
            ListCall::Members(call) => {
                ListInProgress::Members(ClientsInProgress::new(call, now_ms + walk_ms))
            }
            ListCall::Channel(call) => {
                let names = NamesInProgress::new(call.max);
                ListInProgress::Channel(call, names)
            }
            ListCall::Topic(call) => {
                let names = NamesInProgress::new(call.max);
                ListInProgress::Topic(call, names)
            }
            ListCall::Backend(call) => {
                let names = NamesInProgress::new(call.page.max);
                ListInProgress::Backend(call, names)
            }
            ListCall::UserInfo(users) => ListInProgress::UserInfo(InfoInProgress::new(users)),
            ListCall::ChannelInfo(channels) => {
                ListInProgress::ChannelInfo(InfoInProgress::new(channels))
            }
        };
        self.gathered.push(Gathered {
            ticket,
            deadline_ms: now_ms + answer_ms - answer_ms / 8,
            awaits_mesh: turn.settings.has_mesh,
            within_ms: walk_ms as u32,
            list,
        });
        match turn.settings.has_mesh {
            true => turn.send_to_mesh(ToMesh::Nodes(ticket)),
            false => self.ask_own_node(turn),
        }
    }

    /// Asks this node for its part of the list that has begun last.
    fn ask_own_node(&mut self, turn: &mut Turn) {
        let at = self.gathered.len() - 1;
        let Gathered { ticket, within_ms, list, .. } = &mut self.gathered[at];
        if let ListInProgress::Node(nodes) = list {
            nodes.ask_own(turn, *ticket);
        } else {
            list.ask(turn, *ticket, &[(turn.settings.node, true)], *within_ms);
        }
        self.settle(turn, at);
    }

    /// Handles the nodes that the mesh knows of. Returns them if no list has asked for them.
    pub(super) fn handle_nodes(
        &mut self,
        turn: &mut Turn,
        ticket: Ticket,
        nodes: Box<KnownNodes>,
    ) -> Option<Box<KnownNodes>> {
        let Some(at) = self.find(ticket) else { return Some(nodes) };
        let Gathered { awaits_mesh, within_ms, list, .. } = &mut self.gathered[at];
        *awaits_mesh = false;
        match list {
            ListInProgress::Node(list) => list.ask(turn, ticket, *nodes),
            list => list.ask(turn, ticket, &reachability(&nodes), *within_ms),
        }
        self.settle(turn, at);
        None
    }

    /// Begins to look for clients of this shard. The answer follows in a later turn.
    pub(super) fn walk_clients(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<ClientsQuestion>,
    ) {
        self.walks.begin_clients(turn, asker, ticket, question);
    }

    /// Begins to look through the channels of this shard. The answer follows in a later turn.
    pub(super) fn walk_channels(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<NamesQuestion>,
    ) {
        self.walks.begin_channels(turn, asker, ticket, question);
    }

    /// Begins to look for the connections of users on this shard. The answer follows in a later turn.
    pub(super) fn walk_users(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<UsersQuestion>,
    ) {
        self.walks.begin_users(turn, asker, ticket, question);
    }

    /// Begins to look for back ends of this shard. The answer follows in a later turn.
    pub(super) fn walk_backends(
        &mut self,
        turn: &mut Turn,
        asker: ShardAddress,
        ticket: Ticket,
        question: Box<BackendsQuestion>,
    ) {
        self.walks.begin_backends(turn, asker, ticket, question);
    }

    /// Handles the answer of a shard. One to a list that is settled is ignored.
    pub(super) fn handle_answer(
        &mut self,
        turn: &mut Turn,
        from: ShardAddress,
        ticket: Ticket,
        answer: ListAnswer,
    ) {
        let Some(at) = self.find(ticket) else { return };
        match (answer, &mut self.gathered[at].list) {
            (ListAnswer::Busy, _) => {
                let why =
                    format!("node {} looks through too much for lists at once", from.node.number());
                return self.fail(turn, at, Fault::new(Code::TooManyRequests, why));
            }
            (ListAnswer::Unfinished, list) => list.give_up(turn, ticket, from.node),
            (ListAnswer::Figures(figures), ListInProgress::Node(list)) => {
                list.handle_figures(from, *figures)
            }
            (
                ListAnswer::Client(part),
                ListInProgress::Client(list) | ListInProgress::Members(list),
            ) => {
                list.handle_part(turn, ticket, from, *part);
            }
            (ListAnswer::Channel(part), ListInProgress::Channel(_, list)) => {
                list.handle_part(from, *part)
            }
            (ListAnswer::Channel(part), ListInProgress::ChannelInfo(list)) => {
                list.handle_part(from, *part)
            }
            (ListAnswer::User(part), ListInProgress::UserInfo(list)) => {
                if let Err(why) = take_users(list, from, *part) {
                    return self.fail(turn, at, why);
                }
            }
            (ListAnswer::Topic(part), ListInProgress::Topic(_, list)) => {
                list.handle_part(from, *part)
            }
            (ListAnswer::Backend(part), ListInProgress::Backend(_, list)) => {
                list.handle_part(from, *part)
            }
            // A shard answers what it is asked.
            _ => {}
        }
        self.settle(turn, at);
    }

    /// Notes that a shard could not be asked.
    pub(super) fn handle_not_asked(&mut self, turn: &mut Turn, ticket: Ticket, to: ShardAddress) {
        if let Some(at) = self.find(ticket) {
            self.gathered[at].list.give_up(turn, ticket, to.node);
            self.settle(turn, at);
        }
    }

    /// Stops waiting for a node that has become unreachable.
    pub(super) fn handle_node_down(&mut self, turn: &mut Turn, node: NodeId) {
        for at in (0..self.gathered.len()).rev() {
            let Gathered { ticket, list, .. } = &mut self.gathered[at];
            list.give_up(turn, *ticket, node);
            self.settle(turn, at);
        }
    }

    /// Continues the walks, and settles the lists whose time is over with what has come. To be called once per
    /// turn. `step` continues a walk within a budget.
    pub(super) fn handle_turn(
        &mut self,
        turn: &mut Turn,
        step: impl FnMut(&Turn, &mut Walk, &mut Budget) -> Reached,
    ) {
        self.throughput.handle_turn(turn.now.ms, &turn.counters);
        self.walks.handle_turn(turn, step);
        for at in (0..self.gathered.len()).rev() {
            let list = &mut self.gathered[at];
            if list.deadline_ms <= turn.now.ms {
                if list.awaits_mesh {
                    // Without the nodes an empty list would look complete.
                    let why = "the mesh did not answer in time";
                    self.fail(turn, at, Fault::new(Code::ExecutionFailed, why));
                    continue;
                }
                list.list.give_up_all();
                self.settle(turn, at);
            }
        }
    }

    /// Returns when the next turn has something to do, on the shard's clock.
    pub(super) fn next_turn(&self) -> Option<u64> {
        let deadlines = self.gathered.iter().map(|list| list.deadline_ms);
        deadlines.chain(self.walks.next_turn()).min()
    }

    /// Whether a list is gathered or a walk is in progress.
    #[inline]
    pub(super) fn has_work(&self) -> bool {
        !self.gathered.is_empty() || self.walks.next_turn().is_some()
    }

    fn find(&self, ticket: Ticket) -> Option<usize> {
        self.gathered.iter().position(|list| list.ticket == ticket)
    }

    /// Answers the list at this index if all its parts have come.
    fn settle(&mut self, turn: &mut Turn, at: usize) {
        let list = &self.gathered[at];
        if !list.awaits_mesh && list.list.is_complete() {
            let Gathered { ticket, list, .. } = self.gathered.swap_remove(at);
            turn.push_step(Step::Listed(ticket, Ok(Box::new(list.finish()))));
        }
    }

    /// Fails the list at this index.
    fn fail(&mut self, turn: &mut Turn, at: usize, why: Fault) {
        let Gathered { ticket, .. } = self.gathered.swap_remove(at);
        turn.push_step(Step::Listed(ticket, Err(why)));
    }
}

impl ListInProgress {
    /// Asks the nodes for a list of other things than nodes. Each node comes with whether it can be reached.
    fn ask(&mut self, turn: &mut Turn, ticket: Ticket, nodes: &[(NodeId, bool)], within_ms: u32) {
        let question = |call: &NamesCall| {
            let NamesCall { prefix, after, max } = call.clone();
            Box::new(NamesQuestion { prefix, after, max: max as u32, within_ms })
        };
        match self {
            Self::Node(_) => {}
            Self::Client(list) | Self::Members(list) => list.ask(turn, ticket, nodes),
            Self::Channel(call, list) => {
                list.ask(turn, ticket, nodes, &ListQuestion::Channel(question(call)));
            }
            Self::Backend(call, list) => {
                let page = *question(&call.page);
                let question = BackendsQuestion { topic: call.topic.clone(), page };
                list.ask(turn, ticket, nodes, &ListQuestion::Backend(Box::new(question)));
            }
            Self::Topic(call, list) => {
                list.ask(turn, ticket, nodes, &ListQuestion::Topic(question(call)));
            }
            Self::UserInfo(list) => list.ask(turn, ticket, nodes, |users| {
                ListQuestion::UserInfo(Box::new(UsersQuestion { users, within_ms }))
            }),
            Self::ChannelInfo(list) => list.ask(turn, ticket, nodes, ListQuestion::ChannelInfo),
        }
    }

    fn give_up(&mut self, turn: &mut Turn, ticket: Ticket, node: NodeId) {
        match self {
            Self::Node(list) => list.give_up(node),
            Self::Client(list) | Self::Members(list) => list.give_up(turn, ticket, node),
            Self::Channel(_, list) => list.give_up(node),
            Self::Topic(_, list) => list.give_up(node),
            Self::Backend(_, list) => list.give_up(node),
            Self::UserInfo(list) => list.parts.give_up(node),
            Self::ChannelInfo(list) => list.parts.give_up(node),
        }
    }

    fn give_up_all(&mut self) {
        match self {
            Self::Node(list) => list.give_up_all(),
            Self::Client(list) | Self::Members(list) => list.give_up_all(),
            Self::Channel(_, list) => list.give_up_all(),
            Self::Topic(_, list) => list.give_up_all(),
            Self::Backend(_, list) => list.give_up_all(),
            Self::UserInfo(list) => list.parts.give_up_all(),
            Self::ChannelInfo(list) => list.parts.give_up_all(),
        }
    }

    fn is_complete(&self) -> bool {
        match self {
            Self::Node(list) => list.is_complete(),
            Self::Client(list) | Self::Members(list) => list.is_complete(),
            Self::Channel(_, list) => list.is_complete(),
            Self::Topic(_, list) => list.is_complete(),
            Self::Backend(_, list) => list.is_complete(),
            Self::UserInfo(list) => list.parts.is_complete(),
            Self::ChannelInfo(list) => list.parts.is_complete(),
        }
    }

    fn finish(self) -> Listing {
        match self {
            Self::Node(list) => Listing::Node(list.finish()),
            Self::Client(list) => Listing::Client(list.finish()),
            Self::Members(list) => Listing::Members(list.finish()),
            Self::Channel(_, list) => Listing::Channel(list.finish()),
            Self::Topic(_, list) => Listing::Topic(list.finish()),
            Self::Backend(_, list) => Listing::Backend(list.finish()),
            Self::UserInfo(list) => {
                let mut users = list.finish(UserRow::offline);
                for user in &mut users.rows {
                    user.connections.sort_unstable_by_key(|connection| connection.client);
                }
                Listing::UserInfo(users)
            }
            Self::ChannelInfo(list) => Listing::ChannelInfo(list.finish(ChannelRow::empty)),
        }
    }
}

/// Adds the part of a shard to a `user.info`.
///
/// # Errors
/// The users have more connections than an answer may have.
fn take_users(
    list: &mut InfoInProgress<UserRow>,
    from: ShardAddress,
    part: NamesPart<UserRow>,
) -> Result<(), Fault> {
    let is_cut = part.is_cut;
    list.handle_part(from, part);
    let connections: usize = list.parts.rows().map(|row| row.connections.len()).sum();
    match is_cut || connections > USER_CONNECTIONS_MAX {
        true => Err(Fault::new(
            Code::TooLarge,
            format!(
                "u: the users have more than {USER_CONNECTIONS_MAX} connections; name fewer users"
            ),
        )),
        false => Ok(()),
    }
}

/// Returns the nodes in the order of their ids, each with whether it can be reached.
fn reachability(nodes: &KnownNodes) -> Vec<(NodeId, bool)> {
    let is_lost = |mesh: &MeshRow| mesh.state == LinkState::Lost;
    let rows = nodes.rows.iter().map(|row| (row.node, !row.mesh.as_ref().is_some_and(is_lost)));
    let unreachable = nodes.unreachable.iter().map(|&node| (node, false));
    let mut nodes: Vec<_> = rows.chain(unreachable).collect();
    nodes.sort_unstable();
    nodes
}

/// Asks a shard of a node for its part of a list.
fn ask(turn: &mut Turn, ticket: Ticket, node: NodeId, shard: usize, question: ListQuestion) {
    let to = ShardAddress { node, shard: ShardId(shard as u8) };
    turn.send_grid(to, GridMessage::List(ticket, ListMessage::Ask(question)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ClientId;
    use crate::protocol::api::UserConnection;

    #[test]
    fn users_with_too_many_connections_on_all_shards_together_are_refused() {
        let node = NodeId::new(1).expect("a small number");
        let part = |connections: usize, is_cut| {
            let connection = |number: usize| UserConnection {
                client: ClientId::from_value(number as u64),
                since_ms: 1,
                remote: ([127, 0, 0, 1], 1).into(),
            };
            let connections = (0..connections).map(connection).collect();
            NamesPart { rows: vec![UserRow { user: "ada".into(), connections }], is_cut }
        };
        let list = || {
            let mut list = InfoInProgress::new(vec!["ada".into()]);
            list.parts.await_node(node, 2);
            list
        };
        let from = ShardAddress { node, shard: ShardId(0) };
        let mut whole = list();
        assert_eq!(take_users(&mut whole, from, part(USER_CONNECTIONS_MAX - 1, false)), Ok(()));
        assert_eq!(take_users(&mut whole, from, part(1, false)), Ok(()));
        let mut large = list();
        assert_eq!(take_users(&mut large, from, part(USER_CONNECTIONS_MAX, false)), Ok(()));
        for refused in [
            take_users(&mut large, from, part(1, false)),
            take_users(&mut list(), from, part(1, true)),
        ] {
            assert_eq!(refused.map_err(|fault| fault.code), Err(Code::TooLarge));
        }
    }
}
