//! From the store into a file or a directory.

use std::collections::{BTreeMap, HashSet};
use std::io::{self, Read, Write};
use std::path::Path;

use luna_core::{Error, Kind, Result};
use tar::EntryType;

use super::{DOCKER_FILE, DockerImage, IMAGE_NAME, INDEX_FILE, LAYOUT_CONTENT, LAYOUT_FILE, REF_NAME};
use crate::layer::{Compression, Decoder, Limits};
use crate::manifest::{self, Descriptor, DescriptorPlatform, Document};
use crate::tarball::{Item, TarWriter};
use crate::{Digest, Hasher, Image, Layer, Reference, Store, files};

/// What an archive is to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaveFormat {
    /// What `docker load` of any age reads.
    #[default]
    DockerArchive,
    /// Keeps the manifest, so digests survive.
    OciArchive,
}

/// Writes the named images as one archive; the same images give the same bytes.
pub fn save(store: &Store, images: &[String], format: SaveFormat, out: &mut dyn Write) -> Result<()> {
    let _hold = store.hold()?;
    let chosen = choose(store, images)?;
    let mut tar = TarWriter::new(io::BufWriter::with_capacity(256 << 10, out));
    match format {
        SaveFormat::DockerArchive => docker(store, &chosen, &mut tar)?,
        SaveFormat::OciArchive => {
            for path in ["blobs/", "blobs/sha256/"] {
                let item = Item {
                    kind: EntryType::Directory,
                    mode: 0o755,
                    ..Item::file(path, 0)
                };
                tar.append(&item, &mut io::empty()).map_err(writing)?;
            }
            oci(store, &chosen, &mut |path, size, data| {
                tar.append(&Item::file(path, size), data).map_err(writing)
            })?;
        }
    }
    tar.finish().map_err(writing)?;
    Ok(())
}

/// Writes the named images as an OCI layout into `directory`, which is made if missing and must be empty otherwise.
pub fn save_layout(store: &Store, images: &[String], directory: &Path) -> Result<()> {
    let _hold = store.hold()?;
    let chosen = choose(store, images)?;
    let failed = |error| files::storage_error(format!("cannot write to `{}`", directory.display()), error);
    if directory.exists() && std::fs::read_dir(directory).map_err(failed)?.next().is_some() {
        return Err(Error::new(
            Kind::AlreadyExists,
            format!("cannot save into `{}`", directory.display()),
        )
        .because("it is not empty")
        .hint("name a directory that does not exist"));
    }
    std::fs::create_dir_all(directory.join("blobs/sha256")).map_err(failed)?;
    oci(store, &chosen, &mut |path, _, data| {
        let mut file = std::fs::File::create(directory.join(path)).map_err(failed)?;
        io::copy(data, &mut file).map_err(failed)?;
        Ok(())
    })
}

/// The images, each with the names it was asked for by; an id asks for none.
fn choose(store: &Store, images: &[String]) -> Result<Vec<(Image, Vec<Reference>)>> {
    let mut chosen: Vec<(Image, Vec<Reference>)> = Vec::new();
    for text in images {
        let image = store.get(text)?;
        let name = Reference::parse(text)
            .ok()
            .filter(|reference| image.references.contains(reference));
        match chosen
            .iter_mut()
            .find(|(other, _)| other.manifest == image.manifest)
        {
            Some((_, names)) => names.extend(name),
            None => chosen.push((image, name.into_iter().collect())),
        }
    }
    match chosen.is_empty() {
        true => Err(Error::new(Kind::InvalidInput, "cannot save no image at all")),
        false => Ok(chosen),
    }
}

type Put<'a> = dyn FnMut(&str, u64, &mut dyn Read) -> Result<()> + 'a;

