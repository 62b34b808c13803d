//! Publishes to many subscribers.

use std::ops::Range;
use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::inbox::{Arrivals, Inbox, stages};
use crate::meter::Meter;
use crate::payload::{BYTES_MIN, Payload};
use crate::publisher::{IN_FLIGHT_MAX, Publisher};
use crate::report::Run;
use crate::server::Target;
use crate::subscribers::Subscribers;
use crate::tasks::until;

/// One back end publishes to one channel, a burst at a time: the next burst follows when every
/// subscriber has got the one before.
#[derive(Args, Clone)]
pub struct Fanout {
    /// Subscribers
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Length of a message; a burst of them has to fit a subscriber's outbound buffer of 1 MiB
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=1_000_000))]
    pub bytes: u32,
    /// Messages to publish
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub messages: u32,
    /// Messages published at once
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub burst: u32,
}

impl Fanout {
    pub fn title(&self) -> String {
        let Self { clients, bytes, burst, .. } = self;
        format!("fan-out: {clients} clients, {bytes} B, {burst} at a time")
    }

    /// A latency is the time from the request's writing to the message's arrival at a subscriber.
    pub async fn run(self, Target { api, edge, pid }: Target, deadline: Instant) -> Result<Run> {
        let [opening, measured, closing] = stages(self.messages);
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..1, self.messages, self.bytes as usize, &arrivals);
        let subscribers = Subscribers::open(edge, self.clients, &inbox, deadline).await?;
        let mut publisher = Publisher::open(api, false).await?;
        until(deadline, self.publish(&mut publisher, opening, &arrivals)).await?;
        let meter = Meter::start(pid)?;
        until(deadline, self.publish(&mut publisher, measured, &arrivals)).await?;
        let cost = meter.stop()?;
        until(deadline, self.publish(&mut publisher, closing, &arrivals)).await?;
        Ok(Run::new(cost, &arrivals.latencies, subscribers.damage().await?))
    }

    async fn publish(
        &self,
        publisher: &mut Publisher,
        numbers: Range<u32>,
        arrivals: &Arrivals,
    ) -> Result<()> {
        for burst in super::bursts(numbers, self.burst) {
            arrivals.expect(burst.len() as u64 * u64::from(self.clients));
            for sequence in burst.clone() {
                let text = Payload::now(0, sequence).text(self.bytes as usize);
                publisher.feed(sequence, &text).await?;
            }
            publisher.flush().await?;
            for sequence in burst {
                let (i, _) = publisher.answer(sequence).await?;
                ensure!(i == sequence, "request {sequence} has the answer to {i}");
            }
            arrivals.all().await;
        }
        Ok(())
    }
}
