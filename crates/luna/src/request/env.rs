//! Variables from flags, files and the caller's environment.

use std::path::PathBuf;

use luna_core::{Error, Kind, Result};

/// `--env-file`s first, `--env`s over them. A name without a value is the caller's variable, and left out where the
/// caller has none.
pub(crate) fn variables(files: &[PathBuf], flags: &[String]) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(file)
            .map_err(|e| Error::io(format!("cannot read the variables in `{}`", file.display()), e))?;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let variable = variable(line).map_err(|error| {
                error.context(format!("cannot read `{}` line {}", file.display(), number + 1))
            })?;
            variables.extend(variable);
        }
    }
    for flag in flags {
        variables.extend(variable(flag)?);
    }
    Ok(variables)
}

fn variable(text: &str) -> Result<Option<(String, String)>> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, std::env::var(text).ok()),
    };
    if name.is_empty() || name.contains(char::is_whitespace) || text.contains('\0') {
        return Err(Error::new(
            Kind::InvalidInput,
            format!("cannot set the variable `{}`", text.escape_debug()),
        )
        .hint("write `NAME=VALUE`, or `NAME` to pass one on"));
    }
    Ok(value.map(|value| (name.to_owned(), value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_first_and_flags_over_them() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("env");
        std::fs::write(
            &file,
            "# a note\n\nA=1\n  B=two words # and all of it\nLUNA_TEST_SURELY_UNSET\n",
        )
        .unwrap();
        let variables = variables(&[file], &["A=2".to_owned()]).unwrap();
        let expected = [("A", "1"), ("B", "two words # and all of it"), ("A", "2")];
        assert_eq!(
            variables,
            expected.map(|(name, value)| (name.to_owned(), value.to_owned()))
        );
    }
}
