//! Reports as the OpenMetrics text of `/metrics`.
//!
//! The help of each metric is also its description in `docs/reference/metrics.md`, which a test compares.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::{
    BOUNDS_US, CallSourceReport, CertificateExpiry, Counters, Durations, GroupReport, MeshReport,
    MeshThreadReport, NodeReport, ProcessReport, ProcessUsage, Report, SinkReport, TopicReport,
};

/// The content type of the text that [`render`] returns.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Renders the reports of all shards, and of the mesh if there is one, as OpenMetrics text.
pub fn render(mut reports: Vec<Report>, mesh: Option<MeshReport>) -> String {
    reports.sort_by_key(|report| report.shard);
    let mut registry = Registry::default();
    if let Some(process) = reports.iter().find_map(|report| report.process.as_ref()) {
        registry.register_collector(Box::new(process.usage));
    }
    let of_gridcast = registry.sub_registry_with_prefix("gridcast");
    of_gridcast.register_collector(Box::new(NodeReports(reports)));
    if let Some(mesh) = mesh {
        of_gridcast.register_collector(Box::new(mesh));
    }
    let mut out = String::new();
    text::encode(&mut out, &registry).expect("a string takes all that is written");
    out
}

/// A metric whose value is a field of a report.
struct Metric<T> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    value: fn(&T) -> u64,
}

/// A constructor that keeps the tables below in columns.
const fn gauge<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Metric<T> {
    Metric { name, help, kind: MetricType::Gauge, value }
}

/// A constructor that keeps the tables below in columns.
const fn counter<T>(name: &'static str, help: &'static str, value: fn(&T) -> u64) -> Metric<T> {
    Metric { name, help, kind: MetricType::Counter, value }
}

const SHARD_METRICS: [Metric<Report>; 17] = [
    gauge("connections_open", "Open connections of every kind", |r| r.connections),
    gauge("clients_open", "Connected clients", |r| r.clients),
    gauge("backends_open", "Back ends connected to the WebSocket API now", |r| r.backends),
    gauge("channels", "Channels with subscribers", |r| r.channels),
    gauge("addresses", "Addresses whose connections the shard counts", |r| r.addresses),
    gauge("pending_calls", "Calls in progress on other shards", |r| r.pending_calls),
    gauge("unfinished_fanouts", "Back ends with a fan-out in progress", |r| r.unfinished_fanouts),
    gauge("waiting_takes", "Calls of queue.take that wait for events", |r| r.waiting_takes),
    gauge(
        "waiting_handshakes",
        "Handshakes that wait for keys or an admission hook, and new tokens that wait for keys",
        |r| r.waiting_handshakes,
    ),
    gauge("history_channels", "Channels with history", |r| r.history_channels),
    gauge("history_messages", "Messages in the histories of channels", |r| r.history_messages),
    gauge("history_bytes", "Memory of the histories of channels", |r| r.history_bytes),
    gauge("presence_channels", "Channels with presence", |r| r.presence_channels),
    gauge("presence_members", "Users in channels with presence", |r| r.presence_members),
    gauge("presence_bytes", "Memory of users in channels with presence", |r| r.presence_bytes),
    gauge("idempotency_keys", "Keys of publishes that are remembered", |r| r.idempotency_keys),
    gauge("turn_longest_microseconds", "The longest turn since the start", |r| r.turns.longest_us),
];

const TOPIC_METRICS: [Metric<TopicReport>; 4] = [
    gauge("topic_messages", "Messages held, including those in flight", |t| t.messages),
    gauge("topic_bytes", "Bytes of messages held", |t| t.bytes),
    gauge("topic_consumers", "Consumers that are connected to this node", |t| t.consumers),
    gauge("topic_oldest_milliseconds", "Age of the oldest waiting message", |t| t.oldest_ms),
];

