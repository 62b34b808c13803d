//! Containers: whether the process runs in one, and where its settings are changed then. From inside a
//! container most of them cannot be changed.

use super::finding::Finding;
use super::{Machine, Plan};

/// The program that runs the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// A pod of Kubernetes.
    Kubernetes,
    /// Docker, Podman, or anything else with their options.
    Docker,
}

/// The traces that container engines leave in the container.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ContainerTraces<'a> {
    /// The variable `KUBERNETES_SERVICE_HOST` is set.
    pub has_kubernetes_service: bool,
    /// One of the files /.dockerenv and /run/.containerenv exists.
    pub has_engine_file: bool,
    /// The variable `container` is set, as Podman, systemd-nspawn and LXC do.
    pub has_container_variable: bool,
    /// The text of /proc/self/cgroup.
    pub groups: &'a str,
}

impl Container {
    /// Returns the kind of container that left the traces. `None`: there is none.
    pub(super) fn detect(traces: &ContainerTraces<'_>) -> Option<Self> {
        let has_group = |words: &[&str]| words.iter().any(|word| traces.groups.contains(word));
        if traces.has_kubernetes_service || has_group(&["/kubepods"]) {
            return Some(Self::Kubernetes);
        }
        let is_docker = traces.has_engine_file
            || traces.has_container_variable
            || has_group(&["/docker", "/libpod", "/lxc", "/machine.slice/"]);
        is_docker.then_some(Self::Docker)
    }
}

/// Reports the container and who decides what in it.
pub(super) fn container(machine: &Machine, _: &Plan) -> Option<Finding> {
    let found = match machine.container {
        None => "none",
        Some(Container::Kubernetes) => {
            "Kubernetes: kernel settings belong to the pod or the machine, limits to the container \
             runtime; nothing of it can be changed from inside"
        }
        Some(Container::Docker) => {
            "yes: kernel settings and limits are options of the container, or settings of the \
             machine; nothing of it can be changed from inside"
        }
    };
    Some(Finding::ok("container", found))
}

/// Settings below /proc/sys that each network namespace has for itself.
const OF_THE_NETWORK: [&str; 5] = [
    "net.core.somaxconn",
    "net.ipv4.tcp_max_syn_backlog",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// A limit of a process, in the words of systemd.
#[derive(Clone, Copy, Debug)]
pub(super) enum ProcessLimit {
    /// Descriptors.
    Descriptors(u64),
    /// Locked memory, in KiB.
    LockedKib(u64),
}

/// The ways to change what a finding complains about.
impl Machine {
    /// Says how to change a setting below /proc/sys.
    pub(super) fn mend_sysctl(&self, name: &str, value: &str) -> String {
        let quoted = if value.contains(' ') {
            format!("{name}='{value}'")
        } else {
            format!("{name}={value}")
        };
        let is_of_the_network = OF_THE_NETWORK.contains(&name);
        match self.container {
            None => format!("sysctl -w {quoted}"),
            Some(_) if !is_of_the_network => {
                format!("sysctl -w {quoted} on the machine; it is the same for all containers")
            }
            Some(Container::Docker) => {
                format!("--sysctl {quoted} of the container; with --network host on the machine")
            }
            Some(Container::Kubernetes) => format!(
                "securityContext.sysctls of the pod: {quoted}; the kubelet may have to allow it \
                 (allowedUnsafeSysctls)"
            ),
        }
    }

    /// Says how to raise a limit of the process.
    pub(super) fn mend_limit(&self, limit: ProcessLimit) -> String {
        let (systemd, name, number) = match limit {
            ProcessLimit::Descriptors(count) => (format!("LimitNOFILE={count}"), "nofile", count),
            ProcessLimit::LockedKib(kib) => (format!("LimitMEMLOCK={kib}K"), "memlock", kib * 1024),
        };
        match self.container {
            None => format!("{systemd} in the systemd unit, or {name} in limits.conf"),
            Some(Container::Docker) => format!("--ulimit {name}={number} of the container"),
            Some(Container::Kubernetes) => format!(
                "{systemd} in the systemd unit of the container runtime, on the machine; a pod has no \
                 setting for it"
            ),
        }
    }

    /// Says how to allow io_uring. `mend` is the way outside of containers.
    pub(super) fn mend_io_uring(&self, mend: &str) -> String {
        let way = match self.container {
            None => return mend.to_owned(),
            Some(Container::Docker) => "--security-opt seccomp=FILE",
            Some(Container::Kubernetes) => "securityContext.seccompProfile of type Localhost",
        };
        format!(
            "{way}: a profile that allows io_uring_setup, io_uring_enter and io_uring_register, and \
             kernel.io_uring_disabled=0 on the machine; or node.driver = \"epoll\", which omits this \
             finding"
        )
    }

    /// Names the setting that bounds the memory of the control group.
    pub(super) fn memory_limit_key(&self) -> &'static str {
        match self.container {
            None => "MemoryMax=",
            Some(Container::Docker) => "--memory of the container",
            Some(Container::Kubernetes) => "resources.limits.memory of the container",
        }
    }

    /// Says how to avoid a CPU quota below the number of shards. `whole` is the quota in whole CPUs.
    pub(super) fn mend_quota(&self, whole: usize, shards: usize) -> String {
        match self.container {
            None => {
                format!("node.cores = {whole}, or a larger quota, or a cpuset instead of a quota")
            }
            Some(Container::Docker) => format!(
                "node.cores = {whole}, or --cpuset-cpus with {shards} CPUs instead of --cpus"
            ),
            Some(Container::Kubernetes) => format!(
                "node.cores = {whole}, or resources.limits.cpu of {shards} or none; whole CPUs, equal \
                 to resources.requests.cpu, are the pod's own under the kubelet's static CPU manager"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_what_their_engines_leave_in_them() {
        let none =
            ContainerTraces { groups: "0::/user.slice/session-1.scope", ..Default::default() };
        assert_eq!(Container::detect(&none), None);
        assert_eq!(Container::detect(&ContainerTraces { groups: "0::/", ..none }), None);
        let service = ContainerTraces { groups: "0::/system.slice/gridcast.service", ..none };
        assert_eq!(Container::detect(&service), None);

        let pod = ContainerTraces { has_kubernetes_service: true, has_engine_file: true, ..none };
        assert_eq!(Container::detect(&pod), Some(Container::Kubernetes));
        let file = ContainerTraces { has_engine_file: true, ..none };
        let variable = ContainerTraces { has_container_variable: true, ..none };
        for traces in [file, variable] {
            assert_eq!(Container::detect(&traces), Some(Container::Docker));
        }
        for (groups, kind) in [
            ("11:cpu:/kubepods/burstable/pod1/2", Container::Kubernetes),
            ("0::/docker/0123", Container::Docker),
            ("0::/machine.slice/libpod-0123.scope", Container::Docker),
            ("0::/system.slice/docker-0123.scope", Container::Docker),
        ] {
            let traces = ContainerTraces { groups, ..Default::default() };
            assert_eq!(Container::detect(&traces), Some(kind), "{groups}");
        }
    }
}
