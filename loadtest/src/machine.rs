//! The CPUs and descriptors of this process.

use anyhow::{Context, Result, ensure};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use tokio::runtime::{Builder, Runtime};

/// Descriptors beyond those of the clients: for the runtime, API connections, and the server's listeners and
/// rings.
const DESCRIPTORS_BESIDE_CLIENTS: u64 = 128;

/// The id of the calling thread in system calls of CPU affinity.
const THIS_THREAD: Pid = Pid::from_raw(0);

/// A runtime with one thread on each CPU that the server does not use.
///
/// If the server uses all CPUs, the threads share them with it.
pub fn runtime_beside(server_cpus: &[usize]) -> Result<Runtime> {
    let cpus = cpus_beside(server_cpus)?;
    let threads = (0..CpuSet::count()).filter(|&cpu| cpus.is_set(cpu) == Ok(true)).count();
    Builder::new_multi_thread()
        .worker_threads(threads)
        .on_thread_start(move || {
            if let Err(error) = sched_setaffinity(THIS_THREAD, &cpus) {
                eprintln!("loadtest: cannot keep off the server's CPUs: {error}");
            }
        })
        .enable_all()
        .build()
        .context("cannot start the runtime")
}

fn cpus_beside(server_cpus: &[usize]) -> Result<CpuSet> {
    let all = sched_getaffinity(THIS_THREAD).context("cannot read the CPU affinity")?;
    let mut others = all;
    for &cpu in server_cpus {
        ensure!(all.is_set(cpu) == Ok(true), "CPU {cpu} is not among those this process may use");
        others.unset(cpu)?;
    }
    Ok(if others == CpuSet::new() { all } else { others })
}

/// Restricts the calling thread, and threads that it starts from now on, to `cpus`.
pub fn keep_to(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|&cpu| set.set(cpu))?;
    sched_setaffinity(THIS_THREAD, &set).with_context(|| format!("cannot keep to CPUs {cpus:?}"))
}

/// Describes the machine in a sentence: processor, kernel, and the use of CPUs.
pub fn describe(server_cpus: &[usize]) -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        information.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = sched_getaffinity(THIS_THREAD)
        .map_or(0, |all| (0..CpuSet::count()).filter(|&cpu| all.is_set(cpu) == Ok(true)).count());
    format!(
        "{}, {cpus} CPUs, of which the servers have {server_cpus:?} and the load test the others; \
         Linux {}; loopback",
        model.unwrap_or("unknown processor"),
        kernel.trim()
    )
}

/// Raises the soft limit of open descriptors to the hard one. Servers started later inherit it.
pub fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the descriptor limit")
}

/// Checks in advance whether there are enough descriptors for `clients`.
pub fn check_descriptors_for(clients: u32) -> Result<()> {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = u64::from(clients) + DESCRIPTORS_BESIDE_CLIENTS;
    ensure!(
        needed <= limit,
        "{clients} clients need {needed} descriptors, the limit is {limit}: raise it with ulimit -n"
    );
    Ok(())
}
