//! Memory.

use super::finding::Finding;
use super::{Machine, Plan};
use crate::config::memory_bytes_min;

/// What an idle client takes, in bytes, of gridcast and of the kernel: measured, see
/// tuning/README.md.
const CLIENT_BYTES: u64 = 5 * 1024;

/// What a node takes without clients, per shard: receive buffers, rings, buffers of the codecs.
const SHARD_BYTES: u64 = 8 << 20;

/// Clients for which the memory is enough, of which half is left to what is not idle.
pub(super) fn clients_allowed(machine: &Machine) -> u64 {
    machine.usable_memory().map_or(u64::MAX, |bytes| bytes / 2 / CLIENT_BYTES)
}

pub(super) fn room(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "memory";
    let usable = machine.usable_memory()?;
    let needed = plan.clients_on(machine) * CLIENT_BYTES + plan.cores.len() as u64 * SHARD_BYTES;
    let of = if machine.group.memory_bytes == Some(usable) {
        "the control group"
    } else {
        "the machine"
    };
    let found = format!("{} MiB of {of}, {} MiB for clients at rest", usable >> 20, needed >> 20);
    Some(if needed <= usable {
        Finding::ok(name, found)
    } else {
        let wanted = "more memory than idle clients take, and room for what waits for slow ones";
        Finding::wrong(name, found, wanted, "set limits.clients to fewer, or MemoryMax= to more")
    })
}

/// At which percent of the budget the node begins to close those that read too slowly.
const SHEDDING_PERCENT: u64 = 80;

/// What may be held before clients are closed for it, and whether there is that much.
pub(super) fn budget(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "memory budget (limits.memory_bytes)";
    let usable = machine.usable_memory()?;
    let least = memory_bytes_min(plan.cores.len());
    let share = usable / 4 * 3;
    let mib = |bytes: u64| bytes >> 20;
    let budget = if plan.memory_bytes > 0 { plan.memory_bytes } else { share.max(least) };
    if budget > usable {
        let found = format!("{} MiB, of {} MiB that there are", mib(budget), mib(usable));
        let wanted = format!("{} MiB, three quarters of it, or no such key", mib(share));
        let mend = "the kernel ends a node that takes more: set it to less, or MemoryMax= to more";
        return Some(Finding::wrong(name, found, wanted, mend));
    }
    let clients = plan.clients_on(machine);
    let at_rest = clients * CLIENT_BYTES + plan.cores.len() as u64 * SHARD_BYTES;
    if at_rest > usable {
        // That is what the check before says.
        return None;
    }
    let left = (budget / 100 * SHEDDING_PERCENT).saturating_sub(at_rest);
    let each = left / clients.max(1);
    let found = format!("{} MiB, for each of {clients} clients {} KiB", mib(budget), each >> 10);
    if left == 0 {
        let wanted = format!("more than the {} MiB of clients at rest", mib(at_rest));
        let mend = "limits.clients to fewer, or more memory: clients would be refused with 503";
        return Some(Finding::warn(name, found, wanted, mend));
    }
    if budget > share {
        let wanted = format!("{} MiB: the kernel takes memory beside it", mib(share));
        return Some(Finding::warn(name, found, wanted, "set it to less, or leave it out"));
    }
    Some(Finding::ok(name, format!("{found} beyond rest; then the slowest readers are closed")))
}

pub(super) fn swap(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "swap";
    if machine.swaps.is_empty() {
        return Some(Finding::ok(name, "none"));
    }
    let swappiness = machine.setting("vm.swappiness").unwrap_or(60);
    let found = format!("{}, vm.swappiness {swappiness}", machine.swaps.join(", "));
    let wanted = "none for gridcast: one client's page on disk holds up all clients of its shard";
    Some(Finding::warn(name, found, wanted, "MemorySwapMax=0 in the systemd unit, or swapoff -a"))
}

/// No difference was measured either way: what clients take is small, and kept for the next ones.
pub(super) fn huge_pages(machine: &Machine, _: &Plan) -> Option<Finding> {
    Some(Finding::ok("transparent huge pages", machine.huge_pages.as_ref()?))
}
