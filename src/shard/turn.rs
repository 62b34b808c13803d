//! What every part of a shard borrows while it works: the time, the settings, what is counted, and
//! what leaves the shard.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::access::{Grant, Refusal};
use super::connection::BufferPool;
use super::memory::Shortage;
use super::node_state::NodeState;
use super::roster::Roster;
use super::settings::Settings;
use super::timers::Timers;
use super::trail::Trail;
use super::work::Work;
use crate::address::{ClientId, NodeId, ShardAddress, ShardId};
use crate::message::{
    Answer, BackendId, Command, ConnectionKey, Event, Message, Party, Ticket, TopicMessage,
};
use crate::metrics::Counters;
use crate::protocol::api;
use crate::protocol::frame::Frame;
use crate::protocol::http::{Calendar, Date};

/// The time, as the runtime tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back.
    pub ms: u64,
    /// The same in microseconds.
    pub us: u64,
    /// Unix milliseconds.
    pub unix_ms: u64,
}

/// What the runtime is to do with a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop reading from it.
    Pause(ConnectionKey),
    /// Read from it again.
    Resume(ConnectionKey),
    /// Shut our end; all that was to be written is.
    Shutdown(ConnectionKey),
    /// Close it, then say so with [`Shard::handle_closed`](super::Shard::handle_closed).
    Close(ConnectionKey),
    /// Stop accepting.
    StopAccepting,
}

/// What one part of a shard leaves to another. The shard hands it over once the part has returned, so no
/// part calls another.
#[derive(Debug)]
pub enum Step {
    /// A message of this shard to itself.
    Message(Message),
    /// A client has come in.
    ClientOpened(ConnectionKey),
    /// A client has ended. What it sent before is still read, but no call reaches it any more.
    ClientDisconnected(ClientId),
    /// A client has ended, and all that it sent is read.
    ClientGone(ClientGone),
    /// A back end that consumed has ended. These topics have to do with it.
    ConsumerGone(ConnectionKey, BTreeSet<Arc<str>>),
    /// The answer to a back end's `queue.pop` of this number is queued: events may follow.
    PopAnswered(ConnectionKey, u64),
    /// An event for a topic.
    Event(ClientEvent),
    /// A command that waited behind a publish of the same back end has its turn.
    Execute(Requester, Command),
    /// The verdict that a request waits for did not come in time.
    VerdictTimedOut(ConnectionKey),
    /// The request of a connection that waited for a verdict goes on.
    Admitted(ConnectionKey, Result<Grant, Refusal>),
}

/// A command that this shard was requester to carry out.
#[derive(Clone, Copy, Debug)]
pub struct Requester {
    /// Who is told what came of it.
    pub party: Party,
    /// Comes back in the answer.
    pub ticket: Ticket,
    /// On whose behalf.
    pub backend: BackendId,
}

/// An event on its way from a client into a topic.
#[derive(Debug)]
pub struct ClientEvent {
    /// The topic.
    pub topic: Arc<str>,
    /// The event.
    pub event: Event,
    /// The connection that is not read from while the event waits for room; `None`: it waits alone.
    pub from: Option<ConnectionKey>,
}

/// A client that has ended.
#[derive(Debug)]
pub struct ClientGone {
    /// Its connection, which has [`Stage::Unsubscribing`](super::connection::Stage::Unsubscribing).
    pub key: ConnectionKey,
    /// The close code to report (RFC 6455, section 7.4).
    pub code: u16,
    /// The reason to report.
    pub reason: Box<str>,
}

/// The time, the settings and the counters of a shard, and what it has to say and to do.
#[derive(Debug)]
pub struct Turn {
    /// The time at which the step under way began.
    pub now: Now,
    /// What the shard was told when it was made.
    pub settings: Arc<Settings>,
    /// What all shards of the node share.
    pub state: Arc<NodeState>,
    /// The shard's own address.
    pub address: ShardAddress,
    /// The nodes within reach.
    pub roster: Roster,
    /// How short the node is of memory.
    pub shortage: Shortage,
    /// What the shard has counted.
    pub counters: Counters,
    /// Whether the node goes down.
    pub is_draining: bool,
    // Messages for other shards and the mesh, in the order in which they were sent. Emptied after each
    // step of the shard.
    outbox: VecDeque<(Party, Message)>,
    // What parts of this shard leave to others, in the same order. Emptied within each step.
    steps: VecDeque<Step>,
    /// What the driver is to do with sockets.
    pub actions: VecDeque<Action>,
    /// Deadlines.
    pub timers: Timers,
    /// How much the input of connections may still cost in this turn.
    pub work: Work,
    /// Buffers to reuse.
    pub buffer_pool: BufferPool,
    /// A buffer for a text that is put into a frame or response.
    pub scratch: Vec<u8>,
    // A buffer for an event.
    event: Vec<u8>,
    calendar: Calendar,
}

