//! The socket operations of one thread with epoll, where io_uring is not allowed.
//!
//! Sockets are watched edge-triggered from their first operation until they are closed, so that an
//! operation in the usual case is one system call: the kernel reports a change once, and [`WatchedSocket`]
//! remembers it until a call shows that nothing is left. Only a wait for room in a socket changes what is
//! watched.
//!
//! All sockets are received from into one buffer, when the driver asks for the completion. A send ends
//! as it is started.
#![allow(unsafe_code)]

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags};

#[cfg(test)]
use super::faults::Faults;
#[cfg(test)]
use super::ring::RingRequest;
use super::socket_io::{BUFFER_BYTES, Buffer, Completion, Sending, SocketIo};
use crate::message::ConnectionKey;

/// The most events that are taken from the kernel at a time. The kernel keeps the others, and reports
/// them first the next time.
const EVENTS: usize = if cfg!(test) { 4 } else { 1024 };

/// The most sockets that are received from in a turn: 4 MiB. The others wait for the next turn, in
/// order.
const RECEIVES_PER_TURN: usize = if cfg!(test) { 4 } else { 512 };

/// The most connections that are accepted in a turn, and one more for each listener. Accepting takes
/// about 5 µs. The others wait for the next turn.
const ACCEPTS_PER_TURN: usize = if cfg!(test) { 2 } else { 64 };

/// The epoll events watched on every socket.
const INPUT: EventFlags = EventFlags::IN.union(EventFlags::RDHUP).union(EventFlags::ET);

/// The events watched after a send was blocked.
const INPUT_AND_ROOM: EventFlags = INPUT.union(EventFlags::OUT);

/// The events that mean that the peer has ended the connection, or that it has failed. Receiving shows
/// which.
const ENDED: EventFlags = EventFlags::RDHUP.union(EventFlags::HUP).union(EventFlags::ERR);

/// The events that mean that a socket is writable, or has failed.
const ROOM: EventFlags = EventFlags::OUT.union(EventFlags::HUP).union(EventFlags::ERR);

/// The source of an event, stored in its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EventSource {
    Connection(ConnectionKey),
    Listener(usize),
    Eventfd,
}

/// The kind of a [`EventSource`], in the highest byte of an event's data.
const KIND_SHIFT: u32 = 32 + ConnectionKey::GENERATION_BITS;

impl EventSource {
    fn data(self) -> EventData {
        EventData::new_u64(match self {
            Self::Connection(key) => u64::from(key.generation) << 32 | u64::from(key.index),
            Self::Listener(number) => 1 << KIND_SHIFT | number as u64,
            Self::Eventfd => 2 << KIND_SHIFT,
        })
    }

    fn of(data: EventData) -> Self {
        let data = data.u64();
        let generation = (data >> 32) as u32 & ConnectionKey::GENERATION_MAX;
        match data >> KIND_SHIFT {
            0 => Self::Connection(ConnectionKey { index: data as u32, generation }),
            1 => Self::Listener(data as u32 as usize),
            _ => Self::Eventfd,
        }
    }
}

/// A receive that is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receive {
    Not,
    Repeatedly,
    // At most so many bytes.
    Once(u32),
}

/// A connection's socket that epoll watches.
#[derive(Debug)]
struct WatchedSocket {
    fd: RawFd,
    generation: u32,
    receive: Receive,
    // Bytes or the end may have arrived that no call has shown to be taken in.
    may_have_input: bool,
    // The peer has ended the connection, or it has failed: a short receive is not the last one.
    is_ended: bool,
    waits_for_room: bool,
    // Whether the socket is in `Poller::ready`.
    is_ready: bool,
}

/// A listener that epoll watches.
#[derive(Debug)]
struct WatchedListener {
    fd: RawFd,
    is_accepting: bool,
    may_have_input: bool,
    is_ready: bool,
}

/// The socket operations of one thread.
pub(super) struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
    // Indexed like the connections. A closed socket stays until its place is used again.
    sockets: Vec<Option<WatchedSocket>>,
    listeners: Vec<Option<WatchedListener>>,
    // Sources whose operation can go on, each at most once: as many as there are sockets.
    ready: VecDeque<EventSource>,
    // Operations that have ended: for each connection at most a receive, a cancellation, and a send or
    // wait for room; for each listener an accept; and the eventfd.
    ended: VecDeque<Completion>,
    // How many of both this turn still takes.
    ready_left: usize,
    ended_left: usize,
    accepts_left: usize,
    is_eventfd_watched: bool,
    input: Box<[u8; BUFFER_BYTES]>,
    #[cfg(test)]
    pub faults: Faults,
}

