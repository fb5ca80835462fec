//! Signals by name or number, as users and images write them.

use luna_core::{Error, Kind, Result};

/// signal(7), numbers of x86-64 and aarch64 (which agree).
const NAMES: [(&str, u8); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

pub const KILL: u8 = 9;
pub const TERM: u8 = 15;
/// Those that ask for an end: HUP, INT, QUIT, TERM and PWR.
pub(crate) const ENDING: [u8; 5] = [1, 2, 3, TERM, 30];

/// Reads `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3`.
pub fn parse(text: &str) -> Result<u8> {
    let upper = text.trim().to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name.parse::<u8>() {
        Ok(number) => (1..=64).contains(&number).then_some(number),
        Err(_) => match name.strip_prefix("RTMIN") {
            Some("") => Some(34),
            Some(rest) => rest
                .strip_prefix('+')
                .and_then(|n| n.parse::<u8>().ok())
                .filter(|n| *n <= 30)
                .map(|n| 34 + n),
            None => NAMES
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, number)| *number),
        },
    };
    number.ok_or_else(|| {
        Error::new(
            Kind::InvalidInput,
            format!("cannot find a signal `{}`", text.escape_debug()),
        )
        .hint("write a name such as `TERM` or a number from 1 to 64")
    })
}

/// `SIGTERM` for 15; the number where it has no name.
pub fn name(number: u8) -> String {
    NAMES
        .iter()
        .find(|(_, known)| *known == number)
        .map_or_else(|| number.to_string(), |(name, _)| format!("SIG{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_read_in_every_form() {
        for (text, number) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("1", 1),
            ("64", 64),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
        ] {
            assert_eq!(parse(text).unwrap(), number, "{text}");
        }
        for bad in ["", "0", "65", "SIGNOPE", "RTMIN+31", "-9"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(name(2), "SIGINT");
    }
}
