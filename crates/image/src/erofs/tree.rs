//! What a disk is to hold: inodes and the directories that name them, without the files' contents.
//!
//! Inodes are never freed one by one: they lie in one vector, so that trees of any depth are built, moved and dropped
//! without recursion. [`Tree::add`] bounds their number, [`Tree::take_room`] the bytes of names, links and attributes.

use std::collections::BTreeMap;

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};

use super::attributes::Attribute;
use super::format::{self, FileKind};

/// Bytes of names, symlinks and attributes together.
const ROOM: usize = 256 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeId(u32);

impl NodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a directory has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Child {
    Node(NodeId),
    /// Nothing, and nothing of the layers below either.
    Whiteout,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) owner: Owner,
    pub(super) attributes: Vec<Attribute>,
}

/// Permissions, ids and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
}

impl Owner {
    /// Root's, as what an archive leaves out is made.
    pub(super) fn root(mtime: (i64, u32)) -> Owner {
        Owner {
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime,
        }
    }
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Directory(Directory),
    File(Content),
    Symlink(Box<[u8]>),
    Fifo,
    /// The number as the kernel encodes it.
    Character(u32),
    Block(u32),
}

impl NodeKind {
    pub(super) fn file_kind(&self) -> FileKind {
        match self {
            NodeKind::Directory(_) => format::DIRECTORY,
            NodeKind::File(_) => format::REGULAR,
            NodeKind::Symlink(_) => format::SYMLINK,
            NodeKind::Fifo => format::FIFO,
            NodeKind::Character(_) => format::CHARACTER,
            NodeKind::Block(_) => format::BLOCK_DEVICE,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<Box<[u8]>, Child>,
    /// The layers below add nothing.
    pub(super) opaque: bool,
}

/// Where a file's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// In the disk from `block` on; with `tail`, all but the last part, which waits there in [`super::content`]'s memory.
    Written {
        size: u64,
        block: u32,
        tail: Option<u32>,
    },
    /// Not taken from the archive, since no name of the file seemed to be visible.
    Skipped,
}

pub(super) struct Tree {
    nodes: Vec<Node>,
    most: usize,
    room: usize,
}

impl Tree {
    /// A tree of at most `most` inodes.
    pub(super) fn new(most: u64) -> Tree {
        Tree {
            nodes: Vec::new(),
            most: usize::try_from(most).unwrap_or(usize::MAX).min(u32::MAX as usize),
            room: ROOM,
        }
    }

    pub(super) fn add(&mut self, kind: NodeKind, owner: Owner, attributes: Vec<Attribute>) -> Result<NodeId> {
        if self.nodes.len() >= self.most {
            return Err(too_much(format!(
                "its layers have more than {} entries together",
                self.most
            )));
        }
        let room = attributes.iter().map(Attribute::memory).sum();
        self.take_room(room)?;
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node {
            kind,
            owner,
            attributes,
        });
        Ok(id)
    }

    pub(super) fn take_room(&mut self, bytes: usize) -> Result<()> {
        self.room = self.room.checked_sub(bytes).ok_or_else(|| {
            too_much(format!(
                "its names, links and attributes are longer than {} together",
                Bytes(ROOM as u64)
            ))
        })?;
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// The directory that `id` is, if it is one.
    pub(super) fn directory(&self, id: NodeId) -> Option<&Directory> {
        match &self.node(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn directory_mut(&mut self, id: NodeId) -> Option<&mut Directory> {
        match &mut self.node_mut(id).kind {
            NodeKind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(super) fn child(&self, parent: NodeId, name: &[u8]) -> Option<Child> {
        self.directory(parent)?.children.get(name).copied()
    }

    /// Puts `child` under `name`, where nothing is.
    pub(super) fn link(&mut self, parent: NodeId, name: &[u8], child: Child) -> Result<()> {
        self.take_room(name.len())?;
        let directory = self
            .directory_mut(parent)
            .ok_or_else(|| Error::new(Kind::Internal, "cannot put a name into what is no directory"))?;
        directory.children.insert(name.into(), child);
        Ok(())
    }

    pub(super) fn unlink(&mut self, parent: NodeId, name: &[u8]) {
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.remove(name);
        }
    }
}

fn too_much(why: String) -> Error {
    Error::new(Kind::Exhausted, "cannot make a disk of this image").because(why)
}
