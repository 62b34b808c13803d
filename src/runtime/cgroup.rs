//! The limits of the process's control group. The limits of parent groups apply too (Linux:
//! Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/).

/// The limits of a control group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CgroupLimits {
    /// CPU time, in CPUs. `None`: unlimited.
    pub cpus: Option<f64>,
    /// Memory, in bytes. `None`: unlimited.
    pub memory_bytes: Option<u64>,
}

/// A limit at which version 1 means "unlimited": it writes the largest multiple of a page instead.
const UNLIMITED: u64 = 1 << 60;

/// Returns the limits of the group. `groups` is the text of /proc/self/cgroup; `read` reads a file.
pub fn limits(groups: &str, read: impl Fn(&str) -> Option<String>) -> CgroupLimits {
    let mut limits = CgroupLimits::default();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        for folder in ancestors(path) {
            let has = |name| controllers.split(',').any(|controller| controller == name);
            let file = |controller: &str, file: &str| {
                read(&format!("/sys/fs/cgroup{controller}{folder}/{file}"))
            };
            if controllers.is_empty() {
                limits.bound_cpus(file("", "cpu.max").as_deref().and_then(cpus_v2));
                limits.bound_memory(file("", "memory.max").as_deref().and_then(number));
            }
            if has("cpu") {
                let quota = file("/cpu", "cpu.cfs_quota_us").as_deref().and_then(number);
                let period = file("/cpu", "cpu.cfs_period_us").as_deref().and_then(number);
                limits.bound_cpus(quota.zip(period).map(|(quota, period)| ratio(quota, period)));
            }
            if has("memory") {
                let limit = file("/memory", "memory.limit_in_bytes").as_deref().and_then(number);
                limits.bound_memory(limit.filter(|&limit| limit < UNLIMITED));
            }
        }
    }
    limits
}

impl CgroupLimits {
    fn bound_cpus(&mut self, cpus: Option<f64>) {
        self.cpus = [self.cpus, cpus].into_iter().flatten().reduce(f64::min);
    }

    fn bound_memory(&mut self, bytes: Option<u64>) {
        self.memory_bytes = [self.memory_bytes, bytes].into_iter().flatten().min();
    }
}

/// Returns the machine's memory in bytes. `text` is the content of /proc/meminfo, which uses KiB.
pub fn memory_total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(number(line.split_whitespace().next()?)? * 1024)
}

/// Yields a path and its parents: `/a/b`, `/a`, and the empty path for the root.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.trim_end_matches('/');
    std::iter::successors(Some(path), |path| path.rfind('/').map(|end| &path[..end]))
}

fn cpus_v2(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    Some(ratio(number(quota)?, number(period)?))
}

fn ratio(quota: u64, period: u64) -> f64 {
    quota as f64 / period.max(1) as f64
}

/// Parses a limit. `max` and -1, which mean "unlimited", give `None`.
fn number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(groups: &str, files: &[(&str, &str)]) -> CgroupLimits {
        limits(groups, |path| {
            let file = files.iter().find(|(name, _)| *name == path)?;
            Some(format!("{}\n", file.1))
        })
    }

    #[test]
    fn a_group_of_version_2_is_bound_by_the_narrowest_above_it() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000"),
            ("/sys/fs/cgroup/a/cpu.max", "150000 100000"),
            ("/sys/fs/cgroup/a/b/memory.max", "1048576"),
            ("/sys/fs/cgroup/a/memory.max", "2097152"),
        ];
        let limits = read("0::/a/b\n", &files);
        assert_eq!(limits, CgroupLimits { cpus: Some(1.5), memory_bytes: Some(1 << 20) });
    }

    #[test]
    fn a_group_of_version_1_has_a_folder_for_each_controller() {
        let groups = "4:memory:/m\n1:cpu,cpuacct:/c\n0::/\n";
        let files = [
            ("/sys/fs/cgroup/cpu/c/cpu.cfs_quota_us", "50000"),
            ("/sys/fs/cgroup/cpu/c/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000"),
            ("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "4096"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712"),
        ];
        let limits = read(groups, &files);
        assert_eq!(limits, CgroupLimits { cpus: Some(0.5), memory_bytes: Some(4096) });
    }

    #[test]
    fn the_machines_memory_is_read_in_kib() {
        let text = "MemFree: 1 kB\nMemTotal:       24684092 kB";
        assert_eq!(memory_total(text), Some(25_276_510_208));
    }

    #[test]
    fn where_nothing_is_said_nothing_is_limited() {
        for groups in ["", "0::/\n", "nonsense", "1:cpu:/a\n"] {
            assert_eq!(read(groups, &[]), CgroupLimits::default());
        }
    }
}
