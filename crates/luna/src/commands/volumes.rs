//! `volume`.

use luna_core::Result;
use luna_core::error::Kind;
use luna_core::name::{Id, Name};
use serde_json::{Value, json};

use super::{Front, confirmed, each, inspect};
use crate::cli::look::Type;
use crate::cli::volume::{CreateArgs, LsArgs, PruneArgs, RmArgs, VolumeCommand};
use crate::output::{Column, List, ListStyle, filters};

pub(super) fn volume(front: &Front, command: VolumeCommand) -> Result<u8> {
    match command {
        VolumeCommand::Create(args) => create(front, &args),
        VolumeCommand::Ls(args) => ls(front, &args),
        VolumeCommand::Rm(args) => return rm(front, &args),
        VolumeCommand::Inspect(args) => return inspect::inspect(front, &args, Some(Type::Volume)),
        VolumeCommand::Prune(args) => prune(front, &args),
    }
    .map(|()| 0)
}

fn create(front: &Front, args: &CreateArgs) -> Result<()> {
    let name: Name = match &args.name {
        Some(name) => name.parse()?,
        None => Id::from_random(super::up::random()?).as_str().parse()?,
    };
    front.runtime()?.volumes().create(&name, &|_| Ok(()))?;
    front.printer.line(name.as_str())
}

fn ls(front: &Front, args: &LsArgs) -> Result<()> {
    const COLUMNS: [Column; 2] = [Column("DRIVER", "Driver"), Column("VOLUME NAME", "Name")];
    let filters = filters(&args.filter, &["name"])?;
    let rows = front
        .runtime()?
        .volumes()
        .list()?
        .iter()
        .filter(|volume| {
            filters
                .iter()
                .all(|(_, part)| volume.name.as_str().contains(part.as_str()))
        })
        .map(|volume| match inspect::of_volume(volume) {
            Value::Object(row) => row,
            _ => unreachable!("an object was written"),
        })
        .collect();
    List {
        columns: &COLUMNS,
        rows,
    }
    .print(front.printer, &ListStyle::of(&args.list, "Name"))
}

fn rm(front: &Front, args: &RmArgs) -> Result<u8> {
    each(front, &args.names, |runtime, name| {
        match runtime.remove_volume(&name.parse()?) {
            Err(error) if args.force && error.kind() == Kind::NotFound => Ok(None),
            outcome => outcome.map(|()| Some(name.to_owned())),
        }
    })
}

fn prune(front: &Front, args: &PruneArgs) -> Result<()> {
    let question = if args.all {
        "Remove every volume that no sandbox names?"
    } else {
        "Remove every unnamed volume that no sandbox names?"
    };
    if !args.force && !confirmed(question)? {
        return Ok(());
    }
    let runtime = front.runtime()?;
    let mut removed = Vec::new();
    let volumes = runtime.volumes().list()?;
    for volume in volumes
        .into_iter()
        .filter(|volume| args.all || volume.is_anonymous())
    {
        match runtime.remove_volume(&volume.name) {
            Ok(()) => removed.push(volume.name),
            // In use.
            Err(error) if error.kind() == Kind::Conflict => {}
            Err(error) => return Err(error),
        }
    }
    if args.json.json {
        return front.printer.json(&json!({"volumes": removed}));
    }
    removed
        .iter()
        .try_for_each(|name| front.printer.line(name.as_str()))
}
