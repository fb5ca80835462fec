//! Disks mounted by the kernel, beside an overlay of the same layers unpacked: what differs is an error.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;
use rustix::fs::SeekFrom;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use tar::EntryType;

use super::*;
use crate::tarball::{Item, TarWriter};

/// A file system mounted for this process alone, nowhere in the tree.
struct Mounted(OwnedFd);

impl Mounted {
    fn new(kind: &str, options: &[(&str, &[u8])]) -> rustix::io::Result<Mounted> {
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
        for (key, value) in options {
            rustix::mount::fsconfig_set_string(&context, *key, *value)?;
        }
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
        rustix::mount::fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map(Mounted)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/", self.0.as_raw_fd()))
    }
}

/// Layers in directories of their own, and a disk of them. Bottom first.
struct Stack {
    scratch: tempfile::TempDir,
    count: usize,
    /// Seconds, before anything was unpacked.
    started: i64,
}

impl Stack {
    /// Unpacks each archive and makes the disk; both must be possible, or neither.
    fn new(archives: &[Vec<u8>]) -> Option<Stack> {
        let scratch = tempfile::tempdir().unwrap();
        let started = scratch.path().metadata().unwrap().mtime();
        let mut unpacked = Ok(());
        for (number, archive) in archives.iter().enumerate() {
            let directory = scratch.path().join(format!("{number}"));
            std::fs::create_dir(&directory).unwrap();
            let target = File::open(directory).unwrap().into();
            let mut source = Cursor::new(archive);
            let done = crate::layer::unpack(&mut source, target, false, &Limits::default());
            unpacked = unpacked.and(done.map(drop));
        }
        std::fs::create_dir(scratch.path().join("none")).unwrap();
        let made = make(archives, &scratch.path().join("disk"));
        assert_eq!(
            unpacked.is_ok(),
            made.is_ok(),
            "a directory: {unpacked:?}, a disk: {made:?}"
        );
        made.ok()?;
        let count = archives.len();
        Some(Stack {
            scratch,
            count,
            started,
        })
    }

    fn disk(&self) -> PathBuf {
        self.scratch.path().join("disk")
    }

    fn overlay(&self) -> Mounted {
        let layers = (0..self.count).rev().map(|number| number.to_string());
        let names = layers.chain(["none".to_owned()]);
        let paths: Vec<_> = names.map(|name| self.scratch.path().join(name)).collect();
        mount_overlay(&paths)
    }

    /// Mounts both and compares them; checks the disk with `fsck.erofs` where that is installed.
    fn compare(&self) {
        let disk = mount_disk(&self.disk()).unwrap();
        compare(&self.overlay().path(), &disk.path(), self.started);
        check(&self.disk());
    }
}

fn make(archives: &[Vec<u8>], path: &Path) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .unwrap();
    let limits = Limits::default();
    let mut builder = DiskBuilder::new(&file, &limits);
    for archive in archives.iter().rev() {
        let owed = builder.add(&mut Archive::new(&archive[..]))?;
        if !owed.is_empty() {
            builder.settle(&mut Archive::new(&archive[..]), &owed)?;
        }
    }
    builder.finish([7; 16])?;
    assert!(is_whole(&File::open(path).unwrap()).unwrap());
    Ok(())
}

fn mount_disk(path: &Path) -> rustix::io::Result<Mounted> {
    Mounted::new("erofs", &[("source", path.as_os_str().as_bytes())])
}

/// Topmost first, at least two.
fn mount_overlay(layers: &[PathBuf]) -> Mounted {
    let layers = layers
        .iter()
        .map(|path| ("lowerdir+", path.as_os_str().as_bytes()));
    let options: Vec<_> = [("source", &b"test"[..])].into_iter().chain(layers).collect();
    Mounted::new("overlay", &options).unwrap()
}

fn check(disk: &Path) {
    match Command::new("fsck.erofs").arg(disk).output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(_) => println!("not checked: `fsck.erofs` is not installed"),
    }
}

