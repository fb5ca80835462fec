//! Layers over the network: three at a time, resumable, unpacked while they arrive.
//!
//! ```text
//! fetcher ──writes──▶ blobs/sha256/.part-<hex> ──read by──▶ Follower ─▶ Store (decompress, unpack, diff id)
//!    └── announces how far it is, and in the end whether the digest holds ──┘
//! ```
//! A part outlives a broken connection, a stall and a killed process; the next pull hashes what is there and asks for
//! the rest. It is flocked while someone fetches it, so two pulls of one layer wait for each other. Nothing is
//! published before digest and diff id hold.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

use super::connection::Connection;
use crate::{Hasher, Layer, Store, files};

const PARALLEL: usize = 3;
/// Broken connections in a row, without a byte between them, before giving up.
const ATTEMPTS: u32 = 5;
const REPORT_EVERY: u64 = 256 << 10;

/// Brings every layer that is not here yet. The first failure stops the rest, which keep what they have.
pub(super) fn layers(store: &Store, connection: &Connection, layers: &[Layer], progress: Sink) -> Result<()> {
    let mut wanted: VecDeque<&Layer> = VecDeque::new();
    for layer in layers {
        if store.is_verified(layer) || wanted.iter().any(|other| other.digest == layer.digest) {
            continue;
        }
        wanted.push_back(layer);
    }
    let workers = PARALLEL.min(wanted.len());
    let queue = Mutex::new(wanted);
    let first_error = Mutex::new(None);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some(layer) = next else { return };
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(error) = one(store, connection, layer, &stop, progress) {
                        stop.store(true, Ordering::Relaxed);
                        first_error
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .get_or_insert(error);
                    }
                }
            });
        }
    });
    match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn one(
    store: &Store,
    connection: &Connection,
    layer: &Layer,
    stop: &AtomicBool,
    progress: Sink,
) -> Result<()> {
    if store.blob_path(layer.digest).is_file() {
        match store.unpack_blob(layer, progress) {
            // A disk or a power cut damaged it; the registry still has it whole.
            Err(error) if error.kind() == Kind::Corrupt && store.discard_if_damaged(layer.digest)? => {}
            outcome => return outcome,
        }
    }
    let key = layer.digest.short();
    progress(Progress::Started {
        key: key.clone(),
        label: format!("Pulling {key}"),
        total: Some(layer.size),
    });
    let path = store.blobs().join(format!(".part-{}", layer.digest.hex()));
    let _lock = lock_part(&path)?;
    if store.is_verified(layer) {
        // Another pull brought it while this one waited.
        let _ = std::fs::remove_file(&path);
        return Ok(());
    }
    let state = State::default();
    let (fetched, added) = std::thread::scope(|scope| {
        let fetcher = scope.spawn(|| {
            let fetched = fetch(connection, layer, &path, &state, stop, progress);
            state.finish(fetched.is_ok());
            fetched
        });
        let added = Follower::open(&path, &state)
            .and_then(|mut follower| store.add_part(&mut follower, layer, &path, progress));
        if let Err(error) = &added {
            // A complaint about the bytes waits for the digest, which explains it; any other ends the download.
            if error.kind() != Kind::Corrupt {
                stop.store(true, Ordering::Relaxed);
            }
        }
        let fetched = fetcher.join().unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Internal,
                "cannot download a layer: the thread panicked",
            ))
        });
        (fetched, added)
    });
    match (fetched, added) {
        (Ok(()), added) => {
            added?;
            progress(Progress::Finished {
                key: key.clone(),
                label: format!("Pulled {key}"),
            });
            Ok(())
        }
        (Err(error), Err(own)) if error.kind() == Kind::Interrupted && own.kind() != Kind::Unavailable => {
            Err(own)
        }
        (Err(error), _) => Err(error),
    }
}

/// Waits for the lock on the part. Whoever had it may have renamed or removed the file meanwhile: then what is locked
/// is no longer what the name means, and it is tried again.
fn lock_part(path: &Path) -> Result<OwnedFd> {
    use std::os::unix::fs::MetadataExt;
    loop {
        let locked = files::lock(path, FlockOperation::LockExclusive)?;
        let own = rustix::fs::fstat(&locked)
            .map_err(|error| Error::io(format!("cannot lock `{}`", path.display()), error))?;
        let named = path.metadata();
        if named.is_ok_and(|named| (named.dev(), named.ino()) == (own.st_dev, own.st_ino)) {
            return Ok(locked);
        }
    }
}

