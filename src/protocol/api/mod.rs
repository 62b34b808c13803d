//! The back-end API's JSON: parses requests into calls, and encodes replies and events.
//!
//! - `mod.rs`: calls, replies and the table of error codes.
//! - `read.rs`: parses requests of any form. `params.rs`: the parameters of each method.
//!   `document.rs`: access to the parsed JSON.
//! - `fast.rs`: parses the most frequent requests in one pass.
//! - `list.rs`: the lists of administration.
//! - `write.rs`: encodes answers and events.
//! - `taken.rs`: events that are taken over HTTP.
//! - `tap.rs`: the parameters and the events of a tap.
//! - `device.rs`: the protocol of devices.

mod device;
mod document;
mod fast;
mod list;
mod params;
mod read;
mod taken;
mod tap;
mod write;

use std::borrow::Cow;
use std::net::SocketAddr;

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ipnet::IpNet;

pub use device::{
    ChannelRecovery, DEVICE_SUBPROTOCOL, DeviceCall, DeviceRequest, MessageOrigin,
    SubscribedChannel, WantedChannels, put_closing, put_device_message, put_presence,
};
pub use list::{
    BackendRow, BackendsCall, ChannelRow, ClientCursor, ClientFilter, ClientRow, ClientsCall,
    FAILURE_BYTES_MAX, GroupRow, ListCall, ListMethod, Listing, NamedRow, NamedRows, NamesCall,
    NodeEntry, NodeFigures, NodeList, NodeStanding, PAGE_MAX, Page, PerSecond, SinkRow,
    TOPICS_SHOWN_MAX, TopicRow, USER_BYTES_MAX, USER_CONNECTIONS_MAX, UserConnection, UserRow,
};
pub use read::{ApiMethod, NotUtf8, Parser};
pub use taken::{TakenEvent, TakenTag};
pub use tap::{
    TAP_EVENTS_PER_S_MAX, TAP_FRAME_BYTES_MAX, TapEvent, TapHead, put_tap_lost, tap_frame,
};
pub use write::{
    Death, EventHead, PresenceEvent, event_object, put_answer, put_close, put_dead, put_event,
    put_found, put_message, put_nodes, put_open, put_presence_event, put_pushed, put_request,
    put_tagged,
};

use super::frame::{self, Kind};
use super::position::Position;
use crate::address::listen::ListenAddress;
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};

/// The longest name of a channel, a topic or a context key, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The longest path of a route, in bytes.
pub const ROUTE_PATH_BYTES_MAX: usize = 1024;

/// The most keys of one client's context.
pub const CONTEXT_KEYS_MAX: usize = 256;

/// The most topics that one `queue.pop` may name.
pub const TOPICS_PER_POP_MAX: usize = 256;

/// The most channels that one `mesh.publish` may name.
pub const CHANNELS_PER_PUBLISH_MAX: usize = 1000;

/// The most users that one call may name.
pub const USERS_PER_CALL_MAX: usize = 1000;

/// The most clients that one `mesh.publish` may exclude.
pub const EXCLUDED_MAX: usize = 1000;

/// The longest idempotency key of a publish, in bytes.
pub const PUBLISH_KEY_BYTES_MAX: usize = 128;

/// The most channels that one `conn.call` may name.
pub const CHANNELS_PER_CALL_MAX: usize = 1024;

/// The longest reason in a close frame, in bytes.
pub const CLOSE_REASON_BYTES_MAX: usize = frame::CONTROL_BYTES_MAX - 2;

/// The base64 variant of the API: the standard alphabet, with or without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An error code of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 101: an argument is missing or invalid.
    InvalidArgument,
    /// 102: the credentials are wrong, or do not allow this call.
    NotAuthorised,
    /// 103: a rate limit was reached.
    TooManyRequests,
    /// 104: the request is too large.
    TooLarge,
    /// 201: the topic cannot be consumed.
    ConsumptionFailed,
    /// 202: this connection consumes the topic already.
    RepeatedConsumption,
    /// 203: consuming could not be stopped.
    CancelFailed,
    /// 301: the call could not be executed.
    ExecutionFailed,
    /// 401: the message could not be sent.
    SendFailed,
}

