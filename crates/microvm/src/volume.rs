//! Volumes: one `luna-virtiofs` for each, in a jail of its own, that serves one directory of the host's to one machine.
//!
//! ```text
//! guest ──virtiofs──▶ QEMU ──Volume::connection──▶ luna-virtiofs ──▶ /volume: a bind mount of the source
//!    └───────────── shared memory ───────────────▶┘      the whole of what is in its jail
//! ```
//!
//! A machine reaches its daemon's memory-handling code directly, so a daemon is as hostile as the guest: what it may do is
//! what its jail lets it. It sees the source and no other file of the host's, has no network, and where the volume is read-only
//! the *mount in the jail* is: the guest may remount its own side and send what it likes (CVE-2026-46695). A link in the
//! volume leads nowhere, since the guest follows it, and inside itself. Set-id bits and device nodes are without force on the
//! host's side, as in a container's volumes.
//!
//! Ownership is the container's too: the daemon acts as the guest's user n for user n, its user namespace is the sandbox's
//! range, and the mount maps that range to the host's own ids (root), or the range is what Luna lives in (rootless).
//!
//! The engine gives QEMU, for volume n at its descriptor D, what [`TAG`] and [`QUEUE`] name, and memory that a daemon can map:
//!
//! ```text
//! -object memory-backend-memfd,id=memory,size=SIZE,share=on     -machine ...,memory-backend=memory
//! -chardev socket,id=volumeN,fd=D                               -device vhost-user-fs-pci,chardev=volumeN,tag=volumeN,queue-size=1024
//! ```
//!
//! There is no cache option: caching is the daemon's word, and it says that data may be kept while a file is open, names and
//! attributes never. QEMU does not connect anew. When a daemon has gone its guest's calls wait for ever, so the engine
//! waits for [`Volume::pidfd`] too and ends the machine.

mod connection;
mod program;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use luna_core::capability::Capabilities;
use luna_core::engine::IdRange;
use luna_core::process::{Rlimit, RlimitKind};
use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_jail::spec::{Defences, Ids, Limits, Mount, Network, Program, Root, SecurityLabels};
use luna_jail::{Handle, Jailed};

/// A volume's tag, which its guest mounts it by, is this and its number.
pub const TAG: &str = "volume";
/// Requests under way in one volume; what QEMU 7.2 allows at most.
pub const QUEUE: u16 = 1024;
/// The name under which a volume that is one file shows it.
pub const FILE: &str = "file";

/// The only directory in a daemon's jail that is not the kernel's.
const SHARED: &str = "/volume";
/// A daemon is three threads.
const THREADS: u32 = 16;

/// A served volume. Drop kills the daemon.
#[derive(Debug)]
pub struct Volume {
    number: usize,
    is_file: bool,
    connection: Option<OwnedFd>,
    jail: Jailed,
}

impl Volume {
    pub fn tag(&self) -> String {
        format!("{TAG}{}", self.number)
    }

    /// The one entry that the volume has, where its source is no directory.
    pub fn file(&self) -> Option<&'static str> {
        self.is_file.then_some(FILE)
    }

    /// For QEMU to inherit: connected, with nothing said yet. Taken once; the daemon ends when its last copy is closed.
    pub fn connection(&mut self) -> Result<OwnedFd> {
        self.connection.take().ok_or_else(|| {
            Error::new(Kind::Conflict, "cannot take a volume's connection").because("it was taken before")
        })
    }

    /// Readable once the daemon is gone.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.jail.pidfd()
    }

    /// What the daemon uses, and the way to stop and resume it with its machine.
    pub fn handle(&self) -> Handle {
        self.jail.handle()
    }
}

/// What one volume serves.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// By which its tag is made.
    pub number: usize,
    /// A directory or a file of the host's.
    pub path: &'a Path,
    pub read_only: bool,
}

/// Serves `source` from a jail named `name` with these ids. The daemon dies with the thread that calls this. Whatever limits
/// there are should leave room for what the host's kernel keeps for it: a descriptor for each file the guest knows of,
/// written data on its way to the disk.
pub fn serve(name: &str, source: &Source<'_>, ids: IdRange, limits: Limits) -> Result<Volume> {
    launch(program::open()?, name, source, ids, limits)
}

fn launch(
    executable: OwnedFd,
    name: &str,
    source: &Source<'_>,
    ids: IdRange,
    limits: Limits,
) -> Result<Volume> {
    let path = source.path;
    let failed = |error: Error| error.context(format!("cannot serve `{}`", path.display()));
    let is_directory = std::fs::metadata(path)
        .map_err(|error| Error::io(format!("cannot find `{}`", path.display()), error))?
        .is_dir();
    let (listener, connection) = connection::pair().map_err(failed)?;
    let spec = luna_jail::Spec {
        name: name.to_owned(),
        program: Program {
            executable,
            arguments: vec!["luna-virtiofs".to_owned(), SHARED.to_owned()],
            environment: Vec::new(),
            stdio: [Some(listener), None, None],
            descriptors: Vec::new(),
        },
        ids: Ids {
            base: ids.base,
            count: IdRange::COUNT,
        },
        root: Root::Empty,
        hostname: TAG.to_owned(),
        files: Vec::new(),
        mounts: vec![Mount::Bind {
            source: path.to_owned(),
            target: if is_directory {
                SHARED.into()
            } else {
                Path::new(SHARED).join(FILE)
            },
            read_only: source.read_only,
        }],
        shared_memory: Bytes(4096),
        network: Network::Own,
        limits: Limits {
            default_pids: limits.pids.is_none().then_some(THREADS),
            ..limits
        },
        // A daemon that a machine has brought down leaves no copy of the machine's memory.
        rlimits: vec![Rlimit {
            resource: RlimitKind::Core,
            soft: 0,
            hard: 0,
        }],
        security_labels: SecurityLabels::default(),
        defences: Defences {
            capabilities: capabilities(source.read_only),
            ..Defences::default()
        },
    };
    let jail = luna_jail::launch(spec).map_err(failed)?;
    Ok(Volume {
        number: source.number,
        is_file: !is_directory,
        connection: Some(connection),
        jail,
    })
}

/// What a file server of many users' files needs, in its own user namespace. To read it needs only to be let in.
fn capabilities(read_only: bool) -> Capabilities {
    let names: &[&str] = if read_only {
        &["DAC_OVERRIDE"]
    } else {
        &[
            "CHOWN",
            "DAC_OVERRIDE",
            "FOWNER",
            "FSETID",
            "SETFCAP",
            "SETGID",
            "SETUID",
        ]
    };
    names
        .iter()
        .map(|name| name.parse().expect("names of the kernel's table"))
        .fold(Capabilities::NONE, Capabilities::with)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::print_stdout)]
mod tests;
