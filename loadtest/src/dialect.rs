//! The protocols that servers speak, and how a client's messages come in each.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::nats::{Nats, Said};
use crate::web_socket::WebSocket;

/// The topic of messages from clients.
pub const TOPIC: &str = "messages";

/// The protocol of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The protocol of gridcast.
    Gridcast,
    /// A WebSocket at `/sub/CHANNEL` receives what a WebSocket at `/pub/CHANNEL` sends, or what is
    /// POSTed there. Each publication has an answer, whose content is ignored.
    Channels,
    /// [`Dialect::Channels`], and two routes more: `/in/CHANNEL` publishes without answers, and `/echo` returns
    /// each message. See `src/bare/main.rs`.
    Bare,
    /// The protocol of NATS inside WebSocket.
    Nats,
}

/// The messages that a client receives.
pub enum Messages {
    /// One message per frame.
    Framed(WebSocket),
    /// Messages of the NATS protocol, independent of the boundaries of frames.
    Nats(Nats),
}

impl Messages {
    /// The messages of a connected socket.
    pub fn of(socket: WebSocket, dialect: Dialect) -> Self {
        match dialect {
            Dialect::Nats => Self::Nats(Nats::of(socket)),
            _ => Self::Framed(socket),
        }
    }

    /// Waits for input and passes each message to `take`, with its time of arrival. Safe to cancel.
    ///
    /// # Errors
    /// The connection has [ended](crate::connection::Ended), the server reports an error or does not
    /// speak the dialect, or `take` fails.
    pub async fn read(&mut self, mut take: impl FnMut(&[u8], Instant) -> Result<()>) -> Result<()> {
        match self {
            Self::Framed(socket) => socket.next(take).await,
            Self::Nats(nats) => {
                let hear = |said: Said, at| match said {
                    Said::Message(message) => take(message, at),
                    said => bail!("{said:?} for a client that only reads"),
                };
                nats.hear(hear).await
            }
        }
    }
}
