//! Guest kernels.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::look::ListFlags;

#[derive(Debug, Subcommand)]
pub(crate) enum KernelCommand {
    /// Compile the small kernel from the distribution's kernel source (about 8 minutes on two processors)
    #[command(
        after_help = "Examples:\n  luna kernel build\n  luna kernel build --source linux-6.12.tar.xz -j 8"
    )]
    Build(BuildArgs),
    /// Unpack the distribution's cloud kernel, without installing it
    #[command(
        after_help = "Examples:\n  luna kernel fetch\n  luna kernel fetch linux-image-amd64    # with drivers for hardware"
    )]
    Fetch(FetchArgs),
    /// List kernels
    #[command(
        alias = "list",
        after_help = "Examples:\n  luna kernel ls --verify\n  luna kernel ls --json"
    )]
    Ls(LsArgs),
    /// Take a kernel that was made elsewhere
    #[command(
        after_help = "Examples:\n  luna kernel import ./vmlinux\n  luna kernel import /boot/vmlinuz-6.1.0-50-amd64 --modules /lib/modules/6.1.0-50-amd64\n  luna kernel import ./directory-with-kernel.json --name mine"
    )]
    Import(ImportArgs),
    /// Remove kernels; machines that run on them keep running
    #[command(after_help = "Examples:\n  luna kernel rm small-6.1.170-1-0f3c9a12")]
    Rm(RmArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// An archive of a Linux source tree instead of the distribution's package
    #[arg(long, value_name = "FILE")]
    pub(crate) source: Option<PathBuf>,
    /// Compilers at once [default: the number of processors]
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) jobs: Option<u32>,
    /// Print only the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct FetchArgs {
    /// The package of another kernel
    #[arg(value_name = "PACKAGE")]
    pub(crate) package: Option<String>,
    /// Print only the name
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Read every kernel whole and compare digests
    #[arg(long)]
    pub(crate) verify: bool,
    #[command(flatten)]
    pub(crate) list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// What it is called here [default: its release]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// `/lib/modules/RELEASE` of a kernel file that has modules
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) modules: Option<PathBuf>,
    /// A vmlinux with a PVH entry, a bzImage, an arm64 Image, or a directory with `kernel.json`
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// What is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The kernels
    #[arg(required = true, value_name = "KERNEL")]
    pub(crate) names: Vec<String>,
}
