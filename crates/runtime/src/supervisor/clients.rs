//! Connections to the supervisor: accepted on `control.sock`, one thread and one request each.

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luna_core::{Error, Result};

use super::hub::Watcher;
use super::live::Shared;
use super::{STACK, requests};
use crate::control::Attach;
use crate::control::frame::{self, FrameKind};

/// How long a connection may take to say what it wants.
const PATIENCE: Duration = Duration::from_secs(5);

/// Requests being answered; the supervisor leaves when none is left, or when it has waited long enough.
#[derive(Default)]
pub(crate) struct Clients {
    busy: Mutex<usize>,
    idle: Condvar,
}

impl Clients {
    pub(crate) fn farewell(&self, bound: Duration) {
        let until = Instant::now() + bound;
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while *busy > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            busy = self
                .idle
                .wait_timeout(busy, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn change(&self, by: isize) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        *busy = busy.saturating_add_signed(by);
        self.idle.notify_all();
    }
}

/// Accepts until the listener is shut down.
pub(crate) fn serve(shared: &Arc<Shared>, listener: UnixListener) -> Result<()> {
    let shared = Arc::clone(shared);
    let accept = move || {
        for stream in listener.incoming() {
            let stream = match stream {
                Ok(stream) => stream,
                // What accept(2) says of a socket that does not listen any more.
                Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => return,
                Err(_) => {
                    thread::sleep(Duration::from_millis(20));
                    continue;
                }
            };
            let answering = Arc::clone(&shared);
            shared.clients.change(1);
            let spawned = thread::Builder::new()
                .name("client".to_owned())
                .stack_size(STACK)
                .spawn(move || {
                    answer(&answering, stream);
                    answering.clients.change(-1);
                });
            if spawned.is_err() {
                shared.clients.change(-1);
            }
        }
    };
    thread::Builder::new()
        .name("server".to_owned())
        .stack_size(STACK)
        .spawn(accept)
        .map(drop)
        .map_err(|e| Error::io("cannot serve the control socket", e))
}

fn answer(shared: &Arc<Shared>, mut stream: UnixStream) {
    let _ = stream.set_read_timeout(Some(PATIENCE));
    let mut payload = Vec::new();
    let Ok(Some(FrameKind::Request)) = frame::read(&mut stream, &mut payload) else {
        return;
    };
    let _ = stream.set_read_timeout(None);
    let outcome = frame::parse(&payload).and_then(|request| requests::answer(shared, request, &mut stream));
    if let Err(error) = outcome {
        let _ = frame::write_json(&mut stream, FrameKind::Error, &error.report());
    }
}

/// Joins a client whose request was answered with OK to the main process, on a thread of its own.
pub(crate) fn attached(shared: &Arc<Shared>, stream: UnixStream, attach: Attach) {
    let joined = Arc::clone(shared);
    let Ok(watcher) = Watcher::new(&stream) else {
        return;
    };
    shared.hub.add(Arc::clone(&watcher));
    let spawned = thread::Builder::new()
        .name("attached".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            requests::forward_input(&joined, stream, attach);
        });
    if spawned.is_err() {
        shared.hub.remove(&watcher);
    }
}
