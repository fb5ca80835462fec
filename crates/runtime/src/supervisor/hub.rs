//! The clients that watch the main process: everything it prints goes to each of them.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Ended;
use crate::control::frame::{self, FrameKind};

/// How long a client may keep the program waiting before it is let go: long enough for a terminal that is held, short
/// enough that a client that was stopped does not freeze a sandbox.
const PATIENCE: Duration = Duration::from_secs(30);

/// One attached client.
pub(crate) struct Watcher {
    writer: Mutex<UnixStream>,
    /// The same socket past the lock, to end a write that is stuck.
    handle: UnixStream,
}

impl Watcher {
    pub(crate) fn new(stream: &UnixStream) -> std::io::Result<Arc<Watcher>> {
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Arc::new(Watcher {
            writer: Mutex::new(stream.try_clone()?),
            handle: stream.try_clone()?,
        }))
    }

    fn writer(&self) -> MutexGuard<'_, UnixStream> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attached clients. A slow one slows the program, as a terminal does; one that left, or stands still, is forgotten.
#[derive(Default)]
pub(crate) struct Hub {
    watchers: Mutex<Vec<Arc<Watcher>>>,
}

impl Hub {
    pub(crate) fn add(&self, watcher: Arc<Watcher>) {
        self.watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(watcher);
    }

    pub(crate) fn remove(&self, watcher: &Arc<Watcher>) {
        self.watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|known| !Arc::ptr_eq(known, watcher));
    }

    pub(crate) fn publish(&self, kind: FrameKind, bytes: &[u8]) {
        let watchers = self
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for watcher in watchers {
            let sent = frame::write(&mut *watcher.writer(), kind, bytes);
            if sent.is_err() {
                self.remove(&watcher);
            }
        }
    }

    pub(crate) fn end(&self, ended: &Ended) {
        for watcher in &*self.watchers.lock().unwrap_or_else(PoisonError::into_inner) {
            let mut stream = watcher.writer();
            let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = frame::write_json(&mut *stream, FrameKind::Exit, ended);
        }
    }

    /// Lets go of clients that do not read: a program that was killed must not wait for them.
    pub(crate) fn drop_all(&self) {
        for watcher in self
            .watchers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            let _ = watcher.handle.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Waits until every client has read its last frame and left, for at most `bound`.
    pub(crate) fn farewell(&self, bound: Duration) {
        use std::io::Read;
        let until = Instant::now() + bound;
        let watchers = std::mem::take(&mut *self.watchers.lock().unwrap_or_else(PoisonError::into_inner));
        for watcher in watchers {
            let mut stream = watcher.writer();
            let left = until
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let _ = stream.set_read_timeout(Some(left));
            let mut rest = [0; 256];
            while matches!(stream.read(&mut rest), Ok(1..)) {}
        }
    }
}
