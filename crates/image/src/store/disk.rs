//! An image as a disk: made from the layers' blobs, once, and kept as long as an image needs it.
//!
//! The name is the digest of the diff ids in their order, so images of the same layers share a disk whatever they are
//! compressed with. One process at a time makes a disk; the others wait and find it.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

use super::Store;
use super::ingest::{Expected, HashingWriter, Tee, check_blob, check_diff_id};
use crate::erofs::{self, DiskBuilder, Owed};
use crate::files::{self, Temporary};
use crate::layer::archive::Archive;
use crate::layer::{self, ChunkReader, Compression, Decoder};
use crate::{Digest, Hasher, Image, Layer};

/// Part of a disk's name: another way to write disks is another disk.
const FORM: &[u8] = b"luna-erofs-1\n";
/// Bytes of blobs between two reports.
const REPORT_EVERY: u64 = 1 << 20;

impl Store {
    /// The image's root file system as a read-only EROFS disk, made from its verified blobs where it is not here yet.
    /// The file is immutable; who holds it open keeps it, even when the image goes.
    pub fn disk(&self, image: &Image, progress: Sink) -> Result<PathBuf> {
        let name = disk_name(&image.layers);
        let path = self.disk_path(name);
        // A disk that is here and whole costs one read.
        if is_here(&path) {
            return Ok(path);
        }
        let failed = |error: Error| error.context(format!("cannot make the disk of `{}`", image.name()));
        let _hold = self.hold()?;
        files::create_private_directory(&self.disks())?;
        let _lock = files::lock(
            &self.disks().join(format!("{}.lock", name.hex())),
            FlockOperation::LockExclusive,
        )?;
        if is_here(&path) {
            return Ok(path);
        }
        let report = Report::new(image, progress);
        let temporary = Temporary::file(&self.disks())?;
        self.write_disk(image, name, temporary.handle(), &report)
            .map_err(|error| {
                let again =
                    matches!(error.kind(), Kind::Corrupt | Kind::NotFound) && error.hint_text().is_none();
                match again {
                    true => failed(error).hint(format!("luna pull {}", image.name())),
                    false => failed(error),
                }
            })?;
        let flushed = temporary.handle().sync_all();
        flushed.map_err(|error| failed(files::storage_error("cannot flush a disk".to_owned(), error)))?;
        temporary.publish(&path)?;
        File::open(self.disks())
            .and_then(|directory| directory.sync_all())
            .map_err(|error| failed(files::storage_error("cannot flush a disk".to_owned(), error)))?;
        report.finished();
        Ok(path)
    }

    fn write_disk(&self, image: &Image, name: Digest, file: &File, report: &Report<'_>) -> Result<()> {
        let mut builder = DiskBuilder::new(file, &self.0.limits);
        for layer in image.layers.iter().rev() {
            let owed = self.read_layer(layer, report, |archive| builder.add(archive))?;
            if !owed.is_empty() {
                self.read_layer(layer, report, |archive| builder.settle(archive, &owed))?;
            }
        }
        if image.layers.is_empty() {
            let empty: Owed = builder.add(&mut Archive::new(io::empty()))?;
            debug_assert!(empty.is_empty());
        }
        builder.finish(erofs::uuid(&name.first_half()))
    }

    /// Gives a layer's archive to `consume`, in a thread of its own. Both digests hold when it succeeds.
    fn read_layer<T: Send>(
        &self,
        layer: &Layer,
        report: &Report<'_>,
        consume: impl FnOnce(&mut Archive<ChunkReader>) -> Result<T> + Send,
    ) -> Result<T> {
        let expected = Expected::of(layer);
        let mut source = report.reader(self.open_blob(layer.digest)?, layer);
        let mut hasher = HashingWriter::new(io::sink());
        let mut tee = Tee {
            source: &mut source,
            copy: &mut hasher,
        };
        let decode = || -> Result<_> {
            let compression = Compression::of_media_type(&layer.media_type)?;
            let mut bounded = (&mut tee).take(layer.size.saturating_add(1));
            let mut decoder = Decoder::new(&mut bounded, compression, &self.0.limits)?;
            let answer = layer::pipe(&mut decoder, &self.0.limits, consume)?;
            drop(decoder);
            io::copy(&mut bounded, &mut io::sink()).map_err(layer::archive::reading)?;
            Ok(answer)
        };
        let outcome = decode();
        if outcome.is_err() {
            // A wrong digest explains any other complaint; the rest must pass to compute it.
            let _ = io::copy(&mut tee, &mut io::sink());
        }
        let (digest, size) = hasher.finish();
        check_blob(expected, digest, size, outcome.is_err())?;
        let (answer, fed) = outcome?;
        check_diff_id(expected, fed.diff_id)?;
        Ok(answer)
    }

    pub(super) fn disks(&self) -> PathBuf {
        self.0.root.join("disks")
    }

    pub(super) fn disk_path(&self, name: Digest) -> PathBuf {
        self.disks().join(format!("{}.erofs", name.hex()))
    }
}

/// What the disk of these layers, bottom first, is called.
pub(super) fn disk_name(layers: &[Layer]) -> Digest {
    let mut hasher = Hasher::default();
    hasher.update(FORM);
    for layer in layers {
        hasher.update(layer.diff_id.to_string().as_bytes());
        hasher.update(b"\n");
    }
    hasher.finish()
}

fn is_here(path: &std::path::Path) -> bool {
    File::open(path).is_ok_and(|file| erofs::is_whole(&file).unwrap_or(false))
}

/// Tells how much of the blobs was read.
struct Report<'a> {
    key: String,
    label: String,
    progress: Sink<'a>,
    total: u64,
    done: std::sync::atomic::AtomicU64,
}

impl<'a> Report<'a> {
    fn new(image: &Image, progress: Sink<'a>) -> Report<'a> {
        let key = format!("disk {}", image.id.short());
        let label = format!("Making the disk of {}", image.name());
        let total = image.layers.iter().map(|layer| layer.size).sum();
        progress(Progress::Started {
            key: key.clone(),
            label: label.clone(),
            total: Some(total),
        });
        Report {
            key,
            label,
            progress,
            total,
            done: 0.into(),
        }
    }

    fn reader(&'a self, file: File, layer: &Layer) -> ReportingReader<'a> {
        ReportingReader {
            file,
            report: self,
            left: layer.size,
            unreported: 0,
        }
    }

    fn advance(&self, bytes: u64) {
        use std::sync::atomic::Ordering;
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(Progress::Advanced {
            key: self.key.clone(),
            // A layer that is read twice counts once.
            done: done.min(self.total),
        });
    }

    fn finished(self) {
        (self.progress)(Progress::Finished {
            key: self.key,
            label: self.label,
        });
    }
}

struct ReportingReader<'a> {
    file: File,
    report: &'a Report<'a>,
    left: u64,
    unreported: u64,
}

impl Read for ReportingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.unreported += count as u64;
        self.left = self.left.saturating_sub(count as u64);
        if self.unreported >= REPORT_EVERY || self.left == 0 {
            self.report.advance(std::mem::take(&mut self.unreported));
        }
        Ok(count)
    }
}
