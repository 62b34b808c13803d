//! Reads the machine: /proc, /sys, the limits of the process, and whether io_uring works. Values that cannot
//! be read are `None` or empty, and are not judged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::process::{Resource, geteuid, getrlimit};

use super::container::{Container, ContainerTraces};
use crate::runtime::cgroup::{self, CgroupLimits};
use crate::runtime::check;

/// The settings below /proc/sys that checks use.
const SETTINGS: [&str; 16] = [
    "fs.file-max",
    "fs.nr_open",
    "kernel.io_uring_disabled",
    "kernel.numa_balancing",
    "net.core.rmem_max",
    "net.core.somaxconn",
    "net.core.wmem_max",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_mem",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_max",
    "vm.swappiness",
];

/// The properties of a machine.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// The kernel release, as `uname -r` prints it.
    pub kernel_release: String,
    /// Whether a ring can be created; if not, why and what to do.
    pub ring: Option<Result<(), String>>,
    /// Whether the process runs as root.
    pub is_root: bool,
    /// The limit of descriptors of the process; `None`: unlimited.
    pub descriptors: Option<u64>,
    /// The limit of locked memory of the process, in bytes; `None`: unlimited.
    pub locked_bytes: Option<u64>,
    /// Memory of the machine, in bytes; `None`: not known.
    pub memory_bytes: Option<u64>,
    /// The limits of the process's control group.
    pub group: CgroupLimits,
    /// The program that runs the container of the process. `None`: no container was found.
    pub container: Option<Container>,
    /// Swap devices and files.
    pub swaps: Vec<String>,
    /// When the kernel uses transparent huge pages: always, madvise or never.
    pub huge_pages: Option<String>,
    /// The kernel's clock source.
    pub clock_source: Option<String>,
    /// Isolated CPUs (isolcpus=).
    pub isolated: Vec<usize>,
    /// The CPUs of each memory node.
    pub memory_nodes: BTreeMap<usize, Vec<usize>>,
    /// CPUs by number.
    pub cpus: BTreeMap<usize, Cpu>,
    /// Physical and virtio network interfaces that are up.
    pub interfaces: Vec<Interface>,
    /// The numbers of each setting below /proc/sys, by name.
    pub settings: BTreeMap<&'static str, Vec<u64>>,
}

/// One CPU.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// The frequency governor; `None`: the kernel does not control the frequency, as on most virtual
    /// machines.
    pub governor: Option<String>,
    /// The CPUs of the same core, including this one.
    pub siblings: Vec<usize>,
}

/// One network interface.
#[derive(Clone, Debug, Default)]
pub struct Interface {
    /// The name of the interface.
    pub name: String,
    /// The number of receive queues.
    pub receive_queues: usize,
    /// Whether the kernel spreads received packets over CPUs (RPS).
    pub spreads: bool,
    /// The CPUs that handle the interrupts.
    pub interrupt_cpus: Vec<usize>,
}

impl Machine {
    /// Reads this machine, and creates a ring to find out whether it can.
    pub fn read() -> Self {
        let groups = text("/proc/self/cgroup").unwrap_or_default();
        Self {
            kernel_release: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            ring: Some(check::check_ring()),
            is_root: geteuid().is_root(),
            descriptors: getrlimit(Resource::Nofile).maximum,
            locked_bytes: getrlimit(Resource::Memlock).maximum,
            memory_bytes: text("/proc/meminfo").as_deref().and_then(cgroup::memory_total),
            group: cgroup::limits(&groups, |path| text(path)),
            container: container(&groups),
            swaps: text("/proc/swaps").as_deref().map(swaps).unwrap_or_default(),
            huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled")
                .as_deref()
                .and_then(selected),
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            isolated: cpus("/sys/devices/system/cpu/isolated"),
            memory_nodes: numbered("/sys/devices/system/node", "node")
                .map(|number| {
                    (number, cpus(format!("/sys/devices/system/node/node{number}/cpulist")))
                })
                .collect(),
            cpus: numbered("/sys/devices/system/cpu", "cpu")
                .map(|number| (number, Cpu::read(number)))
                .collect(),
            interfaces: names("/sys/class/net").filter_map(Interface::read).collect(),
            settings: SETTINGS
                .into_iter()
                .filter_map(|name| {
                    let path = format!("/proc/sys/{}", name.replace('.', "/"));
                    Some((name, numbers(&text(path)?)))
                })
                .collect(),
        }
    }

    /// A setting with one number; `None`: the kernel does not have it.
    pub(super) fn setting(&self, name: &str) -> Option<u64> {
        self.settings.get(name)?.first().copied()
    }

