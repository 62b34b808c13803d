//! Starts the shards of a node, each on its own core, and shuts them down.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::bus::{MeshPort, NodePort, bus};
use super::check::DriverKind;
use super::disk::ToLogSender;
use super::driver::Parts;
use super::identity::{ListenerTls, TlsContext};
use super::listener::Listening;
use super::outlet::{Outlet, ToBridgeSender};
use super::reload::{Reloads, WAIT_MAX};
use super::threads::{ShardThread, Start};
use super::verifier;
use super::watch::{Capacity, Summary, Watch};
use crate::address::ShardId;
use crate::message::FromNode;
use crate::shard::Listener;
use crate::shard::node_state::NodeState;
use crate::shard::settings::Settings;

/// The cores and the driver that the shards of a node run on.
#[derive(Clone, Copy, Debug)]
pub struct ShardPlacement<'a> {
    /// The CPU of each shard.
    pub cores: &'a [usize],
    /// How shards reach the kernel.
    pub driver: DriverKind,
    /// How long a shard polls for work before it sleeps. Zero: it sleeps at once.
    pub spin: Duration,
}

/// The ways from the shards to other threads of the node.
pub struct OutletSenders {
    /// To the bridge.
    pub to_bridge: ToBridgeSender,
    /// To the logs of topics on disk.
    pub to_log: ToLogSender,
}

/// The running shards of a node.
pub struct Shards {
    threads: Vec<ShardThread>,
    control: NodePort,
    renewals: Renewals,
    watch: Arc<Watch>,
}

/// The senders of renewed certificates to running TLS listeners.
#[derive(Clone, Debug)]
pub(super) struct Renewals(
    // One entry for each TLS listener and shard.
    Vec<(Listener, Sender<TlsContext>)>,
);

/// Starts a shard on each core of `placement`, with one socket of each listener, and waits until all
/// shards accept connections. The shards share `state`; `capacity` bounds what they accept. Their messages
/// to other threads go through `outlets`. A shard that fails later reports the reason to `failures`; the
/// node cannot continue without it. Also returns the mesh's end of the bus if the node has a mesh.
///
/// # Errors
/// A thread, a ring or a descriptor cannot be created.
pub fn start(
    settings: &Arc<Settings>,
    state: &Arc<NodeState>,
    placement: ShardPlacement<'_>,
    listeners: Vec<(Listener, Listening)>,
    capacity: Capacity,
    outlets: &OutletSenders,
    failures: impl Fn(String) + Clone + Send + 'static,
) -> io::Result<(Shards, Option<MeshPort>)> {
    let ShardPlacement { cores, driver, spin } = placement;
    let (ports, mesh_port, control) = bus(cores.len(), settings.has_mesh)?;
    let mut verifiers = verifier::start(control.clone(), cores.len())?.into_iter();
    let watch = Arc::new(Watch::new(cores.len(), capacity));
    let mut sockets: Vec<Vec<_>> = cores.iter().map(|_| Vec::new()).collect();
    let mut renewals = Vec::new();
    for (listener, Listening { sockets: of_listener, tls, .. }) in listeners {
        for (of_shard, socket) in sockets.iter_mut().zip(of_listener) {
            let identity = tls.clone().map(ListenerTls::new).map(|(identity, renewal)| {
                renewals.push((listener, renewal));
                identity
            });
            of_shard.push((socket, listener, identity));
        }
    }
    let mut threads = Vec::new();
    let mut not_spawned = None;
    let (started, starts) = mpsc::channel();
    for (number, ((&core, port), listeners)) in cores.iter().zip(ports).zip(sockets).enumerate() {
        let verifier = verifiers.next().expect("there is one for each shard");
        let shard = ShardId(number as u8);
        let to_bridge = Outlet::new(shard, outlets.to_bridge.clone());
        let to_log = Outlet::new(shard, outlets.to_log.clone());
        let watch = watch.clone();
        let parts = Parts { number, port, verifier, to_bridge, to_log, listeners, watch, spin };
        let (settings, state) = (settings.clone(), state.clone());
        let (started, failures) = (started.clone(), failures.clone());
        let start = Start { core, settings, state, parts, started, failures };
        match start.spawn(driver) {
            Ok(thread) => threads.push(thread),
            Err(error) => {
                not_spawned = Some(driver.explain(&error));
                break;
            }
        }
    }
    drop(started);
    let shards = Shards { threads, control, renewals: Renewals(renewals), watch };
    let mut results = (0..shards.threads.len()).map(|_| starts.recv());
    // A thread that ended without a result could not create its executor, or has panicked and logged why.
    let failure = not_spawned.or_else(|| {
        results.find_map(|result| match result {
            Ok(started) => started.err(),
            Err(_) => Some(String::new()),
        })
    });
    match failure {
        None => Ok((shards, mesh_port)),
        Some(why) => Err(io::Error::other(shards.abandon(driver, why))),
    }
}

