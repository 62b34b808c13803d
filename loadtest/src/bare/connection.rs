//! A connection of the server.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::session::{Broken, Session};

/// What a connection does with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Requests of HTTP.
    Http,
    /// A subscriber of the channel, at a place in the channel's list. Its messages are ignored.
    Subscriber { channel: usize, place: usize },
    /// Publishes to the channel.
    Publisher { channel: usize, is_answered: bool },
    /// Receives its own messages.
    Echo,
}

pub struct Connection {
    pub socket: OwnedFd,
    pub role: Role,
    /// The TLS session, if the client began one.
    pub session: Option<Box<Session>>,
    /// Input that is not complete yet.
    pub input: Vec<u8>,
    /// Output of this turn for this connection alone.
    pub own: Vec<u8>,
    /// Output that waits for the send in progress.
    pub queue: VecDeque<Arc<[u8]>>,
    /// The data of the send in progress, and its bytes that are written.
    pub sending: Option<(Arc<[u8]>, usize)>,
    pub is_receiving: bool,
    /// Whether it is closed once nothing is in progress.
    pub is_broken: bool,
    /// Whether it is in the list of those with output.
    pub has_output: bool,
}

impl Connection {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            role: Role::Http,
            session: None,
            input: Vec::new(),
            own: Vec::new(),
            queue: VecDeque::new(),
            sending: None,
            is_receiving: true,
            is_broken: false,
            has_output: false,
        }
    }

    /// Whether there is something to send.
    pub fn has_own_output(&self) -> bool {
        !self.own.is_empty() || self.session.as_ref().is_some_and(|session| session.has_output())
    }

    /// Takes the data of the next send: the first in the queue, or with a session all of it, encrypted.
    ///
    /// # Errors
    /// The session has failed.
    pub fn next_data(&mut self) -> Result<Option<Arc<[u8]>>, Broken> {
        match &mut self.session {
            None => Ok(self.queue.pop_front()),
            Some(session) => session.seal(self.queue.drain(..)),
        }
    }

    /// Whether the connection may be dropped: the kernel uses neither its socket nor its memory.
    pub fn is_over(&self) -> bool {
        self.is_broken && !self.is_receiving && self.sending.is_none()
    }
}
