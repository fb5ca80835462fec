//! What archives may do and what hostile ones try: each attack with a canary beside the target.

use std::io::Cursor;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::tarball::{Item, TarWriter};

/// A target directory with a canary next to it.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("target")).unwrap();
        std::fs::create_dir(directory.path().join("outside")).unwrap();
        std::fs::write(directory.path().join("outside/canary"), "sings").unwrap();
        Place { directory }
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("target")
    }

    fn unpack_with(&self, bytes: &[u8], limits: &Limits) -> Result<Unpacked> {
        let target: OwnedFd = std::fs::File::open(self.target()).unwrap().into();
        unpack(&mut Cursor::new(bytes), target, false, limits)
    }

    fn unpack(&self, bytes: &[u8]) -> Result<Unpacked> {
        let answer = self.unpack_with(bytes, &Limits::default());
        self.check_canary();
        answer
    }

    fn check_canary(&self) {
        let canary = self.directory.path().join("outside/canary");
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "sings");
        let metadata = canary.metadata().unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o644, 1));
        let outside = self.directory.path().join("outside");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 2);
        assert_eq!(outside.metadata().unwrap().mode() & 0o7777, 0o755);
    }
}

type Written<'a> = (Item<'a>, &'a [u8]);

fn archive(items: &[Written<'_>]) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for (item, data) in items {
        writer.append(item, &mut &**data).unwrap();
    }
    writer.finish().unwrap()
}

fn file<'a>(path: &'a str, content: &'a str) -> Written<'a> {
    (Item::file(path, content.len() as u64), content.as_bytes())
}

fn of(kind: EntryType, path: &str) -> Written<'_> {
    let item = Item {
        kind,
        mode: 0o755,
        ..Item::file(path, 0)
    };
    (item, b"")
}

fn link<'a>(kind: EntryType, path: &'a str, target: &'a str) -> Written<'a> {
    let (item, data) = of(kind, path);
    (
        Item {
            link: target.as_bytes(),
            ..item
        },
        data,
    )
}

fn directory(path: &str) -> Written<'_> {
    of(EntryType::Directory, path)
}

fn symlink<'a>(path: &'a str, target: &'a str) -> Written<'a> {
    link(EntryType::Symlink, path, target)
}

fn hard_link<'a>(path: &'a str, target: &'a str) -> Written<'a> {
    link(EntryType::Link, path, target)
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(length);
    Some(value)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn an_honest_layer_arrives_as_it_was() {
    if !is_root() {
        println!("skipped: setting owners needs root");
        return;
    }
    let place = Place::new();
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs = [
        (b"security.capability".to_vec(), capability.to_vec()),
        (b"user.note".to_vec(), b"two\nlines".to_vec()),
        (b"trusted.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
        (b"trusted.other".to_vec(), b"x".to_vec()),
    ];
    let (mut setuid, content) = file("bin/su", "elf");
    setuid.mode = 0o4755;
    setuid.uid = 1;
    setuid.gid = 2;
    setuid.mtime = 1_234_567;
    setuid.xattrs = &xattrs;
    let (mut bin, nothing) = directory("bin/");
    bin.mtime = 77;
    let bytes = archive(&[
        (bin, nothing),
        (setuid, content),
        hard_link("bin/su2", "bin/su"),
        symlink("bin/link", "../../../etc/passwd"),
        file(&long, "deep"),
        of(EntryType::Fifo, "pipe"),
        file("/leading/slash", "kept inside"),
    ]);
    let unpacked = place.unpack(&bytes).unwrap();
    assert_eq!(unpacked.diff_id, Digest::of(&bytes));
    assert_eq!(unpacked.entries, 7);
    let target = place.target();
    let su = target.join("bin/su").metadata().unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid(), su.mtime(), su.nlink()),
        (0o4755, 1, 2, 1_234_567, 2)
    );
    assert_eq!(target.join("bin").metadata().unwrap().mtime(), 77);
    assert_eq!(
        attribute(&target.join("bin/su"), "security.capability").unwrap(),
        capability
    );
    assert_eq!(
        attribute(&target.join("bin/su"), "user.note").unwrap(),
        b"two\nlines"
    );
    for refused in ["trusted.overlay.opaque", "user.overlay.opaque", "trusted.other"] {
        assert_eq!(attribute(&target.join("bin/su"), refused), None, "{refused}");
    }
    assert_eq!(
        std::fs::read_link(target.join("bin/link")).unwrap(),
        Path::new("../../../etc/passwd")
    );
    assert_eq!(std::fs::read_to_string(target.join(&long)).unwrap(), "deep");
    assert!(target.join("pipe").metadata().unwrap().file_type().is_fifo());
    assert!(target.join("leading/slash").is_file());
}

