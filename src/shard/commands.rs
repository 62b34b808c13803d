//! Carries out what back ends ask for, here or on the shard that holds the client.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shard;
use super::acknowledge::Unsettled;
use super::connection::{Connection, Pause, Phase};
use super::fanout::Walk;
use super::memory::Shortage;
use super::pending::{Kind, Settled};
use super::replies::{HttpShape, Shape};
use super::timers::Timer;
use super::trail::{self, By, Entry};
use crate::address::ClientId;
use crate::address::placement::home_of_topic;
use crate::message::{
    Answer, BackendId, Command, ConnectionKey, Message, Party, Terms, Ticket, TopicMessage,
};
use crate::metrics::{ProcessReport, Report};
use crate::protocol::api::{Call, Code, Content, Fault, Function, Info, Reply, Settling, Tally};
use crate::protocol::frame::{self, Frame};

/// A command that this shard was asked to carry out.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Who is told what came of it.
    pub asker: Party,
    /// Comes back in the answer.
    pub ticket: Ticket,
    /// On whose behalf.
    pub backend: BackendId,
}

/// What carrying out a command came to.
enum Outcome {
    Done(Answer),
    Unfinished(Box<Walk>),
    // It is answered when every node knows of it.
    Waiting,
}

impl Shard {
    /// Carries out a call of one of our back ends. Its answer is written when it is known, in the
    /// order of the calls.
    pub(super) fn call(&mut self, key: ConnectionKey, shape: Shape, call: Result<Call<'_>, Fault>) {
        self.turn.counters.calls += 1;
        self.note_call(key, &call);
        let answered = match call {
            Err(fault) => Err(fault),
            Ok(_) if !self.pending.has_room() => {
                self.turn.counters.limits.calls_waiting += 1;
                Err(Fault::new(Code::TooManyRequests, "too many calls wait for answers"))
            }
            Ok(Call::Send(client, content)) => return self.call_send(key, shape, client, &content),
            Ok(Call::Publish(channel, content)) => {
                return self.call_publish(key, shape, channel, &content);
            }
            Ok(Call::Call(client, function)) => {
                return self.call_function(key, shape, client, function);
            }
            Ok(Call::Pop(topics, settling)) => {
                return self.call_pop(key, shape, &topics, settling);
            }
            Ok(Call::Ack(tags)) => return self.call_ack(key, &shape, tags),
            Ok(Call::Unpop) => return self.call_unpop(key, shape),
        };
        self.connections.reply(&mut self.turn, key, &shape, &answered);
    }

    #[inline]
    fn note_call(&mut self, key: ConnectionKey, call: &Result<Call<'_>, Fault>) {
        if trail::is_read()
            && let Ok(call) = call
        {
            let user = self.connections.get(key).and_then(|connection| connection.user());
            trail::note(self.turn.trail(key), Entry::Called(self.turn.user_name(user), call));
        }
    }

    fn call_send(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        client: ClientId,
        content: &Content<'_>,
    ) {
        let Some(address) = self.turn.roster.address_of(client) else {
            let fault = Fault::new(Code::SendFailed, self.why_nobody(client));
            return self.connections.reply(&mut self.turn, key, &shape, &Err(fault));
        };
        let from = self.turn.backend_id(key);
        if address == self.turn.address && !self.lanes.contains_key(&from) {
            let answer = self.send(client, content.kind, &content.bytes);
            return self.connections.reply(&mut self.turn, key, &shape, &answer);
        }
        let frame = Frame::message(content.kind, &content.bytes);
        let to = [Party::Shard(address)];
        self.ask(key, shape, Kind::Send, &to, || Command::Send(client, frame.clone()));
    }

    fn call_publish(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        channel: &str,
        content: &Content<'_>,
    ) {
        let is_behind_lane = self.lanes.contains_key(&self.turn.backend_id(key));
        if self.turn.is_alone() && !is_behind_lane {
            return self.publish_here(key, shape, channel, content);
        }
        let asked = self.asked_to_publish(key, channel);
        let is_for_others = asked.iter().any(|party| *party != self.turn.own_party());
        if asked.is_empty() || !is_for_others && !is_behind_lane {
            return self.publish_here(key, shape, channel, content);
        }
        let frame = Frame::message(content.kind, &content.bytes);
        let channel: Arc<str> = channel.into();
        let command = || Command::Publish(channel.clone(), frame.clone());
        self.ask(key, shape, Kind::Publish, &asked, command);
    }

