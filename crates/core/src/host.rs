//! What the host can do, found out by doing it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::engine::EngineProfile;
use crate::units::Bytes;

/// One look at the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -m`.
    pub architecture: String,
    pub cpus: u32,
    pub memory_total: Bytes,
    /// `MemAvailable`.
    pub memory_available: Bytes,
    /// Whether Luna runs without root.
    pub rootless: bool,
    pub engines: Vec<EngineReport>,
}

/// Whether one engine can build its wall here, and what each attempt showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineReport {
    pub profile: EngineProfile,
    pub checks: Vec<Check>,
}

impl EngineReport {
    /// The first check the wall cannot stand without and that failed.
    pub fn obstacle(&self) -> Option<&Check> {
        self.checks.iter().find(|check| check.outcome == Outcome::Missing)
    }

    pub fn available(&self) -> bool {
        self.obstacle().is_none()
    }
}

/// One thing tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// A short noun: `user namespace`, `overlay`, `cgroup memory limit`.
    pub name: String,
    pub outcome: Outcome,
    /// What was seen: a figure, a version, or the error.
    pub detail: String,
    /// A command or setting that would change it.
    pub fix: Option<String>,
    pub took: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Works,
    /// Not here; the wall stands without it, and the detail says what is lost.
    Absent,
    /// Not here; the wall cannot be built.
    Missing,
}
