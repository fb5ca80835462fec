//! The disk's file while it grows: bytes in a row, blocks of zeros left out.

use std::fs::File;
use std::os::unix::fs::FileExt;

use luna_core::{Error, Kind, Result};

use super::format::BLOCK;
use crate::files;

const BUFFER: usize = 1 << 20;
static ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Appends to a file that is empty but for its first block, which is written last.
pub(super) struct Output<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Bytes of the buffer in use.
    filled: usize,
    /// Where the buffer's first byte goes; a multiple of the block size.
    start: u64,
}

impl<'a> Output<'a> {
    pub(super) fn new(file: &'a File) -> Output<'a> {
        Output {
            file,
            buffer: vec![0; BUFFER],
            filled: 0,
            start: BLOCK,
        }
    }

    pub(super) fn position(&self) -> u64 {
        self.start + self.filled as u64
    }

    /// The block that begins here; the position is a multiple of the block size.
    pub(super) fn block(&self) -> Result<u32> {
        u32::try_from(self.position() / BLOCK).map_err(|_| too_large())
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.fill(bytes.len() as u64, &mut |room| {
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            Ok(count)
        })
    }

    /// Appends exactly `length` bytes, which `read` puts where it is told, some at a time, never none.
    pub(super) fn fill(
        &mut self,
        length: u64,
        read: &mut dyn FnMut(&mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let mut left = length;
        while left > 0 {
            if self.filled == BUFFER {
                self.flush()?;
            }
            let room = usize::try_from(left)
                .map_or(BUFFER, |left| left.min(BUFFER))
                .min(BUFFER - self.filled);
            let count = read(&mut self.buffer[self.filled..][..room])?;
            self.filled += count;
            left -= count as u64;
        }
        Ok(())
    }

    /// Appends zeros; many cost no more than few.
    pub(super) fn zeros(&mut self, count: u64) -> Result<()> {
        let mut left = count;
        let first = left.min((BLOCK - self.position() % BLOCK) % BLOCK);
        self.append(&ZEROS[..first as usize])?;
        left -= first;
        if left >= BLOCK {
            self.flush()?;
            let skipped = left / BLOCK * BLOCK;
            self.start = self.start.checked_add(skipped).ok_or_else(too_large)?;
            self.block()?;
            left -= skipped;
        }
        self.append(&ZEROS[..left as usize])
    }

    /// Zeros up to the next multiple of `unit`, which divides the block size.
    pub(super) fn align(&mut self, unit: u64) -> Result<()> {
        self.zeros((unit - self.position() % unit) % unit)
    }

    /// Writes out what is complete; a block that has begun stays.
    fn flush(&mut self) -> Result<()> {
        let size = BLOCK as usize;
        let whole = self.filled / size * size;
        let mut at = 0;
        while at < whole {
            let run = |zero: bool| {
                let blocks = self.buffer[at..whole].chunks_exact(size);
                blocks.take_while(|block| (*block == ZEROS) == zero).count() * size
            };
            at += run(true);
            let run = {
                let blocks = self.buffer[at..whole].chunks_exact(size);
                blocks.take_while(|block| *block != ZEROS).count() * size
            };
            if run > 0 {
                self.file
                    .write_all_at(&self.buffer[at..at + run], self.start + at as u64)
                    .map_err(failed)?;
            }
            at += run;
        }
        self.buffer.copy_within(whole..self.filled, 0);
        self.filled -= whole;
        self.start += whole as u64;
        Ok(())
    }

    /// Ends the file, a multiple of the block size long, with `first` as its first block. Blocks as a whole.
    pub(super) fn finish(mut self, first: impl FnOnce(u32) -> Vec<u8>) -> Result<()> {
        self.align(BLOCK)?;
        self.flush()?;
        let first = first(self.block()?);
        self.file.set_len(self.start).map_err(failed)?;
        self.file.write_all_at(&first, 0).map_err(failed)
    }
}

fn failed(error: std::io::Error) -> Error {
    files::storage_error("cannot write a disk".to_owned(), error)
}

fn too_large() -> Error {
    Error::new(Kind::Exhausted, "cannot write more to a disk").because("it would be larger than 16 TiB")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn what_goes_in_comes_out_whatever_the_pieces() {
        let mut file = tempfile::tempfile().unwrap();
        let mut output = Output::new(&file);
        let mut expected = vec![0; BLOCK as usize];
        for (count, byte) in [
            (1, 1),
            (4095, 2),
            (4096, 0),
            (3 << 20, 3),
            (5, 0),
            (8192, 0),
            (7, 4),
        ] {
            match byte {
                0 => output.zeros(count as u64).unwrap(),
                _ => output.append(&vec![byte; count]).unwrap(),
            }
            expected.extend(std::iter::repeat_n(byte, count));
        }
        output.append(&vec![0; 2 << 20]).unwrap();
        expected.resize(expected.len() + (2 << 20), 0);
        let length = expected.len().next_multiple_of(BLOCK as usize);
        expected.resize(length, 0);
        output
            .finish(|blocks| {
                assert_eq!(u64::from(blocks) * BLOCK, length as u64);
                vec![9; BLOCK as usize]
            })
            .unwrap();
        expected[..BLOCK as usize].fill(9);
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert!(found == expected);
        let used = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512;
        assert!(used < (4 << 20), "{used}");
    }
}
