//! One wall round one command: the jail as the container engine builds it, `luna-init` in it, and in its root the
//! program of the attempts. Runs in a process of its own (`src/bin/cell.rs`), since an unprivileged user must be one
//! and a leaked descriptor must be leaked by somebody.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use luna_core::capability::Capabilities;
use luna_core::process::Process;
use luna_core::spec::PidsLimit;
use luna_core::units::Bytes;
use luna_core::{Error, Result};
use luna_guest::session::Session;
use luna_jail::Spec;
use luna_jail::spec::{Defences, File, Ids, Limits, Mount, Network, Program, Root, SecurityLabels, Swap};
use serde::{Deserialize, Serialize};

/// The host's id of a root sandbox's root, far from every other user of ids.
pub const BASE: u32 = 1_300_000_000;
pub const MEMORY: Bytes = Bytes::mebibytes(96);
pub const PIDS: u32 = 64;
pub const SHARED_MEMORY: Bytes = Bytes::mebibytes(8);

/// The descriptor that the launcher leaks; above all that init is given.
pub const LEAK: i32 = 77;
/// The exit code of an attempt that failed, and of a command that init would not start.
const DENIED: u8 = 10;

/// What to build and what to run in it; JSON between the suite and the cell.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cell {
    pub name: String,
    pub init: PathBuf,
    /// `init` as a file of the host's that a sandbox may try to overwrite.
    pub program: PathBuf,
    pub lower: PathBuf,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Mounted on `/volume`.
    pub volume: PathBuf,
    /// Mounted on `/read-only`, read-only.
    pub read_only: PathBuf,
    /// Left open without close-on-exec by the launcher, as descriptor [`LEAK`].
    pub leak: PathBuf,
    /// Empty files laid over the root's own.
    pub files: Vec<PathBuf>,
    /// Tmpfs mounts.
    pub targets: Vec<PathBuf>,
    /// Defences taken out; see [`crate::defence::take_out`].
    pub without: Vec<String>,
    pub rootless: bool,
    pub command: Vec<String>,
    pub cwd: String,
    pub user: String,
}

/// What the command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub output: String,
    pub code: u8,
}

/// Builds the wall, runs the command and takes the wall down.
pub fn run(cell: &Cell) -> Result<Said> {
    let leak = std::fs::File::open(&cell.leak).map_err(|error| Error::io("cannot open the leak", error))?;
    let leak =
        rustix::io::fcntl_dupfd_cloexec(&leak, LEAK).map_err(|error| Error::io("cannot leak", error))?;
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty())
        .map_err(|error| Error::io("cannot leak a descriptor", error))?;
    let (near, far) = UnixStream::pair().map_err(|error| Error::io("cannot make a channel", error))?;
    let spec = spec(cell, far.into())?;
    let process = Process {
        args: cell.command.clone(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: cell.cwd.clone(),
        user: cell.user.clone(),
        groups: Vec::new(),
        terminal: None,
        stdin: false,
        capabilities: spec.defences.capabilities,
        no_new_privileges: spec.defences.no_new_privileges,
        rlimits: Vec::new(),
    };
    let jail = luna_jail::launch(spec)?;
    let session = Session::open(near.into())?;
    let mut child = match session.start(&process) {
        Ok(child) => child,
        Err(error) => {
            return Ok(Said {
                output: format!("not started: {error:?}\n"),
                code: DENIED,
            });
        }
    };
    let handle = child.handle();
    drop(child.stderr.take());
    let mut output = Vec::new();
    // Init may be killed by the command; then what came before is all there is.
    let _ = child.stdout.read_to_end(&mut output);
    let code = match handle.wait() {
        Ok(status) => status.code(),
        Err(_) => jail.wait()?.code(),
    };
    Ok(Said {
        output: String::from_utf8_lossy(&output).into_owned(),
        code,
    })
}

fn spec(cell: &Cell, channel: OwnedFd) -> Result<Spec> {
    let mut spec = Spec {
        name: cell.name.clone(),
        program: Program {
            executable: luna_jail::sealed(&cell.init)?,
            arguments: vec!["luna-init".to_owned()],
            environment: Vec::new(),
            stdio: [None, None, None],
            descriptors: vec![channel],
        },
        ids: Ids {
            base: if cell.rootless { 0 } else { BASE },
            count: 65_536,
        },
        root: Root::Overlay {
            lower: vec![cell.lower.clone()],
            upper: cell.upper.clone(),
            work: cell.work.clone(),
            read_only: false,
        },
        hostname: "cell".to_owned(),
        files: cell
            .files
            .iter()
            .map(|target| File {
                target: target.clone(),
                content: Vec::new(),
            })
            .collect(),
        mounts: vec![
            Mount::Bind {
                source: cell.volume.clone(),
                target: "/volume".into(),
                read_only: false,
            },
            Mount::Bind {
                source: cell.read_only.clone(),
                target: "/read-only".into(),
                read_only: true,
            },
        ],
        shared_memory: SHARED_MEMORY,
        network: Network::Own,
        limits: if cell.rootless {
            // An unprivileged user has no cgroups of his own here.
            Limits::default()
        } else {
            Limits {
                memory: Some(MEMORY),
                swap: None::<Swap>,
                pids: Some(PidsLimit::At(PIDS)),
                ..Limits::default()
            }
        },
        rlimits: Vec::new(),
        security_labels: SecurityLabels::default(),
        defences: Defences {
            capabilities: Capabilities::DEFAULT,
            ..Defences::default()
        },
    };
    spec.mounts.extend(cell.targets.iter().map(|target| Mount::Tmpfs {
        target: target.clone(),
        size: None,
        mode: 0o755,
        executable: false,
    }));
    for name in &cell.without {
        crate::defence::take_out(&mut spec, name, &cell.program);
    }
    Ok(spec)
}
