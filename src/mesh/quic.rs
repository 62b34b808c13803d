//! The transport and the thread of the mesh: QUIC by quinn, on tokio, which no other module names.
//!
//! One task of the thread holds the mesh and its end of the bus, as a driver holds a shard: messages of
//! shards and events of links → [`Mesh`] → messages for shards and effects on links. The links themselves run on
//! the same thread, or on several others (`mesh.threads`).

mod carriers;
mod lanes;
mod reasons;
mod reports;
mod transport;

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

use super::identity::NodeIdentity;
use super::link::{LinkEffect, LinkEvent};
use super::{Mesh, MeshSettings, SHUTS_DOWN, ShardMessage};
use crate::message::FromMesh;
use crate::runtime::{AwakeClock, MeshPort};
use transport::Transport;

/// Idle timeout of a link, in milliseconds.
const SILENCE_MAX_MS: u64 = 2500;

/// The socket's buffer in each direction, in bytes, if net.core.rmem_max and wmem_max allow it. With the
/// kernel's defaults packets were lost on loopback.
pub const SOCKET_BYTES: usize = 8 << 20;

/// Events handled per turn. Further ones wait for the next turn.
const EVENTS_PER_TURN: usize = 1024;

/// Time for which the mesh's clock stands still after a gap, in microseconds, while the transport passes on what
/// arrived meanwhile.
const CATCH_UP_US: u64 = 200_000;

/// The shortest gap that is logged, in microseconds.
const LONG_GAP_US: u64 = 1_000_000;

/// Interval at which a message for a full mailbox is retried, in milliseconds.
const STUCK_MS: u64 = 1;

/// Names that are looked up at a time. Each takes a thread meanwhile. Further lookups wait for a thread, and
/// their targets count as unreachable after a time limit. Each target has one lookup at most.
const LOOKUPS_MAX: usize = 8;

/// A bound UDP socket.
#[derive(Debug)]
pub struct MeshSocket {
    socket: socket2::Socket,
    /// The bound address. The port is the actual one even if 0 was requested.
    pub address: SocketAddr,
}

/// Binds the socket of the mesh.
///
/// # Errors
/// The address is not this machine's, or is in use.
pub fn bind(address: SocketAddr) -> io::Result<MeshSocket> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        // [::] listens on both families.
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(SOCKET_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BYTES)?;
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket().expect("it was bound to an IP address");
    // The kernel reports double the size, which includes its own overhead.
    let bytes = socket.recv_buffer_size()? / 2;
    if bytes < SOCKET_BYTES {
        tracing::info!(
            "mesh: the kernel buffers {bytes} bytes for its socket, not {SOCKET_BYTES}; see `sysctl \
             net.core.rmem_max`"
        );
    }
    Ok(MeshSocket { socket, address })
}

/// A running mesh, on its thread.
#[derive(Debug)]
pub struct RunningMesh {
    thread: JoinHandle<()>,
    leave: oneshot::Sender<()>,
}

/// Starts the thread of the mesh, for the shards at the other ends of `port`. If the mesh fails later,
/// `failures` is called with the reason, and the node has to end. With 1 of `threads` the thread carries the links,
/// too; with more, so many others carry them.
///
/// # Errors
/// The socket or the identity is unusable, or no thread can be started.
pub fn start(
    socket: MeshSocket,
    identity: NodeIdentity,
    threads: usize,
    settings: MeshSettings,
    port: MeshPort,
    failures: impl Fn(String) + Send + 'static,
) -> io::Result<RunningMesh> {
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
        let turns = Turns::new(&runtime, socket, &identity, threads, settings, port);
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
        // Does not wait for a name that is still being looked up.
        runtime.shutdown_background();
    };
    let thread = std::thread::Builder::new().name("mesh".into()).spawn(work)?;
    start.recv().unwrap_or_else(|_| Err(io::Error::other("panicked")))?;
    Ok(RunningMesh { thread, leave })
}

