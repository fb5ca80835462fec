//! The host, and Luna itself.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use super::look::JsonFlag;

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// Read the last report instead of trying everything again
    #[arg(long)]
    pub(crate) cached: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    /// The shell
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Where to; made where missing
    pub(crate) directory: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
}
