//! What a failure inside means to the user: init sends a stage and an errno, the host knows what was asked.

use std::io;

use luna_core::process::Process;
use luna_core::{Error, Kind};

use crate::protocol::{Failure, Stage};

/// `EBADMSG`, which init says where no system call failed.
const BAD_MESSAGE: i32 = 74;
/// `ESHUTDOWN`, once the main process has ended.
const SHUT_DOWN: i32 = 108;

fn cause(failure: &Failure) -> io::Error {
    io::Error::from_raw_os_error(failure.errno)
}

/// Why `process` could not be started.
pub(super) fn process(failure: &Failure, process: &Process) -> Error {
    let program = process.args.first().map_or("", String::as_str).escape_debug();
    let cause = cause(failure);
    match (failure.stage, cause.kind()) {
        (Stage::Program, io::ErrorKind::NotFound) if !program.to_string().contains('/') => Error::new(
            Kind::CommandNotFound,
            format!("cannot find `{program}` in the sandbox's PATH"),
        ),
        (Stage::Program, io::ErrorKind::NotFound) => Error::new(
            Kind::CommandNotFound,
            format!("cannot find `{program}` in the sandbox"),
        )
        .because("neither it nor, if it is a script or dynamically linked, its interpreter may be missing"),
        (Stage::Program, _) => Error::new(
            Kind::NotExecutable,
            format!("cannot execute `{program}` in the sandbox"),
        )
        .because(cause),
        (Stage::User | Stage::Group, kind) => {
            let (what, text) = if failure.stage == Stage::User {
                ("user", process.user.split(':').next().unwrap_or_default())
            } else {
                (
                    "group",
                    process.user.split_once(':').map_or("", |(_, group)| group),
                )
            };
            let text = if text.is_empty() {
                process.groups.join(", ")
            } else {
                text.to_owned()
            };
            let message = format!("cannot run as {what} `{}` in the sandbox", text.escape_debug());
            match kind {
                io::ErrorKind::NotFound => Error::new(Kind::NotFound, message).because(format!(
                    "no such {what} in its /etc/{}",
                    if what == "user" { "passwd" } else { "group" }
                )),
                io::ErrorKind::InvalidInput => Error::new(Kind::InvalidInput, message)
                    .because("neither a name nor a number up to 2147483647")
                    .hint("write `user`, `user:group`, `uid` or `uid:gid`"),
                _ => Error::io(message, cause),
            }
        }
        (Stage::Directory, _) => of_path(
            format!(
                "cannot enter the working directory `{}` in the sandbox",
                process.cwd.escape_debug()
            ),
            cause,
        ),
        (Stage::Limits, kind) => {
            let error = Error::io(format!("cannot set the resource limits of `{program}`"), cause);
            match kind {
                io::ErrorKind::PermissionDenied => {
                    error.hint("ask for no more than Luna's own hard limits, which `ulimit -Ha` shows")
                }
                _ => error,
            }
        }
        (Stage::Privileges, _) => Error::io(
            format!("cannot set the user and capabilities of `{program}`"),
            cause,
        ),
        (Stage::Terminal, _) => Error::io(format!("cannot give `{program}` a terminal"), cause),
        (Stage::Request, io::ErrorKind::AlreadyExists) => Error::new(
            Kind::Conflict,
            "cannot start a second main process in the sandbox",
        ),
        (Stage::Request, _) => Error::new(
            Kind::InvalidInput,
            format!("cannot start `{program}` in the sandbox"),
        )
        .because(
            "the program's name is empty, or an argument or variable holds a NUL or a name without value",
        ),
        _ => other(failure).context(format!("cannot start `{program}` in the sandbox")),
    }
}

/// Why no connection to `port` came to be.
pub(super) fn port(failure: &Failure, port: u16) -> Error {
    match failure.stage {
        Stage::Connect => Error::io(
            format!("cannot connect to port {port} in the sandbox"),
            cause(failure),
        ),
        _ => other(failure),
    }
}

/// Why no connection came from `socket`.
pub(super) fn socket(failure: &Failure, socket: &str) -> Error {
    match failure.stage {
        Stage::Path | Stage::Connect => Error::io(
            format!(
                "cannot accept a connection at `{}` in the sandbox",
                socket.escape_debug()
            ),
            cause(failure),
        ),
        _ => other(failure),
    }
}

/// Why something at `path` could not be done, or at another path in an archive.
pub(super) fn path(failure: &Failure, path: &str) -> Error {
    let subject = if failure.stage == Stage::Archive {
        failure.subject.as_str()
    } else {
        path
    };
    let message = format!("cannot access `{}` in the sandbox", subject.escape_debug());
    match failure.stage {
        Stage::Archive if failure.errno == BAD_MESSAGE => {
            Error::new(Kind::Corrupt, message).because("the archive is no tar or ends in the middle")
        }
        Stage::Path | Stage::Archive => of_path(message, cause(failure)),
        Stage::Worker => {
            Error::new(Kind::Interrupted, message).because("the copy of init that did it was killed")
        }
        _ => other(failure),
    }
}

/// What is wrong with a path is the asker's matter, not a bug.
fn of_path(message: String, cause: io::Error) -> Error {
    use io::ErrorKind as Io;
    match cause.kind() {
        Io::NotADirectory | Io::IsADirectory | Io::InvalidFilename => {
            Error::new(Kind::InvalidInput, message).because(cause)
        }
        // ELOOP
        _ if cause.raw_os_error() == Some(40) => Error::new(Kind::InvalidInput, message).because(cause),
        _ => Error::io(message, cause),
    }
}

/// A failure whose stage says it all.
pub(super) fn other(failure: &Failure) -> Error {
    let cause = cause(failure);
    match failure.stage {
        Stage::Streams if failure.errno == SHUT_DOWN => {
            Error::new(Kind::Unavailable, "cannot begin anything in the sandbox")
                .because("its main process has ended")
        }
        Stage::Streams => Error::new(Kind::Exhausted, "cannot open another stream into the sandbox"),
        Stage::Process => Error::new(Kind::NotFound, "cannot find the process in the sandbox").because(cause),
        Stage::Pipe | Stage::Fork => {
            Error::new(Kind::Exhausted, "cannot make another process in the sandbox").because(cause)
        }
        _ => Error::io("cannot do that in the sandbox", cause),
    }
}
