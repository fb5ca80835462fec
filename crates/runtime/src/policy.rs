//! Policy files on disk: which there are, whether they can be believed, and what they say together.
//!
//! A file that is not there says nothing. One that is there and cannot be read, is malformed, belongs to somebody else
//! or can be written by others is an error, and nothing is decided: there is no wall without the policy that was meant
//! for it.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use luna_core::policy::{self, Origin, Policy};
use luna_core::{Error, Kind, Result};
use luna_image::{Image, Reference};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

const SYSTEM: &str = "/etc/luna/policy.toml";

/// One place where a policy may lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicyFile {
    /// Root's; it need not be there.
    System(PathBuf),
    /// The user's or root's; it need not be there.
    User(PathBuf),
    /// Named on a command line: the user's or root's, and it must be there.
    Named(PathBuf),
}

impl PolicyFile {
    /// The system's and the user's.
    pub fn usual() -> Vec<PolicyFile> {
        let variable = |name: &str| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let configuration =
            variable("XDG_CONFIG_HOME").or_else(|| variable("HOME").map(|home| home.join(".config")));
        let user = configuration.map(|place| PolicyFile::User(place.join("luna/policy.toml")));
        [PolicyFile::System(SYSTEM.into())]
            .into_iter()
            .chain(user)
            .collect()
    }

    fn path(&self) -> &Path {
        match self {
            PolicyFile::System(path) | PolicyFile::User(path) | PolicyFile::Named(path) => path,
        }
    }
}

/// What all of them say together.
pub(crate) fn read(files: &[PolicyFile], rootless: bool) -> Result<Policy> {
    let mut policy = Policy::default();
    for file in files {
        let path = file.path();
        match open(path) {
            Ok(opened) => {
                check(file, &opened, rootless)?;
                let text = text(path, opened)?;
                policy = policy.and(Policy::parse(&text, path)?);
            }
            Err(Errno::NOENT | Errno::NOTDIR) if !matches!(file, PolicyFile::Named(_)) => {}
            Err(error) => {
                return Err(cannot(path)
                    .because(std::io::Error::from(error))
                    .hint("nothing runs before it can be read: make it readable, or remove it"));
            }
        }
    }
    Ok(policy)
}

fn cannot(path: &Path) -> Error {
    Error::new(
        Kind::PermissionDenied,
        format!("cannot read the policy `{}`", path.display()),
    )
}

/// Never waits: a pipe in its place is found out below.
fn open(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

fn check(file: &PolicyFile, opened: &File, rootless: bool) -> Result<()> {
    let path = file.path();
    let status = rustix::fs::fstat(opened)
        .map_err(|error| Error::io(format!("cannot read the policy `{}`", path.display()), error))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
        return Err(cannot(path).because("it is not a regular file"));
    }
    let own = rustix::process::geteuid().as_raw();
    let mut believed = vec![0, own];
    // In the user namespace that Luna enters without root, 0 is the user, and root is nobody it knows; but who else may
    // make a file below `/etc`?
    if rootless && matches!(file, PolicyFile::System(_)) {
        believed.push(overflow());
    }
    if !believed.contains(&status.st_uid) {
        return Err(cannot(path)
            .because("it belongs to somebody else")
            .hint(format!("`chown` it to root or to yourself: {}", path.display())));
    }
    if status.st_mode & 0o022 != 0 {
        return Err(cannot(path)
            .because("others may write it")
            .hint(format!("chmod go-w {}", path.display())));
    }
    Ok(())
}

fn overflow() -> u32 {
    std::fs::read_to_string("/proc/sys/kernel/overflowuid")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(65_534)
}

fn text(path: &Path, opened: File) -> Result<String> {
    let mut text = String::new();
    opened
        // One more than is read, so that too long a file is seen to be that.
        .take(policy::MAX_FILE as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|error| Error::io(format!("cannot read the policy `{}`", path.display()), error))?;
    Ok(text)
}

/// What is known of the image that `text` means: `here` is the one the store has for it, if any. A name counts where the
/// image that is here bears it; nothing else of what an image says about itself does.
pub(crate) fn origin(text: &str, here: Option<&Image>) -> Origin {
    let reference = Reference::parse(text).ok();
    let same = |one: &Reference, other: &Reference| {
        (one.registry(), one.repository()) == (other.registry(), other.repository())
    };
    let named = reference
        .as_ref()
        .filter(|reference| here.is_none_or(|image| image.references.iter().any(|own| same(own, reference))));
    let mut digests: Vec<String> = named
        .and_then(Reference::digest)
        .into_iter()
        .chain(here.iter().flat_map(|image| [image.id, image.manifest]))
        .map(|digest| digest.to_string())
        .collect();
    digests.sort();
    digests.dedup();
    Origin {
        repository: named.map(|reference| format!("{}/{}", reference.registry(), reference.repository())),
        digests,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn file(directory: &Path, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn the_stricter_of_two_files_wins() {
        let directory = tempfile::tempdir().unwrap();
        let system = file(directory.path(), "system", "prefer = \"vm\"\n", 0o644);
        let user = file(directory.path(), "user", "floor = \"own-kernel\"\n", 0o600);
        let files = [PolicyFile::System(system.clone()), PolicyFile::User(user.clone())];
        let policy = read(&files, false).unwrap();
        assert_eq!(policy.files, [system, user.clone()]);
        assert_eq!(policy.floor.unwrap().file, user);
        assert_eq!(policy.prefer.unwrap().value, policy::Prefer::Vm);
    }

    #[test]
    fn what_is_not_there_says_nothing_unless_it_was_named() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("missing/policy.toml");
        assert_eq!(
            read(&[PolicyFile::User(missing.clone())], false).unwrap(),
            Policy::default()
        );
        assert!(read(&[PolicyFile::Named(missing)], false).is_err());
    }

    #[test]
    fn what_cannot_be_believed_ends_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path();
        let refused = |path: PathBuf| read(&[PolicyFile::User(path)], false).unwrap_err();
        assert!(
            refused(file(place, "group", "", 0o664))
                .hint_text()
                .unwrap()
                .starts_with("chmod")
        );
        refused(file(place, "world", "", 0o646));
        refused(place.to_owned());
        assert_eq!(
            refused(file(place, "wrong", "x = 1", 0o600)).kind(),
            Kind::InvalidInput
        );
        let long = "#".repeat(policy::MAX_FILE + 1);
        assert!(format!("{:?}", refused(file(place, "long", &long, 0o600))).contains("64.0 KiB"));
        std::fs::write(place.join("bytes"), [0xff, 0xfe]).unwrap();
        refused(place.join("bytes"));
        let pipe = place.join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        refused(pipe);
        if rustix::process::geteuid().is_root() {
            let strange = file(place, "strange", "", 0o600);
            std::os::unix::fs::chown(&strange, Some(4242), None).unwrap();
            refused(strange);
        }
    }
}
