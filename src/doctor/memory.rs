//! Memory.

use super::finding::Finding;
use super::{Machine, Plan};

/// What an idle client takes, in bytes, of gridcast and of the kernel: measured, see
/// tuning/README.md.
const CLIENT_BYTES: u64 = 5 * 1024;

/// What a node takes without clients, per shard: receive buffers, rings, buffers of the codecs.
const SHARD_BYTES: u64 = 8 << 20;

/// Clients for which the memory is enough, of which a quarter is left to what is not idle.
pub(super) fn clients_allowed(machine: &Machine) -> u64 {
    machine.usable_memory().map_or(u64::MAX, |bytes| (bytes - bytes / 4) / CLIENT_BYTES)
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
