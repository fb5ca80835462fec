//! `cp`: which side is which, and docker's rules for what lands where.
//!
//! | source | target does not exist | target is a file | target is a directory |
//! |---|---|---|---|
//! | file | becomes it | replaces it | goes into it |
//! | directory | becomes it | error | goes into it; with `/.` at the end of the source, its content does |

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use luna_core::error::Kind;
use luna_core::{Error, Result};
use luna_runtime::{FileKind, Sandbox};

use super::{Front, copy_in, copy_out};
use crate::cli::copy::CpArgs;

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End<'a> {
    Sandbox { name: &'a str, path: &'a str },
    Host(&'a str),
    Stream,
}

fn end(text: &str) -> End<'_> {
    if text == "-" {
        return End::Stream;
    }
    // `./a:b` and `/a:b` are files of the host's.
    match text.split_once(':') {
        Some((name, path)) if !name.is_empty() && !text.starts_with(['/', '.']) => {
            End::Sandbox { name, path }
        }
        _ => End::Host(text),
    }
}

pub(super) fn cp(front: &Front, args: &CpArgs) -> Result<()> {
    let runtime = front.runtime()?;
    match (end(&args.source), end(&args.target)) {
        (End::Sandbox { name, path }, End::Stream) => {
            copy_out::to_stdout(runtime.find(name)?.client()?.copy_out(&absolute(path))?)
        }
        (End::Sandbox { name, path }, End::Host(target)) => {
            out(front, &runtime.find(name)?, &absolute(path), target, args)
        }
        (End::Stream, End::Sandbox { name, path }) => copy_in::from_stdin(
            runtime
                .find(name)?
                .client()?
                .copy_in(&absolute(path), args.archive)?,
        ),
        (End::Host(source), End::Sandbox { name, path }) => {
            into(front, &runtime.find(name)?, source, &absolute(path), args)
        }
        (End::Sandbox { .. }, End::Sandbox { .. }) => Err(Error::new(
            Kind::Unsupported,
            "cannot copy from one sandbox to another",
        )
        .hint("copy through a pipe: `luna cp A:/path - | luna cp - B:/directory`")),
        _ => Err(
            Error::new(Kind::InvalidInput, "cannot tell which side is the sandbox")
                .hint("write one of them as `SANDBOX:PATH`"),
        ),
    }
}

/// Paths in a sandbox begin at its root.
fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Whether a path names a directory's content instead of the directory.
fn means_content(path: &str) -> bool {
    path.ends_with("/.") || path == "." || path == "/"
}

fn missing(what: &str) -> Error {
    Error::new(Kind::NotFound, format!("cannot find `{}`", what.escape_debug()))
}

fn out(front: &Front, sandbox: &Sandbox, source: &str, target: &str, args: &CpArgs) -> Result<()> {
    let name = &sandbox.record.name;
    let status = sandbox.client()?.stat(source)?.ok_or_else(|| {
        missing(&format!("{name}:{source}")).hint(format!("`luna exec {name} ls` shows what is there"))
    })?;
    let directory = status.kind == FileKind::Directory;
    let place = place_on_host(source, directory, target)?;
    let stream = sandbox.client()?.copy_out(source)?;
    let unpacked = copy_out::unpack(stream, &place.directory, place.name.as_deref(), args.archive)
        .map_err(|error| error.context(format!("cannot copy `{name}:{source}` to `{target}`")))?;
    if unpacked.skipped > 0 {
        front.printer.note(format!(
            "{} devices, sockets or pipes were left out",
            unpacked.skipped
        ));
    }
    Ok(())
}

/// A directory that exists and the name to take in it; no name means that content goes into the directory itself.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<D> {
    directory: D,
    name: Option<OsString>,
}

fn place_on_host(source: &str, source_is_directory: bool, target: &str) -> Result<Place<PathBuf>> {
    let path = Path::new(target);
    let parent = || match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => PathBuf::from("/"),
    };
    let own_name = || {
        path.file_name()
            .map(OsString::from)
            .ok_or_else(|| missing(target))
    };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            let name = Path::new(source)
                .file_name()
                .filter(|_| !means_content(source))
                .map(OsString::from);
            Ok(Place {
                directory: path.to_owned(),
                name,
            })
        }
        Ok(_) if source_is_directory => Err(onto_a_file(source, target)),
        Ok(_) => Ok(Place {
            directory: parent(),
            name: Some(own_name()?),
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            if target.ends_with('/') && !source_is_directory {
                return Err(
                    missing(target).because("a file cannot be copied to a directory that does not exist")
                );
            }
            if !parent().is_dir() {
                return Err(missing(&parent().to_string_lossy())
                    .hint(format!("make it first: `mkdir -p {}`", parent().display())));
            }
            Ok(Place {
                directory: parent(),
                name: Some(own_name()?),
            })
        }
        Err(error) => Err(Error::io(format!("cannot look at `{target}`"), error)),
    }
}

