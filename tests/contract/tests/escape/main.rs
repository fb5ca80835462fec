//! The escape suite. Every attempt is made inside the whole wall, by root in a sandbox of root's and of an unprivileged
//! user's, and must fail; it is made again with the defences that stop it taken out, and must succeed, so that it failed
//! for its own reason; and with all of those but one taken out, and must fail, so that each of them stops it alone. The
//! same list runs under `runc`, for comparison. The table is printed at the end.

mod attempts;
mod images;
mod trial;

use std::fmt::Write as _;
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use contract::land::{Land, Owner, User};
use contract::peer;

use attempts::Attempt;
use trial::{Trial, Verdict};

const WORKERS: usize = 3;

#[test]
fn no_attempt_gets_out() {
    if !rustix::process::geteuid().is_root() {
        say("skipped: the escape suite needs root");
        return;
    }
    let user = User::new();
    let user_land = match &user {
        Ok(user) => Ok(Land::new(user.owner())),
        Err(why) => Err(why.clone()),
    };
    let root_land = Land::new(Owner::Root);
    let filter = std::env::var("ESCAPE").unwrap_or_default();
    let list: Vec<_> = attempts::all()
        .into_iter()
        .filter(|attempt| attempt.what.contains(&filter))
        .collect();
    let next = AtomicUsize::new(0);
    let rows = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(attempt) = list.get(index) else { return };
                    let row = Row::of(attempt, &root_land, user_land.as_ref());
                    rows.lock()
                        .expect("no row panics while it is pushed")
                        .push((index, row));
                }
            });
        }
    });
    let mut rows = rows.into_inner().expect("no row panicked");
    rows.sort_by_key(|(index, _)| *index);
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    say(&table(&rows));
    if let Err(why) = &user {
        say(&format!("skipped: the rootless half: {why}"));
    }
    let faults: Vec<_> = rows.iter().flat_map(Row::faults).collect();
    assert!(
        faults.is_empty(),
        "{} of {} attempts:\n  {}",
        faults.len(),
        rows.len(),
        faults.join("\n  ")
    );
}

pub(crate) fn say(text: &str) {
    // Straight to standard error: a passing test's table is worth reading, too.
    let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("{text}\n"));
}

struct Row {
    what: &'static str,
    root: Verdict,
    rootless: Verdict,
    without: Vec<&'static str>,
    opened: Verdict,
    /// For each defence of `without` put back alone.
    single: Vec<(&'static str, Verdict)>,
    runc: Verdict,
}

impl Row {
    fn of(attempt: &Attempt, root: &Land, user: Result<&Land, &String>) -> Row {
        let trial = Trial::new(root, attempt);
        let lacking = attempt.ask_host_first.then(|| trial.on_host()).flatten();
        let on_root = |without: &[&str]| match &lacking {
            Some(why) if !without.is_empty() => Verdict::Untried(why.clone()),
            _ => trial.on_luna(without),
        };
        let single = if attempt.without.len() > 1 {
            attempt
                .without
                .iter()
                .map(|kept| {
                    let rest: Vec<_> = attempt
                        .without
                        .iter()
                        .copied()
                        .filter(|name| name != kept)
                        .collect();
                    (*kept, on_root(&rest))
                })
                .collect()
        } else {
            Vec::new()
        };
        let rootless = match user {
            Ok(_) if attempt.by_cgroup => Verdict::Untried("no cgroups of its own".into()),
            Ok(land) => Trial::new(land, attempt).on_luna(&[]),
            Err(why) => Verdict::Untried(why.clone()),
        };
        Row {
            what: attempt.what,
            root: on_root(&[]),
            rootless,
            opened: on_root(&attempt.without),
            without: attempt.without.clone(),
            single,
            runc: if peer::is_installed("runc") {
                trial.on_runc()
            } else {
                Verdict::Untried("runc is not installed".into())
            },
        }
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for (whose, verdict) in [("root's", &self.root), ("a user's", &self.rootless)] {
            if !matches!(verdict, Verdict::Stopped(_) | Verdict::Untried(_)) {
                faults.push(format!("{}: in {whose} sandbox: {verdict}", self.what));
            }
        }
        if !matches!(self.opened, Verdict::Escaped(_) | Verdict::Untried(_)) {
            faults.push(format!(
                "{}: without {}: {}",
                self.what,
                self.without.join(", "),
                self.opened
            ));
        }
        for (kept, verdict) in &self.single {
            if !matches!(verdict, Verdict::Stopped(_) | Verdict::Untried(_)) {
                faults.push(format!("{}: {kept} alone does not stop it: {verdict}", self.what));
            }
        }
        faults
    }
}

fn table(rows: &[Row]) -> String {
    let mut lines = vec![[
        "attempt".to_owned(),
        "luna, root".into(),
        "luna, user".into(),
        "succeeds without".into(),
        "runc".into(),
    ]];
    lines.extend(rows.iter().map(|row| {
        let without = row.without.join(" + ");
        let without = match &row.opened {
            Verdict::Escaped(_) => without,
            Verdict::Untried(why) => format!("({without}: {why})"),
            other => format!("({without}: STILL {})", other.word()),
        };
        [
            row.what.into(),
            row.root.word(),
            row.rootless.word(),
            without,
            row.runc.word(),
        ]
    }));
    let widths: Vec<_> = (0..5)
        .map(|column| {
            lines
                .iter()
                .map(|line| line[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(text, "{cell:width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    let stopped = |verdict: fn(&Row) -> &Verdict| {
        rows.iter()
            .filter(|row| matches!(verdict(row), Verdict::Stopped(_)))
            .count()
    };
    let _ = write!(
        text,
        "{} attempts: luna stops {} as root and {} as a user, runc {}",
        rows.len(),
        stopped(|row| &row.root),
        stopped(|row| &row.rootless),
        stopped(|row| &row.runc),
    );
    text
}
