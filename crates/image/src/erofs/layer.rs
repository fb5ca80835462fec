//! One layer as a tree of its own, entry by entry: what [`crate::layer::tree`] does with a directory, done in memory.
//!
//! Both must agree on everything, since one image is shown by both: where a path leads through the layer's own symlinks,
//! what replaces what, what an archive leaves out. Contents go to the disk at once, but only those of files that no layer
//! above hides.

use std::collections::HashMap;
use std::io::Read;

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};

use super::attributes;
use super::content::Contents;
use super::format;
use super::tree::{Child, Content, Directory, Node, NodeId, NodeKind, Owner, Tree};
use crate::layer::archive::{Archive, Entry, EntryKind, corrupt};
use crate::layer::tree::{AUFS, OPAQUE, WHITEOUT, clean, owner};

/// Symlinks followed in one path (`MAXSYMLINKS` of `include/linux/namei.h`).
const MOST_LINKS: usize = 40;
/// Directories in directories, along a chain of symlinks too.
const MOST_LEVELS: usize = 4096;

/// Contents that were skipped and are wanted after all, by their entry's place in the archive: a visible name was
/// linked to a file whose first name is hidden.
pub(super) type Wanted = HashMap<u64, NodeId>;

/// How a path's symlinks are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Follow,
    Refuse,
}

/// Why a path leads to no directory.
enum Stop {
    Absent,
    Broken(Error),
}

/// What the layers above make of a directory of this one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Above {
    /// They hide it.
    Hidden,
    /// They have nothing there.
    Free,
    /// They have a directory there, and the two become one.
    Merged(NodeId),
}

pub(super) struct LayerReader<'t, 'a> {
    tree: &'t mut Tree,
    contents: &'t mut Contents<'a>,
    root: NodeId,
    above: HashMap<NodeId, Above>,
    /// Times of directories by the path that an entry had: the last word on a path counts, even when another directory
    /// came to stand there.
    times: HashMap<Vec<u8>, (i64, u32)>,
    /// The root's time where no entry gives one: the first entry's, so that one image makes one disk.
    root_time: Option<(i64, u32)>,
    /// The parent of the last entry: archives go through a directory's files in a row.
    parent: Option<(Vec<u8>, NodeId)>,
    skipped: HashMap<NodeId, u64>,
    wanted: Wanted,
}

impl<'t, 'a> LayerReader<'t, 'a> {
    /// A reader for the layer below all that `merged` is the root of.
    pub(super) fn new(
        tree: &'t mut Tree,
        contents: &'t mut Contents<'a>,
        merged: Option<NodeId>,
    ) -> Result<LayerReader<'t, 'a>> {
        let kind = NodeKind::Directory(Directory::default());
        let root = tree.add(kind, Owner::root((0, 0)), Vec::new())?;
        let above = merged.map_or(Above::Free, Above::Merged);
        Ok(LayerReader {
            tree,
            contents,
            root,
            above: HashMap::from([(root, above)]),
            times: HashMap::new(),
            root_time: None,
            parent: None,
            skipped: HashMap::new(),
            wanted: Wanted::new(),
        })
    }

    /// Reads the archive to the end of its stream. The layer's root, and what a second reading must bring.
    pub(super) fn read<R: Read>(
        mut self,
        archive: &mut Archive<R>,
        limits: &crate::Limits,
    ) -> Result<(NodeId, Wanted)> {
        let (mut count, mut bytes) = (0, 0u64);
        let too_much = |why| Err(Error::new(Kind::Exhausted, "cannot read more of this layer").because(why));
        while let Some(entry) = archive.next()? {
            bytes = bytes.saturating_add(entry.size);
            if count >= limits.entries {
                return too_much(format!("it has more than {} entries", limits.entries));
            }
            if bytes > limits.bytes {
                return too_much(format!("it unpacks to more than {}", Bytes(limits.bytes)));
            }
            self.apply(&entry, count, archive)
                .map_err(|error| within(error, &entry))?;
            count += 1;
        }
        archive.drain()?;
        self.set_times();
        Ok((self.root, self.wanted))
    }

    /// A directory named through a symlink keeps the time it was made with.
    fn set_times(&mut self) {
        if let Some(time) = self.root_time {
            self.tree.node_mut(self.root).owner.mtime = time;
        }
        for (path, time) in std::mem::take(&mut self.times) {
            if let Ok(directory) = self.walk(&path, Links::Refuse) {
                self.tree.node_mut(directory).owner.mtime = time;
            }
        }
    }

