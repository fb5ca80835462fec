//! The jail's own cgroups: one directory `luna-<name>` in every hierarchy that the launcher may write
//! and the jail has use for, with the limits
//! asked for; counters, freezing and killing through them.
//!
//! Version 1, version 2 and both at once (hybrid) are one case: a list of hierarchies, each with its controllers. A
//! limit goes to whichever hierarchy has its controller. On version 2 the child is cloned into its cgroup; on version 1
//! it moves itself (see [`crate::step::Step::JoinCgroup`]).

mod device;
mod hierarchy;
mod limit;
mod usage;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use luna_core::engine::{CgroupPlace, Usage};
use luna_core::{Error, Kind, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

pub(crate) use device::Devices;
pub(crate) use hierarchy::{Hierarchy, Version};

use crate::spec::Limits;

/// Dying processes leave a cgroup a moment after they are reaped.
const PATIENCE: Duration = Duration::from_secs(2);

/// The cgroups of one jail. Drop removes them; whoever was inside must be dead by then. There is no folder round the
/// jails': it would double what making and removing them costs.
#[derive(Debug)]
pub(crate) struct Cgroups {
    groups: Vec<Group>,
}

/// The jail's directory in one hierarchy.
#[derive(Debug)]
struct Group {
    version: Version,
    controllers: Vec<String>,
    path: PathBuf,
    /// How the child gets in: the directory on version 2, the `tasks` file on version 1.
    entrance: OwnedFd,
}

impl Cgroups {
    /// Makes the cgroups and sets the limits. A limit that was asked for and cannot be had is an error.
    pub(crate) fn create(name: &str, limits: &Limits, devices: Option<&Devices>) -> Result<Cgroups> {
        let mut cgroups = Cgroups { groups: Vec::new() };
        for hierarchy in hierarchy::all()? {
            if !cgroups.needs(&hierarchy, limits) {
                continue;
            }
            match Group::create(&hierarchy, name) {
                Ok(group) => cgroups.groups.push(group),
                // Not ours to write; if a limit needs it, that is told below.
                Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::BUSY | Errno::NOENT) => {}
                Err(error) => {
                    let path = place(&hierarchy, name);
                    return Err(Error::io(
                        format!("cannot make the cgroup `{}`", path.display()),
                        error,
                    ));
                }
            }
        }
        limit::apply(&cgroups, limits)?;
        if let Some(devices) = devices {
            devices.restrict(&cgroups)?;
        }
        Ok(cgroups)
    }

    /// Each hierarchy costs time at both ends of a life. Version 2, which comes first, freezes and counts CPU time by
    /// itself, and a cpuset that nobody asked for would only be a copy of the one above.
    fn needs(&self, hierarchy: &Hierarchy, limits: &Limits) -> bool {
        if hierarchy.version == Version::Two {
            return true;
        }
        let has_two = self.of(Version::Two).next().is_some();
        hierarchy
            .controllers
            .iter()
            .any(|controller| match controller.as_str() {
                "cpuset" => limits.cpuset.is_some(),
                "freezer" | "cpuacct" => !has_two,
                _ => true,
            })
    }

    /// `tasks` files for the child to write itself into.
    pub(crate) fn tasks(&self) -> Vec<RawFd> {
        self.of(Version::One)
            .map(|group| group.entrance.as_raw_fd())
            .collect()
    }

    /// The cgroup to clone the child into.
    pub(crate) fn directory(&self) -> Option<BorrowedFd<'_>> {
        self.of(Version::Two).next().map(|group| group.entrance.as_fd())
    }

    pub(crate) fn leave_version_two(&mut self) {
        self.groups.retain(|group| group.version == Version::One);
    }

    /// Changes limits in place. On error all are as before.
    pub(crate) fn update(&self, limits: &Limits) -> Result<()> {
        limit::apply(self, limits)
    }

    pub(crate) fn usage(&self) -> Usage {
        usage::read(self)
    }

    /// Stops or continues everything inside; returns when it is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let verb = if frozen { "pause" } else { "resume" };
        let group = self
            .of(Version::Two)
            .find(|group| group.path.join("cgroup.freeze").exists())
            .or_else(|| self.with("freezer"))
            .ok_or_else(|| {
                Error::new(Kind::Unsupported, format!("cannot {verb} the jail"))
                    .because("the host has no freezer cgroup that Luna may write")
            })?;
        let cannot = |error: io::Error| Error::io(format!("cannot {verb} the jail"), error);
        let (file, value, state, wanted) = match (group.version, frozen) {
            (Version::Two, true) => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
            (Version::Two, false) => ("cgroup.freeze", "0", "cgroup.events", "frozen 0"),
            (Version::One, true) => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            (Version::One, false) => ("freezer.state", "THAWED", "freezer.state", "THAWED"),
        };
        group.write(file, value).map_err(cannot)?;
        let begin = Instant::now();
        while !group
            .read(state)
            .map_err(cannot)?
            .lines()
            .any(|line| line == wanted)
        {
            if begin.elapsed() > PATIENCE {
                if frozen {
                    // Leave it running rather than half stopped.
                    let _ = self.freeze(false);
                }
                return Err(
                    Error::new(Kind::TimedOut, format!("cannot {verb} the jail")).because(format!(
                        "not all of its processes did within {} s",
                        PATIENCE.as_secs()
                    )),
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Kills what is inside; what is frozen too.
    pub(crate) fn kill(&self) {
        for group in &self.groups {
            match group.version {
                Version::Two => {
                    // Linux 5.14 and later; the pid namespace's end reaches everybody on any kernel.
                    let _ = group.write("cgroup.kill", "1");
                }
                Version::One if group.has("freezer") => {
                    let _ = group.write("freezer.state", "THAWED");
                }
                Version::One => {}
            }
        }
    }

    pub(crate) fn places(&self) -> Vec<CgroupPlace> {
        let place = |group: &Group| CgroupPlace {
            path: group.path.clone(),
            version: match group.version {
                Version::One => 1,
                Version::Two => 2,
            },
            controllers: group.controllers.clone(),
        };
        self.groups.iter().map(place).collect()
    }

    fn of(&self, version: Version) -> impl Iterator<Item = &Group> {
        self.groups.iter().filter(move |group| group.version == version)
    }

    fn with(&self, controller: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.has(controller))
    }
}

/// Removes what a launcher that was killed left of the jail `name`, killing what is still inside.
pub(crate) fn reclaim(name: &str) -> Result<()> {
    for hierarchy in hierarchy::all()? {
        let path = place(&hierarchy, name);
        if let Ok(group) = Group::open(&hierarchy, path) {
            let cgroups = Cgroups { groups: vec![group] };
            cgroups.kill();
            // Dropped here, which removes it.
        }
    }
    Ok(())
}

impl Group {
    fn create(hierarchy: &Hierarchy, name: &str) -> rustix::io::Result<Group> {
        let path = place(hierarchy, name);
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o755))?;
        let group = Group::open(hierarchy, path.clone());
        group.inspect_err(|_| remove_directory(&path))
    }

    fn open(hierarchy: &Hierarchy, path: PathBuf) -> rustix::io::Result<Group> {
        let opened = match hierarchy.version {
            Version::One => rustix::fs::open(
                path.join("tasks"),
                OFlags::WRONLY | OFlags::CLOEXEC,
                Mode::empty(),
            ),
            Version::Two => rustix::fs::open(
                &path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            ),
        };
        Ok(Group {
            version: hierarchy.version,
            controllers: hierarchy.effective_controllers(&path),
            entrance: opened?,
            path,
        })
    }

    fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|own| own == controller)
    }

    fn read(&self, file: &str) -> io::Result<String> {
        std::fs::read_to_string(self.path.join(file))
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        use io::Write as _;
        // Never creates: a file that is not there is a feature that is not there.
        File::options()
            .write(true)
            .open(self.path.join(file))?
            .write_all(value.as_bytes())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove_directory(&self.path);
    }
}

fn place(hierarchy: &Hierarchy, name: &str) -> PathBuf {
    hierarchy.parent.join(format!("luna-{name}"))
}

/// Removes a cgroup and those that the jail may have made inside it, deepest first.
fn remove_directory(path: &Path) {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(50);
    while rustix::fs::rmdir(path) == Err(Errno::BUSY) && begin.elapsed() < PATIENCE {
        // Only directories can be made in a cgroup file system: no link leads astray.
        for path in directories_below(path).iter().rev() {
            // What is still busy is tried again in the next round.
            let _ = rustix::fs::rmdir(path);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// All directories below `path`, each before those inside it.
fn directories_below(path: &Path) -> Vec<PathBuf> {
    let below = |path: &Path| {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut found = below(path);
    let mut next = 0;
    while let Some(inner) = found.get(next).map(|path| below(path)) {
        found.extend(inner);
        next += 1;
    }
    found
}
