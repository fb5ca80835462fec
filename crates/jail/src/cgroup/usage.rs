//! What a jail has used so far, from its cgroups' counters. What the host does not count stays `None`.

use std::time::Duration;

use luna_core::engine::Usage;
use luna_core::units::Bytes;

use super::{Cgroups, Group, Version};

/// Version 1 writes "no limit" as the largest multiple of a page below 2^63.
const NO_LIMIT: u64 = 1 << 62;

pub(super) fn read(cgroups: &Cgroups) -> Usage {
    let mut usage = Usage {
        cpu: cpu(cgroups),
        ..Usage::default()
    };
    if let Some(group) = cgroups.with("memory") {
        memory(group, &mut usage);
    }
    if let Some(group) = cgroups.with("pids") {
        usage.pids = number(group, "pids.current");
        usage.pids_limit = number(group, "pids.max");
    }
    if let Some((read, written)) = traffic(cgroups) {
        usage.read = Some(Bytes(read));
        usage.written = Some(Bytes(written));
    }
    usage
}

fn cpu(cgroups: &Cgroups) -> Option<Duration> {
    if let Some(group) = cgroups.with("cpuacct") {
        return number(group, "cpuacct.usage").map(Duration::from_nanos);
    }
    // Version 2 counts time in every cgroup, controller or not.
    let group = cgroups.of(Version::Two).next()?;
    field(group, "cpu.stat", "usage_usec").map(Duration::from_micros)
}

fn memory(group: &Group, usage: &mut Usage) {
    let (current, limit, cache) = match group.version {
        Version::Two => ("memory.current", "memory.max", "inactive_file"),
        Version::One => (
            "memory.usage_in_bytes",
            "memory.limit_in_bytes",
            "total_inactive_file",
        ),
    };
    // Cache that the kernel drops before anything else is not counted, as docker's statistics do.
    let idle = field(group, "memory.stat", cache).unwrap_or(0);
    usage.memory = number(group, current).map(|bytes| Bytes(bytes.saturating_sub(idle)));
    usage.memory_limit = number(group, limit).filter(|bytes| *bytes < NO_LIMIT).map(Bytes);
    usage.oom_kills = match group.version {
        Version::Two => field(group, "memory.events", "oom_kill"),
        Version::One => field(group, "memory.oom_control", "oom_kill"),
    };
}

fn traffic(cgroups: &Cgroups) -> Option<(u64, u64)> {
    if let Some(group) = cgroups.with("io") {
        return group.read("io.stat").ok().map(|text| sum_version_two(&text));
    }
    let group = cgroups.with("blkio")?;
    group
        .read("blkio.throttle.io_service_bytes")
        .ok()
        .map(|text| sum_version_one(&text))
}

/// `8:0 rbytes=1 wbytes=2 rios=3 ...` by device.
fn sum_version_two(text: &str) -> (u64, u64) {
    let sum = |key: &str| {
        text.split_whitespace()
            .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// `8:0 Read 1` by device and direction.
fn sum_version_one(text: &str) -> (u64, u64) {
    let sum = |direction: &str| {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split(' ').skip(1);
                (words.next()? == direction).then(|| words.next()?.parse::<u64>().ok())?
            })
            .fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

/// `max` and everything else that is no number is `None`.
fn number(group: &Group, file: &str) -> Option<u64> {
    group.read(file).ok()?.trim().parse().ok()
}

fn field(group: &Group, file: &str, key: &str) -> Option<u64> {
    let text = group.read(file).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_summed_over_devices() {
        let text = "8:0 rbytes=10 wbytes=1 rios=1 wios=1\n8:16 rbytes=5 wbytes=0 rios=1 wios=0\n";
        assert_eq!(sum_version_two(text), (15, 1));
        let text = "8:0 Read 10\n8:0 Write 1\n8:0 Sync 11\n8:16 Read 5\nTotal 16\n";
        assert_eq!(sum_version_one(text), (15, 1));
    }
}
