//! Goes through a plan: stage by stage, instruction by instruction. Metadata is changed here; files come from
//! [`super::copying`], programs run in [`super::running`].

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use luna_core::event::{Progress, Sink};
use luna_core::process::ExitStatus;
use luna_core::{Error, Kind, Result};

use super::BuildRequest;
use super::dockerfile::{Action, Declaration, Dockerfile, Instruction};
use super::expand;
use super::ignore::Ignore;
use super::plan::{Base, PREDEFINED, Plan, platform_arguments};
use super::state::State;
use super::step::Step;
use super::trust::Trust;
use super::view::View;
use super::{cache, time};
use crate::files::Temporary;
use crate::{Digest, Image, Layer, Platform, Reference, Store};

/// What runs a step.
pub(crate) type Runner<'a> = &'a mut dyn FnMut(Step<'_>) -> Result<ExitStatus>;

pub(crate) struct Builder<'a> {
    pub(crate) store: &'a Store,
    pub(crate) request: &'a BuildRequest,
    pub(crate) dockerfile: &'a Dockerfile,
    pub(crate) plan: &'a Plan,
    /// The Dockerfile's name in errors.
    pub(crate) file: String,
    pub(crate) context: View,
    pub(crate) ignore: Ignore,
    /// Images that stages begin with or copy from.
    pub(crate) images: BTreeMap<(Reference, String), Image>,
    pub(crate) finished: BTreeMap<usize, State>,
    /// `RefCell`, because a step borrows the builder while it runs.
    pub(crate) run: RefCell<Runner<'a>>,
    pub(crate) progress: Sink<'a>,
    /// No time is later than this.
    pub(crate) epoch: Option<u64>,
    pub(crate) temporary: Temporary,
    pub(crate) trust: Option<Trust>,
    pub(crate) counter: usize,
    pub(crate) total: usize,
}

