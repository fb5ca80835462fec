//! Bringing layers in: one pass from a stream to a verified blob and a verified tree.
//!
//! Nothing is visible before both digests hold: the blob and the tree grow under unfinished names and are renamed at
//! the end. A blob is accepted for a diff id only after it was seen to unpack to it, even when a tree of that name is
//! here already: otherwise an image could name another image's private layer and read it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{Store, note_skipped};
use crate::files::{self, Temporary};
use crate::layer::{self, Compression, Decoder, Unpacked};
use crate::{Digest, Hasher, Layer};

/// What is promised of a compressed layer before it comes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) digest: Option<Digest>,
    pub(crate) size: Option<u64>,
    pub(crate) diff_id: Option<Digest>,
}

impl Expected {
    pub(crate) fn of(layer: &Layer) -> Expected {
        Expected {
            digest: Some(layer.digest),
            size: Some(layer.size),
            diff_id: Some(layer.diff_id),
        }
    }
}

/// `layers/<hex>.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TreeRecord {
    version: u32,
    /// Bytes of file content.
    pub(super) bytes: u64,
    entries: u64,
    /// Bytes of the uncompressed archive.
    pub(super) archive: u64,
    /// Blobs seen to unpack to this tree.
    blobs: Vec<Digest>,
}

impl Store {
    /// Takes a layer as an uncompressed archive; stores it compressed as asked, and unpacked.
    pub fn add_layer(&self, tar: &mut dyn Read, compress: Compression, progress: Sink) -> Result<Layer> {
        let _hold = self.hold()?;
        let blob = Temporary::file(&self.blobs())?;
        let mut encoder = Encoder::new(HashingWriter::new(blob.handle()), compress)?;
        let mut tee = io_tee(tar, &mut encoder);
        let (tree, unpacked) = self.unpack_to_temporary(&mut tee)?;
        let (digest, size) = encoder.finish()?.finish();
        note_skipped(unpacked.skipped_devices, progress);
        self.publish(|| blob.publish(&self.blob_path(digest)), tree, digest, &unpacked)?;
        Ok(Layer {
            digest,
            diff_id: unpacked.diff_id,
            size,
            media_type: compress.media_type().to_owned(),
        })
    }

    /// Takes a layer as it lies in a registry or an archive, checked against `expected`; the blob is kept as it came.
    pub(crate) fn add_compressed_layer(
        &self,
        source: &mut dyn Read,
        media_type: &str,
        expected: Expected,
        progress: Sink,
    ) -> Result<Layer> {
        let blob = Temporary::file(&self.blobs())?;
        let mut writer = HashingWriter::new(blob.handle());
        let mut tee = io_tee(source, &mut writer);
        let outcome = self.decode(&mut tee, media_type, expected.size);
        if outcome.is_err() {
            // A wrong digest explains any other complaint; the rest must pass to compute it.
            let rest = expected.size.unwrap_or(0).saturating_add(1);
            let _ = io::copy(&mut (&mut tee).take(rest), &mut io::sink());
        }
        let (digest, size) = writer.finish();
        check_blob(expected, digest, size, outcome.is_err())?;
        let (tree, unpacked) = outcome?;
        check_diff_id(expected, unpacked.diff_id)?;
        note_skipped(unpacked.skipped_devices, progress);
        self.publish(|| blob.publish(&self.blob_path(digest)), tree, digest, &unpacked)?;
        Ok(Layer {
            digest,
            diff_id: unpacked.diff_id,
            size,
            media_type: media_type.to_owned(),
        })
    }

    /// Takes a layer that a download writes to `part`, read through `source` while it grows. The source ends only when
    /// the part's digest holds; then the part itself becomes the blob.
    pub(crate) fn add_part(
        &self,
        source: &mut dyn Read,
        layer: &Layer,
        part: &Path,
        progress: Sink,
    ) -> Result<()> {
        let mut source = source;
        let (tree, unpacked) = self.decode(&mut source, &layer.media_type, Some(layer.size))?;
        check_diff_id(Expected::of(layer), unpacked.diff_id)?;
        note_skipped(unpacked.skipped_devices, progress);
        let blob = || {
            std::fs::rename(part, self.blob_path(layer.digest)).map_err(|error| {
                files::storage_error(format!("cannot keep the layer `{}`", layer.digest.short()), error)
            })
        };
        self.publish(blob, tree, layer.digest, &unpacked)
    }

