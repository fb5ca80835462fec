//! Words of a Dockerfile line: continuations joined, quotes respected, as BuildKit does it
//! (`frontend/dockerfile/parser/line_parsers.go`).

/// The instruction that `text` begins with, on one line: continuation marks, and comments and empty lines between
/// continued lines, are gone. Ends at the first line break that is not continued.
pub(super) fn join(text: &str, escape: char) -> String {
    let mut joined = String::new();
    let mut continued = false;
    for line in text.split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if continued {
            let trimmed = line.trim_start();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
        }
        let Some(kept) = line.trim_end_matches([' ', '\t']).strip_suffix(escape) else {
            joined.push_str(line);
            break;
        };
        joined.push_str(kept);
        continued = true;
    }
    joined.trim().to_owned()
}

/// Words separated by white space outside quotes; quotes and escapes stay in them.
pub(super) fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if quote.is_none() && character.is_whitespace() {
            if !word.is_empty() {
                words.push(std::mem::take(&mut word));
            }
            continue;
        }
        word.push(character);
        if character == escape && quote != Some('\'') {
            word.extend(characters.next());
        } else if quote == Some(character) {
            quote = None;
        } else if quote.is_none() && matches!(character, '\'' | '"') {
            quote = Some(character);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// `name=value …`, or the old `name the rest of the line`.
pub(super) fn pairs(text: &str, escape: char) -> Result<Vec<(String, String)>, String> {
    let words = split(text, escape);
    let first = words.first().ok_or("it has no arguments")?;
    if !first.contains('=') {
        let text = text.trim();
        let value = text.strip_prefix(first.as_str()).unwrap_or_default().trim_start();
        if value.is_empty() {
            return Err(format!("`{}` has no value", first.escape_debug()));
        }
        return Ok(vec![(first.clone(), value.to_owned())]);
    }
    let pair = |word: &String| match word.split_once('=') {
        Some(("", _)) => Err(format!("`{}` has no name", word.escape_debug())),
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err(format!(
            "`{}` is not of the form `name=value`",
            word.escape_debug()
        )),
    };
    words.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continued_lines_join_without_their_comments() {
        for (text, expected) in [
            ("a \\\n  b\nc", "a   b"),
            ("a && \\\n# no\n\n  # no\n b \\ \n c\r\nd", "a &&  b  c"),
            ("  a # kept ", "a # kept"),
            ("a\\", "a"),
        ] {
            assert_eq!(join(text, '\\'), expected, "{text:?}");
        }
        assert_eq!(join("a `\nb \\\nc", '`'), "a b \\");
    }

    #[test]
    fn words_keep_their_quotes() {
        for (text, expected) in [
            ("a b", vec!["a", "b"]),
            ("a='x y' b=\"z \\\" w\"", vec!["a='x y'", "b=\"z \\\" w\""]),
            ("a=x\\ y", vec!["a=x\\ y"]),
            ("a='\\' b", vec!["a='\\'", "b"]),
        ] {
            assert_eq!(split(text, '\\'), expected, "{text:?}");
        }
    }

    #[test]
    fn pairs_have_two_forms() {
        let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            pairs("a=1 b='2 3'", '\\').unwrap(),
            [own("a", "1"), own("b", "'2 3'")]
        );
        assert_eq!(pairs("a 1  b=2 ", '\\').unwrap(), [own("a", "1  b=2")]);
        for bad in ["a", "a=1 b", "=1"] {
            assert!(pairs(bad, '\\').is_err(), "{bad}");
        }
    }
}
