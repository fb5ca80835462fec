//! The last words of something that talks without end: the guest's console, QEMU's errors.

use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Bytes kept.
const MOST: usize = 16 << 10;
const STACK: usize = 64 << 10;

/// What was heard last. Clones hear the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tail(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    kept: Mutex<VecDeque<u8>>,
    ended: Mutex<bool>,
    end: Condvar,
}

impl Tail {
    /// Reads `source` to its end on a thread of its own.
    pub(crate) fn of(name: &str, mut source: impl Read + Send + 'static) -> std::io::Result<Tail> {
        let tail = Tail::default();
        let kept = tail.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let mut piece = vec![0; 4096];
                while let Ok(count @ 1..) = source.read(&mut piece) {
                    kept.keep(&piece[..count]);
                }
                *kept.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
                kept.0.end.notify_all();
            })?;
        Ok(tail)
    }

    fn keep(&self, bytes: &[u8]) {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(bytes);
        let beyond = kept.len().saturating_sub(MOST);
        kept.drain(..beyond);
    }

    /// Waits until everything was heard, for at most `time`.
    pub(crate) fn await_end(&self, time: Duration) {
        let ended = self.0.ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.end.wait_timeout_while(ended, time, |ended| !*ended));
    }

    /// Its last lines, printable; hostile text must not reach a terminal raw.
    pub(crate) fn lines(&self) -> Vec<String> {
        let kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes)
            .lines()
            .map(|line| {
                line.chars()
                    .filter(|letter| !letter.is_control())
                    .collect::<String>()
                    .trim()
                    .to_owned()
            })
            .filter(|line| !line.is_empty())
            .collect()
    }

    /// The last line that has `text` in it, from there on.
    pub(crate) fn find(&self, text: &str) -> Option<String> {
        self.lines()
            .iter()
            .rev()
            .find_map(|line| line.find(text).map(|at| line[at..].to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_and_harmless() {
        let tail = Tail::default();
        for number in 0..5000 {
            tail.keep(format!("line {number}\n").as_bytes());
        }
        tail.keep(b"\x1b[2J[ 1.0] Kernel panic - not syncing: \x07why\r\n\xff");
        let lines = tail.lines();
        assert!(lines.len() < 3000);
        assert!(lines.iter().all(|line| !line.contains('\x1b')));
        assert_eq!(
            tail.find("Kernel panic").as_deref(),
            Some("Kernel panic - not syncing: why")
        );
    }
}
