//! The times of a layer's directories, kept until the end: writing into a directory changes them.

use std::collections::HashMap;

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use rustix::fs::Timestamps;

/// Bytes of paths to remember: two million directories with paths of 128 bytes each.
const ROOM: usize = 256 << 20;

pub(super) struct Times {
    paths: HashMap<Vec<u8>, Timestamps>,
    room: usize,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            paths: HashMap::new(),
            room: ROOM,
        }
    }
}

impl Times {
    /// The last word on a path counts.
    pub(super) fn set(&mut self, path: &[u8], times: Timestamps) -> Result<()> {
        if let Some(known) = self.paths.get_mut(path) {
            *known = times;
            return Ok(());
        }
        self.room = self.room.checked_sub(path.len()).ok_or_else(|| {
            Error::new(Kind::Exhausted, "cannot unpack more of this layer")
                .because(format!(
                    "the paths of its directories are longer than {} together",
                    Bytes(ROOM as u64)
                ))
                .hint("make the image again with fewer directories, or with shorter paths")
        })?;
        self.paths.insert(path.to_vec(), times);
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Timestamps)> {
        self.paths.iter()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::Timespec;

    use super::*;

    #[test]
    fn what_is_remembered_is_bounded() {
        let at = |tv_sec| Timestamps {
            last_access: Timespec { tv_sec, tv_nsec: 0 },
            last_modification: Timespec { tv_sec, tv_nsec: 0 },
        };
        let mut times = Times {
            room: 5,
            ..Times::default()
        };
        times.set(b"abc", at(1)).unwrap();
        times.set(b"abc", at(2)).unwrap();
        times.set(b"de", at(3)).unwrap();
        assert_eq!(times.set(b"f", at(4)).unwrap_err().kind(), Kind::Exhausted);
        assert_eq!(times.iter().count(), 2);
        assert_eq!(times.paths[&b"abc"[..]].last_access.tv_sec, 2);
    }
}
