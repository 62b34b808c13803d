//! The state of a topic in numbers, for metrics, lists and the end of the node.

use super::Topic;
use super::group::Group;
use super::sink::SinkGroup;
use crate::address::NodeId;
use crate::metrics::{Durations, GroupReport, TopicReport};
use crate::queue::consumers::age_us;

impl Topic {
    /// Messages held, including those in flight.
    pub fn messages(&self) -> usize {
        self.held.room.held().messages
    }

    /// Messages held that would be lost if the process ended.
    pub fn unsaved(&self) -> usize {
        match self.is_on_disk() {
            true => self.held.room.unstored().messages,
            false => self.messages(),
        }
    }

    /// Whether the end of the node has to wait for the topic: consumers have something to do, because messages are in
    /// flight or taken, or wait and are not for later. Or messages are not stored yet; stored ones survive the end.
    pub fn has_work(&self) -> bool {
        if self.is_on_disk() {
            return self.has_unstored();
        }
        self.has_consumers() && self.messages() > self.delayed.len()
            || self.all_groups().any(|group| !group.taken.is_empty())
    }

    /// Messages dropped since the last call: because the topic was full ([`WhenFull::DropOldest`]), or their sink was removed.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    /// Messages dropped because they were too old, since the last call.
    pub fn take_aged(&mut self) -> u64 {
        std::mem::take(&mut self.aged)
    }

    /// Messages that were handed out and wait again because they were not acknowledged, since the last call.
    pub fn take_redelivered(&mut self) -> u64 {
        std::mem::take(&mut self.held.redelivered)
    }

    /// How long messages were in the topic until they were written, or acknowledged.
    pub fn waits(&self) -> Durations {
        self.held.waits
    }

    /// The number of messages in flight to consumers, over all groups.
    pub fn in_flight(&self) -> usize {
        let of_groups: usize = self.all_groups().map(Group::in_flight).sum();
        of_groups + self.sinks.iter().map(SinkGroup::in_flight).sum::<usize>()
    }

    /// The figures of the topic.
    pub fn report(&self, name: &str, now_us: u64) -> TopicReport {
        let since_us = self.oldest_since_us();
        let held = self.held.room.held();
        TopicReport {
            name: name.to_owned(),
            messages: held.messages as u64,
            bytes: held.bytes as u64,
            consumers: self.own_consumers() as u64,
            oldest_ms: since_us.map_or(0, |since_us| age_us(now_us, since_us) / 1000),
            groups: self.group_reports(now_us),
            sinks: self
                .sinks
                .iter()
                .map(|sink| sink.figures(now_us, self.unread(sink.place)))
                .collect(),
        }
    }

    fn group_reports(&self, now_us: u64) -> Vec<GroupReport> {
        let groups = self.all_groups().skip(usize::from(!self.has_default_group));
        groups.map(|group| group.report(self.node, now_us, self.unread(group.place))).collect()
    }

    /// The number of consumers that are connected to the topic's own node. A consumer is known to the topic of
    /// every node, so the sum over the nodes counts each consumer once.
    pub fn own_consumers(&self) -> usize {
        self.all_groups().map(|group| group.consumers.count_of(self.node)).sum()
    }

    /// Returns since when the oldest waiting message waits, in microseconds. `None`: none waits.
    pub(super) fn oldest_since_us(&self) -> Option<i64> {
        let of_groups = self.all_groups().filter_map(|group| group.lanes.oldest_since_us());
        of_groups.chain(self.sinks.iter().filter_map(SinkGroup::oldest_waiting_us)).min()
    }
}

impl Group {
    /// The number of messages in flight to consumers, and of those that were taken.
    fn in_flight(&self) -> usize {
        let handed = self.consumers.iter().map(|(_, consumer)| consumer.handed.len());
        handed.sum::<usize>() + self.taken.len()
    }

    /// Since when no message in flight was finished, in microseconds: written, or acknowledged where that is asked
    /// for. A message that is handed out again because it was not acknowledged counts from the first time. `None`:
    /// none is in flight.
    fn stalled_since_us(&self) -> Option<u64> {
        let consumers = self.consumers.iter().filter(|(_, consumer)| !consumer.handed.is_empty());
        let progress_us = consumers.map(|(_, consumer)| consumer.progress_us);
        let since_us = progress_us.chain(self.taken.unfinished_since_us()).max()?;
        Some(self.lapsed_since_us.map_or(since_us, |lapsed_us| lapsed_us.min(since_us)))
    }

    /// The figures of the group, on this node. `unread` messages are in the log alone.
    fn report(&self, node: NodeId, now_us: u64, unread: u64) -> GroupReport {
        GroupReport {
            name: self.name.as_deref().map(str::to_owned),
            backlog: self.backlog as u64 + unread,
            in_flight: self.in_flight() as u64,
            stalled_ms: self.stalled_since_us().map_or(0, |us| now_us.saturating_sub(us) / 1000),
            consumers: self.consumers.count_of(node) as u64,
            redelivered: self.redelivered,
            dead: self.dead,
        }
    }
}
