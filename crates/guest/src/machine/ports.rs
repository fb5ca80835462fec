//! Virtio-serial ports, found by the names the VMM gave them.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

const CLASS: &str = "/sys/class/virtio-ports";
/// The kernel learns of ports by messages that arrive after the device is there.
const PATIENCE: Duration = Duration::from_secs(20);

/// Opens the port called `name`, blocking, as soon as it is there.
pub(super) fn open(name: &str) -> Result<OwnedFd, Errno> {
    let since = Instant::now();
    loop {
        if let Some(device) = find(name) {
            return rustix::fs::open(&device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        }
        if since.elapsed() > PATIENCE {
            return Err(Errno::NODEV);
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn find(name: &str) -> Option<PathBuf> {
    std::fs::read_dir(CLASS).ok()?.flatten().find_map(|entry| {
        let found = std::fs::read_to_string(entry.path().join("name")).ok()?;
        (found.trim_end() == name).then(|| PathBuf::from("/dev").join(entry.file_name()))
    })
}