fn oci(store: &Store, images: &[(Image, Vec<Reference>)], put: &mut Put<'_>) -> Result<()> {
    let mut written = HashSet::new();
    let mut manifests = Vec::new();
    for (image, names) in images {
        let bytes = store.manifest_bytes(image)?;
        let Document::Image(parsed) = Document::parse(&bytes, None)? else {
            return Err(Error::new(Kind::Internal, "cannot save an index as an image"));
        };
        for layer in &image.layers {
            if written.insert(layer.digest) {
                let mut checked = Checked::new(store.open_blob(layer.digest)?);
                put(&blob_path(layer.digest), layer.size, &mut checked)?;
                checked.check(layer.digest)?;
            }
        }
        for small in [store.config_bytes(image)?, bytes.clone()] {
            let digest = Digest::of(&small);
            if written.insert(digest) {
                put(&blob_path(digest), small.len() as u64, &mut &small[..])?;
            }
        }
        let platform = image.platform();
        let descriptor = |annotations| Descriptor {
            media_type: parsed.media_type.clone(),
            digest: image.manifest,
            size: bytes.len() as u64,
            platform: Some(DescriptorPlatform {
                os: platform.os.clone(),
                architecture: platform.architecture.clone(),
                variant: platform.variant.clone(),
            }),
            annotations,
        };
        if names.is_empty() {
            manifests.push(descriptor(BTreeMap::new()));
        }
        for name in names {
            let mut annotations = BTreeMap::from([(IMAGE_NAME.to_owned(), name.to_string())]);
            if let Some(tag) = name.tag() {
                annotations.insert(REF_NAME.to_owned(), tag.to_owned());
            }
            manifests.push(descriptor(annotations));
        }
    }
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_INDEX,
        "manifests": manifests,
    });
    let index = to_json(&index)?;
    put(INDEX_FILE, index.len() as u64, &mut &index[..])?;
    put(
        LAYOUT_FILE,
        LAYOUT_CONTENT.len() as u64,
        &mut LAYOUT_CONTENT.as_bytes(),
    )
}

fn docker<W: Write>(store: &Store, images: &[(Image, Vec<Reference>)], tar: &mut TarWriter<W>) -> Result<()> {
    let limits = Limits::from_environment()?;
    let mut written = HashSet::new();
    let mut list = Vec::new();
    for (image, names) in images {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let path = format!("{}.tar", layer.diff_id.hex());
            if written.insert(layer.diff_id) {
                let size = match store.archive_size(layer.diff_id) {
                    Some(size) => size,
                    None => io::copy(&mut plain(store, layer, &limits)?, &mut io::sink()).map_err(writing)?,
                };
                let mut checked = Checked::new(plain(store, layer, &limits)?);
                tar.append(&Item::file(&path, size), &mut checked)
                    .map_err(writing)?;
                checked.check(layer.diff_id)?;
            }
            layers.push(path);
        }
        let config = store.config_bytes(image)?;
        let config_path = format!("{}.json", image.id.hex());
        if written.insert(image.id) {
            let item = Item::file(&config_path, config.len() as u64);
            tar.append(&item, &mut &config[..]).map_err(writing)?;
        }
        list.push(DockerImage {
            config: config_path,
            repo_tags: match names.is_empty() {
                true => None,
                false => Some(names.iter().map(Reference::familiar).collect()),
            },
            layers,
        });
    }
    let list = to_json(&list)?;
    tar.append(&Item::file(DOCKER_FILE, list.len() as u64), &mut &list[..])
        .map_err(writing)
}

fn plain<'a>(store: &Store, layer: &Layer, limits: &'a Limits) -> Result<Decoder<'a, std::fs::File>> {
    let compression = Compression::of_media_type(&layer.media_type)?;
    Decoder::new(store.open_blob(layer.digest)?, compression, limits)
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::new(Kind::Internal, "cannot write an archive's index").because(error))
}

fn writing(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(ours) => ours,
        Err(error) => files::storage_error("cannot write the archive".to_owned(), error),
    }
}

/// Hashes what is saved: a blob that rotted on the disk must not leave it as if it were whole.
struct Checked<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Checked<R> {
    fn new(inner: R) -> Checked<R> {
        Checked {
            inner,
            hasher: Hasher::default(),
        }
    }

    fn check(self, promised: Digest) -> Result<()> {
        match self.hasher.finish() == promised {
            true => Ok(()),
            false => Err(Error::new(
                Kind::Corrupt,
                format!("cannot save the layer `{}`", promised.short()),
            )
            .because("its content changed since it was stored")
            .hint("remove the image with `luna rmi --force` and pull it again")),
        }
    }
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
