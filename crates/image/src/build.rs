//! Builds an image from a Dockerfile.
//!
//! ```text
//! bytes ──parse──▶ Dockerfile ──plan──▶ stages in order ──builder──▶ layers and a config ──▶ Image
//!                  (every refusal        (names resolved,   COPY: archives written from the files
//!                   that needs no        images here)       RUN: a Step for the caller's engine
//!                   running)                                everything: a cache key first
//! ```
//! This crate knows no engine: the caller gets each RUN as a [`Step`]. Nothing a Dockerfile or an image says leads out of
//! the context and the layers: paths are followed by [`view`] inside one root. There are no remote frontends, no
//! entitlements, and the host's network only where the caller gives it.
//!
//! A built image counts as this host's own (`built_here`), so what its labels request is granted. Therefore a stage that
//! begins with an image from elsewhere begins without that image's `dev.luna.request.*` labels; only this Dockerfile,
//! the build's own arguments and images built here can make such a request.
//!
//! ```text
//! build/cache/<key>.json     what a step made of its inputs (see `cache`)
//! build/mounts/<hex>/        a cache mount, named by its id's digest; <hex>.lock beside it
//! build/.new-*               one build's own files; flocked while it lives, otherwise rubbish
//! ```

mod archive;
mod base;
mod builder;
mod cache;
mod copy;
mod copying;
mod dockerfile;
mod expand;
mod extract;
mod flags;
mod heredoc;
mod ignore;
mod parse;
mod pattern;
mod plan;
mod running;
mod source;
mod state;
mod step;
mod stubs;
mod time;
mod trust;
mod users;
pub(crate) mod view;
mod words;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use luna_core::event::{Progress, Sink};
use luna_core::process::ExitStatus;
use luna_core::spec::Network;
use luna_core::{Error, Kind, Result};

pub use dockerfile::{
    Action, Command, Copy, Declaration, Dockerfile, Flaw, Healthcheck, Instruction, Run, RunNetwork, Source,
    Stage,
};
pub use heredoc::Heredoc;
pub use parse::parse;
pub use step::{Output, Step};

use crate::files::Temporary;
use crate::layer::remove::remove_tree;
use crate::registry::Access;
use crate::store::Failures;
use crate::{Image, Platform, Reference, Store, files};
use builder::Builder;
use ignore::Ignore;
use plan::Choices;
use view::View;

/// What to build, with what, and for whom.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one flag of the command line"
)]
pub struct BuildRequest {
    /// The directory that COPY and ADD see.
    pub context: PathBuf,
    /// `-f`; `Dockerfile` in the context where absent.
    pub file: Option<PathBuf>,
    /// `-t`; each is taken from whatever image has it.
    pub references: Vec<Reference>,
    /// `--build-arg`. `SOURCE_DATE_EPOCH` among them sets `epoch`.
    pub arguments: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
    /// `--target`: a stage's name or number; the last one where absent.
    pub target: Option<String>,
    /// `--platform`; this host's where absent.
    pub platform: Option<Platform>,
    /// What RUN steps get that ask for nothing; a Dockerfile may ask for less, never for more.
    pub network: Network,
    /// `--secret`: files by id.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Run every step although its result is known.
    pub no_cache: bool,
    /// Ask the registry for base images although they are here.
    pub pull: bool,
    /// How base images are fetched.
    pub access: Access,
    /// Do not let RUN steps trust the certificate authorities that the host trusts.
    pub no_host_ca: bool,
    /// `SOURCE_DATE_EPOCH`: no time in the image is later than this, and the image's own times are this.
    pub epoch: Option<u64>,
    /// The host's id for a step's id 0: how files in a step's upper directory are owned (0 without root).
    pub id_base: u32,
    /// As for [`Store::open`].
    pub rootless: bool,
}

impl BuildRequest {
    /// The build of `context` with every default.
    pub fn new(context: impl Into<PathBuf>) -> BuildRequest {
        BuildRequest {
            context: context.into(),
            file: None,
            references: Vec::new(),
            arguments: BTreeMap::new(),
            labels: BTreeMap::new(),
            target: None,
            platform: None,
            network: Network::None,
            secrets: BTreeMap::new(),
            no_cache: false,
            pull: false,
            access: Access::default(),
            no_host_ca: false,
            epoch: None,
            id_base: 0,
            rootless: false,
        }
    }
}

