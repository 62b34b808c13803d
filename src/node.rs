//! Assembles a node from its configuration, runs it until a signal, and shuts it down in order.
//!
//! - `signals.rs`: signals, and the time between SIGTERM and the shutdown.
//! - `reload.rs`: a new configuration for the running node.
//! - `shards.rs`: the start of the shards, and their driver.

mod reload;
mod shards;
mod signals;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fmt, io};

use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::Value;

use crate::address::listen::ListenAddress;
use crate::address::{Incarnation, NodeId};
use crate::bridge;
use crate::config::{self, Config, Handler, Level, Loaded, SlowClient, Source, TlsFiles};
use crate::mesh::identity::NodeIdentity;
use crate::mesh::{self, quic};
use crate::protocol::credentials::FingerprintKey;
use crate::protocol::http;
use crate::protocol::token::KeySource;
use crate::queue::Bounds;
use crate::runtime::check::Services;
use crate::runtime::ids::{self, Place, Reservation};
use crate::runtime::log::LogQueue;
use crate::runtime::{self, Capacity, Listening, MeshPort, SocketFile, Summary, TlsContext};
use crate::shard::Listener;
use crate::shard::rate::Rate;
use crate::shard::settings::{
    AddressLimits, ApiSettings, EdgeSettings, Endpoint, Endpoints, LimitSettings, Process,
    ProxyMethod, ProxySettings, QueueSettings, RouteSettings, Settings,
};
use reload::{Reloader, ShutdownTimes};
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
    let settings = settings(config, FingerprintKey::new(random()?), &bound);
    let ids = reserve_ids(config)?;
    let first_unix_ms = ids.as_ref().map_or_else(runtime::unix_ms, |ids| ids.first_unix_ms);
    let process = Process {
        first_unix_ms: Some(first_unix_ms),
        nodes_expected: config.mesh.as_ref().map_or(1, |mesh| mesh.expect),
        // Set at the start of the shards.
        driver: "",
        endpoints: Some(Arc::new(endpoints(config, &api, &edges))),
        first_bounds: None,
    };
    let settings = Settings { process, ..settings };
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
    let start = ShardStart {
        config,
        settings,
        capacity,
        lines_dropped: log.lines_dropped(),
        to_bridge: &to_bridge,
        failures: failures.clone(),
    };
    let StartedShards { settings, state, shards, port } = start.start(driver, listeners)?;
    let (sources, random_seed) = (key_sources(config), u64::from_ne_bytes(random()?));
    let bridge =
        bridge::http::start(inbox, sources, random_seed, shards.control(), failures.clone())
            .map_err(|error| NodeError(format!("bridge: {error}")))?;
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
    let summary = summary.map_err(failed)?;
    report(&summary);
    Ok(())
}

