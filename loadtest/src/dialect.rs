//! How servers are spoken to: where clients connect, what a message looks like.

use anyhow::{Context, Result, ensure};
use async_tungstenite::tungstenite::{Message, Utf8Bytes};
use itoa::Buffer;

use crate::client::{self, Socket};
use crate::nats::{self, Received, Said};
use crate::server::Target;

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
pub struct Messages {
    socket: Socket,
    dialect: Dialect,
    received: Received,
}

impl Target {
    /// Connects a client, subscribed to `channel` if one is named.
    ///
    /// # Errors
    /// It could not connect, or was refused.
    pub async fn connect(&self, channel: Option<&str>, read_buffer_bytes: usize) -> Result<Socket> {
        let path = match (self.dialect, channel) {
            (Dialect::Gridcast, None) => "/ws".into(),
            (Dialect::Gridcast, Some(channel)) => format!("/ws?channels={channel}"),
            // There is no client without a channel.
            (Dialect::Channels, channel) => format!("/sub/{}", channel.unwrap_or("none")),
            (Dialect::Nats, _) => "/".into(),
        };
        let mut socket = client::open(self.edge, &path, read_buffer_bytes).await?;
        if self.dialect == Dialect::Nats {
            greet(&mut socket, false, channel).await?;
        }
        Ok(socket)
    }

    /// A client's message, for back ends that consume them.
    pub fn client_message(&self, text: String) -> Message {
        match self.dialect {
            Dialect::Nats => {
                let mut room = Buffer::new();
                nats::frame(nats::publish(TOPIC, text.as_bytes(), &mut room).concat())
            }
            _ => Message::text(text),
        }
    }
}

impl Messages {
    /// Those that come on `socket`, which `target` has connected.
    pub fn of(socket: Socket, target: Target) -> Self {
        Self { socket, dialect: target.dialect, received: Received::default() }
    }

    /// The next one; `None` once the connection has ended, or brings what is not a message.
    ///
    /// # Errors
    /// The server reports an error, or does not speak the dialect.
    pub async fn next(&mut self) -> Result<Option<Utf8Bytes>> {
        if self.dialect != Dialect::Nats {
            return Ok(client::next_text(&mut self.socket).await);
        }
        match self.received.next(&mut self.socket).await? {
            Some(Said::Message(text)) => Ok(Some(text)),
            _ => Ok(None),
        }
    }
}

/// Introduces a connection to NATS, with every command answered if `verbose`, and waits until it is
/// subscribed to `channel` if one is named.
///
/// # Errors
/// It was refused.
pub async fn greet(socket: &mut Socket, verbose: bool, channel: Option<&str>) -> Result<()> {
    let mut commands = nats::connect(verbose);
    if let Some(channel) = channel {
        commands += &format!("SUB {channel} 1\r\n");
    }
    commands += "PING\r\n";
    socket.send(nats::frame(commands)).await?;
    let mut received = Received::default();
    loop {
        let said = received.next(socket).await?.context("the server ended the connection")?;
        match said {
            Said::Pong => break,
            said => ensure!(said == Said::Ok, "a message before anything was published"),
        }
    }
    ensure!(received.is_empty(), "a message before anything was published");
    Ok(())
}
