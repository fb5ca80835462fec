//! Processes that must end and conditions that must come true, within a time.

use std::io::{self, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What a process said and how it ended; `None` where it had to be killed.
#[derive(Debug)]
pub struct Finished {
    pub output: String,
    pub errors: String,
    pub status: Option<ExitStatus>,
}

impl Finished {
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    pub fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }
}

/// Runs `command` for at most `limit`.
pub fn finish(command: &mut Command, limit: Duration) -> io::Result<Finished> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map(|child| collect_all(child, limit))
}

/// Everything a running process says until its end, for at most `limit`.
pub fn collect_all(mut child: Child, limit: Duration) -> Finished {
    let output = collect(child.stdout.take());
    let errors = collect(child.stderr.take());
    let mut status = None;
    wait_until(limit, || {
        status = child.try_wait().ok().flatten();
        status.is_some()
    });
    if status.is_none() {
        end(&mut child);
    }
    let text = |thread: std::thread::JoinHandle<String>| thread.join().unwrap_or_default();
    Finished {
        output: text(output),
        errors: text(errors),
        status,
    }
}

fn collect(stream: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            // A broken stream has said what it will say.
            let _ = stream.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Kills and reaps.
pub fn end(child: &mut Child) {
    // It may be dead already; that is the end, too.
    let _ = child.kill();
    let _ = child.wait();
}

/// Asks until the answer is yes or the time is over; which of the two.
pub fn wait_until(limit: Duration, mut answer: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if answer() {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
