//! What each command does: ask the runtime, print the answer. One file per group, as in the grammar.

mod build;
mod copy;
mod copy_in;
mod copy_out;
mod events;
mod exec;
mod explain;
mod export;
mod host;
mod images;
mod inspect;
mod isolation;
mod kernels;
mod life;
mod logs;
mod ps;
mod run;
mod stats;
mod transfer;
mod up;
mod volumes;

use std::path::PathBuf;

use luna_core::{Error, Kind, Result};
use luna_runtime::{PolicyFile, Runtime, Sandbox};

use crate::cli::Command;
use crate::cli::image::ImageCommand;
use crate::cli::look::Type;
use crate::output::{Bars, Look, Printer};

/// What every command stands on.
#[derive(Clone, Debug)]
pub(crate) struct Front {
    pub(crate) root: PathBuf,
    /// More policy files than the usual.
    pub(crate) policy: Vec<PathBuf>,
    /// Luna is in a user namespace of its own.
    pub(crate) rootless: bool,
    pub(crate) printer: Printer,
}

impl Front {
    pub(crate) fn runtime(&self) -> Result<Runtime> {
        let named = self.policy.iter().cloned().map(PolicyFile::Named);
        Ok(Runtime::open(&self.root, self.rootless)?.under(named))
    }
}

/// Runs one command and gives its exit code.
pub(crate) fn run(command: Command, front: &Front) -> Result<u8> {
    match command {
        Command::Run(args) => return run::run(front, &args),
        Command::Create(args) => run::create(front, &args),
        Command::Explain(args) => explain::explain(front, &args),
        Command::Start(args) => return life::start(front, &args),
        Command::Stop(args) => return life::stop(front, &args),
        Command::Restart(args) => return life::restart(front, &args),
        Command::Kill(args) => return life::kill(front, &args),
        Command::Rm(args) => return life::rm(front, &args),
        Command::Pause(args) => return life::pause(front, &args),
        Command::Unpause(args) => return life::unpause(front, &args),
        Command::Wait(args) => return life::wait(front, &args),
        Command::Rename(args) => life::rename(front, &args),
        Command::Update(args) => return life::update(front, &args),
        Command::Exec(args) => return exec::exec(front, &args),
        Command::Attach(args) => return exec::attach(front, &args),
        Command::Cp(args) => copy::cp(front, &args),
        Command::Ps(args) => ps::ps(front, &args),
        Command::Logs(args) => logs::logs(front, &args),
        Command::Inspect(args) if args.isolation => return isolation::isolation(front, &args),
        Command::Inspect(args) => return inspect::inspect(front, &args, args.kind),
        Command::Stats(args) => stats::stats(front, &args),
        Command::Top(args) => stats::top(front, &args),
        Command::Port(args) => stats::port(front, &args),
        Command::Events(args) => events::events(front, &args),
        Command::Pull(args) => transfer::pull(front, &args),
        Command::Push(args) => transfer::push(front, &args),
        Command::Load(args) => transfer::load(front, &args),
        Command::Save(args) => transfer::save(front, &args),
        Command::Import(args) => transfer::import(front, args),
        Command::Login(args) => transfer::login(front, &args),
        Command::Logout(args) => transfer::logout(front, &args),
        Command::Build(args) => build::build(front, args),
        Command::Tag(args) => images::tag(front, &args),
        Command::Images(args) | Command::Image(ImageCommand::Ls(args)) => images::images(front, &args),
        Command::Rmi(args) | Command::Image(ImageCommand::Rm(args)) => return images::rmi(front, &args),
        Command::Prune(args) => images::prune(front, &args),
        Command::Image(ImageCommand::Prune(args)) => images::prune_images(front, &args),
        Command::Image(ImageCommand::Bootstrap(args)) => images::bootstrap(front, &args),
        Command::Image(ImageCommand::Export(args)) => export::export(front, &args),
        Command::History(args) | Command::Image(ImageCommand::History(args)) => images::history(front, &args),
        Command::Image(ImageCommand::Inspect(args)) => {
            return inspect::inspect(front, &args, Some(Type::Image));
        }
        Command::Volume(command) => return volumes::volume(front, command),
        Command::Kernel(command) => return kernels::kernel(front, command),
        Command::Up(args) => up::up(front, &args),
        Command::Open(args) => up::open(front, &args),
        Command::Host(args) => host::host(front, &args),
        Command::Completion(args) => host::completion(front, &args),
        Command::Man(args) => host::man(&args),
        Command::Version(args) => host::version(front, &args),
    }
    .map(|()| 0)
}

/// Does the same to each of several things at once and prints what comes of it in the order they were named. One that
/// fails is told and does not keep the others; the exit code is the first failure's.
pub(crate) fn each(
    front: &Front,
    names: &[String],
    act: impl Fn(&Runtime, &str) -> Result<Option<String>> + Sync,
) -> Result<u8> {
    const AT_ONCE: usize = 16;
    let runtime = front.runtime()?;
    let mut code = 0;
    for some in names.chunks(AT_ONCE) {
        let outcomes: Vec<Result<Option<String>>> = match some {
            [name] => vec![act(&runtime, name)],
            _ => std::thread::scope(|scope| {
                let threads: Vec<_> = some
                    .iter()
                    .map(|name| scope.spawn(|| act(&runtime, name)))
                    .collect();
                threads
                    .into_iter()
                    .map(|thread| thread.join().expect("panics end the process"))
                    .collect()
            }),
        };
        for outcome in outcomes {
            match outcome {
                Ok(Some(line)) => front.printer.line(line)?,
                Ok(None) => {}
                Err(error) => {
                    front.printer.error(&error);
                    code = if code == 0 { error.kind().exit_code() } else { code };
                }
            }
        }
    }
    Ok(code)
}

/// Whether a supervisor is there to be talked to.
pub(crate) fn is_live(sandbox: &Sandbox) -> Result<bool> {
    Ok(sandbox.status()?.state.live())
}

/// A place for progress to go, by `--quiet`.
pub(crate) fn bars(quiet: bool) -> Bars {
    Bars::new(if quiet { Look::Quiet } else { Look::fitting() })
}

/// Asks before something is lost. Without a terminal the answer is the next line of standard input; that there is none
/// is an error, so that a script does not take silence for done.
pub(crate) fn confirmed(question: &str) -> Result<bool> {
    use std::io::{BufRead, Write};
    let asking = |e: std::io::Error| Error::io("cannot ask", e);
    write!(std::io::stderr(), "{question} [y/N] ").map_err(asking)?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(asking)?;
    if !crate::terminal::stdin_is_terminal() {
        let _ = writeln!(std::io::stderr());
        if answer.is_empty() {
            return Err(
                Error::new(Kind::InvalidInput, "cannot remove anything without a yes")
                    .hint("`--force` does not ask"),
            );
        }
    }
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
