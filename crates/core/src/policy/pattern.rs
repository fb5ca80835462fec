//! Which images a line of a policy means.
//!
//! ```text
//! sha256:<64 digits>                     the image with this id or manifest, wherever it came from
//! registry/repository                    that repository
//! registry/path/*                        every repository below
//! registry/repository@sha256:<digits>    that repository at this digest
//! ```
//! Names are written in full (`docker.io/library/debian`) and without a tag: a tag says nothing about what it leads to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One line of a list of images.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern {
    name: Option<Name>,
    /// `sha256:` and 64 digits.
    digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Name {
    Repository(String),
    /// With the slash at its end.
    Below(String),
}

/// What is known of an image before anything is fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Registry and repository in full, where the image is asked for by name and the name is worth something.
    pub repository: Option<String>,
    /// Digests that the image is sure to have, as `sha256:…`: its own in the reference, its manifest, its id.
    pub digests: Vec<String>,
}

/// Longest line that is read.
const MAX: usize = 512;

impl Pattern {
    pub fn matches(&self, origin: &Origin) -> bool {
        let name = match (&self.name, &origin.repository) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(Name::Repository(wanted)), Some(repository)) => wanted == repository,
            (Some(Name::Below(above)), Some(repository)) => repository.starts_with(above.as_str()),
        };
        let digest = self
            .digest
            .as_ref()
            .is_none_or(|digest| origin.digests.contains(digest));
        name && digest
    }
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Pattern, String> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(80).collect();
            Err(format!("`{}` names no image: {why}", shown.escape_debug()))
        };
        if text.len() > MAX {
            return wrong("it is longer than 512 characters");
        }
        if is_digest(text) {
            return Ok(Pattern {
                name: None,
                digest: Some(text.to_owned()),
            });
        }
        let (name, digest) = match text.split_once('@') {
            Some((_, digest)) if !is_digest(digest) => {
                return wrong("after `@` comes `sha256:` and 64 lower-case hexadecimal digits");
            }
            Some((name, digest)) => (name, Some(digest.to_owned())),
            None => (text, None),
        };
        let (path, below) = match name.strip_suffix("/*") {
            Some(path) => (path, true),
            None => (name, false),
        };
        let mut parts = path.split('/');
        let registry = parts.next().unwrap_or_default();
        let is_host = registry.contains(['.', ':']) || registry == "localhost";
        if !is_host || registry.contains('*') {
            return wrong("write its registry too, for example `docker.io/library/debian`");
        }
        let rest: Vec<&str> = parts.collect();
        if rest.is_empty() && !below {
            return wrong("write its repository too, or `/*` for all of the registry");
        }
        let plain = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        };
        if rest.iter().any(|part| part.contains(':')) {
            return wrong("a tag can be moved to another image; leave it out, or write a digest");
        }
        if !rest.iter().all(plain) {
            return wrong(
                "a repository has lower-case letters, digits, `.`, `_` and `-` between its slashes",
            );
        }
        Ok(Pattern {
            name: Some(if below {
                Name::Below(format!("{path}/"))
            } else {
                Name::Repository(path.to_owned())
            }),
            digest,
        })
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Pattern, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(Name::Repository(name)) => f.write_str(name)?,
            Some(Name::Below(above)) => write!(f, "{above}*")?,
            None => {}
        }
        match (&self.name, &self.digest) {
            (Some(_), Some(digest)) => write!(f, "@{digest}"),
            (None, Some(digest)) => f.write_str(digest),
            (_, None) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn what_a_line_means() {
        let by_name = |repository: &str| Origin {
            repository: Some(repository.to_owned()),
            digests: Vec::new(),
        };
        let pinned = Origin {
            repository: None,
            digests: vec![DIGEST.to_owned()],
        };
        let both = Origin {
            repository: Some("ghcr.io/acme/tool".to_owned()),
            ..pinned.clone()
        };
        let at = format!("ghcr.io/acme/tool@{DIGEST}");
        for (line, origin, expected) in [
            (
                "docker.io/library/debian",
                by_name("docker.io/library/debian"),
                true,
            ),
            (
                "docker.io/library/debian",
                by_name("docker.io/library/debian2"),
                false,
            ),
            ("docker.io/library/*", by_name("docker.io/library/debian"), true),
            (
                "docker.io/library/*",
                by_name("docker.io/librarian/debian"),
                false,
            ),
            ("docker.io/library/*", by_name("docker.io/library"), false),
            ("docker.io/*", by_name("docker.io.evil.example/x"), false),
            ("localhost:5000/*", by_name("localhost:5000/a/b"), true),
            ("localhost:5000/*", by_name("localhost:50001/a"), false),
            (DIGEST, pinned.clone(), true),
            (DIGEST, by_name("docker.io/library/debian"), false),
            ("docker.io/*", pinned.clone(), false),
            (&at, both.clone(), true),
            (&at, by_name("ghcr.io/acme/tool"), false),
            (&at, pinned, false),
            (DIGEST, both, true),
        ] {
            let pattern: Pattern = line.parse().unwrap();
            assert_eq!(pattern.to_string(), line);
            assert_eq!(pattern.matches(&origin), expected, "{line} {origin:?}");
        }
    }

    #[test]
    fn what_is_odd_is_refused() {
        for line in [
            "",
            "*",
            "debian",
            "library/debian",
            "docker.io",
            "docker.io/",
            "docker.io/a//b",
            "docker.io/a*",
            "docker.io/*/b",
            "docker.io/library/debian:12",
            "docker.io/A",
            "*.io/a",
            "docker.io/a@sha256:12",
            "sha256:12",
            "docker.io/../x y",
        ] {
            assert!(line.parse::<Pattern>().is_err(), "{line}");
        }
        assert!("a".repeat(600).parse::<Pattern>().is_err());
    }
}
