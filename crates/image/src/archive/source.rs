//! Random access to the files of an archive that may come through a pipe, or of a layout directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

use crate::files::{self, Temporary};
use crate::layer::archive::{Archive, EntryKind};
use crate::layer::{self, Decoder, Limits};
use crate::{Store, manifest};

/// No image has more blobs than this.
const MAX_ENTRIES: usize = 100_000;

/// Where an image's files lie.
pub(super) enum Source {
    Directory(PathBuf),
    /// The archive, written plain to an unnamed place in the store, with an index of what is where.
    Archive {
        spool: Temporary,
        index: HashMap<String, Place>,
    },
}

pub(super) enum Place {
    File {
        offset: u64,
        size: u64,
    },
    /// Old docker archives name a layer that occurs twice by a symlink.
    Link(String),
}

impl Source {
    /// Reads all of `input`, plain or compressed.
    pub(super) fn spool(store: &Store, input: &mut dyn Read) -> Result<Source> {
        let limits = Limits::from_environment()?;
        let (compression, input) = layer::sniff(input)?;
        let decoder = Decoder::new(input, compression, &limits)?;
        let spool = Temporary::file(&store.blobs())?;
        let mut archive = Archive::new(Spooler {
            inner: decoder,
            copy: spool.handle(),
            count: 0,
            limit: limits.bytes,
        });
        let mut index = HashMap::new();
        while let Some(entry) = archive.next()? {
            let offset = archive.reader().count;
            let Ok(path) = String::from_utf8(entry.path) else {
                continue;
            };
            let path = path.trim_start_matches("./").trim_end_matches('/').to_owned();
            let place = match entry.kind {
                EntryKind::File if entry.sparse.is_none() => Place::File {
                    offset,
                    size: entry.size,
                },
                EntryKind::Symlink(target) | EntryKind::HardLink(target) => {
                    Place::Link(String::from_utf8_lossy(&target).into_owned())
                }
                _ => continue,
            };
            if index.len() >= MAX_ENTRIES {
                return Err(Error::new(Kind::Exhausted, "cannot read the archive")
                    .because("it has more than 100,000 files"));
            }
            index.insert(path, place);
        }
        archive.drain()?;
        Ok(Source::Archive { spool, index })
    }

    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Source::Directory(root) => root.join(path).is_file(),
            Source::Archive { index, .. } => index.contains_key(path),
        }
    }

    /// A file's content as a stream, with its size.
    pub(super) fn open(&self, path: &str) -> Result<(Box<dyn Read>, u64)> {
        let missing = || {
            Error::new(
                Kind::Corrupt,
                format!("cannot find `{}` in the archive", path.escape_debug()),
            )
            .hint("the file is incomplete; save it again")
        };
        match self {
            Source::Directory(root) => {
                let failed = |error| Error::io(format!("cannot read `{path}` in the layout"), error);
                let file = File::open(root.join(path)).map_err(failed)?;
                let size = file.metadata().map_err(failed)?.len();
                Ok((Box::new(file), size))
            }
            Source::Archive { spool, index } => {
                let mut place = index.get(path).ok_or_else(missing)?;
                for _ in 0..8 {
                    match place {
                        Place::File { offset, size } => {
                            let failed = |error| Error::io("cannot read the archive", error);
                            let mut file = File::open(spool.path()).map_err(failed)?;
                            file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                            return Ok((Box::new(file.take(*size)), *size));
                        }
                        Place::Link(target) => {
                            // `../<id>/layer.tar`, from beside the link; only names in this index are reached.
                            let target = target.trim_start_matches("../").trim_start_matches("./");
                            place = index.get(target).ok_or_else(missing)?;
                        }
                    }
                }
                Err(missing())
            }
        }
    }

    /// A manifest, index or config.
    pub(super) fn small(&self, path: &str) -> Result<Vec<u8>> {
        let (reader, _) = self.open(path)?;
        let mut bytes = Vec::new();
        reader
            .take(manifest::LIMIT as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io(format!("cannot read `{path}`"), error))?;
        manifest::check_size(&bytes, "manifest")?;
        Ok(bytes)
    }
}

/// Copies what passes, up to a limit.
pub(super) struct Spooler<'a, R> {
    inner: R,
    copy: &'a File,
    count: u64,
    limit: u64,
}

impl<R: Read> Read for Spooler<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        if self.count > self.limit {
            return Err(io::Error::other(
                Error::new(Kind::Exhausted, "cannot read the archive")
                    .because(format!(
                        "it is larger than {}",
                        luna_core::units::Bytes(self.limit)
                    ))
                    .hint("if you trust it, raise the limit with LUNA_LAYER_LIMIT (for example `256g`)"),
            ));
        }
        self.copy.write_all(&buffer[..count]).map_err(|error| {
            io::Error::other(files::storage_error(
                "cannot write to the store".to_owned(),
                error,
            ))
        })?;
        Ok(count)
    }
}

/// Opens a layout directory.
pub(super) fn directory(path: &Path) -> Result<Source> {
    match path.join(super::INDEX_FILE).is_file() {
        true => Ok(Source::Directory(path.to_owned())),
        false => Err(Error::new(
            Kind::InvalidInput,
            format!("cannot find an image in `{}`", path.display()),
        )
        .because("it has no `index.json`, so it is no OCI layout")),
    }
}
