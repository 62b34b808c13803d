//! Checks whether this machine can run gridcast. An error says what is wrong, how to see it and how to
//! fix it.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::cgroup;
use super::ring::{LOCKED_PAGES, PROBE_LOCKED_PAGES, Ring};

const PAGE_BYTES: u64 = 4096;

/// Memory that glommio locks per core, in pages: three rings of four pages each, 64 KiB of buffers for
/// each (`start::IO_MEMORY`), and a probe ring of two pages, which the kernel releases late.
const EXECUTOR_LOCKED_PAGES: u64 = 3 * (4 + 16) + 2;

/// Descriptors that each core needs besides connections: rings, eventfds, listeners.
const DESCRIPTORS_PER_CORE: u64 = 16;

/// Descriptors that the process needs besides those of its cores and connections.
const DESCRIPTORS: u64 = 64;

/// Descriptors that a node with services reserves for each admission hook: connections with a question in
/// flight, and idle ones. The bridge bounds both.
pub const HOOK_DESCRIPTORS: u64 = 80;

/// Descriptors that a node with services reserves for each key set: a fetch, and an idle connection.
pub const KEY_SET_DESCRIPTORS: u64 = 2;

/// Descriptors for looking up the names of services, if there are any.
const LOOKUP_DESCRIPTORS: u64 = 16;

/// The services that a node sends requests to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// The number of admission hooks and webhooks.
    pub hooks: u64,
    /// The number of key sets.
    pub key_sets: u64,
}

impl Services {
    fn descriptors(self) -> u64 {
        let Self { hooks, key_sets } = self;
        let lookups = if hooks + key_sets > 0 { LOOKUP_DESCRIPTORS } else { 0 };
        hooks * HOOK_DESCRIPTORS + key_sets * KEY_SET_DESCRIPTORS + lookups
    }
}

/// The largest descriptor table that is allocated at the start, in descriptors: 8 bytes each, so 32 MiB.
/// A limit can allow many more descriptors than the node will ever need.
const TABLE_MAX: u64 = 1 << 22;

/// The fewest descriptors that must remain for connections.
const DESCRIPTORS_LEFT: u64 = 64;

/// Memory of an idle client in gridcast and in the kernel, in bytes. Measured: see tuning/README.md.
pub const CLIENT_BYTES: u64 = 5 * 1024;

/// The connections that the limit of descriptors allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorShares {
    /// Connections of clients.
    pub clients: usize,
    /// Connections of the API.
    pub callers: usize,
}

/// How shards reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverKind {
    /// By io_uring.
    IoUring,
    /// By epoll.
    Epoll,
}

impl DriverKind {
    /// The name, as in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        }
    }

    /// Explains why a driver could not be created.
    pub(super) fn explain(self, error: &io::Error) -> String {
        match self {
            Self::IoUring => explain(error),
            Self::Epoll => format!("epoll: {error}"),
        }
    }
}

/// A driver that this machine allows.
#[derive(Debug)]
pub struct ChosenDriver {
    /// The driver.
    pub kind: DriverKind,
    /// Why it is not io_uring, if nobody asked for epoll, and what to do. One line.
    pub warning: Option<String>,
}

/// Returns `wanted`, or io_uring if this machine allows it, or else epoll. Raises the soft limit of locked
/// memory to the hard limit, unless epoll is wanted.
///
/// # Errors
/// The machine does not allow io_uring, which is wanted. One line that says how to see it and how to fix
/// it.
pub fn choose_driver(wanted: Option<DriverKind>, cores: usize) -> Result<ChosenDriver, String> {
    if wanted == Some(DriverKind::Epoll) {
        return Ok(ChosenDriver { kind: DriverKind::Epoll, warning: None });
    }
    match (check_locked_memory(cores).and_then(|()| check_ring()), wanted) {
        (Ok(()), _) => Ok(ChosenDriver { kind: DriverKind::IoUring, warning: None }),
        (Err(why), Some(_)) => Err(format!("{why}; or set node.driver to \"epoll\"")),
        (Err(why), None) => {
            Ok(ChosenDriver { kind: DriverKind::Epoll, warning: Some(falls_back(&why)) })
        }
    }
}

/// Returns the warning of a node that takes epoll because io_uring failed for this reason.
pub fn falls_back(why: &str) -> String {
    format!("{why}; until then node.driver is \"epoll\" (set it to omit this warning)")
}

/// Returns the memory that the process may use, in bytes: the smaller of its control group's limit and
/// the machine's memory. `None`: neither is known.
pub fn usable_memory() -> Option<u64> {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let machine = text("/proc/meminfo").as_deref().and_then(cgroup::memory_total);
    let groups = text("/proc/self/cgroup").unwrap_or_default();
    let group = cgroup::limits(&groups, text).memory_bytes;
    [machine, group].into_iter().flatten().min()
}