impl SocketIo for Poller {
    fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(EVENTS),
            sockets: Vec::new(),
            listeners: Vec::new(),
            ready: VecDeque::new(),
            ended: VecDeque::new(),
            ready_left: 0,
            ended_left: 0,
            accepts_left: 0,
            is_eventfd_watched: false,
            input: Box::new([0; BUFFER_BYTES]),
            #[cfg(test)]
            faults: Faults::default(),
        })
    }

    fn accept(&mut self, listener: usize, socket: BorrowedFd<'_>) {
        match self.watch_listener(listener, socket) {
            Ok(watched) => {
                watched.is_accepting = true;
                self.queue_listener(listener);
            }
            Err(error) => self.end_accept(listener, error),
        }
    }

    fn cancel_accept(&mut self, listener: usize) {
        let Some(Some(watched)) = self.listeners.get_mut(listener) else { return };
        if watched.is_accepting {
            self.end_accept(listener, error(libc::ECANCELED));
        }
    }

    fn receive(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        self.start_receive(key, socket, Receive::Repeatedly);
    }

    fn receive_once(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, bytes: usize) {
        let bytes = bytes.min(BUFFER_BYTES) as u32;
        self.start_receive(key, socket, Receive::Once(bytes));
        if find(&mut self.sockets, key).is_some_and(|watched| !watched.may_have_input) {
            self.end_receive(key, error(libc::EAGAIN));
        }
    }

    fn cancel_receive(&mut self, key: ConnectionKey) {
        match find(&mut self.sockets, key) {
            Some(watched) if watched.receive != Receive::Not => {
                self.end_receive(key, error(libc::ECANCELED));
            }
            _ => self.ended.push_back(Completion::CancelMissed { key }),
        }
    }

    fn send(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, mut sending: Box<Sending>) {
        #[cfg(test)]
        if let Some(error) = self.faults.refusal(RingRequest::Send) {
            return self.ended.push_back(Completion::Sent { key, sending, result: Err(error) });
        }
        let outgoing = sending.outgoing(
            #[cfg(test)]
            &mut self.faults,
        );
        let result = outgoing.send(socket);
        self.ended.push_back(Completion::Sent { key, sending, result });
    }

    fn wait_writable(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) {
        match self.watch_room(key, socket) {
            Ok(()) => {}
            // The next send shows what is wrong.
            Err(_) => self.ended.push_back(Completion::Writable { key }),
        }
    }

    fn wait_woken(&mut self, eventfd: BorrowedFd<'_>) {
        // The kernel reports each write of an eventfd that is watched edge-triggered, though nobody
        // reads it. Its counter is full after 2^64 writes.
        let edges = EventFlags::IN | EventFlags::ET;
        self.is_eventfd_watched = self.is_eventfd_watched
            || epoll::add(&self.epoll, eventfd, EventSource::Eventfd.data(), edges).is_ok();
    }

    fn submit(&mut self, wait: Duration) -> io::Result<()> {
        self.collect(if self.has_work() { Duration::ZERO } else { wait })
    }

    fn has_completions(&mut self) -> io::Result<bool> {
        self.collect(Duration::ZERO)?;
        Ok(self.has_work())
    }

    fn begin_turn(&mut self) {
        self.ready_left = self.ready.len().min(RECEIVES_PER_TURN);
        self.ended_left = self.ended.len();
        self.accepts_left = ACCEPTS_PER_TURN;
    }

    fn take_ended(&mut self) {
        self.ended_left = self.ended.len();
    }

    fn next(&mut self) -> Option<Completion> {
        if self.ended_left > 0 {
            self.ended_left -= 1;
            return self.ended.pop_front();
        }
        while self.ready_left > 0 {
            self.ready_left -= 1;
            let source = self.ready.pop_front()?;
            #[cfg(test)]
            if self.faults.strikes() {
                self.ready.push_back(source);
                continue;
            }
            let completion = match source {
                EventSource::Connection(key) => self.receive_now(key),
                EventSource::Listener(number) => self.accept_now(number),
                EventSource::Eventfd => None,
            };
            if completion.is_some() {
                return completion;
            }
        }
        None
    }

    fn buffer(&mut self, buffer: &Buffer) -> &mut [u8] {
        &mut self.input[..buffer.length()]
    }

    fn recycle(&mut self, _: Buffer) {}
}

