//! The service's log: one line per event on standard output, where the runtime collects it.
//!
//! What children say passes through here too, with control characters removed, so that no program on the desktop can
//! forge a line or move a terminal's cursor.

use std::io::Write;

/// The most of one line that is kept.
pub const LINE: usize = 512;

/// Writes `who: text` as one line. A full or closed output loses the line and nothing else.
pub fn note(who: &str, text: &str) {
    let mut line = String::with_capacity(who.len() + text.len() + 3);
    line.push_str(who);
    line.push_str(": ");
    line.push_str(&tame(text));
    line.push('\n');
    raw(&line);
}

/// Writes text as it is.
pub fn raw(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// At most [`LINE`] characters, none of them a control character.
pub fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(LINE).collect()
}

#[cfg(test)]
mod tests {
    use super::tame;

    #[test]
    fn control_characters_do_not_reach_the_log() {
        assert_eq!(tame("a\x1b[2Jb\r\nluna: c"), "a[2Jbluna: c");
        assert_eq!(tame(&"x".repeat(9000)).len(), super::LINE);
    }
}
