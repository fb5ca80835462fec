//! The sandbox's processes as `/proc` has them, for `luna top`. Runs in a worker.

use std::fs;
use std::io::{Read, Write};
use std::time::Duration;

use luna_core::units::Bytes;

use crate::protocol::{Failure, GuestProcess, Stage, encode};

use super::users;

/// A command line longer than this is cut.
const MAX_COMMAND: u64 = 4096;

/// Writes one [`GuestProcess`] after another. Init and this worker are not among them.
pub(super) fn list(output: &mut impl Write) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::new(Stage::Path, error.raw_os_error().unwrap_or(0));
    let passwd = users::passwd();
    let clock = Clock::read();
    let own = rustix::process::getpid().as_raw_pid() as u32;
    let init = rustix::process::getppid().map_or(0, |pid| pid.as_raw_pid() as u32);
    for entry in fs::read_dir("/proc").map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        // A process that ends meanwhile is left out.
        if let Some(pid) = pid.filter(|pid| *pid != own && *pid != init)
            && let Some(process) = read(pid, &passwd, &clock)
        {
            output.write_all(&encode(&process)).map_err(failed)?;
        }
    }
    Ok(())
}

struct Clock {
    uptime: f64,
    ticks: u64,
    page: u64,
}

impl Clock {
    fn read() -> Clock {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime.split(' ').next().and_then(|text| text.parse().ok());
        Clock {
            uptime: seconds.unwrap_or(0.0),
            ticks: rustix::param::clock_ticks_per_second().max(1),
            page: rustix::param::page_size() as u64,
        }
    }

    fn duration(&self, ticks: u64) -> Duration {
        Duration::from_millis(ticks.saturating_mul(1000) / self.ticks)
    }
}

fn read(pid: u32, passwd: &[u8], clock: &Clock) -> Option<GuestProcess> {
    let uid = std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{pid}")).ok()?);
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = Stat::parse(&String::from_utf8_lossy(&stat))?;
    let mut line = Vec::new();
    let file = fs::File::open(format!("/proc/{pid}/cmdline")).ok()?;
    file.take(MAX_COMMAND).read_to_end(&mut line).ok()?;
    let line = line.strip_suffix(b"\0").unwrap_or(&line);
    let command = if line.is_empty() {
        format!("[{}]", stat.name)
    } else {
        String::from_utf8_lossy(line).replace('\0', " ")
    };
    let started = clock.duration(stat.start).as_secs_f64();
    Some(GuestProcess {
        pid,
        parent: stat.parent,
        uid,
        user: users::name_of(uid, passwd).map_or_else(|| uid.to_string(), str::to_owned),
        state: stat.state,
        resident: Bytes(stat.resident.saturating_mul(clock.page)),
        cpu: clock.duration(stat.cpu),
        age: Duration::try_from_secs_f64(clock.uptime - started).unwrap_or_default(),
        command,
    })
}

/// proc_pid_stat(5).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    name: String,
    state: char,
    parent: u32,
    /// User and system, in ticks.
    cpu: u64,
    /// Ticks after boot.
    start: u64,
    /// Pages.
    resident: u64,
}

impl Stat {
    /// The name stands in parentheses and may hold any, so the last closing one ends it.
    fn parse(line: &str) -> Option<Stat> {
        let (_, rest) = line.split_once('(')?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        Some(Stat {
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: number(1)? as u32,
            cpu: number(11)?.saturating_add(number(12)?),
            start: number(19)?,
            resident: number(21)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_fields() {
        let line = "42 (a) S 1 (b) R 7 42 42 0 -1 4194304 1 2 3 4 50 25 0 0 20 0 1 0 1234 1000 99 18446744073709551615 1\n";
        let stat = Stat {
            name: "a) S 1 (b".to_owned(),
            state: 'R',
            parent: 7,
            cpu: 75,
            start: 1234,
            resident: 99,
        };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("42 (a) S 1"), None);
    }
}
