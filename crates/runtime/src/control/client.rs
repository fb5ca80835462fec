//! The client's end of a supervisor's control socket.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use luna_core::engine::Usage;
use luna_core::error::Report;
use luna_core::isolation::Isolation;
use luna_core::process::{Process, TerminalSize};
use luna_core::spec::{Resources, RestartPolicy};
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::{FileStatus, GuestProcess};
use serde::de::DeserializeOwned;

use super::frame::{self, FrameKind};
use super::{Attach, Ended, Request, SOCKET};

/// A connection to one supervisor; good for one request.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the supervisor of the sandbox in `directory`. The path goes through a directory fd, so that it may
    /// be longer than a socket address holds.
    pub(crate) fn connect(directory: &Path) -> io::Result<Client> {
        use std::os::fd::AsRawFd;
        let directory = std::fs::File::open(directory)?;
        let stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))?;
        Ok(Client { stream })
    }

    pub(crate) fn over(stream: UnixStream) -> Client {
        Client { stream }
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        // A supervisor that refused before it was asked has said why and left.
        let asked = frame::write_json(&mut self.stream, FrameKind::Request, request);
        let mut payload = Vec::new();
        let answer = match (asked, frame::read(&mut self.stream, &mut payload)) {
            (_, Ok(Some(answer))) => Some(answer),
            (Err(error), _) | (Ok(()), Err(error)) => return Err(lost(error)),
            (Ok(()), Ok(None)) => None,
        };
        match answer {
            Some(FrameKind::Ok) => frame::parse(&payload),
            Some(FrameKind::Error) => Err(frame::parse::<Report>(&payload)?.into()),
            Some(_) => Err(Error::new(
                Kind::Corrupt,
                "cannot understand the supervisor's answer",
            )),
            None => Err(lost(io::ErrorKind::UnexpectedEof.into())),
        }
    }

    fn stream(self) -> Result<Stream> {
        let output = self.stream.try_clone().map_err(lost)?;
        Ok(Stream {
            input: Input {
                stream: Arc::new(Mutex::new(self.stream)),
            },
            output: Output {
                stream: output,
                payload: Vec::new(),
            },
        })
    }

    /// Starts the sandbox; only on the socket its supervisor was born with. `None` where nothing was attached.
    pub(crate) fn launch(mut self, attach: Option<Attach>) -> Result<Option<Stream>> {
        self.ask::<()>(&Request::Launch { attach })?;
        attach.map(|_| self.stream()).transpose()
    }

    pub fn attach(mut self, attach: Attach) -> Result<Stream> {
        self.ask::<()>(&Request::Attach(attach))?;
        self.stream()
    }

    /// Runs one more program inside; its streams, or `None` where it was detached.
    pub fn exec(mut self, process: Process, detach: bool) -> Result<Option<Stream>> {
        self.ask::<()>(&Request::Exec {
            process: Box::new(process),
            detach,
        })?;
        if detach { Ok(None) } else { self.stream().map(Some) }
    }

    pub fn signal(mut self, signal: u8) -> Result<()> {
        self.ask(&Request::Signal { signal })
    }

    /// Returns when the sandbox has ended.
    pub fn stop(mut self, signal: Option<u8>, grace: Option<Duration>) -> Result<Ended> {
        self.ask(&Request::Stop { signal, grace })
    }

    /// Returns when the sandbox has ended for good: not while a restart policy brings it back.
    pub fn wait(mut self) -> Result<Ended> {
        self.ask(&Request::Wait)
    }

    pub fn pause(mut self) -> Result<()> {
        self.ask(&Request::Pause)
    }

    pub fn resume(mut self) -> Result<()> {
        self.ask(&Request::Resume)
    }

    pub fn usage(mut self) -> Result<Usage> {
        self.ask(&Request::Usage)
    }

    pub fn processes(mut self) -> Result<Vec<GuestProcess>> {
        self.ask(&Request::Processes)
    }

    /// What stands round the sandbox, measured now.
    pub fn isolation(mut self) -> Result<Isolation> {
        self.ask(&Request::Isolation)
    }

    pub fn update(mut self, resources: Resources, restart: Option<RestartPolicy>) -> Result<()> {
        self.ask(&Request::Update {
            resources: Box::new(resources),
            restart,
        })
    }

    /// `None` where nothing is at `path`.
    pub fn stat(mut self, path: &str) -> Result<Option<FileStatus>> {
        self.ask(&Request::Stat {
            path: path.to_owned(),
        })
    }

    /// A tar stream of what is at `path`: [`Event::Stdout`] pieces, then [`Event::Ended`]. Hostile: unpack it as a layer.
    pub fn copy_out(mut self, path: &str) -> Result<Stream> {
        self.ask::<()>(&Request::CopyOut {
            path: path.to_owned(),
        })?;
        self.stream()
    }

    /// Unpacks the tar stream written to the input into `directory`; the output ends with [`Event::Ended`] when all of
    /// it is there.
    pub fn copy_in(mut self, directory: &str, keep_ids: bool) -> Result<Stream> {
        self.ask::<()>(&Request::CopyIn {
            directory: directory.to_owned(),
            keep_ids,
        })?;
        self.stream()
    }
}

fn lost(error: io::Error) -> Error {
    Error::new(Kind::Unavailable, "cannot talk to the sandbox's supervisor").because(error)
}

/// Two directions of an attached program.
#[derive(Debug)]
pub struct Stream {
    pub input: Input,
    pub output: Output,
}

/// What goes in. Clones write to the same program; frames never mix.
#[derive(Clone, Debug)]
pub struct Input {
    stream: Arc<Mutex<UnixStream>>,
}

impl Input {
    fn send(&self, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&mut *stream, kind, payload)
    }

    /// Standard input, or a piece of a tar stream.
    pub fn write(&self, bytes: &[u8]) -> io::Result<()> {
        bytes
            .chunks(frame::PIECE)
            .try_for_each(|piece| self.send(FrameKind::Stdin, piece))
    }

    /// The end of standard input.
    pub fn finish(&self) -> io::Result<()> {
        self.send(FrameKind::Eof, &[])
    }

    pub fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write_json(&mut *stream, FrameKind::Resize, &size)
    }

    pub fn signal(&self, signal: u8) -> io::Result<()> {
        self.send(FrameKind::Signal, &[signal])
    }

    /// Leaves the program to itself.
    pub fn detach(&self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// What comes out.
#[derive(Debug)]
pub struct Output {
    stream: UnixStream,
    payload: Vec<u8>,
}

/// One thing that came out.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Stdout(&'a [u8]),
    Stderr(&'a [u8]),
    Ended(Ended),
}

impl Output {
    /// The next event; `None` after [`Input::detach`] or when the supervisor went away without a word.
    pub fn next_event(&mut self) -> Result<Option<Event<'_>>> {
        match frame::read(&mut self.stream, &mut self.payload).map_err(lost)? {
            Some(FrameKind::Stdout) => Ok(Some(Event::Stdout(&self.payload))),
            Some(FrameKind::Stderr) => Ok(Some(Event::Stderr(&self.payload))),
            Some(FrameKind::Exit) => frame::parse(&self.payload).map(|ended| Some(Event::Ended(ended))),
            Some(FrameKind::Error) => Err(frame::parse::<Report>(&self.payload)?.into()),
            Some(_) => Err(Error::new(Kind::Corrupt, "cannot understand the supervisor")),
            None => Ok(None),
        }
    }
}
