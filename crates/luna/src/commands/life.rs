//! Sandboxes through their life.

use std::time::Duration;

use luna_core::error::Kind;
use luna_core::{Error, Result};
use luna_runtime::{Runtime, Sandbox, State, signal};

use super::{Front, each, is_live, run};
use crate::cli::life::{KillArgs, Names, RenameArgs, RmArgs, StartArgs, StopArgs, UpdateArgs};
use crate::request;
use crate::streams::{self, Connection};
use crate::terminal;

pub(super) fn start(front: &Front, args: &StartArgs) -> Result<u8> {
    if !args.attach && !args.interactive {
        return each(front, &args.sandboxes.names, |runtime, name| {
            let sandbox = runtime.find(name)?;
            if !is_live(&sandbox)? {
                runtime.start(&sandbox, None)?;
            }
            Ok(Some(name.to_owned()))
        });
    }
    let [name] = args.sandboxes.names.as_slice() else {
        return Err(
            Error::new(Kind::InvalidInput, "cannot attach to several sandboxes at once")
                .hint("start them one by one, or without `--attach`"),
        );
    };
    let runtime = front.runtime()?;
    let sandbox = runtime.find(name)?;
    let program = &sandbox.record.spec.program;
    let connection = Connection {
        input: args.interactive && program.stdin,
        terminal: program.terminal,
        signals: args.streams.sig_proxy,
        detach: streams::keys(&args.streams.detach_keys)?,
    };
    terminal::check(connection.terminal, connection.input)?;
    let attach = connection.attach(true);
    let stream = if is_live(&sandbox)? {
        sandbox.client()?.attach(attach)?
    } else {
        runtime
            .start(&sandbox, Some(attach))?
            .expect("streams were asked for")
    };
    run::ended(connection.relay(stream, Some(&sandbox))?)
}

fn stop_one(sandbox: &Sandbox, args: &StopArgs) -> Result<()> {
    let signal = args.signal.as_deref().map(signal::parse).transpose()?;
    if !is_live(sandbox)? {
        return Ok(());
    }
    let grace = args.time.map(Duration::from_secs);
    match sandbox.client().and_then(|client| client.stop(signal, grace)) {
        Err(error) if is_live(sandbox).is_ok_and(|live| live) => Err(error),
        // Where there was an error, it ended between the two looks.
        _ => Ok(()),
    }
}

pub(super) fn stop(front: &Front, args: &StopArgs) -> Result<u8> {
    each(front, &args.sandboxes.names, |runtime, name| {
        stop_one(&runtime.find(name)?, args)?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn restart(front: &Front, args: &StopArgs) -> Result<u8> {
    each(front, &args.sandboxes.names, |runtime, name| {
        let sandbox = runtime.find(name)?;
        if sandbox.record.spec.remove && is_live(&sandbox)? {
            return Err(Error::new(Kind::Conflict, format!("cannot restart `{name}`"))
                .because("it was made with `--rm`, so it is removed when it stops"));
        }
        stop_one(&sandbox, args)?;
        runtime.start(&sandbox, None)?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn kill(front: &Front, args: &KillArgs) -> Result<u8> {
    let signal = signal::parse(&args.signal)?;
    each(front, &args.sandboxes.names, |runtime, name| {
        runtime.find(name)?.client()?.signal(signal)?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn rm(front: &Front, args: &RmArgs) -> Result<u8> {
    each(front, &args.sandboxes.names, |runtime, name| {
        let sandbox = match runtime.find(name) {
            Err(error) if args.force && error.kind() == Kind::NotFound => return Ok(None),
            Err(error) if args.force && matches!(error.kind(), Kind::Corrupt | Kind::Unsupported) => {
                runtime.remove_unreadable(name)?;
                return Ok(Some(name.to_owned()));
            }
            found => found?,
        };
        runtime.remove(&sandbox, args.force, args.volumes)?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn pause(front: &Front, args: &Names) -> Result<u8> {
    each(front, &args.names, |runtime, name| {
        runtime.find(name)?.client()?.pause()?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn unpause(front: &Front, args: &Names) -> Result<u8> {
    each(front, &args.names, |runtime, name| {
        runtime.find(name)?.client()?.resume()?;
        Ok(Some(name.to_owned()))
    })
}

pub(super) fn wait(front: &Front, args: &Names) -> Result<u8> {
    each(front, &args.names, |runtime, name| {
        wait_one(runtime, name).map(|code| Some(code.to_string()))
    })
}

fn wait_one(runtime: &Runtime, name: &str) -> Result<u8> {
    let sandbox = runtime.find(name)?;
    let status = sandbox.status()?;
    if status.state.live() {
        match sandbox
            .client()
            .and_then(luna_runtime::control::client::Client::wait)
        {
            Ok(ended) => return Ok(ended.code),
            // It ended between the two looks.
            Err(error) if is_live(&sandbox).is_ok_and(|live| live) => return Err(error),
            Err(_) => {}
        }
    }
    let status = sandbox.status()?;
    if status.state == State::Created {
        return Err(Error::new(
            Kind::Conflict,
            format!("cannot wait for `{name}`: it was never started"),
        )
        .hint(format!("start it with `luna start {name}`")));
    }
    Ok(status.exit_code.unwrap_or_default())
}

pub(super) fn rename(front: &Front, args: &RenameArgs) -> Result<()> {
    let runtime = front.runtime()?;
    let name = args.name.parse()?;
    runtime.rename(&mut runtime.find(&args.sandbox)?, &name)
}

pub(super) fn update(front: &Front, args: &UpdateArgs) -> Result<u8> {
    let restart = args.restart.as_deref().map(request::restart).transpose()?;
    each(front, &args.sandboxes.names, |runtime, name| {
        let mut sandbox = runtime.find(name)?;
        let mut resources = sandbox.record.spec.resources.clone();
        request::change(&mut resources, &args.limits)?;
        if restart.is_none() && resources == sandbox.record.spec.resources {
            return Err(Error::new(Kind::InvalidInput, format!("cannot update `{name}`"))
                .because("nothing to change was named")
                .hint("`luna update --help` lists what can be changed"));
        }
        runtime.update(&mut sandbox, resources, restart)?;
        Ok(Some(name.to_owned()))
    })
}
