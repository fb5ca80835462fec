//! `--boot`: a disk image with a system of its own, here one of 62 bytes, booted by the BIOS under software emulation.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cli_tests::{Luna, Outcome};
use serde_json::Value;

/// Prints what follows it on COM1; then echoes what is typed there, until `q` is or the power button is pressed, and
/// switches the machine off. Ports: the UART's 0x3f8 and its line status at 0x3fd; the chipset's power management at 0x600.
const SYSTEM: [u8; 62] = [
    0xfa, // cli
    0x31, 0xc0, 0x8e, 0xd8, // ax = ds = 0
    0xbe, 0x3e, 0x7c, // si = text
    0xac, 0x84, 0xc0, 0x74, 0x06, // print: al = [si++]; if 0 goto ready
    0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, // out 0x3f8; goto print
    0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // ready: PM1 enable = power button
    0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x75, 0x11, // wait: if PM1 status says it goto off
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xef, // if nothing was typed goto wait
    0xba, 0xf8, 0x03, 0xec, 0xee, 0x3c, 0x71, 0x75, 0xe6, // echo; if not `q` goto wait
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // off: PM1 control = sleep, type 0
    0xf4, 0xeb, 0xfd, // halt
];
const GREETING: &str = "a system of its own";

/// A Luna and a disk, or `None` where no machine can be had.
fn computer() -> Option<(Luna, PathBuf)> {
    let luna = Luna::bare();
    let report: Value = serde_json::from_str(&luna.line("host --json").ok()).unwrap();
    let engines = report["engines"].as_array().unwrap();
    let emulated = engines
        .iter()
        .find(|engine| engine["profile"]["accelerator"] == "tcg")
        .unwrap();
    let checks = emulated["checks"].as_array().unwrap();
    if let Some(check) = checks.iter().find(|check| check["outcome"] == "missing") {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: {} is missing: {}",
            check["name"],
            check["detail"]
        );
        return None;
    }
    let disk = luna.path("disk.raw");
    fs::write(&disk, image()).unwrap();
    Some((luna, disk))
}

fn image() -> Vec<u8> {
    let mut sector = SYSTEM.to_vec();
    // The log has whole lines.
    sector.extend(GREETING.as_bytes());
    sector.extend(b"\r\n");
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    // The BIOS boots no disk without a cylinder.
    sector.resize(1 << 20, 0);
    sector
}

fn boot(luna: &Luna, flags: &str, disk: &Path) -> Outcome {
    let line = format!("run -d --memory 128m {flags} --boot {}", disk.display());
    luna.line(&line)
}

#[test]
fn a_disk_boots_speaks_on_its_console_and_obeys_the_power_button() {
    let Some((luna, disk)) = computer() else { return };
    boot(&luna, "--name own", &disk).ok();
    luna.until("logs own", |said| said.contains(GREETING));
    assert!(luna.line("ps").ok().contains("disk.raw"));
    assert_eq!(
        luna.field("own", "{{.Luna.wall}} {{.Luna.boot.firmware}}"),
        "vm bios"
    );
    luna.line("pause own").ok();
    luna.line("unpause own").ok();
    assert!(luna.line("stats --no-stream own").ok().contains("own"));
    // What was typed is echoed, and the console outlives who typed it.
    let mut attached = luna
        .command(["attach", "own"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    attached.stdin.as_ref().unwrap().write_all(b"typed\n").unwrap();
    luna.until("logs own", |said| said.contains("typed"));
    attached.kill().unwrap();
    attached.wait().unwrap();
    assert_eq!(luna.field("own", "{{.State.Status}}"), "running");
    luna.line("stop --time 20 own").ok();
    assert_eq!(luna.field("own", "{{.State.ExitCode}}"), "0");
    // The disk that was given is as it was; another start finds what was written over it.
    assert_eq!(fs::read(&disk).unwrap(), image());
    luna.line("start own").ok();
    luna.line("kill own").ok();
    assert_eq!(luna.line("wait own").line(), "137");
}

#[test]
fn input_reaches_a_system_in_the_foreground_and_its_end_is_the_commands() {
    let Some((luna, disk)) = computer() else { return };
    let running = luna
        .command([
            "run", "--rm", "-i", "--memory", "128m", "--name", "front", "--boot",
        ])
        .arg(&disk)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The BIOS forgets what is typed before there is somebody to read it.
    luna.until("logs front", |said| said.contains(GREETING));
    running.stdin.as_ref().unwrap().write_all(b"q").unwrap();
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains(GREETING), "{said}");
    luna.until("ps -aq", str::is_empty);
}

#[test]
fn what_only_init_could_do_is_refused_by_name() {
    let Some((luna, disk)) = computer() else { return };
    boot(&luna, "--name own", &disk).ok();
    for line in [
        "exec own true",
        "top own",
        "cp own:/a .",
        "inspect --isolation own",
        "kill -s USR1 own",
    ] {
        let said = luna.line(line).fails(125);
        assert!(said.contains("no init of Luna's"), "{line}: {said}");
    }
}

#[test]
fn disks_that_name_other_files_and_walls_without_firmware_are_refused() {
    let Some((luna, disk)) = computer() else { return };
    // A qcow2 header of version 3 whose backing file's name is at 512, 11 bytes long.
    let mut header = b"QFI\xfb".to_vec();
    for number in [3, 0, 512, 11, 16, 0, 1 << 20] {
        header.extend(u32::to_be_bytes(number));
    }
    header.resize(512, 0);
    header.extend(b"/etc/shadow");
    let hostile = luna.path("hostile.qcow2");
    fs::write(&hostile, header).unwrap();
    let said = boot(&luna, "", &hostile).fails(125);
    assert!(
        said.contains("backing file") && said.contains("qemu-img convert"),
        "{said}"
    );
    let said = boot(&luna, "--isolation container", &disk).fails(125);
    assert!(said.contains("the disk image's own kernel"), "{said}");
    let said = boot(&luna, "-e A=1", &disk).fails(125);
    assert!(said.contains("cannot use `--env` with `--boot`"), "{said}");
    assert!(luna.line("ps -aq").ok().is_empty());
}
