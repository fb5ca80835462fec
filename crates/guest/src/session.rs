//! The host's end: one session with one init, used by a sandbox's supervisor from as many threads as it likes.
//!
//! ```text
//! callers ──frame──▶ writer lock ──▶ channel ──▶ init
//! callers ◀─ stream: inbox, replies, credit ◀── reader thread ◀── channel
//! ```
//!
//! One reader thread per session hands frames to streams and never waits for anybody, so a stream that nobody reads
//! stops at its window and disturbs no other. Everything init says is hostile: what the protocol does not allow ends
//! the session with [`Kind::Corrupt`], and per stream no more than [`crate::protocol::WINDOW`] bytes and two replies
//! are kept. Handles ([`Child`], [`StreamReader`], [`StreamWriter`]) keep the session alive; when the last of them and of
//! the [`Session`]s is gone the channel closes, and init kills everything behind the wall.

mod child;
mod copy;
mod explain;
mod link;
mod stream;
mod table;

pub use child::{Child, ChildHandle};
pub use copy::CopyIn;
pub use stream::{StreamReader, StreamWriter};
pub use table::absorb;

use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use luna_core::process::Process;
use luna_core::{Error, Kind, Result};

use crate::protocol::{FileStatus, GuestProcess, Ownership, Reply, Request, Surroundings, Violation, decode};

use link::{Handle, Link};

/// A list of processes longer than this is refused.
const MAX_LIST: u64 = 16 * 1024 * 1024;

/// See the module. Clones are the same session.
#[derive(Clone, Debug)]
pub struct Session {
    link: Arc<Link>,
}

impl Session {
    /// Greets init over `channel`, a stream socket, and waits at most ten seconds for its answer.
    pub fn open(channel: OwnedFd) -> Result<Session> {
        Ok(Session {
            link: Link::open(channel)?,
        })
    }

    /// Starts the main process: when it ends, init reports it, kills everything else and exits with its code. Returns
    /// once the program runs.
    pub fn start(&self, main: &Process) -> Result<Child> {
        self.launch(&Request::Start(main.clone()), main)
    }

    /// Starts one more process; its end ends nothing else.
    pub fn exec(&self, process: &Process) -> Result<Child> {
        self.launch(&Request::Exec(process.clone()), process)
    }

    /// Connects to a TCP port inside, on 127.0.0.1 or else ::1. Each direction ends by itself; a reset inside is an error
    /// of the reader here, and a writer dropped without [`StreamWriter::finish`] is a reset inside.
    pub fn connect(&self, port: u16) -> Result<(StreamReader, StreamWriter)> {
        let (stream, _) = self.link.request(&Request::Connect { port }, false)?;
        // Made before the answer: given up, they take the connection back.
        let ends = (StreamReader::new(&stream), StreamWriter::new(&stream));
        match stream.reply()? {
            Reply::Done => Ok(ends),
            Reply::Failed(failure) => Err(explain::port(&failure, port)),
            _ => Err(self.astray()),
        }
    }

    /// The next connection made inside to the socket offered at `socket`, waited for however long it takes: to the end of
    /// the session. Whoever waited longest gets the next one. Ends as those of [`Session::connect`], but that a unix socket
    /// knows no reset: inside, a direction that broke off is an end.
    pub fn accept(&self, socket: &str) -> Result<(StreamReader, StreamWriter)> {
        let request = Request::Accept {
            socket: socket.to_owned(),
        };
        let (stream, _) = self.link.request(&request, false)?;
        let ends = (StreamReader::new(&stream), StreamWriter::new(&stream));
        match stream.wait_reply(None)? {
            Reply::Done => Ok(ends),
            Reply::Failed(failure) => Err(explain::socket(&failure, socket)),
            _ => Err(self.astray()),
        }
    }

