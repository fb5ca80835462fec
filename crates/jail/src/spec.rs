//! What a jail is made of, with nothing left to decide. The defaults are the whole wall; less is had only by naming it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use luna_core::capability::Capabilities;
use luna_core::process::Rlimit;
use luna_core::spec::PidsLimit;
use luna_core::units::{Bytes, MilliCpus};

/// One jail. Launching consumes it.
#[derive(Debug)]
pub struct Spec {
    /// Names the cgroup and appears in errors: `[A-Za-z0-9_.-]`, no slash.
    pub name: String,
    pub program: Program,
    /// The host's id for the jail's 0; the jail has as many as [`Ids::count`].
    pub ids: Ids,
    pub root: Root,
    pub hostname: String,
    /// Small files laid over the root's own.
    pub files: Vec<File>,
    /// In the order they are attached: a mount inside another comes later.
    pub mounts: Vec<Mount>,
    /// Size of `/dev/shm`.
    pub shared_memory: Bytes,
    pub network: Network,
    pub limits: Limits,
    pub rlimits: Vec<Rlimit>,
    pub security_labels: SecurityLabels,
    pub defences: Defences,
}

/// The trusted first process.
#[derive(Debug)]
pub struct Program {
    /// A sealed memfd (see [`crate::sealed`]).
    pub executable: OwnedFd,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Standard input, output and error; `/dev/null` of the jail where absent.
    pub stdio: [Option<OwnedFd>; 3],
    /// These become descriptors 3, 4, ... of the program; it inherits no other.
    pub descriptors: Vec<OwnedFd>,
}

/// Jail ids `0..count` are the host's `base..base + count`, uid and gid alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    pub base: u32,
    pub count: u32,
}

/// What the jail sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// Read-only directories, topmost first, under one writable directory.
    Overlay {
        lower: Vec<PathBuf>,
        upper: PathBuf,
        work: PathBuf,
        read_only: bool,
    },
    /// Nothing but what is mounted into it, on a read-only tmpfs.
    Empty,
}

/// A file of the launcher's making, read-only in the jail's file tree except for the jail's root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Absolute, inside the jail; created where missing.
    pub target: PathBuf,
    pub content: Vec<u8>,
}

/// Something mounted at `target`, which is resolved inside the jail's root and created where missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// A file, directory or socket of the host with all that is mounted below it; never with device nodes or setuid
    /// programs in force. With ids that are not the host's own, jail id n is the host's id n in there.
    Bind {
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
    },
    Tmpfs {
        target: PathBuf,
        size: Option<Bytes>,
        mode: u32,
        executable: bool,
    },
    /// One device node of the host. For reading or writing alone it is given only where there is a device cgroup
    /// (version 1) that tells the two apart; elsewhere launching fails.
    Device {
        source: PathBuf,
        target: PathBuf,
        read: bool,
        write: bool,
    },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A namespace of its own with nothing but a loopback.
    #[default]
    Own,
    /// The caller's namespace.
    Host,
}

/// Limits asked for; each is enforced or launching fails. [`Limits::default_pids`] alone is best effort.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub memory: Option<Bytes>,
    /// Swap alone, on top of memory; `Some(0)` forbids it.
    pub swap: Option<Swap>,
    pub cpus: Option<MilliCpus>,
    pub cpuset: Option<String>,
    pub pids: Option<PidsLimit>,
    /// Set where the host can and `pids` is absent.
    pub default_pids: Option<u32>,
    /// 10 to 1000.
    pub io_weight: Option<u16>,
}

impl Limits {
    /// Whether any limit was asked for.
    pub(crate) fn asked(&self) -> bool {
        let best_effort = Limits {
            default_pids: self.default_pids,
            ..Limits::default()
        };
        *self != best_effort
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swap {
    Unlimited,
    At(Bytes),
}

/// Labels for the host's security module; asking for one where the host has none is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityLabels {
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
}

/// Each defence by name. `Defences::default()` is all of them; a field that differs takes exactly that one out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools)] // Each is one defence that stands or does not.
pub struct Defences {
    pub user_namespace: bool,
    pub pid_namespace: bool,
    pub ipc_namespace: bool,
    pub uts_namespace: bool,
    pub cgroup_namespace: bool,
    /// Files and directories of `/proc` and `/sys` covered by nothing readable.
    pub masked_paths: bool,
    /// Directories of `/proc` that stay readable only.
    pub read_only_paths: bool,
    /// `/sys` and the cgroup tree are read-only.
    pub read_only_system: bool,
    /// Targets inside the root are resolved as if it were `/`, without magic links.
    pub resolve_in_root: bool,
    /// `nosuid,nodev` on binds.
    pub restricted_binds: bool,
    /// `read_only` on binds is enforced.
    pub read_only_binds: bool,
    /// The bounding set, and so the most any process inside can ever hold.
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    pub landlock: Landlock,
    pub new_session_keyring: bool,
    /// The program has no controlling terminal.
    pub new_session: bool,
    /// Nothing but the named descriptors survives into the program.
    pub close_descriptors: bool,
    /// The executable must be a memfd with every seal.
    pub sealed_program: bool,
    /// The device cgroup (version 1) allows only the usual character devices.
    pub device_cgroup: bool,
    /// The jail dies with the thread that launched it.
    pub die_with_parent: bool,
}

impl Default for Defences {
    fn default() -> Defences {
        Defences {
            user_namespace: true,
            pid_namespace: true,
            ipc_namespace: true,
            uts_namespace: true,
            cgroup_namespace: true,
            masked_paths: true,
            read_only_paths: true,
            read_only_system: true,
            resolve_in_root: true,
            restricted_binds: true,
            read_only_binds: true,
            capabilities: Capabilities::DEFAULT,
            no_new_privileges: true,
            seccomp: Seccomp::default(),
            landlock: Landlock::default(),
            new_session_keyring: true,
            new_session: true,
            close_descriptors: true,
            sealed_program: true,
            device_cgroup: true,
            die_with_parent: true,
        }
    }
}

/// What Landlock adds, as far as the kernel knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Landlock {
    Absent,
    /// No signals to and no abstract sockets of processes outside.
    #[default]
    Scopes,
    /// Also: nothing is written, made or removed by its path but what a mount of the spec gives to be written, and no TCP.
    /// Descriptors that are open already keep what they may. Not for programs that mount.
    ReadOnly,
    /// The same with TCP left open, for a program that serves a network namespace of its own.
    ReadOnlyFiles,
}

/// Which system calls the jail may make.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Seccomp {
    /// The allow-list of [`crate::seccomp`], widened by exactly what is named.
    Filter {
        /// The four calls a browser's own sandbox makes to build user namespaces.
        nested_user_namespaces: bool,
        /// Closed calls and socket families opened one by one; tests take single rules out with it.
        also: Vec<Opening>,
    },
    Unconfined,
}

impl Default for Seccomp {
    fn default() -> Seccomp {
        Seccomp::Filter {
            nested_user_namespaces: false,
            also: Vec::new(),
        }
    }
}

/// One thing the filter closes by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opening {
    /// A system call by its number on this architecture.
    Call(i64),
    /// A domain of socket(2).
    SocketFamily(u32),
}
