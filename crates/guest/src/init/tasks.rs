//! The processes that the host asked for, and init's workers, from their fork until their end is told.
//!
//! ```text
//! process  forked ──status pipe closes──▶ Started ──reaped──▶ ended ──own output delivered, stragglers waited for──▶ Exited
//!             └─────failure in the pipe──▶ Failed
//! worker   forked ──replies in the pipe, passed on──▶ reaped, output delivered ──▶ end, or reset where it failed
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use luna_core::process::ExitStatus;
use rustix::io::Errno;

use crate::protocol::{Failure, FrameKind, Reply, Stage, decode};

use super::Flow;
use super::channel::Queue;
use super::flow::{Inward, Linger, Outward};
use super::spawn::{FAILURE, Spawned, failure_of};
use super::sys;
use super::worker::Worker;

/// By the stream that asked for them.
#[derive(Default)]
pub(super) struct Tasks {
    all: BTreeMap<u32, Task>,
    /// The main process' stream, once there was a Start.
    main: Option<u32>,
}

struct Task {
    pid: i32,
    /// Open until it is known whether the program runs.
    status: Option<OwnedFd>,
    exit: Option<ExitStatus>,
    kind: Kind,
}

enum Kind {
    Process {
        terminal: Option<OwnedFd>,
    },
    Worker {
        /// Read from the status pipe, not yet a whole reply.
        words: Vec<u8>,
        failed: bool,
        has_output: bool,
    },
}

impl Tasks {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// There is one main process in a session.
    pub(super) fn claim_main(&mut self, stream: u32) -> Result<(), Failure> {
        if self.main.is_some() {
            return Err(Failure::new(Stage::Request, libc::EEXIST));
        }
        self.main = Some(stream);
        Ok(())
    }

    /// It did not come to be.
    pub(super) fn release_main(&mut self) {
        self.main = None;
    }

    /// Takes the process and its streams into the books.
    pub(super) fn add_process(&mut self, stream: u32, spawned: Spawned, flows: &mut BTreeMap<u32, Flow>) {
        let flow = Flow {
            outward: Some(Outward::new(spawned.stdout)),
            inward: spawned.stdin.map(Inward::new),
        };
        flows.insert(stream, flow);
        if let Some(stderr) = spawned.stderr {
            let flow = Flow {
                outward: Some(Outward::new(stderr)),
                inward: None,
            };
            flows.insert(stream.saturating_add(1), flow);
        }
        let task = Task {
            pid: spawned.pid,
            status: Some(spawned.status),
            exit: None,
            kind: Kind::Process {
                terminal: spawned.terminal,
            },
        };
        self.all.insert(stream, task);
    }

    pub(super) fn add_worker(&mut self, stream: u32, worker: Worker, flows: &mut BTreeMap<u32, Flow>) {
        let has_output = worker.output.is_some();
        let flow = Flow {
            outward: worker.output.map(Outward::of_worker),
            inward: worker.input.map(Inward::new),
        };
        flows.insert(stream, flow);
        let task = Task {
            pid: worker.pid,
            status: Some(worker.status),
            exit: None,
            kind: Kind::Worker {
                words: Vec::new(),
                failed: false,
                has_output,
            },
        };
        self.all.insert(stream, task);
    }

    /// The host took back what it was sending: half an archive must not look like a whole one.
    pub(super) fn abandon(&self, stream: u32) {
        if let Some(task) = self.all.get(&stream)
            && task.exit.is_none()
            && matches!(task.kind, Kind::Worker { .. })
        {
            let _ = sys::kill(task.pid, libc::SIGKILL);
        }
    }

    /// A process that can still be signalled: not reaped, so that its number is surely its own.
    pub(super) fn pid(&self, stream: u32) -> Result<i32, Failure> {
        self.all
            .get(&stream)
            .filter(|task| task.exit.is_none() && matches!(task.kind, Kind::Process { .. }))
            .map(|task| task.pid)
            .ok_or(Failure::new(Stage::Process, libc::ESRCH))
    }

    pub(super) fn main_pid(&self) -> Option<i32> {
        self.pid(self.main?).ok()
    }

