//! What happens, as it happens: progress of long work and the life of sandboxes.

use serde::{Deserialize, Serialize};

use crate::name::{Id, Name};

/// A step of long work, for a progress bar or a log line. Whoever does the work says only what happens; the printer
/// decides how it looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Progress {
    /// A named piece of work began; `total` in bytes where known.
    Started {
        key: String,
        label: String,
        total: Option<u64>,
    },
    /// `done` bytes of it so far.
    Advanced {
        key: String,
        done: u64,
    },
    Finished {
        key: String,
        label: String,
    },
    /// A line for people that stands on its own: a fallback taken, a step of a build.
    Note {
        text: String,
    },
    /// Output of a build step, as it came.
    Output {
        text: String,
    },
}

/// Takes progress; called from any thread, must not block for long.
pub type Sink<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// A change in a sandbox's life, as `luna events` shows it. Stored one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
    pub id: Id,
    pub name: Name,
    pub image: String,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Create,
    Start,
    Pause,
    Unpause,
    Kill {
        signal: String,
    },
    Exec {
        command: String,
    },
    Oom,
    Die {
        exit_code: u8,
    },
    Stop,
    Restart,
    Rename {
        from: String,
    },
    Update,
    Health {
        status: String,
    },
    /// It stands still, does not answer, or goes on again; see `engine::Condition`.
    Condition {
        status: String,
    },
    Destroy,
}