impl Code {
    const ALL: [Self; 9] = [
        Self::InvalidArgument,
        Self::NotAuthorised,
        Self::TooManyRequests,
        Self::TooLarge,
        Self::ConsumptionFailed,
        Self::RepeatedConsumption,
        Self::CancelFailed,
        Self::ExecutionFailed,
        Self::SendFailed,
    ];

    /// Returns the number on the wire, and the HTTP status for callers that ask for one with
    /// `X-Error-Mode`.
    fn row(self) -> (u64, u16) {
        match self {
            Self::InvalidArgument => (101, 400),
            Self::NotAuthorised => (102, 401),
            Self::TooManyRequests => (103, 429),
            Self::TooLarge => (104, 413),
            Self::ConsumptionFailed => (201, 500),
            Self::RepeatedConsumption => (202, 500),
            Self::CancelFailed => (203, 500),
            Self::ExecutionFailed => (301, 500),
            Self::SendFailed => (401, 502),
        }
    }

    /// Returns the number on the wire.
    pub fn number(self) -> u64 {
        self.row().0
    }

    /// Returns the code with this number, if there is one.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// Returns the HTTP status for callers that ask for one with `X-Error-Mode`.
    pub fn http_status(self) -> u16 {
        self.row().1
    }
}

/// The error of a failed call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The code, for programs.
    pub code: Code,
    /// The message, for people.
    pub message: Cow<'static, str>,
}

impl Fault {
    /// Creates a fault.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

/// A request over WebSocket.
#[derive(Debug, PartialEq)]
pub struct ApiRequest<'a> {
    /// The request's `i`, which the answer repeats: the JSON text of a number, a string or null.
    pub id: &'a str,
    /// The requested call, or the reason why the request is invalid.
    pub call: Result<Call<'a>, Fault>,
}

/// A call of the API with its parameters.
#[derive(Debug, PartialEq)]
pub enum Call<'a> {
    /// `mesh.send`: sends a message to one client.
    Send(ClientId, Content<'a>),
    /// `mesh.publish`: sends a message to the subscribers of a channel.
    Publish(&'a str, Content<'a>),
    /// `mesh.publish` with an array of channels, with clients that do not get the message, or with a key.
    MultiPublish(Box<MultiPublish<'a>>),
    /// `conn.call`: calls a function of a client's connection.
    Call(ClientId, Function),
    /// `user.send`: sends a message to all connections of these users, each of whom is named once.
    UserSend(Vec<Box<str>>, Content<'a>),
    /// `user.call`: calls a function of each connection of these users, each of whom is named once.
    UserCall(Vec<Box<str>>, Function),
    /// `queue.pop`: starts to consume topics, in a group or in the default group.
    Pop(Vec<&'a str>, Settling, Option<&'a str>),
    /// `queue.unpop`: stops consuming.
    Unpop,
    /// `queue.ack`: acknowledges events.
    Ack(Tags),
    /// `queue.nack`: refuses events, which are delivered again after this time in milliseconds.
    Nack(Tags, u32),
    /// `queue.take`: takes events over HTTP.
    Take(TakeCall<'a>),
    /// `queue.push`: puts an event of the back end into a topic.
    Push(PushedEvent<'a>),
    /// `admin.reload`: reloads the configuration of the node.
    Reload,
    /// A list of administration: lists something of the whole grid.
    List(ListCall),
    /// `tap.start`: watches devices live.
    Tap(Tap),
    /// `tap.stop`: ends all taps of the connection.
    Untap,
}

/// A message for the subscribers of several channels, or for some of them.
#[derive(Debug, PartialEq)]
pub struct MultiPublish<'a> {
    /// The channels, each once: from 1 to [`CHANNELS_PER_PUBLISH_MAX`]. A client that is subscribed to
    /// several gets the message several times.
    pub channels: Vec<&'a str>,
    /// Whether the channels were given as an array. Then the answer has no position.
    pub is_list: bool,
    /// The clients that do not get the message: up to [`EXCLUDED_MAX`].
    pub excluded: Vec<ClientId>,
    /// The idempotency key: at most [`PUBLISH_KEY_BYTES_MAX`]. On each channel, the message is delivered once however often
    /// the key is used.
    pub key: Option<&'a str>,
    /// The message.
    pub content: Content<'a>,
}

/// A tap: what a back end watches live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The devices that are watched.
    pub target: TapTarget,
    /// The most events a second.
    pub max_per_s: u16,
}

/// The devices that a tap watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapTarget {
    /// One client.
    Client(ClientId),
    /// The clients of a user.
    User(Box<str>),
    /// The subscribers of a channel.
    Channel(Box<str>),
    /// The clients of the routes that feed a topic.
    Topic(Box<str>),
    /// The clients, and the refused connections, of an address or a network.
    Address(IpNet),
}

/// A request for events over HTTP.
#[derive(Debug, PartialEq, Eq)]
pub struct TakeCall<'a> {
    /// The topics.
    pub topics: Vec<&'a str>,
    /// The consumer group. `None`: the default group.
    pub group: Option<&'a str>,
    /// The most events to take, 1 to [`TAKEN_MAX`].
    pub max: usize,
    /// The time to wait for the first event, in milliseconds, at most [`TAKE_WAIT_MS_MAX`].
    pub wait_ms: u32,
}

