//! `explain`: the choice of the wall as a table, with everything it was made from. docs/isolation.md describes the JSON.

use luna_core::Result;
use luna_core::engine::EngineProfile;
use luna_core::host::{Check, HostReport};
use luna_core::policy::{self, Asked, Decision, Policy, Rejection};
use serde_json::{Map, Value, json};

use super::Front;
use super::host;
use crate::cli::run::ExplainArgs;
use crate::output::{Column, List, ListStyle};
use crate::request;

/// The shape of the JSON; it grows without changing this, and changes only with it.
const VERSION: u32 = 1;

pub(super) fn explain(front: &Front, args: &ExplainArgs) -> Result<()> {
    let spec = request::spec(&args.sandbox, false)?;
    let runtime = front.runtime()?;
    let policy = runtime.policy()?;
    let asked = runtime.asked(&spec)?;
    let report = runtime.host(args.fresh)?;
    let outcome = policy::decide(&asked, &policy, &report);
    let choice = Choice {
        decision: outcome.as_ref().ok(),
        rejected: match &outcome {
            Ok(decision) => decision.rejected.clone(),
            Err(_) => policy::rejections(&asked, &policy, &report),
        },
        host: &report,
    };
    if args.json.json {
        let refused = outcome.as_ref().err().map(luna_core::Error::report);
        let decision = outcome.as_ref().ok();
        front.printer.json(&json!({
            "version": VERSION,
            "image": spec.image,
            "asked": asked,
            "policy": policy,
            "floor": floor(&asked, &policy),
            "chosen": decision.map(|decision| decision.engine),
            "reason": decision.map(|decision| &decision.reason),
            "refused": refused,
            "walls": choice.walls(),
        }))?;
    } else {
        choice.tell(front, &spec.image, &policy)?;
    }
    outcome.map(drop)
}

struct Choice<'a> {
    decision: Option<&'a Decision>,
    rejected: Vec<Rejection>,
    host: &'a HostReport,
}

impl Choice<'_> {
    /// `None` for the chosen one.
    fn rejection(&self, profile: EngineProfile) -> Option<&Rejection> {
        self.rejected.iter().find(|rejection| rejection.engine == profile)
    }

    fn walls(&self) -> Vec<Value> {
        let check = |check: &Check| {
            json!({
                "name": check.name,
                "outcome": check.outcome,
                "detail": check.detail,
                "fix": check.fix,
                "milliseconds": check.took.as_secs_f64() * 1000.0,
            })
        };
        self.host
            .engines
            .iter()
            .map(|engine| {
                let rejection = self.rejection(engine.profile);
                json!({
                    "wall": engine.profile.wall,
                    "accelerator": engine.profile.accelerator,
                    "available": engine.available(),
                    "chosen": rejection.is_none(),
                    "because": rejection.map_or_else(|| self.reason(), |rejection| &rejection.because),
                    "fix": rejection.and_then(|rejection| rejection.fix.as_ref()),
                    "checks": engine.checks.iter().map(check).collect::<Vec<_>>(),
                })
            })
            .collect()
    }

    fn reason(&self) -> &str {
        self.decision.map_or("", |decision| &decision.reason)
    }

    fn tell(&self, front: &Front, image: &str, policy: &Policy) -> Result<()> {
        let printer = front.printer;
        let what = if image.is_empty() {
            "this".to_owned()
        } else {
            format!("`{image}`")
        };
        match self.decision {
            Some(decision) => {
                printer.line(format!(
                    "{what} would run in {}",
                    policy::describe(&decision.engine)
                ))?;
                printer.line(format!("  because: {}", decision.reason))?;
            }
            None => printer.line(format!("{what} would not run"))?,
        }
        let files: Vec<_> = policy
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        printer.line(match files.as_slice() {
            [] => "  policy: no file".to_owned(),
            files => format!("  policy: {}", files.join(", ")),
        })?;
        printer.line("")?;
        let columns = [
            Column("WALL", "Wall"),
            Column("HERE", "Here"),
            Column("OUTCOME", "Outcome"),
            Column("BECAUSE", "Because"),
            Column("TO CHANGE IT", "Fix"),
        ];
        let rows = self.host.engines.iter().map(|engine| {
            let rejection = self.rejection(engine.profile);
            object(json!({
                "Wall": host::title(engine.profile),
                "Here": if engine.available() { "yes" } else { "no" },
                "Outcome": if rejection.is_none() { "chosen" } else { "refused" },
                "Because": rejection.map_or_else(|| self.reason(), |rejection| &rejection.because),
                "Fix": rejection.and_then(|rejection| rejection.fix.as_ref()),
            }))
        });
        List {
            columns: &columns,
            rows: rows.collect(),
        }
        .print(printer, &ListStyle::TABLE)?;
        for engine in self
            .host
            .engines
            .iter()
            .filter(|engine| !engine.checks.is_empty())
        {
            printer.line(format!("\n{}", host::title(engine.profile)))?;
            List {
                columns: &host::CHECKS,
                rows: engine.checks.iter().map(host::row).collect(),
            }
            .print(printer, &ListStyle::TABLE)?;
        }
        Ok(())
    }
}

fn floor(asked: &Asked, policy: &Policy) -> Value {
    let demand = policy::floor(asked, policy);
    let least = match demand.rung {
        1 => "none",
        2 => "own-kernel",
        _ => "hardware-virtualization",
    };
    json!({"least": least, "because": demand.because, "fix": demand.fix})
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
