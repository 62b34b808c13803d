//! The kinds of work for which a server is measured.

mod channels;
mod connect;
mod echo;
mod fanout;
mod grid;
mod hostile;
mod ingest;
mod mix;
mod observed;
mod publish;
mod rate;
mod reconnect;
mod send;
mod store;
mod sweep;
mod unrelated;

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use tokio::time::Instant;

use crate::attack::Attack;
use crate::dialect::Dialect;
use crate::run::Run;
use crate::server::Setup;
use crate::target::Target;

/// One kind of work with its options.
#[derive(Clone, Subcommand)]
pub enum Scenario {
    /// Opens clients: handshakes per second, CPU and user memory of each connection
    Connect(connect::Connect),
    /// Round trips on the echo route, one at a time on each client
    Echo(echo::Echo),
    /// Publishes to many subscribers, each of which must receive all once and in order
    Fanout(fanout::Fanout),
    /// Pipelined mesh.publish of several back ends
    Publish(publish::Publish),
    /// Publishes at one rate after another: throughput against latency
    Sweep(sweep::Sweep),
    /// Pipelined mesh.send of several back ends, each message to one client
    Send(send::Send),
    /// Publishes to many channels with few subscribers each
    Channels(channels::Channels),
    /// Messages of clients to a back end that consumes their topic
    Ingest(ingest::Ingest),
    /// Messages of devices that are answered once they are on disk
    Store(store::Store),
    /// Devices that come back all at once, and recover what they have missed
    Reconnect(reconnect::Reconnect),
    /// Publishes, messages of clients, and clients that join and leave, all at once
    Mix(mix::Mix),
    /// The additional cost of other nodes: publish and send within a node and to others
    Grid(grid::Grid),
    /// Delays of other messages during a continuous fan-out
    Unrelated(unrelated::Unrelated),
    /// The cost of operators who list clients without pause and have taps open, during a fan-out
    Observed(observed::Observed),
    /// Delays of other messages, and memory, beside greedy peers and under attacks
    Hostile(hostile::Hostile),
}

impl Scenario {
    /// The scenarios to run: this one, or one for each of its attacks, kinds or rates.
    pub fn each(self) -> Vec<Self> {
        match self {
            Self::Hostile(hostile) => hostile.each().into_iter().map(Self::Hostile).collect(),
            Self::Grid(grid) => grid.each().into_iter().map(Self::Grid).collect(),
            Self::Sweep(sweep) => sweep.each().into_iter().map(Self::Publish).collect(),
            one => vec![one],
        }
    }

    /// The title, with the options.
    pub fn title(&self) -> String {
        match self {
            Self::Connect(connect) => connect.title(),
            Self::Echo(echo) => echo.title(),
            Self::Fanout(fanout) => fanout.title(),
            Self::Publish(publish) => publish.title(),
            Self::Sweep(_) => "sweep".into(),
            Self::Send(send) => send.title(),
            Self::Channels(channels) => channels.title(),
            Self::Ingest(ingest) => ingest.title(),
            Self::Store(store) => store.title(),
            Self::Reconnect(reconnect) => reconnect.title(),
            Self::Mix(mix) => mix.title(),
            Self::Grid(grid) => grid.title(),
            Self::Unrelated(unrelated) => unrelated.title(),
            Self::Observed(observed) => observed.title(),
            Self::Hostile(hostile) => hostile.title(),
        }
    }

    /// The title without the rate, if there is one. Runs at several rates have it in common.
    pub fn sweep(&self) -> Option<String> {
        match self {
            Self::Publish(publish) => publish.sweep(),
            _ => None,
        }
    }