const GROUP_METRICS: [Metric<GroupReport>; 6] = [
    gauge("group_backlog", "Messages that the group has not settled", |g| g.backlog),
    gauge("group_in_flight", "Messages in flight to consumers, or taken", |g| g.in_flight),
    gauge("group_stalled_milliseconds", "Time in which no message in flight was finished", |g| {
        g.stalled_ms
    }),
    gauge("group_consumers", "Consumers of the group that are connected to this node", |g| {
        g.consumers
    }),
    counter("group_redelivered", "Messages requeued because they were not acknowledged", |g| {
        g.redelivered
    }),
    counter("group_dead", "Messages moved to the dead topic", |g| g.dead),
];

const SINK_METRICS: [Metric<SinkReport>; 9] = [
    counter("sink_delivered", "Events that the engine has acknowledged", |s| s.delivered),
    counter("sink_batches", "Batches that the engine has acknowledged", |s| s.batches),
    counter("sink_retries", "Attempts that failed, and were repeated", |s| s.retries),
    counter("sink_calls", "Calls of the engine that were carried out", |s| s.calls),
    counter("sink_failed_calls", "Calls of the engine that have failed", |s| s.failed_calls),
    gauge("sink_in_flight", "Events in batches that the engine has not acknowledged", |s| {
        s.in_flight
    }),
    gauge("sink_lag_events", "Events in the topic that the engine has not acknowledged", |s| s.lag),
    gauge("sink_lag_milliseconds", "Age of the oldest event not acknowledged", |s| s.lag_ms),
    gauge("sink_up", "1 unless the last attempt has failed", |s| s.is_up.into()),
];

const CALL_SOURCE_METRICS: [Metric<CallSourceReport>; 8] = [
    counter("source_messages", "Messages taken from the engine", |s| s.messages),
    counter("source_calls", "Calls of messages that were carried out", |s| s.calls),
    counter("source_failed_calls", "Calls of messages that have failed", |s| s.failed_calls),
    counter("source_repeated_calls", "Times a call was repeated because there was no room", |s| {
        s.repeated_calls
    }),
    counter("source_wrong_messages", "Messages dropped because they are no call", |s| {
        s.wrong_messages
    }),
    counter("source_retries", "Attempts that failed, and were repeated", |s| s.retries),
    gauge("source_in_flight", "Messages taken that the engine has not acknowledged", |s| {
        s.in_flight
    }),
    gauge("source_up", "1 unless the last attempt has failed", |s| (!s.is_failing).into()),
];

const NODE_METRICS: [Metric<NodeReport>; 7] = [
    counter("mesh_sent_batches", "Batches of messages for the node", |n| n.sent_batches),
    counter("mesh_sent_bytes", "Bytes of messages for the node", |n| n.sent_bytes),
    counter("mesh_received_batches", "Batches of messages from the node", |n| n.received_batches),
    counter("mesh_received_bytes", "Bytes of messages from the node", |n| n.received_bytes),
    gauge("mesh_node_linked", "1 while there is a link to the node", |n| n.is_linked.into()),
    gauge("mesh_round_trip_milliseconds", "Round trip of the last ping", |n| n.round_trip_ms),
    gauge("mesh_waiting_bytes", "Bytes that the node has not acknowledged", |n| n.waiting_bytes),
];

const MESH_METRICS: [Metric<MeshReport>; 4] = [
    counter("mesh_sessions_ended", "Sessions ended by loss or restart of a node", |m| {
        m.sessions_ended
    }),
    counter("mesh_uncounted", "Tallies of publishes that nodes did not give in time", |m| {
        m.uncounted
    }),
    gauge("mesh_nodes", "Reachable nodes of the grid, including this one", |m| {
        m.nodes.len() as u64 + 1
    }),
    gauge("mesh_expected", "Expected nodes, as configured by mesh.expect", |m| m.expected),
];

