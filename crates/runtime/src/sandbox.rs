//! One sandbox seen from outside: its record, its status, its logs, the way to its supervisor.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use luna_core::error::Report;
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::client::Client;
use crate::layout::{self, Durability};
use crate::record::{Record, State, Status, VERSION};

pub(crate) const RECORD: &str = "sandbox.json";
pub(crate) const STATUS: &str = "status.json";
pub(crate) const LOCK: &str = "lock";

/// A sandbox on disk, running or not.
#[derive(Clone, Debug)]
pub struct Sandbox {
    pub record: Record,
    pub(crate) directory: PathBuf,
}

impl Sandbox {
    pub(crate) fn load(directory: PathBuf) -> Result<Sandbox> {
        let record = load(&directory.join(RECORD))?;
        Ok(Sandbox { record, directory })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// How it fares. The last word of a supervisor that was killed is corrected, not repeated.
    pub fn status(&self) -> Result<Status> {
        let mut status: Status = load(&self.directory.join(STATUS))?;
        if status.state.live() && !self.supervised()? {
            // The supervisor may have written its last word and left between the two looks.
            status = load(&self.directory.join(STATUS))?;
            if status.state.live() {
                status.state = State::Exited;
                status.exit_code = Some(137);
                status.supervisor = None;
                status.error = Some(Report {
                    kind: Kind::Interrupted,
                    message: format!("sandbox `{}` lost its supervisor", self.record.name),
                    causes: vec![
                        "the supervisor was killed; the kernel ended everything it had started".to_owned(),
                    ],
                    hint: Some(format!("start it again with `luna start {}`", self.record.name)),
                });
            }
        }
        Ok(status)
    }

    /// Whether a supervisor holds the lock.
    pub(crate) fn supervised(&self) -> Result<bool> {
        let lock = layout::open_lock(&self.directory.join(LOCK))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(Error::io(
                format!("cannot lock sandbox `{}`", self.record.name),
                error,
            )),
        }
    }

    /// Connects to its supervisor, for one request.
    pub fn client(&self) -> Result<Client> {
        Client::connect(&self.directory).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => self.not_running(),
            _ => Error::io(
                format!("cannot reach the supervisor of `{}`", self.record.name),
                error,
            ),
        })
    }

    pub(crate) fn not_running(&self) -> Error {
        let name = &self.record.name;
        Error::new(
            Kind::Conflict,
            format!("cannot reach `{name}`: it is not running"),
        )
        .hint(format!("start it with `luna start {name}`"))
    }

    pub(crate) fn store_record(&self) -> Result<()> {
        // What vanishes at exit need not survive a power cut.
        let durability = if self.record.spec.remove {
            Durability::Atomic
        } else {
            Durability::Durable
        };
        store(&self.directory.join(RECORD), &self.record, durability)
    }
}

pub(crate) fn store_status(directory: &Path, status: &Status) -> Result<()> {
    store(&directory.join(STATUS), status, Durability::Atomic)
}

fn store(path: &Path, value: &impl Serialize, durability: Durability) -> Result<()> {
    let content = serde_json::to_vec(value)
        .map_err(|e| Error::new(Kind::Internal, format!("cannot encode `{}`", path.display())).because(e))?;
    layout::replace(path, &content, durability)
}

/// Reads a versioned file, strictly.
pub(crate) fn load<T: DeserializeOwned>(path: &Path) -> Result<T> {
    #[derive(serde::Deserialize)]
    struct Versioned {
        version: u32,
    }
    let content = fs::read(path).map_err(|e| Error::io(format!("cannot read `{}`", path.display()), e))?;
    let corrupt = |e: serde_json::Error| {
        Error::new(Kind::Corrupt, format!("cannot read `{}`", path.display()))
            .because(e)
            .hint("remove the sandbox with `luna rm -f`, or put the file right")
    };
    let versioned: Versioned = serde_json::from_slice(&content).map_err(corrupt)?;
    if versioned.version != VERSION {
        return Err(
            Error::new(Kind::Unsupported, format!("cannot read `{}`", path.display()))
                .because(format!(
                    "it has version {}, this Luna reads version {VERSION}",
                    versioned.version
                ))
                .hint("use the Luna that made it, or remove the sandbox with `luna rm -f`"),
        );
    }
    serde_json::from_slice(&content).map_err(corrupt)
}
