//! What shards say to each other, here and on other nodes, and to the mesh that stands between.

use std::net::IpAddr;
use std::sync::Arc;

use crate::address::{ClientId, NodeId, ShardAddress};
use crate::metrics::{MeshReport, Report};
use crate::protocol::api::{Fault, Function, Reply, Tally};
use crate::protocol::credentials::Fingerprint;
use crate::protocol::frame::Frame;

/// One connection of a shard, for as long as it lives: a place that is used again has another
/// generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey {
    /// Its place in the shard's table.
    pub index: u32,
    /// Distinguishes the connections that have used the place: at most [`Self::GENERATION_MAX`].
    pub generation: u32,
}

impl ConnectionKey {
    /// The number of bits of a generation. With the index and 8 bits more, it fills one word of the ring.
    pub const GENERATION_BITS: u32 = 24;

    /// The largest generation. The next one is 0.
    pub const GENERATION_MAX: u32 = u32::MAX >> (u32::BITS - Self::GENERATION_BITS);
}

/// A back end's connection, seen from anywhere in the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId {
    /// The shard that holds it.
    pub at: ShardAddress,
    /// Which connection there.
    pub connection: ConnectionKey,
}

/// Who says something to a shard, or is told something by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// A shard of this or another node.
    Shard(ShardAddress),
    /// This node's end of the mesh, which knows the other nodes and who is to get what.
    Mesh,
}

/// A question that its asker keeps in its table of pending answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// From one party to another. Messages of a pair arrive in the order they were sent: that is what
/// SPEC's order and its "subscribe, then publish" rest on.
#[derive(Debug)]
pub enum Message {
    /// Asks for a command to be carried out there; the answer goes to who says it. The mesh carries
    /// out [`Command::Publish`] on all other nodes that have subscribers, and adds up their answers.
    Ask {
        /// Comes back in the answer.
        ticket: Ticket,
        /// On whose behalf: the commands of one back end take effect in order.
        from: BackendId,
        /// What to do.
        command: Command,
    },
    /// The answer to [`Message::Ask`].
    Answer(Ticket, Answer),
    /// About a topic, to or from the shard that holds it.
    Topic(Arc<str>, TopicMessage),
    /// A back end's connection is gone: it consumes nothing any more.
    BackendGone(BackendId),
    /// To the mesh: from now on this shard has subscribers of that channel, or has none any more. The
    /// number counts these messages of a shard from 1.
    Interest(u64, Arc<str>, bool),
    /// To the mesh: how many clients this shard has now.
    Clients(u64),
    /// From the mesh: all that the shard said about its interest, up to this number, is known to
    /// every node, or to those that could publish without asking.
    InterestKnown(u64),
    /// From the mesh: this node has come within reach, or has begun anew.
    NodeUp {
        /// Which one.
        node: NodeId,
        /// How many shards it has.
        shards: u16,
        /// When it started, in Unix milliseconds.
        incarnation: u64,
    },
    /// To the mesh: this shard has heard that the node is within reach. What it said to it before was
    /// meant for what is lost.
    NodeSeen(NodeId),
    /// From the mesh: this node is out of reach, and what was on its way to and from it is lost.
    NodeDown(NodeId),
    /// From the mesh: the grid gave up this node as it was started then, in Unix milliseconds.
    NodeDead(NodeId, u64),
    /// From the mesh: the grid had given up this node, and takes it back.
    GivenUp,
    /// About clients of that shard, for whose end another stands in if their node is lost.
    Wards(ShardAddress, WardsMessage),
    /// Whose credentials these are, by the user's place in the settings; `None`: nobody's. For the
    /// shard that asked for it to be verified.
    Verdict(Fingerprint, Option<usize>),
    /// An address presented wrong credentials: it has one try less on every shard.
    FailedTry(IpAddr),
    /// To the home of an address: a connection from it came to an edge. May it stay?
    Arrived(IpAddr, ConnectionKey),
    /// The answer. One that may is counted until [`Message::Departed`].
    Admitted(IpAddr, ConnectionKey, bool),
    /// To the home of an address: a connection of it that was counted is closed.
    Departed(IpAddr),
    /// The node goes down: stop accepting, close clients within that time, answer what is pending.
    Drain {
        /// Milliseconds in which the clients are told.
        over_ms: u64,
    },
    /// The node goes down, and topics are given out: close back ends.
    DrainBackends,
}

