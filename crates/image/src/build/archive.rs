//! A layer's archive from files of a view: no time later than asked, the same entries always the same bytes.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use luna_core::{Error, Result};
use tar::EntryType;

use super::view::{Form, Meta, path_text};
use crate::tarball::{Item, TarWriter};

pub(crate) struct ArchiveWriter<W> {
    tar: TarWriter<W>,
    /// Times later than this are written as this.
    latest: u64,
}

/// What an entry has besides its name and metadata.
pub(crate) enum Content<'a> {
    /// `Meta::size` bytes of it.
    File(&'a mut dyn Read),
    Directory,
    Symlink(&'a [u8]),
    HardLink(&'a Path),
    /// A FIFO or a device, as the metadata says.
    Node,
}

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(out: W, latest: Option<u64>) -> ArchiveWriter<W> {
        ArchiveWriter {
            tar: TarWriter::new(out),
            latest: latest.unwrap_or(u64::MAX),
        }
    }

    /// Adds one entry; a file shorter than its metadata says is an error, of a longer one the rest stays unread.
    pub(crate) fn add(
        &mut self,
        path: &Path,
        meta: &Meta,
        attributes: &[(Vec<u8>, Vec<u8>)],
        content: Content<'_>,
    ) -> Result<()> {
        let mut name = path.as_os_str().as_bytes().to_vec();
        let (kind, link) = match &content {
            Content::File(_) => (EntryType::Regular, &b""[..]),
            Content::Directory => {
                name.push(b'/');
                (EntryType::Directory, &b""[..])
            }
            Content::Symlink(target) => (EntryType::Symlink, *target),
            Content::HardLink(target) => (EntryType::Link, target.as_os_str().as_bytes()),
            Content::Node => match meta.kind {
                Form::CharacterDevice => (EntryType::Char, &b""[..]),
                Form::BlockDevice => (EntryType::Block, &b""[..]),
                _ => (EntryType::Fifo, &b""[..]),
            },
        };
        let item = Item {
            path: &name,
            kind,
            link,
            mode: meta.mode,
            uid: meta.uid,
            gid: meta.gid,
            mtime: u64::try_from(meta.mtime).unwrap_or(0).min(self.latest),
            size: if kind == EntryType::Regular { meta.size } else { 0 },
            device: if matches!(kind, EntryType::Char | EntryType::Block) {
                meta.device
            } else {
                (0, 0)
            },
            xattrs: attributes,
        };
        let mut nothing = std::io::empty();
        let data: &mut dyn Read = match content {
            Content::File(data) => data,
            _ => &mut nothing,
        };
        self.tar
            .append(&item, data)
            .map_err(|error| Error::io(format!("cannot copy `/{}`", path_text(path)), error))
    }

    /// Ends the archive and gives back what it was written to.
    pub(crate) fn finish(self) -> Result<W> {
        self.tar
            .finish()
            .map_err(|error| Error::io("cannot write a layer's archive", error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_come_back_and_times_are_clamped() {
        let mut writer = ArchiveWriter::new(Vec::new(), Some(7));
        let long = format!("dir/{}", "ä".repeat(90));
        let meta = Meta {
            kind: Form::File,
            mode: 0o4755,
            uid: 5,
            gid: 65_535,
            size: 3,
            ..Meta::directory(99)
        };
        writer
            .add(Path::new(&long), &meta, &[], Content::File(&mut &b"abcdef"[..]))
            .unwrap();
        writer
            .add(
                Path::new("l"),
                &meta,
                &[],
                Content::Symlink("t".repeat(150).as_bytes()),
            )
            .unwrap();
        let bytes = writer.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut file = entries.next().unwrap().unwrap();
        assert_eq!(file.path().unwrap(), Path::new(&long));
        assert_eq!(file.header().mtime().unwrap(), 7);
        assert_eq!(file.header().mode().unwrap(), 0o4755);
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
        let link = entries.next().unwrap().unwrap();
        assert_eq!(link.link_name().unwrap().unwrap(), Path::new(&"t".repeat(150)));
        let mut short = ArchiveWriter::new(Vec::new(), None);
        assert!(
            short
                .add(Path::new("short"), &meta, &[], Content::File(&mut &b"a"[..]))
                .is_err()
        );
    }
}
