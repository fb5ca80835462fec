//! `inspect --isolation`: what stands round a running sandbox, as a table of what was read outside and inside.

use std::fmt::Write;

use luna_core::Result;
use luna_core::isolation::{
    Attempt, Cgroup, Closed, Credentials, IdMap, Isolation, Mount, Mounts, Process, Role, Seen,
};
use luna_core::policy;
use luna_core::units::Bytes;
use luna_runtime::Runtime;
use serde_json::{Map, Value, json};

use super::Front;
use crate::cli::look::InspectArgs;
use crate::output::{Column, List, ListStyle, Template};

pub(super) fn isolation(front: &Front, args: &InspectArgs) -> Result<u8> {
    let format = args.format.as_deref().filter(|format| *format != "json");
    let template = format.map(Template::parse).transpose()?;
    let runtime = front.runtime()?;
    let mut code = 0;
    let mut found = Vec::new();
    for name in &args.names {
        match of(&runtime, name) {
            Ok(measured) => found.push(measured),
            Err(error) => {
                front.printer.error(&error);
                code = error.kind().exit_code();
            }
        }
    }
    match template {
        Some(template) => {
            for measured in &found {
                front.printer.line(template.render(&json!(measured))?)?;
            }
        }
        None if args.json || args.format.is_some() => front.printer.json(&json!(found))?,
        None => {
            for (index, measured) in found.iter().enumerate() {
                if index > 0 {
                    front.printer.line("")?;
                }
                tell(front, measured)?;
            }
        }
    }
    Ok(code)
}

fn of(runtime: &Runtime, name: &str) -> Result<Isolation> {
    runtime.find(name)?.client()?.isolation()
}

/// Rows of three cells: what, outside, inside.
#[derive(Default)]
struct Table(Vec<Map<String, Value>>);

impl Table {
    fn row(&mut self, what: &str, outside: impl Into<String>, inside: impl Into<String>) {
        let row = json!({"What": what, "Outside": outside.into(), "Inside": inside.into()});
        self.0.extend(match row {
            Value::Object(row) => Some(row),
            _ => None,
        });
    }

