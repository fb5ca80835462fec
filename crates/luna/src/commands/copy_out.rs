//! Files on their way out of a sandbox: a hostile archive, unpacked below one directory of the host's.
//!
//! Every entry is placed through the directory's fd with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, so neither `..` nor a
//! link, in the archive or put there meanwhile, leads anywhere else. What is in an entry's way is unlinked, never written
//! through. Files are the caller's and lose set-id bits; devices, sockets and pipes are left out. Hard links lead only to
//! files of the same archive. Extensions that init does not write (PAX, sparse files) are refused.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use luna_core::{Error, Kind, Result};
use luna_runtime::control::client::{Event, Output, Stream};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use tar::EntryType;

/// Longest name that an extension may carry.
const NAME: u64 = 64 << 10;

/// The archive as it comes.
pub(super) fn to_stdout(stream: Stream) -> Result<()> {
    let mut archive = Archive::new(stream.output);
    let mut stdout = io::stdout().lock();
    io::copy(&mut archive, &mut stdout)
        .and_then(|_| stdout.flush())
        .map_err(|e| archive.failure("cannot write the archive", e))
}

/// What was unpacked.
#[derive(Debug, Default)]
pub(super) struct Unpacked {
    pub(super) skipped: u64,
}

/// Unpacks into `directory`, the archive's one top name replaced by `name`, or left out where there is none.
pub(super) fn unpack(
    stream: Stream,
    directory: &Path,
    name: Option<&OsStr>,
    keep_ids: bool,
) -> Result<Unpacked> {
    let _input = stream.input;
    let mut archive = Archive::new(stream.output);
    let base = open_directory(directory)?;
    let mut tree = Tree {
        base,
        name: name.map(OsStr::to_owned),
        keep_ids,
        top: None,
        files: HashSet::new(),
        directories: Vec::new(),
    };
    tree.unpack(&mut archive)
        .map_err(|error| archive.because_of(error))
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| Error::io(format!("cannot open `{}`", path.display()), e))
}

/// The supervisor's output as a reader.
struct Archive {
    output: Output,
    piece: Vec<u8>,
    at: usize,
    over: bool,
    /// Why there is no more, where that was an error.
    error: Option<Error>,
}

impl Archive {
    fn new(output: Output) -> Archive {
        Archive {
            output,
            piece: Vec::new(),
            at: 0,
            over: false,
            error: None,
        }
    }

    fn failure(&mut self, message: &'static str, error: io::Error) -> Error {
        self.error.take().unwrap_or_else(|| Error::io(message, error))
    }

