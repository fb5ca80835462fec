//! The streams of an attached program: input, output, signals and the terminal's size, until the program ends or the
//! user leaves.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use luna_core::process::TerminalSize;
use luna_core::{Error, Kind, Result};
use luna_runtime::Sandbox;
use luna_runtime::control::client::{Event, Input, Stream};
use luna_runtime::control::{Attach, Ended};
use signal_hook::consts::signal::{
    SIGABRT, SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH,
};

use crate::terminal;

/// How the user's side is connected.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Standard input is passed on.
    pub(crate) input: bool,
    /// The program has a terminal.
    pub(crate) terminal: bool,
    /// Signals are passed on.
    pub(crate) signals: bool,
    /// Keys that leave the program to itself; empty where none do.
    pub(crate) detach: Vec<u8>,
}

impl Connection {
    /// What to ask of the supervisor. `own` is whether the program's input ends with ours.
    pub(crate) fn attach(&self, own: bool) -> Attach {
        Attach {
            stdin: self.input,
            stdin_once: own,
            terminal: if self.terminal { terminal::size() } else { None },
        }
    }

    /// Passes everything back and forth. `None` where the user left the program to itself. `main` is the sandbox where the
    /// program is its main one: signals then go on a connection of their own, past input that is not read.
    pub(crate) fn relay(&self, stream: Stream, main: Option<&Sandbox>) -> Result<Option<Ended>> {
        let Stream { input, mut output } = stream;
        let left = Arc::new(AtomicBool::new(false));
        if self.terminal && self.input && terminal::stdin_is_terminal() {
            terminal::raw()?;
        }
        if self.signals || self.terminal {
            self.pass_signals(&input, main)?;
        }
        if self.input {
            self.pass_input(input, Arc::clone(&left))?;
        }
        let outcome = loop {
            match output.next_event() {
                Ok(Some(Event::Stdout(bytes))) => write(&mut io::stdout(), bytes),
                Ok(Some(Event::Stderr(bytes))) => write(&mut io::stderr(), bytes),
                Ok(Some(Event::Ended(ended))) => break Ok(Some(ended)),
                Ok(None) | Err(_) if left.load(Ordering::Acquire) => break Ok(None),
                Ok(None) => {
                    break Err(Error::new(Kind::Interrupted, "cannot tell how the program ended")
                        .because("its supervisor went away")
                        .hint("`luna ps -a` shows what became of the sandbox"));
                }
                Err(error) => break Err(error),
            }
        };
        terminal::restore();
        outcome
    }

    fn pass_input(&self, input: Input, left: Arc<AtomicBool>) -> Result<()> {
        let keys = if self.terminal {
            self.detach.clone()
        } else {
            Vec::new()
        };
        std::thread::Builder::new()
            .name("input".to_owned())
            .spawn(move || {
                let mut detector = Detector::new(keys);
                let mut piece = vec![0; 32 << 10];
                let mut typed = Vec::new();
                loop {
                    let count = match io::stdin().lock().read(&mut piece) {
                        Ok(0) => break,
                        Ok(count) => count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                        Err(_) => break,
                    };
                    typed.clear();
                    let leaving = detector.pass(&piece[..count], &mut typed);
                    if input.write(&typed).is_err() {
                        return;
                    }
                    if leaving {
                        left.store(true, Ordering::Release);
                        input.detach();
                        return;
                    }
                }
                let _ = input.finish();
            })
            .map(drop)
            .map_err(|e| Error::io("cannot start a thread", e))
    }

