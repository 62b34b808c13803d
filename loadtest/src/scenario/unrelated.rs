//! Delays of other messages during a continuous fan-out.

use std::time::Duration;

use anyhow::Result;
use clap::{Args, value_parser};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::attack::FanOut;
use crate::meter::Meter;
use crate::probe::Probe;
use crate::run::Run;
use crate::target::Target;

/// Time before the probe starts, in which the fan-out reaches full speed, and after the probe has ended.
const LEAD: Duration = Duration::from_millis(500);

/// A back end publishes to many clients without pause. At the same time a probe sends a mesh.send to another
/// client, a mesh.publish to a channel of one, and an echo every 5 ms.
#[derive(Args, Clone)]
pub struct Unrelated {
    /// Clients that receive the publishes
    #[arg(long, default_value_t = 10_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Duration in seconds
    #[arg(long, default_value_t = 3, value_parser = value_parser!(u64).range(1..=600))]
    pub time: u64,
}

impl Unrelated {
    pub fn title(&self) -> String {
        format!("unrelated sends, fan-out to {} without pause", self.clients)
    }

    /// Runs the scenario. A latency is the time from when a message of the probe was due (see [`crate::probe`]) to
    /// its arrival, while the fan-out is in progress. Its clients connect before and leave after that.
    pub async fn run(self, target: Target) -> Result<Run> {
        let time = Duration::from_secs(self.time);
        let fan_out = FanOut::open(target, self.clients).await?;
        let fan_out = tokio::spawn(fan_out.run(LEAD + time + LEAD));
        sleep(LEAD).await;
        let probe = spawn_blocking(move || Probe::start(target, None)).await??;
        let meter = Meter::start(target.pid)?;
        sleep(time).await;
        let cost = meter.stop()?;
        let felt = spawn_blocking(move || probe.stop()).await??;
        let fanned_out = fan_out.await??;
        let busy = cost.cpu().as_secs_f64() / cost.elapsed.as_secs_f64() * 100.0;
        Ok(Run::new(cost, &felt.delays, felt.damage)
            .with_figure("deliveries of the fan-out a second", fanned_out.deliveries_per_s)
            .with_figure("its clients that were closed", fanned_out.closed as f64)
            .with_figure("CPU of the server, %", busy)
            .with_figure("the probe's own delay, at most, µs", felt.own_delay.as_secs_f64() * 1e6))
    }
}