    /// Publishes where no other shard has subscribers, and nothing of this back end is under way.
    fn publish_here(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        channel: &str,
        content: &Content<'_>,
    ) {
        if self.channels.find(channel).is_none() {
            return self.connections.reply(
                &mut self.turn,
                key,
                &shape,
                &Ok(Reply::Published(Tally::default())),
            );
        }
        match self.publish(channel, Frame::message(content.kind, &content.bytes)) {
            Ok(tally) => {
                self.connections.reply(&mut self.turn, key, &shape, &Ok(Reply::Published(tally)))
            }
            Err(walk) => {
                if let Some(ticket) = self.open_question(key, shape, Kind::Publish, 1) {
                    let (asker, backend) = (self.turn.own_party(), self.turn.backend_id(key));
                    self.open_lane(Asked { asker, ticket, backend }, walk);
                }
            }
        }
    }

    fn call_function(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        client: ClientId,
        function: Function,
    ) {
        match self.turn.roster.address_of(client) {
            None => {
                let fault = Fault::new(Code::ExecutionFailed, self.why_nobody(client));
                self.connections.reply(&mut self.turn, key, &shape, &Err(fault));
            }
            Some(address) => {
                let command = || Command::Call(client, function.clone());
                self.ask(key, shape, Kind::Call, &[Party::Shard(address)], command);
            }
        }
    }

    fn call_pop(&mut self, key: ConnectionKey, shape: Shape, topics: &[&str], settling: Settling) {
        let fault = match self.connections.get(key).and_then(Connection::backend) {
            None => Some(Fault::new(Code::ConsumptionFailed, "only over WebSocket")),
            Some(backend) if !backend.topics.is_empty() => {
                Some(Fault::new(Code::RepeatedConsumption, "this connection consumes already"))
            }
            Some(backend) => {
                backend.topics = topics.iter().map(|&topic| Arc::from(topic)).collect();
                backend.has_consumed = true;
                backend.pops += 1;
                backend.unsettled = match settling {
                    Settling::Acknowledged(window) => Some(Unsettled::new(window)),
                    Settling::Written => None,
                };
                return self.ask_to_consume(key, shape, settling);
            }
        };
        if let Some(fault) = fault {
            self.connections.reply(&mut self.turn, key, &shape, &Err(fault));
        }
    }

    fn ask_to_consume(&mut self, key: ConnectionKey, shape: Shape, settling: Settling) {
        let Some(backend) = self.connections.get(key).and_then(Connection::backend) else { return };
        let (pop, topics) = (backend.pops, backend.topics.clone());
        // What it may have on its way is for all of its topics together.
        let window_bytes = (self.turn.settings.limits.outbound_bytes / 2 / topics.len()).max(1);
        let unsettled_max = match settling {
            Settling::Acknowledged(window) => Some(window),
            Settling::Written => None,
        };
        let join = |topic| Command::Join(topic, Terms { pop, window_bytes, unsettled_max });
        self.ask_homes(key, shape, Kind::Pop(pop), &topics, join);
    }

    fn call_unpop(&mut self, key: ConnectionKey, shape: Shape) {
        let topics = match self.connections.get(key).and_then(Connection::backend) {
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
            return self.connections.reply(&mut self.turn, key, &shape, &Err(fault));
        }
        self.unconsume_everywhere(key, &topics);
        self.ask_homes(key, shape, Kind::Unpop, &topics, Command::Leave);
    }

    /// Asks the home of each topic on this node.
    fn ask_homes(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        kind: Kind,
        topics: &[Arc<str>],
        command: impl Fn(Arc<str>) -> Command,
    ) {
        let Some(ticket) = self.open_question(key, shape, kind, topics.len()) else { return };
        for topic in topics {
            let home = self.turn.beside(home_of_topic(topic, self.turn.settings.shards));
            self.ask_party(home, key, ticket, command(topic.clone()));
        }
    }

