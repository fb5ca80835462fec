//! The façade every front door stands on.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use luna_core::engine::{Accelerator, Engine, IdRange, RootForm, SystemEngine};
use luna_core::event::Action;
use luna_core::host::{EngineReport, HostReport};
use luna_core::name::Name;
use luna_core::policy::{Asked, Decision, Origin, Policy, confirm, decide, describe};
use luna_core::spec::{BootRequest, Mount, Resources, RestartPolicy, Spec};
use luna_core::{Error, Kind, Result};
use luna_image::{Digest, Image, Store};
use luna_microvm::Microvm;

use crate::control::Attach;
use crate::control::client::{Client, Stream};
use crate::events::{self, Events};
use crate::layout::Layout;
use crate::log::{self, timestamp};
use crate::plan::{self, ImageDefaults, Keeping, Nesting, Plan};
use crate::policy::{self, PolicyFile};
use crate::record::{Content, ImageName, PlannedMount, Record, State, VERSION};
use crate::registry::{self, Draft};
use crate::sandbox::{LOCK, Sandbox};
use crate::supervisor::Starter;
use crate::volumes::{Volume, Volumes};
use crate::{host, layout, ranges, supervisor};

/// How long a killed supervisor may take to leave.
const LEAVING: Duration = Duration::from_secs(10);

/// Where a sandbox's supervisor runs.
#[derive(Clone, Debug)]
pub enum Supervision {
    /// A process of its own: `EXECUTABLE supervise --root ROOT ID`, its control socket on standard input.
    Process { executable: PathBuf },
    /// A thread of this process, for tests on a fake engine.
    Thread,
}

/// One Luna: its images, its sandboxes, its engines.
pub struct Runtime {
    layout: Layout,
    store: Store,
    engines: Vec<Arc<dyn Engine>>,
    /// Those of them that boot disk images too.
    system_engines: Vec<Arc<dyn SystemEngine>>,
    supervision: Supervision,
    rootless: bool,
    policies: Vec<PolicyFile>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime")
            .field("root", &self.layout.root())
            .finish_non_exhaustive()
    }
}

/// What [`Runtime::prune`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    pub sandboxes: Vec<Name>,
    pub volumes: Vec<Name>,
}

impl Runtime {
    /// `LUNA_ROOT`, else `/var/lib/luna` for root and `$XDG_DATA_HOME/luna` for others.
    pub fn default_root(rootless: bool) -> PathBuf {
        if let Some(root) = std::env::var_os("LUNA_ROOT").filter(|root| !root.is_empty()) {
            return root.into();
        }
        if !rootless {
            return "/var/lib/luna".into();
        }
        let home =
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/".into())).join(".local/share");
        std::env::var_os("XDG_DATA_HOME")
            .filter(|data| !data.is_empty())
            .map_or_else(home, PathBuf::from)
            .join("luna")
    }

    /// Luna on this host, with the engines this version has. `rootless` is whether the process entered a user
    /// namespace of its own ([`crate::rootless`]).
    pub fn open(root: &Path, rootless: bool) -> Result<Runtime> {
        let executable =
            std::env::current_exe().map_err(|e| Error::io("cannot find Luna's own executable", e))?;
        let machines: Vec<Arc<dyn SystemEngine>> = vec![
            Arc::new(Microvm::new(Accelerator::Tcg)),
            Arc::new(Microvm::new(Accelerator::Kvm)),
        ];
        let mut engines: Vec<Arc<dyn Engine>> = vec![Arc::new(luna_container::Container)];
        engines.extend(
            machines
                .iter()
                .map(|machine| Arc::clone(machine) as Arc<dyn Engine>),
        );
        let mut runtime = Runtime::with(root, rootless, engines, Supervision::Process { executable })?;
        runtime.system_engines = machines;
        Ok(runtime.under(PolicyFile::usual()))
    }

    /// The same under more policy files. Each can only make it stricter.
    #[must_use]
    pub fn under(mut self, policies: impl IntoIterator<Item = PolicyFile>) -> Runtime {
        self.policies.extend(policies);
        self
    }

