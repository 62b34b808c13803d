//! Counters and figures of shards and of the mesh, and their text for `/metrics`.

mod process;
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub use process::{CertificateExpiry, ProcessUsage, SharedUsage};
pub use text::{CONTENT_TYPE, render};

/// Upper bounds of the buckets of [`Durations`], in microseconds. One more bucket has the rest.
pub const BOUNDS_US: [u64; 14] = [
    10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000,
    10_000_000, 30_000_000,
];

/// Declares each counter once: its field, and its help in `/metrics`. Counters of limits are one family there,
/// with the limit as a label.
macro_rules! counters {
    (all { $($name:ident: $help:literal,)* } limits { $($limit:ident: $what:literal,)* }) => {
        /// Counters of one shard since the start of the node.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $name: u64,)*
            /// How often each limit was reached.
            pub limits: LimitsHit,
        }

        /// How often each limit was reached. Limits are named by their configuration key, or by a name of their
        /// own if they are fixed.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct LimitsHit {
            $(#[doc = $what] pub $limit: u64,)*
        }

        impl std::ops::AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
                $(self.limits.$limit += other.limits.$limit;)*
            }
        }

        impl Counters {
            /// Name, help and value of each counter, except those of limits.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help, self.$name),)*].into_iter()
            }
        }

        impl LimitsHit {
            /// The name of each limit, and how often it was reached.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($limit), self.$limit),)*].into_iter()
            }
        }
    };
}

counters! {
    all {
        connections: "Connections accepted",
        clients: "Clients connected to a route",
        backends: "Back ends connected to the WebSocket API",
        received_bytes: "Bytes received",
        sent_bytes: "Bytes written",
        http_requests: "HTTP requests received completely",
        http_refused: "HTTP requests and handshakes answered with an error status",
        handshakes_refused: "TLS handshakes refused: not TLS, or no common version or cipher suite",
        client_messages: "Messages received from clients",
        discarded: "Client messages discarded on routes without a topic",
        oversized: "Events lost because they were too large for their topic",
        refused: "Events lost because their topic was full, with when_full = close: their clients were closed",
        dropped: "Events dropped from full topics to make room, or because their sink was removed",
        aged: "Events dropped because they were older than max_age_s",
        redelivered: "Events handed out again because they were not acknowledged",
        dead: "Events moved to a dead topic",
        events: "Events handed to consumers",
        calls: "Calls of back ends",
        faults: "Calls answered with an error",
        delivered: "Frames of send and publish queued for connections",
        failed: "Frames of send and publish that did not fit an outbound buffer",
        placed: "Messages published to channels with history",
        repeated: "Publishes not delivered because their idempotency key was used before",
        recoveries: "Channels in which a device got all that it had missed",
        recoveries_incomplete: "Channels in which a device may have missed messages that are gone",
        recovered: "Missed messages queued for devices",
        presence_events: "Joins and leaves queued for devices",
        presence_told: "Events of presence put into topics",
        compressions: "Compressions: of a message for one client, or once for all subscribers of a shard",
        compressed: "Compressed messages queued for connections",
        compression_saved_bytes: "Bytes saved by compression",
        shed_readers: "Slow readers closed for lack of memory, those with the most unread data first",
        shed_holders: "Connections closed for lack of memory because they held the most",
        shed_frames: "Frames failed for lack of memory because their clients had unread data",
        shed_arrivals: "Clients refused with 503, or closed at once, for lack of memory",
        slow_closed: "Clients closed because they read too slowly",
        violations: "Connections closed because the peer violated the WebSocket protocol or a size limit",
        panics: "Connections closed because handling their input panicked: a bug of gridcast",
        stalls: "Times a shard did not run for at least 250 ms: stopped, suspended or starved of CPU",
        proxy_refused: "Connections of proxies closed because they did not begin with a valid PROXY protocol header",
        expired: "Clients closed because their token expired",
        unauthorised: "Requests refused for wrong or missing credentials",
        admissions: "Handshakes about which an admission hook was asked",
        admissions_refused: "Handshakes refused with 401 or 403 because an admission hook said so",
        admissions_failed: "Handshakes refused with 503 because an admission hook did not answer properly in time",
        tap_events: "Events of taps written to back ends",
        tap_events_lost: "Events of taps lost: too many in a second, or a back end that did not read",
        key_fetches: "Fetches of key sets that have ended",
        key_fetches_failed: "Fetches of key sets that have failed",
    }
    limits {
        edge_message_bytes: "Clients closed with 1009, including by the limit of their route",
        api_message_bytes: "Requests of back ends refused with 413 or 1009",
        head_bytes: "Requests refused with 431",
        headers: "Requests refused with 431",
        outbound_bytes: "Frames that did not fit, and times a peer was not read from until it read",
        channels_per_client: "Subscriptions and handshakes refused",
        history_bytes: "Messages dropped from the histories of channels to make room for newer ones",
        presence_bytes: "Users in channels with presence of whom nobody is told, for lack of room",
        memory_bytes: "Connections closed or refused, frames failed, and messages dropped from histories, for lack of memory",
        api_connections: "API connections closed because the limit was reached",
        clients: "Clients refused because the limit was reached",
        connections_per_address: "Connections closed at once",
        handshakes_per_address_s: "Connections closed at once",
        handshakes_per_s: "Connections closed at once",
        messages_per_s: "Times a client was not read from until it was within its rate again",
        requests_per_s: "Calls answered with 103",
        handshake_ms: "Connections closed because no complete request arrived in time",
        idle_ms: "Connections closed because the peer sent nothing",
        unfinished_message: "Connections closed because a message was not completed in time",
        answer_ms: "Calls that other shards or nodes did not answer in time",
        topic: "Events that waited for room in their topic",
        topics: "Calls of queue.pop refused",
        topic_waiting: "Handshakes refused with 503: too many events already waited for room",
        consumers: "Calls of queue.pop refused: the topic had too many consumers",
        context: "Changes of a context, and handshakes with a token, refused because the context was too large",
        publishes: "Calls of mesh.publish answered with 103: too many messages of channels with history wait to be delivered, or too many idempotency keys are in use",
        takes: "Calls of queue.take answered with 103: too many wait",
        lists: "Calls of lists answered with 103: too many at once",
        calls_waiting: "Times a back end was not read from, or a call was answered with 103, because too many calls were unanswered",
        wrong_credentials: "Requests refused with 429: too many wrong credentials from their address",
        taps: "Calls of tap.start refused, and taps that a shard had no room for",
        verifications: "Requests refused with 503: too many credentials waited to be verified",
        waiting_handshakes: "Handshakes refused with 503, and new tokens with 103: too many waited for keys or an admission hook",
        client_ids: "Handshakes refused with 503: clients arrived faster than ids are available",
        tls_handshakes: "Steps of TLS handshakes postponed to a later turn",
        descriptors: "Times accepting paused for lack of file descriptors",
    }
}

