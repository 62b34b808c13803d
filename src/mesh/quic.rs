//! The transport: QUIC by quinn, on a thread of its own with tokio, which no other place names. One
//! task there holds the mesh and its end of the bus, as a driver holds a shard: messages of shards and
//! events of links → [`Mesh`] → messages for shards and effects on links.

mod lanes;
mod links;
mod words;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use super::identity::Identity;
use super::link::{Effect, Event};
use super::{Mesh, Settings};
use crate::runtime::{AwakeClock, Port};
use links::Links;

/// How long a link may be silent before it is lost, in milliseconds.
const SILENCE_MAX_MS: u64 = 2500;

/// What the kernel may hold for the socket, each way, if net.core.rmem_max and wmem_max let it: with
/// its defaults packets were lost on loopback.
pub const SOCKET_BYTES: usize = 8 << 20;

/// Events taken in a turn: what is left waits for the next.
const EVENTS_PER_TURN: usize = 1024;

/// How long the clock of the mesh stands still after a gap, in microseconds: so long the transport may
/// take to hand over what arrived meanwhile.
const CATCH_UP_US: u64 = 200_000;

/// Gaps of so many microseconds are worth a line in the log.
const LONG_GAP_US: u64 = 1_000_000;

/// How soon a message that found a full mailbox is tried again, in milliseconds.
const STUCK_MS: u64 = 1;

/// Names that are looked up at a time: each takes a thread while it lasts.
const LOOKUPS_MAX: usize = 8;

/// A bound socket.
#[derive(Debug)]
pub struct Socket {
    socket: socket2::Socket,
    /// Its address; its port is real even where 0 was asked for.
    pub address: SocketAddr,
}

/// Binds the socket of the mesh.
///
/// # Errors
/// The address is not ours or is in use.
pub fn bind(address: SocketAddr) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // [::] is for both families.
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket().expect("it was bound to an IP address");
    // The kernel tells double: with what it needs itself.
    let bytes = socket.recv_buffer_size()? / 2;
    if bytes < SOCKET_BYTES {
        tracing::info!(
            "mesh: the kernel buffers {bytes} bytes for its socket, not {SOCKET_BYTES}; see `sysctl \
             net.core.rmem_max`"
        );
    }
    Ok(Socket { socket, address })
}

/// The mesh at work on its thread.
#[derive(Debug)]
pub struct Running {
    thread: JoinHandle<()>,
    leave: oneshot::Sender<()>,
}

/// Starts the thread of the mesh, which works for the shards at the other ends of `port`. If it fails
/// later it says why in `failures`, and the node cannot go on without it.
///
/// # Errors
/// The socket or the identity is of no use, or there is no thread to be had.
pub fn start(
    socket: Socket,
    identity: Identity,
    settings: Settings,
    port: Port,
    failures: impl Fn(String) + Send + 'static,
) -> io::Result<Running> {
    let (leave, left) = oneshot::channel();
    let (started, start) = mpsc::channel();
    let work = move || {
        let runtime = match Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(LOOKUPS_MAX)
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => return drop(started.send(Err(error))),
        };
        let turns = Turns::new(&runtime, socket, &identity, settings, port);
        let turns = match turns {
            Ok(turns) => turns,
            Err(error) => return drop(started.send(Err(error))),
        };
        let _ = started.send(Ok(()));
        match catch_unwind(AssertUnwindSafe(|| runtime.block_on(turns.run(left)))) {
            Ok(Ok(())) => {}
            Ok(Err(why)) => failures(why),
            Err(_) => failures("mesh: panicked; see the message above".into()),
        }
        // A name may still be looked up: nobody waits for it.
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("mesh".into()).spawn(work)?;
    start.recv().unwrap_or_else(|_| Err(io::Error::other("panicked")))?;
    Ok(Running { thread, leave })
}

impl Running {
    /// Tells the other nodes that this one leaves, closes the links, and ends the thread: in a quarter
    /// of a second.
    pub fn leave(self) {
        // If it has failed, it has said so.
        let _ = self.leave.send(());
        let _ = self.thread.join();
    }
}

