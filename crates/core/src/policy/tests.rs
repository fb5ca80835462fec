//! The choice as a table, and what holds for every combination.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::engine::RootForm;
use crate::host::{Check, Outcome};

const CONTAINER: EngineProfile = EngineProfile {
    wall: Wall::Container,
    accelerator: None,
    root: RootForm::Tree,
};
const TCG: EngineProfile = EngineProfile {
    wall: Wall::Vm,
    accelerator: Some(Accelerator::Tcg),
    root: RootForm::Disk,
};
const KVM: EngineProfile = EngineProfile {
    wall: Wall::Vm,
    accelerator: Some(Accelerator::Kvm),
    root: RootForm::Disk,
};
const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn engine(profile: EngineProfile, works: bool) -> EngineReport {
    let outcome = if works { Outcome::Works } else { Outcome::Missing };
    EngineReport {
        profile,
        checks: vec![Check {
            name: "it".into(),
            outcome,
            detail: "was tried".into(),
            fix: Some("fix it".into()),
            took: Duration::ZERO,
        }],
    }
}

/// Walls by their letters: `c`ontainer, `t`cg, `k`vm; and mebibytes available.
fn host(walls: &str, available: u64) -> HostReport {
    let engines = [('c', CONTAINER), ('t', TCG), ('k', KVM)];
    HostReport {
        kernel: "6.1".into(),
        architecture: "x86_64".into(),
        cpus: 2,
        memory_total: Bytes::mebibytes(8192),
        memory_available: Bytes::mebibytes(available),
        rootless: false,
        engines: engines
            .map(|(letter, profile)| engine(profile, walls.contains(letter)))
            .to_vec(),
    }
}

fn policy(text: &str) -> Policy {
    if text.is_empty() {
        return Policy::default();
    }
    Policy::parse(text, Path::new("/etc/luna/policy.toml")).unwrap()
}

/// Flags as on a command line; `secrets` and an image's name stand for what has no flag.
fn asked(line: &str) -> Asked {
    let mut asked = Asked::of(&Spec::new("image"), Origin::default());
    asked.image.repository = Some("docker.io/library/image".into());
    for word in line.split_whitespace() {
        match word {
            "container" => asked.isolation = Isolation::Container,
            "vm" => asked.isolation = Isolation::Vm,
            "kernel" => asked.require = Some(Floor::OwnKernel),
            "hardware" => asked.require = Some(Floor::HardwareVirtualization),
            "privileged" => asked.privileged = true,
            "boot" => asked.boot = true,
            "host-network" => asked.network = Network::Host,
            "nested" => asked.nested_containers = true,
            "secrets" => asked.secrets = true,
            "big" => asked.memory = Some(Bytes::mebibytes(4096)),
            "pinned" => asked.image.digests = vec![DIGEST.into()],
            "nameless" => asked.image.repository = None,
            name => asked.image.repository = Some(name.into()),
        }
    }
    asked
}

const PREFER_VM: &str = "prefer = \"vm\"";
const NO_EMULATION: &str = "emulation = \"refuse\"";
const FLOOR: &str = "floor = \"own-kernel\"";
const HARD: &str = "floor = \"hardware-virtualization\"";
const RISKS: &str = "[risks]\nsecrets = \"own-kernel\"\nprivileged = \"hardware-virtualization\"\n\
                     nested-containers = \"own-kernel\"";
const TRUST: &str = "[risks.untrusted]\nfloor = \"own-kernel\"\ntrusted = [\"docker.io/library/*\", \
                     \"sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef\"]";

