//! The upper directory of an overlay mount as an OCI layer (image-spec `layer.md`): what a build step changed.
//!
//! Entries come sorted, times can be clamped, so the same change gives the same bytes. Whoever wrote the upper was
//! sandboxed code: everything is opened from a directory descriptor, no symlink is followed, and only attributes that
//! a layer may carry leave it.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tar::EntryType;

use crate::layer::{is_allowed_attribute, opaque_attribute};
use crate::tarball::{Item, TarWriter};

/// Deeper than any path the kernel takes.
const MAX_DEPTH: usize = 2048;

/// Writes what `upper` changes as an uncompressed layer. Ids are the upper's less `id_base`; `rootless` says which form
/// of opaque attribute to look for; no time is later than `epoch` (seconds), where one is given.
pub fn write_tar(
    upper: &Path,
    id_base: u32,
    rootless: bool,
    epoch: Option<u64>,
    out: &mut dyn Write,
) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, upper, flags, Mode::empty())
        .map_err(|error| Error::io(format!("cannot open `{}`", upper.display()), error))?;
    let mut walk = Walk {
        tar: TarWriter::new(io::BufWriter::with_capacity(256 << 10, out)),
        id_base,
        rootless,
        epoch,
        links: HashMap::new(),
    };
    walk.directory(&root, &mut Vec::new(), 0)?;
    walk.tar
        .finish()
        .map_err(|error| Error::io("cannot write a layer", error))?;
    Ok(())
}

