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
//! ports             connections on the host            relays (luna-network)
//! socket            connections inside                 relays to the host's sockets, where the kernel is not the host's
//! ```

mod bundle;
mod clients;
mod hub;
mod isolation;
pub(crate) mod live;
mod requests;
mod sockets;

pub(crate) use bundle::init;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use luna_core::engine::{Endpoint, Engine, Instance};
use luna_core::event::Action;
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_core::spec::{Network, RestartPolicy};
use luna_core::{Error, Kind, Result};
use luna_guest::session::{Child, Session, StreamReader};
use luna_image::Store;
use luna_network::ports::{Connect, Inside, Inward, Ports, Serving};
use rustix::fs::FlockOperation;

use crate::control::frame::{self, FrameKind};
use crate::control::{Ended, Request, SOCKET};
use crate::layout::{self, Layout};
use crate::log::{self, Source, timestamp};
use crate::record::{PlannedMount, Record, State};
use crate::sandbox::{self, Sandbox};
use crate::volumes::Volumes;
use crate::{events, health, registry};

use live::{Live, Running, Shared};

/// Stacks of helper threads; they copy bytes and little else.
pub(crate) const STACK: usize = 128 << 10;
/// How long clients get to read their last frames.
const FAREWELL: Duration = Duration::from_secs(2);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// A program that ran this long starts the delays anew.
const STEADY: Duration = Duration::from_secs(10);

/// Supervises sandbox `id` until it has ended. Every failure reaches the client behind `control`.
pub fn supervise(layout: &Layout, store: &Store, id: &Id, engine: &dyn Engine, control: UnixStream) {
    let mut control = control;
    if let Err(error) = begin(layout, store, id, engine, &mut control) {
        let _ = frame::write_json(&mut control, FrameKind::Error, &error.report());
    }
}

/// Takes the lock and the first request, then runs. An error from here has not been told to anybody.
fn begin(
    layout: &Layout,
    store: &Store,
    id: &Id,
    engine: &dyn Engine,
    control: &mut UnixStream,
) -> Result<()> {
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
        engine.reclaim(id)?;
    }
    let listener = listen(&directory)?;
    let closer = listener
        .try_clone()
        .map_err(|e| Error::io("cannot use the control socket", e))?;
    let shared = Arc::new(Shared::new(sandbox.clone(), layout.clone())?);
    let mut keeper = Keeper {
        layout,
        store,
        engine,
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
    engine: &'a dyn Engine,
    record: Record,
    shared: Arc<Shared>,
}

/// One life of the main process: from start to exit.
struct Life {
    instance: Box<dyn Instance>,
    child: Child,
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
            if self.shared.look(|live| live.status.stopped) {
                let _ = life.instance.control().kill();
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
        let connect: Connect = Arc::new(move |port| {
            let session = shared.session()?;
            let (reader, writer) = session.connect(port)?;
            Ok(Inside {
                reader: Box::new(reader),
                writer: Box::new(IntoSandbox(Some(writer))),
            })
        });
        ports.serve(&connect)
    }

    /// Builds the wall, shakes hands with init, starts the main process.
    fn start(&self) -> Result<Life> {
        let endpoint = match self.record.spec.network {
            Network::None => Endpoint::None,
            Network::Host => Endpoint::Host,
        };
        // Until the root is mounted a sweep must leave the image's layers alone.
        let hold = self.store.hold()?;
        let mut bundle = bundle::assemble(self.layout, self.store, &self.record, endpoint)?;
        let sockets = sockets::take(&mut bundle)?;
        let mut instance = self.engine.start(bundle)?;
        drop(hold);
        let session = Session::open(instance.channel()?)?;
        let child = session.start(&self.record.process)?;
        sockets.serve(&session)?;
        let now = timestamp(SystemTime::now());
        let control = Arc::from(instance.control());
        let mut child = child;
        let stdin = child.stdin.take();
        self.shared.update(|live| {
            live.running = Some(Running {
                session,
                main: child.handle(),
                control,
            });
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
        Ok(Life { instance, child })
    }

    /// From started to ended; the instance and everything it held is gone when this returns.
    fn live(&self, life: Life) -> Ended {
        let Life { instance, child } = life;
        let handle = child.handle();
        let Child { stdout, stderr, .. } = child;
        let health = health::watch(&self.shared, &self.record);
        // What stderr has waits its turn on a thread of its own; stdout is carried by this one.
        let errors = stderr.map(|stderr| self.pump(Source::Stderr, stderr));
        carry(&self.shared, Source::Stdout, stdout);
        if let Some(Some(errors)) = errors {
            let _ = errors.join();
        }
        let waited = handle.wait();
        self.shared.log(log::Writer::finish);
        self.shared.set_stdin(None);
        let out_of_memory = instance
            .control()
            .usage()
            .is_ok_and(|usage| usage.out_of_memory());
        let end = tear_down(instance);
        self.shared.update(|live| live.running = None);
        drop(health);
        if out_of_memory {
            events::record(self.layout, &self.record, Action::Oom);
        }
        match waited {
            Ok(status) => Ended {
                code: status.code(),
                out_of_memory,
                error: None,
            },
            // Init itself is gone.
            Err(error) => Ended {
                code: ExitStatus::Signal {
                    number: crate::signal::KILL,
                    core_dumped: false,
                }
                .code(),
                out_of_memory,
                error: (!self.shared.was_killed()).then(|| end.err().unwrap_or(error).report()),
            },
        }
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
fn carry(shared: &Shared, source: Source, mut stream: StreamReader) {
    let kind = match source {
        Source::Stdout => FrameKind::Stdout,
        Source::Stderr => FrameKind::Stderr,
    };
    let mut piece = vec![0; frame::PIECE];
    loop {
        match io::Read::read(&mut stream, &mut piece) {
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

/// Ends everything that is still behind the wall and removes the wall. Where init went without a word, the wall may know
/// why.
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

/// The writing half of a relay; finishing it consumes the stream's writer.
struct IntoSandbox(Option<luna_guest::session::StreamWriter>);

impl io::Write for IntoSandbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inward for IntoSandbox {
    fn finish(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(writer) => writer.finish(),
            None => Ok(()),
        }
    }
}
