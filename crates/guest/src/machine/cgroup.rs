//! The one cgroup of the guest: the sandbox's limits, and what it has used.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use luna_core::units::Bytes;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount};

use crate::protocol::machine::{GuestLimits, GuestUsage, SetupStage};

use super::{Outcome, disks, failure};

const TREE: &str = "/cgroup";
const GROUP: &str = "/cgroup/sandbox";

pub(super) struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    pub(super) fn make(limits: GuestLimits) -> Outcome<Cgroup> {
        let failed = || failure(SetupStage::Limits, "cgroup");
        disks::directory(TREE).map_err(failed())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        mount("cgroup2", TREE, "cgroup2", flags, c"").map_err(failed())?;
        // What a kernel was built without is not missed until a limit needs it.
        for controller in ["memory", "pids", "cpu", "io", "cpuset"] {
            let _ = fs::write("/cgroup/cgroup.subtree_control", format!("+{controller}"));
        }
        disks::directory(GROUP).map_err(failed())?;
        let group = Cgroup {
            directory: GROUP.into(),
        };
        group.limit(limits)?;
        Ok(group)
    }

    /// Puts the calling process and its future children in.
    pub(super) fn enter(&self) -> Outcome<()> {
        self.write("cgroup.procs", "0")
    }

    pub(super) fn limit(&self, limits: GuestLimits) -> Outcome<()> {
        if let Some(memory) = limits.memory {
            self.write("memory.max", &memory.0.to_string())?;
        }
        if let Some(pids) = limits.pids {
            self.write("pids.max", &pids.to_string())?;
        }
        Ok(())
    }

    pub(super) fn usage(&self) -> GuestUsage {
        // Cache that the kernel drops before anything else is not counted, as docker's statistics do.
        let idle = self.field("memory.stat", "inactive_file").unwrap_or(0);
        let (read, written) = self.traffic();
        GuestUsage {
            cpu: self.field("cpu.stat", "usage_usec").map(Duration::from_micros),
            memory: self
                .number("memory.current")
                .map(|bytes| Bytes(bytes.saturating_sub(idle))),
            pids: self.number("pids.current"),
            read: Some(Bytes(read)),
            written: Some(Bytes(written)),
            oom_kills: self.field("memory.events", "oom_kill"),
        }
    }

    fn write(&self, file: &str, value: &str) -> Outcome<()> {
        fs::write(self.directory.join(file), value).map_err(|error| {
            failure(SetupStage::Limits, file)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.read(file).trim().parse().ok()
    }

    fn field(&self, file: &str, key: &str) -> Option<u64> {
        self.read(file)
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Bytes read from and written to all disks.
    fn traffic(&self) -> (u64, u64) {
        let text = self.read("io.stat");
        let sum = |key: &str| {
            text.split_whitespace()
                .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
                .fold(0, u64::saturating_add)
        };
        (sum("rbytes="), sum("wbytes="))
    }
}
