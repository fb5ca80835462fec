//! Whether `/dev/kvm` runs guest code or only pretends to.
//!
//! A KVM device may open, make a machine, and then trap and emulate every instruction (nested and paravirtual hosts): a
//! kernel on it would need minutes to boot. So a guest of the probe's own runs a loop of a known length in 64-bit mode, on
//! one virtual processor, and its speed is judged. Everything happens in a child process, which interrupts the guest
//! after [`LONGEST`] and is killed after [`PATIENCE`], whatever the device does.

mod sys;

use std::time::{Duration, Instant};

use luna_core::host::{Check, Outcome};
use sys::Answer;

/// Rounds of the loop, two instructions each: 2 to 5 ms on a processor that runs them.
const ROUNDS: u64 = 10_000_000;

/// How long the guest may run.
const LONGEST: Duration = Duration::from_millis(120);

/// How long the child may take for everything. With the forking before and the reaping after it the probe stays within
/// 200 ms.
const PATIENCE: Duration = Duration::from_millis(170);

/// The most processor time the whole loop may take: a processor of 1 GHz takes 10 ms, emulation more than a second.
/// It is the child's own time, so a busy host is no slow one.
const SLOWEST: Duration = Duration::from_millis(60);

/// The steps of the child; an error names the one it met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    Open,
    Version,
    CreateMachine,
    Memory,
    CreateProcessor,
    Registers,
    Run,
    Done,
}

impl Stage {
    const ALL: [Stage; 8] = [
        Stage::Open,
        Stage::Version,
        Stage::CreateMachine,
        Stage::Memory,
        Stage::CreateProcessor,
        Stage::Registers,
        Stage::Run,
        Stage::Done,
    ];

    fn doing(self) -> &'static str {
        match self {
            Stage::Open => "open `/dev/kvm`",
            Stage::Version => "ask for its version",
            Stage::CreateMachine => "make a machine",
            Stage::Memory => "give a machine memory",
            Stage::CreateProcessor => "make a virtual processor",
            Stage::Registers => "put a virtual processor into 64-bit mode",
            Stage::Run | Stage::Done => "run a guest",
        }
    }
}

/// The device, and then the loop.
pub(super) fn probe() -> Vec<Check> {
    let begin = Instant::now();
    let answer = sys::ask(ROUNDS, LONGEST, PATIENCE);
    let mut checks = judge(answer, begin.elapsed());
    checks.extend(for_a_nobody());
    checks
}

/// Root's QEMU runs as ids that own nothing, so the device has to be open to all. A user's runs as the user.
fn for_a_nobody() -> Option<Check> {
    const ALL_MAY: u32 = 0o006;
    let begin = Instant::now();
    if luna_jail::rootless::is_rootless() {
        return None;
    }
    let mode = rustix::fs::stat("/dev/kvm").ok()?.st_mode & 0o777;
    let open = mode & ALL_MAY == ALL_MAY;
    Some(Check {
        name: "kvm device in the jail".to_owned(),
        outcome: if open { Outcome::Works } else { Outcome::Missing },
        detail: if open {
            "open to all".to_owned()
        } else {
            format!("QEMU runs as nobody, and the mode of `/dev/kvm` is {mode:03o}")
        },
        fix: (!open).then(|| "chmod 0666 /dev/kvm (for good: a udev rule with MODE=\"0666\"), or run Luna as a user of the group kvm".to_owned()),
        took: begin.elapsed(),
    })
}

