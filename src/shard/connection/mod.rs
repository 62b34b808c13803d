//! The connections of a shard: what they speak, what they sent, and what waits for them. All other parts
//! borrow them.
//!
//! - `mod.rs`: one connection, and the table of all of them.
//! - `lifecycle.rs`: how connections begin and end. `pending_close.rs`: those that end while what they sent is
//!   still read. `timeouts.rs`: how long they may take, and be silent.
//! - `reading.rs`, `writing.rs`: how they are read from and written to.
//! - `outbound.rs`: what waits to be written. `replies.rs`: the order of answers. `answers.rs`: how they
//!   are written. `http.rs`: requests half read, begun and refused.

mod answers;
mod http;
mod lifecycle;
mod outbound;
mod pending_close;
mod reading;
mod replies;
mod timeouts;
mod writing;

use std::collections::VecDeque;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::shard::access::Grant;
use crate::shard::backend::Unsettled;
use crate::shard::client::{Context, Subscription};
use crate::shard::rate::Bucket;
use crate::shard::settings::{Route, Settings};
use crate::shard::trail::By;
use hashbrown::HashMap;
use pending_close::PendingClose;

use crate::address::{ClientId, NodeId};
use crate::message::ConnectionKey;
use crate::protocol::assembler::Assembler;
use crate::protocol::close::Closed;
use crate::protocol::credentials::Fingerprint;
use crate::protocol::deflate::Window;
use crate::protocol::frame::QUEUED_FRAME_BYTES;
use crate::protocol::http::{KeptRequest, RequestReader};
use crate::protocol::scanner::{Heard, Scanner};

pub use answers::Reading;
pub use outbound::{Batch, BufferPool, Chunk, Outbound, freed_bytes};
pub use replies::{HttpShape, Replies, Shape, WAITING_MAX};
pub use writing::{Priority, Written};

/// Which listener a connection came in on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The back ends'.
    Api,
    /// The clients', by its place in the settings.
    Edge(u16),
}

/// One socket. An idle client owns this, its [`Client`] and no buffer.
#[derive(Debug)]
pub struct Connection {
    /// The peer's address.
    pub remote: SocketAddr,
    /// Since when, in Unix milliseconds.
    pub since_ms: u64,
    /// When something was last received, on the shard's clock.
    pub last_received_ms: u64,
    // The tick of the wheel at which its one valid timer entry lies: the last 32 bits of it, which
    // come again after two years.
    timer_tick: u32,
    // The most memory that what waits for it may take, in bytes: configured, 1 GiB at most.
    outbound_max: u32,
    /// What it speaks.
    pub stage: Stage,
    /// What waits to be written.
    pub outbound: Outbound,
    /// What was received while it is paused.
    pub read_ahead: ReadAhead,
    /// How far it is in its life.
    pub phase: Phase,
    /// Why it is not read from; see [`Pause`].
    pub paused: u8,
    /// The queue of connections with something to write that it is in.
    pub queued: WriteQueue,
    /// The driver was told not to receive for it.
    pub is_receive_stopped: bool,
    /// It is in a queue of connections to be read from again.
    pub is_queued_to_read: bool,
    /// The last time that it was read, it spent its slice of the turn.
    pub is_heavy: bool,
    /// A message of it is half inflated: it is read on without more input.
    pub is_inflating: bool,
    /// The driver is done with its socket. It stays in the table while its client leaves channels.
    pub is_socket_closed: bool,
    /// Its client has ended, and what it sent before is still read: see `pending_close.rs`.
    pub has_pending_close: bool,
    /// A ping was sent and nothing was heard since.
    pub is_pinged: bool,
    /// The peer will send nothing more.
    pub is_read_closed: bool,
    /// Nor can anything be written to it.
    pub is_broken: bool,
    /// Messages may be compressed, and those to it are within this window.
    pub compression: Option<Window>,
    /// The home of its address counts it.
    pub is_counted: bool,
    /// Which listener it came in on.
    pub listener: Listener,
}

