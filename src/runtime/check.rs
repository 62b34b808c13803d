//! Whether this machine lets gridcast run, in words: what is wrong, how to see it, how to mend it.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::cgroup;
use super::ring::{LOCKED_PAGES, PROBE_LOCKED_PAGES, Ring};

const PAGE_BYTES: u64 = 4096;

/// Memory that glommio locks per core, in pages: three rings of four pages, 64 KiB of buffers for each
/// (see `start::IO_MEMORY`), and a ring of two to see what the kernel can, which is released late.
const EXECUTOR_LOCKED_PAGES: u64 = 3 * (4 + 16) + 2;

/// Descriptors that a node takes besides its connections, per core and at all: rings, eventfds,
/// listeners.
const DESCRIPTORS_PER_CORE: u64 = 16;
const DESCRIPTORS: u64 = 64;

/// Descriptors for which the table is made at the start, at most: 8 bytes each, so 32 MiB. A node may
/// be let have many more than it will ever need.
const TABLE_MAX: u64 = 1 << 22;

/// Those that have to be left for connections, at least.
const DESCRIPTORS_LEFT: u64 = 64;

/// Connections that there are descriptors for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    /// Of clients.
    pub clients: usize,
    /// Of the API.
    pub callers: usize,
}

/// Checks io_uring, locked memory and descriptors, raising soft limits to the hard ones; gives the
/// connections that descriptors allow, where the API is to have so many (0: its share).
///
/// # Errors
/// One line that says what is missing, how to see it and how to mend it.
pub fn check(cores: usize, api_connections: usize) -> Result<Places, String> {
    check_locked_memory(cores)?;
    let places = check_descriptors(cores, api_connections)?;
    check_ring()?;
    Ok(places)
}

/// The memory that the process may use, in bytes: its control group's limit, or the machine's memory if
/// that is less. `None`: neither is known.
pub fn usable_memory() -> Option<u64> {
    let text = |path: &str| std::fs::read_to_string(path).ok();
    let machine = text("/proc/meminfo").as_deref().and_then(cgroup::memory_total);
    let groups = text("/proc/self/cgroup").unwrap_or_default();
    let group = cgroup::limits(&groups, text).memory_bytes;
    [machine, group].into_iter().flatten().min()
}

/// Makes a ring of the kind that each shard has, and drops it.
///
/// # Errors
/// One line, as [`check`] gives it.
pub fn check_ring() -> Result<(), String> {
    // On a thread of its own: a ring belongs to the thread that made it.
    match std::thread::spawn(Ring::probe).join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(explain(&error)),
        Err(_) => Err("io_uring: the attempt to make a ring panicked".into()),
    }
}

/// Memory that a node locks, in bytes: of each core a ring and an executor, and the ring that
/// [`check_ring`] makes, as the kernel releases that only some time after its end. The kernel counts
/// for all processes of one user together.
pub fn locked_bytes(cores: usize) -> u64 {
    let per_core = LOCKED_PAGES + EXECUTOR_LOCKED_PAGES;
    (PROBE_LOCKED_PAGES + cores as u64 * per_core) * PAGE_BYTES
}

/// The clients that so many descriptors allow: what the node itself takes is not theirs, nor what the
/// API's connections may take: so many, or with 0 one in 16 of the others. `None`: it cannot start.
pub fn clients_allowed(descriptors: u64, cores: usize, api_connections: u64) -> Option<u64> {
    let left = descriptors.checked_sub(own_descriptors(cores))?;
    (left >= DESCRIPTORS_LEFT).then(|| left - callers_of(left, api_connections))
}

/// Of so many descriptors, those of the API: half of them at most.
fn callers_of(left: u64, api_connections: u64) -> u64 {
    match api_connections {
        0 => left / 16,
        wanted => wanted.min(left / 2),
    }
}

/// The descriptors that so many clients take: the other way round. Of clients at most 2^40.
pub fn descriptors_needed(clients: u64, cores: usize, api_connections: u64) -> u64 {
    let left = match api_connections {
        0 => clients.saturating_sub(1) * 16 / 15 + 1,
        callers => clients.max(callers) + callers,
    };
    own_descriptors(cores) + left.max(DESCRIPTORS_LEFT)
}

fn own_descriptors(cores: usize) -> u64 {
    DESCRIPTORS + cores as u64 * DESCRIPTORS_PER_CORE
}

