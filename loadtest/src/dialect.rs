//! How servers are spoken to: where clients connect, what a message looks like.

use std::time::Instant;

use anyhow::{Result, bail};
use itoa::Buffer;

use crate::nats::{self, Nats, Said};
use crate::server::Target;
use crate::web_socket::WebSocket;
use crate::{client, raw};

/// Where the messages of clients go.
pub const TOPIC: &str = "messages";

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// The protocol of gridcast.
    Gridcast,
    /// A WebSocket at `/sub/CHANNEL` gets what a WebSocket at `/pub/CHANNEL` says, or what is POSTed
    /// there; each publication is answered. Nobody asks what the answer says.
    Channels,
    /// The protocol of NATS inside WebSocket.
    Nats,
}

/// The messages that come to a client.
pub enum Messages {
    /// One in each frame.
    Framed(WebSocket),
    /// In frames that are not theirs.
    Nats(Nats),
}

impl Target {
    /// Connects a client, subscribed to `channel` if one is named.
    ///
    /// # Errors
    /// It could not connect, or was refused.
    pub async fn connect(&self, channel: Option<&str>) -> Result<WebSocket> {
        match (self.dialect, channel) {
            (Dialect::Gridcast, None) => client::open(self.edge, "/ws", raw::TEXT).await,
            (Dialect::Gridcast, Some(channel)) => {
                client::open(self.edge, &format!("/ws?channels={channel}"), raw::TEXT).await
            }
            (Dialect::Channels, channel) => {
                // There is no client without a channel.
                let path = format!("/sub/{}", channel.unwrap_or("none"));
                client::open(self.edge, &path, raw::TEXT).await
            }
            (Dialect::Nats, channel) => {
                let socket = client::open(self.edge, "/", raw::BINARY).await?;
                Ok(Nats::greet(socket, false, channel).await?.socket)
            }
        }
    }

    /// Adds a client's message, for back ends that consume them, to what `socket` sends next.
    pub fn feed(&self, socket: &mut WebSocket, text: &[u8]) {
        match self.dialect {
            Dialect::Nats => socket.feed(&nats::publish(TOPIC, text, &mut Buffer::new())),
            _ => socket.feed(&[text]),
        }
    }
}

impl Messages {
    /// Those that come on `socket`, which `target` has connected.
    pub fn of(socket: WebSocket, target: Target) -> Self {
        match target.dialect {
            Dialect::Nats => Self::Nats(Nats::of(socket)),
            _ => Self::Framed(socket),
        }
    }

    /// Waits until something comes and shows `take` each message of it, and when it had come. May be
    /// given up at any time: nothing is lost.
    ///
    /// # Errors
    /// The connection has [ended](crate::connection::Ended), the server reports an error or does not
    /// speak the dialect, or those of `take`.
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
