//! Messages of devices that are answered once they are on disk.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant as Moment};

use anyhow::{Context, Result, ensure};
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::connection::until_ended;
use crate::dialect::Dialect;
use crate::http::HttpConnection;
use crate::inbox::stages;
use crate::latency::Latencies;
use crate::ledger::{Damage, Ledger};
use crate::meter::Meter;
use crate::payload::{BYTES_MIN, Payload};
use crate::producer::Producer;
use crate::run::Run;
use crate::server::{Disk, Setup};
use crate::target::Target;
use crate::tasks::{in_parallel, until};

/// The length of a write whose sync is timed, in bytes.
const SYNCED_BYTES: usize = 4096;

/// Writes whose syncs are timed.
const SYNCS: usize = 100;

/// Devices push to a topic on disk, and go on when receipts come. Nobody consumes. NATS writes to a stream on disk, which it
/// syncs every two minutes by default.
#[derive(Args, Clone)]
pub struct Store {
    /// Devices that push
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=65_536))]
    pub bytes: u32,
    /// Messages in total, rounded up to the same number from each device
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub messages: u32,
    /// Messages of each device without a receipt at the same time
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=128))]
    pub window: u32,
    /// NATS syncs each message before its receipt too (`sync_interval: always`)
    #[arg(long)]
    pub peer_syncs: bool,
}

/// A producer, and what it knows of its receipts.
struct Sender {
    producer: Producer,
    source: u32,
    receipts: Ledger,
}

impl Store {
    pub fn title(&self) -> String {
        let Self { clients, bytes, window, .. } = self;
        format!("store: {clients} devices × {window}, {bytes} B")
    }

    pub fn setup(&self) -> Setup {
        let disk = if self.peer_syncs { Disk::Synced } else { Disk::Used };
        Setup { disk, ..Setup::default() }
    }

    /// Runs the scenario. A latency is the time from writing a message to its receipt. A message without a receipt is
    /// lost.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let sync = tokio::task::spawn_blocking(time_of_sync).await??;
        Producer::prepare(target).await?;
        let per_client = self.messages.div_ceil(self.clients);
        let [opening, measured, closing] = stages(per_client);
        let sent = closing.end;
        let mut senders = Vec::new();
        for source in 0..self.clients {
            let producer = Producer::open(target, source).await?;
            senders.push(Sender { producer, source, receipts: Ledger::default() });
        }
        let (latencies, unmeasured) = (Arc::<Latencies>::default(), Arc::default());
        let senders = self.work(senders, opening, &unmeasured, deadline).await?;
        let syncs_before = syncs(target).await?;
        let meter = Meter::start(target.pid)?;
        let senders = self.work(senders, measured, &latencies, deadline).await?;
        let cost = meter.stop()?;
        let syncs_after = syncs(target).await?;
        let senders = self.work(senders, closing, &unmeasured, deadline).await?;
        let damage: Damage = senders.iter().map(|sender| sender.receipts.damage(sent)).sum();
        let mut run = Run::new(cost, &latencies, damage)
            .with_figure("a write and its sync alone, median µs", sync.as_secs_f64() * 1e6);
        if let Some((before, after)) = syncs_before.zip(syncs_after) {
            let each = run.units as f64 / (after - before).max(1.0);
            run = run.with_figure("messages a sync", each);
        }
        Ok(run)
    }

    async fn work(
        &self,
        senders: Vec<Sender>,
        numbers: Range<u32>,
        latencies: &Arc<Latencies>,
        deadline: Instant,
    ) -> Result<Vec<Sender>> {
        let (window, bytes) = (self.window as usize, self.bytes as usize);
        let working = in_parallel(senders, |mut sender| {
            let (numbers, latencies) = (numbers.clone(), Arc::clone(latencies));
            async move {
                let pushing = sender.push(numbers, window, bytes, &latencies);
                until(deadline, until_ended(pushing)).await?;
                Ok(sender)
            }
        });
        working.await
    }
}

impl Sender {
    /// Pushes the messages `numbers`, at most `window` without a receipt, and waits for all receipts. Stops if the
    /// connection ends: receipts that have not come are then missing in the ledger.
    async fn push(
        &mut self,
        mut numbers: Range<u32>,
        window: usize,
        bytes: usize,
        latencies: &Latencies,
    ) -> Result<()> {
        let (mut text, mut due, mut sent) = (Vec::new(), numbers.start, VecDeque::new());
        loop {
            while sent.len() < window
                && let Some(number) = numbers.next()
            {
                Payload::now(self.source, number).write(&mut text, bytes);
                self.producer.feed(number, &text);
                sent.push_back(Moment::now());
            }
            if sent.is_empty() {
                return Ok(());
            }
            self.producer.flush().await?;
            let (first, mut received) = (due, 0);
            let take = |number, at: Moment| {
                if self.receipts.observe(number)
                    && let Some(written) = sent.pop_front()
                {
                    received += 1;
                    latencies.record(at.saturating_duration_since(written));
                }
            };
            self.producer.receipts(first, take).await?;
            due += received;
        }
    }
}

/// The median time that a write of 4 KiB and its sync take where temporary files are, as the data of the servers.
fn time_of_sync() -> Result<Duration> {
    let mut file = tempfile::tempfile()?;
    file.write_all(&[0; SYNCED_BYTES])?;
    file.sync_all()?;
    let mut times = Vec::with_capacity(SYNCS);
    for number in 1..=SYNCS {
        let started = Moment::now();
        append(&file, number)?;
        times.push(started.elapsed());
    }
    times.sort_unstable();
    Ok(times[SYNCS / 2])
}

fn append(file: &File, number: usize) -> Result<()> {
    file.write_all_at(&[1; SYNCED_BYTES], (number * SYNCED_BYTES) as u64)?;
    Ok(file.sync_data()?)
}

/// The syncs of the server so far. `None`: it does not count them.
async fn syncs(target: Target) -> Result<Option<f64>> {
    if target.dialect != Dialect::Gridcast {
        return Ok(None);
    }
    let mut connection = HttpConnection::open(target.api).await?;
    connection.feed_get("/metrics");
    connection.flush().await?;
    let metrics = connection.response(|body| Ok(str::from_utf8(body)?.to_owned())).await?;
    let name = "gridcast_disk_sync_seconds_count ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
    let count: f64 = count.with_context(|| format!("/metrics has no {name}"))?;
    ensure!(count > 0.0, "nothing was synced: the topic is not on disk");
    Ok(Some(count))
}