    /// The unit of work, for rates, CPU and memory.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Connect(_) => "connection",
            Self::Echo(_) => "echo",
            Self::Fanout(_) => "delivery",
            Self::Publish(_) | Self::Sweep(_) => "publish",
            Self::Send(_) => "send",
            Self::Channels(_) | Self::Mix(_) => "delivery",
            Self::Ingest(_) | Self::Store(_) => "message",
            Self::Grid(_) => "delivery",
            Self::Reconnect(_) => "device",
            Self::Unrelated(_) | Self::Observed(_) | Self::Hostile(_) => "probe",
        }
    }

    /// Whether a server that speaks `dialect` can run the scenario.
    pub fn suits(&self, dialect: Dialect) -> bool {
        match self {
            _ if self.setup().tls && dialect == Dialect::Nats => false,
            Self::Connect(_) | Self::Fanout(_) => true,
            Self::Publish(publish) if publish.history => dialect == Dialect::Gridcast,
            Self::Publish(publish) => dialect != Dialect::Nats || !publish.http,
            // A WebSocket of this dialect publishes to one channel only.
            Self::Ingest(_) => dialect != Dialect::Channels,
            Self::Channels(channels) => match dialect {
                Dialect::Gridcast => true,
                Dialect::Nats => channels.per_client == 1,
                Dialect::Channels | Dialect::Bare => false,
            },
            Self::Store(_) => matches!(dialect, Dialect::Gridcast | Dialect::Nats),
            Self::Echo(_) => matches!(dialect, Dialect::Gridcast | Dialect::Bare),
            _ => dialect == Dialect::Gridcast,
        }
    }

    /// The servers that the scenario needs.
    pub fn setup(&self) -> Setup {
        match self {
            Self::Grid(grid) => Setup { nodes: grid.nodes, ..Setup::default() },
            Self::Connect(connect::Connect { tls, .. })
            | Self::Echo(echo::Echo { tls, .. })
            | Self::Fanout(fanout::Fanout { tls, .. })
            | Self::Ingest(ingest::Ingest { tls, .. }) => Setup { tls: *tls, ..Setup::default() },
            Self::Hostile(hostile) => hostile.setup(),
            Self::Publish(publish) => publish.setup(),
            Self::Store(store) => store.setup(),
            Self::Reconnect(reconnect) => reconnect.setup(),
            _ => Setup::default(),
        }
    }

    /// Runs the scenario once against the servers of [`Scenario::setup`], until `deadline` at the latest.
    ///
    /// # Errors
    /// The server cannot be reached, refuses, has ended, or sends unexpected data.
    pub async fn run(self, nodes: Vec<Target>, deadline: Instant) -> Result<Run> {
        let target = *nodes.first().context("no server")?;
        match self {
            Self::Connect(connect) => connect.run(target, deadline).await,
            Self::Echo(echo) => echo.run(target, deadline).await,
            Self::Fanout(fanout) => fanout.run(target, deadline).await,
            Self::Publish(publish) => publish.run(target, deadline).await,
            Self::Sweep(_) => bail!("a sweep is run as the publishes that it stands for"),
            Self::Send(send) => send.run(target, deadline).await,
            Self::Channels(channels) => channels.run(target, deadline).await,
            Self::Ingest(ingest) => ingest.run(target, deadline).await,
            Self::Store(store) => store.run(target, deadline).await,
            Self::Reconnect(reconnect) => reconnect.run(target, deadline).await,
            Self::Mix(mix) => mix.run(target, deadline).await,
            Self::Grid(grid) => grid.run(&nodes, deadline).await,
            Self::Unrelated(unrelated) => unrelated.run(target).await,
            Self::Observed(observed) => observed.run(target, deadline).await,
            Self::Hostile(hostile) => hostile.run(nodes, deadline).await,
        }
    }
}

/// The end of the title of a scenario whose clients may connect over TLS.
fn tls_title(tls: bool) -> &'static str {
    if tls { ", TLS" } else { "" }
}