#[test]
fn whiteouts_become_overlays_own() {
    if !is_root() {
        println!("skipped: trusted attributes need root");
        return;
    }
    let place = Place::new();
    let bytes = archive(&[
        directory("etc/"),
        file("etc/.wh.gone", ""),
        file("var/.wh..wh..opq", ""),
        file("var/new", "x"),
        // Whiteout, then a directory of that name: the lower one must stay hidden.
        file(".wh.replaced", ""),
        file("replaced/inside", "x"),
        // And in the other order.
        directory("kept/"),
        file(".wh.kept", ""),
        file("both", "stays"),
        file(".wh.both", ""),
        file(".wh..wh.plnk", "aufs"),
    ]);
    place.unpack(&bytes).unwrap();
    let target = place.target();
    let gone = target.join("etc/gone").symlink_metadata().unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    for opaque in ["var", "replaced", "kept"] {
        assert_eq!(
            attribute(&target.join(opaque), "trusted.overlay.opaque").unwrap(),
            b"y",
            "{opaque}"
        );
    }
    assert_eq!(std::fs::read_to_string(target.join("both")).unwrap(), "stays");
    assert!(!target.join(".wh..wh.plnk").exists());
    assert_eq!(attribute(&target.join("etc"), "trusted.overlay.opaque"), None);

    // And back: the same directory as a layer says the same things.
    let mut again = Vec::new();
    crate::diff::write_tar(&target, 0, false, None, &mut again).unwrap();
    let copy = Place::new();
    copy.unpack(&again).unwrap();
    let mut third = Vec::new();
    crate::diff::write_tar(&copy.target(), 0, false, None, &mut third).unwrap();
    assert_eq!(Digest::of(&again), Digest::of(&third));
}

#[test]
fn a_path_that_climbs_is_refused() {
    for path in [
        "../outside/canary",
        "a/../../outside/canary",
        "/../outside/canary",
        "..",
        "a/..",
    ] {
        let error = Place::new().unpack(&archive(&[file(path, "evil")])).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{path}");
    }
}

#[test]
fn a_path_too_deep_for_anybody_is_refused_in_few_words() {
    let deep = |levels: usize| format!("{}f", "d/".repeat(levels - 1));
    let bytes = archive(&[file(&deep(512), "x")]);
    assert_eq!(Place::new().unpack(&bytes).unwrap().bytes, 1);
    let bytes = archive(&[file(&deep(513), "x")]);
    let error = Place::new().unpack(&bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.message().chars().count() < 300, "{error:?}");
}

#[test]
fn a_symlink_leads_nowhere_outside() {
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    let outside = outside.to_str().unwrap();
    for target in [outside, "../outside", "/"] {
        let place = Place::new();
        let bytes = archive(&[
            symlink("way", target),
            file("way/canary", "evil"),
            directory("way/made"),
        ]);
        // Resolved inside the root or refused: never outside.
        let _ = place.unpack(&bytes);
        place.check_canary();
    }
    // A last component is replaced, not followed.
    let canary = format!("{outside}/canary");
    let place_bytes = archive(&[symlink("file", &canary), file("file", "mine")]);
    place.unpack(&place_bytes).unwrap();
    assert_eq!(
        std::fs::read_to_string(place.target().join("file")).unwrap(),
        "mine"
    );
}

#[test]
fn a_symlink_then_a_directory_of_the_same_name_changes_nothing_outside() {
    // CVE-2026-33056: the directory's mode was set through the symlink.
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    let mut entry = directory("way");
    entry.0.mode = 0o777;
    place
        .unpack(&archive(&[
            symlink("way", outside.to_str().unwrap()),
            entry,
            file("way/x", "x"),
        ]))
        .unwrap();
    let way = place.target().join("way");
    assert!(way.symlink_metadata().unwrap().is_dir());
    assert!(way.join("x").is_file());
}

