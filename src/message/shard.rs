//! Messages between shards.

use std::net::IpAddr;
use std::sync::Arc;

use super::{
    BackendId, ConnectionKey, FromConsumer, FromFeeder, FromTapper, HomePublish, ListMessage,
    PlacedPublish, Placement, PresenceMessage, Publish, RecoveryAnswer, RecoveryQuestion,
    Requester, SettleTaken, StaleTaken, Terms, Ticket, ToConsumer, ToFeeder, ToTapper,
};
use crate::address::{ClientId, Incarnation, ShardAddress};
use crate::metrics::Report;
use crate::protocol::api::{Fault, Function, Info, Reply, Tally};
use crate::protocol::credentials::Fingerprint;
use crate::protocol::frame::Frame;

/// A message between two shards of a node, or of a shard to itself.
#[derive(Debug)]
pub enum LocalMessage {
    /// A message that can also be sent to a shard of another node.
    Grid(GridMessage),
    /// Asks for a command that shards of other nodes cannot ask for.
    Ask {
        /// The ticket of the answer.
        ticket: Ticket,
        /// The back end that made the call.
        backend: BackendId,
        /// The command.
        command: LocalCommand,
    },
    /// Answers a [`LocalCommand::Publish`] or [`LocalCommand::ForUsers`] that was carried out. One that failed is
    /// answered with [`GridMessage::Answer`].
    Published(Ticket, Tally),
    /// Answers [`LocalCommand::Report`].
    Report(Ticket, Box<Report>),
    /// A publish for the home of its channel.
    PublishAtHome(Requester, Box<HomePublish>),
    /// Answers [`LocalMessage::PublishAtHome`].
    Placed(Ticket, Placement),
    /// Answers [`LocalCommand::Deliver`].
    Delivered(Ticket, Tally),
    /// A question to the home of a channel. Answered with [`LocalCommand::Recover`].
    Recover(Box<RecoveryQuestion>),
    /// Tells the sender of a [`LocalCommand::Push`] about presence whether the event is in its topic.
    PresencePushed(Ticket, bool),
    /// A message to the home of a topic, from one of its feeders.
    FromFeeder(Arc<str>, FromFeeder),
    /// A message from the home of a topic, to one of its feeders.
    ToFeeder(Arc<str>, ToFeeder),
    /// Tells the home of a topic that events may be delivered to a new consumer: the answer to its
    /// `queue.pop` is queued.
    StartDelivery(Arc<str>, BackendId),
    /// An event that was handed out too often, for its dead topic.
    Bury {
        /// The dead topic.
        to: Arc<str>,
        /// The topic in which the event is until the dead topic has taken it.
        from: Arc<str>,
        /// The client that sent the event.
        client: ClientId,
        /// The encoded event, as it is in the dead topic.
        frame: Frame,
    },
    /// Answers [`LocalMessage::Bury`] for this topic: whether the dead topic has taken the event.
    Buried(Arc<str>, bool),
    /// A back end has disconnected.
    BackendGone(BackendId),
    /// The sender has verified credentials, which belong to the user with this index in the settings.
    CredentialsVerified(Fingerprint, usize),
    /// An address has presented wrong credentials to the sender. All shards count the failed attempts.
    FailedAttempt(IpAddr),
    /// Asks the home shard of an address whether a connection that was accepted from it may stay.
    Arrived(IpAddr, ConnectionKey),
    /// Answers [`LocalMessage::Arrived`].
    Admitted {
        /// The address.
        address: IpAddr,
        /// The connection.
        key: ConnectionKey,
        /// Whether the connection may stay. If so, it counts until [`LocalMessage::Departed`].
        may_stay: bool,
    },
    /// Tells the home shard of an address that a counted connection is closed.
    Departed(IpAddr),
}