    /// Unpacks the tar archive that is written to the result into `directory`, which must exist. A directory inside is
    /// never replaced by something else, nor something else by a directory.
    pub fn copy_in(&self, directory: &str, ownership: Ownership) -> Result<CopyIn> {
        let request = Request::CopyIn {
            directory: directory.to_owned(),
            ownership,
        };
        match self.ask(&request, directory)? {
            (stream, Reply::Done) => Ok(CopyIn::new(stream, directory)),
            _ => Err(self.astray()),
        }
    }

    /// A tar archive of `path` and all below it, to be read like any hostile one. Names in it begin with the path's last
    /// component, or with `.` where it has none (`/`, `…/.`). `follow` goes through a symbolic link at `path`. The
    /// reader fails in place of an end where the copy did.
    pub fn copy_out(&self, path: &str, follow: bool) -> Result<StreamReader> {
        let path_owned = path.to_owned();
        match self.ask(
            &Request::CopyOut {
                path: path_owned,
                follow,
            },
            path,
        )? {
            (stream, Reply::Done) => Ok(StreamReader::new(&stream)),
            _ => Err(self.astray()),
        }
    }

    /// What `path` is inside; with `follow`, what it leads to.
    pub fn stat(&self, path: &str, follow: bool) -> Result<FileStatus> {
        let path_owned = path.to_owned();
        match self.ask(
            &Request::Stat {
                path: path_owned,
                follow,
            },
            path,
        )? {
            (_, Reply::Found(status)) => Ok(status),
            _ => Err(self.astray()),
        }
    }

    /// Every process inside but init, in the order of `/proc`. What they say of themselves is not to be printed raw.
    pub fn processes(&self) -> Result<Vec<GuestProcess>> {
        let (stream, reply) = self.ask(&Request::Processes, "/proc")?;
        if reply != Reply::Done {
            return Err(self.astray());
        }
        let failed = |error| Error::io("cannot list the sandbox's processes", error);
        let mut bytes = Vec::new();
        let mut reader = StreamReader::new(&stream).take(MAX_LIST);
        reader.read_to_end(&mut bytes).map_err(failed)?;
        let mut list = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (process, after) = postcard::take_from_bytes(rest)
                .map_err(|_| link::corrupt(Violation("a list that cannot be read or is too long")))?;
            list.push(process);
            rest = after;
        }
        Ok(list)
    }

    /// What stands round the processes inside, as init finds it, and what became of trying `paths`. All of it is the
    /// guest's word.
    pub fn measure(&self, paths: Vec<String>) -> Result<Surroundings> {
        let (stream, reply) = self.ask(&Request::Measure { paths }, "/proc")?;
        if reply != Reply::Done {
            return Err(self.astray());
        }
        let mut bytes = Vec::new();
        StreamReader::new(&stream)
            .take(MAX_LIST)
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("cannot measure the sandbox from inside", error))?;
        decode(&bytes).map_err(link::corrupt)
    }

    /// Ends the session at once: init kills everything behind the wall and exits. Calls that wait fail.
    pub fn close(&self) {
        self.link.close(None);
    }

    fn launch(&self, request: &Request, process: &Process) -> Result<Child> {
        let is_terminal = process.terminal.is_some();
        let (stream, errors) = self.link.request(request, !is_terminal)?;
        match stream.reply()? {
            Reply::Started { pid } => Ok(Child::new(&stream, errors.as_ref(), process.stdin, pid)),
            Reply::Failed(failure) => Err(explain::process(&failure, process)),
            _ => Err(self.astray()),
        }
    }

    /// Opens a stream and waits for the first answer; a failure is about `path`.
    fn ask(&self, request: &Request, path: &str) -> Result<(Handle, Reply)> {
        let (stream, _) = self.link.request(request, false)?;
        match stream.reply()? {
            Reply::Failed(failure) => Err(explain::path(&failure, path)),
            reply => Ok((stream, reply)),
        }
    }

    fn astray(&self) -> Error {
        self.link.close(Some("a reply out of place"))
    }
}

fn gone(reason: &str) -> Error {
    Error::new(Kind::Unavailable, "cannot talk to the sandbox's init").because(reason.to_owned())
}
