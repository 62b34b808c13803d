//! Receiving from sockets that send much: one buffer at a time, and in turns.
//!
//! A multishot receive delivers up to 32 buffers of one socket at once, before the shard can say that it
//! wants no more. A few sockets that send without pause would take all buffers of the shard, and the node
//! would keep what the shard cannot process yet. Such sockets are *heavy*. A socket becomes heavy when
//!
//! - the shard pauses it,
//! - or it fills a buffer in a turn in which light sockets have filled [`FILLED_PER_TURN`] before,
//! - or it fills a short receive while buffers are scarce.
//!
//! A heavy socket waits in a queue for each receive. The receive takes at most one buffer and does not
//! wait for data. A heavy socket that does not fill its buffer becomes *light* again.
//!
//! A light socket that found no free buffer is *starved*. Starved sockets are received from before heavy
//! ones, [`SHORT_BYTES`] at a time: enough to tell whether the socket is heavy, and little work.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use super::{Driver, Receiving, Socket, find};
use crate::message::ConnectionKey;
use crate::runtime::socket_io::{BUFFER_BYTES, SocketIo};

/// Receives from heavy sockets per turn. Each takes the kernel about 30 µs, so a turn takes at most 1 ms
/// longer, and most buffers are left to light sockets.
const HEAVY_PER_TURN: usize = if cfg!(test) { 2 } else { 32 };

/// Receives from starved sockets per turn: half of all buffers.
const STARVED_PER_TURN: usize = if cfg!(test) { 2 } else { 256 };

/// Buffers that light sockets may fill per turn. A light socket that fills a further one becomes heavy.
const FILLED_PER_TURN: usize = if cfg!(test) { 1 } else { 32 };

/// The size of a receive from a starved socket, in bytes. A call, an upgrade request or a TLS hello fits
/// in it and does not make its socket heavy. Hellos of browsers have about 1,800 bytes, of which 1,216 are
/// a post-quantum key share.
const SHORT_BYTES: usize = if cfg!(test) { 16 } else { 2048 };

/// How a socket is received from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Whenever it sends.
    Light,
    /// A few bytes, before heavy sockets.
    Starved,
    /// One buffer, when its turn comes.
    Heavy,
}

impl Pace {
    /// The most bytes that one receive delivers. A receive of so many has left more in the socket, as
    /// far as the driver knows.
    fn receive_bytes(self) -> usize {
        match self {
            Self::Starved => SHORT_BYTES,
            Self::Light | Self::Heavy => BUFFER_BYTES,
        }
    }

    /// The pace of a socket after a receive of `bytes`. `filled` counts the buffers that light sockets
    /// filled in this turn.
    fn after(self, bytes: usize, filled: &mut usize) -> Self {
        if bytes < self.receive_bytes() {
            return Self::Light;
        }
        if self == Self::Light {
            *filled += 1;
            if *filled <= FILLED_PER_TURN {
                return Self::Light;
            }
        }
        Self::Heavy
    }

    /// The pace of a socket after a receive that failed with `code`.
    pub(super) fn after_failure(self, code: i32) -> Self {
        match code {
            libc::ENOBUFS if self == Self::Light => Self::Starved,
            libc::EAGAIN => Self::Light,
            _ => self,
        }
    }
}

/// Queues of the sockets that wait for a receive. Each socket is in at most one queue, once;
/// `Socket::is_queued` is set.
#[derive(Default)]
pub(super) struct HeavySockets {
    heavy: VecDeque<ConnectionKey>,
    starved: VecDeque<ConnectionKey>,
    // Buffers that light sockets filled in this turn.
    filled: usize,
}

impl HeavySockets {
    /// Whether both queues are empty.
    pub(super) fn is_empty(&self) -> bool {
        self.heavy.is_empty() && self.starved.is_empty()
    }

    /// Resets the count of filled buffers at the start of a turn.
    pub(super) fn begin_turn(&mut self) {
        self.filled = 0;
    }

    /// Queues a socket for a receive, unless it is queued already.
    pub(super) fn queue(&mut self, key: ConnectionKey, socket: &mut Socket) {
        if std::mem::replace(&mut socket.is_queued, true) {
            return;
        }
        match socket.pace {
            Pace::Starved => self.starved.push_back(key),
            Pace::Light | Pace::Heavy => self.heavy.push_back(key),
        }
    }

    /// Sets the pace of a socket after a receive of `bytes`. Returns whether the socket is heavy now, so
    /// that a multishot receive must end.
    pub(super) fn weigh(&mut self, socket: &mut Socket, bytes: usize) -> bool {
        let pace = socket.pace.after(bytes, &mut self.filled);
        // A receive in progress was cancelled, and what it still delivers is no sign of a light socket.
        if pace == Pace::Heavy || socket.receiving == Receiving::Not {
            socket.pace = pace;
        }
        pace == Pace::Heavy
    }
}

impl<I: SocketIo> Driver<I> {
    /// Starts the receives of this turn: from starved sockets, then from heavy ones.
    pub(super) fn receive_in_turns(&mut self) {
        for _ in 0..STARVED_PER_TURN {
            let Some(key) = self.heavy.starved.pop_front() else { break };
            self.receive_once(key);
        }
        for _ in 0..HEAVY_PER_TURN {
            let Some(key) = self.heavy.heavy.pop_front() else { break };
            self.receive_once(key);
        }
    }

    fn receive_once(&mut self, key: ConnectionKey) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        socket.is_queued = false;
        if socket.receiving == Receiving::Not && socket.is_wanted() {
            socket.receiving = Receiving::Once;
            self.io.receive_once(key, socket.fd.as_fd(), socket.pace.receive_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_light_socket_becomes_heavy_by_what_light_sockets_fill_alone() {
        let mut filled = 0;
        for _ in 0..10 * FILLED_PER_TURN {
            assert_eq!(Pace::Heavy.after(BUFFER_BYTES, &mut filled), Pace::Heavy);
            assert_eq!(Pace::Starved.after(SHORT_BYTES, &mut filled), Pace::Heavy);
            assert_eq!(Pace::Light.after(BUFFER_BYTES - 1, &mut filled), Pace::Light);
        }
        for _ in 0..FILLED_PER_TURN {
            assert_eq!(Pace::Light.after(BUFFER_BYTES, &mut filled), Pace::Light);
        }
        assert_eq!(Pace::Light.after(BUFFER_BYTES, &mut filled), Pace::Heavy);
    }

    #[test]
    fn a_socket_that_does_not_fill_its_receive_is_light() {
        for (pace, bytes) in [(Pace::Heavy, BUFFER_BYTES), (Pace::Starved, SHORT_BYTES)] {
            assert_eq!(pace.after(bytes - 1, &mut 0), Pace::Light);
            assert_eq!(pace.after_failure(libc::EAGAIN), Pace::Light);
            assert_eq!(pace.after_failure(libc::ENOBUFS), pace);
        }
        assert_eq!(Pace::Light.after_failure(libc::ENOBUFS), Pace::Starved);
    }
}