/// Whether this host mounts what these tests compare.
fn can_mount() -> bool {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return false;
    }
    let scratch = tempfile::tempdir().unwrap();
    let disk = scratch.path().join("disk");
    make(&[archive(&[])], &disk).unwrap();
    match mount_disk(&disk) {
        Ok(_) => true,
        Err(error) => {
            println!("skipped: this kernel does not mount a file with EROFS: {error}");
            false
        }
    }
}

/// All that can be seen of one entry.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    size: Option<u64>,
    device: u64,
    mtime: Option<(i64, i64)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    target: Option<PathBuf>,
    /// The first path of those that are the same file.
    first: Vec<u8>,
}

type Listing = BTreeMap<Vec<u8>, Seen>;

fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut first: BTreeMap<u64, (Vec<u8>, u64, u64)> = BTreeMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(std::ffi::OsStr::from_bytes(&path));
        let Ok(metadata) = (match path.is_empty() {
            true => full.metadata(),
            false => full.symlink_metadata(),
        }) else {
            // Overlayfs lists a whiteout in a directory that only one layer has, and knows nothing of it otherwise.
            continue;
        };
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name();
                let child = [&path[..], b"/", name.as_bytes()].concat();
                waiting.push(child.strip_prefix(b"/").unwrap_or(&child).to_vec());
            }
        } else {
            let known = first
                .entry(metadata.ino())
                .or_insert_with(|| (path.clone(), 0, metadata.nlink()));
            known.0 = known.0.clone().min(path.clone());
            known.1 += 1;
        }
        let seen = Seen {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            size: (!metadata.is_dir()).then_some(metadata.size()),
            device: metadata.rdev(),
            mtime: Some((metadata.mtime(), metadata.mtime_nsec())),
            attributes: attributes_of(&full),
            target: metadata.is_symlink().then(|| std::fs::read_link(&full).unwrap()),
            first: metadata.ino().to_le_bytes().to_vec(),
        };
        listing.insert(path, seen);
    }
    for (path, seen) in &mut listing {
        let inode = u64::from_le_bytes(seen.first[..].try_into().unwrap());
        match first.get(&inode) {
            Some((name, names, links)) => {
                // An overlay also counts names that are hidden.
                assert!(names <= links, "{} has {links} links", path.escape_ascii());
                seen.first.clone_from(name);
            }
            None => seen.first.clone_from(path),
        }
    }
    listing
}

fn attributes_of(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let length = rustix::fs::llistxattr(path, &mut [0; 0][..]).unwrap();
    let mut names = vec![0; length];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect();
    found.sort();
    found
}

/// Fails on the first thing that both do not show alike. Directories whose time is `started` or later were described by
/// no layer: the overlay has the time of unpacking there.
fn compare(overlay: &Path, disk: &Path, started: i64) {
    let (mut expected, mut found) = (list(overlay), list(disk));
    for (path, seen) in &mut expected {
        let Some(other) = found.get_mut(path) else {
            panic!("`{}` is missing: {seen:?}", path.escape_ascii());
        };
        if seen.size.is_none() && seen.mtime.is_some_and(|(seconds, _)| seconds >= started) {
            (seen.mtime, other.mtime) = (None, None);
        }
        assert_eq!(seen, other, "`{}`", path.escape_ascii());
        if seen.mode & 0o170_000 == 0o100_000 {
            let name = std::ffi::OsStr::from_bytes(path);
            same_content(&overlay.join(name), &disk.join(name));
        }
    }
    for path in found.keys() {
        assert!(
            expected.contains_key(path),
            "`{}` is too much",
            path.escape_ascii()
        );
    }
    for (path, seen) in &found {
        if seen.size.is_some() {
            let names = found
                .values()
                .filter(|other| other.first == seen.first && other.size.is_some());
            let links = disk
                .join(std::ffi::OsStr::from_bytes(path))
                .symlink_metadata()
                .unwrap()
                .nlink();
            // Quadratic, so only where there is something to count.
            if links > 1 {
                assert_eq!(names.count() as u64, links, "`{}`", path.escape_ascii());
            }
        }
    }
}

