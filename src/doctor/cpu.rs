//! Checks of CPUs and clocks.

use super::finding::Finding;
use super::{Machine, Plan, list};

/// Clocks that a process reads without a system call. Others cost a system call, or an access to a slow
/// device, in each turn of a shard.
const FAST_CLOCKS: [&str; 5] =
    ["tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter", "riscv_clocksource"];

pub(super) fn quota(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "CPU quota of the control group";
    let shards = plan.cores.len();
    Some(match machine.group.cpus {
        None => Finding::ok(name, "none"),
        Some(cpus) if cpus >= shards as f64 => Finding::ok(name, format!("{cpus:.1} CPUs")),
        Some(cpus) => {
            let wanted = format!(
                "{shards}, one for each shard: a shard that has used up its share stops, with all \
                 its clients, until the next period"
            );
            let whole = (cpus as usize).max(1);
            let mend = machine.mend_quota(whole, shards);
            Finding::warn(name, format!("{cpus:.1} CPUs"), wanted, mend)
        }
    })
}

pub(super) fn isolation(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "isolated CPUs";
    let isolated = &machine.isolated;
    if isolated.is_empty() {
        return Some(Finding::ok(name, "none: other processes may run on the CPUs of the shards"));
    }
    let outside: Vec<usize> =
        plan.cores.iter().copied().filter(|core| !isolated.contains(core)).collect();
    let found = list(isolated);
    Some(if outside.is_empty() {
        Finding::ok(name, format!("{found}, and the shards are on them"))
    } else {
        let wanted = format!("all shards on them; those on {} are not", list(&outside));
        let mend = format!(
            "CPUAffinity={found} in the systemd unit and node.cores = [{found}], or a kernel \
             without isolcpus="
        );
        Finding::warn(name, found.clone(), wanted, mend)
    })
}

pub(super) fn siblings(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "threads of a core";
    let mut shared = 0;
    for (place, core) in plan.cores.iter().enumerate() {
        let siblings = &machine.cpus.get(core)?.siblings;
        shared += usize::from(plan.cores[..place].iter().any(|other| siblings.contains(other)));
    }
    Some(Finding::ok(
        name,
        match shared {
            0 => "each shard has its own core".into(),
            _ => format!(
                "{shared} shards share a core with another: more throughput, higher latency; \
                 node.cores can list one CPU per core"
            ),
        },
    ))
}

pub(super) fn numa(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "memory nodes (NUMA)";
    let holds_shard = |cpus: &Vec<usize>| cpus.iter().any(|cpu| plan.cores.contains(cpu));
    let nodes = machine.memory_nodes.values().filter(|cpus| holds_shard(cpus)).count();
    if nodes <= 1 {
        return Some(Finding::ok(name, "the shards are on one"));
    }
    let found = format!("the shards are on {nodes}");
    Some(if machine.setting("kernel.numa_balancing").is_some_and(|mode| mode != 0) {
        let wanted = "kernel.numa_balancing 0: shards are pinned and their memory is local, so searching \
                      for better places only costs page faults";
        Finding::warn(name, found, wanted, machine.mend_sysctl("kernel.numa_balancing", "0"))
    } else {
        Finding::ok(name, found)
    })
}

pub(super) fn governor(machine: &Machine, plan: &Plan) -> Option<Finding> {
    let name = "CPU frequency governor";
    let governor = |core| machine.cpus.get(core)?.governor.as_deref();
    let mut governors: Vec<&str> = plan.cores.iter().filter_map(governor).collect();
    governors.sort_unstable();
    governors.dedup();
    Some(match governors[..] {
        [] => Finding::ok(name, "not controlled by this kernel"),
        ["performance"] => Finding::ok(name, "performance"),
        _ => {
            let wanted = "performance: a shard runs at full speed at once after sleeping";
            let mend = "cpupower frequency-set -g performance";
            Finding::warn(name, governors.join(", "), wanted, mend)
        }
    })
}

pub(super) fn clock_source(machine: &Machine, _: &Plan) -> Option<Finding> {
    let name = "clock source";
    let clock = machine.clock_source.as_deref()?;
    Some(if FAST_CLOCKS.contains(&clock) {
        Finding::ok(name, clock)
    } else {
        let wanted = "one that is read without a system call, such as tsc";
        let mend = "see /sys/devices/system/clocksource/clocksource0/available_clocksource, and the \
                    kernel log for why tsc was rejected";
        Finding::warn(name, clock, wanted, mend)
    })
}
