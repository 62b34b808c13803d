//! Assembles a node from its configuration, runs it until a signal, and shuts it down in order.
//!
//! - `settings.rs`, `capacity.rs`: the settings of shards, and the limits of the machine.
//! - `mesh.rs`: the start of the mesh. `ready.rs`: the log line of a node that is ready.
//! - `signals.rs`: signals, and the time between SIGTERM and the shutdown.
//! - `reload.rs`: a new configuration for the running node.
//! - `shards.rs`: the start of the shards, and their driver.
//! - `certificates.rs`: when the certificates in use expire.

mod capacity;
mod certificates;
mod mesh;
mod ready;
mod reload;
mod settings;
mod shards;
mod signals;

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fmt, io};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::address::NodeId;
use crate::address::listen::ListenAddress;
use crate::address::placement::home_of_topic;
use crate::bridge;
use crate::config::{Config, Level, Loaded, Source, Store, TlsFiles};
use crate::protocol::credentials::FingerprintKey;
use crate::runtime::disk::{DiskTopic, Logs};
use crate::runtime::ids::{self, RecordPlace, Reservation};
use crate::runtime::log::LogQueue;
use crate::runtime::{self, Listening, OutletSenders, SocketFile, Summary, TlsContext};
use crate::shard::Listener;
use crate::shard::settings::{Process, Settings};
use capacity::capacity;
use mesh::MeshStart;
use ready::Ready;
use reload::{Reloader, ShutdownTimes};
use settings::{Bound, bridge_settings, endpoints, shard_settings};
use shards::{ShardStart, StartedShards, choose_driver};
use signals::NodeEvent;

/// The reason why a node could not start or has failed, in one line.
#[derive(Debug)]
pub struct NodeError(String);

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NodeError {}