/// Reads what `left` has data for; what it has holes for is zeros in both, which is looked at up to 64 MiB.
fn same_content(left: &Path, right: &Path) {
    let (left, right) = (File::open(left).unwrap(), File::open(right).unwrap());
    let size = left.metadata().unwrap().len();
    let same = |from: u64, to: u64| {
        let (mut one, mut other) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let mut at = from;
        while at < to {
            let count = (to - at).min(1 << 20) as usize;
            left.read_exact_at(&mut one[..count], at).unwrap();
            right.read_exact_at(&mut other[..count], at).unwrap();
            assert!(one[..count] == other[..count], "contents differ near {at}");
            at += count as u64;
        }
    };
    if size <= 64 << 20 {
        return same(0, size);
    }
    let mut at = 0;
    while let Ok(data) = rustix::fs::seek(&left, SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&left, SeekFrom::Hole(data)).unwrap();
        same(data, hole);
        at = hole;
    }
    same(size - 4097, size);
}

type Written<'a> = (Item<'a>, &'a [u8]);

fn archive(items: &[Written<'_>]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (item, data) in items {
        writer.append(item, &mut &**data).unwrap();
    }
    writer.finish().unwrap()
}

fn file<'a>(path: &'a str, content: &'a [u8]) -> Written<'a> {
    (Item::file(path, content.len() as u64), content)
}

fn of(kind: EntryType, path: &str, mode: u32) -> Written<'_> {
    let item = Item {
        kind,
        mode,
        mtime: 1_600_000_000,
        ..Item::file(path, 0)
    };
    (item, b"")
}

fn directory(path: &str) -> Written<'_> {
    of(EntryType::Directory, path, 0o755)
}

fn link<'a>(kind: EntryType, path: &'a str, target: &'a [u8]) -> Written<'a> {
    let (item, data) = of(kind, path, 0o644);
    (Item { link: target, ..item }, data)
}

fn hard<'a>(path: &'a str, target: &'a str) -> Written<'a> {
    link(EntryType::Link, path, target.as_bytes())
}

fn device(kind: EntryType, path: &str, numbers: (u32, u32)) -> Written<'_> {
    let (item, data) = of(kind, path, 0o620);
    let device = numbers;
    (Item { device, ..item }, data)
}

fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, bits, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&bits.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

#[test]
fn one_rich_layer() {
    if !can_mount() {
        return;
    }
    let long = "n".repeat(255);
    let deep = format!("{}end", "d/".repeat(500));
    let target = vec![b'x'; 4095];
    let short = vec![b'y'; 1000];
    let sizes = [0, 1, 1023, 1024, 1025, 4095, 4096, 4097, 8192, 9000, 5 << 20];
    let contents: Vec<Vec<u8>> = sizes
        .iter()
        .map(|size| (0..*size).map(|at| (at / 7) as u8 | 1).collect())
        .collect();
    let names: Vec<String> = sizes.iter().map(|size| format!("sizes/{size}")).collect();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let none = u32::MAX;
    let entries = acl(&[
        (1, 6, none),
        (2, 7, 1000),
        (4, 4, none),
        (16, 5, none),
        (32, 4, none),
    ]);
    let xattrs = [
        (b"security.capability".to_vec(), capability.to_vec()),
        (b"system.posix_acl_access".to_vec(), entries.clone()),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.empty".to_vec(), Vec::new()),
        (b"user.note".to_vec(), b"two\nlines\0".to_vec()),
    ];
    let large = [(b"user.large".to_vec(), vec![b'l'; 3000])];
    let defaults = [(b"system.posix_acl_default".to_vec(), entries)];
    let mut items = vec![
        directory("./"),
        of(EntryType::Directory, "tmp", 0o1777),
        of(EntryType::Directory, "mail", 0o2775),
        directory("sizes"),
        directory("-before-dot"),
        directory("+plus"),
        file(&long, b"long"),
        file(&deep, b"deep"),
        link(EntryType::Symlink, "link", b"../../etc/passwd"),
        link(EntryType::Symlink, "longest", &target),
        link(EntryType::Symlink, "longer", &short),
        of(EntryType::Fifo, "pipe", 0o600),
        device(EntryType::Char, "null", (1, 3)),
        device(EntryType::Block, "disk", (259, 0x12345)),
        device(EntryType::Char, "most", (4095, (1 << 20) - 1)),
        hard("mail/null", "null"),
        hard("tmp/disk", "disk"),
    ];
    items.extend(
        names
            .iter()
            .zip(&contents)
            .map(|(name, content)| file(name, content)),
    );
    items.extend([hard("mail/one", "sizes/1"), hard("another", "sizes/9000")]);
    let (mut su, data) = file("su", b"elf");
    (su.mode, su.uid, su.gid, su.xattrs) = (0o4755, 65_535, 3, &xattrs);
    items.push((su, data));
    let (mut noted, data) = file("noted", &contents[2]);
    noted.xattrs = &large;
    items.push((noted, data));
    let (mut shared, data) = directory("shared");
    shared.xattrs = &defaults;
    items.push((shared, data));
    let (mut later, data) = directory("sizes/");
    (later.mode, later.xattrs) = (0o700, &xattrs[3..]);
    items.push((later, data));
    let odd: Vec<Vec<u8>> = (1..=255)
        .filter(|byte| *byte != b'/' && *byte != b'.')
        .map(|byte| vec![byte])
        .collect();
    for name in &odd {
        let item = Item {
            path: name,
            ..Item::file("", 1)
        };
        items.push((item, &name[..]));
    }
    Stack::new(&[archive(&items)]).unwrap().compare();
}

