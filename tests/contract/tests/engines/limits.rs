//! Limits hold, and what ran into one is told so.

use contract::luna::Luna;

pub(crate) fn memory(luna: &Luna) {
    let hog = ["tail", "-c", "300000000", "/dev/zero"];
    let flags = ["--memory", "48m", "--name", "hog"];
    let said = luna.luna(&luna.words("run", &flags, &hog));
    assert_eq!(said.code(), Some(137), "{said:?}");
    let state = &luna.inspect("hog")["State"];
    assert_eq!(state["OOMKilled"], true, "{state}");
    assert_eq!(
        luna.says(&["--memory", "48m"], "head -c 1000000 /dev/zero | wc -c"),
        "1000000"
    );
}

pub(crate) fn processes(luna: &Luna) {
    let script = "for i in $(seq 1 60); do sleep 2 & done 2>/dev/null; echo all";
    let limited = luna.shell(&["--pids-limit", "20"], script);
    assert!(
        !limited.output.contains("all") || limited.errors.contains("fork"),
        "{limited:?}"
    );
    let free = luna.shell(&["--pids-limit", "200"], script);
    assert!(free.output.contains("all"), "{free:?}");
}

pub(crate) fn processor(luna: &Luna) {
    // `times`: the shell's own, then its children's, user and system.
    let script = "timeout 1.5 sh -c 'while :; do :; done'; times | tail -n 1";
    let said = luna.shell(&["--cpus", "0.2"], script).output;
    let user = said.split_whitespace().next().unwrap_or_default();
    let seconds: f64 = user
        .split_once('m')
        .and_then(|(minutes, seconds)| {
            Some(minutes.parse::<f64>().ok()? * 60.0 + seconds.trim_end_matches('s').parse::<f64>().ok()?)
        })
        .unwrap_or(f64::MAX);
    assert!(
        seconds < 0.7,
        "a fifth of a processor for 1.5 s gave {seconds} s: {said}"
    );
}

pub(crate) fn open_files(luna: &Luna) {
    assert_eq!(
        luna.says(&["--ulimit", "nofile=123:456"], "ulimit -n; ulimit -Hn"),
        "123\n456"
    );
    let said = luna.shell(&["--memory", "1k"], "true");
    assert_eq!(
        said.code(),
        Some(125),
        "a limit that cannot be is an error: {said:?}"
    );
}