    fn apply<R: Read>(&mut self, entry: &Entry, number: u64, archive: &mut Archive<R>) -> Result<()> {
        let path = clean(&entry.path)?;
        self.root_time.get_or_insert(entry.mtime);
        if path.is_empty() {
            return match entry.kind {
                EntryKind::Directory => self.adopt(self.root, &path, entry),
                _ => Err(corrupt("only a directory can stand for the root")),
            };
        }
        let (parent_path, name) = split(&path);
        if name == OPAQUE {
            let directory = self.directory_at(parent_path, Links::Refuse, entry)?;
            return self.make_opaque(directory);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent_path, hidden, entry);
        }
        if let EntryKind::HardLink(target) = &entry.kind {
            return self.hard_link(parent_path, name, target, entry);
        }
        let parent = self.enter(parent_path, entry)?;
        let device = |major, minor| {
            format::device(major, minor).ok_or_else(|| corrupt("a device's number is beyond what Linux has"))
        };
        let kind = match &entry.kind {
            EntryKind::Directory => return self.directory(&path, parent, name, entry),
            EntryKind::File => {
                let node = self.file(parent, name, entry, number, archive)?;
                return self.replace(parent, name, Child::Node(node));
            }
            EntryKind::Symlink(target) => {
                if target.contains(&0) || target.len() >= format::BLOCK as usize {
                    return Err(corrupt("a symlink is malformed or longer than 4,095 bytes"));
                }
                self.tree.take_room(target.len())?;
                NodeKind::Symlink(target.as_slice().into())
            }
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::CharacterDevice { major: 0, minor: 0 } => {
                return Err(corrupt("a 0:0 character device is an overlay whiteout"));
            }
            EntryKind::CharacterDevice { major, minor } => NodeKind::Character(device(*major, *minor)?),
            EntryKind::BlockDevice { major, minor } => NodeKind::Block(device(*major, *minor)?),
            EntryKind::HardLink(_) => unreachable!("linked above"),
        };
        let mut owner = owner_of(entry)?;
        if matches!(kind, NodeKind::Symlink(_)) {
            owner.mode = 0o777;
        }
        let node = self.tree.add(kind, owner, Vec::new())?;
        self.replace(parent, name, Child::Node(node))
    }

    /// The directory `path`, with what is missing of it.
    fn enter(&mut self, path: &[u8], entry: &Entry) -> Result<NodeId> {
        if let Some((current, node)) = &self.parent
            && current == path
        {
            return Ok(*node);
        }
        let node = self.directory_at(path, Links::Follow, entry)?;
        self.parent = Some((path.to_vec(), node));
        Ok(node)
    }

    /// Where `path` leads inside this layer.
    fn walk(&self, path: &[u8], links: Links) -> Result<NodeId, Stop> {
        let slash = |byte: &u8| *byte == b'/';
        let mut stack = vec![self.root];
        let mut rest = vec![path.split(slash)];
        let mut followed = 0;
        while let Some(parts) = rest.last_mut() {
            let part = match parts.next() {
                None => {
                    rest.pop();
                    continue;
                }
                Some(b"" | b".") => continue,
                Some(b"..") => {
                    stack.truncate(stack.len().saturating_sub(1).max(1));
                    continue;
                }
                Some(part) if part.len() > format::NAME_MAX => {
                    return Err(Stop::Broken(corrupt("a name is longer than 255 bytes")));
                }
                Some(part) => part,
            };
            let here = *stack.last().expect("the root is never taken off");
            let Some(Child::Node(node)) = self.tree.child(here, part) else {
                return Err(Stop::Absent);
            };
            match &self.tree.node(node).kind {
                NodeKind::Directory(_) if stack.len() > MOST_LEVELS => {
                    return Err(Stop::Broken(corrupt(
                        "its path leads more than 4,096 levels down",
                    )));
                }
                NodeKind::Directory(_) => stack.push(node),
                NodeKind::Symlink(target) => {
                    followed += 1;
                    if links == Links::Refuse || followed > MOST_LINKS {
                        let why = "its path leads through a symlink that is not allowed there";
                        return Err(Stop::Broken(corrupt(why)));
                    }
                    if target.first() == Some(&b'/') {
                        stack.truncate(1);
                    }
                    rest.push(target.split(slash));
                }
                _ => return Err(Stop::Absent),
            }
        }
        Ok(*stack.last().expect("the root is never taken off"))
    }

    /// [`LayerReader::walk`], making what is missing.
    fn directory_at(&mut self, path: &[u8], links: Links, entry: &Entry) -> Result<NodeId> {
        match self.walk(path, links) {
            Ok(node) => return Ok(node),
            Err(Stop::Broken(error)) => return Err(error),
            Err(Stop::Absent) => {}
        }
        let ends = (0..path.len()).filter(|at| path[*at] == b'/').chain([path.len()]);
        for end in ends.collect::<Vec<_>>() {
            match self.walk(&path[..end], links) {
                Ok(_) => continue,
                Err(Stop::Broken(error)) => return Err(error),
                Err(Stop::Absent) => {}
            }
            let (above, name) = split(&path[..end]);
            let parent = self.existing(above, links)?;
            let hides = self.tree.child(parent, name) == Some(Child::Whiteout);
            let mut owner = Owner::root(entry.mtime);
            let parents = self.tree.node(parent).owner;
            // As the kernel does for a directory made in one with the set-group-id bit.
            if parents.mode & 0o2000 != 0 {
                owner.mode |= 0o2000;
                owner.gid = parents.gid;
            }
            let made = self.make_directory(parent, name, owner)?;
            if hides {
                self.make_opaque(made)?;
            }
        }
        self.existing(path, links)
    }

    fn existing(&self, path: &[u8], links: Links) -> Result<NodeId> {
        self.walk(path, links).map_err(|stop| match stop {
            Stop::Broken(error) => error,
            Stop::Absent => corrupt("a part of its path is not a directory"),
        })
    }

    /// Puts an empty directory under `name`, instead of whatever is there.
    fn make_directory(&mut self, parent: NodeId, name: &[u8], owner: Owner) -> Result<NodeId> {
        let above = self.above_child(parent, name);
        let kind = NodeKind::Directory(Directory::default());
        let made = self.tree.add(kind, owner, Vec::new())?;
        self.above.insert(made, above);
        self.tree.unlink(parent, name);
        self.tree.link(parent, name, Child::Node(made))?;
        Ok(made)
    }

    fn make_opaque(&mut self, directory: NodeId) -> Result<()> {
        let directory = self
            .tree
            .directory_mut(directory)
            .ok_or_else(|| corrupt("only a directory can be opaque"))?;
        directory.opaque = true;
        Ok(())
    }

    /// What the layers above make of `name` in a directory of this layer.
    fn above_child(&self, parent: NodeId, name: &[u8]) -> Above {
        match self.above.get(&parent).copied().unwrap_or(Above::Hidden) {
            Above::Merged(directory) if self.tree.directory(directory).is_some_and(|d| d.opaque) => {
                Above::Hidden
            }
            Above::Merged(directory) => match self.tree.child(directory, name) {
                None => Above::Free,
                Some(Child::Node(node)) if self.tree.directory(node).is_some() => Above::Merged(node),
                Some(_) => Above::Hidden,
            },
            other => other,
        }
    }

    fn adopt(&mut self, directory: NodeId, path: &[u8], entry: &Entry) -> Result<()> {
        let mut owner = owner_of(entry)?;
        let mut attributes = std::mem::take(&mut self.tree.node_mut(directory).attributes);
        attributes::set(&mut attributes, &mut owner.mode, true, &entry.xattrs)?;
        self.tree
            .take_room(attributes.iter().map(attributes::Attribute::memory).sum())?;
        let node = self.tree.node_mut(directory);
        owner.mtime = node.owner.mtime;
        node.owner = owner;
        node.attributes = attributes;
        if self.times.insert(path.to_vec(), entry.mtime).is_none() {
            self.tree.take_room(path.len())?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &[u8], parent: NodeId, name: &[u8], entry: &Entry) -> Result<()> {
        let there = self.tree.child(parent, name);
        let made = match there {
            Some(Child::Node(node)) if self.tree.directory(node).is_some() => node,
            _ => self.make_directory(parent, name, owner_of(entry)?)?,
        };
        self.adopt(made, path, entry)?;
        if there == Some(Child::Whiteout) {
            self.make_opaque(made)?;
        }
        self.parent = Some((path.to_vec(), made));
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: NodeId,
        name: &[u8],
        entry: &Entry,
        number: u64,
        archive: &mut Archive<R>,
    ) -> Result<NodeId> {
        let mut owner = owner_of(entry)?;
        let mut attributes = Vec::new();
        attributes::set(&mut attributes, &mut owner.mode, false, &entry.xattrs)?;
        let visible = self.above_child(parent, name) == Above::Free;
        let content = match visible {
            true => write(self.contents, entry, attributes::size(&attributes), archive)?,
            false => Content::Skipped,
        };
        let node = self.tree.add(NodeKind::File(content), owner, attributes)?;
        if !visible {
            self.skipped.insert(node, number);
        }
        Ok(node)
    }

    fn replace(&mut self, parent: NodeId, name: &[u8], child: Child) -> Result<()> {
        self.tree.unlink(parent, name);
        self.tree.link(parent, name, child)
    }

    fn hard_link(&mut self, parent_path: &[u8], name: &[u8], target: &[u8], entry: &Entry) -> Result<()> {
        let missing = || corrupt("a hard link points to what this layer does not have");
        let target = clean(target)?;
        let (from_path, from_name) = split(&target);
        if from_name.is_empty() {
            return Err(corrupt("a hard link points to the root"));
        }
        let from = self.walk(from_path, Links::Refuse).map_err(|stop| match stop {
            Stop::Broken(error) => error,
            Stop::Absent => missing(),
        })?;
        let child = self.tree.child(from, from_name).ok_or_else(missing)?;
        if let Child::Node(node) = child
            && self.tree.directory(node).is_some()
        {
            return Err(corrupt("a hard link points to a directory"));
        }
        let to = self.directory_at(parent_path, Links::Refuse, entry)?;
        let there = self.tree.child(to, name);
        if there == Some(child) {
            return Ok(());
        }
        if self.tree.child(from, from_name) != Some(child) {
            return Err(missing());
        }
        if let Some(Child::Node(node)) = there
            && self.tree.directory(node).is_some()
            && lies_below(&target, &[parent_path, b"/", name].concat())
        {
            // The link would replace a directory that its target is in.
            return Err(missing());
        }
        self.replace(to, name, child)?;
        // What was replaced may be the directory it remembers, or lead there.
        self.parent = None;
        if let Child::Node(node) = child
            && let Some(number) = self.skipped.get(&node)
            && self.above_child(to, name) == Above::Free
        {
            self.wanted.insert(*number, node);
        }
        Ok(())
    }

    /// Hides `name` of the layers below; what this layer itself has there stays.
    fn whiteout(&mut self, parent_path: &[u8], name: &[u8], entry: &Entry) -> Result<()> {
        if matches!(name, b"" | b"." | b"..") {
            return Err(corrupt("a whiteout names nothing"));
        }
        let parent = self.directory_at(parent_path, Links::Refuse, entry)?;
        match self.tree.child(parent, name) {
            None => self.tree.link(parent, name, Child::Whiteout),
            Some(Child::Node(node)) if self.tree.directory(node).is_some() => self.make_opaque(node),
            Some(_) => Ok(()),
        }
    }
}