/// Returns the sources from which the keys of routes are fetched.
fn key_sources(config: &Config) -> Vec<Arc<KeySource>> {
    let routes = config.edges.iter().flat_map(|edge| &edge.routes);
    let rules = routes.filter_map(|route| route.token.as_ref());
    rules.filter_map(|rule| rule.key_source().cloned()).collect()
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

/// Returns the limits of the node: those of the configuration, or what descriptors and memory allow.
fn capacity(config: &Config) -> Result<Capacity, NodeError> {
    let api_connections = Some(config.limits.api_connections as u64).filter(|wanted| *wanted > 0);
    let (hooks, key_sets) = config.services();
    let services = Services { hooks: hooks as u64, key_sets: key_sets as u64 };
    let cores = config.node.cores.len();
    let shares = runtime::check::check_descriptors(cores, services, api_connections);
    let shares = shares.map_err(NodeError)?;
    let wanted = config.limits.api_connections;
    if wanted > shares.callers {
        let callers = shares.callers;
        tracing::warn!(
            "limits.api_connections is {wanted}, but descriptors allow {callers}; see `ulimit -n`"
        );
    }
    let (wanted, possible) = (config.limits.clients, shares.clients);
    if wanted > possible {
        tracing::warn!(
            "limits.clients is {wanted}, but descriptors allow {possible} clients; see `ulimit -n`"
        );
    }
    let memory_bytes = memory_bytes(config);
    Ok(Capacity {
        clients: runtime::check::clients_max(wanted, possible, memory_bytes),
        callers: shares.callers,
        memory_bytes,
    })
}

/// Returns the memory budget in bytes: the configured one, or three quarters of the usable memory. The
/// rest is for the allocator's overhead, for the kernel's socket buffers of peers that do not read, and
/// for the program itself. 0: no budget.
fn memory_bytes(config: &Config) -> u64 {
    let usable = runtime::check::usable_memory();
    match (config.limits.memory_bytes, usable) {
        (0, Some(usable)) => {
            let share = usable / 4 * 3;
            let least = config::memory_bytes_min(config.node.cores.len());
            if share < least {
                tracing::warn!(
                    "memory: {} MiB are too little for this number of cores; see `gridcast doctor`",
                    usable >> 20
                );
            }
            share.max(least)
        }
        (0, None) => {
            tracing::warn!(
                "limits.memory_bytes: not set, and neither a limit nor the machine's memory could be read: there is no budget"
            );
            0
        }
        (wanted, Some(usable)) if wanted > usable => {
            tracing::warn!(
                "limits.memory_bytes is {wanted}, but the control group or machine has {usable}"
            );
            wanted
        }
        (wanted, _) => wanted,
    }
}

/// Reserves client ids that no earlier run of the node has used. Returns `None`, with a warning in the
/// log, if no record can be kept and `data.dir` is not set.
fn reserve_ids(config: &Config) -> Result<Option<Reservation>, NodeError> {
    let node = NodeId::new(config.node.id).expect("the configuration was checked");
    let unix_ms = runtime::unix_ms();
    if let Some(directory) = &config.data.dir {
        let reserved = ids::reserve(Place::Disk(directory.clone()), node, unix_ms);
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

/// Returns the first state directory that systemd has created for the service, or else one in memory.
fn place_of_state() -> Place {
    let listed = std::env::var_os("STATE_DIRECTORY");
    let first = listed.as_ref().and_then(|listed| std::env::split_paths(listed).next());
    match first.filter(|directory| directory.is_absolute()) {
        Some(directory) => Place::Disk(directory),
        None => Place::in_memory(),
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

/// A mesh whose socket and identity are ready, before the shards run. Configuration errors have been
/// reported by then.
struct MeshStart {
    socket: quic::MeshSocket,
    identity: NodeIdentity,
    advertise: SocketAddr,
    seeds: Vec<String>,
}

impl MeshStart {
    fn new(config: &config::MeshConfig) -> Result<Self, NodeError> {
        let in_use = "another process has this UDP port; see `ss -lunp`";
        let socket = quic::bind(config.bind)
            .map_err(|error| not_bound("mesh.bind", config.bind, in_use, &error))?;
        let advertise = advertised(config.advertise, socket.address, &config.seeds);
        if advertise.ip().is_unspecified() {
            let why =
                "missing, and no route out of this machine shows it; set it, or see `ip route`";
            return Err(NodeError(format!("mesh.advertise: {why}")));
        }
        let identity = identity(&config.trust)?;
        Ok(Self { socket, identity, advertise, seeds: config.seeds.clone() })
    }

    fn start(
        self,
        shards: &Settings,
        port: MeshPort,
        failures: impl Fn(String) + Send + 'static,
    ) -> Result<quic::Running, NodeError> {
        let settings = mesh::MeshSettings {
            node: shards.node,
            // Like ids, the incarnation must grow with each start: other nodes refuse an older one.
            incarnation: Incarnation(shards.process.first_unix_ms.unwrap_or_else(runtime::unix_ms)),
            shards: shards.shards,
            advertise: self.advertise,
            api: shards.api.advertise.tcp().expect("the configuration was checked"),
            seeds: self.seeds,
            answer_ms: shards.limits.answer_ms,
            expected: shards.process.nodes_expected,
            channel_key: self.identity.channel_key(),
            random_seed: u64::from_ne_bytes(random()?),
        };
        quic::start(self.socket, self.identity, settings, port, failures)
            .map_err(|error| NodeError(format!("mesh: {error}")))
    }
}

fn identity(trust: &config::Trust) -> Result<NodeIdentity, NodeError> {
    let read = |error: config::ConfigError| NodeError(error.to_string());
    match trust {
        config::Trust::Key(key) => NodeIdentity::from_key(key.secret())
            .map_err(|error| NodeError(format!("mesh.key: {error}"))),
        config::Trust::Files(files) => {
            let own = files.own.load().map_err(read)?;
            let authorities = files.load_authorities().map_err(read)?;
            NodeIdentity::from_certificates(own, authorities)
                .map_err(|error| NodeError(format!("mesh.tls.cert: {error}")))
        }
    }
}

/// Returns the address to tell others: the configured one, or else the bound one. An unspecified IP
/// address is replaced by this machine's address on the route to a seed, or else on the default route.
fn advertised(configured: SocketAddr, bound: SocketAddr, seeds: &[String]) -> SocketAddr {
    let port = if configured.port() == 0 { bound.port() } else { configured.port() };
    let mut ip = configured.ip();
    if ip.is_unspecified() {
        // Documentation addresses (RFC 5737, RFC 3849): never assigned, so the default route applies.
        let anywhere = ["192.0.2.1:9", "[2001:db8::1]:9"].map(str::parse);
        let beyond = seeds.iter().map(|seed| seed.parse()).chain(anywhere).flatten();
        let mut beyond = beyond.filter(|beyond: &SocketAddr| ip.is_ipv6() || beyond.is_ipv4());
        ip = beyond.find_map(|beyond| runtime::route_out(beyond).ok()).unwrap_or(ip);
    }
    SocketAddr::new(ip, port)
}

/// Returns the address of the API to tell others.
fn advertised_api(configured: Option<SocketAddr>, bound: &ListenAddress) -> ListenAddress {
    match (configured, bound) {
        (Some(configured), _) => configured.into(),
        (None, ListenAddress::Tcp(bound)) => advertised(*bound, *bound, &[]).into(),
        (None, ListenAddress::Unix(_)) => bound.clone(),
    }
}

/// The addresses of a node that is ready, for the log line that says so.
struct Ready {
    api: String,
    edges: Vec<String>,
    mesh: Option<SocketAddr>,
    // The address of the start page for a browser on this machine. A Unix socket has none.
    url: Option<String>,
}

impl Ready {
    fn new(
        config: &Config,
        api: &Listening,
        edges: &[Listening],
        mesh: Option<&MeshStart>,
    ) -> Self {
        let scheme = if config.api.tls.is_some() { "https" } else { "http" };
        let reachable = |ip: IpAddr| match ip {
            ip if !ip.is_unspecified() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let page = api.address.tcp().map(|tcp| SocketAddr::new(reachable(tcp.ip()), tcp.port()));
        Self {
            api: api.address.to_string(),
            edges: edges.iter().map(|edge| edge.address.to_string()).collect(),
            mesh: mesh.map(|mesh| mesh.socket.address),
            url: page.map(|page| format!("{scheme}://{page}/")),
        }
    }

    fn text(&self) -> String {
        let mut line = format!("ready, api {}", self.api);
        if !self.edges.is_empty() {
            line.push_str(&format!(", edge {}", self.edges.join(",")));
        }
        if let Some(mesh) = self.mesh {
            line.push_str(&format!(", mesh {mesh}"));
        }
        if let Some(url) = &self.url {
            line.push_str(&format!(", open {url}"));
        }
        line
    }

    fn fields(&self) -> [(&'static str, Value); 4] {
        [
            ("api", self.api.clone().into()),
            ("edges", self.edges.clone().into()),
            ("mesh", self.mesh.map(|mesh| mesh.to_string()).into()),
            ("url", self.url.clone().into()),
        ]
    }
}

fn random<const N: usize>() -> Result<[u8; N], NodeError> {
    // getrandom(2) returns up to 256 bytes completely.
    const { assert!(N <= 256) };
    let mut random = [0; N];
    getrandom(&mut random, GetRandomFlags::empty())
        .map_err(|error| NodeError(format!("random bytes: {error}")))?;
    Ok(random)
}

fn endpoints(config: &Config, api: &Listening, edges: &[Listening]) -> Endpoints {
    let of = |listening: &Listening, tls: &Option<TlsFiles>| Endpoint {
        address: listening.address.clone(),
        has_tls: tls.is_some(),
    };
    let edges = config.edges.iter().zip(edges);
    Endpoints {
        api: of(api, &config.api.tls),
        edges: edges.map(|(edge, listening)| of(listening, &edge.tls)).collect(),
    }
}

/// The addresses that the listeners of a node were bound to.
struct Bound {
    api: ListenAddress,
    // In the order of the configuration.
    edges: Vec<ListenAddress>,
}

fn settings(config: &Config, fingerprint_key: FingerprintKey, bound: &Bound) -> Settings {
    let config::Limits { head_bytes, headers, .. } = config.limits;
    Settings {
        node: NodeId::new(config.node.id).expect("the configuration was checked"),
        shards: config.node.cores.len(),
        has_mesh: config.mesh.is_some(),
        api: ApiSettings {
            advertise: advertised_api(config.api.advertise, &bound.api),
            origins: config.api.origins.clone(),
            users: config.api.users.clone().into(),
            fingerprint_key,
            proxy: proxy_of(&config.api.proxy),
            http: http::RequestLimits {
                head_bytes,
                headers,
                body_bytes: config.limits.api_message_bytes,
            },
        },
        edges: config
            .edges
            .iter()
            .zip(&bound.edges)
            .map(|(edge, address)| EdgeSettings {
                port: address.port(),
                routes: edge.routes.iter().map(|route| Arc::new(route_of(route))).collect(),
                proxy: proxy_of(&edge.proxy),
            })
            .collect(),
        queue: QueueSettings {
            bounds: Bounds {
                messages: config.queue.topic_messages,
                bytes: config.queue.topic_bytes,
            },
            when_full: config.queue.when_full,
            topics: config.queue.topics,
        },
        limits: limits(&config.limits),
        process: Process::default(),
    }
}

fn proxy_of(proxy: &Option<config::Proxy>) -> Option<Arc<ProxySettings>> {
    let config::Proxy { from, protocol, .. } = proxy.as_ref()?;
    let method = if *protocol { ProxyMethod::Protocol } else { ProxyMethod::Forwarded };
    Some(Arc::new(ProxySettings { from: from.iter().copied().collect(), method }))
}

fn route_of(route: &config::Route) -> RouteSettings {
    RouteSettings {
        path: route.path.clone(),
        is_removed: false,
        topic: route.topic.as_deref().map(Arc::from),
        tells_open: route.events.open,
        tells_message: route.events.message,
        tells_close: route.events.close,
        subscribe: route.subscribe.clone(),
        hold_until: route.hold_until.as_deref().map(Box::from),
        origins: route.origins.clone(),
        token: route.token.clone(),
        admit: route.admit.clone(),
        echo: route.handler == Some(Handler::Echo),
        subprotocols: route.subprotocols.clone(),
        compression: route.compression,
        message_bytes: route.message_bytes,
        outbound_bytes: route.outbound_bytes,
        messages: Rate::new(route.messages_per_s),
    }
}

fn limits(limits: &config::Limits) -> LimitSettings {
    let config::Limits { head_bytes, headers, .. } = *limits;
    LimitSettings {
        // A handshake has no body.
        edge_http: http::RequestLimits { head_bytes, headers, body_bytes: 0 },
        api_message_bytes: limits.api_message_bytes,
        outbound_bytes: limits.outbound_bytes,
        close_slow_clients: limits.slow_client == SlowClient::Close,
        channels_per_client: limits.channels_per_client,
        addresses: AddressLimits {
            connections: NonZeroU32::new(limits.connections_per_address),
            handshakes: Rate::new(limits.handshakes_per_address_s),
        },
        handshake_ms: limits.handshake_ms,
        ping_ms: limits.ping_ms,
        idle_ms: limits.idle_ms,
        answer_ms: limits.answer_ms,
    }
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