impl Turn {
    /// The first turn of a shard.
    pub fn new(shard: ShardId, settings: &Arc<Settings>, state: Arc<NodeState>, now: Now) -> Self {
        Self {
            now,
            settings: settings.clone(),
            state,
            address: ShardAddress { node: settings.node, shard },
            roster: Roster::new(settings),
            shortage: Shortage::default(),
            counters: Counters::default(),
            is_draining: false,
            outbox: VecDeque::new(),
            steps: VecDeque::new(),
            actions: VecDeque::new(),
            timers: Timers::new(now.ms),
            work: Work::default(),
            buffer_pool: BufferPool::default(),
            scratch: Vec::new(),
            event: Vec::new(),
            calendar: Calendar::default(),
        }
    }

    /// Sends a message. One to this shard itself is delivered in the same way as any other, but within
    /// the step under way.
    pub fn send(&mut self, to: Party, message: Message) {
        match to == self.own_party() {
            true => self.steps.push_back(Step::Message(message)),
            false => self.outbox.push_back((to, message)),
        }
    }

    /// Gives the answer to a command to who requester.
    pub fn answer(&mut self, Requester { party, ticket, .. }: Requester, answer: Answer) {
        self.send(party, Message::Answer(ticket, answer));
    }

    /// Tells the home of a topic on a node, if that is within reach.
    pub fn send_to_home(&mut self, node: NodeId, topic: &Arc<str>, message: TopicMessage) {
        if let Some(home) = self.roster.home_on(node, topic) {
            self.send(Party::Shard(home), Message::Topic(topic.clone(), message));
        }
    }

    /// Sends a message about a topic to this shard itself.
    pub fn send_to_self(&mut self, topic: &Arc<str>, message: TopicMessage) {
        self.push_step(Step::Message(Message::Topic(topic.clone(), message)));
    }

    /// Encodes an event of a client; `None`, and counted, if it is longer than a topic takes.
    pub fn encode_event(
        &mut self,
        topic: &Arc<str>,
        client: ClientId,
        put_data: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Frame> {
        self.event.clear();
        let event_of = (client.node(), client, &topic[..]);
        api::put_event(&mut self.event, &mut self.scratch, event_of, put_data);
        if self.event.len() > self.settings.queue.event_bytes_max() {
            self.counters.oversized += 1;
            return None;
        }
        Some(Frame::from_encoded(&self.event))
    }

    /// The next message for another shard, or the mesh.
    pub fn poll_message(&mut self) -> Option<(Party, Message)> {
        self.outbox.pop_front()
    }

    /// Leaves something to another part of the shard.
    pub fn push_step(&mut self, step: Step) {
        self.steps.push_back(step);
    }

    /// Whether a part has left something to another.
    #[inline]
    pub fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The next thing that a part has left to another.
    #[inline]
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// The `Date` of a response that is written now.
    pub fn date(&mut self) -> Date {
        self.calendar.date(self.now.unix_ms)
    }

    /// Whether the node is as short of memory as this.
    pub fn is_short(&self, of: Shortage) -> bool {
        self.shortage >= of
    }

    /// Whether new clients are refused for want of memory.
    pub fn refuses_arrivals(&self) -> bool {
        self.is_short(Shortage::Arrivals)
    }

    /// The identity of one of this shard's back ends in the grid.
    pub fn backend_id(&self, connection: ConnectionKey) -> BackendId {
        BackendId { at: self.address, connection }
    }

    /// This shard, as the sender or receiver of a message.
    pub fn own_party(&self) -> Party {
        Party::Shard(self.address)
    }

    /// A shard of this node, as the receiver of a message.
    pub fn local_party(&self, shard: ShardId) -> Party {
        Party::Shard(ShardAddress { node: self.address.node, shard })
    }

    /// The other shards of this node.
    pub fn other_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let own = self.address.shard;
        (0..self.settings.shards).map(|index| ShardId(index as u8)).filter(move |&id| id != own)
    }

    /// All shards of this node, and the mesh if there is one.
    pub fn all_parties(&self) -> Vec<Party> {
        let shards = (0..self.settings.shards).map(|index| self.local_party(ShardId(index as u8)));
        shards.chain(self.mesh()).collect()
    }

    /// The mesh, if the node has one.
    pub fn mesh(&self) -> Option<Party> {
        self.settings.has_mesh.then_some(Party::Mesh)
    }

    /// Whether no other shard can have clients or subscribers.
    pub fn is_alone(&self) -> bool {
        self.settings.shards == 1 && !self.settings.has_mesh
    }

    /// The name of a connection in the log.
    pub fn trail(&self, key: ConnectionKey) -> Trail {
        Trail { shard: self.address.shard, key }
    }

    /// The name of a user in the log; empty where there are no users.
    pub fn user_name(&self, user: Option<usize>) -> &str {
        user.and_then(|user| self.settings.api.users.get(user)).map_or("", |user| &user.name)
    }
}
