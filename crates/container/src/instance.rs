//! A running sandbox: the jail and the host's end of init's channel.

use std::os::fd::OwnedFd;
use std::time::Duration;

use luna_core::engine::{Bundle, Condition, Control, Instance, Outside, Usage};
use luna_core::process::ExitStatus;
use luna_core::spec::Resources;
use luna_core::{Error, Kind, Result};
use luna_jail::{Handle, Jailed};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::bundle;

pub(crate) struct Running {
    jail: Jailed,
    channel: Option<OwnedFd>,
}

pub(crate) fn start(bundle: Bundle) -> Result<Running> {
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|error| Error::io("cannot make the channel to init", error))?;
    let jail = luna_jail::launch(bundle::jail_spec(bundle, theirs)?)?;
    Ok(Running {
        jail,
        channel: Some(ours),
    })
}

impl Instance for Running {
    fn channel(&mut self) -> Result<OwnedFd> {
        self.channel.take().ok_or_else(|| {
            Error::new(Kind::Conflict, "cannot take the channel to init").because("it was taken before")
        })
    }

    /// The host's kernel holds what was written.
    fn settle(&mut self, _: Duration) {}

    fn wait(&mut self) -> Result<ExitStatus> {
        self.jail.wait()
    }

    fn control(&self) -> Box<dyn Control> {
        Box::new(Remote(self.jail.handle()))
    }
}

struct Remote(Handle);

impl Control for Remote {
    fn kill(&self) -> Result<()> {
        self.0.kill()
    }

    fn pause(&self) -> Result<()> {
        self.0.pause()
    }

    fn resume(&self) -> Result<()> {
        self.0.resume()
    }

    fn usage(&self) -> Result<Usage> {
        self.0.usage()
    }

    fn update(&self, resources: &Resources) -> Result<()> {
        self.0.update(&bundle::limits(resources)?)
    }

    fn outside(&self) -> Result<Outside> {
        self.0.outside()
    }

    /// Its processes are the host's; what keeps them from going on is for them to say.
    fn next_condition(&self) -> Option<Condition> {
        None
    }
}