    /// The memory that the process may use, in bytes; `None`: not known.
    pub(super) fn usable_memory(&self) -> Option<u64> {
        [self.memory_bytes, self.group.memory_bytes].into_iter().flatten().min()
    }
}

impl Cpu {
    fn read(number: usize) -> Self {
        let folder = format!("/sys/devices/system/cpu/cpu{number}");
        Self {
            governor: text(format!("{folder}/cpufreq/scaling_governor")),
            siblings: cpus(format!("{folder}/topology/thread_siblings_list")),
        }
    }
}

impl Interface {
    /// Reads an interface; `None`: it is down, or neither physical nor virtio.
    fn read(name: String) -> Option<Self> {
        let folder = format!("/sys/class/net/{name}");
        // Only interfaces of devices have this link: not bridges, tunnels and those of containers.
        let device = fs::canonicalize(format!("{folder}/device")).ok()?;
        if text(format!("{folder}/operstate")).as_deref() == Some("down") {
            return None;
        }
        let queues = names(format!("{folder}/queues"));
        let receiving: Vec<String> = queues.filter(|queue| queue.starts_with("rx-")).collect();
        let spreads = |queue: &String| {
            let mask = text(format!("{folder}/queues/{queue}/rps_cpus")).unwrap_or_default();
            mask.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0')
        };
        Some(Self {
            receive_queues: receiving.len(),
            spreads: receiving.iter().any(spreads),
            interrupt_cpus: interrupt_cpus(&device),
            name,
        })
    }
}

/// The CPUs that handle the interrupts of a device. The interrupts of a virtio device are those of its PCI
/// device.
fn interrupt_cpus(device: &Path) -> Vec<usize> {
    let folders = [Some(device), device.parent()];
    let interrupts = folders.into_iter().flatten().find_map(|folder| {
        let found: Vec<String> = names(folder.join("msi_irqs")).collect();
        (!found.is_empty()).then_some(found)
    });
    let mut all: Vec<usize> = interrupts
        .unwrap_or_default()
        .iter()
        .flat_map(|number| cpus(format!("/proc/irq/{number}/effective_affinity_list")))
        .collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Looks for the traces of a container engine. `groups` is the text of /proc/self/cgroup.
fn container(groups: &str) -> Option<Container> {
    let has_variable = |name| std::env::var_os(name).is_some();
    let has_file = |path: &str| Path::new(path).exists();
    Container::detect(&ContainerTraces {
        has_kubernetes_service: has_variable("KUBERNETES_SERVICE_HOST"),
        has_engine_file: has_file("/.dockerenv") || has_file("/run/.containerenv"),
        has_container_variable: has_variable("container"),
        groups,
    })
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The names in a folder, sorted.
fn names(folder: impl AsRef<Path>) -> impl Iterator<Item = String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names.into_iter()
}

/// The numbers of the names in a folder that consist of `start` and a number.
fn numbered(folder: &str, start: &str) -> impl Iterator<Item = usize> {
    names(folder).filter_map(move |name| name.strip_prefix(start)?.parse().ok())
}

fn cpus(path: impl AsRef<Path>) -> Vec<usize> {
    text(path).as_deref().map(cpu_list).unwrap_or_default()
}

/// Parses `0-2,8` as 0, 1, 2, 8 (Documentation/admin-guide/cputopology.rst).
fn cpu_list(text: &str) -> Vec<usize> {
    let run = |run: &str| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(first..=last)
    };
    text.split(',').filter_map(run).flatten().collect()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// The names in /proc/swaps, whose first line has titles.
fn swaps(text: &str) -> Vec<String> {
    let lines = text.lines().skip(1);
    lines.filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}

/// The word in brackets, as in `always [madvise] never`.
fn selected(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formats_of_the_kernel_are_parsed() {
        assert_eq!(cpu_list("0-2,8"), [0, 1, 2, 8]);
        assert_eq!(cpu_list("3"), [3]);
        assert!(cpu_list("").is_empty() && cpu_list("a-b").is_empty());
        assert_eq!(numbers("4096\t131072\t6291456"), [4096, 131_072, 6_291_456]);
        assert_eq!(selected("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(swaps("Filename\tType\n/dev/sda2 partition 1 0 -2"), ["/dev/sda2"]);
        assert!(swaps("Filename\tType").is_empty());
    }

    #[test]
    fn this_machine_can_be_read() {
        let machine = Machine::read();
        assert!(!machine.kernel_release.is_empty());
        assert!(machine.memory_bytes.is_some() && !machine.cpus.is_empty());
        assert!(machine.setting("net.core.somaxconn").is_some());
    }
}
