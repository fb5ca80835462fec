//! `up` and `open`: Luna's computer from whatever state it is in to an address that works.
//!
//! ```text
//! sandbox there? ─no─▶ decide ─▶ image there? ─no─▶ pull or build ─▶ create ─▶ start ─▶ answers? ─▶ ticket ─▶ address
//!        ├─ stopped ────────────────────────────────────────────────────────────▲          ▲
//!        └─ running ───────────────────────────────────────────────────────────────────────┘
//! ```
//! The service inside is told a token at its birth (`LUNA_TOKEN`); with it, Luna gets one-time tickets, and only those
//! ever stand in an address.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use luna_core::engine::{Accelerator, EngineProfile};
use luna_core::error::Kind;
use luna_core::event::Progress;
use luna_core::name::Name;
use luna_core::policy;
use luna_core::spec::{Floor, Isolation, Network, PortMapping, Spec, WallRequest};
use luna_core::units::Bytes;
use luna_core::{Error, Result};
use luna_runtime::image::{Image, Reference};
use luna_runtime::{BuildRequest, Runtime, Sandbox, State, Status, TOKEN};
use serde_json::{Value, json};

use super::{Front, is_live};
use crate::cli::run::LimitFlags;
use crate::cli::up::{OpenArgs, UpArgs};
use crate::output::{Bars, Look, one_line};
use crate::request;

/// Where the service listens inside.
const PORT: u16 = 8080;
/// Longest wait for the service to answer, behind a wall where programs run at the processor's speed.
const READY: Duration = Duration::from_secs(60);
/// The same on an emulated processor.
const READY_EMULATED: Duration = Duration::from_secs(300);
/// Longest wait for one answer of the service's, and on an emulated processor.
const ANSWER: Duration = Duration::from_secs(5);
const ANSWER_EMULATED: Duration = Duration::from_secs(30);
/// Chromium keeps its pages there.
const SHARED_MEMORY: Bytes = Bytes::mebibytes(512);
const LABEL: &str = "dev.luna.up";
/// The image that is built here where it is missing; any other is pulled.
const OWN_IMAGE: &str = "luna/agent:latest";

pub(super) fn up(front: &Front, args: &UpArgs) -> Result<()> {
    let since = Instant::now();
    let bars = Bars::new(if args.json { Look::Quiet } else { Look::fitting() });
    let say = |text: String| bars.take(Progress::Note { text });
    let name: Name = args.name.parse()?;
    let wall = WallRequest {
        isolation: args.isolation.into(),
        require: args.require.map(Into::into),
    };
    let network = request::network(&args.network)?;
    let runtime = front.runtime()?;
    let (sandbox, already) = match runtime.find(name.as_str()) {
        Ok(sandbox) => {
            check_wall(&sandbox, wall)?;
            let newest = runtime.store().find(sandbox.record.reference())?;
            if newest.is_some_and(|image| Some(image.id.to_string().as_str()) != sandbox.record.image_id()) {
                say(format!(
                    "`{name}` is made of an older `{}`; for the new one: `luna rm -f {name}`, then `luna up`",
                    sandbox.record.reference()
                ));
            }
            let live = is_live(&sandbox)?;
            if !live {
                say(format!("starting `{name}` again"));
                runtime.start(&sandbox, None)?;
            }
            (sandbox, live)
        }
        Err(error) if error.kind() == Kind::NotFound => (
            make(front, &runtime, args, &bars, wanted(args, name, wall, network)?)?,
            false,
        ),
        Err(error) => return Err(error),
    };
    let name = &sandbox.record.name;
    if !already {
        say(format!(
            "`{name}` runs in {}; waiting until it answers",
            policy::describe(&sandbox.record.decision.engine)
        ));
    }
    let ready = || {
        let service = Service::of(&sandbox)?;
        service.wait_until_ready(&sandbox)?;
        service.url()
    };
    let url = ready().inspect_err(|_| show_last_words(&runtime, &sandbox))?;
    let seconds = since.elapsed().as_secs_f64();
    if args.json {
        return front.printer.json(&json!({
            "name": name,
            "id": sandbox.record.id,
            "url": url,
            "wall": sandbox.record.decision.engine.wall,
            "already_running": already,
            "seconds": seconds,
        }));
    }
    if already {
        say(format!(
            "`{name}` is running already, in {}",
            policy::describe(&sandbox.record.decision.engine)
        ));
    } else {
        say(format!("`{name}` is ready after {seconds:.2} s"));
    }
    front.printer.line(url)
}

