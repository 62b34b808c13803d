//! The turn, which every part of a shard borrows while it works: the time, the settings, the counters, the
//! outgoing messages, and the steps for other parts.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::access::{Denial, Grant};
use super::backend::TakeKey;
use super::client::Progress;
use super::connection::{BufferPool, TokenProgress};
use super::memory::Shortage;
use super::node_state::NodeState;
use super::roster::Roster;
use super::settings::Settings;
use super::taps::WatchedTaps;
use super::timers::Timers;
use super::trail::Trail;
use super::work::Work;
use crate::address::placement::home_of_topic;
use crate::address::{ClientId, Incarnation, NodeId, ShardAddress, ShardId};
use crate::message::{
    BackendId, BridgeCallId, ClientCommand, ClientReply, ConnectionKey, Event, FromConsumer,
    FromFeeder, FromShard, GridMessage, LocalCommand, LocalMessage, PopId, Requester, Ticket,
    ToBridge, ToFeeder, ToMesh,
};
use crate::metrics::{Counters, Durations};
use crate::protocol::api::{self, Fault, Listing, Reply, Tally};
use crate::protocol::frame::Frame;
use crate::protocol::http::{Calendar, Date};

/// The time as given by the runtime.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds of a monotonic clock.
    pub ms: u64,
    /// Microseconds of the same clock.
    pub us: u64,
    /// Unix time in milliseconds.
    pub unix_ms: u64,
}

/// A request to the driver about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop receiving from the socket.
    Pause(ConnectionKey),
    /// Receive from the socket again.
    Resume(ConnectionKey),
    /// Shut down our end of the socket: everything was written.
    Shutdown(ConnectionKey),
    /// Close the socket, then call [`Shard::handle_closed`](super::Shard::handle_closed).
    Close(ConnectionKey),
    /// Stop accepting connections.
    StopAccepting,
}

