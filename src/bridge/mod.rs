//! Requests to HTTP services (the key sets of issuers, admission hooks), the sinks that carry events to
//! engines, and the sources whose messages are calls.
//!
//! [`Bridge`] is a value like a shard. Messages of shards, answers of services and the time go in
//! (`handle_*`); requests for services and messages for shards come out (`poll_*`). `http.rs` drives the
//! bridge on a thread of its own with its own tokio runtime, so that neither TLS nor JSON delays the shards
//! or the heartbeats of the mesh.
//!
//! - `keys.rs`: when a key set is fetched. `hooks.rs`: which questions a hook gets, and which wait.
//! - `sinks.rs`: which sinks run. `sinks/runner.rs`: the batches of one sink, and when each is sent again.
//! - `call_sources.rs`: which sources of calls run. `call_sources/runner.rs`: the messages of one source, until their calls
//!   are carried out and acknowledged.
//! - `calls.rs`: the calls that shards carry out for the bridge. `pauses.rs`: pauses after failures.
//! - `http.rs`: the thread. `http/client.rs`: HTTP, TLS and their limits.
//! - `engines.rs`: how events are handed to an engine. Each engine has a file.
//!
//! # Bounds
//!
//! | what | bound | when it is full |
//! |---|---|---|
//! | messages of shards that the thread has not taken | [`http::INBOX_MESSAGES`] | shards keep theirs, which their own bounds limit |
//! | questions of a hook in flight | `hooks::IN_FLIGHT_MAX` | further ones wait |
//! | questions that wait for a hook | `hooks::WAITING_MAX`, `hooks::WAITING_BYTES_MAX` | those of devices that have gone are dropped, then new ones are answered [`AdmissionVerdict::Full`](crate::message::AdmissionVerdict::Full) |
//! | connections | those of the questions in flight, and [`HOOK_DESCRIPTORS`](crate::runtime::check::HOOK_DESCRIPTORS) for each hook with idle ones, reserved at the start and at each reload | an idle one is closed; a reload closes all idle ones |
//! | events of a sink that its engine has not acknowledged | the window of the topic, `queue/topic/sink.rs` | events wait in the topic |
//! | batches of a sink in flight | `in_flight` of the sink, for engines without that key a constant of the engine | events wait for the next batch |
//! | an answer | `KEY_SET_BYTES_MAX`, [`ANSWER_BYTES_MAX`](crate::protocol::admission::ANSWER_BYTES_MAX) | the request fails |
//! | an answer of a webhook | `ANSWER_BYTES_MAX` and `CALLS_MAX` in `engines/webhook.rs` | none of its calls is carried out |
//! | calls of webhooks that shards carry out | one for each batch of a sink | further calls wait for the end of the one before |
//! | messages of a source | `HELD_MAX` in `call_sources/runner.rs` | no more are taken: they wait in the engine |

mod call_sources;
mod calls;
mod engines;
mod hooks;
pub mod http;
mod keys;
mod pauses;
mod sinks;

use std::collections::{HashMap, VecDeque};
use std::fmt::{self, Display};
use std::sync::Arc;

use crate::address::ShardId;
use crate::message::{
    AdmissionRequest, BridgeCallId, BridgeSettings, ConnectionKey, FromBridge, Ticket, ToBridge,
};
use crate::metrics::CallSourceReport;
use crate::protocol::admission::AdmissionHook;
use crate::protocol::call_source::CallSource;
use crate::protocol::service::HttpService;
use crate::protocol::signature::SigningSecret;
use crate::protocol::sink::Sink;
use crate::protocol::token::{KeySet, KeySource};
use call_sources::{CallSources, SourceOutcome, SourceRun, SourceTask};
use calls::{BridgeCaller, Calls};
use hooks::HookQueue;
use keys::KeyFetcher;
use sinks::{Acknowledgement, EngineFailure, SinkDelivery, SinkMessage, Sinks};

