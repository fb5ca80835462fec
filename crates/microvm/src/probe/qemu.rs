//! QEMU as it is installed here: its version, accelerators and devices, as it tells of them itself.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use luna_core::engine::Accelerator;
use luna_core::host::{Check, Outcome};

/// The oldest version the machine is made for (Debian 12's).
const OLDEST: (u32, u32) = (7, 2);

/// How long QEMU may take to list what it has; it takes 50 ms.
const PATIENCE: Duration = Duration::from_secs(5);

/// The most of its answer that is read.
const LONGEST: u64 = 1 << 20;

/// The devices of the machine. Volumes need `vhost-user-fs-pci`, a panic is told by `pvpanic-pci`.
const NEEDED: [&str; 4] = [
    "virtio-blk-pci",
    "virtio-serial-pci",
    "virtserialport",
    "virtconsole",
];
const USEFUL: [(&str, &str); 5] = [
    ("vhost-user-fs-pci", "volumes"),
    ("virtio-net-pci", "a network of its own"),
    ("virtio-rng-pci", "randomness from the host"),
    ("virtio-balloon-pci", "giving memory back to the host"),
    ("pvpanic-pci", "telling a panic from a power-off"),
];

/// `qemu-system-ARCH`.
pub(crate) fn program() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

/// The first of that name in `PATH`.
fn find() -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|directory| directory.join(program()))
        .find(|path| path.is_file())
}

pub(super) fn probe(accelerator: Accelerator) -> Vec<Check> {
    let begin = Instant::now();
    let package = match std::env::consts::ARCH {
        "aarch64" => "qemu-system-arm",
        _ => "qemu-system-x86",
    };
    let install = format!("apt-get install -y --no-install-recommends {package}");
    let Some(path) = find() else {
        return vec![Check {
            name: "qemu".to_owned(),
            outcome: Outcome::Missing,
            detail: format!("`{}` is not installed", program()),
            fix: Some(install),
            took: begin.elapsed(),
        }];
    };
    let [version, accelerators, devices] = told(&path).clone();
    let mut checks = vec![check(
        "qemu",
        begin,
        judge_version(&path, version),
        Some(&install),
    )];
    if checks[0].outcome == Outcome::Missing {
        return checks;
    }
    checks.push(check(
        "qemu accelerator",
        begin,
        accelerators.and_then(|text| judge_accelerator(accelerator, &text)),
        Some(&install),
    ));
    checks.extend(match devices {
        Ok(text) => judge_devices(&text, begin, &install),
        Err(why) => vec![check("qemu devices", begin, Err(why), None)],
    });
    checks
}

/// The answers to all three questions, asked once in a process and all at once: each start loads the whole of QEMU.
fn told(path: &Path) -> &'static [Result<String, String>; 3] {
    static TOLD: OnceLock<[Result<String, String>; 3]> = OnceLock::new();
    TOLD.get_or_init(|| {
        let begin = Instant::now();
        let asked = [
            &["-version"][..],
            &["-accel", "help"],
            &["-machine", "none", "-device", "help"],
        ]
        .map(|arguments| ask(path, arguments));
        asked.map(|asked| asked.and_then(|child| answer(child, begin)))
    })
}

fn check(name: &str, begin: Instant, outcome: Result<String, String>, fix: Option<&str>) -> Check {
    let (outcome, detail, fix) = match outcome {
        Ok(detail) => (Outcome::Works, detail, None),
        Err(detail) => (Outcome::Missing, detail, fix.map(str::to_owned)),
    };
    Check {
        name: name.to_owned(),
        outcome,
        detail,
        fix,
        took: begin.elapsed(),
    }
}

fn ask(path: &Path, arguments: &[&str]) -> Result<Child, String> {
    Command::new(path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("`{}` cannot be run: {e}", path.display()))
}

/// What it printed, if it ends in time.
fn answer(mut child: Child, begin: Instant) -> Result<String, String> {
    let output = child.stdout.take().expect("it was piped");
    // Ends when QEMU does, or is killed below.
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = output.take(LONGEST).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    while !reader.is_finished() && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(2));
    }
    let in_time = reader.is_finished();
    let _ = child.kill();
    let _ = child.wait();
    let text = reader.join().unwrap_or_default();
    if in_time {
        Ok(text)
    } else {
        Err(format!(
            "`{}` does not answer within {} s",
            program(),
            PATIENCE.as_secs()
        ))
    }
}