struct Walk<W> {
    tar: TarWriter<W>,
    id_base: u32,
    rootless: bool,
    epoch: Option<u64>,
    /// Where a file with several names was written first.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<W: Write> Walk<W> {
    fn directory(&mut self, directory: &OwnedFd, path: &mut Vec<u8>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::new(
                Kind::Unsupported,
                "cannot make a layer of a tree this deep",
            ));
        }
        let mut names = Vec::new();
        for entry in Dir::read_from(directory).map_err(reading)? {
            let name = entry.map_err(reading)?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                names.push(name);
            }
        }
        names.sort_unstable();
        for name in names {
            let length = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.to_bytes());
            let answer = self.entry(directory.as_fd(), &name, path, depth);
            if let Err(error) = answer {
                let shown = String::from_utf8_lossy(path).escape_debug().to_string();
                // Named once, at the depth where it happened.
                return Err(match error.message().starts_with("cannot add") {
                    true => error,
                    false => error.context(format!("cannot add `{shown}` to a layer")),
                });
            }
            path.truncate(length);
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(reading)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.subdirectory(parent, name, path, &stat, depth),
            FileType::RegularFile => self.file(parent, name, path, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new()).map_err(reading)?;
                if self.is_linked(path, &stat)? {
                    return Ok(());
                }
                self.write(path, EntryType::Symlink, target.to_bytes(), &stat, (0, 0), &[])
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => self.whiteout(path, name),
            kind @ (FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo) => {
                if self.is_linked(path, &stat)? {
                    return Ok(());
                }
                let (kind, device) = match kind {
                    FileType::Fifo => (EntryType::Fifo, (0, 0)),
                    FileType::BlockDevice => (EntryType::Block, numbers(&stat)),
                    _ => (EntryType::Char, numbers(&stat)),
                };
                self.write(path, kind, b"", &stat, device, &[])
            }
            // A socket is a process's, not a file of an image; tar has no word for it.
            _ => Ok(()),
        }
    }

    fn subdirectory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &mut Vec<u8>,
        stat: &Stat,
        depth: usize,
    ) -> Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(reading)?;
        let attributes = attributes(directory.as_fd())?;
        for (name, _) in &attributes {
            if name.ends_with(b".overlay.redirect") {
                return Err(
                    Error::new(Kind::Unsupported, "cannot read a renamed directory of an overlay")
                        .because("the overlay was mounted with `redirect_dir=on`"),
                );
            }
        }
        let opaque = attributes
            .iter()
            .any(|(name, value)| name == opaque_attribute(self.rootless).as_bytes() && value == b"y");
        let kept = self.kept(attributes)?;
        path.push(b'/');
        self.write(path, EntryType::Directory, b"", stat, (0, 0), &kept)?;
        path.pop();
        if opaque {
            let marker = [path.as_slice(), b"/.wh..wh..opq"].concat();
            self.marker(&marker)?;
        }
        self.directory(&directory, path, depth + 1)
    }

    fn file(&mut self, parent: BorrowedFd<'_>, name: &CString, path: &[u8], stat: &Stat) -> Result<()> {
        if self.is_linked(path, stat)? {
            return Ok(());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(reading)?;
        let attributes = attributes(file.as_fd())?;
        if attributes
            .iter()
            .any(|(name, _)| name.ends_with(b".overlay.metacopy"))
        {
            return Err(Error::new(
                Kind::Unsupported,
                "cannot read a file that an overlay only half copied",
            )
            .because("the overlay was mounted with `metacopy=on`"));
        }
        let kept = self.kept(attributes)?;
        let (uid, gid) = self.owner(stat)?;
        let item = Item {
            path,
            kind: EntryType::Regular,
            link: b"",
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: self.mtime(stat),
            size: stat.st_size as u64,
            device: (0, 0),
            xattrs: &kept,
        };
        self.tar
            .append(&item, &mut std::fs::File::from(file))
            .map_err(|error| Error::io("cannot write a layer", error))
    }

    /// Writes a hard link when this inode was written before, and remembers it otherwise.
    fn is_linked(&mut self, path: &[u8], stat: &Stat) -> Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        match self.links.entry((stat.st_dev, stat.st_ino)) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(path.to_vec());
                Ok(false)
            }
            std::collections::hash_map::Entry::Occupied(first) => {
                let first = first.get().clone();
                self.write(path, EntryType::Link, &first, stat, (0, 0), &[])?;
                Ok(true)
            }
        }
    }

    fn whiteout(&mut self, path: &[u8], name: &CStr) -> Result<()> {
        let parent = &path[..path.len() - name.to_bytes().len()];
        let marker = [parent, b".wh.", name.to_bytes()].concat();
        self.marker(&marker)
    }

    /// An empty file whose name is the message.
    fn marker(&mut self, path: &[u8]) -> Result<()> {
        let item = Item {
            path,
            mtime: 0,
            mode: 0,
            ..Item::file("", 0)
        };
        self.tar
            .append(&item, &mut io::empty())
            .map_err(|error| Error::io("cannot write a layer", error))
    }

    fn write(
        &mut self,
        path: &[u8],
        kind: EntryType,
        link: &[u8],
        stat: &Stat,
        device: (u32, u32),
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<()> {
        let (uid, gid) = self.owner(stat)?;
        let item = Item {
            path,
            kind,
            link,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            mtime: self.mtime(stat),
            size: 0,
            device,
            xattrs,
        };
        self.tar
            .append(&item, &mut io::empty())
            .map_err(|error| Error::io("cannot write a layer", error))
    }

    fn owner(&self, stat: &Stat) -> Result<(u32, u32)> {
        let inner = |id: u32| {
            id.checked_sub(self.id_base)
                .filter(|id| *id <= 65_535)
                .ok_or_else(|| {
                    Error::new(
                        Kind::Unsupported,
                        format!("cannot express the owner {id} in a layer"),
                    )
                    .because("it is none of the sandbox's 65,536 ids")
                })
        };
        Ok((inner(stat.st_uid)?, inner(stat.st_gid)?))
    }

    fn mtime(&self, stat: &Stat) -> u64 {
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        self.epoch.map_or(seconds, |epoch| seconds.min(epoch))
    }

    fn kept(&self, attributes: Vec<(Vec<u8>, Vec<u8>)>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let mut kept: Vec<_> = attributes
            .into_iter()
            .filter(|(name, _)| is_allowed_attribute(name))
            .collect();
        for (name, value) in &mut kept {
            if name == b"security.capability" {
                self.portable_capability(value)?;
            }
        }
        kept.sort_unstable();
        Ok(kept)
    }

    /// A capability set from inside a user namespace carries that namespace's root (`struct vfs_ns_cap_data`,
    /// revision 3); outside it means nothing, so the layer gets revision 2, which means "this file system's root".
    fn portable_capability(&self, value: &mut Vec<u8>) -> Result<()> {
        const REVISION_2: u32 = 0x0200_0000;
        const REVISION_3: u32 = 0x0300_0000;
        const REVISION_MASK: u32 = 0xff00_0000;
        let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
        let (Some(magic), Some(root)) = (word(0), word(20)) else {
            return Ok(());
        };
        if magic & REVISION_MASK != REVISION_3 {
            return Ok(());
        }
        if root != self.id_base {
            return Err(
                Error::new(Kind::Unsupported, "cannot carry a file capability into a layer")
                    .because("it belongs to another user namespace"),
            );
        }
        value.truncate(20);
        value[..4].copy_from_slice(&(magic & !REVISION_MASK | REVISION_2).to_le_bytes());
        Ok(())
    }
}

fn attributes(file: BorrowedFd<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let list = match sized(|buffer| rustix::fs::flistxattr(file, buffer)) {
        Ok(list) => list,
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(reading(error)),
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        match sized(|buffer| rustix::fs::fgetxattr(file, name, buffer)) {
            Ok(value) => found.push((name.to_vec(), value)),
            Err(Errno::NODATA) => {}
            Err(error) => return Err(reading(error)),
        }
    }
    Ok(found)
}

/// Reads into a small buffer and, when that is too small, into one of the kernel's own bound (`XATTR_SIZE_MAX`,
/// `XATTR_LIST_MAX`).
fn sized(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match read(&mut small) {
        Ok(length) => Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {
            let mut large = vec![0; 65_536];
            let length = read(&mut large)?;
            large.truncate(length);
            Ok(large)
        }
        Err(error) => Err(error),
    }
}

fn numbers(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

fn reading(error: Errno) -> Error {
    Error::io("cannot read what changed", error)
}