fn judge(answer: std::io::Result<Option<Answer>>, took: Duration) -> Vec<Check> {
    let told = |name: &str, outcome, detail: String, fix: Option<&str>| Check {
        name: name.to_owned(),
        outcome,
        detail,
        fix: fix.map(str::to_owned),
        took,
    };
    let missing = |name: &str, detail: String, fix| told(name, Outcome::Missing, detail, fix);
    let answer = match answer {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            return vec![missing(
                "kvm guest",
                format!("`/dev/kvm` does not answer within {} ms", PATIENCE.as_millis()),
                Some(ELSEWHERE),
            )];
        }
        Err(error) => return vec![missing("kvm device", format!("cannot try it: {error}"), None)],
    };
    let stage = Stage::ALL
        .get(usize::from(answer.stage))
        .copied()
        .unwrap_or(Stage::Open);
    if stage == Stage::Open || stage == Stage::Version {
        let error = std::io::Error::from_raw_os_error(answer.errno);
        let fix = match answer.errno {
            libc::EACCES | libc::EPERM => "usermod -aG kvm \"$USER\", then log in again",
            libc::ENOENT | libc::ENODEV | libc::ENXIO => {
                "enable virtualization in the firmware (on a virtual machine: nested virtualization) and `modprobe kvm`"
            }
            _ => ELSEWHERE,
        };
        return vec![missing(
            "kvm device",
            format!("cannot {}: {error}", stage.doing()),
            Some(fix),
        )];
    }
    let device = told(
        "kvm device",
        Outcome::Works,
        format!("`/dev/kvm`, interface version {}", answer.version),
        None,
    );
    let guest = if stage == Stage::Done {
        judge_speed(answer.rounds, Duration::from_nanos(answer.nanoseconds))
    } else {
        let error = std::io::Error::from_raw_os_error(answer.errno);
        Err(format!("cannot {}: {error}", stage.doing()))
    };
    let guest = match guest {
        Ok(detail) => told("kvm guest", Outcome::Works, detail, None),
        Err(detail) => missing("kvm guest", detail, Some(ELSEWHERE)),
    };
    vec![device, guest]
}

const ELSEWHERE: &str = "run Luna on a host with hardware or nested virtualization enabled";

/// How fast the guest went, in the processor time it had.
fn judge_speed(rounds: u64, time: Duration) -> Result<String, String> {
    let milliseconds = time.as_secs_f64() * 1000.0;
    if rounds == 0 {
        return Err(format!("the guest ran for {milliseconds:.0} ms and did nothing"));
    }
    let whole = Duration::from_secs_f64(time.as_secs_f64() * ROUNDS as f64 / rounds as f64);
    if whole <= SLOWEST {
        return Ok(format!(
            "64-bit loop of {ROUNDS} rounds in {:.1} ms",
            whole.as_secs_f64() * 1000.0
        ));
    }
    Err(format!(
        "`/dev/kvm` emulates guest code instead of running it (64-bit loop: {rounds} of {ROUNDS} rounds in \
         {milliseconds:.0} ms, expected all in 5 ms)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(stage: Stage, errno: i32, rounds: u64, milliseconds: u64) -> Answer {
        Answer {
            stage: stage as u8,
            errno,
            version: 12,
            rounds,
            nanoseconds: milliseconds * 1_000_000,
        }
    }

    #[test]
    fn what_the_device_does_is_judged() {
        let cases = [
            (
                answer(Stage::Open, libc::ENOENT, 0, 0),
                "kvm device",
                "modprobe kvm",
            ),
            (
                answer(Stage::Open, libc::EACCES, 0, 0),
                "kvm device",
                "usermod -aG kvm",
            ),
            (
                answer(Stage::CreateMachine, libc::ENODEV, 0, 0),
                "kvm guest",
                "virtualization",
            ),
            (answer(Stage::Done, 0, 0, 100), "kvm guest", "virtualization"),
            (answer(Stage::Done, 0, 40_000, 120), "kvm guest", "virtualization"),
            (answer(Stage::Done, 0, ROUNDS, 61), "kvm guest", "virtualization"),
        ];
        for (given, name, fix) in cases {
            let checks = judge(Ok(Some(given)), Duration::ZERO);
            let last = checks.last().unwrap();
            assert_eq!(
                (last.name.as_str(), last.outcome),
                (name, Outcome::Missing),
                "{given:?}"
            );
            assert!(last.fix.as_ref().unwrap().contains(fix), "{last:?}");
        }
        for given in [
            answer(Stage::Done, 0, ROUNDS, 4),
            answer(Stage::Done, 0, ROUNDS / 2, 25),
        ] {
            let checks = judge(Ok(Some(given)), Duration::ZERO);
            assert!(
                checks.iter().all(|check| check.outcome == Outcome::Works),
                "{checks:?}"
            );
        }
        assert_eq!(judge(Ok(None), Duration::ZERO)[0].outcome, Outcome::Missing);
    }

    #[test]
    fn the_probe_comes_back_in_time_whatever_the_device_does() {
        let begin = Instant::now();
        let checks = probe();
        let took = begin.elapsed();
        assert!(took < Duration::from_millis(200), "{took:?}: {checks:?}");
        assert!(!checks.is_empty());
    }

    #[test]
    fn a_child_that_hangs_is_given_up() {
        let begin = Instant::now();
        let none = sys::hang(Duration::from_millis(30)).unwrap();
        assert_eq!(none, None);
        assert!(begin.elapsed() < Duration::from_millis(150));
    }
}
