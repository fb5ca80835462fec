//! A kernel directory while it is being made: invisible, locked, gone on drop unless it is published.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use luna_core::{Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};

use super::manifest::Manifest;
use super::{Kernel, Store, verify};

const PREFIX: &str = ".new-";

#[derive(Debug)]
pub(super) struct Draft {
    store: Store,
    path: PathBuf,
    /// Held while the draft lives, so that a sweep knows it from one whose maker was killed.
    _lock: OwnedFd,
}

impl Draft {
    pub(super) fn new(store: &Store) -> Result<Draft> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = store
            .directory
            .join(format!("{PREFIX}{}-{count}", std::process::id()));
        let fail = |e| {
            Error::io(format!("cannot make `{}`", path.display()), e)
                .hint("choose another place with `LUNA_ROOT=DIRECTORY`, or free some disk space")
        };
        let make = |path: &Path, parents| fs::DirBuilder::new().recursive(parents).mode(0o700).create(path);
        make(&store.directory, true).map_err(fail)?;
        // Between making a draft and locking it nobody may sweep.
        let all = File::open(&store.directory).map_err(fail)?;
        flock(&all, FlockOperation::LockExclusive).map_err(|e| fail(e.into()))?;
        sweep(&store.directory);
        make(&path, false).map_err(fail)?;
        let lock = OwnedFd::from(File::open(&path).map_err(fail)?);
        flock(&lock, FlockOperation::LockExclusive).map_err(|e| fail(e.into()))?;
        Ok(Draft {
            store: store.clone(),
            path,
            _lock: lock,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the manifest and moves the directory to its name. What of it was made for the making only is in `work/`
    /// and goes.
    pub(super) fn publish(self, manifest: &Manifest) -> Result<Kernel> {
        let name = &manifest.name;
        let fail = |e| Error::io(format!("cannot keep kernel `{name}`"), e);
        let _ = fs::remove_dir_all(self.path.join("work"));
        verify::remember(&self.path, manifest);
        let path = self.path.join("kernel.json");
        fs::write(&path, manifest.to_json()).map_err(fail)?;
        for file in [&self.path.join(&manifest.image.file), &path] {
            File::open(file).and_then(|file| file.sync_all()).map_err(fail)?;
        }
        let place = self.store.directory.join(name.as_str());
        match fs::rename(&self.path, &place) {
            Ok(()) => {}
            // Somebody else made the same in the meantime.
            Err(error) if is_taken(&error) => {
                return Err(
                    Error::new(Kind::AlreadyExists, format!("cannot use the name `{name}`"))
                        .because("a kernel of that name exists")
                        .hint(format!(
                            "remove it with `luna kernel rm {name}`, or choose another with `--name`"
                        )),
                );
            }
            Err(error) => return Err(fail(error)),
        }
        self.store.get(name)
    }
}

fn is_taken(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as Io;
    matches!(error.kind(), Io::DirectoryNotEmpty | Io::AlreadyExists)
}

impl Drop for Draft {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes what a killed maker left: drafts that nobody holds a lock on.
fn sweep(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let unheld = File::open(entry.path())
            .is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok());
        if unheld {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::kernel_with;

    #[test]
    fn drafts_are_swept_unless_somebody_makes_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("kernels"));
        let held = Draft::new(&store).unwrap();
        let left = store.directory.join(".new-1-0");
        fs::create_dir(&left).unwrap();
        let other = Draft::new(&store).unwrap();
        assert!(!left.exists() && held.path().exists() && other.path().exists());
        assert!(store.list().unwrap().is_empty());
        drop((held, other));
        assert_eq!(fs::read_dir(&store.directory).unwrap().count(), 0);
    }

    #[test]
    fn a_kernel_appears_whole_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path());
        for expected in [true, false] {
            let draft = Draft::new(&store).unwrap();
            let mut manifest = kernel_with(draft.path(), &[("a.ko", b"a")]).manifest().clone();
            manifest.name = "one".parse().unwrap();
            fs::create_dir(draft.path().join("work")).unwrap();
            let outcome = draft.publish(&manifest);
            assert_eq!(outcome.is_ok(), expected);
            if let Err(error) = outcome {
                assert_eq!(error.kind(), Kind::AlreadyExists);
            }
        }
        let kernel = store.choose(None).unwrap();
        assert_eq!(kernel.modules.len(), 1);
        assert!(!kernel.directory.join("work").exists());
    }
}