    /// A runtime on chosen engines, under no policy file.
    pub fn with(
        root: &Path,
        rootless: bool,
        engines: Vec<Arc<dyn Engine>>,
        supervision: Supervision,
    ) -> Result<Runtime> {
        let layout = Layout::open(root)?;
        let store = Store::open(&layout.store(), rootless)?;
        Ok(Runtime {
            layout,
            store,
            engines,
            system_engines: Vec::new(),
            supervision,
            rootless,
            policies: Vec::new(),
        })
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    pub fn rootless(&self) -> bool {
        self.rootless
    }

    pub fn volumes(&self) -> Volumes {
        Volumes::new(&self.layout)
    }

    pub fn kernels(&self) -> luna_microvm::kernel::Store {
        luna_microvm::kernel::Store::open(&self.layout.kernels())
    }

    /// What this host can do; `fresh` tries everything again.
    pub fn host(&self, fresh: bool) -> Result<HostReport> {
        let probe = || -> Vec<EngineReport> { self.engines.iter().map(|engine| engine.probe()).collect() };
        host::report(&self.layout, self.rootless, fresh, &probe)
    }

    /// The wall for what is asked, or a refusal; before anything is downloaded. Nobody is refused by an old report: what
    /// was missing may have been installed since.
    pub fn decide(&self, asked: &Asked) -> Result<Decision> {
        let policy = self.policy()?;
        decide(asked, &policy, &self.host(false)?).or_else(|_| decide(asked, &policy, &self.host(true)?))
    }

    /// What bears on the choice for this spec. The store is asked which image it names; nothing is fetched.
    pub fn asked(&self, spec: &Spec) -> Result<Asked> {
        let origin = match &spec.boot {
            None => policy::origin(&spec.image, self.store.find(&spec.image)?.as_ref()),
            // A file has no name that anybody vouches for.
            Some(_) => Origin::default(),
        };
        Ok(Asked::of(spec, origin))
    }

    /// What the policy files say at this moment; an error where one of them cannot be believed.
    pub fn policy(&self) -> Result<Policy> {
        policy::read(&self.policies, self.rootless)
    }

    pub(crate) fn engine(&self, decision: &Decision) -> Result<&Arc<dyn Engine>> {
        self.engines
            .iter()
            .find(|engine| engine.profile() == decision.engine)
            .ok_or_else(|| {
                Error::new(
                    Kind::Unsupported,
                    format!("cannot use {}", describe(&decision.engine)),
                )
                .because("this Luna does not have that engine")
            })
    }

    fn system_engine(&self, decision: &Decision) -> Result<&Arc<dyn SystemEngine>> {
        self.system_engines
            .iter()
            .find(|engine| engine.profile() == decision.engine)
            .ok_or_else(|| {
                Error::new(
                    Kind::Unsupported,
                    format!("cannot boot a disk image in {}", describe(&decision.engine)),
                )
                .because("that wall has no firmware to start it with")
            })
    }

    fn starter(&self, record: &Record) -> Result<Starter> {
        Ok(match &record.content {
            Content::Program { .. } => Starter::Program(Arc::clone(self.engine(&record.decision)?)),
            Content::System(boot) => {
                Starter::System(Arc::clone(self.system_engine(&record.decision)?), boot.clone())
            }
        })
    }

    /// The engine whose root filesystem a build can turn into a layer.
    pub(crate) fn builder(&self) -> Result<&dyn Engine> {
        let tree = |engine: &&Arc<dyn Engine>| engine.profile().root == RootForm::Tree;
        self.engines
            .iter()
            .find(tree)
            .map(|engine| &**engine)
            .ok_or_else(|| {
                Error::new(Kind::Unsupported, "cannot build images")
                    .because("this Luna has no container engine")
            })
    }

    /// Makes a sandbox: everything about it is decided and on disk when this returns. Nothing runs.
    pub fn create(&self, spec: Spec, decision: Decision, image: &Image) -> Result<Sandbox> {
        self.engine(&decision)?;
        let rules = self.policy()?;
        let mut origin = policy::origin(&spec.image, Some(image));
        // A name that was worth nothing when it was decided is worth nothing here.
        if decision.asked.image.repository.is_none() {
            origin.repository = None;
        }
        confirm(&decision, &rules, &origin)?;
        let nested = Nesting {
            built_here: image.built_here,
            granted: rules.grants_nested_userns(&origin),
            allowed: rules.allows_nested(&decision.engine),
        };
        let Plan { process, keeping } =
            plan::plan(&spec, &ImageDefaults::of(image), nested, decision.engine)?;
        let content = Content::Program {
            image: ImageName {
                id: image.id.to_string(),
                reference: spec.image.clone(),
            },
            process: Box::new(process),
        };
        self.keep(spec, decision, content, keeping)
    }

    /// Makes a sandbox of a disk image with a system of its own, which is read as far as to know that it may be booted.
    pub fn create_system(&self, spec: Spec, decision: Decision, boot: BootRequest) -> Result<Sandbox> {
        self.system_engine(&decision)?;
        confirm(&decision, &self.policy()?, &decision.asked.image)?;
        luna_microvm::system::format(&boot.disk)?;
        let keeping = plan::system(&spec);
        self.keep(spec, decision, Content::System(boot), keeping)
    }

    fn keep(&self, spec: Spec, decision: Decision, content: Content, keeping: Keeping) -> Result<Sandbox> {
        if let Some(name) = &spec.name
            && registry::name_taken(&self.layout, name)
        {
            return Err(
                Error::new(Kind::AlreadyExists, format!("cannot use the name `{name}`"))
                    .because("a sandbox of that name exists")
                    .hint(format!(
                        "remove it with `luna rm {name}`, or choose another name with `--name`"
                    )),
            );
        }
        check_sources(&keeping.mounts)?;
        let draft = Draft::new(&self.layout)?;
        let name = spec
            .name
            .clone()
            .unwrap_or_else(|| registry::invent_name(&self.layout, &draft.id));
        let ids = if self.rootless {
            IdRange { base: 0 }
        } else {
            ranges::take(&self.layout, &draft.id)?
        };
        let id = draft.id.clone();
        let make = || -> Result<Sandbox> {
            if decision.engine.root == RootForm::Tree {
                make_writable_directories(&draft.directory, ids)?;
            }
            let mounts = keeping
                .mounts
                .iter()
                .map(planned_mount)
                .collect::<Result<Vec<_>>>()?;
            let record = Record {
                version: VERSION,
                id: draft.id.clone(),
                name,
                created: timestamp(SystemTime::now()),
                hostname: spec
                    .hostname
                    .clone()
                    .unwrap_or_else(|| draft.id.short().to_owned()),
                spec,
                decision,
                content,
                ids,
                stop_signal: keeping.stop_signal,
                stop_grace: keeping.stop_grace,
                health: keeping.health,
                mounts,
                labels: keeping.labels,
                nested_user_namespaces: keeping.nested_user_namespaces,
            };
            draft.keep(record)
        };
        let sandbox = make().inspect_err(|_| ranges::release(&self.layout, &id, ids))?;
        events::record(&self.layout, &sandbox.record, Action::Create);
        Ok(sandbox)
    }

    /// Starts a sandbox under a supervisor of its own and returns when its program runs. With `attach`, its streams.
    pub fn start(&self, sandbox: &Sandbox, attach: Option<Attach>) -> Result<Option<Stream>> {
        let name = &sandbox.record.name;
        if occupied(sandbox)? {
            return Err(
                Error::new(Kind::Conflict, format!("cannot start `{name}`")).because("it is running already")
            );
        }
        let fail = |e: std::io::Error| Error::io(format!("cannot start a supervisor for `{name}`"), e);
        let (ours, theirs) = UnixStream::pair().map_err(fail)?;
        match &self.supervision {
            Supervision::Process { executable } => {
                let errors = std::fs::File::create(sandbox.directory.join("supervisor.log")).map_err(fail)?;
                Command::new(executable)
                    .arg("supervise")
                    .arg("--root")
                    .arg(self.layout.root())
                    .arg(sandbox.record.id.as_str())
                    .stdin(Stdio::from(OwnedFd::from(theirs)))
                    .stdout(Stdio::null())
                    .stderr(errors)
                    .current_dir("/")
                    .spawn()
                    .map_err(fail)?;
            }
            Supervision::Thread => {
                let starter = self.starter(&sandbox.record)?;
                let (layout, store, id) =
                    (self.layout.clone(), self.store.clone(), sandbox.record.id.clone());
                std::thread::spawn(move || supervisor::supervise(&layout, &store, &id, &starter, theirs));
            }
        }
        Client::over(ours).launch(attach)
    }

    /// Finds the engine a sandbox was decided for and supervises it; the body of `luna supervise`.
    pub fn supervise(&self, id: &luna_core::name::Id, control: UnixStream) -> Result<()> {
        let sandbox = Sandbox::load(self.layout.sandbox(id))?;
        let starter = self.starter(&sandbox.record)?;
        supervisor::supervise(&self.layout, &self.store, id, &starter, control);
        Ok(())
    }

    /// By name, id or the beginning of exactly one id.
    pub fn find(&self, text: &str) -> Result<Sandbox> {
        registry::find(&self.layout, text)
    }

    /// Every sandbox, newest first, and what could not be read.
    pub fn list(&self) -> Result<(Vec<Sandbox>, Vec<Error>)> {
        registry::list(&self.layout)
    }

    pub fn rename(&self, sandbox: &mut Sandbox, name: &Name) -> Result<()> {
        let from = sandbox.record.name.to_string();
        registry::rename(&self.layout, sandbox, name)?;
        events::record(&self.layout, &sandbox.record, Action::Rename { from });
        Ok(())
    }

    /// Changes limits and restart policy, in the record and in the running instance.
    pub fn update(
        &self,
        sandbox: &mut Sandbox,
        resources: Resources,
        restart: Option<RestartPolicy>,
    ) -> Result<()> {
        if sandbox.supervised()? {
            sandbox.client()?.update(resources.clone(), restart)?;
        }
        sandbox.record.spec.resources = resources;
        if let Some(restart) = restart {
            sandbox.record.spec.restart = restart;
        }
        sandbox.store_record()?;
        events::record(&self.layout, &sandbox.record, Action::Update);
        Ok(())
    }

    /// Removes a sandbox; a running one only by `force`, which kills it. `volumes`: its anonymous ones too.
    pub fn remove(&self, sandbox: &Sandbox, force: bool, volumes: bool) -> Result<()> {
        let name = &sandbox.record.name;
        if occupied(sandbox)? {
            if !force {
                return Err(Error::new(Kind::Conflict, format!("cannot remove `{name}`: it is running"))
                    .hint(format!("stop it first with `luna stop {name}`, or kill and remove it with `luna rm -f {name}`")));
            }
            if let Ok(client) = sandbox.client() {
                let _ = client.stop(Some(crate::signal::KILL), Some(Duration::ZERO));
            }
            wait_until_left(sandbox)?;
        }
        if !sandbox.directory.exists() {
            return Ok(());
        }
        // Held until it is out of sight, so that nobody starts what is being removed.
        let _lock = hold(sandbox)?;
        self.reclaim(sandbox)?;
        let grave = registry::discard(&self.layout, sandbox)?;
        registry::bury(&grave)?;
        if volumes {
            self.remove_anonymous_volumes(sandbox);
        }
        events::record(&self.layout, &sandbox.record, Action::Destroy);
        Ok(())
    }

    fn remove_anonymous_volumes(&self, sandbox: &Sandbox) {
        supervisor::remove_anonymous_volumes(&self.layout, &sandbox.record);
    }

    /// Removes a sandbox whose record cannot be read, by name or id.
    pub fn remove_unreadable(&self, text: &str) -> Result<()> {
        let id = registry::identify(&self.layout, text)?;
        let lock = layout::open_lock(&self.layout.sandbox(&id).join(LOCK))?;
        supervisor::take(&lock)
            .map_err(|_| Error::new(Kind::Conflict, format!("cannot remove `{text}`: it is running")))?;
        for engine in &self.engines {
            engine.reclaim(&id)?;
        }
        registry::bury(&self.layout.sandbox(&id))?;
        registry::forget(&self.layout, &id);
        Ok(())
    }

    /// Removes what a killed supervisor left behind.
    fn reclaim(&self, sandbox: &Sandbox) -> Result<()> {
        match self.engine(&sandbox.record.decision) {
            Ok(engine) => engine.reclaim(&sandbox.record.id),
            Err(_) => Ok(()),
        }
    }

    /// Removes every sandbox that does not run, what was left half done, and of the volumes that no sandbox
    /// names those that `goes` is true of.
    pub fn prune(&self, goes: &dyn Fn(&Volume) -> bool) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let (sandboxes, _) = self.list()?;
        for sandbox in sandboxes {
            let in_the_making = sandbox.status().is_ok_and(|status| {
                let alive = Path::new("/proc").join(status.maker.to_string()).exists();
                status.state == State::Created && status.maker != std::process::id() && alive
            });
            let idle = sandbox.supervised().is_ok_and(|supervised| !supervised);
            if idle && !in_the_making && self.remove(&sandbox, false, true).is_ok() {
                pruned.sandboxes.push(sandbox.record.name);
            }
        }
        registry::empty_trash(&self.layout)?;
        registry::sweep(&self.layout, &|id| {
            for engine in &self.engines {
                let _ = engine.reclaim(id);
            }
        })?;
        for volume in self.volumes().list()?.into_iter().filter(|volume| goes(volume)) {
            if self.remove_volume(&volume.name).is_ok() {
                pruned.volumes.push(volume.name);
            }
        }
        Ok(pruned)
    }

