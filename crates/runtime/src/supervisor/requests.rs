//! What each control request does. Runs on the client's own thread.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use luna_core::event::Action;
use luna_core::process::{Process, TerminalSize};
use luna_core::{Error, Kind, Result};
use luna_guest::protocol::Ownership;
use luna_guest::session::{Child, ChildHandle, StreamReader};
use serde::Serialize;

use super::STACK;
use super::hub::Watcher;
use super::isolation;
use super::live::{Inside, Running, Shared};
use crate::control::frame::{self, FrameKind};
use crate::control::{Attach, Ended, Request};
use crate::record::State;
use crate::{events, signal};

/// How long after `SIGKILL` a program may take to be gone before its wall is torn down round it.
const AFTER_KILL: Duration = Duration::from_secs(2);

/// How often a client that waits is looked after.
const SLICE: Duration = Duration::from_secs(2);

/// Answers one request. An error returned has not been told to the client.
pub(crate) fn answer(shared: &Arc<Shared>, request: Request, stream: &mut UnixStream) -> Result<()> {
    match request {
        Request::Launch { .. } => {
            let name = &shared.sandbox.record.name;
            Err(Error::new(Kind::Conflict, format!("cannot start `{name}`")).because("it is running already"))
        }
        Request::Attach(attach) => {
            let running = shared.running()?;
            let watcher = Watcher::new(stream).map_err(|e| Error::io("cannot attach", e))?;
            reply(stream, &());
            shared.hub.add(Arc::clone(&watcher));
            if let Some(size) = attach.terminal {
                running.inside.resize(size);
            }
            let input = stream.try_clone().map_err(|e| Error::io("cannot attach", e))?;
            forward_input(shared, input, attach);
            Ok(())
        }
        Request::Exec { process, detach } => exec(shared, &process, detach, stream),
        Request::Signal { signal } => {
            kill(shared, signal)?;
            reply(stream, &());
            Ok(())
        }
        Request::Stop { signal, grace } => {
            let ended = stop(shared, signal, grace)?;
            reply(stream, &ended);
            Ok(())
        }
        Request::Wait => {
            let ended = loop {
                match shared.ended(Some(SLICE)) {
                    Some(ended) => break ended,
                    None if left(stream) => return Ok(()),
                    None => {}
                }
            };
            reply(stream, &ended);
            Ok(())
        }
        Request::Pause => {
            shared.running()?.control.pause()?;
            settle(shared, State::Paused, Action::Pause);
            reply(stream, &());
            Ok(())
        }
        Request::Resume => {
            shared.running()?.control.resume()?;
            settle(shared, State::Running, Action::Unpause);
            reply(stream, &());
            Ok(())
        }
        Request::Usage => {
            reply(stream, &shared.running()?.control.usage()?);
            Ok(())
        }
        Request::Processes => {
            refuse_paused(shared)?;
            reply(stream, &shared.session()?.processes()?);
            Ok(())
        }
        Request::Isolation => {
            refuse_paused(shared)?;
            reply(stream, &isolation::measure(shared)?);
            Ok(())
        }
        Request::Update { resources, restart } => {
            if let Ok(running) = shared.running() {
                running.control.update(&resources)?;
            }
            if let Some(restart) = restart {
                shared.update(|live| live.restart = restart);
            }
            reply(stream, &());
            Ok(())
        }
        Request::Stat { path } => {
            refuse_paused(shared)?;
            let found = match shared.session()?.stat(&path, true) {
                Ok(found) => Some(found),
                Err(error) if error.kind() == Kind::NotFound => None,
                Err(error) => return Err(error),
            };
            reply(stream, &found);
            Ok(())
        }
        Request::CopyOut { path } => copy_out(shared, &path, stream),
        Request::CopyIn { directory, keep_ids } => copy_in(shared, &directory, keep_ids, stream),
    }
}

