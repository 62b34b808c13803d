//! `gridcast doctor`: checks whether this machine suits the node that is to run on it, and says what to
//! change. `tuning/README.md` gives the reason for each recommended value.
//!
//! - `machine.rs`: reads the machine into plain values.
//! - `process.rs`: kernel, io_uring, limits of the process. `network.rs`: TCP, the mesh's socket, interfaces.
//!   `cpu.rs`: cores and clocks. `memory.rs`: memory. Each check is a function of the machine and the plan.
//! - `container.rs`: whether the process runs in a container, and where each setting is changed then.
//! - `finding.rs`: the result of a check.

mod container;
mod cpu;
mod finding;
mod machine;
mod memory;
mod network;
mod process;

use std::fmt;

use serde::Serialize;

use crate::config::{Config, DriverChoice};
use crate::runtime::check::{self, Services};
pub use container::Container;
pub use finding::{Finding, FindingState};
pub use machine::Machine;

/// The node that is to run on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The CPUs of the shards, at least one.
    pub cores: Vec<usize>,
    /// The value of `limits.clients`; `None`: as many as descriptors and memory allow.
    pub clients: Option<u64>,
    /// The value of `limits.api_connections`; `None`: a share of the descriptors.
    pub api_connections: Option<u64>,
    /// The value of `limits.memory_bytes`; `None`: three quarters of the usable memory.
    pub memory_bytes: Option<u64>,
    /// The services that routes use.
    pub services: Services,
    /// Whether the node is to be part of a grid.
    pub has_mesh: bool,
    /// How the shards are to reach the kernel.
    pub driver: DriverChoice,
}

impl Plan {
    /// The plan of a configuration.
    pub fn of(config: &Config) -> Self {
        let (hooks, key_sets) = config.services();
        Self {
            cores: config.node.cores.clone(),
            clients: Some(config.limits.clients as u64).filter(|clients| *clients > 0),
            api_connections: Some(config.limits.api_connections as u64)
                .filter(|wanted| *wanted > 0),
            memory_bytes: Some(config.limits.memory_bytes).filter(|bytes| *bytes > 0),
            services: Services { hooks: hooks as u64, key_sets: key_sets as u64 },
            has_mesh: config.mesh.is_some(),
            driver: config.node.driver,
        }
    }

    /// The plan without a configuration: all CPUs that the process may use, as many clients as possible, and
    /// a mesh, since a machine that suits a mesh also suits a single node.
    pub fn unknown(available: &[usize]) -> Self {
        Self {
            cores: available.to_vec(),
            clients: None,
            api_connections: None,
            memory_bytes: None,
            services: Services::default(),
            has_mesh: true,
            driver: DriverChoice::Auto,
        }
    }

    /// The descriptors that the node needs besides those of connections.
    fn own_descriptors(&self) -> u64 {
        check::own_descriptors(self.cores.len(), self.services)
    }

    /// The number of clients for which the machine is judged.
    fn clients_on(&self, machine: &Machine) -> u64 {
        if let Some(clients) = self.clients {
            return clients;
        }
        let descriptors = machine.descriptors.unwrap_or(u64::MAX);
        let by_descriptors =
            check::clients_allowed(descriptors, self.own_descriptors(), self.api_connections)
                .unwrap_or(0);
        by_descriptors.min(memory::clients_allowed(machine, self))
    }
}

/// The findings of all checks.
#[derive(Clone, Debug, Serialize)]
pub struct DoctorReport {
    /// The CPUs of the shards.
    pub cores: Vec<usize>,
    /// The number of clients for which the machine is judged.
    pub clients: u64,
    /// Whether the machine is judged for a mesh.
    pub mesh: bool,
    /// The worst state of a finding.
    pub state: FindingState,
    /// The findings, in the order of the checks.
    pub findings: Vec<Finding>,
}

/// A check. `None`: the check does not apply to the machine, or its value is unknown.
type Check = fn(&Machine, &Plan) -> Option<Finding>;

const CHECKS: [Check; 28] = [
    container::container,
    process::kernel,
    process::io_uring,
    process::io_uring_disabled,
    process::descriptors,
    process::open_files,
    process::locked_memory,
    memory::room,
    memory::budget,
    memory::swap,
    memory::huge_pages,
    cpu::quota,
    cpu::isolation,
    cpu::siblings,
    cpu::numa,
    cpu::governor,
    cpu::clock_source,
    network::accept_queue,
    network::syn_queue,
    network::tcp_memory,
    network::tcp_receive_buffer,
    network::tcp_send_buffer,
    network::mesh_receive_buffer,
    network::mesh_send_buffer,
    network::connection_tracking,
    network::local_ports,
    network::receive_queues,
    network::interrupts,
];

/// Runs all checks.
pub fn examine(machine: &Machine, plan: &Plan) -> DoctorReport {
    let findings: Vec<Finding> = CHECKS.iter().filter_map(|check| check(machine, plan)).collect();
    DoctorReport {
        cores: plan.cores.clone(),
        clients: plan.clients_on(machine),
        mesh: plan.has_mesh,
        state: findings.iter().map(|finding| finding.state).max().unwrap_or(FindingState::Ok),
        findings,
    }
}

impl DoctorReport {
    /// The report as one JSON object, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, words and lists are JSON")
    }
}

impl fmt::Display for DoctorReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, clients, mesh, findings, .. } = self;
        let mesh = if *mesh { "with" } else { "without" };
        let (shards, cores) = (cores.len(), list(cores));
        writeln!(
            formatter,
            "judged for {shards} shards on CPUs {cores}, {clients} clients, {mesh} a mesh"
        )?;
        findings.iter().try_for_each(|finding| writeln!(formatter, "{finding}"))?;
        let count = |state| findings.iter().filter(|finding| finding.state == state).count();
        let (fine, warned, wrong) =
            (count(FindingState::Ok), count(FindingState::Warn), count(FindingState::Wrong));
        write!(formatter, "{fine} ok, {warned} to look at, {wrong} wrong")
    }
}

/// CPU numbers as a list in text.
fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
