//! Calls that other shards, the mesh or this shard itself carry out, and their answers.

use std::sync::Arc;

use super::pending::{Kind, Settled};
use super::{Backends, Unsettled};
use crate::address::ClientId;
use crate::address::placement::home_of_topic;
use crate::message::{Answer, Command, ConnectionKey, Message, Party, Terms, Ticket, TopicMessage};
use crate::protocol::api::{Code, Content, Fault, Function, Settling};
use crate::protocol::frame::Frame;
use crate::shard::connection::{Connection, Connections};
use crate::shard::connection::{HttpShape, Shape};
use crate::shard::timers::Timer;
use crate::shard::trail::{self, Entry};
use crate::shard::turn::Turn;

/// A connection that called, and how the answer is to be written.
#[derive(Debug)]
pub struct Caller {
    /// The connection.
    pub key: ConnectionKey,
    /// The form of the answer.
    pub shape: Shape,
}

/// A ticket that names no question: nobody waits for the answer.
const NOBODY: Ticket = Ticket(u64::MAX);

impl Backends {
    /// Whether one more call may wait for an answer.
    pub fn has_room(&self) -> bool {
        self.pending.has_room()
    }

    /// `mesh.send` to a client of another shard, or behind a publish that is under way.
    pub fn call_send(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        to: Party,
        (client, content): (ClientId, &Content<'_>),
    ) {
        let frame = Frame::message(content.kind, &content.bytes);
        let command = || Command::Send(client, frame.clone());
        self.ask(turn, connections, caller, Kind::Send, &[to], command);
    }

    /// Who is asked to publish to a channel: the shards that may have subscribers, and the mesh. All of
    /// them, if a function of a client was called before and may have changed its channels meanwhile.
    pub fn asked_to_publish(
        &self,
        turn: &Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        channel: &str,
    ) -> Vec<Party> {
        let replies = connections.get(key).and_then(|connection| connection.replies());
        if replies.is_some_and(|replies| replies.has_function()) {
            return turn.all_parties();
        }
        let shards = turn.state.interest.shards(channel).map(|shard| turn.local_party(shard));
        shards.chain(turn.mesh()).collect()
    }

    /// `mesh.publish` to a channel that others have subscribers of.
    pub fn call_publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        asked: &[Party],
        (channel, content): (&str, &Content<'_>),
    ) {
        let frame = Frame::message(content.kind, &content.bytes);
        let channel: Arc<str> = channel.into();
        let command = || Command::Publish(channel.clone(), frame.clone());
        self.ask(turn, connections, caller, Kind::Publish, asked, command);
    }

    /// A publish of this shard alone goes on in later turns: gives the question that its tally answers.
    pub fn wait_for_publish(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
    ) -> Option<Ticket> {
        self.open_question(turn, connections, caller, Kind::Publish, 1)
    }

    /// `conn.call`.
    pub fn call_function(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        client: ClientId,
        function: Function,
    ) {
        match turn.roster.address_of(client) {
            None => {
                let fault = Fault::new(Code::ExecutionFailed, why_nobody(turn, client));
                connections.reply(turn, caller.key, &caller.shape, &Err(fault));
            }
            Some(address) => {
                let command = || Command::Call(client, function.clone());
                let to = [Party::Shard(address)];
                self.ask(turn, connections, caller, Kind::Call, &to, command);
            }
        }
    }

    /// `queue.pop`.
    pub fn call_pop(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        topics: &[&str],
        settling: Settling,
    ) {
        let fault = match connections.get(caller.key).and_then(Connection::backend) {
            None => Fault::new(Code::ConsumptionFailed, "only over WebSocket"),
            Some(backend) if !backend.topics.is_empty() => {
                Fault::new(Code::RepeatedConsumption, "this connection consumes already")
            }
            Some(backend) => {
                backend.topics = topics.iter().map(|&topic| Arc::from(topic)).collect();
                backend.has_consumed = true;
                backend.pops += 1;
                backend.unsettled = match settling {
                    Settling::Acknowledged(window) => Some(Unsettled::new(window)),
                    Settling::Written => None,
                };
                let (pop, topics) = (backend.pops, backend.topics.clone());
                let terms = terms(turn, pop, topics.len(), settling);
                let join = |topic| Command::Join(topic, terms);
                return self.ask_homes(turn, connections, caller, Kind::Pop(pop), &topics, join);
            }
        };
        connections.reply(turn, caller.key, &caller.shape, &Err(fault));
    }

    /// `queue.unpop`.
    pub fn call_unpop(&mut self, turn: &mut Turn, connections: &mut Connections, caller: Caller) {
        let topics = match connections.get(caller.key).and_then(Connection::backend) {
            Some(backend) => {
                // What it has not acknowledged goes to others.
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
        self.unconsume_elsewhere(turn, caller.key, &topics);
        self.ask_homes(turn, connections, caller, Kind::Unpop, &topics, Command::Leave);
    }

    /// Asks all shards and the mesh how things stand. The answer is the text of `/metrics`.
    pub fn call_report(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: HttpShape,
    ) {
        let (caller, all) = (Caller { key, shape: Shape::Response(shape) }, turn.all_parties());
        self.ask(turn, connections, caller, Kind::Report, &all, || Command::Report);
    }

    /// Asks the mesh which nodes there are.
    pub fn call_nodes(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        shape: HttpShape,
    ) {
        let caller = Caller { key, shape: Shape::Response(shape) };
        self.ask(turn, connections, caller, Kind::Nodes, &[Party::Mesh], || Command::Nodes);
    }

    /// Asks the home of each topic on this node.
    fn ask_homes(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        kind: Kind,
        topics: &[Arc<str>],
        command: impl Fn(Arc<str>) -> Command,
    ) {
        let key = caller.key;
        let ticket = self.open_question(turn, connections, caller, kind, topics.len());
        let Some(ticket) = ticket else { return };
        for topic in topics {
            ask_home(turn, key, ticket, topic, command(topic.clone()));
        }
    }

    /// Asks shards, this one among them perhaps, or the mesh to carry out a command.
    fn ask(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        caller: Caller,
        kind: Kind,
        parties: &[Party],
        command: impl Fn() -> Command,
    ) {
        let from = turn.backend_id(caller.key);
        let ticket = self.open_question(turn, connections, caller, kind, parties.len());
        let Some(ticket) = ticket else { return };
        for &party in parties {
            turn.send(party, Message::Ask { ticket, from, command: command() });
        }
    }

    fn open_question(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        Caller { key, shape }: Caller,
        kind: Kind,
        awaited: usize,
    ) -> Option<Ticket> {
        let replies = connections.get(key)?.replies()?;
        let reply = replies.reserve(shape);
        if kind == Kind::Call {
            replies.note_function();
        }
        let ticket = self.pending.open(turn.now.us, (key, reply), kind, awaited);
        let deadline_ms = turn.now.ms + turn.settings.limits.answer_ms;
        turn.timers.set(deadline_ms, Timer::Ticket(ticket));
        Some(ticket)
    }

    /// One answer to a question. With the last one, the caller is answered.
    pub fn handle_answer(
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

    /// Ends a question whose time is up. False if it was answered before.
    pub fn expire(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        ticket: Ticket,
    ) -> bool {
        let Some(asked_us) = self.pending.asked_us(ticket) else { return false };
        let deadline_ms = asked_us / 1000 + turn.settings.limits.answer_ms;
        if turn.now.ms < deadline_ms {
            // The deadline was beyond the wheel.
            turn.timers.set(deadline_ms, Timer::Ticket(ticket));
            return true;
        }
        let Some(settled) = self.pending.expire(ticket) else { return false };
        turn.counters.limits.answer_ms += 1;
        self.settle(turn, connections, settled);
        true
    }

    fn settle(&mut self, turn: &mut Turn, connections: &mut Connections, settled: Settled) {
        let Settled { asker, reply, mut answer, kind, asked_us } = settled;
        if let Err(fault) = &answer {
            turn.counters.faults += 1;
            trail::note(turn.trail(asker), Entry::Failed(fault));
        }
        if kind != Kind::Report {
            self.calls_taken.add(turn.now.us.saturating_sub(asked_us));
        }
        let pop = match kind {
            Kind::Pop(number) => Some(number),
            _ => None,
        };
        if let Some(pop) = pop.filter(|_| answer.is_ok()) {
            answer = Ok(self.grant_of_pop(turn, connections, asker, pop));
        }
        let Some(replies) = connections.get(asker).and_then(Connection::replies) else { return };
        let date = turn.date();
        let granted_pop = pop.filter(|_| answer.is_ok());
        replies.fill(reply, &answer, granted_pop, date, &mut turn.scratch);
        connections.write_replies(turn, asker);
        if let Some(pop) = pop.filter(|_| answer.is_err()) {
            self.give_up_consuming(turn, connections, asker, pop);
        }
    }

    /// The answer that grants a `queue.pop` is queued: its topics begin to deliver, unless the back end
    /// has given it up meanwhile.
    pub fn start_consuming(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: u64,
    ) {
        let from = turn.backend_id(key);
        let topics = topics_of(connections, key, pop);
        if topics.is_empty() {
            return;
        }
        if let Some(backend) = connections.get(key).and_then(Connection::backend) {
            backend.is_consuming = true;
        }
        let node = turn.address.node;
        for topic in topics {
            turn.send_to_home(node, &topic, TopicMessage::Start(from));
        }
        self.consume_elsewhere(turn, connections, key);
    }

    /// A `queue.pop` failed at one topic at least: takes back what was begun at others.
    fn give_up_consuming(
        &mut self,
        turn: &mut Turn,
        connections: &mut Connections,
        key: ConnectionKey,
        pop: u64,
    ) {
        let topics = topics_of(connections, key, pop);
        for topic in &topics {
            ask_home(turn, key, NOBODY, topic, Command::Leave(topic.clone()));
        }
        if !topics.is_empty()
            && let Some(backend) = connections.get(key).and_then(Connection::backend)
        {
            backend.topics.clear();
        }
    }
}

/// Asks the home of a topic on this node.
fn ask_home(
    turn: &mut Turn,
    key: ConnectionKey,
    ticket: Ticket,
    topic: &Arc<str>,
    command: Command,
) {
    let home = turn.local_party(home_of_topic(topic, turn.settings.shards));
    let from = turn.backend_id(key);
    turn.send(home, Message::Ask { ticket, from, command });
}

/// The terms on which a back end consumes so many topics of this node: what may be on its way to it is for
/// all of them together.
fn terms(turn: &Turn, pop: u64, topics: usize, settling: Settling) -> Terms {
    let window_bytes = (turn.settings.limits.outbound_bytes / 2 / topics).max(1);
    let unsettled_max = match settling {
        Settling::Acknowledged(window) => Some(window),
        Settling::Written => None,
    };
    Terms { pop, window_bytes, unsettled_max }
}

/// What a back end consumes, if that is still the doing of this `queue.pop`.
pub fn topics_of(connections: &mut Connections, key: ConnectionKey, pop: u64) -> Vec<Arc<str>> {
    let backend = connections.get(key).and_then(Connection::backend);
    let backend = backend.filter(|backend| backend.pops == pop);
    backend.map(|backend| backend.topics.clone()).unwrap_or_default()
}

/// Why nobody can be reached under a client's id.
pub fn why_nobody(turn: &Turn, client: ClientId) -> &'static str {
    match turn.roster.is_within_reach(client.node()) {
        true => "no such client",
        false => "no such client: its node is not there, or out of reach",
    }
}
