//! The same attempts under `runc`, with the spec it generates and docker's capabilities: what the neighbours' wall does.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use luna_core::capability::Capabilities;
use serde_json::{Value, json};

use crate::bounded::{self, Finished};
use crate::land::{Land, unique};

const LIMIT: Duration = Duration::from_secs(30);

pub fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(program).is_file())
    })
}

/// Runs `command` of the land's root under runc. `wrap` goes before runc on the command line.
pub fn run(land: &Land, command: &[String], wrap: &[String]) -> Finished {
    let bundle = land.path("runs").join(format!("runc-{}", unique()));
    fs::create_dir(&bundle).expect("a temporary directory can be filled");
    let copied = Command::new("cp")
        .arg("-al")
        .arg(land.path("lower"))
        .arg(bundle.join("rootfs"))
        .status();
    assert!(
        copied.is_ok_and(|status| status.success()),
        "a root file system can be linked"
    );
    let made = Command::new("runc").arg("spec").current_dir(&bundle).status();
    assert!(made.is_ok_and(|status| status.success()), "runc makes a spec");
    adapt(land, &bundle.join("config.json"), command);

    let id = format!("luna-escape-{}-{}", std::process::id(), unique());
    let mut words = wrap.to_vec();
    words.extend(["runc".to_owned(), "run".to_owned(), "--bundle".to_owned()]);
    words.extend([bundle.display().to_string(), id.clone()]);
    let mut command = Command::new(&words[0]);
    let finished = bounded::finish(command.args(&words[1..]), LIMIT).expect("runc can be spawned");
    if finished.status.is_none() {
        // It would not end, so it is removed with force; where that fails there is nothing left to do.
        let _ = bounded::finish(Command::new("runc").args(["delete", "--force", &id]), LIMIT);
    }
    finished
}

fn adapt(land: &Land, path: &Path, command: &[String]) {
    let text = fs::read(path).expect("runc made a spec");
    let mut spec: Value = serde_json::from_slice(&text).expect("runc's spec is JSON");
    let capabilities: Vec<_> = Capabilities::DEFAULT
        .iter()
        .map(|capability| format!("CAP_{}", capability.name()))
        .collect();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(command);
    spec["process"]["cwd"] = json!("/");
    spec["process"]["capabilities"] =
        json!({ "bounding": capabilities, "effective": capabilities, "permitted": capabilities });
    spec["root"]["readonly"] = json!(false);
    if let Some(mounts) = spec["mounts"].as_array_mut() {
        for (name, option) in [("volume", "rw"), ("read-only", "ro")] {
            mounts.push(json!({
                "destination": format!("/{name}"),
                "source": land.path(name),
                "type": "bind",
                "options": ["rbind", option],
            }));
        }
    }
    fs::write(path, spec.to_string()).expect("a temporary directory can be filled");
}
