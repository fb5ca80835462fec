//! One attempt to get out of a sandbox, made from inside: `attempt NAME [ARGUMENT...]`.
//!
//! Prints one line and exits: `succeeded <what was had>` with 0, or `denied <error>` with 10. Each attempt is harmless
//! where it succeeds: it opens without writing, writes back what it read, or touches what the test made for it.

mod files;
mod kernel;
mod processes;
mod resources;
mod sys;

use std::io::{self, Write as _};
use std::process::ExitCode;

type Outcome = io::Result<String>;

const DENIED: u8 = 10;
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, arguments)) = arguments.split_first() else {
        return ExitCode::from(USAGE);
    };
    if name == "say-user-by-code" {
        processes::say_user_by_code();
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = files::attempt(name, &arguments)
        .or_else(|| kernel::attempt(name, &arguments))
        .or_else(|| processes::attempt(name, &arguments))
        .or_else(|| resources::attempt(name, &arguments));
    let (line, code) = match outcome {
        Some(Ok(had)) => (format!("succeeded {had}"), ExitCode::SUCCESS),
        Some(Err(error)) => (format!("denied {error}"), ExitCode::from(DENIED)),
        None => return ExitCode::from(USAGE),
    };
    // Nobody is left to tell where standard output is gone.
    let _ = writeln!(io::stdout(), "{}", line.replace('\n', "|"));
    code
}

/// A refusal that is no system call's.
fn refused<T>(why: &str) -> io::Result<T> {
    Err(io::Error::other(why.to_owned()))
}

/// The call got past every guard and the kernel itself answered that it makes no sense or that it lacks the feature.
fn reached<T>(result: io::Result<T>, answers: &[i32]) -> Outcome {
    match result {
        Ok(_) => Ok("the call was made".to_owned()),
        Err(error) if error.raw_os_error().is_some_and(|errno| answers.contains(&errno)) => {
            Ok(format!("the kernel itself answered: {error}"))
        }
        Err(error) => Err(error),
    }
}

fn number<T: std::str::FromStr>(text: &str) -> io::Result<T> {
    text.parse().or_else(|_| refused("an argument is no number"))
}
