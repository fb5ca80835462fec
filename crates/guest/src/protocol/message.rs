//! Messages: postcard values inside frames. Which answers which is in [`crate::protocol`].

use std::time::Duration;

use luna_core::process::{ExitStatus, Process, TerminalSize};
use luna_core::units::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Violation;

/// The one version both ends must speak; they are always built together.
pub const VERSION: u16 = 1;
/// The longest message, put together from parts.
pub const MAX_MESSAGE: usize = 1024 * 1024;
/// Streams open at init at one time. A request that is answered at once (Signal, Resize) holds none and is always heard.
pub const MAX_STREAMS: usize = 2048;
/// How many of them only a Start or an Exec may take: whoever fills a sandbox with connections or copies leaves a way in.
pub const RESERVED_STREAMS: usize = 64;

/// Paths that one Measure may try.
pub const MAX_ATTEMPTS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u16,
}

/// What the host asks for; opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The main process: when it ends, the sandbox does. Once in a session.
    Start(Process),
    Exec(Process),
    /// `process` is the stream of a Start or Exec.
    Signal {
        process: u32,
        signal: u8,
        scope: Scope,
    },
    Resize {
        process: u32,
        size: TerminalSize,
    },
    /// A TCP connection to this port on 127.0.0.1 or else ::1.
    Connect {
        port: u16,
    },
    /// The next connection made inside to the socket that the machine offers at this path. Answered when there is one, so
    /// a host keeps some of these open for each socket.
    Accept {
        socket: String,
    },
    /// Unpacks a tar archive into a directory that exists.
    CopyIn {
        directory: String,
        ownership: Ownership,
    },
    /// Packs what lies at `path`; see [`crate::session::Session::copy_out`] for the names in it.
    CopyOut {
        path: String,
        follow: bool,
    },
    Stat {
        path: String,
        follow: bool,
    },
    Processes,
    /// What stands round the processes inside, and what becomes of trying `paths` (at most [`MAX_ATTEMPTS`]).
    Measure {
        paths: Vec<String>,
    },
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    Process,
    /// The process group that the process was started in.
    Group,
}

/// Who owns what an archive brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ownership {
    /// Root, as `docker cp` does.
    Root,
    /// The numeric ids in the archive, as `docker cp --archive` does.
    Preserved,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Started { pid: u32 },
    Exited(ExitStatus),
    Done,
    Found(FileStatus),
    Failed(Failure),
}

/// Where something went wrong inside, and the kernel's number for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    pub stage: Stage,
    pub errno: i32,
    /// The path in question where the request does not say it; at most a few kilobytes, and not to be believed.
    pub subject: String,
}

impl Failure {
    pub fn new(stage: Stage, errno: i32) -> Failure {
        Failure {
            stage,
            errno,
            subject: String::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Stage {
    /// The request itself: empty arguments, a NUL in a string, a second Start.
    Request,
    /// More streams than init keeps (`EMFILE`), or none any more: the main process has ended (`ESHUTDOWN`).
    Streams,
    /// No such process, or it has ended.
    Process,
    User,
    Group,
    Pipe,
    Terminal,
    Fork,
    Session,
    Limits,
    Directory,
    Privileges,
    /// `execve` or the search for the program.
    Program,
    Connect,
    /// The path in the request.
    Path,
    /// A path in the archive, or the archive itself.
    Archive,
    /// The copy of init that did the work was killed.
    Worker,
}

impl Stage {
    /// The stage with this number, as a child sends it through its pipe.
    pub fn of_number(number: u8) -> Option<Stage> {
        const STAGES: [Stage; 17] = [
            Stage::Request,
            Stage::Streams,
            Stage::Process,
            Stage::User,
            Stage::Group,
            Stage::Pipe,
            Stage::Terminal,
            Stage::Fork,
            Stage::Session,
            Stage::Limits,
            Stage::Directory,
            Stage::Privileges,
            Stage::Program,
            Stage::Connect,
            Stage::Path,
            Stage::Archive,
            Stage::Worker,
        ];
        STAGES.get(usize::from(number)).copied()
    }
}

/// What `stat` says about a path inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    pub kind: FileKind,
    /// Permission bits, set-id and sticky bits included.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: Bytes,
    /// Seconds since 1970.
    pub modified: i64,
    /// Where a symbolic link points, with odd bytes replaced.
    pub target: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    /// A device, a socket or a pipe.
    Special,
}

/// One line of `luna top`. Ids are the sandbox's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProcess {
    pub pid: u32,
    pub parent: u32,
    pub uid: u32,
    /// By the sandbox's `/etc/passwd`, or the number.
    pub user: String,
    /// The kernel's letter: `R`, `S`, `D`, `Z`, `T`...
    pub state: char,
    pub resident: Bytes,
    pub cpu: Duration,
    /// Since its start.
    pub age: Duration,
    /// Arguments joined by spaces, or the name in brackets where there are none. Not to be printed raw.
    pub command: String,
}

/// What a copy of init finds round itself. Files of `/proc` are as the kernel writes them, empty where they cannot be
/// read; the guest's own words, so to be parsed as hostile and not to be printed raw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Surroundings {
    /// uname(2).
    pub release: String,
    pub version: String,
    pub machine: String,
    /// `status` of init and of the main process.
    pub init: String,
    pub main: String,
    /// `mountinfo`.
    pub mounts: String,
    pub uid_map: String,
    pub gid_map: String,
    /// `attr/current`.
    pub label: String,
    /// The version the kernel answers with.
    pub landlock: Option<u32>,
    /// Name and inode.
    pub namespaces: Vec<(String, u64)>,
    pub attempts: Vec<Attempt>,
}

/// What became of trying one path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    pub path: String,
    pub seen: Seen,
    /// Whether it could be opened for writing, or the kernel's number for why not.
    pub writable: Result<(), i32>,
}

/// What reading showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seen {
    Missing,
    /// The null device in its place.
    Null,
    Empty,
    Content,
    Refused(i32),
}

/// The wire form of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    postcard::to_allocvec(message).expect("plain values always serialise into memory")
}

/// The message that all of `bytes` are.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Violation> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Violation("a message that cannot be read")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_have_their_own_numbers() {
        for number in 0..=u8::MAX {
            if let Some(stage) = Stage::of_number(number) {
                assert_eq!(stage as u8, number);
            }
        }
        assert_eq!(Stage::of_number(Stage::Worker as u8), Some(Stage::Worker));
    }

    #[test]
    fn trailing_bytes_are_a_violation() {
        let mut bytes = encode(&Hello { version: VERSION });
        assert_eq!(decode::<Hello>(&bytes), Ok(Hello { version: VERSION }));
        bytes.push(0);
        assert!(decode::<Hello>(&bytes).is_err());
    }
}
