//! Init's end of the channel: what it reads frames from and queues frames to. Nothing in here waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::protocol::{Decoder, Failure, FrameKind, HEADER, MAX_PAYLOAD, Reply, encode, header};

use super::sys;

/// Where the jail leaves the channel.
pub(super) const INHERITED: i32 = 3;
/// With so much under way to the host, no more output is read from processes and connections.
const BUSY: usize = 64 * 1024;
/// With so much under way to the host, no more requests are read from it.
const FULL: usize = 256 * 1024;

pub(super) struct Channel {
    descriptor: OwnedFd,
    decoder: Decoder,
    queue: Queue,
}

/// The host is gone.
pub(super) struct Hangup;

impl Channel {
    /// The container's way: a stream socket at descriptor 3.
    pub(super) fn open() -> Result<Channel, Hangup> {
        let descriptor = sys::inherited(INHERITED).map_err(|_| Hangup)?;
        let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(|_| Hangup)?;
        rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).map_err(|_| Hangup)?;
        Ok(Channel {
            descriptor,
            decoder: Decoder::new(),
            queue: Queue::default(),
        })
    }

    /// Reads once; `false` where there is nothing to read yet.
    pub(super) fn receive(&mut self) -> Result<bool, Hangup> {
        match rustix::io::read(&self.descriptor, self.decoder.space()) {
            Ok(0) => Err(Hangup),
            Ok(count) => {
                self.decoder.filled(count);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Err(_) => Err(Hangup),
        }
    }

    /// Writes what the socket takes of the queue.
    pub(super) fn flush(&mut self) -> Result<(), Hangup> {
        while !self.queue.is_empty() {
            match rustix::io::write(&self.descriptor, self.queue.waiting()) {
                Ok(count) => self.queue.taken(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return Err(Hangup),
            }
        }
        Ok(())
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.queue.is_empty()
    }

    pub(super) fn takes_output(&self) -> bool {
        self.queue.len() < BUSY
    }

    pub(super) fn takes_requests(&self) -> bool {
        self.queue.len() < FULL
    }

    /// What came in and what goes out, for obeying the one while filling the other.
    pub(super) fn split(&mut self) -> (&mut Decoder, &mut Queue) {
        (&mut self.decoder, &mut self.queue)
    }

    pub(super) fn outbox(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Frames waiting for the socket, in one piece of memory that is reused while it stays small.
#[derive(Default)]
pub(super) struct Queue {
    /// Initialised memory, of which `start..end` waits.
    memory: Vec<u8>,
    start: usize,
    end: usize,
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.end - self.start
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn waiting(&self) -> &[u8] {
        &self.memory[self.start..self.end]
    }

    fn taken(&mut self, count: usize) {
        self.start += count;
        if self.is_empty() {
            self.start = 0;
            self.end = 0;
            if self.memory.len() > 2 * FULL {
                self.memory = Vec::new();
            }
        }
    }

    /// Makes room at the end, in the room at the beginning where that is enough.
    fn reserve(&mut self, count: usize) {
        if self.memory.len() < self.end + count && self.start > 0 {
            self.memory.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.memory.len() < self.end + count {
            self.memory.resize(self.end + count, 0);
        }
    }

    pub(super) fn frame(&mut self, stream: u32, kind: FrameKind, payload: &[u8]) {
        self.reserve(HEADER + payload.len());
        self.memory[self.end..self.end + HEADER].copy_from_slice(&header(stream, kind, payload.len()));
        self.end += HEADER;
        self.memory[self.end..self.end + payload.len()].copy_from_slice(payload);
        self.end += payload.len();
    }

    pub(super) fn reply(&mut self, stream: u32, reply: &Reply) {
        self.frame(stream, FrameKind::Message, &encode(reply));
    }

    pub(super) fn fail(&mut self, stream: u32, failure: Failure) {
        self.reply(stream, &Reply::Failed(failure));
    }

    /// Appends one data frame whose payload `read` puts in place: at most `limit` bytes, none on 0 or an error.
    pub(super) fn data(
        &mut self,
        stream: u32,
        limit: usize,
        read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let limit = limit.min(MAX_PAYLOAD);
        self.reserve(HEADER + limit);
        let payload = self.end + HEADER;
        let count = read(&mut self.memory[payload..payload + limit])?;
        if count > 0 {
            self.memory[self.end..payload].copy_from_slice(&header(stream, FrameKind::Data, count));
            self.end = payload + count;
        }
        Ok(count)
    }
}
