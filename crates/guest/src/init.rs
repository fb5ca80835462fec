//! The guest's end: PID 1 behind either wall.
//!
//! ```text
//! boot ──Hello──▶ serving ──main process ended, its output delivered──▶ ending ──all dead, all said──▶ its exit code
//!   │                │                                                    │
//!   └────────────────┴── channel closed, or garbage on it ────────────────┴──▶ everything is killed, HANGUP
//! ```
//!
//! One thread, one `poll` loop, no timers of its own: idle, it uses no processor. The wall is already drawn round it
//! when it starts (namespaces, mounts, seccomp); it brings nothing to life that the host did not ask for. What may
//! wait in the kernel for long (unpacking, walking `/proc`) is done by a forked copy of init, a *task* like any process.
//!
//! Init itself needs SETUID, SETGID, SETPCAP and KILL to start and signal other users' processes, and CHOWN,
//! DAC_OVERRIDE, FOWNER, FSETID and MKNOD to unpack archives faithfully, whatever its processes are allowed.
//! Tests also run it as an ordinary process; then it is a subreaper and kills its descendants one by one.

mod accept;
mod archive;
mod boot;
mod channel;
mod flow;
mod intake;
mod processes;
mod relay;
mod spawn;
mod surroundings;
mod sys;
mod tasks;
mod users;
mod worker;

pub use intake::absorb;
pub use users::absorb_users;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use luna_core::process::{ExitStatus, Process};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::WaitOptions;

use crate::protocol::{
    Body, Failure, FrameKind, Hello, MAX_STREAMS, RESERVED_STREAMS, Reply, Request, Scope, Stage, VERSION,
    Violation, encode,
};

use accept::Accepting;
use channel::{Channel, Hangup, Queue};
use flow::{Inward, Outward, Progress};
use intake::{Heard, Intake};
use relay::Connecting;
use spawn::Origin;
use tasks::Tasks;

/// Init's exit code where the host went away or spoke garbage.
pub const HANGUP: u8 = 125;
/// How long the last words may take once everything is dead.
const FAREWELL: Duration = Duration::from_secs(2);

/// The descriptor at which init finds its channel.
pub const CHANNEL: std::os::fd::RawFd = channel::INHERITED;

/// Runs init to its end and says with which code to exit. Call it first thing in a process of its own.
pub fn run() -> u8 {
    run_with(Vec::new())
}

/// As [`run`], offering listening stream sockets, each under the path that [`Request::Accept`] names it by.
pub fn run_with(sockets: Vec<(String, OwnedFd)>) -> u8 {
    let Ok(mut channel) = Channel::open() else {
        return HANGUP;
    };
    let Ok(boot) = boot::prepare() else {
        return HANGUP;
    };
    let Ok(accepting) = Accepting::new(sockets) else {
        return HANGUP;
    };
    let init = Init {
        signals: boot.signals,
        origin: boot.origin,
        flows: BTreeMap::new(),
        tasks: Tasks::default(),
        connecting: Connecting::default(),
        accepting,
        intake: Intake::default(),
        ending: None,
        alone: false,
    };
    init.serve(&mut channel).unwrap_or_else(|End| {
        boot::end_everything();
        HANGUP
    })
}

/// The session is over before the main process is.
struct End;

impl From<Hangup> for End {
    fn from(_: Hangup) -> End {
        End
    }
}

impl From<Violation> for End {
    fn from(_: Violation) -> End {
        End
    }
}

struct Init {
    signals: OwnedFd,
    origin: Origin,
    flows: BTreeMap<u32, Flow>,
    tasks: Tasks,
    connecting: Connecting,
    accepting: Accepting,
    intake: Intake,
    ending: Option<Ending>,
    /// Nobody is left to reap; of interest only at the end.
    alone: bool,
}

/// One stream's directions that are still open.
#[derive(Default)]
struct Flow {
    outward: Option<Outward>,
    inward: Option<Inward>,
}

/// The main process is gone.
struct Ending {
    status: ExitStatus,
    until: Instant,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy)]
enum Token {
    Channel,
    Signals,
    Status(u32),
    Connecting(u32),
    /// One of the sockets that are offered.
    Offered(usize),
    Source(u32),
    Sink(u32),
}

