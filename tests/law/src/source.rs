//! What the source of each crate may say, judged on its tokens: comments and strings do not count.

use std::path::Path;
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Crates whose modules named `sys` may hold `unsafe`.
const UNSAFE: [&str; 4] = ["luna-jail", "luna-guest", "luna-microvm", "luna-network"];

/// Crates that print and that exit.
const FRONT_DOORS: [&str; 2] = ["luna", "workspace"];

/// Every breach in one file: `path` is relative to its crate's directory, such as `src/sys.rs`.
pub fn breaches(name: &str, path: &Path, text: &str) -> Vec<String> {
    let Ok(tokens) = TokenStream::from_str(text) else {
        return vec![format!("{name}/{}: does not parse", path.display())];
    };
    let mut words = Vec::new();
    flatten(tokens, is_test(path), &mut words);
    let lines: Vec<_> = text.lines().collect();
    let file = File {
        name,
        path,
        lines: &lines,
        words: &words,
    };
    (0..words.len())
        .filter_map(|index| {
            let breach = file.judge(index)?;
            Some(format!(
                "{name}/{}:{}: {breach}",
                path.display(),
                words[index].line
            ))
        })
        .collect()
}

/// Files of which nothing reaches a product: `tests`, `examples` and `benches` beside `src`, and `tests.rs` in it.
fn is_test(path: &Path) -> bool {
    ["tests", "examples", "benches"]
        .iter()
        .any(|name| path.starts_with(name))
        || has_component(path, "tests")
}

/// Whether the file is the module `name` or lies in it: `name.rs`, or anything under `name/`.
fn has_component(path: &Path, name: &str) -> bool {
    path.components()
        .any(|part| Path::new(part.as_os_str()).file_stem() == Some(name.as_ref()))
}

/// An identifier, or one character of punctuation or bracket.
#[derive(Debug)]
struct Word {
    text: String,
    line: usize,
    in_test: bool,
}

/// Lays the token tree out flat and marks what stands under `#[cfg(test)]`.
fn flatten(tokens: TokenStream, in_test: bool, words: &mut Vec<Word>) {
    let mut test_item = false;
    for token in tokens {
        let line = token.span().start().line;
        let mut push = |text: &str| {
            words.push(Word {
                text: text.to_owned(),
                line,
                in_test: in_test || test_item,
            });
        };
        match token {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open);
                if group.delimiter() == Delimiter::Bracket && group.stream().to_string() == "cfg (test)" {
                    test_item = true;
                }
                flatten(group.stream(), in_test || test_item, words);
                words.push(Word {
                    text: close.to_owned(),
                    line: group.span_close().start().line,
                    in_test: in_test || test_item,
                });
                // The item that the attribute stood on ends with its body.
                if group.delimiter() == Delimiter::Brace {
                    test_item = false;
                }
            }
            TokenTree::Ident(word) => push(&word.to_string()),
            TokenTree::Punct(mark) => {
                push(&mark.to_string());
                if mark.as_char() == ';' {
                    test_item = false;
                }
            }
            TokenTree::Literal(_) => push("literal"),
        }
    }
}

struct File<'a> {
    name: &'a str,
    path: &'a Path,
    lines: &'a [&'a str],
    words: &'a [Word],
}