/// The longest key set, in bytes.
const KEY_SET_BYTES_MAX: usize = 256 * 1024;

/// The content type of a body that is one JSON value.
const JSON: &str = "application/json";

/// A request for a service, and what its answer is for.
#[derive(Debug)]
struct ServiceRequest {
    purpose: Purpose,
    exchange: HttpExchange,
}

/// A request, and the limits of its answer.
#[derive(Debug)]
struct HttpExchange {
    service: HttpService,
    /// The body of a POST, as JSON. `None`: a GET.
    body: Option<Vec<u8>>,
    content_type: &'static str,
    /// Signs the body.
    secret: Option<SigningSecret>,
    /// The time left for the answer, in milliseconds.
    timeout_ms: u64,
    /// The longest answer, in bytes.
    answer_bytes_max: usize,
}

/// The purpose of a request. Comes back with the answer.
#[derive(Clone, Debug)]
enum Purpose {
    Keys(Arc<KeySource>),
    Admission {
        hook: Arc<AdmissionHook>,
        shard: ShardId,
        connection: ConnectionKey,
        ticket: Ticket,
    },
}

/// The answer of a service.
#[derive(Debug)]
struct ServiceAnswer {
    status: u16,
    /// The header `Retry-After`, if it is a number of seconds.
    retry_after_s: Option<u64>,
    body: Vec<u8>,
}

/// Why there is no answer of a service.
#[derive(Debug)]
enum ServiceFailure {
    /// The service has not answered. The reason in words.
    Unanswered(String),
    /// The answer is longer than its limit.
    TooLong {
        /// The status of the answer.
        status: u16,
        /// The limit, in bytes.
        bytes_max: usize,
    },
}

impl Display for ServiceFailure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unanswered(why) => formatter.write_str(why),
            Self::TooLong { bytes_max, .. } => {
                write!(formatter, "the answer is longer than {bytes_max} bytes")
            }
        }
    }
}

/// Which shards get a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receivers {
    All,
    One(ShardId),
}

/// A call that a shard has to carry out.
#[derive(Debug)]
struct BridgeCall {
    call: BridgeCallId,
    /// The source of the call, if it has one. All calls of a source are carried out by the same shard, in order.
    source: Option<Arc<str>>,
    /// The call, as JSON.
    text: Vec<u8>,
}

/// The state of all services.
struct Bridge {
    fetchers: HashMap<Arc<KeySource>, KeyFetcher>,
    hooks: HashMap<Arc<AdmissionHook>, HookQueue>,
    sinks: Sinks,
    call_sources: CallSources,
    calls: Calls,
    // Makes the pauses between fetches differ from node to node, and from source to source.
    random: u64,
    // Emptied after each input.
    requests: VecDeque<ServiceRequest>,
    // Emptied after each input.
    outbox: VecDeque<(Receivers, FromBridge)>,
}

impl Bridge {
    /// Creates a bridge that fetches keys and runs sinks, beginning now.
    fn new(settings: BridgeSettings, random: u64) -> Self {
        let mut bridge = Self {
            fetchers: HashMap::new(),
            hooks: HashMap::new(),
            sinks: Sinks::new(random),
            call_sources: CallSources::new(random),
            calls: Calls::default(),
            random,
            requests: VecDeque::new(),
            outbox: VecDeque::new(),
        };
        bridge.handle_settings(settings);
        bridge
    }

    /// Handles a message of a shard or of the node.
    fn handle_message(&mut self, now_ms: u64, from: ShardId, message: ToBridge) {
        match message {
            ToBridge::FetchKeys { source, known } => {
                self.handle_fetch(now_ms, from, source, known.as_ref());
            }
            ToBridge::Settings(settings) => self.handle_settings(settings),
            ToBridge::Admit(request) => self.handle_admit(now_ms, from, request),
            ToBridge::Events(events) => self.sinks.handle_events(events),
            ToBridge::Called { call, outcome } => match self.calls.close(call) {
                Some(BridgeCaller::Sink(caller)) => self.sinks.handle_called(&caller, outcome),
                Some(BridgeCaller::Source(caller)) => {
                    self.call_sources.handle_called(now_ms, &caller, outcome);
                }
                None => {}
            },
        }
    }

