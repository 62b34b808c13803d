//! One shard's task: completions of its ring → the shard → submissions.
//!
//! Requests that a socket has under way: one multishot receive, and either one send or one wait for
//! room. It is closed when none is left: so no completion ever meets a socket that is not its own.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use std::{io, mem};

use rustix::net::{SendFlags, Shutdown};
use socket2::Socket as ListeningSocket;

use super::bus::Port;
use super::ring::{Buffer, Completion, Ring, Sending};
use super::tls::{Identity, Opened, Tls};
use super::verifier::Verifier;
use super::watch::{Summary, Watch};
use crate::message::ConnectionKey;
use crate::shard::{Action, Batch, Listener, Now, Shard};

/// The longest sleep in milliseconds: what glommio's own ring has to say waits for so long, and a
/// lost wake-up would.
pub(super) const SLEEP_MAX_MS: u64 = 100;

/// How soon a message that found a full mailbox is tried again, in milliseconds.
const STUCK_MS: u64 = 1;

/// How long accepting rests when the process has no descriptor left, in milliseconds.
const ACCEPT_REST_MS: u64 = 100;

/// Sends per turn to connections that a single command meant, and to those that only a fan-out
/// reached: so a huge one leaves room for the rest about every millisecond, and neither starves.
const URGENT_SENDS: usize = 512;
const BULK_SENDS: usize = 128;

/// Steps of TLS handshakes per turn, of which a full one takes two. The costly one, with the
/// signature, takes 0.1 to 1 ms by the kind of key; so other connections wait no longer than 8 ms
/// for a crowd that comes at once. Further steps wait their turn, in order.
const HANDSHAKE_STEPS: usize = 8;

/// Spare [`Sending`]s kept for the next sends.
const SPARE_SENDINGS: usize = 2048;

pub(super) struct Driver {
    number: usize,
    shard: Shard,
    ring: Ring,
    port: Port,
    verifier: Verifier,
    clock: Clock,
    listeners: Vec<Accepting>,
    // At the places of the shard's connections.
    sockets: Vec<Option<Socket>>,
    // Boxed, since the kernel holds their addresses while they are under way.
    #[allow(clippy::vec_box)]
    spare: Vec<Box<Sending>>,
    completions: Vec<Completion>,
    // Receives that ended for want of buffers: begun again at the end of the turn.
    starved: Vec<ConnectionKey>,
    // Handshakes that wait for a turn with steps left, each once: they have Socket::is_deferred.
    deferred: VecDeque<ConnectionKey>,
    handshake_steps_left: usize,
    // Plaintext on its way between the shard and a session.
    plaintext: Vec<u8>,
    watch: Arc<Watch>,
    is_stuck: bool,
    is_counted_out: bool,
}

/// A listening socket.
struct Accepting {
    socket: ListeningSocket,
    listener: Listener,
    // None: it speaks plain TCP.
    identity: Option<Identity>,
    state: AcceptState,
}

#[derive(PartialEq, Eq)]
enum AcceptState {
    Accepting,
    // No descriptors: until this time.
    RestingUntil(u64),
    Stopped,
}

/// One connection's socket.
struct Socket {
    fd: OwnedFd,
    generation: u32,
    receiving: Receiving,
    wants_bytes: bool,
    is_client: bool,
    is_closing: bool,
    // Its handshake waits, and nothing is received for it meanwhile.
    is_deferred: bool,
    write: Write,
    tls: Option<Box<Tls>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Receiving {
    Not,
    Armed,
    Cancelled,
}

enum Write {
    Idle,
    // The ring has it.
    Sending,
    Waiting(Box<Sending>),
}

struct Clock {
    start: Instant,
}

impl Clock {
    fn elapsed_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    fn now(&self) -> Now {
        let us = self.elapsed_us();
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { ms: us / 1000, us, unix_ms: unix.as_millis() as u64 }
    }
}

impl Driver {
    pub(super) fn new(
        number: usize,
        make_shard: impl FnOnce(Now) -> Shard,
        port: Port,
        verifier: Verifier,
        listeners: Vec<(ListeningSocket, Listener, Option<Identity>)>,
        watch: Arc<Watch>,
    ) -> io::Result<Self> {
        let clock = Clock { start: watch.start };
        let mut driver = Self {
            number,
            shard: make_shard(clock.now()),
            ring: Ring::new()?,
            port,
            verifier,
            clock,
            listeners: Vec::new(),
            sockets: Vec::new(),
            spare: Vec::new(),
            completions: Vec::new(),
            starved: Vec::new(),
            deferred: VecDeque::new(),
            handshake_steps_left: 0,
            plaintext: Vec::new(),
            watch,
            is_stuck: false,
            is_counted_out: false,
        };
        for (number, (socket, listener, identity)) in listeners.into_iter().enumerate() {
            driver.ring.accept(number, socket.as_fd());
            let state = AcceptState::Accepting;
            driver.listeners.push(Accepting { socket, listener, identity, state });
        }
        driver.ring.wait_woken(driver.port.wake_fd());
        Ok(driver)
    }

