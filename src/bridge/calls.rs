//! The calls that shards carry out for the bridge: those of a webhook's answer, and those of sources.

use std::collections::HashMap;

use super::call_sources::SourceCaller;
use super::sinks::SinkCaller;
use crate::message::BridgeCallId;

/// What a call belongs to.
#[derive(Clone, Debug)]
pub(super) enum BridgeCaller {
    /// A batch of a sink.
    Sink(SinkCaller),
    /// A message of a source.
    Source(SourceCaller),
}

/// The calls in flight. Each batch of a sink has at most one, and each message of a source.
#[derive(Default)]
pub(super) struct Calls {
    callers: HashMap<BridgeCallId, BridgeCaller>,
    next: u64,
}

impl Calls {
    /// Notes a call in flight; returns its id.
    pub(super) fn open(&mut self, caller: BridgeCaller) -> BridgeCallId {
        let id = BridgeCallId(self.next);
        self.next += 1;
        self.callers.insert(id, caller);
        id
    }

    /// Returns the caller of a call that has ended.
    pub(super) fn close(&mut self, id: BridgeCallId) -> Option<BridgeCaller> {
        self.callers.remove(&id)
    }
}
