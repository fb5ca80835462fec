//! Variables and quotes in a Dockerfile word, by BuildKit's rules (`frontend/dockerfile/shell/lex.go`):
//! `$x ${x} ${x-y} ${x:-y} ${x+y} ${x:+y} ${x?y} ${x:?y} ${x#p} ${x##p} ${x%p} ${x%%p} ${x/p/r} ${x//p/r}`.

use super::pattern::Glob;

/// Nested `${…}` deeper than this are refused.
const MAXIMUM_DEPTH: usize = 32;
/// An expansion longer than this is refused: words can double with every line.
const MAXIMUM_LENGTH: usize = 1 << 20;

/// Looks up one variable.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Expands a word and removes its quotes and escapes.
pub(crate) fn word(text: &str, escape: char, lookup: Lookup<'_>) -> Result<String, String> {
    run(text, escape, lookup, Quotes::Removed)
}

/// Expands the body of a here-document: quotes mean nothing there and `\` only keeps a `$` from being read.
pub(crate) fn document(text: &str, lookup: Lookup<'_>) -> Result<String, String> {
    run(text, '\\', lookup, Quotes::Kept)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quotes {
    Removed,
    Kept,
}

fn run(text: &str, escape: char, lookup: Lookup<'_>, quotes: Quotes) -> Result<String, String> {
    let mut lexer = Lexer {
        characters: text.chars().collect(),
        at: 0,
        escape,
        lookup,
        quotes,
        depth: 0,
    };
    let expanded = lexer.until(None, false)?;
    if expanded.len() > MAXIMUM_LENGTH {
        return Err(format!("it expands to more than {MAXIMUM_LENGTH} bytes"));
    }
    Ok(expanded)
}

struct Lexer<'a> {
    characters: Vec<char>,
    at: usize,
    escape: char,
    lookup: Lookup<'a>,
    quotes: Quotes,
    depth: usize,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.characters.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += 1;
        Some(next)
    }

    fn eat(&mut self, expected: char) -> bool {
        let there = self.peek() == Some(expected);
        self.at += usize::from(there);
        there
    }

    /// Everything up to `stop`, which is consumed; `raw` keeps escapes, for patterns.
    fn until(&mut self, stop: Option<char>, raw: bool) -> Result<String, String> {
        let mut out = String::new();
        let keep_escapes = raw || self.quotes == Quotes::Kept;
        loop {
            let Some(character) = self.peek() else {
                return match stop {
                    None => Ok(out),
                    Some(stop) => Err(format!("`{stop}` is missing")),
                };
            };
            if Some(character) == stop {
                self.at += 1;
                return Ok(out);
            }
            if out.len() > MAXIMUM_LENGTH {
                return Err(format!("it expands to more than {MAXIMUM_LENGTH} bytes"));
            }
            match character {
                '\'' if self.quotes == Quotes::Removed => self.single_quoted(&mut out)?,
                '"' if self.quotes == Quotes::Removed => self.double_quoted(&mut out)?,
                '$' => {
                    let value = self.dollar()?;
                    out.push_str(&value);
                }
                _ if character == self.escape => {
                    self.at += 1;
                    if keep_escapes {
                        out.push(character);
                    }
                    out.extend(self.next());
                }
                _ => {
                    self.at += 1;
                    out.push(character);
                }
            }
        }
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.next() {
                None => return Err("a single quote is not closed".to_owned()),
                Some('\'') => return Ok(()),
                Some(character) => out.push(character),
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), String> {
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('$') => {
                    let value = self.dollar()?;
                    out.push_str(&value);
                }
                Some(character) if character == self.escape => {
                    self.at += 1;
                    match self.next() {
                        None => return Err("a double quote is not closed".to_owned()),
                        Some(next) => {
                            // Only these lose the escape inside quotes, as in a shell.
                            if !(matches!(next, '"' | '$') || next == self.escape) {
                                out.push(character);
                            }
                            out.push(next);
                        }
                    }
                }
                Some(character) => {
                    self.at += 1;
                    out.push(character);
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.at += 1;
        if !self.eat('{') {
            let name = self.name();
            return Ok(if name.is_empty() {
                "$".to_owned()
            } else {
                (self.lookup)(&name).unwrap_or_default()
            });
        }
        self.depth += 1;
        if self.depth > MAXIMUM_DEPTH {
            return Err("substitutions are nested too deeply".to_owned());
        }
        let value = self.braced();
        self.depth -= 1;
        value
    }

    fn braced(&mut self) -> Result<String, String> {
        let name = self.name();
        if name.is_empty() {
            return Err("`${` is not followed by a name".to_owned());
        }
        let set = (self.lookup)(&name);
        let Some(mut operator) = self.next() else {
            return Err("`}` is missing".to_owned());
        };
        if operator == '}' {
            return Ok(set.unwrap_or_default());
        }
        let empty_is_unset = operator == ':';
        if empty_is_unset {
            operator = self.next().ok_or("`}` is missing")?;
        }
        let value = set.clone().unwrap_or_default();
        let missing = set.is_none() || (empty_is_unset && value.is_empty());
        match operator {
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), false)?;
                match operator {
                    '-' if missing => Ok(word),
                    '+' if missing => Ok(String::new()),
                    '+' => Ok(word),
                    '?' if missing && word.is_empty() => Err(format!("`{name}` is not set")),
                    '?' if missing => Err(format!("`{name}`: {word}")),
                    _ => Ok(value),
                }
            }
            '#' | '%' if !empty_is_unset => {
                let longest = self.eat(operator);
                let pattern = self.until(Some('}'), true)?;
                trim(&value, &pattern, operator == '#', longest)
            }
            '/' if !empty_is_unset => {
                let all = self.eat('/');
                let pattern = self.until(Some('/'), true)?;
                let replacement = self.until(Some('}'), true)?;
                replace(&value, &pattern, &replacement, all)
            }
            _ => Err(format!("`${{{name}{operator}` is not a known substitution")),
        }
    }

    /// A name, a run of digits, or one of the shell's special characters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(character) = self.peek() {
            if name.is_empty() {
                if character.is_ascii_digit() {
                    while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                        name.push(digit);
                        self.at += 1;
                    }
                    return name;
                }
                if matches!(character, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                    self.at += 1;
                    return character.to_string();
                }
            }
            if !(character.is_alphanumeric() || character == '_') {
                break;
            }
            name.push(character);
            self.at += 1;
        }
        name
    }
}