    /// Turns until the node has drained or is told to stop.
    pub(super) async fn run(mut self) -> io::Result<Summary> {
        while !self.is_over() {
            self.turn_or_fail()?;
            glommio::yield_if_needed().await;
        }
        Ok(Summary {
            counters: self.shard.counters(),
            connections: self.shard.connections(),
            queued_messages: self.shard.queued_messages(),
        })
    }

    /// One turn. A panic outside of one connection's work leaves the shard in no known state: it
    /// fails, and the node with it.
    fn turn_or_fail(&mut self) -> io::Result<()> {
        catch_unwind(AssertUnwindSafe(|| self.turn()))
            .unwrap_or_else(|_| Err(io::Error::other("panicked; see the message above")))
    }

    /// A shard that has drained goes on: the others may need its answers.
    fn is_over(&mut self) -> bool {
        if !self.shard.is_draining() {
            return self.watch.is_stopped.load(Ordering::Acquire);
        }
        self.watch.quiet[self.number].store(self.shard.is_quiet(), Ordering::Release);
        if self.shard.is_drained() && !self.is_counted_out {
            self.is_counted_out = true;
            self.watch.undrained.fetch_sub(1, Ordering::AcqRel);
        }
        self.watch.undrained.load(Ordering::Acquire) == 0
            || self.watch.is_stopped.load(Ordering::Acquire)
    }

    fn turn(&mut self) -> io::Result<()> {
        let start_us = self.clock.elapsed_us();
        self.take_completions();
        let now = self.clock.now();
        let Self { port, shard, .. } = self;
        port.receive(|from, message| shard.handle_message(now, from, message));
        self.shard.handle_turn(now);
        self.post_messages();
        self.do_actions(now);
        self.write(now);
        for key in mem::take(&mut self.starved) {
            self.receive(key);
        }
        self.wake_listeners(now);
        let end_us = self.clock.elapsed_us();
        self.shard.handle_turn_taken(end_us - start_us);
        self.submit(now)
    }

    fn take_completions(&mut self) {
        let mut completions = mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        let now = self.clock.now();
        self.resume_handshakes(now);
        for completion in completions.drain(..) {
            match completion {
                Completion::Accepted { listener, result, is_over } => {
                    self.accepted(now, listener, result, is_over);
                }
                Completion::Received { key, result, is_over } => {
                    self.received(now, key, result, is_over);
                }
                Completion::Sent { key, sending, result } => self.sent(now, key, sending, result),
                Completion::Writable { key } => self.writable(key),
                Completion::Woken => self.ring.wait_woken(self.port.wake_fd()),
            }
        }
        self.completions = completions;
    }

