//! The channel itself at the host: the writer's lock, the reader's thread, and the order of opening streams.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luna_core::{Error, Kind, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags, Shutdown};

use crate::protocol::{
    Body, Decoder, FrameKind, Hello, MAX_MESSAGE, MAX_PAYLOAD, Reply, Request, VERSION, Violation, decode,
    encode, header,
};

use super::gone;
use super::table::{Ending, Stream, Table};

/// How long init may take to say hello: generous, for a machine that starts hundreds at once.
const GREETING: Duration = Duration::from_secs(10);
/// How long init may take to answer a request.
const ANSWER: Duration = Duration::from_secs(60);
const STACK: usize = 64 * 1024;

/// One open channel. Dropping it closes the channel, which ends the reader thread.
#[derive(Debug)]
pub(super) struct Link {
    shared: Arc<Shared>,
}

/// What the reader thread and the callers share.
#[derive(Debug)]
struct Shared {
    channel: OwnedFd,
    /// Held while a frame is written, and while a stream is opened and its request written: ids rise on the wire.
    writing: Mutex<()>,
    table: Mutex<Table>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.end(Ending::Closed);
    }
}

impl Link {
    pub(super) fn open(channel: OwnedFd) -> Result<Arc<Link>> {
        let shared = Arc::new(Shared {
            channel,
            writing: Mutex::new(()),
            table: Mutex::new(Table::default()),
        });
        let mut decoder = Decoder::new();
        shared
            .greet(&mut decoder)
            .map_err(|error| error.context("cannot greet the sandbox's init"))?;
        let reader = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("guest".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let ending = reader.listen(&mut decoder);
                reader.end(ending);
            })
            .map_err(|error| Error::io("cannot start a thread for the sandbox's channel", error))?;
        Ok(Arc::new(Link { shared }))
    }

    /// Opens a stream with `request`, and the one after it where the request needs two.
    pub(super) fn request(
        self: &Arc<Link>,
        request: &Request,
        two: bool,
    ) -> Result<(Handle, Option<Handle>)> {
        let message = encode(request);
        if message.len() > MAX_MESSAGE {
            return Err(Error::new(
                Kind::InvalidInput,
                "cannot pass arguments and environment to the sandbox",
            )
            .because(format!(
                "they are {} bytes, the limit is {MAX_MESSAGE}",
                message.len()
            )));
        }
        let writing = self.shared.writing();
        let (first, second) = {
            let mut table = self.shared.table();
            let mut open = || table.open().map_err(|ending| ending.error());
            (open()?, if two { Some(open()?) } else { None })
        };
        let handle = |stream| {
            Handle(Arc::new(Opened {
                link: Arc::clone(self),
                stream,
            }))
        };
        let handles = (handle(first), second.map(handle));
        let id = handles.0.stream().id;
        let mut rest = &message[..];
        while rest.len() > MAX_PAYLOAD {
            let (part, after) = rest.split_at(MAX_PAYLOAD);
            self.shared.write(&writing, id, FrameKind::Part, part)?;
            rest = after;
        }
        self.shared.write(&writing, id, FrameKind::Message, rest)?;
        drop(writing);
        Ok(handles)
    }

    pub(super) fn send(&self, stream: u32, kind: FrameKind, payload: &[u8]) -> Result<()> {
        let writing = self.shared.writing();
        self.shared.write(&writing, stream, kind, payload)
    }

    /// Ends the session, for a `violation` of init's or by the host's own wish, and returns what callers are to be told.
    pub(super) fn close(&self, violation: Option<&'static str>) -> Error {
        self.shared
            .end(violation.map_or(Ending::Closed, Ending::Violation))
            .error()
    }
}

impl Shared {
    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shutting the socket down wakes the reader thread and whoever is blocked in a write.
    fn end(&self, ending: Ending) -> Ending {
        let ending = self.table().end(ending);
        let _ = rustix::net::shutdown(&self.channel, Shutdown::Both);
        ending
    }

    /// One whole frame, however often the socket takes only a part of it.
    fn write(
        &self,
        _writing: &MutexGuard<'_, ()>,
        stream: u32,
        kind: FrameKind,
        payload: &[u8],
    ) -> Result<()> {
        let head = header(stream, kind, payload.len());
        let total = head.len() + payload.len();
        let mut done = 0;
        while done < total {
            let (head, payload) = if done < head.len() {
                (&head[done..], payload)
            } else {
                (&head[..0], &payload[done - head.len()..])
            };
            let slices = [IoSlice::new(head), IoSlice::new(payload)];
            let mut control = SendAncillaryBuffer::default();
            match rustix::net::sendmsg(&self.channel, &slices, &mut control, SendFlags::NOSIGNAL) {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                // Init has left. What it said before, its exit perhaps, is the reader's to find, and so is the end.
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(Ending::Hangup.error()),
                Err(_) => return Err(self.end(Ending::Hangup).error()),
            }
        }
        Ok(())
    }