const PROCESS_METRICS: [Metric<ProcessReport>; 7] = [
    counter("log_lines_dropped", "Log lines that were not written", |p| p.log_lines_dropped),
    gauge("memory_bytes", "Memory in use, as limits.memory_bytes counts it", |p| p.memory_bytes),
    gauge("memory_limit_bytes", "The memory budget, limits.memory_bytes", |p| p.memory_limit_bytes),
    counter("disk_events", "Events of topics on disk that were stored", |p| p.disk.events),
    counter("disk_errors", "Files of topics that could not be written or read", |p| p.disk.errors),
    gauge("disk_bytes", "Size of the files of topics", |p| p.disk.bytes),
    gauge("disk_failing", "1 while files cannot be used and the disk is not full", |p| {
        p.disk.is_failing.into()
    }),
];

const USAGE_METRICS: [Metric<ProcessUsage>; 4] = [
    gauge("process_resident_memory_bytes", "Resident memory of the process", |u| u.resident_bytes),
    gauge("process_virtual_memory_bytes", "Virtual memory of the process", |u| u.virtual_bytes),
    gauge("process_open_fds", "Open file descriptors of the process", |u| u.open_fds),
    gauge("process_max_fds", "Limit of open file descriptors of the process", |u| u.max_fds),
];

/// The label of a sample: its name and value. `None`: the metric has one sample, without a label.
type Label = Option<(&'static str, String)>;

/// Encodes a counter or gauge with its samples.
fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, kind): (&str, &str, MetricType),
    samples: impl IntoIterator<Item = (Label, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (label, value) in samples {
        match label {
            None => encode_sample(&mut family, kind, value)?,
            Some(label) => encode_sample(&mut family.encode_family(&[label])?, kind, value)?,
        }
    }
    Ok(())
}

fn encode_sample(metric: &mut MetricEncoder<'_>, kind: MetricType, value: u64) -> fmt::Result {
    match kind {
        MetricType::Counter => metric.encode_counter::<NoLabelSet, _, u64>(&value, None),
        _ => metric.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX)),
    }
}

/// Encodes the metrics of a table, with one sample for each report.
fn encode_table<'r, T: 'r>(
    encoder: &mut DescriptorEncoder<'_>,
    metrics: &[Metric<T>],
    reports: impl Iterator<Item = (Label, &'r T)> + Clone,
) -> fmt::Result {
    for Metric { name, help, kind, value } in metrics {
        let samples = reports.clone().map(|(label, report)| (label, value(report)));
        encode(encoder, (name, help, *kind), samples)?;
    }
    Ok(())
}

/// Encodes a histogram of durations with its samples.
fn encode_durations<'r>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    samples: impl IntoIterator<Item = (Label, &'r Durations)>,
) -> fmt::Result {
    let (unit, kind) = (Unit::Seconds, MetricType::Histogram);
    let mut family = encoder.encode_descriptor(name, help, Some(&unit), kind)?;
    for (label, durations) in samples {
        match label {
            None => durations.encode(&mut family)?,
            Some(label) => durations.encode(&mut family.encode_family(&[label])?)?,
        }
    }
    Ok(())
}

impl Durations {
    fn encode(&self, metric: &mut MetricEncoder<'_>) -> fmt::Result {
        let bounds = BOUNDS_US.iter().map(|&us| us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(self.buckets).collect();
        let sum = self.sum_us as f64 / 1e6;
        metric.encode_histogram::<NoLabelSet>(sum, self.count(), &buckets, None)
    }
}

#[derive(Debug)]
struct NodeReports(Vec<Report>);

impl Collector for NodeReports {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(reports) = self;
        encode_node(&mut encoder, reports)?;
        let shards = reports.iter().map(|r| (Some(("shard", r.shard.to_string())), r));
        encode_table(&mut encoder, &SHARD_METRICS, shards.clone())?;
        let help = "Durations of a shard's turns, without sleep; their sum is the time it was busy";
        let turns = shards.map(|(label, report)| (label, &report.turns));
        encode_durations(&mut encoder, ("turn", help), turns)?;
        let topics = reports.iter().flat_map(|report| &report.topics);
        let topics = topics.map(|topic| (Some(("topic", topic.name.clone())), topic));
        encode_table(&mut encoder, &TOPIC_METRICS, topics)?;
        encode_groups(&mut encoder, reports)?;
        let sinks = reports.iter().flat_map(|report| &report.topics).flat_map(|topic| &topic.sinks);
        let sinks = sinks.map(|sink| (Some(("sink", sink.name.clone())), sink));
        encode_table(&mut encoder, &SINK_METRICS, sinks)?;
        let sources = reports.iter().flat_map(|report| &report.call_sources);
        let sources = sources.map(|source| (Some(("source", source.name.to_string())), source));
        encode_table(&mut encoder, &CALL_SOURCE_METRICS, sources)
    }
}

