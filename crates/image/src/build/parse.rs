//! A Dockerfile's text as instructions: pure, bounded, and complete in its refusals. What Luna cannot build is a
//! [`Flaw`] here, before anything runs.
//!
//! The grammar is the `parse-dockerfile` crate's; here-documents ([`super::heredoc`]) and words with quotes are read
//! beside it. A `# syntax=` line is kept for the caller to mention: Luna has one frontend, its own, and fetches none
//! (BuildKit's remote frontends run code before the first instruction).

use parse_dockerfile as grammar;

use super::dockerfile::{
    Action, Command, Copy, Declaration, Dockerfile, Flaw, Healthcheck, Instruction, Run, RunNetwork, Source,
    Stage,
};
use super::flags;
use super::heredoc::{self, Heredoc};
use super::words;

/// A Dockerfile longer than this is refused.
pub(super) const MAXIMUM_LENGTH: usize = 4 << 20;
/// More instructions than this are refused.
pub(super) const MAXIMUM_INSTRUCTIONS: usize = 10_000;

/// Reads a Dockerfile. Never panics, never reads anything but `bytes`.
pub fn parse(bytes: &[u8]) -> Result<Dockerfile, Flaw> {
    if bytes.len() > MAXIMUM_LENGTH {
        return Err(Flaw::new(0, format!("it is longer than {MAXIMUM_LENGTH} bytes")));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let line = Lines::new(&valid).of(valid.len());
        Flaw::new(line, "it is not UTF-8 text")
    })?;
    if let Some(at) = text.find('\0') {
        return Err(Flaw::new(Lines::new(text).of(at), "it holds a zero byte"));
    }
    let escape = escape_of(text);
    let masked = heredoc::mask(text, escape)?;
    let parsed = grammar::parse(&masked.text).map_err(|error| {
        let message = format!("{error:#}");
        let flaw = Flaw::new(error.line(), message.clone());
        if message.starts_with("unknown instruction") {
            flaw.hint("end the line before it with `\\` if it continues that line")
        } else {
            flaw
        }
    })?;
    if parsed.instructions.len() > MAXIMUM_INSTRUCTIONS {
        return Err(Flaw::new(
            0,
            format!("it has more than {MAXIMUM_INSTRUCTIONS} instructions"),
        ));
    }
    let reader = Reader {
        text,
        lines: Lines::new(text),
        escape: escape as char,
        heredocs: &masked.heredocs,
    };
    let mut dockerfile = Dockerfile {
        syntax: parsed
            .parser_directives
            .syntax
            .as_ref()
            .map(|syntax| syntax.value.value.to_owned()),
        escape: reader.escape,
        arguments: Vec::new(),
        stages: Vec::new(),
    };
    for instruction in &parsed.instructions {
        match instruction {
            grammar::Instruction::From(from) => dockerfile.stages.push(reader.stage(from)?),
            other => {
                let read = reader.instruction(other)?;
                match (dockerfile.stages.last_mut(), read.action) {
                    (None, Action::Arg(declarations)) => dockerfile.arguments.extend(declarations),
                    (Some(stage), action) => stage.instructions.push(Instruction { action, ..read }),
                    (None, _) => return Err(Flaw::new(read.line, "FROM has to come first")),
                }
            }
        }
    }
    Ok(dockerfile)
}

/// The escape directive stands among the comments at the very top.
fn escape_of(text: &str) -> u8 {
    for line in text.lines() {
        let Some((name, value)) = line
            .trim_start()
            .strip_prefix('#')
            .and_then(|rest| rest.split_once('='))
        else {
            break;
        };
        match name.trim().to_ascii_lowercase().as_str() {
            "escape" => return if value.trim() == "`" { b'`' } else { b'\\' },
            "syntax" | "check" => {}
            _ => break,
        }
    }
    b'\\'
}

struct Lines(Vec<usize>);

impl Lines {
    fn new(text: &str) -> Lines {
        Lines(text.match_indices('\n').map(|(at, _)| at).collect())
    }

