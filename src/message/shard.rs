//! Messages between shards.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    BackendId, ConnectionKey, FromConsumer, FromFeeder, Publish, Terms, Ticket, ToConsumer,
    ToFeeder,
};
use crate::address::{ClientId, ShardAddress};
use crate::metrics::Report;
use crate::protocol::api::{Fault, Function, Info, Reply, Tally};
use crate::protocol::credentials::Fingerprint;
use crate::protocol::frame::Frame;

/// A message of a shard to a shard of the same node, often to itself.
#[derive(Debug)]
pub enum LocalMessage {
    /// A message that shards of other nodes can be sent too.
    Grid(GridMessage),
    /// Asks for a command that concerns this node alone.
    Ask {
        /// Comes back in the answer.
        ticket: Ticket,
        /// The back end that called.
        backend: BackendId,
        /// The command.
        command: LocalCommand,
    },
    /// The answer to [`LocalCommand::Publish`]. A publish that could not be carried out is answered with
    /// [`GridMessage::Answer`].
    Published(Ticket, Tally),
    /// The answer to [`LocalCommand::Report`].
    Report(Ticket, Box<Report>),
    /// To the home of a topic, from one of its feeders.
    FromFeeder(Arc<str>, FromFeeder),
    /// From the home of a topic, to one of its feeders.
    ToFeeder(Arc<str>, ToFeeder),
    /// To the home of a topic: the answer to the `queue.pop` of a consumer is queued, and events may follow.
    Start(Arc<str>, BackendId),
    /// The connection of a back end that consumed is closed.
    BackendGone(BackendId),
    /// These credentials are right, and belong to the user at this place in the settings.
    Verified(Fingerprint, usize),
    /// An address presented wrong credentials, and has one try less on every shard.
    FailedTry(IpAddr),
    /// To the home of an address: a connection from that address was accepted at an edge. May it stay?
    Arrived(IpAddr, ConnectionKey),
    /// The answer to [`LocalMessage::Arrived`].
    Admitted {
        /// The address.
        address: IpAddr,
        /// The connection.
        key: ConnectionKey,
        /// Whether the connection may stay. If so it is counted until [`LocalMessage::Departed`].
        may_stay: bool,
    },
    /// To the home of an address: a connection that was counted is closed.
    Departed(IpAddr),
}

/// A message of a shard to a shard of any node. Between nodes, this is what crosses the wire.
#[derive(Debug)]
pub enum GridMessage {
    /// Asks for a command for one client.
    Ask {
        /// Comes back in the answer.
        ticket: Ticket,
        /// The back end that called.
        backend: BackendId,
        /// The command.
        command: ClientCommand,
    },
    /// The answer to a command.
    Answer(Ticket, Result<ClientReply, Fault>),
    /// To the home of a topic, from one of its consumers.
    FromConsumer {
        /// The topic.
        topic: Arc<str>,
        /// The sender.
        consumer: BackendId,
        /// The message.
        message: FromConsumer,
    },
    /// From the home of a topic, to one of its consumers.
    ToConsumer {
        /// The topic.
        topic: Arc<str>,
        /// The receiver.
        consumer: BackendId,
        /// The message.
        message: ToConsumer,
    },
    /// About the clients of that shard, whose end a guardian reports if their node is lost.
    Wards(ShardAddress, WardsMessage),
}

/// A command for one client.
#[derive(Clone, Debug)]
pub enum ClientCommand {
    /// Puts a frame into the client's outbound queue.
    Send(ClientId, Frame),
    /// Calls a function of the client's connection.
    Call(ClientId, Function),
}

/// What a command that succeeded gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientReply {
    /// Nothing but that it is done.
    Done,
    /// The client's context: the JSON text of an object.
    Context(String),
    /// What is known of the client.
    Info(Box<Info>),
}

impl From<ClientReply> for Reply {
    fn from(reply: ClientReply) -> Self {
        match reply {
            ClientReply::Done => Self::Done,
            ClientReply::Context(json) => Self::Context(json),
            ClientReply::Info(info) => Self::Info(info),
        }
    }
}

/// A command that only shards of the same node ask for.
#[derive(Clone, Debug)]
pub enum LocalCommand {
    /// Puts a frame into the outbound queue of each subscriber on the shard.
    Publish(Publish),
    /// Makes the back end a consumer of a topic, which delivers from [`LocalMessage::Start`] on.
    Join(Arc<str>, Terms),
    /// Ends the back end's consumption of a topic.
    Leave(Arc<str>),
    /// Gives the shard's state for `/metrics`.
    Report,
}

/// Clients that one [`WardsMessage::Add`] names at most.
pub const WARDS_PER_MESSAGE_MAX: usize = 1024;

/// A message about clients whose end is reported even if their node cannot report it.
#[derive(Debug)]
pub enum WardsMessage {
    /// Their shard to its guardian: forget what was said before. The number counts the guardians that the
    /// shard has had.
    Begin(u64),
    /// Their shard to its guardian: these clients are connected, and this topic is told of their end.
    Add(Arc<str>, Vec<ClientId>),
    /// Their shard to its guardian: the close event of this client has left its topic.
    Remove(Arc<str>, ClientId),
    /// A former guardian to those that may have followed: when the node of the shard was started, in Unix
    /// milliseconds, and which guardian of the shard the sender was. The last guardian reports.
    Claim(u64, u64),
}
