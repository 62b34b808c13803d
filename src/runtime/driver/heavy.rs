//! Receiving from sockets that send much: one buffer at a time, and in turns.
//!
//! A multishot receive hands over up to 32 buffers of one socket in one go, before the shard could say
//! that it wants no more. Some sockets that send without pause would take all buffers of the shard, while
//! others wait; and the node would keep what the shard cannot read yet. A socket is *heavy*
//!
//! - once the shard paused it,
//! - once it filled a buffer in a turn in which more than [`FILLED_PER_TURN`] were filled,
//! - or once it had more than [`SHORT`] bytes while buffers were scarce.
//!
//! A heavy socket queues up for each receive, which takes one buffer of what is there and waits for
//! nothing. One that does not fill its buffer is *light* again. A socket that found no buffer is *starved*: it
//! may be of either kind. It goes before the heavy ones, with a receive of [`SHORT`] bytes, which show what
//! it is and take the node little time.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use super::{Driver, Receiving, Socket, find};
use crate::message::ConnectionKey;
use crate::runtime::ring::BUFFER_BYTES;

/// Receives from heavy sockets per turn. In the kernel each takes about 30 µs, so that a turn takes 1 ms
/// longer, and there are buffers for the light ones.
const HEAVY_PER_TURN: usize = if cfg!(test) { 2 } else { 32 };

/// Receives from starved sockets per turn: half of all buffers.
const STARVED_PER_TURN: usize = if cfg!(test) { 2 } else { 256 };

/// Buffers that light sockets may fill in a turn before those that fill one count as heavy.
const FILLED_PER_TURN: usize = if cfg!(test) { 1 } else { 32 };

/// Bytes that are received from a starved socket: a call, or a handshake.
const SHORT: usize = if cfg!(test) { 16 } else { 1024 };

/// How a socket is received from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// As it sends.
    Light,
    /// A few bytes, soon.
    Starved,
    /// One buffer, when it is its turn.
    Heavy,
}

/// The sockets that wait to be received from: each once, with `Socket::is_queued`.
#[derive(Default)]
pub(super) struct HeavySockets {
    heavy: VecDeque<ConnectionKey>,
    starved: VecDeque<ConnectionKey>,
    // Buffers that were filled in this turn.
    filled: usize,
}

impl HeavySockets {
    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.heavy.is_empty() && self.starved.is_empty()
    }

    /// Begins to count what a turn fills.
    pub(super) fn begin_turn(&mut self) {
        self.filled = 0;
    }

    /// Lets a socket wait for its turn.
    pub(super) fn queue(&mut self, key: ConnectionKey, socket: &mut Socket) {
        if std::mem::replace(&mut socket.is_queued, true) {
            return;
        }
        match socket.pace {
            Pace::Starved => self.starved.push_back(key),
            Pace::Light | Pace::Heavy => self.heavy.push_back(key),
        }
    }
}

impl Driver {
    /// Notes how much came of a socket that is not light, or that filled a buffer.
    pub(super) fn weigh(&mut self, key: ConnectionKey, bytes: usize) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        let is_filled = match socket.pace {
            Pace::Starved => bytes >= SHORT,
            Pace::Light | Pace::Heavy => bytes == BUFFER_BYTES,
        };
        if !is_filled {
            // What a cancelled receive still brings shows nothing.
            if socket.receiving == Receiving::Not {
                socket.pace = Pace::Light;
            }
            return;
        }
        self.heavy.filled += 1;
        if socket.pace != Pace::Light || self.heavy.filled > FILLED_PER_TURN {
            socket.pace = Pace::Heavy;
            self.stop_receiving(key);
        }
    }

    /// Notes why nothing came of a socket.
    pub(super) fn weigh_failed(&mut self, key: ConnectionKey, code: i32) {
        let Some(socket) = find(&mut self.sockets, key) else { return };
        match code {
            libc::ENOBUFS if socket.pace == Pace::Light => socket.pace = Pace::Starved,
            libc::EAGAIN => socket.pace = Pace::Light,
            _ => {}
        }
    }

    /// Receives from the starved and heavy sockets whose turn it is.
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
            let bytes = if socket.pace == Pace::Starved { SHORT } else { BUFFER_BYTES };
            self.ring.receive_once(key, socket.fd.as_fd(), bytes);
        }
    }
}