/// Walls that work here, mebibytes available, policy, what is asked, and the rung chosen; 0 is a refusal.
type Row = (&'static str, u64, &'static str, &'static str, u8);

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Nothing in force: the container, unless something is asked.
    ("ctk", 4000, "", "", 1),
    ("ctk", 4000, "", "container", 1),
    ("ctk", 4000, "", "vm", 3),
    ("ctk", 4000, "", "kernel", 3),
    ("ctk", 4000, "", "hardware", 3),
    ("ctk", 4000, "", "container kernel", 0),
    ("ctk", 4000, "", "container hardware", 0),
    ("ctk", 4000, "", "vm hardware", 3),
    ("ct", 4000, "", "", 1),
    ("ct", 4000, "", "vm", 2),
    ("ct", 4000, "", "kernel", 2),
    ("ct", 4000, "", "hardware", 0),
    ("ct", 4000, "", "vm hardware", 0),
    ("c", 4000, "", "", 1),
    ("c", 4000, "", "vm", 0),
    ("c", 4000, "", "kernel", 0),
    ("tk", 4000, "", "", 3),
    ("t", 4000, "", "", 2),
    ("t", 4000, "", "container", 0),
    ("", 4000, "", "", 0),
    // Privileged is a machine's.
    ("ctk", 4000, "", "privileged", 3),
    ("ct", 4000, "", "privileged", 2),
    ("c", 4000, "", "privileged", 0),
    ("ctk", 4000, "", "container privileged", 0),
    ("ctk", 4000, "", "boot", 3),
    ("ct", 4000, "", "boot", 2),
    ("c", 4000, "", "boot", 0),
    ("ctk", 4000, "", "container boot", 0),
    // The host's network is the container's.
    ("ctk", 4000, "", "host-network", 1),
    ("ctk", 4000, "", "vm host-network", 0),
    ("ctk", 4000, "", "kernel host-network", 0),
    ("ctk", 4000, "", "privileged host-network", 0),
    ("tk", 4000, "", "host-network", 0),
    ("ctk", 4000, PREFER_VM, "host-network", 1),
    ("ctk", 4000, FLOOR, "host-network", 0),
    // The policy's floor.
    ("ctk", 4000, FLOOR, "", 3),
    ("ct", 4000, FLOOR, "", 2),
    ("c", 4000, FLOOR, "", 0),
    ("ctk", 4000, FLOOR, "container", 0),
    ("ct", 4000, HARD, "", 0),
    ("ct", 4000, HARD, "kernel", 0),
    ("ctk", 4000, HARD, "kernel", 3),
    ("ctk", 4000, FLOOR, "hardware", 3),
    ("ct", 4000, FLOOR, "hardware", 0),
    // Emulation.
    ("ct", 4000, NO_EMULATION, "", 1),
    ("ct", 4000, NO_EMULATION, "vm", 0),
    ("ct", 4000, NO_EMULATION, "kernel", 0),
    ("ctk", 4000, NO_EMULATION, "kernel", 3),
    ("t", 4000, NO_EMULATION, "", 0),
    // Preference, and memory that is short.
    ("ctk", 4000, PREFER_VM, "", 3),
    ("ct", 4000, PREFER_VM, "", 2),
    ("c", 4000, PREFER_VM, "", 1),
    ("ctk", 4000, PREFER_VM, "container", 1),
    ("ctk", 1000, PREFER_VM, "", 1),
    ("ctk", 1024, PREFER_VM, "", 3),
    ("tk", 1000, PREFER_VM, "", 3),
    ("ctk", 1000, PREFER_VM, "kernel", 3),
    ("ctk", 1000, PREFER_VM, "vm", 3),
    ("ctk", 300, "prefer = \"vm\"\nlow-memory = \"256m\"", "", 3),
    ("ct", 4000, "prefer = \"vm\"\nemulation = \"refuse\"", "", 1),
    // Memory that cannot be had at all is an obstacle, never a reason for less.
    ("ctk", 8, "", "", 1),
    ("ctk", 8, "", "kernel", 0),
    ("ctk", 8, FLOOR, "", 0),
    ("ctk", 8, "", "vm", 0),
    ("ctk", 8, "", "privileged", 0),
    ("ctk", 191, "", "kernel", 0),
    ("ctk", 192, "", "kernel", 3),
    ("ctk", 4000, "", "kernel big", 0),
    ("ctk", 4000, "", "big", 1),
    ("ctk", 5000, "", "kernel big", 3),
    ("ctk", 4000, PREFER_VM, "big", 1),
    // Risks.
    ("ctk", 4000, RISKS, "", 1),
    ("ctk", 4000, RISKS, "secrets", 3),
    ("ct", 4000, RISKS, "secrets", 2),
    ("c", 4000, RISKS, "secrets", 0),
    ("ctk", 4000, RISKS, "container secrets", 0),
    ("ct", 4000, RISKS, "nested", 2),
    ("ct", 4000, "", "nested", 1),
    ("ct", 4000, RISKS, "privileged", 0),
    ("ctk", 4000, RISKS, "privileged", 3),
    ("ct", 4000, TRUST, "", 1),
    ("ct", 4000, TRUST, "ghcr.io/acme/tool", 2),
    ("c", 4000, TRUST, "ghcr.io/acme/tool", 0),
    ("ct", 4000, TRUST, "container ghcr.io/acme/tool", 0),
    ("ct", 4000, TRUST, "ghcr.io/acme/tool pinned", 1),
    ("ct", 4000, TRUST, "nameless", 2),
    ("ct", 4000, TRUST, "nameless pinned", 1),
    ("ct", 4000, TRUST, "docker.io/acme/image", 2),
    ("ct", 4000, "[risks.untrusted]\nfloor = \"own-kernel\"\ntrusted = []", "", 2),
];

