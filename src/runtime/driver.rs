//! The task of one shard: passes completions of its ring to the shard, and submits the requests that the
//! shard's answers need.
//!
//! A socket has at most two requests in progress: a receive, and either a send or a wait for room in the
//! socket. The receive is multishot, or takes a single buffer if the socket is heavy. A socket is closed
//! when no request is in progress, so a completion never reaches the wrong socket.
//!
//! - `driver.rs`: the turn, and closing sockets.
//! - `accepting.rs`, `receiving.rs`, `sending.rs`: the handling of each kind of completion.
//! - `heavy.rs`: sockets that send much take turns. `proxied.rs`: the PROXY protocol header.

mod accepting;
mod heavy;
mod proxied;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use std::{io, mem};

use rustix::net::Shutdown;
use socket2::Socket as ListeningSocket;

use super::awake::AwakeClock;
use super::bus::Port;
use super::clock::unix_ms;
use super::identity::ListenerTls;
use super::outlet::Outlet;
use super::reload::{ReloadRequest, Reloaded};
use super::socket_io::{Completion, Sending, SocketIo};
use super::tls::Tls;
use super::verifier::Verifier;
use super::watch::{Summary, Watch};
use crate::address::ShardId;
use crate::message::{ConnectionKey, FromNode, ToBridge, ToLog, ToShard};
use crate::shard::{Action, Listener, Now, Shard, ShardRequest};
use accepting::{AcceptState, Accepting};
use heavy::{HeavySockets, Pace};
use sending::send_close_notify;

/// The longest sleep, in milliseconds. Bounds the delay of events in glommio's own ring, and the delay
/// after a lost wake-up.
pub(super) const SLEEP_MAX_MS: u64 = 100;

/// A shard polls for work before it sleeps only if its last wait was shorter than this multiple of the
/// polling time. Polling is useless where waits are long. A wait includes the time to wake up.
const SPIN_AFTER: u32 = 2;

/// The longest time that a shard's clock stands still after a gap, in microseconds, while waiting input
/// is read.
const CATCH_UP_US: u64 = 1_000_000;

/// The length from which a gap is logged, in microseconds.
const LONG_GAP_US: u64 = 1_000_000;

/// The most sockets that a turn pauses, resumes, shuts down or closes. Closing takes about 5 µs. The
/// rest waits for the next turn.
const ACTIONS_PER_TURN: usize = 512;

/// The delay after which a message that did not fit into a mailbox is sent again, in milliseconds.
const STUCK_MS: u64 = 1;

pub(super) struct Driver<I> {
    number: usize,
    shard: Shard,
    io: I,
    port: Port,
    verifier: Verifier,
    to_bridge: Outlet<ToBridge>,
    to_log: Outlet<ToLog>,
    clock: Clock,
    listeners: Vec<Accepting>,
    // Indexed like the shard's connections.
    sockets: Vec<Option<Socket>>,
    // Boxed, because the kernel holds their addresses while a send is in progress.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Sending>>,
    // Connections whose receive ended in this turn although more is wanted.
    ended_receives: Vec<ConnectionKey>,
    heavy: HeavySockets,
    // TLS handshakes that wait for a turn with steps left, each once; Socket::is_deferred is set.
    deferred: VecDeque<ConnectionKey>,
    handshake_steps_left: usize,
    // A scratch buffer for plaintext between the shard and a TLS session.
    plaintext: Vec<u8>,
    watch: Arc<Watch>,
    is_stuck: bool,
    is_counted_out: bool,
    // How long to poll for work before sleeping. Zero: sleep at once.
    spin: Duration,
    last_wait: Duration,
}

/// The components of a driver, besides its shard.
pub(super) struct Parts {
    /// The index of the shard.
    pub(super) number: usize,
    pub(super) port: Port,
    pub(super) verifier: Verifier,
    /// The way to the bridge.
    pub(super) to_bridge: Outlet<ToBridge>,
    /// The way to the logs of topics on disk.
    pub(super) to_log: Outlet<ToLog>,
    pub(super) listeners: Vec<(ListeningSocket, Listener, Option<ListenerTls>)>,
    pub(super) watch: Arc<Watch>,
    /// How long to poll for work before sleeping. Zero: sleep at once.
    pub(super) spin: Duration,
}

