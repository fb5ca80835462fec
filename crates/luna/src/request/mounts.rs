//! `-v`, `--mount`, `--tmpfs`.

use std::path::PathBuf;

use luna_core::spec::Mount;
use luna_core::{Error, Kind, Result};

pub(super) fn mounts(volumes: &[String], mounts: &[String], tmpfs: &[String]) -> Result<Vec<Mount>> {
    let volumes = volumes.iter().map(|text| volume(text));
    let mounts = mounts.iter().map(|text| mount(text));
    let tmpfs = tmpfs.iter().map(|text| memory(text));
    volumes.chain(mounts).chain(tmpfs).collect()
}

fn invalid(flag: &str, text: &str, because: impl Into<String>) -> Error {
    let hint = match flag {
        "--volume" => "write `/host:/sandbox`, `/host:/sandbox:ro`, `name:/sandbox` or `/sandbox`",
        "--mount" => "write for example `--mount type=bind,source=/host,target=/sandbox,readonly`",
        _ => "write for example `--tmpfs /run:size=64m,mode=1777`",
    };
    Error::new(
        Kind::InvalidInput,
        format!("cannot read `{flag} {}`", text.escape_debug()),
    )
    .because(because.into())
    .hint(hint)
}

fn target(flag: &str, text: &str, path: &str) -> Result<PathBuf> {
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(invalid(
        flag,
        text,
        format!("`{}` in the sandbox is not an absolute path", path.escape_debug()),
    ))
}

/// A path on the host; one relative to here begins with a dot.
fn source(flag: &str, text: &str, path: &str) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| invalid(flag, text, error.to_string()))
}

/// `source:target[:options]` or `target`.
fn volume(text: &str) -> Result<Mount> {
    const FLAG: &str = "--volume";
    let parts: Vec<&str> = text.split(':').collect();
    let (from, to, options) = match parts.as_slice() {
        [to] => {
            return Ok(Mount::Volume {
                name: None,
                target: target(FLAG, text, to)?,
                read_only: false,
            });
        }
        [from, to] => (*from, *to, ""),
        [from, to, options] => (*from, *to, *options),
        _ => return Err(invalid(FLAG, text, "it has too many colons")),
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" | "readonly" => read_only = true,
            "rw" => read_only = false,
            _ => {
                return Err(invalid(
                    FLAG,
                    text,
                    format!("there is no option `{}`", option.escape_debug()),
                ));
            }
        }
    }
    let target = target(FLAG, text, to)?;
    if from.starts_with(['/', '.']) {
        return Ok(Mount::Bind {
            source: source(FLAG, text, from)?,
            target,
            read_only,
        });
    }
    if from.contains('/') {
        return Err(invalid(
            FLAG,
            text,
            "a path on the host begins with `/` or `./`, a volume's name has no slash",
        ));
    }
    Ok(Mount::Volume {
        name: Some(from.parse()?),
        target,
        read_only,
    })
}

