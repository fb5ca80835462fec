//! Writes one layer's entries into a directory, in overlayfs' form, through directory descriptors only.
//!
//! Invariants: every path is resolved by the kernel from the target's descriptor with `RESOLVE_IN_ROOT` and
//! `RESOLVE_NO_MAGICLINKS`, so neither `..` nor any symlink leads out (moby and runc's path CVEs); the last component is
//! never followed; owner, mode, attributes and times are set on descriptors or with `AT_SYMLINK_NOFOLLOW`; hard links
//! and whiteouts must not pass a symlink at all. A layer's whiteout becomes a 0:0 character device and an opaque
//! directory an attribute (kernel `Documentation/filesystems/overlayfs.rst`), which no archive can bring by itself.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use luna_core::{Error, Kind, Result};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Limits;
use super::archive::{Archive, Entry, EntryKind, MAX_PATH, corrupt};
use super::remove::{remove_all, shorten};
use super::times::Times;

/// The highest id a sandbox has (`IdRange::COUNT` less one).
const MAX_ID: u64 = 65_535;
/// Directories in directories, in one path.
const MAX_LEVELS: usize = 512;
pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// aufs' own bookkeeping, meaningless elsewhere; docker skips it too.
pub(crate) const AUFS: &[u8] = b".wh..wh.";

/// What unpacking one layer came to.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    pub(crate) entries: u64,
    /// Bytes of file content.
    pub(crate) bytes: u64,
    /// Device nodes that this user may not make.
    pub(crate) skipped_devices: u64,
}

pub(crate) struct TreeWriter<'a> {
    root: OwnedFd,
    rootless: bool,
    limits: &'a Limits,
    summary: Summary,
    /// The parent of the last entry: archives go through a directory's files in a row.
    parent: Option<(Vec<u8>, OwnedFd)>,
    times: Times,
    buffer: Vec<u8>,
}

const RESOLVE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

