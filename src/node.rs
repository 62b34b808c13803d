//! Puts a node together from its configuration, runs it until a signal, and takes it down in order.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::time::Duration;
use std::{fmt, io};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::address::NodeId;
use crate::config::{self, Config, Level, SlowClient};
use crate::protocol::http;
use crate::queue::Bounds;
use crate::runtime::{self, Listening, Summary};
use crate::shard::Listener;
use crate::shard::settings::{Api, Edge, Limits, Queue, Route, Settings};

/// Why a node did not start, or did not end well, in one line.
#[derive(Debug)]
pub struct NodeError(String);

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NodeError {}

/// Runs a node until SIGTERM or Ctrl-C, and then until its topics are given out and its connections
/// closed, which takes at most `node.drain_s`. A second signal ends it at once.
///
/// # Errors
/// The machine lacks something, an address cannot be listened on, or a shard failed.
pub fn run(config: &Config) -> Result<(), NodeError> {
    log_to_stderr(config.log_level);
    // Before anything is said to be ready, so that no signal is missed.
    let signals =
        Signals::new([SIGINT, SIGTERM]).map_err(|error| NodeError(format!("signals: {error}")))?;
    let cores = &config.node.cores;
    let clients_max = clients_max(config, runtime::check::check(cores.len()).map_err(NodeError)?);
    let api = listen(config.api.bind, cores.len(), "api.bind")?;
    let edges = config
        .edges
        .iter()
        .map(|edge| listen(edge.bind, cores.len(), "edge.bind"))
        .collect::<Result<Vec<_>, _>>()?;
    let ready = ready_line(&api, &edges);
    let settings = Arc::new(settings(config, &api, &edges));
    let mut listeners = vec![(Listener::Api, api)];
    for (number, listening) in edges.into_iter().enumerate() {
        listeners.push((Listener::Edge(number as u16), listening));
    }
    let failed = |error: io::Error| NodeError(format!("shards: {error}"));
    let (sender, ends) = mpsc::channel();
    let failures = {
        let sender = sender.clone();
        // The node waits for the first end only.
        move |why| drop(sender.send(End::Failure(why)))
    };
    let shards =
        runtime::start(&settings, cores, listeners, clients_max, failures).map_err(failed)?;
    // This line is an interface: whoever started the process waits for it and reads the ports.
    eprintln!("{ready}");
    watch_signals(signals, sender);
    match ends.recv() {
        Ok(End::Failure(why)) => Err(NodeError(why)),
        _ => {
            tracing::info!("going down: closing connections");
            let (refused, rested) = (shards.clients_refused(), shards.accepts_rested());
            let summary = shards.drain(Duration::from_secs(config.node.drain_s)).map_err(failed)?;
            report(&summary, refused, rested);
            Ok(())
        }
    }
}

/// Why a node that runs is to end.
enum End {
    Signal,
    Failure(String),
}

fn log_to_stderr(level: Level) {
    let level = match level {
        Level::Error => tracing::Level::ERROR,
        Level::Warn => tracing::Level::WARN,
        Level::Info => tracing::Level::INFO,
        Level::Debug => tracing::Level::DEBUG,
    };
    // It is set once per process; a second node in one process logs as the first does.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .try_init();
}

/// The clients that the node takes: what the configuration says, or what descriptors allow, of
/// which back ends keep a part.
fn clients_max(config: &Config, descriptors: usize) -> usize {
    let possible = descriptors - descriptors / 16;
    match config.limits.clients {
        0 => possible,
        wanted => {
            if wanted > possible {
                tracing::warn!(
                    "limits.clients is {wanted}, but descriptors allow {possible} clients; see \
                     `ulimit -n`"
                );
            }
            wanted.min(possible)
        }
    }
}

