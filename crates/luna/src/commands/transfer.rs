//! Images on their way in and out: registries, archives, root filesystems.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use luna_core::error::Kind;
use luna_core::name::Id;
use luna_core::{Error, Result};
use luna_runtime::Runtime;
use luna_runtime::image::registry::{self, Access, Credentials, PullOptions, PushOptions};
use luna_runtime::image::{ConfigChanges, Image, Platform, Reference};

use super::{Front, bars};
use crate::cli::image::{
    ArchiveFormat, ImportArgs, LoadArgs, LoginArgs, LogoutArgs, PullArgs, PushArgs, SaveArgs,
};
use crate::cli::run::{MakingFlags, Pull};
use crate::terminal;

fn access(insecure: bool) -> Access {
    Access {
        insecure,
        ..Access::default()
    }
}

fn fetch(
    runtime: &Runtime,
    text: &str,
    platform: Option<&str>,
    insecure: bool,
    quiet: bool,
) -> Result<Image> {
    let options = PullOptions {
        platform: platform.map_or_else(|| Ok(Platform::host()), str::parse)?,
        access: access(insecure),
    };
    let bars = bars(quiet);
    registry::pull(runtime.store(), &Reference::parse(text)?, &options, &|progress| {
        bars.take(progress);
    })
}

/// The image for a new sandbox, from the store or a registry as `--pull` says.
pub(super) fn obtain(runtime: &Runtime, text: &str, making: &MakingFlags) -> Result<Image> {
    let platform = making
        .platform
        .as_deref()
        .map(str::parse::<Platform>)
        .transpose()?;
    let here = match making.pull {
        Pull::Always => None,
        Pull::Missing | Pull::Never => runtime.store().find(text)?,
    };
    match here {
        Some(image)
            if platform
                .as_ref()
                .is_none_or(|wanted| wanted.accepts(&image.platform())) =>
        {
            Ok(image)
        }
        Some(image) if making.pull == Pull::Never => Err(Error::new(
            Kind::NotFound,
            format!("cannot find the image `{text}` for this platform"),
        )
        .because(format!("the one that is here is made for {}", image.platform()))),
        None if making.pull == Pull::Never => runtime.store().get(text),
        _ => fetch(
            runtime,
            text,
            making.platform.as_deref(),
            making.insecure,
            making.quiet,
        ),
    }
}

pub(super) fn pull(front: &Front, args: &PullArgs) -> Result<()> {
    let runtime = front.runtime()?;
    let image = fetch(
        &runtime,
        &args.reference,
        args.platform.as_deref(),
        args.insecure,
        args.quiet,
    )?;
    if !args.quiet {
        front.printer.line(format!("Digest: {}", image.manifest))?;
    }
    front.printer.line(Reference::parse(&args.reference)?.to_string())
}

pub(super) fn push(front: &Front, args: &PushArgs) -> Result<()> {
    let runtime = front.runtime()?;
    let options = PushOptions {
        access: access(args.insecure),
    };
    let bars = bars(args.quiet);
    let reference = Reference::parse(&args.reference)?;
    let digest = registry::push(runtime.store(), &reference, &options, &|progress| {
        bars.take(progress);
    })?;
    drop(bars);
    front.printer.line(format!("{}@{digest}", reference.familiar()))
}

fn open(path: &Path) -> Result<Box<dyn Read>> {
    let file = File::open(path).map_err(|e| Error::io(format!("cannot read `{}`", path.display()), e))?;
    Ok(Box::new(BufReader::with_capacity(256 << 10, file)))
}

fn standard_input() -> Result<Box<dyn Read>> {
    if terminal::stdin_is_terminal() {
        return Err(
            Error::new(Kind::InvalidInput, "cannot read an archive from the terminal")
                .hint("name a file, or pipe one in"),
        );
    }
    Ok(Box::new(BufReader::with_capacity(256 << 10, io::stdin())))
}

