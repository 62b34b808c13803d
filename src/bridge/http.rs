//! The thread of the bridge: tokio, with one task for each request to a service and each batch of a sink, and two for each
//! source of calls.

mod call_sources;
pub(super) mod client;

use std::collections::HashMap;
use std::future::pending;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::engines::{self, Engine};
use super::sinks::{Acknowledgement, EngineFailure, SinkDelivery, SinkMessage};
use super::{Bridge, BridgeCall, Purpose, Receivers, ServiceAnswer, ServiceFailure};
use crate::address::placement::home_of_topic;
use crate::address::{NodeId, ShardId};
use crate::message::{BridgeSettings, FromBridge, FromNode, ToBridge};
use crate::protocol::sink::Sink;
use crate::runtime::{NodePort, ToBridgeSender};
use call_sources::{EndedTask, SourceTasks};
use client::Client;

/// The messages of shards that the thread has not taken yet.
pub const INBOX_MESSAGES: usize = 4096;

/// Messages of shards handled before the thread looks at anything else.
const MESSAGES_PER_TURN: usize = 256;

/// Names that are looked up at a time. Each takes a thread meanwhile. Further lookups wait, within the
/// time limits of their requests.
const LOOKUPS_MAX: usize = 8;

/// The end of the bridge at which messages of shards arrive.
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<(ShardId, ToBridge)>);

/// Returns the two ends of the way from the shards to the bridge. If the [`Inbox`] is dropped, messages to
/// the bridge are dropped too.
pub fn channel() -> (ToBridgeSender, Inbox) {
    let (sender, inbox) = mpsc::channel(INBOX_MESSAGES);
    let send = move |from, message| match sender.try_send((from, message)) {
        Err(TrySendError::Full((_, message))) => Err(message),
        // Without a bridge nobody answers: what waits for an answer times out.
        Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
    };
    (Arc::new(send), Inbox(inbox))
}

/// A running bridge, on its thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

/// Starts the thread, which fetches keys, runs sinks and sources, and answers the shards of `node` through `control`. If
/// the thread fails later, `failures` is called with the reason, and the node has to end.
///
/// # Errors
/// The thread or its runtime cannot be created.
pub fn start(
    inbox: Inbox,
    settings: BridgeSettings,
    random: u64,
    node: NodeId,
    control: NodePort,
    failures: impl Fn(String) + Send + 'static,
) -> io::Result<Running> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(LOOKUPS_MAX)
        .thread_name("bridge-lookup")
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let driver = Driver {
        bridge: Bridge::new(settings, random),
        client: Client::default(),
        control,
        start: Instant::now(),
        exchanges: JoinSet::new(),
        purposes: HashMap::new(),
        engines: HashMap::new(),
        attempts: JoinSet::new(),
        deliveries: HashMap::new(),
        source_tasks: SourceTasks::new(node),
    };
    let work = move || {
        let ended = catch_unwind(AssertUnwindSafe(|| run(&runtime, driver, inbox, stopped)));
        // A lookup in progress would delay the end.
        runtime.shutdown_background();
        if ended.is_err() {
            failures("bridge: panicked; see the message above".into());
        }
    };
    let thread = std::thread::Builder::new().name("bridge".into()).spawn(work)?;
    Ok(Running { thread, stop })
}

impl Running {
    /// Ends the thread. Requests in flight are cancelled.
    pub fn stop(self) {
        drop(self.stop);
        // A panic was reported already.
        let _ = self.thread.join();
    }
}

fn run(runtime: &Runtime, driver: Driver, inbox: Inbox, stopped: oneshot::Receiver<()>) {
    runtime.block_on(driver.run(inbox, stopped));
}

/// The result of a request to a service.
type Exchanged = Result<ServiceAnswer, ServiceFailure>;

/// The end of an attempt to deliver a batch.
type Attempt = Result<Acknowledgement, EngineFailure>;

/// Drives the bridge.
struct Driver {
    bridge: Bridge,
    client: Client,
    control: NodePort,
    start: Instant,
    // The requests in flight: a bounded number for each service.
    exchanges: JoinSet<Exchanged>,
    // What each of them is for.
    purposes: HashMap<Id, Purpose>,
    // The engines of sinks that have delivered something.
    engines: HashMap<Arc<Sink>, Box<dyn Engine>>,
    // The batches in flight: a bounded number for each sink.
    attempts: JoinSet<Attempt>,
    // What each of them delivers.
    deliveries: HashMap<Id, SinkDelivery>,
    source_tasks: SourceTasks,
}

