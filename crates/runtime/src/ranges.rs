//! Host ids for sandboxes of root's: each has 65,536 of its own, so that no two share an owner on the host.
//!
//! Range n begins at 2³⁰ + n · 65,536, far above what distributions give to users (`/etc/subuid`), and ends below 2³¹,
//! where some programs read ids as signed.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use luna_core::engine::IdRange;
use luna_core::name::Id;
use luna_core::{Error, Kind, Result};

use crate::layout::Layout;

const FIRST: u32 = 1 << 30;
const COUNT: u32 = (1 << 30) / IdRange::COUNT;

/// Takes a free range for `id`. The first one tried follows from the id, so a search rarely meets a taken one.
pub(crate) fn take(layout: &Layout, id: &Id) -> Result<IdRange> {
    let start = u32::from_str_radix(&id.as_str()[..7], 16).expect("an id is hexadecimal") % COUNT;
    for step in 0..COUNT {
        let slot = (start + step) % COUNT;
        let path = layout.ranges().join(slot.to_string());
        match fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
        {
            Ok(mut file) => {
                if let Err(error) = file.write_all(id.as_str().as_bytes()) {
                    // A range that names no holder would be taken for ever.
                    let _ = fs::remove_file(&path);
                    return Err(Error::io(format!("cannot write `{}`", path.display()), error));
                }
                return Ok(IdRange {
                    base: FIRST + slot * IdRange::COUNT,
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("cannot write `{}`", path.display()), error)),
        }
    }
    Err(
        Error::new(Kind::Exhausted, "cannot find a free range of host ids")
            .because(format!("{COUNT} sandboxes hold one each"))
            .hint("remove sandboxes with `luna rm` or `luna prune`"),
    )
}

/// Gives a range back. Only the holder's own is removed.
pub(crate) fn release(layout: &Layout, id: &Id, range: IdRange) {
    if range.base < FIRST {
        return;
    }
    let path = layout
        .ranges()
        .join(((range.base - FIRST) / IdRange::COUNT).to_string());
    if fs::read(&path).is_ok_and(|holder| holder == id.as_str().as_bytes()) {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_come_back() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::open(directory.path()).unwrap();
        // The same beginning on purpose: every one after the first collides.
        let ids: Vec<Id> = (0..20u8)
            .map(|n| Id::from_random([7, 7, 7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, n]))
            .collect();
        let ranges: Vec<IdRange> = ids.iter().map(|id| take(&layout, id).unwrap()).collect();
        let mut bases: Vec<u32> = ranges.iter().map(|range| range.base).collect();
        bases.sort_unstable();
        bases.dedup();
        assert_eq!(bases.len(), 20);
        release(&layout, &ids[0], ranges[1]);
        assert_eq!(
            fs::read_dir(layout.ranges()).unwrap().count(),
            20,
            "a stranger's range stays"
        );
        for (id, range) in ids.iter().zip(&ranges) {
            release(&layout, id, *range);
        }
        assert_eq!(fs::read_dir(layout.ranges()).unwrap().count(), 0);
    }
}