/// One connection's socket.
struct Socket {
    fd: OwnedFd,
    generation: u32,
    receiving: Receiving,
    wants_bytes: bool,
    pace: Pace,
    // The socket is in a queue of `HeavySockets`.
    is_queued: bool,
    is_client: bool,
    is_closing: bool,
    // The TLS handshake is deferred to a later turn. Nothing is received meanwhile.
    is_deferred: bool,
    // The TLS handshake is held back until the shard resumes the connection.
    is_held: bool,
    // The PROXY protocol header has to arrive before anything else.
    awaits_header: bool,
    // A send is in progress.
    is_sending: bool,
    // The send in progress had to wait for room in the socket.
    was_full: bool,
    // Data that did not fit into the socket. Sent again when the socket is writable.
    unsent: Option<Box<Sending>>,
    tls: Option<Box<Tls>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    // No receive is in progress.
    Not,
    // A multishot receive, which continues until it is cancelled.
    Armed,
    // A receive of one buffer, which does not wait for data.
    Once,
    // A multishot receive whose cancellation was requested.
    Cancelled,
}

impl Socket {
    fn is_writing(&self) -> bool {
        self.is_sending || self.unsent.is_some()
    }

    /// Whether more is to be received.
    fn is_wanted(&self) -> bool {
        self.wants_bytes && !self.is_closing && !self.is_deferred
    }

    /// Returns the unsent memory that closing the socket would free, in bytes. Returns `None` if the
    /// socket is not full.
    fn blocked_bytes(&self) -> Option<usize> {
        let unsent = self.unsent.as_ref()?;
        let plaintext = self.tls.as_ref().map_or(0, |tls| tls.freed_bytes());
        Some(unsent.freed_bytes() + plaintext)
    }
}

struct Clock {
    start: Instant,
    awake: AwakeClock,
}

impl Clock {
    fn elapsed_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn now(&mut self) -> Now {
        let us = self.awake.read(self.elapsed_us());
        Now { ms: us / 1000, us, unix_ms: unix_ms() }
    }
}

impl<I: SocketIo> Driver<I> {
    pub(super) fn new(make_shard: impl FnOnce(Now) -> Shard, parts: Parts) -> io::Result<Self> {
        let Parts { number, port, verifier, to_bridge, to_log, listeners, watch, spin } = parts;
        let mut clock = Clock { start: watch.start, awake: AwakeClock::new(CATCH_UP_US) };
        let mut driver = Self {
            number,
            shard: make_shard(clock.now()),
            io: I::new()?,
            port,
            verifier,
            to_bridge,
            to_log,
            clock,
            listeners: Vec::new(),
            sockets: Vec::new(),
            spare: Vec::new(),
            ended_receives: Vec::new(),
            heavy: HeavySockets::default(),
            deferred: VecDeque::new(),
            handshake_steps_left: 0,
            plaintext: Vec::new(),
            watch,
            is_stuck: false,
            is_counted_out: false,
            spin,
            last_wait: Duration::MAX,
        };
        for (number, (socket, listener, identity)) in listeners.into_iter().enumerate() {
            driver.io.accept(number, socket.as_fd());
            let state = AcceptState::Accepting;
            driver.listeners.push(Accepting { socket, listener, identity, state });
        }
        driver.io.wait_woken(driver.port.wake_fd());
        Ok(driver)
    }

    /// Runs one turn. Returns the summary instead once the node has drained or is told to stop.
    pub(super) fn step(&mut self) -> io::Result<Option<Summary>> {
        if !self.is_over() {
            return self.turn_or_fail().map(|()| None);
        }
        let counters = self.shard.inspect().counters();
        let inspection = self.shard.inspect();
        Ok(Some(Summary {
            counters,
            connections: inspection.connections(),
            queued_messages: inspection.queued_messages(),
        }))
    }

    /// Runs one turn. A panic that does not belong to one connection leaves the shard in an unknown
    /// state, so the shard fails, and the node with it.
    fn turn_or_fail(&mut self) -> io::Result<()> {
        catch_unwind(AssertUnwindSafe(|| self.turn()))
            .unwrap_or_else(|_| Err(io::Error::other("panicked; see the message above")))
    }

    /// Whether the shard can end. A drained shard continues until all are drained, because others may
    /// need its answers.
    fn is_over(&mut self) -> bool {
        let state = self.shard.inspect().drain_state();
        if !state.is_draining {
            return self.watch.is_stopped.load(Ordering::Acquire);
        }
        if state.is_drained && !self.is_counted_out {
            self.is_counted_out = true;
            self.watch.undrained.fetch_sub(1, Ordering::AcqRel);
        }
        self.watch.undrained.load(Ordering::Acquire) == 0
            || self.watch.is_stopped.load(Ordering::Acquire)
    }