/// The slowest pace of a message: it may take `limits.idle_ms`, and one second more for each so many of
/// its bytes that came. So bytes that trickle in, or fragments without any, do not keep it for ever.
const MESSAGE_BYTES_PER_S: u64 = 1024;

/// How far a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Read from and written to.
    Open,
    /// What waits is still written, nothing is read.
    Flushing,
    /// All is written and our end shut; waits for the peer's end, so that it reads our last words
    /// before a reset could reach it.
    Lingering,
    /// The driver was told to close it.
    Closed,
}

/// Reasons not to read from a connection, as bits: they overlap.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub enum Pause {
    /// A message of it waits for room in a topic.
    Topic = 1,
    /// A back end is to set a key of its context first.
    Hold = 2,
    /// It does not read what it asked for.
    Outbound = 4,
    /// Too many of its requests wait for answers.
    Answers = 8,
    /// It is to end once the answers that it waits for are written.
    Ending = 16,
    /// Its credentials are being verified.
    Verdict = 32,
    /// It has sent as many messages of late as it may.
    Rate = 64,
    /// Another shard is to say whether its address may have one more.
    Address = 128,
}

/// A queue of connections with something to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteQueue {
    /// None.
    No,
    /// Those that only a fan-out reached.
    Bulk,
    /// Those that a single command meant.
    Urgent,
}

/// Bytes received and not read yet, for as long as the connection is paused: one pointer while there
/// are none.
#[derive(Debug, Default)]
pub struct ReadAhead(Option<Box<Unread>>);

#[derive(Debug, Default)]
struct Unread {
    bytes: Vec<u8>,
    // Bytes of it that are read: start < bytes.len().
    start: usize,
    // How far control frames are taken out, once they are looked for.
    scanner: Option<Scanner>,
}

/// Bytes held for one paused connection before the driver is told to receive no more for it: so a
/// short pause costs nothing, and the end of a peer that is done is still seen.
pub const READ_AHEAD_BYTES_MAX: usize = 16 * 1024;

impl ReadAhead {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Memory that they take.
    pub fn held_bytes(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.bytes.capacity())
    }

    /// Adds some. Beyond [`READ_AHEAD_BYTES_MAX`] come only those that were on their way when the driver was
    /// told to stop.
    pub fn push(&mut self, input: &[u8]) {
        if !input.is_empty() {
            let unread = &mut **self.0.get_or_insert_default();
            unread.drop_read();
            unread.bytes.extend_from_slice(input);
        }
    }

    /// Takes control frames out. The first `frame_left` bytes belong to a data frame that is half read;
    /// `None`: what they belong to cannot be told, and nothing is taken out.
    pub fn scan(&mut self, frame_left: Option<u64>, may_deflate: bool, takes_close: bool) -> Heard {
        let Some(unread) = &mut self.0 else { return Heard::default() };
        unread.drop_read();
        let Unread { bytes, scanner, .. } = &mut **unread;
        if scanner.is_none() {
            *scanner = frame_left.map(Scanner::new);
        }
        let Some(scanner) = scanner else { return Heard::default() };
        let heard = scanner.scan(bytes, may_deflate, takes_close);
        if bytes.is_empty() {
            self.0 = None;
        }
        heard
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |held| held.bytes.len() - held.start)
    }

    /// Whether so many wait that no more are to be received.
    pub fn is_full(&self) -> bool {
        self.len() >= READ_AHEAD_BYTES_MAX
    }

    /// What waits, to be overwritten.
    pub fn unread(&mut self) -> &mut [u8] {
        self.0.as_mut().map_or(&mut [], |held| &mut held.bytes[held.start..])
    }

    /// The last `left` bytes of it are still unread.
    pub fn keep_last(mut self, left: usize) -> Self {
        self.0 = self.0.filter(|_| left > 0);
        if let Some(held) = &mut self.0 {
            held.start = held.bytes.len() - left;
        }
        self
    }
}

