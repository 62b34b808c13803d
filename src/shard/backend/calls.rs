//! Calls that other shards, the mesh or this shard itself carry out, and their answers. A call
//! opens a question with a ticket; the answers to it carry the ticket.

use std::sync::Arc;

use super::pending::{Answer, Asker, QuestionKind, SettledQuestion};
use super::{Backends, Unsettled};
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, ShardAddress};
use crate::message::{
    BridgeCallId, ClientCommand, ConnectionKey, GridMessage, LocalCommand, LocalMessage, PopId,
    Publish, Requester, Terms, Ticket, ToMesh,
};
use crate::protocol::api::{Code, Content, Fault, Function, MultiPublish, Reply, Settling, Tally};
use crate::protocol::frame::Frame;
use crate::shard::connection::{Connection, Connections};
use crate::shard::connection::{FollowUp, HttpShape, Shape};
use crate::shard::timers::Timer;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::{Receivers, Turn};

/// Who made a call, and the form of the answer.
#[derive(Debug)]
pub(crate) struct Caller {
    /// The connection, or a key that no connection has: see [`Self::of_bridge`].
    pub key: ConnectionKey,
    /// The form of the answer: a WebSocket message or an HTTP response.
    pub shape: Shape,
}

/// The key in place of a connection's in calls that have none. No connection has this key: a table with so many
/// connections does not fit into memory.
const NO_CONNECTION: ConnectionKey = ConnectionKey { index: u32::MAX, generation: 0 };

impl Caller {
    /// The caller of a call that the bridge makes. All calls of the bridge to one shard are carried out in order,
    /// as are those of one connection.
    pub(crate) fn of_bridge(call: BridgeCallId) -> Self {
        Self { key: NO_CONNECTION, shape: Shape::Bridge(call) }
    }
}

/// Who is asked to carry out a publish that goes through homes of channels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    /// The number of homes.
    pub homes: usize,
    /// The number of others: shards that may have subscribers, and the mesh.
    pub others: usize,
    /// Whether the answer has the position of the message.
    pub answers_position: bool,
}

impl Asked {
    /// One home, whose position is answered.
    pub(crate) fn one_home() -> Self {
        Self { homes: 1, others: 0, answers_position: true }
    }
}

/// A ticket that no question has, for commands whose answers are ignored.
const UNAWAITED: Ticket = Ticket(u64::MAX);

