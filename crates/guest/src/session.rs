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
mod explain;
mod link;
mod stream;
mod table;

pub use child::{Child, ChildHandle};
pub use stream::{StreamReader, StreamWriter};
pub use table::absorb;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use luna_core::process::Process;
use luna_core::{Error, Kind, Result};

use crate::protocol::{Reply, Request};

use link::Link;

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
            _ => Err(self.link.close(Some("a reply out of place"))),
        }
    }
}

fn gone(reason: &str) -> Error {
    Error::new(Kind::Unavailable, "cannot talk to the sandbox's init").because(reason.to_owned())
}
