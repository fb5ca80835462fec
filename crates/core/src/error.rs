//! One error type for all of Luna, shaped like `std::io::Error`: a kind, a message, a hint, a source.
//!
//! The message reads "cannot <verb> `<object>`", lower case and without a full stop; it never repeats its source.
//! The hint can be obeyed (a command, a setting) or is left out. Only the `luna` crate prints an error, once.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What went wrong, as far as a program needs to know; see [`Kind::exit_code`] and its siblings for the one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Kind {
    /// What was asked is malformed: a flag, a reference, a file's content.
    InvalidInput,
    /// The named thing is not there.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The thing is there but in a state that does not allow this.
    Conflict,
    /// The host or the registry says no.
    PermissionDenied,
    /// This host or this version cannot do it.
    Unsupported,
    /// A policy or a required wall forbids it; never retried with less.
    Refused,
    /// A registry, a file system or a peer does not answer or went away.
    Unavailable,
    /// Bytes are not what their digest or format says.
    Corrupt,
    /// Disk, memory, ids or a configured limit is used up.
    Exhausted,
    /// A bound on waiting passed.
    TimedOut,
    /// The user or a signal stopped it.
    Interrupted,
    /// The program in the sandbox exists but cannot be executed.
    NotExecutable,
    /// The program does not exist in the sandbox.
    CommandNotFound,
    /// An invariant of Luna's does not hold: a bug.
    Internal,
}

impl Kind {
    /// The exit code of the command line, docker's: 126 not executable, 127 not found, 125 for all else.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::NotExecutable => 126,
            Kind::CommandNotFound => 127,
            _ => 125,
        }
    }

    /// The HTTP status of the front doors.
    pub fn http_status(self) -> u16 {
        match self {
            Kind::InvalidInput | Kind::NotExecutable | Kind::CommandNotFound => 400,
            Kind::PermissionDenied | Kind::Refused => 403,
            Kind::NotFound => 404,
            Kind::AlreadyExists | Kind::Conflict => 409,
            Kind::Corrupt => 422,
            Kind::Interrupted => 499,
            Kind::Internal => 500,
            Kind::Unsupported => 501,
            Kind::Unavailable => 503,
            Kind::TimedOut => 504,
            Kind::Exhausted => 507,
        }
    }

    /// The JSON-RPC code MCP answers with: -32602 invalid parameters, -32603 internal, -32000.. ours.
    pub fn mcp_code(self) -> i32 {
        match self {
            Kind::InvalidInput => -32602,
            Kind::Internal => -32603,
            Kind::NotFound => -32001,
            Kind::AlreadyExists | Kind::Conflict => -32002,
            Kind::PermissionDenied | Kind::Refused => -32003,
            Kind::Unsupported => -32004,
            Kind::Unavailable | Kind::TimedOut | Kind::Interrupted => -32005,
            Kind::Corrupt => -32006,
            Kind::Exhausted => -32007,
            Kind::NotExecutable | Kind::CommandNotFound => -32008,
        }
    }

    /// The kind that an operating system error usually means; `ENOSPC`, `EDQUOT` and `ENOMEM` are [`Kind::Exhausted`].
    pub fn of_io(error: &std::io::Error) -> Kind {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Kind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Kind::PermissionDenied,
            Io::AlreadyExists => Kind::AlreadyExists,
            Io::InvalidInput | Io::InvalidData => Kind::InvalidInput,
            Io::TimedOut => Kind::TimedOut,
            Io::StorageFull | Io::QuotaExceeded | Io::OutOfMemory => Kind::Exhausted,
            Io::Unsupported => Kind::Unsupported,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::NotConnected
            | Io::BrokenPipe
            | Io::UnexpectedEof
            | Io::HostUnreachable
            | Io::NetworkUnreachable => Kind::Unavailable,
            Io::AddrInUse | Io::ResourceBusy => Kind::Conflict,
            _ => Kind::Internal,
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync + 'static>;

struct Inner {
    kind: Kind,
    message: Cow<'static, str>,
    hint: Option<Cow<'static, str>>,
    source: Option<Source>,
}

/// See the module. One pointer wide, so that `Result<()>` stays small.
pub struct Error(Box<Inner>);

impl Error {
    pub fn new(kind: Kind, message: impl Into<Cow<'static, str>>) -> Error {
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            hint: None,
            source: None,
        }))
    }

    /// An operating system error met while doing what `message` says; the kind follows from it.
    pub fn io(message: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Error {
        let source = source.into();
        Error::new(Kind::of_io(&source), message).because(source)
    }

    /// The cause: another error or a sentence.
    #[must_use]
    pub fn because(mut self, source: impl Into<Source>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same failure seen from further out: keeps kind and hint, becomes the source of `message`.
    #[must_use]
    pub fn context(mut self, message: impl Into<Cow<'static, str>>) -> Error {
        let hint = self.0.hint.take();
        let kind = self.0.kind;
        Error(Box::new(Inner {
            kind,
            message: message.into(),
            hint,
            source: Some(Box::new(self)),
        }))
    }

    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The hint nearest to the user: this error's own or the first one below.
    pub fn hint_text(&self) -> Option<&str> {
        if let Some(hint) = &self.0.hint {
            return Some(hint);
        }
        let source = self.0.source.as_deref()?;
        source.downcast_ref::<Error>().and_then(Error::hint_text)
    }

    /// The causes below the message, outermost first.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = std::error::Error::source(self);
        while let Some(error) = next {
            let text = match error.downcast_ref::<Error>() {
                Some(ours) => ours.message().to_owned(),
                None => error.to_string(),
            };
            if causes.last() != Some(&text) {
                causes.push(text);
            }
            next = error.source();
        }
        causes
    }

    /// A copy that can cross a socket or a file: causes become text.
    pub fn report(&self) -> Report {
        Report {
            kind: self.kind(),
            message: self.message().to_owned(),
            causes: self.causes(),
            hint: self.hint_text().map(str::to_owned),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        for cause in self.causes() {
            write!(f, ": {cause}")?;
        }
        if let Some(hint) = self.hint_text() {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// An [`Error`] as it crosses a process boundary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub kind: Kind,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<Report> for Error {
    fn from(report: Report) -> Error {
        let mut error = Error::new(report.kind, report.message);
        if !report.causes.is_empty() {
            error = error.because(report.causes.join(": "));
        }
        match report.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_kind_and_hint_and_never_repeats_the_source() {
        let inner = Error::new(Kind::NotFound, "cannot open `a`").hint("create `a`");
        let outer = inner.context("cannot start `b`");
        assert_eq!(outer.kind(), Kind::NotFound);
        assert_eq!(outer.to_string(), "cannot start `b`");
        assert_eq!(outer.causes(), ["cannot open `a`"]);
        assert_eq!(outer.hint_text(), Some("create `a`"));
    }

    #[test]
    fn a_report_survives_the_journey() {
        let error =
            Error::io("cannot write `x`", std::io::Error::from_raw_os_error(28)).hint("free some space");
        let report = error.report();
        let back = Error::from(report.clone());
        assert_eq!(back.report(), report);
        assert_eq!(back.kind(), Kind::Exhausted);
    }
}
