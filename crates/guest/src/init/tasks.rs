//! The processes that the host asked for, from their fork until their exit is told.
//!
//! ```text
//! forked ──status pipe closes──▶ Started ──reaped──▶ ended ──own output delivered, stragglers waited for──▶ Exited
//!    └─────failure in the pipe──▶ Failed
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use luna_core::process::ExitStatus;

use crate::protocol::{Failure, FrameKind, Reply, Stage};

use super::Flow;
use super::channel::Queue;
use super::flow::Linger;
use super::spawn::{FAILURE, failure_of};

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
    terminal: Option<OwnedFd>,
    exit: Option<ExitStatus>,
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

    pub(super) fn add_process(&mut self, stream: u32, pid: i32, status: OwnedFd, terminal: Option<OwnedFd>) {
        self.all.insert(
            stream,
            Task {
                pid,
                status: Some(status),
                terminal,
                exit: None,
            },
        );
    }

    /// A process that can still be signalled: not reaped, so that its number is surely its own.
    pub(super) fn pid(&self, stream: u32) -> Result<i32, Failure> {
        self.all
            .get(&stream)
            .filter(|task| task.exit.is_none())
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
        task.terminal
            .as_ref()
            .map(AsFd::as_fd)
            .ok_or(Failure::new(Stage::Terminal, libc::ENOTTY))
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
            if let Some(flow) = flows.get_mut(stream)
                && flow.inward.take().is_some()
            {
                queue.frame(*stream, FrameKind::Stop, &[]);
            }
            queue.reply(*stream, &Reply::Exited(exit));
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
        let errors = self.terminal.is_none().then(|| stream.saturating_add(1));
        std::iter::once(stream).chain(errors)
    }
}