    fn turn(&mut self) -> io::Result<()> {
        let start_us = self.clock.elapsed_us();
        let was_behind = self.clock.awake.is_behind();
        let taken = self.take_completions();
        let now = self.clock.now();
        if let Some(Reloaded { settings, state }) = self.watch.poll_reload(self.number) {
            self.shard.handle_reload(now, &settings, state);
        }
        let Self { port, shard, .. } = self;
        port.receive(|message| shard.handle_message(now, message));
        self.handle_memory(now);
        self.shard.handle_turn(now);
        self.post_messages(now);
        self.do_actions(now);
        self.write(now);
        self.io.take_ended();
        self.handle_completions(now);
        if was_behind && taken == 0 && self.has_taken_in_all() {
            self.clock.awake.caught_up();
        }
        self.note_gap();
        self.restart_receives();
        self.receive_in_turns();
        self.wake_listeners(now);
        let end_us = self.clock.elapsed_us();
        self.shard.handle_turn_taken(end_us - start_us);
        let state = self.shard.inspect().drain_state();
        if state.is_draining {
            self.watch.quiet[self.number].store(state.is_quiet, Ordering::Release);
        }
        self.submit(now)
    }

    /// Restarts receives that ended in this turn. Keeps the list's memory for the next turn.
    fn restart_receives(&mut self) {
        let mut ended = mem::take(&mut self.ended_receives);
        for key in ended.drain(..) {
            self.receive(key);
        }
        self.ended_receives = ended;
    }

    /// Tells the shard how much memory the node uses, and how much closing a full socket would free.
    fn handle_memory(&mut self, now: Now) {
        let Self { shard, sockets, watch, .. } = self;
        let blocked_bytes = |key: ConnectionKey| {
            let socket = sockets.get(key.index as usize)?.as_ref()?;
            (socket.generation == key.generation).then_some(socket)?.blocked_bytes()
        };
        shard.handle_memory(now, watch.usage(), watch.shed_round(), blocked_bytes);
    }

    /// Whether all input that arrived before this turn has been read.
    fn has_taken_in_all(&self) -> bool {
        let is_idle = self.deferred.is_empty() && self.port.is_empty();
        let is_received = self.ended_receives.is_empty() && self.heavy.is_empty();
        is_idle && is_received && self.shard.poll_timeout() != Some(0)
    }

    /// Counts a gap in which this thread did not run, and logs a long one.
    fn note_gap(&mut self) {
        let Some(us) = self.clock.awake.take_gap() else { return };
        self.shard.counters_mut().stalls += 1;
        if us >= LONG_GAP_US {
            let (shard, ms) = (self.number, us / 1000);
            tracing::warn!(
                "shard {shard} did not run for {ms} ms (stopped, suspended or starved of CPU): \
                 deadlines moved by as much"
            );
        }
    }

    /// Handles the completions that have arrived. Returns how many there were.
    fn take_completions(&mut self) -> usize {
        self.io.begin_turn();
        self.heavy.begin_turn();
        let now = self.clock.now();
        self.resume_handshakes(now);
        self.handle_completions(now)
    }

    fn handle_completions(&mut self, now: Now) -> usize {
        let mut taken = 0;
        while let Some(completion) = self.io.next() {
            taken += 1;
            match completion {
                Completion::Accepted { listener, result, is_over } => {
                    self.accepted(now, listener, result, is_over);
                }
                Completion::Received { key, result, is_over } => {
                    self.received(now, key, result, is_over);
                }
                Completion::Sent { key, sending, result } => self.sent(now, key, sending, result),
                Completion::Writable { key } => self.writable(key),
                Completion::CancelMissed { key } => self.cancel_missed(key),
                Completion::Woken => self.io.wait_woken(self.port.wake_fd()),
            }
        }
        taken
    }

    fn do_actions(&mut self, now: Now) {
        for _ in 0..ACTIONS_PER_TURN {
            let Some(action) = self.shard.poll_action() else { return };
            match action {
                Action::Pause(key) => self.want_bytes(key, false),
                Action::Resume(key) => self.want_bytes(key, true),
                Action::Shutdown(key) => self.shutdown(now, key),
                Action::Close(key) => self.close(key),
                Action::StopAccepting => self.stop_accepting(),
            }
        }
    }

