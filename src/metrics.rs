//! What a shard counts, in its own memory, and the text that operators read.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the buckets of [`Durations`], in microseconds; one more bucket has the rest.
pub const BOUNDS_US: [u64; 14] = [
    10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000,
    10_000_000, 30_000_000,
];

/// Declares counters once: their field, and the help that `/metrics` gives. Those of limits are one
/// family there, told apart by the name of the limit.
macro_rules! counters {
    (all { $($name:ident: $help:literal,)* } limits { $($limit:ident: $what:literal,)* }) => {
        /// Counters of one shard since its start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $name: u64,)*
            /// How often limits were reached.
            pub limits: LimitsHit,
        }

        /// How often each limit was reached: by the configuration's key, or by a name if it is fixed.
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
            /// Each counter's name, help and value, those of limits not among them.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help, self.$name),)*].into_iter()
            }
        }

        impl LimitsHit {
            /// Each limit's name, and how often it was reached.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($limit), self.$limit),)*].into_iter()
            }
        }
    };
}

counters! {
    all {
        connections: "Connections accepted",
        clients: "Clients that came in on a route",
        backends: "Back ends that opened the WebSocket API",
        received_bytes: "Bytes received",
        sent_bytes: "Bytes written",
        http_requests: "HTTP requests read whole",
        http_refused: "HTTP requests and handshakes answered with an error status",
        handshakes_refused: "TLS handshakes refused: something else came, or no version or cipher in common",
        client_messages: "Messages received from clients",
        discarded: "Messages of clients on routes without a topic for them",
        oversized: "Events lost because they are too large for their topic",
        refused: "Events lost because their topic was full: their clients were closed",
        dropped: "Events dropped from full topics to make room",
        events: "Events handed to consumers",
        calls: "Calls of back ends",
        faults: "Calls answered with an error",
        delivered: "Frames of send and publish put into outbound buffers",
        failed: "Frames of send and publish that an outbound buffer had no room for",
        compressions: "Messages compressed: for one client, or once for all subscribers of a shard",
        compressed: "Messages put into outbound buffers compressed",
        compression_saved_bytes: "Bytes by which those were shorter",
        shed_readers: "Connections closed for want of memory: slow readers with the most unread data",
        shed_holders: "Connections closed for want of memory: they held the most, of any kind",
        shed_frames: "Frames that failed for want of memory: their clients had unread data",
        shed_arrivals: "Clients and back ends refused with 503, or closed at once, for want of memory",
        slow_closed: "Clients closed because they read too slowly",
        violations: "Connections closed because the peer broke the WebSocket protocol or a size limit",
        panics: "Connections ended because the work on what they sent panicked: a fault of gridcast's",
        stalls: "Times that a shard did not run for a quarter of a second: stopped, suspended or starved of CPU",
        expired: "Clients closed because their token expired",
        unauthorised: "Requests refused for their credentials, or for want of them",
    }
    limits {
        edge_message_bytes: "Clients closed with 1009; with the limit of their route, too",
        api_message_bytes: "Requests of back ends refused with 413 or 1009",
        head_bytes: "Requests refused with 431",
        headers: "Requests refused with 431",
        outbound_bytes: "Frames without room, and peers not read from until they read",
        channels_per_client: "Subscriptions and handshakes refused",
        memory_bytes: "Connections closed and refused, and frames that failed, for want of memory",
        api_connections: "Connections of the API closed because there were as many as there may be",
        clients: "Clients refused because there were as many as there may be",
        connections_per_address: "Connections closed at once",
        handshakes_per_address_s: "Connections closed at once",
        messages_per_s: "Times that a client was not read from until it might send again",
        requests_per_s: "Calls answered with 103",
        handshake_ms: "Connections closed because no whole request came in time",
        idle_ms: "Connections closed because the peer was silent",
        unfinished_message: "Connections closed because a message was begun and not finished in time",
        answer_ms: "Calls that other shards did not answer in time",
        topic: "Events that waited for room in their topic",
        topics: "Calls of queue.pop refused",
        topic_waiting: "Handshakes refused with 503: too many events wait for room already",
        consumers: "Calls of queue.pop refused: their topic has too many consumers",
        context: "Changes of a context refused, and handshakes with such a token",
        calls_waiting: "Back ends not read from, or calls answered with 103, for want of answers",
        wrong_credentials: "Requests refused with 429: their address has guessed too often",
        verifications: "Requests refused with 503: too many credentials wait to be verified",
        client_ids: "Handshakes refused with 503: more clients at a time than there are ids",
        tls_handshakes: "Steps of TLS handshakes that waited for a later turn",
        descriptors: "Times that accepting rested because no descriptor was left",
    }
}

impl Counters {
    /// So many frames, which count as failed elsewhere, failed for want of memory.
    pub fn note_shed_frames(&mut self, frames: u64) {
        self.shed_frames += frames;
        self.limits.memory_bytes += frames;
    }

