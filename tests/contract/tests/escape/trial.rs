//! One attempt in one land: what it needs on the host is made, it is run, and its effect is looked for from outside.

use std::fmt;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use contract::bounded::Finished;
use contract::cell::LEAK;
use contract::land::{self, Land, Victim};
use contract::{binaries, peer};

use super::attempts::{Attempt, Effect};

/// What became of an attempt.
#[derive(Debug)]
pub(crate) enum Verdict {
    Stopped(String),
    Escaped(String),
    /// The wall could not be built, which is no success of the wall's.
    NoWall(String),
    Untried(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Verdict::Stopped(why) | Verdict::Escaped(why) | Verdict::NoWall(why) | Verdict::Untried(why)) =
            self;
        write!(f, "{}: {}", self.word(), why.trim())
    }
}

impl Verdict {
    pub(crate) fn word(&self) -> String {
        match self {
            Verdict::Stopped(_) => "stopped",
            Verdict::Escaped(_) => "SUCCEEDS",
            Verdict::NoWall(_) => "NO WALL",
            Verdict::Untried(_) => "-",
        }
        .to_owned()
    }
}

/// One volume is there for all to write to.
static VOLUME: Mutex<()> = Mutex::new(());

pub(crate) struct Trial<'a> {
    land: &'a Land,
    attempt: &'a Attempt,
}

