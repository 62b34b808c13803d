//! Checks of TCP, of the socket of the mesh, and of network interfaces.

use super::finding::Finding;
use super::{Machine, Plan};
use crate::mesh::quic::SOCKET_BYTES;
use crate::runtime::BACKLOG;

/// The unit of a socket's memory: a socket with queued data holds at least one page.
const PAGE_BYTES: u64 = 4096;

/// Received bytes of 3 ms at 10 Gbit/s, which is longer than the mesh's thread sleeps or a turn takes. With
/// the kernel's default of 208 KiB packets were lost on loopback.
const MESH_BYTES_MIN: u64 = 4 << 20;

/// The kernel's default receive buffer of a socket. With less, the window is too small for a message of the
/// default limit, 64 KiB, to arrive in one round trip.
const RECEIVE_BYTES_MIN: u64 = 128 << 10;

/// The send buffer with which a distant client (200 ms) gets 1.3 MB/s.
const SEND_BYTES_MIN: u64 = 256 << 10;

/// The send buffer beyond which most data that waits for slow readers is in the kernel, where gridcast's
/// limits do not apply.
const SEND_BYTES_MAX: u64 = 4 << 20;

pub(super) fn accept_queue(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.core.somaxconn";
    let most = machine.setting(name)?;
    let wanted = BACKLOG as u64;
    Some(if most >= wanted {
        Finding::ok(name, most.to_string())
    } else {
        let why = format!(
            "{wanted}, which each listener requests: when all clients reconnect at once, those \
             beyond it retry after a second"
        );
        Finding::warn(name, most.to_string(), why, machine.mend_sysctl(name, &wanted.to_string()))
    })
}

/// Checks the queue of half-open connections. With SYN cookies the kernel needs no entry for each
/// (Documentation/networking/ip-sysctl.rst), and the accept queue bounds them.
pub(super) fn syn_queue(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_max_syn_backlog";
    let most = machine.setting(name)?;
    let wanted = BACKLOG as u64;
    let has_cookies = machine.setting("net.ipv4.tcp_syncookies").is_some_and(|mode| mode != 0);
    Some(if has_cookies {
        Finding::ok(name, format!("{most}, without effect because net.ipv4.tcp_syncookies is on"))
    } else if most >= wanted {
        Finding::ok(name, most.to_string())
    } else {
        let mend = machine.mend_sysctl("net.ipv4.tcp_syncookies", "1");
        Finding::warn(name, format!("{most}, without SYN cookies"), wanted.to_string(), mend)
    })
}

pub(super) fn tcp_memory(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_mem";
    let [_, pressure, _] = machine.settings.get(name)?[..] else { return None };
    let clients = plan.clients_on(machine);
    let found = format!("{} MiB before the kernel reduces buffers", (pressure * PAGE_BYTES) >> 20);
    Some(if pressure >= clients {
        Finding::ok(name, found)
    } else {
        let wanted = format!(
            "{} MiB: a publish to all {clients} clients takes a page for each",
            (clients * PAGE_BYTES) >> 20
        );
        let pages = format!("{} {clients} {}", clients / 4 * 3, clients / 2 * 3);
        let mend = machine.mend_sysctl(name, &pages);
        Finding::warn(name, found, wanted, mend)
    })
}

pub(super) fn tcp_receive_buffer(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_rmem";
    let [least, first, most] = machine.settings.get(name)?[..] else { return None };
    let found = format!("{least} {first} {most}");
    Some(if first >= RECEIVE_BYTES_MIN {
        Finding::ok(name, found)
    } else {
        let wanted =
            format!("a middle value of {RECEIVE_BYTES_MIN}: room for one message of 64 KiB");
        let most = most.max(RECEIVE_BYTES_MIN);
        let mend = machine.mend_sysctl(name, &format!("{least} {RECEIVE_BYTES_MIN} {most}"));
        Finding::warn(name, found, wanted, mend)
    })
}

pub(super) fn tcp_send_buffer(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_wmem";
    let [least, first, most] = machine.settings.get(name)?[..] else { return None };
    let found = format!("{least} {first} {most}");
    let mend = |most: u64| machine.mend_sysctl(name, &format!("{least} {first} {most}"));
    Some(if most < SEND_BYTES_MIN {
        let wanted = format!(
            "a last value of {SEND_BYTES_MIN}: a distant client gets one window per round trip"
        );
        Finding::warn(name, found, wanted, mend(SEND_BYTES_MIN))
    } else if most > SEND_BYTES_MAX {
        let wanted = format!(
            "a last value of at most {SEND_BYTES_MAX}: this much may wait in the kernel for each \
             client that does not read, in addition to limits.outbound_bytes"
        );
        Finding::warn(name, found, wanted, mend(SEND_BYTES_MAX))
    } else {
        Finding::ok(name, found)
    })
}