    /// Asks shards to carry out a command, this one among them perhaps.
    pub(super) fn ask(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        kind: Kind,
        parties: &[Party],
        command: impl Fn() -> Command,
    ) {
        let Some(ticket) = self.open_question(key, shape, kind, parties.len()) else { return };
        for &party in parties {
            self.ask_party(party, key, ticket, command());
        }
    }

    fn ask_party(&mut self, party: Party, key: ConnectionKey, ticket: Ticket, command: Command) {
        let from = self.turn.backend_id(key);
        self.turn.tell(party, Message::Ask { ticket, from, command });
    }

    fn open_question(
        &mut self,
        key: ConnectionKey,
        shape: Shape,
        kind: Kind,
        awaited: usize,
    ) -> Option<Ticket> {
        let replies = self.connections.get(key)?.replies()?;
        let reply = replies.wait(shape);
        if kind == Kind::Call {
            replies.note_function();
        }
        let ticket = self.pending.open(self.turn.now.us, (key, reply), kind, awaited);
        self.turn
            .timers
            .set(self.turn.now.ms + self.turn.settings.limits.answer_ms, Timer::Ticket(ticket));
        Some(ticket)
    }

    /// Carries out a command for a back end of this or another shard, behind what it asked for
    /// before.
    pub(super) fn carry_out(&mut self, asked: Asked, command: Command) {
        if let Some(lane) = self.lanes.get_mut(&asked.backend) {
            if lane.take(asked, &command) {
                return;
            }
            self.turn.counters.limits.calls_waiting += 1;
            let fault = Fault::new(Code::TooManyRequests, "too much waits behind a large publish");
            return self.answer(asked, Answer::Done(Err(fault)));
        }
        match self.begin(asked, command) {
            Outcome::Done(answer) => self.answer(asked, answer),
            Outcome::Unfinished(walk) => self.open_lane(asked, walk),
            Outcome::Waiting => {}
        }
    }

    fn begin(&mut self, asked: Asked, command: Command) -> Outcome {
        let from = asked.backend;
        Outcome::Done(Answer::Done(match command {
            Command::Publish(channel, frame) => match self.publish(&channel, frame) {
                Ok(tally) => return Outcome::Done(Answer::Published(tally)),
                Err(walk) => return Outcome::Unfinished(walk),
            },
            Command::Send(client, frame) => self.send(client, frame.kind(), frame.payload()),
            Command::Call(client, function) => return self.execute(asked, client, function),
            Command::Join(topic, terms) => self.join(&topic, from, terms),
            Command::Leave(topic) => self.leave(&topic, from),
            // Only the mesh knows.
            Command::Nodes => Err(Fault::new(Code::ExecutionFailed, "not asked of a shard")),
            Command::Report => return Outcome::Done(Answer::Report(Box::new(self.report()))),
        }))
    }

    /// Asks all shards how things stand; the answer is the text of `/metrics`.
    pub(super) fn call_report(&mut self, key: ConnectionKey, shape: HttpShape) {
        let everywhere = self.turn.everywhere();
        self.ask(key, Shape::Response(shape), Kind::Report, &everywhere, || Command::Report);
    }

    /// How things stand here. Costs a look at each topic.
    pub fn report(&self) -> Report {
        Report {
            shard: self.turn.address.shard.0,
            counters: self.turn.counters,
            connections: self.connections.len() as u64,
            clients: self.clients.len() as u64,
            channels: self.channels.len() as u64,
            pending_calls: self.pending.len() as u64,
            unfinished_fanouts: self.lanes.len() as u64,
            addresses: self.addresses.len() as u64,
            topics: self.topics.reports(self.turn.now.us),
            turns: self.turns_taken,
            calls: self.calls_taken,
            events: self.topics.waits(),
            process: (self.turn.address.shard.0 == 0).then(|| self.process_report()),
        }
    }

    fn process_report(&self) -> ProcessReport {
        let memory = self.shedding.usage();
        ProcessReport {
            log_lines_dropped: self.turn.state.log_lines_dropped.load(Ordering::Relaxed),
            memory_bytes: memory.bytes,
            memory_limit_bytes: memory.limit_bytes,
        }
    }