    fn of(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

struct Reader<'a> {
    text: &'a str,
    lines: Lines,
    escape: char,
    heredocs: &'a [(usize, Heredoc)],
}

impl Reader<'_> {
    fn stage(&self, from: &grammar::FromInstruction<'_>) -> Result<Stage, Flaw> {
        let line = self.lines.of(from.from.span.start);
        let mut platform = None;
        for flag in &from.options {
            match (flag.name.value.as_ref(), &flag.value) {
                ("platform", Some(value)) => platform = Some(value.value.to_string()),
                _ => return Err(unknown_flag(line, "FROM", flag)),
            }
        }
        let name = match &from.as_ {
            None => None,
            Some((_, name)) => {
                let name = name.value.to_ascii_lowercase();
                let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
                    && name
                        .chars()
                        .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
                if !valid {
                    return Err(Flaw::new(
                        line,
                        format!("`{}` is no name for a stage", name.escape_debug()),
                    ));
                }
                Some(name)
            }
        };
        Ok(Stage {
            line,
            name,
            image: from.image.value.to_string(),
            platform,
            instructions: Vec::new(),
        })
    }

    fn instruction(&self, instruction: &grammar::Instruction<'_>) -> Result<Instruction, Flaw> {
        use grammar::Instruction as Grammar;
        let (keyword, span, action) = match instruction {
            Grammar::Run(run) => ("RUN", &run.run.span, self.run(run)?),
            Grammar::Copy(copy) => (
                "COPY",
                &copy.copy.span,
                self.copy("COPY", &copy.copy.span, &copy.options, &copy.src, &copy.dest)?,
            ),
            Grammar::Add(add) => (
                "ADD",
                &add.add.span,
                self.copy("ADD", &add.add.span, &add.options, &add.src, &add.dest)?,
            ),
            Grammar::Env(env) => {
                let line = self.lines.of(env.env.span.start);
                let pairs =
                    words::pairs(&env.arguments.value, self.escape).map_err(|why| Flaw::new(line, why))?;
                ("ENV", &env.env.span, Action::Env(pairs))
            }
            Grammar::Label(label) => {
                let line = self.lines.of(label.label.span.start);
                let pairs =
                    words::pairs(&label.arguments.value, self.escape).map_err(|why| Flaw::new(line, why))?;
                ("LABEL", &label.label.span, Action::Label(pairs))
            }
            Grammar::Arg(arg) => ("ARG", &arg.arg.span, self.arg(arg)?),
            Grammar::Workdir(workdir) => (
                "WORKDIR",
                &workdir.workdir.span,
                Action::Workdir(workdir.arguments.value.to_string()),
            ),
            Grammar::User(user) => (
                "USER",
                &user.user.span,
                Action::User(user.arguments.value.to_string()),
            ),
            Grammar::Expose(expose) => (
                "EXPOSE",
                &expose.expose.span,
                Action::Expose(strings(&expose.arguments)),
            ),
            Grammar::Volume(volume) => (
                "VOLUME",
                &volume.volume.span,
                Action::Volume(match &volume.arguments {
                    grammar::JsonOrStringArray::Json(list) => strings(&list.value),
                    grammar::JsonOrStringArray::String(list) => strings(list),
                }),
            ),
            Grammar::Cmd(cmd) => {
                let (_, command) = self.command(self.lines.of(cmd.cmd.span.start), &cmd.arguments)?;
                ("CMD", &cmd.cmd.span, Action::Command(command))
            }
            Grammar::Entrypoint(entrypoint) => {
                let span = &entrypoint.entrypoint.span;
                let (_, command) = self.command(self.lines.of(span.start), &entrypoint.arguments)?;
                ("ENTRYPOINT", span, Action::Entrypoint(command))
            }
            Grammar::Shell(shell) => (
                "SHELL",
                &shell.shell.span,
                Action::Shell(strings(&shell.arguments)),
            ),
            Grammar::Stopsignal(signal) => (
                "STOPSIGNAL",
                &signal.stopsignal.span,
                Action::StopSignal(signal.arguments.value.to_string()),
            ),
            Grammar::Healthcheck(check) => ("HEALTHCHECK", &check.healthcheck.span, self.healthcheck(check)?),
            Grammar::Maintainer(maintainer) => (
                "MAINTAINER",
                &maintainer.maintainer.span,
                Action::Author(maintainer.name.value.to_string()),
            ),
            Grammar::Onbuild(onbuild) => {
                let line = self.lines.of(onbuild.onbuild.span.start);
                return Err(Flaw::new(line, "ONBUILD is not supported")
                    .hint("write the instruction into the Dockerfiles that build on this image"));
            }
            _ => return Err(Flaw::new(0, "it holds an instruction that is not supported")),
        };
        Ok(Instruction {
            line: self.lines.of(span.start),
            text: self.summary(keyword, span.end),
            action,
        })
    }

