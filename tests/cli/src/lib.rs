//! A Luna of its own for each test: the real executables on a temporary root, with a busybox image.
//!
//! The executables are `LUNA` and what lies beside it, or else what `cargo build` makes of this checkout. Where the
//! host cannot build the container wall, [`Luna::new`] prints the failing check and gives `None`.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for anything that is only a matter of time.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Outcome {
    /// The output of a command that went well.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}{}", self.out, self.err);
        self.out
    }

    /// The one line a command that went well printed.
    #[track_caller]
    pub fn line(self) -> String {
        self.ok().trim_end().to_owned()
    }

    /// What a command that failed with `code` said.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self.err
    }
}

/// One Luna with its own images and sandboxes; dropping it removes them all.
#[derive(Debug)]
pub struct Luna {
    pub directory: TempDir,
}

impl Luna {
    /// A Luna with the image `busybox`, or `None` on a host that cannot build the wall.
    pub fn new() -> Option<Luna> {
        let luna = Luna::bare();
        let report: Value =
            serde_json::from_str(&luna.run(["host", "--json"]).ok()).expect("a report is JSON");
        let engine = &report["engines"][0];
        let checks = engine["checks"].as_array().expect("an engine has checks");
        if let Some(check) = checks.iter().find(|check| check["outcome"] == "missing") {
            let _ = writeln!(
                std::io::stderr(),
                "skipped: {} is missing: {}",
                check["name"],
                check["detail"]
            );
            return None;
        }
        let archive = luna.path("busybox.tar");
        make_root(&luna.path("busybox"), &archive);
        luna.run(["import", "--change", "CMD [\"sh\"]", archive.to_str()?, "busybox"])
            .ok();
        Some(luna)
    }

    /// A Luna without any image.
    pub fn bare() -> Luna {
        Luna {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
        }
    }

    /// A path for the test's own files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command line that begins with `luna`.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(executable());
        command
            .args(arguments)
            .env("LUNA_ROOT", self.path("root"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs it to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Outcome {
        finish(
            self.command(arguments)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("luna starts"),
        )
    }

    /// The same for a line that needs no quoting.
    pub fn line(&self, line: &str) -> Outcome {
        self.run(line.split_whitespace())
    }

    /// The same with something on standard input.
    pub fn fed<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>, input: &[u8]) -> Outcome {
        let mut command = self.command(arguments);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("luna starts");
        // A program that does not read is no failure of the test's.
        let _ = child.stdin.take().expect("it was piped").write_all(input);
        finish(child)
    }

    /// The same on a terminal of `script(1)`'s; once the program has printed `ready`, `keys` are typed.
    pub fn typed(&self, line: &str, ready: &str, keys: &[u8]) -> Outcome {
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--echo", "never", "--command"]);
        command
            .arg(format!("{} {line}", executable().display()))
            .arg("/dev/null");
        command.env("LUNA_ROOT", self.path("root")).env("NO_COLOR", "1");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("script starts");
        // The terminal stays open for as long as the program runs.
        let mut keyboard = child.stdin.take().expect("it was piped");
        let mut screen = child.stdout.take().expect("it was piped");
        let (mut out, mut typed, mut piece) = (Vec::new(), false, [0; 4096]);
        while let Ok(count @ 1..) = screen.read(&mut piece) {
            out.extend_from_slice(&piece[..count]);
            if !typed && String::from_utf8_lossy(&out).contains(ready) {
                typed = true;
                keyboard.write_all(keys).expect("the terminal is open");
            }
        }
        let code = child.wait().expect("script ends").code().unwrap_or(-1);
        Outcome {
            code,
            out: String::from_utf8_lossy(&out).into_owned(),
            err: String::new(),
        }
    }

    /// Waits until `command`'s output satisfies `enough`.
    #[track_caller]
    pub fn until(&self, line: &str, enough: impl Fn(&str) -> bool) -> String {
        let since = Instant::now();
        loop {
            let outcome = self.line(line);
            if outcome.code == 0 && enough(&outcome.out) {
                return outcome.out;
            }
            assert!(
                since.elapsed() < PATIENCE,
                "`luna {line}` still says: {}{}",
                outcome.out,
                outcome.err
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One field of a sandbox's, as `inspect --format` prints it.
    #[track_caller]
    pub fn field(&self, name: &str, template: &str) -> String {
        self.run(["inspect", "--type", "sandbox", "--format", template, name])
            .line()
    }
}

impl Drop for Luna {
    fn drop(&mut self) {
        let names = self.line("ps --all --quiet").out;
        let names: Vec<_> = names.split_whitespace().collect();
        if !names.is_empty() {
            self.run(["rm", "--force", "--volumes"].into_iter().chain(names));
        }
    }
}

fn finish(child: Child) -> Outcome {
    let output = child.wait_with_output().expect("its output can be read");
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// `luna`, built once for each test process.
fn executable() -> &'static Path {
    static EXECUTABLE: OnceLock<PathBuf> = OnceLock::new();
    EXECUTABLE.get_or_init(|| {
        if let Some(path) = std::env::var_os("LUNA") {
            return path.into();
        }
        // target/<triple>/debug/deps/<this test>
        let test = std::env::current_exe().expect("a test knows its own file");
        let directory = test.ancestors().nth(2).expect("a test lies in `deps`");
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--package", "luna", "--package", "luna-guest"]);
        if directory.ends_with("release") {
            cargo.arg("--release");
        }
        let target = directory
            .ancestors()
            .nth(2)
            .expect("the target directory is two above");
        let built = cargo
            .env("CARGO_TARGET_DIR", target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo starts");
        assert!(built.success(), "luna does not build");
        directory.join("luna")
    })
}

/// The smallest root that programs run in: busybox and its names.
fn make_root(root: &Path, archive: &Path) {
    use std::os::unix::fs::symlink;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists());
    let busybox = busybox.expect("the package busybox-static is installed");
    for directory in ["bin", "etc", "tmp", "root", "home"] {
        std::fs::create_dir_all(root.join(directory)).expect("a directory can be made");
    }
    std::fs::copy(busybox, root.join("bin/busybox")).expect("busybox can be copied");
    let names = Command::new(busybox)
        .arg("--list")
        .output()
        .expect("busybox runs")
        .stdout;
    for name in String::from_utf8_lossy(&names)
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", root.join("bin").join(name)).expect("a link can be made");
    }
    let write =
        |name: &str, text: &str| std::fs::write(root.join(name), text).expect("a file can be written");
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
    );
    write("etc/group", "root:x:0:\nuser:x:1000:\n");
    let packed = Command::new("tar")
        .arg("-C")
        .arg(root)
        .arg("-cf")
        .arg(archive)
        .arg(".")
        .status();
    assert!(packed.is_ok_and(|status| status.success()), "tar packs the root");
}
