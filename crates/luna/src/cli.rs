//! The grammar: what can be typed, one file per group of commands. Nothing in here acts.

#![expect(clippy::struct_excessive_bools, reason = "each is a flag of docker's")]

pub(crate) mod build;
pub(crate) mod copy;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod kernel;
pub(crate) mod life;
pub(crate) mod look;
pub(crate) mod run;
pub(crate) mod up;
pub(crate) mod volume;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// A computer of its own for an agent or any program, from one OCI image, behind one of two walls: a container or a
/// virtual machine
#[derive(Debug, Parser)]
#[command(name = "luna", version, disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    /// Where images and sandboxes are kept [default: /var/lib/luna, or ~/.local/share/luna without root]
    #[arg(
        long,
        global = true,
        env = "LUNA_ROOT",
        hide_env_values = true,
        value_name = "DIRECTORY",
        hide = true
    )]
    pub(crate) root: Option<PathBuf>,

    /// One more policy file; of all there are the strictest wins
    #[arg(long, global = true, value_name = "FILE", hide = true)]
    pub(crate) policy: Vec<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a sandbox from an image and run a program in it
    Run(Box<run::RunArgs>),
    /// Make a sandbox without starting it
    Create(Box<run::CreateArgs>),
    /// Start sandboxes that do not run
    Start(life::StartArgs),
    /// Stop sandboxes: the stop signal, then SIGKILL
    Stop(life::StopArgs),
    /// Stop sandboxes and start them again
    Restart(life::StopArgs),
    /// Send a signal to the main program of sandboxes
    Kill(life::KillArgs),
    /// Remove sandboxes
    Rm(life::RmArgs),
    /// Freeze every process of sandboxes
    Pause(life::Names),
    /// Let paused sandboxes go on
    Unpause(life::Names),
    /// Wait until sandboxes end and print their exit codes
    Wait(life::Names),
    /// Give a sandbox another name
    Rename(life::RenameArgs),
    /// Change limits and restart policy of sandboxes
    Update(life::UpdateArgs),
    /// Run one more program in a sandbox
    Exec(run::ExecArgs),
    /// Join the streams of a sandbox's main program
    Attach(run::AttachArgs),
    /// Copy files between a sandbox and this host
    Cp(copy::CpArgs),

    /// List sandboxes
    Ps(look::PsArgs),
    /// Show what a sandbox printed
    Logs(look::LogsArgs),
    /// Show everything about sandboxes, images or volumes
    Inspect(look::InspectArgs),
    /// Show what sandboxes use, as it changes
    Stats(look::StatsArgs),
    /// List the processes in a sandbox
    Top(look::TopArgs),
    /// List a sandbox's port mappings
    Port(look::PortArgs),
    /// Show what happens to sandboxes, as it happens
    Events(look::EventsArgs),

    /// Fetch an image from a registry
    Pull(image::PullArgs),
    /// Send an image to a registry
    Push(image::PushArgs),
    /// Read images from an archive
    Load(image::LoadArgs),
    /// Write images to an archive
    Save(image::SaveArgs),
    /// Make an image from an archive of a root filesystem
    Import(image::ImportArgs),
    /// Build an image from a Dockerfile
    Build(build::BuildArgs),
    /// Give an image another name
    Tag(image::TagArgs),
    /// List images
    Images(image::ImagesArgs),
    /// How an image came to be
    History(image::HistoryArgs),
    /// Remove images
    Rmi(image::RmiArgs),
    /// Remove what is not used: stopped sandboxes, unnamed images, half-done work
    Prune(image::PruneArgs),
    /// Keep the credentials for a registry
    Login(image::LoginArgs),
    /// Forget the credentials for a registry
    Logout(image::LogoutArgs),
    /// Images, and making a base image without a registry
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Volumes: directories that outlive sandboxes
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Guest kernels: what a virtual machine boots
    #[command(subcommand)]
    Kernel(kernel::KernelCommand),

    /// Luna's computer, from nothing to its address, with one command
    Up(up::UpArgs),
    /// Print a fresh address of a running computer, and open it
    Open(up::OpenArgs),
    /// What this host can do, found out by doing it
    Host(host::HostArgs),
    /// Which wall a run would get, and why; starts nothing
    Explain(Box<run::ExplainArgs>),

    /// Print a shell's completion script
    Completion(host::CompletionArgs),
    /// Write the manual pages into a directory
    Man(host::ManArgs),
    /// Print the version
    Version(host::VersionArgs),
}

impl Cli {
    /// Reads a command line. Help and version come back as the error that clap makes of them.
    pub(crate) fn read(arguments: &[OsString]) -> Result<Cli, clap::Error> {
        let cli = Cli::try_parse_from(arguments)?;
        // `run --unknown IMAGE` was taken for `run [IMAGE = --unknown]`: what follows the image may begin with a dash,
        // the image may not. Read again with that forbidden, clap tells what is wrong and what was meant.
        if cli.begins_with_a_dash() {
            let strict = |command: clap::Command| {
                command.mut_arg("words", |words| {
                    words.allow_hyphen_values(false).trailing_var_arg(false)
                })
            };
            let command = ["run", "create", "exec", "explain"]
                .into_iter()
                .fold(Cli::command(), |command, name| {
                    command.mut_subcommand(name, strict)
                });
            return command
                .try_get_matches_from(arguments)
                .and_then(|matches| Cli::from_arg_matches(&matches));
        }
        Ok(cli)
    }

    fn begins_with_a_dash(&self) -> bool {
        let words = match &self.command {
            Command::Run(args) => &args.sandbox.words,
            Command::Create(args) => &args.sandbox.words,
            Command::Explain(args) => &args.sandbox.words,
            Command::Exec(args) => &args.words,
            _ => return false,
        };
        words.first().is_some_and(|word| word.starts_with('-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_image_belongs_to_the_program() {
        let Command::Run(run) = read("luna run -it --rm image ls -la --rm --help")
            .unwrap()
            .command
        else {
            panic!("not a run");
        };
        assert_eq!(run.sandbox.words, ["image", "ls", "-la", "--rm", "--help"]);
        assert!(run.remove && run.sandbox.interactive && run.sandbox.tty);
        let Command::Exec(exec) = read("luna exec -u 0 name -c").unwrap().command else {
            panic!("not an exec")
        };
        assert_eq!(exec.words, ["name", "-c"]);
    }

    #[test]
    fn an_image_is_needed_unless_a_disk_is_booted() {
        assert!(read("luna run").is_err() && read("luna create --rm").is_err());
        assert!(read("luna run --boot disk.qcow2").is_ok() && read("luna create --boot disk.qcow2").is_ok());
        assert!(read("luna explain").is_ok());
    }

    #[test]
    fn a_misspelt_flag_is_no_image() {
        let error = read("luna run --memroy 1g image").unwrap_err().to_string();
        assert!(
            error.contains("--memroy") && error.contains("--memory"),
            "{error}"
        );
    }
}
