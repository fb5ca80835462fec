//! A stage while it is built: the config its instructions change, and the layers below the next one.

use std::collections::BTreeMap;

use luna_core::{Error, Kind, Result};
use oci_spec::image::{Arch, Config, History, ImageConfiguration, ImageConfigurationBuilder, Os, RootFs};

use super::dockerfile::{Command, Healthcheck};
use crate::{Extensions, Image, Layer, Platform};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Labels by which an image asks for something.
const REQUEST: &str = "dev.luna.request.";

#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) spec: ImageConfiguration,
    pub(crate) extensions: Extensions,
    /// Bottom first.
    pub(crate) layers: Vec<Layer>,
    /// As asked for; the base image may say it more exactly.
    pub(crate) platform: Platform,
    /// ARGs of this stage that have a value.
    pub(crate) arguments: BTreeMap<String, String>,
    command_is_own: bool,
}

impl State {
    pub(crate) fn scratch(platform: &Platform) -> Result<State> {
        let mut spec = ImageConfigurationBuilder::default()
            .architecture(Arch::from(platform.architecture.as_str()))
            .os(Os::from(platform.os.as_str()))
            .rootfs(RootFs::default())
            .history(Vec::new())
            .build()
            .map_err(|error| Error::new(Kind::Internal, "cannot write a config").because(error))?;
        spec.set_variant(platform.variant.clone());
        Ok(State::over(
            spec,
            Extensions::default(),
            Vec::new(),
            platform.clone(),
        ))
    }

    /// Begins where an image ends. Its ONBUILD triggers would run now, and are refused. What the labels of an image
    /// from elsewhere request is left out: what is built here may be granted it.
    pub(crate) fn of_image(image: &Image, platform: &Platform) -> Result<State> {
        if image
            .extensions
            .on_build
            .as_ref()
            .is_some_and(|triggers| !triggers.is_empty())
        {
            return Err(
                Error::new(Kind::Unsupported, format!("cannot build on `{}`", image.name()))
                    .because("it has ONBUILD instructions"),
            );
        }
        let mut state = State::over(
            image.config.clone(),
            image.extensions.clone(),
            image.layers.clone(),
            platform.clone(),
        );
        if !image.built_here {
            state.drop_requests();
        }
        Ok(state)
    }

    fn drop_requests(&mut self) {
        let Some(mut labels) = self.config().labels().clone() else {
            return;
        };
        labels.retain(|name, _| !name.starts_with(REQUEST));
        self.change(|config| {
            config.set_labels((!labels.is_empty()).then_some(labels));
        });
    }

    /// Begins where another stage ended.
    pub(crate) fn of_stage(stage: &State, platform: &Platform) -> State {
        State::over(
            stage.spec.clone(),
            stage.extensions.clone(),
            stage.layers.clone(),
            platform.clone(),
        )
    }

    fn over(
        mut spec: ImageConfiguration,
        extensions: Extensions,
        layers: Vec<Layer>,
        platform: Platform,
    ) -> State {
        let mut config = spec.config().clone().unwrap_or_default();
        if config.env().as_ref().is_none_or(Vec::is_empty) {
            config.set_env(Some(vec![PATH.to_owned()]));
        }
        spec.set_config(Some(config));
        State {
            spec,
            extensions,
            layers,
            platform,
            arguments: BTreeMap::new(),
            command_is_own: false,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        self.spec.config().as_ref().expect("set when the state was made")
    }

    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = self.config().clone();
        change(&mut config);
        self.spec.set_config(Some(config));
    }

