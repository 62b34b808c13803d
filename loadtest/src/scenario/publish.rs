//! Pipelined publishes of several back ends.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::ledger::{Damage, Ledger};
use crate::meter::Meter;
use crate::payload::Payload;
use crate::publisher::{IN_FLIGHT_MAX, Publisher, Tally};
use crate::report::Run;
use crate::server::Target;
use crate::subscribers::Subscribers;
use crate::tasks::{in_parallel, until};

/// Length of a published message in bytes.
const BYTES: usize = 128;

/// Each back end sends some requests at once, waits for all their answers, and sends the next.
#[derive(Args, Clone)]
pub struct Publish {
    /// Back ends, one connection each
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests that a back end sends at once
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub pipeline: u32,
    /// Requests in all, rounded up to as many from each back end
    #[arg(long, default_value_t = 400_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub requests: u32,
    /// Subscribers of the channel
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u32).range(..=100_000))]
    pub subscribers: u32,
    /// POST /v1/mesh/publish on connections kept alive instead of WebSocket
    #[arg(long)]
    pub http: bool,
}

struct BackEnd {
    publisher: Publisher,
    source: u32,
    pipeline: u32,
    subscribers: u32,
    answers: Ledger,
}

impl Publish {
    pub fn title(&self) -> String {
        let over = if self.http { "HTTP" } else { "WebSocket" };
        let Self { connections, pipeline, subscribers, .. } = self;
        let title = format!("publish: {over}, {connections} × {pipeline}");
        if *subscribers == 0 { title } else { format!("{title}, {subscribers} clients") }
    }

    /// A latency is the time from the writing of a batch to each of its answers. A request that is
    /// not answered with all subscribers reached counts as lost, like a message that did not come.
    pub async fn run(self, Target { api, edge, pid }: Target, deadline: Instant) -> Result<Run> {
        let per_connection = self.requests.div_ceil(self.connections);
        let [opening, measured, closing] = stages(per_connection);
        let sent = closing.end;
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..self.connections, per_connection, BYTES, &arrivals);
        let subscribers = Subscribers::open(edge, self.subscribers, &inbox, deadline).await?;
        let (latencies, unmeasured) = (Arc::<Latencies>::default(), Arc::default());
        let back_ends = self.open_back_ends(api).await?;
        let back_ends = publish(back_ends, opening, &unmeasured, deadline).await?;
        let meter = Meter::start(pid)?;
        let back_ends = publish(back_ends, measured, &latencies, deadline).await?;
        let cost = meter.stop()?;
        let back_ends = publish(back_ends, closing, &unmeasured, deadline).await?;
        let unanswered: Damage = back_ends.iter().map(|it| it.answers.damage(sent)).sum();
        let damage = [unanswered, subscribers.damage().await?].into_iter().sum();
        Ok(Run::new(cost, &latencies, damage))
    }

    async fn open_back_ends(&self, api: SocketAddr) -> Result<Vec<BackEnd>> {
        let mut back_ends = Vec::new();
        for source in 0..self.connections {
            back_ends.push(BackEnd {
                publisher: Publisher::open(api, self.http).await?,
                source,
                pipeline: self.pipeline,
                subscribers: self.subscribers,
                answers: Ledger::default(),
            });
        }
        Ok(back_ends)
    }
}

/// Has every back end publish the messages `numbers`.
async fn publish(
    back_ends: Vec<BackEnd>,
    numbers: Range<u32>,
    latencies: &Arc<Latencies>,
    deadline: Instant,
) -> Result<Vec<BackEnd>> {
    let publishing = in_parallel(back_ends, |mut back_end| {
        let (numbers, latencies) = (numbers.clone(), Arc::clone(latencies));
        async move {
            until(deadline, back_end.publish(numbers, &latencies)).await?;
            Ok(back_end)
        }
    });
    publishing.await
}

impl BackEnd {
    async fn publish(&mut self, numbers: Range<u32>, latencies: &Latencies) -> Result<()> {
        let all = Tally { s: self.subscribers.into(), f: 0 };
        for batch in super::bursts(numbers, self.pipeline) {
            let (written, end) = (Instant::now(), batch.end);
            for sequence in batch.clone() {
                let text = Payload::now(self.source, sequence).text(BYTES);
                self.publisher.feed(sequence, &text).await?;
            }
            self.publisher.flush().await?;
            for sequence in batch {
                let (i, tally) = self.publisher.answer(sequence).await?;
                ensure!(i < end, "an answer to request {i}, which was not sent");
                latencies.record(written.elapsed());
                if tally == all {
                    self.answers.observe(i);
                }
            }
        }
        Ok(())
    }
}