impl RunningMesh {
    /// Tells the other nodes that this one leaves, closes the links, and ends the thread, within a quarter of
    /// a second.
    pub fn leave(self) {
        // A mesh that has failed has reported it.
        let _ = self.leave.send(());
        let _ = self.thread.join();
    }
}

#[expect(
    deprecated,
    reason = "unsound for types that may close their descriptor early, which an OwnedFd does not; the \
              replacement needs an unsafe block"
)]
fn readable(eventfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(eventfd, Interest::READABLE)
}

/// The mesh with its port and links, turn by turn. Under load many messages and events share a turn, and
/// so a batch per lane. A message that comes alone leaves at once.
struct Turns {
    mesh: Mesh,
    port: MeshPort,
    transport: Transport,
    // Becomes readable when a message arrives while the port may sleep.
    mail: AsyncFd<OwnedFd>,
    start: Instant,
    clock: AwakeClock,
    alarm: Pin<Box<Sleep>>,
    alarm_ms: u64,
    is_stuck: bool,
}

/// Why a turn begins.
enum Woken {
    Event(LinkEvent),
    MailOrTime,
    Leave,
}

impl Turns {
    fn new(
        runtime: &Runtime,
        socket: MeshSocket,
        identity: &NodeIdentity,
        threads: usize,
        settings: MeshSettings,
        port: MeshPort,
    ) -> io::Result<Self> {
        let _inside = runtime.enter();
        let start = Instant::now();
        let transport =
            Transport::new(socket.socket, identity, threads).map_err(io::Error::other)?;
        Ok(Self {
            mesh: Mesh::new(settings, 0),
            transport,
            mail: readable(port.wake_fd().try_clone_to_owned()?)?,
            port,
            start,
            clock: AwakeClock::new(CATCH_UP_US),
            alarm: Box::pin(tokio::time::sleep_until(start)),
            alarm_ms: 0,
            is_stuck: false,
        })
    }

