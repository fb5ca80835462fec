//! Kernel modules: what one says it needs, and the order in which a boot loads them.
//!
//! A module's `.modinfo` section is a list of `key=value` strings, each ended by a zero byte; `depends=` names modules,
//! separated by commas (Linux, `scripts/mod/modpost.c`). Names are compared with `-` read as `_`, as modprobe does.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use luna_core::{Error, Kind, Result};

/// What a boot needs from a modular kernel: the machine's devices, then the file systems init mounts. One that is built
/// into the kernel is skipped; one that is neither is an error unless it is marked as optional.
pub(crate) const BOOT: [(&str, Need); 22] = [
    ("virtio_pci", Need::Must),
    ("virtio_blk", Need::Must),
    ("virtio_console", Need::Must),
    ("virtio_rng", Need::May),
    ("virtio_balloon", Need::May),
    ("virtio_net", Need::May),
    ("pvpanic_pci", Need::May),
    // ext4 asks for the checksum by another name, which only modprobe could resolve.
    ("crc32c_generic", Need::May),
    ("ext4", Need::Must),
    ("erofs", Need::Must),
    ("overlay", Need::Must),
    ("fuse", Need::May),
    ("virtiofs", Need::May),
    ("9pnet_virtio", Need::May),
    ("9p", Need::May),
    ("af_packet", Need::May),
    ("unix", Need::May),
    ("ipv6", Need::May),
    ("tun", Need::May),
    ("veth", Need::May),
    ("loop", Need::May),
    ("binfmt_misc", Need::May),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Must,
    /// The sandbox boots without it and lacks what it does.
    May,
}

/// The most bytes of one module.
const MAXIMUM: u64 = 64 << 20;

/// Every module below a tree, by name, and the names of what is built in.
#[derive(Debug, Default)]
pub(crate) struct Index {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Index {
    /// Reads the directory of modules `tree` (`/lib/modules/RELEASE`).
    pub(crate) fn read(tree: &Path) -> Result<Index> {
        let mut index = Index::default();
        index.walk(tree, 0)?;
        if let Ok(list) = fs::read_to_string(tree.join("modules.builtin")) {
            index.builtin = list.lines().map(|line| name_of(Path::new(line))).collect();
        }
        Ok(index)
    }

    /// Whether there is such a module, or the kernel has it built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        let name = normal(name);
        self.files.contains_key(&name) || self.builtin.contains(&name)
    }