#[test]
fn the_choice_as_a_table() {
    for row @ (walls, available, text, line, rung) in TABLE {
        let (asked, policy, host) = (asked(line), policy(text), host(walls, *available));
        match decide(&asked, &policy, &host) {
            Err(error) => {
                assert_eq!(*rung, 0, "{row:?}: {error:?}");
                assert_eq!(error.kind(), Kind::Refused, "{row:?}");
                assert!(error.hint_text().is_some(), "{row:?}");
                assert_eq!(rejections(&asked, &policy, &host).len(), 3, "{row:?}");
            }
            Ok(decision) => {
                assert_eq!(decision.engine.rung(), *rung, "{row:?}: {}", decision.reason);
                assert_eq!(
                    decision.rejected.len(),
                    2,
                    "{row:?}: every other wall is explained"
                );
                assert_eq!(decision.policy, policy.files);
            }
        }
    }
}

#[test]
fn what_the_policy_refuses_names_its_file_and_key() {
    for (text, line, key) in [
        (FLOOR, "container", "`floor` in `/etc/luna/policy.toml`"),
        (NO_EMULATION, "vm", "`emulation` in `/etc/luna/policy.toml`"),
        (
            RISKS,
            "container secrets",
            "`risks.secrets` in `/etc/luna/policy.toml`",
        ),
        (
            RISKS,
            "privileged",
            "`risks.privileged` in `/etc/luna/policy.toml`",
        ),
        (
            RISKS,
            "container nested",
            "`risks.nested-containers` in `/etc/luna/policy.toml`",
        ),
        (
            TRUST,
            "container nameless",
            "`risks.untrusted` in `/etc/luna/policy.toml`",
        ),
    ] {
        let error = decide(&asked(line), &policy(text), &host("ct", 4000)).unwrap_err();
        let told = format!("{error}: {}", error.causes().join(": "));
        assert!(told.contains(key), "{told}");
        let fixes: Vec<_> = rejections(&asked(line), &policy(text), &host("ct", 4000))
            .into_iter()
            .filter_map(|rejection| rejection.fix)
            .collect();
        assert!(
            fixes.iter().any(|fix| fix.contains("/etc/luna/policy.toml")),
            "{fixes:?}"
        );
    }
}