    /// The instruction from `start` on as one line.
    fn summary(&self, keyword: &str, start: usize) -> String {
        let joined = words::join(self.text.get(start..).unwrap_or_default(), self.escape);
        let flat: Vec<&str> = joined.split_whitespace().collect();
        format!("{keyword} {}", flat.join(" "))
    }

    fn run(&self, run: &grammar::RunInstruction<'_>) -> Result<Action, Flaw> {
        let line = self.lines.of(run.run.span.start);
        let mut mounts = Vec::new();
        let mut network = RunNetwork::Default;
        for flag in &run.options {
            match (flag.name.value.as_ref(), &flag.value) {
                ("mount", Some(value)) => {
                    let value = value.value.to_string();
                    if !value.contains('$') {
                        flags::StepMount::parse(&value).map_err(|why| Flaw::new(line, why))?;
                    }
                    mounts.push(value);
                }
                ("network", Some(value)) => {
                    network = match value.value.as_ref() {
                        "default" => RunNetwork::Default,
                        "none" => RunNetwork::None,
                        "host" => RunNetwork::Host,
                        other => {
                            return Err(Flaw::new(
                                line,
                                format!(
                                    "`--network={}` is not default, none or host",
                                    other.escape_debug()
                                ),
                            ));
                        }
                    }
                }
                _ => return Err(unknown_flag(line, "RUN", flag)),
            }
        }
        let (span, command) = self.command(line, &run.arguments)?;
        if matches!(&command, Command::Shell(text) if text.trim().is_empty()) {
            return Err(Flaw::new(line, "RUN has no command"));
        }
        let heredocs = self.heredocs.iter().filter(|(at, _)| span.contains(at));
        Ok(Action::Run(Run {
            command,
            heredocs: heredocs.map(|(_, heredoc)| heredoc.clone()).collect(),
            mounts,
            network,
        }))
    }

    fn command(&self, line: usize, command: &grammar::Command<'_>) -> Result<(grammar::Span, Command), Flaw> {
        match command {
            grammar::Command::Exec(list) => Ok((list.span.clone(), Command::Exec(strings(&list.value)))),
            grammar::Command::Shell(text) => {
                let raw = self.text.get(text.span.clone()).unwrap_or(text.value);
                Ok((text.span.clone(), Command::Shell(words::join(raw, self.escape))))
            }
            _ => Err(Flaw::new(line, "this form of command is not supported")),
        }
    }

