//! What is known of a running machine, gathered by the threads that listen to it, and the commands it is asked.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luna_core::process::ExitStatus;
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::machine::{Command, GuestUsage, Report, read_frame, write_frame};

use crate::qmp::News;

const STACK: usize = 128 << 10;
/// Answers that nobody has taken yet; a guest that sends more of them unasked is lying.
const MOST_ANSWERS: usize = 8;

/// How a machine fares.
#[derive(Debug, Default)]
struct State {
    answers: VecDeque<Report>,
    /// Answers that come too late for whoever asked.
    late: usize,
    ended: Option<(ExitStatus, GuestUsage)>,
    /// QEMU is gone, or its guest spoke garbage.
    gone: bool,
    trouble: Option<Trouble>,
    halted: Option<(bool, String)>,
}

/// Why a machine cannot go on; the first that was heard of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// The guest's kernel said so to QEMU.
    Panicked,
    /// A process that serves a volume has ended.
    VolumeGone,
    /// What came through the machine's port is no report.
    Garbage,
}

/// The machine's port and everything heard so far. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Reports(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    port: UnixStream,
    /// Held from a command to its answer.
    asking: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Reports {
    /// Listens to the machine's port until QEMU closes it.
    pub(crate) fn listen(port: UnixStream) -> std::io::Result<Reports> {
        let mut source = port.try_clone()?;
        let reports = Reports(Arc::new(Shared {
            port,
            asking: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }));
        let heard = reports.clone();
        thread::Builder::new()
            .name("machine".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                loop {
                    let outcome = read_frame::<Report>(&mut source);
                    let lied =
                        matches!(&outcome, Err(error) if error.kind() == std::io::ErrorKind::InvalidData);
                    let Ok(Some(report)) = outcome else {
                        heard.change(|state| {
                            state.gone = true;
                            if lied {
                                state.trouble.get_or_insert(Trouble::Garbage);
                            }
                        });
                        return;
                    };
                    heard.change(|state| match report {
                        Report::Ended { status, usage } => state.ended = Some((status, usage)),
                        _ if state.late > 0 => state.late -= 1,
                        _ if state.answers.len() >= MOST_ANSWERS => state.trouble = Some(Trouble::Garbage),
                        report => state.answers.push_back(report),
                    });
                    if heard.trouble() == Some(Trouble::Garbage) {
                        // Whoever waits for the end sees it as this.
                        let _ = source.shutdown(std::net::Shutdown::Both);
                    }
                }
            })?;
        Ok(reports)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.0.changed.notify_all();
    }

    /// Waits until `look` finds something, or the time is over.
    fn wait_for<T>(&self, until: Option<Instant>, look: impl Fn(&mut State) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&mut state) {
                return Some(found);
            }
            let changed = &self.0.changed;
            state = match until.map(|until| until.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => return None,
                Some(left) => changed
                    .wait_timeout(state, left)
                    .map_or_else(|e| e.into_inner().0, |s| s.0),
                None => changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    pub(crate) fn hear(&self, news: News) {
        self.change(|state| match news {
            News::Panicked => {
                state.trouble.get_or_insert(Trouble::Panicked);
            }
            News::Halted { full, reason } => state.halted = Some((full, reason)),
            News::GoesOn => state.halted = None,
            News::VolumeGone => {
                state.trouble.get_or_insert(Trouble::VolumeGone);
            }
        });
    }

    /// The next report that is no answer to a command: the machine's first words. `None` when time is up or the machine is gone.
    pub(crate) fn next(&self, patience: Duration) -> Option<Report> {
        let until = Instant::now() + patience;
        self.wait_for(Some(until), |state| {
            let gone = state.gone || state.trouble.is_some() || state.halted.is_some();
            state
                .answers
                .pop_front()
                .map(Some)
                .or_else(|| gone.then_some(None))
        })
        .flatten()
    }

    pub(crate) fn tell(&self, setup: &luna_guest::protocol::machine::Setup) -> std::io::Result<()> {
        write_frame(&mut &self.0.port, setup)
    }

    /// Asks and waits for the answer; `None` where the machine has ended meanwhile.
    pub(crate) fn ask(&self, command: Command, patience: Duration) -> Result<Option<Report>> {
        let _one_at_a_time = self.0.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if self.ended().is_some() || self.state().gone {
            return Ok(None);
        }
        if write_frame(&mut &self.0.port, &command).is_err() {
            return Ok(None);
        }
        let until = Instant::now() + patience;
        let heard = self.wait_for(Some(until), |state| {
            let over = state.gone || state.ended.is_some();
            state
                .answers
                .pop_front()
                .map(Some)
                .or_else(|| over.then_some(None))
        });
        heard.ok_or_else(|| {
            self.change(|state| state.late += 1);
            Error::new(Kind::TimedOut, "cannot hear from the guest").because(format!(
                "its first process has not answered for {} s",
                patience.as_secs()
            ))
        })
    }

    pub(crate) fn ended(&self) -> Option<(ExitStatus, GuestUsage)> {
        self.state().ended
    }

    /// Blocks until everything inside has ended (with its status) or the machine is gone (without).
    pub(crate) fn wait(&self) -> Option<ExitStatus> {
        self.wait_for(None, |state| match state.ended {
            Some((status, _)) => Some(Some(status)),
            None => state.gone.then_some(None),
        })
        .flatten()
    }

    /// Whether QEMU has closed the machine's port, which it does by ending.
    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.state().trouble
    }

    /// Why the machine stands still, and whether for want of space.
    pub(crate) fn halted(&self) -> Option<(bool, String)> {
        self.state().halted.clone()
    }
}
