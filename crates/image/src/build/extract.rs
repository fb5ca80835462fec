//! Local archives that ADD unpacks: recognised by their bytes, read one entry at a time, their names made harmless.

use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use luna_core::{Error, Kind, Result};

use super::view::{Form, Meta, path_text};
use crate::layer::archive::{Archive, EntryKind};

/// One entry, its path relative and free of `..`.
pub(crate) struct Entry {
    pub(crate) path: PathBuf,
    pub(crate) meta: Meta,
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) link: Option<Link>,
}

pub(crate) enum Link {
    /// Like an entry's path.
    Hard(PathBuf),
    /// As the archive has it.
    Symbolic(Vec<u8>),
}

/// The archive in `file` with its compression taken off, or `None` where it is none: ADD then copies it.
pub(crate) fn open(mut file: File, path: &Path) -> Result<Option<Box<dyn Read>>> {
    let reading = |error| Error::io(format!("cannot read `/{}`", path_text(path)), error);
    let mut magic = Vec::new();
    (&mut file).take(6).read_to_end(&mut magic).map_err(reading)?;
    file.seek(SeekFrom::Start(0)).map_err(reading)?;
    let mut stream: Box<dyn Read> = if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(std::io::BufReader::new(file)))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::new(file).map_err(reading)?)
    } else if magic.starts_with(b"BZh") || magic.starts_with(&[0xfd, b'7', b'z', b'X', b'Z']) {
        let name = path.to_string_lossy().to_lowercase();
        let archive =
            name.contains(".tar.") || [".tbz", ".tbz2", ".txz"].iter().any(|end| name.ends_with(end));
        if !archive {
            return Ok(None);
        }
        return Err(Error::new(
            Kind::Unsupported,
            format!("cannot extract `/{}`", path_text(path)),
        )
        .because("it is compressed with bzip2 or xz")
        .hint("compress it with gzip or zstd"));
    } else {
        Box::new(std::io::BufReader::new(file))
    };
    let mut first = Vec::new();
    // What cannot be decompressed is no archive.
    if (&mut stream).take(512).read_to_end(&mut first).is_err() || !is_header(&first) {
        return Ok(None);
    }
    Ok(Some(Box::new(Cursor::new(first).chain(stream))))
}

/// A tar header says so by its checksum.
fn is_header(block: &[u8]) -> bool {
    let Ok(block) = <&[u8; 512]>::try_from(block) else {
        return false;
    };
    let text = String::from_utf8_lossy(&block[148..156]);
    let said = u32::from_str_radix(text.trim_matches(|c: char| c == '\0' || c == ' '), 8);
    let sum: u32 = block[..148]
        .iter()
        .chain(&block[156..])
        .map(|byte| u32::from(*byte))
        .sum();
    said == Ok(sum + 8 * u32::from(b' '))
}

/// Hands every entry to `take` with a reader of its content, which `take` need not finish.
pub(crate) fn each(
    stream: Box<dyn Read>,
    take: &mut dyn FnMut(Entry, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut archive = Archive::new(stream);
    while let Some(entry) = archive.next()? {
        if entry.sparse.is_some() {
            return Err(Error::new(
                Kind::Unsupported,
                "cannot extract an archive with sparse files",
            ));
        }
        let path = harmless(entry.path)?;
        let id = |id: u64| match u32::try_from(id) {
            Ok(id) if id < 65_536 => Ok(id),
            _ => Err(Error::new(
                Kind::InvalidInput,
                format!("cannot extract `{}`", path_text(&path)),
            )
            .because(format!("it belongs to {id}, and ids end at 65535"))
            .hint("add `--chown=0:0` to the ADD instruction")),
        };
        let mut meta = Meta {
            kind: Form::File,
            mode: entry.mode & 0o7777,
            uid: id(entry.uid)?,
            gid: id(entry.gid)?,
            size: entry.size,
            mtime: entry.mtime.0,
            device: (0, 0),
        };
        let mut link = None;
        match entry.kind {
            EntryKind::File => {}
            EntryKind::Directory => meta.kind = Form::Directory,
            EntryKind::Symlink(target) => {
                meta.kind = Form::Symlink;
                link = Some(Link::Symbolic(target));
            }
            EntryKind::HardLink(target) => link = Some(Link::Hard(harmless(target)?)),
            EntryKind::Fifo => meta.kind = Form::Fifo,
            EntryKind::CharacterDevice { major, minor } => {
                meta.kind = Form::CharacterDevice;
                meta.device = (major, minor);
            }
            EntryKind::BlockDevice { major, minor } => {
                meta.kind = Form::BlockDevice;
                meta.device = (major, minor);
            }
        }
        let entry = Entry {
            path,
            meta,
            attributes: entry.xattrs,
            link,
        };
        take(entry, &mut Content(&mut archive))?;
    }
    Ok(())
}

struct Content<'a>(&'a mut Archive<Box<dyn Read>>);

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_data(buffer).map_err(std::io::Error::other)
    }
}

fn harmless(path: Vec<u8>) -> Result<PathBuf> {
    let path = PathBuf::from(std::ffi::OsString::from_vec(path));
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::new(
                    Kind::InvalidInput,
                    format!("cannot extract `{}`", path_text(&path)),
                )
                .because("its path leaves the archive"));
            }
        }
    }
    Ok(clean)
}