#[test]
fn layers_over_each_other() {
    if !can_mount() {
        return;
    }
    let one = vec![b'1'; 6000];
    let bottom = archive(&[
        directory("./"),
        directory("a"),
        file("a/hidden", &one),
        hard("a/kept", "a/hidden"),
        hard("b/kept", "a/hidden"),
        directory("opaque"),
        file("opaque/gone", b"gone"),
        directory("opaque/deep"),
        file("opaque/deep/gone", b"gone"),
        file("becomes/directory", b"file"),
        directory("becomes/file"),
        file("becomes/file/gone", b"gone"),
        link(EntryType::Symlink, "lib", b"usr/lib"),
        file("usr/lib/library", b"old"),
        file("merged/below", b"below"),
        file("twice", b"first"),
        of(EntryType::Directory, "modes", 0o700),
    ]);
    let middle = archive(&[
        file("a/.wh.hidden", b""),
        directory("opaque"),
        file("opaque/.wh..wh..opq", b""),
        file("opaque/new", b"new"),
        directory("becomes/directory"),
        file("becomes/directory/inside", b"in"),
        file("becomes/file", b"file"),
        file("merged/middle", b"middle"),
        file("lib/library", b"in a directory of its own"),
        file("twice", b"second"),
        file("whited/out", b"x"),
        of(EntryType::Directory, "modes", 0o2755),
        file("modes/implied/file", b"in a directory that takes the group"),
    ]);
    let top = archive(&[
        file(".wh.whited", b""),
        file("whited/again", b"seen"),
        file("merged/.wh.middle", b""),
        file("merged/top", b"top"),
        file("twice", b"third"),
        file("becomes/.wh.nothing", b""),
        link(EntryType::Symlink, "to", b"../merged"),
        file("to/through", b"through a link"),
        hard("merged/.wh.linked", "merged/.wh.middle"),
    ]);
    for archives in [
        vec![bottom.clone()],
        vec![bottom.clone(), middle.clone()],
        vec![bottom, middle, top],
    ] {
        // The last entry of the top layer is a whiteout named through a hard link's target, which is an error in both.
        if let Some(stack) = Stack::new(&archives) {
            stack.compare();
        }
    }
}

