//! Disks and kernels that are not what they were: found, named, and the hint can be obeyed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use contract::bounded;
use contract::luna::{LIMIT, Luna};

use super::{directory, three_lines};

fn overwrite(path: &Path, from: u64, bytes: &[u8]) {
    let file = OpenOptions::new()
        .write(true)
        .open(path)
        .expect("the file is there");
    file.write_all_at(bytes, from).expect("the file is ours");
}

pub(crate) fn a_kernel(luna: &Luna) {
    let kernels = luna.path("root/kernels");
    let kernel = only(&kernels);
    let image = ["vmlinux", "bzImage", "Image"]
        .map(|name| kernel.join(name))
        .into_iter()
        .find(|path| path.exists())
        .expect("a kernel has an image");
    overwrite(&image, 100_000, &[0xcc; 4096]);
    let said = luna.run(&[], &["true"]);
    assert_eq!(said.code(), Some(125), "{said:?}");
    let name = image
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    three_lines(&said, "kernel", &name, "luna kernel");
    assert_eq!(luna.ids(), Vec::<String>::new(), "nothing was made");
}

fn only(directory: &Path) -> PathBuf {
    fs::read_dir(directory)
        .expect("it is there")
        .flatten()
        .map(|entry| entry.path())
        .next()
        .expect("something is in it")
}

/// It is made again from the layers, which are verified; nobody has to know.
pub(crate) fn a_base_disk(luna: &Luna) {
    assert!(luna.run(&[], &["true"]).success());
    let disks = luna.path("root/store/disks");
    let disk = fs::read_dir(&disks)
        .expect("a disk was made")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "erofs"))
        .expect("a disk was made");
    let whole = fs::read(&disk).expect("it is ours");
    overwrite(&disk, 1024, &[0; 128]);
    assert_eq!(luna.says(&[], "echo mended"), "mended");
    assert!(fs::read(&disk).is_ok_and(|bytes| bytes == whole), "superblock");
    let half = OpenOptions::new().write(true).open(&disk).expect("it is ours");
    half.set_len(whole.len() as u64 / 2).expect("it is ours");
    assert_eq!(luna.says(&[], "echo mended"), "mended");
    assert!(fs::read(&disk).is_ok_and(|bytes| bytes == whole), "length");
}

pub(crate) fn an_upper_disk(luna: &Luna) {
    let script = "if [ -f /kept ]; then cat /kept; else echo kept > /kept; fi";
    let words = luna.words("run", &["--name", "torn"], &["sh", "-c", script]);
    luna.must(&words);
    let disk = directory(luna, "torn").join("upper.ext4");
    overwrite(&disk, 1024, &[0; 1024]);
    let said = luna.luna(&["start", "--attach", "torn"]);
    assert_eq!(said.code(), Some(125), "{said:?}");
    let hint = format!("`e2fsck -fy {}`", disk.display());
    three_lines(&said, "cannot start `torn`", "writable disk", &hint);
    // Whoever obeys the hint has the data back.
    let mended = bounded::finish(Command::new("e2fsck").arg("-fy").arg(&disk), LIMIT);
    assert!(
        mended.as_ref().is_ok_and(|said| said.code() == Some(1)),
        "{mended:?}"
    );
    assert_eq!(luna.must(&["start", "--attach", "torn"]).trim(), "kept");
}
