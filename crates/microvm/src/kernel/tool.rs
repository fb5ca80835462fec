//! Programs of the host's that make and fetch kernels: found beforehand, run without a shell.

use std::path::Path;
use std::process::{Command, Stdio};

use luna_core::{Error, Kind, Result};

/// Fails unless every program is there; the hint names the packages of those that are not.
pub(crate) fn require(doing: &str, tools: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<_> = tools.iter().filter(|(tool, _)| !exists(tool)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    let names: Vec<_> = missing.iter().map(|(tool, _)| format!("`{tool}`")).collect();
    Err(Error::new(Kind::Unsupported, format!("cannot {doing}"))
        .because(format!("this host has no {}", names.join(", ")))
        .hint(format!("apt-get install -y {}", packages.join(" "))))
}

/// A program in `PATH`, or a file where the name is absolute.
fn exists(tool: &str) -> bool {
    if Path::new(tool).is_absolute() {
        return Path::new(tool).exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where some of these are and a user's PATH often is not.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(tool).is_file())
}

pub(crate) fn is_there(tool: &str) -> bool {
    exists(tool)
}

/// A command that speaks English and knows nothing of an outer make.
pub(crate) fn command(tool: &str) -> Command {
    let mut command = Command::new(tool);
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .env("LC_ALL", "C.UTF-8")
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL")
        .env_remove("ARCH")
        .env_remove("CROSS_COMPILE")
        .stdin(Stdio::null());
    command
}

/// Runs it and gives what it printed; what it complained of becomes the cause of the error.
pub(crate) fn run(doing: &str, command: &mut Command) -> Result<String> {
    let tool = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|e| Error::io(format!("cannot {doing}"), e))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(failed(doing, &tool, &String::from_utf8_lossy(&output.stderr)))
}

/// The error of a program that failed, with the last thing it said.
pub(crate) fn failed(doing: &str, tool: &str, complaints: &str) -> Error {
    let said: Vec<_> = complaints
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = said[said.len().saturating_sub(3)..].join("; ");
    Error::new(Kind::Unavailable, format!("cannot {doing}")).because(if last.is_empty() {
        format!("`{tool}` failed")
    } else {
        format!("`{tool}` says: {last}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let error = require("build", &[("sh", "dash"), ("no-such-tool", "a-package")]).unwrap_err();
        assert_eq!(error.hint_text(), Some("apt-get install -y a-package"));
        assert!(format!("{error:?}").contains("`no-such-tool`"));
        require("build", &[("sh", "dash")]).unwrap();
    }

    #[test]
    fn a_complaint_becomes_the_cause() {
        let error = run("look", command("sh").args(["-c", "echo no >&2; exit 3"])).unwrap_err();
        assert_eq!(error.causes(), ["`sh` says: no"]);
        assert_eq!(
            run("look", command("sh").args(["-c", "echo yes"])).unwrap(),
            "yes\n"
        );
    }
}