impl<'a> TreeWriter<'a> {
    /// `root` is an empty directory that only this writer touches.
    pub(crate) fn new(root: OwnedFd, rootless: bool, limits: &'a Limits) -> TreeWriter<'a> {
        TreeWriter {
            root,
            rootless,
            limits,
            summary: Summary::default(),
            parent: None,
            times: Times::default(),
            buffer: vec![0; 256 << 10],
        }
    }

    /// Writes every entry of `archive` and reads it to the end of its stream.
    pub(crate) fn write_all<R: std::io::Read>(mut self, archive: &mut Archive<R>) -> Result<Summary> {
        while let Some(entry) = archive.next()? {
            let shown = || shorten(&String::from_utf8_lossy(&entry.path));
            self.count(&entry)
                .and_then(|()| self.write(&entry, archive))
                .map_err(|error| error.context(format!("cannot unpack `{}`", shown())))?;
        }
        archive.drain()?;
        self.set_directory_times()?;
        Ok(self.summary)
    }

    fn count(&mut self, entry: &Entry) -> Result<()> {
        let too_much = |what: String| {
            Error::new(Kind::Exhausted, "cannot unpack more of this layer")
                .because(what)
                .hint("if you trust this image, raise the limit with LUNA_LAYER_LIMIT (for example `256g`)")
        };
        self.summary.entries += 1;
        if self.summary.entries > self.limits.entries {
            return Err(too_much(format!(
                "it has more than {} entries",
                self.limits.entries
            )));
        }
        self.summary.bytes = self.summary.bytes.saturating_add(entry.size);
        if self.summary.bytes > self.limits.bytes {
            let limit = luna_core::units::Bytes(self.limits.bytes);
            return Err(too_much(format!("it unpacks to more than {limit}")));
        }
        Ok(())
    }

    fn write<R: std::io::Read>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<()> {
        let path = clean(&entry.path)?;
        if path.is_empty() {
            return match entry.kind {
                EntryKind::Directory => self.adopt_root(entry),
                _ => Err(corrupt("only a directory can stand for the root")),
            };
        }
        let (parent_path, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], &path[..]),
        };
        if name == OPAQUE {
            return self.make_opaque(parent_path);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent_path, hidden);
        }
        if let EntryKind::HardLink(target) = &entry.kind {
            return self.hard_link(parent_path, name, target);
        }
        self.enter(parent_path)?;
        let name = c_string(name)?;
        match &entry.kind {
            EntryKind::Directory => self.directory(&path, &name, entry),
            EntryKind::File => self.file(&name, entry, archive),
            EntryKind::Symlink(target) => self.symlink(&name, target, entry),
            EntryKind::Fifo => self.node(&name, FileType::Fifo, 0, entry),
            EntryKind::CharacterDevice { major: 0, minor: 0 } => {
                // The same bytes would be a whiteout once mounted; only a `.wh.` entry may say that.
                Err(corrupt("a 0:0 character device is an overlay whiteout"))
            }
            EntryKind::CharacterDevice { major, minor } => self.node(
                &name,
                FileType::CharacterDevice,
                rustix::fs::makedev(*major, *minor),
                entry,
            ),
            EntryKind::BlockDevice { major, minor } => self.node(
                &name,
                FileType::BlockDevice,
                rustix::fs::makedev(*major, *minor),
                entry,
            ),
            EntryKind::HardLink(_) => unreachable!("linked above"),
        }
    }

    /// Makes the directory `path` (and what is missing above it) the current parent.
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        if self.parent.as_ref().is_some_and(|(current, _)| current == path) {
            return Ok(());
        }
        let fd = self.open_directory(path, RESOLVE)?;
        self.parent = Some((path.to_vec(), fd));
        Ok(())
    }

    fn current(&self) -> BorrowedFd<'_> {
        self.parent
            .as_ref()
            .expect("`enter` ran before and nothing leaves the parent unset until then")
            .1
            .as_fd()
    }

    /// Opens a directory of the layer, making missing ones as docker does: 0755, owned by root.
    fn open_directory(&self, path: &[u8], resolve: ResolveFlags) -> Result<OwnedFd> {
        const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
        let open = |path: &[u8]| -> Result<OwnedFd, Errno> {
            let path = if path.is_empty() { b"." } else { path };
            rustix::fs::openat2(&self.root, path, FLAGS, Mode::empty(), resolve)
        };
        match open(path) {
            Ok(fd) => return Ok(fd),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(resolving(error)),
        }
        let mut end = 0;
        while end < path.len() {
            let start = end + usize::from(end > 0);
            end = path[start..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(path.len(), |at| start + at);
            match open(&path[..end]) {
                Ok(_) => continue,
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(resolving(error)),
            }
            let parent = open(&path[..start.saturating_sub(1)]).map_err(resolving)?;
            let name = c_string(&path[start..end])?;
            let hidden = Self::clear_for_directory(parent.as_fd(), &name)?;
            rustix::fs::mkdirat(&parent, &name, Mode::from(0o755)).map_err(failed)?;
            if hidden {
                let made = open(&path[..end]).map_err(resolving)?;
                self.set_opaque(made.as_fd())?;
            }
        }
        open(path).map_err(resolving)
    }

    /// Removes what stands where a directory is to be, unless it is one. True when it was a whiteout: then the new
    /// directory must hide the lower layers', as it would if the whiteout had stayed.
    fn clear_for_directory(parent: BorrowedFd<'_>, name: &CString) -> Result<bool> {
        let Some(stat) = stat(parent, name)? else {
            return Ok(false);
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(false),
            kind => {
                rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed)?;
                Ok(kind == FileType::CharacterDevice && stat.st_rdev == 0)
            }
        }
    }

    fn adopt_root(&mut self, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        rustix::fs::fchown(&self.root, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&self.root, Mode::from(entry.mode)).map_err(failed)?;
        self.times.set(b"", timestamps(entry))?;
        Self::attributes(self.root.as_fd(), entry)
    }

    fn directory(&mut self, path: &[u8], name: &CString, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        let parent = self.current();
        let opaque = Self::clear_for_directory(parent, name)?;
        match rustix::fs::mkdirat(parent, name, Mode::from(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed(error)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = rustix::fs::openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        rustix::fs::fchown(&made, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&made, Mode::from(entry.mode)).map_err(failed)?;
        Self::attributes(made.as_fd(), entry)?;
        if opaque {
            self.set_opaque(made.as_fd())?;
        }
        self.times.set(path, timestamps(entry))?;
        // The files that follow are most often this directory's.
        self.parent = Some((path.to_vec(), made));
        Ok(())
    }

    fn file<R: std::io::Read>(
        &mut self,
        name: &CString,
        entry: &Entry,
        archive: &mut Archive<R>,
    ) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = |parent: BorrowedFd<'_>| rustix::fs::openat(parent, name, flags, Mode::from(0o600));
        let file = match create(self.current()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                create(self.current()).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        match &entry.sparse {
            None => self.copy(&file, archive, 0, entry.size)?,
            Some(chunks) => {
                for (offset, length) in chunks {
                    self.copy(&file, archive, *offset, *length)?;
                }
                rustix::fs::ftruncate(&file, entry.size).map_err(failed)?;
            }
        }
        // Changing the owner clears setuid bits and capabilities, so both come after it.
        rustix::fs::fchown(&file, Some(uid), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&file, Mode::from(entry.mode)).map_err(failed)?;
        Self::attributes(file.as_fd(), entry)?;
        rustix::fs::futimens(&file, &timestamps(entry)).map_err(failed)
    }

    fn copy<R: std::io::Read>(
        &mut self,
        file: &OwnedFd,
        archive: &mut Archive<R>,
        at: u64,
        length: u64,
    ) -> Result<()> {
        let mut done = 0;
        while done < length {
            let room = self
                .buffer
                .len()
                .min(usize::try_from(length - done).unwrap_or(usize::MAX));
            let count = archive.read_data(&mut self.buffer[..room])?;
            if count == 0 {
                return Err(corrupt("it ends in the middle of an entry"));
            }
            let mut rest = &self.buffer[..count];
            while !rest.is_empty() {
                let written = rustix::io::pwrite(file, rest, at + done).map_err(failed)?;
                if written == 0 {
                    return Err(failed(Errno::NOSPC));
                }
                done += written as u64;
                rest = &rest[written..];
            }
        }
        Ok(())
    }

    fn symlink(&mut self, name: &CString, target: &[u8], entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        let target = c_string(target)?;
        match rustix::fs::symlinkat(&target, self.current(), name) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                rustix::fs::symlinkat(&target, self.current(), name).map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        self.finish_by_name(name, uid, gid, entry)
    }

    fn node(&mut self, name: &CString, kind: FileType, device: u64, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry)?;
        let make =
            |parent: BorrowedFd<'_>| rustix::fs::mknodat(parent, name, kind, Mode::from(0o600), device);
        let made = match make(self.current()) {
            Err(Errno::EXIST) => {
                self.clear(name)?;
                make(self.current())
            }
            other => other,
        };
        match made {
            Ok(()) => {}
            // A user namespace may make no device; nothing could use one, since every mount is `nodev`.
            Err(Errno::PERM) if kind != FileType::Fifo => {
                self.summary.skipped_devices += 1;
                return Ok(());
            }
            Err(error) => return Err(failed(error)),
        }
        rustix::fs::chownat(
            self.current(),
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)?;
        // chmod by name follows a symlink, but this name is the node made above and only this thread writes here.
        rustix::fs::chmodat(self.current(), name, Mode::from(entry.mode), AtFlags::empty())
            .map_err(failed)?;
        rustix::fs::utimensat(
            self.current(),
            name,
            &timestamps(entry),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)
    }

    fn finish_by_name(&self, name: &CString, uid: Uid, gid: Gid, entry: &Entry) -> Result<()> {
        rustix::fs::chownat(
            self.current(),
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)?;
        rustix::fs::utimensat(
            self.current(),
            name,
            &timestamps(entry),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed)
    }

    fn hard_link(&mut self, parent: &[u8], name: &[u8], target: &[u8]) -> Result<()> {
        let target = clean(target)?;
        let (target_parent, target_name) = match target.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (&b""[..], &target[..]),
        };
        if target_name.is_empty() {
            return Err(corrupt("a hard link points to the root"));
        }
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from_path = if target_parent.is_empty() {
            b"."
        } else {
            target_parent
        };
        let from =
            rustix::fs::openat2(&self.root, from_path, flags, Mode::empty(), strict).map_err(linking)?;
        let from_name = c_string(target_name)?;
        match stat(from.as_fd(), &from_name)?.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            None => return Err(linking(Errno::NOENT)),
            Some(FileType::Directory) => return Err(corrupt("a hard link points to a directory")),
            Some(_) => {}
        }
        let to = self.open_directory(parent, strict)?;
        let name = c_string(name)?;
        let link = || rustix::fs::linkat(&from, &from_name, &to, &name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                let same = stat(to.as_fd(), &name)?.map(|s| (s.st_dev, s.st_ino))
                    == stat(from.as_fd(), &from_name)?.map(|s| (s.st_dev, s.st_ino));
                if same {
                    return Ok(());
                }
                self.parent = Some((parent.to_vec(), to.try_clone().map_err(cloning)?));
                self.clear(&name)?;
                link().map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Hides `name` of the layers below. What this layer itself has under that name stays (image-spec: whiteouts
    /// apply to lower layers only), but then must not let the lower one shine through.
    fn whiteout(&mut self, parent: &[u8], name: &[u8]) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(corrupt("a whiteout names nothing"));
        }
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let directory = self.open_directory(parent, strict)?;
        let name = c_string(name)?;
        let made = rustix::fs::mknodat(&directory, &name, FileType::CharacterDevice, Mode::empty(), 0);
        match made {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(&directory, &name, flags, Mode::empty()) {
                    Ok(existing) => self.set_opaque(existing.as_fd()),
                    Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(()),
                    Err(error) => Err(failed(error)),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn make_opaque(&mut self, path: &[u8]) -> Result<()> {
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let directory = self.open_directory(path, strict)?;
        self.set_opaque(directory.as_fd())
    }

    fn set_opaque(&self, directory: BorrowedFd<'_>) -> Result<()> {
        let name = super::opaque_attribute(self.rootless);
        rustix::fs::fsetxattr(directory, name, b"y", XattrFlags::empty()).map_err(|error| {
            Error::io("cannot mark an opaque directory", error)
                .hint("keep the store on a file system with extended attributes, such as ext4, xfs or btrfs")
        })
    }

    fn attributes(file: BorrowedFd<'_>, entry: &Entry) -> Result<()> {
        for (name, value) in &entry.xattrs {
            if !super::is_allowed_attribute(name) {
                continue;
            }
            let name = c_string(name)?;
            match rustix::fs::fsetxattr(file, &name, value, XattrFlags::empty()) {
                // The file system or this kind of file has none of these; docker goes on as well.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(Errno::PERM) if name.as_bytes().starts_with(b"user.") => {}
                Err(error) => {
                    let shown = name.to_string_lossy().escape_debug().to_string();
                    return Err(Error::io(format!("cannot set the attribute `{shown}`"), error));
                }
            }
        }
        Ok(())
    }

    /// Removes `name` from the current parent, whatever it is.
    fn clear(&mut self, name: &CString) -> Result<()> {
        // A cached descriptor or a remembered time may belong to what goes.
        let parent = self
            .parent
            .take()
            .expect("an entry is being written into its parent");
        remove_all(parent.1.as_fd(), name).map_err(failed)?;
        self.parent = Some(parent);
        Ok(())
    }

    fn set_directory_times(&mut self) -> Result<()> {
        let strict = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        for (path, times) in self.times.iter() {
            let path: &[u8] = if path.is_empty() { b"." } else { path };
            match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), strict) {
                Ok(directory) => rustix::fs::futimens(&directory, times).map_err(failed)?,
                // Named through a symlink, or replaced by something else later in the archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

/// The path without `.`, doubled and outer slashes; empty for the root. A leading slash means the layer's root, as in
/// docker; `..` is refused wherever it stands, and so is what is longer or deeper than any program can use.
pub(crate) fn clean(path: &[u8]) -> Result<Vec<u8>> {
    if path.contains(&0) {
        return Err(corrupt("a path holds a NUL"));
    }
    if path.len() > MAX_PATH {
        return Err(corrupt("a path is longer than 4,096 bytes"));
    }
    let mut clean = Vec::with_capacity(path.len());
    let mut levels = 0;
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(corrupt("a path holds `..`")),
            part if part.len() > 255 => return Err(corrupt("a name is longer than 255 bytes")),
            part => {
                levels += 1;
                if levels > MAX_LEVELS {
                    return Err(corrupt("a path has more than 512 levels"));
                }
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(part);
            }
        }
    }
    Ok(clean)
}

pub(crate) fn owner(entry: &Entry) -> Result<(Uid, Gid)> {
    for (what, id) in [("uid", entry.uid), ("gid", entry.gid)] {
        if id > MAX_ID {
            return Err(
                Error::new(Kind::Unsupported, format!("cannot give a file to {what} {id}"))
                    .because("a sandbox has the ids 0 to 65535"),
            );
        }
    }
    Ok((Uid::from_raw(entry.uid as u32), Gid::from_raw(entry.gid as u32)))
}

fn timestamps(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: entry.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn stat(parent: BorrowedFd<'_>, name: &CString) -> Result<Option<rustix::fs::Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|_| corrupt("a path holds a NUL"))
}

fn failed(error: Errno) -> Error {
    let full = matches!(error, Errno::NOSPC | Errno::DQUOT);
    let error = Error::io("cannot write to the store", error);
    match full {
        true => error.hint("free some disk space, for example with `luna prune`, and try again"),
        false => error,
    }
}

fn cloning(error: std::io::Error) -> Error {
    Error::io("cannot keep a directory open", error)
}

fn resolving(error: Errno) -> Error {
    match error {
        Errno::LOOP | Errno::XDEV => corrupt("its path leads through a symlink that is not allowed there"),
        Errno::NOTDIR => corrupt("a part of its path is not a directory"),
        error => failed(error),
    }
}

fn linking(error: Errno) -> Error {
    match error {
        Errno::LOOP | Errno::XDEV => corrupt("a hard link leads through a symlink"),
        Errno::NOENT | Errno::NOTDIR => corrupt("a hard link points to what this layer does not have"),
        error => failed(error),
    }
}
