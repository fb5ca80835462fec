//! Layers: from an archive, compressed or not, to a directory in overlayfs' form, in one pass.
//!
//! ```text
//! caller's thread                                              confined thread (Landlock: the target, nothing else)
//! source ─▶ decompress ─▶ hash (diff id) ─▶ bounded channel ─▶ archive::Archive ─▶ tree::TreeWriter
//! ```
//! The caller's thread never touches the target, the confined one never the source. Decompression and writing overlap.

pub(crate) mod archive;
mod compression;
mod confine;
pub(crate) mod remove;
mod times;
pub(crate) mod tree;

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::mpsc;

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};

pub use compression::Compression;
pub(crate) use compression::{Decoder, sniff};

use crate::{Digest, Hasher};
use archive::Archive;
use tree::{Summary, TreeWriter};

/// What one layer may grow to. A bomb is refused when it passes the absolute limit, or the ratio once it is large.
#[derive(Clone, Debug)]
pub struct Limits {
    pub entries: u64,
    /// Of file content, holes included, and of the archive.
    pub bytes: u64,
    /// Unpacked bytes for each compressed one, judged above [`Limits::RATIO_FLOOR`].
    pub ratio: u64,
}

impl Limits {
    pub const RATIO_FLOOR: u64 = 1 << 30;

    /// The defaults, with `LUNA_LAYER_LIMIT` (a size such as `256g`) for the absolute limit where it is set.
    pub fn from_environment() -> Result<Limits> {
        let mut limits = Limits::default();
        if let Some(text) = std::env::var_os("LUNA_LAYER_LIMIT") {
            let text = text.to_string_lossy();
            limits.bytes = text
                .parse::<Bytes>()
                .map_err(|error| error.context("cannot use the variable `LUNA_LAYER_LIMIT`"))?
                .0;
        }
        Ok(limits)
    }
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            entries: 2_000_000,
            bytes: 64 << 30,
            ratio: 400,
        }
    }
}

/// Walks an archive without writing anything and counts its entries: what a fuzzer calls.
pub fn scan(bytes: &[u8]) -> Result<u64> {
    let mut archive = Archive::new(bytes);
    let mut entries = 0;
    let mut buffer = [0; 4096];
    while archive.next()?.is_some() {
        entries += 1;
        while archive.read_data(&mut buffer)? > 0 {}
    }
    Ok(entries)
}

/// The attribute that makes a directory hide the lower layers' one of the same name.
pub(crate) fn opaque_attribute(rootless: bool) -> &'static str {
    match rootless {
        true => "user.overlay.opaque",
        false => "trusted.overlay.opaque",
    }
}

/// Only what a sandbox may rightly carry: user attributes, file capabilities and ACLs. Overlay's own attributes would
/// rewrite the view of other layers.
pub(crate) fn is_allowed_attribute(name: &[u8]) -> bool {
    let user = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
    user || matches!(
        name,
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
    )
}

/// An archive that was unpacked.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) diff_id: Digest,
    /// Bytes of file content.
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    /// Bytes of the archive itself.
    pub(crate) archive: u64,
    pub(crate) skipped_devices: u64,
}

const CHUNK: usize = 256 << 10;
const CHUNKS_IN_FLIGHT: usize = 8;

/// Unpacks the uncompressed archive that `source` yields into the empty directory `target`, whose path is only used to
/// confine the thread that writes.
pub(crate) fn unpack(
    source: &mut dyn Read,
    target: OwnedFd,
    rootless: bool,
    limits: &Limits,
) -> Result<Unpacked> {
    let (summary, fed) = pipe(source, limits, |archive| -> Result<Summary> {
        confine::to_directory(&target)?;
        TreeWriter::new(target, rootless, limits).write_all(archive)
    })?;
    Ok(Unpacked {
        diff_id: fed.diff_id,
        bytes: summary.bytes,
        entries: summary.entries,
        archive: fed.archive,
        skipped_devices: summary.skipped_devices,
    })
}

/// Gives the uncompressed archive that `source` yields to `consume`, which reads all of it in a thread of its own while
/// the caller's decompresses and hashes ahead.
pub(crate) fn pipe<T: Send>(
    source: &mut dyn Read,
    limits: &Limits,
    consume: impl FnOnce(&mut Archive<ChunkReader>) -> Result<T> + Send,
) -> Result<(T, Fed)> {
    let (sender, receiver) = mpsc::sync_channel::<Vec<u8>>(CHUNKS_IN_FLIGHT);
    std::thread::scope(|scope| {
        let writer = std::thread::Builder::new()
            .name("unpack".to_owned())
            .spawn_scoped(scope, move || {
                consume(&mut Archive::new(ChunkReader::new(receiver)))
            })
            .map_err(|error| Error::io("cannot start a thread", error))?;
        let fed = feed(source, &sender, limits);
        drop(sender);
        let written: Result<T> = writer.join().unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Internal,
                "cannot unpack a layer: the thread that writes panicked",
            ))
        });
        // When the source failed, what the writer says is only an echo of it.
        let fed = fed?;
        let written = written?;
        match fed.complete {
            true => Ok((written, fed)),
            false => Err(Error::new(
                Kind::Internal,
                "cannot unpack a layer: the writer left early",
            )),
        }
    })
}

/// What passed to the writer; not `complete` when that one hung up before the end.
pub(crate) struct Fed {
    pub(crate) diff_id: Digest,
    archive: u64,
    complete: bool,
}

/// Reads `source` to its end, hashing.
fn feed(source: &mut dyn Read, sender: &mpsc::SyncSender<Vec<u8>>, limits: &Limits) -> Result<Fed> {
    let mut hasher = Hasher::default();
    let mut total = 0u64;
    loop {
        let mut chunk = vec![0; CHUNK];
        let count = read_full(source, &mut chunk).map_err(archive::reading)?;
        if count == 0 {
            return Ok(Fed {
                diff_id: hasher.finish(),
                archive: total,
                complete: true,
            });
        }
        chunk.truncate(count);
        hasher.update(&chunk);
        total += count as u64;
        // Headers and padding come on top of what the writer counts.
        if total > limits.bytes.saturating_add(limits.entries.saturating_mul(1536)) {
            return Err(Error::new(Kind::Exhausted, "cannot unpack more of this layer")
                .because(format!("its archive is longer than {}", Bytes(limits.bytes)))
                .hint(
                    "if you trust this image, raise the limit with LUNA_LAYER_LIMIT (for example `256g`)",
                ));
        }
        if sender.send(chunk).is_err() {
            return Ok(Fed {
                diff_id: hasher.finish(),
                archive: total,
                complete: false,
            });
        }
    }
}

/// Fills as much of `buffer` as there is.
pub(crate) fn read_full(source: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// The receiving end of the channel as a stream.
pub(crate) struct ChunkReader {
    receiver: mpsc::Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
}

impl ChunkReader {
    fn new(receiver: mpsc::Receiver<Vec<u8>>) -> ChunkReader {
        ChunkReader {
            receiver,
            chunk: Vec::new(),
            at: 0,
        }
    }
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk, 0),
                Err(mpsc::RecvError) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