pub(super) fn mesh_receive_buffer(machine: &Machine, plan: &Plan) -> Option<Finding> {
    mesh_buffer(machine, plan, "net.core.rmem_max")
}

pub(super) fn mesh_send_buffer(machine: &Machine, plan: &Plan) -> Option<Finding> {
    mesh_buffer(machine, plan, "net.core.wmem_max")
}

/// Checks the limit of the buffers that the mesh requests, `SOCKET_BYTES` each.
fn mesh_buffer(machine: &Machine, plan: &Plan, name: &str) -> Option<Finding> {
    let most = machine.setting(name).filter(|_| plan.has_mesh)?;
    let asked = SOCKET_BYTES as u64;
    Some(if most >= asked {
        Finding::ok(name, most.to_string())
    } else if most >= MESH_BYTES_MIN {
        Finding::ok(name, format!("{most}, which is enough, though the mesh requests {asked}"))
    } else {
        let wanted = format!(
            "{asked}: packets of a burst between nodes that do not fit are lost and repeated"
        );
        Finding::warn(name, most.to_string(), wanted, machine.mend_sysctl(name, &asked.to_string()))
    })
}

pub(super) fn connection_tracking(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "net.netfilter.nf_conntrack_max";
    let most = machine.setting(name)?;
    let now = machine.setting("net.netfilter.nf_conntrack_count").unwrap_or(0);
    let clients = plan.clients_on(machine);
    // Entries of ended connections stay for a while (nf_conntrack_tcp_timeout_*).
    let wanted = clients + clients / 4;
    Some(if most >= wanted {
        Finding::ok(name, format!("{most}, {now} in use"))
    } else if now == 0 {
        Finding::ok(name, format!("{most}, but no connections are tracked"))
    } else {
        let why = format!("{wanted} for {clients} clients: beyond it new connections are dropped");
        let sysctl = machine.mend_sysctl(name, &wanted.to_string());
        let mend =
            format!("do not track the edge's port (nft: notrack in a raw chain), or {sysctl}");
        Finding::warn(name, format!("{most}, {now} in use"), why, mend)
    })
}

/// Reports the local ports. A node opens few connections, but a load generator or a proxy on the machine
/// can open only this many to one address and port.
pub(super) fn local_ports(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.ip_local_port_range";
    let [first, last] = machine.settings.get(name)?[..] else { return None };
    let ports = (last + 1).saturating_sub(first);
    Some(Finding::ok(
        name,
        format!("{first} to {last}: {ports} outgoing connections to one address and port"),
    ))
}

pub(super) fn receive_queues(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "receive queues";
    let shards = plan.cores.len();
    let narrow = machine
        .interfaces
        .iter()
        .find(|interface| interface.receive_queues < shards && !interface.spreads);
    let Some(interface) = narrow else {
        let words = |interface: &super::machine::Interface| {
            let spread = if interface.spreads { ", spread over CPUs" } else { "" };
            format!("{} has {}{spread}", interface.name, interface.receive_queues)
        };
        let words: Vec<String> = machine.interfaces.iter().map(words).collect();
        return (!words.is_empty()).then(|| Finding::ok(name, words.join("; ")));
    };
    let (device, queues) = (&interface.name, interface.receive_queues);
    let wanted = format!("one for each of {shards} shards: otherwise few CPUs do all receiving");
    let found = format!("{device} has {queues}");
    Some(Finding::warn(name, found, wanted, format!("tuning/nic.sh {device}")))
}

pub(super) fn interrupts(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "interrupts";
    let crowded = machine.interfaces.iter().find(|interface| {
        interface.receive_queues > 1 && !interface.spreads && interface.interrupt_cpus.len() == 1
    });
    let Some(interface) = crowded else {
        let known = machine.interfaces.iter().any(|found| !found.interrupt_cpus.is_empty());
        return known.then(|| {
            Finding::ok(name, "no interface with several queues has them all on one CPU")
        });
    };
    let device = &interface.name;
    let found = format!("all queues of {device} interrupt CPU {}", interface.interrupt_cpus[0]);
    Some(Finding::warn(name, found, "a CPU for each queue", format!("tuning/nic.sh {device}")))
}
