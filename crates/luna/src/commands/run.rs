//! `run` and `create`: spec → decision → image → sandbox → start.

use std::path::Path;

use luna_core::error::Kind;
use luna_core::spec::{Network, Spec};
use luna_core::{Error, Result};
use luna_runtime::control::Ended;
use luna_runtime::{Runtime, Sandbox};

use super::{Front, bars, transfer};
use crate::cli::run::{CreateArgs, MakingFlags, RunArgs};
use crate::streams::{self, Connection};
use crate::{request, terminal};

pub(super) fn run(front: &Front, args: &RunArgs) -> Result<u8> {
    let flags = &args.sandbox;
    if !args.detach {
        terminal::check(flags.tty, flags.interactive)?;
    }
    let connection = Connection {
        input: flags.interactive,
        terminal: flags.tty,
        signals: args.streams.sig_proxy,
        detach: streams::keys(&args.streams.detach_keys)?,
    };
    let runtime = front.runtime()?;
    let sandbox = make(front, &runtime, request::spec(flags, args.remove)?, &args.making)?;
    let attach = (!args.detach).then(|| connection.attach(true));
    let stream = match runtime.start(&sandbox, attach) {
        Ok(stream) => stream,
        Err(error) => {
            if args.remove {
                let _ = runtime.remove(&sandbox, true, true);
            }
            return Err(error);
        }
    };
    match stream {
        Some(stream) => ended(connection.relay(stream, Some(&sandbox))?),
        None => front.printer.line(sandbox.record.id.as_str()).map(|()| 0),
    }
}

pub(super) fn create(front: &Front, args: &CreateArgs) -> Result<()> {
    let runtime = front.runtime()?;
    let sandbox = make(
        front,
        &runtime,
        request::spec(&args.sandbox, args.remove)?,
        &args.making,
    )?;
    front.printer.line(sandbox.record.id.as_str())
}

/// The program's exit code; 0 where the user left it to itself.
pub(super) fn ended(ended: Option<Ended>) -> Result<u8> {
    match ended {
        None => Ok(0),
        Some(Ended {
            error: Some(report), ..
        }) => Err(report.into()),
        Some(ended) => Ok(ended.code),
    }
}

/// The wall is chosen before the image is looked at, let alone downloaded.
fn make(front: &Front, runtime: &Runtime, spec: Spec, making: &MakingFlags) -> Result<Sandbox> {
    if let Some(file) = &making.cidfile
        && file.exists()
    {
        return Err(Error::new(
            Kind::AlreadyExists,
            format!("cannot write the id to `{}`", file.display()),
        )
        .because("the file exists")
        .hint("remove it, or name another one"));
    }
    let mut asked = runtime.asked(&spec)?;
    if making.insecure {
        // Whoever answers may have taken the name.
        asked.image.repository = None;
    }
    let decision = runtime.decide(&asked)?;
    if spec.network == Network::Host {
        front
            .printer
            .note("the network is the host's own: in this respect there is no wall");
    }
    let sandbox = if let Some(boot) = spec.boot.clone() {
        runtime.create_system(spec, decision, boot)?
    } else {
        let image = transfer::obtain(runtime, &spec.image, making)?;
        {
            let bars = bars(making.quiet);
            runtime.prepare(&spec, &decision, &image, &|progress| bars.take(progress))?;
        }
        runtime.create(spec, decision, &image)?
    };
    if let Some(file) = &making.cidfile {
        write_id(file, &sandbox)?;
    }
    Ok(sandbox)
}

fn write_id(file: &Path, sandbox: &Sandbox) -> Result<()> {
    std::fs::write(file, sandbox.record.id.as_str())
        .map_err(|e| Error::io(format!("cannot write the id to `{}`", file.display()), e))
}
