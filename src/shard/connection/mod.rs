//! The connections of a shard: the protocol state of each socket, its read-ahead and its outbound
//! queue. All other parts borrow them.
//!
//! - `mod.rs`: one connection. `table.rs`: the table of all connections.
//! - `lifecycle.rs`: accept, close, and removal from the table. `pending_close.rs`: clients that
//!   disconnected before all their messages were processed. `timeouts.rs`: handshake, ping and idle
//!   timeouts.
//! - `reading.rs`: reading, pausing and resuming. `read_ahead.rs`: the bytes kept for a paused
//!   connection. `writing.rs`: the order in which connections are written to.
//! - `outbound.rs`: the outbound queue. `replies.rs`: answers in the order of their requests.
//!   `answers.rs`: writes the answers. `http.rs`: the state of HTTP requests.

mod answers;
mod http;
mod lifecycle;
mod outbound;
mod pending_close;
mod read_ahead;
mod reading;
mod replies;
mod table;
mod timeouts;
mod writing;

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::shard::access::Grant;
use crate::shard::backend::Unsettled;
use crate::shard::client::{Context, Subscription};
use crate::shard::rate::Bucket;
use crate::shard::settings::{RouteSettings, Settings};
use crate::shard::taps::TapSet;
use crate::shard::trail::By;
use crate::shard::turn::Now;

use crate::address::remote::Remote;
use crate::address::{ClientId, NodeId};
use crate::message::PopId;
use crate::protocol::assembler::Assembler;
use crate::protocol::close::Closed;
use crate::protocol::credentials::Fingerprint;
use crate::protocol::deflate::Window;
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::protocol::http::{KeptRequest, RequestReader};
use crate::protocol::proxy::ProxyHeaderReader;

pub use answers::ReadProgress;
pub use outbound::{Batch, Chunk, freed_bytes};
pub(super) use outbound::{BufferPool, Outbound};
pub(super) use read_ahead::{READ_AHEAD_BYTES_MAX, ReadAhead};
pub(super) use replies::{FollowUp, HttpShape, Replies, Shape, WAITING_MAX};
pub(super) use table::Connections;
pub use writing::Priority;
pub(super) use writing::{PolledWrite, QueuedWrites, Written};

/// The listener that accepted a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The API listener, for back ends.
    Api,
    /// An edge listener, for clients. The number is an index into `Settings::edges`.
    Edge(u16),
}

/// One socket and its state. An idle client owns this, its [`Client`] and no buffer.
#[derive(Debug)]
pub struct Connection {
    /// The address of the peer, or of the client for which a trusted proxy connected.
    pub remote: Remote,
    /// When the connection was accepted, in Unix milliseconds.
    pub since_ms: u64,
    /// When bytes last arrived, in milliseconds on the shard's clock.
    pub last_received_ms: u64,
    // The tick of the only valid timer entry, cut to its low 32 bits. The low bits repeat after two
    // years.
    timer_tick: u32,
    // The limit of the outbound queue in bytes of memory, from the configuration: at most 1 GiB.
    outbound_max: u32,
    /// The protocol that the connection speaks, with its state.
    pub stage: Stage,
    /// Frames and bytes to be written.
    pub outbound: Outbound,
    /// Bytes received while reading is paused.
    pub read_ahead: ReadAhead,
    /// The stage of the connection's life, from open to closed.
    pub phase: Phase,
    /// The reasons why reading is paused. Empty: reading is not paused.
    pub pauses: Pauses,
    /// The write queues that contain the connection.
    pub queued_writes: QueuedWrites,
    /// Whether the driver was told to stop receiving from the socket.
    pub is_receive_stopped: bool,
    /// Whether the connection is in a queue to be read in a later turn.
    pub is_queued_to_read: bool,
    /// Whether the last read used up the connection's slice of the turn.
    pub is_heavy: bool,
    /// Whether a message is partly inflated, so that reading continues without further input.
    pub is_inflating: bool,
    /// Whether the driver has closed the socket. The connection stays in the table until its client
    /// is unsubscribed from all channels.
    pub is_socket_closed: bool,
    /// Whether the client has disconnected before all its messages were processed: see
    /// `pending_close.rs`.
    pub has_pending_close: bool,
    /// Whether a ping was sent and nothing has arrived since.
    pub is_pinged: bool,
    /// Whether the peer will send nothing more (half-closed).
    pub is_read_closed: bool,
    /// Whether the connection is broken in both directions: nothing can be written either.
    pub is_broken: bool,
    /// The compression window for messages to the client. `None`: compression was not agreed on.
    pub compression: Option<Window>,
    /// Whether the connection is included in the count of its address, on the shard that keeps that
    /// count.
    pub is_counted: bool,
    /// The listener that accepted the connection.
    pub listener: Listener,
}

