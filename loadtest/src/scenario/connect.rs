//! Opens clients and holds them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::tls_title;
use crate::client::HANDSHAKES;
use crate::latency::Latencies;
use crate::ledger::Damage;
use crate::machine;
use crate::meter::{Meter, kernel_bytes, memory_bytes};
use crate::pace::Pace;
use crate::run::Run;
use crate::target::Target;
use crate::tasks::{in_parallel, until};
use crate::web_socket::WebSocket;

/// Opens clients, 64 handshakes at a time, and holds them idle.
#[derive(Args, Clone)]
pub struct Connect {
    /// Clients to open
    #[arg(long, default_value_t = 15_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Seconds to hold them open once all are connected; a client that ends meanwhile counts as lost
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u64).range(..=3600))]
    pub hold: u64,
    /// Handshakes per second instead of 64 at a time, whether or not earlier ones are complete;
    /// latencies then count from when a handshake was due
    #[arg(long, value_parser = super::rate::parser())]
    pub rate: Option<u32>,
    /// Clients connect over TLS 1.3, in full each time; the API stays plain
    #[arg(long)]
    pub tls: bool,
}

impl Connect {
    pub fn title(&self) -> String {
        let manner = self.rate.map_or(String::new(), |rate| format!(", {rate}/s"));
        format!("connect: {} clients{manner}{}", self.clients, tls_title(self.tls))
    }

    /// Runs the scenario. A latency is the time from connecting to the end of the handshake. Memory is the
    /// growth of the server's resident anonymous memory while the clients connect. Memory of the kernel is
    /// the growth of all its slabs, so nothing else should run.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        // The first clients cause allocations that do not depend on the number of clients.
        let _first = target.connect_many(None, HANDSHAKES).await?;
        let (pid, latencies) = (target.pid, Arc::<Latencies>::default());
        let (memory_before, kernel_before) = (memory_bytes(pid)?, kernel_bytes()?);
        let meter = Meter::start(pid)?;
        let opening = async {
            match self.rate {
                Some(rate) => storm(target, self.clients, rate, &latencies).await,
                None => target.connect_timed(None, self.clients, &latencies).await,
            }
        };
        let Some(clients) = until(deadline, opening).await? else {
            bail!("not all clients were connected in time");
        };
        let cost = meter.stop()?;
        let memory = memory_bytes(pid)?.saturating_sub(memory_before);
        let kernel = kernel_bytes()?.saturating_sub(kernel_before) as f64;
        let lost = hold(clients, Duration::from_secs(self.hold)).await?;
        let damage = Damage { lost, ..Damage::default() };
        let run = Run::new(cost, &latencies, damage).with_memory(memory);
        let name = "kernel memory of both ends, bytes/connection";
        Ok(run.with_figure(name, kernel / f64::from(self.clients)))
    }
}

/// Connects `count` clients, each when it is due.
async fn storm(
    target: Target,
    count: u32,
    rate: u32,
    latencies: &Arc<Latencies>,
) -> Result<Vec<WebSocket>> {
    machine::check_descriptors_for(count)?;
    let mut pace = Pace::start(rate, 1, count).remove(0);
    let (mut handshakes, mut begun) = (JoinSet::new(), 0);
    while begun < count {
        for number in pace.next().await? {
            let (due, latencies) = (pace.instant(number), Arc::clone(latencies));
            handshakes.spawn(async move {
                let socket = target.connect(None).await?;
                latencies.record(due.elapsed());
                anyhow::Ok(socket)
            });
            begun = number + 1;
        }
    }
    handshakes.join_all().await.into_iter().collect()
}

/// Holds the clients, which answer pings. Returns how many did not stay connected.
async fn hold(clients: Vec<WebSocket>, duration: Duration) -> Result<u64> {
    let end = Instant::now() + duration;
    let ended = in_parallel(clients, |mut client| async move {
        let reading = async { while client.next(|_, _| Ok(())).await.is_ok() {} };
        Ok(timeout_at(end, reading).await.is_ok())
    });
    Ok(ended.await?.into_iter().filter(|&ended| ended).count() as u64)
}
