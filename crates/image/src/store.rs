//! The images of one user on one host, in one directory.
//!
//! ```text
//! images.json            {"version":1,"images":[…]}: which manifests there are and what they are called
//! blobs/sha256/<hex>     manifests, configs and layers, byte for byte as they came
//! layers/<hex>/          a layer unpacked, in overlayfs' form; named by its diff id
//! layers/<hex>.json      {"version":1,…}: its size, and which blobs were seen to unpack to it
//! disks/<hex>.erofs      an image's layers as one disk, named by their diff ids; `.lock` held while it is made
//! lock                   held exclusively while `images.json` is rewritten
//! holds                  held shared while something is brought in, so that a sweep leaves what has no name yet
//! …/.new-*, .part-*      unfinished; flocked by whoever works on it, otherwise rubbish
//! ```
//! Every directory is 0700: layers hold setuid files and perhaps device nodes, which nobody may reach but through a
//! sandbox's `nosuid`-decided, `nodev` mounts. Readers take no lock: files are replaced by rename.

mod catalog;
mod disk;
mod ingest;
mod sweep;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;

pub(crate) use ingest::Expected;
pub(crate) use sweep::Failures;
pub use sweep::{Pruned, Removed};

use crate::image::Config;
use crate::layer::Limits;
use crate::manifest::{self, Manifest};
use crate::{Digest, Extensions, Image, Layer, Reference, files};
use catalog::{Catalog, Record};

/// See the module. Cheap to clone; any number of processes may use one directory.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    rootless: bool,
    limits: Limits,
}