    /// Somebody may not come in for want of memory.
    pub fn note_shed_arrival(&mut self) {
        self.shed_arrivals += 1;
        self.limits.memory_bytes += 1;
    }

    /// A message to one client is compressed, if that saved bytes.
    pub fn note_compression(&mut self, saved_bytes: usize) {
        let is_compressed = u64::from(saved_bytes > 0);
        self.compressions += is_compressed;
        self.note_compressed(is_compressed, saved_bytes);
    }

    /// So many compressed messages are put into outbound buffers, together so many bytes shorter than
    /// they were.
    pub fn note_compressed(&mut self, messages: u64, saved_bytes: usize) {
        self.compressed += messages;
        self.compression_saved_bytes += saved_bytes as u64;
    }
}

/// How things stand on one shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Which shard.
    pub shard: u8,
    /// What it counted.
    pub counters: Counters,
    /// Its connections of every kind.
    pub connections: u64,
    /// Its clients.
    pub clients: u64,
    /// Channels with subscribers on it.
    pub channels: u64,
    /// Addresses whose connections it counts for the node.
    pub addresses: u64,
    /// Calls that wait for other shards.
    pub pending_calls: u64,
    /// Back ends of which a fan-out is not finished.
    pub unfinished_fanouts: u64,
    /// The topics whose home it is.
    pub topics: Vec<TopicReport>,
    /// Its turns, sleep not counted.
    pub turns: Durations,
    /// From calls that asked shards to their answers.
    pub calls: Durations,
    /// From events' coming to their topics to their being written, or acknowledged.
    pub events: Durations,
    /// How the process stands. The first shard tells it, for all of them.
    pub process: Option<ProcessReport>,
}

/// How the process of a node stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProcessReport {
    /// Lines of the log that were not written.
    pub log_lines_dropped: u64,
    /// Memory in use, in bytes.
    pub memory_bytes: u64,
    /// The budget for it.
    pub memory_limit_bytes: u64,
}

/// How things stand between a node and the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MeshReport {
    /// The nodes that there is a session with.
    pub nodes: Vec<NodeReport>,
    /// Sessions that ended: a node was lost, or began anew.
    pub sessions_ended: u64,
    /// Publishes of which a node did not count its subscribers in time.
    pub uncounted: u64,
    /// Nodes that the configuration expects, this one included.
    pub expected: u64,
    /// Peers that were not let in.
    pub refused: Refused,
}

/// How often this node and a peer did not come together, and why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// One of the two did not prove that it belongs to the other's grid.
    pub key: u64,
    /// They speak no version of the mesh protocol in common.
    pub version: u64,
    /// The id of one of them was in use.
    pub id: u64,
}

impl Refused {
    fn each(&self) -> [(&'static str, u64); 3] {
        [("key", self.key), ("version", self.version), ("id", self.id)]
    }
}

/// How things stand with one other node. What was said is counted since the session with it began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Its id.
    pub node: u16,
    /// Whether there is a link to it.
    pub is_linked: bool,
    /// Milliseconds that its last sign of life took.
    pub round_trip_ms: u64,
    /// Bytes that it is not known to have received.
    pub waiting_bytes: u64,
    /// Batches of messages for it.
    pub sent_batches: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Batches of messages from it.
    pub received_batches: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

/// How things stand in one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicReport {
    /// Its name.
    pub name: String,
    /// Messages held, those with consumers and not yet written included.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Consumers.
    pub consumers: u64,
    /// Milliseconds since the oldest message that waits came; 0 if none does.
    pub oldest_ms: u64,
}

/// How long things took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    // One count per bound, and one for the rest.
    buckets: [u64; BOUNDS_US.len() + 1],
    sum_us: u64,
    longest_us: u64,
}

