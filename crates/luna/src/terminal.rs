//! The user's terminal: whether there is one, its size, raw mode.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use luna_core::process::TerminalSize;
use luna_core::{Error, Kind, Result};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// What the terminal was like before [`raw`]; put back by [`restore`], which every way out of the process passes.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

pub(crate) fn stdin_is_terminal() -> bool {
    isatty(std::io::stdin())
}

/// The size of the terminal on any of the standard streams.
pub(crate) fn size() -> Option<TerminalSize> {
    let of = |fd: BorrowedFd<'_>| {
        tcgetwinsize(fd)
            .ok()
            .filter(|size| size.ws_row > 0 && size.ws_col > 0)
    };
    let size = of(std::io::stdout().as_fd()).or_else(|| of(std::io::stdin().as_fd()))?;
    Some(TerminalSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// `-t` needs a terminal here as well when input is connected.
pub(crate) fn check(terminal: bool, input: bool) -> Result<()> {
    if terminal && input && !stdin_is_terminal() {
        return Err(
            Error::new(Kind::InvalidInput, "cannot give the program this terminal")
                .because("standard input is not a terminal")
                .hint("leave out `-t`"),
        );
    }
    Ok(())
}

/// Hands every key to the program, until [`restore`].
pub(crate) fn raw() -> Result<()> {
    let fail = |e: rustix::io::Errno| Error::io("cannot switch the terminal to raw mode", e);
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(fail)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(&stdin, OptionalActions::Now, &raw).map_err(fail)?;
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    Ok(())
}

/// Puts the terminal back as it was.
pub(crate) fn restore() {
    if let Some(before) = BEFORE.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &before);
    }
}

/// What is typed is not shown until this is dropped or the process leaves.
#[derive(Debug)]
pub(crate) struct WithoutEcho;

pub(crate) fn without_echo() -> Result<WithoutEcho> {
    use rustix::termios::LocalModes;
    let fail = |e: rustix::io::Errno| Error::io("cannot hide what is typed", e);
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).map_err(fail)?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &quiet).map_err(fail)?;
    *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
    Ok(WithoutEcho)
}

impl Drop for WithoutEcho {
    fn drop(&mut self) {
        restore();
    }
}
