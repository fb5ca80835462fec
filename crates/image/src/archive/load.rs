//! From a file or a directory into the store.

use std::io::Read;
use std::path::Path;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};

use super::source::{Source, directory};
use super::{DOCKER_FILE, DockerImage, IMAGE_NAME, INDEX_FILE, REF_NAME};
use crate::image::Config;
use crate::layer::{self, Compression, Decoder, Limits};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::store::Expected;
use crate::{Digest, Hasher, Image, Layer, Platform, Reference, Store};

/// Reads a docker or OCI archive, plain or compressed with gzip or zstd, with every image in it. Those before a broken
/// one stay.
pub fn load(store: &Store, input: &mut dyn Read, progress: Sink) -> Result<Vec<Image>> {
    let mut read = || {
        let _hold = store.hold()?;
        let source = Source::spool(store, input)?;
        match (source.has(INDEX_FILE), source.has(DOCKER_FILE)) {
            (true, _) => oci(store, &source, progress),
            (false, true) => docker(store, &source, progress),
            (false, false) => Err(
                Error::new(Kind::InvalidInput, "cannot find an image in the archive")
                    .because("it has neither `index.json` nor `manifest.json`")
                    .hint("a root filesystem is read by `luna import`"),
            ),
        }
    };
    read().map_err(|error: Error| error.context("cannot load the archive"))
}

/// Reads an OCI layout directory.
pub fn load_layout(store: &Store, path: &Path, progress: Sink) -> Result<Vec<Image>> {
    let read = || {
        let _hold = store.hold()?;
        oci(store, &directory(path)?, progress)
    };
    read().map_err(|error: Error| error.context(format!("cannot load `{}`", path.display())))
}

fn oci(store: &Store, source: &Source, progress: Sink) -> Result<Vec<Image>> {
    let Document::Index(index) = Document::parse(&source.small(INDEX_FILE)?, None)? else {
        return Err(Error::new(Kind::Corrupt, "cannot read `index.json`").because("it is no index"));
    };
    // Docker writes both files; its names are then only in the other one.
    let docker: Vec<DockerImage> = match source.has(DOCKER_FILE) {
        true => manifest::from_json(&source.small(DOCKER_FILE)?, "list").unwrap_or_default(),
        false => Vec::new(),
    };
    let mut images = Vec::new();
    for descriptor in &index.manifests {
        let Some((bytes, manifest)) = chosen(source, descriptor)? else {
            continue;
        };
        if manifest.check_is_image().is_err() {
            continue;
        }
        let config_bytes = blob(source, &manifest.config)?;
        let config = Config::parse(&config_bytes)?;
        let layers = manifest.layers(&config)?;
        for layer in &layers {
            if store.is_verified(layer) {
                continue;
            }
            let (mut reader, _) = source.open(&blob_path(layer.digest))?;
            tell(progress, layer.digest, layer.size, || {
                store.add_compressed_layer(&mut reader, &layer.media_type, Expected::of(layer), progress)
            })?;
        }
        let mut names = names(descriptor);
        if names.is_empty() {
            let own = docker
                .iter()
                .find(|image| image.config.contains(&manifest.config.digest.hex()));
            names = own.map(docker_names).unwrap_or_default();
        }
        images.push(register(store, &bytes, &config_bytes, &layers, &names)?);
    }
    match images.is_empty() {
        true => Err(Error::new(
            Kind::NotFound,
            "cannot find an image for this host in the layout",
        )),
        false => Ok(images),
    }
}

/// The image behind a descriptor of the layout's index: itself, or what a nested index has for this host.
fn chosen(source: &Source, descriptor: &Descriptor) -> Result<Option<(Vec<u8>, Manifest)>> {
    let is_attestation = descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown");
    if is_attestation {
        return Ok(None);
    }
    let bytes = blob(source, descriptor)?;
    match Document::parse(&bytes, Some(&descriptor.media_type))? {
        Document::Image(manifest) => Ok(Some((bytes, manifest))),
        Document::Index(inner) => {
            let inner = inner.select(&Platform::host())?;
            let bytes = blob(source, inner)?;
            match Document::parse(&bytes, Some(&inner.media_type))? {
                Document::Image(manifest) => Ok(Some((bytes, manifest))),
                Document::Index(_) => Err(Error::new(Kind::Corrupt, "cannot read an image manifest")
                    .because("the index points to another index")),
            }
        }
    }
}