/// What lies on the host for one run.
struct Bait {
    victim: Option<Victim>,
    root_victim: Option<Victim>,
    socket: Option<UnixListener>,
    port: Option<TcpListener>,
    segment: Option<String>,
    null_changed: (i64, i64),
    words: Vec<String>,
    wrap: Vec<String>,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(land: &'a Land, attempt: &'a Attempt) -> Trial<'a> {
        Trial { land, attempt }
    }

    /// Why the host itself cannot do it, where it cannot.
    pub(crate) fn on_host(&self) -> Option<String> {
        let words: Vec<_> = self.attempt.command.clone();
        let path_only = words.iter().all(|word| !word.contains('{'));
        assert!(path_only, "`{}` needs nothing of the host", self.attempt.what);
        if words[0] == "character-device" {
            return (!Path::new("/dev/mem").exists()).then(|| "no /dev/mem here".to_owned());
        }
        let said = self.land.outside(&words);
        (!said.success()).then(|| "this kernel has none".to_owned())
    }

    pub(crate) fn on_luna(&self, without: &[&str]) -> Verdict {
        let bait = match self.bait() {
            Ok(bait) => bait,
            Err(why) => return Verdict::Untried(why),
        };
        let _alone = self.alone();
        let cell = self.land.cell(without, &bait.words);
        let said = self.land.run(&cell, &bait.wrap);
        let program = self.restore_program();
        self.judge(bait, &said, program)
    }

    pub(crate) fn on_runc(&self) -> Verdict {
        let bait = match self.bait() {
            Ok(bait) => bait,
            Err(why) => return Verdict::Untried(why),
        };
        let _alone = self.alone();
        let said = peer::run(self.land, &bait.words, &bait.wrap);
        self.judge(bait, &said, false)
    }

    /// Held where the effect could be another attempt's.
    fn alone(&self) -> Option<MutexGuard<'static, ()>> {
        (self.attempt.effect == Effect::ReadOnlyVolumeWritten)
            .then(|| VOLUME.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn bait(&self) -> Result<Bait, String> {
        let has = |token: &str| self.attempt.command.iter().any(|word| word.contains(token));
        let land = self.land;
        let victim = has("{victim}").then(|| land.victim(land.owner.inside_root()));
        let root_victim = has("{root-victim}").then(|| land.victim(0));
        let socket = (self.attempt.effect == Effect::SocketAccepts).then(|| land.abstract_listener());
        let port = has("{port}").then(|| {
            let listener = TcpListener::bind("127.0.0.1:0").expect("the host has a loopback");
            listener
                .set_nonblocking(true)
                .expect("a socket can be made non-blocking");
            listener
        });
        let segment = has("{segment}").then(|| self.segment());
        let (major, minor) = match land::block_device() {
            Some(numbers) => numbers,
            None if has("{major}") || has("disk") => return Err("this host has no block device".into()),
            None => (0, 0),
        };
        let controller = controller();
        if has("{controller}") && controller.is_none() {
            return Err("no cgroup version 1 here".into());
        }
        let canary = land.path("host/canary").display().to_string();
        let handle = has("{handle}").then(|| land.outside(&["make-handle", &canary]).output);
        let handle = handle.and_then(|line| Some(line.trim().strip_prefix("succeeded ")?.to_owned()));
        let pid = |victim: &Option<Victim>| victim.as_ref().map(Victim::pid).unwrap_or_default().to_string();
        let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let values = [
            ("{secret}", land.secret.clone()),
            ("{canary}", canary),
            ("{leak}", LEAK.to_string()),
            ("{victim}", pid(&victim)),
            ("{root-victim}", pid(&root_victim)),
            (
                "{port}",
                port.as_ref()
                    .and_then(|port| port.local_addr().ok())
                    .map(|a| a.port().to_string())
                    .unwrap_or_default(),
            ),
            ("{segment}", segment.clone().unwrap_or_default()),
            ("{major}", major.to_string()),
            ("{minor}", minor.to_string()),
            ("{handle}", handle.unwrap_or_default()),
            ("{controller}", controller.unwrap_or_default()),
            ("{hostname}", hostname.trim().to_owned()),
        ];
        let fill = |word: &str| {
            values
                .iter()
                .fold(word.to_owned(), |word, (token, value)| word.replace(token, value))
        };
        let mut words = vec!["/attempt".to_owned()];
        for word in &self.attempt.command {
            match *word {
                "{calls}" => words.extend(closed_calls()),
                other => words.push(fill(other)),
            }
        }
        let wrap = if self.attempt.command[0] == "host-key" {
            let program = land.path("bin/attempt").display().to_string();
            vec![
                program,
                "with-key".into(),
                fill("luna-{secret}"),
                land.secret.clone(),
            ]
        } else {
            Vec::new()
        };
        Ok(Bait {
            victim,
            root_victim,
            socket,
            port,
            segment,
            null_changed: null_changed(),
            words,
            wrap,
        })
    }

    fn segment(&self) -> String {
        let key = Land::segment_key();
        let made = self.land.outside(&["make-segment", &key, &self.land.secret]);
        assert!(made.success(), "the host has System V memory: {}", made.output);
        key
    }

    /// Whether the attempt changed the program's file; afterwards it is as it was.
    fn restore_program(&self) -> bool {
        if self.attempt.effect != Effect::ProgramChanged {
            return false;
        }
        let path = self.land.path("program");
        let same = fs::read(&path).ok() == fs::read(binaries::init()).ok();
        let mode = fs::metadata(&path)
            .map(|status| status.mode() & 0o7777)
            .unwrap_or_default();
        let changed = !same || mode != 0o755;
        if changed {
            let again = self.land.path("program-again");
            fs::copy(binaries::init(), &again).expect("a temporary directory can be filled");
            fs::set_permissions(&again, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .expect("the file is ours");
            fs::rename(again, path).expect("a temporary directory can be changed");
        }
        changed
    }

    fn judge(&self, bait: Bait, said: &Finished, program_changed: bool) -> Verdict {
        let inside = said.code() == Some(0);
        let seen = match self.attempt.effect {
            Effect::Inside => inside,
            Effect::VictimDies => !bait.victim.is_some_and(Victim::survived),
            Effect::NullDeviceChanged => null_changed() != bait.null_changed,
            Effect::SocketAccepts => bait.socket.is_some_and(|socket| socket.accept().is_ok()),
            Effect::PortAccepts => bait.port.is_some_and(|port| port.accept().is_ok()),
            Effect::ReadOnlyVolumeWritten => {
                let canary = self.land.path("read-only/canary");
                let written = fs::read(&canary).is_ok_and(|content| content != b"unwritten");
                fs::write(&canary, "unwritten").expect("the file is ours");
                written
            }
            Effect::ProgramChanged => program_changed,
        };
        if let Some(key) = &bait.segment {
            let removed = self.land.outside(&["remove-segment", key]);
            assert!(removed.success(), "the segment is ours: {}", removed.output);
        }
        drop(bait.root_victim);
        let line = format!("{} {}", said.output.trim(), said.errors.trim());
        match said.code() {
            _ if seen => Verdict::Escaped(line),
            Some(125) | None => Verdict::NoWall(line),
            _ => Verdict::Stopped(line),
        }
    }
}

/// When the host's `/dev/null` was last changed (not written to).
fn null_changed() -> (i64, i64) {
    fs::metadata("/dev/null")
        .map(|status| (status.ctime(), status.ctime_nsec()))
        .unwrap_or_default()
}

/// Mount options of some version 1 hierarchy.
fn controller() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    ["pids", "freezer", "memory", "devices"]
        .into_iter()
        .find(|name| {
            mounts
                .lines()
                .any(|line| line.contains(" - cgroup ") && line.ends_with(name))
        })
        .map(str::to_owned)
}

/// Calls that docker's list closes to a container without further capabilities, with their numbers here.
fn closed_calls() -> Vec<String> {
    macro_rules! calls {
        ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
    }
    calls![
        SYS_acct SYS_add_key SYS_bpf SYS_clock_settime SYS_delete_module SYS_fanotify_init SYS_finit_module
        SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_get_mempolicy SYS_init_module SYS_io_uring_enter
        SYS_io_uring_register SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl SYS_lookup_dcookie
        SYS_mbind SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages
        SYS_nfsservctl SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root
        SYS_process_madvise SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key SYS_set_mempolicy
        SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog
        SYS_umount2 SYS_userfaultfd SYS_vhangup
    ]
    .into_iter()
    .map(|(name, number)| format!("{}={number}", &name[4..]))
    .collect()
}
