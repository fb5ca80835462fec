//! Names and ids of sandboxes and volumes: `[A-Za-z0-9][A-Za-z0-9_.-]*`, never a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Kind, Result};

/// What a user calls a sandbox, a volume or a network; 1 to 64 bytes of `[A-Za-z0-9_.-]`, starting with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub const MAX: usize = 64;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Name> {
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let reads_well = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if starts_well && reads_well && text.len() <= Name::MAX {
            return Ok(Name(text.to_owned()));
        }
        Err(Error::new(
            Kind::InvalidInput,
            format!("cannot use `{}` as a name", text.escape_debug()),
        )
        .because("a name is 1 to 64 characters of [A-Za-z0-9_.-] and starts with a letter or digit"))
    }
}

impl TryFrom<String> for Name {
    type Error = Error;
    fn try_from(text: String) -> Result<Name> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A sandbox's id: 128 random bits as 32 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// Digits people see and type; docker shows as many.
    pub const SHORT: usize = 12;

    pub fn from_random(bits: [u8; 16]) -> Id {
        use fmt::Write as _;
        let mut text = String::with_capacity(32);
        for byte in bits {
            write!(text, "{byte:02x}").expect("a String takes every write");
        }
        Id(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn short(&self) -> &str {
        &self.0[..Id::SHORT]
    }
}

impl FromStr for Id {
    type Err = Error;

    fn from_str(text: &str) -> Result<Id> {
        if text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Id(text.to_owned()));
        }
        Err(Error::new(
            Kind::InvalidInput,
            format!("cannot use `{}` as a sandbox id", text.escape_debug()),
        ))
    }
}

impl TryFrom<String> for Id {
    type Error = Error;
    fn try_from(text: String) -> Result<Id> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_never_paths() {
        for good in ["a", "luna-agent", "A.b_c-9", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "../x",
            "a b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_read_back() {
        let id = Id::from_random([0xab; 16]);
        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
        assert_eq!(id.short().len(), 12);
        assert!("ABCD".parse::<Id>().is_err());
    }
}
