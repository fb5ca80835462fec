//! What the VM engine and the guest's machine say to each other, on a port of their own beside init's channel.
//!
//! ```text
//! frame     length: u32 LE | a postcard value (length bytes, at most MAX_FRAME)
//!
//! machine ──Hello──▶ engine ──Setup──▶ machine ──Ready or Failed──▶ engine
//! then, any number of times                engine ──Command──▶ machine ──its answer──▶ engine
//! once, when everything inside has ended   machine ──Ended──▶ engine, and the machine turns itself off
//! ```
//!
//! Answers come in the order of the commands; `Ended` may come between a command and its answer, which then never comes.
//! The engine believes nothing of it: a frame that is too long or cannot be read ends the machine.

use std::io::{self, Read, Write};
use std::time::Duration;

use luna_core::process::ExitStatus;
use luna_core::units::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::message::{decode, encode};

/// The longest frame; the small files of a sandbox travel in one.
pub const MAX_FRAME: usize = 4 * 1024 * 1024;
/// The version of these messages; both ends are always built together.
pub const MACHINE_VERSION: u16 = 1;

/// Names of the virtio-serial ports.
pub const MACHINE_PORT: &str = "luna.machine";
pub const CHANNEL_PORT: &str = "luna.channel";

/// Serial numbers of the disks.
pub const BASE_DISK: &str = "base";
pub const UPPER_DISK: &str = "upper";
pub const MODULES_DISK: &str = "modules";

/// Everything the machine needs to become one sandbox; the engine's first frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    pub version: u16,
    /// Bytes of the host's generator, credited to the guest's before anything else runs.
    pub entropy: Vec<u8>,
    /// Since 1970, by the host's clock as this was sent.
    pub now: Duration,
    pub hostname: String,
    pub read_only: bool,
    pub files: Vec<SetupFile>,
    /// In the order they are attached.
    pub mounts: Vec<SetupMount>,
    /// Absolute paths at which listening sockets are offered; see `Request::Accept`.
    pub sockets: Vec<String>,
    pub shared_memory: Bytes,
    pub limits: GuestLimits,
    /// The whole of `/dev`, writable kernel settings, modules.
    pub privileged: bool,
}

/// A small file laid over the image's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFile {
    pub target: String,
    pub content: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetupMount {
    /// A virtiofs device by its tag. `file` names the one entry of the volume that is mounted instead of its root.
    Volume {
        tag: String,
        target: String,
        read_only: bool,
        file: Option<String>,
    },
    Tmpfs {
        target: String,
        size: Option<Bytes>,
        mode: u32,
        executable: bool,
    },
}

/// What the guest's own cgroup enforces; the host enforces the machine's as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestLimits {
    pub memory: Option<Bytes>,
    pub pids: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Answered by [`Report::Usage`].
    Usage,
    /// Answered by [`Report::Done`] or [`Report::Failed`].
    Limit(GuestLimits),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    Hello {
        version: u16,
        release: String,
    },
    Ready,
    Failed(SetupFailure),
    Usage(GuestUsage),
    Done,
    /// How init ended, and the last count of everything.
    Ended {
        status: ExitStatus,
        usage: GuestUsage,
    },
}

/// Where the machine's start went wrong, the kernel's number for it, and the path, tag or disk it concerns. The subject is
/// not to be believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupFailure {
    pub stage: SetupStage,
    pub errno: i32,
    pub subject: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetupStage {
    /// The message itself.
    Setup,
    Module,
    Entropy,
    Clock,
    /// The read-only disk is missing or damaged.
    Base,
    /// The writable disk is missing or damaged.
    Upper,
    Overlay,
    Volume,
    Mount,
    File,
    Socket,
    Device,
    Limits,
    Network,
    Process,
}

/// What the sandbox's processes have used, as the guest's kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestUsage {
    pub cpu: Option<Duration>,
    pub memory: Option<Bytes>,
    pub pids: Option<u64>,
    pub read: Option<Bytes>,
    pub written: Option<Bytes>,
    pub oom_kills: Option<u64>,
}

/// Writes one frame.
pub fn write_frame(to: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    let value = encode(value);
    if value.len() > MAX_FRAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut frame = Vec::with_capacity(4 + value.len());
    frame.extend_from_slice(&(value.len() as u32).to_le_bytes());
    frame.extend_from_slice(&value);
    to.write_all(&frame)
}

/// Reads one frame; `None` at an end between frames. Memory is taken as bytes arrive, not as they are promised.
pub fn read_frame<T: DeserializeOwned>(from: &mut dyn Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read(&mut length[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut length[1..])?,
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a frame that is too long",
        ));
    }
    let mut value = Vec::new();
    from.take(length as u64).read_to_end(&mut value)?;
    if value.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&value)
        .map(Some)
        .map_err(|violation| io::Error::new(io::ErrorKind::InvalidData, violation.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_and_lies_do_not() {
        let mut bytes = Vec::new();
        write_frame(&mut bytes, &Command::Usage).unwrap();
        let mut whole = &bytes[..];
        assert_eq!(read_frame::<Command>(&mut whole).unwrap(), Some(Command::Usage));
        assert_eq!(read_frame::<Command>(&mut whole).unwrap(), None);
        assert!(read_frame::<Command>(&mut &bytes[..bytes.len() - 1]).is_err());
        assert!(read_frame::<Command>(&mut &[0xff, 0xff, 0xff, 0xff][..]).is_err());
        assert!(read_frame::<Command>(&mut &[1, 0, 0, 0, 99][..]).is_err());
    }
}