/// Encodes the groups of topics. The configuration bounds the number of groups of a topic. The default group has no
/// label `group`, which Prometheus takes for an empty one.
fn encode_groups(encoder: &mut DescriptorEncoder<'_>, reports: &[Report]) -> fmt::Result {
    let topics = reports.iter().flat_map(|report| &report.topics);
    for Metric { name, help, kind, value } in &GROUP_METRICS {
        let mut family = encoder.encode_descriptor(name, help, None, *kind)?;
        for (topic, group) in
            topics.clone().flat_map(|topic| topic.groups.iter().map(move |group| (topic, group)))
        {
            let mut labels = vec![("topic", topic.name.as_str())];
            labels.extend(group.name.as_deref().map(|name| ("group", name)));
            encode_sample(&mut family.encode_family(&labels)?, *kind, value(group))?;
        }
    }
    Ok(())
}

/// Encodes the sums over all shards, and the figures of the process.
fn encode_node(encoder: &mut DescriptorEncoder<'_>, reports: &[Report]) -> fmt::Result {
    let mut total = Counters::default();
    let (mut calls, mut events, mut admissions) = <(Durations, Durations, Durations)>::default();
    for report in reports {
        total += report.counters;
        calls += report.calls;
        admissions += report.admissions;
        events += report.events;
    }
    for (name, help, value) in total.each() {
        encode(encoder, (name, help, MetricType::Counter), [(None, value)])?;
    }
    let process = reports.iter().filter_map(|report| report.process.as_ref());
    for process in process {
        encode_table(encoder, &PROCESS_METRICS, [(None, process)].into_iter())?;
        let help = "Durations of writes to the files of topics, with their syncs";
        encode_durations(encoder, ("disk_sync", help), [(None, &process.disk.syncs)])?;
        encode_build(encoder, process.driver)?;
        encode_certificates(encoder, &process.certificates)?;
    }
    let limits = total.limits.each();
    let limits = limits.map(|(limit, value)| (Some(("limit", limit.to_owned())), value));
    let help = "How often each limit was reached";
    encode(encoder, ("limits_hit", help, MetricType::Counter), limits)?;
    let help = "Durations of calls that involved other shards";
    encode_durations(encoder, ("call", help), [(None, &calls)])?;
    let help = "Durations of questions to admission hooks";
    encode_durations(encoder, ("admission", help), [(None, &admissions)])?;
    let help =
        "Durations from the arrival of events at topics until they were written, or acknowledged";
    encode_durations(encoder, ("event", help), [(None, &events)])
}

/// Encodes what the process is, as labels.
fn encode_build(encoder: &mut DescriptorEncoder<'_>, driver: &str) -> fmt::Result {
    let help = "The version of gridcast, and the driver of the shards: io_uring or epoll";
    let mut metric = encoder.encode_descriptor("build", help, None, MetricType::Info)?;
    metric.encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("driver", driver)])
}

