//! Sends the shard's data: one gathered send per connection, encrypted if it uses TLS. Also handles the
//! completion of sends and the end of a connection.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{SendFlags, Shutdown};

use super::{Driver, Socket, find};
use crate::message::ConnectionKey;
use crate::runtime::socket_io::{Sending, SocketIo};
use crate::shard::{Batch, Now, Priority};

/// The most sends per turn to connections that a command addressed directly. The shard itself bounds
/// the sends to connections that only a fan-out reached.
const URGENT_SENDS: usize = 512;

/// The most unused [`Sending`]s that are kept for reuse.
const SPARE_SENDINGS: usize = 2048;

impl<I: SocketIo> Driver<I> {
    /// Starts one gathered send for each connection that has data.
    pub(super) fn write(&mut self, now: Now) {
        for _ in 0..URGENT_SENDS {
            let Some((key, batch)) = self.shard.poll_write(Priority::Urgent) else { break };
            self.send_batch(now, key, batch);
        }
        while let Some((key, batch)) = self.shard.poll_write(Priority::Bulk) {
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

    /// Sends the data of a TLS connection, the session's own messages first. Shuts down the sending side
    /// once a closing session has sent everything.
    pub(super) fn send_sealed(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if socket.is_closing || socket.is_writing() {
            return;
        }
        let Some(tls) = &mut socket.tls else { return };
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
        socket.is_sending = true;
        self.io.send(key, socket.fd.as_fd(), sending);
    }

    pub(super) fn sent(
        &mut self,
        now: Now,
        key: ConnectionKey,
        mut sending: Box<Sending>,
        result: io::Result<usize>,
    ) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.is_sending = false;
        if socket.is_closing {
            self.spare(sending);
            return self.close_if_quiet(key);
        }
        if std::mem::take(&mut socket.was_full) && matches!(result, Ok(1..)) {
            self.shard.handle_drained(now, key);
        }
        let Some(socket) = find(&mut self.sockets, key) else { return };
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

    /// Reports the shard's bytes as written once the records that contain them are written completely.
    fn sealed_written(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        if let Some((bytes, is_done)) = socket.tls.as_mut().and_then(|tls| tls.written()) {
            self.shard.handle_written(now, key, bytes, is_done);
        }
        self.send_sealed(now, key);
    }

    fn spare(&mut self, mut sending: Box<Sending>) {
        self.shard.recycle(sending.give_back());
        if self.spare.len() < SPARE_SENDINGS {
            self.spare.push(sending);
        }
    }

    fn wait_for_room(&mut self, key: ConnectionKey, sending: Box<Sending>) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.unsent = Some(sending);
        self.io.wait_writable(key, socket.fd.as_fd());
    }

    pub(super) fn writable(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Some(sending) = socket.unsent.take() else { return };
        if socket.is_closing {
            self.spare(sending);
            return self.close_if_quiet(key);
        }
        (socket.is_sending, socket.was_full) = (true, true);
        self.io.send(key, socket.fd.as_fd(), sending);
    }

    /// Shuts down the sending side; over TLS, after a close_notify.
    pub(super) fn shutdown(&mut self, now: Now, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        match &mut socket.tls {
            None => shut(socket),
            Some(tls) => {
                tls.close();
                self.send_sealed(now, key);
            }
        }
    }
}

fn shut(socket: &Socket) {
    // If the socket is not connected, its receive reports that.
    let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
}

/// Sends the close_notify of a TLS connection that is closed at once. Does not wait: the alert is lost if
/// the socket is full.
pub(super) fn send_close_notify(socket: &mut Socket, scratch: &mut Vec<u8>) {
    if socket.is_writing() {
        return;
    }
    let Some(tls) = &mut socket.tls else { return };
    tls.close();
    for chunk in tls.seal(scratch).unwrap_or_default() {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let _ = rustix::net::send(&socket.fd, chunk.bytes(), flags);
    }
}

fn is_for_later(error: &io::Error) -> bool {
    let codes = [libc::EAGAIN, libc::EINTR, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}
