//! What others feel, and what memory does, beside peers that take more than their share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum, value_parser};
use nix::unistd::Pid;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::greedy::Peer;
use crate::meter::{Meter, memory_bytes};
use crate::probe::Probe;
use crate::report::{Beside, Run};
use crate::server::Target;
use crate::tasks::until;

/// Between two looks at the server's memory.
const LOOK: Duration = Duration::from_millis(5);

/// Before and after the attack: what the probe feels, and what memory is, without it.
const QUIET: Duration = Duration::from_millis(300);

/// A probe (every 5 ms one mesh.send and one echo) beside greedy peers, one after the other.
#[derive(Args, Clone)]
pub struct Hostile {
    /// Peers, each against a fresh server [default: all]
    #[arg(long, value_enum, value_name = "PEER,…", value_delimiter = ',')]
    pub peers: Vec<Peer>,
    /// Milliseconds that each is at it
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u64).range(100..=60_000))]
    pub time: u64,
}

impl Hostile {
    /// A scenario for each peer.
    pub fn each(self) -> Vec<Self> {
        let all = || Peer::value_variants().to_vec();
        let peers = if self.peers.is_empty() { all() } else { self.peers };
        peers.into_iter().map(|peer| Self { peers: vec![peer], time: self.time }).collect()
    }

    fn peer(&self) -> Peer {
        self.peers.first().copied().unwrap_or(Peer::Nobody)
    }

    pub fn title(&self) -> String {
        format!("beside: {}", self.peer().title())
    }

    /// A latency is the time from the instant at which a probe's message was to be sent to its
    /// arrival. Memory is that of all the process, and its peak what looks every 5 ms saw.
    pub async fn run(self, target: Target, deadline: Instant) -> Result<Run> {
        let probe = spawn_blocking(move || Probe::start(target)).await??;
        sleep(QUIET).await;
        let memory = MemoryWatch::start(target.pid)?;
        let meter = Meter::start(target.pid)?;
        let time = Duration::from_millis(self.time);
        let fate = until(deadline, self.peer().attack(target, time)).await?;
        let cost = meter.stop()?;
        sleep(QUIET).await;
        let (memory_before, memory_peak, memory_after) = memory.stop().await?;
        let felt = spawn_blocking(move || probe.stop()).await??;
        let beside = Beside {
            memory_before,
            memory_peak,
            memory_after,
            server_cpu_share: cost.cpu().as_secs_f64() / cost.elapsed.as_secs_f64(),
            probe_own_delay_us: felt.own_delay.as_secs_f64() * 1e6,
            fate: fate.context("the attack did not end in time")?,
        };
        Ok(Run::new(cost, &felt.delays, felt.damage).with_beside(beside))
    }
}

/// Looks at the memory of a process again and again.
struct MemoryWatch {
    pid: Pid,
    before: u64,
    stop: Arc<AtomicBool>,
    peak: JoinHandle<Result<u64>>,
}

impl MemoryWatch {
    fn start(pid: Pid) -> Result<Self> {
        let before = memory_bytes(pid)?;
        let stop = Arc::<AtomicBool>::default();
        let is_over = Arc::clone(&stop);
        // A thread of its own: it must not wait behind the tasks of the attack.
        let peak = spawn_blocking(move || {
            let mut peak = before;
            while !is_over.load(Ordering::Relaxed) {
                peak = peak.max(memory_bytes(pid)?);
                std::thread::sleep(LOOK);
            }
            Ok(peak)
        });
        Ok(Self { pid, before, stop, peak })
    }

    /// The memory at first, at most and at last.
    async fn stop(self) -> Result<(u64, u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        Ok((self.before, self.peak.await??, memory_bytes(self.pid)?))
    }
}
