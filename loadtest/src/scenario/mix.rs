//! All kinds of work at once, while clients connect and disconnect.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, value_parser};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::back_end::Load;
use crate::connection::until_ended;
use crate::consumer::Consumer;
use crate::delivery::Delivery;
use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::ledger::{Damage, Ledger};
use crate::pace::Pace;
use crate::payload::Payload;
use crate::publisher::Destination;
use crate::run::Run;
use crate::target::Target;
use crate::tasks::{in_parallel, until};
use crate::web_socket::WebSocket;

const CHANNEL: &str = "load";

/// The length of every message in bytes.
const BYTES: usize = 128;

/// Clients that send to the consumer.
const SENDERS: u32 = 100;

/// How long a visiting client stays.
const STAY: Duration = Duration::from_secs(1);

/// One back end publishes to clients that stay, other clients join the same channel and leave after a second,
/// and further clients send to a back end that consumes: each at its own rate, whether or not earlier work is
/// done.
#[derive(Args, Clone)]
pub struct Mix {
    /// Clients that stay
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Duration in seconds
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=3600))]
    pub time: u32,
    /// Messages published per second
    #[arg(long, default_value_t = 20, value_parser = super::rate::parser())]
    pub publish: u32,
    /// Messages of all clients per second
    #[arg(long, default_value_t = 2_000, value_parser = super::rate::parser())]
    pub ingest: u32,
    /// Clients that join, and that leave, per second
    #[arg(long, default_value_t = 100, value_parser = super::rate::parser())]
    pub churn: u32,
}

/// The outcome of the clients that joined and left.
#[derive(Default)]
struct Churn {
    handshakes: Latencies,
    damage: Mutex<Damage>,
}

impl Mix {
    pub fn title(&self) -> String {
        let Self { clients, publish, ingest, churn, .. } = self;
        format!("mix: {clients} × {publish}/s, {ingest}/s in, {churn}/s come and go")
    }

    /// Runs the scenario. A latency is the time from when a publish was due to its arrival at a client that stays. A
    /// client that has left must have received every message between its first and its last, once and in
    /// order.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let sockets = target.connect_many(Some(CHANNEL), self.clients).await?;
        let delivery = Delivery {
            servers: &[target],
            connections: 1,
            load: Load::PerSecond(self.publish),
            destinations: vec![Destination::Channel(CHANNEL.into())],
            clients: sockets.into_iter().map(|socket| (socket, 0..1)).collect(),
            each: self.publish * self.time,
            bytes: BYTES as u32,
            // Clients that join and leave add to the number of subscribers.
            counts_receivers: false,
        };
        let churn = Arc::<Churn>::default();
        let churning = come_and_go(self.clone(), target, Arc::clone(&churn));
        let (delivered, ingested, churned) = tokio::join!(
            delivery.run(deadline),
            self.ingest(target, deadline),
            until(deadline, churning),
        );
        let (delivered, (ingested, ingest_damage)) = (delivered?, ingested?);
        churned?;
        let churn_damage = *churn.damage.lock().unwrap_or_else(PoisonError::into_inner);
        let damage = [delivered.damage, ingest_damage, churn_damage].into_iter().sum();
        let mut run = Run::new(delivered.cost, &delivered.arrivals.latencies, damage);
        for (name, latencies) in
            [("handshake", &churn.handshakes), ("to the consumer", &ingested.latencies)]
        {
            let latency_us = latencies.percentiles_us();
            run = run
                .with_figure(format!("{name}, number"), latencies.count() as f64)
                .with_figure(format!("{name}, p50 µs"), latency_us.p50)
                .with_figure(format!("{name}, p99 µs"), latency_us.p99);
        }
        Ok(run)
    }

    /// Has clients send to a consumer.
    async fn ingest(&self, target: Target, deadline: Instant) -> Result<(Arc<Arrivals>, Damage)> {
        let each = (self.ingest * self.time).div_ceil(SENDERS);
        let arrivals = Arc::<Arrivals>::default();
        let [_, _, closing] = stages(each);
        let mut inbox = Inbox::new(0..SENDERS, each, BYTES, &arrivals);
        let mut consumer = Consumer::open(target).await?;
        let sockets = target.connect_many(None, SENDERS).await?;
        let paces = Pace::start(self.ingest, SENDERS, closing.end);
        let sending = in_parallel(
            (0..).zip(sockets).zip(paces),
            move |((source, mut socket), pace)| async move {
                until(deadline, send(&mut socket, target, source, pace, closing.end)).await?;
                Ok(socket)
            },
        );
        let consuming = async {
            while !inbox.is_complete() {
                consumer.read(|data, _, at| inbox.take(data, at).map(drop)).await?;
            }
            Ok(())
        };
        let (senders, consumed) = tokio::join!(sending, until(deadline, until_ended(consuming)));
        let _until_all_is_consumed = senders?;
        consumed?;
        Ok((arrivals, inbox.damage()))
    }
}

async fn send(
    socket: &mut WebSocket,
    target: Target,
    source: u32,
    mut pace: Pace,
    count: u32,
) -> Result<()> {
    let (mut sent, mut text) = (0, Vec::new());
    while sent < count {
        for number in pace.next().await? {
            Payload::at(source, number, pace.instant(number)).write(&mut text, BYTES);
            target.feed(socket, &text);
            socket.flush().await?;
            sent = number + 1;
        }
    }
    Ok(())
}

/// Has clients join, each when it is due, stay for a while, and leave.
async fn come_and_go(mix: Mix, target: Target, churn: Arc<Churn>) -> Result<()> {
    let count = mix.churn * mix.time;
    let mut pace = Pace::start(mix.churn, 1, count).remove(0);
    let (mut visits, mut come) = (JoinSet::new(), 0);
    while come < count {
        for number in pace.next().await? {
            visits.spawn(visit(target, pace.instant(number), Arc::clone(&churn)));
            come = number + 1;
        }
    }
    while let Some(visit) = visits.join_next().await {
        visit.map_err(|_| anyhow!("a visit panicked"))??;
    }
    Ok(())
}

async fn visit(target: Target, due: std::time::Instant, churn: Arc<Churn>) -> Result<()> {
    let mut socket = target.connect(Some(CHANNEL)).await?;
    churn.handshakes.record(due.elapsed());
    let mut ledger = None;
    let reading = async {
        loop {
            let payload = socket.next(|text, _| Ok(Payload::parse(text, BYTES)));
            let payload = payload.await.context("a client that came and went")?;
            let sequence = payload.context("not what was published")?.sequence;
            ledger.get_or_insert_with(|| Ledger::from(sequence)).observe(sequence);
        }
    };
    if let Ok(ended) = timeout(STAY, reading).await {
        return ended;
    }
    if let Some(ledger) = ledger {
        // The client had left when later messages were published.
        *churn.damage.lock().unwrap_or_else(PoisonError::into_inner) += ledger.damage(0);
    }
    Ok(())
}
