//! `kernel`.

use luna_core::error::Kind;
use luna_core::units::Bytes;
use luna_core::{Error, Result};
use luna_runtime::kernel::build::BuildRequest;
use luna_runtime::kernel::fetch::FetchRequest;
use luna_runtime::kernel::import::ImportRequest;
use luna_runtime::kernel::{Entry, Kernel, Trust, build, fetch, import};
use serde_json::{Map, Value, json};

use super::{Front, bars, each};
use crate::cli::kernel::{BuildArgs, FetchArgs, ImportArgs, KernelCommand, LsArgs, RmArgs};
use crate::output::{Column, List, ListStyle};

pub(super) fn kernel(front: &Front, command: KernelCommand) -> Result<u8> {
    match command {
        KernelCommand::Build(args) => self::build(front, args),
        KernelCommand::Fetch(args) => self::fetch(front, args),
        KernelCommand::Ls(args) => return ls(front, &args),
        KernelCommand::Import(args) => self::import(front, args),
        KernelCommand::Rm(args) => return rm(front, &args),
    }
    .map(|()| 0)
}

fn build(front: &Front, args: BuildArgs) -> Result<()> {
    let bars = bars(args.quiet);
    let request = BuildRequest {
        source: args.source,
        jobs: args.jobs,
    };
    let kernel = build::build(&front.runtime()?.kernels(), &request, &|progress| {
        bars.take(progress);
    })?;
    drop(bars);
    front.printer.line(kernel.name.as_str())
}

fn fetch(front: &Front, args: FetchArgs) -> Result<()> {
    let bars = bars(args.quiet);
    let request = FetchRequest {
        package: args.package,
    };
    let kernel = fetch::fetch(&front.runtime()?.kernels(), &request, &|progress| {
        bars.take(progress);
    })?;
    drop(bars);
    front.printer.line(kernel.name.as_str())
}

fn import(front: &Front, args: ImportArgs) -> Result<()> {
    let request = ImportRequest {
        path: args.path,
        name: args.name.map(|name| name.parse()).transpose()?,
        modules: args.modules,
    };
    let kernel = import::import(&front.runtime()?.kernels(), &request)?;
    front.printer.line(kernel.name.as_str())
}

/// A kernel that cannot be used is listed with the reason; where they were to be verified it is the command's failure.
fn ls(front: &Front, args: &LsArgs) -> Result<u8> {
    const COLUMNS: [Column; 6] = [
        Column("NAME", "Name"),
        Column("RELEASE", "Release"),
        Column("ORIGIN", "Origin"),
        Column("SIZE", "Size"),
        Column("MODULES", "Modules"),
        Column("STATE", "State"),
    ];
    let mut failure: Option<Error> = None;
    let mut rows = Vec::new();
    for Entry { name, kernel } in front.runtime()?.kernels().list()? {
        let verified = kernel.and_then(|kernel| {
            if args.verify {
                kernel.verify(Trust::Nothing)?;
            }
            Ok(kernel)
        });
        match verified {
            Ok(kernel) => rows.push(row(&kernel, args.verify)),
            Err(error) => {
                let why = error.causes().pop().unwrap_or_else(|| error.message().to_owned());
                rows.push(object(json!({"Name": name, "State": format!("unusable: {why}")})));
                failure = failure.or(Some(error));
            }
        }
    }
    List {
        columns: &COLUMNS,
        rows,
    }
    .print(front.printer, &ListStyle::of(&args.list, "Name"))?;
    match failure {
        Some(error) if args.verify => Err(error),
        _ => Ok(0),
    }
}

fn row(kernel: &Kernel, verified: bool) -> Map<String, Value> {
    object(json!({
        "Name": kernel.name,
        "Release": kernel.release,
        "Architecture": kernel.architecture.as_str(),
        "Origin": kernel.origin.verb(),
        "Size": Bytes(kernel.size).to_string(),
        "Modules": kernel.modules.len(),
        "Modular": kernel.modular(),
        "State": if verified { "verified" } else { "ready" },
        "Path": kernel.path,
        "Manifest": kernel.manifest(),
    }))
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(row) => row,
        _ => unreachable!("an object was written"),
    }
}

fn rm(front: &Front, args: &RmArgs) -> Result<u8> {
    each(front, &args.names, |runtime, name| {
        match runtime.kernels().remove(&name.parse()?) {
            Err(error) if args.force && error.kind() == Kind::NotFound => Ok(None),
            outcome => outcome.map(|()| Some(name.to_owned())),
        }
    })
}
