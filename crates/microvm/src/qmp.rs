//! What QEMU says of itself: the events of its monitor that tell how a machine fares. Types are the `qapi` crate's; lines
//! are read here, bounded, since a VMM that a guest has taken over may write anything.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use qapi::qmp::{Event, QmpMessageAny, qmp_capabilities};
use qapi::{Command, Execute};

const STACK: usize = 128 << 10;
/// The longest line that is read.
const MOST: u64 = 1 << 20;

/// What the engine wants to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The guest's kernel has panicked.
    Panicked,
    /// A disk of the host's refused a write and the machine stands still until it goes on.
    Halted {
        full: bool,
        reason: String,
    },
    GoesOn,
    /// The process that served a volume has ended.
    VolumeGone,
}

/// Sends commands. Their answers are of no interest: what matters comes as events.
#[derive(Debug)]
pub(crate) struct Monitor(UnixStream);

impl Monitor {
    /// Greets QEMU and passes its news on until it closes the monitor.
    pub(crate) fn start(
        stream: UnixStream,
        mut tell: impl FnMut(News) + Send + 'static,
    ) -> io::Result<Monitor> {
        let monitor = Monitor(stream.try_clone()?);
        monitor.send(&qmp_capabilities { enable: None })?;
        thread::Builder::new()
            .name("monitor".to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let mut reader = BufReader::new(stream);
                let mut line = Vec::new();
                while next_line(&mut reader, &mut line).unwrap_or(false) {
                    if let Some(news) = parse(&line) {
                        tell(news);
                    }
                }
            })?;
        Ok(monitor)
    }

    /// Lets a machine go on that a refused write halted.
    pub(crate) fn go_on(&self) -> io::Result<()> {
        self.send(&qapi::qmp::cont {})
    }

    /// Presses the machine's power button.
    pub(crate) fn power_button(&self) -> io::Result<()> {
        self.send(&qapi::qmp::system_powerdown {})
    }

    fn send<C: Command>(&self, command: &C) -> io::Result<()> {
        let mut line = serde_json::to_vec(&Execute::<&C>::from(command))?;
        line.push(b'\n');
        (&self.0).write_all(&line)
    }
}

/// Reads one line; false at the end, or where it would be too long.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.take(MOST).read_until(b'\n', line)?;
    Ok(line.last() == Some(&b'\n'))
}

fn parse(line: &[u8]) -> Option<News> {
    let QmpMessageAny::Event(event) = serde_json::from_slice(line).ok()? else {
        return None;
    };
    match event {
        Event::GUEST_PANICKED { .. } => Some(News::Panicked),
        Event::BLOCK_IO_ERROR { data, .. } if data.action == qapi::qmp::BlockErrorAction::stop => {
            let reason = data.reason.chars().filter(|letter| !letter.is_control());
            Some(News::Halted {
                full: data.nospace.unwrap_or(false),
                reason: reason.take(200).collect(),
            })
        }
        Event::RESUME { .. } => Some(News::GoesOn),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_as_qemu_writes_them() {
        let time = r#""timestamp": {"seconds": 1, "microseconds": 2}"#;
        let panicked = format!(r#"{{{time}, "event": "GUEST_PANICKED", "data": {{"action": "poweroff"}}}}"#);
        assert_eq!(parse(panicked.as_bytes()), Some(News::Panicked));
        let full = format!(
            r#"{{{time}, "event": "BLOCK_IO_ERROR", "data": {{"device": "", "nospace": true, "node-name": "upper",
            "reason": "No space left on device", "operation": "write", "action": "stop"}}}}"#
        );
        assert_eq!(
            parse(full.as_bytes()),
            Some(News::Halted {
                full: true,
                reason: "No space left on device".into()
            })
        );
        for nothing in ["", "{}", "[", r#"{"return": {}}"#, r#"{"event": 1}"#] {
            assert_eq!(parse(nothing.as_bytes()), None, "{nothing}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_the_end() {
        let mut endless = BufReader::new(io::repeat(b'x'));
        assert!(!next_line(&mut endless, &mut Vec::new()).unwrap());
    }
}
