//! The supervisor: one process per sandbox that owns its instance, its ports and its log.
//!
//! It is born with a control socket whose first request is `Launch`, takes the sandbox's lock, listens on
//! `control.sock` and lives as long as the sandbox, restarts included. Killed, it takes everything along: the kernel ends
//! init when its parent dies, and init's pid namespace with it. What outlives processes (cgroups) is reclaimed by the
//! next command that touches the sandbox.
//!
//! ```text
//! thread            waits for                          does
//! main              the main process                   start, restart, last word
//! out, err          bytes from init                    log, then every attached client
//! server            connections                        one thread per client and request
//! health            the interval                       an exec
//! condition         what the wall says of itself       the status, while the sandbox stands still
//! ports             connections on the host            relays (luna-network)
//! socket            connections inside                 relays to the host's sockets, where the kernel is not the host's
//! ```
//! A disk image's own system has a console in the main process' place, and no init: what is asked of init is refused.

mod bundle;
mod clients;
mod condition;
mod hub;
mod inward;
mod isolation;
pub(crate) mod live;
mod requests;
mod sockets;

pub(crate) use bundle::init;

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use luna_core::engine::{Control, Endpoint, Engine, Instance, System, SystemEngine};
use luna_core::event::Action;
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_core::spec::{BootRequest, Network, RestartPolicy};
use luna_core::{Error, Kind, Result};
use luna_guest::session::{Child, Session, StreamReader};
use luna_image::Store;
use luna_network::ports::{Connect, Inward, Ports, Serving};
use rustix::fs::FlockOperation;

use crate::control::frame::{self, FrameKind};
use crate::control::{Ended, Request, SOCKET};
use crate::layout::{self, Layout};
use crate::log::{self, Source, timestamp};
use crate::record::{Content, PlannedMount, Record, State};
use crate::sandbox::{self, Sandbox};
use crate::volumes::Volumes;
use crate::{events, health, registry};

use inward::{IntoConsole, IntoPort, IntoSandbox};
use live::{Inside, Live, Running, Shared};

/// Stacks of helper threads; they copy bytes and little else.
pub(crate) const STACK: usize = 128 << 10;
/// How long clients get to read their last frames.
const FAREWELL: Duration = Duration::from_secs(2);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// How long a guest may take to write out what it holds.
pub(crate) const SETTLE: Duration = Duration::from_secs(120);
/// A program that ran this long starts the delays anew.
const STEADY: Duration = Duration::from_secs(10);

/// What starts a sandbox.
#[derive(Clone)]
pub enum Starter {
    /// A program from an image, under Luna's init.
    Program(Arc<dyn Engine>),
    /// A disk image with a system of its own.
    System(Arc<dyn SystemEngine>, BootRequest),
}

impl std::fmt::Debug for Starter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Starter::Program(_) => "Program",
            Starter::System(..) => "System",
        })
    }
}

impl Starter {
    fn reclaim(&self, id: &Id) -> Result<()> {
        match self {
            Starter::Program(engine) => engine.reclaim(id),
            Starter::System(engine, _) => engine.reclaim(id),
        }
    }
}

/// Supervises sandbox `id` until it has ended. Every failure reaches the client behind `control`.
pub fn supervise(layout: &Layout, store: &Store, id: &Id, starter: &Starter, control: UnixStream) {
    let mut control = control;
    if let Err(error) = begin(layout, store, id, starter, &mut control) {
        let _ = frame::write_json(&mut control, FrameKind::Error, &error.report());
    }
}

