//! `--chown` and USER in numbers, looked up in the image's own `/etc/passwd` and `/etc/group`. Strict: what is neither a
//! number nor a known name is an error, never 0.

use std::path::Path;

use luna_core::{Error, Kind, Result};

use super::view::View;

/// Reads `user`, `uid`, `user:group` and the like. Without a group a number stands for both, and a name for its own
/// primary group.
pub(crate) fn owner(view: &View, text: &str) -> Result<(u32, u32)> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let passwd = || lines(view, "etc/passwd");
    let (uid, primary) = match number(user, text)? {
        Some(uid) => (uid, uid),
        None => passwd()?
            .iter()
            .find_map(|line| match &line[..] {
                [name, _, uid, gid, ..] if name == user => Some((uid.parse().ok()?, gid.parse().ok()?)),
                _ => None,
            })
            .ok_or_else(|| unknown(text, "user", user, "/etc/passwd"))?,
    };
    let gid = match group {
        None => primary,
        Some(group) => match number(group, text)? {
            Some(gid) => gid,
            None => lines(view, "etc/group")?
                .iter()
                .find_map(|line| match &line[..] {
                    [name, _, gid, ..] if name == group => gid.parse().ok(),
                    _ => None,
                })
                .ok_or_else(|| unknown(text, "group", group, "/etc/group"))?,
        },
    };
    if uid > 65_535 || gid > 65_535 {
        return Err(invalid(text).because("ids end at 65535"));
    }
    Ok((uid, gid))
}

fn number(part: &str, text: &str) -> Result<Option<u32>> {
    if part.is_empty() {
        return Err(invalid(text).because("the user or the group is empty"));
    }
    if !part.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match part.parse() {
        Ok(number) if number <= 65_535 => Ok(Some(number)),
        _ => Err(invalid(text).because("ids end at 65535")),
    }
}

fn lines(view: &View, path: &str) -> Result<Vec<Vec<String>>> {
    let text = view.text(Path::new(path))?.unwrap_or_default();
    Ok(text
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect())
        .collect())
}

fn invalid(text: &str) -> Error {
    Error::new(
        Kind::InvalidInput,
        format!("cannot find the owner `{}`", text.escape_debug()),
    )
}

fn unknown(text: &str, what: &str, name: &str, file: &str) -> Error {
    invalid(text).because(format!(
        "the image's `{file}` has no {what} `{}`",
        name.escape_debug()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_looked_up_strictly() {
        let temporary = tempfile::tempdir().unwrap();
        std::fs::create_dir(temporary.path().join("etc")).unwrap();
        std::fs::write(
            temporary.path().join("etc/passwd"),
            "root:x:0:0::/:/bin/sh\nme:x:7:8::/:\nbad:x:a:b::\n",
        )
        .unwrap();
        std::fs::write(temporary.path().join("etc/group"), "staff:x:50:\n").unwrap();
        let view = View::of_directory(temporary.path()).unwrap();
        for (text, expected) in [
            ("0", (0, 0)),
            ("5", (5, 5)),
            ("5:6", (5, 6)),
            ("me", (7, 8)),
            ("me:staff", (7, 50)),
            ("1:staff", (1, 50)),
            ("root:0", (0, 0)),
        ] {
            assert_eq!(owner(&view, text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            ":",
            "me:",
            ":1",
            "nobody",
            "me:nogroup",
            "bad",
            "65536",
            "-1",
            "+1",
            "1 ",
            "me:staff:x",
            "4294967296",
        ] {
            assert!(owner(&view, bad).is_err(), "{bad}");
        }
    }
}
