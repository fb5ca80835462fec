//! `build`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// What to call the image; may be repeated
    #[arg(short, long, value_name = "REFERENCE")]
    pub(crate) tag: Vec<String>,
    /// The Dockerfile [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Value of an `ARG`: `NAME=VALUE`, or `NAME` from the environment
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub(crate) build_arg: Vec<String>,
    /// Stop at this stage
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Use nothing from earlier builds
    #[arg(long)]
    pub(crate) no_cache: bool,
    /// Fetch base images even where they are in the store
    #[arg(long)]
    pub(crate) pull: bool,
    /// The network of `RUN`: `none` or `host`
    #[arg(long, value_name = "NETWORK", default_value = "none")]
    pub(crate) network: BuildNetwork,
    /// A file for `RUN --mount=type=secret`: `id=NAME,src=FILE`
    #[arg(long, value_name = "SECRET")]
    pub(crate) secret: Vec<String>,
    /// The platform of base images
    #[arg(long)]
    pub(crate) platform: Option<String>,
    /// A label for the image
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) label: Vec<String>,
    /// `RUN` does not see the host's CA certificates
    #[arg(long)]
    pub(crate) no_host_ca: bool,
    /// How progress looks
    #[arg(long, value_name = "KIND", default_value = "auto")]
    pub(crate) progress: ProgressKind,
    /// Print only the image's id
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// The directory that `COPY` copies from
    pub(crate) context: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BuildNetwork {
    None,
    Host,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressKind {
    Auto,
    Plain,
    Tty,
}
