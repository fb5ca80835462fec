//! A Dockerfile as values: what [`super::parse`] reads, and what it says about a line that it cannot.

use luna_core::{Error, Kind};

use super::heredoc::Heredoc;

/// What is wrong with one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// From 1; 0 where the file as a whole is meant.
    pub line: usize,
    pub message: String,
    pub hint: Option<String>,
}

impl Flaw {
    pub fn new(line: usize, message: impl Into<String>) -> Flaw {
        Flaw {
            line,
            message: message.into(),
            hint: None,
        }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Flaw {
        self.hint = Some(hint.into());
        self
    }

    /// The error a user reads, with the file's name.
    pub fn in_file(self, file: &str) -> Error {
        let place = if self.line == 0 {
            file.to_owned()
        } else {
            format!("{file}:{}", self.line)
        };
        let error = Error::new(Kind::InvalidInput, format!("cannot build `{place}`")).because(self.message);
        match self.hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The whole file. Variables are not expanded yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dockerfile {
    /// The value of a `# syntax=` line, which Luna ignores.
    pub syntax: Option<String>,
    /// `\` or `` ` ``.
    pub escape: char,
    /// ARG before the first FROM.
    pub arguments: Vec<Declaration>,
    /// Never empty.
    pub stages: Vec<Stage>,
}

/// `ARG name[=default]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    pub line: usize,
    pub name: String,
    pub default: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    pub line: usize,
    /// In lower case, as BuildKit compares them.
    pub name: Option<String>,
    pub image: String,
    pub platform: Option<String>,
    pub instructions: Vec<Instruction>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub line: usize,
    /// The instruction on one line, for people and for the image's history.
    pub text: String,
    pub action: Action,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Run(Run),
    Copy(Copy),
    Env(Vec<(String, String)>),
    Arg(Vec<Declaration>),
    Workdir(String),
    User(String),
    Label(Vec<(String, String)>),
    Expose(Vec<String>),
    Volume(Vec<String>),
    Command(Command),
    Entrypoint(Command),
    Shell(Vec<String>),
    StopSignal(String),
    Healthcheck(Healthcheck),
    Author(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Exec(Vec<String>),
    /// For the stage's SHELL, continuations joined.
    Shell(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub command: Command,
    pub heredocs: Vec<Heredoc>,
    /// Values of `--mount`, checked as far as they hold no variable.
    pub mounts: Vec<String>,
    pub network: RunNetwork,
}

/// `RUN --network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunNetwork {
    #[default]
    Default,
    None,
    Host,
}

/// COPY, or ADD where `add` is set: then a local archive is extracted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub add: bool,
    pub from: Option<String>,
    pub chown: Option<String>,
    pub chmod: Option<String>,
    pub exclude: Vec<String>,
    /// Never empty.
    pub sources: Vec<Source>,
    pub destination: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Path(String),
    Heredoc(Heredoc),
}

/// Times are in nanoseconds, as docker's config has them; 0 is "inherited".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Healthcheck {
    Disabled,
    Check {
        command: Command,
        interval: u64,
        timeout: u64,
        start_period: u64,
        retries: u32,
    },
}
