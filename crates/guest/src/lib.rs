//! One guest behind two walls: `luna-init` is PID 1 of every sandbox, and everything the host wants inside (a process,
//! its standard streams, a signal, a file, a port) it asks init for over one channel.
//!
//! [`protocol`] says what the two tell each other, [`session`] is the host's end, [`init`] the guest's. The host never
//! enters a sandbox after its start, and it believes nothing that comes out: see [`session`].

pub mod protocol;
pub mod session;

#[cfg(feature = "init")]
pub mod init;

#[cfg(feature = "init")]
pub mod machine;
