//! Sockets offered inside: whoever connects to one is handed to the host, which asked for the next connection beforehand.
//!
//! While nobody asks, connections wait in the socket's own queue, connected as far as their makers can see.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use crate::protocol::{Failure, Reply, Stage};

use super::Flow;
use super::channel::Queue;
use super::relay;

/// The sockets of one sandbox and the streams that wait for a connection to them.
#[derive(Default)]
pub(super) struct Accepting(Vec<Offered>);

struct Offered {
    path: String,
    listener: OwnedFd,
    /// Oldest first.
    waiting: VecDeque<u32>,
}

impl Accepting {
    pub(super) fn new(sockets: Vec<(String, OwnedFd)>) -> Result<Accepting, Errno> {
        let offer = |(path, listener): (String, OwnedFd)| {
            let flags = rustix::fs::fcntl_getfl(&listener)?;
            // A connection may be gone again between poll and accept.
            rustix::fs::fcntl_setfl(&listener, flags | OFlags::NONBLOCK)?;
            Ok(Offered {
                path,
                listener,
                waiting: VecDeque::new(),
            })
        };
        sockets
            .into_iter()
            .map(offer)
            .collect::<Result<_, _>>()
            .map(Accepting)
    }

    /// How many streams wait.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|offered| offered.waiting.len()).sum()
    }

    /// The sockets that somebody waits for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        let awaited = |(_, offered): &(usize, &Offered)| !offered.waiting.is_empty();
        self.0
            .iter()
            .enumerate()
            .filter(awaited)
            .map(|(number, offered)| (number, offered.listener.as_fd()))
    }

    pub(super) fn start(&mut self, stream: u32, path: &str) -> Result<(), Failure> {
        let offered = self.0.iter_mut().find(|offered| offered.path == path);
        let offered = offered.ok_or(Failure::new(Stage::Path, libc::ENOENT))?;
        offered.waiting.push_back(stream);
        Ok(())
    }

    /// The host changed its mind.
    pub(super) fn forget(&mut self, stream: u32) {
        for offered in &mut self.0 {
            offered.waiting.retain(|waiting| *waiting != stream);
        }
    }

    /// Hands the next connection to whoever waited longest.
    pub(super) fn accept(&mut self, number: usize, flows: &mut BTreeMap<u32, Flow>, queue: &mut Queue) {
        // Whoever waited may have changed its mind since the poll; the connection then waits for the next one.
        let Some(offered) = self
            .0
            .get_mut(number)
            .filter(|offered| !offered.waiting.is_empty())
        else {
            return;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accepted = match rustix::net::accept_with(&offered.listener, flags) {
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => return,
            accepted => accepted.and_then(relay::relay),
        };
        let Some(stream) = offered.waiting.pop_front() else {
            return;
        };
        match accepted {
            Ok(flow) => {
                flows.insert(stream, flow);
                queue.reply(stream, &Reply::Done);
            }
            // No descriptors left, say: told, so that the host decides when to ask again.
            Err(errno) => queue.fail(stream, Failure::new(Stage::Connect, errno.raw_os_error())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn whoever_asked_first_is_served_first_and_whoever_left_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut accepting = Accepting::new(vec![("/s".to_owned(), listener.into())]).unwrap();
        let mut flows = BTreeMap::new();
        let mut served = |accepting: &mut Accepting| {
            accepting.accept(0, &mut flows, &mut Queue::default());
            flows.keys().copied().collect::<Vec<_>>()
        };
        for stream in [1, 2, 3] {
            accepting.start(stream, "/s").unwrap();
        }
        assert!(accepting.start(4, "/other").is_err());
        accepting.forget(2);
        assert_eq!(accepting.len(), 2);
        assert_eq!(served(&mut accepting), [] as [u32; 0], "nobody has connected");
        let _connections: Vec<_> = (0..3).map(|_| UnixStream::connect(&path).unwrap()).collect();
        assert_eq!(served(&mut accepting), [1]);
        assert_eq!(served(&mut accepting), [1, 3]);
        assert_eq!(accepting.descriptors().count(), 0);
        assert_eq!(
            served(&mut accepting),
            [1, 3],
            "a connection nobody asked for waits"
        );
        accepting.start(5, "/s").unwrap();
        assert_eq!(served(&mut accepting), [1, 3, 5]);
    }
}
