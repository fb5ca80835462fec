//! Which devices a jail may open, as lines for the device cgroup of version 1.
//!
//! In a user namespace of its own a jail cannot make device nodes and finds none that it may open but those mounted for
//! it, on any version: there the device cgroup is the second lock. For a device that is given for reading or for writing
//! alone it is the only one, since a read-only mount does not keep anybody from writing to a device.

use std::io;
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

use super::{Cgroups, Version};
use crate::plan::DEVICES;
use crate::spec::{Mount, Spec};

#[derive(Debug)]
pub(crate) struct Devices {
    /// For `devices.allow`.
    lines: Vec<String>,
    /// The first device given for less than both reading and writing.
    less: Option<PathBuf>,
}

impl Devices {
    /// What every jail has, pseudo-terminals, making nodes (useless in a user namespace, but tar(1) asks) and what the
    /// spec names; `None` where the spec asks for no restriction.
    pub(crate) fn of(spec: &Spec) -> Result<Option<Devices>> {
        if !spec.defences.device_cgroup {
            return Ok(None);
        }
        let mut lines: Vec<String> = ["c *:* m", "b *:* m", "c 5:1 rwm", "c 5:2 rwm", "c 136:* rwm"]
            .map(str::to_owned)
            .into();
        lines.extend(
            DEVICES
                .iter()
                .map(|(_, major, minor)| format!("c {major}:{minor} rwm")),
        );
        let mut less = None;
        for mount in &spec.mounts {
            let Mount::Device {
                source, read, write, ..
            } = mount
            else {
                continue;
            };
            lines.push(line(source, *read, *write)?);
            if !(*read && *write) {
                less.get_or_insert_with(|| source.clone());
            }
        }
        Ok(Some(Devices { lines, less }))
    }

    /// Restricts the jail's device cgroup, if it has one; an error where that leaves a device wider open than asked.
    pub(super) fn restrict(&self, cgroups: &Cgroups) -> Result<()> {
        let Some(group) = cgroups.of(Version::One).find(|group| group.has("devices")) else {
            return self.without("the host has no version 1 device cgroup that Luna may use");
        };
        let cannot = |error: io::Error| Error::io("cannot restrict devices", error);
        match group.write("devices.deny", "a") {
            // A launcher whose own device cgroup is closed to it leaves the restriction it is under.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                return self.without("Luna's own device cgroup does not let it restrict one below it");
            }
            other => other.map_err(cannot)?,
        }
        for line in &self.lines {
            group.write("devices.allow", line).map_err(cannot)?;
        }
        Ok(())
    }

    fn without(&self, why: &str) -> Result<()> {
        let Some(device) = &self.less else {
            return Ok(());
        };
        let device = device.display();
        Err(Error::new(
            Kind::Unsupported,
            format!("cannot give `{device}` for reading or writing alone"),
        )
        .because(format!("{why}, and nothing else tells the two apart"))
        .hint(format!("give it for both, `--device {device}:rw`, or not at all")))
    }
}

fn line(source: &Path, read: bool, write: bool) -> Result<String> {
    let found = rustix::fs::stat(source)
        .map_err(|error| Error::io(format!("cannot look at `{}`", source.display()), error))?;
    let kind = match rustix::fs::FileType::from_raw_mode(found.st_mode) {
        rustix::fs::FileType::BlockDevice => 'b',
        _ => 'c',
    };
    let (major, minor) = (rustix::fs::major(found.st_rdev), rustix::fs::minor(found.st_rdev));
    let (read, write) = (if read { "r" } else { "" }, if write { "w" } else { "" });
    Ok(format!("{kind} {major}:{minor} {read}{write}m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_device_cgroup_a_device_is_given_for_both_or_not_at_all() {
        let none = Cgroups { groups: Vec::new() };
        let restrict = |less| {
            let lines = Vec::new();
            Devices { lines, less }.restrict(&none)
        };
        restrict(None).unwrap();
        let error = restrict(Some("/dev/fuse".into())).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.message().contains("`/dev/fuse`"), "{error:?}");
    }
}