impl File<'_> {
    fn judge(&self, index: usize) -> Option<String> {
        let word = &self.words[index];
        let front_door = FRONT_DOORS.contains(&self.name);
        match word.text.as_str() {
            "unsafe" if !self.may_be_unsafe() => {
                Some("`unsafe` outside a module named `sys` of jail, guest, microvm or network".to_owned())
            }
            "unsafe" if self.is(index + 1, "{") && !self.has_safety_comment(word.line) => {
                Some("an `unsafe` block without `// SAFETY:`".to_owned())
            }
            "unsafe_code" if !self.may_be_unsafe() => {
                Some("`unsafe_code` allowed outside a module named `sys`".to_owned())
            }
            "println" | "print" | "eprintln" | "eprint" | "dbg"
                if self.is(index + 1, "!") && !word.in_test && !front_door =>
            {
                Some(format!("`{}!` outside luna and workspace", word.text))
            }
            "stdout" | "stderr"
                if self.follows(index, "io") && !self.is(index + 1, ":") && !word.in_test && !front_door =>
            {
                Some(format!("`io::{}` outside luna and workspace", word.text))
            }
            "exit" if self.follows(index, "process") && !front_door => {
                Some("`process::exit` outside luna and workspace".to_owned())
            }
            "print_stdout" | "print_stderr" | "exit"
                if self.follows(index, "clippy") && !word.in_test && !front_door =>
            {
                Some(format!(
                    "`clippy::{}` allowed outside luna and workspace",
                    word.text
                ))
            }
            "unwrap_used" | "todo" | "unimplemented" | "dbg_macro"
                if self.follows(index, "clippy") && !word.in_test =>
            {
                Some(format!("`clippy::{}` allowed", word.text))
            }
            "tokio" if !self.may_name_tokio() => {
                Some("`tokio` outside luna, workspace and the registry module of image".to_owned())
            }
            "fs" | "thread" | "env" if self.name == "luna-core" && self.follows(index, "std") => {
                Some(format!("`std::{}` in core, which does no I/O", word.text))
            }
            "TcpStream" | "TcpListener" | "UdpSocket" | "UnixStream" if self.name == "luna-core" => {
                Some(format!("`{}` in core, which does no I/O", word.text))
            }
            _ => None,
        }
    }

    fn may_be_unsafe(&self) -> bool {
        UNSAFE.contains(&self.name) && has_component(self.path, "sys")
    }

    fn may_name_tokio(&self) -> bool {
        FRONT_DOORS.contains(&self.name)
            || (self.name == "luna-image" && has_component(self.path, "registry"))
    }

    fn is(&self, index: usize, text: &str) -> bool {
        self.words.get(index).is_some_and(|word| word.text == text)
    }

    /// Whether the word stands behind `parent::`.
    fn follows(&self, index: usize, parent: &str) -> bool {
        index >= 3 && self.is(index - 1, ":") && self.is(index - 2, ":") && self.is(index - 3, parent)
    }

    /// The comment stands on the block's own line or in the run of comment lines above the statement, which may have
    /// begun up to three lines before the block.
    fn has_safety_comment(&self, line: usize) -> bool {
        if self.lines[line - 1].contains("SAFETY:") {
            return true;
        }
        let above = &self.lines[..line - 1];
        let statement = above
            .iter()
            .rev()
            .take_while(|line| !line.trim_start().starts_with("//"))
            .count();
        statement <= 3
            && above
                .iter()
                .rev()
                .skip(statement)
                .take_while(|line| line.trim_start().starts_with("//"))
                .any(|line| line.contains("SAFETY:"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(name: &str, path: &str, text: &str) -> Vec<String> {
        breaches(name, Path::new(path), text)
    }

    #[test]
    fn unsafe_lives_in_sys_with_its_reason() {
        let block = "fn f() { unsafe { g() } }";
        let reasoned = "fn f() {\n    // SAFETY: g asks for nothing.\n    unsafe { g() }\n}";
        assert_eq!(judged("luna-jail", "src/mount.rs", reasoned).len(), 1);
        assert_eq!(judged("luna-image", "src/sys.rs", reasoned).len(), 1);
        assert_eq!(
            judged("luna-jail", "src/sys.rs", block),
            ["luna-jail/src/sys.rs:1: an `unsafe` block without `// SAFETY:`"]
        );
        assert_eq!(judged("luna-jail", "src/sys.rs", reasoned), Vec::<String>::new());
        assert_eq!(
            judged("luna-jail", "src/sys/clone.rs", reasoned),
            Vec::<String>::new()
        );
    }

    #[test]
    fn the_lint_cannot_be_switched_off_elsewhere() {
        assert_eq!(
            judged("luna-runtime", "src/lib.rs", "#![allow(unsafe_code)]").len(),
            1
        );
        assert_eq!(
            judged("luna-runtime", "src/lib.rs", "#![allow(clippy::unwrap_used)]").len(),
            1
        );
        assert_eq!(
            judged("luna-runtime", "src/lib.rs", "#[expect(clippy::exit)] fn f() {}").len(),
            1
        );
    }

    #[test]
    fn only_the_front_doors_print_and_exit() {
        let text = "fn f() { println!(\"x\"); std::io::stdout().flush(); std::process::exit(1) }";
        assert_eq!(judged("luna-runtime", "src/lib.rs", text).len(), 3);
        assert_eq!(judged("luna", "src/main.rs", text), Vec::<String>::new());
        let test = "#[cfg(test)]\nmod tests { fn f() { println!(); } }\nfn g() {}";
        assert_eq!(judged("luna-runtime", "src/lib.rs", test), Vec::<String>::new());
        assert_eq!(
            judged("luna-runtime", "tests/all.rs", "fn f() { println!() }"),
            Vec::<String>::new()
        );
        assert_eq!(
            judged("luna-runtime", "src/log/tests.rs", "fn f() { println!() }"),
            Vec::<String>::new()
        );
        let after = "#[cfg(test)]\nmod tests {}\nfn g() { println!() }";
        assert_eq!(judged("luna-runtime", "src/lib.rs", after).len(), 1);
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        let text = "/// unsafe println!\nfn f() { g(\"unsafe tokio\") } // unsafe";
        assert_eq!(judged("luna-core", "src/lib.rs", text), Vec::<String>::new());
    }

    #[test]
    fn tokio_stays_in_the_registry_module() {
        let text = "use tokio::runtime::Runtime;";
        assert_eq!(judged("luna-image", "src/store.rs", text).len(), 1);
        assert_eq!(
            judged("luna-image", "src/registry/client.rs", text),
            Vec::<String>::new()
        );
    }

    #[test]
    fn core_does_no_io() {
        assert_eq!(judged("luna-core", "src/lib.rs", "use std::fs;").len(), 1);
        assert_eq!(
            judged("luna-core", "src/lib.rs", "use std::net::IpAddr;"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_does_not_parse_is_a_breach() {
        assert_eq!(judged("luna-core", "src/lib.rs", "fn f( {").len(), 1);
    }
}
