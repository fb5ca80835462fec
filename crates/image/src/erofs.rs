//! Read-only disks: a file system image in EROFS that Linux 5.4 and newer mount, written without root and without
//! mounting anything. An image's layers become the root disk of a machine ([`crate::Store::disk`]); a directory becomes
//! a disk by [`from_directory`].
//!
//! ```text
//! caller's thread                              writing thread
//! blob ─▶ hash ─▶ decompress ─▶ hash ─▶ channel ─▶ Archive ─▶ layer ─▶ merge     topmost layer first
//!                                                              └─▶ contents ─▶ output      …then layout
//! ```
//! Layers are read topmost first, so it is known of every file whether something hides it before its content would be
//! written. Contents go to the disk as they come; inodes and names stay in memory (some 200 bytes each) and are written
//! last. A disk shows what an overlay of the unpacked layers shows, with these wanted differences: it has the image's own
//! device nodes, owners and attributes even where an unprivileged user could not make them; a file's links are those that
//! can be seen; and directories that no layer describes have the time of what they were made for.
//!
//! The same layers give the same disk, bit for bit. [`format`](self) is specified in `erofs/format.rs`.

mod attributes;
mod content;
mod directory;
mod format;
mod layer;
mod layout;
mod merge;
mod output;
mod tree;

use std::fs::File;
use std::io::Read;

use luna_core::{Error, Kind, Result};

use crate::layer::Limits;
use crate::layer::archive::Archive;
use content::Contents;
use layer::{LayerReader, Wanted};
use layout::Writer;
use output::Output;
use tree::{NodeId, Tree};

pub use directory::from_directory;

/// Builds one disk from the archives of an image's layers, topmost first.
pub(crate) struct DiskBuilder<'a> {
    tree: Tree,
    contents: Contents<'a>,
    merged: Option<NodeId>,
    limits: &'a Limits,
}

/// What the last layer still owes: contents that turned out to be visible.
#[must_use = "a layer that owes contents must be read again"]
pub(crate) struct Owed(Wanted);

impl Owed {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> DiskBuilder<'a> {
    /// `file` is empty and only this builder's.
    pub(crate) fn new(file: &'a File, limits: &'a Limits) -> DiskBuilder<'a> {
        DiskBuilder {
            tree: Tree::new(limits.entries),
            contents: Contents::new(Output::new(file)),
            merged: None,
            limits,
        }
    }

    /// Puts a layer under those that were added.
    pub(crate) fn add<R: Read>(&mut self, archive: &mut Archive<R>) -> Result<Owed> {
        let reader = LayerReader::new(&mut self.tree, &mut self.contents, self.merged)?;
        let (root, wanted) = reader.read(archive, self.limits)?;
        match self.merged {
            None => self.merged = Some(root),
            Some(merged) => merge::merge(&mut self.tree, merged, root),
        }
        Ok(Owed(wanted))
    }

    /// Reads the layer that was added last once more, for what it owes.
    pub(crate) fn settle<R: Read>(&mut self, archive: &mut Archive<R>, owed: &Owed) -> Result<()> {
        layer::read_wanted(&mut self.tree, &mut self.contents, archive, &owed.0)
    }

    /// Writes directories and inodes. The file is complete but not flushed.
    pub(crate) fn finish(self, uuid: [u8; 16]) -> Result<()> {
        let root = self
            .merged
            .ok_or_else(|| Error::new(Kind::Internal, "cannot make a disk of nothing"))?;
        Writer::new(&self.tree, self.contents).write(root, uuid)
    }
}

/// Whether `file` is a disk of this module's, as long as it should be: the damage that a power cut does is seen.
pub(crate) fn is_whole(mut file: &File) -> std::io::Result<bool> {
    let mut block = vec![0; format::BLOCK as usize];
    if let Err(error) = file.read_exact(&mut block) {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Ok(false),
            _ => Err(error),
        };
    }
    let length = file.metadata()?.len();
    Ok(format::Superblock::length(&block) == Some(length))
}

/// A UUID made from `bytes` alone, so that the same disk always has the same (RFC 9562, version 8).
pub(crate) fn uuid(bytes: &[u8; 16]) -> [u8; 16] {
    let mut uuid = *bytes;
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

#[cfg(test)]
mod tests;