/// What one shard carries out for another, and for itself.
#[derive(Clone, Debug)]
pub enum Command {
    /// Puts a frame into a client's outbound queue.
    Send(ClientId, Frame),
    /// Puts a frame into the outbound queue of each subscriber there.
    Publish(Arc<str>, Frame),
    /// Calls a function of a client's connection.
    Call(ClientId, Function),
    /// Makes the asking back end a consumer of a topic, which starts with
    /// [`TopicMessage::Start`].
    Join(Arc<str>, Terms),
    /// Ends that.
    Leave(Arc<str>),
    /// Tells how things stand on the shard, or with the mesh.
    Report,
    /// Of the mesh: tells which nodes there are.
    Nodes,
}

/// What came of a [`Command`].
#[derive(Debug)]
pub enum Answer {
    /// Of a publish.
    Published(Tally),
    /// Of [`Command::Report`], by a shard.
    Report(Box<Report>),
    /// Of [`Command::Report`], by the mesh.
    Mesh(Box<MeshReport>),
    /// Of anything else.
    Done(Result<Reply, Fault>),
}

/// About one topic.
#[derive(Debug)]
pub enum TopicMessage {
    /// Feeder to topic: an event, for which the feeder had credit.
    Push(Event),
    /// Feeder to topic: it has no credit left for a message of so many bytes.
    WantCredit(usize),
    /// Topic to feeder: it may push so many messages and bytes more.
    Credit(Credit),
    /// Topic to consumer: it takes nothing while others would.
    Expel(BackendId),
    /// Topic to feeder: there is no room, and clients are not to wait for it.
    Refused,
    /// Topic to feeder: the watched event of this client has left the topic for good.
    Left(ClientId),
    /// Consumer to topic: the answer to its `queue.pop` is on its way, messages may follow.
    Start(BackendId),
    /// Topic to consumer: one event.
    Deliver(BackendId, Delivery),
    /// Consumer to topic: so many of the events delivered to it were written to its socket.
    Written(BackendId, u32),
    /// Consumer to topic: these events were acknowledged.
    Settled(BackendId, Vec<u64>),
    /// Consumer to topic: an event that it does not consume any more, of that number and
    /// [`Terms::pop`].
    Returned(BackendId, u64, u64),
    /// Consumer to a topic of another node: it consumes, on these terms.
    Consume(BackendId, Terms),
    /// Consumer to a topic of another node: it does not any more.
    Unconsume(BackendId),
    /// Consumer to a topic of another node: its connection is gone.
    Gone(BackendId),
}

/// Clients that one [`WardsMessage::Add`] names at most.
pub const WARDS_AT_ONCE: usize = 1024;

/// About clients whose end is to be reported even if their node cannot.
#[derive(Debug)]
pub enum WardsMessage {
    /// Their shard to their guardian: what it was told before is over. The number counts the guardians
    /// that the shard has had.
    Begin(u64),
    /// Their shard to their guardian: these are there, and this topic is to hear of their end.
    Add(Arc<str>, Vec<ClientId>),
    /// Their shard to their guardian: the event that tells of this one's end has left its topic.
    Remove(Arc<str>, ClientId),
    /// From one that was a guardian to those that may be: when the node of the shard was started, in
    /// Unix milliseconds, and which guardian of the shard it was. The last one stands in.
    Claim(u64, u64),
}

/// What a topic is fed with.
#[derive(Clone, Debug)]
pub struct Event {
    /// The client that it is about.
    pub client: ClientId,
    /// Its frame.
    pub frame: Frame,
    /// The shard that fed it is to hear when it has left the topic for good: when a consumer has
    /// written it, or acknowledged it if it does that, or when it was dropped.
    pub is_watched: bool,
}

/// On what terms a back end consumes a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// The number of its `queue.pop`: comes back with each event.
    pub pop: u64,
    /// Bytes of events that may be on their way to it, plus one event.
    pub window_bytes: usize,
    /// If it acknowledges events: how many may be without an acknowledgement. If not, an event is
    /// done with when it was written to the socket.
    pub unsettled_max: Option<usize>,
}

/// An event on its way to a consumer.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its number in the topic, by which it is settled.
    pub number: u64,
    /// Which `queue.pop` of its consumer it answers.
    pub pop: u64,
    /// Its consumer is to acknowledge it.
    pub is_acknowledged: bool,
    /// It was handed to another consumer before, which did not acknowledge it.
    pub is_redelivered: bool,
    /// Its frame.
    pub frame: Frame,
}

/// Room in a topic that is set aside for one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    /// Messages.
    pub messages: usize,
    /// Bytes of encoded event.
    pub bytes: usize,
}