/// Builds `request`. Every flaw that can be known without running is an error before the first step; an error or a kill
/// leaves all images as they were, and only unfinished files that the next build removes.
pub fn build(
    store: &Store,
    request: &BuildRequest,
    run: &mut dyn FnMut(Step<'_>) -> Result<ExitStatus>,
    progress: Sink,
) -> Result<Image> {
    let note = |text: String| progress(Progress::Note { text });
    let (file, shown) = match &request.file {
        Some(file) => (file.clone(), file.display().to_string()),
        None => (request.context.join("Dockerfile"), "Dockerfile".to_owned()),
    };
    let dockerfile = parse(&read(&file)?).map_err(|flaw| flaw.in_file(&shown))?;
    let epoch = epoch(request)?;
    let platform = request.platform.clone().unwrap_or_else(Platform::host);
    let choices = Choices {
        arguments: &request.arguments,
        target: request.target.as_deref(),
        platform: &platform,
        network: request.network,
    };
    let plan = plan::plan(&dockerfile, &choices).map_err(|flaw| flaw.in_file(&shown))?;
    let context = View::of_directory(&request.context)
        .map_err(|error| error.context(format!("cannot use the context `{}`", request.context.display())))?;
    let ignore = ignore_file(&file, &request.context)?;
    if let Some(syntax) = &dockerfile.syntax {
        note(format!(
            "`# syntax={}` is ignored: Luna builds with its own frontend only",
            syntax.escape_debug()
        ));
    }
    for name in &plan.unused {
        note(format!("the build argument `{name}` is not used"));
    }
    let directory = store.root().join("build");
    files::create_private_directory(&directory)?;
    if let Err(error) = sweep(store) {
        // Rubbish that stays is no reason not to build.
        note(format!("{error}: {}", error.causes().join(": ")));
    }
    let temporary = Temporary::directory(&directory)?;
    let trust = if request.no_host_ca {
        None
    } else {
        trust::prepare(temporary.path())?
    };
    let _hold = store.hold()?;
    let images = base::find_all(store, request, &dockerfile, &plan, progress)
        .map_err(|error| error.context(format!("cannot build `{shown}`")))?;
    let mut builder = Builder {
        store,
        request,
        dockerfile: &dockerfile,
        plan: &plan,
        file: shown,
        context,
        ignore,
        images,
        finished: BTreeMap::new(),
        run: RefCell::new(run),
        progress,
        epoch,
        temporary,
        trust,
        counter: 0,
        total: 0,
    };
    let mut state = builder.build()?;
    state.set_labels(request.labels.clone());
    let image = store.add_image(
        state.spec,
        &state.extensions,
        &state.layers,
        request.references.first(),
        true,
    )?;
    for reference in request.references.iter().skip(1) {
        store.tag(&image, reference)?;
    }
    Ok(image)
}

/// Forgets every step's result and empties every cache mount that is not in use. Layers that no image needs any more
/// go with [`Store::prune`], which with `all` does this too. One entry that cannot be removed stops no other.
pub fn forget(store: &Store) -> Result<()> {
    let directory = store.root().join("build");
    let mut failures = Failures::default();
    failures.note(remove_tree(&directory.join("cache")));
    let mounts = directory.join("mounts");
    for path in entries(&mounts)? {
        if path.extension().is_none()
            && let Some(_free) = files::try_lock(&path.with_extension("lock"))?
        {
            failures.note(remove_tree(&path));
        }
    }
    failures.note(sweep(store));
    failures.finish(())
}

/// Removes what killed builds left.
pub(crate) fn sweep(store: &Store) -> Result<()> {
    let mut failures = Failures::default();
    for path in entries(&store.root().join("build"))? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(Temporary::PREFIX) && !files::is_held(&path) {
            failures.note(remove_tree(&path));
        }
    }
    failures.finish(())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let failed = |error| Error::io(format!("cannot read `{}`", directory.display()), error);
    match std::fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    let failed = |error: std::io::Error| {
        let missing = error.kind() == std::io::ErrorKind::NotFound;
        let error = Error::io(format!("cannot read `{}`", file.display()), error);
        if missing {
            error.hint("name the Dockerfile with `-f`, and its directory as the context")
        } else {
            error
        }
    };
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .map_err(failed)?
        .take(parse::MAXIMUM_LENGTH as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    Ok(bytes)
}

/// The Dockerfile's own ignore file, else the context's.
fn ignore_file(dockerfile: &Path, context: &Path) -> Result<Ignore> {
    let mut own = dockerfile.as_os_str().to_owned();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), context.join(".dockerignore")] {
        let failed = |error| Error::io(format!("cannot read `{}`", path.display()), error);
        let mut text = String::new();
        match std::fs::File::open(&path) {
            Ok(file) => {
                file.take(parse::MAXIMUM_LENGTH as u64)
                    .read_to_string(&mut text)
                    .map_err(failed)?;
                return Ignore::parse(&text).map_err(|why| {
                    Error::new(Kind::InvalidInput, format!("cannot read `{}`", path.display())).because(why)
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(Ignore::default())
}

fn epoch(request: &BuildRequest) -> Result<Option<u64>> {
    let Some(text) = request
        .arguments
        .get("SOURCE_DATE_EPOCH")
        .filter(|text| !text.is_empty())
    else {
        return Ok(request.epoch);
    };
    match text.parse() {
        Ok(seconds) if seconds <= 253_402_300_799 => Ok(Some(seconds)),
        _ => Err(Error::new(
            Kind::InvalidInput,
            format!("cannot read `SOURCE_DATE_EPOCH={}`", text.escape_debug()),
        )
        .because("it is the number of seconds since 1970")),
    }
}
