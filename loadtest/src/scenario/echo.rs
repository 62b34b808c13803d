//! Round trips on the echo route.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::time::Instant;

use super::tls_title;
use crate::client;
use crate::connection::until_ended;
use crate::inbox::{Arrivals, Inbox, stages};
use crate::ledger::Damage;
use crate::meter::Meter;
use crate::payload::{BYTES_MIN, Payload};
use crate::raw;
use crate::run::Run;
use crate::target::Target;
use crate::tasks::{in_parallel, until};
use crate::web_socket::WebSocket;

/// Each client sends a message, waits for its echo, and sends the next.
#[derive(Args, Clone)]
pub struct Echo {
    /// Clients, each with one message in flight
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 130,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=16_777_216))]
    pub bytes: u32,
    /// Messages in total, rounded up to the same number from each client
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub messages: u32,
    /// Clients connect over TLS 1.3, in full each time; the API stays plain
    #[arg(long)]
    pub tls: bool,
}

struct Client {
    socket: WebSocket,
    source: u32,
    inbox: Inbox,
    /// The last message written.
    text: Vec<u8>,
}

impl Echo {
    pub fn title(&self) -> String {
        format!("echo: {} clients, {} B{}", self.clients, self.bytes, tls_title(self.tls))
    }

    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let per_client = self.messages.div_ceil(self.clients);
        let [opening, measured, closing] = stages(per_client);
        let arrivals = Arc::<Arrivals>::default();
        let bytes = self.bytes as usize;
        let open = move || async move { target.open("/echo", raw::TEXT).await };
        let sockets = client::open_with(self.clients, &Arc::default(), open).await?;
        let clients = (0..).zip(sockets).map(|(source, socket)| {
            let inbox = Inbox::new(source..source + 1, per_client, bytes, &arrivals);
            Client { socket, source, inbox, text: Vec::new() }
        });
        let clients = round_trips(clients, opening, bytes, deadline).await?;
        let meter = Meter::start(target.pid)?;
        let clients = round_trips(clients, measured, bytes, deadline).await?;
        let cost = meter.stop()?;
        let clients = round_trips(clients, closing, bytes, deadline).await?;
        let damage: Damage = clients.iter().map(|client| client.inbox.damage()).sum();
        Ok(Run::new(cost, &arrivals.latencies, damage))
    }
}

/// Has every client send the messages `numbers` and wait for their echoes.
async fn round_trips(
    clients: impl IntoIterator<Item = Client>,
    numbers: Range<u32>,
    bytes: usize,
    deadline: Instant,
) -> Result<Vec<Client>> {
    let working = in_parallel(clients, |mut client| {
        let numbers = numbers.clone();
        async move {
            until(deadline, until_ended(client.round_trips(numbers, bytes))).await?;
            Ok(client)
        }
    });
    working.await
}

impl Client {
    /// Sends the messages `numbers` and waits for each echo. Stops if the connection ends: the missing echoes are
    /// then missing in the inbox.
    async fn round_trips(&mut self, numbers: Range<u32>, bytes: usize) -> Result<()> {
        for sequence in numbers {
            Payload::now(self.source, sequence).write(&mut self.text, bytes);
            self.socket.feed(&[&self.text]);
            self.socket.flush().await?;
            while self.socket.next(|text, at| self.inbox.take(text, at)).await?.sequence < sequence
            {
            }
        }
        Ok(())
    }
}
