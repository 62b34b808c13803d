//! Messages to one client each.

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::back_end::Load;
use crate::consumer::learn_ids;
use crate::delivery::Delivery;
use crate::payload::BYTES_MIN;
use crate::publisher::{Destination, IN_FLIGHT_MAX};
use crate::run::Run;
use crate::target::Target;

/// Several back ends send to their clients in turn, a batch at a time. The next batch follows when all messages
/// are answered.
#[derive(Args, Clone)]
pub struct Send {
    /// Clients, rounded up to the same number for each back end
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Back ends, one connection each
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests that a back end sends at once
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub pipeline: u32,
    /// Messages in total, rounded up to the same number for each client
    #[arg(long, default_value_t = 200_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
    pub messages: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=1_000_000))]
    pub bytes: u32,
    /// Messages per second instead, of all back ends together, whether or not earlier ones are
    /// answered; latencies then count from when a message was due
    #[arg(long, conflicts_with = "pipeline", value_parser = super::rate::parser())]
    pub rate: Option<u32>,
}

impl Send {
    pub fn title(&self) -> String {
        let Self { clients, connections, pipeline, bytes, .. } = self;
        let manner =
            self.rate.map_or(format!("{connections} × {pipeline}"), |it| format!("{it}/s"));
        format!("send: {clients} clients, {bytes} B, {manner}")
    }

    /// Runs the scenario. A latency is the time from writing the request to the arrival at the client.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let clients = self.clients.next_multiple_of(self.connections);
        let sockets = target.connect_many(None, clients).await?;
        let (sockets, ids): (Vec<_>, Vec<_>) =
            learn_ids(target, sockets).await?.into_iter().unzip();
        let delivery = Delivery {
            servers: &[target],
            connections: self.connections,
            load: self.rate.map_or(Load::AtOnce(self.pipeline), Load::PerSecond),
            destinations: ids.into_iter().map(Destination::Client).collect(),
            clients: sockets.into_iter().zip((0..).map(|source| source..source + 1)).collect(),
            each: self.messages.div_ceil(clients),
            bytes: self.bytes,
            counts_receivers: true,
        };
        Ok(delivery.run(deadline).await?.into_run())
    }
}
