//! Messages between shards and the bridge.

use std::sync::{Arc, Weak};

use super::{ConnectionKey, FromSink, SinkEvents, Ticket};
use crate::metrics::CallSourceReport;
use crate::protocol::admission::{Admission, AdmissionHook};
use crate::protocol::api::Fault;
use crate::protocol::call_source::CallSource;
use crate::protocol::sink::Sink;
use crate::protocol::token::{KeySet, KeySource};

/// The part of the node's settings that the bridge needs.
#[derive(Clone, Debug, Default)]
pub struct BridgeSettings {
    /// The sources of keys. The bridge fetches the keys of these and no others.
    pub key_sources: Vec<Arc<KeySource>>,
    /// The sinks. The bridge runs these and no others. Each tells the home of its topic.
    pub sinks: Vec<Arc<Sink>>,
    /// The sources of calls. The bridge runs these and no others.
    pub call_sources: Vec<Arc<CallSource>>,
}

/// A message to the bridge: of a shard, or of the node.
#[derive(Debug)]
pub enum ToBridge {
    /// A token needs a key that the shard does not have. Answered with [`FromBridge::Keys`], at the
    /// latest when a fetch has ended.
    FetchKeys {
        /// The source.
        source: Arc<KeySource>,
        /// The keys that the shard has.
        known: Option<Arc<KeySet>>,
    },
    /// The settings of the node after a reload.
    Settings(BridgeSettings),
    /// An admission hook is to decide about a device. Answered with [`FromBridge::Admission`].
    Admit(AdmissionRequest),
    /// Events for a sink that has asked for them.
    Events(SinkEvents),
    /// The end of a call. Answers [`FromBridge::Call`].
    Called {
        /// The call.
        call: BridgeCallId,
        /// Why the call has failed, if it has.
        outcome: Result<(), Fault>,
    },
}

/// A call that a shard carries out for the bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BridgeCallId(pub u64);

/// A question for an admission hook.
#[derive(Debug)]
pub struct AdmissionRequest {
    /// The hook.
    pub hook: Arc<AdmissionHook>,
    /// The connection of the device.
    pub connection: ConnectionKey,
    /// Comes back in the answer: a connection may make several requests.
    pub ticket: Ticket,
    /// The question, as JSON.
    pub body: Vec<u8>,
    /// Alive while the device waits. A request whose device has gone is not sent.
    pub device: Weak<()>,
}

/// A message of the bridge to a shard.
#[derive(Clone, Debug)]
pub enum FromBridge {
    /// The keys of a source as they are now.
    Keys(KeysReport),
    /// The decision of an admission hook.
    Admission {
        /// The connection of the device.
        connection: ConnectionKey,
        /// The number of the question.
        ticket: Ticket,
        /// The decision.
        verdict: AdmissionVerdict,
    },
    /// A message of a sink to the home of its topic.
    Sink {
        /// The topic.
        topic: Arc<str>,
        /// The name of the sink.
        sink: Arc<str>,
        /// The message.
        message: FromSink,
    },
    /// The figures of a source of calls.
    CallSource {
        /// The name of the source. All its messages go to the same shard.
        source: Arc<str>,
        /// The figures. `None`: the source was removed.
        report: Option<Box<CallSourceReport>>,
    },
    /// A call without a connection: of a webhook's answer, or of a source. Answered with [`ToBridge::Called`].
    Call {
        /// Comes back with the answer.
        call: BridgeCallId,
        /// The call, as JSON.
        text: Vec<u8>,
    },
}

/// The state of a source of keys.
#[derive(Clone, Debug)]
pub struct KeysReport {
    /// The source.
    pub source: Arc<KeySource>,
    /// The last good keys. `None`: no fetch has succeeded yet.
    pub keys: Option<Arc<KeySet>>,
    /// How long asking again would not cause a fetch, in milliseconds.
    pub quiet_ms: u64,
    /// Whether the fetch that has just ended was successful. `None`: no fetch has ended; the report
    /// answers a question.
    pub fetched: Option<bool>,
}

/// The outcome of a question to an admission hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdmissionVerdict {
    /// The device may connect.
    Granted(Box<Admission>),
    /// The device may not connect. The status is 401 or 403.
    Refused(u16),
    /// The hook has not answered as it should, or not in time.
    Failed,
    /// Too many questions wait for this hook.
    Full,
}