#[test]
fn times_and_holes() {
    if !can_mount() {
        return;
    }
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |records: &[(&str, &str)], path: &str, data: &[u8]| {
        builder
            .append_pax_extensions(records.iter().map(|(key, value)| (*key, value.as_bytes())))
            .unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(5);
        builder.append_data(&mut header, path, data).unwrap();
    };
    append(&[("mtime", "1234567890.123456789")], "fine", b"x");
    append(&[("mtime", "-1000000.5")], "before", b"x");
    append(&[("mtime", "5000000000")], "after", b"x");
    let map = "0,5,4294967296,4096,5368709110,10";
    let sparse = [("GNU.sparse.size", "5368709120"), ("GNU.sparse.map", map)];
    append(&sparse, "sparse", &[7; 4111]);
    append(
        &[("GNU.sparse.size", "700"), ("GNU.sparse.map", "10,5,600,1")],
        "small",
        b"123456",
    );
    append(
        &[("GNU.sparse.size", "4800"), ("GNU.sparse.map", "4090,10,4700,1")],
        "tail",
        b"0123456789x",
    );
    append(
        &[("GNU.sparse.size", "9000"), ("GNU.sparse.map", "9000,0")],
        "empty",
        b"",
    );
    let archive = builder.into_inner().unwrap();
    let stack = Stack::new(&[archive]).unwrap();
    stack.compare();
    let used = stack.disk().metadata().unwrap().blocks() * 512;
    assert!(used < 1 << 20, "{used} bytes for a file of holes");
}

#[test]
fn a_hundred_thousand_names() {
    if !can_mount() {
        return;
    }
    let names: Vec<String> = (0..100_000)
        .map(|number| format!("many/{:x}", number * 7919))
        .collect();
    let items: Vec<_> = names.iter().map(|name| file(name, b"")).collect();
    Stack::new(&[archive(&items)]).unwrap().compare();
}

/// The image `LUNA_TEST_IMAGE` of the store `LUNA_TEST_STORE`, where these are set: a real one, whole.
#[test]
fn an_image_of_a_store() {
    let variable = std::env::var_os;
    let (Some(store), Some(image)) = (variable("LUNA_TEST_STORE"), variable("LUNA_TEST_IMAGE")) else {
        println!("skipped: LUNA_TEST_STORE and LUNA_TEST_IMAGE are not set");
        return;
    };
    if !can_mount() {
        return;
    }
    let store = crate::Store::open(Path::new(&store), false).unwrap();
    let image = store.get(image.to_str().unwrap()).unwrap();
    let layers = store.tree(&image, &|_| {}).unwrap();
    let disk = store.disk(&image, &|_| {}).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let paths: Vec<_> = layers.iter().cloned().chain([empty.path().to_owned()]).collect();
    let overlay = mount_overlay(&paths);
    // What a layer does not describe has the time at which it was unpacked, the oldest of which is the lowest layer's.
    let unpacked = layers
        .iter()
        .map(|path| path.join("../..").metadata().unwrap().ctime() - 86_400);
    compare(
        &overlay.path(),
        &mount_disk(&disk).unwrap().path(),
        unpacked.min().unwrap(),
    );
    check(&disk);
}

#[test]
fn the_same_layers_give_the_same_disk() {
    let archives = [
        archive(&[file("a/b", b"1"), file("c", &[3; 5000]), hard("d", "c")]),
        archive(&[file("a/.wh.b", b""), file("e", b"")]),
    ];
    let scratch = tempfile::tempdir().unwrap();
    let disks = ["one", "two"].map(|name| {
        let path = scratch.path().join(name);
        make(&archives, &path).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(disks[0] == disks[1]);
    check(&scratch.path().join("one"));
}

#[test]
fn a_directory_becomes_a_disk() {
    if !can_mount() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let tree = scratch.path().join("tree");
    std::fs::create_dir_all(tree.join("lib/modules")).unwrap();
    std::fs::write(tree.join("lib/modules/a.ko"), [1; 10_000]).unwrap();
    std::fs::hard_link(tree.join("lib/modules/a.ko"), tree.join("b.ko")).unwrap();
    std::os::unix::fs::symlink("lib/modules", tree.join("link")).unwrap();
    let disk = scratch.path().join("disk");
    from_directory(&tree, &disk).unwrap();
    let mounted = mount_disk(&disk).unwrap();
    compare(&tree, &mounted.path(), i64::MAX);
    check(&disk);
    assert!(from_directory(&tree.join("nothing"), &disk).is_err());
    assert!(is_whole(&File::open(&disk).unwrap()).unwrap());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2);
}

#[test]
fn what_is_too_much_is_refused() {
    let limits = Limits {
        entries: 3,
        ..Limits::default()
    };
    let scratch = tempfile::tempfile().unwrap();
    let many = archive(&[file("a/b/c/d/e", b"")]);
    let error = DiskBuilder::new(&scratch, &limits)
        .add(&mut Archive::new(&many[..]))
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Exhausted);
    let limits = Limits {
        bytes: 10,
        ..Limits::default()
    };
    let large = archive(&[file("a", b"0123456789x")]);
    let error = DiskBuilder::new(&scratch, &limits)
        .add(&mut Archive::new(&large[..]))
        .err()
        .unwrap();
    assert_eq!(error.kind(), Kind::Exhausted);
}

