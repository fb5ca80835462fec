//! Where something is mounted: a path of the image's, walked without ever leaving the sandbox's root.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::disks::ROOT;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// A mount point inside the sandbox's root, held open.
pub(super) struct Target(OwnedFd);

impl Target {
    /// Opens `path`, an absolute one, as the sandbox would see it; what is missing of it is made, owned by root.
    pub(super) fn open(path: &str, kind: Kind) -> Result<Target, Errno> {
        let root = rustix::fs::open(
            ROOT,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let path = Path::new(path);
        if let Ok(found) = in_root(&root, path) {
            return Ok(Target(found));
        }
        let mut at = root.try_clone().map_err(|_| Errno::MFILE)?;
        let mut walked = std::path::PathBuf::from("/");
        let names: Vec<_> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        for (index, name) in names.iter().enumerate() {
            walked.push(name);
            at = match in_root(&root, &walked) {
                Ok(found) => found,
                Err(Errno::NOENT) => {
                    if index + 1 == names.len() && kind == Kind::File {
                        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                        rustix::fs::openat(&at, *name, flags, Mode::from_raw_mode(0o644))?;
                    } else {
                        rustix::fs::mkdirat(&at, *name, Mode::from_raw_mode(0o755))?;
                    }
                    in_root(&root, &walked)?
                }
                Err(errno) => return Err(errno),
            };
        }
        Ok(Target(at))
    }

    /// A path that leads exactly here, whatever happens to the names on the way.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

fn in_root(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}
