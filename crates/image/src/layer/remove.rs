//! Takes whole trees away, however deep and whoever made them.
//!
//! Invariants: no symlink is followed; at most [`OPEN`] directories are open at a time and no path is longer than one
//! name, since a sandbox or an archive may have nested directories without end. What lies deeper than that is moved up
//! to the tree's top and taken from there.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;

/// Levels that are walked with a descriptor each; trees of real systems stay below.
const OPEN: usize = 48;

/// Removes `path` with everything in it; nothing there is no error.
pub fn remove_tree(path: &Path) -> Result<()> {
    let shown = || {
        Error::new(
            Kind::InvalidInput,
            format!("cannot remove `{}`", shorten(&path.to_string_lossy())),
        )
    };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| shown().because(error))?;
    remove_all(CWD, &name).map_err(|errno| {
        Error::io(
            format!("cannot remove `{}`", shorten(&path.to_string_lossy())),
            errno,
        )
    })
}

/// Removes `name` below `parent` with everything in it.
pub(crate) fn remove_all(parent: BorrowedFd<'_>, name: &CString) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let mut stack = vec![(name.clone(), open(parent, name)?)];
    let mut moved = 0;
    while let Some((_, directory)) = stack.last() {
        match empty_of_files(directory)? {
            Some(child) if stack.len() < OPEN => {
                let fd = open(directory.as_fd(), &child)?;
                stack.push((child, fd));
            }
            Some(child) => {
                let (_, top) = stack.first().expect("it has a last, so it has a first");
                move_up(directory.as_fd(), &child, top.as_fd(), &mut moved)?;
            }
            None => {
                let (name, _) = stack.pop().expect("the loop's condition saw it");
                let above = stack.last().map_or(parent, |(_, fd)| fd.as_fd());
                match rustix::fs::unlinkat(above, &name, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
    Ok(())
}

fn open(parent: BorrowedFd<'_>, name: &CString) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        // Only reached without root's powers, on a directory that its owner closed.
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::from(0o700), AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

/// Removes files until there are no more, or a directory is met: its name is the answer.
fn empty_of_files(directory: &OwnedFd) -> Result<Option<CString>, Errno> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => return Ok(Some(name.to_owned())),
            Err(Errno::ACCESS) => {
                rustix::fs::fchmod(directory, Mode::from(0o700))?;
                match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(Errno::ISDIR | Errno::PERM) => return Ok(Some(name.to_owned())),
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Moves the directory `name` to `top` under a name that is free there.
fn move_up(from: BorrowedFd<'_>, name: &CString, top: BorrowedFd<'_>, moved: &mut u64) -> Result<(), Errno> {
    let mut opened = false;
    loop {
        let new = format!(".moved-up-{moved}");
        *moved += 1;
        match rustix::fs::renameat(from, name, top, &new) {
            Ok(()) => return Ok(()),
            Err(Errno::EXIST | Errno::NOTEMPTY | Errno::NOTDIR) => {}
            // Its `..` changes, which without root's powers takes a writable directory, between writable ones.
            Err(Errno::ACCESS) if !opened => {
                opened = true;
                rustix::fs::chmodat(from, name, Mode::from(0o700), AtFlags::empty())?;
                rustix::fs::fchmod(from, Mode::from(0o700))?;
                rustix::fs::fchmod(top, Mode::from(0o700))?;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A path for an error message: an archive's or a sandbox's may be thousands of characters long.
pub(crate) fn shorten(path: &str) -> String {
    const KEPT: usize = 100;
    let count = path.chars().count();
    if count <= 2 * KEPT {
        return path.escape_debug().to_string();
    }
    let begin: String = path.chars().take(KEPT).collect();
    let end: String = path.chars().skip(count - KEPT).collect();
    format!("{}…{}", begin.escape_debug(), end.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Directories nested in each other, made without a long path.
    fn nest(top: &Path, depth: usize) {
        let mut at: OwnedFd = std::fs::File::open(top).unwrap().into();
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "d", Mode::from(0o700)).unwrap();
            rustix::fs::mkdirat(&at, ".moved-up-0", Mode::from(0o700)).unwrap();
            let file = OFlags::CREATE | OFlags::WRONLY;
            rustix::fs::openat(&at, "file", file, Mode::from(0o600)).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_descriptors_go_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        nest(&tree, 3000);
        let outside = directory.path().join("kept");
        std::fs::write(&outside, "x").unwrap();
        std::os::unix::fs::symlink(directory.path(), tree.join("link")).unwrap();
        // A limit of its own would be the whole process's, so what is open is counted instead.
        let done = std::sync::atomic::AtomicBool::new(false);
        let own = |link: std::io::Result<std::path::PathBuf>| link.is_ok_and(|to| to.starts_with(&tree));
        let most = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = 0;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
                    let count = open.filter(|entry| own(std::fs::read_link(entry.path()))).count();
                    most = most.max(count);
                }
                most
            });
            let removed = remove_tree(&tree);
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            removed.unwrap();
            watch.join().unwrap()
        });
        assert!(most <= OPEN + 2, "{most} descriptors at a time");
        assert!(!tree.exists());
        assert!(outside.exists());
        remove_tree(&tree).unwrap();
    }

    #[test]
    fn long_paths_are_shown_short() {
        assert_eq!(shorten("/a\nb"), "/a\\nb");
        let shown = shorten(&"ä/".repeat(2000));
        assert!(shown.chars().count() <= 201 && shown.contains('…'));
    }
}