    fn print(self, front: &Front, headings: [&'static str; 3]) -> Result<()> {
        let [what, outside, inside] = headings;
        List {
            columns: &[
                Column(what, "What"),
                Column(outside, "Outside"),
                Column(inside, "Inside"),
            ],
            rows: self.0,
        }
        .print(front.printer, &ListStyle::TABLE)
    }
}

fn tell(front: &Front, found: &Isolation) -> Result<()> {
    let printer = front.printer;
    printer.line(format!(
        "`{}` runs in {}",
        found.name,
        policy::describe(&found.engine)
    ))?;
    printer.line(format!("  because: {}", found.reason))?;
    printer.line(format!("  image: {} ({})", found.reference, found.image))?;
    printer.line("")?;
    wall(found).print(front, ["", "FROM OUTSIDE", "FROM INSIDE"])?;
    printer.line("")?;
    mounts(found).print(front, ["MOUNT", "FROM OUTSIDE", "FROM INSIDE"])?;
    if found.inside.attempts.is_empty() {
        return Ok(());
    }
    printer.line("")?;
    attempts(&found.inside.attempts).print(front, ["PATH", "SHOULD BE", "TRIED FROM INSIDE"])
}

fn wall(found: &Isolation) -> Table {
    let (outside, inside) = (&found.outside, &found.inside);
    let mut table = Table::default();
    let whose = if found.engine.own_kernel() {
        "its own"
    } else {
        "the host's"
    };
    table.row(
        "kernel",
        format!("{} (the host's)", found.host_kernel.release),
        format!("{} ({whose})", inside.kernel.release),
    );
    table.row(
        "kernel version",
        &found.host_kernel.version,
        &inside.kernel.version,
    );
    table.row("user map", map(&outside.uid_map), map(&inside.uid_map));
    table.row("group map", map(&outside.gid_map), map(&inside.gid_map));
    for role in [Role::Vmm, Role::Init, Role::Main] {
        processes(
            &mut table,
            role,
            find(&outside.processes, role),
            find(&inside.processes, role),
            outside.seccomp_filter.as_deref(),
        );
    }
    let label = |label: &Option<String>| label.clone().unwrap_or_else(|| "none".to_owned());
    table.row("security label", label(&outside.label), label(&inside.label));
    table.row(
        "Landlock",
        outside.landlock.map_or_else(
            || "not entered".to_owned(),
            |version| format!("entered scopes, version {version}"),
        ),
        inside.landlock.map_or_else(
            || "none".to_owned(),
            |version| format!("kernel has version {version}"),
        ),
    );
    for namespace in &outside.namespaces {
        let whose = match (namespace.own, namespace.host) {
            (Some(true), Some(host)) => format!("own (Luna's: {host})"),
            (Some(false), _) => "the host's".to_owned(),
            _ => "not compared".to_owned(),
        };
        let within = inside
            .namespaces
            .iter()
            .find(|other| other.name == namespace.name)
            .map(|other| other.inode.to_string());
        table.row(
            &format!("namespace {}", namespace.name),
            format!("{}, {whose}", namespace.inode),
            within.unwrap_or_default(),
        );
    }
    for cgroup in &outside.cgroups {
        limits(&mut table, cgroup);
    }
    table
}

fn find(processes: &[Process], role: Role) -> Option<&Process> {
    processes.iter().find(|process| process.role == role)
}

fn map(map: &[IdMap]) -> String {
    let mut text = String::new();
    for (index, line) in map.iter().enumerate() {
        let comma = if index > 0 { ", " } else { "" };
        // A String takes every write.
        let _ = write!(text, "{comma}{}+{} is {}", line.inside, line.count, line.outside);
    }
    text
}

fn processes(
    table: &mut Table,
    role: Role,
    outside: Option<&Process>,
    inside: Option<&Process>,
    filter: Option<&str>,
) {
    if outside.is_none() && inside.is_none() {
        return;
    }
    let name = match role {
        Role::Init => "init",
        Role::Main => "main program",
        Role::Vmm => "VMM",
    };
    let mut row = |what: &str, cell: &dyn Fn(&Process) -> String, more: &str| {
        let outside = outside.map(cell).map(|text| text + more);
        table.row(
            &format!("{name}: {what}"),
            outside.unwrap_or_default(),
            inside.map(cell).unwrap_or_default(),
        );
    };
    row(
        "pid, user, group",
        &|process| {
            let Credentials { uid, gid, .. } = process.credentials;
            format!("{}, {uid}, {gid}", process.pid)
        },
        "",
    );
    let list = |names: &[String]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    row("bounding", &|process| list(&process.credentials.bounding), "");
    row("effective", &|process| list(&process.credentials.effective), "");
    row(
        "no new privileges",
        &|process| match process.credentials.no_new_privileges {
            Some(true) => "yes".to_owned(),
            Some(false) => "no".to_owned(),
            None => String::new(),
        },
        "",
    );
    let digest = filter.map(|digest| format!(", {digest}")).unwrap_or_default();
    row("seccomp", &seccomp, &digest);
}

fn seccomp(process: &Process) -> String {
    match (
        process.credentials.seccomp_mode,
        process.credentials.seccomp_filters,
    ) {
        (Some(0), _) => "none".to_owned(),
        (Some(1), _) => "strict".to_owned(),
        (Some(2), Some(count)) => format!("filter ({count})"),
        (Some(_), _) => "filter".to_owned(),
        (None, _) => String::new(),
    }
}

fn limits(table: &mut Table, cgroup: &Cgroup) {
    let place = &cgroup.place;
    let controllers = place.controllers.join(",");
    let holds = if cgroup.holds { "" } else { " (init is not in it)" };
    table.row(
        format!("cgroup v{} {controllers}", place.version).trim_end(),
        format!("{}{holds}", place.path.display()),
        "",
    );
    for (file, value) in &cgroup.values {
        let value = match value.parse::<u64>() {
            // Version 1's "no limit", a page short of 2⁶³.
            Ok(bytes) if file.starts_with("memory.") && bytes >= 1 << 62 => "max".to_owned(),
            Ok(bytes) if file.starts_with("memory.") => format!("{bytes} ({})", Bytes(bytes)),
            _ => value.clone(),
        };
        table.row(&format!("  {file}"), value, "");
    }
}

/// Each mount once; what only one side sees stands on its side alone.
fn mounts(found: &Isolation) -> Table {
    let mut table = Table::default();
    let (outside, inside) = (&found.outside.mounts, &found.inside.mounts);
    let text = |mount: &Mount| {
        // A cgroup's place is told from where one looks.
        let below = if mount.root == "/" || mount.file_system.starts_with("cgroup") {
            String::new()
        } else {
            format!(" {}", mount.root)
        };
        format!("{}{below} ({})", mount.file_system, mount.options)
    };
    let mut left: Vec<_> = inside.mounts.iter().collect();
    for mount in &outside.mounts {
        let same = left
            .iter()
            .position(|other| (&other.target, text(other)) == (&mount.target, text(mount)));
        let seen = match same {
            Some(index) => {
                left.remove(index);
                "the same"
            }
            None => "",
        };
        table.row(&mount.target, text(mount), seen);
    }
    for mount in left {
        table.row(&mount.target, "", text(mount));
    }
    let more = |mounts: &Mounts| match mounts.left_out {
        0 => String::new(),
        count => format!("{count} more"),
    };
    if outside.left_out + inside.left_out > 0 {
        table.row("", more(outside), more(inside));
    }
    table
}

fn attempts(attempts: &[Attempt]) -> Table {
    let mut table = Table::default();
    let errno = |number: i32| {
        let text = std::io::Error::from_raw_os_error(number).to_string();
        text.split(" (os error").next().unwrap_or_default().to_owned()
    };
    for attempt in attempts {
        let (should, seen) = match attempt.expected {
            Closed::Covered => ("covered", look(attempt.seen, &errno)),
            Closed::ReadOnly => (
                "read-only",
                match (attempt.seen, attempt.write_error) {
                    (Seen::Missing, _) => "not there".to_owned(),
                    (_, Some(number)) => format!("not writable: {}", errno(number)),
                    (_, None) => "writable".to_owned(),
                },
            ),
        };
        let verdict = if attempt.holds { "" } else { " OPEN" };
        table.row(&attempt.path, should, format!("{seen}{verdict}"));
    }
    table
}

fn look(seen: Seen, errno: &dyn Fn(i32) -> String) -> String {
    match seen {
        Seen::Missing => "not there".to_owned(),
        Seen::NullDevice => "the null device".to_owned(),
        Seen::Empty => "empty".to_owned(),
        Seen::Content => "readable".to_owned(),
        Seen::Refused(number) => format!("refused: {}", errno(number)),
    }
}