    /// Gives the answer to who asked.
    pub(super) fn answer(&mut self, Asked { asker, ticket, .. }: Asked, answer: Answer) {
        self.turn.tell(asker, Message::Answer(ticket, answer));
    }

    pub(super) fn handle_answer(&mut self, ticket: Ticket, answer: Answer) {
        if let Some(settled) = self.pending.answer(ticket, answer) {
            self.settle(settled);
        }
    }

    /// The time of a question is up; false if it was answered before.
    pub(super) fn expire(&mut self, ticket: Ticket) -> bool {
        let Some(settled) = self.pending.expire(ticket) else { return false };
        self.turn.counters.limits.answer_ms += 1;
        self.settle(settled);
        true
    }

    fn settle(&mut self, settled: Settled) {
        let Settled { asker, reply, mut answer, kind, asked_us } = settled;
        if let Err(fault) = &answer {
            self.turn.counters.faults += 1;
            trail::note(self.turn.trail(asker), Entry::Failed(fault));
        }
        if kind != Kind::Report {
            self.calls_taken.add(self.turn.now.us.saturating_sub(asked_us));
        }
        let pop = match kind {
            Kind::Pop(number) => Some(number),
            _ => None,
        };
        if let Some(pop) = pop.filter(|_| answer.is_ok()) {
            answer = Ok(self.grant_of_pop(asker, pop));
        }
        let Some(replies) = self.connections.get(asker).and_then(Connection::replies) else {
            return;
        };
        let date = self.turn.date();
        let then_start = pop.filter(|_| answer.is_ok());
        replies.settle(reply, &answer, then_start, date, &mut self.turn.scratch);
        self.connections.write_replies(&mut self.turn, asker);
        if let Some(pop) = pop.filter(|_| answer.is_err()) {
            self.give_up_consuming(asker, pop);
        }
    }

    /// The answer that grants a `queue.pop` is on its way: its topics begin to flow, unless the back
    /// end has given it up meanwhile.
    pub(super) fn start_consuming(&mut self, key: ConnectionKey, pop: u64) {
        let from = self.turn.backend_id(key);
        let topics = self.topics_of(key, pop);
        if topics.is_empty() {
            return;
        }
        if let Some(backend) = self.connections.get(key).and_then(Connection::backend) {
            backend.is_consuming = true;
        }
        for topic in topics {
            self.turn.tell_home(self.turn.address.node, &topic, TopicMessage::Start(from));
        }
        self.consume_everywhere(key);
    }

    /// A `queue.pop` failed at one topic at least: takes back what was begun at others.
    fn give_up_consuming(&mut self, key: ConnectionKey, pop: u64) {
        // Nobody waits for the answers: a ticket that names no question.
        const NOBODY: Ticket = Ticket(u64::MAX);
        let topics = self.topics_of(key, pop);
        for topic in &topics {
            let home = self.turn.beside(home_of_topic(topic, self.turn.settings.shards));
            self.ask_party(home, key, NOBODY, Command::Leave(topic.clone()));
        }
        if !topics.is_empty()
            && let Some(backend) = self.connections.get(key).and_then(Connection::backend)
        {
            backend.topics.clear();
        }
    }

    /// What a back end consumes, if that is still the doing of this `queue.pop`.
    pub(super) fn topics_of(&mut self, key: ConnectionKey, pop: u64) -> Vec<Arc<str>> {
        let backend = self.connections.get(key).and_then(Connection::backend);
        let backend = backend.filter(|backend| backend.pops == pop);
        backend.map(|backend| backend.topics.clone()).unwrap_or_default()
    }

