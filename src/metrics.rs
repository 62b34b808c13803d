//! Counters and figures of shards and of the mesh, and their text for `/metrics`.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The content type of the text that [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

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
        dropped: "Events dropped from full topics to make room",
        events: "Events handed to consumers",
        calls: "Calls of back ends",
        faults: "Calls answered with an error",
        delivered: "Frames of send and publish queued for connections",
        failed: "Frames of send and publish that did not fit an outbound buffer",
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
        expired: "Clients closed because their token expired",
        unauthorised: "Requests refused for wrong or missing credentials",
    }
    limits {
        edge_message_bytes: "Clients closed with 1009, including by the limit of their route",
        api_message_bytes: "Requests of back ends refused with 413 or 1009",
        head_bytes: "Requests refused with 431",
        headers: "Requests refused with 431",
        outbound_bytes: "Frames that did not fit, and times a peer was not read from until it read",
        channels_per_client: "Subscriptions and handshakes refused",
        memory_bytes: "Connections closed or refused, and frames failed, for lack of memory",
        api_connections: "API connections closed because the limit was reached",
        clients: "Clients refused because the limit was reached",
        connections_per_address: "Connections closed at once",
        handshakes_per_address_s: "Connections closed at once",
        messages_per_s: "Times a client was not read from until it was within its rate again",
        requests_per_s: "Calls answered with 103",
        handshake_ms: "Connections closed because no complete request arrived in time",
        idle_ms: "Connections closed because the peer sent nothing",
        unfinished_message: "Connections closed because a message was not completed in time",
        answer_ms: "Calls that other shards did not answer in time",
        topic: "Events that waited for room in their topic",
        topics: "Calls of queue.pop refused",
        topic_waiting: "Handshakes refused with 503: too many events already waited for room",
        consumers: "Calls of queue.pop refused: the topic had too many consumers",
        context: "Changes of a context, and handshakes with a token, refused because the context was too large",
        calls_waiting: "Times a back end was not read from, or a call was answered with 103, because too many calls were unanswered",
        wrong_credentials: "Requests refused with 429: too many wrong credentials from their address",
        verifications: "Requests refused with 503: too many credentials waited to be verified",
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
    /// Channels with subscribers on the shard.
    pub channels: u64,
    /// Addresses whose connections the shard counts for the node.
    pub addresses: u64,
    /// Calls in progress on other shards.
    pub pending_calls: u64,
    /// Back ends with a fan-out in progress.
    pub unfinished_fanouts: u64,
    /// The topics whose home the shard is.
    pub topics: Vec<TopicReport>,
    /// Durations of turns, without sleep.
    pub turns: Durations,
    /// Durations of calls that involved other shards.
    pub calls: Durations,
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
    /// The number of consumers.
    pub consumers: u64,
    /// The age of the oldest waiting message, in milliseconds; 0 if none waits.
    pub oldest_ms: u64,
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
        let bucket = BOUNDS_US.iter().take_while(|&&bound| us > bound).count();
        self.buckets[bucket] += 1;
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

    fn encode(&self, mut metric: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        let sum = self.sum_us as f64 / 1e6;
        metric.encode_histogram::<NoLabelSet>(sum, self.count(), &buckets, None)
    }
}

impl std::ops::AddAssign for Durations {
    fn add_assign(&mut self, other: Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(count, more)| *count += more);
        self.sum_us += other.sum_us;
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}

/// Renders the reports of all shards, and of the mesh if there is one, as OpenMetrics text.
pub fn render(mut reports: Vec<Report>, mesh: Option<MeshReport>) -> String {
    reports.sort_by_key(|report| report.shard);
    let mut registry = Registry::with_prefix("gridcast");
    registry.register_collector(Box::new(Reports(reports)));
    if let Some(mesh) = mesh {
        registry.register_collector(Box::new(mesh));
    }
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a string takes all that is written");
    out
}

#[derive(Debug)]
struct Reports(Vec<Report>);

impl Collector for Reports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        self.encode_node(&mut encoder)?;
        self.encode_shards(&mut encoder)?;
        self.encode_topics(&mut encoder)
    }
}

/// A metric whose value is a field of a report.
struct Metric<T> {
    name: &'static str,
    help: &'static str,
    value: fn(&T) -> u64,
}

/// A constructor that keeps the tables below in columns.
const fn metric<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Metric<T> {
    Metric { name, help, value }
}

