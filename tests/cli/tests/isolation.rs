//! `inspect --isolation`: what is told of a wall is what stands there.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

use cli_tests::Luna;
use serde_json::Value;

fn measured(luna: &Luna, name: &str) -> Value {
    let told: Value =
        serde_json::from_str(&luna.run(["inspect", "--isolation", "--json", name]).ok()).unwrap();
    assert_eq!(told.as_array().unwrap().len(), 1);
    told[0].clone()
}

fn list<'a>(value: &'a Value, what: &str) -> &'a Vec<Value> {
    value[what]
        .as_array()
        .unwrap_or_else(|| panic!("no {what}: {value}"))
}

fn one<'a>(list: &'a [Value], key: &str, wanted: &str) -> &'a Value {
    let found = list.iter().find(|entry| entry[key] == wanted);
    found.unwrap_or_else(|| panic!("no {wanted} in {list:?}"))
}

#[test]
fn a_wall_is_measured_from_both_sides() {
    let Some(luna) = Luna::new() else { return };
    let shared = luna.path("shared");
    std::fs::create_dir(&shared).unwrap();
    let volume = format!("{}:/m:ro", shared.display());
    luna.run([
        "run", "-d", "--name", "a", "--memory", "64m", "-v", &volume, "-u", "user", "busybox", "sleep",
        "1000",
    ])
    .ok();
    let found = measured(&luna, "a");
    assert_eq!(
        (&found["version"], &found["name"]),
        (&Value::from(1), &Value::from("a"))
    );
    assert_eq!(found["engine"]["wall"], "container");
    assert!(found["image"].as_str().unwrap().starts_with("sha256:"));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let (outside, inside) = (&found["outside"], &found["inside"]);
    assert_eq!(found["host_kernel"]["release"], release.trim_end());
    assert_eq!(inside["kernel"]["release"], release.trim_end());

    let own = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    for name in own {
        let namespace = one(list(outside, "namespaces"), "name", name);
        assert_eq!(namespace["own"], true, "{namespace}");
        let within = one(list(inside, "namespaces"), "name", name);
        assert_eq!(within["inode"], namespace["inode"]);
        // A third witness: a program inside.
        let link = luna.line(&format!("exec a readlink /proc/self/ns/{name}")).line();
        assert_eq!(link, format!("{name}:[{}]", namespace["inode"]));
    }

    for view in [outside, inside] {
        for role in ["init", "main"] {
            let process = one(list(view, "processes"), "role", role);
            assert_eq!(process["no_new_privileges"], true, "{process}");
            assert_eq!(process["seccomp_mode"], 2, "{process}");
            assert!(
                !list(process, "bounding").contains(&"SYS_ADMIN".into()),
                "{process}"
            );
            assert!(list(process, "bounding").contains(&"CHOWN".into()), "{process}");
            assert!(list(process, "inheritable").is_empty() && list(process, "ambient").is_empty());
        }
        let main = one(list(view, "processes"), "role", "main");
        assert!(list(main, "effective").is_empty(), "{main}");
        let map = &list(view, "uid_map")[0];
        assert_eq!(map["inside"], 0);
        let mount = one(list(&view["mounts"], "mounts"), "target", "/m");
        assert!(mount["options"].as_str().unwrap().starts_with("ro,"), "{mount}");
    }
    assert_eq!(one(list(inside, "processes"), "role", "main")["uid"], 1000);
    assert_eq!(one(list(inside, "processes"), "role", "init")["pid"], 1);
    let uid = &one(list(outside, "processes"), "role", "main")["uid"];
    let base = list(outside, "uid_map")[0]["outside"].as_u64().unwrap();
    if rustix_is_root() {
        assert_eq!(uid.as_u64().unwrap(), base + 1000);
    }
    let digest = outside["seccomp_filter"].as_str().unwrap();
    assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");

    let cgroups = list(outside, "cgroups");
    assert!(
        cgroups.iter().all(|cgroup| cgroup["holds"] == true),
        "{cgroups:?}"
    );
    let limit = ["memory.max", "memory.limit_in_bytes"]
        .iter()
        .flat_map(|file| cgroups.iter().map(move |cgroup| (file, cgroup)))
        .find_map(|(file, cgroup)| {
            let values = cgroup["values"].as_array()?;
            let value = values.iter().find(|value| value[0] == **file)?;
            value[1].as_str()
        });
    assert_eq!(limit, Some("67108864"));

    let attempts = list(inside, "attempts");
    assert!(
        attempts.iter().all(|attempt| attempt["holds"] == true),
        "{attempts:?}"
    );
    assert_eq!(one(attempts, "path", "/proc/timer_list")["expected"], "covered");
    assert_eq!(one(attempts, "path", "/proc/sys")["write_error"], 30);

    let table = luna.line("inspect --isolation a").ok();
    assert!(
        table.starts_with("`a` runs in the container\n  because: "),
        "{table}"
    );
    for word in [
        "FROM OUTSIDE",
        "FROM INSIDE",
        "TRIED FROM INSIDE",
        "namespace net",
        "64.0 MiB",
        digest,
    ] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(!table.contains("OPEN"), "{table}");
    let one_field = luna.run(["inspect", "--isolation", "--format", "{{.engine.wall}}", "a"]);
    assert_eq!(one_field.line(), "container");
}

fn rustix_is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|status| status.uid() == 0)
}

#[test]
fn what_was_taken_down_is_told() {
    let Some(luna) = Luna::new() else { return };
    luna.line(
        "run -d --name a --network host --security-opt seccomp=unconfined --cap-add NET_ADMIN \
               --security-opt no-new-privileges=false busybox sleep 1000",
    )
    .ok();
    let found = measured(&luna, "a");
    let outside = &found["outside"];
    assert_eq!(one(list(outside, "namespaces"), "name", "net")["own"], false);
    assert_eq!(outside["seccomp_filter"], Value::Null);
    for view in [outside, &found["inside"]] {
        let main = one(list(view, "processes"), "role", "main");
        assert_eq!(
            (&main["seccomp_mode"], &main["no_new_privileges"]),
            (&0.into(), &false.into())
        );
        assert!(list(main, "effective").contains(&"NET_ADMIN".into()), "{main}");
    }
    // What does not run cannot be measured.
    luna.line("pause a").ok();
    let error = luna.line("inspect --isolation a").fails(125);
    assert!(error.contains("it is paused"), "{error}");
    luna.line("unpause a").ok();
    luna.line("stop -t 0 a").ok();
    let error = luna.line("inspect --isolation a").fails(125);
    assert!(error.contains("it is not running"), "{error}");
    luna.line("inspect --isolation nobody").fails(125);
}
