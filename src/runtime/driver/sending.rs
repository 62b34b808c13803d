//! Sending: from what the shard has to say to one gathered send per connection, over TLS sealed; and
//! what follows a send, to the words that end the connection.

use std::io;
use std::os::fd::AsFd;

use rustix::net::{SendFlags, Shutdown};

use super::{Driver, Socket, find};
use crate::message::ConnectionKey;
use crate::runtime::ring::Sending;
use crate::shard::{Batch, Now, Priority};

/// Sends per turn to connections that a single command meant. To those that only a fan-out reached
/// there are as many as the shard allows.
const URGENT_SENDS: usize = 512;

/// Spare [`Sending`]s kept for the next sends.
const SPARE_SENDINGS: usize = 2048;

impl Driver {
    /// Writes what connections have to say: each one gathered send with all of it.
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

    /// Sends what a TLS connection has to say, its session's own messages first; when it is over
    /// and all is said, shuts our end.
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
        self.ring.send(key, socket.fd.as_fd(), sending);
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

    /// The shard hears of its bytes when the records that hold them are written whole.
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
        self.ring.wait_writable(key, socket.fd.as_fd());
    }

    pub(super) fn writable(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let Some(sending) = socket.unsent.take() else { return };
        if socket.is_closing {
            self.spare(sending);
            return self.close_if_quiet(key);
        }
        (socket.is_sending, socket.was_full) = (true, true);
        self.ring.send(key, socket.fd.as_fd(), sending);
    }

    /// Shuts our end; over TLS, after the words that say so.
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
    // What is left to learn of a socket that is not connected comes with its receive.
    let _ = rustix::net::shutdown(&socket.fd, Shutdown::Write);
}

/// The alert that a TLS connection that is closed at once still owes its peer, if the socket takes
/// it: nobody waits for that.
pub(super) fn say_last_words(socket: &mut Socket, scratch: &mut Vec<u8>) {
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
