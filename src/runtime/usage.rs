//! Samples the resources that the process uses, for `/metrics`.
//!
//! Reading procfs can take long: for the map of the memory a lock is needed, and kernels before 6.2 count
//! descriptors one by one. So a thread of its own takes the samples, and no shard waits for them.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::clock::unix_ms;
use crate::metrics::{ProcessUsage, SharedUsage};

/// The pause between two samples. Prometheus usually scrapes every 15 s.
const PAUSE: Duration = Duration::from_secs(5);

/// The pause after a sample is at least this many times as long as the sample took, so that sampling takes
/// at most 1 % of a CPU.
const PAUSE_FACTOR: u32 = 100;

/// Takes a first sample, and starts a thread that takes the others until nobody else holds `usage`.
///
/// # Errors
/// The thread cannot be started.
pub fn sample_usage(usage: &Arc<SharedUsage>) -> io::Result<()> {
    let start_unix_ms = unix_ms();
    usage.set(sample(start_unix_ms));
    let usage: Weak<SharedUsage> = Arc::downgrade(usage);
    thread::Builder::new().name("usage".into()).spawn(move || {
        let mut pause = PAUSE;
        loop {
            thread::sleep(pause);
            let Some(usage) = usage.upgrade() else { return };
            let start = Instant::now();
            usage.set(sample(start_unix_ms));
            pause = PAUSE.max(start.elapsed() * PAUSE_FACTOR);
        }
    })?;
    Ok(())
}

fn sample(start_unix_ms: u64) -> ProcessUsage {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    ProcessUsage {
        cpu_us: cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1000,
        resident_bytes: kib_of(&status, "VmRSS:") << 10,
        virtual_bytes: kib_of(&status, "VmSize:") << 10,
        open_fds: open_descriptors(),
        max_fds: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        start_unix_ms,
    }
}

/// Returns the value of a line such as `VmRSS:     1234 kB`, or 0 if there is none.
fn kib_of(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let value = value.and_then(|value| value.trim().strip_suffix(" kB"));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Returns the number of open descriptors, or 0 if procfs is not there.
fn open_descriptors() -> u64 {
    const FOLDER: &str = "/proc/self/fd";
    // Since Linux 6.2 the size of the folder is the number.
    match fs::metadata(FOLDER) {
        Ok(folder) if folder.len() > 0 => folder.len(),
        // One of the entries is the descriptor that reads them.
        _ => fs::read_dir(FOLDER).map_or(0, |entries| (entries.count() as u64).saturating_sub(1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_resources_of_this_process() {
        let usage = Arc::new(SharedUsage::default());
        sample_usage(&usage).unwrap();
        let first = usage.usage();
        assert!(first.resident_bytes >= 1 << 20 && first.virtual_bytes >= first.resident_bytes);
        assert!(first.open_fds >= 3 && first.open_fds <= first.max_fds);
        let now_ms = unix_ms();
        assert!((now_ms - 60_000..=now_ms).contains(&first.start_unix_ms));
        let mut second = sample(first.start_unix_ms);
        for _ in 0..1_000_000 {
            if second.cpu_us > first.cpu_us {
                return;
            }
            second = sample(first.start_unix_ms);
        }
        panic!("CPU time does not grow");
    }

    #[test]
    fn a_line_of_the_status_is_found_by_its_whole_name() {
        let status = "Name:\tVmRSS: 1 kB\nVmSize:\t  2048 kB\nVmRSS:\t    12 kB\nThreads:\t3\n";
        assert_eq!(kib_of(status, "VmRSS:"), 12);
        assert_eq!(kib_of(status, "VmSize:"), 2048);
        assert_eq!((kib_of(status, "VmSwap:"), kib_of(status, "Threads:")), (0, 0));
    }
}
