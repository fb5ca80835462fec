//! Here-documents of RUN, COPY and ADD, found before the Dockerfile is parsed.
//!
//! The grammar crate knows a here-document only at the start of RUN and forgets the names that COPY needs. So their
//! bodies are read here and replaced by comments of the same length: every offset and line number of the masked text
//! is one of the original's.
//!
//! What counts as one follows BuildKit (`frontend/dockerfile/parser/parser.go`): a whole word `<<NAME` or `<<-NAME`,
//! with an optional file descriptor number before it; a quoted name means that nothing in the body is expanded.

use super::dockerfile::Flaw;

/// One body, with where the word that announced it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heredoc {
    /// The delimiter without quotes: what COPY calls the file.
    pub name: String,
    /// The body with its final newline; leading tabs are gone where `<<-` was written.
    pub content: String,
    /// The body and its end line as written, for a shell to read again.
    pub raw: String,
    /// Whether variables in it are expanded.
    pub expand: bool,
}

/// The text with bodies masked, and each here-document with the offset of its word.
pub(super) struct Masked {
    pub text: String,
    pub heredocs: Vec<(usize, Heredoc)>,
}

struct Line {
    start: usize,
    /// Without the line break.
    end: usize,
    /// With it.
    next: usize,
}

pub(super) fn mask(text: &str, escape: u8) -> Result<Masked, Flaw> {
    let bytes = text.as_bytes();
    let lines = lines(bytes);
    let mut masked = bytes.to_vec();
    let mut heredocs = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = at;
        let (logical, next) = logical_line(bytes, &lines, first, escape);
        at = next;
        if !announces(&logical) {
            continue;
        }
        for (offset, word) in words(&logical) {
            let Some(delimiter) = delimiter(&word) else {
                continue;
            };
            let body_start = at;
            let end = (at..lines.len()).find(|line| {
                let raw = &text[lines[*line].start..lines[*line].end];
                let raw = if delimiter.strip_tabs {
                    raw.trim_start_matches('\t')
                } else {
                    raw
                };
                raw == delimiter.name
            });
            let Some(end) = end else {
                return Err(Flaw::new(
                    first + 1,
                    format!(
                        "the here-document `{}` has no end line",
                        delimiter.name.escape_debug()
                    ),
                ));
            };
            let raw_end = lines[end].next;
            let raw = text[lines.get(body_start).map_or(raw_end, |line| line.start)..raw_end].to_owned();
            let mut content = String::new();
            for line in &lines[body_start..end] {
                let body = &text[line.start..line.end];
                content.push_str(if delimiter.strip_tabs {
                    body.trim_start_matches('\t')
                } else {
                    body
                });
                content.push('\n');
            }
            for line in &lines[body_start..=end] {
                masked[line.start..line.end].fill(b'#');
            }
            let sign = offset + word.iter().position(|byte| *byte == b'<').unwrap_or(0);
            masked[sign..sign + 2].fill(b'_');
            heredocs.push((
                offset,
                Heredoc {
                    name: delimiter.name,
                    content,
                    raw,
                    expand: delimiter.expand,
                },
            ));
            at = end + 1;
        }
    }
    let text = String::from_utf8(masked).expect("only whole lines and ASCII were replaced by ASCII");
    Ok(Masked { text, heredocs })
}

fn lines(bytes: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut start = 0;
    while start < bytes.len() {
        let length = bytes[start..].iter().position(|byte| *byte == b'\n');
        let next = length.map_or(bytes.len(), |length| start + length + 1);
        let mut end = length.map_or(bytes.len(), |length| start + length);
        if end > start && bytes[end - 1] == b'\r' {
            end -= 1;
        }
        lines.push(Line { start, end, next });
        start = next;
    }
    lines
}

/// The instruction that begins at `first` with its continuations joined, each byte with its offset; and the line
/// after it. Comments and empty lines inside it are left out.
fn logical_line(bytes: &[u8], lines: &[Line], first: usize, escape: u8) -> (Vec<(usize, u8)>, usize) {
    let mut logical = Vec::new();
    let mut at = first;
    let mut continued = false;
    while let Some(line) = lines.get(at) {
        let raw = &bytes[line.start..line.end];
        let trimmed = raw.trim_ascii_start();
        at += 1;
        if trimmed.is_empty() || trimmed.starts_with(b"#") {
            if continued {
                continue;
            }
            return (Vec::new(), at);
        }
        let kept = raw.trim_ascii_end();
        let more = kept.last() == Some(&escape);
        let length = if more { kept.len() - 1 } else { raw.len() };
        logical.extend((line.start..).zip(raw[..length].iter().copied()));
        if !more {
            break;
        }
        continued = true;
    }
    (logical, at)
}

