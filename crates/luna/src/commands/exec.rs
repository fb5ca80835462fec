//! `exec` and `attach`.

use luna_core::error::Kind;
use luna_core::process::TerminalSize;
use luna_core::{Error, Result};

use luna_runtime::Content;

use super::{Front, run};
use crate::cli::run::{AttachArgs, ExecArgs};
use crate::streams::{self, Connection};
use crate::{request, terminal};

pub(super) fn exec(front: &Front, args: &ExecArgs) -> Result<u8> {
    if args.privileged {
        return Err(Error::new(
            Kind::Unsupported,
            "cannot give one program more than its sandbox has",
        )
        .because("a wall is not widened after the start")
        .hint("make a sandbox that may do it: `luna run --cap-add CAPABILITY`"));
    }
    if !args.detach {
        terminal::check(args.tty, args.interactive)?;
    }
    let connection = Connection {
        input: args.interactive && !args.detach,
        terminal: args.tty,
        signals: true,
        detach: streams::keys(&args.detach_keys)?,
    };
    let (name, words) = args.words.split_first().expect("the grammar requires a sandbox");
    let sandbox = front.runtime()?.find(name)?;
    let mut process = sandbox.record.companion(words.to_vec())?;
    for (name, value) in request::variables(&args.env_file, &args.env)? {
        match process.env.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => process.env.push((name, value)),
        }
    }
    if let Some(directory) = &args.workdir {
        process.cwd.clone_from(directory);
    }
    if let Some(user) = &args.user {
        process.user.clone_from(user);
    }
    let default_size = TerminalSize {
        rows: 24,
        columns: 80,
    };
    process.terminal = args.tty.then(|| terminal::size().unwrap_or(default_size));
    process.stdin = connection.input;
    match sandbox.client()?.exec(process, args.detach)? {
        Some(stream) => run::ended(connection.relay(stream, None)?),
        None => Ok(0),
    }
}

pub(super) fn attach(front: &Front, args: &AttachArgs) -> Result<u8> {
    let sandbox = front.runtime()?.find(&args.sandbox)?;
    let program = &sandbox.record.spec.program;
    let proxy = args.streams.sig_proxy;
    let (stdin, terminal, signals) = match sandbox.record.content {
        Content::Program { .. } => (program.stdin, program.terminal, proxy),
        // A console is always there to be typed on, and pulling its cable out is no reason to switch the machine off.
        Content::System(_) => (true, terminal::stdin_is_terminal(), false),
    };
    let connection = Connection {
        input: stdin && !args.no_stdin,
        terminal,
        signals,
        detach: streams::keys(&args.streams.detach_keys)?,
    };
    terminal::check(connection.terminal, connection.input)?;
    let stream = sandbox.client()?.attach(connection.attach(false))?;
    run::ended(connection.relay(stream, Some(&sandbox))?)
}
