//! Mount points that a step's engine had to make in the image are taken out of the step's layer again.
//!
//! Before the step each target is resolved in the layers below, through their links, and what is missing is noted.
//! Afterwards a noted path is removed from the upper directory only if it is still an empty directory or an empty file
//! there, walked without following any link: what the step put in its place stays, and a link planted meanwhile leads
//! nowhere (CVE-2024-23652).

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use luna_core::{Error, Result};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::view::{Last, View};

/// What an engine mounts in every sandbox.
const STANDARD: [&str; 7] = [
    "/proc",
    "/sys",
    "/dev",
    "/run/luna-build",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
];

/// Paths that were missing, each after everything in it; and existing directories that they were made in.
#[derive(Debug, Default)]
pub(crate) struct Stubs {
    made: Vec<PathBuf>,
    touched: Vec<PathBuf>,
}

impl Stubs {
    /// Notes what mounting at `targets` and the standard places has to make.
    pub(crate) fn note<'a>(view: &View, targets: impl Iterator<Item = &'a str>) -> Stubs {
        let mut stubs = Stubs::default();
        for target in targets.chain(STANDARD) {
            // A target that cannot be resolved cannot be mounted either: the engine will say so.
            let Ok(resolved) = view.resolve(Path::new(target), Last::Follow) else {
                continue;
            };
            let mut path = resolved.found.path.clone();
            for name in &resolved.missing {
                path.push(name);
                stubs.made.push(path.clone());
            }
            stubs
                .touched
                .extend(resolved.found.path.ancestors().map(Path::to_path_buf));
        }
        // Longest first, so that a directory comes after what is in it.
        for list in [&mut stubs.made, &mut stubs.touched] {
            list.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
            list.dedup();
        }
        stubs.touched.sort();
        stubs.touched.dedup();
        stubs
            .touched
            .sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        stubs
    }

    /// Removes the stubs from `upper`. Directories that exist below and hold nothing in the upper any more go too,
    /// unless the step changed their owner or mode: they would only carry a time.
    pub(crate) fn remove(&self, upper: &Path, below: &View, id_base: u32) -> Result<()> {
        let root = rustix::fs::open(
            upper,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| Error::io(format!("cannot open `{}`", upper.display()), error))?;
        for path in &self.made {
            remove_empty(&root, path, Made::ByTheEngine { owner: id_base })
                .map_err(|error| failed(path, error))?;
        }
        for path in self.touched.iter().filter(|path| !path.as_os_str().is_empty()) {
            let Some(found) = below.resolve(path, Last::Keep)?.existing() else {
                continue;
            };
            let same = (
                found.meta.mode,
                found.meta.uid + id_base,
                found.meta.gid + id_base,
            );
            remove_empty(&root, path, Made::Below(same)).map_err(|error| failed(path, error))?;
        }
        Ok(())
    }
}

/// Where an empty thing in the upper comes from, if the step did nothing to it.
#[derive(Clone, Copy)]
enum Made {
    /// A directory that still belongs to the step's root, or a file.
    ByTheEngine { owner: u32 },
    /// A directory copied up with this mode, user and group.
    Below((u32, u32, u32)),
}

/// Removes `path` if it is empty and as it was made.
fn remove_empty(root: &OwnedFd, path: &Path, made: Made) -> std::result::Result<(), Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let parent = if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::openat2(root.as_fd(), parent, flags, Mode::empty(), resolve) {
        Ok(parent) => parent,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let stat = match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    let removal = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let untouched = match made {
                Made::ByTheEngine { owner } => (owner, owner) == (stat.st_uid, stat.st_gid),
                Made::Below(same) => {
                    same == (stat.st_mode & 0o7777, stat.st_uid, stat.st_gid) && !is_opaque(&parent, &name)?
                }
            };
            if !untouched {
                return Ok(());
            }
            AtFlags::REMOVEDIR
        }
        FileType::RegularFile if stat.st_size == 0 && matches!(made, Made::ByTheEngine { .. }) => {
            AtFlags::empty()
        }
        _ => return Ok(()),
    };
    match rustix::fs::unlinkat(&parent, &name, removal) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

/// An opaque directory says something even when it is empty.
fn is_opaque(parent: &OwnedFd, name: &CString) -> std::result::Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let mut value = [0; 1];
    let marked = ["trusted.overlay.opaque", "user.overlay.opaque"]
        .iter()
        .any(|name| rustix::fs::fgetxattr(&directory, *name, &mut value[..]).is_ok());
    let filled = Dir::read_from(&directory)?
        .filter_map(std::result::Result::ok)
        .any(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."));
    Ok(marked || filled)
}

fn failed(path: &Path, error: Errno) -> Error {
    Error::io(
        format!("cannot remove the mount point `/{}`", path.display()),
        error,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_untouched_mount_points_go() {
        if !rustix::process::getuid().is_root() {
            println!("skipped: giving a file away needs root");
            return;
        }
        let temporary = tempfile::tempdir().unwrap();
        let (below, upper) = (temporary.path().join("below"), temporary.path().join("upper"));
        std::fs::create_dir_all(below.join("etc")).unwrap();
        std::fs::create_dir_all(below.join("real")).unwrap();
        std::os::unix::fs::symlink("real", below.join("link")).unwrap();
        let view = View::of_directory(&below).unwrap();
        let stubs = Stubs::note(
            &view,
            ["/link/cache/a", "/kept", "/planted/x", "/owned"].into_iter(),
        );
        for directory in [
            "proc",
            "dev",
            "run/luna-build",
            "real/cache/a",
            "kept/file",
            "etc",
            "outside",
            "owned",
        ] {
            std::fs::create_dir_all(upper.join(directory)).unwrap();
        }
        for file in ["run/luna-build/ca.crt", "etc/resolv.conf"] {
            std::fs::write(upper.join(file), "").unwrap();
        }
        std::fs::write(upper.join("outside/x"), "").unwrap();
        std::os::unix::fs::symlink("outside", upper.join("planted")).unwrap();
        std::os::unix::fs::chown(upper.join("owned"), Some(1000), None).unwrap();
        Stubs::note(&view, ["/run/luna-build/ca.crt"].into_iter())
            .remove(&upper, &view, 0)
            .unwrap();
        stubs.remove(&upper, &view, 0).unwrap();
        let mut left: Vec<_> = std::fs::read_dir(&upper)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["kept", "outside", "owned", "planted"]);
        assert!(upper.join("outside/x").exists());
    }
}
