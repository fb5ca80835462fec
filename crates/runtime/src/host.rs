//! The host report: every engine probed, the result kept until the host, the user or Luna itself changes.

use std::fs;
use std::os::unix::fs::MetadataExt;

use luna_core::Result;
use luna_core::host::{EngineReport, HostReport};
use luna_core::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::layout::{self, Durability, Layout};

/// What `host.json` holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Boot, user and executable the report was made under.
    made_under: String,
    report: HostReport,
}

/// The report, from disk where nothing changed since, with memory as it is at this moment.
pub(crate) fn report(
    layout: &Layout,
    rootless: bool,
    fresh: bool,
    probe: &dyn Fn() -> Vec<EngineReport>,
) -> Result<HostReport> {
    let path = layout.host_report();
    let made_under = circumstances();
    let kept = fs::read(&path)
        .ok()
        .and_then(|content| serde_json::from_slice::<Kept>(&content).ok());
    let (total, available) = memory();
    if let Some(kept) = kept
        && !fresh
        && kept.made_under == made_under
    {
        return Ok(HostReport {
            memory_total: total,
            memory_available: available,
            ..kept.report
        });
    }
    let uname = rustix::system::uname();
    let report = HostReport {
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_total: total,
        memory_available: available,
        rootless,
        engines: probe(),
    };
    let kept = Kept { made_under, report };
    if let Ok(content) = serde_json::to_vec(&kept) {
        layout::replace(&path, &content, Durability::Atomic)?;
    }
    Ok(kept.report)
}

fn circumstances() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let executable =
        fs::metadata("/proc/self/exe").map_or((0, 0), |metadata| (metadata.ino(), metadata.mtime_nsec()));
    let user = rustix::process::geteuid().as_raw();
    // The same user behind another user namespace or in another cgroup may do other things.
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let cgroup = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    format!(
        "{} {} {executable:?} {user} {map} {cgroup}",
        env!("CARGO_PKG_VERSION"),
        boot.trim()
    )
}

/// `MemTotal` and `MemAvailable`.
fn memory() -> (Bytes, Bytes) {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(name)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<u64>()
                    .ok()
            })
            .map_or(Bytes(0), |kibibytes| Bytes(kibibytes << 10))
    };
    (field("MemTotal:"), field("MemAvailable:"))
}