    pub(super) fn terminal(&self, stream: u32) -> Result<BorrowedFd<'_>, Failure> {
        let task = self
            .all
            .get(&stream)
            .ok_or(Failure::new(Stage::Process, libc::ESRCH))?;
        match &task.kind {
            Kind::Process {
                terminal: Some(terminal),
            } => Ok(terminal.as_fd()),
            _ => Err(Failure::new(Stage::Terminal, libc::ENOTTY)),
        }
    }

    /// Status pipes to watch.
    pub(super) fn statuses(&self) -> impl Iterator<Item = (u32, BorrowedFd<'_>)> {
        self.all
            .iter()
            .filter_map(|(stream, task)| Some((*stream, task.status.as_ref()?.as_fd())))
    }

    /// A status pipe has something to say or was closed.
    pub(super) fn read_status(&mut self, stream: u32, flows: &mut BTreeMap<u32, Flow>, queue: &mut Queue) {
        let Some(task) = self.all.get_mut(&stream) else {
            return;
        };
        if let Kind::Worker { words, failed, .. } = &mut task.kind {
            if hear_worker(&mut task.status, words) {
                pass_on(words, failed, stream, queue);
            }
            return;
        }
        let Some(status) = task.status.take() else {
            return;
        };
        let mut bytes = [0; FAILURE];
        // The child writes all of it at once or nothing.
        if rustix::io::read(&status, &mut bytes) == Ok(FAILURE) {
            queue.fail(stream, failure_of(bytes));
            self.all.remove(&stream);
            flows.remove(&stream);
            flows.remove(&stream.saturating_add(1));
            if self.main == Some(stream) {
                self.main = None;
            }
        } else {
            let pid = task.pid as u32;
            queue.reply(stream, &Reply::Started { pid });
        }
    }

    /// `pid` was reaped; most are somebody's orphans and nobody waits for them.
    pub(super) fn ended(&mut self, pid: i32, status: ExitStatus, flows: &mut BTreeMap<u32, Flow>) {
        let task = self
            .all
            .iter_mut()
            .find(|(_, task)| task.pid == pid && task.exit.is_none());
        let Some((stream, task)) = task else {
            return;
        };
        task.exit = Some(status);
        if matches!(task.kind, Kind::Worker { .. }) {
            return;
        }
        let now = Instant::now();
        for stream in task.streams(*stream) {
            if let Some(outward) = flows.get_mut(&stream).and_then(|flow| flow.outward.as_mut()) {
                outward.process_ended(now);
            }
        }
    }

    /// When the next straggler's time is up.
    pub(super) fn next_deadline(&self, flows: &BTreeMap<u32, Flow>) -> Option<Instant> {
        let ended = self.all.iter().filter(|(_, task)| task.exit.is_some());
        ended
            .flat_map(|(stream, task)| task.streams(*stream))
            .filter_map(
                |stream| match flows.get(&stream)?.outward.as_ref()?.linger(Instant::now()) {
                    Linger::Until(at) => Some(at),
                    Linger::ForReader | Linger::Over => None,
                },
            )
            .min()
    }

    /// Tells the exits whose output is delivered. Returns the main process' status once it was told.
    /// nobody waits for stragglers.
    pub(super) fn settle(
        &mut self,
        flows: &mut BTreeMap<u32, Flow>,
        queue: &mut Queue,
    ) -> Option<ExitStatus> {
        let now = Instant::now();
        let mut main = None;
        self.all.retain(|stream, task| {
            let (Some(exit), None) = (task.exit, &task.status) else {
                return true;
            };
            let mut delivered = true;
            for output in task.streams(*stream) {
                let Some(flow) = flows.get_mut(&output) else {
                    continue;
                };
                match flow.outward.as_ref().map(|outward| outward.linger(now)) {
                    Some(Linger::Over) => {
                        queue.frame(output, FrameKind::End, &[]);
                        flow.outward = None;
                    }
                    Some(_) => delivered = false,
                    None => {}
                }
            }
            if !delivered {
                return true;
            }
            let last_word = match &task.kind {
                Kind::Process { .. } => Some(Reply::Exited(exit)),
                Kind::Worker {
                    failed, has_output, ..
                } => {
                    let killed = !exit.success() && !failed;
                    if *has_output {
                        let is_whole = exit.success() && !failed;
                        let end = if is_whole {
                            FrameKind::End
                        } else {
                            FrameKind::Reset
                        };
                        queue.frame(*stream, end, &[]);
                    }
                    killed.then(|| Reply::Failed(Failure::new(Stage::Worker, libc::EINTR)))
                }
            };
            if let Some(flow) = flows.get_mut(stream)
                && flow.inward.take().is_some()
            {
                queue.frame(*stream, FrameKind::Stop, &[]);
            }
            if let Some(reply) = last_word {
                queue.reply(*stream, &reply);
            }
            if self.main == Some(*stream) {
                main = Some(exit);
            }
            false
        });
        main
    }
}

impl Task {
    /// The streams of its output.
    fn streams(&self, stream: u32) -> impl Iterator<Item = u32> + use<> {
        let errors = matches!(self.kind, Kind::Process { terminal: None });
        std::iter::once(stream).chain(errors.then(|| stream.saturating_add(1)))
    }
}

/// Reads what a worker says until its pipe is empty or, then `status` goes, closed.
fn hear_worker(status: &mut Option<OwnedFd>, words: &mut Vec<u8>) -> bool {
    let mut chunk = [0; 1024];
    while let Some(pipe) = status {
        match rustix::io::read(pipe, &mut chunk) {
            Ok(count @ 1..) => words.extend_from_slice(&chunk[..count]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => break,
            Ok(0) | Err(_) => *status = None,
        }
    }
    !words.is_empty()
}

/// Passes on each whole reply as it is: the worker is a copy of init.
fn pass_on(words: &mut Vec<u8>, failed: &mut bool, stream: u32, queue: &mut Queue) {
    while let Some(length) = words
        .first_chunk()
        .map(|bytes| usize::from(u16::from_le_bytes(*bytes)))
        && let Some(reply) = words.get(2..2 + length)
    {
        *failed |= matches!(decode(reply), Ok(Reply::Failed(_)));
        queue.frame(stream, FrameKind::Message, reply);
        words.drain(..2 + length);
    }
}