/// Creates and drops a ring like those of the shards.
///
/// # Errors
/// One line, like an error of [`choose_driver`].
pub fn check_ring() -> Result<(), String> {
    // On a separate thread, because a ring is bound to the thread that created it.
    match std::thread::spawn(Ring::probe).join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err("io_uring: the attempt to make a ring panicked".into()),
    }
}

/// Returns the memory that a node locks, in bytes: a ring and an executor for each core, and the ring of
/// [`check_ring`], which the kernel releases only some time after it is closed. The kernel's limit is
/// for all processes of a user together.
pub fn locked_bytes(cores: usize) -> u64 {
    let per_core = LOCKED_PAGES + EXECUTOR_LOCKED_PAGES;
    (PROBE_LOCKED_PAGES + cores as u64 * per_core) * PAGE_BYTES
}

/// Returns how many clients so many descriptors allow, after the node's [`own_descriptors`] and those of the
/// API's connections. `api_connections` is the configured number; `None`: a sixteenth of all. Returns `None` if
/// there are too few for the node to start.
pub fn clients_allowed(descriptors: u64, own: u64, api_connections: Option<u64>) -> Option<u64> {
    let left = descriptors.checked_sub(own)?;
    (left >= DESCRIPTORS_LEFT).then(|| left - callers_of(left, api_connections))
}

/// Returns the number of idle clients that take half of a memory budget. The other half is for TLS
/// sessions, for what waits for clients, and for topics. A budget of 0 bytes means that there is no limit.
pub fn clients_in_memory(budget_bytes: u64) -> u64 {
    match budget_bytes {
        0 => u64::MAX,
        bytes => bytes / 2 / CLIENT_BYTES,
    }
}

/// Returns the most clients of a node. `wanted` is the configured number, which descriptors bound; 0: as
/// many as descriptors and the memory budget allow.
pub fn clients_max(wanted: usize, by_descriptors: usize, budget_bytes: u64) -> usize {
    match wanted {
        0 => by_descriptors.min(clients_in_memory(budget_bytes).try_into().unwrap_or(usize::MAX)),
        wanted => wanted.min(by_descriptors),
    }
}

/// Returns the API's part of the descriptors that are left for connections: at most half.
fn callers_of(left: u64, api_connections: Option<u64>) -> u64 {
    api_connections.map_or(left / 16, |wanted| wanted.min(left / 2))
}

/// Returns how many descriptors so many clients need: the inverse of [`clients_allowed`]. `clients` must
/// be at most 2^40.
pub fn descriptors_needed(clients: u64, own: u64, api_connections: Option<u64>) -> u64 {
    let left = match api_connections {
        None => clients.saturating_sub(1) * 16 / 15 + 1,
        Some(callers) => clients.max(callers) + callers,
    };
    own + left.max(DESCRIPTORS_LEFT)
}

/// Returns the descriptors that a node needs besides those of its listeners' connections.
pub fn own_descriptors(cores: usize, services: Services) -> u64 {
    DESCRIPTORS + cores as u64 * DESCRIPTORS_PER_CORE + services.descriptors()
}

fn check_locked_memory(cores: usize) -> Result<(), String> {
    let limit = raise(Resource::Memlock);
    let needed = locked_bytes(cores);
    if limit.is_none_or(|limit| limit >= needed) || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(format!(
        "locked memory: {cores} cores need {} KiB, but the limit is {} KiB for all processes of this \
         user; see it with `ulimit -l`; raise it with LimitMEMLOCK= in the systemd unit or memlock in limits.conf, or set \
         node.cores to fewer",
        needed / 1024,
        limit.unwrap_or(0) / 1024,
    ))
}

/// Returns the connections that the descriptors allow. Raises the soft limit to the hard limit.
/// `api_connections` is the configured number; `None`: a sixteenth of all.
///
/// # Errors
/// There are too few for the node to start. One line that says how to see it and how to fix it.
pub fn check_descriptors(
    cores: usize,
    services: Services,
    api_connections: Option<u64>,
) -> Result<DescriptorShares, String> {
    let own = own_descriptors(cores, services);
    let Some(limit) = raise(Resource::Nofile) else {
        let callers = api_connections.map_or(usize::MAX, |wanted| wanted as usize);
        return Ok(DescriptorShares { clients: usize::MAX, callers });
    };
    let places = |clients: u64| {
        let callers = (limit - own - clients) as usize;
        DescriptorShares { clients: clients as usize, callers }
    };
    clients_allowed(limit, own, api_connections).map(places).ok_or_else(|| {
        format!(
            "descriptors: {cores} cores and the services of routes need at least {}, but the limit is {limit}; see it with \
             `ulimit -n`; raise it with LimitNOFILE= in the systemd unit or nofile in limits.conf",
            descriptors_needed(0, own, api_connections)
        )
    })
}