    /// Applies settings.
    fn handle_settings(&mut self, settings: BridgeSettings) {
        let BridgeSettings { key_sources, sinks, call_sources } = settings;
        self.handle_key_sources(key_sources);
        self.sinks.set(sinks);
        self.call_sources.set(call_sources);
    }

    /// Fetches the keys of these sources from now on, and those of no others. A source that stays keeps
    /// its keys.
    fn handle_key_sources(&mut self, sources: Vec<Arc<KeySource>>) {
        self.fetchers.retain(|source, _| sources.contains(source));
        self.hooks.retain(|_, queue| !queue.is_idle());
        for source in sources {
            self.random = self.random.wrapping_add(1);
            self.fetchers.entry(source).or_insert_with(|| KeyFetcher::new(self.random));
        }
    }

    fn handle_fetch(
        &mut self,
        now_ms: u64,
        from: ShardId,
        source: Arc<KeySource>,
        known: Option<&Arc<KeySet>>,
    ) {
        // The source of a handshake that has waited since before a reload may be gone.
        let Some(fetcher) = self.fetchers.get_mut(&source) else { return };
        if fetcher.is_fetching() {
            return;
        }
        match fetcher.handle_question(now_ms, known) {
            true => self.requests.push_back(fetch_request(source)),
            false => {
                let report = fetcher.report(now_ms, source, None);
                self.outbox.push_back((Receivers::One(from), FromBridge::Keys(report)));
            }
        }
    }

    fn handle_admit(&mut self, now_ms: u64, from: ShardId, request: AdmissionRequest) {
        let (connection, ticket) = (request.connection, request.ticket);
        let queue = self.hooks.entry(request.hook.clone()).or_default();
        if let Err(verdict) = queue.push(now_ms, from, request) {
            let message = FromBridge::Admission { connection, ticket, verdict };
            self.outbox.push_back((Receivers::One(from), message));
        }
        self.requests.extend(queue.poll_request(now_ms));
    }

    /// Handles the end of a request.
    fn handle_answer(
        &mut self,
        now_ms: u64,
        purpose: Purpose,
        answer: Result<ServiceAnswer, ServiceFailure>,
    ) {
        match purpose {
            Purpose::Keys(source) => {
                let Some(fetcher) = self.fetchers.get_mut(&source) else { return };
                let result = fetcher.handle_answer(now_ms, &source, answer);
                note(&mut fetcher.is_failing, "keys", &source.service, &result);
                let report = fetcher.report(now_ms, source, Some(result.is_ok()));
                self.outbox.push_back((Receivers::All, FromBridge::Keys(report)));
            }
            Purpose::Admission { hook, shard, connection, ticket } => {
                let Some(queue) = self.hooks.get_mut(&hook) else { return };
                let (verdict, result) = hooks::judge(answer);
                note(&mut queue.is_failing, "admission", &hook.service, &result);
                let message = FromBridge::Admission { connection, ticket, verdict };
                self.outbox.push_back((Receivers::One(shard), message));
                queue.handle_end();
                self.requests.extend(queue.poll_request(now_ms));
            }
        }
    }

    /// Begins the fetches that are due.
    fn handle_timeout(&mut self, now_ms: u64) {
        for (source, fetcher) in &mut self.fetchers {
            if fetcher.handle_timeout(now_ms) {
                self.requests.push_back(fetch_request(source.clone()));
            }
        }
    }