fn listen(address: SocketAddr, shards: usize, key: &str) -> Result<Listening, NodeError> {
    runtime::bind(address, shards).map_err(|error| {
        let how = match error.kind() {
            io::ErrorKind::AddrInUse => "another process listens there; see `ss -ltnp`",
            io::ErrorKind::AddrNotAvailable => "no interface has this address; see `ip address`",
            io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE",
            _ => return NodeError(format!("{key} {address}: {error}")),
        };
        NodeError(format!("{key} {address}: {how}"))
    })
}

fn ready_line(api: &Listening, edges: &[Listening]) -> String {
    let edges: Vec<String> = edges.iter().map(|edge| edge.address.to_string()).collect();
    match edges.is_empty() {
        true => format!("gridcast: ready, api {}", api.address),
        false => format!("gridcast: ready, api {}, edge {}", api.address, edges.join(",")),
    }
}

fn settings(config: &Config, api: &Listening, edges: &[Listening]) -> Settings {
    let config::Limits { head_bytes, headers, .. } = config.limits;
    let mut advertise = config.api.advertise;
    if advertise.port() == 0 {
        advertise.set_port(api.address.port());
    }
    Settings {
        node: NodeId::new(config.node.id).expect("the configuration was checked"),
        shards: config.node.cores.len(),
        api: Api {
            advertise,
            origins: config.api.origins.clone(),
            http: http::Limits { head_bytes, headers, body_bytes: config.limits.api_message_bytes },
        },
        edges: config
            .edges
            .iter()
            .zip(edges)
            .map(|(edge, listening)| Edge {
                port: listening.address.port(),
                routes: edge.routes.iter().map(|route| Arc::new(route_of(route))).collect(),
            })
            .collect(),
        queue: Queue {
            bounds: Bounds {
                messages: config.queue.topic_messages,
                bytes: config.queue.topic_bytes,
            },
            when_full: config.queue.when_full,
            topics: config.queue.topics,
        },
        limits: limits(&config.limits),
    }
}

fn route_of(route: &config::Route) -> Route {
    Route {
        path: route.path.clone(),
        topic: route.topic.as_deref().map(Arc::from),
        tells_open: route.events.open,
        tells_message: route.events.message,
        tells_close: route.events.close,
        subscribe: route.subscribe.clone(),
        hold_until: route.hold_until.as_deref().map(Box::from),
        origins: route.origins.clone(),
        echo: route.echo,
        message_bytes: route.message_bytes,
        outbound_bytes: route.outbound_bytes,
    }
}

fn limits(limits: &config::Limits) -> Limits {
    let config::Limits { head_bytes, headers, .. } = *limits;
    Limits {
        // A handshake has no body.
        edge_http: http::Limits { head_bytes, headers, body_bytes: 0 },
        api_message_bytes: limits.api_message_bytes,
        outbound_bytes: limits.outbound_bytes,
        close_slow_clients: limits.slow_client == SlowClient::Close,
        channels_per_client: limits.channels_per_client,
        handshake_ms: limits.handshake_ms,
        ping_ms: limits.ping_ms,
        idle_ms: limits.idle_ms,
        answer_ms: limits.answer_ms,
    }
}

/// Tells of the first signal; the second ends the process at once, with the status of one that a
/// signal ended.
fn watch_signals(mut signals: Signals, ends: mpsc::Sender<End>) {
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        signals.next();
        // If a shard has failed meanwhile, the node ends without hearing of this.
        let _ = ends.send(End::Signal);
        if let Some(signal) = signals.next() {
            eprintln!("gridcast: second signal, ending at once");
            std::process::exit(128 + signal);
        }
    });
}

fn report(summary: &Summary, clients_refused: u64, accepts_rested: u64) {
    let counted = summary.counters.each().filter(|(_, _, value)| *value > 0);
    let counted: Vec<String> = counted.map(|(name, _, value)| format!("{name}={value}")).collect();
    tracing::info!(clients_refused, accepts_rested, "ended: {}", counted.join(" "));
    if summary.connections > 0 || summary.queued_messages > 0 {
        tracing::warn!(
            connections = summary.connections,
            queued_messages = summary.queued_messages,
            "left behind: connections not closed in time, messages that no back end took"
        );
    }
}
