use std::collections::BTreeMap;

use super::machine::{Cpu, Interface};
use super::*;
use crate::runtime::cgroup::CgroupLimits;

/// A machine of which everything is known and right.
fn machine() -> Machine {
    let settings: [(&str, &[u64]); 16] = [
        ("fs.file-max", &[2_000_000]),
        ("fs.nr_open", &[1 << 20]),
        ("kernel.io_uring_disabled", &[0]),
        ("kernel.numa_balancing", &[0]),
        ("net.core.rmem_max", &[8 << 20]),
        ("net.core.somaxconn", &[4096]),
        ("net.core.wmem_max", &[8 << 20]),
        ("net.ipv4.ip_local_port_range", &[32_768, 60_999]),
        ("net.ipv4.tcp_max_syn_backlog", &[2048]),
        ("net.ipv4.tcp_mem", &[750_000, 1_000_000, 1_500_000]),
        ("net.ipv4.tcp_rmem", &[4096, 131_072, 6_291_456]),
        ("net.ipv4.tcp_syncookies", &[1]),
        ("net.ipv4.tcp_wmem", &[4096, 16_384, 4_194_304]),
        ("net.netfilter.nf_conntrack_count", &[70]),
        ("net.netfilter.nf_conntrack_max", &[2_000_000]),
        ("vm.swappiness", &[60]),
    ];
    let cpu = |number| Cpu { governor: Some("performance".into()), siblings: vec![number] };
    Machine {
        kernel_release: "6.1.0-13-amd64".into(),
        ring: Some(Ok(())),
        is_root: false,
        descriptors: Some(1 << 20),
        locked_bytes: Some(8 << 20),
        memory_bytes: Some(16 << 30),
        huge_pages: Some("madvise".into()),
        clock_source: Some("tsc".into()),
        memory_nodes: BTreeMap::from([(0, vec![0, 1])]),
        cpus: BTreeMap::from([(0, cpu(0)), (1, cpu(1))]),
        interfaces: vec![Interface {
            name: "eth0".into(),
            receive_queues: 2,
            spreads: false,
            interrupt_cpus: vec![0, 1],
        }],
        settings: settings.into_iter().map(|(name, value)| (name, value.to_vec())).collect(),
        ..Machine::default()
    }
}

fn plan() -> Plan {
    Plan {
        cores: vec![0, 1],
        clients: Some(500_000),
        api_connections: None,
        memory_bytes: None,
        services: Services { hooks: 0, key_sets: 0 },
        has_mesh: true,
        driver: DriverChoice::IoUring,
    }
}

/// The only finding about a machine that is not ok.
#[track_caller]
fn only(machine: &Machine, plan: &Plan) -> Finding {
    let report = examine(machine, plan);
    let others = report.findings.into_iter().filter(|finding| finding.state != FindingState::Ok);
    let others: Vec<Finding> = others.collect();
    let [finding] = &others[..] else { panic!("not one finding: {others:#?}") };
    assert_eq!(finding.state, report.state);
    assert!(finding.wanted.is_some() && finding.mend.is_some());
    finding.clone()
}

/// The finding about a machine with another setting: its state, and what to do.
#[track_caller]
fn with(name: &'static str, value: &[u64]) -> (FindingState, String) {
    let mut machine = machine();
    machine.settings.insert(name, value.to_vec());
    let finding = only(&machine, &plan());
    assert_eq!(finding.name, name);
    (finding.state, finding.mend.unwrap())
}

fn with_machine(change: impl FnOnce(&mut Machine)) -> (FindingState, String) {
    let mut machine = machine();
    change(&mut machine);
    let finding = only(&machine, &plan());
    (finding.state, format!("{finding}"))
}

#[test]
fn a_machine_that_is_right_is_told_so_by_every_check() {
    let report = examine(&machine(), &plan());
    assert_eq!(report.state, FindingState::Ok, "{report}");
    assert_eq!(report.findings.len(), CHECKS.len());
    assert!(report.to_string().ends_with("28 ok, 0 to look at, 0 wrong"), "{report}");
}

#[test]
fn what_is_not_known_is_not_judged() {
    let report = examine(&Machine::default(), &Plan::unknown(&[0]));
    let bad = report.findings.iter().filter(|finding| finding.state != FindingState::Ok);
    assert_eq!(bad.count(), 0, "{report}");
}

