//! `up` and `open`.

use clap::Args;

use super::run::{FloorFlag, IsolationFlag};

/// What Luna's computer is called unless said otherwise.
pub(crate) const NAME: &str = "luna-agent";

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The sandbox's name
    #[arg(long, default_value = NAME)]
    pub(crate) name: String,
    /// The port on this host's loopback; 0 for any free one
    #[arg(short, long, default_value_t = 8080)]
    pub(crate) port: u16,
    /// The image
    #[arg(long, default_value = "luna/agent:latest")]
    pub(crate) image: String,
    /// The wall: `auto` picks the fastest one that is strong enough
    #[arg(long, value_name = "WALL", default_value = "auto", env = "LUNA_ISOLATION")]
    pub(crate) isolation: IsolationFlag,
    /// The least the wall must offer; refused where it cannot be had, never lowered
    #[arg(long, value_name = "FLOOR")]
    pub(crate) require: Option<FloorFlag>,
    /// `none`, or `host`: the host's own network, where this wall has a hole
    #[arg(long, value_name = "NETWORK", default_value = "none")]
    pub(crate) network: String,
    /// Memory limit
    #[arg(short, long, value_name = "SIZE")]
    pub(crate) memory: Option<String>,
    /// Number of CPUs, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub(crate) cpus: Option<String>,
    /// Number of processes
    #[arg(long, value_name = "NUMBER")]
    pub(crate) pids_limit: Option<i64>,
    /// Build the image again even where it is in the store
    #[arg(long)]
    pub(crate) build: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Only print the address
    #[arg(long)]
    pub(crate) print: bool,
    /// The sandbox
    #[arg(default_value = NAME)]
    pub(crate) name: String,
}