const SHARD_GAUGES: [Metric<Report>; 7] = [
    metric("connections_open", "Open connections of every kind", |r| r.connections),
    metric("clients_open", "Connected clients", |r| r.clients),
    metric("channels", "Channels with subscribers", |r| r.channels),
    metric("addresses", "Addresses whose connections the shard counts", |r| r.addresses),
    metric("pending_calls", "Calls in progress on other shards", |r| r.pending_calls),
    metric("unfinished_fanouts", "Back ends with a fan-out in progress", |r| r.unfinished_fanouts),
    metric("turn_longest_microseconds", "The longest turn since the start", |r| r.turns.longest_us),
];

const TOPIC_GAUGES: [Metric<TopicReport>; 4] = [
    metric("topic_messages", "Messages held, including those in flight", |t| t.messages),
    metric("topic_bytes", "Bytes of messages held", |t| t.bytes),
    metric("topic_consumers", "Consumers", |t| t.consumers),
    metric("topic_oldest_milliseconds", "Age of the oldest waiting message", |t| t.oldest_ms),
];

const NODE_GAUGES: [Metric<NodeReport>; 3] = [
    metric("mesh_node_linked", "1 while there is a link to the node", |n| n.is_linked.into()),
    metric("mesh_round_trip_milliseconds", "Round trip of the last ping", |n| n.round_trip_ms),
    metric("mesh_waiting_bytes", "Bytes that the node has not acknowledged", |n| n.waiting_bytes),
];

const NODE_COUNTERS: [Metric<NodeReport>; 4] = [
    metric("mesh_sent_batches", "Batches of messages for the node", |n| n.sent_batches),
    metric("mesh_sent_bytes", "Bytes of messages for the node", |n| n.sent_bytes),
    metric("mesh_received_batches", "Batches of messages from the node", |n| n.received_batches),
    metric("mesh_received_bytes", "Bytes of messages from the node", |n| n.received_bytes),
];

const MESH_GAUGES: [Metric<MeshReport>; 2] = [
    metric("mesh_nodes", "Reachable nodes of the grid, including this one", |m| {
        m.nodes.len() as u64 + 1
    }),
    metric("mesh_expected", "Expected nodes, as configured by mesh.expect", |m| m.expected),
];

const MESH_COUNTERS: [Metric<MeshReport>; 2] = [
    metric("mesh_sessions_ended", "Sessions ended by loss or restart of a node", |m| {
        m.sessions_ended
    }),
    metric("mesh_uncounted", "Tallies of publishes that nodes did not give in time", |m| {
        m.uncounted
    }),
];

const PROCESS_COUNTERS: [Metric<ProcessReport>; 1] =
    [metric("log_lines_dropped", "Log lines that were not written", |p| p.log_lines_dropped)];

const PROCESS_GAUGES: [Metric<ProcessReport>; 2] = [
    metric("memory_bytes", "Memory in use, as limits.memory_bytes counts it", |p| p.memory_bytes),
    metric("memory_limit_bytes", "The memory budget, limits.memory_bytes", |p| {
        p.memory_limit_bytes
    }),
];

impl Collector for MeshReport {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Metric { name, help, value } in MESH_COUNTERS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(self)).encode(metric)?;
        }
        for Metric { name, help, value } in MESH_GAUGES {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(self) as i64).encode(metric)?;
        }
        let help = "Peers that were refused, or refused this node";
        let mut family =
            encoder.encode_descriptor("mesh_refused", help, None, MetricType::Counter)?;
        for (reason, count) in self.refused.each() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        for Metric { name, help, value } in NODE_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for node in &self.nodes {
                let label = [("node", u32::from(node.node))];
                ConstCounter::new(value(node)).encode(family.encode_family(&label)?)?;
            }
        }
        for Metric { name, help, value } in NODE_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for node in &self.nodes {
                let label = [("node", u32::from(node.node))];
                ConstGauge::new(value(node) as i64).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

impl ProcessReport {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Metric { name, help, value } in PROCESS_COUNTERS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(self)).encode(metric)?;
        }
        for Metric { name, help, value } in PROCESS_GAUGES {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(self) as i64).encode(metric)?;
        }
        Ok(())
    }
}