    fn copy(
        &self,
        keyword: &str,
        span: &grammar::Span,
        options: &[grammar::Flag<'_>],
        sources: &[grammar::Source<'_>],
        destination: &grammar::UnescapedString<'_>,
    ) -> Result<Action, Flaw> {
        let line = self.lines.of(span.start);
        let add = keyword == "ADD";
        let mut copy = Copy {
            add,
            from: None,
            chown: None,
            chmod: None,
            exclude: Vec::new(),
            sources: Vec::new(),
            destination: destination.value.to_string(),
        };
        for flag in options {
            let value = flag.value.as_ref().map(|value| value.value.to_string());
            match (flag.name.value.as_ref(), value) {
                ("from", Some(value)) if !add => {
                    if value.contains('$') {
                        return Err(Flaw::new(
                            line,
                            "`--from` holds a variable, which is not expanded there",
                        )
                        .hint("name the image in a FROM of its own and copy from that stage"));
                    }
                    copy.from = Some(value);
                }
                ("chown", Some(value)) => copy.chown = Some(value),
                ("chmod", Some(value)) => {
                    if !value.contains('$') {
                        flags::mode(&value).map_err(|why| Flaw::new(line, why))?;
                    }
                    copy.chmod = Some(value);
                }
                ("exclude", Some(value)) => copy.exclude.push(value),
                // A layer of Luna's never depends on the layers below it, so there is nothing to do.
                ("link", None) => {}
                ("link", Some(value)) if value == "true" || value == "false" => {}
                _ => return Err(unknown_flag(line, keyword, flag)),
            }
        }
        for source in sources {
            let grammar::Source::Path(path) = source else {
                return Err(Flaw::new(line, "this here-document cannot be read"));
            };
            let heredoc = self.heredocs.iter().find(|(at, _)| *at == path.span.start);
            copy.sources.push(match heredoc {
                Some((_, heredoc)) => Source::Heredoc(heredoc.clone()),
                None => Source::Path(path.value.to_string()),
            });
        }
        if add {
            for source in &copy.sources {
                if let Source::Path(path) = source {
                    flags::local_only(path).map_err(|(why, hint)| Flaw::new(line, why).hint(hint))?;
                }
            }
        }
        Ok(Action::Copy(copy))
    }

    fn arg(&self, arg: &grammar::ArgInstruction<'_>) -> Result<Action, Flaw> {
        let line = self.lines.of(arg.arg.span.start);
        let words = words::split(&arg.arguments.value, self.escape);
        let mut declarations = Vec::new();
        for word in words {
            let (name, default) = match word.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (word, None),
            };
            let valid = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'));
            if !valid {
                return Err(Flaw::new(
                    line,
                    format!("`{}` is no name for an argument", name.escape_debug()),
                ));
            }
            declarations.push(Declaration { line, name, default });
        }
        Ok(Action::Arg(declarations))
    }

    fn healthcheck(&self, check: &grammar::HealthcheckInstruction<'_>) -> Result<Action, Flaw> {
        let line = self.lines.of(check.healthcheck.span.start);
        let grammar::HealthcheckArguments::Cmd { arguments, .. } = &check.arguments else {
            return match check.options.first() {
                Some(flag) => Err(unknown_flag(line, "HEALTHCHECK NONE", flag)),
                None => Ok(Action::Healthcheck(Healthcheck::Disabled)),
            };
        };
        let (mut interval, mut timeout, mut start_period, mut retries) = (0, 0, 0, 0);
        for flag in &check.options {
            let Some(value) = &flag.value else {
                return Err(unknown_flag(line, "HEALTHCHECK", flag));
            };
            let time = || flags::duration(&value.value).map_err(|why| Flaw::new(line, why));
            match flag.name.value.as_ref() {
                "interval" => interval = time()?,
                "timeout" => timeout = time()?,
                "start-period" => start_period = time()?,
                "retries" => {
                    retries = value.value.parse().map_err(|_| {
                        Flaw::new(
                            line,
                            format!("`--retries={}` is no number", value.value.escape_debug()),
                        )
                    })?;
                }
                _ => return Err(unknown_flag(line, "HEALTHCHECK", flag)),
            }
        }
        let (_, command) = self.command(line, arguments)?;
        if matches!(&command, Command::Shell(text) if text.trim().is_empty()) {
            return Err(Flaw::new(line, "HEALTHCHECK CMD has no command"));
        }
        Ok(Action::Healthcheck(Healthcheck::Check {
            command,
            interval,
            timeout,
            start_period,
            retries,
        }))
    }
}

fn strings(list: &[grammar::UnescapedString<'_>]) -> Vec<String> {
    list.iter().map(|string| string.value.to_string()).collect()
}

fn unknown_flag(line: usize, keyword: &str, flag: &grammar::Flag<'_>) -> Flaw {
    let value = flag
        .value
        .as_ref()
        .map_or(String::new(), |value| format!("={}", value.value));
    let text = format!("--{}{value}", flag.name.value);
    Flaw::new(
        line,
        format!("{keyword} with `{}` is not supported", text.escape_debug()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actions(text: &str) -> Vec<Action> {
        let dockerfile = parse(text.as_bytes()).unwrap();
        let stage = dockerfile.stages.into_iter().next_back().unwrap();
        stage
            .instructions
            .into_iter()
            .map(|instruction| instruction.action)
            .collect()
    }

    #[test]
    fn a_whole_file_reads() {
        let text = "# syntax=docker/dockerfile:1\nARG V=12\nFROM debian:${V} AS Base\n\nRUN apt-get update && \\\n    # why\n    apt-get install -y x\nFROM --platform=linux/arm64 base\nCOPY --from=Base --chown=1:2 a b /c/\n";
        let dockerfile = parse(text.as_bytes()).unwrap();
        assert_eq!(dockerfile.syntax.as_deref(), Some("docker/dockerfile:1"));
        assert_eq!(dockerfile.arguments[0].default.as_deref(), Some("12"));
        let [first, second] = &dockerfile.stages[..] else {
            panic!("two stages");
        };
        assert_eq!((first.line, first.name.as_deref()), (3, Some("base")));
        assert_eq!(second.platform.as_deref(), Some("linux/arm64"));
        let run = &first.instructions[0];
        assert_eq!(run.line, 5);
        assert_eq!(run.text, "RUN apt-get update && apt-get install -y x");
        let Action::Run(run) = &run.action else {
            panic!("a RUN");
        };
        assert_eq!(
            run.command,
            Command::Shell("apt-get update &&     apt-get install -y x".to_owned())
        );
        assert_eq!(
            second.instructions[0].text,
            "COPY --from=Base --chown=1:2 a b /c/"
        );
    }

    #[test]
    fn here_documents_reach_their_instructions() {
        let read = actions(
            "FROM a\nRUN --mount=type=tmpfs,target=/t <<EOF\nset -e\necho \"$x\"\nEOF\nRUN python3 - <<'E' > /o\nprint(1)\nE\nCOPY <<a.txt <<-\"b.txt\" /d/\nA $x\na.txt\n\tB\n\tb.txt\nCMD [\"x\"]\n",
        );
        let Action::Run(script) = &read[0] else { panic!() };
        assert_eq!(script.command, Command::Shell("<<EOF".to_owned()));
        assert_eq!(script.heredocs[0].content, "set -e\necho \"$x\"\n");
        assert_eq!(script.mounts.len(), 1);
        let Action::Run(fed) = &read[1] else { panic!() };
        assert_eq!(fed.command, Command::Shell("python3 - <<'E' > /o".to_owned()));
        assert_eq!(fed.heredocs[0].raw, "print(1)\nE\n");
        let Action::Copy(copy) = &read[2] else { panic!() };
        let names: Vec<_> = copy
            .sources
            .iter()
            .map(|source| match source {
                Source::Heredoc(heredoc) => (heredoc.name.as_str(), heredoc.content.as_str(), heredoc.expand),
                Source::Path(path) => panic!("{path}"),
            })
            .collect();
        assert_eq!(names, [("a.txt", "A $x\n", true), ("b.txt", "B\n", false)]);
        assert_eq!(read.len(), 4);
    }

    #[test]
    fn what_is_not_built_is_refused_with_its_line() {
        for (text, line) in [
            ("FROM a\nONBUILD RUN x\n", 2),
            ("FROM a\n\nRUN --security=insecure x\n", 3),
            ("FROM a\nRUN --mount=type=ssh x\n", 2),
            ("FROM a\nRUN --network=all x\n", 2),
            ("FROM a\nADD https://example.com/x /x\n", 2),
            ("FROM a\nADD git@example.com:x.git /x\n", 2),
            ("FROM a\nCOPY --parents a b\n", 2),
            ("FROM a\nCOPY --from=$x a b\n", 2),
            ("FROM a\nCOPY --chmod=9 a b\n", 2),
            ("FROM a\nNOPE x\n", 2),
            ("FROM a\nENV x\n", 2),
            ("FROM a\nRUN\n", 2),
            ("FROM a\nHEALTHCHECK --interval=x CMD y\n", 2),
            ("FROM a AS 1\n", 1),
            ("FROM --foo=x a\n", 1),
            ("RUN x\nFROM a\n", 1),
            ("# nothing\n", 0),
            ("FROM a\nRUN \u{0}\n", 2),
        ] {
            let flaw = parse(text.as_bytes()).unwrap_err();
            assert_eq!(flaw.line, line, "{text:?}: {}", flaw.message);
        }
        assert_eq!(parse(b"FROM a\nRUN \xff\n").unwrap_err().line, 2);
    }

    #[test]
    fn the_escape_directive_counts() {
        let read = actions("# escape=`\nFROM a\nRUN a `\n b\\\nCOPY x y\\\n");
        assert_eq!(read.len(), 2);
        let Action::Run(run) = &read[0] else { panic!() };
        assert_eq!(run.command, Command::Shell("a  b\\".to_owned()));
    }

    #[test]
    fn other_forms_read() {
        let read = actions(
            "FROM a\nHEALTHCHECK --interval=5s --retries=2 CMD x y\nHEALTHCHECK NONE\nSHELL [\"/bin/bash\", \"-c\"]\nVOLUME /a /b\nEXPOSE 80/tcp 90\nMAINTAINER A <a@b>\nENTRYPOINT x\nLABEL a=b\nLABEL c d e\nSTOPSIGNAL SIGINT\nCMD []\nARG a b=c\n",
        );
        assert!(matches!(
            &read[0],
            Action::Healthcheck(Healthcheck::Check {
                interval: 5_000_000_000,
                retries: 2,
                ..
            })
        ));
        assert_eq!(read[5], Action::Author("A <a@b>".to_owned()));
        assert_eq!(read[8], Action::Label(vec![("c".to_owned(), "d e".to_owned())]));
        assert_eq!(read.len(), 12);
    }

    const TOKENS: [&str; 34] = [
        "FROM a\n",
        "RUN ",
        "COPY ",
        "ADD ",
        "ENV ",
        "ARG ",
        "LABEL ",
        "SHELL ",
        "HEALTHCHECK ",
        "CMD ",
        "ONBUILD ",
        "VOLUME ",
        "<<E",
        "<<-'E'",
        "\nE\n",
        "\n",
        "\r\n",
        "\\",
        "\\\n",
        "`",
        " ",
        "\t",
        "\"",
        "'",
        "${",
        "}",
        "[",
        "]",
        "--mount=type=",
        "--from=",
        ",",
        "=",
        "# escape=`\n",
        "é",
    ];

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(
            tokens in proptest::collection::vec(proptest::sample::select(&TOKENS[..]), 0..60),
            start in proptest::bool::ANY,
        ) {
            let text = format!("{}{}", if start { "FROM a\n" } else { "" }, tokens.concat());
            let lines = text.lines().count() + 1;
            match parse(text.as_bytes()) {
                Ok(dockerfile) => proptest::prop_assert!(!dockerfile.stages.is_empty()),
                Err(flaw) => proptest::prop_assert!(flaw.line <= lines, "{} of {lines}", flaw.line),
            }
        }

        #[test]
        fn any_word_expands_or_is_refused(
            tokens in proptest::collection::vec(proptest::sample::select(&TOKENS[12..]), 0..40),
        ) {
            let lookup = |name: &str| (name.len() < 3).then(|| "value".to_owned());
            let _ = super::super::expand::word(&tokens.concat(), '\\', &lookup);
            let _ = super::super::expand::document(&tokens.concat(), &lookup);
        }
    }
}