/// Brings the contents that were skipped and are wanted, from the same layer read again.
pub(super) fn read_wanted<R: Read>(
    tree: &mut Tree,
    contents: &mut Contents<'_>,
    archive: &mut Archive<R>,
    wanted: &Wanted,
) -> Result<()> {
    let mut number = 0;
    while let Some(entry) = archive.next()? {
        if let Some(id) = wanted.get(&number) {
            let Node { kind, attributes, .. } = tree.node_mut(*id);
            let content = write(contents, &entry, attributes::size(attributes), archive)
                .map_err(|error| within(error, &entry))?;
            *kind = NodeKind::File(content);
        }
        number += 1;
    }
    archive.drain()
}

fn write<R: Read>(
    contents: &mut Contents<'_>,
    entry: &Entry,
    attributes: usize,
    archive: &mut Archive<R>,
) -> Result<Content> {
    let all = [(0, entry.size)];
    let chunks = entry.sparse.as_deref().unwrap_or(&all);
    contents.write(
        entry.size,
        chunks,
        attributes,
        &mut |room| match archive.read_data(room)? {
            0 => Err(corrupt("it ends in the middle of an entry")),
            count => Ok(count),
        },
    )
}

fn owner_of(entry: &Entry) -> Result<Owner> {
    let (uid, gid) = owner(entry)?;
    Ok(Owner {
        mode: entry.mode as u16 & 0o7777,
        uid: uid.as_raw(),
        gid: gid.as_raw(),
        mtime: entry.mtime,
    })
}

/// Whether `path` lies below `directory`; neither has symlinks in it.
fn lies_below(path: &[u8], directory: &[u8]) -> bool {
    let directory = directory.strip_prefix(b"/").unwrap_or(directory);
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with(b"/"))
}

/// A clean path's parent and name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn within(error: Error, entry: &Entry) -> Error {
    let shown = crate::layer::remove::shorten(&String::from_utf8_lossy(&entry.path));
    error.context(format!("cannot put `{shown}` on a disk"))
}