/// The most events that a back end may take at once.
pub const TAKEN_MAX: usize = 1000;

/// The events that a back end takes at once if it does not say how many.
const TAKEN_DEFAULT: usize = 100;

/// The longest time that a take may wait for the first event, in milliseconds.
pub const TAKE_WAIT_MS_MAX: u32 = 30_000;

/// An event of a back end, for a topic.
#[derive(Debug, PartialEq, Eq)]
pub struct PushedEvent<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The content.
    pub data: &'a str,
    /// The key. Events with the same key keep their order.
    pub key: Option<&'a str>,
    /// The time until the event is handed out, in milliseconds.
    pub after_ms: u32,
}

/// When an event that was delivered to a consumer is settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// Once it is written to the consumer's socket.
    Written,
    /// Once the consumer has acknowledged it. The number bounds its unacknowledged events.
    Acknowledged(usize),
}

/// The events that `queue.ack` acknowledges, or `queue.nack` refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// The event with this tag.
    One(u64),
    /// The events with these tags, at most [`UNSETTLED_MAX`].
    Each(Vec<u64>),
    /// All events up to and including this tag.
    UpTo(u64),
    /// The events that were taken over HTTP with these tags, at most [`UNSETTLED_MAX`].
    Taken(Vec<TakenTag>),
}

/// The longest delay of an event, in milliseconds: 7 days.
pub const DELAY_MS_MAX: u32 = 7 * 24 * 3600 * 1000;

/// The highest bound of unacknowledged events that a consumer may choose.
pub const UNSETTLED_MAX: usize = 1024;

/// The bound of unacknowledged events for a consumer that chooses none.
const UNSETTLED_DEFAULT: usize = 64;

/// The content of a message for clients.
#[derive(Debug, PartialEq)]
pub struct Content<'a> {
    /// Text or binary.
    pub kind: Kind,
    /// The payload, decoded from base64 if it is binary.
    pub bytes: Cow<'a, [u8]>,
}

/// A function of `conn.call` with its arguments. JSON values keep the text with which they were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// `set_context_value(key, value)`
    SetContextValue(Box<str>, Box<str>),
    /// `set_context(object)`
    SetContext(Vec<ContextEntry>),
    /// `subscribe(channel…)`
    Subscribe(Vec<Box<str>>),
    /// `unsubscribe(channel…)`
    Unsubscribe(Vec<Box<str>>),
    /// `close(code, reason)`
    Close(u16, Box<str>),
    /// `get_context()`
    GetContext,
    /// `info()`
    Info,
}

impl Function {
    /// Whether the function subscribes to this channel, among others.
    pub fn subscribes_to(&self, channel: &str) -> bool {
        matches!(self, Self::Subscribe(channels) if channels.iter().any(|name| **name == *channel))
    }

