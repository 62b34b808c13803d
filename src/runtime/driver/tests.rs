//! Tests the driver with a real ring and a real poller, a shard and sockets. A seed chooses how peers split their bytes,
//! stall and disconnect, and which faults the kernel shows ([`Faults`]). Peers and driver alternate on
//! one thread.
//!
//! `GRIDCAST_RING_SEEDS=N` sets the number of seeds, `GRIDCAST_RING_SEED=S` runs one seed.

mod heavy;
mod messages;
mod peer;
mod places;
mod plain;
mod proxied;
mod silence;

use std::io::Write;
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey as Generated, generate_simple_self_signed};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::address::ShardId;
use crate::protocol::http;
use crate::queue::Bounds;
use crate::runtime::Capacity;
use crate::runtime::bus::bus;
use crate::runtime::faults::{Faults, Random};
use crate::runtime::identity::TlsContext;
use crate::runtime::listener::{Listening, bind};
use crate::runtime::outlet::Outlet;
use crate::runtime::poller::Poller;
use crate::runtime::ring::Ring;
use crate::runtime::verifier;
use crate::shard::fixture;
use crate::shard::node_state::NodeState;
use crate::shard::settings::{
    ApiSettings, EdgeSettings, LimitSettings, QueueSettings, RouteSettings, Settings,
};
use peer::{Door, Peer};

/// The number of seeds of a normal run.
const SEEDS: u64 = 16;

/// Peers at a time, and in all: each that goes leaves its place and its descriptor to the next.
const PEERS: usize = 6;
const PEERS_IN_ALL: usize = 24;

/// The duration from which a run counts as stuck.
const DEADLINE: Duration = Duration::from_secs(60);

/// Operations that the tests need of both drivers.
trait Tested: SocketIo {
    fn faults(&mut self) -> &mut Faults;

    /// Whether no buffer is handed out and no completion or injected fault is left.
    fn is_settled(&self) -> bool;
}

impl Tested for Ring {
    fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    fn is_settled(&self) -> bool {
        Self::is_settled(self)
    }
}

impl Tested for Poller {
    fn faults(&mut self) -> &mut Faults {
        &mut self.faults
    }

    fn is_settled(&self) -> bool {
        Self::is_settled(self)
    }
}

/// Makes two tests of each function that is generic over the driver's [`Tested`].
macro_rules! on_both {
    ($($(#[$meta:meta])* fn $name:ident<$io:ident>() $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            use super::*;

            fn run<$io: Tested>() $body

            #[test]
            fn io_uring() {
                run::<Ring>();
            }

            #[test]
            fn epoll() {
                run::<Poller>();
            }
        }
    )*};
}
use on_both;

/// Prints how to reproduce a failure.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self(seed) = self;
            eprintln!("seed {seed}: GRIDCAST_RING_SEED={seed} cargo test --lib runtime::driver");
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not {text:?}")))
}

on_both! {
    fn whatever_the_kernel_does_each_peer_gets_its_own_echoes_and_nothing_is_left<I>() {
        let seeds = match number("GRIDCAST_RING_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..number("GRIDCAST_RING_SEEDS").unwrap_or(SEEDS),
        };
        let certificate = Certificate::new();
        for seed in seeds {
            let _replay = Replay(seed);
            World::<I>::new(seed, &certificate).run();
        }
    }
}

on_both! {
    /// A paused peer must not fill memory.
    fn a_peer_that_is_paused_is_not_heard_though_the_cancellation_missed<I>() {
        let mut world = World::<I>::new(0, &Certificate::new());
        *world.driver.io.faults() = Faults::miss_one_cancel();
        let mut peer = Peer::feeding(&world.doors[1], 1 << 20);
        let (mut heard, mut turns_in_silence) = (0, 0);
        // The topic accepts some messages, and the shard holds more up to a bound.
        while heard < 20_000 || turns_in_silence < 1000 {
            peer.say(50);
            world.driver.turn().unwrap();
            let before = mem::replace(&mut heard, world.driver.shard.inspect().counters().received_bytes);
            turns_in_silence = if heard > before { 0 } else { turns_in_silence + 1 };
            assert!(heard < 100_000, "{heard} bytes were taken of a peer that is paused");
        }
    }
}

