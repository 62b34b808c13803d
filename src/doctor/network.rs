//! TCP, the socket of the mesh, and network interfaces.

use super::finding::Finding;
use super::{Machine, Plan};
use crate::mesh::quic::SOCKET_BYTES;
use crate::runtime::BACKLOG;

/// What the kernel charges a socket in: with anything queued it holds one page at least.
const PAGE_BYTES: u64 = 4096;

/// 3 ms of what 10 Gbit/s bring: longer than the mesh's thread sleeps or a turn of it takes. With the
/// kernel's default of 208 KiB packets were lost on loopback.
const MESH_BYTES_MIN: u64 = 4 << 20;

/// What the kernel's own default allows each socket to receive into. With less, the window is too
/// small for messages of the default limit, 64 KiB, to come in one round trip.
const RECEIVE_BYTES_MIN: u64 = 128 << 10;

/// What a socket may hold of what waits to be acknowledged. A client far away (200 ms) then gets
/// 1.3 MB/s.
const SEND_BYTES_MIN: u64 = 256 << 10;

/// Beyond this, what waits for clients that read nothing is mostly the kernel's, where no limit of
/// gridcast's bites.
const SEND_BYTES_MAX: u64 = 4 << 20;

pub(super) fn accept_queue(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.core.somaxconn";
    let most = machine.setting(name)?;
    let wanted = BACKLOG as u64;
    Some(if most >= wanted {
        Finding::ok(name, most.to_string())
    } else {
        let why = format!(
            "{wanted}, what each listener asks for: when clients come back all at \
                           once, those beyond it try again after a second"
        );
        Finding::warn(name, most.to_string(), why, format!("sysctl -w {name}={wanted}"))
    })
}

/// Handshakes that are half done. With cookies the kernel can do without a place for each
/// (Documentation/networking/ip-sysctl.rst), and the accept queue's length bounds them.
pub(super) fn syn_queue(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_max_syn_backlog";
    let most = machine.setting(name)?;
    let wanted = BACKLOG as u64;
    let has_cookies = machine.setting("net.ipv4.tcp_syncookies").is_some_and(|mode| mode != 0);
    Some(if has_cookies {
        Finding::ok(name, format!("{most}; net.ipv4.tcp_syncookies is on, so it does not bind"))
    } else if most >= wanted {
        Finding::ok(name, most.to_string())
    } else {
        let mend = "sysctl -w net.ipv4.tcp_syncookies=1";
        Finding::warn(name, format!("{most}, without cookies"), wanted.to_string(), mend)
    })
}

pub(super) fn tcp_memory(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_mem";
    let [_, pressure, _] = machine.settings.get(name)?[..] else { return None };
    let clients = plan.clients_on(machine);
    let found = format!("{} MiB before the kernel holds back", (pressure * PAGE_BYTES) >> 20);
    Some(if pressure >= clients {
        Finding::ok(name, found)
    } else {
        let wanted = format!(
            "{} MiB: a publish to all of {clients} clients takes a page of each",
            (clients * PAGE_BYTES) >> 20
        );
        let mend =
            format!("sysctl -w {name}='{} {} {}'", clients / 4 * 3, clients, clients / 2 * 3);
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
        let wanted = format!("{RECEIVE_BYTES_MIN} in the middle: room for one message of 64 KiB");
        let most = most.max(RECEIVE_BYTES_MIN);
        let mend = format!("sysctl -w {name}='{least} {RECEIVE_BYTES_MIN} {most}'");
        Finding::warn(name, found, wanted, mend)
    })
}

pub(super) fn tcp_send_buffer(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.tcp_wmem";
    let [least, first, most] = machine.settings.get(name)?[..] else { return None };
    let found = format!("{least} {first} {most}");
    let mend = |most: u64| format!("sysctl -w {name}='{least} {first} {most}'");
    Some(if most < SEND_BYTES_MIN {
        let wanted =
            format!("{SEND_BYTES_MIN} at the end: a client far away gets a window per trip");
        Finding::warn(name, found, wanted, mend(SEND_BYTES_MIN))
    } else if most > SEND_BYTES_MAX {
        let wanted = format!(
            "{SEND_BYTES_MAX} at the end or less: so much waits in the kernel for each client that \
             reads nothing, beside limits.outbound_bytes"
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

/// The mesh asks for `SOCKET_BYTES`, and gets what this allows.
fn mesh_buffer(machine: &Machine, plan: &Plan, name: &str) -> Option<Finding> {
    let most = machine.setting(name).filter(|_| plan.has_mesh)?;
    let asked = SOCKET_BYTES as u64;
    Some(if most >= asked {
        Finding::ok(name, most.to_string())
    } else if most >= MESH_BYTES_MIN {
        Finding::ok(name, format!("{most}; the mesh asks for {asked}, and does with it"))
    } else {
        let wanted =
            format!("{asked}: a burst between nodes that finds no room is sent again, late");
        Finding::warn(name, most.to_string(), wanted, format!("sysctl -w {name}={asked}"))
    })
}

pub(super) fn connection_tracking(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "net.netfilter.nf_conntrack_max";
    let most = machine.setting(name)?;
    let now = machine.setting("net.netfilter.nf_conntrack_count").unwrap_or(0);
    let clients = plan.clients_on(machine);
    // Connections that ended are kept for a while (nf_conntrack_tcp_timeout_*).
    let wanted = clients + clients / 4;
    Some(if most >= wanted {
        Finding::ok(name, format!("{most}, {now} in use"))
    } else if now == 0 {
        Finding::ok(name, format!("{most}, but nothing is tracked"))
    } else {
        let why = format!("{wanted} for {clients} clients: beyond it new connections are dropped");
        let mend = format!(
            "do not track the edge's port (nft: notrack in a raw chain), or sysctl -w {name}={wanted}"
        );
        Finding::warn(name, format!("{most}, {now} in use"), why, mend)
    })
}

/// Of no matter to a node, which connects to few; but one load generator or proxy in front reaches
/// one port of one address with so many connections.
pub(super) fn local_ports(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "net.ipv4.ip_local_port_range";
    let [first, last] = machine.settings.get(name)?[..] else { return None };
    let ports = (last + 1).saturating_sub(first);
    Some(Finding::ok(
        name,
        format!("{first} to {last}: from here {ports} connections to one address and port"),
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
    let wanted = format!("one for each of {shards} shards: so few CPUs do the receiving for all");
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
        return known
            .then(|| Finding::ok(name, "no interface sends all of several queues to one CPU"));
    };
    let device = &interface.name;
    let found = format!("all of {device} come to CPU {}", interface.interrupt_cpus[0]);
    Some(Finding::warn(name, found, "a CPU for each queue", format!("tuning/nic.sh {device}")))
}
