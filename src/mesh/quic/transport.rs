//! The QUIC connections of a node: dials, answers handshakes, and carries out the effects of the mesh.
//!
//! Each lane, link and handshake has a task, which reports to [`Transport`] through two channels. All tasks of a
//! link run on the thread that carries it.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hashbrown::{HashMap, HashSet};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, Connecting, Connection, ConnectionError, Endpoint, EndpointConfig, Incoming,
    ServerConfig, TokioRuntime, TransportConfig,
};
use socket2::Socket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::carriers::{Berth, Carriers};
use super::lanes::{Writer, listen, unwound};
use super::reports::{Reporter, Reports, TaskReport, channel};
use super::{SILENCE_MAX_MS, reasons};
use crate::mesh::identity::{self, NodeIdentity};
use crate::mesh::link::{LANES, Lane, LinkEffect, LinkEvent, LinkId, PeerRefusal};
use crate::mesh::session::IN_FLIGHT_BYTES;
use crate::metrics::MeshThreadReport;

/// Links, including handshakes, at a time: a grid has at most 1,024 nodes, and two may dial each other. If
/// there are so many, handshakes of peers are refused and dials fail. The mesh repeats its dials.
const LINKS_MAX: usize = 2048;

/// Handshakes in progress that peers began, and as many dials in progress. Beyond it handshakes are refused,
/// and dials fail. The mesh repeats its dials.
const HANDSHAKES_MAX: usize = 64;

/// Addresses of one name that are dialled. Further ones are left out until the next dial, which looks the
/// name up again. A node that is reached tells of those behind them.
const ADDRESSES_MAX: usize = 16;

/// Time limit for looking up a name, and for a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);

/// Time limit for delivering the control lane of a link that is being closed.
const CLOSING_MAX: Duration = Duration::from_millis(500);

/// Time limit for closing all links when the node shuts down.
const LEAVING_MAX: Duration = Duration::from_millis(200);

/// Time limit for delivering the closes after that.
const GOODBYE_MAX: Duration = Duration::from_millis(50);

/// Interval of QUIC's keep-alives. Several fit into the idle timeout, so that a few may be lost and a dead
/// node is still out of the grid within the 5 seconds of docs/promises.md.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// Assumed round trip of a new link. Nodes are near each other: a lost packet of a handshake is repeated
/// after three times this, instead of QUIC's default of about a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Unread bytes of one lane. A lane carries its window once per round trip: 8 MiB in 1 ms is far more than
/// a shard produces.
const LANE_WINDOW_BYTES: u32 = 8 << 20;

/// Unread bytes of all lanes of a link: the memory that a peer can take while the mesh takes no data.
const LINK_WINDOW_BYTES: u32 = 32 << 20;

// However much data is unread, the control lane has room for a window of its own.
const _: () = assert!(IN_FLIGHT_BYTES <= (LINK_WINDOW_BYTES - LANE_WINDOW_BYTES) as usize);

/// Sent bytes of a link without an acknowledgement of QUIC. Beyond it writers wait.
const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// Bytes of waiting datagrams in each direction. Beyond it the oldest are dropped.
const DATAGRAM_BYTES: usize = 1 << 20;

/// Interval between two lines of the log about failed handshakes, which anybody can cause.
const REFUSAL_LOG_EVERY: Duration = Duration::from_secs(1);

/// All connections of a node, established and in progress.
pub(super) struct Transport {
    endpoint: Endpoint,
    carriers: Carriers,
    links: HashMap<LinkId, OpenLink>,
    // Links opened so far.
    opened: u64,
    // Targets whose addresses are being looked up.
    resolving: HashSet<String>,
    // Addresses that are being dialled.
    dialling: HashSet<SocketAddr>,
    // Handshakes in progress that peers began.
    answering: usize,
    // Tasks on all threads.
    tasks: JoinSet<()>,
    reporter: Reporter,
    reports: Reports,
    // When a failed handshake was logged last.
    refusal_logged: Option<Instant>,
}

struct OpenLink {
    connection: Connection,
    berth: Berth,
    writers: HashMap<Lane, Writer>,
    // Why the mesh closes the link, once it does.
    closing: Option<String>,
}

