//! The links of a node: dials and answers, keeps who is connected, does what the mesh wants of them.
//!
//! A task for each lane, each link and each handshake; they speak to [`Links`] through two channels.

use std::net::SocketAddr;
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

use super::lanes::{Writer, listen, unwound};
use super::{SILENCE_MAX_MS, words};
use crate::mesh::identity::{self, Identity};
use crate::mesh::link::{Effect, Event, LANES, Lane, LinkId, Refusal};

/// Links at a time: a grid has at most 1,024 nodes, and two may dial each other at once.
const LINKS_MAX: usize = 2048;

/// Handshakes under way that others began, and dials of ours: beyond it the former are refused, and
/// the latter are for the mesh to try again.
const HANDSHAKES_MAX: usize = 64;

/// Addresses of one name that are dialled.
const ADDRESSES_MAX: usize = 16;

/// How long looking up a name may take, and a handshake.
const HANDSHAKE_MAX: Duration = Duration::from_secs(3);

/// How long a link that is closed may take to bring over what was sent on its control lane.
const CLOSING_MAX: Duration = Duration::from_millis(500);

/// The same for all links when the node leaves; and then for the closing itself.
const LEAVING_MAX: Duration = Duration::from_millis(200);
const GOODBYE_MAX: Duration = Duration::from_millis(50);

/// So a dead node is out of the grid within SPEC's 5 seconds, with a few signs of life that may be
/// lost on the way.
const SIGN_OF_LIFE: Duration = Duration::from_millis(500);

/// Nodes are near each other: what is lost of a handshake is sent again after three times this, and
/// not after QUIC's second.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// What may have come on one lane, and on all of a link, and not been read: so much memory a peer
/// can take while the mesh takes no data. A lane carries its window once per round trip: 8 MiB in
/// 1 ms is far more than a shard makes.
const LANE_WINDOW_BYTES: u32 = 8 << 20;
const LINK_WINDOW_BYTES: u32 = 32 << 20;

/// What a link keeps for sending it again, and beyond which writers wait.
const SEND_WINDOW_BYTES: u64 = 32 << 20;

/// Datagrams that wait, in bytes, each way: older ones are dropped beyond it.
const DATAGRAM_BYTES: usize = 1 << 20;

/// Pieces heard that wait for the mesh. Who hears more waits: of QUIC's pieces, so of a packet's size.
const CONTROL_PIECES: usize = 1024;
const DATA_PIECES: usize = 1024;

/// One line of the log per so long about peers that were not let in: they come from outside.
const COMPLAINT_EVERY: Duration = Duration::from_secs(1);

/// All connections of a node, and those that are to become some.
pub(super) struct Links {
    endpoint: Endpoint,
    links: HashMap<LinkId, Link>,
    opened: u64,
    // Targets whose addresses are looked up, and addresses with a handshake that we began.
    resolving: HashSet<String>,
    dialling: HashSet<SocketAddr>,
    // Handshakes that others began.
    answering: usize,
    tasks: JoinSet<()>,
    ears: Ears,
    control: mpsc::Receiver<Heard>,
    data: mpsc::Receiver<Heard>,
    complained: Option<Instant>,
}

struct Link {
    connection: Connection,
    writers: HashMap<Lane, Writer>,
    // Why the mesh wants it closed.
    closing: Option<String>,
}

/// Where tasks say what they hear.
#[derive(Clone)]
pub(super) struct Ears {
    /// Control lanes, datagrams, and what becomes of links. Always taken from, so that signs of life
    /// and acknowledgements are heard however full the node is.
    pub(super) control: mpsc::Sender<Heard>,
    /// The other lanes. Not taken from while the mesh takes no data: readers wait, so windows fill,
    /// and peers cannot send more.
    pub(super) data: mpsc::Sender<Heard>,
}

/// What a task says.
pub(super) enum Heard {
    Event(Event),
    Resolved(String, Result<Vec<SocketAddr>, String>),
    Dialled(String, SocketAddr, Result<Connection, String>),
    Answered(SocketAddr, Result<Connection, String>),
    Ended(LinkId, String),
}