    /// Runs turns until the node leaves.
    ///
    /// # Errors
    /// The mesh has failed: why.
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
            // Sends the last messages.
            failure = self.turn(None);
        }
        self.transport.leave(failure.as_deref().unwrap_or(SHUTS_DOWN)).await;
        failure.map_or(Ok(()), Err)
    }

    /// The time without gaps in which this thread did not run. Tells the mesh of a new gap.
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
        // From here on a sender to the mailbox writes the eventfd.
        let has_mail = !self.port.may_sleep();
        let woken = tokio::select! {
            event = self.transport.next(takes_data) => Woken::Event(event),
            // Other tasks had their turn, and their reports are received above.
            () = tokio::task::yield_now(), if has_mail => Woken::MailOrTime,
            mail = self.mail.readable(), if !has_mail => {
                // Edge-triggered: each write is reported, so the counter need not be read.
                mail.expect("the runtime is there").clear_ready();
                Woken::MailOrTime
            }
            () = &mut self.alarm, if has_time => Woken::MailOrTime,
            _ = left => Woken::Leave,
        };
        self.port.stay_awake();
        woken
    }

    /// Whether data is taken: while there is room for it in the mailboxes. Otherwise it would accumulate
    /// without bound.
    fn takes_data(&self) -> bool {
        !self.is_stuck
    }

    /// Sets the alarm to the next deadline; false if there is none.
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

    /// Runs one turn. Returns why the node has to end, if it does.
    fn turn(&mut self, first: Option<LinkEvent>) -> Option<String> {
        let now_ms = self.now_ms();
        let Self { mesh, port, .. } = self;
        let mut taken = 0;
        port.receive(|from, message| {
            taken += 1;
            mesh.handle_message(now_ms, from, message);
        });
        taken += self.take_events(now_ms, first);
        if taken == 0 && self.clock.has_waited_to_catch_up() {
            self.clock.caught_up();
        }
        let Self { mesh, port, transport, .. } = self;
        mesh.handle_turn(now_ms);
        while let Some(ShardMessage { to, mut message }) = mesh.poll_message() {
            if let FromMesh::Report(_, report) = &mut message {
                report.threads = transport.report();
            }
            port.post(to, message);
        }
        self.is_stuck = port.flush();
        let mut failure = None;
        while let Some(effect) = mesh.poll_effect() {
            match effect {
                LinkEffect::Fail(why) => failure = Some(why),
                effect => transport.perform(effect),
            }
        }
        failure
    }

    /// Handles the events of links. Returns their number.
    fn take_events(&mut self, now_ms: u64, mut first: Option<LinkEvent>) -> usize {
        for taken in 0..EVENTS_PER_TURN {
            let takes_data = self.takes_data();
            let next = first.take().or_else(|| self.transport.ready(takes_data));
            let Some(event) = next else { return taken };
            self.mesh.handle_event(now_ms, event);
        }
        EVENTS_PER_TURN
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Incarnation, NodeId};
    use crate::message::{FromShard, InterestChange, Ticket, ToMesh, ToShard};
    use crate::runtime::{Port, bus, unix_ms};

    const LOOPBACK: &str = "127.0.0.1:0";

    /// A generous time limit for work that takes milliseconds.
    const DEADLINE: Duration = Duration::from_secs(60);

    /// Rounds of a message and its answer. A mesh that is not woken handles a message at its next timer, which
    /// is due in 125 ms on average: that many rounds would take longer than [`DEADLINE`].
    const ROUNDS: u64 = 1000;

    /// A mesh without other nodes, and the port of its node's only shard.
    fn running() -> (RunningMesh, Port) {
        let node = NodeId::new(1).unwrap();
        let (mut ports, port, _control) = bus(1, true).unwrap();
        let (shard, port) = (ports.pop().unwrap(), port.unwrap());
        let socket = bind(LOOPBACK.parse().unwrap()).unwrap();
        let settings = MeshSettings {
            node,
            incarnation: Incarnation(unix_ms()),
            shards: 1,
            advertise: socket.address,
            api: LOOPBACK.parse().unwrap(),
            seeds: Vec::new(),
            answer_ms: 1500,
            expected: 1,
            channel_key: [0; 16],
            random_seed: 1,
        };
        let identity = NodeIdentity::from_key("0123456789abcdef").unwrap();
        let running = start(socket, identity, 1, settings, port, |why| panic!("{why}")).unwrap();
        (running, shard)
    }

    /// Asks the mesh a question, behind what was posted before.
    fn ask(shard: &mut Port, number: u64) {
        shard.post(FromShard::Mesh(ToMesh::Nodes(Ticket(number))));
    }

    /// Passes messages on until the question with this number is answered.
    fn wait_for_answer(shard: &mut Port, number: u64, end: std::time::Instant) {
        let mut is_answered = false;
        while !is_answered {
            assert!(std::time::Instant::now() < end, "question {number} is not answered");
            shard.flush();
            shard.receive(|message| {
                is_answered |= matches!(
                    message,
                    ToShard::Mesh(FromMesh::Nodes(Ticket(of), _)) if of == number
                );
            });
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_message_wakes_an_idle_mesh() {
        let (running, mut shard) = running();
        let end = std::time::Instant::now() + DEADLINE;
        for number in 0..ROUNDS {
            ask(&mut shard, number);
            wait_for_answer(&mut shard, number, end);
        }
        running.leave();
    }

    #[test]
    fn more_messages_than_a_mailbox_holds_are_all_handled_in_order() {
        let (running, mut shard) = running();
        for number in 1..=100_000 {
            let (change, is_on) = (InterestChange(number), number % 2 == 1);
            let message = ToMesh::Interest { change, channel: "news".into(), is_on };
            shard.post(FromShard::Mesh(message));
        }
        ask(&mut shard, 1);
        wait_for_answer(&mut shard, 1, std::time::Instant::now() + DEADLINE);
        running.leave();
    }

    #[test]
    fn an_address_in_use_is_refused_when_it_is_bound() {
        let socket = bind(LOOPBACK.parse().unwrap()).unwrap();
        assert_eq!(bind(socket.address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
