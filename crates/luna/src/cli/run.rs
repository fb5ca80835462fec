//! `run`, `create`, `exec`, `attach`, `explain`: the flags that describe one sandbox and its streams.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use luna_core::spec::{Firmware, Floor, Isolation};

use super::look::JsonFlag;

#[derive(Debug, Args)]
#[command(disable_help_flag = true, mut_arg("words", |words| words.required_unless_present("boot")))]
pub(crate) struct RunArgs {
    /// Run in the background and print the sandbox's id
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Remove the sandbox and its anonymous volumes when it ends
    #[arg(long = "rm")]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) streams: StreamFlags,
    #[command(flatten)]
    pub(crate) making: MakingFlags,
    #[command(flatten)]
    pub(crate) sandbox: SandboxFlags,
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true, mut_arg("words", |words| words.required_unless_present("boot")))]
pub(crate) struct CreateArgs {
    /// Remove the sandbox and its anonymous volumes when it ends
    #[arg(long = "rm")]
    pub(crate) remove: bool,
    #[command(flatten)]
    pub(crate) making: MakingFlags,
    #[command(flatten)]
    pub(crate) sandbox: SandboxFlags,
}

#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// Try everything again instead of reading the last report
    #[arg(long)]
    pub(crate) fresh: bool,
    #[command(flatten)]
    pub(crate) sandbox: SandboxFlags,
}

/// How the image is got and the id is told.
#[derive(Debug, Args)]
pub(crate) struct MakingFlags {
    /// When to fetch the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub(crate) pull: Pull,
    /// The platform of an image with several, such as `linux/arm64`
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// Allow plain HTTP and unverified TLS with the registry
    #[arg(long)]
    pub(crate) insecure: bool,
    /// No progress while fetching the image
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Write the sandbox's id to a file that does not exist
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pull {
    Missing,
    Always,
    Never,
}

#[derive(Debug, Args)]
pub(crate) struct StreamFlags {
    /// Keys that leave the program to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub(crate) sig_proxy: bool,
}

/// One sandbox, as docker's flags describe it.
#[derive(Debug, Args)]
pub(crate) struct SandboxFlags {
    /// The sandbox's name
    #[arg(long, help_heading = "Sandbox")]
    pub(crate) name: Option<String>,
    /// Keep standard input open
    #[arg(short, long, help_heading = "Program")]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long, help_heading = "Program")]
    pub(crate) tty: bool,
    /// Set a variable (`NAME=VALUE`), or pass one on (`NAME`)
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Program")]
    pub(crate) env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE", help_heading = "Program")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The program's working directory
    #[arg(short, long, value_name = "DIRECTORY", help_heading = "Program")]
    pub(crate) workdir: Option<String>,
    /// The program's user: `user`, `uid`, `user:group` or `uid:gid`
    #[arg(short, long, help_heading = "Program")]
    pub(crate) user: Option<String>,
    /// More groups for the program's user
    #[arg(long, value_name = "GROUP", help_heading = "Program")]
    pub(crate) group_add: Vec<String>,
    /// Replace the image's entrypoint; an empty one clears it
    #[arg(long, value_name = "PROGRAM", help_heading = "Program")]
    pub(crate) entrypoint: Option<String>,
    /// An init reaps and forwards signals; it always does, so this changes nothing
    #[arg(long, help_heading = "Program")]
    pub(crate) init: bool,