    fn accepted(&mut self, now: Now, number: usize, result: io::Result<OwnedFd>, is_over: bool) {
        let accepting = &mut self.listeners[number];
        let listener = accepting.listener;
        if is_over && accepting.state == AcceptState::Accepting {
            match &result {
                // Not a descriptor left: trying again at once would only burn the core.
                Err(error) if is_exhausted(error) => {
                    accepting.state = AcceptState::RestingUntil(now.ms + ACCEPT_REST_MS);
                    self.shard.counters_mut().limits.descriptors += 1;
                }
                _ => self.ring.accept(number, accepting.socket.as_fd()),
            }
        }
        // A connection that was reset while it waited to be accepted is nobody's loss.
        let Ok(fd) = result else { return };
        let Some(remote) = peer_address(&fd) else { return };
        let identity = accepting.identity.as_ref();
        let Ok(tls) = identity.map(Identity::accept).transpose() else { return };
        let is_client = listener != Listener::Api;
        if is_client && !self.watch.admit_client() {
            return self.shard.counters_mut().limits.clients += 1;
        }
        let Some(key) = self.shard.handle_accepted(now, listener, remote) else {
            return self.watch.forget_client(is_client);
        };
        let place = key.index as usize;
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(Socket {
            fd,
            generation: key.generation,
            receiving: Receiving::Not,
            wants_bytes: self.shard.is_receiving(key),
            is_client,
            is_closing: false,
            is_deferred: false,
            write: Write::Idle,
            tls,
        });
        self.receive(key);
    }

    /// Begins to receive, unless it is under way or not wanted.
    fn receive(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let is_wanted = socket.wants_bytes && !socket.is_closing && !socket.is_deferred;
        if socket.receiving == Receiving::Not && is_wanted {
            socket.receiving = Receiving::Armed;
            self.ring.receive(key, socket.fd.as_fd());
        }
    }