    /// Unpacks a layer whose blob is in the store, checking both digests again.
    pub(crate) fn unpack_blob(&self, layer: &Layer, progress: Sink) -> Result<()> {
        let key = layer.digest.short();
        let label = format!("Unpacking {key}");
        progress(Progress::Started {
            key: key.clone(),
            label: label.clone(),
            total: Some(layer.size),
        });
        let mut file = self.open_blob(layer.digest)?;
        let mut hasher = HashingWriter::new(io::sink());
        let mut tee = io_tee(&mut file, &mut hasher);
        let outcome = self.decode(&mut tee, &layer.media_type, Some(layer.size));
        if outcome.is_err() {
            let _ = io::copy(&mut tee, &mut io::sink());
        }
        let (digest, size) = hasher.finish();
        check_blob(Expected::of(layer), digest, size, outcome.is_err())?;
        let (tree, unpacked) = outcome?;
        check_diff_id(Expected::of(layer), unpacked.diff_id)?;
        note_skipped(unpacked.skipped_devices, progress);
        self.publish(|| Ok(()), tree, layer.digest, &unpacked)?;
        progress(Progress::Finished { key, label });
        Ok(())
    }

    /// Whether this very blob was seen to unpack to its diff id, and both are here.
    pub(crate) fn is_verified(&self, layer: &Layer) -> bool {
        self.has_layer(layer)
            && self
                .tree_record(layer.diff_id)
                .is_some_and(|record| record.blobs.contains(&layer.digest))
    }

    /// Stores small bytes under their digest.
    pub(crate) fn add_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        // What is there is read, not only seen: a damaged one is replaced.
        if self.read_blob(digest).is_err() {
            files::write_atomically(&self.blob_path(digest), bytes)?;
        }
        Ok(digest)
    }

    /// Removes a blob that is no longer what its name says, so that it can be brought again. True when it was so.
    pub(crate) fn discard_if_damaged(&self, digest: Digest) -> Result<bool> {
        let mut writer = HashingWriter::new(io::sink());
        io::copy(&mut self.open_blob(digest)?, &mut writer)
            .map_err(|error| Error::io(format!("cannot read the blob `{}`", digest.short()), error))?;
        if writer.finish().0 == digest {
            return Ok(false);
        }
        std::fs::remove_file(self.blob_path(digest))
            .map_err(|error| Error::io(format!("cannot remove the blob `{}`", digest.short()), error))?;
        Ok(true)
    }

    pub(super) fn tree_record(&self, diff_id: Digest) -> Option<TreeRecord> {
        let bytes = std::fs::read(self.tree_record_path(diff_id)).ok()?;
        let record: TreeRecord = serde_json::from_slice(&bytes).ok()?;
        (record.version == 1).then_some(record)
    }

    pub(super) fn tree_record_path(&self, diff_id: Digest) -> std::path::PathBuf {
        self.layers().join(format!("{}.json", diff_id.hex()))
    }

    /// Decompresses and unpacks `source`, reading it to its very end.
    fn decode<R: Read>(
        &self,
        source: &mut R,
        media_type: &str,
        size: Option<u64>,
    ) -> Result<(Temporary, Unpacked)> {
        let compression = Compression::of_media_type(media_type)?;
        // One byte past the promised size is enough to know that it is broken.
        let mut bounded = source.take(size.map_or(u64::MAX, |size| size.saturating_add(1)));
        let mut decoder = Decoder::new(&mut bounded, compression, &self.0.limits)?;
        let answer = self.unpack_to_temporary(&mut decoder)?;
        drop(decoder);
        io::copy(&mut bounded, &mut io::sink()).map_err(|error| Error::io("cannot read a layer", error))?;
        Ok(answer)
    }

    fn unpack_to_temporary(&self, source: &mut dyn Read) -> Result<(Temporary, Unpacked)> {
        let tree = Temporary::directory(&self.layers())?;
        tree.handle()
            .set_permissions(std::fs::Permissions::from_mode(0o755))
            .map_err(|error| Error::io("cannot prepare a layer's directory", error))?;
        let unpacked = layer::unpack(source, tree.descriptor()?, self.0.rootless, &self.0.limits)?;
        Ok((tree, unpacked))
    }

    /// Makes blob (by what `blob` does) and tree visible and remembers that they belong together.
    fn publish(
        &self,
        blob: impl FnOnce() -> Result<()>,
        tree: Temporary,
        digest: Digest,
        unpacked: &Unpacked,
    ) -> Result<()> {
        // One flush for both: after a power cut a visible name has all of its content.
        let handle: OwnedFd = tree.descriptor()?;
        rustix::fs::syncfs(handle.as_fd()).map_err(|error| {
            files::storage_error("cannot flush a layer to the disk".to_owned(), error.into())
        })?;
        blob()?;
        let target = self.layer_path(unpacked.diff_id);
        if !target.is_dir() {
            tree.publish(&target)?;
        }
        let _lock = files::lock(&self.0.root.join("lock"), FlockOperation::LockExclusive)?;
        let mut record = self.tree_record(unpacked.diff_id).unwrap_or(TreeRecord {
            version: 1,
            bytes: unpacked.bytes,
            entries: unpacked.entries,
            archive: unpacked.archive,
            blobs: Vec::new(),
        });
        if record.blobs.contains(&digest) {
            return Ok(());
        }
        record.blobs.push(digest);
        let bytes = serde_json::to_vec(&record)
            .map_err(|error| Error::new(Kind::Internal, "cannot write a layer's record").because(error))?;
        files::write_atomically(&self.tree_record_path(unpacked.diff_id), &bytes)
    }
}