pub(super) fn open(front: &Front, args: &OpenArgs) -> Result<()> {
    let sandbox = front
        .runtime()?
        .find(&args.name)
        .map_err(|error| match error.kind() {
            Kind::NotFound => error.hint("`luna up` makes and starts one"),
            _ => error,
        })?;
    if !is_live(&sandbox)? {
        return Err(Error::new(
            Kind::Conflict,
            format!("cannot open `{}`: it is not running", args.name),
        )
        .hint("start it with `luna up`"));
    }
    let url = Service::of(&sandbox)?.url()?;
    front.printer.line(&url)?;
    let display = ["DISPLAY", "WAYLAND_DISPLAY"]
        .iter()
        .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()));
    if display && !args.print {
        use std::process::{Command, Stdio};
        let opened = Command::new("xdg-open")
            .arg(&url)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        if opened.is_err() {
            front
                .printer
                .note("there is no `xdg-open` here: open the address by hand");
        }
    }
    Ok(())
}

/// A sandbox that is there keeps its wall; one that is weaker than asked is not handed out.
fn check_wall(sandbox: &Sandbox, wanted: WallRequest) -> Result<()> {
    use luna_core::engine::Wall;
    let engine = &sandbox.record.decision.engine;
    let floor = match wanted.require {
        None => 1,
        Some(Floor::OwnKernel) => 2,
        Some(Floor::HardwareVirtualization) => 3,
    };
    let kind = match wanted.isolation {
        Isolation::Auto => true,
        Isolation::Container => engine.wall == Wall::Container,
        Isolation::Vm => engine.wall == Wall::Vm,
    };
    if kind && engine.rung() >= floor {
        return Ok(());
    }
    let name = &sandbox.record.name;
    Err(Error::new(Kind::Refused, format!("cannot use `{name}` as it is"))
        .because(format!(
            "it was made in {}, which is not what is asked for",
            policy::describe(engine)
        ))
        .hint(format!(
            "remove it with `luna rm -f {name}`, or choose another name with `--name`"
        )))
}

/// What to make where there is nothing yet.
fn wanted(args: &UpArgs, name: Name, wall: WallRequest, network: Network) -> Result<Spec> {
    let mut token = [0; 32];
    fill(&mut token)?;
    let token = hexadecimal(&token);
    let mut spec = Spec::new(&args.image);
    spec.wall = wall;
    spec.program.env = vec![
        (TOKEN.to_owned(), token),
        ("LUNA_NAME".to_owned(), name.to_string()),
        ("LUNA_VERSION".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ];
    spec.hostname = Some("luna".to_owned());
    spec.name = Some(name);
    spec.labels.insert(LABEL.to_owned(), "true".to_owned());
    spec.resources = request::limits(&LimitFlags {
        memory: args.memory.clone(),
        memory_swap: None,
        cpus: args.cpus.clone(),
        cpuset_cpus: None,
        pids_limit: args.pids_limit,
        blkio_weight: None,
    })?;
    spec.resources.shm = Some(SHARED_MEMORY);
    spec.network = network;
    // In the host's network the service listens on the host's own port, and nobody else's interfaces are its business.
    if network == Network::None {
        spec.ports = vec![PortMapping {
            address: Ipv4Addr::LOCALHOST.into(),
            host: args.port,
            sandbox: PORT,
        }];
    } else {
        spec.program.env.extend([
            ("LUNA_PORT".to_owned(), args.port.to_string()),
            ("LUNA_ADDRESS".to_owned(), Ipv4Addr::LOCALHOST.to_string()),
        ]);
    }
    Ok(spec)
}

fn make(front: &Front, runtime: &Runtime, args: &UpArgs, bars: &Bars, spec: Spec) -> Result<Sandbox> {
    let decision = runtime.decide(&runtime.asked(&spec)?)?;
    if spec.network == Network::Host {
        front
            .printer
            .note("the network is the host's own: in this respect there is no wall");
    }
    let image = match runtime.store().find(&args.image)? {
        Some(image) if !args.build => image,
        _ => obtain(runtime, args, bars)?,
    };
    runtime.prepare(&spec, &decision, &image, &|progress| bars.take(progress))?;
    let sandbox = runtime.create(spec, decision, &image)?;
    match runtime.start(&sandbox, None) {
        Ok(_) => Ok(sandbox),
        Err(error) => {
            // Nothing has run in it: another attempt may want another port.
            let _ = runtime.remove(&sandbox, true, true);
            match error.kind() {
                Kind::Conflict => {
                    Err(error.hint("choose another port: `luna up --port 8081`, or 0 for any free one"))
                }
                _ => Err(error),
            }
        }
    }
}

/// Luna's own image is built from its source; any other is pulled.
fn obtain(runtime: &Runtime, args: &UpArgs, bars: &Bars) -> Result<Image> {
    let progress = |progress| bars.take(progress);
    let reference = Reference::parse(&args.image)?;
    let source = source();
    if args.image != OWN_IMAGE && !args.build {
        let options = luna_runtime::image::registry::PullOptions::default();
        return luna_runtime::image::registry::pull(runtime.store(), &reference, &options, &progress);
    }
    let context = source.ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            format!("cannot build `{}`: its source is not here", args.image),
        )
        .hint("name Luna's repository: `LUNA_SOURCE=. luna up` where this is it")
    })?;
    bars.take(Progress::Note {
        text: format!("building `{}` from `{}`", args.image, context.display()),
    });
    let mut options = BuildRequest::new(context);
    options.references = vec![reference];
    options.network = Network::Host;
    runtime.build(&options, &progress)
}