impl Backends {
    /// Whether one more call may wait for an answer.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.has_room()
    }

    /// Carries out `mesh.send` to a client of another shard, or of this one behind a publish in
    /// progress.
    pub(crate) fn call_send(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        to: ShardAddress,
        client: ClientId,
        content: &Content<'_>,
    ) {
        let frame = Frame::message(content.kind, &content.bytes);
        let command = ClientCommand::Send(client, frame);
        self.ask_shard(turn, connections, caller, QuestionKind::Send, to, command);
    }

    /// Returns who must publish to a channel: the mesh, and the shards that may have subscribers.
    /// Returns all shards if a `conn.call` of the same back end is unanswered, since that call may
    /// change the subscribers.
    pub(crate) fn receivers_of_publish(
        &self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channel: &str,
    ) -> Receivers {
        let replies = connections.get(key).and_then(|connection| connection.replies());
        if replies.is_some_and(|replies| replies.has_function()) {
            return turn.all_receivers();
        }
        let shards = turn.state.interest.shards(channel).collect();
        Receivers { shards, has_mesh: turn.settings.has_mesh }
    }

    /// Carries out `mesh.publish` to a channel that may have subscribers on other shards or nodes.
    pub(crate) fn call_publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        receivers: Receivers,
        channel: &str,
        content: &Content<'_>,
    ) {
        let frame = Frame::message(content.kind, &content.bytes);
        let publish = Publish { channel: channel.into(), frame, excluded: None };
        let count = receivers.count();
        let requester = self.open_question(turn, connections, caller, QuestionKind::Publish, count);
        let Some(requester) = requester else { return };
        ask_to_publish(turn, requester, receivers, publish);
    }

    /// Carries out `mesh.publish` to several channels, or with clients that do not get the message.
    pub(crate) fn call_multi_publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        publish: &MultiPublish<'_>,
    ) {
        let MultiPublish { channels, excluded, content, .. } = publish;
        let frame = Frame::message(content.kind, &content.bytes);
        let excluded = (!excluded.is_empty()).then(|| Arc::new(excluded.clone()));
        let receivers: Vec<_> = channels
            .iter()
            .map(|channel| self.receivers_of_publish(turn, connections, caller.key, channel))
            .collect();
        let count = receivers.iter().map(Receivers::count).sum();
        if count == 0 {
            let answer = Ok(Reply::Published(Tally::default()));
            return connections.reply(turn, caller.key, &caller.shape, &answer);
        }
        let requester = self.open_question(turn, connections, caller, QuestionKind::Publish, count);
        let Some(requester) = requester else { return };
        for (&channel, receivers) in channels.iter().zip(receivers) {
            let (channel, frame, excluded) = (channel.into(), frame.clone(), excluded.clone());
            ask_to_publish(turn, requester, receivers, Publish { channel, frame, excluded });
        }
    }

    /// Whether publishes wait that go through homes of channels.
    #[inline]
    pub(crate) fn has_placed_publishes(&self) -> bool {
        self.placed_publishes > 0
    }

    /// Opens the question of a publish that goes through homes of channels. `None`: the connection is gone.
    pub(crate) fn open_placed(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        Asked { homes, others, answers_position }: Asked,
    ) -> Option<Requester> {
        let kind = QuestionKind::PlacedPublish { answers_position };
        let requester = self.open_question(turn, connections, caller, kind, homes + others)?;
        self.pending.await_placements(requester.ticket, homes);
        self.placed_publishes += 1;
        Some(requester)
    }

    /// Opens the question of a publish that only this shard carries out, over several turns. Its
    /// tally is the answer. `None`: the connection is gone.
    pub(crate) fn wait_for_publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
    ) -> Option<Requester> {
        self.open_question(turn, connections, caller, QuestionKind::Publish, 1)
    }

    /// Carries out `conn.call`.
    pub(crate) fn call_function(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        client: ClientId,
        function: Function,
    ) {
        match turn.roster.address_of(client) {
            None => {
                let fault = Fault::new(Code::ExecutionFailed, unreachable_reason(turn, client));
                connections.reply(turn, caller.key, &caller.shape, &Err(fault));
            }
            Some(address) => {
                let command = ClientCommand::Call(client, function);
                self.ask_shard(turn, connections, caller, QuestionKind::Call, address, command);
            }
        }
    }

    /// Carries out `queue.pop`.
    pub(crate) fn call_pop(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        topics: &[&str],
        settling: Settling,
        group: Option<&str>,
    ) {
        let fault = match connections.get(caller.key).and_then(Connection::backend) {
            None => Fault::new(Code::ConsumptionFailed, "only over WebSocket"),
            Some(backend) if !backend.topics.is_empty() => {
                Fault::new(Code::RepeatedConsumption, "this connection consumes already")
            }
            Some(backend) => {
                backend.topics = topics.iter().map(|&topic| Arc::from(topic)).collect();
                backend.has_consumed = true;
                backend.latest_pop.0 += 1;
                backend.unsettled = match settling {
                    Settling::Acknowledged(window) => Some(Unsettled::new(window)),
                    Settling::Written => None,
                };
                let (pop, topics) = (backend.latest_pop, backend.topics.clone());
                backend.group = group.map(Arc::from);
                let group = backend.group.clone();
                let terms = Box::new(terms(turn, pop, topics.len(), settling, group));
                let join = |topic| LocalCommand::Join(topic, terms.clone());
                return self.ask_homes(
                    turn,
                    connections,
                    caller,
                    QuestionKind::Pop(pop),
                    &topics,
                    join,
                );
            }
        };
        connections.reply(turn, caller.key, &caller.shape, &Err(fault));
    }

    /// Carries out `queue.unpop`.
    pub(crate) fn call_unpop(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
    ) {
        let topics = match connections.get(caller.key).and_then(Connection::backend) {
            Some(backend) => {
                // The homes redeliver unacknowledged events to other consumers.
                backend.unsettled = None;
                backend.is_consuming = false;
                std::mem::take(&mut backend.topics)
            }
            None => Vec::new(),
        };
        if topics.is_empty() {
            let fault = Fault::new(Code::CancelFailed, "this connection is not consuming");
            return connections.reply(turn, caller.key, &caller.shape, &Err(fault));
        }
        self.stop_consuming_on_other_nodes(turn, caller.key, &topics);
        self.ask_homes(
            turn,
            connections,
            caller,
            QuestionKind::Unpop,
            &topics,
            LocalCommand::Leave,
        );
    }

    /// Asks all shards and the mesh for their metrics. The answer is the text of `/metrics`.
    pub(crate) fn call_report(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: HttpShape,
    ) {
        let (caller, receivers) =
            (Caller { key, shape: Shape::Response(shape) }, turn.all_receivers());
        let count = receivers.count();
        let requester = self.open_question(turn, connections, caller, QuestionKind::Report, count);
        let Some(requester) = requester else { return };
        for shard in receivers.shards {
            turn.ask_local(shard, requester, LocalCommand::Report);
        }
        if receivers.has_mesh {
            turn.send_to_mesh(ToMesh::Report(requester.ticket));
        }
    }

    /// Asks the mesh for the nodes of the grid. The answer is the text of `/v1/nodes`.
    pub(crate) fn call_nodes(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: HttpShape,
    ) {
        let caller = Caller { key, shape: Shape::Response(shape) };
        if let Some(requester) =
            self.open_question(turn, connections, caller, QuestionKind::Nodes, 1)
        {
            turn.send_to_mesh(ToMesh::Nodes(requester.ticket));
        }
    }

    /// Opens the question of an `admin.reload`, which the node answers. Returns its ticket.
    pub(in crate::shard) fn open_reload(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
    ) -> Option<Ticket> {
        let requester = self.open_question(turn, connections, caller, QuestionKind::Reload, 1);
        requester.map(|requester| requester.ticket)
    }

    /// Opens the question of a list of administration, which the part `lists` answers. Returns its ticket.
    pub(in crate::shard) fn open_list(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
    ) -> Option<Ticket> {
        let requester = self.open_question(turn, connections, caller, QuestionKind::List, 1);
        requester.map(|requester| requester.ticket)
    }

    /// Opens the question of a `tap.start`, which these shards answer.
    pub(in crate::shard) fn open_tap(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        shards: &[ShardAddress],
    ) -> Option<Requester> {
        let kind = QuestionKind::Tap;
        let requester = self.open_question(turn, connections, caller, kind, shards.len())?;
        let nodes = shards.iter().map(|shard| shard.node).collect();
        self.pending.await_tapping(requester.ticket, nodes);
        Some(requester)
    }

    /// Opens a question and asks the home of each topic on this node.
    fn ask_homes(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        kind: QuestionKind,
        topics: &[Arc<str>],
        command: impl Fn(Arc<str>) -> LocalCommand,
    ) {
        let requester = self.open_question(turn, connections, caller, kind, topics.len());
        let Some(requester) = requester else { return };
        for topic in topics {
            ask_home(turn, requester, topic, command(topic.clone()));
        }
    }

    /// Opens a question and asks one shard, perhaps this one, to carry out a command.
    fn ask_shard(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        kind: QuestionKind,
        to: ShardAddress,
        command: ClientCommand,
    ) {
        if let Some(requester) = self.open_question(turn, connections, caller, kind, 1) {
            let Requester { ticket, backend } = requester;
            if turn.taps.is_active() {
                let user = connections.get(backend.connection).and_then(|caller| caller.user());
                turn.tap_caller(to, requester, user);
            }
            turn.send_grid(to, GridMessage::Ask { ticket, backend, command });
        }
    }

    /// Opens a question that `awaited` answers settle. Its reply takes the next place among the
    /// caller's replies.
    pub(super) fn open_question(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        Caller { key, shape }: Caller,
        kind: QuestionKind,
        awaited: usize,
    ) -> Option<Requester> {
        let reply = match (connections.get(key).and_then(Connection::replies), shape) {
            (Some(replies), shape) => {
                let reply = replies.reserve(shape);
                if matches!(kind, QuestionKind::Call | QuestionKind::UserCall) {
                    replies.note_function();
                }
                replies.note_way(matches!(kind, QuestionKind::PlacedPublish { .. }));
                reply
            }
            (None, Shape::Bridge(BridgeCallId(call))) => call,
            (None, _) => return None,
        };
        let ticket = self.pending.open(turn.now.us, Asker { key, reply }, kind, awaited);
        let deadline_ms = turn.now.ms + turn.settings.limits.answer_ms;
        turn.timers.set(deadline_ms, Timer::Ticket(ticket));
        Some(Requester { ticket, backend: turn.backend_id(key) })
    }

    /// Handles one answer to a question. With the last one the caller gets its reply.
    pub(crate) fn handle_answer(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        ticket: Ticket,
        answer: Answer,
    ) {
        if let Some(settled) = self.pending.answer(ticket, answer) {
            self.settle(turn, connections, settled);
        }
    }

    /// Settles a question that has timed out. Returns false if it was settled before.
    pub(crate) fn expire(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        ticket: Ticket,
    ) -> bool {
        let Some(asked_us) = self.pending.asked_us(ticket) else { return false };
        let deadline_ms = asked_us / 1000 + turn.settings.limits.answer_ms;
        if turn.now.ms < deadline_ms {
            // The timer wheel does not reach as far as the deadline.
            turn.timers.set(deadline_ms, Timer::Ticket(ticket));
            return true;
        }
        let Some(settled) = self.pending.expire(ticket) else { return false };
        turn.counters.limits.answer_ms += 1;
        self.settle(turn, connections, settled);
        true
    }

    /// Replies to the caller of a settled question.
    fn settle(&mut self, turn: &mut Turn, connections: &mut Connections, settled: SettledQuestion) {
        let SettledQuestion { asker: Asker { key, reply }, mut answer, kind, asked_us } = settled;
        if let Err(fault) = &answer {
            turn.counters.faults += 1;
            trail::note(turn.trail(key), Entry::Failed(fault));
        }
        self.placed_publishes -= usize::from(matches!(kind, QuestionKind::PlacedPublish { .. }));
        if kind != QuestionKind::Report {
            self.calls_taken.add(turn.now.us.saturating_sub(asked_us));
        }
        if let QuestionKind::Take(take) = kind {
            return self.handle_take_joined(turn, connections, take, Asker { key, reply }, answer);
        }
        let pop = match kind {
            QuestionKind::Pop(number) => Some(number),
            _ => None,
        };
        if let Some(pop) = pop.filter(|_| answer.is_ok()) {
            answer = Ok(self.answer_to_pop(turn, connections, key, pop));
        }
        connections.record_backend_output(key);
        let Some(replies) = connections.get(key).and_then(Connection::replies) else {
            if key == NO_CONNECTION {
                turn.answer_bridge(BridgeCallId(reply), &answer);
            }
            return;
        };
        let date = turn.date();
        let follow_up = match kind {
            QuestionKind::Pop(pop) => Some(FollowUp::Pop(pop)),
            QuestionKind::Tap => Some(FollowUp::Tap),
            _ => None,
        };
        let follow_up = follow_up.filter(|_| answer.is_ok());
        replies.fill(reply, &answer, follow_up, date, &mut turn.scratch);
        connections.write_replies(turn, key);
        if let Some(pop) = pop.filter(|_| answer.is_err()) {
            self.give_up_consuming(turn, connections, key, pop);
        }
    }

    /// Makes the topics of a `queue.pop` deliver, once its answer is queued. Does nothing if the
    /// back end has stopped consuming in the meantime.
    pub(crate) fn start_consuming(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: PopId,
    ) {
        let backend_id = turn.backend_id(key);
        let topics = topics_of(connections, key, pop);
        if topics.is_empty() {
            return;
        }
        if let Some(backend) = connections.get(key).and_then(Connection::backend) {
            backend.is_consuming = true;
        }
        for topic in topics {
            let home = home_of_topic(&topic, turn.settings.shards);
            turn.send_local(home, LocalMessage::StartDelivery(topic, backend_id));
        }
        self.consume_on_other_nodes(turn, connections, key);
    }

    /// Leaves all topics of a `queue.pop` that has failed for at least one of them.
    fn give_up_consuming(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: PopId,
    ) {
        let topics = topics_of(connections, key, pop);
        let requester = Requester { ticket: UNAWAITED, backend: turn.backend_id(key) };
        for topic in &topics {
            ask_home(turn, requester, topic, LocalCommand::Leave(topic.clone()));
        }
        if !topics.is_empty()
            && let Some(backend) = connections.get(key).and_then(Connection::backend)
        {
            backend.topics.clear();
        }
    }
}

