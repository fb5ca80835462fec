//! `luna`: the command line. It reads what was typed ([`cli`]), turns it into what is asked ([`request`]), asks the
//! runtime ([`commands`]) and prints the answer ([`output`]). It decides nothing about walls, images or sandboxes.

mod cli;
mod commands;
mod output;
mod request;
mod streams;
mod supervise;
mod terminal;

use std::ffi::OsString;
use std::io::Write;

use luna_core::{Error, Kind, Result};
use luna_runtime::Runtime;

use crate::cli::Cli;
use crate::output::Printer;

fn main() {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let printer = Printer::new();
    let outcome = if arguments.get(1).is_some_and(|word| word == "supervise") {
        supervise::supervise(&arguments[2..]).map(|()| 0)
    } else {
        read(&arguments, printer)
    };
    leave(outcome.unwrap_or_else(|error| {
        printer.error(&error);
        error.kind().exit_code()
    }))
}

fn read(arguments: &[OsString], printer: Printer) -> Result<u8> {
    match Cli::read(arguments) {
        Ok(cli) => {
            let rootless = enter(&cli.command)?;
            let root = cli.root.unwrap_or_else(|| Runtime::default_root(rootless));
            commands::run(
                cli.command,
                &commands::Front {
                    root,
                    policy: cli.policy,
                    rootless,
                    printer,
                },
            )
        }
        Err(error) if !error.use_stderr() => {
            printer.raw(error.render().to_string().as_bytes())?;
            Ok(0)
        }
        Err(error) => Err(slip(&error)),
    }
}

/// Without root, everything but printing about Luna itself happens in a user namespace of Luna's; tells whether it does.
fn enter(command: &cli::Command) -> Result<bool> {
    match command {
        cli::Command::Completion(_) | cli::Command::Man(_) | cli::Command::Version(_) => Ok(false),
        _ => {
            luna_runtime::rootless::enter()?;
            Ok(luna_runtime::rootless::is_rootless())
        }
    }
}

/// A slip on the command line, in Luna's form.
fn slip(error: &clap::Error) -> Error {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    let nothing = [
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingSubcommand,
    ];
    if nothing.contains(&error.kind()) {
        return Error::new(Kind::InvalidInput, "cannot tell what to do: there is no command")
            .hint("`luna --help` lists the commands");
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let mut because = first.replace('\'', "`");
    for line in lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")) {
        if !line.starts_with("tip:") {
            because.push(' ');
            because.push_str(&line.replace('\'', "`"));
        }
    }
    let mut suggestions = Vec::new();
    for kind in [
        ContextKind::SuggestedArg,
        ContextKind::SuggestedSubcommand,
        ContextKind::SuggestedValue,
    ] {
        match error.get(kind) {
            Some(ContextValue::String(word)) => suggestions.push(format!("`{word}`")),
            Some(ContextValue::Strings(words)) => {
                suggestions.extend(words.iter().map(|word| format!("`{word}`")));
            }
            _ => {}
        }
    }
    if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue)
        && let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg)
        && argument.starts_with("--isolation")
        && std::env::var_os("LUNA_ISOLATION").is_some_and(|set| set == value.as_str())
        && !std::env::args_os().any(|word| word.to_string_lossy().starts_with("--isolation"))
    {
        because.push_str(" (the variable `LUNA_ISOLATION` is set to it)");
    }
    let slip = Error::new(Kind::InvalidInput, "cannot read the command line").because(because);
    if suggestions.is_empty() {
        let usage = text.lines().find_map(|line| line.trim().strip_prefix("Usage: "));
        let command = usage
            .and_then(|usage| usage.split_whitespace().nth(1))
            .filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase()));
        return match command {
            Some(command) => slip.hint(format!("`luna {command} --help` explains it")),
            None => slip.hint("`luna --help` lists the commands"),
        };
    }
    slip.hint(format!("did you mean {}?", suggestions.join(" or ")))
}

/// Ends the process. Threads that wait for input do not hold it up.
pub(crate) fn leave(code: u8) -> ! {
    terminal::restore();
    let _ = std::io::stdout().flush();
    #[expect(clippy::exit, reason = "the one way out of the process")]
    std::process::exit(i32::from(code))
}
