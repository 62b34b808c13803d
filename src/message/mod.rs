//! Messages between shards, the mesh and the node: one enum per direction.
//!
//! | type | sender | receiver |
//! |---|---|---|
//! | [`LocalMessage`] | a shard | a shard of the same node, itself included |
//! | [`GridMessage`] | a shard | a shard of any node. Crosses the wire |
//! | [`ToMesh`] | a shard | the mesh of its node |
//! | [`FromMesh`] | the mesh | a shard of its node |
//! | [`FromNode`] | the node itself | one of its shards |
//! | [`ToBridge`] | a shard, or the node | the bridge of its node |
//! | [`FromBridge`] | the bridge | a shard of its node, in a [`FromNode`] |
//! | [`ToLog`] | a shard | the thread that keeps the logs of topics on disk |
//! | [`FromLog`] | that thread | a shard of its node, in a [`FromNode`] |
//!
//! [`FromShard`] is everything that a shard sends, and [`ToShard`] everything that it receives. What the
//! meshes of two nodes say to each other is `mesh::wire::MeshMessage`.
//!
//! Messages about topics have a direction too: [`FromFeeder`] and [`FromConsumer`] go to the topic's home
//! shard, [`ToFeeder`] and [`ToConsumer`] come from it. Messages about taps go from the shard of a back end that
//! taps, [`FromTapper`], and to it, [`ToTapper`].
//!
//! Messages from one sender to one receiver arrive in the order in which they were sent. Two promises of the
//! API depend on that: events keep their order, and a publish that follows a subscribe reaches the subscriber.

mod bridge;
mod history;
mod list;
mod log;
mod mesh;
mod presence;
mod shard;
mod sink;
mod tap;
mod topic;

use std::sync::Arc;

pub use bridge::{
    AdmissionRequest, AdmissionVerdict, BridgeCallId, BridgeSettings, FromBridge, KeysReport,
    ToBridge,
};
pub use history::{
    AppendedMessage, Attachment, Ballot, COPIES_MAX, ChannelMessage, DeliveredMessage,
    HistoryMessage, HistoryPart, Holding, HomeClaim, HomePublish, PlacedPublish, Placement,
    REIGNS_MAX, RecoveryAnswer, RecoveryQuestion, Reign,
};
pub use list::{
    BackendsQuestion, ClientsPart, ClientsQuestion, ListAnswer, ListMessage, ListQuestion,
    NamesPart, NamesQuestion, ProcessFacts, ShardFigures, SlottedClient, UsersQuestion,
};
pub use log::{
    DelayedEvent, DelayedNumber, EventsRead, FailedTries, FromLog, GroupIndex, LogChange, LogFacts,
    LogId, LogNews, StoredEvent, ToLog,
};
pub use mesh::{FromMesh, InterestChange, KnownNodes, LostNode, ToMesh};
pub use presence::{
    Beginning, MEMBERS_PER_MESSAGE_MAX, PresenceMessage, PresenceNews, PresentMember,
};
pub use shard::{
    ClientCommand, ClientReply, GridMessage, LastWillsMessage, LocalCommand, LocalMessage,
    PushCommand, REGISTERED_PER_MESSAGE_MAX, UserAction, UserCommand, WatcherEpoch,
};
pub use sink::{FromSink, SinkEvent, SinkEvents, SinkFigures, SinkRun};
pub use tap::{FromTapper, ToTapper};
pub use topic::{
    Credit, Delivery, Event, EventNotice, FromConsumer, FromFeeder, MessageNumber, PopId,
    PushReceipt, SettleTaken, StaleTaken, Terms, ToConsumer, ToFeeder,
};

use crate::address::{ClientId, ShardAddress, ShardId};
use crate::protocol::api::ReloadedSettings;
use crate::protocol::credentials::Fingerprint;
use crate::protocol::frame::Frame;
use crate::slot_map::SlotKey;

