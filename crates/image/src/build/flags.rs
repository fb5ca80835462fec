//! Values of flags: `--mount`, `--chmod`, durations. Pure readings of one string each; an error is the sentence to show.

use luna_core::units::Bytes;

/// `RUN --mount=…`, with docker's defaults filled in except for the target of a secret without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StepMount {
    /// A directory that outlives the build and is shared between builds; never part of a layer.
    Cache {
        id: String,
        target: String,
        read_only: bool,
        sharing: Sharing,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    /// Files of the context (`from` absent), a stage or an image, always read-only.
    Bind {
        from: Option<String>,
        source: String,
        target: String,
    },
    Secret {
        id: String,
        target: Option<String>,
        /// The secret as a variable; a file too only where a target is named.
        env: Option<String>,
        required: bool,
        uid: u32,
        gid: u32,
        mode: u32,
    },
    Tmpfs {
        target: String,
        size: Option<Bytes>,
    },
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sharing {
    #[default]
    Shared,
    /// A second user gets a directory of its own.
    Private,
    /// A second user waits.
    Locked,
}

impl StepMount {
    pub(crate) fn parse(text: &str) -> Result<StepMount, String> {
        let mut options = Options::read(text)?;
        let mount = match options.take("type").as_deref() {
            None | Some("bind") => StepMount::bind(&mut options)?,
            Some("cache") => StepMount::cache(&mut options)?,
            Some("secret") => StepMount::secret(&mut options)?,
            Some("tmpfs") => StepMount::Tmpfs {
                target: options.target()?.ok_or("`--mount=type=tmpfs` needs a target")?,
                size: match options.take("size") {
                    Some(size) => Some(size.parse().map_err(|_| format!("`size={size}` is no size"))?),
                    None => None,
                },
            },
            Some(other) => return Err(format!("`--mount=type={other}` is not supported")),
        };
        match options.0.first() {
            Some((key, _)) => Err(format!(
                "`--mount` with `{}` is not supported here",
                key.escape_debug()
            )),
            None => Ok(mount),
        }
    }

    fn bind(options: &mut Options) -> Result<StepMount, String> {
        if options.flag(&["rw", "readwrite"])? == Some(true)
            || options.flag(&["ro", "readonly"])? == Some(false)
        {
            return Err("a bind mount that can be written to is not supported".to_owned());
        }
        let from = options.take("from");
        if from.as_ref().is_some_and(|from| from.contains('$')) {
            return Err("`from` holds a variable, which is not expanded there".to_owned());
        }
        Ok(StepMount::Bind {
            from,
            source: options
                .first(&["source", "src"])
                .unwrap_or_else(|| "/".to_owned()),
            target: options.target()?.ok_or("`--mount=type=bind` needs a target")?,
        })
    }

    /// `from` and `source` are refused: a path inside a directory that other steps write to at the same time is a race
    /// that a symbolic link wins (CVE-2024-23651).
    fn cache(options: &mut Options) -> Result<StepMount, String> {
        let target = options.target()?.ok_or("`--mount=type=cache` needs a target")?;
        let writable = options.flag(&["rw", "readwrite"])?;
        let read_only = options.flag(&["ro", "readonly"])?;
        Ok(StepMount::Cache {
            id: options.take("id").unwrap_or_else(|| target.clone()),
            target,
            read_only: read_only.unwrap_or_else(|| writable.is_some_and(|writable| !writable)),
            sharing: match options.take("sharing").as_deref() {
                None | Some("shared") => Sharing::Shared,
                Some("private") => Sharing::Private,
                Some("locked") => Sharing::Locked,
                Some(other) => return Err(format!("`sharing={other}` is not shared, private or locked")),
            },
            uid: options.number("uid")?.unwrap_or(0),
            gid: options.number("gid")?.unwrap_or(0),
            mode: options.mode()?.unwrap_or(0o755),
        })
    }

    fn secret(options: &mut Options) -> Result<StepMount, String> {
        let target = options.target()?;
        let named = target.as_deref().and_then(|target| target.rsplit('/').next());
        let id = options.take("id").or_else(|| named.map(str::to_owned));
        let id = id
            .filter(|id| !id.is_empty())
            .ok_or("`--mount=type=secret` needs an id")?;
        if id.contains('/') || id == ".." || id == "." {
            return Err(format!("`{}` is no id for a secret", id.escape_debug()));
        }
        let env = options.take("env");
        if let Some(name) = &env
            && (name.is_empty() || name.contains('='))
        {
            return Err(format!("`env={}` is no name for a variable", name.escape_debug()));
        }
        Ok(StepMount::Secret {
            id,
            target,
            env,
            required: options.flag(&["required"])?.unwrap_or(false),
            uid: options.number("uid")?.unwrap_or(0),
            gid: options.number("gid")?.unwrap_or(0),
            mode: options.mode()?.unwrap_or(0o400),
        })
    }
}

/// `key=value,…` with each key once; a key alone has no value.
struct Options(Vec<(String, Option<String>)>);

impl Options {
    fn read(text: &str) -> Result<Options, String> {
        let mut options: Vec<(String, Option<String>)> = Vec::new();
        for field in text.split(',') {
            let field = field.trim().trim_matches('"');
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (field, None),
            };
            let key = key.to_ascii_lowercase();
            if key.is_empty() || options.iter().any(|(known, _)| *known == key) {
                return Err(format!("`--mount={}` cannot be read", text.escape_debug()));
            }
            options.push((key, value));
        }
        Ok(Options(options))
    }

    fn entry(&mut self, key: &str) -> Option<(String, Option<String>)> {
        let at = self.0.iter().position(|(known, _)| known == key)?;
        Some(self.0.remove(at))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.entry(key)?.1
    }

    fn first(&mut self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| self.take(key))
    }

    fn target(&mut self) -> Result<Option<String>, String> {
        let target = self.first(&["target", "dst", "destination"]);
        match target {
            Some(target) if target.is_empty() => Err("a mount's target is empty".to_owned()),
            other => Ok(other),
        }
    }

    fn flag(&mut self, keys: &[&str]) -> Result<Option<bool>, String> {
        for key in keys {
            match self.entry(key) {
                None => {}
                Some((_, None)) => return Ok(Some(true)),
                Some((_, Some(value))) => {
                    return value
                        .parse()
                        .map(Some)
                        .map_err(|_| format!("`{key}={value}` is not true or false"));
                }
            }
        }
        Ok(None)
    }

    fn number(&mut self, key: &str) -> Result<Option<u32>, String> {
        let number = |value: String| match value.parse() {
            Ok(number) if number < 65_536 => Ok(number),
            _ => Err(format!("`{key}={value}` is no number from 0 to 65535")),
        };
        self.take(key).map(number).transpose()
    }

    fn mode(&mut self) -> Result<Option<u32>, String> {
        self.take("mode").map(|value| mode(&value)).transpose()
    }
}

