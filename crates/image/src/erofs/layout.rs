//! The last step: every inode gets its place, then directories and inodes are written behind the contents.
//!
//! A directory's children lie side by side, its own directories' children behind them, so that listing a directory and
//! looking at each file reads few blocks. An inode whose time is the disk's (the most common one) takes the short form.

use luna_core::{Error, Kind, Result};

use super::attributes;
use super::content::Contents;
use super::format::{BLOCK, DirectoryBlock, Inode, Layout, SLOT, Superblock};
use super::tree::{Child, Content, NodeId, NodeKind, Tree};

/// The root's inode number; 0 is for nothing.
const ROOT: u32 = 2;

/// What placing an inode has found out.
#[derive(Clone, Copy, Default)]
struct Place {
    /// 0 while it has none.
    number: u32,
    links: u32,
    /// First block of a directory or symlink that has some.
    block: u32,
    /// Bytes of a directory.
    size: u64,
    parent: Option<NodeId>,
}

struct Shape {
    compact: bool,
    attributes: usize,
    size: u64,
    block: u32,
    /// Bytes behind the inode and its attributes.
    tail: usize,
}

pub(super) struct Writer<'t, 'a> {
    tree: &'t Tree,
    contents: Contents<'a>,
    places: Vec<Place>,
    /// Inodes as they lie.
    order: Vec<NodeId>,
    time: (i64, u32),
}

impl<'t, 'a> Writer<'t, 'a> {
    pub(super) fn new(tree: &'t Tree, contents: Contents<'a>) -> Writer<'t, 'a> {
        Writer {
            tree,
            contents,
            places: vec![Place::default(); tree.len()],
            order: Vec::new(),
            time: (0, 0),
        }
    }

    pub(super) fn write(mut self, root: NodeId, uuid: [u8; 16]) -> Result<()> {
        self.arrange(root);
        self.time = self.common_time();
        self.reserve_blocks()?;
        self.number()?;
        self.write_blocks()?;
        let metadata = self.contents.output.block()?;
        self.write_inodes(metadata)?;
        let superblock = Superblock {
            root: ROOT as u16,
            inodes: self.order.len() as u64,
            time: self.time,
            blocks: 0,
            metadata,
            uuid,
        };
        let finish = |blocks| Superblock { blocks, ..superblock }.encode();
        self.contents.output.finish(finish)
    }

    /// Decides the order and counts the names of each inode.
    fn arrange(&mut self, root: NodeId) {
        self.order.push(root);
        self.places[root.index()] = Place {
            links: 2,
            parent: Some(root),
            ..Place::default()
        };
        let mut waiting = vec![root];
        while let Some(here) = waiting.pop() {
            let Some(directory) = self.tree.directory(here) else {
                continue;
            };
            let first = waiting.len();
            for child in directory.children.values() {
                let Child::Node(id) = *child else {
                    continue;
                };
                let is_directory = self.tree.directory(id).is_some();
                let place = &mut self.places[id.index()];
                place.links += 1;
                if place.links == 1 {
                    self.order.push(id);
                }
                if is_directory {
                    place.links = 2;
                    place.parent = Some(here);
                    self.places[here.index()].links += 1;
                    waiting.push(id);
                }
            }
            waiting[first..].reverse();
        }
    }

    /// The time that most inodes have, by Boyer and Moore's vote: right where one has the majority, else any.
    fn common_time(&self) -> (i64, u32) {
        let (mut time, mut votes) = ((0, 0), 0u32);
        for id in &self.order {
            let mtime = self.tree.node(*id).owner.mtime;
            match votes {
                0 => (time, votes) = (mtime, 1),
                _ if mtime == time => votes += 1,
                _ => votes -= 1,
            }
        }
        time
    }

    /// Measures directories and gives blocks to what is not all inline.
    fn reserve_blocks(&mut self) -> Result<()> {
        let mut next = self.contents.output.position() / BLOCK;
        for at in 0..self.order.len() {
            let id = self.order[at];
            let node = self.tree.node(id);
            let size = match &node.kind {
                NodeKind::Directory(_) => {
                    let (mut blocks, mut last) = (0, 0);
                    each_block(self.tree, &self.places, id, &mut |block| {
                        blocks += 1;
                        last = block.used() as u64;
                        Ok(())
                    })?;
                    (blocks - 1) * BLOCK + last
                }
                NodeKind::Symlink(target) => target.len() as u64,
                _ => continue,
            };
            let place = &mut self.places[id.index()];
            place.size = size;
            place.block = u32::try_from(next).map_err(|_| too_large())?;
            next += self.blocks_of(id);
        }
        Ok(())
    }

    /// How many blocks a directory or symlink has besides what is inline.
    fn blocks_of(&self, id: NodeId) -> u64 {
        let size = self.places[id.index()].size;
        match self.shape(id).tail {
            0 => size.div_ceil(BLOCK),
            _ => size / BLOCK,
        }
    }

    fn shape(&self, id: NodeId) -> Shape {
        let node = self.tree.node(id);
        let place = &self.places[id.index()];
        let attributes = attributes::size(&node.attributes);
        let (size, block, tail) = match node.kind {
            NodeKind::Directory(_) | NodeKind::Symlink(_) => {
                let last = (place.size % BLOCK) as usize;
                let fits = Inode::EXTENDED + attributes + last <= BLOCK as usize;
                (place.size, place.block, if fits { last } else { 0 })
            }
            NodeKind::File(Content::Written { size, block, tail }) => {
                (size, block, tail.map_or(0, |_| (size % BLOCK) as usize))
            }
            NodeKind::File(Content::Skipped) | NodeKind::Fifo => (0, 0, 0),
            NodeKind::Character(device) | NodeKind::Block(device) => (0, device, 0),
        };
        let small = u32::try_from(size).is_ok()
            && u16::try_from(place.links).is_ok()
            && u16::try_from(node.owner.uid).is_ok()
            && u16::try_from(node.owner.gid).is_ok();
        Shape {
            compact: small && node.owner.mtime == self.time,
            attributes,
            size,
            block,
            tail,
        }
    }