#[test]
fn hard_links_out_are_refused() {
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    let canary = outside.join("canary");
    let bytes = archive(&[hard_link("stolen", canary.to_str().unwrap())]);
    assert_eq!(place.unpack(&bytes).unwrap_err().kind(), Kind::Corrupt);
    let bytes = archive(&[hard_link("stolen", "../outside/canary")]);
    assert_eq!(place.unpack(&bytes).unwrap_err().kind(), Kind::Corrupt);
    let bytes = archive(&[
        symlink("way", outside.to_str().unwrap()),
        hard_link("stolen", "way/canary"),
    ]);
    assert_eq!(place.unpack(&bytes).unwrap_err().kind(), Kind::Corrupt);
    let inside = archive(&[
        file("real/file", "x"),
        symlink("way", "real"),
        hard_link("stolen", "way/file"),
    ]);
    assert_eq!(Place::new().unpack(&inside).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn a_hard_link_to_a_symlink_links_the_symlink() {
    let place = Place::new();
    let outside = place.directory.path().join("outside/canary");
    let bytes = archive(&[
        symlink("way", outside.to_str().unwrap()),
        hard_link("again", "way"),
        file("again", "mine"),
    ]);
    place.unpack(&bytes).unwrap();
    assert_eq!(
        std::fs::read_to_string(place.target().join("again")).unwrap(),
        "mine"
    );
}

#[test]
fn whiteouts_through_symlinks_are_refused() {
    let place = Place::new();
    let outside = place.directory.path().join("outside");
    for name in ["way/.wh.canary", "way/.wh..wh..opq"] {
        let bytes = archive(&[symlink("way", outside.to_str().unwrap()), file(name, "")]);
        assert_eq!(place.unpack(&bytes).unwrap_err().kind(), Kind::Corrupt, "{name}");
    }
    for name in [".wh.", ".wh..", ".wh..."] {
        let error = Place::new().unpack(&archive(&[file(name, "")])).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{name}");
    }
}

#[test]
fn two_sizes_for_one_file_are_refused() {
    // CVE-2025-62518, CVE-2026-33055: a PAX size that one reader believes and another does not hides entries.
    let mut smuggled = archive(&[file("inner", "hidden")]);
    smuggled.truncate(1024);
    let mut header = tar::Header::new_ustar();
    header.set_path("outer").unwrap();
    header.set_size(smuggled.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let mut extension = tar::Header::new_ustar();
    extension.set_path("pax").unwrap();
    let record = b"9 size=0\n";
    extension.set_entry_type(EntryType::XHeader);
    extension.set_size(record.len() as u64);
    extension.set_cksum();
    let mut bytes = extension.as_bytes().to_vec();
    bytes.extend_from_slice(record);
    bytes.resize(1024, 0);
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(&smuggled);
    bytes.extend_from_slice(&[0; 1024]);
    let place = Place::new();
    let error = place.unpack(&bytes).unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(
        error.causes().concat().contains("PAX record says 0 bytes"),
        "{error:?}"
    );
    assert!(!place.target().join("inner").exists());
}

#[test]
fn bombs_are_refused() {
    let limits = Limits {
        entries: 100,
        bytes: 1 << 20,
        ratio: 400,
    };
    let names: Vec<String> = (0..200).map(|number| format!("d{number}")).collect();
    let many: Vec<Written<'_>> = names.iter().map(|name| directory(name)).collect();
    let error = Place::new().unpack_with(&archive(&many), &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    let big = vec![7; 2 << 20];
    let item = Item::file("big", big.len() as u64);
    let error = Place::new()
        .unpack_with(&archive(&[(item, &big)]), &limits)
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
    assert!(error.hint_text().unwrap().contains("LUNA_LAYER_LIMIT"));
    // Zeros after the archive's end count as well.
    let mut tail = archive(&[file("a", "x")]);
    tail.resize(4 << 20, 0);
    let error = Place::new().unpack_with(&tail, &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
}

#[test]
fn a_sparse_bomb_counts_with_its_holes() {
    let limits = Limits {
        bytes: 1 << 30,
        ..Limits::default()
    };
    let mut header = tar::Header::new_gnu();
    header.set_path("hole").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.as_gnu_mut().unwrap().set_real_size(1 << 40);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&[0; 1024]);
    let error = Place::new().unpack_with(&bytes, &limits).unwrap_err();
    assert_eq!(error.kind(), Kind::Exhausted);
}

#[test]
fn devices_are_what_they_are_and_never_whiteouts() {
    let mut device = of(EntryType::Char, "dev/null");
    device.0.device = (1, 3);
    let place = Place::new();
    let unpacked = place.unpack(&archive(&[device])).unwrap();
    if unpacked.skipped_devices == 0 {
        let made = place.target().join("dev/null").metadata().unwrap();
        assert_eq!(made.rdev(), rustix::fs::makedev(1, 3));
    }
    let error = Place::new()
        .unpack(&archive(&[of(EntryType::Char, "etc")]))
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt);
}

#[test]
fn ids_no_sandbox_has_are_refused() {
    let mut owned = file("a", "x");
    owned.0.uid = 70_000;
    let error = Place::new().unpack(&archive(&[owned])).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.causes().concat().contains("70000"), "{error:?}");
}

#[test]
fn truncated_and_damaged_archives_are_corrupt() {
    let bytes = archive(&[file("a", "hello"), directory("b")]);
    for length in [100, 512, 514, 1500] {
        let error = Place::new().unpack(&bytes[..length]).unwrap_err();
        assert_eq!(error.kind(), Kind::Corrupt, "{length}");
    }
    let mut damaged = bytes.clone();
    damaged[3] ^= 1;
    assert_eq!(Place::new().unpack(&damaged).unwrap_err().kind(), Kind::Corrupt);
    assert_eq!(
        Place::new().unpack(b"this is no archive").unwrap_err().kind(),
        Kind::Corrupt
    );
    assert_eq!(Place::new().unpack(b"").unwrap().entries, 0);
}

#[test]
fn kinds_replace_each_other() {
    let place = Place::new();
    let bytes = archive(&[
        file("a/b/c", "x"),
        file("a", "now a file"),
        directory("a"),
        symlink("a/l", "nowhere"),
        directory("a/l"),
        hard_link("a/l2", "a/../a/l"),
    ]);
    // The last one names `..`.
    assert!(place.unpack(&bytes).is_err());
    assert!(place.target().join("a/l").symlink_metadata().unwrap().is_dir());
    assert!(!place.target().join("a/b").exists());
}

/// GNU tar is the reference for the forms it writes: long names, sparse files old and new.
#[test]
fn what_gnu_tar_writes_is_read() {
    let source = tempfile::tempdir().unwrap();
    let path = source.path();
    let long = format!("{}/{}", "a".repeat(90), "b".repeat(150));
    std::fs::create_dir(path.join("a".repeat(90))).unwrap();
    std::fs::write(path.join(&long), "long").unwrap();
    let holes = std::fs::File::create(path.join("holes")).unwrap();
    for at in [
        0u64,
        1 << 20,
        5 << 20,
        9 << 20,
        13 << 20,
        17 << 20,
        21 << 20,
        30 << 20,
    ] {
        std::os::unix::fs::FileExt::write_all_at(&holes, &[b'x'; 5000], at).unwrap();
    }
    holes.set_len(40 << 20).unwrap();
    std::fs::set_permissions(path.join("holes"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let forms: [&[&str]; 5] = [
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix"],
    ];
    for form in forms {
        let output = match std::process::Command::new("tar")
            .args(form)
            .args(["-C", path.to_str().unwrap(), "-cf", "-", "."])
            .output()
        {
            Ok(output) => output,
            Err(error) => {
                println!("skipped: no tar here: {error}");
                return;
            }
        };
        assert!(output.status.success());
        let place = Place::new();
        place.unpack(&output.stdout).unwrap();
        let arrived = place.target().join("holes");
        assert_eq!(
            std::fs::read(&arrived).unwrap(),
            std::fs::read(path.join("holes")).unwrap(),
            "{form:?}"
        );
        assert_eq!(arrived.metadata().unwrap().mode() & 0o7777, 0o640);
        if form.contains(&"--sparse") {
            assert!(
                arrived.metadata().unwrap().blocks() * 512 < 2 << 20,
                "{form:?}: holes were filled"
            );
        }
        assert_eq!(
            std::fs::read_to_string(place.target().join(&long)).unwrap(),
            "long"
        );
    }
}

fn entry_strategy() -> impl Strategy<Value = (u8, String, String, u16)> {
    let path =
        "(\\.\\./|/|\\./|a/|b/|\\.wh\\.|l/){0,4}(a|b|l|\\.\\.|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq|canary)?";
    let target = "(\\.\\./|/){0,3}(outside|outside/canary|a|b|l|\\.|/etc)?";
    (0u8..6, path, target, any::<u16>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn no_sequence_of_entries_reaches_outside(entries in prop::collection::vec(entry_strategy(), 1..12)) {
        let mut writer = TarWriter::new(Vec::new());
        for (kind, path, target, mode) in &entries {
            let kind = [
                EntryType::Regular,
                EntryType::Directory,
                EntryType::Symlink,
                EntryType::Link,
                EntryType::Fifo,
                EntryType::Char,
            ][usize::from(*kind)];
            let item = Item {
                kind,
                link: target.as_bytes(),
                mode: u32::from(*mode) & 0o7777 | 0o700,
                size: if kind == EntryType::Regular { 4 } else { 0 },
                device: (1, 3),
                ..Item::file(path, 0)
            };
            writer.append(&item, &mut &b"evil"[..]).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let place = Place::new();
        let _ = place.unpack(&bytes);
    }

    #[test]
    fn mutated_archives_never_panic_or_reach_outside(
        changes in prop::collection::vec((0usize..6000, any::<u8>()), 1..8),
    ) {
        let mut bytes = archive(&[
            directory("a"),
            file("a/file", "content"),
            symlink("a/link", "../../outside"),
            hard_link("a/hard", "a/file"),
            file(&"n".repeat(150), "long"),
            file("a/.wh.gone", ""),
        ]);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            // Keep the checksums true, so that the change is seen by what comes after them.
            let start = at / 512 * 512;
            let mut header = tar::Header::from_byte_slice(&bytes[start..start + 512]).clone();
            header.set_cksum();
            bytes[start..start + 512].copy_from_slice(header.as_bytes());
        }
        let place = Place::new();
        let _ = place.unpack(&bytes);
        let _ = scan(&bytes);
    }
}
