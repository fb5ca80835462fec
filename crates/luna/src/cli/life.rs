//! Commands that move sandboxes through their life.

use clap::Args;

use super::run::{LimitFlags, StreamFlags};

#[derive(Debug, Args)]
pub(crate) struct Names {
    /// Names or ids
    #[arg(required = true, value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Join the program's output, pass signals on and end with its exit code
    #[arg(short, long)]
    pub(crate) attach: bool,
    /// Join the program's input as well
    #[arg(short, long)]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) streams: StreamFlags,
    #[command(flatten)]
    pub(crate) sandboxes: Names,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The signal to send first
    #[arg(short, long)]
    pub(crate) signal: Option<String>,
    /// Seconds until SIGKILL
    #[arg(short, long, alias = "timeout", value_name = "SECONDS")]
    pub(crate) time: Option<u64>,
    #[command(flatten)]
    pub(crate) sandboxes: Names,
}

#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// The signal to send
    #[arg(short, long, default_value = "KILL")]
    pub(crate) signal: String,
    #[command(flatten)]
    pub(crate) sandboxes: Names,
}

#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Kill running ones first; what is not there is no error
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Remove their anonymous volumes too
    #[arg(short, long)]
    pub(crate) volumes: bool,
    #[command(flatten)]
    pub(crate) sandboxes: Names,
}

#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// The sandbox
    pub(crate) sandbox: String,
    /// Its new name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pub(crate) limits: LimitFlags,
    /// What to do when the program ends: `no`, `on-failure[:n]`, `always`, `unless-stopped`
    #[arg(long, value_name = "POLICY")]
    pub(crate) restart: Option<String>,
    #[command(flatten)]
    pub(crate) sandboxes: Names,
}