/// An octal mode, at most 07777.
pub(crate) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(mode),
        _ => Err(format!("`{}` is no octal file mode", text.escape_debug())),
    }
}

/// Refuses what ADD would have to fetch.
pub(crate) fn local_only(source: &str) -> Result<(), (String, String)> {
    let lower = source.to_ascii_lowercase();
    if lower.starts_with("http://") || lower.starts_with("https://") {
        return Err((
            format!("ADD of the URL `{}` is not supported", source.escape_debug()),
            "fetch it in a RUN step with `--network host`, or put the file into the context".to_owned(),
        ));
    }
    let git = lower.starts_with("git@") || lower.starts_with("git://") || lower.starts_with("ssh://");
    if git {
        return Err((
            format!(
                "ADD of the git repository `{}` is not supported",
                source.escape_debug()
            ),
            "clone it into the context first".to_owned(),
        ));
    }
    Ok(())
}

/// Go's durations, in nanoseconds: `1h30m`, `2.5s`, `100ms`; 0 needs no unit.
pub(crate) fn duration(text: &str) -> Result<u64, String> {
    let invalid = || format!("`{}` is no duration like `30s`", text.escape_debug());
    if text == "0" {
        return Ok(0);
    }
    let mut rest = text;
    let mut total = 0f64;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| invalid())?;
        let units = [
            ("ns", 1.0),
            ("us", 1e3),
            ("ms", 1e6),
            ("s", 1e9),
            ("m", 60e9),
            ("h", 3600e9),
        ];
        let (unit, scale) = units
            .iter()
            .find(|(unit, _)| tail.starts_with(unit))
            .ok_or_else(invalid)?;
        total += number * scale;
        rest = &tail[unit.len()..];
    }
    if text.is_empty() || total >= 1e18 {
        return Err(invalid());
    }
    Ok(total as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_have_dockers_defaults() {
        assert_eq!(
            StepMount::parse("type=cache,target=/c").unwrap(),
            StepMount::Cache {
                id: "/c".to_owned(),
                target: "/c".to_owned(),
                read_only: false,
                sharing: Sharing::Shared,
                uid: 0,
                gid: 0,
                mode: 0o755
            }
        );
        assert_eq!(
            StepMount::parse("target=/src,from=a,source=x,ro").unwrap(),
            StepMount::Bind {
                from: Some("a".to_owned()),
                source: "x".to_owned(),
                target: "/src".to_owned()
            }
        );
        assert!(matches!(
            StepMount::parse("type=secret,id=s,required,mode=0440,uid=7").unwrap(),
            StepMount::Secret {
                required: true,
                mode: 0o440,
                uid: 7,
                target: None,
                ..
            }
        ));
        assert_eq!(
            StepMount::parse("type=tmpfs,target=/t,size=1m").unwrap(),
            StepMount::Tmpfs {
                target: "/t".to_owned(),
                size: Some(Bytes(1 << 20))
            }
        );
    }

    #[test]
    fn what_is_not_built_is_refused() {
        for bad in [
            "type=ssh",
            "type=cache",
            "type=cache,target=/c,source=sub",
            "type=cache,target=/c,from=stage",
            "type=cache,target=/c,sharing=x",
            "type=bind,target=/b,rw",
            "type=bind,target=/b,from=$x",
            "type=secret",
            "type=secret,id=../x",
            "type=secret,id=a,mode=99999",
            "type=tmpfs,target=/t,size=x",
            "type=tmpfs,target=/t,target=/u",
            "",
        ] {
            assert!(StepMount::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("30s", 30_000_000_000),
            ("1m30s", 90_000_000_000),
            ("1.5ms", 1_500_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for bad in ["", "5", "s", "1x", "-1s", "99999999999h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