#[test]
fn an_old_kernel_is_wrong_unless_its_io_uring_is_newer() {
    for release in ["5.15.0-91-generic", "6.0.19", "4.19"] {
        let mut machine = machine();
        machine.kernel_release = release.into();
        assert_eq!(only(&machine, &plan()).state, FindingState::Warn);
        machine.ring = Some(Err("io_uring: this kernel's is too old; see `uname -r`".into()));
        let report = examine(&machine, &plan());
        assert_eq!(report.state, FindingState::Wrong);
        assert_eq!(report.findings[1].state, FindingState::Wrong);
    }
    for release in ["6.1.0", "6.10.3-arch1", "10.0"] {
        assert!(with_kernel(release).state == FindingState::Ok);
    }
}

fn with_kernel(release: &str) -> Finding {
    let mut machine = machine();
    machine.kernel_release = release.into();
    process::kernel(&machine, &plan()).unwrap()
}

#[test]
fn a_ring_that_cannot_be_had_is_wrong_and_says_what_to_look_at() {
    let why = "io_uring: it is forbidden here; see `sysctl kernel.io_uring_disabled`";
    let (state, words) = with_machine(|machine| machine.ring = Some(Err(why.into())));
    assert_eq!(state, FindingState::Wrong);
    assert!(words.contains("io_uring: it is forbidden here\n"), "{words}");
    assert!(words.contains("to do:  see `sysctl"), "{words}");
}

/// The verdict on a machine without io_uring depends on the driver that the node is to use.
#[test]
fn what_io_uring_needs_is_wrong_only_if_the_node_takes_nothing_else() {
    let changes: [fn(&mut Machine); 4] = [
        |machine| machine.ring = Some(Err("io_uring: forbidden; see `sysctl`".into())),
        |machine| drop(machine.settings.insert("kernel.io_uring_disabled", vec![2])),
        |machine| machine.locked_bytes = Some(64 << 10),
        |machine| {
            machine.ring = Some(Err("io_uring: too old; see `uname -r`".into()));
            machine.kernel_release = "5.15.0".into();
        },
    ];
    for change in changes {
        let mut machine = machine();
        change(&mut machine);
        let report = |driver| examine(&machine, &Plan { driver, ..plan() });
        assert_eq!(report(DriverChoice::IoUring).state, FindingState::Wrong);
        let auto = report(DriverChoice::Auto);
        assert_eq!(auto.state, FindingState::Warn);
        assert!(auto.to_string().contains("without, gridcast uses epoll"), "{auto}");
        let epoll = report(DriverChoice::Epoll);
        assert_eq!(epoll.state, FindingState::Ok);
        assert!(epoll.to_string().contains("node.driver is \"epoll\""), "{epoll}");
    }
}

#[test]
fn io_uring_for_some_is_a_warning_and_for_nobody_is_wrong() {
    assert_eq!(with("kernel.io_uring_disabled", &[1]).0, FindingState::Warn);
    assert_eq!(with("kernel.io_uring_disabled", &[2]).0, FindingState::Wrong);
}

#[test]
fn descriptors_are_judged_for_the_clients_that_are_configured() {
    let (state, words) = with_machine(|machine| machine.descriptors = Some(20_000));
    assert_eq!(state, FindingState::Wrong);
    // 500,000 clients, one in 15 more for back ends, 96 for the node itself.
    assert!(words.contains("18660 clients") && words.contains("LimitNOFILE=533429"), "{words}");

    let mut machine = machine();
    let mut plan = plan();
    (machine.descriptors, plan.clients) = (Some(20_000), Some(18_000));
    assert_eq!(examine(&machine, &plan).state, FindingState::Ok);
    plan.clients = None;
    assert_eq!(only(&machine, &plan).state, FindingState::Warn);
    // The API alone wants more than there is, whatever the number of clients.
    (machine.descriptors, plan.api_connections) = (Some(5000), Some(4000));
    let finding = process::descriptors(&machine, &plan).unwrap();
    assert_eq!(finding.state, FindingState::Wrong);
    assert_eq!(finding.wanted.unwrap(), "8096 for limits.api_connections = 4000");
    plan.clients = Some(5000);
    let finding = process::descriptors(&machine, &plan).unwrap();
    let wanted = "9096 for limits.clients = 5000 and limits.api_connections = 4000";
    assert_eq!(finding.wanted.unwrap(), wanted);
    (plan.clients, plan.api_connections) = (None, None);
    machine.descriptors = Some(100);
    let finding = only(&machine, &plan);
    assert_eq!(finding.state, FindingState::Wrong);
    assert!(finding.wanted.unwrap().contains("does not start"));
    machine.descriptors = None;
    assert_eq!(process::descriptors(&machine, &plan).unwrap().state, FindingState::Ok);
}

