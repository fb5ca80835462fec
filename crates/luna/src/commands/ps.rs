//! `ps`.

use luna_core::error::Kind;
use luna_core::spec::PortMapping;
use luna_core::{Error, Result};
use luna_runtime::{HealthStatus, PlannedMount, Sandbox, State, Status};
use serde_json::{Map, Value, json};

use super::Front;
use crate::cli::look::PsArgs;
use crate::output::{Column, List, ListStyle, filters, human, printable};

const COLUMNS: [Column; 7] = [
    Column("SANDBOX ID", "ID"),
    Column("IMAGE", "Image"),
    Column("COMMAND", "Command"),
    Column("CREATED", "RunningFor"),
    Column("STATUS", "Status"),
    Column("PORTS", "Ports"),
    Column("NAMES", "Names"),
];

pub(super) fn ps(front: &Front, args: &PsArgs) -> Result<()> {
    let filters = filters(
        &args.filter,
        &[
            "id", "name", "label", "status", "ancestor", "health", "exited", "volume",
        ],
    )?;
    for (key, value) in &filters {
        if key == "status"
            && !["created", "running", "paused", "restarting", "exited"].contains(&value.as_str())
        {
            return Err(Error::new(
                Kind::InvalidInput,
                format!("cannot filter by status `{}`", value.escape_debug()),
            )
            .hint("there are created, running, paused, restarting and exited"));
        }
    }
    let runtime = front.runtime()?;
    let (sandboxes, broken) = runtime.list()?;
    let any_state = args.all
        || args.latest
        || args.last.is_some()
        || filters.iter().any(|(key, _)| key == "status" || key == "exited");
    let mut rows = Vec::new();
    for sandbox in &sandboxes {
        // One that vanishes while the list is made is not listed.
        let Ok(status) = sandbox.status() else { continue };
        let shown = any_state || status.state.live();
        if shown && passes(sandbox, &status, &filters) {
            rows.push(row(sandbox, &status, args.list.no_trunc));
        }
    }
    if let Some(count) = args.last.or(args.latest.then_some(1)) {
        rows.truncate(count);
    }
    List {
        columns: &COLUMNS,
        rows,
    }
    .print(front.printer, &ListStyle::of(&args.list, "ID"))?;
    for error in &broken {
        front.printer.error(error);
    }
    Ok(())
}

/// Filters of one key are alternatives, labels apart; filters of different keys all hold.
fn passes(sandbox: &Sandbox, status: &Status, filters: &[(String, String)]) -> bool {
    let record = &sandbox.record;
    let holds = |key: &str, value: &str| match key {
        "id" => record.id.as_str().starts_with(value),
        "name" => record.name.as_str().contains(value.trim_matches(['^', '$', '/'])),
        "label" => match value.split_once('=') {
            Some((name, value)) => record.labels.get(name).is_some_and(|known| known == value),
            None => record.labels.contains_key(value),
        },
        "status" => status.state.to_string() == value,
        "ancestor" => {
            let reference = record.reference();
            reference == value
                || reference.strip_suffix(":latest") == Some(value)
                || value.strip_suffix(":latest") == Some(reference)
                || (value.len() >= 4
                    && record
                        .image_id()
                        .is_some_and(|id| id.trim_start_matches("sha256:").starts_with(value)))
        }
        "health" => {
            status
                .health
                .as_ref()
                .map_or("none".to_owned(), |health| health.status.to_string())
                == value
        }
        "exited" => {
            status.state == State::Exited
                && status.exit_code.map(|code| code.to_string()).as_deref() == Some(value)
        }
        _ => record.mounts.iter().any(|mount| match mount {
            PlannedMount::Volume { name, target, .. } => {
                name.as_str() == value || target.as_os_str() == value
            }
            PlannedMount::Bind { source, target, .. } => {
                source.as_os_str() == value || target.as_os_str() == value
            }
            PlannedMount::Tmpfs { .. } => false,
        }),
    };
    filters.iter().all(|(key, value)| {
        holds(key, value)
            || (key != "label"
                && filters
                    .iter()
                    .any(|(other, value)| other == key && holds(key, value)))
    })
}

fn row(sandbox: &Sandbox, status: &Status, full: bool) -> Map<String, Value> {
    let record = &sandbox.record;
    let command = record
        .process()
        .map_or_else(String::new, |process| process.args.join(" "));
    let command = printable(&command);
    let command = if full { command } else { shortened(&command, 20) };
    let labels: Vec<_> = record
        .labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mounts: Vec<_> = record
        .mounts
        .iter()
        .filter_map(|mount| match mount {
            PlannedMount::Volume { name, .. } => Some(name.to_string()),
            PlannedMount::Bind { source, .. } => Some(source.display().to_string()),
            PlannedMount::Tmpfs { .. } => None,
        })
        .collect();
    let row = json!({
        "ID": if full { record.id.as_str() } else { record.id.short() },
        "Names": record.name,
        "Image": record.reference(),
        "ImageID": record.image_id().unwrap_or_default(),
        "Command": format!("\"{command}\""),
        "CreatedAt": record.created,
        "RunningFor": human::ago(&record.created),
        "State": status.state.to_string(),
        "Status": state_in_words(status),
        "Ports": status.ports.iter().map(port).collect::<Vec<_>>().join(", "),
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "Networks": record.spec.network,
        "Wall": record.decision.engine.wall,
    });
    match row {
        Value::Object(row) => row,
        _ => unreachable!("an object was written"),
    }
}

pub(super) fn shortened(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(length - 1).collect();
    short.push('…');
    short
}

/// `127.0.0.1:8080->80/tcp`.
pub(super) fn port(mapping: &PortMapping) -> String {
    format!(
        "{}->{}/tcp",
        std::net::SocketAddr::new(mapping.address, mapping.host),
        mapping.sandbox
    )
}

/// `Up 5 minutes (healthy)`, `Exited (0) 2 hours ago`.
fn state_in_words(status: &Status) -> String {
    let for_ = |time: &Option<String>| {
        time.as_deref()
            .and_then(human::since)
            .map_or_else(|| "some time".to_owned(), human::span)
    };
    match status.state {
        State::Created => "Created".to_owned(),
        State::Paused => format!("Up {} (Paused)", for_(&status.started)),
        State::Restarting => {
            format!(
                "Restarting ({}) {} ago",
                status.exit_code.unwrap_or_default(),
                for_(&status.finished)
            )
        }
        State::Exited => {
            format!(
                "Exited ({}) {} ago",
                status.exit_code.unwrap_or_default(),
                for_(&status.finished)
            )
        }
        State::Running => {
            let health = match status.health.as_ref().map(|health| health.status) {
                None => "",
                Some(HealthStatus::Starting) => " (health: starting)",
                Some(HealthStatus::Healthy) => " (healthy)",
                Some(HealthStatus::Unhealthy) => " (unhealthy)",
            };
            format!("Up {}{health}", for_(&status.started))
        }
    }
}