/// The scenarios of the performance page; with `quick`, the same kinds with little work each.
pub fn all(quick: bool) -> Vec<Scenario> {
    let least = |many: u32, few: u32| if quick { few } else { many };
    let connect =
        |clients, hold, rate, tls| Scenario::Connect(connect::Connect { clients, hold, rate, tls });
    let fanout = |clients, bytes, messages, burst, tls| {
        Scenario::Fanout(fanout::Fanout { clients, bytes, messages, burst, rate: None, tls })
    };
    let echo = |tls| {
        let messages = least(200_000, 2_000);
        Scenario::Echo(echo::Echo { clients: 64, bytes: 130, messages, tls })
    };
    let ingest = |tls| {
        let messages = least(200_000, 2_000);
        Scenario::Ingest(ingest::Ingest { clients: 100, bytes: 128, messages, window: 1, tls })
    };
    let publish = |http| {
        Scenario::Publish(publish::Publish {
            connections: 16,
            pipeline: 16,
            requests: least(400_000, 4_000),
            subscribers: 0,
            http,
            history: false,
            rate: None,
        })
    };
    // A quick run leaves out attacks that take seconds to have an effect. Attacks that need special servers are
    // run by `loadtest hostile` only.
    let attacks = if quick {
        vec![Attack::Nobody, Attack::Pipeline, Attack::Connects, Attack::OnePings]
    } else {
        Attack::GREEDY.to_vec()
    };
    let hostile = hostile::Hostile { attacks, time: least(2_000, 200).into() };
    let mut scenarios = vec![
        connect(least(1_000, 100), 0, None, false),
        connect(least(5_000, 500), 0, None, false),
        connect(least(15_000, 1_000), least(5, 0).into(), None, false),
        connect(least(5_000, 200), 0, Some(2_000), false),
        connect(least(5_000, 200), 0, None, true),
        echo(false),
        echo(true),
        fanout(1_000, 128, least(500, 10), 1, false),
        fanout(1_000, 128, least(500, 10), 1, true),
        fanout(1_000, 128, least(2_000, 64), 16, false),
        fanout(least(10_000, 2_000), 128, least(50, 3), 1, false),
        fanout(100, 16_384, least(2_000, 20), 1, false),
        publish(false),
        publish(true),
        Scenario::Send(send::Send {
            clients: 1_000,
            connections: 16,
            pipeline: 16,
            messages: least(200_000, 4_000),
            bytes: 128,
            rate: None,
        }),
        Scenario::Channels(channels::Channels {
            channels: least(1_000, 100),
            subscribers: 3,
            per_client: 1,
            connections: 4,
            pipeline: 16,
            messages: least(100_000, 4_000),
            bytes: 128,
            rate: None,
        }),
        ingest(false),
        ingest(true),
    ];
    for window in [1, 16] {
        let messages = least(200_000, 2_000);
        let store = store::Store { clients: 100, bytes: 128, messages, window, peer_syncs: false };
        scenarios.push(Scenario::Store(store));
    }
    let clients = least(15_000, 1_000);
    let reconnect = reconnect::Reconnect { clients, channels: 150, missed: 10, bytes: 128 };
    scenarios.push(Scenario::Reconnect(reconnect));
    let rates = [2_000, 10_000, 50_000, 150_000, 300_000];
    let sweep = sweep::Sweep {
        rates: rates.iter().map(|&rate| least(rate, rate / 20)).collect(),
        time: least(2, 1),
        http: false,
    };
    scenarios.extend(Scenario::Sweep(sweep).each());
    let time = least(5, 1);
    let mix = mix::Mix { clients: 500, time, publish: 20, ingest: 2_000, churn: 100 };
    scenarios.push(Scenario::Mix(mix));
    let grid = |pipeline, messages| grid::Grid {
        kinds: vec![],
        nodes: 2,
        clients: 100,
        bytes: 128,
        messages,
        rate: 200,
        pipeline,
    };
    for grid in [grid(None, least(1_000, 50)), grid(Some(16), least(20_000, 200))] {
        scenarios.extend(Scenario::Grid(grid).each());
    }
    let clients = least(10_000, 1_000);
    scenarios.push(Scenario::Unrelated(unrelated::Unrelated { clients, time: time.into() }));
    scenarios.push(Scenario::Observed(observed::Observed {
        clients: least(5_000, 500),
        messages: least(60, 5),
        pairs: least(5, 1),
        taps: 10,
        tap_channel: false,
    }));
    scenarios.extend(Scenario::Hostile(hostile).each());
    scenarios
}