    fn walk(&mut self, directory: &Path, depth: u32) -> Result<()> {
        let fail = |e| Error::io(format!("cannot read `{}`", directory.display()), e);
        if depth > 32 {
            return Ok(());
        }
        for entry in fs::read_dir(directory).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let kind = entry.file_type().map_err(fail)?;
            let path = entry.path();
            if kind.is_dir() {
                self.walk(&path, depth + 1)?;
            } else if kind.is_file() && is_module(&path) {
                self.files.insert(name_of(&path), path);
            }
        }
        Ok(())
    }

    /// The files of `wanted` and of all they depend on, each after what it needs.
    pub(crate) fn order(
        &self,
        wanted: &[(&str, Need)],
        depends: &dyn Fn(&Path) -> Result<Vec<String>>,
    ) -> Result<Vec<PathBuf>> {
        let mut order = Vec::new();
        let mut seen = BTreeMap::new();
        for (name, need) in wanted {
            let name = normal(name);
            if *need == Need::May && !self.files.contains_key(&name) {
                continue;
            }
            self.visit(&name, depends, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        name: &str,
        depends: &dyn Fn(&Path) -> Result<Vec<String>>,
        seen: &mut BTreeMap<String, bool>,
        order: &mut Vec<PathBuf>,
    ) -> Result<()> {
        let fail = |why: &str| {
            Error::new(Kind::Corrupt, format!("cannot order the kernel module `{name}`"))
                .because(why.to_owned())
        };
        match seen.get(name) {
            Some(true) => return Ok(()),
            Some(false) => return Err(fail("it depends on itself")),
            None => {}
        }
        let Some(path) = self.files.get(name) else {
            if self.builtin.contains(name) {
                seen.insert(name.to_owned(), true);
                return Ok(());
            }
            return Err(fail("it is neither a module of this kernel nor built into it"));
        };
        seen.insert(name.to_owned(), false);
        for needed in depends(path)? {
            self.visit(&normal(&needed), depends, seen, order)?;
        }
        seen.insert(name.to_owned(), true);
        order.push(path.clone());
        Ok(())
    }
}

/// Whether it is a module, compressed or not.
fn is_module(path: &Path) -> bool {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// `kernel/fs/9p/9p.ko.xz` is `9p`.
fn name_of(path: &Path) -> String {
    let name = path
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    normal(name.split_once(".ko").map_or(&*name, |(name, _)| name))
}

fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The modules that the module file `path` says it depends on.
pub(crate) fn depends(path: &Path) -> Result<Vec<String>> {
    let fail = |e| Error::io(format!("cannot read the kernel module `{}`", path.display()), e);
    if fs::metadata(path).map_err(fail)?.len() > MAXIMUM {
        return Err(fail(std::io::Error::other("it is implausibly large")));
    }
    needs(path, &fs::read(path).map_err(fail)?)
}

/// The modules that the module `bytes`, read from `path`, says it depends on.
pub(crate) fn needs(path: &Path, bytes: &[u8]) -> Result<Vec<String>> {
    let section = modinfo(bytes).ok_or_else(|| {
        Error::new(
            Kind::Corrupt,
            format!("cannot read the kernel module `{}`", path.display()),
        )
        .because("it is not a 64-bit ELF file with a `.modinfo` section")
    })?;
    Ok(section
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}

/// The section of that name of a little-endian ELF64 file (System V ABI, "Sections").
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        let value = bytes
            .iter()
            .rev()
            .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, each, count, names) = (number(40, 8)?, number(58, 2)?, number(60, 2)?, number(62, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(each)?);
    let content = |index: usize| {
        let at = header(index)?;
        let (start, size) = (number(at.checked_add(24)?, 8)?, number(at.checked_add(32)?, 8)?);
        elf.get(start..start.checked_add(size)?)
    };
    let strings = content(names)?;
    (0..count).find_map(|index| {
        let name = strings.get(number(header(index)?, 4)?..)?;
        name.starts_with(b".modinfo\0").then(|| content(index)).flatten()
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An ELF file with nothing but `.modinfo` in it.
    pub(crate) fn module(info: &[u8]) -> Vec<u8> {
        let strings = b"\0.modinfo\0.shstrtab\0";
        let mut elf = vec![0u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let put = |elf: &mut Vec<u8>, at: usize, value: u64, size: usize| {
            elf[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        };
        let info_at = elf.len();
        elf.extend_from_slice(info);
        let strings_at = elf.len();
        elf.extend_from_slice(strings);
        let table = elf.len();
        elf.resize(table + 3 * 64, 0);
        for (index, name, at, size) in [(1, 1u64, info_at, info.len()), (2, 10, strings_at, strings.len())] {
            put(&mut elf, table + index * 64, name, 4);
            put(&mut elf, table + index * 64 + 24, at as u64, 8);
            put(&mut elf, table + index * 64 + 32, size as u64, 8);
        }
        put(&mut elf, 40, table as u64, 8);
        put(&mut elf, 58, 64, 2);
        put(&mut elf, 60, 3, 2);
        put(&mut elf, 62, 2, 2);
        elf
    }

    #[test]
    fn a_module_says_what_it_needs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.ko");
        fs::write(
            &path,
            module(b"license=GPL\0depends=virtio,virtio_ring\0name=a\0"),
        )
        .unwrap();
        assert_eq!(depends(&path).unwrap(), ["virtio", "virtio_ring"]);
        fs::write(&path, module(b"depends=\0")).unwrap();
        assert!(depends(&path).unwrap().is_empty());
    }

    #[test]
    fn hostile_modules_do_no_harm() {
        let whole = module(b"depends=x\0");
        for length in 0..whole.len() {
            let _ = modinfo(&whole[..length]);
        }
        for at in 0..whole.len() {
            let mut bent = whole.clone();
            bent[at] = 0xff;
            let _ = modinfo(&bent);
        }
        assert!(modinfo(&whole[..whole.len() / 2]).is_none());
        let mut far = whole;
        far[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(modinfo(&far).is_none());
    }

    fn index(files: &[&str], builtin: &[&str]) -> Index {
        Index {
            files: files
                .iter()
                .map(|name| (normal(name), PathBuf::from(format!("{name}.ko"))))
                .collect(),
            builtin: builtin.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let index = index(
            &["virtio", "virtio_ring", "virtio-pci", "ext4", "jbd2"],
            &["mbcache"],
        );
        let needs = |path: &Path| {
            Ok(match path.to_str().unwrap() {
                "virtio-pci.ko" => vec!["virtio-ring".to_owned(), "virtio".to_owned()],
                "virtio_ring.ko" => vec!["virtio".to_owned()],
                "ext4.ko" => vec!["jbd2".to_owned(), "mbcache".to_owned()],
                _ => Vec::new(),
            })
        };
        let order = |wanted: &[(&str, Need)]| {
            index.order(wanted, &needs).map(|order| {
                order
                    .iter()
                    .map(|path| path.to_string_lossy().into_owned())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(
            order(&[
                ("virtio_pci", Need::Must),
                ("ext4", Need::Must),
                ("9p", Need::May)
            ])
            .unwrap(),
            [
                "virtio.ko",
                "virtio_ring.ko",
                "virtio-pci.ko",
                "jbd2.ko",
                "ext4.ko"
            ]
        );
        assert!(order(&[("9p", Need::Must)]).is_err());
        let circle = |_: &Path| Ok(vec!["jbd2".to_owned()]);
        assert!(index.order(&[("jbd2", Need::Must)], &circle).is_err());
    }
}