/// Makes the kernel allocate the process's descriptor table for so many clients, up to [`TABLE_MAX`].
/// Otherwise a shard would stall each time the number of connections doubles: the thread that grows the
/// table copies it, then sleeps until every CPU has passed through the scheduler, because other threads
/// share the table (`expand_fdtable` in Linux).
pub fn grow_descriptor_table(clients: usize, cores: usize) {
    let clients = TABLE_MAX.min(clients as u64);
    let own = own_descriptors(cores, Services::default());
    let needed = descriptors_needed(clients, own, None).min(TABLE_MAX);
    // Duplicating a descriptor to the highest number allocates the table; the duplicate is closed at
    // once. If this fails, the table grows on demand.
    let _ = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), needed as i32 - 1);
}

/// Raises a soft limit to the hard limit. Returns the new soft limit; `None`: unlimited.
fn raise(resource: Resource) -> Option<u64> {
    let limits = getrlimit(resource);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    match setrlimit(resource, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    }
}

/// Explains why the kernel refused to create a ring.
fn explain(error: &io::Error) -> String {
    let (what, how) = match error.raw_os_error() {
        Some(libc::ENOSYS) => (
            "this kernel does not support it",
            "see `uname -r`: gridcast needs Linux 6.1 or later; a container's seccomp profile may \
             also hide it",
        ),
        Some(libc::EPERM | libc::EACCES) => (
            "this process is not allowed to use it",
            "see `sysctl kernel.io_uring_disabled` (0 allows it) and the seccomp profile of the \
             container: it must allow io_uring_setup, io_uring_enter and io_uring_register",
        ),
        Some(libc::EINVAL) => {
            ("this kernel is too old", "see `uname -r`: gridcast needs Linux 6.1 or later")
        }
        Some(libc::ENOMEM) => (
            "there is not enough memory for a ring",
            "see `ulimit -l`, which bounds all processes of this user together, and the memory limit \
             of the container or cgroup",
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            ("no file descriptor is left", "see `ulimit -n` and `sysctl fs.file-max`")
        }
        _ => return format!("io_uring: {error}"),
    };
    format!("io_uring: {what}; {how}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_of_the_kernel_is_explained_with_a_way_to_see_it() {
        for code in [libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::ENOMEM, libc::EMFILE] {
            let words = explain(&io::Error::from_raw_os_error(code));
            assert!(words.contains("see `"), "{words}");
        }
    }

    #[test]
    fn without_a_number_of_clients_the_scarcer_of_descriptors_and_memory_bounds_them() {
        let budget_bytes = 2 * CLIENT_BYTES * 1000;
        assert_eq!(clients_max(0, 5000, budget_bytes), 1000);
        assert_eq!(clients_max(0, 500, budget_bytes), 500);
        assert_eq!(clients_max(0, usize::MAX, budget_bytes), 1000);
        assert_eq!(clients_max(0, 5000, 0), 5000, "there is no budget");
        assert_eq!(clients_max(3000, 5000, budget_bytes), 3000, "the operator knows better");
        assert_eq!(clients_max(6000, 5000, budget_bytes), 5000);
    }

    #[test]
    fn clients_and_the_descriptors_that_they_take_belong_together() {
        let own = own_descriptors(2, Services::default());
        assert_eq!(clients_allowed(64 + 2 * 16 + 63, own, None), None);
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, own, None), Some(60));
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, own, Some(24)), Some(40));
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, own, Some(1000)), Some(32));
        for (clients, callers) in [60, 61, 1000, 18_658, 1_000_000]
            .into_iter()
            .zip([None, Some(9), Some(5000)].into_iter().cycle())
        {
            let needed = descriptors_needed(clients, own, callers);
            assert!(clients_allowed(needed, own, callers).unwrap() >= clients, "{clients}");
            if callers.is_none() {
                let allowed = clients_allowed(needed - 1, own, callers);
                assert!(allowed.is_none_or(|allowed| allowed < clients));
            }
        }
    }

    #[test]
    fn connections_to_services_are_not_promised_to_clients() {
        let allowed =
            |services| clients_allowed(10_000, own_descriptors(2, services), Some(0)).unwrap();
        let without = allowed(Services::default());
        assert_eq!(allowed(Services { hooks: 2, key_sets: 1 }), without - 2 * 80 - 2 - 16);
    }
}