/// Encodes when each certificate in use expires.
fn encode_certificates(
    encoder: &mut DescriptorEncoder<'_>,
    certificates: &[CertificateExpiry],
) -> fmt::Result {
    let help = "When a certificate in use, or one of its chain, expires, in Unix seconds";
    let name = "certificate_expiry_timestamp_seconds";
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for CertificateExpiry { listener, file, expires_unix_s } in certificates {
        let labels = [("listener", listener.as_str()), ("file", file.as_str())];
        family.encode_family(&labels)?.encode_gauge(expires_unix_s)?;
    }
    Ok(())
}

/// The names are those of all Prometheus client libraries, without the prefix of gridcast.
impl Collector for ProcessUsage {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "CPU time of the process, in user and system mode, in seconds";
        let kind = MetricType::Counter;
        let mut cpu = encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?;
        cpu.encode_counter::<NoLabelSet, _, u64>(&(self.cpu_us as f64 / 1e6), None)?;
        let help = "Start of the process, in Unix seconds";
        let kind = MetricType::Gauge;
        let mut start =
            encoder.encode_descriptor("process_start_time_seconds", help, None, kind)?;
        start.encode_gauge(&(self.start_unix_ms as f64 / 1e3))?;
        encode_table(&mut encoder, &USAGE_METRICS, [(None, self)].into_iter())
    }
}

impl Collector for MeshReport {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode_table(&mut encoder, &MESH_METRICS, [(None, self)].into_iter())?;
        let refused = self.refused.each();
        let refused = refused.map(|(why, count)| (Some(("reason", why.to_owned())), count));
        let help = "Peers that were refused, or refused this node";
        encode(&mut encoder, ("mesh_refused", help, MetricType::Counter), refused)?;
        let nodes = self.nodes.iter().map(|node| (Some(("node", node.node.to_string())), node));
        encode_table(&mut encoder, &NODE_METRICS, nodes)?;
        encode_threads(&mut encoder, &self.threads)
    }
}