impl Counters {
    /// Counts frames that failed for lack of memory. They also count as failed.
    pub fn note_shed_frames(&mut self, frames: u64) {
        self.shed_frames += frames;
        self.limits.memory_bytes += frames;
    }

    /// Counts a client or back end that was refused for lack of memory.
    pub fn note_shed_arrival(&mut self) {
        self.shed_arrivals += 1;
        self.limits.memory_bytes += 1;
    }

    /// Counts the compression of a message for one client. If it saved no bytes, it does not count.
    pub fn note_compression(&mut self, saved_bytes: usize) {
        let is_compressed = u64::from(saved_bytes > 0);
        self.compressions += is_compressed;
        self.note_compressed(is_compressed, saved_bytes);
    }

    /// Counts messages that were queued compressed, and the bytes that compression saved for all of them.
    pub fn note_compressed(&mut self, messages: u64, saved_bytes: usize) {
        self.compressed += messages;
        self.compression_saved_bytes += saved_bytes as u64;
    }
}

/// The figures of one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The shard's index.
    pub shard: u8,
    /// The counters.
    pub counters: Counters,
    /// Open connections of every kind.
    pub connections: u64,
    /// Connected clients.
    pub clients: u64,
    /// Back ends connected to the WebSocket API.
    pub backends: u64,
    /// Channels with subscribers on the shard.
    pub channels: u64,
    /// Addresses whose connections the shard counts for the node.
    pub addresses: u64,
    /// Calls in progress on other shards.
    pub pending_calls: u64,
    /// Back ends with a fan-out in progress.
    pub unfinished_fanouts: u64,
    /// Handshakes that wait for keys or an admission hook, and new tokens that wait for keys.
    pub waiting_handshakes: u64,
    /// Channels with history whose home the shard is.
    pub history_channels: u64,
    /// Messages in their histories.
    pub history_messages: u64,
    /// The memory of their histories, in bytes.
    pub history_bytes: u64,
    /// Channels with presence whose home the shard is.
    pub presence_channels: u64,
    /// Users in them, and one for all clients without a user in a channel.
    pub presence_members: u64,
    /// The memory of users in channels with presence, in bytes.
    pub presence_bytes: u64,
    /// Idempotency keys of publishes that are remembered.
    pub idempotency_keys: u64,
    /// Calls of `queue.take` that wait for events.
    pub waiting_takes: u64,
    /// The topics whose home the shard is.
    pub topics: Vec<TopicReport>,
    /// The sources whose calls the shard carries out.
    pub call_sources: Vec<CallSourceReport>,
    /// Durations of turns, without sleep.
    pub turns: Durations,
    /// Durations of calls that involved other shards.
    pub calls: Durations,
    /// Durations of questions to admission hooks.
    pub admissions: Durations,
    /// Durations from the arrival of events at topics until they were written, or acknowledged.
    pub events: Durations,
    /// The figures of the process, in the report of the first shard only.
    pub process: Option<ProcessReport>,
}

