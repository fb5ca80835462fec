//! Volumes.

use clap::{Args, Subcommand};

use super::look::{InspectArgs, JsonFlag, ListFlags};

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume
    Create(CreateArgs),
    /// List volumes
    #[command(alias = "list")]
    Ls(LsArgs),
    /// Remove volumes
    Rm(RmArgs),
    /// Show everything about volumes
    Inspect(InspectArgs),
    /// Remove unnamed volumes that no sandbox names
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name; invented where absent
    pub(crate) name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// `name=`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    #[command(flatten)]
    pub(crate) list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// What is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The volumes
    #[arg(required = true, value_name = "VOLUME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Named ones too, not only those whose name was invented
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
