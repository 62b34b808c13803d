//! The topics whose home is this shard, for `topic.list`.

use super::home_topics::HomeTopics;
use crate::message::{NamesPart, NamesQuestion};
use crate::metrics::{GroupReport, SinkReport};
use crate::protocol::api::{FAILURE_BYTES_MAX, GroupRow, SinkRow, TopicRow};
use crate::queue::topic::Topic;

impl HomeTopics {
    /// Returns the first topics that are asked for. Looks at every topic, as `/metrics` does: the number of
    /// topics is bounded by `queue.topics`.
    pub(in crate::shard) fn list(
        &self,
        now_us: u64,
        question: &NamesQuestion,
    ) -> NamesPart<TopicRow> {
        let mut topics: Vec<(&str, &Topic)> =
            self.each().filter(|(name, _)| question.matches(name)).collect();
        topics.sort_unstable_by_key(|(name, _)| *name);
        let max = question.max as usize;
        let is_cut = topics.len() > max;
        let rows = topics.into_iter().take(max).map(|(name, topic)| row(name, topic, now_us));
        NamesPart { rows: rows.collect(), is_cut }
    }
}

fn row(name: &str, topic: &Topic, now_us: u64) -> TopicRow {
    let report = topic.report(name, now_us);
    TopicRow {
        name: name.into(),
        messages: report.messages,
        bytes: report.bytes,
        oldest_ms: report.oldest_ms,
        consumers: report.consumers,
        in_flight: topic.in_flight() as u64,
        is_on_disk: topic.is_on_disk(),
        groups: report.groups.into_iter().map(group).collect(),
        sinks: report.sinks.into_iter().map(sink).collect(),
    }
}

fn group(report: GroupReport) -> GroupRow {
    let GroupReport { name, backlog, in_flight, stalled_ms, consumers, redelivered, dead } = report;
    let name = name.map(Box::from);
    GroupRow { name, backlog, in_flight, stalled_ms, consumers, redelivered, dead }
}

fn sink(report: SinkReport) -> SinkRow {
    let cut = |why: String| Box::from(&why[..why.floor_char_boundary(FAILURE_BYTES_MAX)]);
    SinkRow {
        name: report.name.into(),
        backlog: report.lag,
        oldest_ms: report.lag_ms,
        in_flight: report.in_flight,
        delivered: report.delivered,
        retries: report.retries,
        is_up: report.is_up,
        failure: report.failure.map(cut),
    }
}