/// The figures of a node's process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessReport {
    /// Log lines that were not written.
    pub log_lines_dropped: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The memory budget, in bytes.
    pub memory_limit_bytes: u64,
    /// How the shards reach the kernel: `io_uring` or `epoll`. Empty in tests without sockets.
    pub driver: &'static str,
    /// The resources that the process uses.
    pub usage: ProcessUsage,
    /// The certificates in use.
    pub certificates: Arc<[CertificateExpiry]>,
    /// The topics on disk.
    pub disk: DiskReport,
}

/// The figures of the topics on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskReport {
    /// Durations of changes of files, with their syncs.
    pub syncs: Durations,
    /// Events that were stored.
    pub events: u64,
    /// Changes and reads of files that have failed.
    pub errors: u64,
    /// The size of all files, in bytes.
    pub bytes: u64,
    /// Whether files cannot be used, and not because the disk is full.
    pub is_failing: bool,
}

/// The figures of a node's mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshReport {
    /// The nodes with a session.
    pub nodes: Vec<NodeReport>,
    /// Sessions that ended because a node was lost or restarted.
    pub sessions_ended: u64,
    /// Tallies of publishes that nodes did not give in time.
    pub uncounted: u64,
    /// Nodes that the configuration expects, including this one.
    pub expected: u64,
    /// Peers that were refused, or refused this node.
    pub refused: Refused,
    /// The threads of the mesh: the mesh's own, and those beside it that carry links.
    pub threads: Vec<MeshThreadReport>,
}

/// The figures of a thread of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MeshThreadReport {
    /// The links that the thread carries, including handshakes in progress.
    pub links: u64,
    /// CPU time of the thread, in microseconds.
    pub cpu_us: u64,
}

/// How often a peer was refused, or refused this node, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// One of the two did not prove that it belongs to the other's grid.
    pub key: u64,
    /// The two have no version of the mesh protocol in common.
    pub version: u64,
    /// The id of one of the two was in use.
    pub id: u64,
}

impl Refused {
    fn each(&self) -> [(&'static str, u64); 3] {
        [("key", self.key), ("version", self.version), ("id", self.id)]
    }
}

/// The figures of the session with one other node, since the session began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// The number of the node.
    pub node: u16,
    /// Whether there is a link to the node.
    pub is_linked: bool,
    /// The round trip of the last answered ping, in milliseconds.
    pub round_trip_ms: u64,
    /// Bytes that the node has not acknowledged.
    pub waiting_bytes: u64,
    /// Batches of messages for the node.
    pub sent_batches: u64,
    /// Bytes of messages for the node.
    pub sent_bytes: u64,
    /// Batches of messages from the node.
    pub received_batches: u64,
    /// Bytes of messages from the node.
    pub received_bytes: u64,
}