/// `unpack_failed` softens a missing size: a source that broke off has its own, better explanation.
pub(super) fn check_blob(expected: Expected, digest: Digest, size: u64, unpack_failed: bool) -> Result<()> {
    let broken = |why: String| {
        Err(Error::new(
            Kind::Corrupt,
            format!(
                "cannot accept the layer `{}`",
                expected.digest.unwrap_or(digest).short()
            ),
        )
        .because(why)
        .hint("try again; if it stays like this, the image must be pushed or saved again"))
    };
    match expected.size {
        Some(promised) if size > promised => {
            return broken(format!("it is larger than the {promised} bytes promised"));
        }
        Some(promised) if size < promised && unpack_failed => return Ok(()),
        Some(promised) if size < promised => {
            return broken(format!("it has {size} bytes where {promised} were promised"));
        }
        _ => {}
    }
    match expected.digest {
        Some(promised) if promised != digest => broken(format!("its content has the digest `{digest}`")),
        _ => Ok(()),
    }
}

pub(super) fn check_diff_id(expected: Expected, diff_id: Digest) -> Result<()> {
    match expected.diff_id {
        Some(promised) if promised != diff_id => Err(Error::new(
            Kind::Corrupt,
            format!("cannot accept the layer with the diff id `{}`", promised.short()),
        )
        .because(format!("it unpacks to `{diff_id}`"))
        .hint("the image's config does not match its layers; push or save it again")),
        _ => Ok(()),
    }
}

/// Reads `source` and writes what passes to `copy`; a failure to write is the store's.
fn io_tee<'a, R: Read + ?Sized, W: Write>(source: &'a mut R, copy: &'a mut W) -> Tee<'a, R, W> {
    Tee { source, copy }
}

pub(super) struct Tee<'a, R: ?Sized, W> {
    pub(super) source: &'a mut R,
    pub(super) copy: &'a mut W,
}

impl<R: Read + ?Sized, W: Write> Read for Tee<'_, R, W> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.copy.write_all(&buffer[..count]).map_err(|error| {
            io::Error::other(files::storage_error(
                "cannot write a layer to the store".to_owned(),
                error,
            ))
        })?;
        Ok(count)
    }
}

/// Writes to `inner`, hashing and counting.
pub(crate) struct HashingWriter<W> {
    inner: W,
    hasher: Hasher,
    count: u64,
}

impl<W: Write> HashingWriter<W> {
    pub(crate) fn new(inner: W) -> HashingWriter<W> {
        HashingWriter {
            inner,
            hasher: Hasher::default(),
            count: 0,
        }
    }

    pub(crate) fn finish(self) -> (Digest, u64) {
        (self.hasher.finish(), self.count)
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.count += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// One of the compressions as a writer.
enum Encoder<'a> {
    None(HashingWriter<&'a File>),
    Gzip(Box<flate2::write::GzEncoder<HashingWriter<&'a File>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, HashingWriter<&'a File>>>),
}

impl<'a> Encoder<'a> {
    fn new(writer: HashingWriter<&'a File>, compression: Compression) -> Result<Encoder<'a>> {
        Ok(match compression {
            Compression::None => Encoder::None(writer),
            Compression::Gzip => Encoder::Gzip(Box::new(flate2::write::GzEncoder::new(
                writer,
                flate2::Compression::default(),
            ))),
            Compression::Zstd => Encoder::Zstd(Box::new(
                zstd::stream::write::Encoder::new(writer, 3)
                    .map_err(|error| Error::io("cannot compress a layer", error))?,
            )),
        })
    }

    fn finish(self) -> Result<HashingWriter<&'a File>> {
        let failed = |error| files::storage_error("cannot write a layer to the store".to_owned(), error);
        match self {
            Encoder::None(writer) => Ok(writer),
            Encoder::Gzip(encoder) => encoder.finish().map_err(failed),
            Encoder::Zstd(encoder) => encoder.finish().map_err(failed),
        }
    }
}

impl Write for Encoder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::None(writer) => writer.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