impl Transport {
    /// Listens on a socket, with so many threads that carry links. To be called on tokio's thread.
    ///
    /// # Errors
    /// The identity or the socket is unusable, or a thread cannot be started.
    pub(super) fn new(
        socket: Socket,
        identity: &NodeIdentity,
        threads: usize,
    ) -> Result<Self, String> {
        let (server, client) = configs(identity)?;
        let runtime = Arc::new(TokioRuntime);
        let config = EndpointConfig::default();
        let mut endpoint = Endpoint::new(config, Some(server), socket.into(), runtime)
            .map_err(|error| error.to_string())?;
        endpoint.set_default_client_config(client);
        let (reporter, reports) = channel();
        Ok(Self {
            endpoint,
            carriers: Carriers::new(threads).map_err(|error| error.to_string())?,
            links: HashMap::new(),
            opened: 0,
            resolving: HashSet::new(),
            dialling: HashSet::new(),
            answering: 0,
            tasks: JoinSet::new(),
            reporter,
            reports,
            refusal_logged: None,
        })
    }

    /// Waits for the next event. Data is received only if `takes_data`. Safe to cancel.
    pub(super) async fn next(&mut self, takes_data: bool) -> LinkEvent {
        loop {
            // In random order, since under load each branch may always be ready.
            let report = tokio::select! {
                Some(report) = self.reports.control.recv() => report,
                Some(report) = self.reports.data.recv(), if takes_data => report,
                Some(incoming) = self.endpoint.accept() => {
                    self.answer(incoming);
                    continue;
                }
                Some(ended) = self.tasks.join_next() => {
                    unwound(ended);
                    continue;
                }
            };
            if let Some(event) = self.handle(report) {
                return event;
            }
        }
    }

    /// The next event that has arrived already.
    pub(super) fn ready(&mut self, takes_data: bool) -> Option<LinkEvent> {
        loop {
            let Reports { control, data } = &mut self.reports;
            let report = control.try_recv();
            let report =
                report.or_else(|none| if takes_data { data.try_recv() } else { Err(none) });
            if let Some(event) = self.handle(report.ok()?) {
                return Some(event);
            }
        }
    }

    /// Carries out an effect of the mesh.
    pub(super) fn perform(&mut self, effect: LinkEffect) {
        match effect {
            LinkEffect::Dial(target) => self.dial(target),
            LinkEffect::Send(link, lane, bytes) => self.send(link, lane, bytes),
            LinkEffect::Datagram(link, bytes) => {
                if let Some(link) = self.open_link(link) {
                    // A datagram may be lost, here already.
                    let _ = link.connection.send_datagram(bytes);
                }
            }
            LinkEffect::Close(link, why) => self.close(link, why),
            LinkEffect::Fail(_) => unreachable!("the owner of the transport ends the node"),
        }
    }

    /// What the threads of the mesh have used and carry.
    pub(super) fn report(&self) -> Vec<MeshThreadReport> {
        self.carriers.report()
    }