/// Asks shards and the mesh to carry out a publish.
pub(crate) fn ask_to_publish(
    turn: &mut Turn,
    requester: Requester,
    receivers: Receivers,
    publish: Publish,
) {
    for shard in receivers.shards {
        turn.ask_local(shard, requester, LocalCommand::Publish(publish.clone()));
    }
    if receivers.has_mesh {
        turn.send_to_mesh(ToMesh::Publish(requester, publish));
    }
}

/// Asks the home of a topic on this node to carry out a command.
pub(super) fn ask_home(turn: &mut Turn, requester: Requester, topic: &str, command: LocalCommand) {
    let home = home_of_topic(topic, turn.settings.shards);
    turn.ask_local(home, requester, command);
}

/// Returns the terms on which a back end consumes this number of topics. The bytes in flight to the
/// back end are divided among them.
fn terms(
    turn: &Turn,
    pop: PopId,
    topics: usize,
    settling: Settling,
    group: Option<Arc<str>>,
) -> Terms {
    let window_bytes = (turn.settings.limits.outbound_bytes / 2 / topics).max(1);
    let unsettled_max = match settling {
        Settling::Acknowledged(window) => Some(window),
        Settling::Written => None,
    };
    Terms { pop, group, window_bytes, unsettled_max }
}

/// Returns the topics that a back end consumes, if this `queue.pop` is its latest one.
pub(super) fn topics_of(
    connections: &mut Connections,
    key: ConnectionKey,
    pop: PopId,
) -> Vec<Arc<str>> {
    let backend = connections.get(key).and_then(Connection::backend);
    let backend = backend.filter(|backend| backend.latest_pop == pop);
    backend.map(|backend| backend.topics.clone()).unwrap_or_default()
}

/// Returns why a client cannot be reached, for an error message.
pub(crate) fn unreachable_reason(turn: &Turn, client: ClientId) -> &'static str {
    match turn.roster.is_reachable(client.node()) {
        true => "no such client",
        false => "no such client: its node does not exist, or is unreachable",
    }
}