fn onto_a_file(source: &str, target: &str) -> Error {
    Error::new(
        Kind::Conflict,
        format!("cannot copy the directory `{source}` to `{target}`"),
    )
    .because("a file is there")
}

fn into(front: &Front, sandbox: &Sandbox, source: &str, target: &str, args: &CpArgs) -> Result<()> {
    let path = Path::new(source);
    let metadata = if args.follow_link || source.ends_with('/') || means_content(source) {
        std::fs::metadata(path)
    } else {
        std::fs::symlink_metadata(path)
    };
    let metadata = metadata.map_err(|e| Error::io(format!("cannot copy `{source}`"), e))?;
    if source.ends_with('/') && !metadata.is_dir() {
        return Err(Error::new(Kind::InvalidInput, format!("cannot copy `{source}`"))
            .because("it is not a directory"));
    }
    let place = place_in_sandbox(sandbox, source, metadata.is_dir(), target)?;
    let stream = sandbox.client()?.copy_in(&place.directory, args.archive)?;
    let packed = copy_in::pack(stream, path, place.name.as_deref(), args.follow_link);
    let sockets = packed.map_err(|error| {
        error.context(format!(
            "cannot copy `{source}` to `{}:{target}`",
            sandbox.record.name
        ))
    })?;
    if sockets > 0 {
        front
            .printer
            .note(format!("sockets cannot be copied: {sockets} left out"));
    }
    Ok(())
}

fn place_in_sandbox(
    sandbox: &Sandbox,
    source: &str,
    source_is_directory: bool,
    target: &str,
) -> Result<Place<String>> {
    let kind = |path: &str| -> Result<Option<FileKind>> {
        Ok(sandbox.client()?.stat(path)?.map(|status| status.kind))
    };
    let trimmed = target.trim_end_matches('/');
    let (parent, own_name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
    let parent = if parent.is_empty() { "/" } else { parent };
    match kind(target)? {
        Some(FileKind::Directory) => {
            let name = if means_content(source) {
                None
            } else {
                // `..` and the like have a name only once they are resolved.
                let resolved = || {
                    std::fs::canonicalize(source)
                        .ok()?
                        .file_name()
                        .map(OsString::from)
                };
                Path::new(source)
                    .file_name()
                    .map(OsString::from)
                    .or_else(resolved)
            };
            Ok(Place {
                directory: target.to_owned(),
                name,
            })
        }
        Some(_) if source_is_directory => Err(onto_a_file(source, target)),
        None if target.ends_with('/') && !source_is_directory => {
            Err(missing(target).because("a file cannot be copied to a directory that does not exist"))
        }
        None if kind(parent)? != Some(FileKind::Directory) => Err(missing(parent).hint(format!(
            "make it first: `luna exec {} mkdir -p {parent}`",
            sandbox.record.name
        ))),
        _ => Ok(Place {
            directory: parent.to_owned(),
            name: Some(own_name.into()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_read_as_docker_s() {
        assert_eq!(
            end("web:/etc"),
            End::Sandbox {
                name: "web",
                path: "/etc"
            }
        );
        assert_eq!(end("./web:/etc"), End::Host("./web:/etc"));
        assert_eq!(end("/a:b"), End::Host("/a:b"));
        assert_eq!(end("file"), End::Host("file"));
        assert_eq!(end("-"), End::Stream);
    }

    #[test]
    fn what_lands_where_on_the_host() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_str().unwrap();
        std::fs::write(directory.path().join("file"), "").unwrap();
        let place = |source: &str, is_directory, target: &str| {
            place_on_host(source, is_directory, &format!("{root}{target}")).map(|place| {
                (
                    place.directory,
                    place.name.map(|name| name.into_string().unwrap()),
                )
            })
        };
        let root = Path::new(root);
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(place("/a/b", false, "").unwrap(), (root.to_owned(), name("b")));
        assert_eq!(place("/a/b", true, "").unwrap(), (root.to_owned(), name("b")));
        assert_eq!(place("/a/b/.", true, "").unwrap(), (root.to_owned(), None));
        assert_eq!(
            place("/a/b", true, "/new").unwrap(),
            (root.to_owned(), name("new"))
        );
        assert_eq!(
            place("/a/b", false, "/file").unwrap(),
            (root.to_owned(), name("file"))
        );
        assert!(place("/a/b", true, "/file").is_err());
        assert!(place("/a/b", false, "/new/").is_err());
        assert!(place("/a/b", false, "/no/new").is_err());
    }
}