    pub fn remove_volume(&self, name: &Name) -> Result<()> {
        let users: Vec<Name> = self
            .list()?
            .0
            .into_iter()
            .filter(|sandbox| {
                sandbox
                    .record
                    .mounts
                    .iter()
                    .any(|mount| matches!(mount, PlannedMount::Volume { name: used, .. } if used == name))
            })
            .map(|sandbox| sandbox.record.name)
            .collect();
        self.volumes().remove(name, &users)
    }

    /// The ids of images that sandboxes are made of.
    pub fn images_in_use(&self) -> Result<BTreeSet<Digest>> {
        let (sandboxes, _) = self.list()?;
        Ok(sandboxes
            .iter()
            .filter_map(|sandbox| sandbox.record.image_id()?.parse().ok())
            .collect())
    }

    pub fn events(&self) -> Events {
        Events::open(&self.layout)
    }

    /// What a sandbox printed, from the oldest line kept.
    pub fn logs(&self, sandbox: &Sandbox) -> log::Reader {
        log::Reader::open(&sandbox.directory)
    }
}

fn planned_mount(mount: &Mount) -> Result<PlannedMount> {
    Ok(match mount.clone() {
        Mount::Bind {
            source,
            target,
            read_only,
        } => PlannedMount::Bind {
            source,
            target,
            read_only,
        },
        Mount::Tmpfs {
            target,
            size,
            mode,
            executable,
        } => PlannedMount::Tmpfs {
            target,
            size: size.map(|size| size.0),
            mode: mode.unwrap_or(0o1777),
            executable,
        },
        Mount::Volume {
            name,
            target,
            read_only,
        } => {
            let anonymous = name.is_none();
            let name = match name {
                Some(name) => name,
                None => random_name()?,
            };
            PlannedMount::Volume {
                name,
                target,
                read_only,
                anonymous,
            }
        }
    })
}

