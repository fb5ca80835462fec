//! Images: where they come from, how they are called, how they go.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::look::{InspectArgs, JsonFlag, ListFlags};

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// The platform of an image with several, such as `linux/arm64`
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// Allow plain HTTP and unverified TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Print only the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// What to fetch, such as `debian:bookworm-slim`
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Allow plain HTTP and unverified TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// What to send; its name says where
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive; standard input where absent
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Print only names
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The archive; standard output where absent
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// `docker-archive` or `oci-archive`
    #[arg(long, value_name = "FORMAT", default_value = "docker-archive")]
    pub(crate) format: ArchiveFormat,
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ArchiveFormat {
    DockerArchive,
    OciArchive,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// An instruction for the image: `CMD …`, `ENTRYPOINT …`, `ENV …`, `USER …`, `WORKDIR …`, `EXPOSE …`, `LABEL …`
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,
    /// Note on where it came from
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// The platform to note in the image
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// The archive, or `-` for standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: String,
    /// What to call the image
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
    /// Its further name
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Accepted for docker's sake: every image is listed
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    /// Show digests
    #[arg(long)]
    pub(crate) digests: bool,
    /// `reference=`, `label=`, `dangling=`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) list: ListFlags,
    /// Only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Also images that stopped sandboxes are made of; what is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Every image that no sandbox is made of, not only the unnamed; with `--volumes`, named volumes too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Unnamed volumes that no sandbox names, too
    #[arg(long)]
    pub(crate) volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct ImagePruneArgs {
    /// Every image that no sandbox is made of, not only the unnamed
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The user
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// The password; better given on standard input
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// Allow plain HTTP and unverified TLS
    #[arg(long)]
    pub(crate) insecure: bool,
    /// The registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make a base image from this machine's package mirror, without a registry
    Bootstrap(BootstrapArgs),
    /// List images
    #[command(alias = "list")]
    Ls(ImagesArgs),
    /// Remove images
    Rm(RmiArgs),
    /// Show everything about images
    Inspect(InspectArgs),
    /// Remove images that are not used
    Prune(ImagePruneArgs),
    /// How an image came to be
    History(HistoryArgs),
    /// Write a disk that starts under QEMU, VMware, VirtualBox, Hyper-V, Parallels or on EC2
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The disk's form
    #[arg(long, value_name = "FORMAT", default_value = "qcow2")]
    pub(crate) format: DiskFormat,
    /// The file; the image's name with the form as its end, here, where absent
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// How large the machine sees the disk; 16g where absent. The file takes what is used
    #[arg(long)]
    pub(crate) size: Option<String>,
    /// The kernel, one of `luna kernel ls` with every hypervisor's drivers; the distribution's where absent
    #[arg(long, value_name = "NAME")]
    pub(crate) kernel: Option<String>,
    /// Print only the file's name
    #[arg(short, long)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DiskFormat {
    Qcow2,
    Raw,
    Vmdk,
    Vdi,
    Vhdx,
}

#[derive(Debug, Args)]
pub(crate) struct BootstrapArgs {
    /// No progress
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// What to make, such as `debian:bookworm-slim`
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct HistoryArgs {
    #[command(flatten)]
    pub(crate) list: ListFlags,
    /// The image
    pub(crate) image: String,
}