/// An instruction from one part of a shard to another. The shard passes a step on when the part has
/// returned, so that no part calls another.
#[derive(Debug)]
pub enum Step {
    /// A message from this shard to itself.
    Message(LocalMessage),
    /// A client's handshake was accepted.
    ClientOpened(ConnectionKey),
    /// A client has disconnected before all its messages were processed. Calls no longer reach the
    /// client.
    ClientDisconnected(ClientId),
    /// A client has ended, and all its messages are processed or dropped.
    ClientGone(ClientGone),
    /// A consumer has disconnected. The topics are those that the consumer consumed, and those of
    /// its unwritten events.
    ConsumerGone(ConnectionKey, BTreeSet<Arc<str>>),
    /// The answer to the `queue.pop` with this number is queued, so that events may follow.
    PopAnswered(ConnectionKey, PopId),
    /// An event of a client, for a topic.
    Event(ClientEvent),
    /// A command that was queued behind a publish of the same back end is to be executed.
    Execute(Requester, ShardCommand),
    /// A parked request has waited too long.
    ParkedTimedOut(ConnectionKey),
    /// A parked handshake goes on, or is refused with this status and explanation.
    HandshakeSettled(ConnectionKey, Result<Progress, (u16, &'static str)>),
    /// The calls of a device before its parked subscribe are answered.
    SubscribeDue(ConnectionKey),
    /// A device has offered a new token, or the keys that it waits for are known.
    TokenOffered(ConnectionKey, TokenProgress),
    /// The calls of a back end before its parked call are answered.
    CallDue(ConnectionKey),
    /// The answer to a take over this connection is queued.
    TakeAnswered(ConnectionKey, TakeKey),
    /// The answer to a `tap.start` of a back end is queued, so that events may follow.
    TapAnswered(ConnectionKey),
    /// A back end with taps has disconnected.
    TapperGone(ConnectionKey),
    /// The context or the channels of a client may have changed. Only while there are taps.
    ClientChanged(ConnectionKey),
    /// The verification of a request's credentials is complete: the request goes on.
    Admitted(ConnectionKey, Result<Grant, Denial>),
    /// A list of administration is gathered, or has failed: the answer to the question with this ticket.
    Listed(Ticket, Result<Box<Listing>, Fault>),
    /// The address of a forwarded handshake's client is counted, and the handshake goes on; or, if
    /// false, the address has reached a limit.
    Counted(ConnectionKey, bool),
}

/// A command for this shard.
#[derive(Debug)]
pub enum ShardCommand {
    /// A command from a shard of any node.
    Client(ClientCommand),
    /// A command from a shard of this node, or a publish from the mesh.
    Local(LocalCommand),
}

impl ShardCommand {
    /// Whether the answer is a tally.
    pub fn is_publish(&self) -> bool {
        matches!(self, Self::Local(LocalCommand::Publish(_) | LocalCommand::ForUsers(_)))
    }
}

/// The receivers of a question: shards of this node, and the mesh for all other nodes.
#[derive(Debug)]
pub struct Receivers {
    /// The shards.
    pub shards: Vec<ShardId>,
    /// Whether the mesh is asked.
    pub has_mesh: bool,
}

impl Receivers {
    /// Returns the number of answers to wait for.
    pub fn count(&self) -> usize {
        self.shards.len() + usize::from(self.has_mesh)
    }

    /// Whether anyone but the shard itself is asked.
    pub fn include_others_than(&self, own: ShardId) -> bool {
        self.has_mesh || self.shards.iter().any(|&shard| shard != own)
    }
}

/// An event of a client on its way to a topic.
#[derive(Debug)]
pub struct ClientEvent {
    /// The name of the topic.
    pub topic: Arc<str>,
    /// The encoded event.
    pub event: Event,
    /// The connection whose reading pauses until the topic has room. `None`: nothing is paused.
    pub from: Option<ConnectionKey>,
}

/// The end of a client, with its close event.
#[derive(Debug)]
pub struct ClientGone {
    /// The client's connection, in
    /// [`Stage::Unsubscribing`](super::connection::Stage::Unsubscribing).
    pub key: ConnectionKey,
    /// The close code to report (RFC 6455, section 7.4).
    pub code: u16,
    /// The reason to report.
    pub reason: Box<str>,
}

/// The context of a step: time, settings, counters, and everything that leaves a part.
#[derive(Debug)]
pub struct Turn {
    /// The time of the current input.
    pub now: Now,
    /// The configuration of the shard.
    pub settings: Arc<Settings>,
    /// State shared by all shards of the node.
    pub state: Arc<NodeState>,
    /// The address of this shard.
    pub address: ShardAddress,
    /// The reachable nodes.
    pub roster: Roster,
    /// How short of memory the node is.
    pub shortage: Shortage,
    /// The counters of the shard.
    pub counters: Counters,
    /// Durations of turns, without sleep.
    pub turns_taken: Durations,
    /// The taps that this shard watches for.
    pub taps: WatchedTaps,
    /// Whether the node is shutting down.
    pub is_draining: bool,
    // Messages for other shards and the mesh, in order. Emptied after each input.
    outbox: VecDeque<FromShard>,
    // Answers to calls of the bridge. At most as many as the bridge has calls in flight.
    bridge_answers: VecDeque<(BridgeCallId, Result<(), Fault>)>,
    // Steps for other parts of this shard, in order. Emptied while the input is handled.
    steps: VecDeque<Step>,
    /// Actions on sockets. Emptied by the driver after each input.
    pub actions: VecDeque<Action>,
    /// The timers of connections and calls.
    pub timers: Timers,
    /// The budget for input in this turn, and the connections that wait to be read.
    pub work: Work,
    /// Buffers for reuse.
    pub buffer_pool: BufferPool,
    /// A reusable buffer for text that goes into a frame or response.
    pub scratch: Vec<u8>,
    // A reusable buffer for an event.
    event: Vec<u8>,
    calendar: Calendar,
}

impl Turn {
    /// Creates the context of a new shard.
    pub fn new(shard: ShardId, settings: &Arc<Settings>, state: Arc<NodeState>, now: Now) -> Self {
        Self {
            now,
            settings: settings.clone(),
            state,
            address: ShardAddress { node: settings.node, shard },
            roster: Roster::new(settings),
            shortage: Shortage::default(),
            counters: Counters::default(),
            turns_taken: Durations::default(),
            taps: WatchedTaps::default(),
            is_draining: false,
            outbox: VecDeque::new(),
            bridge_answers: VecDeque::new(),
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

    /// Sends a message to a shard of this node. A message to this shard itself becomes a step, and
    /// is handled with the current input.
    pub fn send_local(&mut self, to: ShardId, message: LocalMessage) {
        match to == self.address.shard {
            true => self.steps.push_back(Step::Message(message)),
            false => self.outbox.push_back(FromShard::Local(to, message)),
        }
    }

    /// Sends a message to a shard of this or another node.
    pub fn send_grid(&mut self, to: ShardAddress, message: GridMessage) {
        match to.node == self.address.node {
            true => self.send_local(to.shard, LocalMessage::Grid(message)),
            false => self.send_to_mesh(ToMesh::Grid(to, message)),
        }
    }

    /// Sends a message to the mesh. Dropped if the node has none.
    pub fn send_to_mesh(&mut self, message: ToMesh) {
        self.outbox.push_back(FromShard::Mesh(message));
    }

    /// Asks a shard of this node for a command.
    pub fn ask_local(&mut self, to: ShardId, requester: Requester, command: LocalCommand) {
        let Requester { ticket, backend } = requester;
        self.send_local(to, LocalMessage::Ask { ticket, backend, command });
    }

    /// Sends the answer to a command.
    pub fn answer(&mut self, requester: Requester, answer: Result<ClientReply, Fault>) {
        if requester.backend.is_presence() {
            let pushed = LocalMessage::PresencePushed(requester.ticket, answer.is_ok());
            return self.send_local(requester.backend.at.shard, pushed);
        }
        self.send_grid(requester.backend.at, GridMessage::Answer(requester.ticket, answer));
    }

    /// Sends the answer to a publish. If a back end of another node asked for it, the answer goes
    /// to the mesh.
    pub fn answer_publish(&mut self, requester: Requester, answer: Result<Tally, Fault>) {
        let Requester { ticket, backend } = requester;
        let is_local = backend.at.node == self.address.node;
        match answer {
            Ok(tally) if backend.is_home() => {
                self.send_local(backend.at.shard, LocalMessage::Delivered(ticket, tally));
            }
            Ok(tally) if is_local => {
                self.send_local(backend.at.shard, LocalMessage::Published(ticket, tally));
            }
            Err(fault) if is_local => self.answer(requester, Err(fault)),
            Ok(tally) => self.send_to_mesh(ToMesh::Published(ticket, tally)),
            Err(_) => self.send_to_mesh(ToMesh::NotPublished(ticket)),
        }
    }

    /// Sends a message of a feeder to the home of its topic on this node.
    pub fn send_to_own_home(&mut self, topic: &Arc<str>, message: FromFeeder) {
        let home = home_of_topic(topic, self.settings.shards);
        self.send_local(home, LocalMessage::FromFeeder(topic.clone(), message));
    }

    /// Sends a message of a consumer to the home of a topic on a node, if the node is reachable.
    pub fn send_to_home(
        &mut self,
        node: NodeId,
        topic: &Arc<str>,
        consumer: BackendId,
        message: FromConsumer,
    ) {
        if let Some(home) = self.roster.home_on(node, topic) {
            let topic = topic.clone();
            self.send_grid(home, GridMessage::FromConsumer { topic, consumer, message });
        }
    }

    /// Notes that an event of a client of this shard never reaches its topic.
    pub fn send_left(&mut self, topic: &Arc<str>, client: ClientId) {
        let left = LocalMessage::ToFeeder(topic.clone(), ToFeeder::EventLeft(client));
        self.push_step(Step::Message(left));
    }

    /// Encodes an event of a client. Returns `None`, and counts the event, if it is too long for a
    /// topic.
    pub fn encode_event(
        &mut self,
        topic: &Arc<str>,
        client: ClientId,
        put_data: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Frame> {
        self.event.clear();
        let head = api::EventHead { node: client.node(), client, topic };
        api::put_event(&mut self.event, &mut self.scratch, head, put_data);
        if self.event.len() > self.settings.queue.event_bytes_max(topic) {
            self.counters.oversized += 1;
            return None;
        }
        Some(Frame::from_encoded(&self.event))
    }

    /// Answers a call of the bridge.
    pub fn answer_bridge(&mut self, call: BridgeCallId, answer: &Result<Reply, Fault>) {
        let outcome = answer.as_ref().map(|_| ()).map_err(Fault::clone);
        self.bridge_answers.push_back((call, outcome));
    }

    /// Returns the next answer for the bridge.
    pub fn poll_bridge_answer(&mut self) -> Option<ToBridge> {
        let (call, outcome) = self.bridge_answers.pop_front()?;
        Some(ToBridge::Called { call, outcome })
    }

    /// Returns the next message for another shard or for the mesh.
    pub fn poll_message(&mut self) -> Option<FromShard> {
        self.outbox.pop_front()
    }

    /// Whether there are messages for other shards or for the mesh.
    pub fn has_messages(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Adds a step for another part of the shard.
    pub fn push_step(&mut self, step: Step) {
        self.steps.push_back(step);
    }

    /// Whether a part has pushed a step.
    #[inline]
    pub fn has_steps(&self) -> bool {
        !self.steps.is_empty()
    }

    /// Returns the next step.
    #[inline]
    pub fn poll_step(&mut self) -> Option<Step> {
        self.steps.pop_front()
    }

    /// Returns the `Date` header for a response written now.
    pub fn date(&mut self) -> Date {
        self.calendar.date(self.now.unix_ms)
    }

    /// Whether the node shuts down, or is about to.
    pub fn is_going_down(&self) -> bool {
        self.is_draining || self.state.is_lame_duck.load(Ordering::Relaxed)
    }

    /// Returns when this node or a reachable one was started; `None` if the node is unreachable.
    pub fn incarnation_of(&self, node: NodeId) -> Option<Incarnation> {
        match node == self.address.node {
            // Only in tests the start is unknown.
            true => Some(Incarnation(self.settings.process.first_unix_ms.unwrap_or_default())),
            false => self.roster.incarnation_of(node),
        }
    }

    /// Whether the shortage of memory has reached this level.
    pub fn is_short(&self, of: Shortage) -> bool {
        self.shortage >= of
    }

    /// Whether new clients are refused for lack of memory.
    pub fn refuses_arrivals(&self) -> bool {
        self.is_short(Shortage::Arrivals)
    }

    /// Returns the grid-wide identity of a back end of this shard.
    pub fn backend_id(&self, connection: ConnectionKey) -> BackendId {
        BackendId { at: self.address, connection }
    }

    /// Iterates over the other shards of this node.
    pub fn other_shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let own = self.address.shard;
        (0..self.settings.shards).map(|index| ShardId(index as u8)).filter(move |&id| id != own)
    }

    /// Returns all shards of this node, and the mesh if there is one.
    pub fn all_receivers(&self) -> Receivers {
        let shards = (0..self.settings.shards).map(|index| ShardId(index as u8));
        Receivers { shards: shards.collect(), has_mesh: self.settings.has_mesh }
    }

    /// Whether other shards of this node may have subscribers of a channel.
    pub fn has_subscribers_elsewhere(&self, channel: &str) -> bool {
        self.state.interest.shards(channel).any(|shard| shard != self.address.shard)
    }

    /// Whether the node has one shard and no mesh, so that no other shard can have subscribers.
    pub fn is_alone(&self) -> bool {
        self.settings.shards == 1 && !self.settings.has_mesh
    }

    /// Returns the name of a connection in the log.
    pub fn trail(&self, key: ConnectionKey) -> Trail {
        Trail { shard: self.address.shard, key }
    }

    /// Returns the name of a user in the log. Empty if no users are configured.
    pub fn user_name(&self, user: Option<usize>) -> &str {
        user.map_or("", |user| self.settings.api.users.name(user))
    }
}
