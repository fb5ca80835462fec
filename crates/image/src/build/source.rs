//! What COPY and ADD take: paths and patterns turned into the files they mean, walked, and hashed for the cache.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

use super::ignore::Ignore;
use super::pattern::{Glob, is_pattern};
use super::view::{Form, Found, Last, View, path_text};
use crate::Hasher;

/// A view to copy from, with what of it may be seen.
pub(crate) struct Origin<'a> {
    pub(crate) view: &'a View,
    /// `.dockerignore`, against paths from the view's root.
    pub(crate) ignore: &'a Ignore,
    /// `--exclude`, likewise.
    pub(crate) exclude: &'a Ignore,
    /// Whether owners and attributes count: in a stage they do, in the context they are the host's and do not.
    pub(crate) owned: bool,
}

/// One source that matched.
#[derive(Debug)]
pub(crate) struct Selected {
    /// What a file is called at a destination that is a directory.
    pub(crate) name: PathBuf,
    pub(crate) found: Found,
}

/// A file below a selected directory, or the selected thing itself with an empty path.
#[derive(Debug)]
pub(crate) struct Walked {
    pub(crate) relative: PathBuf,
    pub(crate) found: Found,
}

impl Origin<'_> {
    /// The files that `pattern` names: exactly one where it is no pattern, any number where it is. Links are followed
    /// inside the view.
    pub(crate) fn select(&self, pattern: &str) -> Result<Vec<Selected>> {
        let clean = clean(pattern);
        if !is_pattern(&clean) {
            let literal = unescape(&clean);
            let found = self.visible(Path::new(&literal))?;
            let found = found.ok_or_else(|| missing(&literal, self))?;
            return Ok(vec![Selected {
                name: Path::new(&literal)
                    .file_name()
                    .map(PathBuf::from)
                    .unwrap_or_default(),
                found,
            }]);
        }
        let mut paths = vec![PathBuf::new()];
        for part in clean.split('/') {
            let mut next = Vec::new();
            for path in paths {
                if !is_pattern(part) {
                    next.push(path.join(unescape(part)));
                    continue;
                }
                let glob = Glob::path(part).map_err(|why| {
                    Error::new(
                        Kind::InvalidInput,
                        format!("cannot read the pattern `{}`", pattern.escape_debug()),
                    )
                    .because(format!("it {why}"))
                })?;
                let Some(directory) = self.view.resolve(&path, Last::Follow)?.existing() else {
                    continue;
                };
                if directory.meta.kind != Form::Directory {
                    continue;
                }
                for name in self.view.list(&directory)? {
                    if name.to_str().is_some_and(|name| glob.matches(name)) {
                        next.push(path.join(name));
                    }
                }
            }
            paths = next;
        }
        let mut selected = Vec::new();
        for path in paths {
            if let Some(found) = self.visible(&path)? {
                let name = path.file_name().map(PathBuf::from).unwrap_or_default();
                selected.push(Selected { name, found });
            }
        }
        Ok(selected)
    }

    /// What `path` leads to, if the build may see it. The path as written and the path it leads to both count: a link
    /// does not open what `.dockerignore` closes.
    fn visible(&self, path: &Path) -> Result<Option<Found>> {
        let Some(found) = self.view.resolve(path, Last::Follow)?.existing() else {
            return Ok(None);
        };
        let hidden = |path: &Path| !path.as_os_str().is_empty() && self.hides(path);
        let descends = found.meta.kind == Form::Directory && self.ignore.takes_back();
        if (hidden(path) || hidden(&found.path)) && !descends {
            return Ok(None);
        }
        Ok(Some(found))
    }

    fn hides(&self, path: &Path) -> bool {
        let text = path.to_string_lossy();
        self.ignore.hides(&text) || self.exclude.hides(&text)
    }

    /// Everything of `selected`, parents before children, names in order, links kept as links. A hidden directory is
    /// left out unless something in it is visible.
    pub(crate) fn walk(&self, selected: &Selected) -> Result<Vec<Walked>> {
        let mut walked = vec![Walked {
            relative: PathBuf::new(),
            found: selected.found.clone(),
        }];
        if selected.found.meta.kind == Form::Directory {
            self.descend(&selected.found, Path::new(""), &mut walked, 0)?;
        }
        Ok(walked)
    }

    fn descend(
        &self,
        directory: &Found,
        relative: &Path,
        walked: &mut Vec<Walked>,
        depth: usize,
    ) -> Result<()> {
        if depth > 2048 {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot walk `/{}`", path_text(&directory.path)),
            )
            .because("directories are nested too deeply"));
        }
        for name in self.view.list(directory)? {
            let Some(found) = self.view.child(directory, &name)? else {
                continue;
            };
            if found.meta.kind == Form::Socket {
                continue;
            }
            let hidden = self.hides(&found.path);
            let is_directory = found.meta.kind == Form::Directory;
            if hidden && !(is_directory && (self.ignore.takes_back() || self.exclude.takes_back())) {
                continue;
            }
            let relative = relative.join(&name);
            let before = walked.len();
            walked.push(Walked {
                relative: relative.clone(),
                found: found.clone(),
            });
            if is_directory {
                self.descend(&found, &relative, walked, depth + 1)?;
                if hidden && walked.len() == before + 1 {
                    walked.pop();
                }
            }
        }
        Ok(())
    }

    /// Adds everything that decides what a copy of `walked` contains: names, kinds, modes, bytes, and owners where
    /// they count; never times.
    pub(crate) fn hash(&self, walked: &[Walked], hasher: &mut Hasher) -> Result<()> {
        for Walked { relative, found } in walked {
            let meta = &found.meta;
            field(hasher, relative.as_os_str().as_bytes());
            hasher.update(&[meta.kind as u8]);
            hasher.update(&meta.mode.to_le_bytes());
            if self.owned {
                hasher.update(&meta.uid.to_le_bytes());
                hasher.update(&meta.gid.to_le_bytes());
                for (name, value) in self.view.attributes(found)? {
                    field(hasher, &name);
                    field(hasher, &value);
                }
            }
            match meta.kind {
                Form::File => {
                    hasher.update(&meta.size.to_le_bytes());
                    self.hash_file(found, hasher)?;
                }
                Form::Symlink => field(hasher, &self.view.read_link(found)?),
                Form::CharacterDevice | Form::BlockDevice => {
                    hasher.update(&meta.device.0.to_le_bytes());
                    hasher.update(&meta.device.1.to_le_bytes());
                }
                Form::Directory | Form::Fifo | Form::Socket => {}
            }
        }
        Ok(())
    }

    fn hash_file(&self, found: &Found, hasher: &mut Hasher) -> Result<()> {
        let mut file = self.view.file(found)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            let count = file
                .read(&mut buffer)
                .map_err(|error| Error::io(format!("cannot read `/{}`", path_text(&found.path)), error))?;
            if count == 0 {
                return Ok(());
            }
            hasher.update(&buffer[..count]);
        }
    }
}

/// Adds bytes and their length, so that two fields can never look like two others.
pub(crate) fn field(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_le_bytes());
    hasher.update(bytes);
}

/// The path without leading slashes, `.` and `..`, which has nothing above the root to go to.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character == '\\' {
            out.extend(characters.next());
        } else {
            out.push(character);
        }
    }
    out
}

fn missing(path: &str, origin: &Origin<'_>) -> Error {
    let error = Error::new(Kind::NotFound, format!("cannot copy `{}`", path.escape_debug()));
    if origin.owned {
        return error.because("the stage or image has no such file");
    }
    let hidden = origin.ignore.hides(OsStr::new(path).to_string_lossy().as_ref());
    if hidden {
        error
            .because("`.dockerignore` hides it")
            .hint("take it back with a line that begins with `!`")
    } else {
        error.because("the context has no such file")
    }
}