/// A connection of a shard. Index and generation leave 8 bits of a 64-bit word, in which the ring and the
/// poller say what an event is about.
pub type ConnectionKey = SlotKey<24>;

/// A connection of a back end, unique in the grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId {
    /// The shard that holds the connection.
    pub at: ShardAddress,
    /// The key of the connection on that shard.
    pub connection: ConnectionKey,
}

impl BackendId {
    /// The home of channels on a shard, in place of a back end: shards carry out its commands in order. No connection has
    /// this key, because a table with so many connections does not fit into memory.
    pub fn of_home(at: ShardAddress) -> Self {
        Self { at, connection: ConnectionKey { index: u32::MAX, generation: 1 } }
    }

    /// Whether this is the home of channels on its shard.
    pub fn is_home(&self) -> bool {
        *self == Self::of_home(self.at)
    }

    /// What tells of presence on a shard, in place of a back end.
    pub fn of_presence(at: ShardAddress) -> Self {
        Self { at, connection: ConnectionKey { index: u32::MAX, generation: 2 } }
    }

    /// Whether this is what tells of presence on its shard.
    pub fn is_presence(&self) -> bool {
        *self == Self::of_presence(self.at)
    }
}

/// A question in the asker's table of pending questions. The answer carries the ticket of its question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// The requester of a command, as needed for the answer.
///
/// Messages of 80 bytes and more contain the two fields instead of this struct, which saves 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The ticket of the answer.
    pub ticket: Ticket,
    /// The back end that made the call. The commands of one back end are executed in order.
    pub backend: BackendId,
}

/// A message for the subscribers of a channel.
#[derive(Clone, Debug)]
pub struct Publish {
    /// The name of the channel.
    pub channel: Arc<str>,
    /// The encoded message.
    pub frame: Frame,
    /// The clients that do not get the message: up to
    /// [`EXCLUDED_MAX`](crate::protocol::api::EXCLUDED_MAX). `None`: every subscriber gets it.
    pub excluded: Option<Arc<Vec<ClientId>>>,
}

/// A message that a shard sends.
#[derive(Debug)]
pub enum FromShard {
    /// A message to another shard of the node.
    Local(ShardId, LocalMessage),
    /// A message to the mesh, or through the mesh to a shard of another node.
    Mesh(ToMesh),
}

/// A message that a shard receives.
#[derive(Debug)]
pub enum ToShard {
    /// A message from another shard of the node.
    Local(ShardId, LocalMessage),
    /// A message from the mesh, or through the mesh from a shard of another node.
    Mesh(FromMesh),
    /// A message from the node.
    Node(FromNode),
}

/// A message from the node itself to one of its shards.
#[derive(Debug)]
pub enum FromNode {
    /// The result of a verification that the shard has requested.
    VerificationDone {
        /// The fingerprint of the credentials.
        credentials: Fingerprint,
        /// The index of the user in the settings. `None`: the credentials are wrong.
        user: Option<usize>,
    },
    /// The answer to a request to reload the configuration.
    Reloaded {
        /// The ticket of the request.
        ticket: Ticket,
        /// The changes, or why nothing has changed.
        outcome: Result<Box<ReloadedSettings>, Box<str>>,
    },
    /// A message of the bridge. These messages are rare and large.
    Bridge(Box<FromBridge>),
    /// News of the log of a topic whose home is the shard.
    Log(Box<FromLog>),
    /// Begins the shutdown: the shard stops accepting, closes its clients, and answers pending calls.
    Drain {
        /// The time over which the clients are closed, in milliseconds.
        over_ms: u64,
    },
    /// Ends the shutdown: the shard closes its back ends. Sent when the topics are delivered or time is short.
    DrainBackends,
}

// A mailbox allocates room for thousands of messages when it is created.
const _: () = assert!(size_of::<ToShard>() <= 88 && size_of::<ToMesh>() <= 80);
