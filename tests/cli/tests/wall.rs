//! The choice of the wall: floors, policy files, `explain`, `LUNA_ISOLATION`.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cli_tests::{Luna, Outcome};
use serde_json::Value;

/// A registry that has nothing and counts who asks for it.
struct Registry {
    address: String,
    asked: Arc<AtomicUsize>,
}

impl Registry {
    fn new() -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        Registry { address, asked }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Writes the user's policy, which `under` then has Luna read.
fn policy(luna: &Luna, text: &str) {
    let place = luna.path("config/luna");
    std::fs::create_dir_all(&place).unwrap();
    std::fs::write(place.join("policy.toml"), text).unwrap();
    std::fs::set_permissions(place.join("policy.toml"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn under(luna: &Luna, line: &str) -> Outcome {
    with(
        luna,
        line,
        "XDG_CONFIG_HOME",
        luna.path("config").to_str().unwrap(),
    )
}

fn with(luna: &Luna, line: &str, name: &str, value: &str) -> Outcome {
    let output = luna
        .command(line.split_whitespace())
        .env(name, value)
        .output()
        .unwrap();
    Outcome {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Whether this host has a wall of its own kernel, or of hardware virtualization.
fn has(luna: &Luna, floor: &str) -> bool {
    luna.run(["explain", "--require", floor]).code == 0
}

/// Everything below the root of Luna's that a sandbox or an image would have left.
fn left_behind(luna: &Luna) -> Vec<PathBuf> {
    let root = luna.path("root");
    let entries = |path: PathBuf| {
        let found: Vec<_> = std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        found
    };
    [
        "sandboxes",
        "names",
        "ranges",
        "volumes",
        "trash",
        "store/blobs/sha256",
        "store/layers",
    ]
    .into_iter()
    .flat_map(|name| entries(root.join(name)))
    .collect()
}

/// Processes with this Luna's root on their command line.
fn processes(luna: &Luna) -> usize {
    let root = luna.path("root").display().to_string();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .filter(|line| String::from_utf8_lossy(line).contains(&root))
        .count()
}

#[test]
fn a_floor_that_cannot_be_had_starts_and_fetches_nothing() {
    let luna = Luna::bare();
    if has(&luna, "hardware-virtualization") {
        let _ = writeln!(
            std::io::stderr(),
            "skipped: this host has hardware virtualization"
        );
        return;
    }
    let registry = Registry::new();
    let image = format!("{}/never:1", registry.address);
    let before = left_behind(&luna);
    for command in ["run", "run -d --name x", "create"] {
        let line = format!("{command} --insecure --require hardware-virtualization {image}");
        let error = luna.line(&line).fails(125);
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(lines.len(), 3, "{error}");
        assert_eq!(
            lines[0],
            "error: cannot find a wall for this: hardware virtualization is required"
        );
        assert!(
            lines[1].starts_with("  because: the container: too weak: "),
            "{error}"
        );
        assert!(lines[1].contains("the VM (hardware virtualization): "), "{error}");
        assert!(lines[2].starts_with("  hint: "), "{error}");
    }
    assert_eq!(registry.asked(), 0, "nothing is fetched");
    assert_eq!(left_behind(&luna), before, "nothing is made");
    assert_eq!(processes(&luna), 0, "nothing is started");
    assert_eq!(luna.line("ps --all --quiet").ok(), "");
    assert_eq!(luna.line("events --since 1h --until 0s").ok(), "");
    // The same without the floor does ask: the registry counts.
    luna.line(&format!("create --insecure {image}")).fails(125);
    assert!(registry.asked() > 0);
}

#[test]
fn a_policy_raises_the_floor_and_names_itself() {
    let Some(luna) = Luna::new() else { return };
    let file = luna.path("config/luna/policy.toml").display().to_string();
    under(&luna, "run --isolation container --rm busybox true").ok();
    policy(&luna, "floor = \"own-kernel\"\n");
    let error = under(&luna, "run --isolation container --rm busybox true").fails(125);
    assert!(
        error.starts_with(&format!(
            "error: cannot use the container wall: the policy wants a kernel of its own (`floor` in `{file}`)\n"
        )),
        "{error}"
    );
    assert!(error.contains(&format!("change `floor` in `{file}`")), "{error}");
    let explained = under(&luna, "explain --isolation container --json busybox");
    let told: Value = serde_json::from_str(&explained.out).unwrap();
    assert_eq!((explained.code, &told["chosen"]), (125, &Value::Null));
    assert_eq!(told["policy"]["files"][0], file);
    assert_eq!(told["floor"]["least"], "own-kernel");
    assert_eq!(told["walls"][0]["wall"], "container");
    assert_eq!(told["walls"][0]["fix"], format!("change `floor` in `{file}`"));
    assert_eq!(told["refused"]["kind"], "refused");
    // What is built runs behind the container's wall as well.
    std::fs::create_dir(luna.path("context")).unwrap();
    std::fs::write(luna.path("context/Dockerfile"), "FROM busybox\nRUN true\n").unwrap();
    let context = luna.path("context").display().to_string();
    let error = under(&luna, &format!("build {context}")).fails(125);
    assert!(error.contains("`floor` in "), "{error}");
    // Only what chooses a wall reads it.
    policy(&luna, "flor = \"own-kernel\"\n");
    under(&luna, "ps").ok();
    let error = under(&luna, "run --isolation container --rm busybox true").fails(125);
    assert!(
        error.starts_with(&format!(
            "error: cannot read the policy `{file}`\n  because: line 1: unknown field `flor`"
        )),
        "{error}"
    );
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let error = under(&luna, "run --isolation container --rm busybox true").fails(125);
    assert!(error.contains("others may write it"), "{error}");
    assert!(error.contains(&format!("hint: chmod go-w {file}")), "{error}");
    std::fs::remove_file(&file).unwrap();
    under(&luna, "run --isolation container --rm busybox true").ok();
}

#[test]
fn risks_and_trust() {
    let Some(luna) = Luna::new() else { return };
    let rule = |trusted: &str| {
        policy(
            &luna,
            &format!("[risks.untrusted]\nfloor = \"own-kernel\"\ntrusted = [{trusted}]\n"),
        );
    };
    let id = luna.run(["images", "--no-trunc", "--quiet", "busybox"]).line();
    rule("\"ghcr.io/*\"");
    let error = under(&luna, "run --isolation container --rm busybox true").fails(125);
    assert!(
        error.contains("for an image it does not trust (`risks.untrusted` in"),
        "{error}"
    );
    assert!(
        error.contains("name the image in `risks.untrusted.trusted` of"),
        "{error}"
    );
    rule("\"docker.io/library/*\"");
    under(&luna, "run --isolation container --rm busybox true").ok();
    // By its id it has no name.
    under(&luna, &format!("run --isolation container --rm {id} true")).fails(125);
    rule(&format!("\"{id}\""));
    under(&luna, "run --isolation container --rm busybox true").ok();
    under(&luna, &format!("run --isolation container --rm {id} true")).ok();
    luna.line("tag busybox docker.io/other/name:1").ok();
    under(&luna, "run --isolation container --rm other/name:1 true").ok();
    rule("\"docker.io/library/busybox\"");
    under(&luna, "run --isolation container --rm other/name:1 true").fails(125);
    // One more file takes away and never gives back.
    let more = luna.path("more.toml");
    std::fs::write(
        &more,
        "[risks.untrusted]\nfloor = \"own-kernel\"\ntrusted = [\"docker.io/*\"]\n",
    )
    .unwrap();
    std::fs::set_permissions(&more, std::fs::Permissions::from_mode(0o600)).unwrap();
    let more = more.display();
    under(
        &luna,
        &format!("run --policy {more} --isolation container --rm other/name:1 true"),
    )
    .fails(125);
    under(
        &luna,
        &format!("run --policy {more} --isolation container --rm busybox true"),
    )
    .ok();
    luna.line(&format!(
        "run --policy {more} --isolation container --rm other/name:1 true"
    ))
    .ok();
    luna.line("run --policy /nonexistent --isolation container --rm busybox true")
        .fails(125);
}

#[test]
fn the_environment_has_the_default_and_the_flag_the_last_word() {
    let Some(luna) = Luna::new() else { return };
    let set = |value: &str, line: &str| with(&luna, line, "LUNA_ISOLATION", value);
    for command in ["run --rm", "create", "explain"] {
        set("container", &format!("{command} busybox true")).ok();
        let wrong = set("cage", &format!("{command} busybox true")).fails(125);
        assert!(
            wrong.starts_with("error: cannot read the command line\n") && wrong.contains("LUNA_ISOLATION"),
            "{wrong}"
        );
        set("cage", &format!("{command} --isolation container busybox true")).ok();
        if !has(&luna, "own-kernel") {
            let refused = set("vm", &format!("{command} busybox true")).fails(125);
            assert!(refused.starts_with("error: cannot use the VM wall"), "{refused}");
            set("vm", &format!("{command} --isolation container busybox true")).ok();
        }
    }
    set("cage", "up").fails(125);
}

#[test]
fn explain_has_every_wall_and_what_was_decided_is_kept() {
    let Some(luna) = Luna::new() else { return };
    let told: Value = serde_json::from_str(&luna.line("explain --json busybox").ok()).unwrap();
    assert_eq!(
        (&told["version"], &told["image"]),
        (&Value::from(1), &Value::from("busybox"))
    );
    let walls = told["walls"].as_array().unwrap();
    let names: Vec<_> = walls
        .iter()
        .map(|wall| (wall["wall"].as_str().unwrap(), wall["accelerator"].as_str()))
        .collect();
    assert_eq!(
        names,
        [("container", None), ("vm", Some("tcg")), ("vm", Some("kvm"))]
    );
    for wall in walls {
        assert!(
            wall["because"]
                .as_str()
                .is_some_and(|because| !because.is_empty()),
            "{wall}"
        );
        assert!(wall["available"].is_boolean() && wall["chosen"].is_boolean());
        for check in wall["checks"].as_array().unwrap() {
            assert!(
                check["milliseconds"].as_f64().is_some() && check["detail"].is_string(),
                "{check}"
            );
        }
    }
    assert_eq!(walls[0]["chosen"], true);
    let text = luna.line("explain busybox").ok();
    assert!(
        text.starts_with("`busybox` would run in the container\n  because: "),
        "{text}"
    );
    for word in ["TO CHANGE IT", "VM (hardware virtualization)", "TOOK", " ms "] {
        assert!(text.contains(word), "{word}: {text}");
    }
    // Decided once: neither a policy nor a restart changes it.
    luna.line("run -d --name a busybox sleep 1000").ok();
    policy(&luna, "floor = \"own-kernel\"\n");
    under(&luna, "stop -t 0 a").ok();
    under(&luna, "start a").ok();
    let kept = luna.field("a", "{{json .Luna.decision}}");
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(kept["asked"]["isolation"], "auto");
    assert_eq!(kept["asked"]["image"]["repository"], "docker.io/library/busybox");
    assert_eq!(kept["engine"]["wall"], "container");
    assert_eq!(kept["policy"], Value::Array(Vec::new()));
    assert_eq!(kept["rejected"].as_array().unwrap().len(), 2);
}
