//! Messages of clients to a back end that consumes their topic.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Args, value_parser};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::tls_title;
use crate::connection::until_ended;
use crate::consumer::Consumer;
use crate::inbox::{Arrivals, Inbox, stages};
use crate::meter::Meter;
use crate::payload::{BYTES_MIN, Payload};
use crate::run::Run;
use crate::target::Target;
use crate::tasks::{in_parallel, until};
use crate::web_socket::WebSocket;

/// Clients send and one back end consumes. A client continues when its messages have been consumed.
#[derive(Args, Clone)]
pub struct Ingest {
    /// Clients that send
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=65_536))]
    pub bytes: u32,
    /// Messages in total, rounded up to the same number from each client
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub messages: u32,
    /// Messages of each client in flight at the same time
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=65_536))]
    pub window: u32,
    /// Clients connect over TLS 1.3, in full each time; the API stays plain
    #[arg(long)]
    pub tls: bool,
}

struct Sender {
    target: Target,
    socket: WebSocket,
    source: u32,
    /// The last message written.
    text: Vec<u8>,
    /// Messages that the client may send now.
    window: Arc<Semaphore>,
}

impl Ingest {
    pub fn title(&self) -> String {
        let Self { clients, bytes, window, .. } = self;
        let tls = tls_title(self.tls);
        format!("ingest: {clients} clients × {window}, {bytes} B{tls}")
    }

    /// Runs the scenario. A latency is the time from sending a message to the arrival of its event at the
    /// consumer.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let per_client = self.messages.div_ceil(self.clients);
        let bytes = self.bytes as usize;
        let [opening, measured, closing] = stages(per_client);
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..self.clients, per_client, bytes, &arrivals);
        let (senders, windows) = self.open_senders(target).await?;
        let consumer = until(deadline, Consumer::open(target)).await?;
        let consumer = consumer.context("queue.pop was not answered in time")?;
        let consumer = tokio::spawn(consume(consumer, inbox, windows, deadline));
        let senders = send(senders, opening, bytes, &arrivals, deadline).await?;
        let meter = Meter::start(target.pid)?;
        let senders = send(senders, measured, bytes, &arrivals, deadline).await?;
        let cost = meter.stop()?;
        // Kept open until all messages are consumed.
        let _senders = send(senders, closing, bytes, &arrivals, deadline).await?;
        Ok(Run::new(cost, &arrivals.latencies, consumer.await??.damage()))
    }

    async fn open_senders(&self, target: Target) -> Result<(Vec<Sender>, Vec<Arc<Semaphore>>)> {
        let sockets = target.connect_many(None, self.clients).await?;
        let senders: Vec<_> = (0..)
            .zip(sockets)
            .map(|(source, socket)| {
                let window = Arc::new(Semaphore::new(self.window as usize));
                Sender { target, socket, source, text: Vec::new(), window }
            })
            .collect();
        let windows = senders.iter().map(|sender| Arc::clone(&sender.window)).collect();
        Ok((senders, windows))
    }
}

/// Receives all events, and lets the sender of each send another message.
async fn consume(
    mut consumer: Consumer,
    mut inbox: Inbox,
    windows: Vec<Arc<Semaphore>>,
    deadline: Instant,
) -> Result<Inbox> {
    let consuming = async {
        while !inbox.is_complete() {
            let take = |data: &[u8], _: &[u8], at| {
                let payload = inbox.take(data, at)?;
                windows[payload.source as usize].add_permits(1);
                Ok(())
            };
            consumer.read(take).await?;
        }
        Ok(())
    };
    until(deadline, until_ended(consuming)).await?;
    Ok(inbox)
}

/// Has every client send the messages `numbers` and waits until all have been consumed.
async fn send(
    senders: Vec<Sender>,
    numbers: Range<u32>,
    bytes: usize,
    arrivals: &Arrivals,
    deadline: Instant,
) -> Result<Vec<Sender>> {
    arrivals.expect(senders.len() as u64 * numbers.len() as u64);
    let sending = in_parallel(senders, |mut sender| {
        let numbers = numbers.clone();
        async move {
            until(deadline, until_ended(sender.send(numbers, bytes))).await?;
            Ok(sender)
        }
    });
    let senders = sending.await?;
    arrivals.all_before(deadline).await;
    Ok(senders)
}

impl Sender {
    /// Sends the messages `numbers`, as allowed. Stops if the connection ends: unsent messages are then missing at
    /// the consumer.
    async fn send(&mut self, numbers: Range<u32>, bytes: usize) -> Result<()> {
        for sequence in numbers {
            self.window.acquire().await?.forget();
            Payload::now(self.source, sequence).write(&mut self.text, bytes);
            self.target.feed(&mut self.socket, &self.text);
            self.socket.flush().await?;
        }
        Ok(())
    }
}