impl Driver {
    async fn run(mut self, Inbox(mut inbox): Inbox, mut stopped: oneshot::Receiver<()>) {
        let mut messages = Vec::new();
        loop {
            self.bridge.handle_timeout(self.now_ms());
            self.send();
            let timeout_ms = self.bridge.poll_timeout();
            let timeout = timeout_ms.map(|ms| self.start + Duration::from_millis(ms));
            let timeout = async move {
                match timeout {
                    Some(at) => sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = &mut stopped => return,
                taken = inbox.recv_many(&mut messages, MESSAGES_PER_TURN) => {
                    if taken == 0 {
                        return;
                    }
                    let now_ms = self.now_ms();
                    for (from, message) in messages.drain(..) {
                        let is_reload = matches!(message, ToBridge::Settings(_));
                        self.bridge.handle_message(now_ms, from, message);
                        if is_reload {
                            // Connections to services that a reload has replaced are no longer counted.
                            self.client.close_idle();
                            self.engines.retain(|sink, _| self.bridge.has_sink(sink));
                            let bridge = &self.bridge;
                            self.source_tasks.retain(|source, run| bridge.has_source(source, run));
                        }
                    }
                }
                Some(ended) = self.exchanges.join_next_with_id() => {
                    let (id, answer) = match ended {
                        Ok((id, answer)) => (id, answer),
                        // The task has panicked.
                        Err(error) => {
                            (error.id(), Err(ServiceFailure::Unanswered(error.to_string())))
                        }
                    };
                    if let Some(purpose) = self.purposes.remove(&id) {
                        self.bridge.handle_answer(self.now_ms(), purpose, answer);
                    }
                }
                Some(ended) = self.attempts.join_next_with_id() => self.handle_attempt(ended),
                Some(EndedTask { source, run, outcome }) = self.source_tasks.next() => {
                    self.bridge.handle_source(self.now_ms(), &source, run, outcome);
                }
                () = timeout => {}
            }
        }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Handles the end of an attempt to deliver a batch, and of others that have ended by now.
    fn handle_attempt(&mut self, ended: Result<(Id, Attempt), JoinError>) {
        let mut next = Some(ended);
        while let Some(ended) = next {
            let (id, outcome) = match ended {
                Ok((id, outcome)) => (id, outcome),
                // The task has panicked.
                Err(error) => {
                    (error.id(), Err(EngineFailure { why: error.to_string(), pause_ms: None }))
                }
            };
            if let Some(delivery) = self.deliveries.remove(&id) {
                self.bridge.handle_outcome(self.now_ms(), &delivery, outcome);
            }
            next = self.attempts.try_join_next_with_id();
        }
    }

    /// Starts the deliveries that are due.
    fn deliver(&mut self) {
        let now_ms = self.now_ms();
        while let Some(delivery) = self.bridge.poll_delivery(now_ms) {
            let engine = self.engines.entry(delivery.sink.clone());
            let engine = engine.or_insert_with_key(|sink| engines::connect(sink));
            let task = self.attempts.spawn(engine.deliver(delivery.batch.clone()));
            self.deliveries.insert(task.id(), delivery);
        }
        while let Some(SinkMessage { sink, message }) = self.bridge.poll_sink_message() {
            let home = home_of_topic(&sink.topic, self.control.shards().count());
            let (topic, sink) = (sink.topic.clone(), sink.name.clone());
            let message = FromBridge::Sink { topic, sink, message };
            self.control.tell(home, FromNode::Bridge(Box::new(message)));
        }
    }

    /// Begins what the engines of sources have to do, and passes calls to the shards.
    fn call(&mut self) {
        let (now_ms, shards) = (self.now_ms(), self.control.shards().count());
        while let Some(task) = self.bridge.poll_source_task(now_ms) {
            self.source_tasks.begin(task);
        }
        while let Some(BridgeCall { call, source, text }) = self.bridge.poll_call(now_ms) {
            // Those of sinks are spread over the shards.
            let spread = || ShardId((call.0 % shards as u64) as u8);
            let shard = source.map_or_else(spread, |source| shard_of_source(&source, shards));
            let message = FromBridge::Call { call, text };
            self.control.tell(shard, FromNode::Bridge(Box::new(message)));
        }
        while let Some((source, report)) = self.bridge.poll_source_news() {
            let shard = shard_of_source(&source, shards);
            let message = FromBridge::CallSource { source, report };
            self.control.tell(shard, FromNode::Bridge(Box::new(message)));
        }
    }

    /// Sends the requests and messages of the bridge.
    fn send(&mut self) {
        self.deliver();
        self.call();
        while let Some(request) = self.bridge.poll_request() {
            let purpose = request.purpose.clone();
            let task = self.exchanges.spawn(self.client.exchange(request.exchange));
            self.purposes.insert(task.id(), purpose);
        }
        while let Some((to, message)) = self.bridge.poll_message() {
            match to {
                Receivers::One(shard) => {
                    self.control.tell(shard, FromNode::Bridge(Box::new(message)));
                }
                Receivers::All => {
                    for shard in self.control.shards() {
                        let message = FromNode::Bridge(Box::new(message.clone()));
                        self.control.tell(shard, message);
                    }
                }
            }
        }
    }
}

/// Returns the shard that carries out the calls of a source.
fn shard_of_source(source: &str, shards: usize) -> ShardId {
    // Any hash of the name will do.
    home_of_topic(source, shards)
}
