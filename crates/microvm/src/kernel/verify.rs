//! Digests of a kernel's files, and the memory of having checked them.
//!
//! `verified.json` holds for each file what it looked like when its digest was right: device, inode, size, and both
//! times. While it looks the same it is not read again (hashing 15 MB costs a tenth of a boot). It guards against decay,
//! half-written copies and mistakes; whoever may write into Luna's directory could write the manifest too.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Trust;
use super::manifest::{self, File, Manifest};

const MEMORY: &str = "verified.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Look {
    sha256: String,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

type Memory = BTreeMap<String, Look>;

/// Checks every file of a boot.
pub(super) fn verify(directory: &Path, manifest: &Manifest, trust: Trust) -> Result<()> {
    let known: Memory = match trust {
        Trust::Changed => fs::read(directory.join(MEMORY))
            .ok()
            .filter(|bytes| bytes.len() <= manifest::MAXIMUM)
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default(),
        Trust::Nothing => Memory::new(),
    };
    let mut looks = Memory::new();
    for file in manifest.files() {
        let look = look(directory, file)?;
        if known.get(&file.file) != Some(&look) {
            check(directory, file)?;
        }
        looks.insert(file.file.clone(), look);
    }
    if looks != known {
        write(directory, &looks);
    }
    Ok(())
}

/// Notes files whose digests were just computed.
pub(super) fn remember(directory: &Path, manifest: &Manifest) {
    let looks = manifest
        .files()
        .filter_map(|file| Some((file.file.clone(), look(directory, file).ok()?)))
        .collect();
    write(directory, &looks);
}

/// A memory that cannot be kept only costs time.
fn write(directory: &Path, looks: &Memory) {
    let Ok(bytes) = serde_json::to_vec(looks) else {
        return;
    };
    let temporary = directory.join(format!(".{MEMORY}-{}", std::process::id()));
    if fs::write(&temporary, bytes).is_err() || fs::rename(&temporary, directory.join(MEMORY)).is_err() {
        let _ = fs::remove_file(&temporary);
    }
}

fn look(directory: &Path, file: &File) -> Result<Look> {
    let metadata =
        fs::symlink_metadata(directory.join(&file.file)).map_err(|e| wrong(file, e.to_string()))?;
    if !metadata.is_file() {
        return Err(wrong(file, "it is no ordinary file".to_owned()));
    }
    if metadata.len() != file.size {
        return Err(wrong(
            file,
            format!("it has {} bytes, not {}", metadata.len(), file.size),
        ));
    }
    Ok(Look {
        sha256: file.sha256.clone(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn check(directory: &Path, file: &File) -> Result<()> {
    let found = digest(&directory.join(&file.file))?;
    if found == file.sha256 {
        return Ok(());
    }
    Err(wrong(
        file,
        format!("its SHA-256 is {found}, not {}", file.sha256),
    ))
}

fn wrong(file: &File, why: String) -> Error {
    Error::new(
        Kind::Corrupt,
        format!("its file `{}` is not what was made", file.file),
    )
    .because(why)
}

/// SHA-256 of a file, in lower-case hexadecimal digits.
pub(super) fn digest(path: &Path) -> Result<String> {
    let fail = |e| Error::io(format!("cannot read `{}`", path.display()), e);
    let mut file = fs::File::open(path).map_err(fail)?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 256 << 10];
    loop {
        match file.read(&mut piece).map_err(fail)? {
            0 => return Ok(hex(&hash.finalize())),
            count => hash.update(&piece[..count]),
        }
    }
}

/// SHA-256 of bytes.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes every write");
        text
    })
}

/// A file of the directory as its manifest lists it.
pub(super) fn describe(directory: &Path, relative: &str) -> Result<File> {
    let path = directory.join(relative);
    let size = fs::metadata(&path)
        .map_err(|e| Error::io(format!("cannot read `{}`", path.display()), e))?
        .len();
    Ok(File {
        file: relative.to_owned(),
        size,
        sha256: digest(&path)?,
    })
}