fn judge_version(path: &Path, text: Result<String, String>) -> Result<String, String> {
    let text = text?;
    let version = version(&text).ok_or_else(|| format!("`{}` does not say its version", path.display()))?;
    if version < OLDEST {
        return Err(format!(
            "version {}.{}, the machine needs {}.{} or newer",
            version.0, version.1, OLDEST.0, OLDEST.1
        ));
    }
    Ok(format!("{}, version {}.{}", path.display(), version.0, version.1))
}

/// `QEMU emulator version 7.2.22 (Debian …)`.
fn version(text: &str) -> Option<(u32, u32)> {
    let words = text.split("version ").nth(1)?;
    let mut numbers = words
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn judge_accelerator(accelerator: Accelerator, text: &str) -> Result<String, String> {
    let name = match accelerator {
        Accelerator::Tcg => "tcg",
        Accelerator::Kvm => "kvm",
    };
    if text.lines().any(|line| line.trim() == name) {
        return Ok(match accelerator {
            Accelerator::Tcg => "tcg: the guest's instructions are emulated".to_owned(),
            Accelerator::Kvm => "kvm".to_owned(),
        });
    }
    Err(format!("this QEMU was built without `{name}`"))
}

fn judge_devices(text: &str, begin: Instant, install: &str) -> Vec<Check> {
    let has = |device: &str| text.contains(&format!("name \"{device}\""));
    let missing: Vec<_> = NEEDED.iter().filter(|device| !has(device)).copied().collect();
    let absent: Vec<_> = USEFUL.iter().filter(|(device, _)| !has(device)).collect();
    let found = if missing.is_empty() {
        Ok(format!(
            "{} of {} devices",
            NEEDED.len() + USEFUL.len() - absent.len(),
            NEEDED.len() + USEFUL.len()
        ))
    } else {
        Err(format!("this QEMU has no {}", missing.join(", ")))
    };
    let mut checks = vec![check("qemu devices", begin, found, Some(install))];
    checks.extend(absent.iter().map(|(device, what)| Check {
        name: format!("qemu {device}"),
        outcome: Outcome::Absent,
        detail: format!("without it: no {what}"),
        fix: None,
        took: Duration::ZERO,
    }));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_compared() {
        let of = |text: &str| judge_version(Path::new("qemu"), Ok(text.to_owned()));
        assert!(of("QEMU emulator version 7.2.22 (Debian 1:7.2)").is_ok());
        assert!(of("QEMU emulator version 11.0.0").is_ok());
        assert!(of("QEMU emulator version 6.9.1").is_err());
        assert!(of("QEMU").is_err() && of("QEMU version x").is_err());
    }

    #[test]
    fn what_is_missing_is_told_from_what_is_useful() {
        let all = |without: &str| {
            NEEDED
                .iter()
                .chain(USEFUL.iter().map(|(device, _)| device))
                .filter(|device| **device != without)
                .map(|device| format!("name \"{device}\", bus PCI\n"))
                .collect::<Vec<_>>()
                .concat()
        };
        let judge = |without: &str| judge_devices(&all(without), Instant::now(), "install");
        let outcomes = |checks: Vec<Check>| checks.iter().map(|check| check.outcome).collect::<Vec<_>>();
        assert_eq!(outcomes(judge("")), [Outcome::Works]);
        assert_eq!(outcomes(judge("virtio-blk-pci")), [Outcome::Missing]);
        assert_eq!(outcomes(judge("pvpanic-pci")), [Outcome::Works, Outcome::Absent]);
        assert!(judge_accelerator(Accelerator::Kvm, "Accelerators:\ntcg\nkvm\n").is_ok());
        assert!(judge_accelerator(Accelerator::Kvm, "tcg\n").is_err());
    }

    #[test]
    fn a_silent_qemu_is_not_waited_for() {
        let child = ask(Path::new("/bin/sleep"), &["60"]).unwrap();
        let long_ago = Instant::now().checked_sub(PATIENCE).unwrap();
        assert!(answer(child, long_ago).is_err());
    }
}