    fn pass_signals(&self, input: &Input, main: Option<&Sandbox>) -> Result<()> {
        let mut wanted = Vec::new();
        if self.signals {
            wanted.extend([
                SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGABRT, SIGCONT,
            ]);
        }
        if self.terminal {
            wanted.push(SIGWINCH);
        }
        let fail = |e: io::Error| Error::io("cannot take signals", e);
        let mut signals = signal_hook::iterator::Signals::new(wanted).map_err(fail)?;
        let (input, main) = (input.clone(), main.cloned());
        let mut known: Option<TerminalSize> = None;
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if signal != SIGWINCH {
                        let number = signal as u8;
                        // One that ended in between needs no signal.
                        let _ = match &main {
                            Some(sandbox) => {
                                sandbox.client().and_then(|client| client.signal(number)).is_ok()
                            }
                            None => input.signal(number).is_ok(),
                        };
                    } else if let Some(size) = terminal::size()
                        && known != Some(size)
                    {
                        known = Some(size);
                        let _ = input.resize(size);
                    }
                }
            })
            .map(drop)
            .map_err(fail)
    }
}

/// A reader that went away loses the output, not the program.
fn write(to: &mut impl Write, bytes: &[u8]) {
    let _ = to.write_all(bytes).and_then(|()| to.flush());
}

/// Finds the detach keys in what is typed. Their beginning is held back until it is clear that they do not follow.
#[derive(Debug)]
struct Detector {
    keys: Vec<u8>,
    matched: usize,
}

impl Detector {
    fn new(keys: Vec<u8>) -> Detector {
        Detector { keys, matched: 0 }
    }

    /// Appends what is for the program to `through`; `true` when the keys were typed in full.
    fn pass(&mut self, bytes: &[u8], through: &mut Vec<u8>) -> bool {
        if self.keys.is_empty() {
            through.extend_from_slice(bytes);
            return false;
        }
        for &byte in bytes {
            if byte != self.keys[self.matched] && self.matched > 0 {
                through.extend_from_slice(&self.keys[..self.matched]);
                self.matched = 0;
            }
            if byte == self.keys[self.matched] {
                self.matched += 1;
                if self.matched == self.keys.len() {
                    return true;
                }
            } else {
                through.push(byte);
            }
        }
        false
    }
}

/// `ctrl-p,ctrl-q`, `ctrl-a,d`, or nothing at all for no such keys.
pub(crate) fn keys(text: &str) -> Result<Vec<u8>> {
    let key = |key: &str| -> Option<u8> {
        match key.to_ascii_lowercase().strip_prefix("ctrl-") {
            Some(letter) => match letter.as_bytes() {
                [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                [b'@'] => Some(0),
                [b'['] => Some(27),
                [b'\\'] => Some(28),
                [b']'] => Some(29),
                [b'^'] => Some(30),
                [b'_'] => Some(31),
                _ => None,
            },
            None => match key.as_bytes() {
                [letter] if letter.is_ascii() => Some(*letter),
                _ => None,
            },
        }
    };
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',')
        .map(key)
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| {
            Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as keys", text.escape_debug()),
            )
            .hint("write for example `ctrl-p,ctrl-q`, or nothing for no such keys")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_as_docker_s() {
        assert_eq!(keys("ctrl-p,ctrl-q").unwrap(), [16, 17]);
        assert_eq!(keys("ctrl-@,x").unwrap(), [0, b'x']);
        assert!(keys("").unwrap().is_empty());
        assert!(keys("ctrl-").is_err() && keys("alt-x").is_err() && keys("a,,b").is_err());
    }

    #[test]
    fn keys_are_found_across_reads_and_nothing_else_is_lost() {
        let typed = |pieces: &[&[u8]]| {
            let mut detector = Detector::new(vec![16, 17]);
            let mut through = Vec::new();
            let left = pieces.iter().any(|piece| detector.pass(piece, &mut through));
            (left, through)
        };
        assert_eq!(typed(&[b"ab"]), (false, b"ab".to_vec()));
        assert_eq!(typed(&[b"a\x10\x11"]), (true, b"a".to_vec()));
        assert_eq!(typed(&[b"a\x10", b"\x11"]), (true, b"a".to_vec()));
        assert_eq!(typed(&[b"\x10", b"x"]), (false, b"\x10x".to_vec()));
        assert_eq!(typed(&[b"\x10\x10\x11"]), (true, b"\x10".to_vec()));
    }
}
