//! The sinks of a topic, in the answer to `topic.list`.

/// The most bytes of a failure that a row tells.
pub const FAILURE_BYTES_MAX: usize = 256;

/// A sink of a topic, over the shards that have answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkRow {
    /// The name of the sink.
    pub name: Box<str>,
    /// Events that the engine has not acknowledged.
    pub backlog: u64,
    /// The age of the oldest of them on any node, in milliseconds.
    pub oldest_ms: u64,
    /// Events in batches that the engine has not acknowledged.
    pub in_flight: u64,
    /// Events that the engine has acknowledged.
    pub delivered: u64,
    /// Attempts that have failed.
    pub retries: u64,
    /// Whether the sink runs on every node, and the last attempt of none has failed.
    pub is_up: bool,
    /// Why the last attempt of a node has failed: at most [`FAILURE_BYTES_MAX`] of it.
    pub failure: Option<Box<str>>,
}

impl SinkRow {
    fn add(&mut self, other: Self) {
        self.backlog = self.backlog.saturating_add(other.backlog);
        self.oldest_ms = self.oldest_ms.max(other.oldest_ms);
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.delivered = self.delivered.saturating_add(other.delivered);
        self.retries = self.retries.saturating_add(other.retries);
        self.is_up &= other.is_up;
        self.failure = self.failure.take().or(other.failure);
    }
}

/// Adds the sinks of the same topic on another node.
pub(super) fn add_sinks(sinks: &mut Vec<SinkRow>, others: Vec<SinkRow>) {
    for other in others {
        match sinks.iter_mut().find(|sink| sink.name == other.name) {
            Some(sink) => sink.add(other),
            None => sinks.push(other),
        }
    }
    sinks.sort_unstable_by(|one, other| one.name.cmp(&other.name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sink_is_summed_over_nodes_and_is_up_only_if_it_is_everywhere() {
        let sink = |name: &str, backlog, failure: Option<&str>| SinkRow {
            name: name.into(),
            backlog,
            oldest_ms: backlog,
            in_flight: 1,
            delivered: 2,
            retries: 3,
            is_up: failure.is_none(),
            failure: failure.map(Box::from),
        };
        let mut sinks = vec![sink("b", 1, None)];
        add_sinks(&mut sinks, vec![sink("b", 5, Some("refused")), sink("a", 0, None)]);
        let [a, b] = &sinks[..] else { panic!("{sinks:?}") };
        assert_eq!(*a, sink("a", 0, None));
        assert_eq!((b.backlog, b.oldest_ms, b.in_flight), (6, 5, 2));
        assert_eq!((b.delivered, b.retries, b.is_up), (4, 6, false));
        assert_eq!(b.failure.as_deref(), Some("refused"));
    }
}
