//! Taking images away, and with them what nothing else needs.

use std::collections::HashSet;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use serde::Serialize;

use super::Store;
use super::catalog::Catalog;
use super::disk::disk_name;
use crate::files::{self, Temporary};
use crate::layer::remove::remove_tree;
use crate::{Digest, Reference, build};

/// What `rmi` did, as docker reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub untagged: Vec<Reference>,
    /// Ids of images and diff ids of layers that are gone.
    pub deleted: Vec<Digest>,
}

/// What `prune` did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    pub untagged: Vec<Reference>,
    pub deleted: Vec<Digest>,
    /// Bytes freed.
    pub freed: u64,
    /// Something was being brought in, so what has no image was left for the next time.
    pub busy: bool,
}

impl Store {
    /// Takes the name `text` away; with the last name goes the image, with its last image each layer. By id, all
    /// names go. An image that `in_use` keeps everything but its names, and that only with `force`.
    pub fn remove(&self, text: &str, force: bool, in_use: &dyn Fn(&Digest) -> bool) -> Result<Removed> {
        let cannot = |why: String, hint: &'static str| {
            Err(Error::new(
                Kind::Conflict,
                format!("cannot remove the image `{}`", text.escape_debug()),
            )
            .because(why)
            .hint(hint))
        };
        let (removed, gone) = self.change(|catalog| {
            let mut removed = Removed::default();
            let mut gone = Vec::new();
            let by_name = catalog.by_name(text).map(|record| record.manifest);
            let targets: Vec<Digest> = match (by_name, catalog.by_id(text)?) {
                (Some(manifest), _) => vec![manifest],
                (None, Some(found)) => {
                    let id = found.id;
                    let same = catalog.images.iter().filter(|record| record.id == id);
                    same.map(|record| record.manifest).collect()
                }
                (None, None) => {
                    return Err(Error::new(
                        Kind::NotFound,
                        format!("cannot find the image `{}`", text.escape_debug()),
                    )
                    .hint("luna images shows what is here"));
                }
            };
            let reference = by_name.and_then(|_| Reference::parse(text).ok());
            for manifest in targets {
                let at = catalog
                    .images
                    .iter()
                    .position(|record| record.manifest == manifest)
                    .expect("found in this catalog above");
                let record = &mut catalog.images[at];
                match &reference {
                    Some(reference) => {
                        let named: Vec<Reference> = record
                            .references
                            .iter()
                            .filter(|other| *other == reference)
                            .cloned()
                            .collect();
                        // A digest form that matched only by the manifest names no single tag.
                        removed.untagged = match named.is_empty() {
                            true => record.references.clone(),
                            false => named,
                        };
                    }
                    None if record.references.len() > 1 && !force => {
                        return cannot(
                            format!("it has {} names", record.references.len()),
                            "remove it by name, or use --force",
                        );
                    }
                    None => removed.untagged.extend(record.references.iter().cloned()),
                }
                let left = record
                    .references
                    .iter()
                    .filter(|other| !removed.untagged.contains(other))
                    .count();
                if left == 0 && in_use(&record.id) {
                    if !force {
                        return cannot(
                            "a sandbox uses it".to_owned(),
                            "remove the sandbox first (`luna ps -a` shows it), or use --force to take only its name",
                        );
                    }
                    record.references.clear();
                    continue;
                }
                record.references.retain(|other| !removed.untagged.contains(other));
                if left == 0 {
                    gone.push(catalog.images.remove(at));
                }
            }
            Ok((removed, gone))
        })?;
        let mut removed = removed;
        // The lock before the catalog: what comes in between the two could count on what is about to go.
        let alone = files::try_lock(&self.0.root.join("holds"))?;
        let catalog = self.catalog()?;
        let kept = Kept::of(&catalog);
        let mut failures = Failures::default();
        for record in gone {
            if !catalog.images.iter().any(|other| other.id == record.id) {
                removed.deleted.push(record.id);
            }
            if alone.is_none() {
                // Something being brought in may count on these; a prune takes them later.
                continue;
            }
            for digest in [record.manifest, record.id]
                .into_iter()
                .chain(record.layers.iter().map(|layer| layer.digest))
            {
                if !kept.blobs.contains(&digest) {
                    failures.note(remove_file(&self.blob_path(digest)));
                }
            }
            let disk = disk_name(&record.layers);
            if !kept.disks.contains(&disk) {
                failures.note(remove_file(&self.disk_path(disk)));
            }
            for layer in &record.layers {
                if !kept.trees.contains(&layer.diff_id)
                    && self.layer_path(layer.diff_id).is_dir()
                    && failures.note(self.remove_layer(layer.diff_id))
                {
                    removed.deleted.push(layer.diff_id);
                }
            }
        }
        failures.finish(removed)
    }

    /// Removes images without a name, or with `all` every image that is not in use; then blobs and trees that belong
    /// to no image, and whatever a killed process left unfinished. `all` also forgets what builds remember.
    pub fn prune(&self, all: bool, in_use: &dyn Fn(&Digest) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        self.change(|catalog| {
            catalog.images.retain(|record| {
                let goes = (all || record.references.is_empty()) && !in_use(&record.id);
                if goes {
                    pruned.untagged.extend(record.references.iter().cloned());
                    pruned.deleted.push(record.id);
                }
                !goes
            });
            Ok(())
        })?;
        let Some(_alone) = files::try_lock(&self.0.root.join("holds"))? else {
            pruned.busy = true;
            return Ok(pruned);
        };
        let kept = Kept::of(&self.catalog()?);
        let mut failures = Failures::default();
        for (name, path) in entries(&self.blobs())? {
            let goes = match Digest::from_hex(&name) {
                Some(digest) => !kept.blobs.contains(&digest),
                None => name.starts_with('.') && !files::is_held(&path),
            };
            if goes {
                let size = disk_usage(&path);
                if failures.note(remove_file(&path)) {
                    pruned.freed += size;
                }
            }
        }
        // A lock on a disk is taken below `holds`, which nobody has now.
        for (name, path) in entries(&self.disks())? {
            let digits = name.strip_suffix(".erofs").or_else(|| name.strip_suffix(".lock"));
            let goes = match digits.and_then(Digest::from_hex) {
                Some(disk) => !kept.disks.contains(&disk),
                None => name.starts_with(Temporary::PREFIX) && !files::is_held(&path),
            };
            if goes {
                let size = disk_usage(&path);
                if failures.note(remove_file(&path)) {
                    pruned.freed += size;
                }
            }
        }
        // What was left half done goes first: it is the surest to be of no use.
        let (leftovers, whole): (Vec<_>, Vec<_>) = entries(&self.layers())?
            .into_iter()
            .partition(|(name, _)| name.starts_with(Temporary::PREFIX));
        for (_, path) in leftovers {
            if !files::is_held(&path) {
                let size = disk_usage(&path);
                if failures.note(remove_tree(&path)) {
                    pruned.freed += size;
                }
            }
        }
        for (name, path) in whole {
            if let Some(diff_id) = Digest::from_hex(&name) {
                if !kept.trees.contains(&diff_id) {
                    let size = disk_usage(&path);
                    if failures.note(self.remove_layer(diff_id)) {
                        pruned.freed += size;
                        pruned.deleted.push(diff_id);
                    }
                }
            } else if let Some(diff_id) = name.strip_suffix(".json").and_then(Digest::from_hex)
                && !self.layer_path(diff_id).is_dir()
            {
                failures.note(remove_file(&path));
            }
        }
        let build = self.0.root.join("build");
        let before = disk_usage(&build);
        failures.note(match all {
            true => build::forget(self),
            false => build::sweep(self),
        });
        pruned.freed += before.saturating_sub(disk_usage(&build));
        failures.finish(pruned)
    }

    fn remove_layer(&self, diff_id: Digest) -> Result<()> {
        remove_file(&self.tree_record_path(diff_id))?;
        // Gone at once for everybody else, whatever happens while its files go one by one.
        let hidden = Temporary::directory(&self.layers())?;
        match std::fs::rename(self.layer_path(diff_id), hidden.path().join("layer")) {
            Ok(()) => remove_tree(hidden.path()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(
                format!("cannot remove the layer `{}`", diff_id.short()),
                error,
            )),
        }
    }
}

