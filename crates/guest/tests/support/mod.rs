//! A real `luna-init` as an ordinary process, with its channel.

#![allow(clippy::unwrap_used, dead_code)] // helpers of tests, and no test file uses all

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use luna_core::capability::Capabilities;
use luna_core::process::{ExitStatus, Process};
use luna_guest::session::{Child, Session};

/// Init is root wherever it runs. For a developer who is not, it is root of a user namespace with the ids of /etc/subuid.
fn as_root() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &[]
    } else {
        &["unshare", "--user", "--map-root-user", "--map-auto"]
    }
}

/// Runs `luna-init` with `channel` at descriptor 3; `around` goes before it on the command line.
pub(crate) fn spawn_init(channel: UnixStream, around: &[&str]) -> std::process::Child {
    spawn(channel, around, &[OsStr::new(env!("CARGO_BIN_EXE_luna-init"))])
}

fn spawn(channel: UnixStream, around: &[&str], program: &[&OsStr]) -> std::process::Child {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh"])
        .args(as_root())
        .args(around)
        .args(program)
        .stdin(Stdio::from(OwnedFd::from(channel)));
    command.spawn().unwrap()
}

/// A session with an init that dies with it.
pub(crate) struct Guest {
    pub(crate) session: Session,
    pub(crate) init: std::process::Child,
}

impl Guest {
    pub(crate) fn new() -> Guest {
        Guest::within(&[])
    }

    pub(crate) fn within(around: &[&str]) -> Guest {
        Guest::of(|channel| spawn_init(channel, around))
    }

    /// Whose init listens at these paths and offers what it hears there.
    pub(crate) fn offering(sockets: &[&Path]) -> Guest {
        let program = example("offering");
        let mut words = vec![program.as_os_str()];
        words.extend(sockets.iter().map(|path| path.as_os_str()));
        Guest::of(|channel| spawn(channel, &[], &words))
    }

    fn of(start: impl FnOnce(UnixStream) -> std::process::Child) -> Guest {
        let (near, far) = UnixStream::pair().unwrap();
        let init = start(far);
        Guest {
            session: Session::open(near.into()).unwrap(),
            init,
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.session.close();
        let _ = self.init.wait();
    }
}

/// Cargo builds examples with the tests, beside them.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    tests.parent().unwrap().with_file_name("examples").join(name)
}

pub(crate) fn process(args: &[&str]) -> Process {
    Process {
        args: args.iter().map(ToString::to_string).collect(),
        env: Vec::new(),
        cwd: "/".to_owned(),
        user: String::new(),
        groups: Vec::new(),
        terminal: None,
        stdin: false,
        capabilities: Capabilities::DEFAULT,
        no_new_privileges: false,
        rlimits: Vec::new(),
    }
}

pub(crate) fn shell(script: &str) -> Process {
    process(&["sh", "-c", script])
}

pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

pub(crate) fn finish(child: Child) -> Outcome {
    let handle = child.handle();
    drop(child.stdin);
    let stderr = child.stderr.map(|mut stderr| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            text
        })
    });
    let mut stdout = Vec::new();
    let mut reader = child.stdout;
    reader.read_to_end(&mut stdout).unwrap();
    Outcome {
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr.map(|thread| thread.join().unwrap()).unwrap_or_default())
            .into_owned(),
        status: handle.wait().unwrap(),
    }
}

pub(crate) fn run(session: &Session, process: &Process) -> Outcome {
    finish(session.exec(process).unwrap())
}