    /// The image's variables, in order.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let pairs = self.config().env().iter().flatten();
        pairs
            .filter_map(|pair| pair.split_once('='))
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .collect()
    }

    /// What `$name` means in an instruction: ENV first, then ARG.
    pub(crate) fn lookup(&self, name: &str) -> Option<String> {
        let env = self.env().into_iter().rev().find(|(known, _)| known == name);
        env.map(|(_, value)| value)
            .or_else(|| self.arguments.get(name).cloned())
    }

    pub(crate) fn set_env(&mut self, pairs: &[(String, String)]) {
        let mut env = self.config().env().clone().unwrap_or_default();
        for (name, value) in pairs {
            let pair = format!("{name}={value}");
            let known = env
                .iter()
                .position(|old| old.split_once('=').is_some_and(|(old, _)| old == name));
            match known {
                Some(at) => env[at] = pair,
                None => env.push(pair),
            }
        }
        self.change(|config| {
            config.set_env(Some(env));
        });
    }

    pub(crate) fn workdir(&self) -> String {
        let workdir = self.config().working_dir().clone().unwrap_or_default();
        if workdir.starts_with('/') {
            workdir
        } else {
            format!("/{workdir}")
        }
    }

    pub(crate) fn user(&self) -> String {
        self.config().user().clone().unwrap_or_default()
    }

    fn shell(&self) -> Vec<String> {
        let shell = self.extensions.shell.clone().filter(|shell| !shell.is_empty());
        shell.unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned()])
    }

    /// The arguments to execute for a command in either form.
    pub(crate) fn arguments_of(&self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(arguments) => arguments.clone(),
            Command::Shell(text) => {
                let mut arguments = self.shell();
                arguments.push(text.clone());
                arguments
            }
        }
    }

    pub(crate) fn set_command(&mut self, command: &Command) {
        let arguments = self.arguments_of(command);
        self.command_is_own = true;
        self.change(|config| {
            config.set_cmd(Some(arguments));
        });
    }

    /// An inherited CMD was meant for the inherited ENTRYPOINT and goes with it.
    pub(crate) fn set_entrypoint(&mut self, command: &Command) {
        let arguments = self.arguments_of(command);
        let keep = self.command_is_own;
        self.change(|config| {
            config.set_entrypoint(Some(arguments));
            if !keep {
                config.set_cmd(None);
            }
        });
    }

    pub(crate) fn set_labels(&mut self, pairs: impl IntoIterator<Item = (String, String)>) {
        let mut labels = self.config().labels().clone().unwrap_or_default();
        labels.extend(pairs);
        if !labels.is_empty() {
            self.change(|config| {
                config.set_labels(Some(labels));
            });
        }
    }

    pub(crate) fn add_volumes(&mut self, more: Vec<String>) {
        let mut volumes = self.config().volumes().clone().unwrap_or_default();
        volumes.extend(more);
        volumes.sort();
        volumes.dedup();
        self.change(|config| {
            config.set_volumes(Some(volumes));
        });
    }

    /// Adds ports written `80`, `80/udp` or `8000-8010`; an error is the sentence to show.
    pub(crate) fn add_ports(&mut self, more: &[String]) -> std::result::Result<(), String> {
        let mut ports = self.config().exposed_ports().clone().unwrap_or_default();
        for text in more {
            let invalid = || format!("`{}` is no port to expose", text.escape_debug());
            let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let protocol = protocol.to_ascii_lowercase();
            if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
                return Err(invalid());
            }
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let number = |text: &str| {
                text.parse::<u16>()
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(invalid)
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(invalid());
            }
            ports.extend((first..=last).map(|port| format!("{port}/{protocol}")));
        }
        ports.sort();
        ports.dedup();
        self.change(|config| {
            config.set_exposed_ports(Some(ports));
        });
        Ok(())
    }

    pub(crate) fn set_healthcheck(&mut self, check: &Healthcheck) {
        self.extensions.healthcheck = Some(match check {
            Healthcheck::Disabled => crate::Healthcheck {
                test: vec!["NONE".to_owned()],
                ..crate::Healthcheck::default()
            },
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                retries,
            } => {
                let mut test = Vec::new();
                match command {
                    Command::Exec(arguments) => {
                        test.push("CMD".to_owned());
                        test.extend(arguments.iter().cloned());
                    }
                    Command::Shell(text) => test.extend(["CMD-SHELL".to_owned(), text.clone()]),
                }
                crate::Healthcheck {
                    test,
                    interval: *interval,
                    timeout: *timeout,
                    start_period: *start_period,
                    retries: *retries,
                }
            }
        });
    }

    /// Notes an instruction as done at `created`, with its layer if it made one.
    pub(crate) fn record(&mut self, created: String, by: String, layer: Option<Layer>) {
        let mut entry = History::default();
        entry.set_created(Some(created.clone()));
        entry.set_created_by(Some(by));
        entry.set_comment(Some("luna build".to_owned()));
        if layer.is_none() {
            entry.set_empty_layer(Some(true));
        }
        let mut history = self.spec.history().clone().unwrap_or_default();
        history.push(entry);
        self.spec.set_history(Some(history));
        self.spec.set_created(Some(created));
        self.layers.extend(layer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_change_the_config_as_docker_does() {
        let mut state = State::scratch(&Platform::host()).unwrap();
        assert_eq!(state.env()[0].0, "PATH");
        state.set_command(&Command::Exec(vec!["a".to_owned()]));
        let mut child = State::of_stage(&state, &Platform::host());
        child.set_entrypoint(&Command::Shell("b c".to_owned()));
        assert_eq!(child.config().cmd(), &None);
        assert_eq!(
            child.config().entrypoint().as_deref().unwrap(),
            ["/bin/sh", "-c", "b c"]
        );
        state.set_entrypoint(&Command::Exec(vec!["b".to_owned()]));
        assert_eq!(state.config().cmd().as_deref().unwrap(), ["a"]);
        state.set_env(&[("A".to_owned(), "1".to_owned())]);
        state.arguments.insert("A".to_owned(), "argument".to_owned());
        state.arguments.insert("B".to_owned(), "argument".to_owned());
        state.set_env(&[("A".to_owned(), "2".to_owned())]);
        assert_eq!(state.lookup("A").as_deref(), Some("2"));
        assert_eq!(state.lookup("B").as_deref(), Some("argument"));
        assert_eq!(state.env().len(), 2);
    }

    #[test]
    fn a_foreign_image_requests_nothing_through_what_is_built_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = crate::Store::with_limits(directory.path(), false, crate::Limits::default()).unwrap();
        let request = format!("{REQUEST}nested-userns");
        let labels = [
            (request.clone(), "true".to_owned()),
            ("own".to_owned(), "1".to_owned()),
        ];
        let changes = crate::ConfigChanges {
            labels: labels.iter().cloned().collect(),
            ..crate::ConfigChanges::default()
        };
        let empty = [0; 1024];
        let mut image = crate::import(&store, &mut &empty[..], None, &changes, &|_| {}).unwrap();
        let begun = |image: &Image| State::of_image(image, &Platform::host()).unwrap();
        let has = |state: &State, name: &str| {
            let labels = state.config().labels().clone().unwrap_or_default();
            labels.contains_key(name)
        };
        let mut state = begun(&image);
        assert!(!has(&state, &request) && has(&state, "own"));
        state.set_labels([(request.clone(), "true".to_owned())]);
        assert!(has(&State::of_stage(&state, &Platform::host()), &request));
        image.built_here = true;
        assert!(has(&begun(&image), &request));
    }

    #[test]
    fn ports_are_checked() {
        let mut state = State::scratch(&Platform::host()).unwrap();
        let ports = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        state.add_ports(&ports(&["80", "53/UDP", "8000-8002"])).unwrap();
        assert_eq!(
            state.config().exposed_ports().as_deref().unwrap(),
            ["53/udp", "80/tcp", "8000/tcp", "8001/tcp", "8002/tcp"]
        );
        for bad in ["", "0", "x", "80/x", "9-8", "65536", "127.0.0.1:80:80"] {
            assert!(state.add_ports(&ports(&[bad])).is_err(), "{bad}");
        }
    }
}