    /// The sandbox's own word where it said one.
    fn because_of(&mut self, error: Error) -> Error {
        self.error.take().unwrap_or(error)
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.over {
                return Ok(0);
            }
            let failed = match self.output.next_event() {
                Ok(Some(Event::Stdout(bytes))) => {
                    self.piece.clear();
                    self.piece.extend_from_slice(bytes);
                    self.at = 0;
                    None
                }
                Ok(Some(Event::Stderr(_))) => None,
                Ok(Some(Event::Ended(ended))) => {
                    self.over = true;
                    ended.error.map(Error::from)
                }
                Ok(None) => Some(
                    Error::new(Kind::Interrupted, "cannot read the rest of the archive")
                        .because("the supervisor went away"),
                ),
                Err(error) => Some(error),
            };
            if let Some(error) = failed {
                self.over = true;
                self.error = Some(error);
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// What is being unpacked, and below what.
struct Tree {
    base: OwnedFd,
    name: Option<OsString>,
    keep_ids: bool,
    /// Whether names in this archive begin with a top of their own, as its first one tells.
    top: Option<bool>,
    /// Files of this archive, which hard links may lead to.
    files: HashSet<PathBuf>,
    /// Directories' modes and times, set when nothing more is put into them.
    directories: Vec<(PathBuf, u32, u64)>,
}

fn corrupt(because: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, "cannot unpack what the sandbox sent").because(because.into())
}

fn unreadable(error: io::Error) -> Error {
    Error::new(Kind::Corrupt, "cannot read the archive that the sandbox sent").because(error)
}

impl Tree {
    fn unpack(&mut self, source: impl Read) -> Result<Unpacked> {
        let mut archive = tar::Archive::new(source);
        let mut unpacked = Unpacked::default();
        let (mut long_name, mut long_link): (Option<Vec<u8>>, Option<Vec<u8>>) = (None, None);
        // Raw: extensions are read here, with a bound.
        for entry in archive.entries().map_err(unreadable)?.raw(true) {
            let mut entry = entry.map_err(unreadable)?;
            let kind = entry.header().entry_type();
            match kind {
                EntryType::GNULongName => {
                    long_name = Some(extension(&mut entry)?);
                    continue;
                }
                EntryType::GNULongLink => {
                    long_link = Some(extension(&mut entry)?);
                    continue;
                }
                _ => {}
            }
            let name = long_name
                .take()
                .unwrap_or_else(|| entry.header().path_bytes().into_owned());
            let link = long_link
                .take()
                .or_else(|| entry.header().link_name_bytes().map(std::borrow::Cow::into_owned));
            let path = self.place(&name)?;
            let placed = match kind {
                EntryType::Regular | EntryType::Continuous => self.file(&path, &mut entry),
                EntryType::Directory => self.directory(&path, entry.header()),
                EntryType::Symlink => self.symlink(&path, link, entry.header()),
                EntryType::Link => self.hard_link(&path, link),
                EntryType::Char | EntryType::Block | EntryType::Fifo => {
                    unpacked.skipped += 1;
                    Ok(())
                }
                _ => return Err(corrupt("it has an entry of a kind that init does not write")),
            };
            placed.map_err(|error| match error.kind() {
                Kind::Corrupt => error,
                _ => error.context(format!("cannot write `{}`", path.display())),
            })?;
        }
        // Inner ones first, as a parent without write permission keeps them from being changed.
        for (path, mode, modified) in std::mem::take(&mut self.directories).into_iter().rev() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let directory = self
                .open(&path, flags, Mode::empty())
                .map_err(|e| failed(&path, e))?;
            let set = rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))
                .and_then(|()| rustix::fs::futimens(&directory, &times(modified)));
            set.map_err(|e| failed(&path, e))?;
        }
        Ok(unpacked)
    }

    /// Where an entry goes: plain components below the base.
    fn place(&mut self, name: &[u8]) -> Result<PathBuf> {
        let odd = || {
            corrupt(format!(
                "`{}` is no path below a directory",
                String::from_utf8_lossy(name).escape_debug()
            ))
        };
        let mut parts = Path::new(OsStr::from_bytes(name)).components().peekable();
        // The archive's own top gives way to the name asked for. Where it is `.`, names below it have no top.
        let top = match parts.peek() {
            Some(Component::CurDir | Component::Normal(_)) => parts.peek() != Some(&Component::CurDir),
            _ => return Err(odd()),
        };
        if *self.top.get_or_insert(top) || !top {
            parts.next();
        }
        let mut path = PathBuf::new();
        path.extend(&self.name);
        for part in parts {
            match part {
                Component::Normal(part) if !part.as_bytes().contains(&0) => path.push(part),
                _ => return Err(odd()),
            }
        }
        Ok(path)
    }

    fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(
            &self.base,
            path,
            flags | OFlags::CLOEXEC | OFlags::NOFOLLOW,
            mode,
            resolve,
        )
    }

    /// The fd of an entry's parent and the entry's name in it.
    fn parent<'p>(&self, path: &'p Path) -> Result<(OwnedFd, &'p OsStr)> {
        let name = path
            .file_name()
            .ok_or_else(|| corrupt("its top is not a directory"))?;
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = self
            .open(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
            .map_err(|e| failed(parent, e))?;
        Ok((parent, name))
    }

    fn file(&mut self, path: &Path, entry: &mut tar::Entry<'_, impl Read>) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        clear(&parent, name, path)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(|e| failed(path, e))?;
        let mut file = std::fs::File::from(file);
        let wanted = entry.header().entry_size().map_err(unreadable)?;
        let copied = io::copy(entry, &mut file)
            .map_err(|e| Error::io(format!("cannot write `{}`", path.display()), e))?;
        if copied != wanted {
            return Err(corrupt("it ends in the middle of a file"));
        }
        let header = entry.header();
        self.own(&file, header)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode(header)?)).map_err(|e| failed(path, e))?;
        rustix::fs::futimens(&file, &times(header.mtime().map_err(unreadable)?))
            .map_err(|e| failed(path, e))?;
        self.files.insert(path.to_owned());
        Ok(())
    }

    fn directory(&mut self, path: &Path, header: &tar::Header) -> Result<()> {
        if !path.as_os_str().is_empty() {
            let (parent, name) = self.parent(path)?;
            match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
                Ok(()) => {}
                // A directory that was there stays as it is; anything else is in the way.
                Err(rustix::io::Errno::EXIST) => {
                    self.open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                        .map_err(|e| failed(path, e))?;
                    return Ok(());
                }
                Err(error) => return Err(failed(path, error)),
            }
            let made = self
                .open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .map_err(|e| failed(path, e))?;
            self.own(&made, header)?;
            self.directories.push((
                path.to_owned(),
                mode(header)?,
                header.mtime().map_err(unreadable)?,
            ));
        }
        Ok(())
    }

    fn symlink(&self, path: &Path, target: Option<Vec<u8>>, header: &tar::Header) -> Result<()> {
        let target = target.filter(|target| !target.is_empty() && !target.contains(&0));
        let target = OsString::from_vec(target.ok_or_else(|| corrupt("it has a link that leads nowhere"))?);
        let (parent, name) = self.parent(path)?;
        clear(&parent, name, path)?;
        rustix::fs::symlinkat(&target, &parent, name).map_err(|e| failed(path, e))?;
        if self.keep_ids {
            let (user, group) = ids(header)?;
            rustix::fs::chownat(&parent, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed(path, e))?;
        }
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, target: Option<Vec<u8>>) -> Result<()> {
        let target = self.place(&target.ok_or_else(|| corrupt("it has a link that leads nowhere"))?)?;
        if !self.files.contains(&target) {
            return Err(corrupt("it has a hard link to what is not in it"));
        }
        let (from, old) = self.parent(&target)?;
        let (parent, name) = self.parent(path)?;
        clear(&parent, name, path)?;
        rustix::fs::linkat(&from, old, &parent, name, AtFlags::empty()).map_err(|e| failed(path, e))
    }

    fn own(&self, file: &impl AsFd, header: &tar::Header) -> Result<()> {
        if !self.keep_ids {
            return Ok(());
        }
        let (user, group) = ids(header)?;
        rustix::fs::fchown(file, Some(user), Some(group)).map_err(|e| Error::io("cannot set the owner", e))
    }
}