/// `key=value,…`.
fn mount(text: &str) -> Result<Mount> {
    const FLAG: &str = "--mount";
    let mut kind = "volume";
    let (mut from, mut to, mut read_only) = (None, None, false);
    let (mut size, mut mode) = (None, None);
    for part in text.split(',') {
        let (key, value) = part
            .split_once('=')
            .map_or((part, None), |(key, value)| (key, Some(value)));
        let needed = || value.ok_or_else(|| invalid(FLAG, text, format!("`{key}` has no value")));
        match key {
            "type" => kind = needed()?,
            "source" | "src" => from = Some(needed()?),
            "target" | "dst" | "destination" => to = Some(needed()?),
            "readonly" | "ro" => {
                read_only = match value {
                    None | Some("true" | "1") => true,
                    Some("false" | "0") => false,
                    Some(_) => return Err(invalid(FLAG, text, format!("`{key}` is `true` or `false`"))),
                }
            }
            "tmpfs-size" => size = Some(needed()?.parse()?),
            "tmpfs-mode" => mode = Some(octal(FLAG, text, needed()?)?),
            _ => {
                return Err(invalid(
                    FLAG,
                    text,
                    format!("there is no option `{}`", key.escape_debug()),
                ));
            }
        }
    }
    let target = target(
        FLAG,
        text,
        to.ok_or_else(|| invalid(FLAG, text, "it has no `target`"))?,
    )?;
    if kind != "tmpfs" && (size.is_some() || mode.is_some()) {
        return Err(invalid(
            FLAG,
            text,
            "`tmpfs-size` and `tmpfs-mode` belong to `type=tmpfs`",
        ));
    }
    match kind {
        "bind" => {
            let from = from.ok_or_else(|| invalid(FLAG, text, "a bind mount has no `source`"))?;
            Ok(Mount::Bind {
                source: source(FLAG, text, from)?,
                target,
                read_only,
            })
        }
        "volume" => Ok(Mount::Volume {
            name: from.map(str::parse).transpose()?,
            target,
            read_only,
        }),
        "tmpfs" if from.is_some() => Err(invalid(FLAG, text, "memory has no `source`")),
        "tmpfs" if read_only => Err(invalid(
            FLAG,
            text,
            "empty memory that cannot be written is of no use",
        )),
        "tmpfs" => Ok(Mount::Tmpfs {
            target,
            size,
            mode,
            executable: false,
        }),
        _ => Err(invalid(
            FLAG,
            text,
            format!("there is no type `{}`", kind.escape_debug()),
        )),
    }
}

/// `target[:options]`.
fn memory(text: &str) -> Result<Mount> {
    const FLAG: &str = "--tmpfs";
    let (to, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut executable) = (None, None, false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", value)) => size = Some(value.parse()?),
            Some(("mode", value)) => mode = Some(octal(FLAG, text, value)?),
            None if option == "exec" => executable = true,
            None if option == "noexec" => executable = false,
            // What always holds.
            None if matches!(option, "rw" | "nosuid" | "nodev") => {}
            _ => {
                return Err(invalid(
                    FLAG,
                    text,
                    format!("there is no option `{}`", option.escape_debug()),
                ));
            }
        }
    }
    Ok(Mount::Tmpfs {
        target: target(FLAG, text, to)?,
        size,
        mode,
        executable,
    })
}

fn octal(flag: &str, text: &str, value: &str) -> Result<u32> {
    u32::from_str_radix(value, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| invalid(flag, text, format!("`{}` is no octal mode", value.escape_debug())))
}

#[cfg(test)]
mod tests {
    use luna_core::units::Bytes;

    use super::*;

    #[test]
    fn docker_s_forms() {
        assert_eq!(
            volume("/a:/b:ro").unwrap(),
            Mount::Bind {
                source: "/a".into(),
                target: "/b".into(),
                read_only: true
            }
        );
        assert_eq!(
            volume("data:/b").unwrap(),
            Mount::Volume {
                name: Some("data".parse().unwrap()),
                target: "/b".into(),
                read_only: false
            }
        );
        assert_eq!(
            volume("/b").unwrap(),
            Mount::Volume {
                name: None,
                target: "/b".into(),
                read_only: false
            }
        );
        assert!(matches!(volume("./x:/b").unwrap(), Mount::Bind { source, .. } if source.is_absolute()));
        assert_eq!(
            mount("type=bind,src=/a,dst=/b,readonly").unwrap(),
            Mount::Bind {
                source: "/a".into(),
                target: "/b".into(),
                read_only: true
            }
        );
        assert_eq!(
            memory("/run:size=64m,mode=700,exec").unwrap(),
            Mount::Tmpfs {
                target: "/run".into(),
                size: Some(Bytes::mebibytes(64)),
                mode: Some(0o700),
                executable: true
            }
        );
    }
}
