//! Which wall this computer stands behind: what it was told, what it measures, and where the two disagree.
//!
//! Nobody inside can prove which wall is outside, and a page that claimed so would lie one day. So the wall's name is what the
//! runtime said, the facts beside it are read from the kernel at every request, and each contradiction is a doubt that the
//! page shows.

mod status;

use std::fs;
use std::path::Path;

use serde::Serialize;

use status::Status;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wall {
    Container,
    Vm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    Kvm,
    Tcg,
}

/// What the runtime said, by `LUNA_*` variables.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Told {
    pub wall: Option<Wall>,
    pub accelerator: Option<Accelerator>,
    /// Luna's version, outside.
    pub luna: Option<String>,
    pub name: Option<String>,
}

/// `GET /v1/sandbox`, but for the desktop's state.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    #[serde(flatten)]
    pub told: Told,
    pub service: &'static str,
    pub hostname: String,
    pub kernel: Kernel,
    pub isolation: Isolation,
    pub limits: Limits,
    pub browser: Browser,
    pub doubts: Vec<String>,
}

/// uname(2).
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    pub release: String,
    pub version: String,
    pub machine: String,
}

/// What the kernel says about this very process, which runs as everything on the desktop does.
#[derive(Clone, Debug, Serialize)]
pub struct Isolation {
    pub user_id: u32,
    pub no_new_privileges: bool,
    pub seccomp_filters: u32,
    /// Bits by capabilities(7), in hexadecimal: now, and the most any program here may gain.
    pub capabilities: String,
    pub capabilities_bounding: String,
    /// Lines of `/proc/self/uid_map`.
    pub user_ids: Vec<IdMap>,
    /// Besides `lo`.
    pub network_interfaces: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// `None` where there is none, or none that can be seen from inside.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    pub cpus: usize,
    pub memory_bytes: Option<u64>,
    pub memory_limit_bytes: Option<u64>,
    pub processes: Option<u64>,
}

/// Chromium's own sandbox, seen from outside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Browser {
    pub renderers: usize,
    /// Those with no capabilities, no new privileges, a seccomp filter of their own and a pid namespace of their own.
    pub confined: usize,
}

impl Facts {
    pub fn gather(told: Told) -> Facts {
        let uname = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let own = Status::of(Path::new("/proc/self")).unwrap_or_default();
        let isolation = Isolation {
            user_id: own.uid,
            no_new_privileges: own.no_new_privileges,
            seccomp_filters: own.seccomp_filters,
            capabilities: format!("{:x}", own.effective),
            capabilities_bounding: format!("{:x}", own.bounding),
            user_ids: id_maps(&read("/proc/self/uid_map")),
            network_interfaces: interfaces(&read("/proc/self/net/dev")),
        };
        Facts {
            doubts: doubts(&told, &isolation),
            told,
            service: env!("CARGO_PKG_VERSION"),
            hostname: text(uname.nodename()),
            kernel: Kernel {
                release: text(uname.release()),
                version: text(uname.version()),
                machine: text(uname.machine()),
            },
            isolation,
            limits: limits(),
            browser: browser(&own),
        }
    }
}

/// Where what is measured does not look like what was told.
fn doubts(told: &Told, seen: &Isolation) -> Vec<String> {
    let mut doubts = Vec::new();
    match told.wall {
        None => doubts.push("nobody said which wall this is: it was not started by Luna".to_owned()),
        Some(Wall::Container) => {
            if seen.seccomp_filters == 0 {
                doubts.push("no seccomp filter is in force".to_owned());
            }
            if !seen.no_new_privileges {
                doubts.push("programs may gain privileges by setuid files".to_owned());
            }
            if seen
                .user_ids
                .iter()
                .any(|map| map.inside == 0 && map.outside == 0)
            {
                doubts.push("root in here is root outside: there is no user namespace".to_owned());
            }
        }
        // Behind a kernel of its own the guest's root is nobody's but the guest's.
        Some(Wall::Vm) => {}
    }
    if seen.user_id == 0 {
        doubts.push("the desktop runs as root".to_owned());
    }
    doubts
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// user_namespaces(7): inside, outside, count.
fn id_maps(text: &str) -> Vec<IdMap> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(str::parse);
            Some(IdMap {
                inside: numbers.next()?.ok()?,
                outside: numbers.next()?.ok()?,
                count: numbers.next()?.ok()?,
            })
        })
        .collect()
}

fn interfaces(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name.trim().to_owned())
        .filter(|name| name != "lo")
        .collect()
}

fn limits() -> Limits {
    let number = |paths: &[&str]| {
        paths
            .iter()
            .find_map(|path| read(path).trim().parse::<u64>().ok())
    };
    let total = read("/proc/meminfo")
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map(|kib| kib * 1024);
    Limits {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        memory_bytes: total,
        // Version 1 writes "no limit" as a number larger than any memory.
        memory_limit_bytes: number(&[
            "/sys/fs/cgroup/memory.max",
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        ])
        .filter(|limit| total.is_none_or(|total| *limit < total)),
        processes: number(&["/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"]),
    }
}

/// Reads every process's status; a process that ends meanwhile is not counted.
fn browser(own: &Status) -> Browser {
    let mut browser = Browser::default();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let is_process = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
        let renderer = is_process
            && fs::read(entry.path().join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains("--type=renderer"));
        if let Some(status) = renderer.then(|| Status::of(&entry.path())).flatten() {
            browser.renderers += 1;
            browser.confined += usize::from(status.more_confined_than(own));
        }
    }
    browser
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hardened() -> Isolation {
        Isolation {
            user_id: 1000,
            no_new_privileges: true,
            seccomp_filters: 1,
            capabilities: "0".into(),
            capabilities_bounding: "0".into(),
            user_ids: id_maps("         0     100000      65536\n"),
            network_interfaces: Vec::new(),
        }
    }

    #[test]
    fn a_hardened_container_raises_no_doubt() {
        let told = Told {
            wall: Some(Wall::Container),
            ..Told::default()
        };
        assert_eq!(doubts(&told, &hardened()), [""; 0]);
        let seen = Isolation {
            seccomp_filters: 0,
            user_ids: id_maps("0 0 4294967295"),
            no_new_privileges: false,
            user_id: 0,
            ..hardened()
        };
        assert_eq!(doubts(&told, &seen).len(), 4);
    }

    #[test]
    fn a_wall_nobody_named_is_a_doubt() {
        assert_eq!(doubts(&Told::default(), &hardened()).len(), 1);
    }

    #[test]
    fn interfaces_are_what_stands_before_the_colon() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0:5 6\n";
        assert_eq!(interfaces(text), ["eth0"]);
    }

    #[test]
    fn this_machine_can_be_measured() {
        let facts = Facts::gather(Told::default());
        assert!(!facts.kernel.release.is_empty() && facts.limits.cpus > 0);
        assert!(!facts.isolation.user_ids.is_empty());
        assert!(serde_json::to_value(&facts).unwrap()["wall"].is_null());
    }
}