/// What could not be removed: the first error, told when all the rest is done.
#[derive(Default)]
pub(crate) struct Failures {
    first: Option<Error>,
    more: usize,
}

impl Failures {
    /// Whether it worked.
    pub(crate) fn note(&mut self, outcome: Result<()>) -> bool {
        match outcome {
            Ok(()) => return true,
            Err(error) if self.first.is_none() => self.first = Some(error),
            Err(_) => self.more += 1,
        }
        false
    }

    pub(crate) fn finish<T>(self, done: T) -> Result<T> {
        match (self.first, self.more) {
            (None, _) => Ok(done),
            (Some(error), 0) => Err(error.context("cannot remove everything; the rest is gone")),
            (Some(error), more) => Err(error.context(format!(
                "cannot remove everything: this and {more} more are left, the rest is gone"
            ))),
        }
    }
}

/// What the images that are left need.
struct Kept {
    blobs: HashSet<Digest>,
    trees: HashSet<Digest>,
    disks: HashSet<Digest>,
}

impl Kept {
    fn of(catalog: &Catalog) -> Kept {
        let mut kept = Kept {
            blobs: HashSet::new(),
            trees: HashSet::new(),
            disks: HashSet::new(),
        };
        for record in &catalog.images {
            kept.blobs.extend([record.manifest, record.id]);
            kept.disks.insert(disk_name(&record.layers));
            for layer in &record.layers {
                kept.blobs.insert(layer.digest);
                kept.trees.insert(layer.diff_id);
            }
        }
        kept
    }
}

fn entries(directory: &Path) -> Result<Vec<(String, std::path::PathBuf)>> {
    let failed = |error| Error::io(format!("cannot read `{}`", directory.display()), error);
    let mut found = Vec::new();
    let read = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        other => other.map_err(failed)?,
    };
    for entry in read {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(format!("cannot remove `{}`", path.display()), error))
        }
        _ => Ok(()),
    }
}

/// Bytes on disk of a file or of a whole tree; what cannot be read counts nothing.
fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    let mut waiting = vec![path.to_owned()];
    while let Some(path) = waiting.pop() {
        let Ok(metadata) = path.symlink_metadata() else {
            continue;
        };
        bytes += metadata.blocks() * 512;
        if metadata.is_dir() {
            let children = std::fs::read_dir(&path).into_iter().flatten().flatten();
            waiting.extend(children.map(|entry| entry.path()));
        }
    }
    bytes
}
