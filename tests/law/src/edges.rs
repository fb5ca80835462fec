//! Which crate may use which.

use std::collections::{BTreeMap, BTreeSet};

/// What a crate of this repository may use of the others (`ARCHITECTURE.md` says why). A crate under `tests/` may use
/// any of them, and nothing may use it.
const MAY_USE: [(&str, &[&str]); 12] = [
    ("luna-core", &[]),
    ("luna-jail", &["luna-core"]),
    ("luna-guest", &["luna-core"]),
    ("luna-image", &["luna-core"]),
    ("luna-network", &["luna-core"]),
    ("luna-container", &["luna-core", "luna-jail", "luna-guest"]),
    ("luna-microvm", &["luna-core", "luna-jail", "luna-guest"]),
    (
        "luna-runtime",
        &[
            "luna-core",
            "luna-jail",
            "luna-guest",
            "luna-image",
            "luna-network",
            "luna-container",
            "luna-microvm",
        ],
    ),
    ("luna", &["luna-core", "luna-runtime"]),
    ("workspace", &[]),
    ("luna-virtiofs", &[]),
    ("capng", &[]),
];

/// How the map writes the same table: a row for each crate, its third column what it may use.
pub fn map() -> Vec<(String, String)> {
    let short = |name: &&str| name.trim_start_matches("luna-").to_owned();
    MAY_USE
        .iter()
        .enumerate()
        .map(|(row, (name, uses))| {
            let uses = match uses.len() {
                0 => "–".to_owned(),
                all if all > 1 && all == row => "all above".to_owned(),
                _ => uses.iter().map(short).collect::<Vec<_>>().join(", "),
            };
            ((*name).to_owned(), uses)
        })
        .collect()
}

/// Crates from elsewhere that only some of ours may name: an asynchronous runtime at the front doors, command-line
/// parsing and HTTP servers nowhere else.
const KEPT_TO: [(&str, &[&str]); 8] = [
    ("tokio", &["luna", "workspace", "luna-image"]),
    ("async-std", &[]),
    ("smol", &[]),
    ("clap", &["luna", "workspace"]),
    ("axum", &["luna", "workspace"]),
    ("hyper", &["luna", "workspace"]),
    ("reqwest", &["luna", "workspace", "luna-image"]),
    ("libcontainer", &[]),
];

/// A crate of this repository as `cargo metadata` tells of it.
#[derive(Debug)]
pub struct Member {
    pub name: String,
    /// Its directory relative to the repository, such as `crates/core`.
    pub directory: String,
    /// Everything it names as a normal or build dependency.
    pub uses: BTreeSet<String>,
}

/// Every breach, as a sentence.
pub fn breaches(members: &[Member]) -> Vec<String> {
    let table: BTreeMap<_, _> = MAY_USE.into_iter().collect();
    let names: BTreeSet<_> = members.iter().map(|member| member.name.as_str()).collect();
    let mut found = Vec::new();
    for member in members.iter().filter(|member| !is_test(member)) {
        let Some(allowed) = table.get(member.name.as_str()) else {
            found.push(format!("the table does not name `{}`", member.name));
            continue;
        };
        for used in &member.uses {
            if names.contains(used.as_str()) && !allowed.contains(&used.as_str()) {
                found.push(format!("`{}` may not use `{used}`", member.name));
            }
            let kept = KEPT_TO.iter().find(|(outside, _)| outside == used);
            if kept.is_some_and(|(_, allowed)| !allowed.contains(&member.name.as_str())) {
                found.push(format!("`{}` may not name `{used}`", member.name));
            }
        }
    }
    for name in table.keys().filter(|name| !names.contains(*name)) {
        found.push(format!("the table names `{name}`, which is not there"));
    }
    found
}

fn is_test(member: &Member) -> bool {
    member.directory.starts_with("tests/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lawful() -> Vec<Member> {
        MAY_USE
            .iter()
            .map(|(name, uses)| Member {
                name: (*name).to_owned(),
                directory: format!("crates/{name}"),
                uses: uses.iter().map(ToString::to_string).collect(),
            })
            .collect()
    }

    fn with(name: &str, used: &str) -> Vec<Member> {
        let mut members = lawful();
        let member = members.iter_mut().find(|member| member.name == name).unwrap();
        member.uses.insert(used.to_owned());
        members
    }

    #[test]
    fn the_table_itself_is_lawful() {
        assert_eq!(breaches(&lawful()), Vec::<String>::new());
    }

    #[test]
    fn siblings_may_not_see_each_other() {
        assert_eq!(
            breaches(&with("luna-network", "luna-container")),
            ["`luna-network` may not use `luna-container`"]
        );
        assert_eq!(
            breaches(&with("luna", "luna-jail")),
            ["`luna` may not use `luna-jail`"]
        );
    }

    #[test]
    fn nothing_uses_a_test() {
        let mut members = with("luna", "law");
        members.push(Member {
            name: "law".to_owned(),
            directory: "tests/law".to_owned(),
            uses: BTreeSet::from(["luna-jail".to_owned()]),
        });
        assert_eq!(breaches(&members), ["`luna` may not use `law`"]);
    }

    #[test]
    fn tokio_stays_at_the_door() {
        assert_eq!(
            breaches(&with("luna-runtime", "tokio")),
            ["`luna-runtime` may not name `tokio`"]
        );
        assert_eq!(breaches(&with("luna-image", "tokio")), Vec::<String>::new());
    }

    #[test]
    fn a_crate_unknown_to_the_table_is_a_breach() {
        let mut members = lawful();
        members[0].name = "luna-utils".to_owned();
        let found = breaches(&members);
        assert!(found.contains(&"the table does not name `luna-utils`".to_owned()));
        assert!(found.contains(&"the table names `luna-core`, which is not there".to_owned()));
    }
}
