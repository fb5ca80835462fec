//! One sandbox on disk: what was asked and decided (`sandbox.json`, written at creation) and how it fares
//! (`status.json`, written by its supervisor).
//!
//! Both carry a version and are parsed strictly. Whether a sandbox runs is told by its `lock`, which the supervisor
//! holds as long as it lives: a status that says "running" under a free lock is the last word of a killed supervisor.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use luna_core::engine::IdRange;
use luna_core::error::Report;
use luna_core::name::{Id, Name};
use luna_core::policy::Decision;
use luna_core::process::Process;
use luna_core::spec::{BootRequest, HealthCheck, PortMapping, Spec};
use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// The version of both files; another one is refused.
pub(crate) const VERSION: u32 = 3;

/// Everything a start needs to know. Nothing in it is decided again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub version: u32,
    pub id: Id,
    pub name: Name,
    /// RFC 3339, UTC.
    pub created: String,
    pub spec: Spec,
    pub decision: Decision,
    pub content: Content,
    pub ids: IdRange,
    pub hostname: String,
    pub stop_signal: u8,
    pub stop_grace: Duration,
    pub health: Option<HealthCheck>,
    pub mounts: Vec<PlannedMount>,
    pub labels: BTreeMap<String, String>,
    /// Whether nested user namespaces were granted, and by what.
    pub nested_user_namespaces: bool,
}

impl Record {
    /// What the user called what is in it: an image, or a disk's file.
    pub fn reference(&self) -> &str {
        match &self.content {
            Content::Program { image, .. } => &image.reference,
            Content::System(_) => &self.spec.image,
        }
    }

    /// The id of its image, where it has one.
    pub fn image_id(&self) -> Option<&str> {
        match &self.content {
            Content::Program { image, .. } => Some(&image.id),
            Content::System(_) => None,
        }
    }

    /// Its main process, where Luna knows of one.
    pub fn process(&self) -> Option<&Process> {
        match &self.content {
            Content::Program { process, .. } => Some(process),
            Content::System(_) => None,
        }
    }

    /// What another program in this sandbox starts from: the main process's surroundings without its terminal, its
    /// input and its token, which any program of the same user could read from `/proc`.
    pub fn companion(&self, args: Vec<String>) -> Result<Process> {
        let main = self.process().ok_or_else(|| self.no_init())?;
        let mut process = Process {
            args,
            terminal: None,
            stdin: false,
            ..main.clone()
        };
        process.env.retain(|(name, _)| name != TOKEN);
        Ok(process)
    }

    /// The error of whatever only init could do, in a system that is not Luna's.
    pub(crate) fn no_init(&self) -> Error {
        let name = &self.name;
        Error::new(Kind::Unsupported, format!("cannot reach into `{name}`"))
            .because("it runs a disk image's own system, with no init of Luna's inside")
            .hint(format!(
                "`luna attach {name}` is its console; what it serves is reached through `-p`"
            ))
    }
}

/// What runs in a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Content {
    /// A program from an image, under Luna's init.
    Program { image: ImageName, process: Box<Process> },
    /// A disk image's own system.
    System(BootRequest),
}

/// The variable that gives the main process the secret its clients must know.
pub const TOKEN: &str = "LUNA_TOKEN";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageName {
    /// The image's id: the digest of its config.
    pub id: String,
    /// What the user called it.
    pub reference: String,
}

/// A mount with its volume found or named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum PlannedMount {
    Bind {
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
    },
    Volume {
        name: Name,
        target: PathBuf,
        read_only: bool,
        anonymous: bool,
    },
    Tmpfs {
        target: PathBuf,
        size: Option<u64>,
        mode: u32,
        executable: bool,
    },
}

/// The last of the five nouns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Status {
    pub version: u32,
    pub state: State,
    pub started: Option<String>,
    pub finished: Option<String>,
    pub exit_code: Option<u8>,
    /// Why it could not start, or why it ended when no exit code tells.
    pub error: Option<Report>,
    pub out_of_memory: bool,
    pub restarts: u32,
    pub health: Option<Health>,
    /// As bound, with the port the system picked where 0 was asked.
    pub ports: Vec<PortMapping>,
    pub supervisor: Option<u32>,
    /// Stopped by a command: `unless-stopped` leaves it alone.
    pub stopped: bool,
    /// The process that made it and may be about to start it: no prune takes a sandbox from under its maker.
    pub maker: u32,
}

impl Status {
    pub fn created() -> Status {
        Status {
            version: VERSION,
            state: State::Created,
            started: None,
            finished: None,
            exit_code: None,
            error: None,
            out_of_memory: false,
            restarts: 0,
            health: None,
            ports: Vec::new(),
            supervisor: None,
            stopped: false,
            maker: std::process::id(),
        }
    }
}

/// ```text
/// created ──start──▶ running ◀──pause/unpause──▶ paused
///    ▲                 │  ▲
///    │               exit  └──────── restarting
///  create              ▼                 ▲
///                   exited ──policy──────┘      (start leads from exited to running again)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Created,
    Running,
    Paused,
    Restarting,
    Exited,
}

impl State {
    /// Whether a supervisor must be there for this to be true.
    pub fn live(self) -> bool {
        matches!(self, State::Running | State::Paused | State::Restarting)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Restarting => "restarting",
            State::Exited => "exited",
        })
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Health {
    pub status: HealthStatus,
    pub failing: u32,
    /// The last check's exit code and the end of its output.
    pub last_exit: Option<u8>,
    pub last_output: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

impl std::fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            HealthStatus::Starting => "starting",
            HealthStatus::Healthy => "healthy",
            HealthStatus::Unhealthy => "unhealthy",
        })
    }
}