    fn received(
        &mut self,
        now: Now,
        key: ConnectionKey,
        result: io::Result<Option<Buffer>>,
        is_over: bool,
    ) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if is_over {
            socket.receiving = Receiving::Not;
        }
        let (is_closing, is_deferred) = (socket.is_closing, socket.is_deferred);
        match result {
            Ok(Some(buffer)) => {
                let is_end = self.ring.buffer(&buffer).is_empty();
                if !is_closing && !is_end {
                    self.guarded(now, key, |driver| driver.read(now, key, &buffer));
                }
                self.ring.recycle(buffer);
                match is_end {
                    // What came before counts first: it is received again after that.
                    true if is_deferred => {}
                    true => self.ended(now, key, false),
                    false => self.starved_if(is_over, key),
                }
            }
            Ok(None) if is_deferred => {}
            Ok(None) => self.ended(now, key, false),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN) => {
                    self.starved_if(true, key);
                }
                _ => self.ended(now, key, true),
            },
        }
        self.close_if_quiet(key);
    }

    /// Works on what one peer sent: a panic ends that peer's connection alone.
    fn guarded(&mut self, now: Now, key: ConnectionKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.shard.handle_panic(now, key);
        }
    }

    fn read(&mut self, now: Now, key: ConnectionKey, buffer: &Buffer) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let bytes = self.ring.buffer(buffer);
        match &mut socket.tls {
            None => self.shard.handle_bytes(now, key, bytes),
            Some(tls) => {
                tls.receive(bytes);
                self.open_or_defer(now, key);
            }
        }
    }

    /// Opens what a TLS peer sent, unless it is of a handshake and enough of these had their step.
    fn open_or_defer(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Some(tls) = &socket.tls else { return };
        if socket.is_deferred {
            return;
        }
        if tls.is_handshaking() {
            if self.handshake_steps_left == 0 {
                return self.defer(key);
            }
            self.handshake_steps_left -= 1;
        }
        self.open(now, key);
    }

    fn defer(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.is_deferred = true;
        self.shard.counters_mut().limits.tls_handshakes += 1;
        self.deferred.push_back(key);
        self.stop_receiving(key);
    }

    /// Gives the handshakes that wait their step, in order, before any that come now.
    fn resume_handshakes(&mut self, now: Now) {
        self.handshake_steps_left = HANDSHAKE_STEPS;
        while self.handshake_steps_left > 0
            && let Some(key) = self.deferred.pop_front()
        {
            let Some(socket) = find(&mut self.sockets, key) else { continue };
            socket.is_deferred = false;
            if !socket.is_closing {
                self.guarded(now, key, |driver| driver.open_or_defer(now, key));
                self.receive(key);
            }
        }
    }

    fn open(&mut self, now: Now, key: ConnectionKey) {
        let Self { sockets, plaintext, shard, .. } = self;
        let Some(tls) = find(sockets, key).and_then(|socket| socket.tls.as_mut()) else { return };
        plaintext.clear();
        let opened = tls.open(plaintext);
        if !plaintext.is_empty() {
            shard.handle_bytes(now, key, plaintext);
        }
        match opened {
            Opened::All => {}
            Opened::Refused => shard.counters_mut().handshakes_refused += 1,
            Opened::End => self.ended(now, key, false),
            Opened::Broken => self.ended(now, key, true),
        }
        self.send_sealed(now, key);
    }

    fn starved_if(&mut self, is_over: bool, key: ConnectionKey) {
        if is_over {
            self.starved.push(key);
        }
    }

    fn ended(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.wants_bytes = false;
        if !socket.is_closing {
            self.shard.handle_end(now, key, is_broken);
        }
    }

    /// Writes what connections have to say: each one gathered send with all of it.
    fn write(&mut self, now: Now) {
        for _ in 0..URGENT_SENDS {
            let Some((key, batch)) = self.shard.poll_urgent_write() else { break };
            self.send_batch(now, key, batch);
        }
        for _ in 0..BULK_SENDS {
            let Some((key, batch)) = self.shard.poll_bulk_write() else { break };
            self.send_batch(now, key, batch);
        }
    }

    fn send_batch(&mut self, now: Now, key: ConnectionKey, batch: Batch) {
        let Some(socket) = find(&mut self.sockets, key) else { return self.shard.recycle(batch) };
        if socket.is_closing {
            return self.shard.recycle(batch);
        }
        match &mut socket.tls {
            None => self.send(key, batch),
            Some(tls) => {
                tls.enqueue(batch);
                self.send_sealed(now, key);
            }
        }
    }

    /// Sends what a TLS connection has to say, its session's own messages first; when it is over
    /// and all is said, shuts our end.
    fn send_sealed(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Some(tls) = &mut socket.tls else { return };
        if socket.is_closing || !matches!(socket.write, Write::Idle) {
            return;
        }
        match tls.seal(&mut self.plaintext) {
            Ok(batch) if !batch.is_empty() => self.send(key, batch),
            Ok(_) if tls.is_over() => shut(socket),
            Ok(_) => {}
            Err(_) => self.ended(now, key, true),
        }
    }

    fn send(&mut self, key: ConnectionKey, batch: Batch) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let mut sending = self.spare.pop().unwrap_or_else(Sending::new);
        sending.begin(batch);
        socket.write = Write::Sending;
        self.ring.send(key, socket.fd.as_fd(), sending);
    }

    fn sent(
        &mut self,
        now: Now,
        key: ConnectionKey,
        mut sending: Box<Sending>,
        result: io::Result<usize>,
    ) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.write = Write::Idle;
        if socket.is_closing {
            self.spare(sending);
            return self.close_if_quiet(key);
        }
        match result {
            Ok(bytes) => {
                let is_tls = socket.tls.is_some();
                let is_done = sending.advance(bytes);
                if is_done {
                    self.spare(sending);
                } else {
                    self.wait_for_room(key, sending);
                }
                match is_tls {
                    false => self.shard.handle_written(now, key, bytes, is_done),
                    true if is_done => self.sealed_written(now, key),
                    true => {}
                }
            }
            Err(error) if is_for_later(&error) => self.wait_for_room(key, sending),
            Err(_) => {
                self.spare(sending);
                self.ended(now, key, true);
            }
        }
    }

    /// The shard hears of its bytes when the records that hold them are written whole.
    fn sealed_written(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if let Some((bytes, is_done)) = socket.tls.as_mut().and_then(|tls| tls.written()) {
            self.shard.handle_written(now, key, bytes, is_done);
        }
        self.send_sealed(now, key);
    }

    fn spare(&mut self, mut sending: Box<Sending>) {
        self.shard.recycle(sending.abandon());
        if self.spare.len() < SPARE_SENDINGS {
            self.spare.push(sending);
        }
    }

    fn wait_for_room(&mut self, key: ConnectionKey, sending: Box<Sending>) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.write = Write::Waiting(sending);
        self.ring.wait_writable(key, socket.fd.as_fd());
    }

    fn writable(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Write::Waiting(sending) = mem::replace(&mut socket.write, Write::Idle) else { return };
        if socket.is_closing {
            self.spare(sending);
            return self.close_if_quiet(key);
        }
        socket.write = Write::Sending;
        self.ring.send(key, socket.fd.as_fd(), sending);
    }

    fn do_actions(&mut self, now: Now) {
        while let Some(action) = self.shard.poll_action() {
            match action {
                Action::Pause(key) => self.want_bytes(key, false),
                Action::Resume(key) => self.want_bytes(key, true),
                Action::Shutdown(key) => self.shutdown(now, key),
                Action::Close(key) => self.close(key),
                Action::StopAccepting => self.stop_accepting(),
            }
        }
    }

    fn want_bytes(&mut self, key: ConnectionKey, wants_bytes: bool) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.wants_bytes = wants_bytes;
        match wants_bytes {
            true => self.receive(key),
            false => self.stop_receiving(key),
        }
    }

    fn stop_receiving(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.receiving == Receiving::Armed {
            socket.receiving = Receiving::Cancelled;
            self.ring.cancel_receive(key);
        }
    }

    /// Shuts our end; over TLS, after the words that say so.
    fn shutdown(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        match &mut socket.tls {
            None => shut(socket),
            Some(tls) => {
                tls.close();
                self.send_sealed(now, key);
            }
        }
    }

    fn close(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.is_closing = true;
        socket.wants_bytes = false;
        say_last_words(socket, &mut self.plaintext);
        // Ends the receive and the wait for room.
        let _ = rustix::net::shutdown(&socket.fd, Shutdown::Both);
        self.close_if_quiet(key);
    }

    /// Closes a socket that is to be closed, when no request is under way.
    fn close_if_quiet(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.is_closing
            && socket.receiving == Receiving::Not
            && matches!(socket.write, Write::Idle)
        {
            self.watch.forget_client(socket.is_client);
            self.sockets[key.index as usize] = None;
            self.shard.handle_closed(key);
        }
    }

    fn stop_accepting(&mut self) {
        for (number, accepting) in self.listeners.iter_mut().enumerate() {
            accepting.state = AcceptState::Stopped;
            self.ring.cancel_accept(number);
            // Connections in the backlog are refused from here on, not left to wait.
            let _ = accepting.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    fn wake_listeners(&mut self, now: Now) {
        for (number, accepting) in self.listeners.iter_mut().enumerate() {
            if let Some(identity) = &mut accepting.identity {
                identity.renew();
            }
            if matches!(accepting.state, AcceptState::RestingUntil(until) if until <= now.ms) {
                accepting.state = AcceptState::Accepting;
                self.ring.accept(number, accepting.socket.as_fd());
            }
        }
    }

    fn post_messages(&mut self) {
        while let Some((to, message)) = self.shard.poll_message() {
            self.port.post(to, message);
        }
        self.is_stuck = self.port.flush();
        while let Some(verification) = self.shard.poll_verification() {
            self.verifier.ask(verification);
        }
    }

    /// Submits what the turn asked for, and sleeps if there is nothing to do.
    fn submit(&mut self, now: Now) -> io::Result<()> {
        let sleep_ms = self.sleep_ms(now);
        if sleep_ms == 0 || !self.port.may_sleep() {
            return self.ring.submit(Duration::ZERO);
        }
        let slept = self.ring.submit(Duration::from_millis(sleep_ms));
        self.port.stay_awake();
        slept
    }

    fn sleep_ms(&self, now: Now) -> u64 {
        if self.shard.has_writes() || !self.deferred.is_empty() {
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

fn shut(socket: &Socket) {
    // What is left to learn of a socket that is not connected comes with its receive.
    let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
}

/// The alert that a TLS connection that is closed at once still owes its peer, if the socket takes
/// it: nobody waits for that.
fn say_last_words(socket: &mut Socket, scratch: &mut Vec<u8>) {
    let Some(tls) = &mut socket.tls else { return };
    if !matches!(socket.write, Write::Idle) {
        return;
    }
    tls.close();
    for chunk in tls.seal(scratch).unwrap_or_default() {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = rustix::net::send(&socket.fd, chunk.bytes(), flags);
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn is_for_later(error: &io::Error) -> bool {
    let codes = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

fn peer_address(fd: &OwnedFd) -> Option<SocketAddr> {
    let address = rustix::net::getpeername(fd).ok()??;
    address.try_into().ok()
}
