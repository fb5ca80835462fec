//! Files of the host's on their way into a sandbox.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use luna_runtime::control::client::{Event, Input, Stream};

/// A tar archive from standard input, as it comes.
pub(super) fn from_stdin(stream: Stream) -> Result<()> {
    let mut piece = vec![0; 256 << 10];
    let mut stdin = io::stdin().lock();
    loop {
        match stdin.read(&mut piece) {
            Ok(0) => return finish(stream, Ok(())),
            Ok(count) => {
                if let Err(error) = stream.input.write(&piece[..count]) {
                    return finish(stream, Err(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io("cannot read standard input", error)),
        }
    }
}

/// Packs `path` under `name`, or its content where there is no name. Gives the number of sockets, which no archive
/// holds, that were left out.
pub(super) fn pack(stream: Stream, path: &Path, name: Option<&OsStr>, follow: bool) -> Result<usize> {
    let mut sockets = 0;
    let written = write(stream.input.clone(), path, name, follow, &mut sockets);
    finish(stream, written).map(|()| sockets)
}

fn write(
    input: Input,
    path: &Path,
    name: Option<&OsStr>,
    follow: bool,
    sockets: &mut usize,
) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(256 << 10, Into(input)));
    archive.follow_symlinks(false);
    let name = Path::new(name.unwrap_or(OsStr::new(".")));
    let metadata = if follow {
        std::fs::metadata(path)
    } else {
        std::fs::symlink_metadata(path)
    };
    // A path that ends in a slash or a dot leads through a link.
    let through = follow || (metadata?.is_symlink() && path.is_dir() && ends_in_directory(path));
    let resolved = if through {
        std::fs::canonicalize(path)?
    } else {
        path.to_owned()
    };
    if resolved.symlink_metadata()?.is_dir() {
        *sockets = append_tree(&mut archive, name, &resolved)?;
    } else {
        archive.append_path_with_name(&resolved, name)?;
    }
    archive.into_inner()?.flush()
}

/// A directory and all below it, links as links. Gives the number of sockets left out.
fn append_tree(archive: &mut tar::Builder<impl Write>, name: &Path, root: &Path) -> io::Result<usize> {
    let mut sockets = 0;
    let mut directories = vec![(name.to_owned(), root.to_owned())];
    while let Some((name, directory)) = directories.pop() {
        archive.append_dir(&name, &directory)?;
        for entry in std::fs::read_dir(&directory)? {
            let entry = entry?;
            let (kind, name, path) = (entry.file_type()?, name.join(entry.file_name()), entry.path());
            if kind.is_dir() {
                directories.push((name, path));
            } else if kind.is_socket() {
                sockets += 1;
            } else {
                archive.append_path_with_name(&path, &name)?;
            }
        }
    }
    Ok(sockets)
}

fn ends_in_directory(path: &Path) -> bool {
    let text = path.as_os_str().as_encoded_bytes();
    text.ends_with(b"/") || text.ends_with(b"/.")
}

/// Says that all was sent and waits until all has landed. What the sandbox says went wrong comes first: a broken pipe
/// here is only an echo of it.
fn finish(mut stream: Stream, written: io::Result<()>) -> Result<()> {
    if let Err(error) = written {
        let gone = matches!(
            error.kind(),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
        );
        if !gone {
            stream.input.detach();
            return Err(Error::io("cannot read what is to be copied", error));
        }
    }
    let _ = stream.input.finish();
    loop {
        match stream.output.next_event()? {
            Some(Event::Ended(ended)) => return ended.error.map_or(Ok(()), |report| Err(report.into())),
            Some(_) => {}
            None => {
                return Err(
                    Error::new(Kind::Interrupted, "cannot tell whether all was copied")
                        .because("the supervisor went away"),
                );
            }
        }
    }
}

/// The way in as a writer.
struct Into(Input);

impl Write for Into {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
