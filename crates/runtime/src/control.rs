//! What a client and a sandbox's supervisor say to each other, over `control.sock` in the sandbox's directory.
//!
//! One connection carries one request. Both sides send frames:
//!
//! ```text
//! kind: u8 | length: u32, little endian, at most 1 MiB | payload
//!
//! client                                supervisor
//!   REQUEST (JSON, [Request])  ──────▶
//!                              ◀──────  OK (JSON answer)  or  ERROR (JSON [Report])
//!   then, for attach, launch, exec and copies:
//!   STDIN bytes · EOF · RESIZE · SIGNAL ▶
//!                              ◀──────  STDOUT bytes · STDERR bytes · EXIT (JSON [Ended])
//! ```
//! The directory is its owner's only, so whoever can connect may ask everything.

pub mod client;
pub(crate) mod frame;

use std::time::Duration;

use luna_core::error::Report;
use luna_core::process::{Process, TerminalSize};
use luna_core::spec::{Resources, RestartPolicy};
use serde::{Deserialize, Serialize};

/// The supervisor's socket in a sandbox's directory.
pub(crate) const SOCKET: &str = "control.sock";

/// What can be asked of a supervisor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Only on the socket the supervisor was born with: start, and attach if asked.
    Launch {
        attach: Option<Attach>,
    },
    /// Join the main process's streams.
    Attach(Attach),
    Exec {
        process: Box<Process>,
        detach: bool,
    },
    /// To the main process.
    Signal {
        signal: u8,
    },
    /// The stop signal, then `SIGKILL` after the grace; answered when the sandbox has ended.
    Stop {
        signal: Option<u8>,
        grace: Option<Duration>,
    },
    /// Answered with [`Ended`] when the sandbox has ended.
    Wait,
    Pause,
    Resume,
    Usage,
    Processes,
    /// Answered with [`luna_core::isolation::Isolation`].
    Isolation,
    Update {
        resources: Box<Resources>,
        restart: Option<RestartPolicy>,
    },
    Stat {
        path: String,
    },
    /// Answered by a tar stream as STDOUT frames.
    CopyOut {
        path: String,
    },
    /// A tar stream as STDIN frames, unpacked into a directory that exists.
    CopyIn {
        directory: String,
        keep_ids: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    pub stdin: bool,
    /// The end of this client's input ends the program's input.
    pub stdin_once: bool,
    /// The client's terminal, where the sandbox has one too.
    pub terminal: Option<TerminalSize>,
}

/// How a main process or an exec ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub code: u8,
    #[serde(default)]
    pub out_of_memory: bool,
    #[serde(default)]
    pub error: Option<Report>,
}