/// The figures of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReport {
    /// The topic's name.
    pub name: String,
    /// Messages held, including those in flight to consumers.
    pub messages: u64,
    /// Bytes of messages held.
    pub bytes: u64,
    /// The number of consumers that are connected to this node. The sum over the nodes counts each consumer once.
    pub consumers: u64,
    /// The age of the oldest waiting message, in milliseconds; 0 if none waits.
    pub oldest_ms: u64,
    /// The topic's groups of consumers.
    pub groups: Vec<GroupReport>,
    /// The topic's sinks.
    pub sinks: Vec<SinkReport>,
}

/// The figures of one group of consumers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupReport {
    /// The group's name. `None`: the default group.
    pub name: Option<String>,
    /// Messages that the group has not settled.
    pub backlog: u64,
    /// Messages in flight to consumers, and those that were taken.
    pub in_flight: u64,
    /// For how long none of them was finished, in milliseconds. 0: none is in flight.
    pub stalled_ms: u64,
    /// The number of consumers that are connected to this node.
    pub consumers: u64,
    /// How often a message was requeued because it was not acknowledged.
    pub redelivered: u64,
    /// Messages moved to the dead topic.
    pub dead: u64,
}

/// The figures of one sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkReport {
    /// The sink's name.
    pub name: String,
    /// Events that the engine has not acknowledged.
    pub lag: u64,
    /// The age of the oldest of them, in milliseconds.
    pub lag_ms: u64,
    /// Events that the engine has acknowledged.
    pub delivered: u64,
    /// Batches that the engine has acknowledged.
    pub batches: u64,
    /// Attempts that have failed.
    pub retries: u64,
    /// Calls of the engine that were carried out.
    pub calls: u64,
    /// Calls of the engine that have failed.
    pub failed_calls: u64,
    /// Events in batches that the engine has not acknowledged.
    pub in_flight: u64,
    /// Whether the sink runs and the last attempt has not failed.
    pub is_up: bool,
    /// Why the last attempt has failed, if it has.
    pub failure: Option<String>,
}

/// The figures of one run of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallSourceReport {
    /// The source's name.
    pub name: Arc<str>,
    /// Messages taken from the engine.
    pub messages: u64,
    /// Calls that were carried out.
    pub calls: u64,
    /// Calls that have failed, and are not repeated.
    pub failed_calls: u64,
    /// Times a call was refused for lack of room, and repeated.
    pub repeated_calls: u64,
    /// Messages that are no call.
    pub wrong_messages: u64,
    /// Attempts to take or acknowledge messages that have failed.
    pub retries: u64,
    /// Messages that the engine has not acknowledged.
    pub in_flight: u64,
    /// Whether the last attempt to take or acknowledge messages has failed.
    pub is_failing: bool,
}

impl CallSourceReport {
    /// The figures of a source that begins.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            messages: 0,
            calls: 0,
            failed_calls: 0,
            repeated_calls: 0,
            wrong_messages: 0,
            retries: 0,
            in_flight: 0,
            is_failing: false,
        }
    }
}

/// A histogram of durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    // One count per bound of `BOUNDS_US`, and one for the rest.
    buckets: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
    longest_us: u64,
}

impl Durations {
    /// Counts a duration in microseconds.
    pub fn add(&mut self, us: u64) {
        self.buckets[bucket_of(us)] += 1;
        self.sum_us += us;
        self.longest_us = self.longest_us.max(us);
    }

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The sum of all durations, in microseconds.
    pub fn sum_us(&self) -> u64 {
        self.sum_us
    }
}

/// The bucket that counts a duration in microseconds.
fn bucket_of(us: u64) -> usize {
    BOUNDS_US.iter().take_while(|&&bound| us > bound).count()
}

/// A histogram of durations that one thread fills and others read.
#[derive(Debug, Default)]
pub struct SharedDurations {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
    longest_us: AtomicU64,
}

impl SharedDurations {
    /// Counts a duration in microseconds.
    pub fn add(&self, us: u64) {
        self.buckets[bucket_of(us)].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
        self.longest_us.fetch_max(us, Relaxed);
    }

    /// The durations until now.
    pub fn load(&self) -> Durations {
        Durations {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Relaxed)),
            sum_us: self.sum_us.load(Relaxed),
            longest_us: self.longest_us.load(Relaxed),
        }
    }
}

impl std::ops::AddAssign for Durations {
    fn add_assign(&mut self, other: Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}
