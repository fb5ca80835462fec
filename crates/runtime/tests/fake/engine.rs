//! An engine without a wall: the real `luna-init` as an ordinary process, and a fault where the test wants one.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use luna_core::engine::{
    Bundle, Condition, Control, Engine, EngineProfile, Instance, Outside, RootForm, Usage, Wall,
};
use luna_core::host::EngineReport;
use luna_core::name::Id;
use luna_core::process::ExitStatus;
use luna_core::spec::Resources;
use luna_core::{Error, Kind, Result};

/// What goes wrong at the next start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    Start,
    Channel,
    /// Init answers the greeting with noise.
    Noise,
    /// Init is gone when it is greeted.
    EarlyDeath,
    /// Init is gone once its program runs.
    LateDeath,
    Wait,
    Usage,
}

/// How many instances were started, are alive and were reclaimed.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) started: AtomicUsize,
    pub(crate) alive: AtomicUsize,
    pub(crate) reclaimed: AtomicUsize,
}

#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) fault: Mutex<Fault>,
    pub(crate) counts: Arc<Counts>,
}

fn fault(what: &str) -> Error {
    Error::new(Kind::Unavailable, format!("cannot {what}")).because("the test wants it so")
}

impl Engine for Fake {
    fn profile(&self) -> EngineProfile {
        EngineProfile {
            wall: Wall::Container,
            accelerator: None,
            root: RootForm::Tree,
        }
    }

    fn probe(&self) -> EngineReport {
        EngineReport {
            profile: self.profile(),
            checks: Vec::new(),
        }
    }

    fn start(&self, bundle: Bundle) -> Result<Box<dyn Instance>> {
        let wanted = *self.fault.lock().unwrap();
        if wanted == Fault::Start {
            return Err(fault("start"));
        }
        let (near, far) = UnixStream::pair().map_err(|error| Error::io("cannot make a channel", error))?;
        let other = near
            .try_clone()
            .map_err(|error| Error::io("cannot make a channel", error))?;
        let init = match wanted {
            Fault::Noise => {
                let mut far = far;
                let _ = far.write_all(&[0xa5; 4096]);
                // Until the host gives up.
                std::thread::spawn(move || far.read_to_end(&mut Vec::new()));
                None
            }
            Fault::EarlyDeath => None,
            _ => Some(spawn(&bundle, far)?),
        };
        if wanted == Fault::LateDeath
            && let Some(init) = &init
        {
            let pid = init.id();
            std::thread::spawn(move || kill_once_it_has_a_child(pid));
        }
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        self.counts.alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Ordinary {
            channel: Some(near.into()),
            end: Arc::new(End {
                channel: other,
                usage: wanted != Fault::Usage,
            }),
            init,
            fault: wanted,
            counts: Arc::clone(&self.counts),
        }))
    }

    fn reclaim(&self, _: &Id) -> Result<()> {
        self.counts.reclaimed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The bundle's init with the channel as descriptor 3.
fn spawn(bundle: &Bundle, channel: UnixStream) -> Result<Child> {
    let program = format!("/proc/{}/fd/{}", std::process::id(), bundle.init.as_raw_fd());
    let mut init = Command::new("sh")
        .args([
            "-c",
            "echo >&2; exec \"$0\" 3<&0 0</dev/null 2>/dev/null",
            &program,
        ])
        .stdin(Stdio::from(OwnedFd::from(channel)))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| Error::io("cannot spawn init", error))?;
    // The memfd must stay open until it is executed: standard error ends with that.
    if let Some(mut errors) = init.stderr.take() {
        let _ = errors.read_to_end(&mut Vec::new());
    }
    Ok(init)
}

fn kill_once_it_has_a_child(pid: u32) {
    let path = format!("/proc/{pid}/task/{pid}/children");
    while std::fs::read_to_string(&path).is_ok_and(|children| children.is_empty()) {
        std::thread::yield_now();
    }
    let children = std::fs::read_to_string(&path).unwrap_or_default();
    for pid in [&pid.to_string()]
        .into_iter()
        .map(String::as_str)
        .chain(children.split_whitespace())
    {
        let _ = Command::new("kill").args(["-KILL", pid]).status();
    }
}

struct Ordinary {
    channel: Option<OwnedFd>,
    end: Arc<End>,
    init: Option<Child>,
    fault: Fault,
    counts: Arc<Counts>,
}

/// Ends init by ending its channel.
struct End {
    channel: UnixStream,
    usage: bool,
}

impl Instance for Ordinary {
    fn channel(&mut self) -> Result<OwnedFd> {
        if self.fault == Fault::Channel {
            return Err(fault("give a channel"));
        }
        self.channel.take().ok_or_else(|| fault("give it twice"))
    }

    fn settle(&mut self, _: Duration) {}

    fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(init) = &mut self.init {
            let _ = init.wait();
        }
        if self.fault == Fault::Wait {
            return Err(fault("wait"));
        }
        Ok(ExitStatus::Code(0))
    }

    fn control(&self) -> Box<dyn Control> {
        Box::new(Remote(Arc::clone(&self.end)))
    }
}

impl Drop for Ordinary {
    fn drop(&mut self) {
        let _ = self.end.channel.shutdown(std::net::Shutdown::Both);
        if let Some(init) = &mut self.init {
            let _ = init.wait();
        }
        self.counts.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

struct Remote(Arc<End>);

impl Control for Remote {
    fn kill(&self) -> Result<()> {
        let _ = self.0.channel.shutdown(std::net::Shutdown::Both);
        Ok(())
    }

    fn pause(&self) -> Result<()> {
        Err(fault("pause"))
    }

    fn resume(&self) -> Result<()> {
        Err(fault("resume"))
    }

    fn usage(&self) -> Result<Usage> {
        if self.0.usage {
            Ok(Usage::default())
        } else {
            Err(fault("count"))
        }
    }

    fn update(&self, _: &Resources) -> Result<()> {
        Err(fault("update"))
    }

    fn outside(&self) -> Result<Outside> {
        Err(fault("look at it"))
    }

    fn next_condition(&self) -> Option<Condition> {
        None
    }
}