/// The minimum rate of a message in bytes per second. A message may take `limits.idle_ms`, and one
/// more second for every 1024 bytes received. A peer that trickles bytes or sends endless empty
/// fragments is closed.
const MESSAGE_BYTES_PER_S: u64 = 1024;

/// The stage of a connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection is read from and written to.
    Open,
    /// The outbound queue is still written. Reading has ended.
    Flushing,
    /// Our end is shut down after everything was written. Waits for the peer to close its end: a
    /// reset sent earlier could destroy the close frame before the peer reads it.
    Lingering,
    /// The driver was told to close the socket.
    Closed,
}

/// Reasons to pause reading from a connection. Each is a bit, because several can hold at once.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Pause {
    /// A message waits for room in a topic.
    Topic = 1,
    /// The client's context lacks the key that its route's `hold_until` names.
    Hold = 2,
    /// The peer does not read what was sent to it.
    Outbound = 4,
    /// Too many requests are unanswered.
    Answers = 8,
    /// The connection closes once all pending answers are written.
    Ending = 16,
    /// A request is parked: its credentials are being verified, or its handshake waits for the bridge.
    Parked = 32,
    /// The client has used up its message rate.
    Rate = 64,
    /// The shard that counts the connections of the address has not admitted the connection yet.
    Address = 128,
}

/// A set of reasons to pause reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pauses(u8);

impl Pauses {
    /// Returns the set of these reasons.
    pub const fn of(reasons: &[Pause]) -> Self {
        let (mut bits, mut at) = (0, 0);
        // Constant functions have no iterators.
        while at < reasons.len() {
            bits |= reasons[at] as u8;
            at += 1;
        }
        Self(bits)
    }

    /// Whether no reason is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this reason is in the set.
    pub fn contains(self, reason: Pause) -> bool {
        self.0 & reason as u8 != 0
    }

    /// Whether the sets have a reason in common.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether all reasons of this set are in the other.
    pub fn is_within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    /// Adds a reason.
    pub fn insert(&mut self, reason: Pause) {
        self.0 |= reason as u8;
    }

    /// Removes a reason.
    pub fn remove(&mut self, reason: Pause) {
        self.0 &= !(reason as u8);
    }
}

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
    /// What the request waits for.
    pub awaited: Awaited,
    /// When the request is refused, in milliseconds on the shard's clock.
    pub deadline_ms: u64,
}

/// What a parked request waits for.
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