#[expect(
    deprecated,
    reason = "unsound for types that do not keep their descriptor, which an OwnedFd does; what is \
              to be used instead asks for an unsafe block"
)]
fn readable(eventfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(eventfd, Interest::READABLE)
}

/// The mesh and what it works with, turn by turn: under load many messages and events make one turn,
/// and so one batch per lane; one that comes alone leaves at once.
struct Turns {
    mesh: Mesh,
    port: Port,
    links: Links,
    // Becomes readable when there is mail and the port was armed.
    mail: AsyncFd<OwnedFd>,
    start: Instant,
    clock: AwakeClock,
    alarm: Pin<Box<Sleep>>,
    alarm_ms: u64,
    is_stuck: bool,
}

/// Why there is a turn.
enum Woken {
    Event(Event),
    MailOrTime,
    Leave,
}

impl Turns {
    fn new(
        runtime: &Runtime,
        socket: Socket,
        identity: &Identity,
        settings: Settings,
        port: Port,
    ) -> io::Result<Self> {
        let _inside = runtime.enter();
        let start = Instant::now();
        Ok(Self {
            mesh: Mesh::new(settings, 0),
            links: Links::new(socket.socket, identity).map_err(io::Error::other)?,
            mail: readable(port.wake_fd().try_clone_to_owned()?)?,
            port,
            start,
            clock: AwakeClock::new(CATCH_UP_US),
            alarm: Box::pin(tokio::time::sleep_until(start)),
            alarm_ms: 0,
            is_stuck: false,
        })
    }

    /// Turns until the node leaves.
    ///
    /// # Errors
    /// The mesh cannot go on: why.
    async fn run(mut self, mut left: oneshot::Receiver<()>) -> Result<(), String> {
        let mut failure = self.turn(None);
        while failure.is_none() {
            failure = match self.wait(&mut left).await {
                Woken::Event(event) => self.turn(Some(event)),
                Woken::MailOrTime => self.turn(None),
                Woken::Leave => break,
            };
        }
        if failure.is_none() {
            let now_ms = self.now_ms();
            self.mesh.handle_leave(now_ms);
            // What it has to say last.
            failure = self.turn(None);
        }
        self.links.leave(failure.as_deref().unwrap_or("the node goes down")).await;
        failure.map_or(Ok(()), Err)
    }

    /// The time without gaps in which this thread did not run. The mesh is told of those.
    fn now_ms(&mut self) -> u64 {
        let now_ms = self.clock.read(self.start.elapsed().as_micros() as u64) / 1000;
        if let Some(us) = self.clock.take_gap() {
            self.mesh.handle_gap(now_ms);
            if us >= LONG_GAP_US {
                tracing::warn!(
                    "the mesh did not run for {} ms (stopped, suspended or starved of CPU): deadlines \
                     moved by as much",
                    us / 1000
                );
            }
        }
        now_ms
    }

    async fn wait(&mut self, left: &mut oneshot::Receiver<()>) -> Woken {
        let takes_data = self.takes_data();
        let has_time = self.set_alarm();
        // From here on who puts something into a mailbox writes the eventfd.
        let has_mail = !self.port.may_sleep();
        let woken = tokio::select! {
            event = self.links.next(takes_data) => Woken::Event(event),
            // Others had their turn, and what they have is looked for above.
            () = tokio::task::yield_now(), if has_mail => Woken::MailOrTime,
            mail = self.mail.readable(), if !has_mail => {
                // Each write is told of anew (it is edge-triggered), so its counter is never read.
                mail.expect("the runtime is there").clear_ready();
                Woken::MailOrTime
            }
            () = &mut self.alarm, if has_time => Woken::MailOrTime,
            _ = left => Woken::Leave,
        };
        self.port.stay_awake();
        woken
    }

    /// Data is taken while there is room for it in the mailboxes, behind which what does not fit
    /// would pile up.
    fn takes_data(&self) -> bool {
        !self.is_stuck
    }