impl Links {
    /// Listens on a socket. To be called on tokio's thread.
    ///
    /// # Errors
    /// The identity is of no use, or the socket.
    pub(super) fn new(socket: Socket, identity: &Identity) -> Result<Self, String> {
        let (server, client) = configs(identity)?;
        let runtime = Arc::new(TokioRuntime);
        let config = EndpointConfig::default();
        let mut endpoint = Endpoint::new(config, Some(server), socket.into(), runtime)
            .map_err(|error| error.to_string())?;
        endpoint.set_default_client_config(client);
        let (control_ear, control) = mpsc::channel(CONTROL_PIECES);
        let (data_ear, data) = mpsc::channel(DATA_PIECES);
        Ok(Self {
            endpoint,
            links: HashMap::new(),
            opened: 0,
            resolving: HashSet::new(),
            dialling: HashSet::new(),
            answering: 0,
            tasks: JoinSet::new(),
            ears: Ears { control: control_ear, data: data_ear },
            control,
            data,
            complained: None,
        })
    }

    /// Waits for the next event; data is heard only if it is wanted. What is not waited for to the end
    /// is not lost.
    pub(super) async fn next(&mut self, takes_data: bool) -> Event {
        loop {
            // In no fixed order: under load all of them may always have something.
            let heard = tokio::select! {
                Some(heard) = self.control.recv() => heard,
                Some(heard) = self.data.recv(), if takes_data => heard,
                Some(incoming) = self.endpoint.accept() => {
                    self.answer(incoming);
                    continue;
                }
                Some(ended) = self.tasks.join_next() => {
                    unwound(ended);
                    continue;
                }
            };
            if let Some(event) = self.handle(heard) {
                return event;
            }
        }
    }

    /// The next event that is there already.
    pub(super) fn ready(&mut self, takes_data: bool) -> Option<Event> {
        loop {
            let heard = self.control.try_recv();
            let heard =
                heard.or_else(|none| if takes_data { self.data.try_recv() } else { Err(none) });
            if let Some(event) = self.handle(heard.ok()?) {
                return Some(event);
            }
        }
    }