/// Patterns are matched at every boundary of the value: both are bounded so that this stays cheap.
fn bounded<'a>(value: &'a str, pattern: &str) -> Result<(Glob, Vec<usize>, &'a str), String> {
    if value.len() > 4096 || pattern.len() > 256 {
        return Err("a substitution by pattern is too long".to_owned());
    }
    let glob =
        Glob::text(pattern).map_err(|why| format!("the pattern `{}` {why}", pattern.escape_debug()))?;
    let ends = value
        .char_indices()
        .map(|(at, _)| at)
        .chain([value.len()])
        .collect();
    Ok((glob, ends, value))
}

fn trim(value: &str, pattern: &str, prefix: bool, longest: bool) -> Result<String, String> {
    let (glob, mut cuts, value) = bounded(value, pattern)?;
    // Cuts in the order in which the first match is the wanted one.
    if prefix == longest {
        cuts.reverse();
    }
    for cut in cuts {
        let (head, tail) = value.split_at(cut);
        let (removed, kept) = if prefix { (head, tail) } else { (tail, head) };
        if glob.matches(removed) {
            return Ok(kept.to_owned());
        }
    }
    Ok(value.to_owned())
}

fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> Result<String, String> {
    let (glob, cuts, value) = bounded(value, pattern)?;
    let mut out = String::new();
    let mut at = 0;
    let mut budget = 1 << 14;
    while at < value.len() {
        let mut end = None;
        for cut in cuts.iter().rev().filter(|cut| **cut > at) {
            budget -= 1;
            if budget == 0 {
                return Err("a substitution by pattern is too long".to_owned());
            }
            if glob.matches(&value[at..*cut]) {
                end = Some(*cut);
                break;
            }
        }
        if let Some(end) = end {
            out.push_str(replacement);
            at = end;
            if !all {
                break;
            }
        } else {
            let next = cuts.iter().copied().find(|cut| *cut > at).unwrap_or(value.len());
            out.push_str(&value[at..next]);
            at = next;
        }
    }
    out.push_str(&value[at..]);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "x" => Some("val".to_owned()),
            "empty" => Some(String::new()),
            "path" => Some("/usr/local/lib.tar.gz".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn words_expand_as_buildkit_expands_them() {
        for (text, expected) in [
            ("$x ${x}", "val val"),
            ("$xy", ""),
            ("${x}y", "valy"),
            ("a$", "a$"),
            ("$.", "$."),
            ("$$x", "x"),
            ("\\$x", "$x"),
            ("'$x'", "$x"),
            ("\"$x\"", "val"),
            ("\"\\$x \\n \\\" \\\\\"", "$x \\n \" \\"),
            ("a\\ b", "a b"),
            ("${none:-d}", "d"),
            ("${none-d}", "d"),
            ("${empty:-d}", "d"),
            ("${empty-d}", ""),
            ("${x:-d}", "val"),
            ("${x:+set}", "set"),
            ("${empty:+set}", ""),
            ("${empty+set}", "set"),
            ("${none+set}", ""),
            ("${none:-${x}}", "val"),
            ("${none:-'a}'}", "a}"),
            ("${x:?gone}", "val"),
            ("${path#*/}", "usr/local/lib.tar.gz"),
            ("${path##*/}", "lib.tar.gz"),
            ("${path%.*}", "/usr/local/lib.tar"),
            ("${path%%.*}", "/usr/local/lib"),
            ("${path/l/L}", "/usr/Local/lib.tar.gz"),
            ("${path//l/L}", "/usr/LocaL/Lib.tar.gz"),
            ("${x/nope/y}", "val"),
        ] {
            assert_eq!(word(text, '\\', &lookup), Ok(expected.to_owned()), "{text}");
        }
        assert_eq!(word("`$x \\a", '`', &lookup), Ok("$x \\a".to_owned()));
    }

    #[test]
    fn documents_keep_quotes_and_escapes() {
        assert_eq!(
            document("'$x' \"${x}\" \\$x \\n\n", &lookup),
            Ok("'val' \"val\" \\$x \\n\n".to_owned())
        );
    }

    #[test]
    fn malformed_words_are_errors() {
        for bad in [
            "'a",
            "\"a",
            "${",
            "${x",
            "${}",
            "${:x}",
            "${x:-",
            "${x:#a}",
            "${x!a}",
            "${none:?}",
            "${none?gone}",
            "${x/a",
        ] {
            assert!(word(bad, '\\', &lookup).is_err(), "{bad}");
        }
        let deep = "${none:-".repeat(100) + &"}".repeat(100);
        assert!(word(&deep, '\\', &lookup).is_err());
    }
}
