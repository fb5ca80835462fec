//! Every limit, asked for and then run into; pausing, counting and changing a running jail.

#![allow(clippy::unwrap_used)] // In the helpers beside the tests.

mod common;

use std::io::Read as _;
use std::time::{Duration, Instant};

use common::{Asked, World, ask, start, unique};
use luna_core::Kind;
use luna_core::process::{ExitStatus, Rlimit, RlimitKind};
use luna_core::spec::PidsLimit;
use luna_core::units::{Bytes, MilliCpus};
use luna_jail::spec::{Limits, Swap};

fn limited(limits: Limits, script: &[&str]) -> Asked {
    let world = World::new();
    let mut spec = world.spec(script);
    spec.limits = limits;
    start(spec).unwrap()
}

fn rest(asked: &mut Asked) -> Vec<String> {
    let mut text = String::new();
    asked.output.read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn more_memory_than_allowed_is_death_and_it_is_counted() {
    let limits = Limits {
        memory: Some(Bytes::mebibytes(32)),
        swap: Some(Swap::At(Bytes(0))),
        ..Limits::default()
    };
    let mut asked = limited(limits, &["eat 8", "eat 128"]);
    assert_eq!(rest(&mut asked).len(), 1);
    let status = asked.jail.wait().unwrap();
    assert!(
        matches!(status, ExitStatus::Signal { number: 9, .. }),
        "{status:?}"
    );
    let usage = asked.jail.handle().usage().unwrap();
    assert!(usage.out_of_memory(), "{usage:?}");
    assert_eq!(usage.memory_limit, Some(Bytes::mebibytes(32)));
}

#[test]
fn processes_are_limited() {
    let limits = Limits {
        pids: Some(PidsLimit::At(20)),
        ..Limits::default()
    };
    let mut asked = limited(limits, &["threads 100"]);
    let lines = rest(&mut asked);
    // One is the inmate itself.
    assert_eq!(lines, ["ok 19"]);
}

#[test]
fn a_tenth_of_a_cpu_is_a_tenth() {
    let limits = Limits {
        cpus: Some(MilliCpus(100)),
        ..Limits::default()
    };
    let mut asked = limited(limits, &["spin 1000"]);
    let begin = Instant::now();
    rest(&mut asked);
    let used = asked.jail.handle().usage().unwrap().cpu.unwrap();
    let share = used.as_secs_f64() / begin.elapsed().as_secs_f64();
    assert!(share < 0.2, "used {used:?} in {:?}", begin.elapsed());
}

#[test]
fn chosen_cpus_are_the_only_ones() {
    let limits = Limits {
        cpuset: Some("0".into()),
        ..Limits::default()
    };
    let mut asked = limited(limits, &["read /proc/self/status"]);
    assert!(rest(&mut asked)[0].contains("|Cpus_allowed_list:\t0|"));
}

#[test]
fn a_limit_that_the_host_refuses_is_an_error_and_leaves_nothing() {
    let world = World::new();
    let mut spec = world.spec(&[]);
    spec.limits = Limits {
        cpuset: Some("4000".into()),
        ..Limits::default()
    };
    let name = spec.name.clone();
    let error = start(spec).err().unwrap();
    assert!(
        error.causes().join(" ").contains("cannot choose CPUs"),
        "{error:?}"
    );
    assert!(common::cgroups_named(&name).is_empty());
}

#[test]
fn resource_limits_reach_the_program() {
    let world = World::new();
    let mut spec = world.spec(&["read /proc/self/limits"]);
    spec.rlimits = vec![
        Rlimit {
            resource: RlimitKind::Nofile,
            soft: 77,
            hard: 88,
        },
        Rlimit {
            resource: RlimitKind::Core,
            soft: 0,
            hard: 0,
        },
    ];
    let limits = ask(spec).remove(0);
    let words = |name: &str| {
        let line = limits.split('|').find(|line| line.contains(name)).unwrap();
        line.split_whitespace()
            .skip(3)
            .take(2)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(words("Max open files"), "77 88");
}

#[test]
fn what_is_paused_does_not_run_and_can_be_killed() {
    let mut asked = limited(Limits::default(), &["pid", "spin 600000"]);
    let handle = asked.jail.handle();
    let mut first = [0; 5];
    asked.output.read_exact(&mut first).unwrap();
    handle.pause().unwrap();
    let before = handle.usage().unwrap().cpu.unwrap();
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(100) {
        std::thread::yield_now();
    }
    assert_eq!(handle.usage().unwrap().cpu.unwrap(), before);
    handle.resume().unwrap();
    while handle.usage().unwrap().cpu.unwrap() == before {
        std::thread::yield_now();
    }
    handle.pause().unwrap();
    handle.kill().unwrap();
    assert!(matches!(
        asked.jail.wait().unwrap(),
        ExitStatus::Signal { number: 9, .. }
    ));
    assert_eq!(handle.pause().unwrap_err().kind(), Kind::Conflict);
}

#[test]
fn limits_change_in_place_and_all_or_none() {
    let asked = limited(
        Limits {
            memory: Some(Bytes::mebibytes(64)),
            pids: Some(PidsLimit::At(50)),
            ..Limits::default()
        },
        &["wait"],
    );
    let handle = asked.jail.handle();
    for mebibytes in [128, 32] {
        let memory = Some(Bytes::mebibytes(mebibytes));
        handle
            .update(&Limits {
                memory,
                ..Limits::default()
            })
            .unwrap();
        assert_eq!(handle.usage().unwrap().memory_limit, memory);
    }
    handle
        .update(&Limits {
            pids: Some(PidsLimit::Unlimited),
            ..Limits::default()
        })
        .unwrap();
    assert_eq!(handle.usage().unwrap().pids_limit, None);
    handle
        .update(&Limits {
            pids: Some(PidsLimit::At(50)),
            ..Limits::default()
        })
        .unwrap();
    let impossible = Limits {
        memory: Some(Bytes::mebibytes(48)),
        cpuset: Some("4000".into()),
        ..Limits::default()
    };
    assert!(handle.update(&impossible).is_err());
    let usage = handle.usage().unwrap();
    assert_eq!(usage.memory_limit, Some(Bytes::mebibytes(32)));
    assert_eq!(usage.pids_limit, Some(50));
    assert_eq!(usage.pids, Some(1));
}

#[test]
fn a_killed_launchers_cgroups_are_reclaimed() {
    let name = format!("test-reclaim-{}-{}", std::process::id(), unique());
    let left = common::make_cgroups(&name);
    assert!(!left.is_empty());
    // With cgroups that a jail made inside its own.
    for path in &left {
        std::fs::create_dir_all(path.join("inner/innermost")).unwrap();
        std::fs::create_dir(path.join("other")).unwrap();
    }
    luna_jail::reclaim(&name).unwrap();
    assert!(common::cgroups_named(&name).is_empty());
    luna_jail::reclaim(&name).unwrap();
    assert!(luna_jail::reclaim("../x").is_err());
}