fn docker(store: &Store, source: &Source, progress: Sink) -> Result<Vec<Image>> {
    let list: Vec<DockerImage> = manifest::from_json(&source.small(DOCKER_FILE)?, "list")?;
    let mut images = Vec::new();
    for entry in &list {
        let config_bytes = source.small(&entry.config)?;
        let config = Config::parse(&config_bytes)?;
        if config.diff_ids.len() != entry.layers.len() {
            return Err(
                Error::new(Kind::Corrupt, "cannot read an image in the archive").because(format!(
                    "it has {} layers and its config has {} diff ids",
                    entry.layers.len(),
                    config.diff_ids.len()
                )),
            );
        }
        let mut layers = Vec::new();
        for (path, diff_id) in entry.layers.iter().zip(&config.diff_ids) {
            let (_, size) = source.open(path)?;
            layers.push(tell(progress, *diff_id, size, || {
                plain_layer(store, source, path, *diff_id, progress)
            })?);
        }
        let manifest_bytes = Manifest::compose(&config_bytes, &layers)?;
        images.push(register(
            store,
            &manifest_bytes,
            &config_bytes,
            &layers,
            &docker_names(entry),
        )?);
    }
    match images.is_empty() {
        true => Err(Error::new(Kind::NotFound, "cannot find an image in the archive")),
        false => Ok(images),
    }
}

/// A layer that a docker archive has as a plain archive (or compressed, from some tools).
fn plain_layer(store: &Store, source: &Source, path: &str, diff_id: Digest, progress: Sink) -> Result<Layer> {
    let limits = Limits::from_environment()?;
    let plain = || -> Result<_> {
        let (reader, _) = source.open(path)?;
        let (compression, reader) = layer::sniff(reader)?;
        Decoder::new(reader, compression, &limits)
    };
    let broken = |digest: Digest| {
        Err(Error::new(
            Kind::Corrupt,
            format!("cannot accept the layer `{}`", path.escape_debug()),
        )
        .because(format!(
            "its content has the diff id `{digest}`, the config says `{diff_id}`"
        ))
        .hint("the file is damaged; save it again"))
    };
    if let Some(known) = store.layer_by_diff_id(diff_id)? {
        // Reading it once shows that the archive really has what the store would lend it.
        let digest = hash(&mut plain()?)?;
        return match digest == diff_id {
            true => Ok(known),
            false => broken(digest),
        };
    }
    let layer = store.add_layer(&mut plain()?, Compression::default(), progress)?;
    match layer.diff_id == diff_id {
        true => Ok(layer),
        false => broken(layer.diff_id),
    }
}

fn hash(reader: &mut dyn Read) -> Result<Digest> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match layer::read_full(reader, &mut buffer).map_err(layer::archive::reading)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn register(
    store: &Store,
    manifest: &[u8],
    config: &[u8],
    layers: &[Layer],
    names: &[Reference],
) -> Result<Image> {
    let mut image = store.register(manifest, config, layers, names.first(), false)?;
    for name in names.iter().skip(1) {
        store.tag(&image, name)?;
        image.references.push(name.clone());
    }
    Ok(image)
}

fn blob(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>> {
    let bytes = source.small(&blob_path(descriptor.digest))?;
    match bytes.len() as u64 == descriptor.size && Digest::of(&bytes) == descriptor.digest {
        true => Ok(bytes),
        false => Err(Error::new(
            Kind::Corrupt,
            format!("cannot accept the blob `{}`", descriptor.digest.short()),
        )
        .because("its content does not match its digest and size")
        .hint("the file is damaged; save it again")),
    }
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Names that a descriptor's annotations give. A tag alone names no repository and is left out.
fn names(descriptor: &Descriptor) -> Vec<Reference> {
    let whole = descriptor.annotations.get(IMAGE_NAME);
    let named = descriptor
        .annotations
        .get(REF_NAME)
        .filter(|name| name.contains(['/', ':']));
    whole
        .or(named)
        .and_then(|name| Reference::parse(name).ok())
        .into_iter()
        .collect()
}

fn docker_names(image: &DockerImage) -> Vec<Reference> {
    let tags = image.repo_tags.iter().flatten();
    tags.filter_map(|tag| Reference::parse(tag).ok()).collect()
}

fn tell<T>(progress: Sink, digest: Digest, size: u64, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let key = digest.short();
    progress(Progress::Started {
        key: key.clone(),
        label: format!("Loading {key}"),
        total: Some(size),
    });
    let answer = work()?;
    progress(Progress::Finished {
        key: key.clone(),
        label: format!("Loaded {key}"),
    });
    Ok(answer)
}
