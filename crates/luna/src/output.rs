//! Everything Luna prints goes through [`Printer`]; nothing else in the crate touches the streams, but a program's own
//! output on its way through.

pub(crate) mod human;
mod list;
mod progress;
mod template;

use std::io::{self, IsTerminal, Write};

use luna_core::{Error, Result};
use serde_json::Value;

pub(crate) use list::{Column, List, ListStyle, filters};
pub(crate) use progress::{Bars, Look};
pub(crate) use template::Template;

/// Where output goes and how it looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    colour: bool,
}

#[expect(clippy::unused_self, reason = "whoever prints has been handed a printer")]
impl Printer {
    pub(crate) fn new() -> Printer {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Printer {
            colour: wanted && io::stderr().is_terminal(),
        }
    }

    /// Writes to standard output. A reader that went away ends the process quietly, as a signal would.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => crate::leave(141),
            outcome => outcome.map_err(|e| Error::io("cannot write to standard output", e)),
        }
    }

    /// One line on standard output.
    pub(crate) fn line(self, text: impl AsRef<str>) -> Result<()> {
        let mut text = text.as_ref().to_owned();
        text.push('\n');
        self.raw(text.as_bytes())
    }

    /// Indented JSON.
    pub(crate) fn json(self, value: &Value) -> Result<()> {
        self.line(format!("{value:#}"))
    }

    /// One line of JSON.
    pub(crate) fn json_line(self, value: &Value) -> Result<()> {
        self.line(value.to_string())
    }

    /// A line beside the output, for people.
    pub(crate) fn note(self, text: impl AsRef<str>) {
        self.beside("36", "note", text.as_ref());
    }

    /// The same of something that may hurt.
    pub(crate) fn warn(self, text: impl AsRef<str>) {
        self.beside("33", "warning", text.as_ref());
    }

    fn beside(self, colour: &str, word: &str, text: &str) {
        let _ = writeln!(
            io::stderr().lock(),
            "{} {text}",
            self.paint(colour, &format!("{word}:"))
        );
    }

    /// What went wrong, why, and what to do: three lines, each once.
    pub(crate) fn error(self, error: &Error) {
        let mut lines = vec![format!(
            "{} {}",
            self.paint("1;31", "error:"),
            one_line(error.message())
        )];
        let causes: Vec<_> = error.causes().iter().map(|cause| one_line(cause)).collect();
        if !causes.is_empty() {
            lines.push(format!("  {} {}", self.paint("1", "because:"), causes.join(": ")));
        }
        if let Some(hint) = error.hint_text() {
            lines.push(format!("  {} {}", self.paint("1;36", "hint:"), one_line(hint)));
        }
        lines.push(String::new());
        let text = lines.join("\n");
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn paint(self, colour: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Messages may carry what a registry or a sandbox said: no line breaks, no control characters.
pub(crate) fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    printable(&words.join(" "))
}

/// Text of foreign origin, with control characters shown instead of obeyed.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_is_shown_not_obeyed() {
        assert_eq!(one_line("a\n b\t\x1b[31mred"), "a b \\u{1b}[31mred");
        assert_eq!(printable("grün"), "grün");
    }
}
