//! Taking images away, and with them what nothing else needs.

use std::collections::HashSet;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use serde::Serialize;

use super::Store;
use super::catalog::Catalog;
use crate::files::{self, Temporary};
use crate::layer::tree::remove_tree;
use crate::{Digest, Reference};

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
        let catalog = self.catalog()?;
        let kept = Kept::of(&catalog);
        for record in gone {
            if !catalog.images.iter().any(|other| other.id == record.id) {
                removed.deleted.push(record.id);
            }
            let Some(_alone) = files::try_lock(&self.0.root.join("holds"))? else {
                // Something being brought in may count on these; a prune takes them later.
                continue;
            };
            for digest in [record.manifest, record.id]
                .into_iter()
                .chain(record.layers.iter().map(|layer| layer.digest))
            {
                if !kept.blobs.contains(&digest) {
                    remove_file(&self.blob_path(digest))?;
                }
            }
            for layer in &record.layers {
                if !kept.trees.contains(&layer.diff_id) && self.layer_path(layer.diff_id).is_dir() {
                    self.remove_layer(layer.diff_id)?;
                    removed.deleted.push(layer.diff_id);
                }
            }
        }
        Ok(removed)
    }

    /// Removes images without a name, or with `all` every image that is not in use; then blobs and trees that belong
    /// to no image, and whatever a killed process left unfinished.
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
        for (name, path) in entries(&self.blobs())? {
            let goes = match Digest::from_hex(&name) {
                Some(digest) => !kept.blobs.contains(&digest),
                None => name.starts_with('.') && !files::is_held(&path),
            };
            if goes {
                pruned.freed += disk_usage(&path);
                remove_file(&path)?;
            }
        }
        for (name, path) in entries(&self.layers())? {
            if let Some(diff_id) = Digest::from_hex(&name) {
                if !kept.trees.contains(&diff_id) {
                    pruned.freed += disk_usage(&path);
                    self.remove_layer(diff_id)?;
                    pruned.deleted.push(diff_id);
                }
            } else if name.starts_with(Temporary::PREFIX) && !files::is_held(&path) {
                pruned.freed += disk_usage(&path);
                remove_tree(&path)?;
            } else if let Some(diff_id) = name.strip_suffix(".json").and_then(Digest::from_hex)
                && !self.layer_path(diff_id).is_dir()
            {
                remove_file(&path)?;
            }
        }
        Ok(pruned)
    }

    fn remove_layer(&self, diff_id: Digest) -> Result<()> {
        remove_file(&self.tree_record_path(diff_id))?;
        // Gone at once for everybody else, whatever happens while its files go one by one.
        let hidden = self
            .layers()
            .join(format!("{}{}-gone", Temporary::PREFIX, diff_id.hex()));
        match std::fs::rename(self.layer_path(diff_id), &hidden) {
            Ok(()) => remove_tree(&hidden),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(Error::io(
                format!("cannot remove the layer `{}`", diff_id.short()),
                error,
            )),
        }
    }
}

/// What the images that are left need.
struct Kept {
    blobs: HashSet<Digest>,
    trees: HashSet<Digest>,
}

impl Kept {
    fn of(catalog: &Catalog) -> Kept {
        let mut kept = Kept {
            blobs: HashSet::new(),
            trees: HashSet::new(),
        };
        for record in &catalog.images {
            kept.blobs.extend([record.manifest, record.id]);
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
    for entry in std::fs::read_dir(directory).map_err(failed)? {
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
    let Ok(metadata) = path.symlink_metadata() else {
        return 0;
    };
    let own = metadata.blocks() * 512;
    if !metadata.is_dir() {
        return own;
    }
    let children = std::fs::read_dir(path).into_iter().flatten().flatten();
    own + children.map(|entry| disk_usage(&entry.path())).sum::<u64>()
}
