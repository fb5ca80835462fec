//! Layers seen as the one file system they make when mounted, without mounting them; and the build context, which is
//! the same thing with one layer and no whiteouts.
//!
//! Invariants: every access inside a layer starts at that layer's descriptor with `RESOLVE_BENEATH` and
//! `RESOLVE_NO_SYMLINKS`, so a path handed to the kernel never leaves it; symbolic links are followed here, across
//! layers, always inside the view's root, at most [`MAXIMUM_LINKS`] of them. Whiteouts and opaque directories are
//! overlayfs' (kernel `Documentation/filesystems/overlayfs.rst`).

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use luna_core::{Error, Kind, Result};
use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// As the kernel counts them.
const MAXIMUM_LINKS: usize = 40;
/// Longer files are not read whole.
const MAXIMUM_TEXT: u64 = 16 << 20;

const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS);

#[derive(Debug)]
pub(crate) struct View {
    /// Topmost first.
    layers: Vec<OwnedFd>,
    overlay: bool,
}

/// Something that is there.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// From the root, without a leading slash; no component of it is a link.
    pub(crate) path: PathBuf,
    pub(crate) meta: Meta,
    /// The layers whose directories of this path are merged; one where it is no directory.
    layers: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) kind: Form,
    /// The lower twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Directory,
    File,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

/// Where a path leads.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    /// The deepest part that exists.
    pub(crate) found: Found,
    /// Names below it that do not.
    pub(crate) missing: Vec<OsString>,
}

impl Resolved {
    pub(crate) fn path(&self) -> PathBuf {
        let mut path = self.found.path.clone();
        path.extend(&self.missing);
        path
    }

    pub(crate) fn existing(self) -> Option<Found> {
        self.missing.is_empty().then_some(self.found)
    }
}

/// Whether a link in the last component is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Last {
    Follow,
    Keep,
}

impl Meta {
    /// A directory that nobody made yet.
    pub(crate) fn directory(mtime: i64) -> Meta {
        Meta {
            kind: Form::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            size: 0,
            mtime,
            device: (0, 0),
        }
    }

    fn of(stat: &Stat) -> Meta {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Form::Directory,
            FileType::Symlink => Form::Symlink,
            FileType::Fifo => Form::Fifo,
            FileType::Socket => Form::Socket,
            FileType::CharacterDevice => Form::CharacterDevice,
            FileType::BlockDevice => Form::BlockDevice,
            _ => Form::File,
        };
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            size: stat.st_size as u64,
            mtime: stat.st_mtime,
            device: (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)),
        }
    }
}

impl View {
    /// The merged view of unpacked layers, topmost first; none of them is the empty root of `scratch`.
    pub(crate) fn of_layers(layers: &[PathBuf]) -> Result<View> {
        let layers = layers
            .iter()
            .map(|layer| open_root(layer))
            .collect::<Result<_>>()?;
        Ok(View {
            layers,
            overlay: true,
        })
    }

    /// One directory as it is.
    pub(crate) fn of_directory(path: &Path) -> Result<View> {
        Ok(View {
            layers: vec![open_root(path)?],
            overlay: false,
        })
    }

    pub(crate) fn root(&self) -> Result<Found> {
        let meta = match self.layers.first() {
            Some(layer) => Meta::of(&rustix::fs::fstat(layer).map_err(|error| failed(Path::new(""), error))?),
            None => Meta::directory(0),
        };
        Ok(Found {
            path: PathBuf::new(),
            meta,
            layers: (0..self.layers.len()).collect(),
        })
    }