impl Poller {
    /// Whether no completion is left.
    #[cfg(test)]
    pub fn is_settled(&self) -> bool {
        self.ended.is_empty() && self.faults.are_settled()
    }

    fn has_work(&self) -> bool {
        !self.ready.is_empty() || !self.ended.is_empty()
    }

    /// Takes in what the kernel reports, and waits for it up to `wait`.
    fn collect(&mut self, wait: Duration) -> io::Result<()> {
        #[cfg(test)]
        let wait = self.faults.wait(wait);
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: wait.subsec_nanos().into() };
        let mut events = std::mem::take(&mut self.events);
        let result = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait));
        for event in events.drain(..) {
            self.note(event.data, event.flags);
        }
        self.events = events;
        match result {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn note(&mut self, data: EventData, flags: EventFlags) {
        match EventSource::of(data) {
            EventSource::Connection(key) => {
                // None: the connection was closed after the event.
                let Some(watched) = find(&mut self.sockets, key) else { return };
                watched.is_ended |= flags.intersects(ENDED);
                watched.may_have_input |= flags.intersects(INPUT | ENDED);
                if flags.intersects(ROOM) && std::mem::take(&mut watched.waits_for_room) {
                    self.ended.push_back(Completion::Writable { key });
                }
                self.queue(key);
            }
            EventSource::Listener(number) => {
                if let Some(Some(listener)) = self.listeners.get_mut(number) {
                    listener.may_have_input = true;
                    self.queue_listener(number);
                }
            }
            EventSource::Eventfd => self.ended.push_back(Completion::Woken),
        }
    }

    /// Watches a socket, from its first operation on. Until a call shows something else, it may have
    /// input: a peer's first bytes arrive before the connection does (TCP_DEFER_ACCEPT).
    fn watch(
        &mut self,
        key: ConnectionKey,
        socket: BorrowedFd<'_>,
    ) -> io::Result<&mut WatchedSocket> {
        let place = key.index as usize;
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        let slot = &mut self.sockets[place];
        if let Some(watched) = slot.take_if(|watched| watched.generation == key.generation) {
            return Ok(slot.insert(watched));
        }
        epoll::add(&self.epoll, socket, EventSource::Connection(key).data(), INPUT)?;
        Ok(slot.insert(WatchedSocket {
            fd: socket.as_raw_fd(),
            generation: key.generation,
            receive: Receive::Not,
            may_have_input: true,
            is_ended: false,
            waits_for_room: false,
            is_ready: false,
        }))
    }

    fn watch_room(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.watch(key, socket)?.waits_for_room = true;
        // The kernel reports at once what a changed watch finds, so no change is missed.
        epoll::modify(&self.epoll, socket, EventSource::Connection(key).data(), INPUT_AND_ROOM)?;
        Ok(())
    }

    fn start_receive(&mut self, key: ConnectionKey, socket: BorrowedFd<'_>, receive: Receive) {
        match self.watch(key, socket) {
            Ok(watched) => {
                watched.receive = receive;
                self.queue(key);
            }
            Err(error) => self.end_receive(key, error),
        }
    }

    /// Queues a socket that is received from and may have input.
    fn queue(&mut self, key: ConnectionKey) {
        let Some(watched) = find(&mut self.sockets, key) else { return };
        let can_go_on = watched.receive != Receive::Not && watched.may_have_input;
        if can_go_on && !std::mem::replace(&mut watched.is_ready, true) {
            self.ready.push_back(EventSource::Connection(key));
        }
    }

    fn end_receive(&mut self, key: ConnectionKey, error: io::Error) {
        if let Some(watched) = find(&mut self.sockets, key) {
            watched.receive = Receive::Not;
        }
        self.ended.push_back(failed(key, error));
    }

    /// Receives from a socket once. Returns `None` if nothing has arrived or is wanted.
    fn receive_now(&mut self, key: ConnectionKey) -> Option<Completion> {
        let watched = find(&mut self.sockets, key)?;
        watched.is_ready = false;
        let (wanted, is_once) = match watched.receive {
            Receive::Not => return None,
            Receive::Repeatedly => (BUFFER_BYTES, false),
            Receive::Once(bytes) => (bytes as usize, true),
        };
        #[cfg(test)]
        if let Some(error) = self.faults.refusal(RingRequest::Receive) {
            watched.receive = Receive::Not;
            return Some(failed(key, error));
        }
        #[cfg(test)]
        let wanted = self.faults.shortened(wanted);
        // SAFETY: the receive is in progress, so the driver keeps the socket open.
        let socket = unsafe { BorrowedFd::borrow_raw(watched.fd) };
        let received = rustix::net::recv(socket, &mut self.input[..wanted], RecvFlags::DONTWAIT);
        let result = match received.map(|(length, _)| length) {
            Err(Errno::AGAIN) if !is_once => {
                watched.may_have_input = false;
                return None;
            }
            Err(Errno::AGAIN) => {
                watched.may_have_input = false;
                Err(error(libc::EAGAIN))
            }
            Err(error) => Err(error.into()),
            Ok(0) => Ok(None),
            Ok(length) => {
                // A short receive has taken all (epoll(7)), but for the end.
                watched.may_have_input = length == wanted || watched.is_ended;
                Ok(Some(Buffer::new(0, length)))
            }
        };
        let is_over = is_once || !matches!(result, Ok(Some(_)));
        match is_over {
            true => watched.receive = Receive::Not,
            false => self.queue(key),
        }
        Some(Completion::Received { key, result, is_over })
    }

    /// Watches a listener, from its first accept on.
    fn watch_listener(
        &mut self,
        number: usize,
        socket: BorrowedFd<'_>,
    ) -> io::Result<&mut WatchedListener> {
        if self.listeners.len() <= number {
            self.listeners.resize_with(number + 1, || None);
        }
        let slot = &mut self.listeners[number];
        if slot.is_none() {
            // `accept_now` must not wait where another took the connection.
            rustix::io::ioctl_fionbio(socket, true)?;
            // All shards wait for the same Unix socket. Only one of them is woken.
            let edges = EventFlags::IN | EventFlags::ET | EventFlags::EXCLUSIVE;
            epoll::add(&self.epoll, socket, EventSource::Listener(number).data(), edges)?;
        }
        let fd = socket.as_raw_fd();
        Ok(slot.get_or_insert(WatchedListener {
            fd,
            is_accepting: false,
            may_have_input: true,
            is_ready: false,
        }))
    }

    fn queue_listener(&mut self, number: usize) {
        let Some(Some(listener)) = self.listeners.get_mut(number) else { return };
        let can_go_on = listener.is_accepting && listener.may_have_input;
        if can_go_on && !std::mem::replace(&mut listener.is_ready, true) {
            self.ready.push_back(EventSource::Listener(number));
        }
    }

    fn end_accept(&mut self, number: usize, error: io::Error) {
        if let Some(Some(listener)) = self.listeners.get_mut(number) {
            listener.is_accepting = false;
        }
        self.ended.push_back(refused(number, error));
    }

    /// Accepts one connection. Returns `None` if there is none.
    fn accept_now(&mut self, number: usize) -> Option<Completion> {
        let listener = self.listeners.get_mut(number)?.as_mut()?;
        listener.is_ready = false;
        if !listener.is_accepting {
            return None;
        }
        #[cfg(test)]
        if let Some(error) = self.faults.refusal(RingRequest::Accept) {
            listener.is_accepting = false;
            return Some(refused(number, error));
        }
        // SAFETY: the driver keeps listeners open for as long as it lives.
        let socket = unsafe { BorrowedFd::borrow_raw(listener.fd) };
        match rustix::net::accept_with(socket, SocketFlags::CLOEXEC) {
            Ok(fd) => {
                self.accept_more(number);
                Some(Completion::Accepted { listener: number, result: Ok(fd), is_over: false })
            }
            Err(Errno::AGAIN) => {
                listener.may_have_input = false;
                None
            }
            Err(error) => {
                listener.is_accepting = false;
                Some(refused(number, error.into()))
            }
        }
    }

    /// Lets a listener accept its next connection in this turn, or in the next one.
    fn accept_more(&mut self, number: usize) {
        self.queue_listener(number);
        if self.accepts_left > 0
            && let Some(source) = self.ready.pop_back()
        {
            self.accepts_left -= 1;
            self.ready_left += 1;
            self.ready.push_front(source);
        }
    }
}

fn find(sockets: &mut [Option<WatchedSocket>], key: ConnectionKey) -> Option<&mut WatchedSocket> {
    let watched = sockets.get_mut(key.index as usize)?.as_mut()?;
    (watched.generation == key.generation).then_some(watched)
}

fn error(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}

/// A receive that has ended with an error.
fn failed(key: ConnectionKey, error: io::Error) -> Completion {
    Completion::Received { key, result: Err(error), is_over: true }
}

/// An accept that has ended with an error.
fn refused(listener: usize, error: io::Error) -> Completion {
    Completion::Accepted { listener, result: Err(error), is_over: true }
}