/// Takes the lock of a sandbox that does not run.
fn hold(sandbox: &Sandbox) -> Result<OwnedFd> {
    let lock = layout::open_lock(&sandbox.directory.join(LOCK))?;
    supervisor::take(&lock).map_err(|_| {
        Error::new(Kind::Conflict, format!("cannot remove `{}`", sandbox.record.name))
            .because("it was started meanwhile")
    })?;
    Ok(lock)
}

/// Whether a supervisor is there that will stay. One that has told its sandbox's end and only clears away is waited
/// for, and so is one that is about to tell that it runs.
fn occupied(sandbox: &Sandbox) -> Result<bool> {
    let since = Instant::now();
    while sandbox.directory.exists() && sandbox.supervised()? {
        match sandbox.status() {
            Ok(status) if status.state.live() => return Ok(true),
            _ if since.elapsed() > LEAVING => return Ok(true),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(false)
}

fn wait_until_left(sandbox: &Sandbox) -> Result<()> {
    let since = Instant::now();
    while sandbox.directory.exists() && sandbox.supervised()? {
        if since.elapsed() > LEAVING {
            return Err(
                Error::new(Kind::TimedOut, format!("cannot end `{}`", sandbox.record.name)).because(format!(
                    "its supervisor has not left after {} s",
                    LEAVING.as_secs()
                )),
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn random_name() -> Result<Name> {
    let mut bits = [0; 16];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::io("cannot get random bytes", e))?;
    luna_core::name::Id::from_random(bits).as_str().parse()
}

/// A missing source is the user's slip, told before anything is made.
fn check_sources(mounts: &[Mount]) -> Result<()> {
    for mount in mounts {
        if let Mount::Bind { source, .. } = mount
            && let Err(error) = std::fs::metadata(source)
        {
            return Err(Error::io(format!("cannot mount `{}`", source.display()), error)
                .hint(format!("make it first: `mkdir -p {}`", source.display())));
        }
    }
    Ok(())
}

fn make_writable_directories(directory: &Path, ids: IdRange) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    for name in ["upper", "work"] {
        let path = directory.join(name);
        let made = std::fs::DirBuilder::new()
            .mode(0o755)
            .create(&path)
            .and_then(|()| {
                if ids.base == 0 {
                    Ok(())
                } else {
                    std::os::unix::fs::chown(&path, Some(ids.base), Some(ids.base))
                }
            });
        made.map_err(|e| Error::io(format!("cannot make `{}`", path.display()), e))?;
    }
    Ok(())
}
