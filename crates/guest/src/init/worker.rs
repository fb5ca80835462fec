//! Work that may wait in the kernel for long, done by a forked copy of init so that init itself never waits: archives,
//! `stat`, the list of processes, what stands round them.
//!
//! The copy has the archive (or nothing) at descriptor 0, its output at 1, and at 2 the pipe for its replies, each as
//! `length: u16 LE | postcard Reply`. It ends with code 0 once it has said everything.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use crate::protocol::{Failure, FileStatus, Reply, Request, Stage, encode};

use super::archive;
use super::flow::Sink;
use super::processes;
use super::spawn::do_not_wait;
use super::surroundings;
use super::sys::{self, Fork};

/// Init's ends of a worker.
pub(super) struct Worker {
    pub(super) pid: i32,
    pub(super) status: OwnedFd,
    pub(super) input: Option<Sink>,
    pub(super) output: Option<OwnedFd>,
}

/// Starts on `request`, which is one of those a worker does.
pub(super) fn start(request: &Request, null: BorrowedFd<'_>, main: Option<i32>) -> Result<Worker, Failure> {
    let failed = |errno: Errno| Failure::new(Stage::Pipe, errno.raw_os_error());
    let pipe = || rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed);
    let (status, far_status) = pipe()?;
    let input = matches!(request, Request::CopyIn { .. }).then(pipe).transpose()?;
    let has_output = matches!(
        request,
        Request::CopyOut { .. } | Request::Processes | Request::Measure { .. }
    );
    let output = has_output.then(pipe).transpose()?;
    do_not_wait(&status).map_err(failed)?;
    if let Some((_, near)) = &input {
        do_not_wait(near).map_err(failed)?;
    }
    if let Some((near, _)) = &output {
        do_not_wait(near).map_err(failed)?;
    }
    let fork = sys::fork().map_err(|error| Failure::new(Stage::Fork, error.raw_os_error().unwrap_or(0)))?;
    match fork {
        Fork::Parent(pid) => Ok(Worker {
            pid,
            status,
            input: input.map(|(_, near)| Sink::Pipe(near)),
            output: output.map(|(near, _)| near),
        }),
        Fork::Child => {
            let input = input.as_ref().map_or(null, |(far, _)| far.as_fd());
            let output = output.as_ref().map_or(null, |(_, far)| far.as_fd());
            let standard = [input, output, far_status.as_fd()];
            for (descriptor, number) in standard.into_iter().zip(0..) {
                if sys::place(descriptor, number).is_err() {
                    sys::leave(1);
                }
            }
            // Init's own descriptors, among them other processes' pipes, must not stay open in here.
            sys::close_from_3();
            sys::leave(work(request, main).into());
        }
    }
}

fn work(request: &Request, main: Option<i32>) -> u8 {
    let result = match request {
        Request::CopyIn { directory, ownership } => archive::unpack(directory, *ownership, say),
        Request::CopyOut { path, follow } => archive::pack(path, *follow, say),
        Request::Stat { path, follow } => stat(path, *follow).and_then(|found| say(&Reply::Found(found))),
        Request::Processes => say(&Reply::Done).and_then(|()| processes::list(&mut Output)),
        Request::Measure { paths } => {
            say(&Reply::Done).and_then(|()| surroundings::measure(main, paths, &mut Output))
        }
        _ => Err(Failure::new(Stage::Request, libc::EINVAL)),
    };
    let told = result.or_else(|failure| say(&Reply::Failed(failure)));
    u8::from(told.is_err())
}

/// One reply, in one write: longer than a pipe takes at once it cannot be, since subjects are short.
fn say(reply: &Reply) -> Result<(), Failure> {
    let bytes = encode(reply);
    let mut message = (bytes.len() as u16).to_le_bytes().to_vec();
    message.extend_from_slice(&bytes);
    rustix::io::write(rustix::stdio::stderr(), &message)
        .map(drop)
        .map_err(|errno| Failure::new(Stage::Pipe, errno.raw_os_error()))
}

fn stat(path: &str, follow: bool) -> Result<FileStatus, Failure> {
    archive::status(path, follow).map_err(|error| Failure {
        stage: Stage::Path,
        errno: error.raw_os_error().unwrap_or(libc::EIO),
        subject: String::new(),
    })
}

/// The worker's input, unbuffered.
pub(super) struct Input;

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(rustix::stdio::stdin(), buffer)?)
    }
}

/// The worker's output, unbuffered.
pub(super) struct Output;

impl Write for Output {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(rustix::stdio::stdout(), buffer)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