impl Init {
    fn serve(mut self, channel: &mut Channel) -> Result<u8, End> {
        loop {
            channel.flush()?;
            if let Some(ending) = &self.ending {
                let finished = self.tasks.is_empty() && self.alone && channel.is_flushed();
                if finished || Instant::now() >= ending.until {
                    return Ok(ending.status.code());
                }
            }
            let timeout = self
                .next_deadline()
                .map(|at| at.saturating_duration_since(Instant::now()));
            for (token, ready) in self.poll(channel, timeout) {
                self.attend(token, ready, channel)?;
            }
            self.settle(channel);
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let lingering = self.tasks.next_deadline(&self.flows);
        let farewell = self.ending.as_ref().map(|ending| ending.until);
        lingering.into_iter().chain(farewell).min()
    }

    /// Waits until something can be done and says for what.
    fn poll<'a>(&'a self, channel: &'a Channel, timeout: Option<Duration>) -> Vec<(Token, PollFlags)> {
        let mut tokens = Vec::with_capacity(8);
        let mut set = Vec::with_capacity(8);
        let mut watch = |token, descriptor: BorrowedFd<'a>, flags| {
            tokens.push(token);
            set.push(PollFd::from_borrowed_fd(descriptor, flags));
        };
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, channel.takes_requests());
        wanted.set(PollFlags::OUT, !channel.is_flushed());
        watch(Token::Channel, channel.as_fd(), wanted);
        watch(Token::Signals, self.signals.as_fd(), PollFlags::IN);
        for (stream, status) in self.tasks.statuses() {
            watch(Token::Status(stream), status, PollFlags::IN);
        }
        for (stream, socket) in self.connecting.descriptors() {
            watch(Token::Connecting(stream), socket, PollFlags::OUT);
        }
        for (number, listener) in self.accepting.descriptors() {
            watch(Token::Offered(number), listener, PollFlags::IN);
        }
        let takes_output = channel.takes_output();
        for (stream, flow) in &self.flows {
            if let Some(outward) = flow
                .outward
                .as_ref()
                .filter(|outward| takes_output && outward.has_credit())
            {
                watch(Token::Source(*stream), outward.descriptor(), PollFlags::IN);
            }
            if let Some(inward) = &flow.inward {
                if inward.is_pending() {
                    watch(Token::Sink(*stream), inward.descriptor(), PollFlags::OUT);
                } else if inward.is_pipe() {
                    watch(Token::Sink(*stream), inward.descriptor(), PollFlags::empty());
                }
            }
        }
        let timeout = timeout.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut set, timeout.as_ref()) {
            Ok(_) => tokens
                .into_iter()
                .zip(set.iter().map(PollFd::revents))
                .filter(|(_, ready)| !ready.is_empty())
                .collect(),
            // Interrupted, or out of memory: the next round tries again.
            Err(_) => Vec::new(),
        }
    }

    fn attend(&mut self, token: Token, ready: PollFlags, channel: &mut Channel) -> Result<(), End> {
        match token {
            Token::Channel => {
                if ready.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    self.hear(channel)?;
                }
            }
            Token::Signals => self.take_signals(),
            Token::Connecting(stream) => {
                self.connecting.settle(stream, &mut self.flows, channel.outbox());
            }
            Token::Offered(number) => {
                self.accepting.accept(number, &mut self.flows, channel.outbox());
            }
            Token::Status(stream) => self.tasks.read_status(stream, &mut self.flows, channel.outbox()),
            Token::Source(stream) => {
                if let Some(flow) = self.flows.get_mut(&stream)
                    && let Some(outward) = &mut flow.outward
                    && outward.pump(stream, channel.outbox()) == Progress::Over
                {
                    flow.outward = None;
                }
            }
            Token::Sink(stream) => {
                if let Some(flow) = self.flows.get_mut(&stream)
                    && let Some(inward) = &mut flow.inward
                {
                    let broken = inward.is_broken(ready);
                    if broken {
                        channel.outbox().frame(stream, FrameKind::Stop, &[]);
                    }
                    if broken || inward.pump(stream, channel.outbox()) == Progress::Over {
                        flow.inward = None;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the channel and obeys every whole frame.
    fn hear(&mut self, channel: &mut Channel) -> Result<(), End> {
        if !channel.receive()? {
            return Ok(());
        }
        let (decoder, outbox) = channel.split();
        while let Some(frame) = decoder.next()? {
            match self.intake.take(frame)? {
                Heard::Hello => {
                    outbox.frame(0, FrameKind::Message, &encode(&Hello { version: VERSION }));
                }
                Heard::Part => {}
                Heard::Request(stream, request) => {
                    if let Err(failure) = self.obey(stream, request, outbox) {
                        outbox.fail(stream, failure);
                    }
                }
                Heard::Stream(stream, body) => self.steer(stream, body, outbox)?,
            }
        }
        Ok(())
    }

    /// Data and its flow control. A stream that is over takes none, which is no mistake of the host's.
    fn steer(&mut self, stream: u32, body: Body<'_>, outbox: &mut Queue) -> Result<(), End> {
        let Some(flow) = self.flows.get_mut(&stream) else {
            if matches!(body, Body::Reset | Body::Stop) {
                self.connecting.forget(stream);
                self.accepting.forget(stream);
            }
            return Ok(());
        };
        match body {
            Body::Data(bytes) => {
                if let Some(inward) = &mut flow.inward
                    && inward.accept(stream, bytes, outbox)? == Progress::Over
                {
                    flow.inward = None;
                }
            }
            Body::End => {
                if let Some(inward) = &mut flow.inward
                    && inward.end() == Progress::Over
                {
                    flow.inward = None;
                }
            }
            Body::Reset => {
                if let Some(inward) = flow.inward.take() {
                    if inward.is_socket() {
                        relay::reset_on_close(inward.descriptor());
                        if flow.outward.take().is_some() {
                            outbox.frame(stream, FrameKind::Reset, &[]);
                        }
                    }
                    self.tasks.abandon(stream);
                }
            }
            Body::Stop => {
                if flow.outward.take().is_some() {
                    outbox.frame(stream, FrameKind::Reset, &[]);
                }
            }
            Body::Credit(amount) => {
                if let Some(outward) = &mut flow.outward {
                    outward.add_credit(amount)?;
                }
            }
            Body::Message(_) | Body::Part(_) => return Err(End),
        }
        Ok(())
    }

    fn obey(&mut self, stream: u32, request: Request, outbox: &mut Queue) -> Result<(), Failure> {
        if self.ending.is_some() {
            return Err(Failure::new(Stage::Streams, libc::ESHUTDOWN));
        }
        let most = match &request {
            Request::Signal { .. } | Request::Resize { .. } => usize::MAX,
            Request::Start(_) | Request::Exec(_) => MAX_STREAMS,
            Request::Connect { .. }
            | Request::Accept { .. }
            | Request::CopyIn { .. }
            | Request::CopyOut { .. }
            | Request::Stat { .. }
            | Request::Processes
            | Request::Measure { .. } => MAX_STREAMS - RESERVED_STREAMS,
        };
        let open = self.flows.len() + self.tasks.len() + self.connecting.len() + self.accepting.len();
        if open >= most {
            return Err(Failure::new(Stage::Streams, libc::EMFILE));
        }
        match request {
            Request::Start(process) => {
                self.tasks.claim_main(stream)?;
                self.start(stream, &process)
                    .inspect_err(|_| self.tasks.release_main())
            }
            Request::Exec(process) => self.start(stream, &process),
            Request::Signal {
                process,
                signal,
                scope,
            } => {
                let pid = self.tasks.pid(process)?;
                let target = if scope == Scope::Group { -pid } else { pid };
                sys::kill(target, signal.into())
                    .map_err(|error| Failure::new(Stage::Process, error.raw_os_error().unwrap_or(0)))?;
                outbox.reply(stream, &Reply::Done);
                Ok(())
            }
            Request::Resize { process, size } => {
                let terminal = self.tasks.terminal(process)?;
                spawn::resize(terminal, size)
                    .map_err(|errno| Failure::new(Stage::Terminal, errno.raw_os_error()))?;
                outbox.reply(stream, &Reply::Done);
                Ok(())
            }
            Request::Connect { port } => self.connecting.start(stream, port),
            Request::Accept { socket } => self.accepting.start(stream, &socket),
            Request::CopyIn { .. }
            | Request::CopyOut { .. }
            | Request::Stat { .. }
            | Request::Processes
            | Request::Measure { .. } => {
                let worker = worker::start(&request, self.origin.null.as_fd(), self.tasks.main_pid())?;
                self.tasks.add_worker(stream, worker, &mut self.flows);
                Ok(())
            }
        }
    }

    fn start(&mut self, stream: u32, process: &Process) -> Result<(), Failure> {
        let spawned = spawn::spawn(process, &self.origin)?;
        self.tasks.add_process(stream, spawned, &mut self.flows);
        Ok(())
    }

    /// Reaps, and passes on what was sent to init itself: `kill 1` inside means the main process, as under docker.
    fn take_signals(&mut self) {
        while let Some(signal) = sys::next_signal(self.signals.as_fd()) {
            if signal != libc::SIGCHLD
                && let Some(pid) = self.tasks.main_pid()
            {
                let _ = sys::kill(pid, signal);
            }
        }
        self.reap();
    }

    fn reap(&mut self) {
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => {
                    self.tasks
                        .ended(pid.as_raw_pid(), exit_status(status.as_raw()), &mut self.flows);
                }
                Ok(None) => {
                    self.alone = false;
                    break;
                }
                Err(errno) => {
                    self.alone = errno == Errno::CHILD;
                    break;
                }
            }
        }
        if self.ending.is_some() {
            boot::kill_everything();
        }
    }

    /// Says what is finished and forgets it.
    fn settle(&mut self, channel: &mut Channel) {
        let main = self.tasks.settle(&mut self.flows, channel.outbox());
        self.flows
            .retain(|_, flow| flow.outward.is_some() || flow.inward.is_some());
        if let Some(status) = main {
            self.ending = Some(Ending {
                status,
                until: Instant::now() + FAREWELL,
            });
            boot::kill_everything();
            self.reap();
        }
    }
}

/// From `wait(2)`'s word.
fn exit_status(raw: i32) -> ExitStatus {
    match raw & 0x7f {
        0 => ExitStatus::Code((raw >> 8) as u8),
        signal => ExitStatus::Signal {
            number: signal as u8,
            core_dumped: raw & 0x80 != 0,
        },
    }
}
