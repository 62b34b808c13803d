//! The kinds of work that a server is measured at.

mod connect;
mod echo;
mod fanout;
mod grid;
mod hostile;
mod ingest;
mod publish;

use anyhow::{Context, Result};
use clap::builder::RangedI64ValueParser;
use clap::{Subcommand, value_parser};
use tokio::time::Instant;

use crate::dialect::Dialect;
use crate::greedy::Peer;
use crate::report::Run;
use crate::server::Target;

/// One kind of work with its figures.
#[derive(Clone, Subcommand)]
pub enum Scenario {
    /// Opens clients: handshakes per second, CPU and user memory of each connection
    Connect(connect::Connect),
    /// Round trips on the echo route, one at a time on each client
    Echo(echo::Echo),
    /// Publishes to many subscribers, each of which is to get all once and in order
    Fanout(fanout::Fanout),
    /// Pipelined mesh.publish of several back ends
    Publish(publish::Publish),
    /// Messages of clients to a back end that consumes their topic
    Ingest(ingest::Ingest),
    /// What it adds that a message crosses nodes: publish and send within one and to others
    Grid(grid::Grid),
    /// What others feel, and what memory does, beside peers that take more than their share
    Hostile(hostile::Hostile),
}

impl Scenario {
    /// The scenarios that it stands for: one, or one for each peer.
    pub fn each(self) -> Vec<Self> {
        match self {
            Self::Hostile(hostile) => hostile.each().into_iter().map(Self::Hostile).collect(),
            Self::Grid(grid) => grid.each().into_iter().map(Self::Grid).collect(),
            one => vec![one],
        }
    }

    /// What it does, with its figures.
    pub fn title(&self) -> String {
        match self {
            Self::Connect(connect) => connect.title(),
            Self::Echo(echo) => echo.title(),
            Self::Fanout(fanout) => fanout.title(),
            Self::Publish(publish) => publish.title(),
            Self::Ingest(ingest) => ingest.title(),
            Self::Grid(grid) => grid.title(),
            Self::Hostile(hostile) => hostile.title(),
        }
    }

    /// What rates, CPU and memory are quoted per.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connection",
            Self::Echo(_) => "echo",
            Self::Fanout(_) => "delivery",
            Self::Publish(_) => "publish",
            Self::Ingest(_) => "message",
            Self::Grid(_) => "delivery",
            Self::Hostile(_) => "probe",
        }
    }

    /// Whether a server that speaks `dialect` can do it.
    pub fn suits(&self, dialect: Dialect) -> bool {
        match self {
            Self::Connect(_) | Self::Fanout(_) => true,
            Self::Publish(publish) => dialect != Dialect::Nats || !publish.http,
            Self::Ingest(_) => dialect != Dialect::Channels,
            Self::Echo(_) | Self::Grid(_) | Self::Hostile(_) => dialect == Dialect::Gridcast,
        }
    }

    /// How many nodes of one grid it needs; 1: a node without a grid.
    pub fn nodes(&self) -> u32 {
        match self {
            Self::Grid(grid) => grid.nodes,
            _ => 1,
        }
    }

    /// Runs it once against [`Scenario::nodes`] nodes, until `deadline` at the longest.
    ///
    /// # Errors
    /// It could not be measured: the server cannot be reached, refuses, has ended, or sends what
    /// nobody asked for.
    pub async fn run(self, nodes: Vec<Target>, deadline: Instant) -> Result<Run> {
        let target = *nodes.first().context("no server")?;
        match self {
            Self::Connect(connect) => connect.run(target, deadline).await,
            Self::Echo(echo) => echo.run(target, deadline).await,
            Self::Fanout(fanout) => fanout.run(target, deadline).await,
            Self::Publish(publish) => publish.run(target, deadline).await,
            Self::Ingest(ingest) => ingest.run(target, deadline).await,
            Self::Grid(grid) => grid.run(&nodes, deadline).await,
            Self::Hostile(hostile) => hostile.run(target, deadline).await,
        }
    }
}

/// The scenarios whose figures are quoted; with `quick`, the same kinds with little work each.
pub fn all(quick: bool) -> Vec<Scenario> {
    let least = |many: u32, few: u32| if quick { few } else { many };
    let connect = |clients, hold| Scenario::Connect(connect::Connect { clients, hold });
    let fanout = |clients, bytes, messages, burst| {
        Scenario::Fanout(fanout::Fanout { clients, bytes, messages, burst, rate: None })
    };
    let publish = |http| {
        Scenario::Publish(publish::Publish {
            connections: 16,
            pipeline: 16,
            requests: least(400_000, 4_000),
            subscribers: 0,
            http,
            rate: None,
        })
    };
    // None are all. A quick look leaves out those that take seconds to show anything.
    let peers = if quick {
        vec![Peer::Nobody, Peer::Pipeline, Peer::Connects, Peer::Pings]
    } else {
        vec![]
    };
    let hostile = hostile::Hostile { peers, time: least(2_000, 200).into() };
    let mut scenarios = vec![
        connect(least(1_000, 100), 0),
        connect(least(15_000, 1_000), least(5, 0).into()),
        Scenario::Echo(echo::Echo { clients: 64, bytes: 130, messages: least(200_000, 2_000) }),
        fanout(1_000, 128, least(500, 10), 1),
        fanout(1_000, 128, least(4_000, 64), 16),
        fanout(least(10_000, 2_000), 128, least(50, 3), 1),
        fanout(100, 16_384, least(2_000, 20), 1),
        publish(false),
        publish(true),
        Scenario::Ingest(ingest::Ingest {
            clients: 100,
            bytes: 128,
            messages: least(200_000, 2_000),
            window: 1,
        }),
    ];
    let grid = grid::Grid {
        kinds: vec![],
        nodes: 2,
        clients: 100,
        bytes: 128,
        messages: least(1_000, 50),
        rate: 200,
    };
    scenarios.extend(Scenario::Grid(grid).each());
    scenarios.extend(Scenario::Hostile(hostile).each());
    scenarios
}

/// Of an option for how many a second.
fn rate() -> RangedI64ValueParser<u32> {
    value_parser!(u32).range(1..=1_000_000)
}