pub(super) fn load(front: &Front, args: &LoadArgs) -> Result<()> {
    use luna_runtime::image::archive;
    let bars = bars(args.quiet);
    let progress = |progress| bars.take(progress);
    let runtime = front.runtime()?;
    let images = match &args.input {
        Some(path) if path.is_dir() => archive::load_layout(runtime.store(), path, &progress)?,
        Some(path) => archive::load(runtime.store(), &mut open(path)?, &progress)?,
        None => archive::load(runtime.store(), &mut standard_input()?, &progress)?,
    };
    drop(bars);
    for image in images {
        match image.references.as_slice() {
            [] => front.printer.line(format!("Loaded image ID: {}", image.id))?,
            references => {
                for reference in references {
                    front
                        .printer
                        .line(format!("Loaded image: {}", reference.familiar()))?;
                }
            }
        }
    }
    Ok(())
}

pub(super) fn save(front: &Front, args: &SaveArgs) -> Result<()> {
    use luna_runtime::image::archive::{self, SaveFormat};
    let format = match args.format {
        ArchiveFormat::DockerArchive => SaveFormat::DockerArchive,
        ArchiveFormat::OciArchive => SaveFormat::OciArchive,
    };
    let runtime = front.runtime()?;
    let Some(path) = &args.output else {
        if io::stdout().is_terminal() {
            return Err(
                Error::new(Kind::InvalidInput, "cannot write an archive to the terminal")
                    .hint("name a file with `--output`, or pipe it on"),
            );
        }
        let mut stdout = io::BufWriter::with_capacity(256 << 10, io::stdout().lock());
        archive::save(runtime.store(), &args.images, format, &mut stdout)?;
        return stdout
            .flush()
            .map_err(|e| Error::io("cannot write to standard output", e));
    };
    let fail = |e: io::Error| Error::io(format!("cannot write `{}`", path.display()), e);
    let write = |file: File| -> Result<()> {
        let mut file = io::BufWriter::with_capacity(256 << 10, file);
        archive::save(runtime.store(), &args.images, format, &mut file)?;
        file.flush().map_err(fail)
    };
    // A link, a pipe or a device is written through and stays what it is.
    if std::fs::symlink_metadata(path).is_ok_and(|there| !there.is_file()) {
        return write(File::create(path).map_err(fail)?);
    }
    // Beside the file and then in its place: a failure leaves what was there.
    let (file, beside) = create_beside(path)?;
    write(file)
        .and_then(|()| std::fs::rename(&beside, path).map_err(fail))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&beside);
        })
}

/// A new file of a name nobody can foresee, in the same directory. `O_EXCL` follows no link (open(2)).
fn create_beside(path: &Path) -> Result<(File, PathBuf)> {
    let mut beside = path.to_owned().into_os_string();
    beside.push(format!(".{}", Id::from_random(super::up::random()?).short()));
    let file = File::options()
        .write(true)
        .create_new(true)
        .open(&beside)
        .map_err(|e| Error::io(format!("cannot write `{}`", path.display()), e))?;
    Ok((file, beside.into()))
}

pub(super) fn import(front: &Front, args: ImportArgs) -> Result<()> {
    let reference = args.reference.as_deref().map(Reference::parse).transpose()?;
    let mut changes = ConfigChanges {
        platform: args.platform.as_deref().map(str::parse).transpose()?,
        comment: args.message,
        ..ConfigChanges::default()
    };
    for change in &args.change {
        apply(&mut changes, change)?;
    }
    let mut source = if args.file == "-" {
        standard_input()?
    } else {
        open(Path::new(&args.file))?
    };
    let bars = bars(false);
    let runtime = front.runtime()?;
    let image = luna_runtime::image::import(
        runtime.store(),
        &mut source,
        reference.as_ref(),
        &changes,
        &|progress| bars.take(progress),
    )?;
    drop(bars);
    front.printer.line(image.id.to_string())
}

