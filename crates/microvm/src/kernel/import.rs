//! A kernel that somebody made elsewhere: a file, or a directory with a manifest.

use std::fs;
use std::path::{Path, PathBuf};

use luna_core::name::Name;
use luna_core::{Error, Kind, Result};

use super::draft::Draft;
use super::manifest::{self, Manifest, Origin};
use super::{Kernel, Store, build, fetch, inspect, read_at_most, verify};

/// What to import.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportRequest {
    /// A kernel file (ELF with a PVH entry, bzImage, arm64's Image) or a kernel's directory with `kernel.json`.
    pub path: PathBuf,
    /// What it is called here; told from its release where absent.
    pub name: Option<Name>,
    /// `/lib/modules/RELEASE` of a kernel file that has modules.
    pub modules: Option<PathBuf>,
}

/// Copies the kernel into the store; what it was copied from stays as it is.
pub fn import(store: &Store, request: &ImportRequest) -> Result<Kernel> {
    let draft = Draft::new(store)?;
    let manifest = if request.path.is_dir() {
        directory(&draft, request)?
    } else {
        file(&draft, request)?
    };
    draft.publish(&manifest)
}

fn file(draft: &Draft, request: &ImportRequest) -> Result<Manifest> {
    let architecture = build::host()?;
    let found = inspect::inspect(&request.path)?;
    let name = match &request.name {
        Some(name) => name.clone(),
        None => build::name(&[&found.release])?,
    };
    let tree = match &request.modules {
        None => None,
        Some(modules) => {
            let copy = draft.path().join("work/modules");
            copy_tree(modules, &copy)?;
            Some(copy)
        }
    };
    fetch::take(
        draft,
        name,
        architecture,
        Origin::Imported {},
        &request.path,
        tree.as_deref(),
    )
}

/// A directory keeps its manifest, and its files must be what that says.
fn directory(draft: &Draft, request: &ImportRequest) -> Result<Manifest> {
    let fail = |e| Error::io(format!("cannot read the kernel `{}`", request.path.display()), e);
    if request.modules.is_some() {
        return Err(
            Error::new(Kind::InvalidInput, "cannot add modules to a kernel's directory")
                .because("its manifest says which modules it has"),
        );
    }
    let path = request.path.join("kernel.json");
    let bytes = fs::File::open(path)
        .and_then(|file| read_at_most(file, manifest::MAXIMUM + 1))
        .map_err(|e| {
            fail(e)
                .hint("a kernel's directory has a `kernel.json`; a kernel file is imported by its own path")
        })?;
    let mut manifest = Manifest::parse(&bytes)?;
    for file in manifest.files() {
        let place = draft.path().join(&file.file);
        if let Some(parent) = place.parent() {
            fs::create_dir_all(parent).map_err(fail)?;
        }
        copy_file(&request.path.join(&file.file), &place)?;
        let found = verify::describe(draft.path(), &file.file)?;
        if found != *file {
            return Err(Error::new(
                Kind::Corrupt,
                format!("cannot use the kernel `{}`", request.path.display()),
            )
            .because(format!("its file `{}` is not what its manifest says", file.file)));
        }
    }
    if let Some(tree) = &manifest.tree {
        copy_tree(&request.path.join(tree), &draft.path().join(tree))?;
    }
    if let Some(name) = &request.name {
        manifest.name = name.clone();
    }
    Ok(manifest)
}

fn copy_file(from: &Path, to: &Path) -> Result<()> {
    let fail = |e| Error::io(format!("cannot copy `{}`", from.display()), e);
    // A link would be followed out of the directory.
    if !fs::symlink_metadata(from).map_err(fail)?.is_file() {
        return Err(fail(std::io::Error::other("it is no ordinary file")));
    }
    fs::copy(from, to).map(drop).map_err(fail)
}

/// Files and directories only: what else lies in a tree of modules are links to headers.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let fail = |e| Error::io(format!("cannot copy `{}`", from.display()), e);
    fs::create_dir_all(to).map_err(fail)?;
    for entry in fs::read_dir(from).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let kind = entry.file_type().map_err(fail)?;
        let target = to.join(entry.file_name());
        if kind.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &target).map_err(fail)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::tests::kernel_with;

    #[test]
    fn a_directory_is_taken_as_it_is_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let made = kernel_with(&directory.path().join("made"), &[("a.ko", b"a")]);
        fs::write(made.directory.join("tree/more.ko"), b"b").unwrap();
        let store = Store::open(&directory.path().join("kernels"));
        let request = ImportRequest {
            path: made.directory.clone(),
            name: Some("mine".parse().unwrap()),
            modules: None,
        };
        let kernel = import(&store, &request).unwrap();
        assert_eq!(kernel.name.as_str(), "mine");
        assert!(kernel.tree.unwrap().join("more.ko").exists());
        assert_eq!(store.choose(None).unwrap().modules.len(), 1);

        fs::write(made.directory.join("tree/a.ko"), b"c").unwrap();
        let request = ImportRequest {
            name: Some("other".parse().unwrap()),
            ..request
        };
        assert_eq!(import(&store, &request).unwrap_err().kind(), Kind::Corrupt);
        assert_eq!(store.list().unwrap().len(), 1);
        assert_eq!(fs::read_dir(store.directory()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_kernel_is_not_imported() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, b"hello").unwrap();
        let store = Store::open(&directory.path().join("kernels"));
        let request = ImportRequest {
            path,
            name: None,
            modules: None,
        };
        assert_eq!(import(&store, &request).unwrap_err().kind(), Kind::InvalidInput);
    }
}
