//! The connections of a shard: the protocol state of each socket, its read-ahead and its outbound
//! queue. All other parts borrow them.
//!
//! - `mod.rs`: one connection. `stage.rs`: the state of the protocol that it speaks. `table.rs`: the table
//!   of all connections.
//! - `lifecycle.rs`: accept, close, and removal from the table. `pending_close.rs`: clients that
//!   disconnected before all their messages were processed. `timeouts.rs`: handshake, ping and idle
//!   timeouts.
//! - `reading.rs`: reading, pausing and resuming. `pauses.rs`: the reasons for a pause. `read_ahead.rs`:
//!   the bytes kept for a paused connection. `writing.rs`: the order in which connections are written to.
//! - `outbound.rs`: the outbound queue. `replies.rs`: answers in the order of their requests.
//!   `parked_call.rs`: a call that waits for the answers to earlier ones. `answers.rs`: writes the answers. `http.rs`: the state of HTTP requests.
//! - `form.rs`: the form of messages to a client. `device.rs`: the answers to a client that makes calls.
//! - `access_log.rs`: the counters and the line of the access log.

mod access_log;
mod answers;
mod device;
mod form;
mod http;
mod lifecycle;
mod outbound;
mod parked_call;
mod pauses;
mod pending_close;
mod read_ahead;
mod reading;
mod replies;
mod stage;
mod table;
mod timeouts;
mod writing;

use std::num::NonZeroU64;
use std::sync::Arc;

use crate::shard::client::Subscription;
use crate::shard::settings::{RouteSettings, Settings};
use crate::shard::taps::TapSet;
use crate::shard::turn::Now;

use crate::address::ClientId;
use crate::address::remote::Remote;
use crate::protocol::frame::QUEUED_FRAME_BYTES;

pub use access_log::ACCESS_LOG_TARGET;
use access_log::AccessRecord;
pub use answers::ReadProgress;
pub(super) use device::{
    Device, HeldToken, OfferedToken, ParkedSubscribe, RecoveringSubscribe, TokenProgress,
};
pub(super) use form::MessageForm;
use outbound::Observers;
pub use outbound::{Batch, Chunk, freed_bytes};
pub(super) use outbound::{BufferPool, Outbound};
pub(super) use parked_call::ParkedCall;
pub(super) use pauses::{Pause, Pauses};
pub(super) use read_ahead::{READ_AHEAD_BYTES_MAX, ReadAhead};
pub(super) use replies::{FollowUp, HttpShape, RETRY_AFTER, Replies, Shape, WAITING_MAX};
pub(super) use stage::{
    Arriving, Awaited, Backend, Client, FramePause, Http, Parked, Stage, UnwrittenEvent,
    UnwrittenTake,
};
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
    /// Whether the client's subscribe waits for the homes of channels with history.
    pub is_recovering: bool,
    /// Whether a ping was sent and nothing has arrived since.
    pub is_pinged: bool,
    /// Whether the peer will send nothing more (half-closed).
    pub is_read_closed: bool,
    /// Whether the connection is broken in both directions: nothing can be written either.
    pub is_broken: bool,
    /// The form of messages to the client, as the handshake has agreed on.
    pub form: MessageForm,
    /// What the access log counts. `None`: the access log was off when the connection was accepted.
    access_record: Option<Box<AccessRecord>>,
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
            is_recovering: false,
            is_pinged: false,
            is_read_closed: false,
            is_broken: false,
            form: MessageForm::Plain,
            access_record: None,
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
        self.outbound.observers.contains(Observers::TAPS)
    }

    /// Whether a tap or the access log wants to know of the client's messages; see
    /// [`Turn::observe_message`](crate::shard::turn::Turn::observe_message).
    #[inline]
    pub fn is_observed(&self) -> bool {
        // The state of the outbound queue is at hand where a message is queued.
        !self.outbound.observers.is_empty()
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
            self.outbound.observers.set(Observers::TAPS, !taps.is_empty());
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
            Stage::Client(client) => client.device.as_mut().map(|device| &mut device.replies),
            Stage::Unsubscribing(_) | Stage::Ending => None,
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
    /// than `1 / part` of the outbound limit. A device may have an eighth of the requests.
    pub fn has_too_many_pending(&self, requests: usize, part: usize) -> bool {
        let bytes_max = self.outbound_max() / part;
        let replies = match &self.stage {
            Stage::Http(http) => &http.replies,
            Stage::Backend(backend) => &backend.replies,
            Stage::Client(client) => {
                let device = client.device.as_ref();
                return device.is_some_and(|device| device.is_busy(requests, bytes_max));
            }
            Stage::Unsubscribing(_) | Stage::Ending => return false,
        };
        replies.len() >= requests || replies.held_bytes() > bytes_max || replies.has_parked()
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
