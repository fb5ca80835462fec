//! Measures what stands round the running sandbox. The supervisor does it: it is the parent of what it looks at, so the
//! numbers it reads are surely those of its own sandbox.

use std::fs;
use std::path::{Path, PathBuf};

use luna_core::Result;
use luna_core::engine::{CgroupPlace, Outside as Wall, Wall as Kind};
use luna_core::isolation::{
    Attempt, Cgroup, Closed, Inside, Isolation, Kernel, Namespace, Outside, Process, Role, Seen, VERSION,
    credentials, id_map, label, mounts,
};
use luna_guest::protocol::{self, Surroundings};
use luna_image::Digest;

use super::live::{Inside as Within, Shared};

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Limits worth reading back, of both versions; a file that is not there is a limit that is not there.
const LIMITS: [&str; 13] = [
    "memory.max",
    "memory.swap.max",
    "memory.limit_in_bytes",
    "memory.memsw.limit_in_bytes",
    "cpu.max",
    "cpu.cfs_quota_us",
    "cpu.cfs_period_us",
    "cpuset.cpus",
    "pids.max",
    "io.weight",
    "blkio.weight",
    "blkio.bfq.weight",
    "devices.list",
];

pub(super) fn measure(shared: &Shared) -> Result<Isolation> {
    let running = shared.running()?;
    let record = &shared.sandbox.record;
    let (Within::Init { session, main }, Some(image)) = (&running.inside, record.image_id()) else {
        return Err(record.no_init());
    };
    let engine = record.decision.engine;
    let wall = running.control.outside()?;
    let paths = |closed: Closed, paths: &[PathBuf]| {
        let text = |path: &PathBuf| (closed, path.to_string_lossy().into_owned());
        paths.iter().map(text).collect::<Vec<_>>()
    };
    let mut tried = Vec::new();
    // In a machine these are its own kernel's to show, and nothing of the host's.
    if !engine.own_kernel() {
        tried.extend(paths(Closed::Covered, &wall.masked));
        tried.extend(paths(Closed::ReadOnly, &wall.read_only));
        tried.truncate(protocol::MAX_ATTEMPTS);
    }
    let found = session.measure(tried.iter().map(|(_, path)| path.clone()).collect())?;
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Ok(Isolation {
        version: VERSION,
        id: record.id.clone(),
        name: record.name.clone(),
        engine,
        reason: record.decision.reason.clone(),
        image: image.to_owned(),
        reference: record.reference().to_owned(),
        host_kernel: Kernel {
            release: text(uname.release()),
            version: text(uname.version()),
            machine: text(uname.machine()),
        },
        outside: outside(engine.wall, &wall, main.pid()),
        inside: inside(found, &tried),
    })
}

fn outside(kind: Kind, wall: &Wall, main: u32) -> Outside {
    let first = Path::new("/proc").join(wall.pid.to_string());
    let read = |file: &str| fs::read_to_string(first.join(file)).unwrap_or_default();
    let process = |role, pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        process(role, &status)
    };
    let processes = match kind {
        Kind::Vm => vec![process(Role::Vmm, wall.pid)],
        Kind::Container => vec![
            process(Role::Init, wall.pid),
            child_called(wall.pid, main).and_then(|pid| process(Role::Main, pid)),
        ],
    };
    Outside {
        processes: processes.into_iter().flatten().collect(),
        uid_map: id_map(&read("uid_map")),
        gid_map: id_map(&read("gid_map")),
        label: label(&read("attr/current")),
        seccomp_filter: wall
            .seccomp
            .as_ref()
            .map(|program| Digest::of(program).to_string()),
        landlock: wall.landlock,
        namespaces: NAMESPACES
            .iter()
            .filter_map(|name| {
                let own = inode(&first.join("ns").join(name))?;
                let host = inode(&Path::new("/proc/self/ns").join(name));
                Some(Namespace::new(name, own, host))
            })
            .collect(),
        cgroups: wall.cgroups.iter().map(|place| cgroup(place, wall.pid)).collect(),
        mounts: mounts(&read("mountinfo")),
        boots: wall.boots,
    }
}

fn process(role: Role, status: &str) -> Option<Process> {
    let (pid, credentials) = credentials(status)?;
    Some(Process {
        role,
        pid,
        credentials,
    })
}

/// The child of `init` that is `inner` in its own pid namespace: the number from inside leads to no other sandbox's.
fn child_called(init: u32, inner: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .find(|pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            numbers
                .and_then(|numbers| numbers.split_whitespace().last()?.parse().ok())
                .is_some_and(|last: u32| last == inner)
        })
}

/// `mnt:[4026531841]`.
fn inode(link: &Path) -> Option<u64> {
    let link = fs::read_link(link).ok()?;
    link.to_str()?.split_once(":[")?.1.strip_suffix(']')?.parse().ok()
}

fn cgroup(place: &CgroupPlace, pid: u32) -> Cgroup {
    let read = |file: &str| fs::read_to_string(place.path.join(file)).ok();
    let own = pid.to_string();
    let value = |file: &&str| {
        let text = read(file)?;
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        Some(((*file).to_owned(), lines.join("; ")))
    };
    Cgroup {
        place: place.clone(),
        holds: read("cgroup.procs").is_some_and(|pids| pids.lines().any(|pid| pid == own)),
        values: LIMITS.iter().filter_map(value).collect(),
    }
}

/// The guest's own words, as far as they are the shape they should be.
fn inside(found: Surroundings, tried: &[(Closed, String)]) -> Inside {
    let short = |text: String| label(&text).unwrap_or_default();
    let attempts = found.attempts.iter().zip(tried);
    Inside {
        kernel: Kernel {
            release: short(found.release),
            version: short(found.version),
            machine: short(found.machine),
        },
        processes: [(Role::Init, found.init), (Role::Main, found.main)]
            .into_iter()
            .filter_map(|(role, status)| process(role, &status))
            .collect(),
        uid_map: id_map(&found.uid_map),
        gid_map: id_map(&found.gid_map),
        label: label(&found.label),
        landlock: found.landlock,
        namespaces: NAMESPACES
            .iter()
            .filter_map(|name| {
                let (_, inode) = found.namespaces.iter().find(|(found, _)| found == name)?;
                Some(Namespace::new(name, *inode, None))
            })
            .collect(),
        mounts: mounts(&found.mounts),
        attempts: attempts
            .map(|(attempt, (expected, path))| {
                let seen = match attempt.seen {
                    protocol::Seen::Missing => Seen::Missing,
                    protocol::Seen::Null => Seen::NullDevice,
                    protocol::Seen::Empty => Seen::Empty,
                    protocol::Seen::Content => Seen::Content,
                    protocol::Seen::Refused(errno) => Seen::Refused(errno),
                };
                Attempt::new(path, *expected, seen, attempt.writable.err())
            })
            .collect(),
    }
}
