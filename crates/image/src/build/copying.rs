//! COPY, ADD and WORKDIR: what is asked, whether it is known, and the layer if not.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use luna_core::{Error, Result};

use super::builder::{Builder, invalid};
use super::cache::{Key, Record};
use super::copy::{self, LayerWriter, Overrides};
use super::dockerfile::{Copy, Instruction, Source};
use super::ignore::Ignore;
use super::plan::{self, Base};
use super::source::{Origin, Selected, Walked, field};
use super::state::State;
use super::view::{Form, Last, View};
use super::{expand, extract, flags, users};
use crate::Layer;
use crate::files::Temporary;
use crate::layer::Compression;

/// One source, looked up.
enum Piece {
    Files(Selected, Vec<Walked>),
    Archive(Selected),
    Document(String, Vec<u8>),
}

impl Builder<'_> {
    pub(crate) fn copy(
        &mut self,
        stage: usize,
        state: &mut State,
        instruction: &Instruction,
        copy: &Copy,
    ) -> Result<()> {
        let exclude = copy
            .exclude
            .iter()
            .map(|pattern| self.expand(state, pattern))
            .collect::<Result<Vec<_>>>()?;
        let exclude = Ignore::patterns(&exclude).map_err(invalid)?;
        let from = match &copy.from {
            Some(name) => {
                let base = plan::source(self.dockerfile, stage, name, instruction.line)
                    .map_err(|flaw| invalid(flaw.message))?;
                Some(self.view_of(&base, state)?)
            }
            None => None,
        };
        let visible = Ignore::default();
        let below = self.view(state)?;
        let overrides = self.overrides(state, copy, &below)?;
        let (pieces, key, destination) = {
            let origin = self.origin(from.as_ref(), &visible, &exclude);
            let pieces = self.pieces(state, copy, &origin)?;
            let several = pieces.len() > 1;
            let text = self.expand(state, &copy.destination)?;
            let destination = copy::destination(&text, &state.workdir(), several);
            if several && !text.ends_with('/') && !text.ends_with("/.") && text != "." {
                return Err(invalid(format!(
                    "several files are copied to `{}`, which has to end with a slash",
                    text.escape_debug()
                )));
            }
            let mut key = Key::new(if copy.add { "add" } else { "copy" }, &state.layers, self.epoch);
            key.text(&format!("{overrides:?} {destination:?}"));
            for piece in &pieces {
                match piece {
                    Piece::Files(selected, walked) => {
                        key.text("files");
                        field(key.hasher(), selected.name.as_os_str().as_bytes());
                        origin.hash(walked, key.hasher())?;
                    }
                    Piece::Archive(selected) => {
                        key.text("archive");
                        let walked = origin.walk(selected)?;
                        origin.hash(&walked, key.hasher())?;
                    }
                    Piece::Document(name, content) => {
                        key.text(name);
                        field(key.hasher(), content);
                    }
                }
            }
            (pieces, key.finish(), destination)
        };
        if let Some(record) = self.known(key) {
            self.announce(true, &instruction.text);
            state.record(record.created, instruction.text.clone(), record.layer);
            return Ok(());
        }
        self.announce(false, &instruction.text);
        let archive = self.archive_file()?;
        let origin = self.origin(from.as_ref(), &visible, &exclude);
        let mut writer = self.writer(&archive, &below, overrides)?;
        for piece in &pieces {
            match piece {
                Piece::Files(selected, walked) => writer.copy(&origin, selected, walked, &destination)?,
                Piece::Archive(selected) => {
                    let file = origin.view.file(&selected.found)?;
                    if let Some(stream) = extract::open(file, &selected.found.path)? {
                        writer.extract(stream, &destination)?;
                    }
                }
                Piece::Document(name, content) => writer.bytes(name, content, &destination)?,
            }
        }
        let layer = self.finish(writer)?;
        self.done(state, key, instruction, layer)
    }

    /// WORKDIR: the directory is made where it is missing, for the user of the moment as BuildKit does.
    pub(crate) fn workdir(&mut self, state: &mut State, instruction: &Instruction, path: &str) -> Result<()> {
        let path = self.expand(state, path)?;
        if path.is_empty() {
            return Err(invalid("the working directory's path is empty"));
        }
        let path = clean(&Path::new(&state.workdir()).join(path));
        let text = path
            .to_str()
            .map(str::to_owned)
            .ok_or_else(|| invalid("the path is not UTF-8"))?;
        let below = self.view(state)?;
        let user = state.user();
        let owner = if user.is_empty() {
            None
        } else {
            Some(users::owner(&below, &user)?)
        };
        state.change(|config| {
            config.set_working_dir(Some(text.clone()));
        });
        let mut key = Key::new("workdir", &state.layers, self.epoch);
        key.text(&format!("{text} {owner:?}"));
        let key = key.finish();
        if let Some(record) = self.known(key) {
            self.announce(true, &instruction.text);
            state.record(record.created, instruction.text.clone(), record.layer);
            return Ok(());
        }
        self.announce(false, &instruction.text);
        let archive = self.archive_file()?;
        let overrides = Overrides { owner, mode: None };
        let mut writer = self.writer(&archive, &below, overrides)?;
        writer.make_directory(&path)?;
        let layer = self.finish(writer)?;
        self.done(state, key, instruction, layer)
    }

    /// Remembers what a step made, and goes on from there.
    pub(crate) fn done(
        &self,
        state: &mut State,
        key: crate::Digest,
        instruction: &Instruction,
        layer: Option<Layer>,
    ) -> Result<()> {
        let record = Record::new(layer, self.now());
        super::cache::keep(self.store, key, &record)?;
        state.record(record.created, instruction.text.clone(), record.layer);
        Ok(())
    }

    /// The files that a `--from` means.
    pub(crate) fn view_of(&self, base: &Base, state: &State) -> Result<View> {
        match base {
            Base::Scratch => View::of_layers(&[]),
            Base::Stage(index) => self.view(self.finished.get(index).expect("planned before this one")),
            Base::Image(reference) => {
                let image = self.image(reference, &state.platform);
                self.store.tree(image, self.progress)?;
                View::of_layers(&self.directories(&image.layers))
            }
        }
    }

    pub(crate) fn origin<'b>(
        &'b self,
        from: Option<&'b View>,
        visible: &'b Ignore,
        exclude: &'b Ignore,
    ) -> Origin<'b> {
        Origin {
            view: from.unwrap_or(&self.context),
            ignore: if from.is_some() { visible } else { &self.ignore },
            exclude,
            owned: from.is_some(),
        }
    }

    fn overrides(&self, state: &State, copy: &Copy, below: &View) -> Result<Overrides> {
        let mut overrides = Overrides::default();
        if let Some(text) = &copy.chown {
            overrides.owner = Some(users::owner(below, &self.expand(state, text)?)?);
        }
        if let Some(text) = &copy.chmod {
            overrides.mode = Some(flags::mode(&self.expand(state, text)?).map_err(invalid)?);
        }
        Ok(overrides)
    }

    fn pieces(&self, state: &State, copy: &Copy, origin: &Origin<'_>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        for source in &copy.sources {
            let path = match source {
                Source::Heredoc(document) => {
                    let content = if document.expand {
                        expand::document(&document.content, &|name| state.lookup(name)).map_err(invalid)?
                    } else {
                        document.content.clone()
                    };
                    pieces.push(Piece::Document(document.name.clone(), content.into_bytes()));
                    continue;
                }
                Source::Path(path) => self.expand(state, path)?,
            };
            if copy.add {
                flags::local_only(&path).map_err(|(why, hint)| invalid(why).hint(hint))?;
            }
            for selected in origin.select(&path)? {
                let is_file = selected.found.meta.kind == Form::File;
                if copy.add && is_file {
                    let file = origin.view.file(&selected.found)?;
                    if extract::open(file, &selected.found.path)?.is_some() {
                        pieces.push(Piece::Archive(selected));
                        continue;
                    }
                }
                let walked = origin.walk(&selected)?;
                pieces.push(Piece::Files(selected, walked));
            }
        }
        Ok(pieces)
    }

    pub(crate) fn archive_file(&self) -> Result<Temporary> {
        Temporary::file(self.temporary.path())
    }

    pub(crate) fn writer<'b>(
        &self,
        archive: &Temporary,
        below: &'b View,
        overrides: Overrides,
    ) -> Result<LayerWriter<'b>> {
        let out: File = archive.descriptor()?.into();
        Ok(LayerWriter::new(out, below, overrides, self.moment(), self.epoch))
    }

    /// The archive as a layer of the store's, or nothing where it holds nothing.
    pub(crate) fn finish(&self, writer: LayerWriter<'_>) -> Result<Option<Layer>> {
        if writer.is_empty() {
            return Ok(None);
        }
        let mut file = writer.finish()?;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| Error::io("cannot read a layer's archive", error))?;
        self.store
            .add_layer(&mut file, Compression::default(), self.progress)
            .map(Some)
    }

    /// Files of `source` for a bind mount: a private copy that nobody else writes to, so that no path in it can change
    /// between its check and its use. Returns the path to mount.
    pub(crate) fn materialize(&self, origin: &Origin<'_>, source: &str) -> Result<PathBuf> {
        let selected = match origin.view.resolve(Path::new(source), Last::Follow)?.existing() {
            Some(found) if found.path.as_os_str().is_empty() => Selected {
                name: PathBuf::new(),
                found,
            },
            _ => origin
                .select(&literal(source))?
                .pop()
                .ok_or_else(|| invalid(format!("`{source}` is not there")))?,
        };
        let walked = origin.walk(&selected)?;
        let nothing = View::of_layers(&[])?;
        let archive = self.archive_file()?;
        let mut writer = self.writer(&archive, &nothing, Overrides::default())?;
        let place = copy::destination("mount", "/", false);
        // A directory's own mode comes with its first entry.
        writer.copy(origin, &selected, &walked, &place)?;
        let mut file = writer.finish()?;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| Error::io("cannot read a mount's files", error))?;
        let number = self.fresh("bind")?;
        let target =
            File::open(&number).map_err(|error| Error::io("cannot open a mount's directory", error))?;
        let limits = crate::layer::Limits::from_environment()?;
        crate::layer::unpack(&mut file, target.into(), self.request.rootless, &limits)?;
        Ok(number.join("mount"))
    }

    /// A new directory in this build's own, closed to others.
    pub(crate) fn fresh(&self, name: &str) -> Result<PathBuf> {
        for number in 0u32.. {
            let path = self.temporary.path().join(format!("{name}-{number}"));
            match std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)
            {
                Ok(()) => return Ok(path),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("cannot create `{}`", path.display()), error)),
            }
        }
        Err(invalid("there are too many mounts"))
    }
}

/// A path in which no character is a pattern's.
fn literal(path: &str) -> String {
    let mut out = String::new();
    for character in path.chars() {
        if matches!(character, '*' | '?' | '[' | '\\') {
            out.push('\\');
        }
        out.push(character);
    }
    out
}

/// An absolute path without `.` and `..`, as docker keeps WORKDIR.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}
