//! The land round a wall: a root file system with the attempts' program in it, volumes, and what an attempt would like to
//! have or to change on the host. All of it is made for the suite and vanishes with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::binaries;
use crate::bounded::{self, Finished};
use crate::cell::{BASE, Cell};

const LIMIT: Duration = Duration::from_secs(30);

/// Whose sandboxes these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Root,
    User { uid: u32, gid: u32 },
}

impl Owner {
    /// The host's id of the sandbox's root.
    pub fn inside_root(self) -> u32 {
        match self {
            Owner::Root => BASE,
            Owner::User { uid, .. } => uid,
        }
    }

    fn ids(self) -> (u32, u32) {
        match self {
            Owner::Root => (0, 0),
            Owner::User { uid, gid } => (uid, gid),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Land {
    directory: tempfile::TempDir,
    pub owner: Owner,
    /// What only the host knows.
    pub secret: String,
}

impl Land {
    pub fn new(owner: Owner) -> Land {
        let directory = tempfile::Builder::new()
            .prefix("luna-escape-")
            .tempdir()
            .expect("a temporary directory can be made");
        let secret = format!("s{}{}", std::process::id(), unique());
        let land = Land {
            directory,
            owner,
            secret,
        };
        land.furnish().expect("a temporary directory can be filled");
        land
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn furnish(&self) -> std::io::Result<()> {
        let (uid, gid) = self.owner.ids();
        fs::set_permissions(self.directory.path(), fs::Permissions::from_mode(0o755))?;
        for name in [
            "lower/etc",
            "lower/tmp",
            "lower/mnt",
            "lower/bin",
            "bin",
            "volume",
            "read-only",
            "host",
            "open",
            "runs",
        ] {
            fs::create_dir_all(self.path(name))?;
        }
        let program = binaries::attempt();
        for name in ["lower/attempt", "lower/attempt-setuid", "volume/attempt-setuid"] {
            fs::copy(&program, self.path(name))?;
        }
        fs::write(
            self.path("lower/etc/passwd"),
            "root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
        )?;
        fs::write(self.path("lower/etc/group"), "root:x:0:\nuser:x:1000:\n")?;
        fs::write(self.path("host/canary"), &self.secret)?;
        fs::write(self.path("read-only/canary"), "unwritten")?;
        fs::copy(binaries::init(), self.path("program"))?;
        // An unprivileged user may not be let into the directory where cargo builds.
        fs::copy(binaries::init(), self.path("bin/luna-init"))?;
        fs::copy(binaries::cell(), self.path("bin/cell"))?;
        fs::copy(&program, self.path("bin/attempt"))?;
        for entry in ["lower", "volume", "read-only", "host", "runs"] {
            own(&self.path(entry), uid, gid)?;
        }
        for name in ["lower/attempt-setuid", "volume/attempt-setuid"] {
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o4755))?;
        }
        for name in ["lower/tmp", "open"] {
            fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o1777))?;
        }
        fs::set_permissions(self.path("program"), fs::Permissions::from_mode(0o755))?;
        if let Some((major, minor)) = block_device() {
            let node = self.path("volume/disk");
            let kind = rustix::fs::FileType::BlockDevice;
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &node,
                kind,
                mode,
                rustix::fs::makedev(major, minor),
            )?;
            chown(&node, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    /// A cell of this land with the whole wall up.
    pub fn cell(&self, without: &[&str], command: &[String]) -> Cell {
        let run = self.path("runs").join(unique().to_string());
        let (uid, gid) = self.owner.ids();
        for name in ["", "upper", "work"] {
            let directory = run.join(name);
            fs::create_dir(&directory).expect("a temporary directory can be filled");
            chown(&directory, Some(uid), Some(gid)).expect("root may give files away");
        }
        Cell {
            name: format!("escape-{}-{}", std::process::id(), unique()),
            init: self.path("bin/luna-init"),
            program: self.path("program"),
            lower: self.path("lower"),
            upper: run.join("upper"),
            work: run.join("work"),
            volume: self.path("volume"),
            read_only: self.path("read-only"),
            leak: self.path("host"),
            files: Vec::new(),
            targets: Vec::new(),
            without: without.iter().map(ToString::to_string).collect(),
            rootless: self.owner != Owner::Root,
            command: command.to_vec(),
            cwd: "/".to_owned(),
            user: String::new(),
        }
    }

    /// Runs the cell as its owner. `wrap` goes before it on the command line.
    pub fn run(&self, cell: &Cell, wrap: &[String]) -> Finished {
        let json = serde_json::to_string(cell).expect("a cell is plain text");
        let program = self.path("bin/cell");
        let mut words: Vec<_> = wrap.iter().map(PathBuf::from).collect();
        words.push(program);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(json);
        self.as_owner(&mut command);
        bounded::finish(&mut command, LIMIT).expect("a cell can be spawned")
    }

    fn as_owner(&self, command: &mut Command) {
        if let Owner::User { uid, gid } = self.owner {
            command.uid(uid).gid(gid).env("HOME", self.path("runs"));
        }
    }

    /// Runs the attempts' program on the host, with no wall at all.
    pub fn outside(&self, words: &[&str]) -> Finished {
        let mut command = Command::new(binaries::attempt());
        bounded::finish(command.args(words), LIMIT).expect("the attempts' program can be spawned")
    }

    /// A process of the host's that waits to be attacked, with the secret in its environment and `marker` in its
    /// arguments.
    pub fn victim(&self, id: u32) -> Victim {
        let child = Command::new(self.path("bin/attempt"))
            .args(["hold", &self.secret])
            .env("SECRET", &self.secret)
            .current_dir("/")
            .uid(id)
            .gid(id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = child.expect("a victim can be spawned");
        let mut word = [0; 8];
        if let Some(output) = &mut child.stdout {
            output
                .read_exact(&mut word)
                .expect("the victim says that it is there");
        }
        Victim(child)
    }

    /// Everything below the directories that an attempt may want to change: path, mode, owner, content's length.
    pub fn snapshot(&self) -> Vec<String> {
        let mut seen = Vec::new();
        for name in ["host", "open"] {
            look(&self.path(name), &mut seen);
        }
        seen.sort();
        seen
    }

    /// Empties the directory that everybody may write to.
    pub fn sweep(&self) {
        let open = self.path("open");
        for entry in fs::read_dir(&open).expect("it is ours").flatten() {
            let path = entry.path();
            let gone = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            gone.expect("root may remove what a sandbox made");
        }
    }

    /// A socket with a name in the host's abstract namespace.
    pub fn abstract_listener(&self) -> UnixListener {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&self.secret);
        let address = address.expect("the secret is short");
        // Another attempt may have it for the moment, or a process just forked off it.
        let mut listener = None;
        bounded::wait_until(LIMIT, || {
            listener = UnixListener::bind_addr(&address).ok();
            listener.is_some()
        });
        let listener = listener.expect("the secret is nobody else's name");
        listener
            .set_nonblocking(true)
            .expect("a socket can be made non-blocking");
        listener
    }

    /// A key for System V memory that nobody else uses.
    pub fn segment_key() -> String {
        (0x4c55_0000 + (std::process::id() & 0xffff)).to_string()
    }
}

fn look(path: &Path, seen: &mut Vec<String>) {
    let Ok(status) = fs::symlink_metadata(path) else {
        return;
    };
    seen.push(format!(
        "{} {:o} {}:{} {}",
        path.display(),
        status.mode(),
        status.uid(),
        status.gid(),
        if status.is_dir() { 0 } else { status.len() }
    ));
    if status.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            look(&entry.path(), seen);
        }
    }
}