    /// The wall: `auto` picks the fastest one that is strong enough
    #[arg(
        long,
        value_name = "WALL",
        default_value = "auto",
        env = "LUNA_ISOLATION",
        help_heading = "Wall"
    )]
    pub(crate) isolation: IsolationFlag,
    /// The least the wall must offer; refused where it cannot be had, never lowered
    #[arg(long, value_name = "FLOOR", help_heading = "Wall")]
    pub(crate) require: Option<FloorFlag>,
    /// Grant a capability on top of docker's default set
    #[arg(long, value_name = "CAPABILITY", help_heading = "Wall")]
    pub(crate) cap_add: Vec<String>,
    /// Take a capability away, or `ALL`
    #[arg(long, value_name = "CAPABILITY", help_heading = "Wall")]
    pub(crate) cap_drop: Vec<String>,
    /// All powers of a kernel of the sandbox's own: only in a VM
    #[arg(long, help_heading = "Wall")]
    pub(crate) privileged: bool,
    /// `no-new-privileges[=BOOL]`, `nested-userns`, `seccomp=unconfined`, `apparmor=PROFILE`, `label=LABEL`
    #[arg(long, value_name = "OPTION", help_heading = "Wall")]
    pub(crate) security_opt: Vec<String>,
    /// Show a device: `host[:sandbox[:rwm]]`
    #[arg(long, value_name = "DEVICE", help_heading = "Wall")]
    pub(crate) device: Vec<String>,

    /// Mount `host:sandbox[:ro]`, a named volume `name:sandbox[:ro]` or an anonymous one `sandbox`
    #[arg(short, long, value_name = "MOUNT", help_heading = "Files")]
    pub(crate) volume: Vec<String>,
    /// Mount by `type=bind|volume|tmpfs,source=…,target=…,readonly`
    #[arg(long, value_name = "OPTIONS", help_heading = "Files")]
    pub(crate) mount: Vec<String>,
    /// Mount memory: `sandbox[:size=…,mode=…,exec]`
    #[arg(long, value_name = "MOUNT", help_heading = "Files")]
    pub(crate) tmpfs: Vec<String>,
    /// The root filesystem cannot be written
    #[arg(long, help_heading = "Files")]
    pub(crate) read_only: bool,

    /// `none`, or `host`: the host's own network, where this wall has a hole
    #[arg(
        long,
        alias = "net",
        value_name = "NETWORK",
        default_value = "none",
        help_heading = "Network"
    )]
    pub(crate) network: String,
    /// Map a port: `[address:]host:sandbox`, or `sandbox` for any free port
    #[arg(short, long, value_name = "PORTS", help_heading = "Network")]
    pub(crate) publish: Vec<String>,
    /// Not supported: name the ports with `--publish`
    #[arg(short = 'P', long, hide = true)]
    pub(crate) publish_all: bool,
    /// The sandbox's hostname
    #[arg(short = 'h', long, help_heading = "Network")]
    pub(crate) hostname: Option<String>,
    /// A name server
    #[arg(long, value_name = "ADDRESS", help_heading = "Network")]
    pub(crate) dns: Vec<String>,
    /// A line in `/etc/hosts`: `name:address`
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    pub(crate) add_host: Vec<String>,

    /// Boot a disk image that has a kernel and an init of its own, in an image's place: `run --boot disk.qcow2 -p 8080:8080`
    #[arg(long, value_name = "FILE", help_heading = "Wall")]
    pub(crate) boot: Option<PathBuf>,
    /// What starts the disk image's boot loader
    #[arg(long, value_name = "FIRMWARE", help_heading = "Wall")]
    pub(crate) firmware: Option<FirmwareFlag>,
    /// The guest kernel of a VM, by its name in `luna kernel ls`
    #[arg(long, value_name = "NAME", help_heading = "Wall")]
    pub(crate) kernel: Option<String>,
    /// How large a VM's writable disk may grow [default: 16g]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) disk: Option<String>,
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    /// Size of `/dev/shm`
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) shm_size: Option<String>,
    /// A resource limit: `name=soft[:hard]`
    #[arg(long, value_name = "LIMIT", help_heading = "Limits")]
    pub(crate) ulimit: Vec<String>,

    /// A label
    #[arg(short, long, value_name = "NAME[=VALUE]", help_heading = "Sandbox")]
    pub(crate) label: Vec<String>,
    /// What to do when the program ends: `no`, `on-failure[:n]`, `always`, `unless-stopped`
    #[arg(long, value_name = "POLICY", default_value = "no", help_heading = "Sandbox")]
    pub(crate) restart: String,
    /// The signal that `stop` sends
    #[arg(long, value_name = "SIGNAL", help_heading = "Sandbox")]
    pub(crate) stop_signal: Option<String>,
    /// Seconds between the stop signal and SIGKILL
    #[arg(long, value_name = "SECONDS", help_heading = "Sandbox")]
    pub(crate) stop_timeout: Option<u64>,
    /// `max-size=SIZE`, `max-file=NUMBER`
    #[arg(long, value_name = "OPTION", help_heading = "Sandbox")]
    pub(crate) log_opt: Vec<String>,
    #[command(flatten)]
    pub(crate) health: HealthFlags,

    /// Print help
    #[arg(long, action = ArgAction::Help)]
    help: Option<bool>,

    /// The image, then the program and its arguments where not the image's own
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "IMAGE [PROGRAM [ARGUMENT]...]"
    )]
    pub(crate) words: Vec<String>,
}

