//! Commands that only look.

use clap::{Args, ValueEnum};

#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct JsonFlag {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// How a list is printed.
#[derive(Clone, Debug, Args)]
pub(crate) struct ListFlags {
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
    /// `table`, `json` (an object a line), or a template such as `{{.ID}} {{.Status}}` or `table {{.ID}}\t{{.Status}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Only ids (or names)
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Long values in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Those that do not run, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// `id=`, `name=`, `label=`, `status=`, `ancestor=`, `health=`, `exited=`, `volume=`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// The newest n, whatever their state
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// The newest one, whatever its state
    #[arg(short, long)]
    pub(crate) latest: bool,
    #[command(flatten)]
    pub(crate) list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on as more is printed
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last lines: a number, or `all`
    #[arg(short = 'n', long, value_name = "LINES", default_value = "all")]
    pub(crate) tail: String,
    /// Only what was printed since: a time, or a duration such as 10m
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Only what was printed until: a time, or a duration such as 10m
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// Show the time of each line
    #[arg(short, long)]
    pub(crate) timestamps: bool,
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// The sandbox
    pub(crate) sandbox: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Type {
    #[value(alias = "container")]
    Sandbox,
    Image,
    Volume,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A template such as `{{.State.Status}}`
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Look only among these
    #[arg(long = "type", value_name = "TYPE")]
    pub(crate) kind: Option<Type>,
    /// What stands round running sandboxes, measured now from outside and from inside
    #[arg(long, conflicts_with = "kind")]
    pub(crate) isolation: bool,
    /// With `--isolation`, JSON in place of a table; without, JSON is what is printed anyway
    #[arg(long)]
    pub(crate) json: bool,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    /// One look only
    #[arg(long)]
    pub(crate) no_stream: bool,
    /// Accepted for docker's sake: only running sandboxes use anything
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    /// Print a JSON array
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
    /// `table`, `json`, or a template such as `{{.Name}} {{.CPUPerc}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Long values in full
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// The sandboxes; all that run where none is named
    #[arg(value_name = "SANDBOX")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// The sandbox
    pub(crate) sandbox: String,
}

#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    #[command(flatten)]
    pub(crate) json: JsonFlag,
    /// The sandbox
    pub(crate) sandbox: String,
    /// Only this port inside: `80` or `80/tcp`
    pub(crate) port: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// From this time on: a time, or a duration such as 10m
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<String>,
    /// Until this time, and then end
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<String>,
    /// `container=`, `event=`, `image=`
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub(crate) filter: Vec<String>,
    /// `json`, or a template such as `{{.Action}} {{.Name}}`
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// A JSON object a line
    #[arg(long, conflicts_with = "format")]
    pub(crate) json: bool,
}
