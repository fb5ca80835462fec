//! What users call an image, read as docker reads it (distribution/reference, `normalize.go`).
//!
//! ```text
//! [host[:port]/]path[:tag][@digest]       debian  →  docker.io/library/debian:latest
//! ```

use std::fmt;
use std::str::FromStr;

use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";

/// A registry, a repository in it, and a tag, a digest, or both. `Display` is the full form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Longest text that is read at all; the repository alone may have 255 characters.
    const MAX: usize = 512;

    /// Reads docker's short and full forms; pure and bounded.
    pub fn parse(text: &str) -> Result<Reference> {
        parse(text).map_err(|why| {
            let shown: String = text.chars().take(120).collect();
            Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as an image reference", shown.escape_debug()),
            )
            .because(why)
        })
    }

    /// The registry's host and port, `docker.io` where none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path in the registry, with `library/` where docker adds it.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// Absent only where a digest was written instead.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository at exactly `digest`.
    #[must_use]
    pub fn at(&self, digest: Digest) -> Reference {
        Reference {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// Docker's short form: without what it would add.
    pub fn familiar(&self) -> String {
        let mut text = self.name(true);
        self.append_suffix(&mut text);
        text
    }

    /// Registry and repository without tag and digest, in docker's short form; the REPOSITORY column.
    pub fn familiar_name(&self) -> String {
        self.name(true)
    }

    fn name(&self, short: bool) -> String {
        if short && self.registry == DEFAULT_REGISTRY {
            let repository = &self.repository;
            return match repository.strip_prefix("library/") {
                Some(rest) if !rest.contains('/') => rest.to_owned(),
                // A first part that reads like a host would be taken for one.
                _ if repository.split('/').next().is_some_and(is_host) => {
                    format!("{DEFAULT_REGISTRY}/{repository}")
                }
                _ => repository.clone(),
            };
        }
        format!("{}/{}", self.registry, self.repository)
    }

    fn append_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > Reference::MAX {
        return Err("it is longer than 512 characters");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            let digest = digest
                .parse::<Digest>()
                .map_err(|_| "after `@` comes `sha256:` and 64 lower-case hexadecimal digits")?;
            (rest, Some(digest))
        }
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it belongs to the port.
    let last_slash = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest[last_slash..].split_once(':') {
        Some((last, tag)) => (&rest[..last_slash + last.len()], Some(tag)),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_host(first) => (normal_host(first)?, path),
        _ => (DEFAULT_REGISTRY.to_owned(), name),
    };
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    check_repository(path)?;
    if repository.len() > 255 {
        return Err("a repository has at most 255 characters");
    }
    if digest.is_none() && tag.is_none() && Digest::from_hex(name).is_some() {
        return Err("64 hexadecimal digits are an image id, not a name");
    }
    let tag = match (tag, digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference {
        registry,
        repository,
        tag,
        digest,
    })
}

/// Docker's rule: the first part is a host when it has a dot or a port, is `localhost`, or has a capital letter.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '[']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn normal_host(host: &str) -> Result<String, &'static str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (inner, port) = rest
                .split_once(']')
                .ok_or("the registry's IPv6 address has no `]`")?;
            inner
                .parse::<std::net::Ipv6Addr>()
                .map_err(|_| "the registry's IPv6 address is malformed")?;
            match port.strip_prefix(':') {
                Some(port) => (None, Some(port)),
                None if port.is_empty() => (None, None),
                None => return Err("after the registry's `]` comes a `:` and a port"),
            }
        }
        None => match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        },
    };
    if let Some(port) = port
        && !(port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0))
    {
        return Err("the registry's port is a number from 1 to 65535");
    }
    if let Some(name) = name {
        let part_is_well = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(part_is_well) {
            return Err("the registry's name is malformed");
        }
    }
    let host = host.to_ascii_lowercase();
    if !is_host(&host) {
        return Err(
            "a registry's name has a dot or a port, or it is `localhost`; a repository is written in lower case",
        );
    }
    Ok(match host.as_str() {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY.to_owned(),
        _ => host,
    })
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let starts_well = tag.bytes().next().is_some_and(word);
    if starts_well && tag.len() <= 128 && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-')) {
        Ok(())
    } else {
        Err("a tag is 1 to 128 characters of [A-Za-z0-9_.-] and starts with none of `.-`")
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, joined by `/`.
fn check_repository(path: &str) -> Result<(), &'static str> {
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository is written in lower case");
    }
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part_is_well = |part: &str| {
        let bytes = part.as_bytes();
        let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
            return false;
        };
        if !alphanumeric(*first) || !alphanumeric(*last) {
            return false;
        }
        part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| {
                matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
            })
    };
    if path.split('/').all(part_is_well) {
        Ok(())
    } else {
        Err(
            "a repository is made of [a-z0-9] with single `.`, `_`, `__` or `-` between, in parts separated by `/`",
        )
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        Reference::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Reference> {
        Reference::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = self.name(false);
        self.append_suffix(&mut text);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn short_forms_grow_as_dockers_do() {
        for (text, full, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            (
                "debian:bookworm-slim",
                "docker.io/library/debian:bookworm-slim",
                "debian:bookworm-slim",
            ),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            (
                "docker.io/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            (
                "index.docker.io/library/debian",
                "docker.io/library/debian:latest",
                "debian:latest",
            ),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1", "localhost:5000/x:1"),
            (
                "127.0.0.1:5000/a/b/c",
                "127.0.0.1:5000/a/b/c:latest",
                "127.0.0.1:5000/a/b/c:latest",
            ),
            ("[::1]:5000/x", "[::1]:5000/x:latest", "[::1]:5000/x:latest"),
            (
                "ghcr.io/o/n:v1.2_3-x",
                "ghcr.io/o/n:v1.2_3-x",
                "ghcr.io/o/n:v1.2_3-x",
            ),
            ("a__b/c--d", "docker.io/a__b/c--d:latest", "a__b/c--d:latest"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), full, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
        }
        let pinned = Reference::parse(&format!("debian@{DIGEST}")).unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.to_string(), format!("docker.io/library/debian@{DIGEST}"));
        let both = Reference::parse(&format!("debian:12@{DIGEST}")).unwrap();
        assert_eq!(both.tag(), Some("12"));
    }

    #[test]
    fn what_docker_refuses_is_refused() {
        for bad in [
            "",
            ":",
            "/",
            "Debian",
            "Debian/x",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a b",
            "a@sha256:1",
            "a@md5:1234",
            "-a",
            "a_",
            "a___b",
            "a..b",
            "../a",
            "localhost:/a",
            "localhost:0/a",
            "localhost:99999/a",
            "[::1/a",
            "[zz]/a",
            "a\0b",
            "ä",
            &DIGEST[7..],
            &"a".repeat(600),
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_and_what_is_read_stays(text in "[ -~]{0,80}|.{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
                prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
                prop_assert!(!reference.repository().contains(".."));
            }
        }

        #[test]
        fn wellformed_references_round_trip(
            host in prop::option::of("[a-z]{1,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?"),
            path in "[a-z0-9]{1,8}([_-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,8}([._-][a-z0-9]{1,4}){0,2}){0,2}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
        ) {
            let mut text = host.map(|host| format!("{host}/")).unwrap_or_default() + &path;
            if let Some(tag) = tag {
                text.push(':');
                text.push_str(&tag);
            }
            let reference = Reference::parse(&text).unwrap();
            prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        }
    }
}
