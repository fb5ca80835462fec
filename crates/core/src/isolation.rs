//! What stands round one running sandbox, as it was measured: from outside, by files of the host's kernel, and from
//! inside, by what init finds and is refused. Both walls fill the same report.
//!
//! ```text
//!            container                                vm
//! outside    init and the main process in the jail    the VMM in its jail
//! inside     the same processes, as they see it       init and the main process of the guest's own kernel
//! ```
//! What comes from inside is the sandbox's word: it is bounded here, and worth only as much as what agrees with it from
//! outside. What cannot be read is absent, never guessed. docs/isolation.md describes the JSON that this becomes.

mod proc;

pub use proc::{credentials, id_map, label, mounts};

use serde::{Deserialize, Serialize};

use crate::engine::{CgroupPlace, EngineProfile};
use crate::name::{Id, Name};

/// The shape; it grows without changing this, and changes only with it.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    pub version: u32,
    pub id: Id,
    pub name: Name,
    pub engine: EngineProfile,
    /// As it was decided.
    pub reason: String,
    /// The digest of the image's config, and what the user called it.
    pub image: String,
    pub reference: String,
    /// The host's kernel, as the supervisor is told by it.
    pub host_kernel: Kernel,
    pub outside: Outside,
    pub inside: Inside,
}

/// uname(2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    pub release: String,
    pub version: String,
    pub machine: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outside {
    /// `init` and `main` of a container, `vmm` of a machine.
    pub processes: Vec<Process>,
    pub uid_map: Vec<IdMap>,
    pub gid_map: Vec<IdMap>,
    /// The security module's, of the first process.
    pub label: Option<String>,
    /// SHA-256 of the filter as the kernel was given it.
    pub seccomp_filter: Option<String>,
    /// The version of Landlock whose scopes the jail entered.
    pub landlock: Option<u32>,
    pub namespaces: Vec<Namespace>,
    pub cgroups: Vec<Cgroup>,
    pub mounts: Mounts,
    /// How many times the wall was started until it stood.
    pub boots: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inside {
    pub kernel: Kernel,
    /// `init` and, while it runs, `main`.
    pub processes: Vec<Process>,
    pub uid_map: Vec<IdMap>,
    pub gid_map: Vec<IdMap>,
    pub label: Option<String>,
    /// The version the kernel inside answers with.
    pub landlock: Option<u32>,
    pub namespaces: Vec<Namespace>,
    pub mounts: Mounts,
    /// Paths that should be closed, tried. None in a machine, whose `/proc` is its own kernel's.
    pub attempts: Vec<Attempt>,
}

/// One process, by proc_pid_status(5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub role: Role,
    /// As seen from where it was read.
    pub pid: u32,
    #[serde(flatten)]
    pub credentials: Credentials,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Init,
    Main,
    Vmm,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// The effective ones.
    pub uid: u32,
    pub gid: u32,
    /// Names as `--cap-add` takes them.
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
    pub inheritable: Vec<String>,
    pub ambient: Vec<String>,
    pub no_new_privileges: Option<bool>,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp_mode: Option<u8>,
    pub seccomp_filters: Option<u32>,
}

/// `count` ids from `inside` on are the reader's from `outside` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// As in `/proc/PID/ns`.
    pub name: String,
    pub inode: u64,
    /// Luna's own, where it was compared.
    pub host: Option<u64>,
    /// Whether it is another one than Luna's.
    pub own: Option<bool>,
}

impl Namespace {
    pub fn new(name: &str, inode: u64, host: Option<u64>) -> Namespace {
        Namespace {
            name: name.to_owned(),
            inode,
            host,
            own: host.map(|host| host != inode),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    #[serde(flatten)]
    pub place: CgroupPlace,
    /// Whether the first process is in it.
    pub holds: bool,
    /// Files and what they say.
    pub values: Vec<(String, String)>,
}

/// A mount table. Foreign text: bounded, without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    pub mounts: Vec<Mount>,
    /// How many more there were than are listed.
    pub left_out: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub target: String,
    /// What of the file system is mounted there.
    pub root: String,
    pub file_system: String,
    pub source: String,
    pub options: String,
}

/// One path that was tried inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub path: String,
    pub expected: Closed,
    pub seen: Seen,
    /// Whether it opened for writing, or the kernel's number for why not.
    pub write_error: Option<i32>,
    /// Whether the path is closed as it should be.
    pub holds: bool,
}

/// How a path should be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Closed {
    /// Covered by nothing readable.
    Covered,
    ReadOnly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seen {
    Missing,
    NullDevice,
    Empty,
    Content,
    /// The kernel's number.
    Refused(i32),
}

/// `EROFS`: permissions say no as well, but can be changed.
const READ_ONLY: i32 = 30;

impl Attempt {
    pub fn new(path: &str, expected: Closed, seen: Seen, write_error: Option<i32>) -> Attempt {
        Attempt {
            path: path.to_owned(),
            expected,
            seen,
            write_error,
            holds: match expected {
                Closed::Covered => seen != Seen::Content,
                Closed::ReadOnly => seen == Seen::Missing || write_error == Some(READ_ONLY),
            },
        }
    }
}
