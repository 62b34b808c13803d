//! Messages between nodes of a grid, compared with messages within a node.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum, value_parser};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::back_end::Load;
use crate::consumer::learn_ids;
use crate::delivery::{Delivered, Delivery};
use crate::http::HttpConnection;
use crate::payload::BYTES_MIN;
use crate::publisher::{Destination, IN_FLIGHT_MAX};
use crate::run::Run;
use crate::target::Target;
use crate::tasks::until;

/// Interval between two checks whether all nodes are connected.
const LOOK: Duration = Duration::from_millis(20);

/// How a back end addresses its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Publishes to a channel of all clients
    Publish,
    /// Sends to each client in turn
    Send,
}

/// A back end at the first node reaches clients of that node, then the same number of clients of the other
/// nodes, and then as many of each node, at a constant rate, whether or not earlier messages have arrived.
#[derive(Args, Clone)]
pub struct Grid {
    /// Ways to address clients, each against a fresh grid [default: all]
    #[arg(long, value_enum, value_name = "KIND,…", value_delimiter = ',')]
    pub kinds: Vec<Kind>,
    /// Nodes, all started here, each with one shard
    #[arg(long, default_value_t = 2, value_parser = value_parser!(u32).range(2..=16))]
    pub nodes: u32,
    /// Clients of the first node, then of all other nodes together, spread evenly, and then of each node
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Length of a message in bytes
    #[arg(long, default_value_t = 128,
          value_parser = value_parser!(u32).range(BYTES_MIN as i64..=1_000_000))]
    pub bytes: u32,
    /// Messages to publish, or to send in total, rounded up to the same number for each client
    #[arg(long, default_value_t = 1_000, value_parser = value_parser!(u32).range(1..=10_000_000))]
    pub messages: u32,
    /// Messages per second
    #[arg(long, default_value_t = 200, value_parser = super::rate::parser())]
    pub rate: u32,
    /// Requests at once instead, the next ones when all are answered: for the CPU of a busy node
    #[arg(long, conflicts_with = "rate", value_parser = value_parser!(u32).range(1..=IN_FLIGHT_MAX))]
    pub pipeline: Option<u32>,
}

/// The answer of `/v1/nodes`.
#[derive(Deserialize)]
struct Nodes {
    nodes: Vec<serde::de::IgnoredAny>,
}

impl Grid {
    /// One scenario for each way to address clients.
    pub fn each(self) -> Vec<Self> {
        let all = || Kind::value_variants().to_vec();
        let kinds = if self.kinds.is_empty() { all() } else { self.kinds.clone() };
        kinds.into_iter().map(|kind| Self { kinds: vec![kind], ..self.clone() }).collect()
    }

    fn kind(&self) -> Kind {
        self.kinds.first().copied().unwrap_or(Kind::Publish)
    }

    pub fn title(&self) -> String {
        let Self { nodes, clients, bytes, rate, .. } = self;
        let manner = self.pipeline.map_or(format!("{rate}/s"), |it| format!("{it} at once"));
        let what = match self.kind() {
            Kind::Publish => "publish",
            Kind::Send => "send",
        };
        format!("grid of {nodes}: {what}, {clients} clients, {bytes} B, {manner}")
    }

    /// Runs the scenario. A latency is the time from when a message was due (or was written) to its arrival at a
    /// client of another node. The figures are the difference to clients of the back end's own node.
    pub async fn run(self, nodes: &[Target], deadline: Instant) -> Result<Run> {
        let meeting = until(deadline, wait_for_all(nodes)).await?;
        meeting.context("the nodes did not find each other in time")?;
        let (first, others) = nodes.split_first().context("a grid has nodes")?;
        let within = self.leg(nodes, &[*first], self.clients, "within", deadline).await?;
        let of_each = self.clients.div_ceil(others.len() as u32);
        let across = self.leg(nodes, others, of_each, "across", deadline).await?;
        let everywhere = self.leg(nodes, nodes, self.clients, "everywhere", deadline).await?;
        let [near, far] = [&within, &across].map(|leg| leg.arrivals.latencies.percentiles_us());
        let damage = [within.damage, across.damage, everywhere.damage].into_iter().sum();
        let cpu = |leg: &Delivered, node: usize| {
            leg.cost.server_cpu[node].as_secs_f64() * 1e6 / leg.arrivals.latencies.count() as f64
        };
        let mut run = Run::new(across.cost.clone(), &across.arrivals.latencies, damage)
            .with_figure("within the node, p50 µs", near.p50)
            .with_figure("within the node, p99 µs", near.p99)
            .with_figure("added across, p50 µs", far.p50 - near.p50)
            .with_figure("added across, p99 µs", far.p99 - near.p99)
            .with_figure("within the node, CPU µs/delivery of node 1", cpu(&within, 0));
        let of_all = |leg: &Delivered| (0..nodes.len()).map(|node| cpu(leg, node)).sum::<f64>();
        let ratio = of_all(&everywhere) / of_all(&within);
        run = run
            .with_figure("of all nodes, CPU µs/delivery", of_all(&everywhere))
            .with_figure("of all nodes, CPU of a delivery by that within the node", ratio);
        for node in 0..nodes.len() {
            let name = format!("across, CPU µs/delivery of node {}", node + 1);
            run = run.with_figure(name, cpu(&across, node));
        }
        Ok(run)
    }

    /// Sends messages from the first of `nodes` to so many clients of each of `to`.
    async fn leg(
        &self,
        nodes: &[Target],
        to: &[Target],
        count: u32,
        channel: &str,
        deadline: Instant,
    ) -> Result<Delivered> {
        let (mut clients, mut ids) = (Vec::new(), Vec::new());
        for node in to {
            let opened = node.connect_many(Some(channel), count).await?;
            for (client, id) in learn_ids(*node, opened).await? {
                clients.push(client);
                ids.push(Destination::Client(id));
            }
        }
        let (destinations, clients): (_, Vec<_>) = match self.kind() {
            Kind::Publish => {
                let clients = clients.into_iter().map(|client| (client, 0..1)).collect();
                (vec![Destination::Channel(channel.into())], clients)
            }
            Kind::Send => {
                let sources = (0..).map(|source| source..source + 1);
                (ids, clients.into_iter().zip(sources).collect())
            }
        };
        let delivery = Delivery {
            servers: nodes,
            connections: 1,
            load: self.pipeline.map_or(Load::PerSecond(self.rate), Load::AtOnce),
            each: self.messages.div_ceil(destinations.len() as u32),
            destinations,
            clients,
            bytes: self.bytes,
            counts_receivers: true,
        };
        delivery.run(deadline).await
    }
}

/// Waits until each node knows all nodes.
async fn wait_for_all(nodes: &[Target]) -> Result<()> {
    for node in nodes {
        let mut connection = HttpConnection::open(node.api).await?;
        loop {
            connection.feed_get("/v1/nodes");
            connection.flush().await?;
            let parse = |body: &[u8]| Ok(serde_json::from_slice::<Nodes>(body)?.nodes.len());
            if connection.response(parse).await? == nodes.len() {
                break;
            }
            sleep(LOOK).await;
        }
    }
    Ok(())
}
