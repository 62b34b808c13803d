//! Checks of the kernel, of io_uring, and of the limits of the process.

use std::fmt;

use super::container::ProcessLimit;
use super::finding::Finding;
use super::{Machine, Plan};
use crate::config::DriverChoice;
use crate::runtime::check;

/// The consequence on a machine that does not allow io_uring.
const USES_EPOLL: &str = "without, gridcast uses epoll";

/// The first Linux with all features that the ring needs. The last was IORING_SETUP_DEFER_TASKRUN.
const KERNEL_MIN: (u32, u32) = (6, 1);

/// The hard limit of services since systemd 240. A lower one was set on purpose.
const DESCRIPTORS_USUAL: u64 = 524_288;

/// A finding about a machine that does not allow io_uring.
fn without_io_uring(
    plan: &Plan,
    name: &'static str,
    found: impl Into<String>,
    wanted: impl fmt::Display,
    mend: impl Into<String>,
) -> Finding {
    match plan.driver {
        DriverChoice::IoUring => {
            let wanted = format!("{wanted}: without, gridcast does not start");
            Finding::wrong(name, found, wanted, mend)
        }
        DriverChoice::Auto => Finding::warn(name, found, format!("{wanted}: {USES_EPOLL}"), mend),
        DriverChoice::Epoll => {
            let found = found.into();
            Finding::ok(name, format!("{found}; not needed, since node.driver is \"epoll\""))
        }
    }
}

pub(super) fn kernel(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "kernel";
    let release = &machine.kernel_release;
    let version = version(release)?;
    if version >= KERNEL_MIN {
        return Some(Finding::ok(name, release));
    }
    // Some distributions backport io_uring to older kernels.
    let works = matches!(machine.ring, Some(Ok(())));
    let wanted = "Linux 6.1 or later";
    let mend = "a newer kernel";
    Some(if works {
        Finding::warn(name, format!("{release}, with a backported io_uring"), wanted, mend)
    } else {
        without_io_uring(plan, name, release, wanted, mend)
    })
}

/// Parses `6.18.44-fc` as 6 and 18.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

pub(super) fn io_uring(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "io_uring";
    Some(match machine.ring.as_ref()? {
        Ok(()) => Finding::ok(name, "a ring like that of a shard can be created"),
        Err(why) => {
            // The message begins with the name.
            let why = why.strip_prefix("io_uring: ").unwrap_or(why);
            let (found, mend) = why.split_once("; ").unwrap_or((why, "see the kernel log"));
            let mend = machine.mend_io_uring(mend);
            without_io_uring(plan, name, found, "a ring for each shard", mend)
        }
    })
}

pub(super) fn io_uring_disabled(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "kernel.io_uring_disabled";
    let mend = machine.mend_sysctl(name, "0");
    Some(match machine.setting(name)? {
        0 => Finding::ok(name, "0"),
        1 => {
            let found = "1: only for privileged processes and kernel.io_uring_group";
            let wanted = "0, or gridcast's group in kernel.io_uring_group";
            Finding::warn(name, found, wanted, mend)
        }
        _ => without_io_uring(plan, name, "2: for nobody", "0", mend),
    })
}

pub(super) fn descriptors(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "descriptors (RLIMIT_NOFILE)";
    let own = plan.own_descriptors();
    let Some(limit) = machine.descriptors else { return Some(Finding::ok(name, "unlimited")) };
    let enough = check::descriptors_needed(plan.clients.unwrap_or(1), own, plan.api_connections);
    let mend = |descriptors: u64| {
        let first = match machine.setting("fs.nr_open") {
            Some(most) if most < descriptors => {
                format!("{}; ", machine.mend_sysctl("fs.nr_open", &descriptors.to_string()))
            }
            _ => String::new(),
        };
        format!("{first}{}", machine.mend_limit(ProcessLimit::Descriptors(descriptors)))
    };
    let Some(clients) = check::clients_allowed(limit, own, plan.api_connections) else {
        let wanted = format!("{enough}: with fewer, gridcast does not start");
        return Some(Finding::wrong(name, limit.to_string(), wanted, mend(enough)));
    };
    let found = format!("{limit}, enough for {clients} clients");
    Some(if limit < enough {
        let wanted = format!("{enough} for {}", configured_connections(plan));
        Finding::wrong(name, found, wanted, mend(enough))
    } else if plan.clients.is_none() && limit < DESCRIPTORS_USUAL {
        let wanted = format!("{DESCRIPTORS_USUAL}, the default of services, or a limits.clients");
        Finding::warn(name, found, wanted, mend(DESCRIPTORS_USUAL))
    } else {
        Finding::ok(name, found)
    })
}

/// The keys that ask for connections, as the reason why descriptors are needed.
fn configured_connections(plan: &Plan) -> String {
    let clients = plan.clients.map(|clients| format!("limits.clients = {clients}"));
    let callers = plan.api_connections.map(|callers| format!("limits.api_connections = {callers}"));
    let keys: Vec<String> = clients.into_iter().chain(callers).collect();
    keys.join(" and ")
}

pub(super) fn open_files(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "fs.file-max";
    let most = machine.setting(name)?;
    let needed = check::descriptors_needed(
        plan.clients_on(machine),
        plan.own_descriptors(),
        plan.api_connections,
    );
    Some(if most >= needed {
        Finding::ok(name, most.to_string())
    } else {
        let wanted = format!("at least {needed}, for all processes together");
        let mend = machine.mend_sysctl(name, &(needed * 2).to_string());
        Finding::wrong(name, most.to_string(), wanted, mend)
    })
}

pub(super) fn locked_memory(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "locked memory (RLIMIT_MEMLOCK)";
    let needed = check::locked_bytes(plan.cores.len());
    Some(match machine.locked_bytes {
        None => Finding::ok(name, "unlimited"),
        Some(limit) if limit >= needed => Finding::ok(name, format!("{} KiB", limit / 1024)),
        Some(limit) if machine.is_root => {
            Finding::ok(name, format!("{} KiB, which does not apply to root", limit / 1024))
        }
        Some(limit) => {
            let (limit, needed) = (limit / 1024, needed / 1024);
            let mend = machine.mend_limit(ProcessLimit::LockedKib(needed));
            let wanted = format!("{needed} KiB for the rings of {} shards", plan.cores.len());
            without_io_uring(plan, name, format!("{limit} KiB"), wanted, mend)
        }
    })
}
