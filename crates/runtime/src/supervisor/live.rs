//! What the supervisor's threads share: how the sandbox fares, and the way to its processes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use luna_core::engine::{Control, RootForm, SystemControl};
use luna_core::process::TerminalSize;
use luna_core::spec::RestartPolicy;
use luna_core::{Error, Kind, Result};
use luna_guest::session::{ChildHandle, Session};
use luna_network::ports::Inward;

use super::SETTLE;
use super::clients::Clients;
use super::hub::Hub;
use crate::control::Ended;
use crate::layout::Layout;
use crate::log;
use crate::record::Status;
use crate::sandbox::{self, Sandbox};
use crate::signal;

/// Takes up room for a status.
const RESERVE: &str = "reserve";
const RESERVED: usize = 64 << 10;

/// The mutable part, behind one lock.
pub(crate) struct Live {
    pub(crate) status: Status,
    pub(crate) restart: RestartPolicy,
    pub(crate) running: Option<Running>,
    /// Somebody sent `SIGKILL` through us, so an end without an exit status is no surprise.
    killed: bool,
    ended: Option<Ended>,
    /// The main process has ended and what it wrote is on its way to the disk.
    pub(crate) settling: bool,
}

/// The way to what runs at this moment.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) inside: Inside,
    pub(crate) control: Arc<dyn Control>,
}

/// Who is there to be talked to.
#[derive(Clone)]
pub(crate) enum Inside {
    /// Luna's init, and the main process under it.
    Init { session: Session, main: ChildHandle },
    /// A disk image's own system: nobody, but it has a power button.
    System(Arc<dyn SystemControl>),
}

impl Inside {
    /// To the main process. A system knows no signals: those that ask for an end press its power button, and `SIGKILL`
    /// cuts its power.
    pub(crate) fn signal(&self, number: u8) -> Result<()> {
        match self {
            Inside::Init { main, .. } => main.signal(number),
            Inside::System(control) => match number {
                signal::KILL => control.kill(),
                number if signal::ENDING.contains(&number) => control.power_off(),
                _ => Err(Error::new(
                    Kind::Unsupported,
                    format!(
                        "cannot send {} to a disk image's own system",
                        signal::name(number)
                    ),
                )
                .because("there is no init of Luna's inside to deliver it")
                .hint("`SIGTERM` presses its power button, `SIGKILL` cuts its power")),
            },
        }
    }

    /// Tells the main process' terminal; a serial line has no size.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Inside::Init { main, .. } = self {
            let _ = main.resize(size);
        }
    }
}

pub(crate) struct Shared {
    pub(crate) sandbox: Sandbox,
    pub(crate) layout: Layout,
    pub(crate) hub: Hub,
    pub(crate) clients: Clients,
    live: Mutex<Live>,
    changed: Condvar,
    log: Mutex<log::Writer>,
    stdin: Mutex<Option<Box<dyn Inward>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(sandbox: Sandbox, layout: Layout) -> Result<Shared> {
        let mut status = sandbox.status()?;
        status.stopped = false;
        status.restarts = 0;
        let log = log::Writer::open(sandbox.directory(), sandbox.record.spec.log)?;
        let restart = sandbox.record.spec.restart;
        Ok(Shared {
            sandbox,
            layout,
            hub: Hub::default(),
            clients: Clients::default(),
            live: Mutex::new(Live {
                status,
                restart,
                running: None,
                killed: false,
                ended: None,
                settling: false,
            }),
            changed: Condvar::new(),
            log: Mutex::new(log),
            stdin: Mutex::new(None),
        })
    }

    pub(crate) fn look<T>(&self, see: impl FnOnce(&Live) -> T) -> T {
        see(&lock(&self.live))
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Live)) {
        change(&mut lock(&self.live));
        self.changed.notify_all();
    }

    /// Writes the status as it is. Room for it on a disk that is full was kept beforehand where a full disk halts the sandbox,
    /// which the status has to tell.
    pub(crate) fn try_store(&self) -> Result<()> {
        let live = lock(&self.live);
        let directory = self.sandbox.directory();
        let stored = sandbox::store_status(directory, &live.status);
        if self.sandbox.record.decision.engine.root == RootForm::Tree {
            return stored;
        }
        let reserve = directory.join(RESERVE);
        if stored.is_ok() {
            if !reserve.exists() {
                let _ = std::fs::write(&reserve, vec![0; RESERVED]);
            }
            return stored;
        }
        let _ = std::fs::remove_file(&reserve);
        sandbox::store_status(directory, &live.status)
    }

    /// Writes the status as it is. A disk that is full by now must not end a sandbox: the lock still tells that it runs.
    pub(crate) fn store(&self) {
        let _ = self.try_store();
    }

    pub(crate) fn log(&self, with: impl FnOnce(&mut log::Writer)) {
        with(&mut lock(&self.log));
    }

    pub(crate) fn running(&self) -> Result<Running> {
        self.look(|live| live.running.clone())
            .ok_or_else(|| self.sandbox.not_running())
    }

    /// The way to init; an error where there is none of Luna's.
    pub(crate) fn session(&self) -> Result<Session> {
        match self.running()?.inside {
            Inside::Init { session, .. } => Ok(session),
            Inside::System(_) => Err(self.sandbox.record.no_init()),
        }
    }

    pub(crate) fn set_stdin(&self, stdin: Option<Box<dyn Inward>>) {
        *lock(&self.stdin) = stdin;
    }

    /// The main process's input; `None` where it has none.
    pub(crate) fn stdin(&self) -> MutexGuard<'_, Option<Box<dyn Inward>>> {
        lock(&self.stdin)
    }

    pub(crate) fn mark_killed(&self) {
        self.update(|live| live.killed = true);
    }

    pub(crate) fn was_killed(&self) -> bool {
        self.look(|live| live.killed)
    }

    /// No restart follows from here on.
    pub(crate) fn mark_stopped(&self) {
        self.update(|live| live.status.stopped = true);
    }

    /// Waits for a delay to pass; true if the sandbox was stopped meanwhile.
    pub(crate) fn stopped_within(&self, delay: Duration) -> bool {
        let until = Instant::now() + delay;
        let mut live = lock(&self.live);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if live.status.stopped {
                return true;
            }
            if left.is_zero() {
                return false;
            }
            live = self
                .changed
                .wait_timeout(live, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The sandbox's end, told to every waiter and attached client.
    pub(crate) fn end(&self, ended: Ended) {
        self.hub.end(&ended);
        self.update(|live| live.ended = Some(ended));
    }

    /// Waits for the end; `None` when `bound` passed first.
    pub(crate) fn ended(&self, bound: Option<Duration>) -> Option<Ended> {
        let until = bound.map(|bound| Instant::now() + bound);
        let mut live = lock(&self.live);
        loop {
            if let Some(ended) = &live.ended {
                return Some(ended.clone());
            }
            live = match until {
                None => self.changed.wait(live).unwrap_or_else(PoisonError::into_inner),
                Some(until) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed
                        .wait_timeout(live, left)
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    /// Waits until this life of the main process is over, restart or not; true if it is within `bound`, or within the time to
    /// write everything out where no more than that is left to do.
    pub(crate) fn gone_within(&self, bound: Duration) -> bool {
        let until = Instant::now() + bound;
        let mut live = lock(&self.live);
        while live.running.is_some() {
            let until = if live.settling { until + SETTLE } else { until };
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            live = self
                .changed
                .wait_timeout(live, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        true
    }
}