impl Unread {
    fn drop_read(&mut self) {
        let read = mem::take(&mut self.start);
        self.bytes.drain(..read);
        self.scanner = self.scanner.take().and_then(|scanner| scanner.forget(read));
    }
}

/// What a connection speaks.
#[derive(Debug)]
pub enum Stage {
    /// HTTP: not upgraded, or not yet.
    Http(Box<Http>),
    /// A client on a route of an edge.
    Client(Box<Client>),
    /// A back end on the WebSocket API.
    Backend(Box<Backend>),
    /// A client that is gone, while its channels are left in slices.
    Unsubscribing(Box<Client>),
    /// Nothing any more.
    Ending,
}

/// A connection that speaks HTTP.
#[derive(Debug, Default)]
pub struct Http {
    /// Its half-read request.
    pub reader: RequestReader,
    /// When the first byte of the request under way came (or the connection), on the shard's clock.
    pub started_ms: u64,
    /// When it was accepted, on the shard's clock.
    pub accepted_ms: u64,
    /// It has shown credentials that are right, or none are needed. A stranger of the API has its place
    /// for the time of a handshake.
    pub is_authenticated: bool,
    /// Whether a request is half read.
    pub is_mid_request: bool,
    /// The head of that request was judged: it may come.
    pub is_judged: bool,
    /// A request was answered before.
    pub has_answered: bool,
    /// Answers in the order of the requests.
    pub replies: Replies,
    /// No request follows: it is closed when all answers are written.
    pub is_last: bool,
    /// The user of its last request, by its place in the settings, while the log shows it.
    pub user: Option<usize>,
    /// The node goes down: the request that is half read is the last.
    pub is_draining: bool,
    /// The request that waits for a verdict on its credentials.
    pub parked: Option<Box<Parked>>,
}

/// A request that waits.
#[derive(Debug)]
pub struct Parked {
    /// All of it; `None`: its body is not read before it is known whether it may come, and its head
    /// is in the reader.
    pub request: Option<KeptRequest>,
    /// How it is to be answered.
    pub shape: HttpShape,
    /// Which credentials it came with: a late verdict may be on those of a request before it.
    pub credentials: Fingerprint,
}

/// A client on a route.
#[derive(Debug)]
pub struct Client {
    /// Its id.
    pub id: ClientId,
    /// Its route, by its place in the settings.
    pub route: u16,
    /// When its token expires, in Unix milliseconds, whatever the shard slept; never: `u64::MAX`.
    pub expires_unix_ms: u64,
    /// It has sent a message (routes that hold a client let the first one through).
    pub has_spoken: bool,
    /// The messages that it may send now, on a route that limits them.
    pub messages: Bucket,
    /// Its half-read message.
    pub assembler: Assembler,
    /// Where it stands in each of its channels.
    pub subscriptions: Vec<Subscription>,
    /// What back ends attached to it.
    pub context: Context,
}

/// A back end on the WebSocket API.
#[derive(Debug, Default)]
pub struct Backend {
    /// Its half-read request.
    pub assembler: Assembler,
    /// Answers in the order of the requests.
    pub replies: Replies,
    /// Whose it is.
    pub grant: Grant,
    /// The topics it consumes; none: it does not.
    pub topics: Vec<Arc<str>>,
    /// How often it asked to consume: an answer to an earlier one starts nothing.
    pub pops: u64,
    /// The answer to its `queue.pop` is on its way: events may follow.
    pub is_consuming: bool,
    /// How it is to end once it has the answers that it waits for.
    pub close: Option<(Closed, By)>,
    /// The events that it is to acknowledge, if it consumes so.
    pub unsettled: Option<Unsettled>,
    /// It consumed at some time: topics may wait to hear what it wrote.
    pub has_consumed: bool,
    /// Bytes written to it so far.
    pub written: u64,
    /// Events on their way: where each ends in the stream of bytes, and the node and topic that
    /// are to hear that it was written.
    pub deliveries: VecDeque<(u64, NodeId, Arc<str>)>,
}

