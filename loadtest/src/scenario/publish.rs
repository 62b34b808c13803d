//! Pipelined publishes of several back ends.

use std::sync::Arc;

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::back_end::{BackEnd, Load, work};
use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::ledger::Damage;
use crate::meter::Meter;
use crate::publisher::{Destination, IN_FLIGHT_MAX, Publisher};
use crate::run::Run;
use crate::server::Setup;
use crate::subscribers::Subscribers;
use crate::target::Target;

/// The channel of the publishes.
const CHANNEL: &str = "load";

/// Gives the channel a history.
const HISTORY: &str = r#"
[[channel]]
match = "load"
history = 256
"#;

/// The length of a published message in bytes.
const BYTES: usize = 128;

/// Each back end sends a batch of requests, waits for all answers, and sends the next batch.
#[derive(Args, Clone)]
pub struct Publish {
    /// Back ends, one connection each
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests that a back end sends at once
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub pipeline: u32,
    /// Requests in total, rounded up to the same number from each back end
    #[arg(long, default_value_t = 400_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub requests: u32,
    /// Subscribers of the channel
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u32).range(..=100_000))]
    pub subscribers: u32,
    /// POST /v1/mesh/publish on persistent connections instead of WebSocket
    #[arg(long)]
    pub http: bool,
    /// The channel has a history
    #[arg(long)]
    pub history: bool,
    /// Requests per second instead, of all back ends together, whether or not earlier ones are
    /// answered; latencies then count from when a request was due
    #[arg(long, conflicts_with = "pipeline", value_parser = super::rate::parser())]
    pub rate: Option<u32>,
}

impl Publish {
    pub fn title(&self) -> String {
        let over = if self.http { "HTTP" } else { "WebSocket" };
        let Self { connections, pipeline, subscribers, .. } = self;
        let title = match self.rate {
            Some(rate) => format!("publish: {over}, {connections} connections, {rate}/s"),
            None => format!("publish: {over}, {connections} × {pipeline}"),
        };
        let title = if self.history { format!("{title}, with history") } else { title };
        if *subscribers == 0 { title } else { format!("{title}, {subscribers} clients") }
    }

    pub fn setup(&self) -> Setup {
        Setup { config: if self.history { HISTORY } else { "" }, ..Setup::default() }
    }

    /// The title without the rate, if there is one.
    pub fn sweep(&self) -> Option<String> {
        let rate = format!(", {}/s", self.rate?);
        Some(self.title().replace(&rate, ""))
    }

    /// Runs the scenario. A latency is the time from writing a batch to each of its answers. A request whose answer
    /// does not count all subscribers is lost, like a message that does not arrive.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let per_connection = self.requests.div_ceil(self.connections);
        let [opening, measured, closing] = stages(per_connection);
        let sent = closing.end;
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..self.connections, per_connection, BYTES, &arrivals);
        let subscribers =
            Subscribers::open(target, CHANNEL, self.subscribers, &inbox, deadline).await?;
        let (latencies, unmeasured) = (Arc::<Latencies>::default(), Arc::default());
        let load = self.rate.map_or(Load::AtOnce(self.pipeline), Load::PerSecond);
        let back_ends = self.open_back_ends(target).await?;
        let back_ends = work(back_ends, opening, Load::AtOnce(1), &unmeasured, deadline).await?;
        let meter = Meter::start(target.pid)?;
        let back_ends = work(back_ends, measured, load, &latencies, deadline).await?;
        let cost = meter.stop()?;
        let back_ends = work(back_ends, closing, Load::AtOnce(1), &unmeasured, deadline).await?;
        let unanswered: Damage = back_ends.iter().map(|it| it.answers.damage(sent)).sum();
        let damage = [unanswered, subscribers.damage().await?].into_iter().sum();
        Ok(Run::new(cost, &latencies, damage))
    }

    async fn open_back_ends(&self, target: Target) -> Result<Vec<BackEnd>> {
        let to = [Destination::Channel(CHANNEL.into())];
        let mut back_ends = Vec::new();
        for source in 0..self.connections {
            let publisher = Publisher::open(target, &to[0], self.http).await?;
            let mut back_end = BackEnd::new(publisher, to.to_vec(), source, BYTES);
            back_end.reached.s = self.subscribers.into();
            back_ends.push(back_end);
        }
        Ok(back_ends)
    }
}