/// Takes the lock and the first request, then runs. An error from here has not been told to anybody.
fn begin(layout: &Layout, store: &Store, id: &Id, starter: &Starter, control: &mut UnixStream) -> Result<()> {
    let directory = layout.sandbox(id);
    let sandbox = Sandbox::load(directory.clone())?;
    let lock = layout::open_lock(&directory.join(sandbox::LOCK))?;
    take(&lock).map_err(|_| {
        Error::new(Kind::Conflict, format!("cannot start `{}`", sandbox.record.name))
            .because("it is running already")
    })?;
    // It may have been removed between finding and locking it.
    if !same_file(&lock, &directory.join(sandbox::LOCK)) {
        return Err(
            Error::new(Kind::NotFound, format!("cannot start `{}`", sandbox.record.name))
                .because("it was removed meanwhile"),
        );
    }
    let mut payload = Vec::new();
    let request =
        frame::read(control, &mut payload).map_err(|e| Error::io("cannot read the first request", e))?;
    let attach = match request {
        Some(FrameKind::Request) => match frame::parse(&payload)? {
            Request::Launch { attach } => attach,
            _ => {
                return Err(Error::new(
                    Kind::InvalidInput,
                    "cannot do that before the sandbox is started",
                ));
            }
        },
        // Whoever asked is gone.
        _ => return Ok(()),
    };
    // A socket here is that of a supervisor that was killed, at whatever moment; it may have left cgroups.
    if directory.join(SOCKET).exists() || sandbox.status()?.started.is_some() {
        starter.reclaim(id)?;
    }
    let listener = listen(&directory)?;
    let closer = listener
        .try_clone()
        .map_err(|e| Error::io("cannot use the control socket", e))?;
    let shared = Arc::new(Shared::new(sandbox.clone(), layout.clone())?);
    let mut keeper = Keeper {
        layout,
        store,
        starter,
        record: sandbox.record,
        shared: Arc::clone(&shared),
    };
    let outcome = keeper.run(control, attach, listener);
    // Whoever connects from here on is told that nobody listens, and the accepting thread ends.
    let _ = rustix::net::shutdown(&closer, rustix::net::Shutdown::Both);
    shared.hub.farewell(FAREWELL);
    shared.clients.farewell(FAREWELL);
    drop(lock);
    outcome
}

/// Whether `path` still leads to the open file.
fn same_file(file: &OwnedFd, path: &std::path::Path) -> bool {
    let there = rustix::fs::stat(path).ok();
    let here = rustix::fs::fstat(file).ok();
    there
        .zip(here)
        .is_some_and(|(there, here)| (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino))
}

