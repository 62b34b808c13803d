//! Checks of memory.

use super::finding::Finding;
use super::{Machine, Plan};
use crate::config::memory_bytes_min;
use crate::runtime::check::{CLIENT_BYTES, clients_in_memory};

/// Memory of a shard without clients, in bytes: receive buffers, rings, buffers of the codecs.
const SHARD_BYTES: u64 = 8 << 20;

/// The number of clients that memory allows, as the node computes it.
pub(super) fn clients_allowed(machine: &Machine, plan: &Plan) -> u64 {
    let usable = machine.usable_memory();
    plan.memory_bytes
        .or_else(|| usable.map(|usable| default_budget(usable, plan)))
        .map_or(u64::MAX, clients_in_memory)
}

/// The budget of a node whose configuration sets none.
fn default_budget(usable: u64, plan: &Plan) -> u64 {
    (usable / 4 * 3).max(memory_bytes_min(plan.cores.len()))
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
    let found = format!("{} MiB of {of}, {} MiB for idle clients", usable >> 20, needed >> 20);
    Some(if needed <= usable {
        Finding::ok(name, found)
    } else {
        let wanted =
            "more memory than idle clients take, and room for data that waits for slow ones";
        let key = machine.memory_limit_key();
        Finding::wrong(name, found, wanted, format!("a lower limits.clients, or a higher {key}"))
    })
}

/// Percentage of the budget at which the node begins to close slow readers.
const SHEDDING_PERCENT: u64 = 80;

/// Checks the budget beyond which the node closes clients.
pub(super) fn budget(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "memory budget (limits.memory_bytes)";
    let usable = machine.usable_memory()?;
    let share = usable / 4 * 3;
    let mib = |bytes: u64| bytes >> 20;
    let budget = plan.memory_bytes.unwrap_or_else(|| default_budget(usable, plan));
    if budget > usable {
        let found = format!("{} MiB, of {} MiB of memory", mib(budget), mib(usable));
        let wanted = format!("{} MiB, three quarters of the memory, or no such key", mib(share));
        let key = machine.memory_limit_key();
        let mend =
            format!("a lower value, or a higher {key}: the kernel kills a node that takes more");
        return Some(Finding::wrong(name, found, wanted, mend));
    }
    let clients = plan.clients_on(machine);
    let at_rest = clients * CLIENT_BYTES + plan.cores.len() as u64 * SHARD_BYTES;
    if at_rest > usable {
        // The check before this one reports that.
        return None;
    }
    let left = (budget / 100 * SHEDDING_PERCENT).saturating_sub(at_rest);
    let each = left / clients.max(1);
    let found =
        format!("{} MiB, which is {} KiB for each of {clients} clients", mib(budget), each >> 10);
    if left == 0 {
        let wanted = format!("more than the {} MiB of idle clients", mib(at_rest));
        let mend = "a lower limits.clients, or more memory: clients would be refused with 503";
        return Some(Finding::warn(name, found, wanted, mend));
    }
    if budget > share {
        let wanted = format!("{} MiB: the kernel needs memory, too", mib(share));
        return Some(Finding::warn(name, found, wanted, "a lower value, or no such key"));
    }
    Some(Finding::ok(
        name,
        format!("{found} beyond idle ones; then the slowest readers are closed"),
    ))
}

pub(super) fn swap(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "swap";
    if machine.swaps.is_empty() {
        return Some(Finding::ok(name, "none"));
    }
    let swappiness = machine.setting("vm.swappiness").unwrap_or(60);
    let found = format!("{}, vm.swappiness {swappiness}", machine.swaps.join(", "));
    let wanted = "none for gridcast: one page on disk delays all clients of its shard";
    Some(Finding::warn(name, found, wanted, "MemorySwapMax=0 in the systemd unit, or swapoff -a"))
}

/// Reports the setting. No difference was measured: allocations of clients are small and reused.
pub(super) fn huge_pages(machine: &Machine, _: &Plan) -> Option<Finding> {
    Some(Finding::ok("transparent huge pages", machine.huge_pages.as_ref()?))
}
