//! What an image runs on: operating system, architecture and variant, in Go's words as image-spec uses them.

use std::fmt;
use std::str::FromStr;

use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

/// `linux/amd64`, `linux/arm64/v8`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    pub variant: Option<String>,
}

impl Platform {
    /// What this executable was built for, which is what this host runs.
    pub fn host() -> Platform {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// Whether an image made for `other` serves where `self` is asked for. A variant that is not asked for is not
    /// compared; `v8` is what arm64 without a variant means.
    pub fn accepts(&self, other: &Platform) -> bool {
        let variant = |platform: &Platform| match (platform.architecture.as_str(), &platform.variant) {
            ("arm64", None) => Some("v8".to_owned()),
            (_, variant) => variant.clone(),
        };
        self.os == other.os
            && self.architecture == other.architecture
            && (self.variant.is_none() || variant(self) == variant(other))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Platform> {
        let parts: Vec<&str> = text.split('/').collect();
        let reads_well = |part: &&str| {
            (1..=32).contains(&part.len())
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        };
        let normal = |architecture: &str| {
            match architecture {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned()
        };
        match parts.as_slice() {
            [os, architecture, variant @ ..] if variant.len() <= 1 && parts.iter().all(reads_well) => {
                Ok(Platform {
                    os: (*os).to_owned(),
                    architecture: normal(architecture),
                    variant: variant.first().map(|v| (*v).to_owned()),
                })
            }
            _ => Err(Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as a platform", text.escape_debug()),
            )
            .hint("write it like `linux/amd64` or `linux/arm64/v8`")),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_read_and_print() {
        for text in ["linux/amd64", "linux/arm64/v8", "linux/arm/v7"] {
            assert_eq!(text.parse::<Platform>().unwrap().to_string(), text);
        }
        assert_eq!("linux/aarch64".parse::<Platform>().unwrap().architecture, "arm64");
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variant_matters_only_when_asked_for() {
        let of = |text: &str| text.parse::<Platform>().unwrap();
        assert!(of("linux/arm64").accepts(&of("linux/arm64/v8")));
        assert!(of("linux/arm64/v8").accepts(&of("linux/arm64")));
        assert!(!of("linux/arm/v7").accepts(&of("linux/arm/v6")));
        assert!(!of("linux/amd64").accepts(&of("linux/arm64")));
    }
}
