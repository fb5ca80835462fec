//! `cp`.

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep the owners' ids
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Copy what a link leads to instead of the link itself
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// No summary
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// `SANDBOX:PATH`, a path on this host, or `-` for a tar archive on standard input
    pub(crate) source: String,
    /// `SANDBOX:PATH`, a path on this host, or `-` for a tar archive on standard output
    pub(crate) target: String,
}
