//! Many channels with few subscribers each.

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::time::Instant;

use crate::back_end::Load;
use crate::client;
use crate::delivery::Delivery;
use crate::machine;
use crate::payload::BYTES_MIN;
use crate::publisher::{Destination, IN_FLIGHT_MAX};
use crate::run::Run;
use crate::target::Target;
use crate::tasks::in_parallel;

/// Several back ends publish to their channels in turn, a batch at a time. The next batch follows when all
/// messages are answered.
#[derive(Args, Clone)]
pub struct Channels {
    /// Channels, rounded up to the same number for each client and each back end
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub channels: u32,
    /// Subscribers of each channel
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u32).range(1..=10_000))]
    pub subscribers: u32,
    /// Channels of each client; more than one only for servers that accept them in the path
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=1_000))]
    pub per_client: u32,
    /// Back ends, one connection each
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u32).range(1..=10_000))]
    pub connections: u32,
    /// Requests that a back end sends at once
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub pipeline: u32,
    /// Messages in total, rounded up to the same number for each channel
    #[arg(long, default_value_t = 100_000, value_parser = value_parser!(u32).range(1..=100_000_000))]
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

impl Channels {
    pub fn title(&self) -> String {
        let Self { channels, subscribers, per_client, connections, pipeline, .. } = self;
        let manner =
            self.rate.map_or(format!("{connections} × {pipeline}"), |it| format!("{it}/s"));
        let shared = if *per_client > 1 { format!(" of {per_client}") } else { String::new() };
        format!("channels: {channels} × {subscribers} clients{shared}, {manner}")
    }

    /// Runs the scenario. A latency is the time from writing the request to the arrival at a subscriber.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let per_client = self.per_client;
        let groups = self.channels.div_ceil(per_client).next_multiple_of(self.connections);
        machine::check_descriptors_for(groups.saturating_mul(self.subscribers))?;
        let (openers, subscribers) = (client::HANDSHAKES, self.subscribers);
        let opening = in_parallel(0..openers, |opener| async move {
            let mut clients = Vec::new();
            for group in (opener..groups).step_by(openers as usize) {
                let channels = group * per_client..(group + 1) * per_client;
                let names: Vec<_> = channels.clone().map(name).collect();
                for _ in 0..subscribers {
                    let socket = target.connect(Some(&names.join(","))).await?;
                    clients.push((socket, channels.clone()));
                }
            }
            Ok(clients)
        });
        let count = groups * per_client;
        let delivery = Delivery {
            servers: &[target],
            connections: self.connections,
            load: self.rate.map_or(Load::AtOnce(self.pipeline), Load::PerSecond),
            destinations: (0..count).map(|channel| Destination::Channel(name(channel))).collect(),
            clients: opening.await?.into_iter().flatten().collect(),
            each: self.messages.div_ceil(count),
            bytes: self.bytes,
            counts_receivers: true,
        };
        Ok(delivery.run(deadline).await?.into_run())
    }
}

fn name(channel: u32) -> String {
    format!("load-{channel}")
}