fn check_locked_memory(cores: usize) -> Result<(), String> {
    let limit = raise(Resource::Memlock);
    let needed = locked_bytes(cores);
    if limit.is_none_or(|limit| limit >= needed) || rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(format!(
        "locked memory: {cores} cores need {} KiB, the limit is {} KiB for all processes of this \
         user; see it with `ulimit -l`; raise it with LimitMEMLOCK= in the systemd unit or memlock in limits.conf, or set \
         node.cores to fewer",
        needed / 1024,
        limit.unwrap_or(0) / 1024,
    ))
}

fn check_descriptors(cores: usize, api_connections: usize) -> Result<Places, String> {
    let wanted = api_connections as u64;
    let Some(limit) = raise(Resource::Nofile) else {
        let callers = if api_connections == 0 { usize::MAX } else { api_connections };
        return Ok(Places { clients: usize::MAX, callers });
    };
    let places = |clients: u64| {
        let callers = (limit - own_descriptors(cores) - clients) as usize;
        Places { clients: clients as usize, callers }
    };
    clients_allowed(limit, cores, wanted).map(places).ok_or_else(|| {
        format!(
            "descriptors: {cores} cores need {} at least, the limit is {limit}; see it with \
             `ulimit -n`; raise it with LimitNOFILE= in the systemd unit or nofile in limits.conf",
            descriptors_needed(0, cores, wanted)
        )
    })
}

/// Has the kernel make the process's table of descriptors as large as so many clients need, up to
/// [`TABLE_MAX`]. Where it grows later, the thread that needs the room copies it and then, as others
/// share it, sleeps until every CPU has passed through the scheduler (`expand_fdtable` in Linux):
/// so a shard would stand still each time that the number of connections has doubled.
pub fn grow_descriptor_table(clients: usize, cores: usize) {
    let clients = TABLE_MAX.min(clients as u64);
    let needed = descriptors_needed(clients, cores, 0).min(TABLE_MAX);
    // One of the highest number there will be makes the table; it is closed at once. A table that
    // cannot be had now grows when it must.
    let _ = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), needed as i32 - 1);
}

/// Raises the soft limit to the hard one; gives what it is then, `None` for unlimited.
fn raise(resource: Resource) -> Option<u64> {
    let limits = getrlimit(resource);
    let raised = Rlimit { current: limits.maximum, maximum: limits.maximum };
    match setrlimit(resource, raised) {
        Ok(()) => limits.maximum,
        Err(_) => limits.current,
    }
}

/// What the kernel's refusal of a ring means, in words.
pub(super) fn explain(error: &io::Error) -> String {
    let (what, how) = match error.raw_os_error() {
        Some(libc::ENOSYS) => (
            "this kernel has none",
            "see `uname -r`: gridcast needs Linux 6.1 or later; a container's seccomp profile may \
             also hide it",
        ),
        Some(libc::EPERM | libc::EACCES) => (
            "it is forbidden here",
            "see `sysctl kernel.io_uring_disabled` (0 allows it) and the seccomp profile of the \
             container: it must allow io_uring_setup, io_uring_enter and io_uring_register",
        ),
        Some(libc::EINVAL) => {
            ("this kernel's is too old", "see `uname -r`: gridcast needs Linux 6.1 or later")
        }
        Some(libc::ENOMEM) => (
            "there is not enough memory for a ring",
            "see `ulimit -l`, which bounds all processes of this user together, and the memory limit \
             of the container or cgroup",
        ),
        Some(libc::EMFILE | libc::ENFILE) => {
            ("there is no descriptor left", "see `ulimit -n` and `sysctl fs.file-max`")
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
    fn clients_and_the_descriptors_that_they_take_belong_together() {
        assert_eq!(clients_allowed(64 + 2 * 16 + 63, 2, 0), None);
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, 2, 0), Some(60));
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, 2, 24), Some(40));
        assert_eq!(clients_allowed(64 + 2 * 16 + 64, 2, 1000), Some(32));
        for (clients, callers) in
            [60, 61, 1000, 18_658, 1_000_000].into_iter().zip([0, 9, 5000].into_iter().cycle())
        {
            let needed = descriptors_needed(clients, 2, callers);
            assert!(clients_allowed(needed, 2, callers).unwrap() >= clients, "{clients}");
            if callers == 0 {
                let allowed = clients_allowed(needed - 1, 2, callers);
                assert!(allowed.is_none_or(|allowed| allowed < clients));
            }
        }
    }
}
