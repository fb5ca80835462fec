//! Where things lie on disk.
//!
//! ```text
//! ROOT/                         0700, the user's own
//!   store/                      images (luna-image)
//!   sandboxes/<id>/             one directory per sandbox
//!     sandbox.json  status.json  lock  control.sock  log.json[.1 ...]  supervisor.log
//!       upper/  work/           what a container wrote
//!       upper.ext4              what a machine wrote
//!       upper.qcow2  variables.fd   what a disk image's own system wrote, and its firmware
//!   names/<name>                holds the id; made with O_EXCL, so a name is taken once
//!   ranges/<n>                  holds the id that owns the host ids 1<<30 + n * 65536 ...
//!   volumes/<name>/             volume.json, data/
//!   kernels/<name>/             guest kernels (luna-microvm)
//!   trash/                      sandboxes being deleted
//!   events.json  host.json  lock
//! ```

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use luna_core::name::{Id, Name};
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

/// The directories of one Luna; every path in the crate comes from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Opens or makes the tree under `root`.
    pub fn open(root: &Path) -> Result<Layout> {
        let root = std::path::absolute(root)
            .map_err(|e| Error::io(format!("cannot use `{}`", root.display()), e))?;
        let layout = Layout { root };
        for name in ["", "sandboxes", "names", "ranges", "volumes", "trash"] {
            make_directory(&layout.root.join(name))?;
        }
        Ok(layout)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    pub fn sandbox(&self, id: &Id) -> PathBuf {
        self.sandboxes().join(id.as_str())
    }

    pub fn name(&self, name: &Name) -> PathBuf {
        self.root.join("names").join(name.as_str())
    }

    pub fn ranges(&self) -> PathBuf {
        self.root.join("ranges")
    }

    pub fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// Where guest kernels lie; made with the first of them.
    pub fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub fn trash(&self) -> PathBuf {
        self.root.join("trash")
    }

    pub fn events(&self) -> PathBuf {
        self.root.join("events.json")
    }

    pub fn host_report(&self) -> PathBuf {
        self.root.join("host.json")
    }

    /// Serialises the short moments that change names and ranges. Released on drop.
    pub fn lock(&self) -> Result<OwnedFd> {
        let path = self.root.join("lock");
        let file = open_lock(&path)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| Error::io(format!("cannot lock `{}`", path.display()), e))?;
        Ok(file)
    }
}

/// Opens (and makes) a file meant for `flock(2)`.
pub(crate) fn open_lock(path: &Path) -> Result<OwnedFd> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|e| Error::io(format!("cannot open `{}`", path.display()), e))
}

/// Makes a directory only its owner may enter, parents included.
pub(crate) fn make_directory(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| {
            let error = Error::io(format!("cannot make `{}`", path.display()), e);
            match error.kind() {
                Kind::PermissionDenied => error.hint("choose another place with `LUNA_ROOT=DIRECTORY`"),
                Kind::Exhausted => error.hint("free some disk space; `luna prune` removes what is unused"),
                _ => error,
            }
        })
}

/// How sure a file has to be there after a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Replaced atomically, so a reader sees the old or the new content, never a part.
    Atomic,
    /// Also flushed to the device first.
    Durable,
}

/// Replaces `path` by a file with `content`.
pub(crate) fn replace(path: &Path, content: &[u8], durability: Durability) -> Result<()> {
    // Of this writer's own: several may replace one file at one time, and the last one's content stays.
    static WRITERS: AtomicU32 = AtomicU32::new(0);
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{writer}.new", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(content)?;
        if durability == Durability::Durable {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(&temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io(format!("cannot write `{}`", path.display()), e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(&directory.path().join("luna")).unwrap();
        let path = layout.events();
        replace(&path, b"one", Durability::Durable).unwrap();
        replace(&path, b"two", Durability::Atomic).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::metadata(layout.root()).unwrap().permissions().mode() & 0o777,
            0o700
        );
    }
}
