//! One Luna of a test's own, driven by its command line: its state in a temporary directory, one image, and a look at the
//! host afterwards.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::binaries;
use crate::bounded::{self, Finished};
use crate::land::User;

/// Long enough for a busy machine, and for one that emulates another.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Programs of busybox that the image has.
const PROGRAMS: [&str; 35] = [
    "sh",
    "ls",
    "cat",
    "echo",
    "id",
    "pwd",
    "env",
    "sleep",
    "kill",
    "true",
    "false",
    "dd",
    "wc",
    "nc",
    "stat",
    "touch",
    "mkdir",
    "rm",
    "chown",
    "chmod",
    "test",
    "head",
    "tail",
    "sort",
    "grep",
    "hostname",
    "nproc",
    "timeout",
    "seq",
    "tty",
    "stty",
    "ps",
    "sha256sum",
    "printf",
    "insmod",
];

/// See the module. Dropping removes every sandbox and looks for what is left.
#[derive(Debug)]
pub struct Luna {
    directory: tempfile::TempDir,
    isolation: &'static str,
    program: PathBuf,
    init: PathBuf,
    virtiofs: PathBuf,
    /// Whose Luna this is, where it is not root's; gone after everything else is.
    user: Option<User>,
}

impl Luna {
    /// A Luna of root's whose sandboxes stand behind this wall, or why there is none.
    pub fn of_root(isolation: &'static str) -> Result<Luna, String> {
        Luna::new(isolation, None)
    }