/// A message from a shard to a shard of any node. Between nodes, this is what crosses the wire.
#[derive(Debug)]
pub enum GridMessage {
    /// Asks for a command for one client.
    Ask {
        /// The ticket of the answer.
        ticket: Ticket,
        /// The back end that made the call.
        backend: BackendId,
        /// The command.
        command: ClientCommand,
    },
    /// Answers a command.
    Answer(Ticket, Result<ClientReply, Fault>),
    /// A message to the home of a topic, from one of its consumers.
    FromConsumer {
        /// The name of the topic.
        topic: Arc<str>,
        /// The sender.
        consumer: BackendId,
        /// The message.
        message: FromConsumer,
    },
    /// A message from the home of a topic, to one of its consumers.
    ToConsumer {
        /// The name of the topic.
        topic: Arc<str>,
        /// The receiver.
        consumer: BackendId,
        /// The message.
        message: ToConsumer,
    },
    /// Acknowledges or refuses events that were taken over HTTP, at the home of their topic. The answer
    /// carries the ticket.
    Settle(Ticket, Box<SettleTaken>),
    /// Answers [`GridMessage::Settle`].
    Settled(Ticket, Box<StaleTaken>),
    /// A message about the clients of this shard, which a watcher reports as closed if their node is lost.
    LastWills(ShardAddress, LastWillsMessage),
    /// A message of a list of administration, which the ticket names.
    List(Ticket, ListMessage),
    /// Names the user that makes a call, at most 255 bytes of it. Sent before the call's
    /// [`GridMessage::Ask`] while there are taps.
    Caller(Requester, Box<str>),
    /// A message of the shard of a back end that taps, to a shard that watches.
    FromTapper(BackendId, FromTapper),
    /// A message of a shard that watches, to the shard of this back end, which taps.
    ToTapper(BackendId, ToTapper),
    /// A message about who is present in a channel.
    Presence(Box<PresenceMessage>),
}

/// A command for one client.
#[derive(Clone, Debug)]
pub enum ClientCommand {
    /// Appends a frame to the client's outbound queue.
    Send(ClientId, Frame),
    /// Calls a function of the client's connection.
    Call(ClientId, Function),
}

impl ClientCommand {
    /// Returns the client.
    pub fn client(&self) -> ClientId {
        match self {
            Self::Send(client, _) | Self::Call(client, _) => *client,
        }
    }
}

/// The result of a command that has succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientReply {
    /// The command has no result.
    Done,
    /// The client's context: the JSON text of an object.
    Context(String),
    /// The state of the client's connection.
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
    /// Appends a frame to the outbound queue of each subscriber on the shard.
    Publish(Publish),
    /// Does the same for the home of the channel. Answered with [`LocalMessage::Delivered`].
    Deliver(Arc<PlacedPublish>),
    /// Gives a device what it has missed, and lets it get the live messages of the channel. Not answered.
    Recover(Box<RecoveryAnswer>),
    /// Carries out a command for the connections of some users on the shard.
    ForUsers(Arc<UserCommand>),
    /// Makes the back end a consumer of a topic. [`LocalMessage::StartDelivery`] starts the deliveries.
    Join(Arc<str>, Box<Terms>),
    /// Ends the back end's consumption of a topic.
    Leave(Arc<str>),
    /// Puts an event of the back end into a topic. Answered once the event is in the topic, or has found no
    /// room in time.
    Push(Box<PushCommand>),
    /// Returns the shard's state for `/metrics`.
    Report,
}

/// A command for all connections of some users.
#[derive(Debug)]
pub struct UserCommand {
    /// The users: from 1 to [`USERS_PER_CALL_MAX`](crate::protocol::api::USERS_PER_CALL_MAX), each once.
    pub users: Vec<Box<str>>,
    /// What is done with each connection.
    pub action: UserAction,
}

/// What a [`UserCommand`] does with each connection.
#[derive(Debug)]
pub enum UserAction {
    /// Appends a frame to the outbound queue.
    Send(Frame),
    /// Calls a function.
    Call(Function),
}

impl UserCommand {
    /// Returns the channels that the command subscribes to.
    pub fn channels_to_subscribe(&self) -> &[Box<str>] {
        match &self.action {
            UserAction::Call(Function::Subscribe(channels)) => channels,
            _ => &[],
        }
    }
}

/// An event of a back end on its way to a topic.
#[derive(Clone, Debug)]
pub struct PushCommand {
    /// The topic.
    pub topic: Arc<str>,
    /// The key. Events with the same key keep their order.
    pub key: Option<Box<str>>,
    /// The encoded event.
    pub frame: Frame,
    /// The time until the event is handed out, in milliseconds.
    pub after_ms: u32,
}

/// The most clients in one [`LastWillsMessage::Register`].
pub const REGISTERED_PER_MESSAGE_MAX: usize = 1024;

/// The number of watchers that a shard has had, the current one included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatcherEpoch(pub u64);

/// A message between a shard and its watcher, or between watchers: see `shard::last_wills`.
#[derive(Debug)]
pub enum LastWillsMessage {
    /// Makes the receiver the watcher of the sender, with no clients registered.
    Begin(WatcherEpoch),
    /// Registers connected clients of the sender. The topic must learn of their end.
    Register(Arc<str>, Vec<ClientId>),
    /// Ends the registration of a client: its close event has left the topic.
    Unregister(Arc<str>, ClientId),
    /// Claims the clients of a lost node for one of its watchers, so that only the latest watcher reports them.
    Claim {
        /// The run of the lost node.
        incarnation: Incarnation,
        /// The epoch of the sender.
        epoch: WatcherEpoch,
    },
}