impl Client {
    /// Whether what it sends is to wait until its context has the key of its route.
    pub fn is_held(&self, route: &Route) -> bool {
        self.has_spoken && route.hold_until.as_ref().is_some_and(|key| !self.context.has(key))
    }
}

impl Connection {
    /// The route of a client, one that is leaving included.
    pub fn route<'s>(&self, settings: &'s Settings) -> Option<&'s Arc<Route>> {
        let Listener::Edge(edge) = self.listener else { return None };
        let (Stage::Client(client) | Stage::Unsubscribing(client)) = &self.stage else {
            return None;
        };
        settings.edges[usize::from(edge)].routes.get(usize::from(client.route))
    }

    /// A new one. Edge clients and back ends begin alike, with HTTP.
    pub fn new(remote: SocketAddr, listener: Listener, (now_ms, unix_ms): (u64, u64)) -> Self {
        Self {
            remote,
            since_ms: unix_ms,
            last_received_ms: now_ms,
            timer_tick: 0,
            outbound_max: 0,
            stage: Stage::Http(Box::new(Http {
                started_ms: now_ms,
                accepted_ms: now_ms,
                ..Http::default()
            })),
            outbound: Outbound::default(),
            read_ahead: ReadAhead::default(),
            phase: Phase::Open,
            paused: 0,
            queued: WriteQueue::No,
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

    /// The client, if it is one.
    pub fn client(&mut self) -> Option<&mut Client> {
        match &mut self.stage {
            Stage::Client(client) => Some(client),
            _ => None,
        }
    }

    /// The user of a back end, by its place in the settings.
    pub fn user(&self) -> Option<usize> {
        match &self.stage {
            Stage::Backend(backend) => backend.grant.user,
            Stage::Http(http) => http.user,
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => None,
        }
    }

    /// The back end, if it is one.
    pub fn backend(&mut self) -> Option<&mut Backend> {
        match &mut self.stage {
            Stage::Backend(backend) => Some(backend),
            _ => None,
        }
    }

    /// Whether it came to the API and has not shown who it is.
    pub fn is_unauthenticated(&self) -> bool {
        match &self.stage {
            Stage::Http(http) => self.listener == Listener::Api && !http.is_authenticated,
            _ => false,
        }
    }

    /// When it is to end whatever it does, in Unix milliseconds.
    pub fn expires_unix_ms(&self) -> u64 {
        match &self.stage {
            Stage::Client(client) => client.expires_unix_ms,
            _ => u64::MAX,
        }
    }

    /// When a message or frame that is half read has to be finished, on the shard's clock. Time in which
    /// the connection is not read from is not judged.
    pub fn message_due_ms(&self, idle_ms: u64) -> Option<u64> {
        let assembler = match &self.stage {
            Stage::Client(client) => &client.assembler,
            Stage::Backend(backend) => &backend.assembler,
            Stage::Http(_) | Stage::Unsubscribing(_) | Stage::Ending => return None,
        };
        let unfinished = assembler.unfinished().filter(|_| self.paused == 0)?;
        let pace_ms = unfinished.bytes as u64 * 1000 / MESSAGE_BYTES_PER_S;
        Some(unfinished.since_ms + idle_ms + pace_ms)
    }

    /// Its answers in order, if it asks questions.
    pub fn replies(&mut self) -> Option<&mut Replies> {
        match &mut self.stage {
            Stage::Http(http) => Some(&mut http.replies),
            Stage::Backend(backend) => Some(&mut backend.replies),
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => None,
        }
    }

    /// Whether something that it sent is not read yet.
    pub fn has_input(&self) -> bool {
        !self.read_ahead.is_empty() || self.is_inflating
    }

    /// The subscriptions that it has, or has still to end.
    pub fn subscriptions(&mut self) -> Option<&mut Vec<Subscription>> {
        match &mut self.stage {
            Stage::Client(client) | Stage::Unsubscribing(client) => Some(&mut client.subscriptions),
            Stage::Http(_) | Stage::Backend(_) | Stage::Ending => None,
        }
    }

    /// Whether a reason to pause it holds.
    pub fn is_paused_for(&self, reason: Pause) -> bool {
        self.paused & reason as u8 != 0
    }

    /// The most memory that what waits for it may take, in bytes; 0 until it is set.
    pub fn outbound_max(&self) -> usize {
        self.outbound_max as usize
    }

    /// Sets the most memory that what waits for it may take, in bytes.
    pub fn set_outbound_max(&mut self, bytes: usize) {
        self.outbound_max = bytes.try_into().unwrap_or(u32::MAX);
    }

    /// Its timer's one valid entry lies at this tick of the wheel.
    pub fn set_timer_tick(&mut self, tick: u64) {
        self.timer_tick = tick as u32;
    }

    /// Whether its timer's valid entry lies at this tick.
    pub fn is_due_at(&self, tick: u64) -> bool {
        self.timer_tick == tick as u32
    }

    /// Whether a frame of so many bytes may still wait for it. An empty queue takes a frame as long as
    /// the limit: what that frame takes beside its bytes counts for those that follow.
    pub fn takes(&self, bytes: usize) -> bool {
        self.outbound.charge() + bytes <= self.outbound_max()
    }

    /// Whether `requests` of it wait for answers, or they take more than a part of its outbound limit:
    /// their ids, and the answers behind them, whatever their size.
    pub fn waits_for_too_much(&self, requests: usize, part: usize) -> bool {
        let bytes_max = self.outbound_max() / part;
        let replies = match &self.stage {
            Stage::Http(http) => &http.replies,
            Stage::Backend(backend) => &backend.replies,
            Stage::Client(_) | Stage::Unsubscribing(_) | Stage::Ending => return false,
        };
        replies.len() >= requests || replies.held_bytes() > bytes_max
    }

    /// Memory that what it asked for and has not read takes. Events are bounded by the window of their
    /// consumer in bytes, so what each takes beside its bytes is not held against its requests.
    pub fn unread_charge(&self) -> usize {
        let of_events = match &self.stage {
            Stage::Backend(backend) => backend.deliveries.len() * QUEUED_FRAME_BYTES,
            _ => 0,
        };
        self.outbound.charge().saturating_sub(of_events)
    }

    /// Whether what waits for it waits for no one but us, who have not come to write it yet.
    pub fn waits_for_us(&self) -> bool {
        self.phase == Phase::Open && self.queued != WriteQueue::No && self.outbound.is_ready()
    }

    /// Whether a frame of so many bytes would be taken if it read faster.
    pub fn is_too_slow_for(&self, bytes: usize) -> bool {
        let would_fit = self.phase == Phase::Open && bytes <= self.outbound_max();
        would_fit && !self.takes(bytes) && !self.waits_for_us()
    }
}

/// Connections per block of the table.
const BLOCK: usize = 1024;

/// The generation is part of the ring's user data, where it has 24 bits.
const GENERATION_MASK: u32 = 0xFF_FFFF;

/// All connections of a shard. Grows in blocks: what is there never moves, and a million
/// connections are not copied to take one more.
#[derive(Debug, Default)]
pub struct Connections {
    blocks: Vec<Vec<Place>>,
    free: Vec<u32>,
    count: usize,
    // Connections with something to write. Those that one command meant go before those that a
    // fan-out reached: a huge channel does not delay a single message.
    pub(super) urgent: VecDeque<ConnectionKey>,
    pub(super) bulk: VecDeque<ConnectionKey>,
    // Clients that have ended while what they sent before is still read, and the bytes of it.
    pub(super) pending_closes: HashMap<ConnectionKey, PendingClose>,
    pub(super) pending_close_bytes: usize,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    connection: Option<Connection>,
}

impl Connections {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Bytes that clients sent which have ended since, and that are still to be read.
    pub fn pending_close_bytes(&self) -> usize {
        self.pending_close_bytes
    }

    /// Whether a client has ended while what it sent before is still read.
    pub fn has_pending_closes(&self) -> bool {
        !self.pending_closes.is_empty()
    }

    /// Whether a connection waits to be written to.
    pub fn has_writes(&self) -> bool {
        !self.urgent.is_empty() || !self.bulk.is_empty()
    }

    /// Adds one.
    pub fn insert(&mut self, connection: Connection) -> ConnectionKey {
        self.count += 1;
        if let Some(index) = self.free.pop() {
            let place = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
            place.connection = Some(connection);
            return ConnectionKey { index, generation: place.generation };
        }
        if self.blocks.last().is_none_or(|block| block.len() == BLOCK) {
            self.blocks.push(Vec::with_capacity(BLOCK));
        }
        let index = (self.blocks.len() - 1) * BLOCK;
        let block = self.blocks.last_mut().expect("one was just made");
        block.push(Place { generation: 0, connection: Some(connection) });
        ConnectionKey { index: (index + block.len() - 1) as u32, generation: 0 }
    }

    /// Takes one out; its key names nobody from now on.
    pub fn remove(&mut self, key: ConnectionKey) {
        if self.get(key).is_none() {
            return;
        }
        let place = &mut self.blocks[key.index as usize / BLOCK][key.index as usize % BLOCK];
        place.connection = None;
        place.generation = (place.generation + 1) & GENERATION_MASK;
        self.free.push(key.index);
        self.count -= 1;
    }

    /// The connection with this key, if it is still there.
    pub fn get(&mut self, key: ConnectionKey) -> Option<&mut Connection> {
        let place =
            self.blocks.get_mut(key.index as usize / BLOCK)?.get_mut(key.index as usize % BLOCK)?;
        place.connection.as_mut().filter(|_| place.generation == key.generation)
    }

    /// The connection with this key, to be looked at.
    pub fn peek(&self, key: ConnectionKey) -> Option<&Connection> {
        let place = self.blocks.get(key.index as usize / BLOCK)?.get(key.index as usize % BLOCK)?;
        place.connection.as_ref().filter(|_| place.generation == key.generation)
    }

    /// The connection at a place that is known to be taken, with its key.
    pub fn at(&mut self, index: u32) -> (ConnectionKey, &mut Connection) {
        let place = &mut self.blocks[index as usize / BLOCK][index as usize % BLOCK];
        let key = ConnectionKey { index, generation: place.generation };
        (key, place.connection.as_mut().expect("members of channels are connections"))
    }

    /// The keys of up to `count` connections from place `from` on, and the place to go on from.
    pub fn keys(&self, from: u32, count: usize) -> (Vec<ConnectionKey>, Option<u32>) {
        let places = self.blocks.len() * BLOCK;
        let mut keys = Vec::new();
        for index in from as usize..places {
            if keys.len() == count {
                return (keys, Some(index as u32));
            }
            let place = self.blocks[index / BLOCK].get(index % BLOCK);
            if let Some(Place { generation, connection: Some(_) }) = place {
                keys.push(ConnectionKey { index: index as u32, generation: *generation });
            }
        }
        (keys, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection() -> Connection {
        Connection::new("127.0.0.1:1".parse().unwrap(), Listener::Api, (0, 0))
    }

    #[test]
    fn a_key_names_nobody_once_its_connection_is_gone() {
        let mut connections = Connections::default();
        let first = connections.insert(connection());
        connections.remove(first);
        connections.remove(first);
        let second = connections.insert(connection());
        assert_eq!(second.index, first.index);
        assert!(connections.get(first).is_none() && connections.get(second).is_some());
        assert_eq!(connections.len(), 1);
    }

    #[test]
    fn every_connection_is_met_once_by_a_walk_in_slices() {
        let mut connections = Connections::default();
        let mut keys: Vec<_> = (0..2500).map(|_| connections.insert(connection())).collect();
        connections.remove(keys.remove(1500));
        let (mut met, mut from) = (Vec::new(), Some(0));
        while let Some(at) = from {
            let (slice, next) = connections.keys(at, 700);
            met.extend(slice);
            from = next;
        }
        assert_eq!(met, keys);
    }
}