impl Shards {
    /// Shuts the shards down within `deadline`: stops accepting, closes clients over half of that time,
    /// delivers the messages in topics to the back ends that consume them, answers pending calls, and
    /// closes back ends.
    ///
    /// # Errors
    /// A shard ended early because its driver failed.
    pub fn drain(self, deadline: Duration) -> io::Result<Summary> {
        let start = Instant::now();
        let over_ms = deadline.as_millis() as u64 / 2;
        self.control.tell_all(|| FromNode::Drain { over_ms });
        // Messages between shards may be in flight, so the shards must be quiet twice in a row.
        let mut was_quiet = false;
        wait_until(start + deadline * 4 / 5, || {
            let is_quiet = self.watch.is_quiet();
            std::mem::replace(&mut was_quiet, is_quiet) && is_quiet
        });
        self.control.tell_all(|| FromNode::DrainBackends);
        wait_until(start + deadline, || self.watch.undrained.load(Ordering::Acquire) == 0);
        self.watch.is_stopped.store(true, Ordering::Release);
        self.control.wake_all();
        let mut total = Summary::default();
        for thread in self.threads {
            let summary = thread.join()?;
            total.counters += summary.counters;
            total.connections += summary.connections;
            total.queued_messages += summary.queued_messages;
        }
        Ok(total)
    }

    /// Ends the shards that have started, because one of them has not. Returns the reason: `why`, or if that is
    /// empty, what a thread ended with.
    fn abandon(self, driver: DriverKind, why: String) -> String {
        self.watch.is_stopped.store(true, Ordering::Release);
        self.control.wake_all();
        let ends: Vec<_> = self.threads.into_iter().map(ShardThread::join).collect();
        if !why.is_empty() {
            return why;
        }
        let error = ends.into_iter().find_map(Result::err);
        error.map_or("a shard did not start".into(), |error| driver.explain(&error))
    }

    /// Returns the node's own end of the bus.
    pub fn control(&self) -> NodePort {
        self.control.clone()
    }

    /// Returns a handle to reload settings and certificates.
    pub fn reloads(&self) -> Reloads {
        Reloads {
            control: self.control.clone(),
            watch: self.watch.clone(),
            renewals: self.renewals.clone(),
            wait_max: WAIT_MAX,
        }
    }
}

impl Renewals {
    #[cfg(test)]
    pub(super) fn new(renewals: Vec<(Listener, Sender<TlsContext>)>) -> Self {
        Self(renewals)
    }

    /// Yields the senders of a listener's certificates, one for each shard.
    pub(super) fn of(&self, listener: Listener) -> impl Iterator<Item = &Sender<TlsContext>> {
        self.0.iter().filter(move |(of, _)| *of == listener).map(|(_, renewal)| renewal)
    }
}

/// Polls a condition every 5 ms until it is true or `end` is reached. The main thread has nothing else
/// to do meanwhile.
fn wait_until(end: Instant, mut is_true: impl FnMut() -> bool) {
    while !is_true() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(5));
    }
}