/// Limits that can also be changed later.
#[derive(Debug, Args)]
pub(crate) struct LimitFlags {
    /// Memory limit
    #[arg(short, long, value_name = "SIZE", help_heading = "Limits")]
    pub(crate) memory: Option<String>,
    /// Memory and swap together; -1 for as much swap as there is
    #[arg(
        long,
        value_name = "SIZE",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub(crate) memory_swap: Option<String>,
    /// Number of CPUs, such as 1.5
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) cpus: Option<String>,
    /// CPUs to run on, such as `0-2,4`
    #[arg(long, value_name = "LIST", help_heading = "Limits")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Number of processes; -1 for no limit
    #[arg(
        long,
        value_name = "NUMBER",
        allow_hyphen_values = true,
        help_heading = "Limits"
    )]
    pub(crate) pids_limit: Option<i64>,
    /// Share of block I/O, 10 to 1000
    #[arg(long, value_name = "WEIGHT", help_heading = "Limits")]
    pub(crate) blkio_weight: Option<u16>,
}

#[derive(Debug, Args)]
pub(crate) struct HealthFlags {
    /// A shell command that tells whether the sandbox is healthy
    #[arg(long, value_name = "COMMAND", help_heading = "Health")]
    pub(crate) health_cmd: Option<String>,
    /// Time between checks [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    pub(crate) health_interval: Option<String>,
    /// Longest time a check may take [default: 30s]
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    pub(crate) health_timeout: Option<String>,
    /// Failures do not count for this long after the start [default: 0s]
    #[arg(long, value_name = "DURATION", help_heading = "Health")]
    pub(crate) health_start_period: Option<String>,
    /// Failures in a row that make it unhealthy [default: 3]
    #[arg(long, value_name = "NUMBER", help_heading = "Health")]
    pub(crate) health_retries: Option<u32>,
    /// No checks, whatever the image says
    #[arg(long, help_heading = "Health")]
    pub(crate) no_healthcheck: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationFlag {
    Auto,
    Container,
    Vm,
}

impl From<IsolationFlag> for Isolation {
    fn from(flag: IsolationFlag) -> Isolation {
        match flag {
            IsolationFlag::Auto => Isolation::Auto,
            IsolationFlag::Container => Isolation::Container,
            IsolationFlag::Vm => Isolation::Vm,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FloorFlag {
    OwnKernel,
    HardwareVirtualization,
}

impl From<FloorFlag> for Floor {
    fn from(flag: FloorFlag) -> Floor {
        match flag {
            FloorFlag::OwnKernel => Floor::OwnKernel,
            FloorFlag::HardwareVirtualization => Floor::HardwareVirtualization,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareFlag {
    Bios,
    Uefi,
}

impl From<FirmwareFlag> for Firmware {
    fn from(flag: FirmwareFlag) -> Firmware {
        match flag {
            FirmwareFlag::Bios => Firmware::Bios,
            FirmwareFlag::Uefi => Firmware::Uefi,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Run in the background
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Set a variable (`NAME=VALUE`), or pass one on (`NAME`)
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// Read variables from a file
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<PathBuf>,
    /// The program's working directory
    #[arg(short, long, value_name = "DIRECTORY")]
    pub(crate) workdir: Option<String>,
    /// The program's user: `user`, `uid`, `user:group` or `uid:gid`
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Not supported: a wall is not widened after the start
    #[arg(long, hide = true)]
    pub(crate) privileged: bool,
    /// Keys that leave the program to itself
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    pub(crate) detach_keys: String,
    /// The sandbox, then the program and its arguments
    #[arg(required = true, num_args = 2.., trailing_var_arg = true, allow_hyphen_values = true, value_name = "SANDBOX PROGRAM [ARGUMENT]...")]
    pub(crate) words: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Leave standard input alone
    #[arg(long)]
    pub(crate) no_stdin: bool,
    #[command(flatten)]
    pub(crate) streams: StreamFlags,
    /// The sandbox
    pub(crate) sandbox: String,
}
