//! What whoever started the image says, by `LUNA_*` variables; `luna-workspace --help` lists them.
//!
//! A malformed value is an error: a sandbox that silently ignores a misspelt `LUNA_WALL` would show the wrong badge.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::access::origin::Hosts;
use crate::access::token::Token;
use crate::facts::{Accelerator, Wall};

#[derive(Debug)]
pub struct Settings {
    /// `None`: the service makes its own.
    pub token: Option<Token>,
    pub wall: Option<Wall>,
    pub accelerator: Option<Accelerator>,
    pub version: Option<String>,
    pub name: Option<String>,
    pub allowed_hosts: Hosts,
    /// `None`: every address of this machine.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub geometry: Geometry,
}

/// The desktop's size in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub width: u16,
    pub height: u16,
}

impl Settings {
    pub fn from_environment() -> Result<Settings, String> {
        Settings::from(|name| std::env::var_os(name).and_then(|value| value.into_string().ok()))
    }

    /// `variable` answers what a variable holds. Empty is as good as unset.
    pub fn from(variable: impl Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let token = match (variable("LUNA_TOKEN"), variable("LUNA_TOKEN_FILE")) {
            (Some(text), _) => {
                Some(Token::parse(&text).map_err(|why| format!("cannot use `LUNA_TOKEN`: {why}"))?)
            }
            (None, Some(path)) => Some(token_file(&path)?),
            (None, None) => None,
        };
        let wall = match variable("LUNA_WALL").as_deref() {
            None => None,
            Some("container") => Some(Wall::Container),
            Some("vm") => Some(Wall::Vm),
            Some(other) => return Err(odd("LUNA_WALL", other, "`container` or `vm`")),
        };
        let accelerator = match variable("LUNA_ACCELERATOR").as_deref() {
            None => None,
            Some("kvm") => Some(Accelerator::Kvm),
            Some("tcg") => Some(Accelerator::Tcg),
            Some(other) => return Err(odd("LUNA_ACCELERATOR", other, "`kvm` or `tcg`")),
        };
        let port = match variable("LUNA_PORT") {
            None => 8080,
            Some(text) => text
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| odd("LUNA_PORT", &text, "a port"))?,
        };
        let address = variable("LUNA_ADDRESS")
            .map(|text| {
                text.parse()
                    .map_err(|_| odd("LUNA_ADDRESS", &text, "an IP address"))
            })
            .transpose()?;
        let geometry = match variable("LUNA_GEOMETRY") {
            None => Geometry {
                width: 1280,
                height: 800,
            },
            Some(text) => Geometry::parse(&text)
                .ok_or_else(|| odd("LUNA_GEOMETRY", &text, "a size such as `1280x800`"))?,
        };
        Ok(Settings {
            token,
            wall,
            accelerator,
            version: variable("LUNA_VERSION"),
            name: variable("LUNA_NAME"),
            allowed_hosts: Hosts::with(variable("LUNA_ALLOWED_HOSTS").as_deref().unwrap_or_default()),
            address,
            port,
            geometry,
        })
    }
}

impl Geometry {
    fn parse(text: &str) -> Option<Geometry> {
        let (width, height) = text.split_once('x')?;
        let side = |text: &str| text.parse().ok().filter(|pixels| (320..=8192).contains(pixels));
        Some(Geometry {
            width: side(width)?,
            height: side(height)?,
        })
    }
}

fn token_file(path: &str) -> Result<Token, String> {
    let text = std::fs::read_to_string(PathBuf::from(path))
        .map_err(|error| format!("cannot read `{path}`: {error}"))?;
    Token::parse(text.trim_end()).map_err(|why| format!("cannot use the token in `{path}`: {why}"))
}

fn odd(name: &str, value: &str, expected: &str) -> String {
    format!(
        "cannot use `{name}={}`: expected {expected}",
        value.escape_debug()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::from(|name| {
            pairs
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_said_has_an_answer() {
        let settings = from(&[("LUNA_WALL", "")]).unwrap();
        assert_eq!(settings.port, 8080);
        assert!(settings.address.is_none());
        assert!(settings.wall.is_none() && settings.token.is_none());
        assert_eq!(
            settings.geometry,
            Geometry {
                width: 1280,
                height: 800
            }
        );
    }

    #[test]
    fn a_misspelt_value_is_an_error_that_names_it() {
        for (name, value) in [
            ("LUNA_WALL", "Container"),
            ("LUNA_ACCELERATOR", "xen"),
            ("LUNA_ADDRESS", "localhost"),
            ("LUNA_PORT", "0"),
            ("LUNA_PORT", "99999"),
            ("LUNA_GEOMETRY", "1280"),
            ("LUNA_GEOMETRY", "1x1"),
            ("LUNA_TOKEN", "short"),
            ("LUNA_TOKEN_FILE", "/nonexistent"),
        ] {
            let error = from(&[(name, value)]).unwrap_err();
            assert!(error.contains(name) || error.contains(value), "{error}");
            assert!(
                !error.contains("short") || name != "LUNA_TOKEN" || !error.contains("=short"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_token_file_may_end_in_a_newline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef0123\n").unwrap();
        let settings = from(&[("LUNA_TOKEN_FILE", file.path().to_str().unwrap())]).unwrap();
        assert!(settings.token.unwrap().is("0123456789abcdef0123"));
    }
}