/// While one of these lives, no sweep removes blobs or trees that have no image yet.
#[derive(Debug)]
#[must_use = "dropping it lets go"]
pub struct Hold(#[expect(dead_code, reason = "held, not read")] OwnedFd);

impl Store {
    /// Opens the store in `root`, making it if missing. `rootless` says that Luna runs in a user namespace where only
    /// `user.*` attributes can be set, so opaque directories are marked for overlayfs' `userxattr` form.
    pub fn open(root: &Path, rootless: bool) -> Result<Store> {
        Store::with_limits(root, rootless, Limits::from_environment()?)
    }

    pub fn with_limits(root: &Path, rootless: bool, limits: Limits) -> Result<Store> {
        let store = Store(Arc::new(Inner {
            root: root.to_owned(),
            rootless,
            limits,
        }));
        files::create_private_directory(&store.blobs())?;
        files::create_private_directory(&store.layers())?;
        Ok(store)
    }

    pub fn root(&self) -> &Path {
        &self.0.root
    }

    /// Keeps sweeps away until dropped; a build takes one from its first layer to its image.
    pub fn hold(&self) -> Result<Hold> {
        files::lock(&self.0.root.join("holds"), FlockOperation::LockShared).map(Hold)
    }

    /// The image that `text` means: a reference, an id, or an unambiguous beginning of an id of at least 4 digits.
    pub fn find(&self, text: &str) -> Result<Option<Image>> {
        let catalog = self.catalog()?;
        match catalog.find(text)? {
            Some(record) => self.image(record).map(Some),
            None => Ok(None),
        }
    }

    /// [`Store::find`], with "not here" as an error that says what to do.
    pub fn get(&self, text: &str) -> Result<Image> {
        self.find(text)?.ok_or_else(|| {
            let error = Error::new(
                Kind::NotFound,
                format!("cannot find the image `{}`", text.escape_debug()),
            );
            match Reference::parse(text) {
                Ok(reference) => error.hint(format!("luna pull {}", reference.familiar())),
                Err(_) => error.hint("luna images shows what is here"),
            }
        })
    }

    /// Every image that can be read, newest record last.
    pub fn list(&self) -> Result<Vec<Image>> {
        let catalog = self.catalog()?;
        let images = catalog.images.iter().map(|record| self.image(record));
        Ok(images.filter_map(Result::ok).collect())
    }

    /// What [`Store::list`] leaves out: an error for each image that cannot be read, with the way out.
    pub fn broken(&self) -> Result<Vec<Error>> {
        let catalog = self.catalog()?;
        let images = catalog.images.iter().map(|record| self.image(record));
        Ok(images.filter_map(Result::err).collect())
    }

    /// Gives `image` one more name, taking it from any other image.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<()> {
        self.change(|catalog| {
            catalog.take_name(reference);
            let record = catalog
                .images
                .iter_mut()
                .find(|record| record.manifest == image.manifest)
                .ok_or_else(|| {
                    Error::new(
                        Kind::NotFound,
                        format!("cannot tag the image `{}`", image.id.short()),
                    )
                    .because("it was removed in the meantime")
                })?;
            record.references.push(reference.clone());
            Ok(())
        })
    }

    /// The image's layers as directories, topmost first, as an overlay mount takes them. What is missing is unpacked
    /// from its blob. When all is there this costs one `stat` per layer.
    pub fn tree(&self, image: &Image, progress: Sink) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::with_capacity(image.layers.len());
        for layer in image.layers.iter().rev() {
            let path = self.layer_path(layer.diff_id);
            if !path.is_dir() {
                let _hold = self.hold()?;
                self.unpack_blob(layer, progress).map_err(|error| {
                    error
                        .context(format!("cannot unpack a layer of `{}`", image.name()))
                        .hint(format!("luna pull {}", image.name()))
                })?;
            }
            directories.push(path);
        }
        if directories.is_empty() {
            directories.push(self.empty_tree()?);
        }
        Ok(directories)
    }

    /// Whether a layer is here, blob (as long as it should be: the damage a power cut does) and tree: what a build
    /// cache asks before it answers with one.
    pub fn has_layer(&self, layer: &Layer) -> bool {
        let blob = self.blob_path(layer.digest).metadata();
        blob.is_ok_and(|blob| blob.is_file() && blob.len() == layer.size)
            && self.layer_path(layer.diff_id).is_dir()
    }

    /// The unpacked directory of a layer that [`Store::has_layer`].
    pub fn layer_directory(&self, layer: &Layer) -> PathBuf {
        self.layer_path(layer.diff_id)
    }

    /// Makes an image of `layers` (bottom first, added before) and `config`, whose diff ids are set from them. With a
    /// reference, that name is taken from whoever has it. The same input gives the same image id.
    pub fn add_image(
        &self,
        mut config: ImageConfiguration,
        extensions: &Extensions,
        layers: &[Layer],
        reference: Option<&Reference>,
        built_here: bool,
    ) -> Result<Image> {
        let _hold = self.hold()?;
        let mut rootfs = config.rootfs().clone();
        rootfs.set_typ("layers".to_owned());
        rootfs.set_diff_ids(layers.iter().map(|layer| layer.diff_id.to_string()).collect());
        config.set_rootfs(rootfs);
        let config_bytes = Config::to_bytes(&config, extensions)?;
        let manifest_bytes = Manifest::compose(&config_bytes, layers)?;
        self.register(&manifest_bytes, &config_bytes, layers, reference, built_here)
    }

    /// Stores manifest and config as they are and makes the image known; its layers are here already.
    pub(crate) fn register(
        &self,
        manifest: &[u8],
        config: &[u8],
        layers: &[Layer],
        reference: Option<&Reference>,
        built_here: bool,
    ) -> Result<Image> {
        let parsed = Config::parse(config)?;
        for layer in layers {
            if !self.has_layer(layer) {
                return Err(Error::new(Kind::Conflict, "cannot make an image")
                    .because(format!(
                        "its layer `{}` was removed in the meantime",
                        layer.digest.short()
                    ))
                    .hint("try again"));
            }
        }
        let size = layers
            .iter()
            .map(|layer| {
                self.tree_record(layer.diff_id)
                    .map_or(layer.size, |record| record.bytes)
            })
            .sum();
        let id = self.add_blob(config)?;
        let manifest = self.add_blob(manifest)?;
        let record = self.change(|catalog| {
            if let Some(reference) = reference {
                catalog.take_name(reference);
            }
            let known = catalog
                .images
                .iter()
                .position(|record| record.manifest == manifest);
            let at = known.unwrap_or_else(|| {
                catalog.images.push(Record {
                    id,
                    manifest,
                    references: Vec::new(),
                    layers: layers.to_vec(),
                    size,
                    built_here,
                });
                catalog.images.len() - 1
            });
            let record = &mut catalog.images[at];
            // Fetching the same bytes again makes them no less this host's own.
            record.built_here |= built_here;
            record.references.extend(reference.cloned());
            Ok(record.clone())
        })?;
        Ok(image(&record, parsed))
    }

    fn image(&self, record: &Record) -> Result<Image> {
        let read = || Ok(image(record, Config::parse(&self.read_blob(record.id)?)?));
        read().map_err(|error: Error| {
            let id = record.id.short();
            let name = record.references.first().map_or(id.clone(), Reference::familiar);
            error
                .context(format!("cannot read the image `{name}`"))
                .hint(format!("luna rmi --force {id}"))
        })
    }

    fn catalog(&self) -> Result<Catalog> {
        Catalog::read(&self.catalog_path())
    }

    /// Rewrites `images.json` under the lock; an error in `change` leaves it as it was.
    fn change<T>(&self, change: impl FnOnce(&mut Catalog) -> Result<T>) -> Result<T> {
        let _lock = files::lock(&self.0.root.join("lock"), FlockOperation::LockExclusive)?;
        let mut catalog = self.catalog()?;
        let answer = change(&mut catalog)?;
        catalog.write(&self.catalog_path())?;
        Ok(answer)
    }

    /// A small blob (manifest, config), checked against its digest on every read.
    pub(crate) fn read_blob(&self, digest: Digest) -> Result<Vec<u8>> {
        let failed = |error| Error::io(format!("cannot read the blob `{}`", digest.short()), error);
        let file = File::open(self.blob_path(digest)).map_err(failed)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(
            &mut std::io::Read::take(file, manifest::LIMIT as u64 + 1),
            &mut bytes,
        )
        .map_err(failed)?;
        manifest::check_size(&bytes, "manifest")?;
        if Digest::of(&bytes) != digest {
            return Err(Error::new(
                Kind::Corrupt,
                format!("cannot use the blob `{}` in the store", digest.short()),
            )
            .because("its content changed since it was stored"));
        }
        Ok(bytes)
    }

    /// A layer of some image here that unpacks to `diff_id`, whatever its compression.
    pub(crate) fn layer_by_diff_id(&self, diff_id: Digest) -> Result<Option<Layer>> {
        let catalog = self.catalog()?;
        let mut layers = catalog.images.iter().flat_map(|record| &record.layers);
        let found = layers.find(|layer| layer.diff_id == diff_id && self.is_verified(layer));
        Ok(found.cloned())
    }

    /// The length of a layer's uncompressed archive, where it is known.
    pub(crate) fn archive_size(&self, diff_id: Digest) -> Option<u64> {
        self.tree_record(diff_id).map(|record| record.archive)
    }

    /// The docker and OCI manifest of an image as it came.
    pub fn manifest_bytes(&self, image: &Image) -> Result<Vec<u8>> {
        self.read_blob(image.manifest)
    }

    /// The config of an image as it came.
    pub fn config_bytes(&self, image: &Image) -> Result<Vec<u8>> {
        self.read_blob(image.id)
    }

    pub(crate) fn open_blob(&self, digest: Digest) -> Result<File> {
        File::open(self.blob_path(digest))
            .map_err(|error| Error::io(format!("cannot read the blob `{}`", digest.short()), error))
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.root.join("blobs/sha256")
    }

    fn layers(&self) -> PathBuf {
        self.0.root.join("layers")
    }

    fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.layers().join(diff_id.hex())
    }

    fn catalog_path(&self) -> PathBuf {
        self.0.root.join("images.json")
    }

    /// What stands under a sandbox whose image has no layer at all.
    fn empty_tree(&self) -> Result<PathBuf> {
        let path = self.layers().join("empty");
        files::create_private_directory(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(|error| Error::io(format!("cannot prepare `{}`", path.display()), error))?;
        Ok(path)
    }
}

fn image(record: &Record, config: Config) -> Image {
    Image {
        id: record.id,
        manifest: record.manifest,
        references: record.references.clone(),
        created: config.spec.created().clone(),
        config: config.spec,
        extensions: config.extensions,
        layers: record.layers.clone(),
        size: record.size,
        built_here: record.built_here,
    }
}

/// Tells of devices that could not be made, once per layer.
pub(crate) fn note_skipped(count: u64, progress: Sink) {
    if count > 0 {
        progress(Progress::Note {
            text: format!("left out {count} device nodes that only root can make"),
        });
    }
}

#[cfg(test)]
mod tests;
