//! Launches a jail with the whole wall round a program that ends at once, and says how long launching and the whole life
//! took: `start ROUNDS IDLE_MILLISECONDS PROGRAM ROOT [ARGUMENT...]`, where ROOT has `lower`, `upper` and `work`. With one round it
//! says nothing itself, for tools that time the whole process. Works without root too.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use luna_core::units::Bytes;
use luna_core::{Error, Kind, Result};
use luna_jail::Spec;
use luna_jail::spec::{Defences, Ids, Limits, Network, Program, Root, SecurityLabels};

fn main() -> Result<()> {
    luna_jail::rootless::enter()?;
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [rounds, idle, program, root, script @ ..] = &arguments[..] else {
        return Err(Error::new(Kind::InvalidInput, "cannot read the arguments")
            .hint("start ROUNDS IDLE_MILLISECONDS PROGRAM ROOT [ARGUMENT...]"));
    };
    let number = |text: &str| text.parse::<u32>().unwrap_or(1);
    let (rounds, idle) = (number(rounds), Duration::from_millis(number(idle).into()));
    let root = PathBuf::from(root);
    let mut launched = Vec::new();
    let mut lived = Vec::new();
    for round in 0..rounds {
        std::thread::sleep(idle);
        let begin = Instant::now();
        let jail = luna_jail::launch(spec(program, &root, round, script)?)?;
        launched.push(begin.elapsed());
        jail.wait()?;
        drop(jail);
        lived.push(begin.elapsed());
    }
    if rounds > 1 {
        for (name, mut times) in [("launch", launched), ("life", lived)] {
            times.sort();
            let at = |share: usize| times[(times.len() - 1) * share / 100];
            let line = format!(
                "{name}: median {:?}, p90 {:?}, best {:?}\n",
                at(50),
                at(90),
                at(0)
            );
            std::io::stdout()
                .write_all(line.as_bytes())
                .map_err(|error| Error::io("cannot print", error))?;
        }
    }
    Ok(())
}

fn spec(program: &str, root: &std::path::Path, round: u32, script: &[String]) -> Result<Spec> {
    let mut arguments = vec!["init".to_owned()];
    arguments.extend_from_slice(script);
    let output = std::io::stdout()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::io("cannot print", error))?;
    let base = if luna_jail::rootless::is_rootless() {
        0
    } else {
        1_200_000_000
    };
    Ok(Spec {
        name: format!("start-{}-{round}", std::process::id()),
        program: Program {
            executable: luna_jail::sealed(program.as_ref())?,
            arguments,
            environment: Vec::new(),
            stdio: [None, Some(output), None],
            descriptors: Vec::new(),
        },
        ids: Ids { base, count: 65_536 },
        root: Root::Overlay {
            lower: vec![root.join("lower")],
            upper: root.join("upper"),
            work: root.join("work"),
            read_only: false,
        },
        hostname: "start".into(),
        files: Vec::new(),
        mounts: Vec::new(),
        shared_memory: Bytes::mebibytes(64),
        network: Network::Own,
        limits: Limits {
            default_pids: Some(4096),
            ..Limits::default()
        },
        rlimits: Vec::new(),
        security_labels: SecurityLabels::default(),
        defences: Defences::default(),
    })
}
