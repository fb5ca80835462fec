//! A tree as a tar archive.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header, HeaderMode};

use crate::protocol::{Failure, Reply, Stage};

use super::super::worker::Output;
use super::failure;

type Archive = Builder<io::BufWriter<Output>>;

/// Writes `path` and all below it; `follow` goes through a symbolic link at `path` itself. Names begin with the last
/// component of `path`; where there is none (`/`, or a path that ends in `/.`), with `.`.
pub(in super::super) fn pack(
    path: &str,
    follow: bool,
    say: impl Fn(&Reply) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let root = Path::new(path);
    let metadata = if follow || path.ends_with('/') || path.ends_with("/.") {
        fs::metadata(root)
    } else {
        fs::symlink_metadata(root)
    };
    let metadata = metadata.map_err(|error| Failure {
        stage: Stage::Path,
        ..failure(root, &error)
    })?;
    let name = match root.file_name() {
        Some(name) if !path.ends_with("/.") => PathBuf::from(name),
        _ => PathBuf::from("."),
    };
    say(&Reply::Done)?;
    let mut archive = Builder::new(io::BufWriter::with_capacity(64 * 1024, Output));
    let mut links = Links::default();
    let mut waiting = vec![(root.to_owned(), name, metadata)];
    while let Some((path, name, metadata)) = waiting.pop() {
        let failed = |error: io::Error| failure(&path, &error);
        append(&mut archive, &mut links, &path, &name, &metadata).map_err(failed)?;
        if !metadata.is_dir() {
            continue;
        }
        let mut children = fs::read_dir(&path)
            .and_then(Iterator::collect::<io::Result<Vec<_>>>)
            .map_err(failed)?;
        children.sort_unstable_by_key(|child| std::cmp::Reverse(child.file_name()));
        for child in children {
            // What was removed meanwhile is not there to copy.
            if let Ok(metadata) = child.metadata() {
                waiting.push((child.path(), name.join(child.file_name()), metadata));
            }
        }
    }
    let finished = archive
        .into_inner()
        .and_then(|mut output| io::Write::flush(&mut output));
    finished.map_err(|error| failure(root, &error))
}

/// Names under which a file with several was written first, by device and inode.
type Links = HashMap<(u64, u64), PathBuf>;

fn append(
    archive: &mut Archive,
    links: &mut Links,
    path: &Path,
    name: &Path,
    metadata: &Metadata,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_metadata_in_mode(metadata, HeaderMode::Complete);
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    let kind = metadata.file_type();
    if kind.is_dir() {
        return archive.append_data(&mut header, name, io::empty());
    }
    if metadata.nlink() > 1 {
        let first = links
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| name.to_owned());
        if first != name {
            header.set_entry_type(EntryType::Link);
            return archive.append_link(&mut header, name, &*first);
        }
    }
    if kind.is_symlink() {
        return archive.append_link(&mut header, name, fs::read_link(path)?);
    }
    if kind.is_file() {
        // Swapped for a pipe or a link meanwhile, it must neither block nor lead elsewhere.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        header.set_size(metadata.size());
        let content = file.chain(io::repeat(0)).take(metadata.size());
        return archive.append_data(&mut header, name, content);
    }
    if kind.is_socket() {
        return Ok(());
    }
    if kind.is_block_device() || kind.is_char_device() {
        header.set_device_major(rustix::fs::major(metadata.rdev()))?;
        header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
    }
    archive.append_data(&mut header, name, io::empty())
}