    /// `name` in `parent`, links not followed.
    pub(crate) fn child(&self, parent: &Found, name: &OsStr) -> Result<Option<Found>> {
        let path = parent.path.join(name);
        let mut found: Option<Found> = None;
        for &layer in &parent.layers {
            let node = match self.open(layer, &path, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(node) => node,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(failed(&path, error)),
            };
            let meta = Meta::of(&rustix::fs::fstat(&node).map_err(|error| failed(&path, error))?);
            if self.overlay && self.is_whiteout(layer, &path, &meta) {
                break;
            }
            match &mut found {
                Some(found) if meta.kind == Form::Directory => found.layers.push(layer),
                Some(_) => break,
                None => {
                    found = Some(Found {
                        path: path.clone(),
                        meta,
                        layers: vec![layer],
                    });
                }
            }
            if meta.kind != Form::Directory || (self.overlay && self.is_opaque(layer, &path)) {
                break;
            }
        }
        Ok(found)
    }

    /// Follows `path` from the root. `..` above the root stays there. What is missing at the end is told, but a
    /// component that is no directory where one has to be is an error.
    pub(crate) fn resolve(&self, path: &Path, last: Last) -> Result<Resolved> {
        let mut todo: VecDeque<OsString> = components(path);
        let mut trail = vec![self.root()?];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == ".." {
                if trail.len() > 1 {
                    trail.pop();
                }
                continue;
            }
            let here = trail.last().expect("the root is never popped");
            if here.meta.kind != Form::Directory {
                return Err(not_a_directory(&here.path));
            }
            let Some(next) = self.child(here, &name)? else {
                let found = here.clone();
                let mut missing = vec![name];
                for name in todo {
                    if name == ".." {
                        missing.pop();
                    } else {
                        missing.push(name);
                    }
                }
                return Ok(Resolved { found, missing });
            };
            if next.meta.kind == Form::Symlink && !(todo.is_empty() && last == Last::Keep) {
                links += 1;
                if links > MAXIMUM_LINKS {
                    return Err(Error::new(
                        Kind::InvalidInput,
                        format!("cannot follow `/{}`", path_text(&next.path)),
                    )
                    .because("too many symbolic links"));
                }
                let target = PathBuf::from(OsString::from_vec(self.read_link(&next)?));
                if target.is_absolute() {
                    trail.truncate(1);
                }
                for name in components(&target).into_iter().rev() {
                    todo.push_front(name);
                }
                continue;
            }
            trail.push(next);
        }
        Ok(Resolved {
            found: trail.pop().expect("the root is never popped"),
            missing: Vec::new(),
        })
    }

    /// Names in a directory, sorted by bytes.
    pub(crate) fn list(&self, directory: &Found) -> Result<Vec<OsString>> {
        let mut names = BTreeSet::new();
        let mut hidden = BTreeSet::new();
        for &layer in &directory.layers {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let opened = if directory.path.as_os_str().is_empty() {
                self.open(layer, Path::new("."), flags)
            } else {
                self.open(layer, &directory.path, flags)
            };
            let opened = opened.map_err(|error| failed(&directory.path, error))?;
            let read = |error| failed(&directory.path, error);
            let mut gone_here = Vec::new();
            for entry in Dir::read_from(&opened).map_err(read)? {
                let entry = entry.map_err(read)?;
                let name = OsStr::from_bytes(entry.file_name().to_bytes()).to_owned();
                if name == "." || name == ".." || hidden.contains(&name) || names.contains(&name) {
                    continue;
                }
                if self.overlay {
                    let path = directory.path.join(&name);
                    let node = self
                        .open(layer, &path, OFlags::PATH | OFlags::NOFOLLOW)
                        .map_err(|error| failed(&path, error))?;
                    let meta = Meta::of(&rustix::fs::fstat(&node).map_err(read)?);
                    if self.is_whiteout(layer, &path, &meta) {
                        gone_here.push(name);
                        continue;
                    }
                }
                names.insert(name);
            }
            hidden.extend(gone_here);
        }
        Ok(names.into_iter().collect())
    }

    pub(crate) fn read_link(&self, link: &Found) -> Result<Vec<u8>> {
        let node = self.node(link, OFlags::PATH | OFlags::NOFOLLOW)?;
        let target =
            rustix::fs::readlinkat(&node, "", Vec::new()).map_err(|error| failed(&link.path, error))?;
        Ok(target.into_bytes())
    }

    /// A regular file's content.
    pub(crate) fn file(&self, found: &Found) -> Result<File> {
        if found.meta.kind != Form::File {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot read `/{}`", path_text(&found.path)),
            )
            .because("it is no regular file"));
        }
        // Non-blocking: the context may have put a FIFO in the file's place.
        let node = self.node(found, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
        let meta = Meta::of(&rustix::fs::fstat(&node).map_err(|error| failed(&found.path, error))?);
        if meta.kind != Form::File {
            return Err(failed(&found.path, Errno::STALE));
        }
        Ok(File::from(node))
    }

    /// A small text file, or `None` where there is none.
    pub(crate) fn text(&self, path: &Path) -> Result<Option<String>> {
        use std::io::Read;
        let Some(found) = self.resolve(path, Last::Follow)?.existing() else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        self.file(&found)?
            .take(MAXIMUM_TEXT)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io(format!("cannot read `/{}`", path_text(path)), error))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Extended attributes that belong to the file, not to overlayfs.
    pub(crate) fn attributes(&self, found: &Found) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        if !matches!(found.meta.kind, Form::File | Form::Directory) || found.layers.is_empty() {
            return Ok(Vec::new());
        }
        let node = match self.node(found, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK) {
            Ok(node) => node,
            Err(error) if error.kind() == Kind::PermissionDenied => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = vec![0; 64 << 10];
        let length = match rustix::fs::flistxattr(&node, &mut names[..]) {
            Ok(length) => length,
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(failed(&found.path, error)),
        };
        let mut attributes = Vec::new();
        let mut value = vec![0; 64 << 10];
        let kept = |name: &&[u8]| {
            *name == b"security.capability"
                || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
        };
        for name in names[..length].split(|byte| *byte == 0).filter(kept) {
            let length = rustix::fs::fgetxattr(&node, name, &mut value[..])
                .map_err(|error| failed(&found.path, error))?;
            attributes.push((name.to_vec(), value[..length].to_vec()));
        }
        attributes.sort();
        Ok(attributes)
    }

    fn node(&self, found: &Found, flags: OFlags) -> Result<OwnedFd> {
        let layer = found
            .layers
            .first()
            .copied()
            .ok_or_else(|| failed(&found.path, Errno::NOENT))?;
        let path = if found.path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &found.path
        };
        self.open(layer, path, flags)
            .map_err(|error| failed(&found.path, error))
    }

    fn open(&self, layer: usize, path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        loop {
            match rustix::fs::openat2(
                self.layers[layer].as_fd(),
                path,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                RESOLVE,
            ) {
                // A rename elsewhere made the kernel unsure about `..`; it asks to be asked again.
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
    }

    fn is_whiteout(&self, layer: usize, path: &Path, meta: &Meta) -> bool {
        match meta.kind {
            Form::CharacterDevice => meta.device == (0, 0),
            Form::File if meta.size == 0 => self.marked(layer, path, "overlay.whiteout", None),
            _ => false,
        }
    }

    fn is_opaque(&self, layer: usize, path: &Path) -> bool {
        self.marked(layer, path, "overlay.opaque", Some(b'y'))
    }

    /// Whether overlayfs' attribute is set, in the form that root or a user leaves it.
    fn marked(&self, layer: usize, path: &Path, name: &str, value: Option<u8>) -> bool {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let Ok(node) = self.open(layer, path, flags) else {
            return false;
        };
        ["trusted", "user"].iter().any(|space| {
            let mut found = [0; 1];
            match rustix::fs::fgetxattr(&node, format!("{space}.{name}"), &mut found[..]) {
                Ok(length) => value.is_none_or(|value| length == 1 && found[0] == value),
                Err(_) => false,
            }
        })
    }
}

fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| Error::io(format!("cannot open `{}`", path.display()), error))
}

