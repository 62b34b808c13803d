//! What a shard counts, in its own memory, and the text that operators read.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

/// The content type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the turn histogram's buckets, in microseconds; one more bucket has the rest.
pub const TURN_BOUNDS_US: [u64; 10] =
    [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000];

/// Declares counters once: their field, and the help that `/metrics` gives.
macro_rules! counters {
    ($($name:ident: $help:literal,)*) => {
        /// Counters of one shard since its start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $(#[doc = $help] pub $name: u64,)*
        }

        impl std::ops::AddAssign for Counters {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }

        impl Counters {
            /// Each counter's name, help and value.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$((stringify!($name), $help, self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    connections: "Connections accepted",
    clients: "Clients that came in on a route",
    backends: "Back ends that opened the WebSocket API",
    received_bytes: "Bytes received",
    sent_bytes: "Bytes written",
    http_requests: "HTTP requests read whole",
    http_refused: "HTTP requests and handshakes answered with an error status",
    client_messages: "Messages received from clients",
    discarded: "Messages of clients on routes without a topic for them",
    refused: "Events lost: too large for their topic, or refused by a full one",
    dropped: "Events dropped from full topics to make room",
    events: "Events handed to consumers",
    calls: "Calls of back ends",
    faults: "Calls answered with an error",
    delivered: "Frames of send and publish put into outbound buffers",
    failed: "Frames of send and publish that an outbound buffer had no room for",
    compressions: "Messages compressed: for one client, or once for all subscribers of a shard",
    compressed: "Messages put into outbound buffers compressed",
    compression_saved_bytes: "Bytes by which those were shorter",
    slow_closed: "Clients closed because they read too slowly",
    violations: "Connections closed because the peer broke the WebSocket protocol or a size limit",
    idle_closed: "Connections closed because the peer was silent",
    panics: "Connections ended because the work on what they sent panicked: a fault of gridcast's",
    late_answers: "Calls that other shards did not answer in time",
    expired: "Clients closed because their token expired",
    unauthorised: "Requests refused for their credentials, or for want of them",
}

impl Counters {
    /// A message to one client is compressed, if that saved bytes.
    pub fn note_compression(&mut self, saved_bytes: usize) {
        let is_compressed = u64::from(saved_bytes > 0);
        self.compressions += is_compressed;
        self.note_compressed(saved_bytes);
    }

    /// A message is put into an outbound buffer; so many bytes shorter than it was.
    pub fn note_compressed(&mut self, saved_bytes: usize) {
        self.compressed += u64::from(saved_bytes > 0);
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
    /// Calls that wait for other shards.
    pub pending_calls: u64,
    /// Back ends of which a fan-out is not finished.
    pub unfinished_fanouts: u64,
    /// The topics whose home it is.
    pub topics: Vec<TopicReport>,
    /// Its turns.
    pub turns: Turns,
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

/// How long the turns of a shard took, sleep not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Turns by duration: one count per bound, and one for the rest.
    pub buckets: [u64; TURN_BOUNDS_US.len() + 1],
    /// Microseconds of all turns together.
    pub busy_us: u64,
    /// The longest turn, in microseconds.
    pub longest_us: u64,
}

impl Turns {
    /// Counts one turn.
    pub fn add(&mut self, us: u64) {
        let bucket = TURN_BOUNDS_US.iter().take_while(|&&bound| us > bound).count();
        self.buckets[bucket] += 1;
        self.busy_us += us;
        self.longest_us = self.longest_us.max(us);
    }
}

/// The reports of all shards as OpenMetrics text.
pub fn render(mut reports: Vec<Report>) -> String {
    reports.sort_by_key(|report| report.shard);
    let mut registry = Registry::with_prefix("gridcast");
    registry.register_collector(Box::new(Reports(reports)));
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a string takes all that is written");
    out
}

#[derive(Debug)]
struct Reports(Vec<Report>);

impl Collector for Reports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut total = Counters::default();
        for report in &self.0 {
            total += report.counters;
        }
        for (name, help, value) in total.each() {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)?;
        }
        self.encode_shards(&mut encoder)?;
        self.encode_topics(&mut encoder)
    }
}

/// A gauge: its name, its help, and where its value is.
type Gauge<T> = (&'static str, &'static str, fn(&T) -> u64);

const SHARD_GAUGES: [Gauge<Report>; 6] = [
    ("connections_open", "Connections of every kind", |r| r.connections),
    ("clients_open", "Clients", |r| r.clients),
    ("channels", "Channels with subscribers", |r| r.channels),
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

impl Reports {
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
        let unit = Some(&Unit::Seconds);
        let mut family = encoder.encode_descriptor("turn", help, unit, MetricType::Histogram)?;
        for report in &self.0 {
            let label = [("shard", u32::from(report.shard))];
            let mut metric = family.encode_family(&label)?;
            let bounds = TURN_BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(report.turns.buckets).collect();
            let count = report.turns.buckets.iter().sum();
            let busy = report.turns.busy_us as f64 / 1e6;
            metric.encode_histogram::<NoLabelSet>(busy, count, &buckets, None)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_shards_and_the_rest_is_told_for_each() {
        let mut reports = vec![Report::default(), Report { shard: 1, ..Report::default() }];
        reports[0].counters.delivered = 3;
        reports[1].counters.delivered = 4;
        reports[1].clients = 5;
        reports[1].turns.add(20);
        reports[1].turns.add(1_000_000);
        let topic =
            TopicReport { name: "a\"b".into(), messages: 7, bytes: 8, consumers: 1, oldest_ms: 9 };
        reports[0].topics.push(topic);
        let text = render(reports);
        for line in [
            "gridcast_delivered_total 7",
            "gridcast_clients_open{shard=\"1\"} 5",
            "gridcast_turn_seconds_count{shard=\"1\"} 2",
            "gridcast_turn_seconds_bucket{le=\"0.00003\",shard=\"1\"} 1",
            "gridcast_topic_messages{topic=\"a\\\"b\"} 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
