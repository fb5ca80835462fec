//! What the child does between clone and execve, as data: the launcher writes the list (`plan`), the child follows it
//! (`child`), and a failure travels back as the number of the step and an error number.
//!
//! Everything a step needs is allocated before the clone. Mounts live in *slots*, a table of descriptors in the child:
//! the launcher's come first, in the order it made them; the rest are filled by steps.

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use rustix::mount::MountAttrFlags;
use rustix::process::{Resource, Rlimit};

use crate::sys::{Instruction, Strings};

/// A place in the child's table of mounts. A slot may stay empty where the host lacks the thing; steps that take from an
/// empty slot do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) u8);

pub(crate) const SLOTS: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TargetKind {
    Directory,
    File,
    /// As the mount in this slot is.
    Like(Slot),
}

pub(crate) enum Step {
    /// Moves the child itself into a version 1 cgroup through its `tasks` file: a lone thread moving itself needs no
    /// RCU grace period (`cgroup_procs_write_start` in `kernel/cgroup/cgroup.c`), which costs 6 to 15 ms after idle.
    JoinCgroup(RawFd),
    CgroupNamespace,
    /// A session without a terminal: through `/dev/tty` the caller's could be typed into (CVE-2017-5226). And the usual
    /// umask, whatever the caller's is.
    Session,
    SessionKeyring,
    LoopbackUp,
    Hostname(Vec<u8>),
    /// Waits for the launcher: ids are mapped by then, and so many mounts arrive.
    Receive(usize),
    BecomeRoot,
    DieWithParent,
    PrivateMounts,
    Filesystem {
        kind: &'static CStr,
        flags: &'static [&'static CStr],
        options: Vec<(&'static CStr, CString)>,
        attributes: MountAttrFlags,
        into: Slot,
    },
    /// Over the current root, where only its slot leads to it.
    AttachOverRoot(Slot),
    MakeDirectory {
        at: Slot,
        path: CString,
        mode: u32,
    },
    MakeFile {
        at: Slot,
        path: CString,
        content: Vec<u8>,
        mode: u32,
    },
    MakeLink {
        at: Slot,
        path: CString,
        to: &'static CStr,
    },
    /// Attaches a mount at a path of a mount whose content is ours.
    Attach {
        mount: Slot,
        at: Slot,
        path: CString,
    },
    /// Attaches a mount at a path of the jail's root, whose content is anybody's.
    AttachInRoot {
        mount: Slot,
        root: Slot,
        path: CString,
        kind: TargetKind,
        in_root: bool,
    },
    /// A second mount of what lies at a path of an attached mount.
    Clone {
        at: Slot,
        path: CString,
        into: Slot,
    },
    /// Covers a path, if it is there, by nothing: an empty directory, or `null` of the devices.
    Mask {
        at: Slot,
        path: CString,
        directory: Slot,
        devices: Slot,
    },
    /// Makes a path, if it is there, a read-only mount.
    ReadOnlyPath {
        at: Slot,
        path: &'static CStr,
    },
    ReadOnly(Slot),
    /// Writes a label for the coming execve through a procfs of our own.
    ExecLabel {
        proc: Slot,
        path: &'static CStr,
        label: Vec<u8>,
    },
    Pivot(Slot),
    CheckRoot(Slot),
    ResourceLimit(Resource, Rlimit),
    Descriptors(Descriptors),
    BoundingSet(u64),
    NoNewPrivileges,
    Landlock(RawFd),
    Seccomp(std::sync::Arc<[Instruction]>),
    Capabilities(u64),
    /// Ends well without a program, for a probe of the wall.
    Stop,
    Execute {
        executable: RawFd,
        arguments: Strings,
        environment: Strings,
    },
}

/// Descriptors that the program may inherit beyond stdio.
pub(crate) const MOST_INHERITED: usize = 48;

/// Stdio, then what the program inherits from 3 on; `None` is `null` of the devices.
pub(crate) struct Descriptors {
    pub(crate) stdio: [Option<RawFd>; 3],
    pub(crate) inherited: Vec<RawFd>,
    pub(crate) executable: RawFd,
    pub(crate) devices: Slot,
    pub(crate) close_others: bool,
}

impl Descriptors {
    /// Where the executable is found afterwards; one place before it is the status socket.
    pub(crate) fn executable_place(&self) -> RawFd {
        3 + self.inherited.len() as RawFd + 1
    }
}

impl Step {
    /// What the step does, to follow "cannot".
    pub(crate) fn stage(&self) -> String {
        let text = |path: &CStr| path.to_string_lossy().into_owned();
        match self {
            Step::JoinCgroup(_) => "join its cgroup".into(),
            Step::Session => "begin a session".into(),
            Step::CgroupNamespace => "make a cgroup namespace".into(),
            Step::SessionKeyring => "make a session keyring".into(),
            Step::LoopbackUp => "bring up the loopback device".into(),
            Step::Hostname(_) => "set the host name".into(),
            Step::Receive(_) => "receive its mounts".into(),
            Step::BecomeRoot => "become root of its user namespace".into(),
            Step::DieWithParent => "tie its life to its launcher's".into(),
            Step::PrivateMounts => "make its mounts private".into(),
            Step::Filesystem { kind, .. } => format!("make a `{}` file system", text(kind)),
            Step::AttachOverRoot(_) => "attach the staging mount".into(),
            Step::MakeDirectory { path, .. } => format!("make the directory `{}`", text(path)),
            Step::MakeFile { path, .. } => format!("make the file `{}`", text(path)),
            Step::MakeLink { path, .. } => format!("make the link `{}`", text(path)),
            Step::Attach { path, .. } | Step::AttachInRoot { path, .. } => format!("mount `{}`", text(path)),
            Step::Clone { path, .. } => format!("clone the mount `{}`", text(path)),
            Step::Mask { path, .. } => format!("mask `{}`", text(path)),
            Step::ReadOnlyPath { path, .. } => format!("make `{}` read-only", text(path)),
            Step::ReadOnly(_) => "make a mount read-only".into(),
            Step::ExecLabel { path, .. } => format!("set its label through `/proc/{}`", text(path)),
            Step::Pivot(_) => "change its root".into(),
            Step::CheckRoot(_) => "find itself inside its root".into(),
            Step::ResourceLimit(resource, _) => format!("set the resource limit {resource:?}"),
            Step::Descriptors(_) => "arrange its descriptors".into(),
            Step::BoundingSet(_) => "drop capabilities".into(),
            Step::NoNewPrivileges => "give up new privileges".into(),
            Step::Landlock(_) => "enter its Landlock scope".into(),
            Step::Seccomp(_) => "load its seccomp filter".into(),
            Step::Capabilities(_) => "set its capabilities".into(),
            Step::Stop => "stop".into(),
            Step::Execute { .. } => "execute its program".into(),
        }
    }
}