/// A name or link target that stands in front of its entry.
fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>> {
    let mut name = Vec::new();
    entry.take(NAME + 1).read_to_end(&mut name).map_err(unreadable)?;
    if name.len() as u64 > NAME {
        return Err(corrupt("a name in it is too long"));
    }
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

/// Unlinks what is in the way; a directory stays, and is an error.
fn clear(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(path, error)),
    }
}

fn failed(path: &Path, error: rustix::io::Errno) -> Error {
    Error::io(format!("cannot write `{}`", path.display()), error)
}

/// Permission bits without set-id.
fn mode(header: &tar::Header) -> Result<u32> {
    Ok(header.mode().map_err(unreadable)? & 0o1777)
}

fn ids(header: &tar::Header) -> Result<(rustix::fs::Uid, rustix::fs::Gid)> {
    let id = |id: io::Result<u64>| {
        let id = u32::try_from(id.map_err(unreadable)?).map_err(|_| corrupt("an id in it is too large"))?;
        if id == u32::MAX {
            Err(corrupt("an id in it means no id"))
        } else {
            Ok(id)
        }
    };
    Ok((
        rustix::fs::Uid::from_raw(id(header.uid())?),
        rustix::fs::Gid::from_raw(id(header.gid())?),
    ))
}

fn times(modified: u64) -> Timestamps {
    let time = Timespec {
        tv_sec: i64::try_from(modified).unwrap_or(0),
        tv_nsec: 0,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    type Attack<'a> = Box<dyn Fn(&mut tar::Builder<Vec<u8>>) + 'a>;

    fn header(kind: EntryType, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_size(size);
        header.set_mtime(1);
        header
    }

    /// The name goes into the header as it is: what `tar` itself would refuse to write.
    fn raw(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) {
        let mut header = header(kind, content.len() as u64);
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        archive.append(&header, content).unwrap();
    }

    fn unpack_into(
        directory: &Path,
        name: Option<&str>,
        build: impl Fn(&mut tar::Builder<Vec<u8>>),
    ) -> Result<Unpacked> {
        let mut archive = tar::Builder::new(Vec::new());
        build(&mut archive);
        let mut tree = Tree {
            base: open_directory(directory)?,
            name: name.map(OsString::from),
            keep_ids: false,
            top: None,
            files: HashSet::new(),
            directories: Vec::new(),
        };
        tree.unpack(io::Cursor::new(archive.into_inner().unwrap()))
    }

    #[test]
    fn a_tree_arrives_under_its_new_name() {
        let directory = tempfile::tempdir().unwrap();
        let long = "n".repeat(150);
        unpack_into(directory.path(), Some("new"), |archive| {
            raw(archive, EntryType::Directory, b"old/", b"", b"");
            raw(archive, EntryType::Regular, b"old/file", b"", b"text");
            raw(archive, EntryType::Link, b"old/again", b"old/file", b"");
            raw(archive, EntryType::Symlink, b"old/link", b"/etc/passwd", b"");
            raw(archive, EntryType::Fifo, b"old/pipe", b"", b"");
            let mut header = header(EntryType::Regular, 1);
            archive
                .append_data(&mut header, format!("old/{long}"), &b"x"[..])
                .unwrap();
        })
        .unwrap();
        let new = directory.path().join("new");
        assert_eq!(std::fs::read(new.join("again")).unwrap(), b"text");
        assert_eq!(
            std::fs::read_link(new.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(std::fs::read(new.join(long)).unwrap(), b"x");
        assert!(!new.join("pipe").exists());
        assert_eq!(
            std::fs::metadata(new.join("file")).unwrap().permissions().mode() & 0o7777,
            0o755
        );
    }

    #[test]
    fn content_goes_into_the_directory_itself() {
        let directory = tempfile::tempdir().unwrap();
        unpack_into(directory.path(), None, |archive| {
            raw(archive, EntryType::Directory, b"./", b"", b"");
            raw(archive, EntryType::Regular, b"file", b"", b"1");
            raw(archive, EntryType::Directory, b"./sub", b"", b"");
            raw(archive, EntryType::Regular, b"sub/leaf", b"", b"2");
        })
        .unwrap();
        assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"1");
        assert_eq!(std::fs::read(directory.path().join("sub/leaf")).unwrap(), b"2");
    }

    #[test]
    fn nothing_is_written_outside() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "kept").unwrap();
        let path = outside.path().to_str().unwrap().as_bytes();
        let attacks: Vec<Attack<'_>> = vec![
            Box::new(|archive| raw(archive, EntryType::Regular, b"../secret", b"", b"x")),
            Box::new(|archive| raw(archive, EntryType::Regular, b"a/../../secret", b"", b"x")),
            Box::new(|archive| raw(archive, EntryType::Regular, b"/secret", b"", b"x")),
            Box::new(|archive| {
                raw(archive, EntryType::Directory, b"a", b"", b"");
                raw(archive, EntryType::Symlink, b"a/l", path, b"");
                raw(archive, EntryType::Regular, b"a/l/secret", b"", b"x");
            }),
            Box::new(|archive| {
                raw(archive, EntryType::Directory, b"a", b"", b"");
                raw(archive, EntryType::Symlink, b"a/l", path, b"");
                raw(archive, EntryType::Directory, b"a/l", b"", b"");
                raw(archive, EntryType::Regular, b"a/l/secret", b"", b"x");
            }),
            Box::new(|archive| {
                raw(archive, EntryType::Directory, b"a", b"", b"");
                raw(
                    archive,
                    EntryType::Link,
                    b"a/h",
                    &[path, b"/secret"].concat(),
                    b"",
                );
            }),
            Box::new(|archive| raw(archive, EntryType::XHeader, b"a", b"", b"11 path=x\n")),
        ];
        for attack in attacks {
            let directory = tempfile::tempdir().unwrap();
            assert!(unpack_into(directory.path(), Some("a"), attack).is_err());
            assert_eq!(std::fs::read(&secret).unwrap(), b"kept");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn a_link_in_the_way_is_replaced_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        std::fs::write(&secret, "kept").unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&secret, directory.path().join("file")).unwrap();
        unpack_into(directory.path(), Some("file"), |archive| {
            raw(archive, EntryType::Regular, b"file", b"", b"new");
        })
        .unwrap();
        assert_eq!(std::fs::read(&secret).unwrap(), b"kept");
        assert_eq!(std::fs::read(directory.path().join("file")).unwrap(), b"new");
    }
}
