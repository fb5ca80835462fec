//! The host, and Luna itself.

use clap::CommandFactory;
use luna_core::engine::EngineProfile;
use luna_core::host::{Check, Outcome};
use luna_core::policy;
use luna_core::{Error, Result};
use serde_json::{Map, Value, json};

use super::Front;
use crate::cli::Cli;
use crate::cli::host::{CompletionArgs, HostArgs, ManArgs, VersionArgs};
use crate::output::{Column, List, ListStyle};

/// The columns of [`row`].
pub(super) const CHECKS: [Column; 5] = [
    Column("CHECK", "Check"),
    Column("OUTCOME", "Outcome"),
    Column("TOOK", "Took"),
    Column("DETAIL", "Detail"),
    Column("FIX", "Fix"),
];

pub(super) fn host(front: &Front, args: &HostArgs) -> Result<()> {
    let report = front.runtime()?.host(!args.cached)?;
    if args.json.json {
        return front.printer.json(&json!(report));
    }
    let who = if report.rootless {
        "without root"
    } else {
        "as root"
    };
    front.printer.line(format!(
        "Linux {} on {}, {} CPUs, {} of {} memory free, {who}",
        report.kernel, report.architecture, report.cpus, report.memory_available, report.memory_total
    ))?;
    for engine in &report.engines {
        let verdict = match engine.obstacle() {
            None => "works".to_owned(),
            Some(check) => format!("not here: {} is missing", check.name),
        };
        front
            .printer
            .line(format!("\n{}: {verdict}", title(engine.profile)))?;
        let rows: Vec<_> = engine.checks.iter().map(row).collect();
        if !rows.is_empty() {
            List {
                columns: &CHECKS,
                rows,
            }
            .print(front.printer, &ListStyle::TABLE)?;
        }
    }
    Ok(())
}

/// `Container`, `VM (hardware virtualization)`.
pub(super) fn title(profile: EngineProfile) -> String {
    let mut title = policy::describe(&profile).trim_start_matches("the ").to_owned();
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

pub(super) fn row(check: &Check) -> Map<String, Value> {
    let outcome = match check.outcome {
        Outcome::Works => "works",
        Outcome::Absent => "absent",
        Outcome::Missing => "MISSING",
    };
    let row = json!({
        "Check": check.name,
        "Outcome": outcome,
        "Took": format!("{:.1} ms", check.took.as_secs_f64() * 1000.0),
        "Detail": check.detail,
        "Fix": check.fix,
    });
    match row {
        Value::Object(row) => row,
        _ => unreachable!("an object was written"),
    }
}

pub(super) fn completion(front: &Front, args: &CompletionArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "luna", &mut script);
    front.printer.raw(&script)
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    let fail = |e: std::io::Error| Error::io(format!("cannot write to `{}`", args.directory.display()), e);
    std::fs::create_dir_all(&args.directory).map_err(fail)?;
    clap_mangen::generate_to(Cli::command(), &args.directory).map_err(fail)
}

pub(super) fn version(front: &Front, args: &VersionArgs) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json.json {
        return front
            .printer
            .json(&json!({"luna": version, "architecture": std::env::consts::ARCH}));
    }
    front.printer.line(format!("luna {version}"))
}