/// Takes the lock of a sandbox that nobody supervises. Whoever looks at its status holds the lock for a moment, so one
/// refusal is not yet an answer.
pub(crate) fn take(lock: &OwnedFd) -> rustix::io::Result<()> {
    let mut left = 50;
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if left > 0 => left -= 1,
            outcome => return outcome,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Listens in the sandbox's directory, through an fd so that the path may be long.
fn listen(directory: &std::path::Path) -> Result<UnixListener> {
    let fail = |e| Error::io(format!("cannot listen in `{}`", directory.display()), e);
    match std::fs::remove_file(directory.join(SOCKET)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    let handle = std::fs::File::open(directory).map_err(fail)?;
    UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", handle.as_raw_fd())).map_err(fail)
}

struct Keeper<'a> {
    layout: &'a Layout,
    store: &'a Store,
    starter: &'a Starter,
    record: Record,
    shared: Arc<Shared>,
}

/// One life of what runs: from start to end.
enum Life {
    Program {
        instance: Box<dyn Instance>,
        child: Child,
    },
    System {
        system: Box<dyn System>,
        console: UnixStream,
    },
}

/// How one life ended.
struct Outcome {
    status: Result<ExitStatus>,
    out_of_memory: bool,
}

impl Keeper<'_> {
    fn run(
        &mut self,
        control: &mut UnixStream,
        attach: Option<crate::control::Attach>,
        listener: UnixListener,
    ) -> Result<()> {
        let first = self
            .bind_ports()
            .and_then(|ports| self.start().map(|life| (ports, life)));
        let (ports, mut life) = match first {
            Ok(started) => started,
            Err(error) => {
                let error = error.context(format!("cannot start `{}`", self.record.name));
                self.never_ran(&error);
                return Err(error);
            }
        };
        let reader = control
            .try_clone()
            .map_err(|e| Error::io("cannot use the control socket", e))?;
        let told = frame::write_json(control, FrameKind::Ok, &());
        if told.is_ok()
            && let Some(attach) = attach
        {
            clients::attached(&self.shared, reader, attach);
        }
        clients::serve(&self.shared, listener)?;
        let _ports = ports.map(|ports| self.serve_ports(ports)).transpose()?;
        let mut delay = FIRST_DELAY;
        let mut failures = 0;
        loop {
            let began = Instant::now();
            let ended = self.live(life);
            let Some(again) = self.after(&ended, &mut failures) else {
                return self.finish(ended);
            };
            if began.elapsed() >= STEADY {
                delay = FIRST_DELAY;
            }
            self.shared.update(|live| live.status.state = State::Restarting);
            if self.shared.stopped_within(delay) {
                return self.finish(ended);
            }
            delay = (delay * 2).min(LONGEST_DELAY);
            // Name and limits may have been changed meanwhile.
            if let Ok(sandbox) = Sandbox::load(self.layout.sandbox(&self.record.id)) {
                self.record = sandbox.record;
            }
            life = match self.start() {
                Ok(life) => life,
                Err(error) => {
                    let ended = Ended {
                        code: error.kind().exit_code(),
                        out_of_memory: false,
                        error: Some(error.report()),
                    };
                    return self.finish(ended);
                }
            };
            self.shared.update(|live| live.status.restarts += 1);
            events::record(self.layout, &self.record, again);
            // A stop that came while there was nothing to signal yet.
            if self.shared.look(|live| live.status.stopped)
                && let Ok(running) = self.shared.running()
            {
                let _ = running.control.kill();
            }
        }
    }

    fn bind_ports(&self) -> Result<Option<Ports>> {
        let wanted = &self.record.spec.ports;
        if wanted.is_empty() || self.record.spec.network == Network::Host {
            return Ok(None);
        }
        let ports = Ports::bind(wanted)?;
        self.shared.update(|live| live.status.ports = ports.mappings());
        Ok(Some(ports))
    }

    fn serve_ports(&self, ports: Ports) -> Result<Serving> {
        let shared = Arc::clone(&self.shared);
        let connect: Connect = Arc::new(move |port| match shared.running()?.inside {
            Inside::Init { session, .. } => {
                let (reader, writer) = session.connect(port)?;
                Ok(luna_network::ports::Inside {
                    reader: Box::new(reader),
                    writer: Box::new(IntoSandbox(Some(writer))),
                })
            }
            Inside::System(control) => {
                let stream = TcpStream::from(control.connect(port)?);
                let fail = |e| Error::io(format!("cannot connect to port {port}"), e);
                Ok(luna_network::ports::Inside {
                    reader: Box::new(stream.try_clone().map_err(fail)?),
                    writer: Box::new(IntoPort::new(stream)),
                })
            }
        });
        ports.serve(&connect)
    }

    fn start(&self) -> Result<Life> {
        match self.starter {
            Starter::Program(engine) => self.start_program(&**engine),
            Starter::System(engine, boot) => self.start_system(&**engine, boot),
        }
    }

    /// Builds the wall, shakes hands with init, starts the main process.
    fn start_program(&self, engine: &dyn Engine) -> Result<Life> {
        let Content::Program { process, .. } = &self.record.content else {
            return Err(self.record.no_init());
        };
        let endpoint = match self.record.spec.network {
            Network::None => Endpoint::None,
            Network::Host => Endpoint::Host,
        };
        // Until the root is mounted a sweep must leave the image's layers alone.
        let hold = self.store.hold()?;
        let mut bundle = bundle::assemble(self.layout, self.store, &self.record, endpoint)?;
        let sockets = sockets::take(&mut bundle)?;
        let mut instance = engine.start(bundle)?;
        drop(hold);
        let session = Session::open(instance.channel()?)?;
        let mut child = session.start(process)?;
        sockets.serve(&session)?;
        let stdin = child.stdin.take();
        let running = Running {
            inside: Inside::Init {
                session,
                main: child.handle(),
            },
            control: Arc::from(instance.control()),
        };
        let stdin = stdin.map(|stdin| Box::new(IntoSandbox(Some(stdin))) as Box<dyn Inward>);
        self.announce(running, stdin)?;
        Ok(Life::Program { instance, child })
    }

    /// Switches a machine on; what its firmware finds is not waited for.
    fn start_system(&self, engine: &dyn SystemEngine, boot: &BootRequest) -> Result<Life> {
        let bundle = bundle::assemble_system(self.layout, &self.record, boot)?;
        let mut system = engine.boot(bundle)?;
        let console = UnixStream::from(system.console()?);
        let typed = console
            .try_clone()
            .map_err(|e| Error::io("cannot use the console", e))?;
        let control = system.control();
        let running = Running {
            inside: Inside::System(Arc::clone(&control)),
            control,
        };
        self.announce(running, Some(Box::new(IntoConsole(typed))))?;
        Ok(Life::System { system, console })
    }

    /// Everybody may know from here on that it runs.
    fn announce(&self, running: Running, stdin: Option<Box<dyn Inward>>) -> Result<()> {
        let now = timestamp(SystemTime::now());
        self.shared.update(|live| {
            live.running = Some(running);
            live.status.state = State::Running;
            live.status.started = Some(now);
            live.status.finished = None;
            live.status.exit_code = None;
            live.status.error = None;
            live.status.out_of_memory = false;
            live.status.supervisor = Some(std::process::id());
        });
        self.shared.set_stdin(stdin);
        self.shared.try_store()?;
        events::record(self.layout, &self.record, Action::Start);
        Ok(())
    }

    /// From started to ended; the wall and everything behind it is gone when this returns.
    fn live(&self, life: Life) -> Ended {
        let health = health::watch(&self.shared, &self.record);
        if let Ok(running) = self.shared.running() {
            condition::watch(&self.shared, running.control);
        }
        let Outcome {
            status,
            out_of_memory,
        } = match life {
            Life::Program { instance, child } => self.live_program(instance, child),
            Life::System { system, console } => self.live_system(system, console),
        };
        self.shared.update(|live| {
            live.running = None;
            live.settling = false;
        });
        drop(health);
        if out_of_memory {
            events::record(self.layout, &self.record, Action::Oom);
        }
        match status {
            Ok(status) => Ended {
                code: status.code(),
                out_of_memory,
                error: None,
            },
            // Init itself is gone, or the machine.
            Err(error) => Ended {
                code: ExitStatus::Signal {
                    number: crate::signal::KILL,
                    core_dumped: false,
                }
                .code(),
                out_of_memory,
                error: (!self.shared.was_killed()).then(|| error.report()),
            },
        }
    }

    fn live_program(&self, mut instance: Box<dyn Instance>, child: Child) -> Outcome {
        let handle = child.handle();
        let Child { stdout, stderr, .. } = child;
        // What stderr has waits its turn on a thread of its own; stdout is carried by this one.
        let errors = stderr.map(|stderr| self.pump(Source::Stderr, stderr));
        carry(&self.shared, Source::Stdout, stdout);
        if let Some(Some(errors)) = errors {
            let _ = errors.join();
        }
        let waited = handle.wait();
        self.silence();
        if waited.is_ok() && !self.vanishes() {
            self.shared.update(|live| live.settling = true);
            instance.settle(SETTLE);
        }
        let out_of_memory = ran_out_of_memory(&*instance.control());
        let end = tear_down(instance);
        Outcome {
            // Where init went without a word, the wall may know why.
            status: waited.map_err(|error| end.err().unwrap_or(error)),
            out_of_memory,
        }
    }

    fn live_system(&self, mut system: Box<dyn System>, console: UnixStream) -> Outcome {
        // To the machine's end, since it keeps its side of the line.
        carry(&self.shared, Source::Stdout, console);
        let status = system.wait();
        self.silence();
        Outcome {
            status,
            out_of_memory: ran_out_of_memory(&*system.control()),
        }
    }

    /// Nothing more is printed or typed.
    fn silence(&self) {
        self.shared.log(log::Writer::finish);
        self.shared.set_stdin(None);
    }

    /// Whether nothing that is written in it outlives it.
    fn vanishes(&self) -> bool {
        self.record.spec.remove && self.record.mounts.is_empty()
    }

    fn pump(&self, source: Source, stream: StreamReader) -> Option<thread::JoinHandle<()>> {
        let shared = Arc::clone(&self.shared);
        // Without its pump the stream is dropped, and what writes to it ends as at a closed pipe.
        thread::Builder::new()
            .name("output".to_owned())
            .stack_size(STACK)
            .spawn(move || carry(&shared, source, stream))
            .ok()
    }

    /// Whether the restart policy brings it back.
    fn after(&self, ended: &Ended, failures: &mut u32) -> Option<Action> {
        events::record(
            self.layout,
            &self.record,
            Action::Die {
                exit_code: ended.code,
            },
        );
        let (policy, stopped) = self.shared.look(|live| (live.restart, live.status.stopped));
        if stopped {
            return None;
        }
        *failures = if ended.code == 0 { 0 } else { *failures + 1 };
        let again = match policy {
            RestartPolicy::No => false,
            RestartPolicy::OnFailure(most) => ended.code != 0 && (most == 0 || *failures <= most),
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
        };
        again.then_some(Action::Restart)
    }

    /// The last word: on disk first, then to everybody who waits.
    fn finish(&self, ended: Ended) -> Result<()> {
        self.shared.update(|live| {
            live.status.state = State::Exited;
            live.status.exit_code = Some(ended.code);
            live.status.out_of_memory = ended.out_of_memory;
            live.status.error.clone_from(&ended.error);
            live.status.finished = Some(timestamp(SystemTime::now()));
            live.status.supervisor = None;
            live.status.health = None;
            live.status.ports.clear();
        });
        let grave = if self.record.spec.remove {
            Some(registry::discard(self.layout, &self.shared.sandbox)?)
        } else {
            self.shared.store();
            let _ = std::fs::remove_file(self.layout.sandbox(&self.record.id).join(SOCKET));
            None
        };
        self.shared.end(ended);
        if let Some(grave) = grave {
            let _ = registry::bury(&grave);
            remove_anonymous_volumes(self.layout, &self.record);
            events::record(self.layout, &self.record, Action::Destroy);
        }
        Ok(())
    }

    /// A first start that failed: a sandbox to be removed vanishes, another one keeps the reason.
    fn never_ran(&self, error: &Error) {
        let directory = self.layout.sandbox(&self.record.id);
        let _ = std::fs::remove_file(directory.join(SOCKET));
        self.shared.update(|live: &mut Live| {
            live.status.state = State::Created;
            live.status.exit_code = Some(error.kind().exit_code());
            live.status.error = Some(error.report());
            live.status.supervisor = None;
            live.status.ports.clear();
        });
        if self.record.spec.remove {
            if let Ok(grave) = registry::discard(self.layout, &self.shared.sandbox) {
                let _ = registry::bury(&grave);
            }
            remove_anonymous_volumes(self.layout, &self.record);
        } else {
            self.shared.store();
        }
    }
}

/// Carries one stream of the main process to whoever is attached, and to the log, until its end.
fn carry(shared: &Shared, source: Source, mut stream: impl io::Read) {
    let kind = match source {
        Source::Stdout => FrameKind::Stdout,
        Source::Stderr => FrameKind::Stderr,
    };
    let mut piece = vec![0; frame::PIECE];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => {
                shared.hub.publish(kind, &piece[..count]);
                shared.log(|log| log.write(source, &piece[..count]));
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn ran_out_of_memory(control: &(impl Control + ?Sized)) -> bool {
    control.usage().is_ok_and(|usage| usage.out_of_memory())
}

/// Ends everything that is still behind the wall and removes the wall.
fn tear_down(mut instance: Box<dyn Instance>) -> Result<ExitStatus> {
    let _ = instance.control().kill();
    instance.wait()
}

/// Removes the volumes that were made for this sandbox alone.
pub(crate) fn remove_anonymous_volumes(layout: &Layout, record: &Record) {
    let volumes = Volumes::new(layout);
    for mount in &record.mounts {
        if let PlannedMount::Volume {
            name,
            anonymous: true,
            ..
        } = mount
        {
            let _ = volumes.remove(name, &[]);
        }
    }
}
