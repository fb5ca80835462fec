//! Limits as writes to cgroup files: worked out first, then done in order, and undone if one fails.

use std::io;

use luna_core::spec::PidsLimit;
use luna_core::{Error, Kind, Result};

use super::{Cgroups, Group, Version};
use crate::spec::{Limits, Swap};

/// Microseconds over which a CPU quota counts.
const PERIOD: u64 = 100_000;

struct Write<'a> {
    group: &'a Group,
    file: &'static str,
    value: String,
    /// What the user asked for, to follow "cannot"; `None` is Luna's own wish and may fail.
    asked: Option<&'static str>,
}

pub(super) fn apply(cgroups: &Cgroups, limits: &Limits) -> Result<()> {
    let writes = work_out(cgroups, limits)?;
    let mut done: Vec<(&Write<'_>, String)> = Vec::new();
    for write in &writes {
        let before = write.group.read(write.file).unwrap_or_default();
        match write.group.write(write.file, &write.value) {
            Ok(()) => done.push((write, before)),
            Err(error) => {
                let Some(what) = write.asked else { continue };
                for (write, before) in done.iter().rev() {
                    let _ = write.group.write(write.file, before.trim());
                }
                return Err(Error::io(format!("cannot {what}"), io_error(write, error)));
            }
        }
    }
    Ok(())
}

fn io_error(write: &Write<'_>, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        // What the kernel says of a value it does not like.
        Some(libc::EINVAL | libc::ERANGE) => io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the host refuses `{}` in `{}`", write.value, write.file),
        ),
        _ => error,
    }
}

fn work_out<'a>(cgroups: &'a Cgroups, limits: &Limits) -> Result<Vec<Write<'a>>> {
    let mut writes = Vec::new();
    let mut put = |group, file, value, asked| {
        writes.push(Write {
            group,
            file,
            value,
            asked,
        });
    };
    if let Some(memory) = limits.memory {
        memory_limit(cgroups, memory.0, limits.swap, &mut put)?;
    }
    if let Some(cpus) = limits.cpus {
        let what = "limit CPUs";
        let group = need(cgroups, "cpu", what)?;
        let quota = u64::from(cpus.0) * PERIOD / 1000;
        match group.version {
            Version::Two => put(group, "cpu.max", format!("{quota} {PERIOD}"), Some(what)),
            Version::One => {
                put(group, "cpu.cfs_period_us", PERIOD.to_string(), Some(what));
                put(group, "cpu.cfs_quota_us", quota.to_string(), Some(what));
            }
        }
    }
    if let Some(cpuset) = &limits.cpuset {
        let what = "choose CPUs";
        put(
            need(cgroups, "cpuset", what)?,
            "cpuset.cpus",
            cpuset.clone(),
            Some(what),
        );
    }
    match (limits.pids, cgroups.with("pids")) {
        (Some(PidsLimit::At(pids)), _) => {
            let what = "limit processes";
            put(
                need(cgroups, "pids", what)?,
                "pids.max",
                pids.to_string(),
                Some(what),
            );
        }
        (Some(PidsLimit::Unlimited), Some(group)) => put(group, "pids.max", "max".to_owned(), None),
        (None, Some(group)) => {
            if let Some(pids) = limits.default_pids {
                put(group, "pids.max", pids.to_string(), None);
            }
        }
        // Without a controller there is no limit to lift, and one that nobody asked for to be left out.
        (Some(PidsLimit::Unlimited) | None, None) => {}
    }
    if let Some(weight) = limits.io_weight {
        io_weight(cgroups, weight, &mut put)?;
    }
    Ok(writes)
}

fn memory_limit<'a>(
    cgroups: &'a Cgroups,
    memory: u64,
    swap: Option<Swap>,
    put: &mut impl FnMut(&'a Group, &'static str, String, Option<&'static str>),
) -> Result<()> {
    let what = "limit memory";
    let group = need(cgroups, "memory", what)?;
    // Without a word about swap as much again is allowed, as docker does; where swap cannot be counted, so be it.
    let asked = swap.map(|_| "limit swap");
    let swap = swap.unwrap_or(Swap::At(luna_core::units::Bytes(memory)));
    let (limit, file) = match group.version {
        Version::Two => ("memory.max", "memory.swap.max"),
        Version::One => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    };
    let value = match (group.version, swap) {
        (Version::Two, Swap::Unlimited) => "max".to_owned(),
        (Version::One, Swap::Unlimited) => "-1".to_owned(),
        (Version::Two, Swap::At(bytes)) => bytes.0.to_string(),
        (Version::One, Swap::At(bytes)) => memory.saturating_add(bytes.0).to_string(),
    };
    let counted = group.path.join(file).exists();
    if !counted && asked.is_some() && swap != Swap::Unlimited && host_swaps() {
        return Err(Error::new(Kind::Unsupported, "cannot limit swap")
            .because("the host's kernel does not count swap by cgroup")
            .hint("boot the host with `swapaccount=1`, or leave out `--memory-swap`"));
    }
    // On version 1 the sum may never be below the memory limit, whichever way both are moved.
    let current = group
        .read(limit)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    let raise = group.version == Version::One && current.is_some_and(|current| memory > current);
    if counted && raise {
        put(group, file, value, asked);
        put(group, limit, memory.to_string(), Some(what));
    } else {
        put(group, limit, memory.to_string(), Some(what));
        if counted {
            put(group, file, value, asked);
        }
    }
    Ok(())
}

fn io_weight<'a>(
    cgroups: &'a Cgroups,
    weight: u16,
    put: &mut impl FnMut(&'a Group, &'static str, String, Option<&'static str>),
) -> Result<()> {
    let what = "weigh block I/O";
    let group = cgroups
        .with("io")
        .or_else(|| cgroups.with("blkio"))
        .ok_or_else(|| missing("io", what))?;
    let files: [(&'static str, u64); 2] = match group.version {
        // Version 1 counts from 10 to 1000, version 2 from 1 to 10000 (runc `ConvertBlkIOToIOWeightValue`).
        Version::Two => [
            (
                "io.weight",
                1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990,
            ),
            ("io.bfq.weight", u64::from(weight)),
        ],
        Version::One => [
            ("blkio.weight", u64::from(weight)),
            ("blkio.bfq.weight", u64::from(weight)),
        ],
    };
    let Some((file, value)) = files.into_iter().find(|(file, _)| group.path.join(file).exists()) else {
        return Err(Error::new(Kind::Unsupported, format!("cannot {what}"))
            .because("no I/O scheduler of the host's weighs cgroups")
            .hint("use the `bfq` scheduler, or leave out `--blkio-weight`"));
    };
    put(group, file, value.to_string(), Some(what));
    Ok(())
}

fn need<'a>(cgroups: &'a Cgroups, controller: &str, what: &str) -> Result<&'a Group> {
    cgroups.with(controller).ok_or_else(|| missing(controller, what))
}

fn missing(controller: &str, what: &str) -> Error {
    Error::new(Kind::Unsupported, format!("cannot {what}"))
        .because(format!(
            "there is no `{controller}` cgroup controller that Luna may use here"
        ))
        .hint("run as root, or let systemd delegate it: `systemctl edit user@.service`, `Delegate=yes`")
}

fn host_swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}