/// Whether the client has closed its end.
fn left(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

/// A client that left does not want its answer.
fn reply(stream: &mut UnixStream, answer: &impl Serialize) {
    let _ = frame::write_json(stream, FrameKind::Ok, answer);
}

fn settle(shared: &Shared, state: State, action: Action) {
    shared.update(|live| live.status.state = state);
    shared.store();
    events::record(&shared.layout, &shared.sandbox.record, action);
}

/// Init stands still with everything else; a request to it would wait without end.
fn refuse_paused(shared: &Shared) -> Result<()> {
    if shared.look(|live| live.status.state) != State::Paused {
        return Ok(());
    }
    let name = &shared.sandbox.record.name;
    let error = Error::new(
        Kind::Conflict,
        format!("cannot reach into `{name}`: it is paused"),
    );
    // One that was halted says by what.
    let error = match shared.look(|live| live.status.error.clone()) {
        Some(report) => error.because(Error::from(report)),
        None => error,
    };
    Err(error.hint(format!("let it go on with `luna unpause {name}`")))
}

/// `luna kill`: any signal; `SIGKILL` also keeps the restart policy from acting, as docker does.
fn kill(shared: &Shared, number: u8) -> Result<()> {
    let running = shared.running()?;
    let action = Action::Kill {
        signal: signal::name(number),
    };
    events::record(&shared.layout, &shared.sandbox.record, action);
    if number != signal::KILL {
        refuse_paused(shared)?;
        return running.inside.signal(number);
    }
    shared.mark_stopped();
    destroy(shared)
}

/// Ends everything behind the wall: through init where it answers, so that the exit is reported as what it is.
fn destroy(shared: &Shared) -> Result<()> {
    let Ok(running) = shared.running() else {
        return Ok(());
    };
    shared.mark_killed();
    if shared.look(|live| live.status.state) == State::Paused {
        // What is frozen cannot die on a version 1 cgroup.
        running.control.kill()?;
        let _ = running.control.resume();
    } else {
        // It may have ended by itself this moment; then its exit is on its way.
        post(&running, signal::KILL);
    }
    if shared.gone_within(AFTER_KILL) {
        return Ok(());
    }
    // Nothing dies while a client does not read what was printed before.
    shared.hub.drop_all();
    running.control.kill()
}

/// Signals the main process without waiting for init's answer: init may hang with its machine.
fn post(running: &Running, number: u8) -> bool {
    let inside = running.inside.clone();
    thread::Builder::new()
        .name("signal".to_owned())
        .stack_size(STACK)
        .spawn(move || drop(inside.signal(number)))
        .is_ok()
}

fn stop(shared: &Shared, signal: Option<u8>, grace: Option<Duration>) -> Result<Ended> {
    let record = &shared.sandbox.record;
    let number = signal.unwrap_or(record.stop_signal);
    let grace = grace.unwrap_or(record.stop_grace);
    shared.mark_stopped();
    if let Ok(running) = shared.running() {
        if number != signal::KILL && shared.look(|live| live.status.state) == State::Paused {
            running.control.resume()?;
            settle(shared, State::Running, Action::Unpause);
        }
        let asked = number != signal::KILL && post(&running, number);
        if !asked || !shared.gone_within(grace) {
            destroy(shared)?;
        }
    }
    let bound = Duration::from_secs(20);
    let ended = shared.ended(Some(bound)).ok_or_else(|| {
        Error::new(Kind::TimedOut, format!("cannot stop `{}`", record.name)).because(format!(
            "something in it has not ended {} s after SIGKILL",
            bound.as_secs()
        ))
    })?;
    events::record(&shared.layout, record, Action::Stop);
    Ok(ended)
}

/// What an attached client sends goes to the main process until it leaves.
pub(crate) fn forward_input(shared: &Shared, mut stream: UnixStream, attach: Attach) {
    let mut payload = Vec::new();
    while let Ok(Some(kind)) = frame::read(&mut stream, &mut payload) {
        match kind {
            FrameKind::Stdin if attach.stdin => {
                if let Some(stdin) = &mut *shared.stdin() {
                    let _ = stdin.write_all(&payload);
                }
            }
            FrameKind::Eof if attach.stdin && attach.stdin_once => {
                if let Some(stdin) = &mut *shared.stdin() {
                    let _ = stdin.finish();
                }
            }
            _ => {
                if let Ok(running) = shared.running() {
                    steer(&running.inside, kind, &payload);
                }
            }
        }
    }
}

/// What can be steered by window sizes and signals.
trait Steered {
    fn resize(&self, size: TerminalSize);
    fn signal(&self, number: u8);
}

impl Steered for ChildHandle {
    fn resize(&self, size: TerminalSize) {
        let _ = ChildHandle::resize(self, size);
    }

    fn signal(&self, number: u8) {
        let _ = ChildHandle::signal(self, number);
    }
}

impl Steered for Inside {
    fn resize(&self, size: TerminalSize) {
        Inside::resize(self, size);
    }

    fn signal(&self, number: u8) {
        let _ = Inside::signal(self, number);
    }
}

fn steer(what: &impl Steered, kind: FrameKind, payload: &[u8]) {
    match kind {
        FrameKind::Resize => {
            if let Ok(size) = frame::parse::<TerminalSize>(payload) {
                what.resize(size);
            }
        }
        FrameKind::Signal => {
            if let [signal @ 1..=64] = payload {
                what.signal(*signal);
            }
        }
        _ => {}
    }
}

type Writer = Arc<Mutex<UnixStream>>;

fn send(writer: &Writer, kind: FrameKind, bytes: &[u8]) -> std::io::Result<()> {
    frame::write(
        &mut *writer.lock().unwrap_or_else(PoisonError::into_inner),
        kind,
        bytes,
    )
}

fn exec(shared: &Arc<Shared>, process: &Process, detach: bool, stream: &mut UnixStream) -> Result<()> {
    refuse_paused(shared)?;
    let child = shared.session()?.exec(process)?;
    let handle = child.handle();
    let Child {
        stdin,
        stdout,
        stderr,
        ..
    } = child;
    let command = process.args.join(" ");
    events::record(&shared.layout, &shared.sandbox.record, Action::Exec { command });
    reply(stream, &());
    if detach {
        drop(stdin);
        drain(stdout);
        if let Some(stderr) = stderr {
            drain(stderr);
        }
        let _ = handle.wait();
        return Ok(());
    }
    let fail = |e| Error::io("cannot pass the streams on", e);
    let writer: Writer = Arc::new(Mutex::new(stream.try_clone().map_err(fail)?));
    let mut input = stream.try_clone().map_err(fail)?;
    let steered = handle.clone();
    let forward = move || {
        let mut stdin = stdin;
        let mut payload = Vec::new();
        loop {
            match frame::read(&mut input, &mut payload) {
                Ok(Some(FrameKind::Stdin)) => {
                    if let Some(stdin) = &mut stdin {
                        let _ = stdin.write_all(&payload);
                    }
                }
                Ok(Some(FrameKind::Eof)) => {
                    if let Some(stdin) = stdin.take() {
                        let _ = stdin.finish();
                    }
                }
                Ok(Some(kind)) => steer(&steered, kind, &payload),
                Ok(None) | Err(_) => return,
            }
        }
    };
    thread::Builder::new()
        .name("input".to_owned())
        .stack_size(STACK)
        .spawn(forward)
        .map_err(fail)?;
    let errors = stderr.map(|stderr| {
        let writer = Arc::clone(&writer);
        thread::Builder::new()
            .name("output".to_owned())
            .stack_size(STACK)
            .spawn(move || forward_output(stderr, FrameKind::Stderr, &writer))
    });
    forward_output(stdout, FrameKind::Stdout, &writer);
    if let Some(Ok(errors)) = errors {
        let _ = errors.join();
    }
    let ended = match handle.wait() {
        Ok(status) => Ended {
            code: status.code(),
            out_of_memory: false,
            error: None,
        },
        Err(error) => Ended {
            code: 137,
            out_of_memory: false,
            error: Some(error.report()),
        },
    };
    let _ = frame::write_json(
        &mut *writer.lock().unwrap_or_else(PoisonError::into_inner),
        FrameKind::Exit,
        &ended,
    );
    let _ = stream.shutdown(std::net::Shutdown::Both);
    Ok(())
}

/// Carries output to the client; what a client that left does not take is read all the same.
fn forward_output(mut output: StreamReader, kind: FrameKind, writer: &Writer) {
    let mut piece = vec![0; frame::PIECE];
    let mut listening = true;
    while let Ok(count @ 1..) = output.read(&mut piece) {
        listening = listening && send(writer, kind, &piece[..count]).is_ok();
    }
}

fn drain(mut output: StreamReader) {
    let drain = move || {
        let mut piece = vec![0; 4096];
        while matches!(output.read(&mut piece), Ok(1..)) {}
    };
    let _ = thread::Builder::new()
        .name("drain".to_owned())
        .stack_size(STACK)
        .spawn(drain);
}

fn copy_out(shared: &Shared, path: &str, stream: &mut UnixStream) -> Result<()> {
    refuse_paused(shared)?;
    let mut archive = shared.session()?.copy_out(path, true)?;
    reply(stream, &());
    let mut piece = vec![0; frame::PIECE];
    let ended = loop {
        match archive.read(&mut piece) {
            Ok(0) => {
                break Ended {
                    code: 0,
                    out_of_memory: false,
                    error: None,
                };
            }
            Ok(count) => {
                if frame::write(stream, FrameKind::Stdout, &piece[..count]).is_err() {
                    return Ok(());
                }
            }
            Err(error) => {
                let error = Error::io(format!("cannot copy `{path}`"), error);
                break Ended {
                    code: 125,
                    out_of_memory: false,
                    error: Some(error.report()),
                };
            }
        }
    };
    let _ = frame::write_json(stream, FrameKind::Exit, &ended);
    Ok(())
}

fn copy_in(shared: &Shared, directory: &str, keep_ids: bool, stream: &mut UnixStream) -> Result<()> {
    refuse_paused(shared)?;
    let ownership = if keep_ids {
        Ownership::Preserved
    } else {
        Ownership::Root
    };
    let mut archive = shared.session()?.copy_in(directory, ownership)?;
    reply(stream, &());
    let mut payload = Vec::new();
    let whole = loop {
        match frame::read(stream, &mut payload) {
            // A broken archive is reported by its end.
            Ok(Some(FrameKind::Stdin)) => {
                let _ = archive.write_all(&payload);
            }
            Ok(Some(FrameKind::Eof)) => break true,
            _ => break false,
        }
    };
    if !whole {
        return Ok(());
    }
    let error = archive.finish().err().map(|error| error.report());
    let ended = Ended {
        code: if error.is_some() { 125 } else { 0 },
        out_of_memory: false,
        error,
    };
    let _ = frame::write_json(stream, FrameKind::Exit, &ended);
    Ok(())
}
