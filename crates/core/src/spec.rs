//! What the user asked for, before anything is decided: the first of the five nouns. Stored as JSON with the sandbox.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::name::Name;
use crate::process::Rlimit;
use crate::units::{Bytes, MilliCpus};

/// One sandbox as asked for. Fields that are `Option` were left to the image or to Luna's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// A reference or an image id (or an unambiguous beginning of one); the disk's file where `boot` names one.
    pub image: String,
    /// A disk image with a system of its own, in the image's place.
    pub boot: Option<BootRequest>,
    /// Picked by the runtime where absent.
    pub name: Option<Name>,
    pub wall: WallRequest,
    pub program: Program,
    pub hostname: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub resources: Resources,
    pub machine: MachineRequest,
    pub mounts: Vec<Mount>,
    pub read_only: bool,
    pub network: Network,
    pub ports: Vec<PortMapping>,
    pub extra_hosts: Vec<(String, IpAddr)>,
    pub dns: Vec<IpAddr>,
    pub security: Security,
    pub restart: RestartPolicy,
    pub health: HealthRequest,
    pub stop: Stop,
    pub log: LogLimits,
    /// Remove the sandbox and its anonymous volumes when it ends.
    pub remove: bool,
}

impl Spec {
    /// A spec that asks for `image` and nothing else.
    pub fn new(image: impl Into<String>) -> Spec {
        Spec {
            image: image.into(),
            boot: None,
            name: None,
            wall: WallRequest::default(),
            program: Program::default(),
            hostname: None,
            labels: BTreeMap::new(),
            resources: Resources::default(),
            machine: MachineRequest::default(),
            mounts: Vec::new(),
            read_only: false,
            network: Network::None,
            ports: Vec::new(),
            extra_hosts: Vec::new(),
            dns: Vec::new(),
            security: Security::default(),
            restart: RestartPolicy::No,
            health: HealthRequest::FromImage,
            stop: Stop::default(),
            log: LogLimits::default(),
            remove: false,
        }
    }
}

/// Which wall, and how low it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WallRequest {
    pub isolation: Isolation,
    pub require: Option<Floor>,
}

/// `--isolation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    #[default]
    Auto,
    Container,
    Vm,
}

/// `--require`: the least a wall must offer. Refused where it cannot be had, never lowered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Floor {
    OwnKernel,
    HardwareVirtualization,
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Floor::OwnKernel => "own-kernel",
            Floor::HardwareVirtualization => "hardware-virtualization",
        })
    }
}

/// The main process as asked for; absent parts come from the image's config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// `Some(vec![])` clears the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    pub command: Vec<String>,
    /// A variable without a value was already resolved against the caller's environment.
    pub env: Vec<(String, String)>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub groups: Vec<String>,
    pub terminal: bool,
    /// Keep standard input open (`-i`).
    pub stdin: bool,
}

/// Limits. `None` is "no limit asked for"; a limit that was asked for and cannot be enforced is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    pub memory: Option<Bytes>,
    /// Memory and swap together, docker's `--memory-swap`; equal to `memory` means no swap.
    pub memory_swap: Option<SwapLimit>,
    pub cpus: Option<MilliCpus>,
    /// A list as the kernel reads it: `0-2,4`.
    pub cpuset: Option<String>,
    pub pids: Option<PidsLimit>,
    /// 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// Size of `/dev/shm`; 64 MiB where absent.
    pub shm: Option<Bytes>,
    pub rlimits: Vec<Rlimit>,
}

/// What only a machine has; behind the container wall it means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineRequest {
    /// A kernel's name; the best one that is here where absent.
    pub kernel: Option<String>,
    /// How large the writable disk may grow.
    pub disk: Option<Bytes>,
}

/// `--boot`: a disk image that brings its own kernel and init, started by firmware as on a computer of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootRequest {
    /// Absolute. It is read and never written.
    pub disk: PathBuf,
    pub firmware: Firmware,
}

/// What starts a disk image's boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firmware {
    /// What computers of before 2012 or so have; only on x86-64.
    Bios,
    Uefi,
}

impl Default for Firmware {
    /// The one that starts most disk images of this processor.
    fn default() -> Firmware {
        if cfg!(target_arch = "x86_64") {
            Firmware::Bios
        } else {
            Firmware::Uefi
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwapLimit {
    Unlimited,
    Total(Bytes),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PidsLimit {
    Unlimited,
    At(u32),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mount {
    /// A directory, file or socket of the host's; `source` is absolute.
    Bind {
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
    },
    /// A named volume, created on first use and filled from the image's directory at `target`; `None` is anonymous.
    Volume {
        name: Option<Name>,
        target: PathBuf,
        read_only: bool,
    },
    Tmpfs {
        target: PathBuf,
        size: Option<Bytes>,
        mode: Option<u32>,
        executable: bool,
    },
}

impl Mount {
    pub fn target(&self) -> &std::path::Path {
        match self {
            Mount::Bind { target, .. } | Mount::Volume { target, .. } | Mount::Tmpfs { target, .. } => target,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A loopback of its own and nothing else; ports still work, through init.
    #[default]
    None,
    /// The host's network namespace: no wall at all in this respect, and said aloud.
    Host,
}

/// `-p [address:]host:sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortMapping {
    pub address: IpAddr,
    /// 0 asks for any free port.
    pub host: u16,
    pub sandbox: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Security {
    pub cap_add: Vec<String>,
    pub cap_drop: Vec<String>,
    /// All of the guest kernel's powers; only behind a VM.
    pub privileged: bool,
    /// `--security-opt no-new-privileges=false` lets setuid programs work.
    pub allow_new_privileges: bool,
    /// `--security-opt nested-userns`: the four seccomp rules a browser's own sandbox needs.
    pub nested_user_namespaces: bool,
    pub seccomp: Seccomp,
    pub devices: Vec<Device>,
    /// `--security-opt apparmor=PROFILE`, `label=…`: given to the host's security module, an error where it has none.
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Seccomp {
    #[default]
    Default,
    Unconfined,
}

/// `--device host[:sandbox[:rwm]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read: bool,
    pub write: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    #[default]
    No,
    /// At most this many times in a row; 0 is without end.
    OnFailure(u32),
    Always,
    UnlessStopped,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthRequest {
    #[default]
    FromImage,
    Disabled,
    Check(HealthCheck),
}

/// A command run inside the sandbox; healthy while it exits with 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub command: Vec<String>,
    pub interval: Duration,
    pub timeout: Duration,
    pub start_period: Duration,
    pub retries: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// A name or number; the image's or `SIGTERM` where absent.
    pub signal: Option<String>,
    /// How long after it `SIGKILL` follows; 10 s where absent.
    pub grace: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLimits {
    /// A log file is rotated when it grows past this.
    pub size: Bytes,
    /// Files kept, the one being written included.
    pub files: u32,
}

impl Default for LogLimits {
    fn default() -> LogLimits {
        LogLimits {
            size: Bytes::mebibytes(10),
            files: 3,
        }
    }
}
