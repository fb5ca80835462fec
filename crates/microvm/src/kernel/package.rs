//! Packages of the distribution: which version it offers, fetched and unpacked without being installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use luna_core::event::{Progress, Sink};
use luna_core::{Error, Kind, Result};

use super::tool;

pub(super) const TOOLS: [(&str, &str); 3] = [("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg")];

/// A package as apt's lists describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    /// Bytes of the archive.
    pub(super) size: Option<u64>,
}

/// What stands behind `name`: itself, or for an empty package the first of its dependencies whose name begins with
/// `prefix` (`linux-image-cloud-amd64` → `linux-image-6.1.0-56-cloud-amd64`).
pub(super) fn candidate(name: &str, prefix: &str) -> Result<Package> {
    check(name)?;
    let show = |name: &str| {
        tool::run(
            &format!("find the package `{name}`"),
            tool::command("apt-cache").args(["show", "--no-all-versions", "--", name]),
        )
        .map_err(|e| e.hint("`apt-get update` fetches the lists of packages"))
    };
    let (package, behind) = parse(&show(name)?, prefix).ok_or_else(|| unknown(name))?;
    match behind {
        Some(behind) if behind != name => {
            check(&behind)?;
            let (package, _) = parse(&show(&behind)?, prefix).ok_or_else(|| unknown(&behind))?;
            Ok(package)
        }
        _ => Ok(package),
    }
}

fn unknown(name: &str) -> Error {
    Error::new(Kind::NotFound, format!("cannot find the package `{name}`"))
        .hint("`apt-get update` fetches the lists of packages")
}

/// Debian policy, 5.6.1; what begins with a dash would be taken for an option.
fn check(name: &str) -> Result<()> {
    let begins = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let fits = name
        .bytes()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.'));
    if begins && fits && name.len() <= 128 {
        return Ok(());
    }
    Err(Error::new(
        Kind::InvalidInput,
        format!("cannot use `{}` as a package's name", name.escape_debug()),
    ))
}

/// The first paragraph of `apt-cache show`: the package, and its first dependency that begins with `prefix`.
fn parse(text: &str, prefix: &str) -> Option<(Package, Option<String>)> {
    let paragraph = text.split("\n\n").next()?;
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    };
    let behind = field("Depends")
        .unwrap_or_default()
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|dependency| dependency.starts_with(prefix))
        .map(str::to_owned);
    Some((
        Package {
            name: field("Package")?.to_owned(),
            version: field("Version")?.to_owned(),
            size: field("Size").and_then(|size| size.parse().ok()),
        },
        behind,
    ))
}

/// Downloads the package into `directory`, signed and checked by apt, and unpacks it into a directory that it gives.
pub(super) fn unpacked(package: &Package, directory: &Path, progress: Sink) -> Result<PathBuf> {
    let fail = |e| Error::io(format!("cannot unpack the package `{}`", package.name), e);
    let archives = directory.join("archives");
    let tree = directory.join("tree");
    for made in [&archives, &tree] {
        fs::create_dir_all(made).map_err(fail)?;
    }
    download(package, &archives, progress)?;
    let archive = fs::read_dir(&archives)
        .map_err(fail)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|end| end == "deb"))
        .ok_or_else(|| unknown(&package.name))?;
    tool::run(
        &format!("unpack the package `{}`", package.name),
        tool::command("dpkg-deb")
            .arg("--extract")
            .arg(&archive)
            .arg(&tree),
    )?;
    fs::remove_dir_all(&archives).map_err(fail)?;
    Ok(tree)
}

fn download(package: &Package, directory: &Path, progress: Sink) -> Result<()> {
    let key = format!("package {}", package.name);
    let doing = format!("download the package `{}`", package.name);
    progress(Progress::Started {
        key: key.clone(),
        label: format!("download {} {}", package.name, package.version),
        total: package.size,
    });
    let complaints = directory.join("complaints");
    let log = fs::File::create(&complaints).map_err(|e| Error::io(format!("cannot {doing}"), e))?;
    let mut child = tool::command("apt-get")
        // As another user it could not write here, and inside a user namespace there is no other user.
        .args(["-qq", "-o", "APT::Sandbox::User=root", "download", "--"])
        .arg(format!("{}={}", package.name, package.version))
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .map_err(|e| Error::io(format!("cannot {doing}"), e))?;
    let status = loop {
        match child
            .try_wait()
            .map_err(|e| Error::io(format!("cannot {doing}"), e))?
        {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(100)),
        }
        progress(Progress::Advanced {
            key: key.clone(),
            done: arrived(directory),
        });
    };
    if !status.success() {
        let said = fs::read_to_string(&complaints).unwrap_or_default();
        return Err(tool::failed(&doing, "apt-get", &said)
            .hint("`apt-get update` fetches the lists of packages anew"));
    }
    progress(Progress::Finished {
        key,
        label: format!("downloaded {} {}", package.name, package.version),
    });
    Ok(())
}

fn arrived(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.len())
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.170+1)\n\
        Version: 6.1.170-1\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.170-1)\nSize: 1472\n\n\
        Package: linux-image-cloud-amd64\nVersion: 5.10.1-1\n";

    #[test]
    fn the_first_paragraph_is_the_candidate() {
        let (package, behind) = parse(SHOWN, "linux-image-").unwrap();
        assert_eq!(package.version, "6.1.170-1");
        assert_eq!(package.size, Some(1472));
        assert_eq!(behind.as_deref(), Some("linux-image-6.1.0-50-cloud-amd64"));
        assert!(parse("", "linux-").is_none());
    }

    #[test]
    fn an_option_is_no_package() {
        for name in ["", "-o", "--help", "a b", "A", "a=1", "a/b"] {
            assert!(check(name).is_err(), "{name}");
        }
        check("linux-image-6.1.0-50-cloud-amd64").unwrap();
    }
}
