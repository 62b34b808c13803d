//! The limits of a node: those of the configuration, or what descriptors and memory allow.

use super::NodeError;
use crate::config::{self, Config};
use crate::runtime::check::Services;
use crate::runtime::{self, Capacity};

/// Returns the limits of the node: those of the configuration, or what descriptors and memory allow.
pub(super) fn capacity(config: &Config) -> Result<Capacity, NodeError> {
    let api_connections = Some(config.limits.api_connections as u64).filter(|wanted| *wanted > 0);
    let (hooks, key_sets) = config.services();
    let services = Services { hooks: hooks as u64, key_sets: key_sets as u64 };
    let cores = config.node.cores.len();
    let shares = runtime::check::check_descriptors(cores, services, api_connections);
    let shares = shares.map_err(NodeError)?;
    let wanted = config.limits.api_connections;
    if wanted > shares.callers {
        let callers = shares.callers;
        tracing::warn!(
            "limits.api_connections is {wanted}, but descriptors allow {callers}; see `ulimit -n`"
        );
    }
    let (wanted, possible) = (config.limits.clients, shares.clients);
    if wanted > possible {
        tracing::warn!(
            "limits.clients is {wanted}, but descriptors allow {possible} clients; see `ulimit -n`"
        );
    }
    let memory_bytes = memory_bytes(config);
    Ok(Capacity {
        clients: runtime::check::clients_max(wanted, possible, memory_bytes),
        callers: shares.callers,
        memory_bytes,
        handshakes_per_s: config.limits.handshakes_per_s,
    })
}

/// Returns the memory budget in bytes: the configured one, or three quarters of the usable memory. The
/// rest is for the allocator's overhead, for the kernel's socket buffers of peers that do not read, and
/// for the program itself. 0: no budget.
fn memory_bytes(config: &Config) -> u64 {
    let usable = runtime::check::usable_memory();
    match (config.limits.memory_bytes, usable) {
        (0, Some(usable)) => {
            let share = usable / 4 * 3;
            let least = config::memory_bytes_min(config.node.cores.len());
            if share < least {
                tracing::warn!(
                    "memory: {} MiB are too little for this number of cores; see `gridcast doctor`",
                    usable >> 20
                );
            }
            share.max(least)
        }
        (0, None) => {
            tracing::warn!(
                "limits.memory_bytes: not set, and neither a limit nor the machine's memory could be read: there is no budget"
            );
            0
        }
        (wanted, Some(usable)) if wanted > usable => {
            tracing::warn!(
                "limits.memory_bytes is {wanted}, but the control group or machine has {usable}"
            );
            wanted
        }
        (wanted, _) => wanted,
    }
}