/// Runs a node until SIGTERM or Ctrl-C. Then delivers the messages in topics and closes the connections,
/// which takes at most `node.drain_s`, after `node.lame_duck_s` if the signal was SIGTERM. A second signal
/// ends the process at once. SIGHUP reloads the configuration from `source`, of which `loaded` is the first
/// reading. The node continues even if `log` cannot be written.
///
/// # Errors
/// The machine lacks a resource, an address cannot be bound, or a shard failed.
pub fn run(source: Source, loaded: Loaded, log: &LogQueue) -> Result<(), NodeError> {
    let Loaded { config, written } = loaded;
    let config = &config;
    log.subscribe(level(config.log.level));
    for warning in config.warnings(runtime::unix_ms()) {
        tracing::warn!("{warning}");
    }
    // Registered before the node reports that it is ready, so that no signal is missed.
    let signals = signals::register()?;
    let cores = &config.node.cores;
    let capacity = capacity(config)?;
    let driver = choose_driver(config)?;
    runtime::check::grow_descriptor_table(capacity.clients, cores.len());
    let api = listen(config, &config.api.bind, &config.api.tls, "api.bind")?;
    let edges = config
        .edges
        .iter()
        .map(|edge| listen(config, &edge.bind, &edge.tls, "edge.bind"))
        .collect::<Result<Vec<_>, _>>()?;
    let mesh = config.mesh.as_ref().map(MeshStart::new).transpose()?;
    let ready = Ready::new(config, &api, &edges, mesh.as_ref());
    let edge_addresses = edges.iter().map(|edge| edge.address.clone()).collect();
    let bound = Bound { api: api.address.clone(), edges: edge_addresses };
    let settings = shard_settings(config, FingerprintKey::new(random()?), &bound);
    let ids = reserve_ids(config)?;
    let first_unix_ms = ids.as_ref().map_or_else(runtime::unix_ms, |ids| ids.first_unix_ms);
    let logs = open_logs(config, &settings)?;
    let process = Process {
        first_unix_ms: Some(first_unix_ms),
        nodes_expected: config.mesh.as_ref().map_or(1, |mesh| mesh.expect),
        // Set at the start of the shards.
        driver: "",
        endpoints: Some(Arc::new(endpoints(config, &api, &edges))),
        first_bounds: None,
        logs: Arc::new(logs.iter().flat_map(Logs::facts).collect()),
    };
    let settings = Settings { process, ..settings };
    let mesh_certificate = certificates::of_mesh(config);
    let mut certificates = certificates::of_start(config, &api, &edges);
    certificates.extend(mesh_certificate.clone());
    let usage = Arc::default();
    runtime::sample_usage(&usage).map_err(|error| NodeError(format!("usage: {error}")))?;
    let mut listeners = vec![(Listener::Api, api)];
    for (number, listening) in edges.into_iter().enumerate() {
        listeners.push((Listener::Edge(number as u16), listening));
    }
    // Removed when the node ends.
    let _socket_files: Vec<SocketFile> =
        listeners.iter_mut().filter_map(|(_, listening)| listening.file.take()).collect();
    let failed = |error: io::Error| NodeError(format!("shards: {error}"));
    let (sender, events) = mpsc::channel();
    let failures = {
        let sender = sender.clone();
        // Only the first event ends the node; later ones are ignored.
        move |why| drop(sender.send(NodeEvent::Failure(why)))
    };
    let (to_bridge, inbox) = bridge::http::channel();
    let (to_log, log_inbox) = runtime::disk::channel();
    let outlets = OutletSenders { to_bridge: to_bridge.clone(), to_log };
    let start = ShardStart {
        config,
        settings,
        capacity,
        lines_dropped: log.lines_dropped(),
        usage,
        certificates: certificates.into(),
        outlets: &outlets,
        failures: failures.clone(),
    };
    let StartedShards { settings, state, shards, port } = start.start(driver, listeners)?;
    let random_seed = u64::from_ne_bytes(random()?);
    let bridge = bridge::http::start(
        inbox,
        bridge_settings(config),
        random_seed,
        NodeId::new(config.node.id).expect("the configuration was checked"),
        shards.control(),
        failures.clone(),
    )
    .map_err(|error| NodeError(format!("bridge: {error}")))?;
    let disk = logs.map(|logs| {
        let started = logs.start(log_inbox, shards.control(), state.disk.clone(), failures.clone());
        started.map_err(|error| NodeError(format!("topics on disk: {error}")))
    });
    let disk = disk.transpose()?;
    let mesh = match mesh.zip(port) {
        Some((mesh, port)) => Some(mesh.start(&settings, port, failures)?),
        None => None,
    };
    // This line is an interface: the process that started the node waits for it and reads the ports.
    log.say(tracing::Level::INFO, &ready.text(), &ready.fields());
    let times = Arc::new(ShutdownTimes::default());
    times.set(config);
    let reloader = Reloader {
        source,
        config: config.clone(),
        written,
        bound,
        settings,
        state: state.clone(),
        reloads: shards.reloads(),
        to_bridge,
        times: times.clone(),
        log: log.clone(),
        mesh_certificate,
    };
    let may_skip = Arc::default();
    reloader.start();
    signals::watch(signals, sender, shards.reloads(), Arc::clone(&may_skip), log.clone());
    signals::wait(&events, &times, &may_skip, &state.is_lame_duck)?;
    tracing::info!("shutting down: closing connections");
    let summary = shards.drain(times.drain());
    if let Some(mesh) = mesh {
        mesh.leave();
    }
    bridge.stop();
    if let Some(disk) = disk {
        disk.stop();
    }
    let summary = summary.map_err(failed)?;
    report(&summary);
    Ok(())
}

fn tls_listeners(config: &Config) -> impl Iterator<Item = (Listener, &TlsFiles)> {
    let edges = config.edges.iter().zip(0..);
    let edges = edges.map(|(edge, number)| (Listener::Edge(number), &edge.tls));
    let all = std::iter::once((Listener::Api, &config.api.tls)).chain(edges);
    all.filter_map(|(listener, tls)| Some((listener, tls.as_ref()?)))
}

fn context(tls: &TlsFiles) -> Result<TlsContext, NodeError> {
    let certified = tls.load().map_err(|error| NodeError(error.to_string()))?;
    TlsContext::new(certified).map_err(|error| NodeError(format!("TLS: {error}")))
}

fn level(level: Level) -> tracing::Level {
    match level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    }
}