    fn close(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.is_closing = true;
        socket.wants_bytes = false;
        send_close_notify(socket, &mut self.plaintext);
        // Ends the receive and the wait for room.
        let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
        self.close_if_quiet(key);
    }

    /// Closes a socket that is marked for closing if no request of the socket is in progress.
    fn close_if_quiet(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.is_closing && socket.receiving == Receiving::Not && !socket.is_writing() {
            self.watch.forget(socket.is_client);
            self.sockets[key.index as usize] = None;
            self.shard.handle_closed(key);
        }
    }

    fn post_messages(&mut self, now: Now) {
        while let Some(message) = self.shard.poll_message() {
            self.port.post(message);
        }
        self.is_stuck = self.port.flush();
        while let Some(request) = self.shard.poll_request() {
            match request {
                ShardRequest::Verify(verification) => self.verifier.ask(verification),
                ShardRequest::Bridge(message) => self.to_bridge.post(message),
                ShardRequest::Log(message) => self.to_log.post(message),
                ShardRequest::Reload(ticket) => {
                    let shard = ShardId(self.number as u8);
                    if !self.watch.request_reload(ReloadRequest::Call(shard, ticket)) {
                        let outcome = Err("too many reloads wait already".into());
                        let refused = FromNode::Reloaded { ticket, outcome };
                        self.shard.handle_message(now, ToShard::Node(refused));
                    }
                }
            }
        }
        self.is_stuck |= self.verifier.flush();
        self.is_stuck |= self.to_bridge.flush();
        self.is_stuck |= self.to_log.flush();
    }

    /// Submits the requests of the turn, and waits if there is nothing to do.
    fn submit(&mut self, now: Now) -> io::Result<()> {
        let sleep_ms = self.sleep_ms(now);
        if sleep_ms == 0 {
            return self.io.submit(Duration::ZERO);
        }
        self.clock.awake.wait(sleep_ms * 1000 + self.spin.as_micros() as u64);
        if self.spin.is_zero() {
            return self.sleep(sleep_ms);
        }
        self.io.submit(Duration::ZERO)?;
        if self.has_work()? {
            // There is work already, so the turn ends without a wait.
            return Ok(());
        }
        let start = Instant::now();
        if !self.spin(start)? {
            self.sleep(sleep_ms)?;
        }
        self.last_wait = start.elapsed();
        Ok(())
    }

    fn sleep(&mut self, sleep_ms: u64) -> io::Result<()> {
        if !self.port.may_sleep() {
            return self.io.submit(Duration::ZERO);
        }
        let slept = self.io.submit(Duration::from_millis(sleep_ms));
        self.port.stay_awake();
        slept
    }

    /// Polls for work instead of sleeping, if the last wait was short. Returns whether work arrived.
    /// Senders of messages need not wake a polling shard.
    fn spin(&mut self, start: Instant) -> io::Result<bool> {
        if self.last_wait >= self.spin * SPIN_AFTER {
            return Ok(false);
        }
        while start.elapsed() < self.spin {
            if self.has_work()? {
                return Ok(true);
            }
            std::hint::spin_loop();
        }
        Ok(false)
    }

    fn has_work(&mut self) -> io::Result<bool> {
        Ok(!self.port.is_empty() || self.io.has_completions()?)
    }

    fn sleep_ms(&self, now: Now) -> u64 {
        let shard = self.shard.inspect();
        // What ended after the turn's messages were posted, such as a send, may have made more.
        let is_busy = shard.has_writes() || shard.has_actions() || shard.has_messages();
        let is_waiting = !self.deferred.is_empty() || !self.heavy.is_empty();
        if is_busy || is_waiting || self.clock.awake.is_behind() {
            return 0;
        }
        let until_due =
            self.shard.poll_timeout().map_or(SLEEP_MAX_MS, |due| due.saturating_sub(now.ms));
        until_due.min(if self.is_stuck { STUCK_MS } else { SLEEP_MAX_MS })
    }
}

fn find(sockets: &mut [Option<Socket>], key: ConnectionKey) -> Option<&mut Socket> {
    let socket = sockets.get_mut(key.index as usize)?.as_mut()?;
    (socket.generation == key.generation).then_some(socket)
}
