//! COPY, ADD and WORKDIR as layers: archives written straight from the sources, placed by looking at the layers below.
//!
//! The rules are BuildKit's (`solver/llbsolver/file/backend.go`, `fsutil/copy`): the destination is followed through
//! links inside the image, a directory's content is merged into it, a file never replaces a directory nor the other way
//! round, and directories on the way are written again as they are, since a layer's directory hides the one below.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

use super::archive::{ArchiveWriter, Content};
use super::extract;
use super::source::{Origin, Selected, Walked};
use super::view::{Form, Last, Meta, View, not_a_directory, path_text};

/// What is asked of every copied file.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Overrides {
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mode: Option<u32>,
}

/// The place named by the instruction.
#[derive(Debug)]
pub(crate) struct Destination {
    /// From the image's root.
    pub(crate) path: PathBuf,
    /// Written with a slash at its end, or it has to take several sources.
    pub(crate) directory: bool,
}

/// A layer in the making.
pub(crate) struct LayerWriter<'a> {
    archive: ArchiveWriter<BufWriter<File>>,
    /// The layers below.
    below: &'a View,
    overrides: Overrides,
    /// What this layer already holds.
    written: BTreeMap<PathBuf, Form>,
    /// For directories that nobody brought.
    now: i64,
}

impl<'a> LayerWriter<'a> {
    /// Writes into `out`; no time is later than `latest`.
    pub(crate) fn new(
        out: File,
        below: &'a View,
        overrides: Overrides,
        now: i64,
        latest: Option<u64>,
    ) -> LayerWriter<'a> {
        LayerWriter {
            archive: ArchiveWriter::new(BufWriter::with_capacity(256 << 10, out), latest),
            below,
            overrides,
            written: BTreeMap::new(),
            now,
        }
    }

    /// Whether nothing was written.
    pub(crate) fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// The archive, flushed; its position is at the end.
    pub(crate) fn finish(self) -> Result<File> {
        let file = self.archive.finish()?;
        file.into_inner()
            .map_err(|error| Error::io("cannot write a layer's archive", error.into_error()))
    }

    /// Makes a directory and those above it; what exists stays as it is and gives no entry.
    pub(crate) fn make_directory(&mut self, path: &Path) -> Result<()> {
        let resolved = self.below.resolve(path, Last::Follow)?;
        if resolved.missing.is_empty() {
            return match resolved.found.meta.kind {
                Form::Directory => Ok(()),
                _ => Err(not_a_directory(&resolved.found.path)),
            };
        }
        self.enter(&resolved.path())
    }

    /// Copies one source and everything in it.
    pub(crate) fn copy(
        &mut self,
        origin: &Origin<'_>,
        selected: &Selected,
        walked: &[Walked],
        destination: &Destination,
    ) -> Result<()> {
        let place = self.below.resolve(&destination.path, Last::Follow)?;
        let there = place.missing.is_empty().then_some(place.found.meta.kind);
        let path = place.path();
        if selected.found.meta.kind == Form::Directory {
            if there.is_some_and(|kind| kind != Form::Directory) {
                return Err(not_a_directory(&path));
            }
            for item in walked {
                // The destination itself keeps its owner and mode where it exists.
                if item.relative.as_os_str().is_empty() && there.is_some() {
                    continue;
                }
                // Joining an empty path would leave a slash behind.
                let target = if item.relative.as_os_str().is_empty() {
                    path.clone()
                } else {
                    path.join(&item.relative)
                };
                self.put(origin, item, &target)?;
            }
            if there.is_none() && path.as_os_str().is_empty() {
                return Err(not_a_directory(&path));
            }
            return Ok(());
        }
        let into = destination.directory || there == Some(Form::Directory);
        if into && there.is_some_and(|kind| kind != Form::Directory) {
            return Err(not_a_directory(&path));
        }
        let target = if into { path.join(&selected.name) } else { path };
        for item in walked {
            self.put(origin, item, &target)?;
        }
        Ok(())
    }

    /// A file whose content is at hand.
    pub(crate) fn bytes(&mut self, name: &str, content: &[u8], destination: &Destination) -> Result<()> {
        let place = self.below.resolve(&destination.path, Last::Follow)?;
        let there = place.missing.is_empty().then_some(place.found.meta.kind);
        let into = destination.directory || there == Some(Form::Directory);
        let target = if into {
            place.path().join(name)
        } else {
            place.path()
        };
        let meta = Meta {
            kind: Form::File,
            mode: 0o644,
            size: content.len() as u64,
            ..Meta::directory(self.now)
        };
        let meta = self.changed(meta);
        self.prepare(&target, Form::File)?;
        self.archive
            .add(&target, &meta, &[], Content::File(&mut &content[..]))
    }

    /// Unpacks a local archive below the destination, as ADD does.
    pub(crate) fn extract(&mut self, archive: Box<dyn Read>, destination: &Destination) -> Result<()> {
        let place = self.below.resolve(&destination.path, Last::Follow)?;
        if place.missing.is_empty() && place.found.meta.kind != Form::Directory {
            return Err(not_a_directory(&place.found.path));
        }
        let base = place.path();
        extract::each(archive, &mut |entry, content| {
            self.extracted(&base, &entry, content)
        })
    }

    fn extracted(&mut self, base: &Path, entry: &extract::Entry, content: &mut dyn Read) -> Result<()> {
        let mut meta = entry.meta;
        if let Some((uid, gid)) = self.overrides.owner {
            (meta.uid, meta.gid) = (uid, gid);
        }
        if entry.path.as_os_str().is_empty() {
            return Ok(());
        }
        let path = self.inside(base, &entry.path)?;
        if meta.kind == Form::Directory {
            if self
                .written
                .get(&path)
                .is_some_and(|kind| *kind != Form::Directory)
            {
                return Err(not_a_directory(&path));
            }
            self.parents(&path)?;
            self.written.insert(path.clone(), Form::Directory);
            return self
                .archive
                .add(&path, &meta, &entry.attributes, Content::Directory);
        }
        refuse_whiteout(&path)?;
        self.parents(&path)?;
        let kind = meta.kind;
        let target;
        let content = match &entry.link {
            Some(extract::Link::Hard(named)) => {
                target = self.inside(base, named)?;
                if !self.written.contains_key(&target) {
                    return Err(Error::new(
                        Kind::InvalidInput,
                        format!("cannot extract `/{}`", path_text(&path)),
                    )
                    .because("it is a hard link to a file that the archive does not hold before it"));
                }
                Content::HardLink(&target)
            }
            Some(extract::Link::Symbolic(target)) => Content::Symlink(target),
            None if kind == Form::File => Content::File(content),
            None => Content::Node,
        };
        self.archive.add(&path, &meta, &entry.attributes, content)?;
        self.written.insert(path, kind);
        Ok(())
    }

    /// Where an archive's entry belongs: its parent is followed through the image's links, and must not pass a link
    /// that the archive itself brought.
    fn inside(&self, base: &Path, path: &Path) -> Result<PathBuf> {
        let full = base.join(path);
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Ok(full);
        };
        for above in parent.ancestors() {
            if self
                .written
                .get(above)
                .is_some_and(|kind| *kind != Form::Directory)
            {
                return Err(not_a_directory(above));
            }
        }
        // A directory that this layer brings is where it was put, whatever the layers below have there.
        if self.written.contains_key(parent) {
            return Ok(full);
        }
        Ok(self.below.resolve(parent, Last::Follow)?.path().join(name))
    }

    /// Writes one walked file at `target`, whose parents are real directories or missing.
    fn put(&mut self, origin: &Origin<'_>, item: &Walked, target: &Path) -> Result<()> {
        let found = &item.found;
        let mut meta = found.meta;
        if !origin.owned {
            (meta.uid, meta.gid) = (0, 0);
        }
        let meta = self.changed(meta);
        let attributes = if origin.owned {
            origin.view.attributes(found)?
        } else {
            Vec::new()
        };
        self.prepare(target, meta.kind)?;
        let (mut file, link);
        let content = match meta.kind {
            Form::Directory => Content::Directory,
            Form::Symlink => {
                link = origin.view.read_link(found)?;
                Content::Symlink(&link)
            }
            Form::File => {
                file = origin.view.file(found)?;
                Content::File(&mut file)
            }
            Form::Fifo | Form::CharacterDevice | Form::BlockDevice => Content::Node,
            Form::Socket => return Ok(()),
        };
        self.archive.add(target, &meta, &attributes, content)
    }

    fn changed(&self, mut meta: Meta) -> Meta {
        if let Some((uid, gid)) = self.overrides.owner {
            (meta.uid, meta.gid) = (uid, gid);
        }
        if let Some(mode) = self.overrides.mode
            && meta.kind != Form::Symlink
        {
            meta.mode = mode;
        }
        meta
    }

    /// Checks that `target` may become a `kind`, writes the directories above it and notes it.
    fn prepare(&mut self, target: &Path, kind: Form) -> Result<()> {
        refuse_whiteout(target)?;
        self.parents(target)?;
        let there = match self.written.get(target) {
            Some(kind) => Some(*kind),
            None => self.below_at(target)?.map(|meta| meta.kind),
        };
        match there {
            Some(Form::Directory) if kind != Form::Directory => {
                return Err(Error::new(
                    Kind::InvalidInput,
                    format!("cannot copy a file to `/{}`", path_text(target)),
                )
                .because("a directory is there"));
            }
            Some(there) if kind == Form::Directory && there != Form::Directory => {
                return Err(not_a_directory(target));
            }
            _ => {}
        }
        self.written.insert(target.to_owned(), kind);
        Ok(())
    }

    fn parents(&mut self, path: &Path) -> Result<()> {
        match path.parent() {
            Some(parent) => self.enter(parent),
            None => Ok(()),
        }
    }

    /// Writes `path` and every directory above it that this layer does not hold yet: as it is below, or a plain one.
    fn enter(&mut self, path: &Path) -> Result<()> {
        let mut above: Vec<&Path> = path
            .ancestors()
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        above.reverse();
        for directory in above {
            match self.written.get(directory) {
                Some(Form::Directory) => continue,
                Some(_) => return Err(not_a_directory(directory)),
                None => {}
            }
            let resolved = self.below.resolve(directory, Last::Keep);
            let (meta, attributes) = match resolved.map(super::view::Resolved::existing) {
                Ok(Some(found)) if found.meta.kind == Form::Directory => {
                    (found.meta, self.below.attributes(&found)?)
                }
                Ok(Some(_)) => return Err(not_a_directory(directory)),
                Ok(None) => {
                    let (uid, gid) = self.overrides.owner.unwrap_or((0, 0));
                    (
                        Meta {
                            uid,
                            gid,
                            ..Meta::directory(self.now)
                        },
                        Vec::new(),
                    )
                }
                Err(error) => return Err(error),
            };
            self.archive
                .add(directory, &meta, &attributes, Content::Directory)?;
            self.written.insert(directory.to_owned(), Form::Directory);
        }
        Ok(())
    }

    /// What the layers below have at exactly this path.
    fn below_at(&self, path: &Path) -> Result<Option<Meta>> {
        Ok(self
            .below
            .resolve(path, Last::Keep)?
            .existing()
            .map(|found| found.meta))
    }
}

/// A file of this name would delete another one when the layer is unpacked (image-spec, layer.md).
fn refuse_whiteout(path: &Path) -> Result<()> {
    let marks = path
        .file_name()
        .is_some_and(|name| name.as_bytes().starts_with(b".wh."));
    if marks {
        return Err(
            Error::new(Kind::InvalidInput, format!("cannot copy `/{}`", path_text(path)))
                .because("a name that begins with `.wh.` marks a deleted file in a layer")
                .hint("rename it"),
        );
    }
    Ok(())
}

/// The destination of an instruction: relative ones start at the working directory.
pub(crate) fn destination(text: &str, workdir: &str, several: bool) -> Destination {
    let path = Path::new("/").join(workdir).join(text);
    let slash = text.ends_with('/') || text.ends_with("/.") || text == "." || text.is_empty();
    Destination {
        path: PathBuf::from(OsString::from_vec(path.as_os_str().as_bytes().to_vec())),
        directory: slash || several,
    }
}
