//! The back ends' JSON ⇄ calls, replies and events; the table of API codes.
//!
//! - `mod.rs`: what is said, and the codes. `read.rs`: requests. `document.rs`: the JSON under them.
//!   `usual.rs`: the requests that come by the million, in one pass.
//! - `write.rs`: answers and events.

mod document;
mod read;
mod usual;
mod write;

use std::borrow::Cow;
use std::net::SocketAddr;

use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

pub use read::{Method, Parser};
pub use write::{
    put_answer, put_close, put_event, put_found, put_message, put_nodes, put_open, put_tagged,
};

use super::frame::{self, Kind};
use crate::address::{ClientId, NodeId};

/// The longest name of a channel, a topic or a context key, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The most keys of one client's context.
pub const CONTEXT_KEYS_MAX: usize = 256;

/// The most topics that one `queue.pop` may name.
pub const TOPICS_PER_POP_MAX: usize = 256;

/// The most channels that one `conn.call` may name.
pub const CHANNELS_PER_CALL_MAX: usize = 1024;

/// What fits a close frame beside its code, in bytes.
pub const CLOSE_REASON_BYTES_MAX: usize = frame::CONTROL_BYTES_MAX - 2;

/// Base64 as the API takes it: the standard alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a call failed, as a number that a program can test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 101
    InvalidArgument,
    /// 102
    NotAuthorised,
    /// 103
    TooManyRequests,
    /// 104
    TooLarge,
    /// 201
    ConsumptionFailed,
    /// 202
    RepeatedConsumption,
    /// 203
    CancelFailed,
    /// 301
    ExecutionFailed,
    /// 401
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

    /// The number on the wire, and the HTTP status for those who ask for one (`X-Error-Mode`).
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

    /// The number on the wire.
    pub fn number(self) -> u64 {
        self.row().0
    }

    /// The code with this number, if there is one.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.number() == number)
    }

    /// The HTTP status for those who ask for one.
    pub fn http_status(self) -> u16 {
        self.row().1
    }
}

/// A call that failed: its code, and why in words that help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What a program tests.
    pub code: Code,
    /// What a human reads.
    pub message: Cow<'static, str>,
}

impl Fault {
    /// A fault of this code with these words.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

/// A request over WebSocket: what it asks, and the id that its answer carries.
#[derive(Debug, PartialEq)]
pub struct Request<'a> {
    /// `i` as it was sent: the JSON text of a number, a string or null.
    pub id: &'a str,
    /// What is asked, or why it cannot be.
    pub call: Result<Call<'a>, Fault>,
}

/// What a back end asks for.
#[derive(Debug, PartialEq)]
pub enum Call<'a> {
    /// `mesh.send`
    Send(ClientId, Content<'a>),
    /// `mesh.publish`
    Publish(&'a str, Content<'a>),
    /// `conn.call`
    Call(ClientId, Function),
    /// `queue.pop`
    Pop(Vec<&'a str>, Settling),
    /// `queue.unpop`
    Unpop,
    /// `queue.ack`
    Ack(Tags),
}

/// When an event is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settling {
    /// When it was written to the consumer's socket.
    Written,
    /// When the consumer acknowledged it; so many may be without that.
    Acknowledged(usize),
}

/// Which events `queue.ack` settles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// The one with this tag.
    One(u64),
    /// All up to this tag.
    UpTo(u64),
}

/// The most events that a consumer may have without an acknowledgement.
pub const UNSETTLED_MAX: usize = 1024;

/// How many it may have unless it says.
const UNSETTLED_DEFAULT: usize = 64;

/// The message that a client is to get.
#[derive(Debug, PartialEq)]
pub struct Content<'a> {
    /// Text or binary.
    pub kind: Kind,
    /// Its bytes, base64 already undone.
    pub bytes: Cow<'a, [u8]>,
}

/// A function of `conn.call` with its arguments. JSON values are kept as the text that was sent.
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
    /// Memory that its arguments take, at most.
    pub fn held_bytes(&self) -> usize {
        // A pointer with a length, and what an allocation takes beside its bytes.
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

/// A key of a context, and its value as JSON text.
pub type ContextEntry = (Box<str>, Box<str>);

/// What a call that succeeded gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `{"s":true}`
    Done,
    /// `{"s":true,"w":"…"}`: done, and something may not be as the caller thinks.
    Warned(Box<str>),
    /// `{"s":successes,"f":failures}`
    Published(Tally),
    /// `get_context`: the JSON text of the object.
    Context(String),
    /// `info`
    Info(Box<Info>),
    /// A text for people and probes, without an envelope: its content type, and itself. Over HTTP
    /// only.
    Page(&'static str, String),
}

/// One node of the grid, for who looks for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRow {
    /// Its id.
    pub node: NodeId,
    /// Where back ends reach it.
    pub api: SocketAddr,
    /// What its mesh says; `None`: it has none.
    pub mesh: Option<MeshRow>,
}

/// One node of the grid, as seen from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshRow {
    /// Where other nodes reach it.
    pub address: SocketAddr,
    /// `up`, `suspected`, or `lost`: for now there is no link to it.
    pub state: &'static str,
    /// The version of its software.
    pub version: String,
    /// Its clients, as of a second ago.
    pub clients: u64,
}

/// How many connections took a message, and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Took it into their outbound buffer.
    pub delivered: u64,
    /// Did not.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// What is known of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The node that holds it.
    pub node: NodeId,
    /// Where it connected from.
    pub remote: SocketAddr,
    /// When it connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The channels it is subscribed to.
    pub channels: Vec<Box<str>>,
    /// Bytes that wait for it.
    pub buffered: u64,
}