    fn greet(&self, decoder: &mut Decoder) -> Result<()> {
        let hello = encode(&Hello { version: VERSION });
        self.write(&self.writing(), 0, FrameKind::Message, &hello)?;
        let deadline = Instant::now() + GREETING;
        loop {
            if let Some(frame) = decoder.next().map_err(corrupt)? {
                let Body::Message(bytes) = frame.body else {
                    return Err(corrupt(Violation("no hello")));
                };
                let hello: Hello = decode(bytes).map_err(corrupt)?;
                if frame.stream != 0 || hello.version != VERSION {
                    return Err(corrupt(Violation("a hello of another version")));
                }
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let mut set = [PollFd::new(&self.channel, PollFlags::IN)];
            match rustix::event::poll(&mut set, Some(&timeout)) {
                Ok(0) => {
                    let error = Error::new(Kind::TimedOut, "cannot hear from the sandbox's init");
                    return Err(error.because(format!("it said nothing for {} s", GREETING.as_secs())));
                }
                Ok(_) => match self.read(decoder) {
                    Ok(()) => {}
                    Err(ending) => return Err(ending.error()),
                },
                Err(Errno::INTR) => {}
                Err(errno) => return Err(Error::io("cannot wait for the sandbox's init", errno)),
            }
        }
    }

    /// The reader thread's life.
    fn listen(&self, decoder: &mut Decoder) -> Ending {
        loop {
            loop {
                let frame = match decoder.next() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(violation) => return Ending::Violation(violation.0),
                };
                let stream = self.table().find(&frame);
                let received =
                    stream.and_then(|stream| stream.map_or(Ok(()), |stream| stream.receive(frame.body)));
                if let Err(violation) = received {
                    return Ending::Violation(violation.0);
                }
            }
            if let Err(ending) = self.read(decoder) {
                return ending;
            }
        }
    }

    fn read(&self, decoder: &mut Decoder) -> std::result::Result<(), Ending> {
        loop {
            match rustix::io::read(&self.channel, decoder.space()) {
                Ok(0) => return Err(Ending::Hangup),
                Ok(count) => {
                    decoder.filled(count);
                    return Ok(());
                }
                // Said once when init left with something of ours unread; what it had sent is still there.
                Err(Errno::INTR | Errno::CONNRESET) => {}
                Err(_) => return Err(Ending::Hangup),
            }
        }
    }
}

impl Ending {
    pub(super) fn error(&self) -> Error {
        match self {
            Ending::Closed => gone("the session was closed"),
            Ending::Hangup => gone("it is gone"),
            Ending::Violation(what) => corrupt(Violation(what)),
        }
    }
}

pub(super) fn corrupt(violation: Violation) -> Error {
    Error::new(Kind::Corrupt, "cannot understand the sandbox's init").because(format!("it sent {violation}"))
}

/// A stream as its users hold it: when the last clone goes, the host forgets the stream.
#[derive(Clone, Debug)]
pub(super) struct Handle(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    link: Arc<Link>,
    stream: Arc<Stream>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.link.shared.table().forget(self.stream.id);
    }
}

impl Handle {
    pub(super) fn stream(&self) -> &Stream {
        &self.0.stream
    }

    pub(super) fn link(&self) -> &Arc<Link> {
        &self.0.link
    }

    pub(super) fn send(&self, kind: FrameKind, payload: &[u8]) -> Result<()> {
        self.0.link.send(self.0.stream.id, kind, payload)
    }

    /// The next reply, waited for with a bound.
    pub(super) fn reply(&self) -> Result<Reply> {
        self.wait_reply(Some(Instant::now() + ANSWER))
    }

    /// The next reply; without a deadline, however long it takes.
    pub(super) fn wait_reply(&self, deadline: Option<Instant>) -> Result<Reply> {
        let stream = self.stream();
        let mut state = stream.state();
        loop {
            if let Some(reply) = state.replies.pop_front() {
                return Ok(reply);
            }
            if let Some(ending) = &state.ending {
                return Err(ending.error());
            }
            state = match deadline {
                None => stream.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        let error =
                            Error::new(Kind::TimedOut, "cannot get an answer from the sandbox's init");
                        return Err(error.because(format!("it said nothing for {} s", ANSWER.as_secs())));
                    }
                    let waited = stream.changed.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}
