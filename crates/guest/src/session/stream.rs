//! One direction of a stream in the caller's hands.

use std::io::{self, Read, Write};
use std::sync::PoisonError;

use crate::protocol::{FrameKind, MAX_PAYLOAD, Reply, WINDOW};

use super::explain;
use super::link::Handle;
use super::table::{Ending, Inbound};

/// Credit is returned in pieces of at least this.
const RETURN: u32 = WINDOW / 4;

/// Bytes from inside. Reads block; 0 is the end. A direction that broke off (a connection's reset, a copy that failed) is
/// [`io::ErrorKind::ConnectionReset`], a session that is over [`io::ErrorKind::ConnectionAborted`]. Dropped early, it tells
/// the writer inside that nobody reads: a process gets `SIGPIPE`.
#[derive(Debug)]
pub struct StreamReader {
    handle: Handle,
    /// Taken and not yet given back as credit.
    taken: u32,
}

impl StreamReader {
    pub(super) fn new(handle: &Handle) -> StreamReader {
        StreamReader {
            handle: handle.clone(),
            taken: 0,
        }
    }
}

impl Read for StreamReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let stream = self.handle.stream();
        let mut state = stream.state();
        let count = loop {
            if !state.inbox.is_empty() {
                break state.inbox.read(buffer)?;
            }
            match state.inbound {
                Inbound::Complete | Inbound::Unwanted => return Ok(0),
                Inbound::Broken => {
                    return Err(match state.replies.front() {
                        Some(Reply::Failed(failure)) => {
                            let error = explain::path(failure, "");
                            io::Error::new(io::ErrorKind::ConnectionReset, error)
                        }
                        _ => io::ErrorKind::ConnectionReset.into(),
                    });
                }
                Inbound::Open => {}
            }
            if let Some(ending) = &state.ending {
                return Err(aborted(ending));
            }
            state = stream.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        self.taken += count as u32;
        if self.taken >= RETURN && state.inbound == Inbound::Open {
            let taken = std::mem::take(&mut self.taken);
            state.allowance += taken;
            drop(state);
            // A channel that broke is met by the next read.
            let _ = self.handle.send(FrameKind::Credit, &taken.to_le_bytes());
        }
        Ok(count)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        let mut state = self.handle.stream().state();
        let open = state.inbound == Inbound::Open && state.ending.is_none();
        if state.inbound == Inbound::Open {
            state.inbound = Inbound::Unwanted;
        }
        state.inbox = std::collections::VecDeque::new();
        drop(state);
        if open {
            let _ = self.handle.send(FrameKind::Stop, &[]);
        }
    }
}

/// Bytes to inside. Writes block while the reader inside is slow, and fail with [`io::ErrorKind::BrokenPipe`] once it
/// wants no more. [`StreamWriter::finish`] is the end of file; dropped without it, the direction breaks off: a
/// connection is reset, a copy discarded, a process' standard input closed.
#[derive(Debug)]
pub struct StreamWriter {
    handle: Handle,
    finished: bool,
}

impl StreamWriter {
    pub(super) fn new(handle: &Handle) -> StreamWriter {
        StreamWriter {
            handle: handle.clone(),
            finished: false,
        }
    }

    /// Says that everything was written. The other direction goes on.
    pub fn finish(mut self) -> io::Result<()> {
        self.finished = true;
        if self.handle.stream().state().stopped {
            return Ok(());
        }
        self.handle.send(FrameKind::End, &[]).map_err(io::Error::other)
    }
}

impl Write for StreamWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let stream = self.handle.stream();
        let mut state = stream.state();
        let count = loop {
            if let Some(ending) = &state.ending {
                return Err(aborted(ending));
            }
            if state.stopped {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let count = buffer.len().min(MAX_PAYLOAD).min(state.credit as usize);
            if count > 0 {
                break count;
            }
            state = stream.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.credit -= count as u32;
        drop(state);
        self.handle
            .send(FrameKind::Data, &buffer[..count])
            .map_err(io::Error::other)?;
        Ok(count)
    }

    /// Nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        let state = self.handle.stream().state();
        let open = !self.finished && !state.stopped && state.ending.is_none();
        drop(state);
        if open {
            let _ = self.handle.send(FrameKind::Reset, &[]);
        }
    }
}

fn aborted(ending: &Ending) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, ending.error())
}
