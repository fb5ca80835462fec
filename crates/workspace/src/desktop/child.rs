//! One program of the desktop: started with a clean environment in a process group of its own, its words passed to the log.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};

use super::place::Place;
use crate::journal;

/// All that a child may know: nothing of the service's own environment, where the token is.
#[derive(Clone, Debug)]
pub(super) struct Environment(Vec<(&'static str, OsString)>);

impl Environment {
    pub(super) fn base(place: &Place) -> Environment {
        let home = place.home.clone().into_os_string();
        Environment(vec![
            ("PATH", "/usr/local/bin:/usr/bin:/bin".into()),
            ("HOME", home),
            ("USER", "luna".into()),
            ("LOGNAME", "luna".into()),
            ("SHELL", "/bin/bash".into()),
            ("LANG", "C.UTF-8".into()),
            ("XDG_RUNTIME_DIR", place.directory().into()),
            ("XAUTHORITY", place.x_authority().into()),
            // No accessibility bus and no session bus here; asking for them costs a second.
            ("NO_AT_BRIDGE", "1".into()),
            ("DBUS_SESSION_BUS_ADDRESS", "disabled:".into()),
        ])
    }

    pub(super) fn desktop(place: &Place, display: &str) -> Environment {
        let mut environment = Environment::base(place);
        environment.0.push(("DISPLAY", display.into()));
        environment
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub(super) struct Program {
    name: &'static str,
    path: PathBuf,
    arguments: Vec<OsString>,
    announces: bool,
}

impl Program {
    pub(super) fn new(name: &'static str, path: &str) -> Program {
        Program {
            name,
            path: path.into(),
            arguments: Vec::new(),
            announces: false,
        }
    }

    /// Standard output is for [`Running::take_stdout`]; otherwise nobody hears it.
    pub(super) fn announcing(mut self) -> Program {
        self.announces = true;
        self
    }

    pub(super) fn arguments<T: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = T>) -> Program {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    pub(super) fn start(&self, environment: &Environment) -> Result<Running, String> {
        let mut child = Command::new(&self.path)
            .args(&self.arguments)
            .env_clear()
            .envs(environment.0.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            // Never the service's own output: a child could open it for reading and learn what is logged.
            .stdout(if self.announces {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot start `{}`: {error}", self.path.display()))?;
        let last_words = Arc::<Mutex<VecDeque<String>>>::default();
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        let stderr = child.stderr.take().expect("stderr is piped above");
        tokio::spawn(listen(self.name, stderr, Arc::clone(&last_words)));
        Ok(Running {
            child,
            group,
            last_words,
        })
    }
}

/// A started program. Drop kills its whole process group.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    group: Option<Pid>,
    last_words: Arc<Mutex<VecDeque<String>>>,
}

impl Running {
    const GRACE: Duration = Duration::from_secs(3);

    /// Waits until the program itself is gone; safe to cancel.
    pub(super) async fn ended(&mut self) {
        let _ = self.child.wait().await;
    }

    /// SIGTERM to the program alone, which knows best how to end its own processes; after three seconds SIGKILL to them all.
    pub(super) async fn stop(&mut self) {
        let Some(process) = self.child.id().and_then(|id| Pid::from_raw(id as i32)) else {
            return;
        };
        let _ = kill_process(process, Signal::TERM);
        if tokio::time::timeout(Running::GRACE, self.ended()).await.is_err() {
            self.kill();
            self.ended().await;
        }
    }

    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    pub(super) fn last_words(&self) -> Vec<String> {
        let words = self.last_words.lock().unwrap_or_else(PoisonError::into_inner);
        words.iter().cloned().collect()
    }

    fn kill(&self) {
        if let Some(group) = self.group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only while the child is unreaped does its group surely still carry its number.
        if self.child.id().is_some() {
            self.kill();
        }
    }
}

/// Passes at most `BURST` lines a second to the log and keeps the last few for an explanation.
async fn listen(
    name: &'static str,
    mut from: impl AsyncRead + Unpin,
    last_words: Arc<Mutex<VecDeque<String>>>,
) {
    const BURST: u32 = 20;
    const KEPT: usize = 8;
    let (mut chunk, mut line) = ([0; 2048], Vec::new());
    let (mut second, mut lines) = (tokio::time::Instant::now(), 0);
    while let Ok(count @ 1..) = from.read(&mut chunk).await {
        for byte in &chunk[..count] {
            if *byte != b'\n' {
                if line.len() < journal::LINE {
                    line.push(*byte);
                }
                continue;
            }
            let text = journal::tame(&String::from_utf8_lossy(&line));
            line.clear();
            if text.trim().is_empty() {
                continue;
            }
            if second.elapsed() >= Duration::from_secs(1) {
                (second, lines) = (tokio::time::Instant::now(), 0);
            }
            lines += 1;
            if lines <= BURST {
                journal::note(name, &text);
            }
            let mut words = last_words.lock().unwrap_or_else(PoisonError::into_inner);
            if words.len() == KEPT {
                words.pop_front();
            }
            words.push_back(text);
        }
    }
}
