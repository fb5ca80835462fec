//! `stats`, `top` and `port`: what runs and what it uses.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use luna_core::engine::Usage;
use luna_core::error::Kind;
use luna_core::{Error, Result};
use luna_runtime::{Runtime, Sandbox};
use serde_json::{Map, Value, json};

use super::{Front, is_live, ps};
use crate::cli::look::{PortArgs, StatsArgs, TopArgs};
use crate::output::{Column, List, ListStyle, human, one_line};

const COLUMNS: [Column; 7] = [
    Column("SANDBOX ID", "ID"),
    Column("NAME", "Name"),
    Column("CPU %", "CPUPerc"),
    Column("MEM USAGE / LIMIT", "MemUsage"),
    Column("MEM %", "MemPerc"),
    Column("BLOCK I/O", "BlockIO"),
    Column("PIDS", "PIDs"),
];

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// One look at one sandbox.
type Look = (Sandbox, Usage, Instant);

pub(super) fn stats(front: &Front, args: &StatsArgs) -> Result<()> {
    let runtime = front.runtime()?;
    for name in &args.names {
        let sandbox = runtime.find(name)?;
        if !is_live(&sandbox)? {
            sandbox.client()?;
        }
    }
    let live = !args.no_stream && !args.json && std::io::stdout().is_terminal();
    let style = ListStyle {
        json: args.json,
        format: args.format.clone(),
        only: None,
    };
    let mut before = look(&runtime, &args.names)?;
    loop {
        std::thread::sleep(PERIOD);
        let now = look(&runtime, &args.names)?;
        let rows = now.iter().map(|one| row(one, &before, args.no_trunc)).collect();
        let text = List {
            columns: &COLUMNS,
            rows,
        }
        .text(&style)?;
        if live {
            // Home, the new lines over the old ones, and what is left of the old screen away.
            let screen = format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n"));
            let mut stdout = std::io::stdout().lock();
            let _ = stdout.write_all(screen.as_bytes()).and_then(|()| stdout.flush());
        } else {
            front.printer.raw(text.as_bytes())?;
        }
        if args.no_stream || args.json || (!args.names.is_empty() && now.is_empty()) {
            return Ok(());
        }
        before = now;
    }
}

fn look(runtime: &Runtime, names: &[String]) -> Result<Vec<Look>> {
    let sandboxes = if names.is_empty() {
        runtime.list()?.0
    } else {
        names.iter().filter_map(|name| runtime.find(name).ok()).collect()
    };
    let usage = |sandbox: Sandbox| {
        let usage = sandbox.client().ok()?.usage().ok()?;
        Some((sandbox, usage, Instant::now()))
    };
    Ok(sandboxes.into_iter().filter_map(usage).collect())
}

fn row(now: &Look, before: &[Look], full: bool) -> Map<String, Value> {
    let (sandbox, usage, at) = now;
    let earlier = before
        .iter()
        .find(|(other, ..)| other.record.id == sandbox.record.id);
    let cpu = earlier.and_then(|(_, earlier, since)| {
        let spent = usage.cpu?.checked_sub(earlier.cpu?)?;
        let passed = at.duration_since(*since).as_secs_f64();
        (passed > 0.0).then(|| 100.0 * spent.as_secs_f64() / passed)
    });
    let host = || {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let kilobytes = text
            .lines()
            .next()?
            .split_whitespace()
            .nth(1)?
            .parse::<u64>()
            .ok()?;
        Some(kilobytes << 10)
    };
    let memory = usage.memory.map(|memory| memory.0);
    let limit = usage.memory_limit.map(|limit| limit.0).or_else(host);
    let size = |bytes: Option<u64>| bytes.map_or("--".to_owned(), human::binary_size);
    let count = |bytes: Option<u64>| bytes.map_or("--".to_owned(), human::decimal_size);
    let percent = |value: Option<f64>| value.map_or("--".to_owned(), |value| format!("{value:.2}%"));
    let id = &sandbox.record.id;
    let row = json!({
        "ID": if full { id.as_str() } else { id.short() },
        "Container": id.short(),
        "Name": sandbox.record.name,
        "CPUPerc": percent(cpu),
        "MemUsage": format!("{} / {}", size(memory), size(limit)),
        "MemPerc": percent(memory.zip(limit).map(|(memory, limit)| 100.0 * memory as f64 / limit.max(1) as f64)),
        "BlockIO": format!("{} / {}", count(usage.read.map(|b| b.0)), count(usage.written.map(|b| b.0))),
        "NetIO": "-- / --",
        "PIDs": usage.pids.map_or("--".to_owned(), |pids| pids.to_string()),
    });
    match row {
        Value::Object(row) => row,
        _ => unreachable!("an object was written"),
    }
}

pub(super) fn top(front: &Front, args: &TopArgs) -> Result<()> {
    const COLUMNS: [Column; 7] = [
        Column("USER", "User"),
        Column("PID", "PID"),
        Column("PPID", "PPID"),
        Column("STAT", "State"),
        Column("RSS", "Resident"),
        Column("TIME", "Time"),
        Column("COMMAND", "Command"),
    ];
    let processes = front.runtime()?.find(&args.sandbox)?.client()?.processes()?;
    let rows = processes
        .iter()
        .map(|process| {
            let seconds = process.cpu.as_secs();
            let time = format!(
                "{:02}:{:02}:{:02}",
                seconds / 3600,
                seconds / 60 % 60,
                seconds % 60
            );
            let row = json!({
                "User": process.user,
                "UID": process.uid,
                "PID": process.pid,
                "PPID": process.parent,
                "State": process.state.to_string(),
                "Resident": human::binary_size(process.resident.0),
                "Time": time,
                "Age": process.age.as_secs(),
                "Command": one_line(&process.command),
            });
            match row {
                Value::Object(row) => row,
                _ => unreachable!("an object was written"),
            }
        })
        .collect();
    let style = ListStyle {
        json: args.json.json,
        format: None,
        only: None,
    };
    List {
        columns: &COLUMNS,
        rows,
    }
    .print(front.printer, &style)
}

pub(super) fn port(front: &Front, args: &PortArgs) -> Result<()> {
    let sandbox = front.runtime()?.find(&args.sandbox)?;
    let wanted = args
        .port
        .as_deref()
        .map(|text| {
            text.trim_end_matches("/tcp").parse::<u16>().map_err(|_| {
                Error::new(
                    Kind::InvalidInput,
                    format!("cannot read `{}` as a port", text.escape_debug()),
                )
                .hint("write `80` or `80/tcp`")
            })
        })
        .transpose()?;
    let mut ports = sandbox.status()?.ports;
    ports.retain(|mapping| wanted.is_none_or(|wanted| wanted == mapping.sandbox));
    if args.json.json {
        return front.printer.json(&json!(ports));
    }
    if let Some(wanted) = wanted
        && ports.is_empty()
    {
        return Err(Error::new(
            Kind::NotFound,
            format!(
                "cannot find a mapping of port {wanted} in `{}`",
                sandbox.record.name
            ),
        )
        .hint(format!("`luna port {}` lists them all", sandbox.record.name)));
    }
    for mapping in &ports {
        let host = std::net::SocketAddr::new(mapping.address, mapping.host);
        match wanted {
            Some(_) => front.printer.line(host.to_string())?,
            None => front.printer.line(
                ps::port(mapping)
                    .split_once("->")
                    .map_or_else(String::new, |(host, inside)| format!("{inside} -> {host}")),
            )?,
        }
    }
    Ok(())
}