    /// Puts a message into a client's outbound queue.
    fn send(
        &mut self,
        client: ClientId,
        kind: frame::Kind,
        payload: &[u8],
    ) -> Result<Reply, Fault> {
        let fault = |message| Err(Fault::new(Code::SendFailed, message));
        let Some(&key) = self.clients.get(&client) else { return fault("no such client") };
        let Some(connection) = self.connections.get(key) else { return fault("no such client") };
        if connection.phase != Phase::Open {
            return fault("the client is closing");
        }
        if connection.outbound.is_in_flight() && self.turn.is_short(Shortage::Frames) {
            self.turn.counters.failed += 1;
            self.turn.counters.note_shed_frames(1);
            return fault(
                "the node is short of memory, and the client has not read what it was sent",
            );
        }
        let body = self.deflater.body(connection.compression, kind, payload);
        let bytes = body.frame_bytes();
        if connection.takes(bytes) {
            connection.outbound.push_with(&mut self.turn.spare, |out| body.put(out));
            self.turn.counters.note_compression(payload.len() - body.bytes.len());
            self.turn.counters.delivered += 1;
            self.connections.queue_write(key);
            return Ok(Reply::Done);
        }
        let is_too_slow = connection.is_too_slow_for(bytes);
        self.turn.counters.failed += 1;
        self.turn.counters.limits.outbound_bytes += 1;
        if is_too_slow && self.turn.settings.limits.close_slow_clients {
            self.connections.close_slow(&mut self.turn, key);
        }
        fault("the client's outbound buffer is full")
    }

    /// Calls a function of a client's connection.
    fn execute(&mut self, asked: Asked, client: ClientId, function: Function) -> Outcome {
        let Some(&key) = self.clients.get(&client) else {
            return Outcome::Done(Answer::Done(Err(no_such_client())));
        };
        trail::note(self.turn.trail(key), Entry::Function(client, &function));
        Outcome::Done(Answer::Done(match function {
            Function::SetContextValue(name, value) => {
                self.change_context(key, |context| context.set(name, value))
            }
            Function::SetContext(entries) => {
                self.change_context(key, |context| context.replace(entries))
            }
            Function::Subscribe(channels) => match self.subscribe(key, &channels) {
                Ok(_) if self.answer_when_known(asked, &channels) => return Outcome::Waiting,
                subscribed => subscribed,
            },
            Function::Unsubscribe(channels) => {
                self.unsubscribe(key, &channels);
                Ok(Reply::Done)
            }
            Function::Close(code, reason) => {
                self.connections.close_for(&mut self.turn, key, code, &reason, By::Backend);
                Ok(Reply::Done)
            }
            Function::GetContext => {
                let client = self.connections.get(key).and_then(Connection::client);
                let json = client.and_then(|client| client.context.json().map(str::to_owned));
                Ok(Reply::Context(json.unwrap_or_else(|| "{}".into())))
            }
            Function::Info => self.info(key).ok_or_else(no_such_client),
        }))
    }

    fn change_context(
        &mut self,
        key: ConnectionKey,
        change: impl FnOnce(&mut super::context::Context) -> Result<(), super::context::TooLarge>,
    ) -> Result<Reply, Fault> {
        let client = self.connections.get(key).and_then(Connection::client);
        let client = client.ok_or_else(no_such_client)?;
        if change(&mut client.context).is_err() {
            self.turn.counters.limits.context += 1;
            let why = "the context would be over 256 keys or 64 KiB";
            return Err(Fault::new(Code::ExecutionFailed, why));
        }
        if !self.connections.is_held(&mut self.turn, key) {
            self.connections.unpause(&mut self.turn, key, Pause::Hold);
        }
        Ok(Reply::Done)
    }

    fn info(&mut self, key: ConnectionKey) -> Option<Reply> {
        let node = self.turn.settings.node;
        let connection = self.connections.get(key)?;
        let (remote, since_ms) = (connection.remote, connection.since_ms);
        let buffered = connection.outbound.buffered() as u64;
        let subscriptions = &connection.client()?.subscriptions;
        let mut channels: Vec<Box<str>> =
            subscriptions.iter().map(|s| self.channels.name(s.channel).into()).collect();
        channels.sort_unstable();
        Some(Reply::Info(Box::new(Info { node, remote, since_ms, channels, buffered })))
    }

    /// Why nobody can be reached under a client's id.
    fn why_nobody(&self, client: ClientId) -> &'static str {
        match self.turn.roster.is_within_reach(client.node()) {
            true => "no such client",
            false => "no such client: its node is not there, or out of reach",
        }
    }
}

pub(super) fn no_such_client() -> Fault {
    Fault::new(Code::ExecutionFailed, "no such client")
}
