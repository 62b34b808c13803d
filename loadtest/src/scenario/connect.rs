//! Opens clients and holds them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, value_parser};
use tokio::time::{Instant, timeout_at};

use crate::client::{self, HANDSHAKES, Socket};
use crate::latency::Latencies;
use crate::ledger::Damage;
use crate::meter::{Meter, memory_bytes};
use crate::report::Run;
use crate::server::Target;
use crate::tasks::{in_parallel, until};

/// Opens clients, 64 handshakes at a time, and holds them idle.
#[derive(Args, Clone)]
pub struct Connect {
    /// Clients to open
    #[arg(long, default_value_t = 15_000, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub clients: u32,
    /// Seconds to hold them open once all are connected; one that ends meanwhile counts as lost
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u64).range(..=3600))]
    pub hold: u64,
}

impl Connect {
    pub fn title(&self) -> String {
        format!("connect: {} clients", self.clients)
    }

    /// A latency is the time from connecting to the end of the handshake. Memory is the growth of
    /// the server's anonymous resident memory while the clients connect.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        // The first few bring in what the server allocates once, whatever the number of clients.
        let _first = client::connect_many(target, None, HANDSHAKES).await?;
        let (pid, latencies) = (target.pid, Arc::<Latencies>::default());
        let memory_before = memory_bytes(pid)?;
        let meter = Meter::start(pid)?;
        let opening = client::connect_timed(target, None, self.clients, &latencies);
        let Some(clients) = until(deadline, opening).await? else {
            bail!("not all clients were connected in time");
        };
        let cost = meter.stop()?;
        let memory = memory_bytes(pid)?.saturating_sub(memory_before);
        let lost = hold(clients, Duration::from_secs(self.hold)).await?;
        let damage = Damage { lost, ..Damage::default() };
        Ok(Run::new(cost, &latencies, damage).with_memory(memory))
    }
}

/// Holds the clients, which answer pings, and tells how many did not stay connected.
async fn hold(clients: Vec<Socket>, duration: Duration) -> Result<u64> {
    let end = Instant::now() + duration;
    let ended = in_parallel(clients, |mut client| async move {
        let reading = client::ended(&mut client);
        Ok(timeout_at(end, reading).await.is_ok())
    });
    Ok(ended.await?.into_iter().filter(|&ended| ended).count() as u64)
}
