//! `.dockerignore`: which files of the context a build may see. A pure reading; moby's `patternmatcher` is the rule:
//! one pattern a line, `!` takes back, the last match wins, and a match of a directory covers what is in it.

use super::pattern::Glob;

/// The patterns of one file, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ignore(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    glob: Glob,
    included_again: bool,
}

impl Ignore {
    /// Reads a `.dockerignore`; an error names the line.
    pub(crate) fn parse(text: &str) -> Result<Ignore, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut rules = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if line.starts_with('#') || line.trim().is_empty() {
                continue;
            }
            let rule = Rule::parse(line).map_err(|why| format!("line {}: {why}", number + 1))?;
            rules.extend(rule);
        }
        Ok(Ignore(rules))
    }

    /// Patterns from `--exclude` flags.
    pub(crate) fn patterns(patterns: &[String]) -> Result<Ignore, String> {
        let mut rules = Vec::new();
        for pattern in patterns {
            rules.extend(Rule::parse(pattern)?);
        }
        Ok(Ignore(rules))
    }

    /// Whether the build may not see `path`, which is relative and clean.
    pub(crate) fn hides(&self, path: &str) -> bool {
        let mut hidden = false;
        for rule in &self.0 {
            if hidden == rule.included_again && rule.covers(path) {
                hidden = !rule.included_again;
            }
        }
        hidden
    }

    /// Whether something below a hidden directory may still be visible.
    pub(crate) fn takes_back(&self) -> bool {
        self.0.iter().any(|rule| rule.included_again)
    }
}

impl Rule {
    fn parse(line: &str) -> Result<Option<Rule>, String> {
        let line = line.trim();
        let (included_again, pattern) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if pattern.is_empty() {
            return Err("`!` stands alone".to_owned());
        }
        let clean = clean(pattern);
        if clean.is_empty() {
            return Ok(None);
        }
        let glob =
            Glob::ignore(&clean).map_err(|why| format!("the pattern `{}` {why}", pattern.escape_debug()))?;
        Ok(Some(Rule { glob, included_again }))
    }

    fn covers(&self, path: &str) -> bool {
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        self.glob.matches(path) || parents.into_iter().any(|parent| self.glob.matches(parent))
    }
}

/// Go's `filepath.Clean` without a leading slash.
fn clean(pattern: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in pattern.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_match_wins() {
        let ignore = Ignore::parse(
            "# comment\n\n*.md\n!README.md\n/build/\n**/node_modules\ntemp?\n  docs/** \n!docs/keep\nsecret\n!secret/public\n./x/../y\n",
        )
        .unwrap();
        for (path, hidden) in [
            ("a.md", true),
            ("README.md", false),
            ("sub/a.md", false),
            ("build", true),
            ("build/out/x", true),
            ("src/build", false),
            ("a/b/node_modules/c", true),
            ("temp1", true),
            ("temp", false),
            ("docs/a/b", true),
            ("docs", false),
            ("docs/keep", false),
            ("docs/keep/x", false),
            ("secret/a", true),
            ("secret/public/a", false),
            ("y", true),
            ("main.rs", false),
        ] {
            assert_eq!(ignore.hides(path), hidden, "{path}");
        }
        assert!(ignore.takes_back());
    }

    #[test]
    fn everything_but_works() {
        let ignore = Ignore::parse("*\n!src\n!Cargo.toml\n").unwrap();
        assert!(ignore.hides("target/x"));
        assert!(!ignore.hides("src/a/b.rs"));
        assert!(!ignore.hides("Cargo.toml"));
    }

    #[test]
    fn a_broken_pattern_names_its_line() {
        let why = Ignore::parse("a\n[x\n").unwrap_err();
        assert!(why.starts_with("line 2"), "{why}");
        assert!(Ignore::parse("!").is_err());
    }
}
