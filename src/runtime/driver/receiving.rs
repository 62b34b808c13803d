//! Passes received bytes to the shard, through the TLS session if there is one, and limits the TLS
//! handshakes of a turn.

use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::heavy::Pace;
use super::{Driver, Receiving, Socket, find};
use crate::message::ConnectionKey;
use crate::runtime::socket_io::{Buffer, SocketIo};
use crate::runtime::tls::Opened;
use crate::shard::Now;

/// The most TLS handshake steps per turn. A full handshake takes two. The step with the signature takes
/// 0.1 to 1 ms, depending on the type of key, so a burst of handshakes delays other connections by at
/// most 8 ms. Further steps wait for the next turns, in order.
const HANDSHAKE_STEPS: usize = 8;

impl<I: SocketIo> Driver<I> {
    /// Starts a receive, unless one is in progress or the shard wants no bytes.
    pub(super) fn receive(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.receiving != Receiving::Not || !socket.is_wanted() {
            return;
        }
        if socket.pace != Pace::Light {
            self.heavy.queue(key, socket);
        } else {
            socket.receiving = Receiving::Armed;
            self.io.receive(key, socket.fd.as_fd());
        }
    }

    pub(super) fn received(
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
        let Socket { is_closing, is_deferred, .. } = *socket;
        match result {
            Ok(Some(buffer)) => {
                if self.heavy.weigh(socket, buffer.length()) {
                    self.stop_receiving(key);
                }
                let is_end = self.io.buffer(&buffer).is_empty();
                if !is_closing && !is_end {
                    self.guarded(now, key, |driver| driver.read(now, key, &buffer));
                }
                self.io.recycle(buffer);
                match is_end {
                    // Earlier bytes are handled first. The end is received again afterwards.
                    true if is_deferred => {}
                    true => self.ended(now, key, false),
                    false => self.receive_again_if(is_over, key),
                }
            }
            Ok(None) if is_deferred => {}
            Ok(None) => self.ended(now, key, false),
            Err(error) => match error.raw_os_error() {
                Some(code @ (libc::ENOBUFS | libc::ECANCELED | libc::EINTR | libc::EAGAIN)) => {
                    socket.pace = socket.pace.after_failure(code);
                    self.receive_again_if(true, key);
                }
                _ => self.ended(now, key, true),
            },
        }
        if is_closing && !is_over {
            // A peer that keeps sending can prevent the receive from ending, so it is cancelled.
            self.stop_receiving(key);
        }
        self.close_if_quiet(key);
    }

    /// Repeats a cancellation that found no receive. Otherwise the receive could continue and its bytes
    /// would accumulate.
    pub(super) fn cancel_missed(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.receiving == Receiving::Cancelled {
            self.io.cancel_receive(key);
        }
    }

    /// Runs work for one connection. A panic ends that connection alone.
    fn guarded(&mut self, now: Now, key: ConnectionKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.shard.handle_panic(now, key);
        }
    }

    fn read(&mut self, now: Now, key: ConnectionKey, buffer: &Buffer) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.awaits_header {
            return self.read_header(now, key, buffer);
        }
        let bytes = self.io.buffer(buffer);
        match &mut socket.tls {
            None => self.shard.handle_bytes(now, key, bytes),
            Some(tls) => {
                tls.receive(bytes);
                self.open_or_defer(now, key);
            }
        }
    }

    /// Decrypts what a TLS peer sent. Defers it if it belongs to a handshake and this turn has no
    /// handshake steps left.
    pub(super) fn open_or_defer(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Some(tls) = &socket.tls else { return };
        if socket.is_deferred || socket.is_held {
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

    /// Runs deferred handshake steps in order, before those that arrive now.
    pub(super) fn resume_handshakes(&mut self, now: Now) {
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

    fn receive_again_if(&mut self, is_over: bool, key: ConnectionKey) {
        if is_over {
            self.ended_receives.push(key);
        }
    }

    pub(super) fn ended(&mut self, now: Now, key: ConnectionKey, is_broken: bool) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.wants_bytes = false;
        if !socket.is_closing {
            self.shard.handle_end(now, key, is_broken);
        }
    }

    pub(super) fn want_bytes(&mut self, key: ConnectionKey, wants_bytes: bool) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.wants_bytes = wants_bytes;
        match wants_bytes {
            true => {
                self.release(key);
                self.receive(key);
            }
            false => {
                // The socket sent more than the shard may keep.
                socket.pace = Pace::Heavy;
                self.stop_receiving(key);
            }
        }
    }

    pub(super) fn stop_receiving(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.receiving == Receiving::Armed {
            socket.receiving = Receiving::Cancelled;
            self.io.cancel_receive(key);
        }
    }
}
