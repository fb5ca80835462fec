//! Files' contents on their way to the disk: whole blocks at once, short last parts kept until their inode's place is
//! known.
//!
//! A last part of at most [`INLINE`] bytes lies behind its inode, where it costs no block and no second read. Longer ones
//! have a block of their own: kept with the inodes they would thin these out, and whoever only lists files would read
//! them all (docs/decisions/0009).

use luna_core::Result;

use super::format::{BLOCK, Inode};
use super::output::Output;
use super::tree::Content;

/// Bytes of a content's last part that are worth keeping beside the inode.
pub(super) const INLINE: u64 = 1024;
/// Bytes of last parts to keep in memory; what comes after has blocks of its own.
const ROOM: usize = 64 << 20;

/// The disk's file and the last parts that wait.
pub(super) struct Contents<'a> {
    pub(super) output: Output<'a>,
    tails: Vec<u8>,
}

impl<'a> Contents<'a> {
    pub(super) fn new(output: Output<'a>) -> Contents<'a> {
        Contents {
            output,
            tails: Vec::new(),
        }
    }

    /// Takes one file's content of `size` bytes, of which `chunks` (offset and length, ascending) come from `read`, as
    /// [`Output::fill`] calls it; the rest are zeros. The inode's attributes take `attributes` bytes.
    pub(super) fn write(
        &mut self,
        size: u64,
        chunks: &[(u64, u64)],
        attributes: usize,
        read: &mut dyn FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<Content> {
        let last = size % BLOCK;
        let inline = last > 0
            && last <= INLINE
            && (Inode::EXTENDED + attributes) as u64 + last <= BLOCK
            && self.tails.len() + last as usize <= ROOM;
        let block = self.output.block()?;
        let whole = if inline { size - last } else { size };
        let tail = self.tails.len();
        let mut at = 0;
        for (offset, length) in chunks.iter().copied().chain([(size, 0)]) {
            self.zeros(offset - at, whole.saturating_sub(at))?;
            let in_blocks = length.min(whole.saturating_sub(offset));
            self.output.fill(in_blocks, read)?;
            let start = self.tails.len();
            self.tails.resize(start + (length - in_blocks) as usize, 0);
            let mut rest = &mut self.tails[start..];
            while !rest.is_empty() {
                let count = read(rest)?;
                rest = &mut rest[count..];
            }
            at = offset + length;
        }
        self.output.align(BLOCK)?;
        Ok(Content::Written {
            size,
            block,
            tail: inline.then_some(tail as u32),
        })
    }

    /// `count` zeros, of which the first `in_blocks` go to the disk.
    fn zeros(&mut self, count: u64, in_blocks: u64) -> Result<()> {
        let in_blocks = in_blocks.min(count);
        self.output.zeros(in_blocks)?;
        let end = self.tails.len() + (count - in_blocks) as usize;
        self.tails.resize(end, 0);
        Ok(())
    }

    /// The last part of `size % BLOCK` bytes that was kept at `tail`.
    pub(super) fn tail(&self, size: u64, tail: u32) -> &[u8] {
        &self.tails[tail as usize..][..(size % BLOCK) as usize]
    }
}