    /// As [`Luna::of_root`], of an unprivileged user's.
    pub fn of_a_user(isolation: &'static str) -> Result<Luna, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("making a user needs root".into());
        }
        Luna::new(isolation, Some(User::new()?))
    }

    fn new(isolation: &'static str, user: Option<User>) -> Result<Luna, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("the contract suite needs root".into());
        }
        if !crate::peer::is_installed("busybox") {
            return Err("busybox is not installed".into());
        }
        let directory = tempfile::Builder::new()
            .prefix("luna-contract-")
            .tempdir()
            .expect("a temporary directory can be made");
        let mut program = binaries::luna().to_owned();
        let mut init = binaries::init().to_owned();
        let mut virtiofs = binaries::virtiofs().to_owned();
        if let Some(user) = &user {
            // The user may not be let into the directory where cargo builds.
            for file in [&mut program, &mut init, &mut virtiofs] {
                let copy = directory
                    .path()
                    .join(file.file_name().expect("a program has a name"));
                fs::copy(&*file, &copy).expect("a temporary directory can be filled");
                *file = copy;
            }
            chown(directory.path(), Some(user.uid), Some(user.gid)).expect("root may give files away");
        }
        let luna = Luna {
            directory,
            isolation,
            program,
            init,
            virtiofs,
            user,
        };
        if isolation == "vm" {
            luna.take_a_kernel()?;
        }
        let explained = luna.luna(&["explain", "--isolation", isolation, "image"]);
        if !explained.success() {
            return Err(format!("no {isolation} here: {}", explained.errors.trim()));
        }
        luna.import("image", &["CMD [\"sh\"]", "ENV FROM_IMAGE=yes"]);
        Ok(luna)
    }

    /// A guest kernel of the Luna that is installed here, or of `LUNA_ROOT`'s, that loads modules or has everything built in.
    pub fn kernel(modular: bool) -> Option<PathBuf> {
        let root = std::env::var_os("LUNA_ROOT").map_or_else(|| "/var/lib/luna".into(), PathBuf::from);
        let mut kernels = Command::new(binaries::luna());
        let listed = bounded::finish(
            kernels.env("LUNA_ROOT", &root).args(["kernel", "ls", "--json"]),
            LIMIT,
        );
        let all: Value = serde_json::from_str(&listed.ok()?.output).ok()?;
        let kernel = all
            .as_array()?
            .iter()
            .find(|kernel| kernel["Modular"] == Value::Bool(modular))?;
        Some(root.join("kernels").join(kernel["Name"].as_str()?))
    }

    /// Copies a kernel to this Luna.
    fn take_a_kernel(&self) -> Result<(), String> {
        let mut kernel = Luna::kernel(false)
            .or_else(|| Luna::kernel(true))
            .ok_or("no guest kernel here: `luna kernel build` makes one")?;
        if self.user.is_some() {
            let copy = self.path("kernel");
            let done = Command::new("cp").arg("-r").arg(&kernel).arg(&copy).status();
            assert!(done.is_ok_and(|done| done.success()), "a kernel can be copied");
            let open = Command::new("chmod").args(["-R", "a+rX"]).arg(&copy).status();
            assert!(open.is_ok_and(|done| done.success()), "a kernel can be shown");
            kernel = copy;
        }
        self.must(&["kernel", "import", &kernel.display().to_string()]);
        Ok(())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn root(&self) -> PathBuf {
        self.path("root")
    }

    fn import(&self, name: &str, changes: &[&str]) {
        let archive = self.path("root-filesystem.tar");
        if !archive.exists() {
            let tree = self.path("tree");
            furnish(&tree).expect("a temporary directory can be filled");
            let mut tar = Command::new("tar");
            let done = bounded::finish(tar.arg("-C").arg(&tree).arg("-cf").arg(&archive).arg("."), LIMIT);
            assert!(done.is_ok_and(|done| done.success()), "tar makes an archive");
        }
        let mut words = vec!["import"];
        for change in changes {
            words.extend(["--change", change]);
        }
        let archive = archive.display().to_string();
        words.extend([archive.as_str(), name]);
        self.must(&words);
    }

    /// One more image of the same files.
    pub fn image(&self, name: &str, changes: &[&str]) {
        self.import(name, changes);
    }

    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("LUNA_ROOT", self.root())
            .env("LUNA_INIT", &self.init)
            .env("LUNA_VIRTIOFS", &self.virtiofs)
            .args(words);
        if let Some(user) = &self.user {
            command
                .uid(user.uid)
                .gid(user.gid)
                .env("HOME", self.directory.path());
        }
        command
    }

    pub fn luna(&self, words: &[&str]) -> Finished {
        bounded::finish(&mut self.command(words), LIMIT).expect("luna can be spawned")
    }

    /// What a command printed that had to succeed.
    pub fn must(&self, words: &[&str]) -> String {
        let said = self.luna(words);
        assert!(said.success(), "luna {}: {said:?}", words.join(" "));
        said.output
    }

    /// `luna run --rm FLAGS image WORDS`, behind this suite's wall.
    pub fn run(&self, flags: &[&str], words: &[&str]) -> Finished {
        self.luna(&self.words("run", &[&["--rm"], flags].concat(), words))
    }

    pub fn shell(&self, flags: &[&str], script: &str) -> Finished {
        self.run(flags, &["sh", "-c", script])
    }

    /// What a shell in a sandbox prints that has to succeed.
    pub fn says(&self, flags: &[&str], script: &str) -> String {
        let said = self.shell(flags, script);
        assert!(said.success(), "{flags:?} {script}: {said:?}");
        said.output.trim_end().replace('\r', "")
    }

    /// Starts a sandbox of this name in the background.
    pub fn start(&self, name: &str, flags: &[&str], script: &str) {
        let flags = [&["--detach", "--name", name], flags].concat();
        self.must(&self.words("run", &flags, &["sh", "-c", script]));
    }

    pub fn words<'a>(&self, verb: &'a str, flags: &[&'a str], words: &[&'a str]) -> Vec<&'a str> {
        let mut all = vec![verb, "--isolation", self.isolation];
        all.extend(flags);
        all.push("image");
        all.extend(words);
        all
    }

    /// Runs luna with something on its standard input.
    pub fn fed(&self, words: &[&str], input: &[u8]) -> Finished {
        let mut command = self.command(words);
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.expect("luna can be spawned");
        let mut stdin = child.stdin.take().expect("it was asked for");
        let bytes = input.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&bytes));
        let finished = bounded::collect_all(child, LIMIT);
        // Where the program ended before it had read all, so be it.
        let _ = feeder.join();
        finished
    }

    pub fn spawn(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().expect("luna can be spawned")
    }

    /// What `luna inspect` says about one sandbox.
    pub fn inspect(&self, name: &str) -> Value {
        let text = self.must(&["inspect", name]);
        let all: Value = serde_json::from_str(&text).expect("inspect prints JSON");
        all[0].clone()
    }

    pub fn state(&self, name: &str) -> String {
        self.inspect(name)["State"]["Status"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    /// Waits until the sandbox's log holds `text`.
    pub fn await_log(&self, name: &str, text: &str) {
        let found = bounded::wait_until(LIMIT, || self.luna(&["logs", name]).output.contains(text));
        assert!(
            found,
            "`{text}` in the log of `{name}`: {:?}",
            self.luna(&["logs", name])
        );
    }

    /// Host processes that are part of this Luna: supervisors, and whatever has `marker` among its arguments.
    pub fn processes(&self, marker: &str) -> Vec<u32> {
        let root = self.root().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_supervisor = line.contains(" supervise ") && line.contains(&root);
            let is_marked = !marker.is_empty() && line.contains(marker) && !line.contains("luna");
            if is_supervisor || is_marked {
                found.push(pid);
            }
        }
        found
    }

    pub fn has_own_kernel(&self) -> bool {
        self.isolation == "vm"
    }

    /// The supervisors of this Luna.
    pub fn supervisors(&self) -> Vec<u32> {
        self.processes("")
    }

    /// Ids of this Luna's sandboxes.
    pub fn ids(&self) -> Vec<String> {
        fs::read_dir(self.root().join("sandboxes"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Removes every sandbox and tells what is still there: processes, mounts, cgroups, files.
    pub fn leftovers(&self, ids: &[String]) -> Vec<String> {
        let mut left = Vec::new();
        for id in self.ids() {
            let said = self.luna(&["rm", "--force", &id]);
            if !said.success() {
                left.push(format!("luna rm --force {id}: {}", said.errors.trim()));
            }
        }
        if !bounded::wait_until(Duration::from_secs(5), || self.supervisors().is_empty()) {
            left.push(format!("supervisors {:?}", self.supervisors()));
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = self.directory.path().display().to_string();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&own))
                .map(|line| format!("mount {line}")),
        );
        for cgroup in cgroups(Path::new("/sys/fs/cgroup"), ids) {
            left.push(format!("cgroup {}", cgroup.display()));
        }
        for name in ["sandboxes", "names", "ranges", "trash"] {
            for entry in fs::read_dir(self.root().join(name))
                .into_iter()
                .flatten()
                .flatten()
            {
                left.push(format!("file {}", entry.path().display()));
            }
        }
        left
    }
}

impl Drop for Luna {
    fn drop(&mut self) {
        let ids = self.ids();
        let left = self.leftovers(&ids);
        assert!(
            left.is_empty() || std::thread::panicking(),
            "left behind:\n  {}",
            left.join("\n  ")
        );
    }
}

/// Cgroups named after one of these sandboxes.
pub fn cgroups(directory: &Path, ids: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if ids.iter().any(|id| name.contains(id.as_str())) {
                found.push(entry.path());
            }
            found.extend(cgroups(&entry.path(), ids));
        }
    }
    found
}

fn furnish(tree: &Path) -> std::io::Result<()> {
    for name in ["bin", "etc", "tmp", "root", "home/user", "var/data"] {
        fs::create_dir_all(tree.join(name))?;
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists());
    fs::copy(busybox.unwrap_or("busybox"), tree.join("bin/busybox"))?;
    for program in PROGRAMS {
        symlink("busybox", tree.join("bin").join(program))?;
    }
    fs::write(
        tree.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    fs::write(
        tree.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
    )?;
    fs::write(tree.join("etc/not-a-program"), "text\n")?;
    fs::write(tree.join("var/data/seed"), "from the image\n")?;
    for name in ["var/data", "var/data/seed", "home/user"] {
        chown(tree.join(name), Some(1000), Some(1000))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))
}
