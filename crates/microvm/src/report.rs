//! What is known of a running machine, gathered by the threads that listen to it, and the commands it is asked.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use luna_core::engine::Condition;
use luna_core::process::ExitStatus;
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::machine::{Command, GuestUsage, Report, read_frame, write_frame};
use rustix::event::{PollFd, PollFlags, Timespec};

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
    /// When the machine last said anything, or had a reason not to.
    heard: Option<Instant>,
    silent: bool,
    /// What was told of it last.
    told: Plight,
    /// It was killed on purpose while all was well.
    killed: bool,
}

/// How a machine gets on, as it is told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Plight {
    #[default]
    Well,
    Halted(bool, String),
    Silent,
}

impl State {
    fn plight(&self) -> Plight {
        match &self.halted {
            Some((full, reason)) => Plight::Halted(*full, reason.clone()),
            None if self.silent => Plight::Silent,
            None => Plight::Well,
        }
    }

    fn answered(&mut self) {
        self.heard = Some(Instant::now());
        self.silent = false;
    }
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
                    heard.change(State::answered);
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
        let unanswered = |why: String| Error::new(Kind::TimedOut, "cannot hear from the guest").because(why);
        // More would fill the port, and then nobody could ask.
        if self.state().late >= MOST_ANSWERS {
            return Err(unanswered(format!(
                "its first process has {MOST_ANSWERS} questions to answer already"
            )));
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
            unanswered(format!(
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

    /// Waits for the end of the machine; true when it is alive after that time.
    pub(crate) fn lives_on(&self, time: Duration) -> bool {
        let over = |state: &mut State| (state.gone || state.ended.is_some()).then_some(());
        self.wait_for(Some(Instant::now() + time), over).is_none()
    }

    /// Waits until everything inside has ended, or cannot.
    pub(crate) fn await_last_word(&self, patience: Duration) {
        self.wait_for(Some(Instant::now() + patience), |state| {
            let over =
                state.ended.is_some() || state.gone || state.trouble.is_some() || state.halted.is_some();
            over.then_some(())
        });
    }

    /// It has a reason to say nothing.
    pub(crate) fn excuse(&self) {
        self.change(State::answered);
    }

    /// Notes whether it has said nothing for longer than `bound`.
    pub(crate) fn judge(&self, bound: Duration) {
        self.change(|state| {
            state.silent = state.heard.is_some_and(|heard| heard.elapsed() >= bound);
        });
    }

    /// See `Control::next_condition`.
    pub(crate) fn next_condition(&self) -> Option<Condition> {
        let plight = self.wait_for(None, |state| {
            if state.gone || state.ended.is_some() {
                return Some(None);
            }
            let plight = state.plight();
            (plight != state.told).then(|| {
                state.told = plight.clone();
                Some(plight)
            })
        });
        Some(match plight?? {
            Plight::Well => Condition::Well,
            Plight::Halted(full, reason) => Condition::Halted(halted(full, reason)),
            Plight::Silent => Condition::Silent(
                Error::new(Kind::TimedOut, "cannot hear from the guest")
                    .because("its first process does not answer")
                    .hint("it is left running, since it may come back; `luna kill` ends it"),
            ),
        })
    }

    /// Whether a refused write halts it again before `time` is over.
    pub(crate) fn halts_again(&self, time: Duration) -> Option<Error> {
        let (full, reason) = self.wait_for(Some(Instant::now() + time), |state| state.halted.clone())?;
        Some(halted(full, reason))
    }

    pub(crate) fn forget_halt(&self) {
        self.change(|state| state.halted = None);
    }

    /// The machine is about to be killed on purpose; whatever ended it before stays the reason.
    pub(crate) fn expect_end(&self) {
        let mut port = [PollFd::new(&self.0.port, PollFlags::empty())];
        let closed = rustix::event::poll(
            &mut port,
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        ) != Ok(0);
        self.change(|state| state.killed |= !closed && !state.gone && state.trouble.is_none());
    }

    /// Whether QEMU has closed its end.
    pub(crate) fn is_gone(&self) -> bool {
        self.state().gone
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.state().killed
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.state().trouble
    }

    /// Why the machine stands still, and whether for want of space.
    pub(crate) fn halted(&self) -> Option<(bool, String)> {
        self.state().halted.clone()
    }
}

/// A machine that can go on once there is room for what it writes.
fn halted(full: bool, reason: String) -> Error {
    let error = Error::new(Kind::Exhausted, "cannot write to the machine's disk").because(reason);
    if full {
        error.hint("free some space on the host, then `luna unpause` lets it go on")
    } else {
        error.hint("see to the host's disk, then `luna unpause` lets it go on")
    }
}
