//! Accepts connections, and pauses accepting when no file descriptor is left.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::AddressFamily;
use socket2::Socket as ListeningSocket;

use super::heavy::Pace;
use super::{Driver, Receiving, Socket};
use crate::address::remote::Remote;
use crate::runtime::identity::ListenerTls;
use crate::runtime::socket_io::SocketIo;
use crate::shard::{Listener, Now};

/// How long accepting pauses when the process has no file descriptor left, in milliseconds.
const ACCEPT_REST_MS: u64 = 100;

/// A listening socket.
pub(super) struct Accepting {
    pub(super) socket: ListeningSocket,
    pub(super) listener: Listener,
    // None: plain TCP.
    pub(super) identity: Option<ListenerTls>,
    pub(super) state: AcceptState,
}

#[derive(PartialEq, Eq)]
pub(super) enum AcceptState {
    Accepting,
    // Paused until this time for lack of file descriptors.
    RestingUntil(u64),
    Stopped,
}

impl<I: SocketIo> Driver<I> {
    pub(super) fn accepted(
        &mut self,
        now: Now,
        number: usize,
        result: io::Result<OwnedFd>,
        is_over: bool,
    ) {
        let accepting = &mut self.listeners[number];
        let listener = accepting.listener;
        if is_over && accepting.state == AcceptState::Accepting {
            match &result {
                // No descriptor is left, so an immediate retry would only waste CPU time.
                Err(error) if is_exhausted(error) => {
                    accepting.state = AcceptState::RestingUntil(now.ms + ACCEPT_REST_MS);
                    self.shard.counters_mut().limits.descriptors += 1;
                }
                // Another shard has stopped accepting from the Unix socket that all shards share.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    accepting.state = AcceptState::Stopped;
                }
                _ => self.io.accept(number, accepting.socket.as_fd()),
            }
        }
        // A connection that was reset before it was accepted is ignored.
        let Ok(fd) = result else { return };
        let Some(remote) = peer_address(&fd) else { return };
        let identity = accepting.identity.as_ref();
        let is_client = listener != Listener::Api;
        if is_client && self.watch.usage().shortage.closes_arrivals(identity.is_some()) {
            return self.shard.counters_mut().note_shed_arrival();
        }
        if is_client && !self.watch.admit_handshake(now.ms) {
            self.shard.counters_mut().limits.handshakes_per_s += 1;
            return;
        }
        let Ok(tls) = identity.map(ListenerTls::accept).transpose() else { return };
        if !self.has_place(is_client) {
            return;
        }
        let Some(key) = self.shard.handle_accepted(now, listener, remote) else {
            return self.watch.forget(is_client);
        };
        let place = key.index as usize;
        if self.sockets.len() <= place {
            self.sockets.resize_with(place + 1, || None);
        }
        self.sockets[place] = Some(Socket {
            fd,
            generation: key.generation,
            receiving: Receiving::Not,
            wants_bytes: self.shard.inspect().is_receiving(key),
            pace: Pace::Light,
            is_queued: false,
            is_client,
            is_closing: false,
            is_deferred: false,
            is_held: false,
            awaits_header: self.shard.inspect().awaits_proxy_header(key),
            is_sending: false,
            was_full: false,
            unsent: None,
            tls,
        });
        self.receive(key);
    }

    /// Reserves a place for a new connection. If the API is at its limit, evicts a connection that has
    /// not authenticated. Returns false if there is no place.
    fn has_place(&mut self, is_client: bool) -> bool {
        if is_client {
            let has_place = self.watch.admit_client();
            self.shard.counters_mut().limits.clients += u64::from(!has_place);
            return has_place;
        }
        if self.watch.admit_caller() {
            return true;
        }
        self.shard.counters_mut().limits.api_connections += 1;
        let has_place = self.shard.evict_unauthenticated();
        if has_place {
            self.watch.replace_caller();
        }
        has_place
    }

    pub(super) fn stop_accepting(&mut self) {
        for (number, accepting) in self.listeners.iter_mut().enumerate() {
            accepting.state = AcceptState::Stopped;
            self.io.cancel_accept(number);
            // Connections in the backlog are refused at once instead of waiting.
            let _ = accepting.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn wake_listeners(&mut self, now: Now) {
        for (number, accepting) in self.listeners.iter_mut().enumerate() {
            if let Some(identity) = &mut accepting.identity {
                identity.renew();
            }
            if matches!(accepting.state, AcceptState::RestingUntil(until) if until <= now.ms) {
                accepting.state = AcceptState::Accepting;
                self.io.accept(number, accepting.socket.as_fd());
            }
        }
    }
}

fn is_exhausted(error: &io::Error) -> bool {
    let codes = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

/// Returns the address of a socket's peer. `None`: the connection was reset before it was accepted.
fn peer_address(fd: &OwnedFd) -> Option<Remote> {
    match rustix::net::getpeername(fd).ok()? {
        Some(address) if address.address_family() != AddressFamily::UNIX => {
            SocketAddr::try_from(address).ok().map(Remote::from)
        }
        // The peer of a Unix socket has no address.
        _ => Some(Remote::Unix),
    }
}