    /// Returns when [`Self::handle_timeout`] or one of the other methods has something to do. Called when none has now.
    fn poll_timeout(&self) -> Option<u64> {
        let fetches = self.fetchers.values().filter_map(KeyFetcher::next_fetch_ms);
        fetches.chain(self.sinks.poll_timeout()).chain(self.call_sources.poll_timeout()).min()
    }

    /// Returns the next batch for an engine.
    fn poll_delivery(&mut self, now_ms: u64) -> Option<SinkDelivery> {
        self.sinks.poll_delivery(now_ms)
    }

    /// Handles the outcome of a delivery.
    fn handle_outcome(
        &mut self,
        now_ms: u64,
        delivery: &SinkDelivery,
        outcome: Result<Acknowledgement, EngineFailure>,
    ) {
        self.sinks.handle_outcome(now_ms, delivery, outcome);
    }

    /// Returns the next call that a shard has to carry out.
    fn poll_call(&mut self, now_ms: u64) -> Option<BridgeCall> {
        if let Some((caller, text)) = self.sinks.poll_call() {
            let call = self.calls.open(BridgeCaller::Sink(caller));
            return Some(BridgeCall { call, source: None, text });
        }
        let (caller, text) = self.call_sources.poll_call(now_ms)?;
        let source = Some(caller.name().clone());
        Some(BridgeCall { call: self.calls.open(BridgeCaller::Source(caller)), source, text })
    }

    /// Returns what the engine of a source has to do next.
    fn poll_source_task(&mut self, now_ms: u64) -> Option<SourceTask> {
        self.call_sources.poll_task(now_ms)
    }

    /// Handles the end of what the engine of a source had to do.
    fn handle_source(
        &mut self,
        now_ms: u64,
        source: &CallSource,
        run: SourceRun,
        outcome: SourceOutcome,
    ) {
        self.call_sources.handle_outcome(now_ms, source, run, outcome);
    }

    /// Whether a run of a source goes on.
    fn has_source(&self, source: &CallSource, run: SourceRun) -> bool {
        self.call_sources.is_running(source, run)
    }

    /// Returns the next figures of a source that have changed; `None` in them: the source was removed.
    fn poll_source_news(&mut self) -> Option<(Arc<str>, Option<Box<CallSourceReport>>)> {
        self.call_sources.poll_news()
    }

    /// Whether a sink with these settings runs.
    fn has_sink(&self, sink: &Arc<Sink>) -> bool {
        self.sinks.has(sink)
    }

    /// Returns the next message of a sink.
    fn poll_sink_message(&mut self) -> Option<SinkMessage> {
        self.sinks.poll_message()
    }

    /// Returns the next request for a service.
    fn poll_request(&mut self) -> Option<ServiceRequest> {
        self.requests.pop_front()
    }

    /// Returns the next message for shards.
    fn poll_message(&mut self) -> Option<(Receivers, FromBridge)> {
        self.outbox.pop_front()
    }
}

fn fetch_request(source: Arc<KeySource>) -> ServiceRequest {
    let exchange = HttpExchange {
        service: source.service.clone(),
        timeout_ms: source.service.timeout_ms,
        body: None,
        content_type: JSON,
        secret: None,
        answer_bytes_max: KEY_SET_BYTES_MAX,
    };
    ServiceRequest { purpose: Purpose::Keys(source), exchange }
}

/// Logs that a service begins to fail, or works again. Further failures are logged at level `debug`: a
/// service that is down would fill the log otherwise.
fn note(
    is_failing: &mut bool,
    what: &str,
    service: &HttpService,
    result: &Result<(), impl Display>,
) {
    let was_failing = std::mem::replace(is_failing, result.is_err());
    match result {
        Err(why) if was_failing => tracing::debug!("{what}: {service}: {why}"),
        Err(why) => tracing::warn!("{what}: {service}: {why}"),
        Ok(()) if was_failing => tracing::info!("{what}: {service} works again"),
        Ok(()) => {}
    }
}

#[cfg(test)]
mod tests;