    /// Closes all links, after what was sent on their control lanes.
    pub(super) async fn leave(mut self, why: &str) {
        self.endpoint.set_server_config(None);
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link, why.to_owned());
        }
        let closed = async {
            while !self.links.is_empty() {
                self.next(false).await;
            }
        };
        let _ = timeout(LEAVING_MAX, closed).await;
        self.endpoint.close(0u8.into(), why.as_bytes());
        let _ = timeout(GOODBYE_MAX, self.endpoint.wait_idle()).await;
    }

    fn handle(&mut self, report: TaskReport) -> Option<LinkEvent> {
        match report {
            TaskReport::Event(event) => self.is_wanted(&event).then_some(event),
            TaskReport::Resolved(target, addresses) => {
                self.resolving.remove(&target);
                match addresses {
                    Ok(addresses) => self.dial_all(target, addresses),
                    Err(why) => Some(LinkEvent::Unreachable(target, why)),
                }
            }
            TaskReport::Dialled { target, address, berth, connection } => {
                self.dialling.remove(&address);
                Some(match connection {
                    Ok(connection) => self.open(connection, berth, true),
                    Err(why) => LinkEvent::Unreachable(target, format!("{address}: {why}")),
                })
            }
            TaskReport::Answered { remote, berth, connection } => {
                self.answering -= 1;
                match connection {
                    Ok(connection) => Some(self.open(connection, berth, false)),
                    Err(why) => {
                        self.log_refusal(remote, &why);
                        None
                    }
                }
            }
            TaskReport::Ended(link, why) => {
                let closing = self.links.remove(&link)?.closing;
                let why = closing.map_or(why, |why| format!("closed here: {why}"));
                Some(LinkEvent::Closed(link, why))
            }
        }
    }

    /// Whether the mesh is to receive an event. A link that it has closed reports only its end.
    fn is_wanted(&mut self, event: &LinkEvent) -> bool {
        match event {
            LinkEvent::Received(link, ..) | LinkEvent::Datagram(link, _) => {
                self.open_link(*link).is_some()
            }
            _ => true,
        }
    }

    fn open_link(&mut self, link: LinkId) -> Option<&mut OpenLink> {
        self.links.get_mut(&link).filter(|link| link.closing.is_none())
    }

    fn log_refusal(&mut self, remote: SocketAddr, why: &str) {
        if self.refusal_logged.is_none_or(|at| at.elapsed() >= REFUSAL_LOG_EVERY) {
            self.refusal_logged = Some(Instant::now());
            tracing::warn!("mesh: the handshake with {remote} failed: {why}");
        }
    }

    fn open(&mut self, connection: Connection, berth: Berth, is_dialled: bool) -> LinkEvent {
        let link = LinkId(self.opened);
        self.opened += 1;
        let remote = canonical(connection.remote_address());
        let listening = listen(link, connection.clone(), self.reporter.clone());
        self.tasks.spawn_on(listening, berth.runtime());
        let writers = HashMap::new();
        self.links.insert(link, OpenLink { connection, berth, writers, closing: None });
        LinkEvent::Opened { link, remote, is_dialled }
    }

    /// Answers a handshake that a peer begins.
    fn answer(&mut self, incoming: Incoming) {
        if !incoming.remote_address_validated() && incoming.may_retry() {
            // The peer proves its address, at the cost of one round trip. So handshakes with forged
            // addresses do not exhaust the limit.
            let _ = incoming.retry();
            return;
        }
        if self.answering >= HANDSHAKES_MAX || self.is_full() {
            incoming.refuse();
            return;
        }
        let remote = canonical(incoming.remote_address());
        self.answering += 1;
        let control = self.reporter.control.clone();
        let berth = self.carriers.berth();
        let runtime = berth.runtime().clone();
        // The connection stays on the thread on which it is accepted.
        let answering = async move {
            let (connection, refusal) = match incoming.accept() {
                Ok(connecting) => handshake(connecting).await,
                Err(error) => (Err(reasons::why_lost(&error)), reasons::refusal(&error)),
            };
            let _ = control.send(TaskReport::Answered { remote, berth, connection }).await;
            report_refusal(&control, refusal).await;
        };
        self.tasks.spawn_on(answering, &runtime);
    }

    fn is_full(&self) -> bool {
        self.links.len() + self.answering + self.dialling.len() >= LINKS_MAX
    }

    fn dial(&mut self, target: String) {
        if self.resolving.contains(&target) {
            return;
        }
        self.resolving.insert(target.clone());
        let is_too_much = self.resolving.len() + self.dialling.len() > HANDSHAKES_MAX;
        let control = self.reporter.control.clone();
        self.tasks.spawn(async move {
            if is_too_much {
                let why = Err("too many dials are in progress".into());
                let _ = control.send(TaskReport::Resolved(target, why)).await;
                return;
            }
            let lookup = tokio::net::lookup_host(target.clone());
            let lookup = async { lookup.await.map(|addresses| addresses.collect()) };
            report_lookup(target, lookup, HANDSHAKE_MAX, &control).await;
        });
    }

    fn dial_all(&mut self, target: String, addresses: Vec<SocketAddr>) -> Option<LinkEvent> {
        let is_v6 = self.endpoint.local_addr().is_ok_and(|address| address.is_ipv6());
        let is_fit = |address: &SocketAddr| is_v6 || address.is_ipv4();
        if !addresses.iter().any(is_fit) {
            let why = "has an IPv6 address only, and mesh.bind is an IPv4 address";
            return Some(LinkEvent::Unreachable(target, why.into()));
        }
        if self.is_full() {
            return Some(LinkEvent::Unreachable(target, "there are too many links".into()));
        }
        for address in addresses.into_iter().filter(is_fit).take(ADDRESSES_MAX) {
            if self.is_full() || !self.dialling.insert(address) {
                continue;
            }
            let (endpoint, control) = (self.endpoint.clone(), self.reporter.control.clone());
            let target = target.clone();
            let berth = self.carriers.berth();
            let runtime = berth.runtime().clone();
            // The connection stays on the thread on which it is dialled.
            let dialling = async move {
                let (connection, refusal) = match endpoint.connect(address, identity::NAME) {
                    Ok(connecting) => handshake(connecting).await,
                    Err(error) => (Err(error.to_string()), None),
                };
                let report = TaskReport::Dialled { target, address, berth, connection };
                let _ = control.send(report).await;
                report_refusal(&control, refusal).await;
            };
            self.tasks.spawn_on(dialling, &runtime);
        }
        None
    }

    fn send(&mut self, link: LinkId, lane: Lane, bytes: Bytes) {
        let Self { links, tasks, .. } = self;
        let Some(link) = links.get_mut(&link).filter(|link| link.closing.is_none()) else { return };
        let OpenLink { connection, berth, writers, .. } = link;
        let writer = writers.entry(lane).or_insert_with(|| {
            let (writer, work) = Writer::new(connection.clone(), lane);
            tasks.spawn_on(work, berth.runtime());
            writer
        });
        writer.send(bytes);
    }

    fn close(&mut self, link: LinkId, why: String) {
        let Some(link) = self.open_link(link) else { return };
        link.closing = Some(why.clone());
        let control = link.writers.remove(&Lane::Control);
        let connection = link.connection.clone();
        self.tasks.spawn(async move {
            if let Some(control) = control {
                let _ = timeout(CLOSING_MAX, control.finish()).await;
            }
            connection.close(0u8.into(), why.as_bytes());
        });
    }
}