impl Reports {
    /// Encodes the sums over all shards.
    fn encode_node(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (mut total, mut calls, mut events) = <(Counters, Durations, Durations)>::default();
        for report in &self.0 {
            total += report.counters;
            calls += report.calls;
            events += report.events;
        }
        for (name, help, value) in total.each() {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        for process in self.0.iter().filter_map(|report| report.process.as_ref()) {
            process.encode(encoder)?;
        }
        let help = "How often each limit was reached";
        let mut family =
            encoder.encode_descriptor("limits_hit", help, None, MetricType::Counter)?;
        for (limit, value) in total.limits.each() {
            ConstCounter::new(value).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        let help = "Durations of calls that involved other shards";
        calls.encode(encode_histogram(encoder, "call", help)?)?;
        let help = "Durations from the arrival of events at topics until they were written, or acknowledged";
        events.encode(encode_histogram(encoder, "event", help)?)
    }

    fn encode_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Metric { name, help, value } in SHARD_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for report in &self.0 {
                let label = [("shard", u32::from(report.shard))];
                let metric = family.encode_family(&label)?;
                ConstGauge::new(value(report) as i64).encode(metric)?;
            }
        }
        let help = "Durations of a shard's turns, without sleep; their sum is the time it was busy";
        let mut family = encode_histogram(encoder, "turn", help)?;
        for report in &self.0 {
            let label = [("shard", u32::from(report.shard))];
            report.turns.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn encode_topics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Metric { name, help, value } in TOPIC_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for topic in self.0.iter().flat_map(|report| &report.topics) {
                let label = [("topic", &topic.name[..])];
                let metric = family.encode_family(&label)?;
                ConstGauge::new(value(topic) as i64).encode(metric)?;
            }
        }
        Ok(())
    }
}

fn encode_histogram<'e>(
    encoder: &'e mut DescriptorEncoder<'_>,
    name: &'e str,
    help: &str,
) -> Result<MetricEncoder<'e>, fmt::Error> {
    encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_shards_and_the_rest_is_told_for_each() {
        let mut reports = vec![Report::default(), Report { shard: 1, ..Report::default() }];
        for (report, us) in reports.iter_mut().zip([40, 400]) {
            report.counters.limits.clients = us;
            report.calls.add(us);
            report.events.add(us);
        }
        reports[0].counters.delivered = 3;
        reports[1].counters.delivered = 4;
        reports[1].clients = 5;
        reports[0].process =
            Some(ProcessReport { log_lines_dropped: 6, memory_bytes: 7, memory_limit_bytes: 8 });
        reports[1].turns.add(20);
        reports[1].turns.add(1_000_000);
        let topic =
            TopicReport { name: "a\"b".into(), messages: 7, bytes: 8, consumers: 1, oldest_ms: 9 };
        reports[0].topics.push(topic);
        let nodes =
            vec![NodeReport { node: 7, sent_bytes: 8, is_linked: true, ..Default::default() }];
        let mesh = MeshReport {
            nodes,
            sessions_ended: 2,
            uncounted: 0,
            expected: 3,
            refused: Refused { key: 4, version: 0, id: 1 },
        };
        let text = render(reports, Some(mesh));
        for line in [
            "gridcast_delivered_total 7",
            "gridcast_limits_hit_total{limit=\"clients\"} 440",
            "gridcast_limits_hit_total{limit=\"topics\"} 0",
            "gridcast_call_seconds_bucket{le=\"0.0001\"} 1",
            "gridcast_call_seconds_sum 0.00044",
            "gridcast_call_seconds_bucket{le=\"+Inf\"} 2",
            "gridcast_event_seconds_count 2",
            "gridcast_clients_open{shard=\"1\"} 5",
            "gridcast_log_lines_dropped_total 6",
            "gridcast_turn_seconds_count{shard=\"1\"} 2",
            "gridcast_turn_seconds_bucket{le=\"0.00003\",shard=\"1\"} 1",
            "gridcast_topic_messages{topic=\"a\\\"b\"} 7",
            "gridcast_mesh_sessions_ended_total 2",
            "gridcast_mesh_sent_bytes_total{node=\"7\"} 8",
            "gridcast_mesh_node_linked{node=\"7\"} 1",
            "gridcast_mesh_nodes 2",
            "gridcast_mesh_expected 3",
            "gridcast_mesh_refused_total{reason=\"key\"} 4",
            "gridcast_mesh_refused_total{reason=\"version\"} 0",
            "gridcast_mesh_refused_total{reason=\"id\"} 1",
            "gridcast_memory_bytes 7",
            "gridcast_memory_limit_bytes 8",
            "# EOF",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
