//! Publishes to many subscribers.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::time::Instant;

use super::tls_title;
use crate::back_end::{BackEnd, bursts};
use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::meter::Meter;
use crate::pace::Pace;
use crate::payload::BYTES_MIN;
use crate::publisher::{Destination, IN_FLIGHT_MAX, Publisher};
use crate::run::Run;
use crate::subscribers::Subscribers;
use crate::target::Target;
use crate::tasks::until;

/// The channel of all subscribers.
const CHANNEL: &str = "load";

/// One back end publishes to one channel, a burst at a time. The next burst follows when every subscriber has
/// received the previous one.
#[derive(Args, Clone)]
pub struct Fanout {
    /// Subscribers
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Length of a message in bytes; a burst has to fit a subscriber's outbound buffer of 1 MiB
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=1_000_000))]
    pub bytes: u32,
    /// Messages to publish
    #[arg(long, default_value_t = 500, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub messages: u32,
    /// Messages published at once
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub burst: u32,
    /// Messages per second instead, whether or not earlier ones have arrived; latencies then count
    /// from when a message was due
    #[arg(long, conflicts_with = "burst", value_parser = super::rate::parser())]
    pub rate: Option<u32>,
    /// Clients connect over TLS 1.3, in full each time; the API stays plain
    #[arg(long)]
    pub tls: bool,
}

impl Fanout {
    pub fn title(&self) -> String {
        let Self { clients, bytes, burst, .. } = self;
        let manner = self.rate.map_or(format!("{burst} at a time"), |rate| format!("{rate}/s"));
        let tls = tls_title(self.tls);
        format!("fan-out: {clients} clients, {bytes} B, {manner}{tls}")
    }

    /// Runs the scenario. A latency is the time from the start of writing a burst to the arrival of a message at
    /// a subscriber.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let [opening, measured, closing] = stages(self.messages);
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..1, self.messages, self.bytes as usize, &arrivals);
        let subscribers =
            Subscribers::open(target, CHANNEL, self.clients, &inbox, deadline).await?;
        let to = Destination::Channel(CHANNEL.into());
        let publisher = Publisher::open(target, &to, false).await?;
        let mut back_end = BackEnd::new(publisher, vec![to], 0, self.bytes as usize);
        until(deadline, self.publish(&mut back_end, opening, &arrivals)).await?;
        let meter = Meter::start(target.pid)?;
        until(deadline, self.publish(&mut back_end, measured, &arrivals)).await?;
        let cost = meter.stop()?;
        until(deadline, self.publish(&mut back_end, closing, &arrivals)).await?;
        Ok(Run::new(cost, &arrivals.latencies, subscribers.damage().await?))
    }

    async fn publish(
        &self,
        back_end: &mut BackEnd,
        numbers: Range<u32>,
        arrivals: &Arrivals,
    ) -> Result<()> {
        let answers = Latencies::default();
        if let Some(rate) = self.rate {
            arrivals.expect(numbers.len() as u64 * u64::from(self.clients));
            let pace = Pace::start(rate, 1, numbers.len() as u32).remove(0);
            back_end.work_at(numbers, pace, &answers).await?;
            arrivals.all().await;
            return Ok(());
        }
        for burst in bursts(numbers, self.burst) {
            arrivals.expect(burst.len() as u64 * u64::from(self.clients));
            back_end.work(burst, self.burst, &answers).await?;
            arrivals.all().await;
        }
        Ok(())
    }
}
