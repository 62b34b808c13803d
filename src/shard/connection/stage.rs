//! The protocol that a connection speaks, and the state of each: HTTP, a client, a back end.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::{Device, HttpShape, Replies};
use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};
use crate::message::PopId;
use crate::protocol::assembler::Assembler;
use crate::protocol::close::Closed;
use crate::protocol::credentials::Fingerprint;
use crate::protocol::http::{KeptRequest, RequestReader};
use crate::protocol::proxy::ProxyHeaderReader;
use crate::shard::access::Grant;
use crate::shard::backend::{TakeKey, Unsettled};
use crate::shard::client::{Context, Subscription};
use crate::shard::rate::Bucket;
use crate::shard::settings::RouteSettings;
use crate::shard::taps::TapSet;
use crate::shard::trail::By;

/// The protocol that a connection speaks.
#[derive(Debug)]
pub enum Stage {
    /// HTTP, before or without an upgrade to WebSocket.
    Http(Box<Http>),
    /// A client on a route of an edge listener.
    Client(Box<Client>),
    /// A back end on the WebSocket API.
    Backend(Box<Backend>),
    /// A client that has ended and is being unsubscribed from its channels, in slices.
    Unsubscribing(Box<Client>),
    /// No protocol any more: the connection is closing.
    Ending,
}

/// The state of a connection that speaks HTTP.
#[derive(Debug, Default)]
pub struct Http {
    /// The parser, with the partly received request.
    pub reader: RequestReader,
    /// When the first byte of the current request arrived, or the connection itself, in
    /// milliseconds on the shard's clock.
    pub started_ms: u64,
    /// When the connection was accepted, in milliseconds on the shard's clock.
    pub accepted_ms: u64,
    /// Whether the peer has shown valid credentials, or none are needed. An unauthenticated API
    /// connection is closed after `limits.handshake_ms`.
    pub is_authenticated: bool,
    /// Whether a request is partly received.
    pub is_mid_request: bool,
    /// Whether the head of the current request was accepted, so that its body may follow.
    pub is_head_accepted: bool,
    /// Whether an earlier request was answered.
    pub has_answered: bool,
    /// Pending answers, in the order of their requests.
    pub replies: Replies,
    /// Whether the current request is the last: the connection closes after its answer.
    pub is_last: bool,
    /// The authenticated user of the last request, as an index into the configured users. The log
    /// shows the user's name.
    pub user: Option<usize>,
    /// Whether the node is shutting down. The partly received request is then the last.
    pub is_draining: bool,
    /// The request that waits for something outside the shard.
    pub parked: Option<Box<Parked>>,
    /// The reader of the PROXY protocol header, until that has arrived. `None`: no header is expected.
    pub proxy_header: Option<Box<ProxyHeaderReader>>,
    /// The address of the trusted proxy that forwards requests over this connection. `None`: there was
    /// no request of one yet.
    pub proxy: Option<Remote>,
    /// The forwarded handshake that waits until its client's address is counted.
    pub arriving: Option<Box<Arriving>>,
    /// Answers to takes in the outbound queue, in order.
    pub unwritten_takes: VecDeque<UnwrittenTake>,
}

/// The answer to a take in the outbound queue.
#[derive(Clone, Copy, Debug)]
pub struct UnwrittenTake {
    /// Bytes to be written until the answer is.
    pub left: usize,
    /// The take.
    pub take: TakeKey,
}

impl Http {
    /// Notes that bytes were written. Returns true if the answer to a take was among them.
    pub fn note_written(&mut self, bytes: usize) -> bool {
        for unwritten in &mut self.unwritten_takes {
            unwritten.left = unwritten.left.saturating_sub(bytes);
        }
        self.unwritten_takes.front().is_some_and(|first| first.left == 0)
    }
}

/// A handshake that a proxy forwarded, which waits until its client's address is counted.
#[derive(Debug)]
pub struct Arriving {
    /// The request.
    pub request: KeptRequest,
    /// The format of the answer.
    pub shape: HttpShape,
}

/// A request that waits for something outside the shard.
#[derive(Debug)]
pub struct Parked {
    /// The whole request. `None`: only the head of the request has arrived, and it is still in the
    /// reader. The body is not read before the credentials are verified.
    pub request: Option<KeptRequest>,
    /// The format of the answer.
    pub shape: HttpShape,
    /// The event that the request waits for.
    pub awaited: Awaited,
    /// When the request is refused, in milliseconds on the shard's clock.
    pub deadline_ms: u64,
}

