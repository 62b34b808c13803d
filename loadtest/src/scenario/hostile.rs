//! Delays of well-behaved peers, and memory of the server, under attacks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum, value_parser};
use nix::unistd::Pid;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::attack::{Attack, Scene};
use crate::meter::{Meter, is_alive, memory_bytes};
use crate::probe::Probe;
use crate::run::{Beside, Run};
use crate::server::Setup;
use crate::target::Target;
use crate::tasks::until;

/// Sampling interval of the server's memory.
const LOOK: Duration = Duration::from_millis(5);

/// Time before and after the attack, to measure without it.
const QUIET: Duration = Duration::from_millis(300);

/// A probe (every 5 ms a mesh.send, a mesh.publish and an echo) during attacks, one after the other.
#[derive(Args, Clone)]
pub struct Hostile {
    /// Attacks, each against a fresh server [default: all]
    #[arg(long = "attack", value_enum, value_name = "NAME,…", value_delimiter = ',')]
    pub attacks: Vec<Attack>,
    /// Milliseconds of each attack that does not end by itself
    #[arg(long, default_value_t = 2_000, value_parser = value_parser!(u64).range(100..=60_000))]
    pub time: u64,
}

impl Hostile {
    /// One scenario for each attack.
    pub fn each(self) -> Vec<Self> {
        let all = || Attack::value_variants().to_vec();
        let attacks = if self.attacks.is_empty() { all() } else { self.attacks };
        attacks.into_iter().map(|attack| Self { attacks: vec![attack], time: self.time }).collect()
    }

    fn attack(&self) -> Attack {
        self.attacks.first().copied().unwrap_or(Attack::Nobody)
    }

    pub fn title(&self) -> String {
        format!("beside: {}", self.attack().title())
    }

    /// The servers that the attack needs.
    pub fn setup(&self) -> Setup {
        self.attack().setup()
    }

    /// Runs the scenario. A latency is the time from when a message of the probe was due to its arrival. Memory is
    /// that of the first node's process, sampled every 5 ms.
    pub async fn run(self, nodes: Vec<Target>, deadline: Instant) -> Result<Run> {
        let target = *nodes.first().context("no server")?;
        let authorization = self.setup().authorization;
        let probe = spawn_blocking(move || Probe::start(target, authorization)).await??;
        sleep(QUIET).await;
        let memory = MemoryWatch::start(target.pid)?;
        let meter = Meter::start(target.pid)?;
        let (time, felt) = (Duration::from_millis(self.time), probe.delays());
        let fate = until(deadline, self.attack().run(&Scene { nodes, time, felt })).await?;
        let cost = meter.stop()?;
        sleep(QUIET).await;
        let MemoryUse { before, peak, after } = memory.stop().await?;
        let felt = spawn_blocking(move || probe.stop()).await??;
        let alone = felt.control.percentiles_us();
        let beside = Beside {
            memory_before: before,
            memory_peak: peak,
            memory_after: after,
            server_cpu_share: cost.cpu().as_secs_f64() / cost.elapsed.as_secs_f64(),
            probe_own_delay_us: felt.own_delay.as_secs_f64() * 1e6,
            control_p99_us: alone.p99,
            control_max_us: alone.max,
            errors: felt.errors,
            has_lived: is_alive(target.pid),
            fate: fate.context("the attack did not end in time")?,
        };
        Ok(Run::new(cost, &felt.delays, felt.damage).with_beside(beside))
    }
}

/// Memory of a process in bytes.
struct MemoryUse {
    before: u64,
    peak: u64,
    after: u64,
}

/// Samples the memory of a process.
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
        // A separate thread, which does not wait behind the tasks of the attack.
        let peak = spawn_blocking(move || {
            let mut peak = before;
            while !is_over.load(Ordering::Relaxed) {
                // A process that has ended has no memory.
                peak = peak.max(memory_bytes(pid).unwrap_or(0));
                std::thread::sleep(LOOK);
            }
            Ok(peak)
        });
        Ok(Self { pid, before, stop, peak })
    }

    /// Stops sampling.
    async fn stop(self) -> Result<MemoryUse> {
        self.stop.store(true, Ordering::Relaxed);
        let (peak, after) = (self.peak.await??, memory_bytes(self.pid).unwrap_or(0));
        Ok(MemoryUse { before: self.before, peak, after })
    }
}
