//! The node's identity, CPUs and shutdown.

use std::collections::BTreeSet;

use toml::de::DeValue;

use super::definition::section;
use super::document::{ConfigError, Section, whole_number};
use super::shape::{Choice, ValueShape, whole, whole_of};

/// A client id has 12 bits for shard number and sequence. More shards would leave too short a
/// sequence.
const CORES_MAX: usize = 256;

/// How the shards of a node are to reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverChoice {
    /// By io_uring, or else by epoll.
    Auto,
    /// By io_uring.
    IoUring,
    /// By epoll.
    Epoll,
}

const DRIVER: Choice<DriverChoice> = Choice(&[
    ("auto", DriverChoice::Auto),
    ("io_uring", DriverChoice::IoUring),
    ("epoll", DriverChoice::Epoll),
]);

section! {
    /// The node's identity, its CPUs and its shutdown.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Node(section) {
        /// The number of the node. It must be unique in the grid, because client ids contain it. Required
        /// with a mesh.
        id: u16 = whole(0..=1023), value(1), restart;

        /// The CPUs that the node uses: a count, or a list of their numbers such as `[0, 2]`. One shard is
        /// pinned to each. A shard takes two threads and an io_uring ring, or one thread with epoll.
        cores: Vec<usize> = Cores, derived(
            usable(section).to_vec(), "all that the process may use, 256 at most", "2"
        ), restart;

        /// How the shards reach the kernel. `io_uring`: by a ring for each shard. `epoll`: by one system call
        /// for each receive and send, which needs no permission. `auto`: io_uring,
        /// or else epoll, with a warning, if the kernel, a container's seccomp profile or the limit of locked
        /// memory does not allow io_uring.
        driver: DriverChoice = DRIVER, value(DriverChoice::Auto), restart;

        /// The longest time for a shutdown: closing clients, delivering the events in topics, answering
        /// calls in flight.
        drain_s: u64 = whole_of(" of seconds", 1..=3600), value(10);

        /// The time after SIGTERM in which `/readyz` answers 503 and everything else works, new connections
        /// included, so that load balancers notice. Then the node shuts down. Ctrl-C skips this time.
        lame_duck_s: u64 = whole_of(" of seconds", 0..=3600), value(0);

        /// How long a shard polls for work before it sleeps, if its last wait was short. Lowers latency at
        /// the cost of CPU time.
        spin_us: u64 = whole_of(" of microseconds", 0..=1000), value(0), restart;
    }
}

impl Node {
    /// Reads `[node]`.
    pub(super) fn read(root: &Section<'_>) -> Result<Self, ConfigError> {
        Self::read_keys(&root.table("node")?)
    }
}

/// A count of CPUs, or a list of their numbers.
struct Cores;

impl ValueShape for Cores {
    type Value = Vec<usize>;

    fn expected(&self) -> String {
        "a count of CPUs, or a list of different CPU numbers".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<Vec<usize>>, ConfigError> {
        let available = section.available_cpus();
        let expected = format!(
            "a count from 1 to {}, or a list of different CPU numbers out of {}",
            usable(section).len(),
            numbers(available)
        );
        section.read(key, &expected, |value| chosen(value, available))
    }
}

fn usable<'a>(section: &Section<'a>) -> &'a [usize] {
    let available = section.available_cpus();
    &available[..available.len().min(CORES_MAX)]
}

fn chosen(value: &DeValue<'_>, available: &[usize]) -> Option<Vec<usize>> {
    let cores = match whole_number(value) {
        Some(count) => available.get(..count)?.to_vec(),
        None => listed(value, available)?,
    };
    (1..=CORES_MAX).contains(&cores.len()).then_some(cores)
}

fn listed(value: &DeValue<'_>, available: &[usize]) -> Option<Vec<usize>> {
    let mut seen = BTreeSet::new();
    let mut is_new = |core: &usize| available.contains(core) && seen.insert(*core);
    let items = value.as_array()?.iter();
    items.map(|item| whole_number(item.get_ref()).filter(&mut is_new)).collect()
}

/// `[0, 1, 2, 3, 8]` as `0-3, 8`.
pub(super) fn numbers(cpus: &[usize]) -> String {
    let run = |run: &[usize]| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => format!("{}", run[0]),
    };
    let runs: Vec<String> = cpus.chunk_by(|a, b| a + 1 == *b).map(run).collect();
    runs.join(", ")
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use crate::config::tests::{environment, parse, refused};

    #[test]
    fn cores_are_a_count_or_a_list() {
        assert_eq!(parse("[node]\ncores = 3").node.cores, [0, 1, 2]);
        assert_eq!(parse("[node]\ncores = [5, 1]").node.cores, [5, 1]);
        assert_eq!(parse("[node]\ncores = 0x2").node.cores, [0, 1]);
    }

    #[test]
    fn cores_that_the_process_may_not_use_are_refused() {
        let expected = "gridcast.toml:2: node.cores: expected a count from 1 to 4, or a list of \
                        different CPU numbers out of 0-2, 5, found ";
        for cores in ["0", "5", "-1", "[]", "[3]", "[1, 1]", "\"all\"", "[\"0\"]", "2.0"] {
            refused(&format!("[node]\ncores = {cores}"), &format!("{expected}{cores}"));
        }
    }

    #[test]
    fn no_more_shards_are_built_than_a_client_id_can_name() {
        let many: Vec<usize> = (0..300).collect();
        let config = Config::parse("", "gridcast.toml", environment(&[]), &many);
        assert_eq!(config.map(|config| config.node.cores.len()), Ok(256));
        assert!(Config::parse("node.cores = 257", "", environment(&[]), &many).is_err());
    }
}
