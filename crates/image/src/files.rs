//! Small durable files, locks and temporary names: what the store's promises stand on.
//!
//! A file is replaced by temp, fsync, rename. Whatever is unfinished has a name that starts with a dot and is held by
//! `flock(2)` while someone works on it; a killed process lets go of it, which is how the next sweep knows.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use luna_core::{Error, Result};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

/// Creates `path` and what is missing above it, closed to others.
pub(crate) fn create_private_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| Error::io(format!("cannot create the directory `{}`", path.display()), error))
}

/// Replaces `path` with `content` or leaves it as it was.
pub(crate) fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let failed = |error: std::io::Error| storage_error(format!("cannot write `{}`", path.display()), error);
    let directory = path.parent().expect("the store's files lie in its directories");
    let temporary = Temporary::file(directory)?;
    let mut file = temporary.handle();
    file.write_all(content).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    temporary.publish(path)?;
    // Without this the rename itself may be lost with the power.
    File::open(directory).and_then(|d| d.sync_all()).map_err(failed)
}

/// An I/O error of the store's with the hint a full disk deserves.
pub(crate) fn storage_error(message: String, error: std::io::Error) -> Error {
    let error = Error::io(message, error);
    match error.kind() {
        luna_core::Kind::Exhausted => {
            error.hint("free some disk space, for example with `luna prune`, and try again")
        }
        _ => error,
    }
}

/// Waits for the lock on `path`, made if missing; dropping the descriptor lets go.
pub(crate) fn lock(path: &Path, operation: FlockOperation) -> Result<OwnedFd> {
    let file = open_lock(path)?;
    loop {
        match rustix::fs::flock(&file, operation) {
            Ok(()) => return Ok(file.into()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io(format!("cannot lock `{}`", path.display()), error)),
        }
    }
}

/// The exclusive lock on `path` if nobody has any.
pub(crate) fn try_lock(path: &Path) -> Result<Option<OwnedFd>> {
    let file = open_lock(path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file.into())),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io(format!("cannot lock `{}`", path.display()), error)),
    }
}

fn open_lock(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|error| storage_error(format!("cannot open `{}`", path.display()), error))
}

/// Whether someone works on the unfinished file or directory `path` right now.
pub(crate) fn is_held(path: &Path) -> bool {
    match File::open(path) {
        Ok(file) => rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(_) => false,
    }
}

/// An unfinished file or directory; dropping it unpublished removes it.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    handle: File,
    published: bool,
    directory: bool,
}

impl Temporary {
    pub(crate) const PREFIX: &str = ".new-";

    pub(crate) fn file(directory: &Path) -> Result<Temporary> {
        Temporary::make(directory, false)
    }

    pub(crate) fn directory(directory: &Path) -> Result<Temporary> {
        Temporary::make(directory, true)
    }

    fn make(parent: &Path, directory: bool) -> Result<Temporary> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNTER.fetch_add(1, Ordering::Relaxed);
            let path = parent.join(format!("{}{}-{number}", Temporary::PREFIX, std::process::id()));
            let opened = if directory {
                std::fs::DirBuilder::new()
                    .mode(0o700)
                    .create(&path)
                    .and_then(|()| File::open(&path))
            } else {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&path)
            };
            let handle = match opened {
                // Left by a killed process that had this id.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                other => other
                    .map_err(|error| storage_error(format!("cannot create `{}`", path.display()), error))?,
            };
            let temporary = Temporary {
                path,
                handle,
                published: false,
                directory,
            };
            rustix::fs::flock(&temporary.handle, FlockOperation::NonBlockingLockExclusive)
                .map_err(|error| Error::io(format!("cannot lock `{}`", temporary.path.display()), error))?;
            return Ok(temporary);
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn handle(&self) -> &File {
        &self.handle
    }

    pub(crate) fn descriptor(&self) -> Result<OwnedFd> {
        self.handle
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Error::io("cannot keep a file open", error))
    }

    /// Gives it its final name. A file replaces what is there; a directory yields to one that came first.
    pub(crate) fn publish(mut self, target: &Path) -> Result<()> {
        match std::fs::rename(&self.path, target) {
            Ok(()) => {
                self.published = true;
                Ok(())
            }
            Err(error)
                if self.directory
                    && matches!(
                        error.kind(),
                        std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::AlreadyExists
                    ) =>
            {
                Ok(())
            }
            Err(error) => Err(storage_error(
                format!("cannot create `{}`", target.display()),
                error,
            )),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        // What cannot be removed here is removed by the next sweep.
        if self.directory {
            let _ = crate::layer::remove::remove_tree(&self.path);
        } else {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