fn configs(identity: &NodeIdentity) -> Result<(ServerConfig, ClientConfig), String> {
    let transport = Arc::new(transport());
    let server = identity.server().map_err(|error| error.to_string())?;
    let server = QuicServerConfig::try_from(server).map_err(|error| error.to_string())?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport.clone());
    let client = identity.client().map_err(|error| error.to_string())?;
    let client = QuicClientConfig::try_from(client).map_err(|error| error.to_string())?;
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(transport);
    Ok((server, client))
}

fn transport() -> TransportConfig {
    let silence = Duration::from_millis(SILENCE_MAX_MS);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(silence.try_into().expect("it is short")))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(0u8.into())
        .max_concurrent_uni_streams((LANES as u32).into())
        .stream_receive_window(LANE_WINDOW_BYTES.into())
        .receive_window(LINK_WINDOW_BYTES.into())
        .send_window(SEND_WINDOW_BYTES)
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES);
    transport
}

/// A finished handshake: the connection, or why there is none, and whether the two ends do not belong
/// together.
async fn handshake(connecting: Connecting) -> (Result<Connection, String>, Option<PeerRefusal>) {
    match timeout(HANDSHAKE_MAX, connecting).await {
        Ok(Ok(connection)) => (Ok(connection), None),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => (Err("no answer".into()), None),
        Ok(Err(error)) => (Err(reasons::why_lost(&error)), reasons::refusal(&error)),
    }
}

async fn report_refusal(control: &mpsc::Sender<TaskReport>, refusal: Option<PeerRefusal>) {
    if let Some(refusal) = refusal {
        let _ = control.send(TaskReport::Event(LinkEvent::Refused(refusal))).await;
    }
}

/// Waits for the lookup of a target and reports the result. After `limit` the target is reported as
/// unreachable first. A lookup cannot be cancelled, and takes a thread until it ends. So the result is waited
/// for all the same: until it is there, the target is not looked up again, and no more lookups wait for
/// threads than there are targets.
async fn report_lookup(
    target: String,
    lookup: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    limit: Duration,
    control: &mpsc::Sender<TaskReport>,
) {
    let mut lookup = pin!(lookup);
    let result = match timeout(limit, &mut lookup).await {
        Ok(result) => result,
        Err(_) => {
            let why = "looking up the name takes too long".into();
            let event = LinkEvent::Unreachable(target.clone(), why);
            let _ = control.send(TaskReport::Event(event)).await;
            lookup.await
        }
    };
    let addresses = result.map_err(|error| format!("the name cannot be looked up: {error}"));
    let _ = control.send(TaskReport::Resolved(target, addresses)).await;
}

/// An IPv4 address that came through an IPv6 socket, as people write it.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
