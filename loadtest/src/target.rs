//! A server under load, and the clients that connect to it in its dialect.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use itoa::Buffer;
use nix::unistd::Pid;

use crate::dialect::{Dialect, TOPIC};
use crate::latency::Latencies;
use crate::nats::{self, Nats};
use crate::web_socket::WebSocket;
use crate::{client, raw};

/// A running server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Address of the API.
    pub api: SocketAddr,
    /// Address of the first edge, with the routes `/ws` and `/echo`.
    pub edge: SocketAddr,
    /// The process whose CPU time and memory are measured.
    pub pid: Pid,
    /// The protocol that the server speaks.
    pub dialect: Dialect,
    /// Whether the edge speaks TLS. The API does not.
    pub tls: bool,
}

impl Target {
    /// Opens a WebSocket on a path of the edge, whose frames begin with `kind`.
    ///
    /// # Errors
    /// The client could not connect, or was refused.
    pub async fn open(&self, path: &str, kind: u8) -> Result<WebSocket> {
        match self.tls {
            true => client::open_over_tls(self.edge, path, kind).await,
            false => client::open(self.edge, path, kind).await,
        }
    }

    /// The same server, for a back end that connects as clients do but without TLS.
    pub fn without_tls(self) -> Self {
        Self { edge: self.api, tls: false, ..self }
    }

    /// Connects a client, subscribed to `channel` if there is one.
    ///
    /// # Errors
    /// The client could not connect, or was refused.
    pub async fn connect(&self, channel: Option<&str>) -> Result<WebSocket> {
        match (self.dialect, channel) {
            (Dialect::Gridcast, None) => self.open("/ws", raw::TEXT).await,
            (Dialect::Gridcast, Some(channel)) => {
                self.open(&format!("/ws?channels={channel}"), raw::TEXT).await
            }
            (Dialect::Bare, None) => self.open(&format!("/in/{TOPIC}"), raw::TEXT).await,
            (Dialect::Channels | Dialect::Bare, channel) => {
                // In this protocol every client has a channel.
                let path = format!("/sub/{}", channel.unwrap_or("none"));
                self.open(&path, raw::TEXT).await
            }
            (Dialect::Nats, channel) => {
                let socket = self.open("/", raw::BINARY).await?;
                Ok(Nats::greet(socket, false, channel).await?.socket)
            }
        }
    }

    /// Connects `count` clients, subscribed to `channel` if there is one.
    ///
    /// # Errors
    /// A client could not be opened, or there are too few descriptors.
    pub async fn connect_many(self, channel: Option<&str>, count: u32) -> Result<Vec<WebSocket>> {
        self.connect_timed(channel, count, &Arc::default()).await
    }

    /// Connects `count` clients as [`Self::connect_many`] does, and records the duration of each
    /// handshake.
    ///
    /// # Errors
    /// A client could not be opened, or there are too few descriptors.
    pub async fn connect_timed(
        self,
        channel: Option<&str>,
        count: u32,
        latencies: &Arc<Latencies>,
    ) -> Result<Vec<WebSocket>> {
        let channel: Option<Arc<str>> = channel.map(Into::into);
        let connect = move || {
            let channel = channel.clone();
            async move { self.connect(channel.as_deref()).await }
        };
        client::open_with(count, latencies, connect).await
    }

    /// Queues a client's message on `socket`. Back ends consume it.
    pub fn feed(&self, socket: &mut WebSocket, text: &[u8]) {
        match self.dialect {
            Dialect::Nats => socket.feed(&nats::publish(TOPIC, text, &mut Buffer::new())),
            _ => socket.feed(&[text]),
        }
    }
}
