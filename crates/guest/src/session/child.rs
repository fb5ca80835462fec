//! A process inside, as the host holds it.

use std::sync::{Arc, Mutex, PoisonError};

use luna_core::process::{ExitStatus, TerminalSize};
use luna_core::{Error, Result};

use crate::protocol::{Reply, Request, Scope};

use super::explain;
use super::link::Handle;
use super::stream::{StreamReader, StreamWriter};

/// A running process and its standard streams. Its exit is reported only after its output was taken: read `stdout` and
/// `stderr` to their end, or drop them.
#[derive(Debug)]
pub struct Child {
    /// Where the process asked for standard input.
    pub stdin: Option<StreamWriter>,
    /// With a terminal, everything it shows.
    pub stdout: StreamReader,
    /// Without a terminal.
    pub stderr: Option<StreamReader>,
    handle: ChildHandle,
}

impl Child {
    pub(super) fn new(stream: &Handle, errors: Option<&Handle>, stdin: bool, pid: u32) -> Child {
        Child {
            stdin: stdin.then(|| StreamWriter::new(stream)),
            stdout: StreamReader::new(stream),
            stderr: errors.map(StreamReader::new),
            handle: ChildHandle {
                stream: stream.clone(),
                pid,
                exit: Arc::default(),
            },
        }
    }

    /// A handle for other threads.
    pub fn handle(&self) -> ChildHandle {
        self.handle.clone()
    }
}

/// What can be done to a process from any thread. Dropping every handle does nothing to it.
#[derive(Clone, Debug)]
pub struct ChildHandle {
    stream: Handle,
    pid: u32,
    exit: Arc<Mutex<Option<ExitStatus>>>,
}

impl ChildHandle {
    /// Its id in the sandbox. Not to be believed in matters of the host's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the process; [`luna_core::Kind::NotFound`] where it has ended.
    pub fn signal(&self, signal: u8) -> Result<()> {
        self.deliver(signal, Scope::Process)
    }

    /// Sends a signal to the process group that the process was started in.
    pub fn signal_group(&self, signal: u8) -> Result<()> {
        self.deliver(signal, Scope::Group)
    }

    fn deliver(&self, signal: u8, scope: Scope) -> Result<()> {
        let process = self.stream.stream().id;
        self.ask(&Request::Signal {
            process,
            signal,
            scope,
        })
        .map_err(|error| error.context("cannot signal the process"))
    }

    /// Sets the terminal's size.
    pub fn resize(&self, size: TerminalSize) -> Result<()> {
        let process = self.stream.stream().id;
        self.ask(&Request::Resize { process, size })
            .map_err(|error| error.context("cannot resize the terminal"))
    }

    /// Blocks until the process has ended and its output was taken; see [`Child`]. Any number of threads may wait, any
    /// number of times.
    pub fn wait(&self) -> Result<ExitStatus> {
        // Whoever waits first takes the reply while the others wait for the lock.
        let mut exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(status) = *exit {
            return Ok(status);
        }
        match self.stream.wait_reply(None)? {
            Reply::Exited(status) => {
                *exit = Some(status);
                Ok(status)
            }
            _ => Err(self.stream.link().close(Some("a reply out of place"))),
        }
    }

    fn ask(&self, request: &Request) -> Result<(), Error> {
        let link = self.stream.link();
        let (stream, _) = link.request(request, false)?;
        match stream.reply()? {
            Reply::Done => Ok(()),
            Reply::Failed(failure) => Err(explain::other(&failure)),
            _ => Err(link.close(Some("a reply out of place"))),
        }
    }
}
