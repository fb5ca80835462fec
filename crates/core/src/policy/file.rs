//! Policy files: what a host or a user demands of every wall, whatever a command line asks for.
//!
//! Two files may be there, the system's and the user's, and more may be named; [`Policy::and`] makes one of them, field
//! by field the stricter, so that no file ever weakens another. docs/policy.md describes every key for those who write
//! them; the grammar is TOML, parsed strictly: an unknown key is an error that names file and line.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::pattern::{Origin, Pattern};
use crate::spec::Floor;
use crate::units::Bytes;
use crate::{Error, Kind, Result};

/// A file longer than this is refused.
pub const MAX_FILE: usize = 64 << 10;
/// Below this much available memory `auto` does not prefer a machine, where a file does not say otherwise.
pub const LOW_MEMORY: Bytes = Bytes::mebibytes(1024);

/// A value and the file that it comes from. Ordered by the value first, so that the stricter of two is the greater.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Rule<T> {
    pub value: T,
    pub file: PathBuf,
}

/// Software emulation of a processor, from lenient to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emulation {
    Allow,
    Refuse,
}

/// What `auto` takes where both walls are strong enough, from lenient to strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Prefer {
    Container,
    Vm,
}

/// Everything that is in force. The default is no file at all: no floor, no risks, the container first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Those that were read, in order of their names.
    pub files: Vec<PathBuf>,
    pub floor: Option<Rule<Floor>>,
    pub emulation: Option<Rule<Emulation>>,
    pub prefer: Option<Rule<Prefer>>,
    /// The lowest of what the files say.
    pub low_memory: Option<Rule<Bytes>>,
    pub risks: Risks,
    /// An image is granted what every list that there is names it in.
    pub nested_userns: Vec<Rule<Vec<Pattern>>>,
}

/// What raises the floor when it is there, and to where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Risks {
    /// An image outside a list.
    pub untrusted: Option<Rule<Floor>>,
    /// An image must be in every one of these to be trusted.
    pub trusted: Vec<Rule<Vec<Pattern>>>,
    pub secrets: Option<Rule<Floor>>,
    pub privileged: Option<Rule<Floor>>,
    pub nested_containers: Option<Rule<Floor>>,
}

impl Policy {
    /// One file's content. `file` is for messages and explanations.
    pub fn parse(text: &str, file: &Path) -> Result<Policy> {
        let wrong = |because: String| {
            Error::new(
                Kind::InvalidInput,
                format!("cannot read the policy `{}`", file.display()),
            )
            .because(because)
            .hint("put it right; docs/policy.md describes every key")
        };
        if text.len() > MAX_FILE {
            return Err(wrong(format!("it is longer than {}", Bytes(MAX_FILE as u64))));
        }
        let content: Content = toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text
                    .bytes()
                    .take(span.start)
                    .filter(|byte| *byte == b'\n')
                    .count()
            });
            let message: Vec<_> = error.message().split_whitespace().collect();
            wrong(format!("line {line}: {}", message.join(" ")))
        })?;
        Ok(content.into_policy(file))
    }

    /// Both together: of each field the stricter. In any order and however often, the same.
    #[must_use]
    pub fn and(self, other: Policy) -> Policy {
        Policy {
            files: union(self.files, other.files),
            floor: self.floor.max(other.floor),
            emulation: self.emulation.max(other.emulation),
            prefer: self.prefer.max(other.prefer),
            low_memory: match (self.low_memory, other.low_memory) {
                (Some(one), Some(two)) => Some(one.min(two)),
                (one, two) => one.or(two),
            },
            risks: Risks {
                untrusted: self.risks.untrusted.max(other.risks.untrusted),
                trusted: union(self.risks.trusted, other.risks.trusted),
                secrets: self.risks.secrets.max(other.risks.secrets),
                privileged: self.risks.privileged.max(other.risks.privileged),
                nested_containers: self.risks.nested_containers.max(other.risks.nested_containers),
            },
            nested_userns: union(self.nested_userns, other.nested_userns),
        }
    }

    /// Below so much available memory `auto` takes the container where it may.
    pub fn low_memory(&self) -> Bytes {
        self.low_memory.as_ref().map_or(LOW_MEMORY, |rule| rule.value)
    }

    /// Whether an image may make user namespaces inside without a flag that says so.
    pub fn grants_nested_userns(&self, origin: &Origin) -> bool {
        !self.nested_userns.is_empty() && self.nested_userns.iter().all(|list| names(list, origin))
    }
}

impl Risks {
    /// Whether every list names the image.
    pub fn trusts(&self, origin: &Origin) -> bool {
        self.trusted.iter().all(|list| names(list, origin))
    }
}

fn names(list: &Rule<Vec<Pattern>>, origin: &Origin) -> bool {
    list.value.iter().any(|pattern| pattern.matches(origin))
}

fn union<T: Ord>(mut one: Vec<T>, two: Vec<T>) -> Vec<T> {
    one.extend(two);
    one.sort();
    one.dedup();
    one
}

