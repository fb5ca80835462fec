//! Where the desktop keeps its sockets, its X cookie and Chromium's profile.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::access::token::{hex, random};

/// A fresh directory that only this user can enter, removed on drop, and the home directory.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    pub(super) home: PathBuf,
    /// Chromium's user data: in the home directory, or in the fresh one where home is read-only.
    pub(super) profile: PathBuf,
}

impl Place {
    pub(super) fn make() -> Result<Place, String> {
        // A killed service leaves its directory; in one of this user's own, whatever is there is such a leftover.
        for leftover in fs::read_dir("/run/luna").into_iter().flatten().flatten() {
            let _ = fs::remove_dir_all(leftover.path());
        }
        let name = format!("luna-{}", hex(&random::<6>()));
        // /run/luna belongs to the desktop's user in Luna's image; /tmp is for a runtime that mounts over /run.
        let directory = ["/run/luna", "/tmp"]
            .iter()
            .map(|parent| Path::new(parent).join(&name))
            .find(|directory| private(directory).is_ok())
            .ok_or("cannot make a directory in `/run/luna` or `/tmp`")?;
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/home/luna"), PathBuf::from);
        let wanted = home.join(".config/chromium");
        let writable = fs::create_dir_all(&wanted).is_ok()
            && rustix::fs::access(&wanted, rustix::fs::Access::WRITE_OK).is_ok();
        let profile = if writable {
            wanted
        } else {
            directory.join("chromium")
        };
        Ok(Place {
            directory,
            home,
            profile,
        })
    }

    pub(super) fn screen_socket(&self) -> PathBuf {
        self.directory.join("screen")
    }

    pub(super) fn x_authority(&self) -> PathBuf {
        self.directory.join("xauthority")
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn private(directory: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(0o700).create(directory)?;
    fs::set_permissions(directory, Permissions::from_mode(0o700))
}

/// Removes X sockets and locks that an earlier life of this sandbox left and nobody answers on. In /tmp, which is sticky, only
/// this user's own can be removed.
pub(super) fn forget_dead_displays() {
    for entry in fs::read_dir("/tmp/.X11-unix").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(number) = name.to_str().and_then(|name| name.strip_prefix('X')) else {
            continue;
        };
        let dead = UnixStream::connect(entry.path())
            .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused);
        if dead && number.bytes().all(|byte| byte.is_ascii_digit()) {
            let _ = fs::remove_file(entry.path());
            let _ = fs::remove_file(format!("/tmp/.X{number}-lock"));
        }
    }
}
