//! The groups of a topic's consumers, in the answer to `topic.list`.

/// A group of a topic's consumers, over the shards that have answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// The name of the group. `None`: the default group.
    pub name: Option<Box<str>>,
    /// Messages that the group has not settled.
    pub backlog: u64,
    /// Messages in flight to consumers, and those that were taken.
    pub in_flight: u64,
    /// For how long no message in flight was finished, on the node where that was the longest, in milliseconds.
    /// 0: none is in flight.
    pub stalled_ms: u64,
    /// The number of consumers that are connected to the nodes that have answered.
    pub consumers: u64,
    /// How often a message was requeued because it was not acknowledged.
    pub redelivered: u64,
    /// Messages moved to the dead topic.
    pub dead: u64,
}

impl GroupRow {
    fn add(&mut self, other: &Self) {
        self.backlog = self.backlog.saturating_add(other.backlog);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.stalled_ms = self.stalled_ms.max(other.stalled_ms);
        self.consumers = self.consumers.saturating_add(other.consumers);
        self.redelivered = self.redelivered.saturating_add(other.redelivered);
        self.dead = self.dead.saturating_add(other.dead);
    }
}

/// Adds the groups of the same topic on another node, whose configuration may differ.
pub(super) fn add_groups(groups: &mut Vec<GroupRow>, others: Vec<GroupRow>) {
    for other in others {
        match groups.iter_mut().find(|group| group.name == other.name) {
            Some(group) => group.add(&other),
            None => groups.push(other),
        }
    }
    groups.sort_unstable_by(|one, other| one.name.cmp(&other.name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_summed_over_nodes_and_the_default_group_is_the_first() {
        let group = |name: Option<&str>, backlog| GroupRow {
            name: name.map(Box::from),
            backlog,
            in_flight: 1,
            stalled_ms: backlog,
            consumers: 2,
            redelivered: 3,
            dead: u64::MAX,
        };
        let mut groups = vec![group(Some("billing"), 5)];
        add_groups(&mut groups, vec![group(Some("billing"), 6), group(Some("audit"), 0)]);
        add_groups(&mut groups, vec![group(None, 7)]);
        let [default, audit, billing] = &groups[..] else { panic!("{groups:?}") };
        assert_eq!((default, audit), (&group(None, 7), &group(Some("audit"), 0)));
        assert_eq!((billing.backlog, billing.in_flight, billing.consumers), (11, 2, 4));
        assert_eq!(billing.stalled_ms, 6, "the longest time counts");
        assert_eq!((billing.redelivered, billing.dead), (6, u64::MAX), "sums do not wrap");
    }
}