/// A file as it is written. A key that is absent has the lenient default, but for what has no opinion at all: risks and
/// grants.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Content {
    floor: Option<Floor>,
    #[serde(default = "allow")]
    emulation: Emulation,
    #[serde(default = "container")]
    prefer: Prefer,
    #[serde(default = "low_memory", deserialize_with = "size")]
    low_memory: Bytes,
    #[serde(default)]
    risks: RisksContent,
    #[serde(default)]
    grants: GrantsContent,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct RisksContent {
    untrusted: Option<Untrusted>,
    secrets: Option<Floor>,
    privileged: Option<Floor>,
    nested_containers: Option<Floor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Untrusted {
    floor: Floor,
    trusted: Vec<Pattern>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct GrantsContent {
    nested_userns: Option<Vec<Pattern>>,
}

fn allow() -> Emulation {
    Emulation::Allow
}

fn container() -> Prefer {
    Prefer::Container
}

fn low_memory() -> Bytes {
    LOW_MEMORY
}

/// `"512m"`: a size as users write it, in quotes.
fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse()
        .map_err(|_| serde::de::Error::custom("it is no size; write for example \"512m\" or \"2g\""))
}

impl Content {
    fn into_policy(self, file: &Path) -> Policy {
        fn rule<T>(file: &Path) -> impl Fn(T) -> Rule<T> {
            move |value| Rule {
                value,
                file: file.to_owned(),
            }
        }
        let sorted = |mut list: Vec<Pattern>| {
            list.sort();
            list.dedup();
            vec![Rule {
                value: list,
                file: file.to_owned(),
            }]
        };
        let (untrusted, trusted) = match self.risks.untrusted {
            Some(Untrusted { floor, trusted }) => (Some(floor), sorted(trusted)),
            None => (None, Vec::new()),
        };
        Policy {
            files: vec![file.to_owned()],
            floor: self.floor.map(rule(file)),
            emulation: Some(self.emulation).map(rule(file)),
            prefer: Some(self.prefer).map(rule(file)),
            low_memory: Some(self.low_memory).map(rule(file)),
            risks: Risks {
                untrusted: untrusted.map(rule(file)),
                trusted,
                secrets: self.risks.secrets.map(rule(file)),
                privileged: self.risks.privileged.map(rule(file)),
                nested_containers: self.risks.nested_containers.map(rule(file)),
            },
            nested_userns: self.grants.nested_userns.map(sorted).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Policy> {
        Policy::parse(text, Path::new("/etc/luna/policy.toml"))
    }

    #[test]
    fn every_key_is_read() {
        use Floor::{HardwareVirtualization as Hardware, OwnKernel};
        let policy = read(
            r#"
            floor = "own-kernel"
            emulation = "refuse"
            prefer = "vm"
            low-memory = "512m"
            [risks]
            secrets = "own-kernel"
            privileged = "hardware-virtualization"
            nested-containers = "own-kernel"
            [risks.untrusted]
            floor = "hardware-virtualization"
            trusted = ["docker.io/library/*"]
            [grants]
            nested-userns = ["docker.io/acme/browser"]
            "#,
        )
        .unwrap();
        let value = |rule: Option<Rule<Floor>>| rule.map(|rule| rule.value);
        assert_eq!(value(policy.floor.clone()), Some(OwnKernel));
        assert_eq!(policy.emulation.as_ref().unwrap().value, Emulation::Refuse);
        assert_eq!(policy.prefer.as_ref().unwrap().value, Prefer::Vm);
        assert_eq!(policy.low_memory(), Bytes::mebibytes(512));
        assert_eq!(value(policy.risks.secrets.clone()), Some(OwnKernel));
        assert_eq!(value(policy.risks.privileged.clone()), Some(Hardware));
        assert_eq!(value(policy.risks.nested_containers.clone()), Some(OwnKernel));
        assert_eq!(value(policy.risks.untrusted.clone()), Some(Hardware));
        let origin = |name: &str| Origin {
            repository: Some(name.to_owned()),
            digests: Vec::new(),
        };
        assert!(policy.risks.trusts(&origin("docker.io/library/debian")));
        assert!(!policy.risks.trusts(&origin("docker.io/acme/browser")));
        assert!(policy.grants_nested_userns(&origin("docker.io/acme/browser")));
        assert!(!policy.grants_nested_userns(&origin("docker.io/library/debian")));
    }

    #[test]
    fn the_page_s_example_is_read() {
        let page = include_str!("../../../../docs/policy.md");
        let (_, example) = page.split_once("```toml\n").unwrap();
        let (example, _) = example.split_once("```").unwrap();
        let policy = read(example).unwrap();
        assert_eq!(policy.floor.unwrap().value, Floor::OwnKernel);
        assert_eq!((policy.risks.trusted.len(), policy.nested_userns.len()), (1, 1));
    }

    #[test]
    fn an_empty_file_demands_nothing() {
        let policy = read("# nothing\n").unwrap();
        assert_eq!((policy.floor, policy.risks), (None, Risks::default()));
        assert_eq!(policy.nested_userns, []);
        assert_eq!(policy.low_memory.unwrap().value, LOW_MEMORY);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line, word) in [
            ("flor = \"own-kernel\"", 1, "flor"),
            ("\n\nfloor = \"none\"", 3, "none"),
            ("[risks]\nsecrets = \"own-kernel\"\nsecret = 1", 3, "secret"),
            ("[risks.untrusted]\nfloor = \"own-kernel\"", 1, "trusted"),
            (
                "[risks.untrusted]\nfloor = \"own-kernel\"\ntrusted = [\"debian\"]",
                3,
                "registry",
            ),
            ("[grants]\nprivileged = []", 2, "privileged"),
            ("low-memory = 5", 1, "invalid type"),
            ("low-memory = \"lots\"", 1, "512m"),
            ("floor = \"own-kernel\"\nfloor = \"own-kernel\"", 2, "duplicate"),
            ("floor", 1, ""),
            ("[risks\n", 1, ""),
        ] {
            let error = read(text).unwrap_err();
            assert_eq!(
                error.to_string(),
                "cannot read the policy `/etc/luna/policy.toml`"
            );
            let cause = error.causes().join(": ");
            assert!(cause.starts_with(&format!("line {line}: ")), "{text:?}: {cause}");
            assert!(cause.contains(word) && !cause.contains('\n'), "{text:?}: {cause}");
            assert!(error.hint_text().is_some());
        }
        assert!(read(&"#".repeat(MAX_FILE + 1)).is_err());
    }
}