/// Names in a path; `.` and slashes are gone, `..` stays.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        })
        .collect()
}

pub(crate) fn path_text(path: &Path) -> String {
    path.to_string_lossy().escape_debug().to_string()
}

fn failed(path: &Path, error: Errno) -> Error {
    Error::io(format!("cannot look at `/{}`", path_text(path)), error)
}

pub(crate) fn not_a_directory(path: &Path) -> Error {
    Error::new(Kind::InvalidInput, format!("cannot enter `/{}`", path_text(path)))
        .because("it is no directory")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Two layers: the upper hides `gone`, makes `new` opaque, and holds links of every kind.
    fn layers() -> (tempfile::TempDir, View) {
        let temporary = tempfile::tempdir().unwrap();
        let (upper, lower) = (temporary.path().join("upper"), temporary.path().join("lower"));
        for directory in ["usr/bin", "new", "gone/x", "both/a"] {
            std::fs::create_dir_all(lower.join(directory)).unwrap();
        }
        std::fs::write(lower.join("usr/bin/sh"), "lower").unwrap();
        std::fs::write(lower.join("new/old"), "").unwrap();
        for directory in ["new", "both/b", "usr"] {
            std::fs::create_dir_all(upper.join(directory)).unwrap();
        }
        std::fs::write(upper.join("file"), "upper").unwrap();
        symlink("usr/bin", lower.join("bin")).unwrap();
        symlink("/bin/../bin/sh", upper.join("shell")).unwrap();
        symlink("../../../../etc/passwd", upper.join("out")).unwrap();
        symlink("loop", upper.join("loop")).unwrap();
        let parent = File::open(&upper).unwrap();
        rustix::fs::mknodat(&parent, "gone", FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        let new = File::open(upper.join("new")).unwrap();
        rustix::fs::fsetxattr(&new, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        let view = View::of_layers(&[upper, lower]).unwrap();
        (temporary, view)
    }

    fn at(view: &View, path: &str) -> Option<PathBuf> {
        view.resolve(Path::new(path), Last::Follow)
            .unwrap()
            .existing()
            .map(|found| found.path)
    }

    #[test]
    fn layers_merge_as_overlayfs_merges_them() {
        let (_temporary, view) = layers();
        assert_eq!(at(&view, "/usr/bin/sh"), Some("usr/bin/sh".into()));
        assert_eq!(at(&view, "gone"), None);
        assert_eq!(at(&view, "gone/x"), None);
        assert_eq!(at(&view, "new/old"), None);
        let both = view.resolve(Path::new("both"), Last::Follow).unwrap().found;
        assert_eq!(view.list(&both).unwrap(), ["a", "b"]);
        let root = view.root().unwrap();
        assert_eq!(
            view.list(&root).unwrap(),
            ["bin", "both", "file", "loop", "new", "out", "shell", "usr"]
        );
    }

    #[test]
    fn links_stay_inside_the_root() {
        let (_temporary, view) = layers();
        assert_eq!(at(&view, "shell"), Some("usr/bin/sh".into()));
        let out = view.resolve(Path::new("out"), Last::Follow).unwrap();
        assert_eq!(
            (out.found.path.clone(), out.path()),
            (PathBuf::new(), "etc/passwd".into())
        );
        assert_eq!(at(&view, "../../file"), Some("file".into()));
        assert!(view.resolve(Path::new("loop/x"), Last::Follow).is_err());
        let kept = view.resolve(Path::new("loop"), Last::Keep).unwrap().found;
        assert_eq!(kept.meta.kind, Form::Symlink);
        assert!(view.resolve(Path::new("file/x"), Last::Follow).is_err());
        let missing = view.resolve(Path::new("bin/a/../b/c"), Last::Follow).unwrap();
        assert_eq!(missing.path(), Path::new("usr/bin/b/c"));
    }

    #[test]
    fn an_empty_root_is_a_directory() {
        let view = View::of_layers(&[]).unwrap();
        assert_eq!(
            view.resolve(Path::new("/a/b"), Last::Follow).unwrap().path(),
            Path::new("a/b")
        );
        assert!(view.list(&view.root().unwrap()).unwrap().is_empty());
    }
}
