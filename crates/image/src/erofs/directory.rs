//! A disk of a directory's files, such as a kernel's modules.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};
use rustix::fs::OFlags;

use super::content::Contents;
use super::format;
use super::layout::Writer;
use super::output::Output;
use super::tree::{Child, Directory, NodeId, NodeKind, Owner, Tree};
use crate::Hasher;
use crate::files::Temporary;
use crate::layer::Limits;

/// Makes `out` a disk of what is in `directory`: files, directories, symlinks, fifos and devices with their modes and
/// times, hard links as such. Everything belongs to root, whoever unpacked it; attributes are left out. `out` is replaced
/// whole or stays as it was.
pub fn from_directory(directory: &Path, out: &Path) -> Result<()> {
    let failed = |error: Error| error.context(format!("cannot make a disk of `{}`", directory.display()));
    let parent = match out.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let temporary = Temporary::file(parent)?;
    let file = temporary.handle();
    let mut reader = DirectoryReader {
        tree: Tree::new(Limits::default().entries),
        contents: Contents::new(Output::new(file)),
        linked: HashMap::new(),
        seen: Hasher::default(),
    };
    let root = reader.read(directory).map_err(failed)?;
    let uuid = super::uuid(&reader.seen.finish().first_half());
    Writer::new(&reader.tree, reader.contents).write(root, uuid)?;
    file.sync_all()
        .map_err(|error| crate::files::storage_error(format!("cannot write `{}`", out.display()), error))?;
    temporary.publish(out)
}

struct DirectoryReader<'a> {
    tree: Tree,
    contents: Contents<'a>,
    /// Files with several names, by device and inode.
    linked: HashMap<(u64, u64), NodeId>,
    /// Paths, sizes and times: what the disk's UUID is made from.
    seen: Hasher,
}

impl DirectoryReader<'_> {
    fn read(&mut self, directory: &Path) -> Result<NodeId> {
        let metadata = std::fs::metadata(directory)
            .map_err(|error| Error::io(format!("cannot read `{}`", directory.display()), error))?;
        let kind = NodeKind::Directory(Directory::default());
        let root = self.tree.add(kind, owner(&metadata), Vec::new())?;
        let mut waiting = vec![(root, directory.to_owned())];
        while let Some((parent, path)) = waiting.pop() {
            for name in names(&path)? {
                let child = path.join(OsStr::from_bytes(&name));
                let shown = || format!("cannot read `{}`", child.display());
                let metadata = child
                    .symlink_metadata()
                    .map_err(|error| Error::io(shown(), error))?;
                self.note(&child, &metadata);
                let node = self.node(&child, &metadata)?;
                self.tree.link(parent, &name, Child::Node(node))?;
                if metadata.is_dir() {
                    waiting.push((node, child));
                }
            }
        }
        Ok(root)
    }

    fn node(&mut self, path: &Path, metadata: &Metadata) -> Result<NodeId> {
        let key = (metadata.dev(), metadata.ino());
        if let Some(node) = self.linked.get(&key) {
            return Ok(*node);
        }
        let failed = |error| Error::io(format!("cannot read `{}`", path.display()), error);
        let kind = metadata.file_type();
        let node = if kind.is_dir() {
            NodeKind::Directory(Directory::default())
        } else if kind.is_symlink() {
            let target: PathBuf = std::fs::read_link(path).map_err(failed)?;
            let target = target.as_os_str().as_bytes();
            self.tree.take_room(target.len())?;
            NodeKind::Symlink(target.into())
        } else if kind.is_file() {
            NodeKind::File(self.content(path)?)
        } else if kind.is_fifo() {
            NodeKind::Fifo
        } else if kind.is_char_device() || kind.is_block_device() {
            let number = metadata.rdev();
            let device = format::device(rustix::fs::major(number), rustix::fs::minor(number));
            let device = device.ok_or_else(|| failed(ErrorKind::InvalidData.into()))?;
            match kind.is_char_device() {
                true => NodeKind::Character(device),
                false => NodeKind::Block(device),
            }
        } else {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot put `{}` on a disk", path.display()),
            )
            .because("it is a socket")
            .hint("remove it, or stop what listens there"));
        };
        let id = self.tree.add(node, owner(metadata), Vec::new())?;
        if metadata.nlink() > 1 && !kind.is_dir() {
            self.linked.insert(key, id);
        }
        Ok(id)
    }

    fn content(&mut self, path: &Path) -> Result<super::tree::Content> {
        let failed = |error| Error::io(format!("cannot read `{}`", path.display()), error);
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let mut options = File::options();
        let mut file = options
            .read(true)
            .custom_flags(flags)
            .open(path)
            .map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        self.contents
            .write(size, &[(0, size)], 0, &mut |room| match file.read(room) {
                Ok(0) => Err(failed(ErrorKind::UnexpectedEof.into())),
                other => other.map_err(failed),
            })
    }

    fn note(&mut self, path: &Path, metadata: &Metadata) {
        self.seen.update(path.as_os_str().as_bytes());
        for number in [
            metadata.mode().into(),
            metadata.len(),
            metadata.mtime().cast_unsigned(),
        ] {
            self.seen.update(&number.to_le_bytes());
        }
    }
}

/// The names in a directory, in a fixed order.
fn names(path: &Path) -> Result<Vec<Vec<u8>>> {
    let failed = |error| Error::io(format!("cannot read `{}`", path.display()), error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().as_bytes().to_vec());
    }
    names.sort();
    Ok(names)
}

fn owner(metadata: &Metadata) -> Owner {
    let mode = if metadata.is_symlink() {
        0o777
    } else {
        metadata.mode() as u16 & 0o7777
    };
    Owner {
        mode,
        ..Owner::root((metadata.mtime(), metadata.mtime_nsec() as u32))
    }
}