fn encode_threads(
    encoder: &mut DescriptorEncoder<'_>,
    threads: &[MeshThreadReport],
) -> fmt::Result {
    let threads = threads.iter().enumerate();
    let threads = threads.map(|(number, thread)| (("thread", number.to_string()), thread));
    let links = threads.clone().map(|(label, thread)| (Some(label), thread.links));
    let help = "Links that the thread carries, including handshakes in progress";
    encode(encoder, ("mesh_thread_links", help, MetricType::Gauge), links)?;
    let (help, unit) = ("CPU time of the thread", Unit::Seconds);
    let kind = MetricType::Counter;
    let mut cpu = encoder.encode_descriptor("mesh_thread_cpu", help, Some(&unit), kind)?;
    for (label, thread) in threads {
        let seconds = thread.cpu_us as f64 / 1e6;
        let labels = [label];
        let mut sample = cpu.encode_family(&labels)?;
        sample.encode_counter::<NoLabelSet, _, u64>(&seconds, None)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Refused;

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
        let mut syncs = Durations::default();
        syncs.add(250);
        reports[0].process = Some(ProcessReport {
            log_lines_dropped: 6,
            memory_bytes: 7,
            memory_limit_bytes: 8,
            driver: "epoll",
            usage: ProcessUsage {
                cpu_us: 1_500_000,
                resident_bytes: 9,
                virtual_bytes: 10,
                open_fds: 11,
                max_fds: u64::MAX,
                start_unix_ms: 1_700_000_000_250,
            },
            certificates: Arc::new([CertificateExpiry {
                listener: "api".into(),
                file: "/etc/\"cert\".pem".into(),
                expires_unix_s: 1_800_000_000,
            }]),
            disk: super::super::DiskReport { syncs, events: 12, bytes: 13, ..Default::default() },
        });
        reports[1].backends = 2;
        reports[1].waiting_handshakes = 4;
        reports[1].admissions.add(5);
        reports[1].turns.add(20);
        reports[1].turns.add(1_000_000);
        let sink = SinkReport {
            name: "s".into(),
            lag: 5,
            delivered: 6,
            is_up: true,
            ..Default::default()
        };
        let topic = TopicReport {
            name: "a\"b".into(),
            messages: 7,
            bytes: 8,
            consumers: 1,
            oldest_ms: 9,
            groups: vec![
                GroupReport { backlog: 3, ..Default::default() },
                GroupReport { name: Some("billing".into()), dead: 4, ..Default::default() },
            ],
            sinks: vec![sink],
        };
        reports[0].topics.push(topic);
        let source = CallSourceReport { calls: 7, ..CallSourceReport::new("c".into()) };
        reports[0].call_sources.push(source);
        let nodes =
            vec![NodeReport { node: 7, sent_bytes: 8, is_linked: true, ..Default::default() }];
        let mesh = MeshReport {
            nodes,
            sessions_ended: 2,
            uncounted: 0,
            expected: 3,
            refused: Refused { key: 4, version: 0, id: 1 },
            threads: vec![
                MeshThreadReport::default(),
                MeshThreadReport { links: 5, cpu_us: 1_250_000 },
            ],
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
            "gridcast_backends_open{shard=\"0\"} 0",
            "gridcast_backends_open{shard=\"1\"} 2",
            "gridcast_waiting_handshakes{shard=\"1\"} 4",
            concat!(
                "gridcast_certificate_expiry_timestamp_seconds",
                "{listener=\"api\",file=\"/etc/\\\"cert\\\".pem\"} 1800000000"
            ),
            "process_cpu_seconds_total 1.5",
            "process_resident_memory_bytes 9",
            "process_virtual_memory_bytes 10",
            "process_open_fds 11",
            "process_max_fds 9223372036854775807",
            "process_start_time_seconds 1700000000.25",
            "gridcast_admission_seconds_count 1",
            "gridcast_log_lines_dropped_total 6",
            "gridcast_turn_seconds_count{shard=\"1\"} 2",
            "gridcast_turn_seconds_bucket{le=\"0.00003\",shard=\"1\"} 1",
            "gridcast_topic_messages{topic=\"a\\\"b\"} 7",
            "gridcast_group_backlog{topic=\"a\\\"b\"} 3",
            "gridcast_group_consumers{topic=\"a\\\"b\",group=\"billing\"} 0",
            "gridcast_group_dead_total{topic=\"a\\\"b\",group=\"billing\"} 4",
            "gridcast_sink_lag_events{sink=\"s\"} 5",
            "gridcast_sink_delivered_total{sink=\"s\"} 6",
            "gridcast_sink_up{sink=\"s\"} 1",
            "gridcast_source_calls_total{source=\"c\"} 7",
            "gridcast_mesh_sessions_ended_total 2",
            "gridcast_mesh_sent_bytes_total{node=\"7\"} 8",
            "gridcast_mesh_node_linked{node=\"7\"} 1",
            "gridcast_mesh_nodes 2",
            "gridcast_mesh_expected 3",
            "gridcast_mesh_refused_total{reason=\"key\"} 4",
            "gridcast_mesh_refused_total{reason=\"version\"} 0",
            "gridcast_mesh_refused_total{reason=\"id\"} 1",
            "gridcast_mesh_thread_links{thread=\"0\"} 0",
            "gridcast_mesh_thread_links{thread=\"1\"} 5",
            "gridcast_mesh_thread_cpu_seconds_total{thread=\"1\"} 1.25",
            "gridcast_disk_sync_seconds_bucket{le=\"0.0001\"} 0",
            "gridcast_disk_sync_seconds_bucket{le=\"0.0003\"} 1",
            "gridcast_disk_sync_seconds_sum 0.00025",
            "gridcast_disk_events_total 12",
            "gridcast_disk_bytes 13",
            "gridcast_disk_failing 0",
            "gridcast_memory_bytes 7",
            "gridcast_memory_limit_bytes 8",
            concat!(
                "gridcast_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\",driver=\"epoll\"} 1"
            ),
            "# EOF",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