impl Builder<'_> {
    /// Builds every stage of the plan; the last one is the answer.
    pub(crate) fn build(&mut self) -> Result<State> {
        let plan = self.plan;
        self.total = plan
            .stages
            .iter()
            .flat_map(|(index, ..)| &self.dockerfile.stages[*index].instructions)
            .filter(|instruction| is_counted(&instruction.action))
            .count()
            + plan.stages.len();
        for (index, base, platform) in &plan.stages {
            let state = self.stage(*index, base, platform)?;
            self.finished.insert(*index, state);
        }
        let (target, ..) = plan.stages.last().expect("a Dockerfile has a stage");
        Ok(self.finished.remove(target).expect("just built"))
    }

    fn stage(&mut self, index: usize, base: &Base, platform: &Platform) -> Result<State> {
        let stage = &self.dockerfile.stages[index];
        let name = stage
            .name
            .as_ref()
            .map_or(String::new(), |name| format!(" AS {name}"));
        let mut state = match base {
            Base::Scratch => State::scratch(platform)?,
            Base::Stage(other) => State::of_stage(
                self.finished.get(other).expect("planned before this one"),
                platform,
            ),
            Base::Image(reference) => {
                let image = self.image(reference, platform);
                State::of_image(image, platform).map_err(|error| self.at(stage.line, error))?
            }
        };
        let shown = match base {
            Base::Image(reference) => reference.familiar(),
            _ => stage.image.clone(),
        };
        self.announce(false, &format!("FROM {shown}{name}"));
        for instruction in &stage.instructions {
            self.instruction(index, &mut state, instruction)
                .map_err(|error| self.at(instruction.line, error))?;
        }
        Ok(state)
    }

    /// An image that was made sure to be here before the first step.
    pub(crate) fn image(&self, reference: &Reference, platform: &Platform) -> &Image {
        self.images
            .get(&(reference.clone(), platform.to_string()))
            .expect("every image of the plan was found before the first step")
    }

    fn instruction(&mut self, stage: usize, state: &mut State, instruction: &Instruction) -> Result<()> {
        let layer = match &instruction.action {
            Action::Run(run) => return self.run(stage, state, instruction, run),
            Action::Copy(copy) => return self.copy(stage, state, instruction, copy),
            Action::Workdir(path) => return self.workdir(state, instruction, path),
            Action::Arg(declarations) => {
                self.declare(state, declarations)?;
                None
            }
            action => {
                self.metadata(state, action)?;
                None
            }
        };
        let created = self.created(state);
        state.record(created, instruction.text.clone(), layer);
        Ok(())
    }

    fn metadata(&self, state: &mut State, action: &Action) -> Result<()> {
        match action {
            Action::Env(pairs) => {
                // All pairs see the environment from before the instruction.
                let pairs = self.expand_pairs(state, pairs)?;
                state.set_env(&pairs);
            }
            Action::Label(pairs) => state.set_labels(self.expand_pairs(state, pairs)?),
            Action::User(user) => {
                let user = self.expand(state, user)?;
                if user.is_empty() {
                    return Err(invalid("the user's name is empty"));
                }
                state.change(|config| {
                    config.set_user(Some(user));
                });
            }
            Action::Expose(ports) => {
                let mut words = Vec::new();
                for port in ports {
                    words.extend(self.expand(state, port)?.split_whitespace().map(str::to_owned));
                }
                state.add_ports(&words).map_err(invalid)?;
            }
            Action::Volume(paths) => {
                let paths = paths
                    .iter()
                    .map(|path| self.expand(state, path))
                    .collect::<Result<Vec<_>>>()?;
                if paths.iter().any(|path| path.trim().is_empty()) {
                    return Err(invalid("a volume's path is empty"));
                }
                state.add_volumes(paths);
            }
            Action::Command(command) => state.set_command(command),
            Action::Entrypoint(command) => state.set_entrypoint(command),
            Action::Shell(shell) => state.extensions.shell = Some(shell.clone()),
            Action::StopSignal(signal) => {
                let signal = self.expand(state, signal)?;
                let name = signal.strip_prefix("SIG").unwrap_or(&signal);
                let known = !name.is_empty()
                    && name
                        .bytes()
                        .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-'));
                if !known {
                    return Err(invalid(format!("`{}` is no signal", signal.escape_debug())));
                }
                state.change(|config| {
                    config.set_stop_signal(Some(signal));
                });
            }
            Action::Healthcheck(check) => state.set_healthcheck(check),
            Action::Author(author) => {
                state.spec.set_author(Some(author.clone()));
            }
            Action::Run(_) | Action::Copy(_) | Action::Workdir(_) | Action::Arg(_) => {
                unreachable!("these make layers or arguments")
            }
        }
        Ok(())
    }

    /// ARG: the user's value, else its default, else that of an ARG before the first FROM or of the platform.
    fn declare(&self, state: &mut State, declarations: &[Declaration]) -> Result<()> {
        for declaration in declarations {
            let name = &declaration.name;
            let default = match &declaration.default {
                Some(default) => Some(self.expand(state, default)?),
                None => None,
            };
            let given = self.request.arguments.get(name).cloned();
            let automatic = || platform_arguments(&state.platform).remove(name);
            let global = || self.plan.globals.get(name).cloned().flatten();
            if let Some(value) = given.or(default).or_else(global).or_else(automatic) {
                state.arguments.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    pub(crate) fn expand(&self, state: &State, text: &str) -> Result<String> {
        expand::word(text, self.dockerfile.escape, &|name| state.lookup(name)).map_err(invalid)
    }

    fn expand_pairs(&self, state: &State, pairs: &[(String, String)]) -> Result<Vec<(String, String)>> {
        pairs
            .iter()
            .map(|(name, value)| Ok((self.expand(state, name)?, self.expand(state, value)?)))
            .collect()
    }

    /// ARGs as RUN sees them, with the predefined ones that were given: those count for nothing but the step.
    pub(crate) fn run_arguments(
        &self,
        state: &State,
    ) -> (BTreeMap<String, String>, BTreeMap<String, String>) {
        let given = &self.request.arguments;
        let hidden = PREDEFINED
            .iter()
            .filter(|name| !state.arguments.contains_key(**name))
            .filter_map(|name| Some(((*name).to_owned(), given.get(*name)?.clone())))
            .collect();
        (state.arguments.clone(), hidden)
    }

    /// The stage's layers as one file system.
    pub(crate) fn view(&self, state: &State) -> Result<View> {
        View::of_layers(&self.directories(&state.layers))
    }

    /// Topmost first.
    pub(crate) fn directories(&self, layers: &[Layer]) -> Vec<PathBuf> {
        layers
            .iter()
            .rev()
            .map(|layer| self.store.layer_directory(layer))
            .collect()
    }

    /// When metadata was made: with the layer below it, so that a build of known steps gives the known image.
    pub(crate) fn created(&self, state: &State) -> String {
        match (self.epoch, state.spec.created()) {
            (Some(epoch), _) => time::rfc3339(epoch as i64),
            (None, Some(created)) => created.clone(),
            (None, None) => self.now(),
        }
    }

    /// The time of what a build makes, in seconds.
    pub(crate) fn moment(&self) -> i64 {
        self.epoch.map_or_else(time::now, |epoch| epoch as i64)
    }

    /// When a layer is made.
    pub(crate) fn now(&self) -> String {
        time::rfc3339(self.moment())
    }

    /// A known step's record, unless the user wants none.
    pub(crate) fn known(&self, key: Digest) -> Option<cache::Record> {
        if self.request.no_cache {
            return None;
        }
        cache::find(self.store, key)
    }

    /// Says which step begins, or that it need not.
    pub(crate) fn announce(&mut self, cached: bool, text: &str) -> String {
        self.counter += 1;
        let cached = if cached { "CACHED " } else { "" };
        let label = format!("[{}/{}] {cached}{text}", self.counter, self.total);
        (self.progress)(Progress::Note { text: label.clone() });
        label
    }

    fn at(&self, line: usize, error: Error) -> Error {
        error.context(format!("cannot build `{}:{line}`", self.file))
    }
}

fn is_counted(action: &Action) -> bool {
    matches!(action, Action::Run(_) | Action::Copy(_) | Action::Workdir(_))
}

/// What is wrong with an instruction once its variables are known. Its place is added by the caller.
pub(crate) fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::InvalidInput, why.into())
}
