//! The thread that asks a machine now and then whether it is still there.
//!
//! A guest that hangs is reported, never killed for it: from outside it looks as one does on a host that is very busy, and
//! what is in it is its user's. Whoever knows better has a health check, or `luna kill`.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use luna_guest::protocol::machine::Command;

use crate::report::Reports;

const STACK: usize = 64 << 10;

/// How a machine is watched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// From one question to the next.
    pub(crate) pause: Duration,
    /// How long is listened for one answer; it may also come later.
    pub(crate) patience: Duration,
    /// A machine that has said nothing for this long is silent.
    pub(crate) silence: Duration,
}

/// An answer takes a millisecond; under emulation on a host with ten times as much to do as it can, some hundreds.
pub(crate) const RHYTHM: Rhythm = Rhythm {
    pause: Duration::from_secs(20),
    patience: Duration::from_secs(10),
    silence: Duration::from_secs(60),
};

/// Watches until the machine has ended. One that is paused or halted has a reason to be silent.
pub(crate) fn start(reports: &Reports, paused: &Arc<AtomicBool>, rhythm: Rhythm) -> io::Result<()> {
    let (reports, paused) = (reports.clone(), Arc::clone(paused));
    let excused = move |reports: &Reports| paused.load(Ordering::Acquire) || reports.halted().is_some();
    thread::Builder::new()
        .name("watch".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            while reports.lives_on(rhythm.pause) {
                if !excused(&reports) {
                    // An answer is noted where it is heard.
                    let _ = reports.ask(Command::Usage, rhythm.patience);
                }
                if excused(&reports) {
                    reports.excuse();
                } else {
                    reports.judge(rhythm.silence);
                }
            }
        })
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use luna_core::engine::Condition;
    use luna_guest::protocol::machine::{GuestUsage, Report, read_frame, write_frame};

    use super::*;

    const QUICK: Rhythm = Rhythm {
        pause: Duration::from_millis(10),
        patience: Duration::from_millis(10),
        silence: Duration::from_millis(100),
    };

    fn answer(port: &mut UnixStream) {
        let _: Option<Command> = read_frame(port).unwrap();
        write_frame(port, &Report::Usage(GuestUsage::default())).unwrap();
    }

    #[test]
    fn silence_is_told_and_so_is_its_end() {
        let (ours, mut machine) = UnixStream::pair().unwrap();
        let reports = Reports::listen(ours).unwrap();
        let paused = Arc::new(AtomicBool::new(false));
        reports.excuse();
        start(&reports, &paused, QUICK).unwrap();
        for _ in 0..3 {
            answer(&mut machine);
        }
        let Some(Condition::Silent(error)) = reports.next_condition() else {
            panic!("three answers, then none")
        };
        assert!(error.hint_text().is_some());
        // The questions do not pile up without end.
        thread::sleep(Duration::from_millis(300));
        answer(&mut machine);
        assert!(matches!(reports.next_condition(), Some(Condition::Well)));
        drop(machine);
        assert!(reports.next_condition().is_none());
    }

    #[test]
    fn what_is_paused_may_be_silent() {
        let (ours, machine) = UnixStream::pair().unwrap();
        let reports = Reports::listen(ours).unwrap();
        let paused = Arc::new(AtomicBool::new(true));
        reports.excuse();
        start(&reports, &paused, QUICK).unwrap();
        thread::sleep(Duration::from_millis(300));
        drop(machine);
        assert!(reports.next_condition().is_none());
    }
}