/// The directory of Luna's own Dockerfile: in `LUNA_SOURCE`, in the repository the executable was built in, or installed
/// beside it. Never merely in the current directory, whose owner would decide what is built and what the image may do.
fn source() -> Option<PathBuf> {
    let named = std::env::var_os("LUNA_SOURCE").filter(|path| !path.is_empty());
    let place =
        |path: PathBuf| Some(path.join("images/agent")).filter(|path| path.join("Dockerfile").exists());
    if let Some(named) = named {
        return place(named.into());
    }
    let executable = std::env::current_exe().ok()?;
    places(&executable).into_iter().find_map(place)
}

/// Where an executable's source may be: `R` for `R/target/TUPLE/PROFILE/luna`, `P/share/luna` for `P/bin/luna`.
fn places(executable: &Path) -> Vec<PathBuf> {
    let above: Vec<&Path> = executable.ancestors().skip(1).collect();
    let built = above.iter().take(3).find(|path| path.ends_with("target"));
    let repository = built.and_then(|target| target.parent());
    let installed = above.get(1).map(|prefix| prefix.join("share/luna"));
    repository
        .map(Path::to_owned)
        .into_iter()
        .chain(installed)
        .collect()
}

/// What is worth knowing of a program that does not answer.
fn show_last_words(runtime: &Runtime, sandbox: &Sandbox) {
    let mut reader = runtime.logs(sandbox);
    if reader.rewind_to_last(20).is_err() {
        return;
    }
    let mut stderr = std::io::stderr().lock();
    while let Ok(Some(line)) = reader.next_line() {
        let _ = writeln!(stderr, "    {}", one_line(&line.log));
    }
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut *bytes, flags) {
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(Error::new(Kind::Internal, "cannot get enough random bytes")),
        Err(error) => Err(Error::io("cannot get random bytes", error)),
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes every write");
    }
    text
}

/// 128 random bits.
pub(super) fn random() -> Result<[u8; 16]> {
    let mut bits = [0; 16];
    fill(&mut bits)?;
    Ok(bits)
}

/// How long to wait for the service behind this wall, and for each of its answers.
fn patience(engine: EngineProfile) -> (Duration, Duration) {
    match engine.accelerator {
        Some(Accelerator::Tcg) => (READY_EMULATED, ANSWER_EMULATED),
        Some(Accelerator::Kvm) | None => (READY, ANSWER),
    }
}

fn ended(sandbox: &Sandbox, status: &Status) -> Error {
    let name = &sandbox.record.name;
    Error::new(Kind::Unavailable, format!("cannot bring up `{name}`"))
        .because(format!(
            "it ended with code {}",
            status.exit_code.unwrap_or_default()
        ))
        .hint(format!("`luna logs {name}` shows all it said"))
}

/// The service inside as seen from the host's loopback.
struct Service {
    address: SocketAddr,
    token: String,
    agent: ureq::Agent,
    /// How long it may take to come up.
    patience: Duration,
}

