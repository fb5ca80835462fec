//! RUN: the program, its mounts and its variables put together, run by whoever can, and its changes made a layer.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use luna_core::capability::Capabilities;
use luna_core::engine::{Mount, Tree};
use luna_core::event::Progress;
use luna_core::process::{ExitStatus, Process};
use luna_core::spec::Network;
use luna_core::{Error, Kind, Result};
use rustix::fs::FlockOperation;

use super::builder::{Builder, invalid};
use super::cache::Key;
use super::dockerfile::{Command, Instruction, Run, RunNetwork};
use super::flags::{Sharing, StepMount};
use super::heredoc::Heredoc;
use super::ignore::Ignore;
use super::plan;
use super::state::State;
use super::step::{Output, Step};
use super::stubs::Stubs;
use super::view::View;
use crate::layer::Compression;
use crate::{Digest, Layer, files};

/// Lines of output that an error repeats.
const LAST_LINES: usize = 4;
/// Where a here-document that is a script of its own is laid.
const SCRIPT: &str = "/run/luna-build/script";

/// Everything that lives as long as the step does.
#[derive(Default)]
struct Mounts {
    list: Vec<Mount>,
    env: Vec<(String, String)>,
    targets: Vec<String>,
    locks: Vec<OwnedFd>,
}

impl Builder<'_> {
    pub(crate) fn run(
        &mut self,
        stage: usize,
        state: &mut State,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<()> {
        let flags = run
            .mounts
            .iter()
            .map(|text| StepMount::parse(&self.expand(state, text)?).map_err(invalid))
            .collect::<Result<Vec<_>>>()?;
        let program = program(state, run);
        let (arguments, hidden) = self.run_arguments(state);
        let network = match run.network {
            RunNetwork::Default => self.request.network,
            RunNetwork::None => Network::None,
            RunNetwork::Host => Network::Host,
        };
        let mut env: Vec<(String, String)> = arguments.clone().into_iter().collect();
        env.extend(state.env());
        let key = self.run_key(stage, state, instruction, &program, &env, &flags, network)?;
        let by = history(&arguments, &state.env(), &program, run);
        if let Some(record) = self.known(key) {
            self.announce(true, &instruction.text);
            state.record(record.created, by, record.layer);
            return Ok(());
        }
        let label = self.announce(false, &instruction.text);
        env.splice(0..0, hidden);
        let mut mounts = self.mounts(stage, state, instruction, &flags)?;
        self.trust(&mut mounts, &env);
        env.append(&mut mounts.env);
        if let Some(script) = &program.script {
            let path = self.fresh("script")?.join("script");
            write_owned(&path, script.as_bytes(), 0, 0, 0o555)?;
            mounts.bind(path, SCRIPT.to_owned(), true);
        }
        let process = Process {
            args: program.arguments,
            env,
            cwd: state.workdir(),
            user: state.user(),
            groups: Vec::new(),
            terminal: None,
            stdin: false,
            capabilities: Capabilities::DEFAULT,
            no_new_privileges: true,
            rlimits: Vec::new(),
        };
        let layer = self.run_and_keep(state, &label, process, mounts, network)?;
        let text = Instruction {
            text: by,
            ..instruction.clone()
        };
        self.done(state, key, &text, layer)
    }

    /// Everything that decides what the step makes, as far as a build can know it.
    #[expect(clippy::too_many_arguments, reason = "each is one input of the key")]
    fn run_key(
        &self,
        stage: usize,
        state: &State,
        instruction: &Instruction,
        program: &Program,
        env: &[(String, String)],
        flags: &[StepMount],
        network: Network,
    ) -> Result<Digest> {
        let mut key = Key::new("run", &state.layers, self.epoch);
        key.text(&format!("{} {network:?}", state.platform));
        key.text(&format!("{:?} {:?}", program.arguments, program.script));
        key.text(&format!("{env:?} {:?} {:?}", state.workdir(), state.user()));
        for mount in flags {
            key.text(&format!("{mount:?}"));
            if let StepMount::Bind { from, source, .. } = mount {
                let visible = Ignore::default();
                let from = self.mount_view(stage, state, instruction, from.as_deref())?;
                let origin = self.origin(from.as_ref(), &visible, &visible);
                let selected = super::source::Selected {
                    name: PathBuf::new(),
                    found: origin
                        .view
                        .resolve(Path::new(source), super::view::Last::Follow)?
                        .existing()
                        .ok_or_else(|| missing(source))?,
                };
                let walked = origin.walk(&selected)?;
                origin.hash(&walked, key.hasher())?;
            }
        }
        Ok(key.finish())
    }

    fn mount_view(
        &self,
        stage: usize,
        state: &State,
        instruction: &Instruction,
        from: Option<&str>,
    ) -> Result<Option<View>> {
        let Some(name) = from else {
            return Ok(None);
        };
        let base = plan::source(self.dockerfile, stage, name, instruction.line)
            .map_err(|flaw| invalid(flaw.message))?;
        self.view_of(&base, state).map(Some)
    }

    fn mounts(
        &self,
        stage: usize,
        state: &State,
        instruction: &Instruction,
        flags: &[StepMount],
    ) -> Result<Mounts> {
        let mut mounts = Mounts::default();
        let absolute = |target: &str| {
            let path = Path::new(&state.workdir()).join(target);
            path.to_str()
                .map(str::to_owned)
                .ok_or_else(|| invalid("a mount's target is not UTF-8"))
        };
        for flag in flags {
            match flag {
                StepMount::Tmpfs { target, size } => {
                    let target = absolute(target)?;
                    mounts.targets.push(target.clone());
                    mounts.list.push(Mount::Tmpfs {
                        target: target.into(),
                        size: *size,
                        mode: 0o1777,
                        executable: true,
                    });
                }
                StepMount::Bind { from, source, target } => {
                    let visible = Ignore::default();
                    let from = self.mount_view(stage, state, instruction, from.as_deref())?;
                    let origin = self.origin(from.as_ref(), &visible, &visible);
                    let path = self.materialize(&origin, source)?;
                    mounts.bind(path, absolute(target)?, true);
                }
                StepMount::Cache {
                    id,
                    target,
                    read_only,
                    sharing,
                    uid,
                    gid,
                    mode,
                } => {
                    let (path, lock) = self.cache_directory(id, *sharing, (*uid, *gid), *mode)?;
                    mounts.locks.extend(lock);
                    mounts.bind(path, absolute(target)?, *read_only);
                }
                StepMount::Secret { id, .. } => match self.request.secrets.get(id) {
                    Some(source) => self.secret(&mut mounts, flag, source, &absolute)?,
                    None if matches!(flag, StepMount::Secret { required: true, .. }) => {
                        return Err(Error::new(
                            Kind::NotFound,
                            format!("cannot find the secret `{}`", id.escape_debug()),
                        )
                        .hint(format!("pass it with `--secret id={id},src=FILE`")));
                    }
                    None => {}
                },
            }
        }
        Ok(mounts)
    }

    fn secret(
        &self,
        mounts: &mut Mounts,
        flag: &StepMount,
        source: &Path,
        absolute: &dyn Fn(&str) -> Result<String>,
    ) -> Result<()> {
        let StepMount::Secret {
            id,
            target,
            env,
            uid,
            gid,
            mode,
            ..
        } = flag
        else {
            return Ok(());
        };
        let content = std::fs::read(source)
            .map_err(|error| Error::io(format!("cannot read the secret `{}`", source.display()), error))?;
        if let Some(name) = env {
            let value = String::from_utf8(content.clone())
                .map_err(|_| invalid(format!("the secret `{id}` is not UTF-8 and cannot be a variable")))?;
            mounts.env.push((name.clone(), value));
            if target.is_none() {
                return Ok(());
            }
        }
        let path = self.fresh("secret")?.join("secret");
        write_owned(&path, &content, *uid, *gid, *mode)?;
        let target = target.clone().unwrap_or_else(|| format!("/run/secrets/{id}"));
        mounts.bind(path, absolute(&target)?, true);
        Ok(())
    }

    /// A cache's own directory, named by what its id hashes to, and the lock that its sharing asks for. Only whole
    /// caches are mounted, from a directory that only Luna can rename.
    fn cache_directory(
        &self,
        id: &str,
        sharing: Sharing,
        (uid, gid): (u32, u32),
        mode: u32,
    ) -> Result<(PathBuf, Option<OwnedFd>)> {
        let caches = self.store.root().join("build/mounts");
        files::create_private_directory(&caches)?;
        let name = Digest::of(id.as_bytes()).hex();
        let mut number = 0u32;
        let (path, lock) = loop {
            let path = caches.join(if number == 0 {
                name.clone()
            } else {
                format!("{name}-{number}")
            });
            let lock = path.with_extension("lock");
            match sharing {
                Sharing::Shared => break (path, Some(files::lock(&lock, FlockOperation::LockShared)?)),
                Sharing::Locked => break (path, Some(files::lock(&lock, FlockOperation::LockExclusive)?)),
                Sharing::Private => match files::try_lock(&lock)? {
                    Some(lock) => break (path, Some(lock)),
                    None => number += 1,
                },
            }
        };
        let failed = |error| Error::io(format!("cannot prepare the cache `{}`", id.escape_debug()), error);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {
                chown(&path, Some(uid), Some(gid)).map_err(failed)?;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
        Ok((path, lock))
    }

    /// Lays the host's certificates over the step. A variable that the image sets itself stays.
    fn trust(&self, mounts: &mut Mounts, env: &[(String, String)]) {
        let Some(trust) = &self.trust else {
            return;
        };
        for (source, target) in &trust.files {
            mounts.bind(source.clone(), (*target).to_owned(), true);
        }
        for (name, value) in &trust.env {
            if !env.iter().any(|(known, _)| known == name) {
                mounts.env.push(((*name).to_owned(), (*value).to_owned()));
            }
        }
    }

    fn run_and_keep(
        &self,
        state: &State,
        label: &str,
        process: Process,
        mounts: Mounts,
        network: Network,
    ) -> Result<Option<Layer>> {
        let below = self.view(state)?;
        let stubs = Stubs::note(&below, mounts.targets.iter().map(String::as_str));
        let directory = self.fresh("step")?;
        let base = self.request.id_base;
        let mode = below.root()?.meta.mode;
        let make = |name: &str, mode: u32| -> Result<PathBuf> {
            let path = directory.join(name);
            let failed = |error| Error::io(format!("cannot prepare `{}`", path.display()), error);
            std::fs::create_dir(&path).map_err(failed)?;
            chown(&path, Some(base), Some(base)).map_err(failed)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
            Ok(path)
        };
        let (upper, work) = (make("upper", mode)?, make("work", 0o700)?);
        let mut lower = self.directories(&state.layers);
        if lower.is_empty() {
            lower.push(make("lower", 0o755)?);
        }
        let shown = process.args.clone();
        let tail = Tail::default();
        let output = |bytes: &[u8]| {
            tail.add(bytes);
            (self.progress)(Progress::Output {
                text: String::from_utf8_lossy(bytes).into_owned(),
            });
        };
        let step = Step {
            label,
            tree: Tree {
                lower,
                upper: upper.clone(),
                work,
                read_only: false,
            },
            process,
            mounts: mounts.list.clone(),
            network,
            output: Output(&output),
        };
        let status = (self.run.borrow_mut())(step)?;
        drop(mounts);
        if !status.success() {
            return Err(failure(&shown, status, &tail, network));
        }
        stubs.remove(&upper, &below, base)?;
        let archive = self.archive_file()?;
        let file = archive.handle();
        let mut out = std::io::BufWriter::with_capacity(256 << 10, file);
        crate::diff::write_tar(&upper, base, self.request.rootless, self.epoch, &mut out)?;
        let mut file = out
            .into_inner()
            .map_err(|error| Error::io("cannot write a layer's archive", error.into_error()))?;
        let reading = |error| Error::io("cannot read a layer's archive", error);
        let empty = file.stream_position().map_err(reading)? <= 1024;
        file.seek(SeekFrom::Start(0)).map_err(reading)?;
        let layer = if empty {
            None
        } else {
            Some(
                self.store
                    .add_layer(&mut file, Compression::default(), self.progress)?,
            )
        };
        crate::layer::remove::remove_tree(&directory)?;
        Ok(layer)
    }
}

impl Mounts {
    fn bind(&mut self, source: PathBuf, target: String, read_only: bool) {
        self.targets.push(target.clone());
        self.list.push(Mount::Bind {
            source,
            target: target.into(),
            read_only,
        });
    }
}

/// What RUN executes.
struct Program {
    arguments: Vec<String>,
    /// A here-document with an interpreter line, to be laid at [`SCRIPT`].
    script: Option<String>,
}

/// A command that is nothing but a here-document is the script in it; any other is for the shell, with its
/// here-documents behind it as written.
fn program(state: &State, run: &Run) -> Program {
    let Command::Shell(text) = &run.command else {
        return Program {
            arguments: state.arguments_of(&run.command),
            script: None,
        };
    };
    if let [only] = &run.heredocs[..]
        && !text.contains(char::is_whitespace)
        && text.starts_with("<<")
    {
        return script(state, only);
    }
    let mut text = text.clone();
    for heredoc in &run.heredocs {
        text.push('\n');
        text.push_str(heredoc.raw.strip_suffix('\n').unwrap_or(&heredoc.raw));
    }
    if !run.heredocs.is_empty() {
        text.push('\n');
    }
    Program {
        arguments: state.arguments_of(&Command::Shell(text)),
        script: None,
    }
}

fn script(state: &State, heredoc: &Heredoc) -> Program {
    if heredoc.content.starts_with("#!") {
        return Program {
            arguments: vec![SCRIPT.to_owned()],
            script: Some(heredoc.content.clone()),
        };
    }
    Program {
        arguments: state.arguments_of(&Command::Shell(heredoc.content.clone())),
        script: None,
    }
}

/// As docker writes it: `RUN |1 name=value /bin/sh -c make`.
fn history(
    arguments: &BTreeMap<String, String>,
    env: &[(String, String)],
    program: &Program,
    run: &Run,
) -> String {
    let shown: Vec<String> = arguments
        .iter()
        .filter(|(name, _)| !env.iter().any(|(known, _)| known == *name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let with = match shown.len() {
        0 => String::new(),
        count => format!("|{count} {} ", shown.join(" ")),
    };
    let mut text = format!("RUN {with}{}", program.arguments.join(" "));
    if !run.heredocs.is_empty() && program.script.is_some() {
        text.push_str(" (a here-document)");
    }
    text
}

/// The last lines of a step's output, for the error.
#[derive(Default)]
struct Tail(Mutex<VecDeque<u8>>);

impl Tail {
    const LENGTH: usize = 4096;

    fn add(&self, bytes: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        kept.extend(&bytes[bytes.len().saturating_sub(Tail::LENGTH)..]);
        let over = kept.len().saturating_sub(Tail::LENGTH);
        kept.drain(..over);
    }

    fn text(&self) -> String {
        let mut kept = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        String::from_utf8_lossy(kept.make_contiguous()).into_owned()
    }
}

/// What resolvers and libraries say where there is no network.
const OFFLINE: [&str; 6] = [
    "Temporary failure resolving",
    "Temporary failure in name resolution",
    "Could not resolve",
    "EAI_AGAIN",
    "Network is unreachable",
    "Name or service not known",
];

fn failure(arguments: &[String], status: ExitStatus, tail: &Tail, network: Network) -> Error {
    let how = match status {
        ExitStatus::Code(code) => format!("the command ended with exit code {code}"),
        ExitStatus::Signal { number, .. } => format!("the command was killed by signal {number}"),
    };
    let text = tail.text();
    let mut lines: Vec<&str> = text
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines.drain(..lines.len().saturating_sub(LAST_LINES));
    let said = if lines.is_empty() {
        how
    } else {
        format!("{how}; its last output: {}", lines.join(" / "))
    };
    let shown = arguments.join(" ");
    let shown: String = shown.chars().take(200).collect();
    let error = Error::new(Kind::Conflict, format!("cannot run `{}`", shown.escape_debug())).because(said);
    if network == Network::None && OFFLINE.iter().any(|sign| text.contains(sign)) {
        return error.hint("give the build a network with `--network host`");
    }
    error
}

fn missing(source: &str) -> Error {
    Error::new(
        Kind::NotFound,
        format!("cannot mount `{}`", source.escape_debug()),
    )
    .because("there is no such file")
}

fn write_owned(path: &Path, content: &[u8], uid: u32, gid: u32, mode: u32) -> Result<()> {
    let failed = |error| Error::io(format!("cannot write `{}`", path.display()), error);
    std::fs::write(path, content).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    chown(path, Some(uid), Some(gid)).map_err(failed)
}