/// The event that a parked request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The verification of these credentials. A result must match the credentials, because a late
    /// result may concern an earlier request.
    Verification(Fingerprint),
    /// The answer of the bridge that a client's handshake needs: see `shard/admission.rs`.
    Handshake,
}

/// A client on a route of an edge listener.
#[derive(Debug)]
pub struct Client {
    /// The id of the client.
    pub id: ClientId,
    /// The route, as an index into the routes of its edge.
    pub route: u16,
    /// When the client's token expires, in Unix milliseconds. `None`: never.
    pub expires_unix_ms: Option<NonZeroU64>,
    /// Whether the client has sent a message. Routes with `hold_until` accept the first message at
    /// once.
    pub has_spoken: bool,
    /// The rate limit bucket, for routes that limit messages.
    pub messages: Bucket,
    /// The decoder, with the partly received message.
    pub assembler: Assembler,
    /// The client's position in each of its channels.
    pub subscriptions: Vec<Subscription>,
    /// The JSON object that back ends attached to the client.
    pub context: Context,
    /// The taps that match the client.
    pub taps: TapSet,
    /// The answers to the client's calls. `None`: the client does not speak the device protocol, or has disconnected.
    pub device: Option<Box<Device>>,
}

/// The state of a back end on the WebSocket API.
#[derive(Debug, Default)]
pub struct Backend {
    /// The decoder, with the partly received request.
    pub assembler: Assembler,
    /// Pending answers, in the order of their requests.
    pub replies: Replies,
    /// The user and the roles of the back end.
    pub grant: Grant,
    /// The topics that the back end consumes. Empty: the back end is no consumer.
    pub topics: Vec<Arc<str>>,
    /// The group in which the back end consumes; `None`: the default group.
    pub group: Option<Arc<str>>,
    /// The latest `queue.pop`. Answers to earlier ones are ignored.
    pub latest_pop: PopId,
    /// Whether the answer to the current `queue.pop` is queued, so that events may follow.
    pub is_consuming: bool,
    /// The close frame to send after all pending answers, and the side that closed.
    pub close: Option<(Closed, By)>,
    /// The events to be acknowledged, if the back end consumes with acknowledgements.
    pub unsettled: Option<Unsettled>,
    /// Whether the back end has taps.
    pub is_tapping: bool,
    /// Whether the back end has ever consumed. Topics may then have events in its outbound queue.
    pub has_consumed: bool,
    /// The number of bytes written to the back end so far.
    pub written: u64,
    /// Events in the outbound queue, in order.
    pub unwritten_events: VecDeque<UnwrittenEvent>,
}

/// An event in the outbound queue of a consumer.
#[derive(Clone, Debug)]
pub struct UnwrittenEvent {
    /// The number of bytes written to the consumer once the event is written.
    pub end: u64,
    /// The node with the topic's home, which waits for the write.
    pub home: NodeId,
    /// The topic of the event.
    pub topic: Arc<str>,
}

/// Why the next frame of a client may not be read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FramePause {
    /// The context lacks the key that the route's `hold_until` names.
    Hold,
    /// The message rate is used up.
    Rate {
        /// When the client may be read again, in milliseconds on the shard's clock.
        ready_ms: u64,
    },
}

impl Client {
    /// Creates a client that has sent nothing, on a route of its edge.
    pub fn new(id: ClientId, route: u16) -> Self {
        Self {
            id,
            route,
            expires_unix_ms: None,
            has_spoken: false,
            messages: Bucket::default(),
            assembler: Assembler::default(),
            subscriptions: Vec::new(),
            context: Context::default(),
            taps: TapSet::default(),
            device: None,
        }
    }

    /// Whether the client's messages wait until its context has the key that the route requires.
    pub fn is_held(&self, route: &RouteSettings) -> bool {
        self.has_spoken && route.hold_until.as_ref().is_some_and(|key| !self.context.has(key))
    }

    /// Returns why the client's next frame may not be read yet, except for a full topic. `None`
    /// also within a frame: pauses begin between two frames, so that the read-ahead can be scanned
    /// for control frames.
    #[inline]
    pub fn frame_pause(&self, route: &RouteSettings, now_ms: u64) -> Option<FramePause> {
        if self.assembler.frame_left() != Some(0) {
            return None;
        }
        if self.is_held(route) {
            return Some(FramePause::Hold);
        }
        let ready_ms = route.messages?.ready_at_ms(self.messages);
        (now_ms < ready_ms).then_some(FramePause::Rate { ready_ms })
    }
}