#[test]
fn what_can_be_done_comes_before_what_asks_for_less() {
    let hint = |line, walls, available| {
        let error = decide(&asked(line), &Policy::default(), &host(walls, available)).unwrap_err();
        error.hint_text().unwrap().to_owned()
    };
    assert_eq!(hint("hardware", "ct", 4000), "fix it");
    assert!(hint("kernel big", "ctk", 4000).starts_with("ask for less with `--memory`"));
    assert!(hint("kernel", "ctk", 8).starts_with("stop something"));
    assert!(hint("container kernel", "ctk", 4000).starts_with("leave out `--require own-kernel`"));
    assert!(hint("container privileged", "ctk", 4000).starts_with("leave out `--privileged`"));
}

#[test]
fn another_image_than_decided_for_is_not_run() {
    let (policy, host) = (policy(TRUST), host("ct", 4000));
    let decision = decide(&asked(""), &policy, &host).unwrap();
    let origin = |line| asked(line).image;
    assert!(confirm(&decision, &policy, &origin("")).is_ok());
    assert!(confirm(&decision, &policy, &origin("nameless pinned")).is_ok());
    let error = confirm(&decision, &policy, &origin("nameless")).unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    let machine = decide(&asked("vm"), &policy, &host).unwrap();
    assert!(confirm(&machine, &policy, &origin("nameless")).is_ok());
}

fn floors() -> impl Strategy<Value = Option<Floor>> {
    prop::sample::select(vec![
        None,
        Some(Floor::OwnKernel),
        Some(Floor::HardwareVirtualization),
    ])
}

fn policies() -> impl Strategy<Value = Policy> {
    let lists = prop::sample::subsequence(vec!["docker.io/library/*", "ghcr.io/acme/tool", DIGEST], 0..=3);
    let grants = lists.clone();
    let file = prop::sample::select(vec!["/etc/luna/policy.toml", "/home/me/policy.toml"]);
    let floors = [floors(), floors(), floors(), floors(), floors()];
    let plain = (any::<bool>(), any::<bool>(), 0u64..2000, any::<[bool; 2]>());
    (floors, plain, lists, grants, file).prop_map(|(floors, plain, trusted, grants, file)| {
        let (refuse, machine, low, [risk, grant]) = plain;
        let mut lines = vec![format!("low-memory = \"{low}m\"")];
        if refuse {
            lines.push(NO_EMULATION.to_owned());
        }
        if machine {
            lines.push(PREFER_VM.to_owned());
        }
        let untrusted = floors[4].filter(|_| risk);
        let keys = [
            ("floor", floors[0]),
            ("risks.secrets", floors[1]),
            ("risks.privileged", floors[2]),
            ("risks.nested-containers", floors[3]),
            ("risks.untrusted.floor", untrusted),
        ];
        lines.extend(
            keys.into_iter()
                .filter_map(|(key, floor)| Some(format!("{key} = \"{}\"", floor?))),
        );
        if untrusted.is_some() {
            lines.push(format!("risks.untrusted.trusted = {trusted:?}"));
        }
        if grant {
            lines.push(format!("grants.nested-userns = {grants:?}"));
        }
        let text = lines.join("\n");
        Policy::parse(&text, Path::new(file)).unwrap()
    })
}

fn requests() -> impl Strategy<Value = Asked> {
    let isolation = prop::sample::select(vec![Isolation::Auto, Isolation::Container, Isolation::Vm]);
    let name = prop::sample::select(vec![
        "docker.io/library/image",
        "ghcr.io/acme/tool",
        "evil.example/x",
    ]);
    let memory = prop::option::of((0u64..6000).prop_map(Bytes::mebibytes));
    let flags = any::<[bool; 5]>();
    (isolation, floors(), flags, memory, prop::option::of(name)).prop_map(
        |(
            isolation,
            require,
            [privileged, host_network, nested_containers, secrets, pinned],
            memory,
            name,
        )| {
            Asked {
                isolation,
                require,
                privileged,
                boot: false,
                network: if host_network {
                    Network::Host
                } else {
                    Network::None
                },
                nested_containers,
                secrets,
                memory,
                image: Origin {
                    repository: name.map(str::to_owned),
                    digests: pinned.then(|| DIGEST.to_owned()).into_iter().collect(),
                },
            }
        },
    )
}