    /// Does what the mesh wants of links.
    pub(super) fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Dial(target) => self.dial(target),
            Effect::Send(link, lane, bytes) => self.send(link, lane, bytes),
            Effect::Datagram(link, bytes) => {
                if let Some(link) = self.open_link(link) {
                    // It may be lost, be it here already.
                    let _ = link.connection.send_datagram(bytes);
                }
            }
            Effect::Close(link, why) => self.close(link, why),
            Effect::Fail(_) => unreachable!("who holds the links ends the node"),
        }
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

    fn handle(&mut self, heard: Heard) -> Option<Event> {
        match heard {
            Heard::Event(event) => self.is_wanted(&event).then_some(event),
            Heard::Resolved(target, addresses) => {
                self.resolving.remove(&target);
                match addresses {
                    Ok(addresses) => self.dial_all(target, addresses),
                    Err(why) => Some(Event::Unreachable(target, why)),
                }
            }
            Heard::Dialled(target, address, connection) => {
                self.dialling.remove(&address);
                Some(match connection {
                    Ok(connection) => self.open(connection, true),
                    Err(why) => Event::Unreachable(target, format!("{address}: {why}")),
                })
            }
            Heard::Answered(remote, connection) => {
                self.answering -= 1;
                match connection {
                    Ok(connection) => Some(self.open(connection, false)),
                    Err(why) => {
                        self.complain(remote, &why);
                        None
                    }
                }
            }
            Heard::Ended(link, why) => {
                let closing = self.links.remove(&link)?.closing;
                let why = closing.map_or(why, |why| format!("closed here: {why}"));
                Some(Event::Closed(link, why))
            }
        }
    }

    /// Of a link that the mesh has closed nothing more is heard than its end.
    fn is_wanted(&mut self, event: &Event) -> bool {
        match event {
            Event::Received(link, ..) | Event::Datagram(link, _) => self.open_link(*link).is_some(),
            _ => true,
        }
    }

    fn open_link(&mut self, link: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&link).filter(|link| link.closing.is_none())
    }

    fn complain(&mut self, remote: SocketAddr, why: &str) {
        if self.complained.is_none_or(|at| at.elapsed() >= COMPLAINT_EVERY) {
            self.complained = Some(Instant::now());
            tracing::warn!("mesh: {remote} was not let in: {why}");
        }
    }

    fn open(&mut self, connection: Connection, is_dialled: bool) -> Event {
        let link = LinkId(self.opened);
        self.opened += 1;
        let remote = canonical(connection.remote_address());
        self.tasks.spawn(listen(link, connection.clone(), self.ears.clone()));
        self.links.insert(link, Link { connection, writers: HashMap::new(), closing: None });
        Event::Opened { link, remote, is_dialled }
    }

    /// Somebody begins a handshake.
    fn answer(&mut self, incoming: Incoming) {
        if !incoming.remote_address_validated() && incoming.may_retry() {
            // One round trip more, in which it shows that the address is its own: nobody takes the
            // place of another with a sender's address that is made up.
            let _ = incoming.retry();
            return;
        }
        if self.answering >= HANDSHAKES_MAX || self.is_full() {
            incoming.refuse();
            return;
        }
        let remote = canonical(incoming.remote_address());
        let Ok(connecting) = incoming.accept() else { return };
        self.answering += 1;
        let control = self.ears.control.clone();
        self.tasks.spawn(async move {
            let (connection, refusal) = handshake(connecting).await;
            let _ = control.send(Heard::Answered(remote, connection)).await;
            tell_refusal(&control, refusal).await;
        });
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
        let control = self.ears.control.clone();
        self.tasks.spawn(async move {
            let addresses = match is_too_much {
                true => Err("too many dials are under way".into()),
                false => resolve(&target).await,
            };
            let _ = control.send(Heard::Resolved(target, addresses)).await;
        });
    }

    fn dial_all(&mut self, target: String, addresses: Vec<SocketAddr>) -> Option<Event> {
        let is_v6 = self.endpoint.local_addr().is_ok_and(|address| address.is_ipv6());
        let is_fit = |address: &SocketAddr| is_v6 || address.is_ipv4();
        if !addresses.iter().any(is_fit) {
            let why = "has an IPv6 address only, and mesh.bind is an IPv4 address";
            return Some(Event::Unreachable(target, why.into()));
        }
        for address in addresses.into_iter().filter(is_fit).take(ADDRESSES_MAX) {
            if self.is_full() || !self.dialling.insert(address) {
                continue;
            }
            let (endpoint, control) = (self.endpoint.clone(), self.ears.control.clone());
            let target = target.clone();
            self.tasks.spawn(async move {
                let (connection, refusal) = match endpoint.connect(address, identity::NAME) {
                    Ok(connecting) => handshake(connecting).await,
                    Err(error) => (Err(error.to_string()), None),
                };
                let _ = control.send(Heard::Dialled(target, address, connection)).await;
                tell_refusal(&control, refusal).await;
            });
        }
        None
    }

    fn send(&mut self, link: LinkId, lane: Lane, bytes: Bytes) {
        let Self { links, tasks, .. } = self;
        let Some(link) = links.get_mut(&link).filter(|link| link.closing.is_none()) else { return };
        let connection = &link.connection;
        let writer = link.writers.entry(lane).or_insert_with(|| {
            let (writer, work) = Writer::new(connection.clone(), lane);
            tasks.spawn(work);
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

fn configs(identity: &Identity) -> Result<(ServerConfig, ClientConfig), String> {
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
        .keep_alive_interval(Some(SIGN_OF_LIFE))
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

/// The connection, or why there is none, and whether the two ends do not belong together.
async fn handshake(connecting: Connecting) -> (Result<Connection, String>, Option<Refusal>) {
    match timeout(HANDSHAKE_MAX, connecting).await {
        Ok(Ok(connection)) => (Ok(connection), None),
        Ok(Err(ConnectionError::TimedOut)) | Err(_) => (Err("no answer".into()), None),
        Ok(Err(error)) => (Err(words::why_lost(&error)), words::refusal(&error)),
    }
}

async fn tell_refusal(control: &mpsc::Sender<Heard>, refusal: Option<Refusal>) {
    if let Some(refusal) = refusal {
        let _ = control.send(Heard::Event(Event::Refused(refusal))).await;
    }
}

async fn resolve(target: &str) -> Result<Vec<SocketAddr>, String> {
    match timeout(HANDSHAKE_MAX, tokio::net::lookup_host(target)).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(error)) => Err(format!("the name cannot be looked up: {error}")),
        Err(_) => Err("looking up the name takes too long".into()),
    }
}

/// As people write it: an IPv4 address that came through an IPv6 socket as one.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests;
