//! The calls that shards carry out for sinks: those of a webhook's answer.

use std::collections::HashMap;

use super::sinks::SinkCaller;
use crate::message::BridgeCallId;

/// The calls in flight. Each batch of a sink has at most one.
#[derive(Default)]
pub(super) struct Calls {
    callers: HashMap<BridgeCallId, SinkCaller>,
    next: u64,
}

impl Calls {
    /// Notes a call in flight; returns its id.
    pub(super) fn open(&mut self, caller: SinkCaller) -> BridgeCallId {
        let id = BridgeCallId(self.next);
        self.next += 1;
        self.callers.insert(id, caller);
        id
    }

    /// Returns the caller of a call that has ended.
    pub(super) fn close(&mut self, id: BridgeCallId) -> Option<SinkCaller> {
        self.callers.remove(&id)
    }
}
