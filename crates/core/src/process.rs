//! What init runs inside a sandbox: the main process or an exec; the same behind both walls.

use serde::{Deserialize, Serialize};

use crate::capability::Capabilities;

/// A program with everything init needs to start it. Nothing is left to decide, but names of users and programs are
/// looked up inside the sandbox, by init, in the sandbox's own files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments; never empty. A program without a slash is searched in `PATH` of `env`.
    pub args: Vec<String>,
    /// Variables in order; a later one of the same name wins. `HOME` and `TERM` are filled in by init where missing.
    pub env: Vec<(String, String)>,
    /// Absolute; created (owned by root) where missing.
    pub cwd: String,
    /// `user`, `uid`, `user:group`, `uid:gid` or empty for root, as in an image's `User`.
    pub user: String,
    /// Supplementary groups by name or number, besides those `/etc/group` gives the user.
    pub groups: Vec<String>,
    /// A terminal of this size in place of pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether standard input is connected; `/dev/null` otherwise.
    pub stdin: bool,
    /// The bounding set; permitted and effective follow from the user (root: all of it, others: none), inheritable and
    /// ambient stay empty.
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub rlimits: Vec<Rlimit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

/// One `setrlimit(2)`; [`Rlimit::UNLIMITED`] is `RLIM_INFINITY`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: RlimitKind,
    pub soft: u64,
    pub hard: u64,
}

impl Rlimit {
    pub const UNLIMITED: u64 = u64::MAX;
}

/// The resources of `--ulimit`, by docker's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RlimitKind {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(u8),
    Signal { number: u8, core_dumped: bool },
}

impl ExitStatus {
    /// The shell's and docker's convention: 128 + n for signal n.
    pub fn code(self) -> u8 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal { number, .. } => 128u8.saturating_add(number),
        }
    }

    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}