/// Fills the part at `path` to the layer's size and checks its digest. A part with a wrong digest is removed.
fn fetch(
    connection: &Connection,
    layer: &Layer,
    path: &Path,
    state: &State,
    stop: &AtomicBool,
    progress: Sink,
) -> Result<()> {
    let failed = |error| {
        files::storage_error(
            format!("cannot write the layer `{}`", layer.digest.short()),
            error,
        )
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let mut hasher = Hasher::default();
    let mut done = hash_existing(&mut file, layer.size, &mut hasher).map_err(failed)?;
    state.advance(done);
    let mut report = Report {
        key: layer.digest.short(),
        reported: 0,
        progress,
    };
    let mut attempts = 0;
    let mut asked = false;
    while done < layer.size || !asked && layer.size == 0 {
        asked = true;
        let before = done;
        let answer = connection.runtime.block_on(async {
            let mut answer = connection.blob(layer.digest, done).await?;
            if let Some(length) = answer.response.content_length()
                && answer.start + length != layer.size
            {
                return Err(wrong(
                    layer,
                    format!(
                        "the registry offers {} bytes where the manifest says {}",
                        answer.start + length,
                        layer.size
                    ),
                ));
            }
            // A registry without ranges begins again; what is here already passes by.
            let mut skip = done - answer.start;
            while let Some(chunk) = connection.chunk(&mut answer.response).await? {
                if stop.load(Ordering::Relaxed) {
                    return Err(Error::new(Kind::Interrupted, "cannot finish a download")
                        .because("another part of the pull failed"));
                }
                let skipped = skip.min(chunk.len() as u64);
                skip -= skipped;
                let chunk = &chunk[skipped as usize..];
                if done + chunk.len() as u64 > layer.size {
                    return Err(wrong(
                        layer,
                        format!("it is larger than the {} bytes promised", layer.size),
                    ));
                }
                file.write_all(chunk).map_err(failed)?;
                hasher.update(chunk);
                done += chunk.len() as u64;
                state.advance(done);
                report.at(done);
            }
            Ok(())
        });
        match answer {
            Ok(()) if done == layer.size => break,
            // A body that ends early without a word is a broken connection too.
            Ok(()) => {}
            Err(error) if error.kind() == Kind::Unavailable => {
                attempts = if done > before { 0 } else { attempts + 1 };
                if attempts >= ATTEMPTS {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(100 << attempts));
                continue;
            }
            Err(error) => return Err(error),
        }
        attempts = if done > before { 0 } else { attempts + 1 };
        if attempts >= ATTEMPTS {
            return Err(Error::new(
                Kind::Unavailable,
                format!("cannot download the layer `{}`", layer.digest.short()),
            )
            .because(format!(
                "the registry ends it after {done} of {} bytes",
                layer.size
            ))
            .hint("try again: what has arrived is kept"));
        }
    }
    let digest = hasher.finish();
    if digest != layer.digest {
        let _ = std::fs::remove_file(path);
        return Err(wrong(layer, format!("its content has the digest `{digest}`")));
    }
    Ok(())
}

fn wrong(layer: &Layer, why: String) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("cannot accept the layer `{}`", layer.digest.short()),
    )
    .because(why)
    .hint("try again; if it stays like this, the registry or a proxy before it damages what it serves")
}

/// What an earlier pull left; more than the whole is thrown away.
fn hash_existing(file: &mut File, size: u64, hasher: &mut Hasher) -> io::Result<u64> {
    if file.metadata()?.len() > size {
        file.set_len(0)?;
    }
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        done += count as u64;
    }
    file.seek(SeekFrom::Start(done))?;
    Ok(done)
}

struct Report<'a> {
    key: String,
    reported: u64,
    progress: Sink<'a>,
}

impl Report<'_> {
    fn at(&mut self, done: u64) {
        if done - self.reported >= REPORT_EVERY {
            self.reported = done;
            (self.progress)(Progress::Advanced {
                key: self.key.clone(),
                done,
            });
        }
    }
}

/// How far the fetcher is.
#[derive(Default)]
struct State {
    now: Mutex<Now>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct Now {
    available: u64,
    /// The fetcher is through, and whether the digest held.
    finished: Option<bool>,
}

impl State {
    fn advance(&self, available: u64) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).available = available;
        self.changed.notify_all();
    }

    fn finish(&self, good: bool) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).finished = Some(good);
        self.changed.notify_all();
    }

    /// Waits until there is something past `position` or the end.
    fn wait(&self, position: u64) -> Now {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        *self
            .changed
            .wait_while(now, |now| now.available <= position && now.finished.is_none())
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a part while it grows; its end is reached only when the whole has arrived and its digest holds.
struct Follower<'a> {
    file: File,
    position: u64,
    state: &'a State,
}

impl<'a> Follower<'a> {
    fn open(path: &Path, state: &'a State) -> Result<Follower<'a>> {
        let file = File::open(path)
            .map_err(|error| Error::io(format!("cannot read `{}`", path.display()), error))?;
        Ok(Follower {
            file,
            position: 0,
            state,
        })
    }
}

impl Read for Follower<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let now = self.state.wait(self.position);
        let room = usize::try_from(now.available - self.position).unwrap_or(usize::MAX);
        if room > 0 {
            let room = room.min(buffer.len());
            let count = self.file.read(&mut buffer[..room])?;
            self.position += count as u64;
            return Ok(count);
        }
        match now.finished {
            Some(true) => Ok(0),
            _ => Err(io::Error::other(Error::new(
                Kind::Unavailable,
                "cannot unpack a layer whose download failed",
            ))),
        }
    }
}
