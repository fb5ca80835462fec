//! One stream's two directions inside: from a pipe, socket or terminal to the host, and from the host to one.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::protocol::{FrameKind, Violation, WINDOW};

use super::channel::Queue;

/// How long after a process' end its output may still come from somebody who inherited it.
const LINGER: Duration = Duration::from_millis(100);
/// Credit is returned in pieces of at least this.
const RETURN: u32 = WINDOW / 4;

/// From here to the host.
pub(super) struct Outward {
    source: OwnedFd,
    credit: u32,
    last: Option<Last>,
    /// The end waits for the verdict of the worker that wrote.
    judged: bool,
}

/// What is left to deliver of an ended process.
struct Last {
    /// Bytes that lay in the pipe when it ended: all that it wrote itself.
    bytes: u64,
    until: Instant,
}

/// How a direction goes on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Over,
}

impl Outward {
    pub(super) fn new(source: OwnedFd) -> Outward {
        Outward {
            source,
            credit: WINDOW,
            last: None,
            judged: false,
        }
    }

    /// Output of a worker: it may end early and look whole, so whether it is complete is told by [`super::tasks`].
    pub(super) fn of_worker(source: OwnedFd) -> Outward {
        Outward {
            judged: true,
            ..Outward::new(source)
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }

    pub(super) fn has_credit(&self) -> bool {
        self.credit > 0
    }

    pub(super) fn add_credit(&mut self, amount: u32) -> Result<(), Violation> {
        self.credit += amount;
        if self.credit > WINDOW {
            return Err(Violation("more credit than the window"));
        }
        Ok(())
    }

    /// Reads once and queues what came.
    pub(super) fn pump(&mut self, stream: u32, queue: &mut Queue) -> Progress {
        let read = queue.data(stream, self.credit as usize, |space| {
            rustix::io::read(&self.source, space)
        });
        let end = match read {
            // A terminal says EIO once nobody holds its other side.
            Ok(0) | Err(Errno::IO) => FrameKind::End,
            Ok(count) => {
                self.credit -= count as u32;
                if let Some(last) = &mut self.last {
                    last.bytes = last.bytes.saturating_sub(count as u64);
                }
                return Progress::Open;
            }
            Err(Errno::AGAIN | Errno::INTR) => return Progress::Open,
            Err(_) => FrameKind::Reset,
        };
        if !self.judged {
            queue.frame(stream, end, &[]);
        }
        Progress::Over
    }

    /// The process that wrote here has ended; see [`Outward::linger`].
    pub(super) fn process_ended(&mut self, now: Instant) {
        self.last = Some(Last {
            bytes: rustix::io::ioctl_fionread(&self.source).unwrap_or(0),
            until: now + LINGER,
        });
    }

    /// After the process' end: over once its own bytes are delivered and stragglers had their time.
    pub(super) fn linger(&self, now: Instant) -> Linger {
        match &self.last {
            Some(last) if last.bytes > 0 => Linger::ForReader,
            Some(last) if now < last.until => Linger::Until(last.until),
            Some(_) => Linger::Over,
            None => Linger::ForReader,
        }
    }
}

pub(super) enum Linger {
    /// As long as the host takes to read.
    ForReader,
    Until(Instant),
    Over,
}

/// Where bytes from the host go.
pub(super) enum Sink {
    Pipe(OwnedFd),
    Socket(OwnedFd),
    /// Its end is not passed on: a terminal's line is never closed, as docker has it.
    Terminal(OwnedFd),
}

impl Sink {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Sink::Pipe(fd) | Sink::Socket(fd) | Sink::Terminal(fd) => fd.as_fd(),
        }
    }
}

/// From the host to here.
pub(super) struct Inward {
    sink: Sink,
    pending: VecDeque<u8>,
    /// What the host may still send.
    allowance: u32,
    /// What was written and not yet given back as credit.
    written: u32,
    ended: bool,
}

impl Inward {
    pub(super) fn new(sink: Sink) -> Inward {
        Inward {
            sink,
            pending: VecDeque::new(),
            allowance: WINDOW,
            written: 0,
            ended: false,
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.sink.descriptor()
    }

    pub(super) fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(super) fn is_socket(&self) -> bool {
        matches!(self.sink, Sink::Socket(_))
    }

    /// Whether poll says that nobody will take what is written: a pipe's reader went away, or all of a terminal's far side
    /// was closed, which stays writable until it is full and would then be reported for ever.
    pub(super) fn is_broken(&self, ready: PollFlags) -> bool {
        match &self.sink {
            Sink::Pipe(_) => ready.contains(PollFlags::ERR),
            Sink::Terminal(_) => ready.contains(PollFlags::HUP),
            Sink::Socket(_) => false,
        }
    }

    /// Whether a reader that goes away is worth learning of before there is something to write.
    pub(super) fn is_pipe(&self) -> bool {
        matches!(self.sink, Sink::Pipe(_))
    }

    pub(super) fn accept(
        &mut self,
        stream: u32,
        mut bytes: &[u8],
        queue: &mut Queue,
    ) -> Result<Progress, Violation> {
        if bytes.len() > self.allowance as usize || self.ended {
            return Err(Violation("data beyond the credit or the end"));
        }
        self.allowance -= bytes.len() as u32;
        if self.pending.is_empty() {
            match self.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(_) => return Ok(self.refuse(stream, queue)),
            }
        }
        self.pending.extend(bytes);
        self.give_credit(stream, queue);
        Ok(Progress::Open)
    }

    /// The sink takes bytes again, or broke.
    pub(super) fn pump(&mut self, stream: u32, queue: &mut Queue) -> Progress {
        while !self.pending.is_empty() {
            let (front, _) = self.pending.as_slices();
            let written = match &self.sink {
                Sink::Pipe(fd) | Sink::Socket(fd) | Sink::Terminal(fd) => rustix::io::write(fd, front),
            };
            match written {
                Ok(count) => {
                    self.pending.drain(..count);
                    self.written += count as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.refuse(stream, queue),
            }
        }
        self.give_credit(stream, queue);
        self.progress()
    }

    /// The host sends no more.
    pub(super) fn end(&mut self) -> Progress {
        self.ended = true;
        self.progress()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Errno> {
        loop {
            match rustix::io::write(self.sink.descriptor(), bytes) {
                Ok(count) => {
                    self.written += count as u32;
                    return Ok(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(0),
                Err(errno) => return Err(errno),
            }
        }
    }

    fn refuse(&mut self, stream: u32, queue: &mut Queue) -> Progress {
        if !self.ended {
            queue.frame(stream, FrameKind::Stop, &[]);
        }
        Progress::Over
    }

    fn give_credit(&mut self, stream: u32, queue: &mut Queue) {
        if self.written >= RETURN && !self.ended {
            queue.frame(stream, FrameKind::Credit, &self.written.to_le_bytes());
            self.allowance += self.written;
            self.written = 0;
        }
    }

    fn progress(&self) -> Progress {
        if !self.ended || !self.pending.is_empty() {
            return Progress::Open;
        }
        if let Sink::Socket(socket) = &self.sink {
            // A peer that is gone already needs no goodbye.
            let _ = rustix::net::shutdown(socket, Shutdown::Write);
        }
        Progress::Over
    }
}
