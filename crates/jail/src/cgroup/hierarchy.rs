//! Which cgroup hierarchies there are and where in each the launcher may make its own cgroups.
//!
//! Version 1: below the launcher's own cgroup, so limits on the launcher hold for its jails too. Version 2: below the
//! nearest ancestor of its own cgroup that has no processes of its own (the kernel allows controllers to be passed on
//! from nowhere else but the root) and that it may write.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use luna_core::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    One,
    Two,
}

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) version: Version,
    /// Version 1: what is mounted together here. Version 2: what the root offers.
    pub(crate) controllers: Vec<String>,
    /// The directory below which cgroups are made.
    pub(crate) parent: PathBuf,
}

/// Controllers of version 1 that a jail uses.
const USED: [&str; 8] = [
    "memory", "cpu", "cpuacct", "cpuset", "pids", "blkio", "freezer", "devices",
];
/// Controllers of version 2 that a jail uses.
const WANTED: [&str; 5] = ["memory", "cpu", "cpuset", "pids", "io"];

/// Every hierarchy that is mounted where the launcher can see it, version 2 first.
pub(crate) fn all() -> Result<Vec<Hierarchy>> {
    let mut found = parse(&whole("/proc/self/mountinfo")?, &whole("/proc/self/cgroup")?);
    found.sort_by_key(|hierarchy| hierarchy.version == Version::One);
    for hierarchy in found
        .iter_mut()
        .filter(|hierarchy| hierarchy.version == Version::Two)
    {
        hierarchy.settle();
    }
    Ok(found)
}

/// A file of proc(5) in as few reads as possible: the kernel writes it anew for each.
fn whole(path: &str) -> Result<String> {
    let mut text = String::with_capacity(32 << 10);
    File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| Error::io(format!("cannot read `{path}`"), error))?;
    Ok(text)
}

/// From the two files of proc(5); for version 2 `parent` is the launcher's own cgroup and `controllers` is empty.
fn parse(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let mut before = before.split(' ').skip(3);
        let (Some(root), Some(place)) = (before.next(), before.next()) else {
            continue;
        };
        let mut after = after.split(' ');
        let (version, controllers) = match after.next() {
            Some("cgroup2") => (Version::Two, Vec::new()),
            Some("cgroup") => {
                let options = after.nth(1).unwrap_or_default();
                let used: Vec<_> = options
                    .split(',')
                    .filter(|option| USED.contains(option))
                    .collect();
                if used.is_empty() {
                    continue;
                }
                (Version::One, used.into_iter().map(str::to_owned).collect())
            }
            _ => continue,
        };
        let known = found
            .iter()
            .any(|other| other.version == version && other.controllers == controllers);
        if known {
            continue;
        }
        let own = own_path(own, version, &controllers).unwrap_or("/");
        let place = PathBuf::from(unescape(place));
        // A mount that shows only part of the hierarchy shows our own cgroup below its root, or not at all.
        let below = Path::new(own).strip_prefix(root).unwrap_or(Path::new(""));
        found.push(Hierarchy {
            version,
            controllers,
            parent: place.join(below),
        });
    }
    found
}

fn own_path<'a>(text: &'a str, version: Version, controllers: &[String]) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (names, path) = rest.split_once(':')?;
        let mine = match version {
            Version::Two => names.is_empty(),
            Version::One => names
                .split(',')
                .any(|name| controllers.iter().any(|own| own == name)),
        };
        mine.then_some(path)
    })
}

/// Octal escapes of proc(5): space, tab, newline, backslash.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

impl Hierarchy {
    /// Climbs to a directory that can pass controllers on, and has it pass those on that a jail uses.
    fn settle(&mut self) {
        let mut place = self.parent.clone();
        loop {
            let processes = std::fs::read_to_string(place.join("cgroup.procs")).unwrap_or_default();
            let root = !place.join("cgroup.type").exists();
            if root || processes.is_empty() {
                break;
            }
            let Some(above) = place.parent().map(Path::to_owned) else {
                break;
            };
            place = above;
        }
        self.controllers = words(&place.join("cgroup.controllers"));
        pass_on(&place, &self.controllers);
        self.parent = place;
    }

    /// What can be limited in a cgroup that was made at `path`.
    pub(crate) fn effective_controllers(&self, path: &Path) -> Vec<String> {
        match self.version {
            Version::Two => words(&path.join("cgroup.controllers")),
            Version::One => {
                if self.controllers.iter().any(|own| own == "cpuset") {
                    // Told later, by the limit that needs it.
                    let _ = inherit_cpuset(path);
                }
                self.controllers.clone()
            }
        }
    }
}

/// One by one: a controller that cannot be passed on is one that the limit needing it will name.
fn pass_on(place: &Path, controllers: &[String]) {
    let file = place.join("cgroup.subtree_control");
    let passed = words(&file);
    for wanted in WANTED {
        let offered = controllers.iter().any(|own| own == wanted);
        if offered && !passed.iter().any(|own| own == wanted) {
            let _ = std::fs::write(&file, format!("+{wanted}"));
        }
    }
}

fn inherit_cpuset(place: &Path) -> rustix::io::Result<()> {
    let above = place.parent().unwrap_or(place);
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let copy = std::fs::read_to_string(above.join(file))
            .and_then(|value| std::fs::write(place.join(file), value.trim()));
        copy.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
    }
    Ok(())
}

fn words(file: &Path) -> Vec<String> {
    std::fs::read_to_string(file)
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(mounts: &str, own: &str) -> Vec<(Version, String, String)> {
        parse(mounts, own)
            .into_iter()
            .map(|found| {
                (
                    found.version,
                    found.controllers.join(","),
                    found.parent.display().to_string(),
                )
            })
            .collect()
    }

    #[test]
    fn hybrid_hosts_have_both() {
        let mounts = "\
32 28 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 28 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 28 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 28 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
42 28 0:32 / /mnt/again rw,relatime - cgroup cgroup rw,memory
";
        let own = "4:memory:/user/a\n3:cpuacct,cpu:/\n0::/init.scope\n";
        assert_eq!(
            places(mounts, own),
            [
                (Version::One, "cpu,cpuacct".into(), "/sys/fs/cgroup/cpu/".into()),
                (
                    Version::One,
                    "memory".into(),
                    "/sys/fs/cgroup/memory/user/a".into()
                ),
                (
                    Version::Two,
                    String::new(),
                    "/sys/fs/cgroup/unified/init.scope".into()
                ),
            ]
        );
    }

    #[test]
    fn a_partial_mount_is_seen_from_its_root() {
        let mounts = "35 28 0:32 /docker/1 /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n";
        assert_eq!(
            places(mounts, "4:memory:/docker/1/inner\n")[0].2,
            "/sys/fs/cgroup/my memory/inner"
        );
        assert_eq!(
            places(mounts, "4:memory:/elsewhere\n")[0].2,
            "/sys/fs/cgroup/my memory/"
        );
    }
}