    /// Whether there is a time to wake at; the alarm is set to it.
    fn set_alarm(&mut self) -> bool {
        let now_ms = self.now_ms();
        let soon = (self.is_stuck || self.clock.is_behind()).then(|| now_ms + STUCK_MS);
        let Some(due_ms) = soon.into_iter().chain(self.mesh.poll_timeout()).min() else {
            self.clock.wait(u64::MAX);
            return false;
        };
        self.clock.wait(due_ms.saturating_sub(now_ms) * 1000);
        let at_ms = self.clock.steady_us(due_ms * 1000).div_ceil(1000);
        if at_ms != self.alarm_ms {
            self.alarm_ms = at_ms;
            self.alarm.as_mut().reset(self.start + Duration::from_millis(at_ms));
        }
        true
    }

    /// Gives why the node cannot go on, if it cannot.
    fn turn(&mut self, first: Option<Event>) -> Option<String> {
        let now_ms = self.now_ms();
        let Self { mesh, port, .. } = self;
        let mut taken = 0;
        port.receive(|from, to, message| {
            taken += 1;
            mesh.handle_message(now_ms, from, to, message);
        });
        taken += self.take_events(now_ms, first);
        if taken == 0 && self.clock.has_waited_to_catch_up() {
            self.clock.caught_up();
        }
        let Self { mesh, port, links, .. } = self;
        mesh.handle_turn(now_ms);
        while let Some((to, from, message)) = mesh.poll_message() {
            port.post_from(from, to, message);
        }
        self.is_stuck = port.flush();
        let mut failure = None;
        while let Some(effect) = mesh.poll_effect() {
            match effect {
                Effect::Fail(why) => failure = Some(why),
                effect => links.perform(effect),
            }
        }
        failure
    }

    /// Takes in what links tell; how much that was.
    fn take_events(&mut self, now_ms: u64, mut first: Option<Event>) -> usize {
        for taken in 0..EVENTS_PER_TURN {
            let takes_data = self.takes_data();
            let next = first.take().or_else(|| self.links.ready(takes_data));
            let Some(event) = next else { return taken };
            self.mesh.handle_event(now_ms, event);
        }
        EVENTS_PER_TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::NodeId;
    use crate::message::{Message, Party};
    use crate::runtime::{bus, unix_ms};

    const LOOPBACK: &str = "127.0.0.1:0";

    #[test]
    fn the_mesh_wakes_for_mail_as_often_as_it_sleeps_and_ends_when_it_is_told() {
        let node = NodeId::new(1).unwrap();
        let (mut ports, _control) = bus(node, 1, true).unwrap();
        let (port, mut shard) = (ports.pop().unwrap(), ports.pop().unwrap());
        let socket = bind(LOOPBACK.parse().unwrap()).unwrap();
        let settings = Settings {
            node,
            incarnation: unix_ms(),
            shards: 1,
            advertise: socket.address,
            api: LOOPBACK.parse().unwrap(),
            seeds: Vec::new(),
            answer_ms: 1500,
            expected: 1,
            channel_key: [0; 16],
            random_seed: 1,
        };
        let identity = Identity::from_key("0123456789abcdef").unwrap();
        let running = start(socket, identity, settings, port, |why| panic!("{why}")).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        for round in 0..50 {
            // More than the mailbox holds, so that the mesh has to take some of them.
            for number in 1..=10_000 {
                let number = round * 10_000 + number;
                shard.post(Party::Mesh, Message::Interest(number, "news".into(), number % 2 == 1));
            }
            while shard.flush() {
                assert!(std::time::Instant::now() < end, "nobody takes the mail of round {round}");
                std::thread::yield_now();
            }
            // Time to fall asleep.
            std::thread::sleep(Duration::from_millis(2));
        }
        running.leave();
    }

    #[test]
    fn an_address_in_use_is_refused_when_it_is_bound() {
        let socket = bind(LOOPBACK.parse().unwrap()).unwrap();
        assert_eq!(bind(socket.address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