/// Whether this instruction may carry here-documents: RUN, COPY or ADD, and not in JSON form.
fn announces(logical: &[(usize, u8)]) -> bool {
    let text: Vec<u8> = logical.iter().map(|(_, byte)| *byte).collect();
    let mut rest = text
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let Some(keyword) = rest.next() else {
        return false;
    };
    let carries = [&b"RUN"[..], b"COPY", b"ADD"]
        .iter()
        .any(|name| keyword.eq_ignore_ascii_case(name));
    carries
        && rest
            .find(|word| !word.starts_with(b"--"))
            .is_some_and(|word| !word.starts_with(b"["))
}

/// Words as a shell would separate them, quotes and escapes kept, each with its offset.
fn words(logical: &[(usize, u8)]) -> Vec<(usize, Vec<u8>)> {
    let mut words = Vec::new();
    let mut word: Option<(usize, Vec<u8>)> = None;
    let mut quote = None;
    let mut escaped = false;
    for &(offset, byte) in logical {
        if quote.is_none() && !escaped && byte.is_ascii_whitespace() {
            words.extend(word.take());
            continue;
        }
        word.get_or_insert_with(|| (offset, Vec::new())).1.push(byte);
        if escaped {
            escaped = false;
        } else if byte == b'\\' && quote != Some(b'\'') {
            escaped = true;
        } else if quote == Some(byte) {
            quote = None;
        } else if quote.is_none() && (byte == b'\'' || byte == b'"') {
            quote = Some(byte);
        }
    }
    words.extend(word);
    words
}

struct Delimiter {
    name: String,
    strip_tabs: bool,
    expand: bool,
}

fn delimiter(word: &[u8]) -> Option<Delimiter> {
    let text = std::str::from_utf8(word).ok()?;
    let text = text
        .trim_start_matches(|c: char| c.is_ascii_digit())
        .strip_prefix("<<")?;
    let (strip_tabs, quoted) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if quoted.contains('<') {
        return None;
    }
    let name: String = quoted
        .chars()
        .filter(|c| !matches!(c, '\'' | '"' | '\\'))
        .collect();
    (!name.is_empty()).then(|| Delimiter {
        expand: name == quoted,
        name,
        strip_tabs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_comments_of_the_same_length() {
        let text = "FROM a\nRUN cat <<EOF > /x && \\\n  cat <<-'B c'\nÄ $x\nEOF\n\t\tFROM\n\tB c\nCMD b\n";
        let masked = mask(text, b'\\').unwrap();
        assert_eq!(
            masked.text,
            "FROM a\nRUN cat __EOF > /x && \\\n  cat __-'B c'\n#####\n###\n######\n####\nCMD b\n"
        );
        let [(first_at, first), (_, second)] = &masked.heredocs[..] else {
            panic!("two here-documents");
        };
        assert_eq!(&text[*first_at..*first_at + 5], "<<EOF");
        assert_eq!((first.content.as_str(), first.expand), ("Ä $x\n", true));
        assert_eq!(first.raw, "Ä $x\nEOF\n");
        assert_eq!(
            (second.name.as_str(), second.content.as_str(), second.expand),
            ("B c", "FROM\n", false)
        );
    }

    #[test]
    fn what_only_looks_like_one_is_left_alone() {
        for text in [
            "FROM a\nRUN [\"cat\", \"<<EOF\"]\n",
            "FROM a\nRUN echo \"a <<EOF b\"\n",
            "FROM a\nRUN cat <<<word\n",
            "FROM a\nENV x <<EOF\n",
            "# RUN <<EOF\nFROM a\n",
            "FROM a\nRUN x \\\n# <<EOF\n y\n",
        ] {
            assert_eq!(mask(text, b'\\').unwrap().text, text);
        }
    }

    #[test]
    fn a_missing_end_names_its_line() {
        let flaw = mask("FROM a\n\nRUN <<EOF\nx\n", b'\\').err().unwrap();
        assert_eq!(flaw.line, 3);
    }
}