impl Connection {
    /// Returns the route of a client, including one that is being unsubscribed.
    pub fn route<'s>(&self, settings: &'s Settings) -> Option<&'s Arc<RouteSettings>> {
        let Listener::Edge(edge) = self.listener else { return None };
        let (Stage::Client(client) | Stage::Unsubscribing(client)) = &self.stage else {
            return None;
        };
        settings.edges[usize::from(edge)].routes.get(usize::from(client.route))
    }

    /// Creates a connection that speaks HTTP, on either kind of listener.
    pub fn new(remote: Remote, listener: Listener, now: Now) -> Self {
        Self {
            remote,
            since_ms: now.unix_ms,
            last_received_ms: now.ms,
            timer_tick: 0,
            outbound_max: 0,
            stage: Stage::Http(Box::new(Http {
                started_ms: now.ms,
                accepted_ms: now.ms,
                ..Http::default()
            })),
            outbound: Outbound::default(),
            read_ahead: ReadAhead::default(),
            phase: Phase::Open,
            pauses: Pauses::default(),
            queued_writes: QueuedWrites::default(),
            is_receive_stopped: false,
            is_queued_to_read: false,
            is_heavy: false,
            is_inflating: false,
            is_socket_closed: false,
            has_pending_close: false,
            is_pinged: false,
            is_read_closed: false,
            is_broken: false,
            compression: None,
            is_counted: false,
            listener,
        }
    }

    /// Whether the handshake of a client is parked.
    pub fn has_parked_handshake(&self) -> bool {
        let Stage::Http(http) = &self.stage else { return false };
        http.parked.as_ref().is_some_and(|parked| parked.awaited == Awaited::Handshake)
    }

    /// Returns the client, if the connection belongs to one.
    pub fn client(&mut self) -> Option<&mut Client> {
        match &mut self.stage {
            Stage::Client(client) => Some(client),
            _ => None,
        }
    }

    /// Whether a tap matches the client.
    #[inline]
    pub fn is_tapped(&self) -> bool {
        // The state of the outbound queue is at hand where a message is queued.
        self.outbound.is_tapped
    }

    /// Returns the client, and the taps that match it.
    pub fn tapped(&self) -> Option<(ClientId, TapSet)> {
        match &self.stage {
            Stage::Client(client) => Some((client.id, client.taps)),
            _ => None,
        }
    }

    /// Sets the taps that match the client.
    pub fn set_taps(&mut self, taps: TapSet) {
        if let Stage::Client(client) = &mut self.stage {
            client.taps = taps;
            self.outbound.is_tapped = !taps.is_empty();
        }
    }

    /// Returns the authenticated user, as an index into the configured users.
    pub fn user(&self) -> Option<usize> {
        match &self.stage {
            Stage::Backend(backend) => backend.grant.user,
            Stage::Http(http) => http.user,
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => None,
        }
    }

    /// Returns the back end, if the connection belongs to one on the WebSocket API.
    pub fn backend(&mut self) -> Option<&mut Backend> {
        match &mut self.stage {
            Stage::Backend(backend) => Some(backend),
            _ => None,
        }
    }

    /// Whether the connection begins with a PROXY protocol header that has not arrived yet.
    pub fn awaits_proxy_header(&self) -> bool {
        matches!(&self.stage, Stage::Http(http) if http.proxy_header.is_some())
    }

    /// Whether a forwarded handshake waits until its client's address is counted.
    pub fn is_arriving(&self) -> bool {
        matches!(&self.stage, Stage::Http(http) if http.arriving.is_some())
    }

    /// Whether this is an API connection without valid credentials so far.
    pub fn is_unauthenticated(&self) -> bool {
        match &self.stage {
            Stage::Http(http) => self.listener == Listener::Api && !http.is_authenticated,
            _ => false,
        }
    }

    /// Returns when the client's token expires, in Unix milliseconds. `None`: never.
    pub fn expires_unix_ms(&self) -> Option<u64> {
        match &self.stage {
            Stage::Client(client) => client.expires_unix_ms.map(NonZeroU64::get),
            _ => None,
        }
    }

    /// Returns when a partly received message or frame is due, in milliseconds on the shard's
    /// clock. `None` while reading is paused, or when no message is partly received.
    pub fn message_due_ms(&self, idle_ms: u64) -> Option<u64> {
        let assembler = match &self.stage {
            Stage::Client(client) => &client.assembler,
            Stage::Backend(backend) => &backend.assembler,
            Stage::Http(_) | Stage::Unsubscribing(_) | Stage::Ending => return None,
        };
        let unfinished = assembler.unfinished().filter(|_| !self.is_paused())?;
        let pace_ms = unfinished.bytes as u64 * 1000 / MESSAGE_BYTES_PER_S;
        Some(unfinished.since_ms + idle_ms + pace_ms)
    }

    /// Returns the pending answers of a connection that makes requests.
    pub fn replies(&mut self) -> Option<&mut Replies> {
        match &mut self.stage {
            Stage::Http(http) => Some(&mut http.replies),
            Stage::Backend(backend) => Some(&mut backend.replies),
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => None,
        }
    }

    /// Whether received bytes or a partly inflated message are still unprocessed.
    pub fn has_input(&self) -> bool {
        !self.read_ahead.is_empty() || self.is_inflating
    }

    /// Returns the client's subscriptions, including those of a client that is being unsubscribed.
    pub fn subscriptions(&mut self) -> Option<&mut Vec<Subscription>> {
        match &mut self.stage {
            Stage::Client(client) | Stage::Unsubscribing(client) => Some(&mut client.subscriptions),
            Stage::Http(_) | Stage::Backend(_) | Stage::Ending => None,
        }
    }

    /// Whether reading is paused, for any reason.
    #[inline]
    pub fn is_paused(&self) -> bool {
        !self.pauses.is_empty()
    }

    /// Whether reading is paused for this reason, among others.
    pub fn is_paused_for(&self, reason: Pause) -> bool {
        self.pauses.contains(reason)
    }

    /// Returns the limit of the outbound queue in bytes of memory.
    pub fn outbound_max(&self) -> usize {
        self.outbound_max as usize
    }

    /// Sets the limit of the outbound queue in bytes of memory.
    pub fn set_outbound_max(&mut self, bytes: usize) {
        self.outbound_max = bytes.try_into().unwrap_or(u32::MAX);
    }

    /// Sets the tick of the only valid timer entry.
    pub fn set_timer_tick(&mut self, tick: u64) {
        self.timer_tick = tick as u32;
    }

    /// Whether the timer entry at this tick is the valid one.
    pub fn is_due_at(&self, tick: u64) -> bool {
        self.timer_tick == tick as u32
    }

    /// Whether a frame of this many bytes fits in the outbound queue. An empty queue accepts a
    /// frame as long as the limit; its overhead counts against the frames that follow.
    pub fn has_room_for(&self, bytes: usize) -> bool {
        self.outbound.charge() + bytes <= self.outbound_max()
    }

    /// Whether at least `requests` answers are pending, or their ids and queued answers take more
    /// than `1 / part` of the outbound limit.
    pub fn has_too_many_pending(&self, requests: usize, part: usize) -> bool {
        let bytes_max = self.outbound_max() / part;
        let replies = match &self.stage {
            Stage::Http(http) => &http.replies,
            Stage::Backend(backend) => &backend.replies,
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => return false,
        };
        replies.len() >= requests || replies.held_bytes() > bytes_max
    }

    /// Returns the memory taken by unread output, compared with the outbound limit. The overhead of
    /// queued events is left out: the consumer's window in bytes bounds them.
    pub fn unread_charge(&self) -> usize {
        let of_events = match &self.stage {
            Stage::Backend(backend) => backend.unwritten_events.len() * QUEUED_FRAME_BYTES,
            _ => 0,
        };
        self.outbound.charge().saturating_sub(of_events)
    }

    /// Whether the outbound queue waits for this shard to write it, not for the peer to read.
    pub fn is_awaiting_write(&self) -> bool {
        self.phase == Phase::Open && !self.queued_writes.is_empty() && self.outbound.is_ready()
    }

    /// Whether a frame of this many bytes does not fit, but would if the peer read faster.
    pub fn is_too_slow_for(&self, bytes: usize) -> bool {
        let would_fit = self.phase == Phase::Open && bytes <= self.outbound_max();
        would_fit && !self.has_room_for(bytes) && !self.is_awaiting_write()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_when_its_last_reason_is_removed() {
        let mut pauses = Pauses::default();
        pauses.insert(Pause::Topic);
        pauses.insert(Pause::Address);
        pauses.insert(Pause::Topic);
        assert_eq!(pauses, Pauses::of(&[Pause::Address, Pause::Topic]));
        assert!(pauses.intersects(Pauses::of(&[Pause::Topic, Pause::Rate])));
        assert!(!pauses.is_within(Pauses::of(&[Pause::Topic, Pause::Rate])));
        pauses.remove(Pause::Address);
        assert!(pauses.contains(Pause::Topic) && !pauses.contains(Pause::Address));
        assert!(pauses.is_within(Pauses::of(&[Pause::Topic, Pause::Rate])));
        pauses.remove(Pause::Topic);
        assert!(pauses.is_empty());
    }
}
