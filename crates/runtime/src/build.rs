//! Builds: each RUN of a Dockerfile runs behind the container wall, as a sandbox that is never listed.

use std::io::Read;
use std::thread;

use luna_core::engine::{Bundle, Confinement, Endpoint, Engine, IdRange, OverlaidFile, Root};
use luna_core::event::Sink;
use luna_core::name::Id;
use luna_core::policy::{self, Asked, Origin, Policy};
use luna_core::process::ExitStatus;
use luna_core::spec::{Network, Resources, Seccomp, Spec};
use luna_core::{Error, Kind, Result};
use luna_guest::session::{Child, Session};
use luna_image::Image;
use luna_image::build::{BuildRequest, Output, Step};
use rustix::fs::FlockOperation;

use crate::layout;
use crate::registry::Draft;
use crate::runtime::Runtime;
use crate::sandbox::LOCK;
use crate::{ranges, supervisor};

impl Runtime {
    /// Builds an image. `request` says what; whose ids the steps run under is filled in here.
    pub fn build(&self, request: &BuildRequest, progress: Sink) -> Result<Image> {
        let engine = self.builder()?;
        refuse_above(engine, &self.policy()?)?;
        let draft = Draft::new(self.layout())?;
        // Held while the build lives, so that a sweep knows it from one that was killed.
        let lock = layout::open_lock(&draft.directory.join(LOCK))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| Error::io("cannot lock the build", e))?;
        let ids = if self.rootless() {
            IdRange { base: 0 }
        } else {
            ranges::take(self.layout(), &draft.id)?
        };
        let request = BuildRequest {
            id_base: ids.base,
            rootless: self.rootless(),
            ..request.clone()
        };
        let mut run = |step: Step<'_>| run(engine, &draft.id, ids, step);
        let outcome = luna_image::build::build(self.store(), &request, &mut run, progress);
        ranges::release(self.layout(), &draft.id, ids);
        outcome
    }
}

/// Steps run behind the builder's wall, whatever a policy wants of every wall.
fn refuse_above(engine: &dyn Engine, policy: &Policy) -> Result<()> {
    let asked = Asked::of(&Spec::new(""), Origin::default());
    let floor_alone = Policy {
        floor: policy.floor.clone(),
        ..Policy::default()
    };
    let demand = policy::floor(&asked, &floor_alone);
    if engine.profile().rung() >= demand.rung {
        return Ok(());
    }
    let refused = Error::new(
        Kind::Refused,
        "cannot build images: their steps run in the container",
    )
    .because(demand.because);
    Err(match demand.fix {
        Some(fix) => refused.hint(format!(
            "{fix}, or build elsewhere and `luna pull` or `luna load` it"
        )),
        None => refused,
    })
}

fn run(engine: &dyn Engine, id: &Id, ids: IdRange, step: Step<'_>) -> Result<ExitStatus> {
    let resolv = match step.network {
        Network::None => Vec::new(),
        Network::Host => std::fs::read("/etc/resolv.conf").unwrap_or_default(),
    };
    let file = |target: &str, content: Vec<u8>| OverlaidFile {
        target: target.into(),
        content,
    };
    let bundle = Bundle {
        id: id.clone(),
        init: supervisor::init()?,
        root: Root::Tree(step.tree),
        ids,
        hostname: "build".to_owned(),
        files: vec![
            file(
                "/etc/hosts",
                b"127.0.0.1\tlocalhost build\n::1\tlocalhost\n".to_vec(),
            ),
            file("/etc/resolv.conf", resolv),
        ],
        mounts: step.mounts,
        endpoint: match step.network {
            Network::None => Endpoint::None,
            Network::Host => Endpoint::Host,
        },
        resources: Resources::default(),
        confinement: Confinement {
            capabilities: step.process.capabilities,
            no_new_privileges: step.process.no_new_privileges,
            nested_user_namespaces: false,
            seccomp: Seccomp::Default,
            devices: Vec::new(),
            apparmor: None,
            selinux: None,
            privileged: false,
        },
    };
    let mut instance = engine.start(bundle)?;
    let session = Session::open(instance.channel()?)?;
    let child = session.start(&step.process)?;
    let handle = child.handle();
    let Child { stdout, stderr, .. } = child;
    thread::scope(|scope| {
        if let Some(stderr) = stderr {
            scope.spawn(move || forward(stderr, step.output));
        }
        forward(stdout, step.output);
    });
    let status = handle.wait();
    let control = instance.control();
    let _ = control.kill();
    let _ = instance.wait();
    status
}

fn forward(mut stream: impl Read, output: Output<'_>) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(count @ 1..) = stream.read(&mut piece) {
        output.write(&piece[..count]);
    }
}