/// One entry of a random archive; few names, so that they meet.
#[derive(Clone, Debug)]
struct Random {
    kind: u8,
    path: Vec<u8>,
    other: Vec<u8>,
    size: usize,
    mode: u32,
}

fn random_path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d"]), 1..4)
        .prop_map(|parts| parts.join("/").into_bytes())
}

fn random_entry() -> impl Strategy<Value = Random> {
    let mode = prop::sample::select(vec![0o644, 0o755, 0o4711, 0o2775, 0o1777, 0]);
    let size = prop::sample::select(vec![0, 1, 700, 1024, 4096, 5000, 5200]);
    let fields = (0u8..24, random_path(), random_path(), size, mode);
    fields.prop_map(|(kind, path, other, size, mode)| Random {
        kind,
        path,
        other,
        size,
        mode,
    })
}

fn random_archive(entries: &[Random]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (number, entry) in entries.iter().enumerate() {
        let split = entry
            .path
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let hidden = [&entry.path[..split], b".wh.", &entry.path[split..]].concat();
        let opaque = [&entry.path[..], b"/.wh..wh..opq"].concat();
        let up = [b"../", &entry.other[..]].concat();
        let (kind, path, link): (_, &[u8], &[u8]) = match entry.kind {
            0..6 => (EntryType::Regular, &entry.path, b""),
            6..13 => (EntryType::Directory, &entry.path, b""),
            13 => (EntryType::Symlink, &entry.path, &entry.other),
            14 => (EntryType::Symlink, &entry.path, &up),
            15 => (EntryType::Link, &entry.path, &entry.other),
            16 => (EntryType::Fifo, &entry.path, b""),
            17 => (EntryType::Char, &entry.path, b""),
            18..22 => (EntryType::Regular, &hidden, b""),
            _ => (EntryType::Regular, &opaque, b""),
        };
        let size = if kind == EntryType::Regular { entry.size } else { 0 };
        let item = Item {
            path,
            kind,
            link,
            mode: entry.mode,
            uid: number as u32,
            gid: entry.kind.into(),
            mtime: 1_000_000 + (number as u64 % 3),
            size: size as u64,
            device: (4, number as u32 + 1),
            xattrs: &[],
        };
        writer.append(&item, &mut &vec![number as u8; size][..]).unwrap();
    }
    writer.finish().unwrap()
}

#[test]
fn random_layers_show_what_an_overlay_shows() {
    if !can_mount() {
        return;
    }
    let layers = prop::collection::vec(prop::collection::vec(random_entry(), 0..10), 1..4);
    let made = std::sync::atomic::AtomicU32::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 150,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&layers, |layers| {
        let archives: Vec<_> = layers.iter().map(|entries| random_archive(entries)).collect();
        if let Some(stack) = Stack::new(&archives) {
            stack.compare();
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    });
    outcome.unwrap();
    // Else the entries are so wild that nothing is tested.
    let made = made.into_inner();
    assert!(made > 40, "only {made} of 150");
}
