//! The engine contract: a bundle with nothing left to decide goes in, a running instance comes out.
//!
//! ```text
//! spec ──decide──▶ decision ──prepare──▶ bundle ──Engine::start──▶ instance ──wait──▶ exit status
//! ```

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::capability::Capabilities;
use crate::host::EngineReport;
use crate::name::Id;
use crate::process::ExitStatus;
use crate::spec::{Resources, Seccomp};
use crate::units::Bytes;
use crate::{Error, Result};

/// Builds one kind of wall.
pub trait Engine: Send + Sync {
    fn profile(&self) -> EngineProfile;

    /// What this engine needs and whether it is here: tried, never assumed.
    fn probe(&self) -> EngineReport;

    /// Starts init behind the wall. On error nothing is left behind. When this returns, init is running and waits on
    /// its channel for the first message.
    fn start(&self, bundle: Bundle) -> Result<Box<dyn Instance>>;

    /// Removes what a killed supervisor could not: everything of `id`'s that outlives its processes (cgroups). Called
    /// only when no instance of `id` is alive; nothing to remove is no error.
    fn reclaim(&self, id: &Id) -> Result<()>;
}

/// A running sandbox's wall. Drop kills the guest and releases everything.
pub trait Instance: Send {
    /// The host's end of init's channel: a stream socket. Taken once; a second call is an error.
    fn channel(&mut self) -> Result<OwnedFd>;
    /// Blocks until what was written behind the wall is where it stays, `patience` has passed, or nothing more can be
    /// written. Called when the main process has ended and init is about to.
    fn settle(&mut self, patience: Duration);
    /// Blocks until init is gone. After this the instance is dead and may be dropped.
    fn wait(&mut self) -> Result<ExitStatus>;
    /// A handle another thread may use while `wait` blocks.
    fn control(&self) -> Box<dyn Control>;
}

/// Boots disk images with a system of their own, behind a wall with a kernel of its own.
pub trait SystemEngine: Engine {
    /// Starts the machine; its firmware runs when this returns. On error nothing is left behind but `bundle.upper`.
    fn boot(&self, bundle: SystemBundle) -> Result<Box<dyn System>>;
}

/// A running system that is not Luna's: no init to talk to, only what a computer has outside. Drop kills it.
pub trait System: Send {
    /// The serial console, both directions: a stream socket. Taken once; a second call is an error.
    fn console(&mut self) -> Result<OwnedFd>;
    /// Blocks until the machine is off. One that was switched off from inside ends with code 0.
    fn wait(&mut self) -> Result<ExitStatus>;
    /// A handle another thread may use while `wait` blocks.
    fn control(&self) -> Arc<dyn SystemControl>;
}

/// What can be done to a running system from any thread, beside what any wall can.
pub trait SystemControl: Control {
    /// A TCP connection to a port of the guest's that its bundle names: a connected stream socket.
    fn connect(&self, port: u16) -> Result<OwnedFd>;
    /// Presses the power button. What the guest makes of it is the guest's.
    fn power_off(&self) -> Result<()>;
}

/// What can be done to a running instance from any thread. Outliving the instance is harmless: calls then fail.
pub trait Control: Send + Sync {
    /// Kills everything behind the wall, at once. Killing the dead is no error.
    fn kill(&self) -> Result<()>;
    fn pause(&self) -> Result<()>;
    fn resume(&self) -> Result<()>;
    fn usage(&self) -> Result<Usage>;
    /// Changes limits in place; what cannot be enforced is an error and changes nothing.
    fn update(&self, resources: &Resources) -> Result<()>;
    /// Where the wall can be looked at from outside, and what it is made of that no file of the kernel's shows.
    fn outside(&self) -> Result<Outside>;
    /// Blocks until the instance fares otherwise than it was last told here, which is well at first; `None` once it has
    /// ended, or where there is nothing that the engine could tell. One thread asks.
    fn next_condition(&self) -> Option<Condition>;
}

/// How an instance that is alive gets on. It is not ended for it: what stands still can go on.
#[derive(Debug)]
pub enum Condition {
    Well,
    /// Everything behind the wall stands still until the cause is gone and [`Control::resume`] is called.
    Halted(Error),
    /// It has not answered for long, which may pass by itself.
    Silent(Error),
}

/// A running wall as its engine knows it, for whoever measures it. Nothing in it comes from inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outside {
    /// The host's pid of the jail's first process: init of a container, the VMM of a machine.
    pub pid: u32,
    pub cgroups: Vec<CgroupPlace>,
    /// The seccomp program the jail runs under, as the kernel was given it; `None` without a filter.
    pub seccomp: Option<Vec<u8>>,
    /// The Landlock version whose scopes the jail is in; `None` where it entered no domain.
    pub landlock: Option<u32>,
    /// Absolute paths in the jail that are covered by nothing readable.
    pub masked: Vec<PathBuf>,
    /// Absolute paths in the jail that can only be read.
    pub read_only: Vec<PathBuf>,
    /// How many times it was started until it stood: more than once where emulation lost a guest before it was ready.
    pub boots: u32,
}

/// One cgroup directory of a jail's on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPlace {
    pub path: PathBuf,
    /// 1 or 2.
    pub version: u8,
    pub controllers: Vec<String>,
}

/// The two walls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wall {
    Container,
    Vm,
}

impl fmt::Display for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wall::Container => "container",
            Wall::Vm => "vm",
        })
    }
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Accelerator {
    /// Software emulation.
    Tcg,
    /// Hardware virtualization.
    Kvm,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Tcg => "tcg",
            Accelerator::Kvm => "kvm",
        })
    }
}