fn own(path: &Path, uid: u32, gid: u32) -> std::io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid))?;
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            own(&entry?.path(), uid, gid)?;
        }
    }
    Ok(())
}

/// A block device of the host's that root may open here.
pub fn block_device() -> Option<(u32, u32)> {
    let mut names: Vec<_> = fs::read_dir("/sys/block")
        .ok()?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    names.sort();
    names.into_iter().find_map(|name| {
        let status = fs::File::open(Path::new("/dev").join(name))
            .ok()?
            .metadata()
            .ok()?;
        let number = status.rdev();
        Some((rustix::fs::major(number), rustix::fs::minor(number)))
    })
}

pub fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// See [`Land::victim`]. Ends when dropped.
#[derive(Debug)]
pub struct Victim(Child);

impl Victim {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still answers: it ends well when its input ends, and not at all well when it was attacked.
    pub fn survived(mut self) -> bool {
        if let Some(mut input) = self.0.stdin.take() {
            // Where the victim is dead, this fails, and the status below says so.
            let _ = input.write_all(b".");
        }
        self.0.wait().is_ok_and(|status| status.success())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        bounded::end(&mut self.0);
    }
}

/// The user database takes one change at a time.
static USERS: Mutex<()> = Mutex::new(());

/// An unprivileged user of the host's with ids to give to sandboxes; removed when dropped.
#[derive(Debug)]
pub struct User {
    name: String,
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// Makes one, or says why it cannot be.
    pub fn new() -> Result<User, String> {
        for tool in ["newuidmap", "newgidmap", "useradd", "userdel"] {
            if !crate::peer::is_installed(tool) {
                return Err(format!("there is no `{tool}`"));
            }
        }
        let one_at_a_time = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("luna-test-{}-{}", std::process::id(), unique());
        let run = |words: &[&str]| {
            let done = bounded::finish(Command::new(words[0]).args(&words[1..]), LIMIT);
            match done {
                Ok(done) if done.success() => Ok(done.output),
                Ok(done) => Err(format!("`{}` failed: {}", words[0], done.errors.trim())),
                Err(error) => Err(format!("`{}` failed: {error}", words[0])),
            }
        };
        run(&[
            "useradd",
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
            &name,
        ])?;
        // Dropping `user`, which takes the lock again, removes it.
        drop(one_at_a_time);
        let mut user = User { name, uid: 0, gid: 0 };
        let id = |flag| run(&["id", flag, &user.name]).and_then(|text| text.trim().parse().map_err(|_| text));
        let (uid, gid) = (id("-u")?, id("-g")?);
        (user.uid, user.gid) = (uid, gid);
        let subordinate = fs::read_to_string("/etc/subuid").unwrap_or_default();
        if !subordinate
            .lines()
            .any(|line| line.starts_with(&format!("{}:", user.name)))
        {
            let range = "--add-subuids=1400000000-1400065535";
            run(&[
                "usermod",
                range,
                "--add-subgids=1400000000-1400065535",
                &user.name,
            ])?;
        }
        Ok(user)
    }

    pub fn owner(&self) -> Owner {
        Owner::User {
            uid: self.uid,
            gid: self.gid,
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _one_at_a_time = USERS.lock().unwrap_or_else(PoisonError::into_inner);
        let done = bounded::finish(Command::new("userdel").arg("--force").arg(&self.name), LIMIT);
        assert!(
            done.is_ok_and(|done| done.success()) || std::thread::panicking(),
            "the user was removed"
        );
    }
}