    /// Returns the most memory that the arguments take, in bytes.
    pub fn held_bytes(&self) -> usize {
        // A pointer with a length, and the overhead of an allocation.
        let held = |text: &str| size_of::<Box<str>>() + 24 + text.len();
        match self {
            Self::SetContextValue(key, value) => held(key) + held(value),
            Self::SetContext(entries) => {
                entries.iter().map(|(key, value)| held(key) + held(value)).sum()
            }
            Self::Subscribe(channels) | Self::Unsubscribe(channels) => {
                channels.iter().map(|channel| held(channel)).sum()
            }
            Self::Close(_, reason) => held(reason),
            Self::GetContext | Self::Info => 0,
        }
    }
}

/// A key of a client's context, and its value as JSON text.
pub type ContextEntry = (Box<str>, Box<str>);

/// The result of a successful call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `{"s":true}`: done.
    Done,
    /// `{"s":true,"w":"…"}`: done, with a warning about a likely mistake of the caller.
    Warned(Box<str>),
    /// `{"s":successes,"f":failures}`: the result of a publish, and of a call for users.
    Published(Tally),
    /// `{"s":successes,"f":failures,"o":"position"}`: the result of a publish to a channel with history.
    Placed(Tally, Position),
    /// The result of `get_context`: the JSON text of the context.
    Context(String),
    /// The result of `info`.
    Info(Box<Info>),
    /// `{"changed":[…],"restart":[…]}`: the result of `admin.reload`.
    Reloaded(Box<ReloadedSettings>),
    /// The answer to a list of administration.
    List(Box<Listing>),
    /// `{"s":true,"missing":[…]}`: the result of `tap.start`, with the nodes that do not watch.
    Tapping(Vec<NodeId>),
    /// `{"events":[…]}`: the result of a take.
    Taken(Vec<TakenEvent>),
    /// `{"s":true,"stale":[…]}`: the result of an acknowledgement of taken events, with the tags that have
    /// settled nothing.
    Settled(Vec<TakenTag>),
    /// `{"s":true,"channels":{…}}`: the result of a device's `subscribe`.
    Subscribed(Vec<SubscribedChannel>),
    /// A document without the envelope of an answer: its content type and its text. Over HTTP only.
    Page(&'static str, String),
}

/// The differences between a reloaded configuration and the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReloadedSettings {
    /// The settings that have changed, each with its old and new value. Shows no secret.
    pub changed: Vec<String>,
    /// The settings that change only when the node starts again.
    pub restart: Vec<String>,
}

/// One node of the grid, as listed by `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// The node's id.
    pub node: NodeId,
    /// The address at which back ends reach the node's API.
    pub api: ListenAddress,
    /// The mesh's view of the node. `None`: the answering node has no mesh.
    pub mesh: Option<MeshRow>,
}

/// One node of the grid, as seen by the mesh of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshRow {
    /// The address at which other nodes reach the node.
    pub address: SocketAddr,
    /// Whether the node can be reached.
    pub state: LinkState,
    /// The version of gridcast that the node runs.
    pub version: String,
    /// The number of the node's clients, up to a second old.
    pub clients: u64,
}

/// Whether another node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// There is a link to the node.
    Up,
    /// There is a link to the node, but other nodes suspect that the node is dead.
    Suspected,
    /// There is no link to the node at present.
    Lost,
}

impl LinkState {
    /// Returns the name of the state in `GET /v1/nodes`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspected => "suspected",
            Self::Lost => "lost",
        }
    }
}

/// The outcome of a publish or of a call for users, counted in connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections whose outbound queue accepted the message, or that have carried out the function.
    pub delivered: u64,
    /// Connections that did not get the message, or could not carry out the function.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// The state of one client, as returned by `info`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The node that the client is connected to.
    pub node: NodeId,
    /// The address that the client connected from.
    pub remote: Remote,
    /// When the client connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The channels that the client is subscribed to.
    pub channels: Vec<Box<str>>,
    /// Bytes in the client's outbound queue.
    pub buffered: u64,
}
