//! Shell patterns as Go's `filepath.Match` reads them (COPY) and as moby's `patternmatcher` does (`.dockerignore`).
//! Matching simulates all alternatives at once, so a hostile pattern cannot make it slow.

/// One compiled pattern.
#[derive(Clone, Debug)]
pub(crate) struct Glob(Vec<Token>);

#[derive(Clone, Debug)]
enum Token {
    Literal(char),
    /// `?`: any character but a slash; with `true`, any at all.
    One(bool),
    /// `*`, likewise.
    Many(bool),
    /// `**/`: nothing, or anything that ends in a slash.
    Directories,
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
}

impl Glob {
    /// Go's `filepath.Match`: `*` and `?` stop at slashes, `**` is no more than `*`.
    pub(crate) fn path(pattern: &str) -> Result<Glob, String> {
        compile(pattern, false, false)
    }

    /// `.dockerignore`: `**` crosses directories.
    pub(crate) fn ignore(pattern: &str) -> Result<Glob, String> {
        compile(pattern, true, false)
    }

    /// `${x#pattern}`: slashes are ordinary.
    pub(crate) fn text(pattern: &str) -> Result<Glob, String> {
        compile(pattern, false, true)
    }

    /// Whether all of `text` matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let tokens = &self.0;
        // live[i]: the tokens before i match what was read so far.
        let mut live = vec![false; tokens.len() + 1];
        live[0] = true;
        self.skip(&mut live);
        for character in text.chars() {
            let mut next = vec![false; tokens.len() + 1];
            for (at, token) in tokens.iter().enumerate().filter(|(at, _)| live[*at]) {
                match token {
                    Token::Literal(literal) => next[at + 1] |= *literal == character,
                    Token::One(any) => next[at + 1] |= *any || character != '/',
                    Token::Many(any) => next[at] |= *any || character != '/',
                    Token::Directories => {
                        next[at] = true;
                        next[at + 1] |= character == '/';
                    }
                    Token::Class { ranges, negated } => {
                        let within = ranges
                            .iter()
                            .any(|(low, high)| (*low..=*high).contains(&character));
                        next[at + 1] |= within != *negated && character != '/';
                    }
                }
            }
            // Inside `**/` only a slash leaves it: being at its start again must not count as having skipped it.
            self.skip_after(&live, &mut next);
            live = next;
            if !live.contains(&true) {
                return false;
            }
        }
        live[tokens.len()]
    }

    /// Tokens that may match nothing are passed over.
    fn skip(&self, live: &mut [bool]) {
        for (at, token) in self.0.iter().enumerate() {
            if live[at] && matches!(token, Token::Many(_) | Token::Directories) {
                live[at + 1] = true;
            }
        }
    }

    fn skip_after(&self, before: &[bool], next: &mut [bool]) {
        for (at, token) in self.0.iter().enumerate() {
            let passes = match token {
                Token::Many(_) => next[at],
                // Only when it was reached by this character, not when it is consuming.
                Token::Directories => next[at] && !before[at],
                _ => false,
            };
            if passes {
                next[at + 1] = true;
            }
        }
    }
}

fn compile(pattern: &str, double_star: bool, text: bool) -> Result<Glob, String> {
    let mut tokens = Vec::new();
    let mut characters = pattern.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '*' if double_star && characters.peek() == Some(&'*') => {
                characters.next();
                if characters.peek() == Some(&'/') {
                    characters.next();
                }
                tokens.push(if characters.peek().is_none() {
                    Token::Many(true)
                } else {
                    Token::Directories
                });
            }
            '*' => tokens.push(Token::Many(text)),
            '?' => tokens.push(Token::One(text)),
            '\\' => tokens.push(Token::Literal(characters.next().ok_or("ends in an escape")?)),
            '[' => tokens.push(class(&mut characters)?),
            _ => tokens.push(Token::Literal(character)),
        }
    }
    Ok(Glob(tokens))
}

fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, String> {
    let open = || "has a `[` without its `]`".to_owned();
    let negated = characters.next_if(|c| matches!(c, '^' | '!')).is_some();
    let mut ranges = Vec::new();
    loop {
        let mut low = characters.next().ok_or_else(open)?;
        if low == ']' && !ranges.is_empty() {
            return Ok(Token::Class { ranges, negated });
        }
        if low == '\\' {
            low = characters.next().ok_or_else(open)?;
        }
        let mut high = low;
        if characters.next_if_eq(&'-').is_some() {
            high = characters.next().ok_or_else(open)?;
            if high == '\\' {
                high = characters.next().ok_or_else(open)?;
            }
        }
        if low > high {
            return Err("has a range that is empty".to_owned());
        }
        ranges.push((low, high));
    }
}

/// Whether a path of COPY is a pattern at all.
pub(crate) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_match_as_in_go() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("a[^a]b", "a☺b", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("a?b", "a/b", false),
            ("[\\]a]", "]", true),
            ("**", "a/b", false),
        ] {
            assert_eq!(
                Glob::path(pattern).unwrap().matches(text),
                expected,
                "{pattern} {text}"
            );
        }
        for bad in ["[", "a[", "[a", "[]", "a\\", "[b-a]"] {
            assert!(Glob::path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn double_stars_cross_directories() {
        for (pattern, text, expected) in [
            ("**", "a/b", true),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("**/x", "a/bx", false),
            ("a/**/x", "a/x", true),
            ("a/**/x", "a/b/c/x", true),
            ("a/**", "a/b", true),
            ("**/*.rs", "a/b.rs", true),
            ("**/*.rs", "a/b.rs/c", false),
            ("a**/b", "ax/b", true),
            ("**/a/**/b", "x/a/y/z/b", true),
            ("**/a/**/b", "x/ab", false),
        ] {
            assert_eq!(
                Glob::ignore(pattern).unwrap().matches(text),
                expected,
                "{pattern} {text}"
            );
        }
    }

    #[test]
    fn a_hostile_pattern_is_not_slow() {
        let pattern = "a*".repeat(200);
        assert!(!Glob::path(&(pattern + "b")).unwrap().matches(&"a".repeat(4000)));
    }
}
