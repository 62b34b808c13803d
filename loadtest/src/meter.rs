//! CPU time and memory of the servers' processes, and the CPU time of this one.
//!
//! CPU time is that of all threads of a process, user and system, in nanoseconds, from the process's CPU clock
//! (`clock_getcpuclockid(3)`). Work of the kernel's network stack counts where it runs: if a client's system
//! call delivers data over loopback, the delivery counts as the client's.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::ClockId;
use nix::unistd::Pid;

/// Measures the cost of some work.
pub struct Meter {
    /// The clocks of the servers and, as the last one, of this process.
    processes: Vec<(Pid, Duration)>,
    started: Instant,
}

/// The cost of some work.
#[derive(Clone)]
pub struct Cost {
    /// Elapsed time.
    pub elapsed: Duration,
    /// CPU time of each server, user and system.
    pub server_cpu: Vec<Duration>,
    /// CPU time of the load test, user and system.
    pub client_cpu: Duration,
}

impl Meter {
    /// Starts to measure the process `pid`.
    ///
    /// # Errors
    /// The process does not exist.
    pub fn start(pid: Pid) -> Result<Self> {
        Self::start_all([pid])
    }

    /// Starts to measure all of `pids`.
    ///
    /// # Errors
    /// A process does not exist.
    pub fn start_all(pids: impl IntoIterator<Item = Pid>) -> Result<Self> {
        let pids = pids.into_iter().chain([Pid::this()]);
        let processes = pids.map(|pid| Ok((pid, cpu_time(pid)?))).collect::<Result<_>>()?;
        Ok(Self { processes, started: Instant::now() })
    }

    /// The cost since the start.
    ///
    /// # Errors
    /// The process has ended.
    pub fn stop(self) -> Result<Cost> {
        let elapsed = self.started.elapsed();
        let used = |(pid, before)| Ok(cpu_time(pid)?.saturating_sub(before));
        let mut used = self.processes.into_iter().map(used).collect::<Result<Vec<_>>>()?;
        let client_cpu = used.pop().context("this process is measured too")?;
        Ok(Cost { elapsed, server_cpu: used, client_cpu })
    }
}

impl Cost {
    /// CPU time of all servers, user and system.
    pub fn cpu(&self) -> Duration {
        self.server_cpu.iter().sum()
    }
}

fn cpu_time(pid: Pid) -> Result<Duration> {
    let clock = ClockId::pid_cpu_clock_id(pid).and_then(ClockId::now);
    clock.map(Duration::from).with_context(|| format!("no CPU clock of process {pid}"))
}

/// The resident anonymous memory of a process in bytes: `RssAnon` of `proc_pid_status(5)`, without the
/// kernel's socket buffers and without the binary.
///
/// # Errors
/// The process has ended.
pub fn memory_bytes(pid: Pid) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| path.clone())?;
    amount_bytes(&status, "RssAnon:").with_context(|| format!("{path} has no RssAnon"))
}

/// Whether a process is alive. A zombie is not.
pub fn is_alive(pid: Pid) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| !state.trim().starts_with(['Z', 'X']))
}

/// Memory of the kernel's slabs in bytes, which include sockets: `Slab` of `proc_meminfo(5)`.
///
/// # Errors
/// The system does not provide it.
pub fn kernel_bytes() -> Result<u64> {
    let path = "/proc/meminfo";
    let amounts = fs::read_to_string(path).context(path)?;
    amount_bytes(&amounts, "Slab:").context("/proc/meminfo has no Slab")
}

/// The amount in kB on the line that begins with `name`, in bytes.
fn amount_bytes(lines: &str, name: &str) -> Option<u64> {
    let amount = lines.lines().find_map(|line| line.strip_prefix(name))?;
    amount.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anonymous_memory_is_read_in_bytes() {
        let status = "VmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t    10 kB\n";
        assert_eq!(amount_bytes(status, "RssAnon:"), Some(1234 * 1024));
        assert_eq!(amount_bytes("VmRSS:\t    9000 kB\n", "RssAnon:"), None);
    }

    #[test]
    fn work_of_a_process_shows_on_its_meter() {
        let meter = Meter::start(Pid::this()).expect("this process runs");
        let used = Duration::from_millis(2);
        let before = cpu_time(Pid::this()).expect("it still runs");
        let mut sum = 0_u64;
        while cpu_time(Pid::this()).expect("it still runs") - before < used {
            sum = std::hint::black_box(sum + 1);
        }
        let cost = meter.stop().expect("it still runs");
        assert!(cost.cpu() >= used && cost.client_cpu >= used);
    }
}
