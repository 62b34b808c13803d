//! `gridcast doctor`: what is right and wrong with this machine for the node that is to run on it,
//! and what to do. `tuning/README.md` says why each value is wanted.
//!
//! - `machine.rs`: reads the machine into plain values. `cgroup.rs`: the limits of its group.
//! - `process.rs`: kernel, io_uring, limits of the process. `network.rs`: TCP, the mesh's socket,
//!   interfaces. `cpu.rs`: cores and clocks. `memory.rs`: memory. Each check is a function of the
//!   machine and the plan.

mod cpu;
mod finding;
mod machine;
mod memory;
mod network;
mod process;

use std::fmt;

use serde::Serialize;

use crate::config::Config;
use crate::runtime::check;
pub use finding::{Finding, State};
pub use machine::Machine;

/// What is to run on the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The CPUs of the shards: at least one.
    pub cores: Vec<usize>,
    /// Clients, as `limits.clients` says; 0: what descriptors and memory allow.
    pub clients: u64,
    /// Connections of the API, as `limits.api_connections` says; 0: a share of the descriptors.
    pub api_connections: u64,
    /// The memory budget, as `limits.memory_bytes` says; 0: three quarters of what there is.
    pub memory_bytes: u64,
    /// Whether there are other nodes.
    pub has_mesh: bool,
}

impl Plan {
    /// What a configuration asks for.
    pub fn of(config: &Config) -> Self {
        Self {
            cores: config.node.cores.clone(),
            clients: config.limits.clients as u64,
            api_connections: config.limits.api_connections as u64,
            memory_bytes: config.limits.memory_bytes,
            has_mesh: config.mesh.is_some(),
        }
    }

    /// Where nothing is known: all CPUs that the process may use, as many clients as it takes, and
    /// a mesh, since a machine that is fit for one is fit to be alone.
    pub fn unknown(available: &[usize]) -> Self {
        Self {
            cores: available.to_vec(),
            clients: 0,
            api_connections: 0,
            memory_bytes: 0,
            has_mesh: true,
        }
    }

    /// The clients to be ready for.
    fn clients_on(&self, machine: &Machine) -> u64 {
        if self.clients > 0 {
            return self.clients;
        }
        let descriptors = machine.descriptors.unwrap_or(u64::MAX);
        let by_descriptors =
            check::clients_allowed(descriptors, self.cores.len(), self.api_connections)
                .unwrap_or(0);
        by_descriptors.min(memory::clients_allowed(machine))
    }
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// CPUs that shards are judged on.
    pub cores: Vec<usize>,
    /// Clients that the machine is judged for.
    pub clients: u64,
    /// Whether it is judged for a mesh.
    pub mesh: bool,
    /// The worst that was found.
    pub state: State,
    /// In the order of the checks.
    pub findings: Vec<Finding>,
}

/// A check; `None`: it does not apply here.
type Check = fn(&Machine, &Plan) -> Option<Finding>;

const CHECKS: [Check; 27] = [
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

/// Judges the machine for what is to run on it.
pub fn examine(machine: &Machine, plan: &Plan) -> Report {
    let findings: Vec<Finding> = CHECKS.iter().filter_map(|check| check(machine, plan)).collect();
    Report {
        cores: plan.cores.clone(),
        clients: plan.clients_on(machine),
        mesh: plan.has_mesh,
        state: findings.iter().map(|finding| finding.state).max().unwrap_or(State::Ok),
        findings,
    }
}

impl Report {
    /// The report as one JSON object, on one line.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("numbers, words and lists are JSON")
    }
}

impl fmt::Display for Report {
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
        let (fine, warned, wrong) = (count(State::Ok), count(State::Warn), count(State::Wrong));
        write!(formatter, "{fine} ok, {warned} to look at, {wrong} wrong")
    }
}

/// CPU numbers as words.
fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
