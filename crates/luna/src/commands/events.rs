//! `events`.

use std::time::Duration;

use luna_core::Result;
use luna_core::event::{Action, Event};
use serde_json::{Value, json};

use super::Front;
use crate::cli::look::EventsArgs;
use crate::output::{Template, filters, human, one_line};

/// How long to rest at the end of the events.
const REST: Duration = Duration::from_millis(50);

pub(super) fn events(front: &Front, args: &EventsArgs) -> Result<()> {
    let filters = filters(&args.filter, &["container", "sandbox", "event", "image"])?;
    let since = args.since.as_deref().map(human::moment_text).transpose()?;
    let until = args.until.as_deref().map(human::moment_text).transpose()?;
    let json = args.json || args.format.as_deref() == Some("json");
    let template = args
        .format
        .as_deref()
        .filter(|_| !json)
        .map(Template::parse)
        .transpose()?;
    let mut events = front.runtime()?.events();
    let now = || humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string();
    let since = since.unwrap_or_else(now);
    loop {
        while let Some(event) = events.next_event()? {
            if until.as_ref().is_some_and(|until| event.time > *until) {
                return Ok(());
            }
            if event.time < since || !passes(&event, &filters) {
                continue;
            }
            if json {
                front.printer.json_line(&fields(&event))?;
            } else if let Some(template) = &template {
                front.printer.line(template.render(&fields(&event))?)?;
            } else {
                front.printer.line(line(&event))?;
            }
        }
        if until.as_ref().is_some_and(|until| now() > *until) {
            return Ok(());
        }
        std::thread::sleep(REST);
    }
}

fn passes(event: &Event, filters: &[(String, String)]) -> bool {
    let holds = |key: &str, value: &str| match key {
        "event" => word(&event.action) == value,
        "image" => event.image == value,
        _ => event.name.as_str() == value || event.id.as_str().starts_with(value),
    };
    filters.iter().all(|(key, _)| {
        filters
            .iter()
            .any(|(other, value)| other == key && holds(key, value))
    })
}

fn word(action: &Action) -> &'static str {
    match action {
        Action::Create => "create",
        Action::Start => "start",
        Action::Pause => "pause",
        Action::Unpause => "unpause",
        Action::Kill { .. } => "kill",
        Action::Exec { .. } => "exec",
        Action::Oom => "oom",
        Action::Die { .. } => "die",
        Action::Stop => "stop",
        Action::Restart => "restart",
        Action::Rename { .. } => "rename",
        Action::Update => "update",
        Action::Health { .. } => "health_status",
        Action::Condition { .. } => "condition",
        Action::Destroy => "destroy",
    }
}

/// What an action carries besides its name.
fn attribute(action: &Action) -> Option<(&'static str, String)> {
    match action {
        Action::Kill { signal } => Some(("signal", signal.clone())),
        Action::Exec { command } => Some(("command", command.clone())),
        Action::Die { exit_code } => Some(("exitCode", exit_code.to_string())),
        Action::Rename { from } => Some(("oldName", from.clone())),
        Action::Health { status } => Some(("health", status.clone())),
        Action::Condition { status } => Some(("condition", status.clone())),
        _ => None,
    }
}

/// `TIME container ACTION ID (image=…, name=…)`.
fn line(event: &Event) -> String {
    let more = attribute(&event.action).map(|(name, value)| format!("{name}={}, ", one_line(&value)));
    format!(
        "{} container {} {} ({}image={}, name={})",
        event.time,
        word(&event.action),
        event.id,
        more.unwrap_or_default(),
        one_line(&event.image),
        event.name
    )
}

fn fields(event: &Event) -> Value {
    let mut attributes = json!({"image": event.image, "name": event.name});
    if let Some((name, value)) = attribute(&event.action) {
        attributes[name] = value.into();
    }
    json!({
        "Type": "container",
        "Action": word(&event.action),
        "ID": event.id,
        "Name": event.name,
        "Image": event.image,
        "Time": event.time,
        "Actor": {"ID": event.id, "Attributes": attributes},
    })
}
