//! The cost of operators who look at a server during a fan-out.

use std::ops::Range;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::back_end::BackEnd;
use crate::inbox::{Arrivals, Inbox, stages};
use crate::latency::Latencies;
use crate::meter::{Cost, Meter};
use crate::operators::{Operators, Watched};
use crate::probe::Probe;
use crate::publisher::{Destination, Publisher};
use crate::run::Run;
use crate::subscribers::Subscribers;
use crate::target::Target;
use crate::tasks::until;

/// The channel of all subscribers.
const CHANNEL: &str = "load";

/// The length of a message in bytes.
const BYTES: usize = 128;

/// One back end publishes to one channel, one message at a time, in parts that alternate: without operators, and
/// with operators who walk through client.list without pause and have taps open. A last part with operators has
/// a probe, which sends a mesh.send to another client, a mesh.publish to a channel of one, and an echo every 5 ms.
#[derive(Args, Clone)]
pub struct Observed {
    /// Subscribers
    #[arg(long, default_value_t = 5_000, value_parser = value_parser!(u32).range(100..=1_000_000))]
    pub clients: u32,
    /// Messages of each part
    #[arg(long, default_value_t = 60, value_parser = value_parser!(u32).range(1..=100_000))]
    pub messages: u32,
    /// Pairs of parts, without operators and with
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u32).range(1..=1_000))]
    pub pairs: u32,
    /// Taps, each of another subscriber
    #[arg(long, default_value_t = 10, value_parser = value_parser!(u32).range(0..=64))]
    pub taps: u32,
    /// Taps watch the channel, and so all subscribers
    #[arg(long)]
    pub tap_channel: bool,
}

/// A fan-out, of which parts are measured.
struct FanOut {
    target: Target,
    deadline: Instant,
    back_end: BackEnd,
    arrivals: Arc<Arrivals>,
    clients: u64,
    /// The number of the next message.
    next: u32,
}

/// What operators have seen, and in which time.
#[derive(Default)]
struct Looked {
    rows: u64,
    events: u64,
    seconds: f64,
}

impl Observed {
    pub fn title(&self) -> String {
        let Self { clients, taps, .. } = self;
        let watched = if self.tap_channel { "channel taps" } else { "taps" };
        format!("observed: {clients} clients, a walk, {taps} {watched}")
    }

    /// Runs the scenario. A latency is that of a message of the probe.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let [_, measured, closing] = stages(self.messages * (2 * self.pairs + 1));
        let arrivals = Arc::<Arrivals>::default();
        let inbox = Inbox::new(0..1, measured.len() as u32, BYTES, &arrivals);
        let subscribers =
            Subscribers::open(target, CHANNEL, self.clients, &inbox, deadline).await?;
        let to = Destination::Channel(CHANNEL.into());
        let publisher = Publisher::open(target, &to, false).await?;
        let back_end = BackEnd::new(publisher, vec![to], 0, BYTES);
        let clients = u64::from(self.clients);
        let mut fan_out = FanOut { target, deadline, back_end, arrivals, clients, next: 0 };
        fan_out.publish(1).await?;
        let (mut ratios, mut looked) = (Vec::new(), Looked::default());
        for _ in 0..self.pairs {
            let quiet = fan_out.publish(self.messages).await?;
            let observed = self.publish_observed(&mut fan_out, &mut looked).await?;
            ratios.push(observed.cpu().as_secs_f64() / quiet.cpu().as_secs_f64());
        }
        let probe = spawn_blocking(move || Probe::start(target, None)).await??;
        let cost = self.publish_observed(&mut fan_out, &mut looked).await?;
        let felt = spawn_blocking(move || probe.stop()).await??;
        fan_out.publish(closing.len() as u32).await?;
        let mut damage = subscribers.damage().await?;
        damage += felt.damage;
        ratios.sort_by(f64::total_cmp);
        let percent = ratios[ratios.len() / 2] * 100.0;
        Ok(Run::new(cost, &felt.delays, damage)
            .with_figure("CPU of a delivery with operators, % of that without", percent)
            .with_figure("rows of lists a second", looked.rows as f64 / looked.seconds)
            .with_figure("events of taps a second", looked.events as f64 / looked.seconds))
    }

    async fn publish_observed(&self, fan_out: &mut FanOut, looked: &mut Looked) -> Result<Cost> {
        let watched = if self.tap_channel { Watched::Channel(CHANNEL) } else { Watched::Clients };
        let operators = Operators::start(fan_out.target, self.taps as usize, watched).await?;
        let cost = fan_out.publish(self.messages).await?;
        let (rows, events) = operators.stop().await?;
        looked.rows += rows;
        looked.events += events;
        looked.seconds += cost.elapsed.as_secs_f64();
        Ok(cost)
    }
}

impl FanOut {
    /// Publishes the next `count` messages, each when all subscribers have the one before.
    async fn publish(&mut self, count: u32) -> Result<Cost> {
        let numbers = self.next..self.next + count;
        self.next = numbers.end;
        let meter = Meter::start(self.target.pid)?;
        until(self.deadline, self.publish_each(numbers)).await?;
        meter.stop()
    }

    async fn publish_each(&mut self, numbers: Range<u32>) -> Result<()> {
        let answers = Latencies::default();
        for number in numbers {
            self.arrivals.expect(self.clients);
            self.back_end.work(number..number + 1, 1, &answers).await?;
            self.arrivals.all().await;
        }
        Ok(())
    }
}
