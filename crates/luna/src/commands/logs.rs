//! `logs`.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use luna_core::error::Kind;
use luna_core::{Error, Result};
use luna_runtime::{LogLine, LogSource};

use super::{Front, is_live};
use crate::cli::look::LogsArgs;
use crate::output::human;

/// How long to rest at the end of a log that may grow.
const REST: Duration = Duration::from_millis(40);

pub(super) fn logs(front: &Front, args: &LogsArgs) -> Result<()> {
    let tail = match args.tail.as_str() {
        "all" | "-1" => None,
        text => Some(text.parse::<usize>().map_err(|_| {
            Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as a number of lines", text.escape_debug()),
            )
            .hint("give a number, or `all`")
        })?),
    };
    // Times of the log are all of one form, so they compare as text.
    let since = args.since.as_deref().map(human::moment_text).transpose()?;
    let until = args.until.as_deref().map(human::moment_text).transpose()?;
    let wanted = |line: &LogLine| {
        since.as_ref().is_none_or(|since| line.time >= *since)
            && until.as_ref().is_none_or(|until| line.time <= *until)
    };
    let runtime = front.runtime()?;
    let sandbox = runtime.find(&args.sandbox)?;
    let mut reader = runtime.logs(&sandbox);

    // What is there already: all of it, or the last lines of what is wanted.
    let mut last = VecDeque::new();
    while let Some(line) = reader.next_line()? {
        if !wanted(&line) {
            continue;
        }
        match tail {
            None => show(front, args, &line)?,
            Some(count) => {
                last.push_back(line);
                if last.len() > count {
                    last.pop_front();
                }
            }
        }
    }
    for line in &last {
        show(front, args, line)?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        // Asked before reading, so that the last words of one that ends in between are not missed.
        let live = is_live(&sandbox).unwrap_or(false);
        let mut quiet = true;
        while let Some(line) = reader.next_line()? {
            quiet = false;
            if until.as_ref().is_some_and(|until| line.time > *until) {
                return Ok(());
            }
            if wanted(&line) {
                show(front, args, &line)?;
            }
        }
        let over = until.as_ref().is_some_and(|until| {
            humantime::format_rfc3339_nanos(std::time::SystemTime::now()).to_string() > *until
        });
        if quiet && (!live || over) {
            return Ok(());
        }
        std::thread::sleep(REST);
    }
}

fn show(front: &Front, args: &LogsArgs, line: &LogLine) -> Result<()> {
    if args.json.json {
        let line = serde_json::to_value(line)
            .map_err(|e| Error::new(Kind::Internal, "cannot encode a line of the log").because(e))?;
        return front.printer.json_line(&line);
    }
    let text = if args.timestamps {
        format!("{} {}", line.time, line.log)
    } else {
        line.log.clone()
    };
    match line.stream {
        LogSource::Stdout => front.printer.raw(text.as_bytes()),
        LogSource::Stderr => {
            let _ = std::io::stderr().lock().write_all(text.as_bytes());
            Ok(())
        }
    }
}
