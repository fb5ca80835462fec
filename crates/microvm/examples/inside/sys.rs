//! What this program does with memory and its user.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::ptr;

use rustix::fs::{Gid, Uid};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

/// The calling thread becomes this user, for good.
pub(crate) fn become_user(uid: Uid, gid: Gid) -> io::Result<()> {
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Writes `bytes` at `offset` through a shared mapping of the first `length` bytes.
pub(crate) fn write_mapped(file: &File, length: usize, offset: usize, bytes: &[u8]) -> io::Result<()> {
    assert!(offset + bytes.len() <= length);
    // SAFETY: a new mapping at an address of the kernel's choice; the write lies within it, as just checked, and nothing uses
    // it after it is unmapped.
    unsafe {
        let memory = rustix::mm::mmap(
            ptr::null_mut(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            file,
            0,
        )?;
        let at = memory.cast::<u8>().add(offset);
        ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
        rustix::mm::msync(memory, length, MsyncFlags::SYNC)?;
        rustix::mm::munmap(memory, length)?;
    }
    Ok(())
}