on_both! {
    /// Nobody wakes it: were it not found, the turn would take as long as the shard looks.
    fn a_shard_that_looks_for_work_finds_a_connection<I>() {
        let mut world = World::<I>::new(0, &Certificate::new());
        *world.driver.io.faults() = Faults::default();
        (world.driver.spin, world.driver.last_wait) = (DEADLINE, Duration::ZERO);
        let (start, address) = (Instant::now(), world.doors[0].address);
        let peer = thread::spawn(move || {
            let mut socket = TcpStream::connect(address).unwrap();
            socket.write_all(b"GET ").unwrap();
            socket
        });
        while world.driver.shard.inspect().connections() == 0 {
            world.driver.turn().unwrap();
        }
        assert!(start.elapsed() < DEADLINE);
        peer.join().unwrap();
    }
}

on_both! {
    fn a_turn_keeps_the_memory_of_its_lists<I>() {
        let mut world = World::<I>::without_faults(&settings(), 1);
        world.driver.ended_receives.reserve(100);
        world.turn();
        assert!(world.driver.ended_receives.capacity() >= 100);
    }
}

/// A certificate, and a client that trusts it.
struct Certificate {
    context: TlsContext,
    client: Arc<ClientConfig>,
}

impl Certificate {
    fn new() -> Self {
        let Generated { cert, signing_key } =
            generate_simple_self_signed(["localhost".into()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let chain = vec![cert.der().clone()];
        let certified = CertifiedKey::from_der(chain, key, &default_provider()).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self { context: TlsContext::new(certified).unwrap(), client: Arc::new(client) }
    }
}

/// A driver and its peers.
struct World<I> {
    random: Random,
    driver: Driver<I>,
    watch: Arc<Watch>,
    doors: Vec<Door>,
    peers: Vec<Peer>,
    // The ports of the other shards, which the test plays.
    ports: Vec<Port>,
    // How many have come.
    came: usize,
}

impl<I: Tested> World<I> {
    fn new(seed: u64, certificate: &Certificate) -> Self {
        let mut random = Random::new(seed);
        // A small one makes the kernel itself take less.
        let send_buffer = (random.below(2) == 0).then_some(4096);
        let spin = Duration::from_micros(random.pick(&[0, 20]));
        let (settings, places) = (settings(), PEERS_IN_ALL);
        let mut world = Self::with(random, &settings, places, Some(certificate), send_buffer, spin);
        let odds = world.random.pick(&[3, 5, 10, 30, 100]);
        *world.driver.io.faults() = Faults::new(seed, odds);
        world
    }

    /// One whose kernel does no more and no less than it is asked for, with small send buffers.
    fn without_faults(settings: &Settings, places: usize) -> Self {
        Self::with(Random::default(), settings, places, None, Some(4096), Duration::ZERO)
    }

    fn with(
        random: Random,
        settings: &Settings,
        places: usize,
        certificate: Option<&Certificate>,
        send_buffer: Option<usize>,
        spin: Duration,
    ) -> Self {
        let (mut ports, _, control) = bus(settings.shards, false).unwrap();
        let verifier = verifier::start(control, 1).unwrap().remove(0);
        let handshakes_per_s = 0;
        let capacity =
            Capacity { clients: places, callers: places, memory_bytes: 0, handshakes_per_s };
        let watch = Arc::new(Watch::new(1, capacity));
        let (mut listeners, mut doors) = (Vec::new(), Vec::new());
        let mut kinds = vec![(Listener::Api, None), (Listener::Edge(0), None)];
        kinds.extend(certificate.map(|certificate| (Listener::Edge(0), Some(certificate))));
        for (listener, certificate) in kinds {
            let client = certificate.map(|certificate| certificate.client.clone());
            let context = certificate.map(|certificate| certificate.context.clone());
            let any = "127.0.0.1:0".parse().unwrap();
            let peer_timeout = Duration::from_millis(settings.limits.idle_ms);
            let Listening { address, mut sockets, tls, .. } =
                bind(&any, 1, context, peer_timeout).unwrap();
            let socket = sockets.remove(0);
            // Accepted sockets inherit it.
            send_buffer.into_iter().for_each(|bytes| socket.set_send_buffer_size(bytes).unwrap());
            listeners.push((socket, listener, tls.map(|context| ListenerTls::new(context).0)));
            let address = address.tcp().expect("it is bound to an IP address");
            doors.push(Door { address, is_api: listener == Listener::Api, tls: client });
        }
        let state = Arc::new(NodeState::new(settings, Arc::default()));
        let make_shard = |now| Shard::new(ShardId(0), settings, state, now);
        let port = ports.remove(0);
        let to_bridge = Outlet::new(ShardId(0), Arc::new(|_, message| Err(message)));
        let to_log = Outlet::new(ShardId(0), Arc::new(|_, message| Err(message)));
        let parts = Parts {
            number: 0,
            port,
            verifier,
            to_bridge,
            to_log,
            listeners,
            watch: watch.clone(),
            spin,
        };
        let mut driver: Driver<I> = Driver::new(make_shard, parts).unwrap();
        *driver.io.faults() = Faults::none();
        Self { random, driver, watch, doors, peers: Vec::new(), ports, came: 0 }
    }

    fn turn(&mut self) {
        self.driver.turn().unwrap();
    }

    /// Turns until `is_done`, with what happens meanwhile.
    fn turn_until(&mut self, mut is_done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !is_done(self) {
            self.turn();
            assert!(start.elapsed() < DEADLINE, "stuck");
        }
    }

    fn run(mut self) {
        let start = Instant::now();
        while self.came < PEERS_IN_ALL || !self.peers.is_empty() {
            self.driver.turn().unwrap();
            self.admit();
            let Self { random, peers, .. } = &mut self;
            peers.retain_mut(|peer| !peer.step(random));
            self.disturb_accepting();
            self.pass_time();
            assert!(start.elapsed() < DEADLINE, "stuck with {:#?}", self.peers);
        }
        self.driver.io.faults().stop();
        while !self.is_settled() {
            self.driver.turn().unwrap();
            assert!(
                start.elapsed() < DEADLINE,
                "{} are left",
                self.driver.shard.inspect().connections()
            );
        }
        let all_places = (0..PEERS_IN_ALL).all(|_| self.watch.admit_client());
        assert!(all_places, "a client is gone and its place is not");
    }

    /// Connects a new peer from time to time, as long as there is room.
    fn admit(&mut self) {
        if self.came < PEERS_IN_ALL && self.peers.len() < PEERS && self.random.below(8) == 0 {
            let door = &self.doors[self.random.below(self.doors.len())];
            self.peers.push(Peer::new(&mut self.random, door, self.came));
            self.came += 1;
        }
    }

    /// Ends a listener's accept request from time to time, so that the next one may be refused.
    fn disturb_accepting(&mut self) {
        if self.random.below(16) == 0 {
            let listener = self.random.below(self.doors.len());
            self.driver.io.cancel_accept(listener);
        }
    }

    /// Accepting rests for a time that nobody here has.
    fn pass_time(&mut self) {
        if self.random.below(16) == 0 {
            self.driver.clock.start -= Duration::from_millis(5);
        }
    }

    fn is_settled(&self) -> bool {
        self.driver.sockets.iter().all(Option::is_none)
            && self.driver.shard.inspect().connections() == 0
            && self.driver.io.is_settled()
    }
}

fn settings() -> Settings {
    let http = http::RequestLimits { head_bytes: 4096, headers: 20, body_bytes: 4096 };
    let echo = RouteSettings {
        path: "/echo".into(),
        echo: true,
        message_bytes: 1 << 20,
        outbound_bytes: 1 << 16,
        ..RouteSettings::default()
    };
    let topic = Some("full".into());
    let feeding =
        RouteSettings { path: "/feed".into(), topic, tells_message: true, ..echo.clone() };
    let feeding = RouteSettings { echo: false, ..feeding };
    let base = fixture::settings();
    Settings {
        api: ApiSettings { http, ..base.api },
        edges: vec![EdgeSettings {
            proxy: None,
            port: 6790,
            routes: [echo, feeding].map(Arc::new).into(),
        }],
        queue: QueueSettings {
            bounds: Bounds { messages: 16, bytes: 8192 },
            topics: 1,
            ..base.queue
        },
        limits: LimitSettings {
            edge_http: http,
            api_message_bytes: 4096,
            channels_per_client: 1,
            // Time advances in leaps here, so no timeout may end a connection.
            handshake_ms: 3_600_000,
            ping_ms: 3_600_000,
            idle_ms: 7_200_000,
            answer_ms: 3_600_000,
            ..base.limits
        },
        ..base
    }
}