impl Durations {
    /// Counts one, in microseconds.
    pub fn add(&mut self, us: u64) {
        let bucket = BOUNDS_US.iter().take_while(|&&bound| us > bound).count();
        self.buckets[bucket] += 1;
        self.sum_us += us;
        self.longest_us = self.longest_us.max(us);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in microseconds.
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

/// The reports of all shards, and of the mesh if there is one, as OpenMetrics text.
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

/// A gauge: its name, its help, and where its value is.
type Gauge<T> = (&'static str, &'static str, fn(&T) -> u64);

const SHARD_GAUGES: [Gauge<Report>; 7] = [
    ("connections_open", "Connections of every kind", |r| r.connections),
    ("clients_open", "Clients", |r| r.clients),
    ("channels", "Channels with subscribers", |r| r.channels),
    ("addresses", "Addresses whose connections are counted there", |r| r.addresses),
    ("pending_calls", "Calls that wait for other shards", |r| r.pending_calls),
    ("unfinished_fanouts", "Back ends with a fan-out under way", |r| r.unfinished_fanouts),
    ("turn_longest_microseconds", "The longest turn since the start", |r| r.turns.longest_us),
];

const TOPIC_GAUGES: [Gauge<TopicReport>; 4] = [
    ("topic_messages", "Messages held, those not yet written included", |t| t.messages),
    ("topic_bytes", "Bytes of messages held", |t| t.bytes),
    ("topic_consumers", "Consumers", |t| t.consumers),
    ("topic_oldest_milliseconds", "Age of the oldest message that waits", |t| t.oldest_ms),
];

const NODE_GAUGES: [Gauge<NodeReport>; 3] = [
    ("mesh_node_linked", "1 while there is a link to the node", |n| n.is_linked.into()),
    ("mesh_round_trip_milliseconds", "What the last sign of life took", |n| n.round_trip_ms),
    ("mesh_waiting_bytes", "Bytes that the node is not known to have", |n| n.waiting_bytes),
];

const NODE_COUNTERS: [Gauge<NodeReport>; 4] = [
    ("mesh_sent_batches", "Batches of messages for the node", |n| n.sent_batches),
    ("mesh_sent_bytes", "Bytes of messages for the node", |n| n.sent_bytes),
    ("mesh_received_batches", "Batches of messages from the node", |n| n.received_batches),
    ("mesh_received_bytes", "Bytes of messages from the node", |n| n.received_bytes),
];

const MESH_GAUGES: [Gauge<MeshReport>; 2] = [
    ("mesh_nodes", "Nodes of the grid within reach, this one included", |m| {
        m.nodes.len() as u64 + 1
    }),
    ("mesh_expected", "Nodes that mesh.expect names", |m| m.expected),
];

const MESH_COUNTERS: [Gauge<MeshReport>; 2] = [
    ("mesh_sessions_ended", "Nodes lost, or begun anew", |m| m.sessions_ended),
    ("mesh_uncounted", "Publishes that a node did not count in time", |m| m.uncounted),
];

impl Collector for MeshReport {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in MESH_COUNTERS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(self)).encode(metric)?;
        }
        for (name, help, value) in MESH_GAUGES {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(self) as i64).encode(metric)?;
        }
        let help = "Peers that were not let in, or did not let this node in";
        let mut family =
            encoder.encode_descriptor("mesh_refused", help, None, MetricType::Counter)?;
        for (reason, count) in self.refused.each() {
            ConstCounter::new(count).encode(family.encode_family(&[("reason", reason)])?)?;
        }
        for (name, help, value) in NODE_COUNTERS {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for node in &self.nodes {
                let label = [("node", u32::from(node.node))];
                ConstCounter::new(value(node)).encode(family.encode_family(&label)?)?;
            }
        }
        for (name, help, value) in NODE_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for node in &self.nodes {
                let label = [("node", u32::from(node.node))];
                ConstGauge::new(value(node) as i64).encode(family.encode_family(&label)?)?;
            }
        }
        Ok(())
    }
}

const PROCESS_COUNTERS: [Gauge<ProcessReport>; 1] =
    [("log_lines_dropped", "Lines of the log that were not written", |p| p.log_lines_dropped)];

const PROCESS_GAUGES: [Gauge<ProcessReport>; 2] = [
    ("memory_bytes", "Memory in use, as limits.memory_bytes counts it", |p| p.memory_bytes),
    ("memory_limit_bytes", "The budget for it: limits.memory_bytes", |p| p.memory_limit_bytes),
];

impl ProcessReport {
    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in PROCESS_COUNTERS {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value(self)).encode(metric)?;
        }
        for (name, help, value) in PROCESS_GAUGES {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value(self) as i64).encode(metric)?;
        }
        Ok(())
    }
}

impl Reports {
    /// What is summed over the shards.
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
        let help = "How often a limit was reached";
        let mut family =
            encoder.encode_descriptor("limits_hit", help, None, MetricType::Counter)?;
        for (limit, value) in total.limits.each() {
            ConstCounter::new(value).encode(family.encode_family(&[("limit", limit)])?)?;
        }
        let help = "Time from a call that asked shards to its answer";
        calls.encode(encode_histogram(encoder, "call", help)?)?;
        let help = "Time from an event's coming to its topic to its being written or acknowledged";
        events.encode(encode_histogram(encoder, "event", help)?)
    }

    fn encode_shards(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in SHARD_GAUGES {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for report in &self.0 {
                let label = [("shard", u32::from(report.shard))];
                let metric = family.encode_family(&label)?;
                ConstGauge::new(value(report) as i64).encode(metric)?;
            }
        }
        let help =
            "Duration of a shard's turns, sleep not counted; its sum is the time it was busy";
        let mut family = encode_histogram(encoder, "turn", help)?;
        for report in &self.0 {
            let label = [("shard", u32::from(report.shard))];
            report.turns.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn encode_topics(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in TOPIC_GAUGES {
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