#[test]
fn descriptors_for_admission_hooks_are_counted() {
    let mut machine = machine();
    machine.descriptors = Some(2000);
    let found = |hooks| {
        let plan =
            Plan { services: Services { hooks, key_sets: 0 }, clients: Some(1500), ..plan() };
        process::descriptors(&machine, &plan).unwrap().state
    };
    assert_eq!((found(0), found(4)), (FindingState::Ok, FindingState::Wrong));
}

#[test]
fn more_descriptors_than_nr_open_allows_ask_for_that_first() {
    let mut machine = machine();
    let plan = Plan { clients: Some(2_000_000), ..plan() };
    machine.descriptors = Some(1 << 20);
    let mend = process::descriptors(&machine, &plan).unwrap().mend.unwrap();
    assert!(mend.starts_with("sysctl -w fs.nr_open=2133429; LimitNOFILE=2133429"), "{mend}");
}

#[test]
fn files_of_the_machine_have_to_be_enough_for_the_clients() {
    let (state, mend) = with("fs.file-max", &[500_000]);
    assert_eq!((state, &mend[..]), (FindingState::Wrong, "sysctl -w fs.file-max=1066858"));
}

#[test]
fn locked_memory_binds_all_but_root() {
    let (state, words) = with_machine(|machine| machine.locked_bytes = Some(64 << 10));
    assert_eq!(state, FindingState::Wrong);
    assert!(words.contains("LimitMEMLOCK=1184K"), "{words}");
    let machine = Machine { locked_bytes: Some(64 << 10), is_root: true, ..machine() };
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn memory_is_that_of_the_group_where_it_has_less() {
    let (state, words) = with_machine(|machine| machine.group.memory_bytes = Some(1 << 30));
    assert_eq!(state, FindingState::Wrong);
    assert!(words.contains("1024 MiB of the control group"), "{words}");
    // The number of clients that there is room for always fits.
    let mut machine = machine();
    machine.group.memory_bytes = Some(1 << 30);
    let plan = Plan { clients: None, ..plan() };
    assert_eq!(plan.clients_on(&machine), (768 << 20) / 2 / 5120, "half of three quarters");
    assert_eq!(examine(&machine, &plan).state, FindingState::Ok);
}

#[test]
fn a_memory_budget_is_compared_with_what_there_is_and_with_clients_at_rest() {
    let judged = |memory_bytes: u64, clients| {
        let memory_bytes = Some(memory_bytes).filter(|bytes| *bytes > 0);
        let plan = Plan { memory_bytes, clients: Some(clients), ..plan() };
        let report = examine(&machine(), &plan);
        let budget = report.findings.iter().find(|finding| finding.name.starts_with("memory bud"));
        let budget = budget.expect("it is judged");
        (budget.state, budget.found.clone())
    };
    let (state, found) = judged(0, 500_000);
    assert!(state == FindingState::Ok && found.starts_with("12288 MiB"), "{found}");
    assert_eq!(judged(8 << 30, 500_000).0, FindingState::Ok);
    assert_eq!(judged(13 << 30, 500_000).0, FindingState::Warn);
    assert_eq!(judged(17 << 30, 500_000).0, FindingState::Wrong);
    // Shedding would begin with clients that do nothing.
    assert_eq!(judged(1 << 30, 500_000).0, FindingState::Warn);
}

#[test]
fn a_smaller_memory_budget_allows_fewer_clients() {
    let plan = Plan { memory_bytes: Some(100 << 20), clients: None, ..plan() };
    assert_eq!(plan.clients_on(&machine()), (100 << 20) / 2 / 5120);
}

#[test]
fn swap_is_warned_of() {
    let (state, words) = with_machine(|machine| machine.swaps = vec!["/dev/sda2".into()]);
    assert!(state == FindingState::Warn && words.contains("/dev/sda2"), "{words}");
}

#[test]
fn a_quota_below_the_number_of_shards_is_warned_of() {
    let (state, words) = with_machine(|machine| machine.group.cpus = Some(1.5));
    assert!(state == FindingState::Warn && words.contains("node.cores = 1,"), "{words}");
    let mut machine = machine();
    machine.group.cpus = Some(2.0);
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn shards_beside_isolated_cpus_are_warned_of() {
    let (state, words) = with_machine(|machine| machine.isolated = vec![1, 2]);
    assert!(state == FindingState::Warn && words.contains("those on 0 are not"), "{words}");
    let mut machine = machine();
    machine.isolated = vec![0, 1, 2];
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn shards_that_share_a_core_are_counted() {
    let mut machine = machine();
    for cpu in machine.cpus.values_mut() {
        cpu.siblings = vec![0, 1];
    }
    let finding = cpu::siblings(&machine, &plan()).unwrap();
    assert!(
        finding.state == FindingState::Ok && finding.found.starts_with("1 shards"),
        "{finding}"
    );
}

#[test]
fn balancing_between_memory_nodes_is_warned_of_where_shards_are_on_several() {
    let two = |machine: &mut Machine| {
        machine.memory_nodes = BTreeMap::from([(0, vec![0]), (1, vec![1])]);
        machine.settings.insert("kernel.numa_balancing", vec![1]);
    };
    assert_eq!(with_machine(two).0, FindingState::Warn);
    let mut machine = machine();
    machine.settings.insert("kernel.numa_balancing", vec![1]);
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn a_governor_that_saves_power_and_a_slow_clock_are_warned_of() {
    let save = |machine: &mut Machine| {
        machine.cpus.get_mut(&1).unwrap().governor = Some("powersave".into());
    };
    let (state, words) = with_machine(save);
    assert!(state == FindingState::Warn && words.contains("performance, powersave"), "{words}");
    let (state, words) = with_machine(|machine| machine.clock_source = Some("hpet".into()));
    assert!(state == FindingState::Warn && words.contains("hpet"), "{words}");
}

#[test]
fn queues_of_handshakes_shorter_than_the_listeners_ask_for_are_warned_of() {
    let (state, mend) = with("net.core.somaxconn", &[128]);
    assert_eq!((state, &mend[..]), (FindingState::Warn, "sysctl -w net.core.somaxconn=4096"));
    let mut machine = machine();
    machine.settings.insert("net.ipv4.tcp_syncookies", vec![0]);
    assert_eq!(only(&machine, &plan()).name, "net.ipv4.tcp_max_syn_backlog");
    machine.settings.insert("net.ipv4.tcp_max_syn_backlog", vec![4096]);
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn memory_of_tcp_is_a_page_for_each_client_at_least() {
    let (state, mend) = with("net.ipv4.tcp_mem", &[190_000, 250_000, 380_000]);
    let expected = "sysctl -w net.ipv4.tcp_mem='375000 500000 750000'";
    assert_eq!((state, &mend[..]), (FindingState::Warn, expected));
}

#[test]
fn buffers_of_tcp_are_neither_too_small_nor_too_large() {
    let (state, mend) = with("net.ipv4.tcp_rmem", &[4096, 16_384, 65_536]);
    let expected = "sysctl -w net.ipv4.tcp_rmem='4096 131072 131072'";
    assert_eq!((state, &mend[..]), (FindingState::Warn, expected));
    for (most, wanted) in [(65_536, 262_144), (64 << 20, 4_194_304)] {
        let (state, mend) = with("net.ipv4.tcp_wmem", &[4096, 16_384, most]);
        let expected = format!("sysctl -w net.ipv4.tcp_wmem='4096 16384 {wanted}'");
        assert_eq!((state, mend), (FindingState::Warn, expected));
    }
}

#[test]
fn the_mesh_needs_larger_buffers_than_the_kernel_s_default() {
    for name in ["net.core.rmem_max", "net.core.wmem_max"] {
        let (state, mend) = with(name, &[212_992]);
        assert_eq!((state, mend), (FindingState::Warn, format!("sysctl -w {name}=8388608")));
        let mut machine = machine();
        machine.settings.insert(name, vec![4 << 20]);
        assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
        machine.settings.insert(name, vec![212_992]);
        let alone = Plan { has_mesh: false, ..plan() };
        assert_eq!(examine(&machine, &alone).state, FindingState::Ok);
    }
}

#[test]
fn tracked_connections_need_room_where_any_are_tracked() {
    let (state, mend) = with("net.netfilter.nf_conntrack_max", &[262_144]);
    assert!(state == FindingState::Warn && mend.contains("nf_conntrack_max=625000"), "{mend}");
    let mut machine = machine();
    machine.settings.insert("net.netfilter.nf_conntrack_max", vec![262_144]);
    machine.settings.insert("net.netfilter.nf_conntrack_count", vec![0]);
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn one_queue_or_one_cpu_for_all_that_is_received_is_warned_of() {
    let (state, words) = with_machine(|machine| machine.interfaces[0].receive_queues = 1);
    assert!(state == FindingState::Warn && words.contains("tuning/nic.sh eth0"), "{words}");
    let (state, words) = with_machine(|machine| machine.interfaces[0].interrupt_cpus = vec![1]);
    assert!(
        state == FindingState::Warn && words.contains("all queues of eth0 interrupt CPU 1"),
        "{words}"
    );
    let mut machine = machine();
    let interface = &mut machine.interfaces[0];
    (interface.receive_queues, interface.spreads, interface.interrupt_cpus) = (1, true, vec![0]);
    assert_eq!(examine(&machine, &plan()).state, FindingState::Ok);
}

#[test]
fn the_settings_that_are_handed_out_are_those_that_are_wanted() {
    let lines = include_str!("../../tuning/99-gridcast.conf").lines();
    let settings =
        lines.filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    let mut count = 0;
    for (name, value) in settings {
        let mut machine = machine();
        let numbers = value.split(' ').map(|number| number.parse().unwrap()).collect();
        let setting = machine.settings.iter_mut().find(|(known, _)| **known == name);
        *setting.unwrap_or_else(|| panic!("nobody judges {name}")).1 = numbers;
        assert_eq!(examine(&machine, &plan()).state, FindingState::Ok, "{name}");
        count += 1;
    }
    assert!(count >= 7);
}

#[test]
fn the_report_as_json_has_the_same_in_it() {
    let mut machine = machine();
    machine.settings.insert("net.core.somaxconn", vec![128]);
    let json: serde_json::Value =
        serde_json::from_str(&examine(&machine, &plan()).to_json()).unwrap();
    assert_eq!((&json["state"], &json["clients"]), (&"warn".into(), &500_000.into()));
    let findings = json["findings"].as_array().unwrap();
    assert_eq!(findings.len(), CHECKS.len());
    let finding = findings.iter().find(|finding| finding["name"] == "net.core.somaxconn").unwrap();
    assert_eq!((&finding["state"], &finding["found"]), (&"warn".into(), &"128".into()));
    assert_eq!(finding["mend"], "sysctl -w net.core.somaxconn=4096");
}

/// A machine where everything that a container can be short of is short.
fn narrow_container(container: Container) -> DoctorReport {
    let mut machine = machine();
    machine.container = Some(container);
    machine.ring =
        Some(Err("io_uring: this process is not allowed to use it; see `sysctl`".into()));
    machine.group = CgroupLimits { cpus: Some(1.0), memory_bytes: Some(1 << 30) };
    machine.descriptors = Some(1024);
    machine.locked_bytes = Some(64 << 10);
    for (name, value) in
        [("net.core.somaxconn", 128), ("net.core.rmem_max", 212_992), ("fs.file-max", 1000)]
    {
        machine.settings.insert(name, vec![value]);
    }
    examine(&machine, &Plan { driver: DriverChoice::Auto, ..plan() })
}

#[test]
fn in_a_container_each_finding_names_the_place_where_its_setting_can_be_changed() {
    let places: [(&str, &str, &str); 8] = [
        ("io_uring", "--security-opt seccomp=FILE", "securityContext.seccompProfile"),
        ("descriptors (RLIMIT_NOFILE)", "--ulimit nofile=533", "LimitNOFILE=533"),
        ("locked memory (RLIMIT_MEMLOCK)", "--ulimit memlock=", "LimitMEMLOCK="),
        ("memory", "--memory of the container", "resources.limits.memory"),
        ("CPU quota of the control group", "--cpuset-cpus with 2", "resources.limits.cpu of 2"),
        ("net.core.somaxconn", "--sysctl net.core.somaxconn=4096", "securityContext.sysctls"),
        ("net.core.rmem_max", "on the machine", "on the machine"),
        ("fs.file-max", "on the machine", "on the machine"),
    ];
    for (container, of_kubernetes) in [(Container::Docker, false), (Container::Kubernetes, true)] {
        let report = narrow_container(container);
        assert_eq!(report.findings[0].name, "container");
        for (name, docker, kubernetes) in places {
            let finding = report.findings.iter().find(|finding| finding.name == name).unwrap();
            let mend = finding.mend.as_deref().unwrap_or_default();
            let place = if of_kubernetes { kubernetes } else { docker };
            assert!(mend.contains(place), "{container:?}: {finding}");
        }
        let of_systemd = report.findings.iter().filter_map(|finding| finding.mend.as_deref());
        let misleading = |mend: &&str| {
            mend.starts_with("sysctl") && !mend.contains("on the machine")
                || mend.contains("MemoryMax=")
                || mend.contains("limits.conf")
        };
        assert_eq!(of_systemd.filter(misleading).count(), 0, "{report}");
    }
}

#[test]
fn io_uring_that_a_container_forbids_is_no_fault_of_a_node_that_may_use_epoll() {
    let report = narrow_container(Container::Docker);
    let finding = report.findings.iter().find(|finding| finding.name == "io_uring").unwrap();
    assert_eq!(finding.state, FindingState::Warn);
    assert!(finding.mend.as_ref().unwrap().contains("node.driver = \"epoll\""), "{finding}");
}