    /// Gives every inode its number: no inline part crosses a block, and no inode that need not.
    fn number(&mut self) -> Result<()> {
        let mut at = u64::from(ROOT) * SLOT;
        for index in 0..self.order.len() {
            let id = self.order[index];
            let length = self.shape(id).length() as u64;
            if at % BLOCK + length > BLOCK {
                at = at.next_multiple_of(BLOCK);
            }
            self.places[id.index()].number = u32::try_from(at / SLOT).map_err(|_| too_large())?;
            at = (at + length).next_multiple_of(SLOT);
        }
        Ok(())
    }

    fn write_blocks(&mut self) -> Result<()> {
        for index in 0..self.order.len() {
            let id = self.order[index];
            let blocks = match self.tree.node(id).kind {
                NodeKind::Directory(_) | NodeKind::Symlink(_) => self.blocks_of(id),
                _ => continue,
            };
            let output = &mut self.contents.output;
            each_part(self.tree, &self.places, id, &mut |at, part| {
                if at < blocks {
                    output.append(part)?;
                    output.align(BLOCK)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn write_inodes(&mut self, metadata: u32) -> Result<()> {
        let start = u64::from(metadata) * BLOCK;
        let mut bytes = Vec::new();
        for index in 0..self.order.len() {
            let id = self.order[index];
            let (node, place, shape) = (self.tree.node(id), self.places[id.index()], self.shape(id));
            let mode = node.owner.mode | node.kind.file_kind().mode;
            bytes.clear();
            let inode = Inode {
                compact: shape.compact,
                layout: match shape.tail {
                    0 => Layout::Plain,
                    _ => Layout::Inline,
                },
                attributes: shape.attributes,
                mode,
                links: place.links,
                size: shape.size,
                block: shape.block,
                serial: index as u32 + 1,
                uid: node.owner.uid,
                gid: node.owner.gid,
                mtime: node.owner.mtime,
            };
            inode.encode(&mut bytes);
            attributes::encode(&node.attributes, &mut bytes);
            if shape.tail > 0 {
                self.append_tail(id, shape.size, &mut bytes)?;
            }
            let at = start + u64::from(place.number) * SLOT;
            let gap = at - self.contents.output.position();
            self.contents.output.zeros(gap)?;
            self.contents.output.append(&bytes)?;
        }
        Ok(())
    }

    /// Appends the last part of what is inline.
    fn append_tail(&self, id: NodeId, size: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let file = match self.tree.node(id).kind {
            NodeKind::File(Content::Written { size, tail, .. }) => tail.map(|tail| (size, tail)),
            _ => None,
        };
        if let Some((size, tail)) = file {
            bytes.extend_from_slice(self.contents.tail(size, tail));
            return Ok(());
        }
        let last = size / BLOCK;
        each_part(self.tree, &self.places, id, &mut |at, part| {
            if at == last {
                bytes.extend_from_slice(part);
            }
            Ok(())
        })
    }
}

type Take<'t> = &'t mut dyn FnMut(u64, &[u8]) -> Result<()>;

/// Calls `take` with each block's number and content of a directory or symlink, the last one not padded.
fn each_part(tree: &Tree, places: &[Place], id: NodeId, take: Take<'_>) -> Result<()> {
    if let NodeKind::Symlink(target) = &tree.node(id).kind {
        return take(0, target);
    }
    let (mut at, mut bytes) = (0, Vec::with_capacity(BLOCK as usize));
    each_block(tree, places, id, &mut |block| {
        bytes.clear();
        block.encode(&mut bytes);
        take(at, &bytes)?;
        at += 1;
        Ok(())
    })
}

/// Fills a directory's blocks with its entries in the order of their names' bytes, `.` and `..` among them.
fn each_block(
    tree: &Tree,
    places: &[Place],
    id: NodeId,
    take: &mut dyn FnMut(&DirectoryBlock<'_>) -> Result<()>,
) -> Result<()> {
    let directory = tree
        .directory(id)
        .ok_or_else(|| Error::new(Kind::Internal, "cannot list what is no directory"))?;
    let parent = places[id.index()].parent.unwrap_or(id);
    let children = directory.children.iter().filter_map(|(name, child)| match child {
        Child::Node(node) => Some((&**name, *node)),
        Child::Whiteout => None,
    });
    let mut children = children.peekable();
    let mut special = [(&b"."[..], id), (&b".."[..], parent)].into_iter().peekable();
    let mut block = DirectoryBlock::default();
    loop {
        let own_first = match (special.peek(), children.peek()) {
            (Some((special, _)), Some((name, _))) => name < special,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let next = if own_first {
            children.next()
        } else {
            special.next()
        };
        let Some((name, node)) = next else {
            break;
        };
        let kind = tree.node(node).kind.file_kind().entry;
        let number = u64::from(places[node.index()].number);
        if !block.push(name, number, kind) {
            take(&block)?;
            block.clear();
            block.push(name, number, kind);
        }
    }
    take(&block)
}

impl Shape {
    fn length(&self) -> usize {
        let inode = if self.compact {
            Inode::COMPACT
        } else {
            Inode::EXTENDED
        };
        inode + self.attributes + self.tail
    }
}

fn too_large() -> Error {
    Error::new(Kind::Exhausted, "cannot write more to a disk").because("it would be larger than 16 TiB")
}
