//! All sandboxes of one Luna: made, found, renamed, removed. Names and ids are handed out here, once each.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

use luna_core::name::{Id, Name};
use luna_core::{Error, Kind, Result};

use crate::layout::Layout;
use crate::ranges;
use crate::record::Status;
use crate::sandbox::{self, Sandbox};

/// A sandbox's directory while it is being filled; removed again unless it is kept.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    layout: &'a Layout,
    pub(crate) id: Id,
    pub(crate) directory: PathBuf,
    kept: bool,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(layout: &'a Layout) -> Result<Draft<'a>> {
        let mut bits = [0; 16];
        rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| Error::io("cannot get random bytes", e))?;
        let id = Id::from_random(bits);
        let directory = layout.sandbox(&id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|e| Error::io(format!("cannot make `{}`", directory.display()), e))?;
        Ok(Draft {
            layout,
            id,
            directory,
            kept: false,
        })
    }

    /// Writes record and status, takes the name: from here on the sandbox exists.
    pub(crate) fn keep(mut self, record: crate::record::Record) -> Result<Sandbox> {
        let sandbox = Sandbox {
            record,
            directory: self.directory.clone(),
        };
        sandbox.store_record()?;
        sandbox::store_status(&sandbox.directory, &Status::created())?;
        take_name(self.layout, &sandbox.record.name, &self.id)?;
        self.kept = true;
        Ok(sandbox)
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn take_name(layout: &Layout, name: &Name, id: &Id) -> Result<()> {
    let path = layout.name(name);
    // A name is made and given its holder under the lock, so that nobody takes one without a holder for a dead one.
    let _lock = layout.lock()?;
    for attempt in 0..2 {
        match fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(mut file) => {
                return file.write_all(id.as_str().as_bytes()).map_err(|e| {
                    let _ = fs::remove_file(&path);
                    Error::io(format!("cannot write `{}`", path.display()), e)
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                let holder = fs::read_to_string(&path).unwrap_or_default().parse::<Id>();
                let alive = holder
                    .as_ref()
                    .is_ok_and(|holder| layout.sandbox(holder).exists());
                if alive || attempt > 0 {
                    return Err(
                        Error::new(Kind::AlreadyExists, format!("cannot use the name `{name}`"))
                            .because("a sandbox of that name exists")
                            .hint(format!(
                                "remove it with `luna rm {name}`, or choose another name with `--name`"
                            )),
                    );
                }
                // Left by a Luna that was killed between directory and name.
                let _ = fs::remove_file(&path);
            }
            Err(error) => return Err(Error::io(format!("cannot write `{}`", path.display()), error)),
        }
    }
    unreachable!("the second attempt returns")
}

/// Whether a name is taken by a sandbox that exists.
pub(crate) fn name_taken(layout: &Layout, name: &Name) -> bool {
    fs::read_to_string(layout.name(name))
        .ok()
        .and_then(|text| text.parse::<Id>().ok())
        .is_some_and(|id| layout.sandbox(&id).exists())
}

/// Finds a sandbox by name, id or the beginning of exactly one id.
pub(crate) fn find(layout: &Layout, text: &str) -> Result<Sandbox> {
    Sandbox::load(layout.sandbox(&identify(layout, text)?))
}

/// The id that a name, an id or the beginning of exactly one id means.
pub(crate) fn identify(layout: &Layout, text: &str) -> Result<Id> {
    if let Ok(name) = text.parse::<Name>() {
        if let Ok(content) = fs::read_to_string(layout.name(&name))
            && let Ok(id) = content.parse::<Id>()
            && layout.sandbox(&id).exists()
        {
            return Ok(id);
        }
        let mut matches = ids(layout)?
            .into_iter()
            .filter(|id| id.as_str().starts_with(text));
        if let Some(id) = matches.next() {
            if matches.next().is_some() {
                return Err(Error::new(
                    Kind::InvalidInput,
                    format!("cannot tell which sandbox `{text}` is"),
                )
                .because("several ids begin with it")
                .hint("type more of the id, or use the name"));
            }
            return Ok(id);
        }
    }
    Err(Error::new(
        Kind::NotFound,
        format!("cannot find a sandbox `{}`", text.escape_debug()),
    )
    .hint("`luna ps -a` lists them all"))
}

/// Gives back every name and range that `id` holds.
pub(crate) fn forget(layout: &Layout, id: &Id) {
    for directory in [layout.root().join("names"), layout.ranges()] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if fs::read(entry.path()).is_ok_and(|holder| holder == id.as_str().as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

pub(crate) fn ids(layout: &Layout) -> Result<Vec<Id>> {
    let path = layout.sandboxes();
    let entries =
        fs::read_dir(&path).map_err(|e| Error::io(format!("cannot list `{}`", path.display()), e))?;
    Ok(entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect())
}

/// Every sandbox, newest first. One whose record cannot be read is left out of the list and named beside it.
pub(crate) fn list(layout: &Layout) -> Result<(Vec<Sandbox>, Vec<Error>)> {
    let mut sandboxes = Vec::new();
    let mut broken = Vec::new();
    for id in ids(layout)? {
        match Sandbox::load(layout.sandbox(&id)) {
            Ok(sandbox) => sandboxes.push(sandbox),
            // Being made or being removed this very moment.
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => broken.push(error),
        }
    }
    sandboxes.sort_by(|a, b| b.record.created.cmp(&a.record.created));
    Ok((sandboxes, broken))
}

/// Gives a sandbox another name. Its supervisor reads the name from disk when it next needs it.
pub(crate) fn rename(layout: &Layout, sandbox: &mut Sandbox, name: &Name) -> Result<()> {
    take_name(layout, name, &sandbox.record.id)?;
    let old = std::mem::replace(&mut sandbox.record.name, name.clone());
    if let Err(error) = sandbox.store_record() {
        release_name(layout, name, &sandbox.record.id);
        return Err(error);
    }
    release_name(layout, &old, &sandbox.record.id);
    Ok(())
}

fn release_name(layout: &Layout, name: &Name, id: &Id) {
    let path = layout.name(name);
    if fs::read(&path).is_ok_and(|holder| holder == id.as_str().as_bytes()) {
        let _ = fs::remove_file(path);
    }
}

/// Takes a sandbox out of sight: name, range and directory are free when this returns; the bytes go with
/// [`empty_trash`]. The caller has made sure that it does not run.
pub(crate) fn discard(layout: &Layout, sandbox: &Sandbox) -> Result<PathBuf> {
    let id = &sandbox.record.id;
    // The name may have changed since the record was read.
    let name =
        Sandbox::load(sandbox.directory.clone()).map_or(sandbox.record.name.clone(), |s| s.record.name);
    let grave = layout.trash().join(id.as_str());
    fs::rename(&sandbox.directory, &grave)
        .map_err(|e| Error::io(format!("cannot remove sandbox `{name}`"), e))?;
    release_name(layout, &name, id);
    ranges::release(layout, id, sandbox.record.ids);
    Ok(grave)
}

/// Deletes what was discarded, also by a Luna that was killed before it came to that.
pub(crate) fn empty_trash(layout: &Layout) -> Result<()> {
    let path = layout.trash();
    let entries =
        fs::read_dir(&path).map_err(|e| Error::io(format!("cannot list `{}`", path.display()), e))?;
    // One that cannot be deleted does not keep the others.
    entries
        .flatten()
        .map(|entry| bury(&entry.path()))
        .fold(Ok(()), Result::and)
}

/// Deletes one discarded directory, however deep and whatever its modes. What cannot be deleted stays for the next sweep.
pub(crate) fn bury(grave: &std::path::Path) -> Result<()> {
    luna_image::remove_tree(grave)
}

/// Removes names, ranges and directories that no sandbox stands behind: left by a Luna that was killed half way, or by a
/// build. `reclaim` removes what such a one left outside the tree.
pub(crate) fn sweep(layout: &Layout, reclaim: &dyn Fn(&Id)) -> Result<()> {
    let _lock = layout.lock()?;
    for id in ids(layout)? {
        let directory = layout.sandbox(&id);
        if !directory.join(sandbox::RECORD).exists() && !young(&directory) && !held(&directory) {
            reclaim(&id);
            let _ = bury(&directory);
        }
    }
    for directory in [layout.root().join("names"), layout.ranges()] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let holder = fs::read_to_string(entry.path())
                .ok()
                .and_then(|text| text.parse::<Id>().ok());
            let alive = holder.is_some_and(|id| layout.sandbox(&id).exists());
            if !alive && !young(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    Ok(())
}

/// Whether something is too new to be called abandoned: it may be in the making.
fn young(path: &std::path::Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    let age = modified.ok().and_then(|time| time.elapsed().ok());
    age.is_none_or(|age| age < std::time::Duration::from_secs(10))
}

/// Whether a process holds the directory's lock.
fn held(directory: &std::path::Path) -> bool {
    let Ok(lock) = crate::layout::open_lock(&directory.join(sandbox::LOCK)) else {
        return false;
    };
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_err()
}

/// A name nobody has: an adjective and a moon.
pub(crate) fn invent_name(layout: &Layout, id: &Id) -> Name {
    const ADJECTIVES: [&str; 16] = [
        "amber", "brave", "calm", "clear", "cosy", "eager", "fair", "gentle", "keen", "lucid", "mellow",
        "nimble", "quiet", "silver", "swift", "warm",
    ];
    const MOONS: [&str; 16] = [
        "ariel", "callisto", "charon", "deimos", "dione", "europa", "ganymede", "io", "mimas", "miranda",
        "oberon", "phoebe", "rhea", "tethys", "titan", "triton",
    ];
    let byte = |index: usize| {
        usize::from_str_radix(&id.as_str()[index * 2..index * 2 + 2], 16).expect("hexadecimal")
    };
    let plain = format!("{}-{}", ADJECTIVES[byte(0) % 16], MOONS[byte(1) % 16]);
    let name: Name = plain.parse().expect("made of letters");
    if name_taken(layout, &name) {
        return format!("{plain}-{}", &id.as_str()[4..10])
            .parse()
            .expect("made of letters");
    }
    name
}