/// What an engine is, before any host is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineProfile {
    pub wall: Wall,
    /// `None` where the host's processor runs the guest's instructions without a VMM.
    pub accelerator: Option<Accelerator>,
    pub root: RootForm,
}

impl EngineProfile {
    pub fn own_kernel(&self) -> bool {
        self.wall == Wall::Vm
    }

    /// The rung of the ladder: container, vm on TCG, vm on KVM.
    pub fn rung(&self) -> u8 {
        match (self.wall, self.accelerator) {
            (Wall::Container, _) => 1,
            (Wall::Vm, Some(Accelerator::Kvm)) => 3,
            (Wall::Vm, _) => 2,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RootForm {
    /// Unpacked layers and a writable directory.
    Tree,
    /// A read-only disk image and a writable one.
    Disk,
}

/// One sandbox with nothing left to decide.
#[derive(Debug)]
pub struct Bundle {
    pub id: Id,
    /// A sealed memfd that holds `luna-init`.
    pub init: OwnedFd,
    pub root: Root,
    pub ids: IdRange,
    pub hostname: String,
    /// Small files of Luna's laid over the image's own: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`.
    pub files: Vec<OverlaidFile>,
    pub mounts: Vec<Mount>,
    pub endpoint: Endpoint,
    pub resources: Resources,
    pub confinement: Confinement,
}

/// One disk image to boot, with nothing left to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemBundle {
    pub id: Id,
    pub disk: SystemDisk,
    pub firmware: SystemFirmware,
    pub ids: IdRange,
    pub resources: Resources,
    /// The guest's ports that [`SystemControl::connect`] reaches.
    pub ports: Vec<u16>,
}

/// The disk of a system: an image that is never written, and what was written over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemDisk {
    pub base: PathBuf,
    pub format: DiskFormat,
    /// A qcow2 overlay, left by an earlier start of the same sandbox or made by the engine.
    pub upper: PathBuf,
    /// How large the disk is made, where that is more than the image's own size.
    pub least_size: Bytes,
}

/// The format of a disk image, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DiskFormat {
    Qcow2,
    Raw,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SystemFirmware {
    Bios,
    Uefi {
        /// The firmware's variables, left by an earlier start of the same sandbox or made by the engine.
        variables: PathBuf,
    },
}

/// What the sandbox sees as `/`, in the form its engine's [`EngineProfile::root`] names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    Tree(Tree),
    Disk(Disk),
}

/// A root filesystem on two disks, and the kernel that mounts them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's directory, as `luna kernel` keeps it.
    pub kernel: PathBuf,
    /// An EROFS image of the image's merged layers; never written to.
    pub base: PathBuf,
    /// A sparse file with an ext4 file system, left by an earlier start of the same sandbox or made by the engine.
    pub upper: PathBuf,
    /// How large `upper` is made.
    pub upper_size: Bytes,
    pub read_only: bool,
    /// An EROFS image of the kernel's loadable modules, for a sandbox that may load them.
    pub modules: Option<PathBuf>,
    /// Sockets of the host's that are offered inside, each as a listening socket at its path; whoever connects there is
    /// carried to the host through init's channel.
    pub sockets: Vec<PathBuf>,
}

/// A root filesystem of unpacked layers with one writable directory over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Unpacked layers, topmost first; never empty. Owned by uids 0 to 65,535 as the image says (root) or by the ids
    /// the user namespace maps them to (rootless).
    pub lower: Vec<PathBuf>,
    /// Empty or left by an earlier start of the same sandbox. Upper and work lie in one file system.
    pub upper: PathBuf,
    pub work: PathBuf,
    pub read_only: bool,
}

/// The ids of the host that sandbox ids 0 to 65,535 stand for, uid and gid alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The host's id for the sandbox's 0. Without root this is 0: Luna itself already lives in a user namespace.
    pub base: u32,
}

impl IdRange {
    pub const COUNT: u32 = 65_536;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlaidFile {
    /// Absolute, inside the sandbox.
    pub target: PathBuf,
    pub content: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mount {
    /// `idmapped`: sandbox uid n appears as host uid n in the source (volumes of root's); never with uid 0 of the host
    /// reachable through a setuid file, since it is `nosuid,nodev`.
    Bind {
        source: PathBuf,
        target: PathBuf,
        read_only: bool,
    },
    Tmpfs {
        target: PathBuf,
        size: Option<Bytes>,
        mode: u32,
        executable: bool,
    },
}

/// Where the sandbox's traffic goes.
#[derive(Debug)]
pub enum Endpoint {
    /// A loopback of its own.
    None,
    /// The host's network namespace.
    Host,
}

/// How tight the wall is drawn, with the defaults drawn tightest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The most any process in the sandbox may ever hold.
    pub capabilities: Capabilities,
    pub no_new_privileges: bool,
    pub nested_user_namespaces: bool,
    pub seccomp: Seccomp,
    pub devices: Vec<crate::spec::Device>,
    pub apparmor: Option<String>,
    pub selinux: Option<String>,
    /// The guest kernel is the sandbox's own to the full: its devices, its modules, every capability. Only behind a VM.
    pub privileged: bool,
}

/// What an instance has used so far. Fields the host cannot count are `None`, never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub cpu: Option<Duration>,
    pub memory: Option<Bytes>,
    pub memory_limit: Option<Bytes>,
    pub pids: Option<u64>,
    pub pids_limit: Option<u64>,
    pub read: Option<Bytes>,
    pub written: Option<Bytes>,
    /// Processes killed for want of memory since the start.
    pub oom_kills: Option<u64>,
}

impl Usage {
    pub fn out_of_memory(&self) -> bool {
        self.oom_kills.is_some_and(|kills| kills > 0)
    }
}
