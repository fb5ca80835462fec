//! Health checks: a command run inside at an interval; what it exits with is the sandbox's health.
//!
//! ```text
//! starting ──first success──▶ healthy ◀──success── unhealthy
//!    └──retries failures after the start period──────▶ ▲
//!                              healthy ──retries failures┘
//! ```

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use luna_core::event::Action;
use luna_core::process::Process;
use luna_core::spec::HealthCheck;

use crate::events;
use crate::record::{Health, HealthStatus, Record, State};
use crate::signal;
use crate::supervisor::STACK;
use crate::supervisor::live::Shared;

/// The end of a check's output that is kept.
const KEPT: usize = 4096;

/// Stops checking when dropped.
pub(crate) struct Watch {
    _stop: mpsc::Sender<()>,
}

/// Begins to check, where the sandbox has a check.
pub(crate) fn watch(shared: &Arc<Shared>, record: &Record) -> Option<Watch> {
    let check = record.health.clone()?;
    let process = record.companion(check.command.clone()).ok()?;
    set(
        shared,
        Health {
            status: HealthStatus::Starting,
            failing: 0,
            last_exit: None,
            last_output: String::new(),
        },
    );
    let (stop, stopped) = mpsc::channel();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("health".to_owned())
        .stack_size(STACK)
        .spawn(move || repeat(&shared, &check, &process, &stopped))
        .ok()?;
    Some(Watch { _stop: stop })
}

fn set(shared: &Shared, health: Health) {
    let before = shared.look(|live| live.status.health.as_ref().map(|health| health.status));
    let status = health.status;
    shared.update(|live| live.status.health = Some(health));
    shared.store();
    if before != Some(status) {
        events::record(
            &shared.layout,
            &shared.sandbox.record,
            Action::Health {
                status: status.to_string(),
            },
        );
    }
}

fn repeat(shared: &Arc<Shared>, check: &HealthCheck, process: &Process, stopped: &mpsc::Receiver<()>) {
    let began = Instant::now();
    let mut health = Health {
        status: HealthStatus::Starting,
        failing: 0,
        last_exit: None,
        last_output: String::new(),
    };
    // A young sandbox is asked more often, so that it is known to be ready soon after it is.
    let eager = Duration::from_millis(500).min(check.interval);
    loop {
        let pause = if health.status == HealthStatus::Starting {
            eager
        } else {
            check.interval
        };
        if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            return;
        }
        if shared.look(|live| live.status.state) != State::Running {
            continue;
        }
        let Some((exit, output)) = once(shared, process, check.timeout) else {
            return;
        };
        health.last_exit = Some(exit);
        health.last_output = output;
        if exit == 0 {
            health.status = HealthStatus::Healthy;
            health.failing = 0;
        } else if health.status != HealthStatus::Starting || began.elapsed() >= check.start_period {
            health.failing += 1;
            if health.failing >= check.retries {
                health.status = HealthStatus::Unhealthy;
            }
        }
        set(shared, health.clone());
    }
}

/// One check; its exit code (124 when it took too long) and the end of what it printed. `None` when the sandbox is gone.
fn once(shared: &Shared, process: &Process, timeout: Duration) -> Option<(u8, String)> {
    let session = shared.session().ok()?;
    let mut child = match session.exec(process) {
        Ok(child) => child,
        Err(error) => return Some((error.kind().exit_code(), error.message().to_owned())),
    };
    let handle = child.handle();
    let (sender, finished) = mpsc::channel::<()>();
    let killer = handle.clone();
    let timer = thread::Builder::new()
        .name("timeout".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            let late = finished.recv_timeout(timeout) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = killer.signal_group(signal::KILL);
            }
            late
        });
    let errors = child
        .stderr
        .take()
        .map(|stderr| thread::spawn(move || tail(stderr)));
    let mut output = tail(child.stdout);
    output.extend(errors.and_then(|errors| errors.join().ok()).unwrap_or_default());
    let status = handle.wait();
    drop(sender);
    let late = timer.ok()?.join().unwrap_or(false);
    let code = if late { 124 } else { status.ok()?.code() };
    let start = output.len().saturating_sub(KEPT);
    Some((code, String::from_utf8_lossy(&output[start..]).into_owned()))
}

fn tail(mut stream: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut piece = [0; KEPT];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        kept.extend_from_slice(&piece[..count]);
        let start = kept.len().saturating_sub(KEPT);
        kept.drain(..start);
    }
    kept
}