/// One instruction of a Dockerfile's that only changes the config.
fn apply(changes: &mut ConfigChanges, text: &str) -> Result<()> {
    let invalid = || {
        Error::new(
            Kind::InvalidInput,
            format!("cannot apply the change `{}`", text.escape_debug()),
        )
        .hint("there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR")
    };
    let (word, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(invalid)?;
    let rest = rest.trim();
    // A JSON list, or a line for the shell.
    let command = || -> Vec<String> {
        serde_json::from_str(rest)
            .unwrap_or_else(|_| vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()])
    };
    let pair = || match rest.split_once('=').or_else(|| rest.split_once(' ')) {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.trim_matches('"').to_owned())),
        _ => Err(invalid()),
    };
    match word.to_ascii_uppercase().as_str() {
        "CMD" => changes.command = Some(command()),
        "ENTRYPOINT" => changes.entrypoint = Some(command()),
        "ENV" => {
            let (name, value) = pair()?;
            changes.env.push(format!("{name}={value}"));
        }
        "LABEL" => {
            let (name, value) = pair()?;
            changes.labels.insert(name, value);
        }
        "EXPOSE" => changes
            .exposed_ports
            .extend(rest.split_whitespace().map(str::to_owned)),
        "VOLUME" => {
            let plain = || rest.split_whitespace().map(str::to_owned).collect();
            changes
                .volumes
                .extend(serde_json::from_str::<Vec<String>>(rest).unwrap_or_else(|_| plain()));
        }
        "USER" => changes.user = Some(rest.to_owned()),
        "WORKDIR" => changes.working_directory = Some(rest.to_owned()),
        "STOPSIGNAL" => changes.stop_signal = Some(rest.to_owned()),
        _ => return Err(invalid()),
    }
    Ok(())
}

pub(super) fn login(front: &Front, args: &LoginArgs) -> Result<()> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask("Username: ")?,
    };
    let password = if let Some(password) = &args.password {
        front
            .printer
            .warn("a password on the command line can be seen by others; `--password-stdin` is safer");
        password.clone()
    } else if args.password_stdin || !terminal::stdin_is_terminal() {
        let mut password = String::new();
        io::stdin()
            .read_to_string(&mut password)
            .map_err(|e| Error::io("cannot read the password", e))?;
        password.trim_end_matches(['\r', '\n']).to_owned()
    } else {
        let _quiet = terminal::without_echo()?;
        let password = ask("Password: ")?;
        let _ = writeln!(io::stderr());
        password
    };
    registry::login(
        &args.registry,
        &Credentials { user, password },
        &access(args.insecure),
    )?;
    front.printer.line("Login Succeeded")
}

fn ask(question: &str) -> Result<String> {
    let fail = |e: io::Error| Error::io("cannot ask", e);
    write!(io::stderr(), "{question}").map_err(fail)?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer).map_err(fail)?;
    let answer = answer.trim_end_matches(['\r', '\n']);
    if answer.is_empty() {
        return Err(Error::new(Kind::InvalidInput, "cannot log in without an answer")
            .hint("give `--username NAME` and `--password-stdin`"));
    }
    Ok(answer.to_owned())
}

pub(super) fn logout(front: &Front, args: &LogoutArgs) -> Result<()> {
    if registry::logout(&args.registry)? {
        return front
            .printer
            .line(format!("Removed the credentials for {}", args.registry));
    }
    front
        .printer
        .line(format!("There are no credentials for {}", args.registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_read_as_a_dockerfile_s() {
        let mut changes = ConfigChanges::default();
        for change in [
            "CMD [\"a\", \"b\"]",
            "entrypoint run it",
            "ENV A=1",
            "LABEL x.y \"two words\"",
            "EXPOSE 80 81/tcp",
        ] {
            apply(&mut changes, change).unwrap();
        }
        assert_eq!(changes.command.unwrap(), ["a", "b"]);
        assert_eq!(changes.entrypoint.unwrap(), ["/bin/sh", "-c", "run it"]);
        assert_eq!(changes.env, ["A=1"]);
        assert_eq!(changes.labels["x.y"], "two words");
        assert_eq!(changes.exposed_ports, ["80", "81/tcp"]);
        for bad in ["", "CMD", "RUN make", "ENV =1"] {
            assert!(apply(&mut ConfigChanges::default(), bad).is_err(), "{bad}");
        }
    }
}