/// Reserves client ids that no earlier run of the node has used. Returns `None`, with a warning in the
/// log, if no record can be kept and `data.dir` is not set.
fn reserve_ids(config: &Config) -> Result<Option<Reservation>, NodeError> {
    let node = NodeId::new(config.node.id).expect("the configuration was checked");
    let unix_ms = runtime::unix_ms();
    if let Some(directory) = &config.data.dir {
        let reserved = ids::reserve(RecordPlace::Disk(directory.clone()), node, unix_ms);
        return reserved.map(Some).map_err(|error| NodeError(format!("data.dir: {error}")));
    }
    match ids::reserve(place_of_state(), node, unix_ms) {
        Ok(reservation) => Ok(Some(reservation)),
        Err(error) => {
            tracing::warn!(
                "no record of client ids: {error}; set data.dir, or ids may repeat after a start \
                 before which the clock was set back"
            );
            Ok(None)
        }
    }
}

/// Opens the logs of the topics on disk. `None`: there are no such topics.
fn open_logs(config: &Config, settings: &Settings) -> Result<Option<Logs>, NodeError> {
    let on_disk = config.topics.iter().filter(|topic| topic.store == Store::Disk);
    let topics: Vec<DiskTopic> = on_disk
        .map(|topic| DiskTopic {
            name: topic.name.as_str().into(),
            groups: settings.queue.log_groups(&topic.name),
            home: home_of_topic(&topic.name, settings.shards),
        })
        .collect();
    let Some(data) = config.data.dir.as_ref().filter(|_| !topics.is_empty()) else {
        return Ok(None);
    };
    let logs = Logs::open(data, topics, runtime::unix_ms());
    logs.map(Some).map_err(|error| NodeError(format!("data.dir: {error}")))
}

/// Returns the first state directory that systemd has created for the service, or else one in memory.
fn place_of_state() -> RecordPlace {
    let listed = std::env::var_os("STATE_DIRECTORY");
    let first = listed.as_ref().and_then(|listed| std::env::split_paths(listed).next());
    match first.filter(|directory| directory.is_absolute()) {
        Some(directory) => RecordPlace::Disk(directory),
        None => RecordPlace::in_memory(),
    }
}

fn listen(
    config: &Config,
    address: &ListenAddress,
    tls: &Option<TlsFiles>,
    key: &str,
) -> Result<Listening, NodeError> {
    let tls = tls.as_ref().map(context).transpose()?;
    let peer_timeout = Duration::from_millis(config.limits.idle_ms);
    runtime::bind(address, config.node.cores.len(), tls, peer_timeout).map_err(|error| {
        match (address, error.kind()) {
            (ListenAddress::Tcp(tcp), _) => {
                not_bound(key, *tcp, "another process listens there; see `ss -ltnp`", &error)
            }
            (_, io::ErrorKind::AddrInUse) => {
                NodeError(format!("{key} {address}: another process listens there; see `ss -lxp`"))
            }
            _ => NodeError(format!("{key} {address}: {error}")),
        }
    })
}

fn not_bound(key: &str, address: SocketAddr, in_use: &str, error: &io::Error) -> NodeError {
    let how = match error.kind() {
        io::ErrorKind::AddrInUse => in_use,
        io::ErrorKind::AddrNotAvailable => "no interface has this address; see `ip address`",
        io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
        _ => return NodeError(format!("{key} {address}: {error}")),
    };
    NodeError(format!("{key} {address}: {how}"))
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    // getrandom(2) returns up to 256 bytes completely.
    const { assert!(N <= 256) };
    let mut random = [0; N];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| NodeError(format!("random bytes: {error}")))?;
    Ok(random)
}

fn report(summary: &Summary) {
    let limits = summary.counters.limits.each();
    let limits = limits.map(|(limit, value)| (format!("limits_hit.{limit}"), value));
    let counted = summary.counters.each().map(|(name, _, value)| (name.to_owned(), value));
    let counted = counted.chain(limits).filter(|(_, value)| *value > 0);
    let counted: Vec<String> = counted.map(|(name, value)| format!("{name}={value}")).collect();
    tracing::info!("ended: {}", counted.join(" "));
    if summary.connections > 0 || summary.queued_messages > 0 {
        tracing::warn!(
            connections = summary.connections,
            queued_messages = summary.queued_messages,
            "not all work was finished: connections not closed in time, messages not consumed"
        );
    }
}
