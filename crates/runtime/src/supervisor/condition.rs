//! A sandbox that stands still or does not answer, shown in its status for as long as that lasts.

use std::sync::Arc;
use std::thread;

use luna_core::Error;
use luna_core::engine::{Condition, Control};
use luna_core::event::Action;

use super::STACK;
use super::live::Shared;
use crate::events;
use crate::record::State;

/// Watches one life of a sandbox to its end.
pub(crate) fn watch(shared: &Arc<Shared>, control: Arc<dyn Control>) {
    let shared = Arc::clone(shared);
    // Without this thread a sandbox runs as well; it only tells less.
    let _ = thread::Builder::new()
        .name("condition".to_owned())
        .stack_size(STACK)
        .spawn(move || {
            while let Some(condition) = control.next_condition() {
                note(&shared, &condition);
            }
        });
}

fn note(shared: &Shared, condition: &Condition) {
    shared.update(|live| {
        // Its end may be told already.
        if !live.status.state.live() {
            return;
        }
        live.status.error = match condition {
            Condition::Well => None,
            Condition::Halted(error) | Condition::Silent(error) => Some(error.report()),
        };
        match (condition, live.status.state) {
            (Condition::Halted(_), State::Running) => live.status.state = State::Paused,
            (Condition::Well, State::Paused) => live.status.state = State::Running,
            _ => {}
        }
    });
    shared.store();
    let status = match condition {
        Condition::Well => "well".to_owned(),
        Condition::Halted(error) => format!("halted: {}", words(error)),
        Condition::Silent(error) => format!("silent: {}", words(error)),
    };
    events::record(
        &shared.layout,
        &shared.sandbox.record,
        Action::Condition { status },
    );
}

fn words(error: &Error) -> String {
    let report = error.report();
    std::iter::once(report.message)
        .chain(report.causes)
        .collect::<Vec<_>>()
        .join(": ")
}
