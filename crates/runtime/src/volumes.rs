//! Named volumes: directories that outlive sandboxes. Ids on disk are the sandbox's own; root's mounts map them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use luna_core::name::Name;
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

use crate::layout::{self, Layout};

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: Name,
    /// What is mounted.
    pub data: PathBuf,
    pub created: SystemTime,
}

impl Volume {
    /// Whether nobody named it: what is invented where no name is given has an id's form, 32 hexadecimal digits.
    pub fn is_anonymous(&self) -> bool {
        let name = self.name.as_str();
        name.len() == 32 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    }
}

/// All volumes of one Luna.
#[derive(Clone, Debug)]
pub struct Volumes {
    layout: Layout,
}

impl Volumes {
    pub(crate) fn new(layout: &Layout) -> Volumes {
        Volumes {
            layout: layout.clone(),
        }
    }

    fn data(&self, name: &Name) -> PathBuf {
        self.layout.volumes().join(name.as_str()).join("data")
    }

    /// Makes the volume unless it is there. `fill` is given its directory before anybody else sees it; a volume that
    /// could not be filled whole is not there.
    pub fn create(&self, name: &Name, fill: &dyn Fn(&Path) -> Result<()>) -> Result<Volume> {
        let data = self.data(name);
        if data.exists() {
            return self.get(name);
        }
        let directory = self.layout.volumes().join(name.as_str());
        layout::make_directory(&directory)?;
        let lock = layout::open_lock(&directory.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| Error::io(format!("cannot lock volume `{name}`"), e))?;
        if !data.exists() {
            let fail = |e| Error::io(format!("cannot make volume `{name}`"), e);
            let unfinished = directory.join("data.new");
            crate::registry::bury(&unfinished)?;
            layout::make_directory(&unfinished)?;
            // Sandboxes' users walk in through the mount; the directories above it are closed.
            let open = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
            fs::set_permissions(&unfinished, open).map_err(fail)?;
            fill(&unfinished)?;
            fs::rename(&unfinished, &data).map_err(fail)?;
        }
        self.get(name)
    }

    pub fn get(&self, name: &Name) -> Result<Volume> {
        let data = self.data(name);
        let metadata = fs::metadata(&data).map_err(|e| {
            Error::io(format!("cannot find a volume `{name}`"), e).hint("`luna volume ls` lists them all")
        })?;
        let created = metadata
            .created()
            .or_else(|_| metadata.modified())
            .unwrap_or(SystemTime::UNIX_EPOCH);
        Ok(Volume {
            name: name.clone(),
            data,
            created,
        })
    }

    pub fn list(&self) -> Result<Vec<Volume>> {
        let path = self.layout.volumes();
        let entries =
            fs::read_dir(&path).map_err(|e| Error::io(format!("cannot list `{}`", path.display()), e))?;
        let mut volumes: Vec<Volume> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<Name>().ok())
            .filter_map(|name| self.get(&name).ok())
            .collect();
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Deletes a volume that no sandbox names; `users` are those that do.
    pub(crate) fn remove(&self, name: &Name, users: &[Name]) -> Result<()> {
        self.get(name)?;
        if let Some(user) = users.first() {
            return Err(
                Error::new(Kind::Conflict, format!("cannot remove volume `{name}`"))
                    .because(format!("sandbox `{user}` uses it"))
                    .hint(format!("remove the sandbox first: `luna rm {user}`")),
            );
        }
        let grave = self.layout.trash().join(format!("volume-{name}"));
        fs::rename(self.layout.volumes().join(name.as_str()), &grave)
            .map_err(|e| Error::io(format!("cannot remove volume `{name}`"), e))?;
        crate::registry::bury(&grave)
    }
}