fn hosts() -> impl Strategy<Value = HostReport> {
    (prop::sample::subsequence(vec!['c', 't', 'k'], 0..=3), 0u64..6000)
        .prop_map(|(walls, available)| host(&walls.into_iter().collect::<String>(), available))
}

proptest! {
    #[test]
    fn never_below_the_floor(asked in requests(), policy in policies(), host in hosts()) {
        let needed = floor(&asked, &policy).rung;
        if let Ok(decision) = decide(&asked, &policy, &host) {
            prop_assert!(decision.engine.rung() >= needed);
            prop_assert!(asked.require.is_none_or(|floor| decision.engine.rung() >= rung(floor)));
            prop_assert!(policy.floor.as_ref().is_none_or(|rule| decision.engine.rung() >= rung(rule.value)));
            prop_assert!(!asked.privileged || decision.engine.own_kernel());
            prop_assert!(asked.network == Network::None || !decision.engine.own_kernel());
            let report = host.engines.iter().find(|engine| engine.profile == decision.engine);
            prop_assert!(report.is_some_and(EngineReport::available));
            match asked.isolation {
                Isolation::Auto => {}
                Isolation::Container => prop_assert_eq!(decision.engine.wall, Wall::Container),
                Isolation::Vm => prop_assert_eq!(decision.engine.wall, Wall::Vm),
            }
            prop_assert_eq!(decision.rejected.len() + 1, host.engines.len());
        }
    }

    #[test]
    fn short_memory_never_lowers(asked in requests(), policy in policies(), host in hosts(), less in 0u64..6000) {
        let starved = HostReport { memory_available: Bytes::mebibytes(less).min(host.memory_available), ..host };
        if let Ok(decision) = decide(&asked, &policy, &starved) {
            prop_assert!(decision.engine.rung() >= floor(&asked, &policy).rung);
        }
    }

    #[test]
    fn two_files_are_one_in_any_order(one in policies(), two in policies(), three in policies()) {
        prop_assert_eq!(one.clone().and(two.clone()), two.clone().and(one.clone()));
        prop_assert_eq!(
            one.clone().and(two.clone()).and(three.clone()),
            one.clone().and(two.and(three))
        );
        prop_assert_eq!(one.clone().and(one.clone()), one.clone());
        prop_assert_eq!(Policy::default().and(one.clone()), one);
    }

    #[test]
    fn a_second_file_only_takes_away(asked in requests(), one in policies(), two in policies(), host in hosts()) {
        let both = one.clone().and(two.clone());
        prop_assert!(floor(&asked, &both).rung >= floor(&asked, &one).rung);
        prop_assert!(both.low_memory() <= one.low_memory());
        if both.grants_nested_userns(&asked.image) {
            prop_assert!(one.nested_userns.is_empty() || one.grants_nested_userns(&asked.image));
            prop_assert!(two.nested_userns.is_empty() || two.grants_nested_userns(&asked.image));
        }
        // What one file refuses to be built at all, another does not bring back.
        if decide(&asked, &both, &host).is_ok() {
            prop_assert!(decide(&asked, &one, &host).is_ok());
        }
    }

    #[test]
    fn any_text_is_a_policy_or_an_error(text in "\\PC{0,200}") {
        let _ = Policy::parse(&text, Path::new("f"));
    }

    #[test]
    fn decisions_survive_their_file(asked in requests(), policy in policies(), host in hosts()) {
        if let Ok(decision) = decide(&asked, &policy, &host) {
            let text = serde_json::to_string(&decision).unwrap();
            prop_assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), decision);
        }
    }
}