impl Service {
    fn of(sandbox: &Sandbox) -> Result<Service> {
        let record = &sandbox.record;
        let variable = |name: &str| {
            record
                .spec
                .program
                .env
                .iter()
                .find(|(known, _)| known == name)
                .map(|(_, value)| value.clone())
        };
        let foreign = || {
            Error::new(Kind::Conflict, format!("cannot open `{}`", record.name))
                .because("`luna up` did not make it")
                .hint("choose another name: `luna up --name NAME`")
        };
        let token = variable(TOKEN).ok_or_else(foreign)?;
        let status = sandbox.status()?;
        if !status.state.live() {
            return Err(ended(sandbox, &status));
        }
        let mapped = status.ports.into_iter().find(|port| port.sandbox == PORT);
        let address = match (mapped, record.spec.network) {
            (Some(port), _) => SocketAddr::new(port.address, port.host),
            (None, Network::Host) => {
                let port = variable("LUNA_PORT")
                    .and_then(|port| port.parse().ok())
                    .unwrap_or(PORT);
                (std::net::Ipv4Addr::LOCALHOST, port).into()
            }
            (None, Network::None) => return Err(foreign()),
        };
        let (patience, answer) = patience(record.decision.engine);
        // Neither a proxy nor a redirect has any business on the way to loopback.
        let config = ureq::Agent::config_builder()
            .proxy(None)
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_global(Some(answer))
            .build();
        Ok(Service {
            address,
            token,
            agent: config.into(),
            patience,
        })
    }

    fn wait_until_ready(&self, sandbox: &Sandbox) -> Result<()> {
        let name = &sandbox.record.name;
        let since = Instant::now();
        let mut last = String::new();
        loop {
            match self.agent.get(format!("http://{}/healthz", self.address)).call() {
                Ok(answer) if answer.status() == 200 => return Ok(()),
                Ok(answer) => last = format!("it answers with status {}", answer.status()),
                Err(error) => last.clone_from(&error.to_string()),
            }
            let status = sandbox.status()?;
            if !status.state.live() {
                return Err(ended(sandbox, &status));
            }
            if status.state == State::Paused {
                return Err(
                    Error::new(Kind::Conflict, format!("cannot bring up `{name}`: it is paused"))
                        .hint(format!("let it go on with `luna unpause {name}`")),
                );
            }
            if since.elapsed() > self.patience {
                return Err(Error::new(Kind::TimedOut, format!("cannot bring up `{name}`"))
                    .because(format!(
                        "port {PORT} does not answer after {} s: {last}",
                        self.patience.as_secs()
                    ))
                    .hint(format!("`luna logs {name}` shows all it said")));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// An address with a fresh ticket in it.
    fn url(&self) -> Result<String> {
        let fail = |because: String| {
            Error::new(
                Kind::Unavailable,
                "cannot get a ticket from the service in the sandbox",
            )
            .because(because)
        };
        let mut answer = self
            .agent
            .post(format!("http://{}/v1/tickets", self.address))
            .header("Authorization", format!("Bearer {}", self.token))
            .send_empty()
            .map_err(|error| fail(error.to_string()))?;
        let body = answer
            .body_mut()
            .with_config()
            .limit(64 << 10)
            .read_to_string()
            .map_err(|error| fail(error.to_string()))?;
        if answer.status() != 200 && answer.status() != 201 {
            return Err(fail(format!("it answers with status {}", answer.status())));
        }
        let answer: Value = serde_json::from_str(&body).map_err(|error| fail(error.to_string()))?;
        let ticket = answer["ticket"].as_str().filter(|ticket| {
            !ticket.is_empty()
                && ticket
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        });
        let ticket = ticket.ok_or_else(|| fail("its answer holds none".to_owned()))?;
        Ok(format!("http://{}/?ticket={ticket}", self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_is_looked_for_where_the_executable_lies() {
        let places = |path: &str| places(Path::new(path));
        assert_eq!(places("/usr/bin/luna"), [Path::new("/usr/share/luna")]);
        assert_eq!(
            places("/home/me/luna/target/x86_64-unknown-linux-gnu/release/luna")[0],
            Path::new("/home/me/luna")
        );
        assert_eq!(
            places("/home/me/luna/target/release/luna")[0],
            Path::new("/home/me/luna")
        );
        assert!(!places("/luna").contains(&PathBuf::from("")));
    }
}
