//! Progress of long work: bars on a terminal, lines elsewhere, nothing when quiet.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use luna_core::event::Progress;

use super::printable;

/// How progress looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    Quiet,
    Plain,
    Bars,
}

impl Look {
    /// Bars where there is a terminal to draw them on.
    pub(crate) fn fitting() -> Look {
        if std::io::stderr().is_terminal() {
            Look::Bars
        } else {
            Look::Plain
        }
    }
}

/// Takes progress from any thread and draws it on standard error.
#[derive(Debug)]
pub(crate) struct Bars {
    look: Look,
    screen: MultiProgress,
    drawn: Mutex<HashMap<String, ProgressBar>>,
    /// What was said to have begun, where that is said in lines.
    begun: Mutex<HashMap<String, String>>,
}

impl Bars {
    pub(crate) fn new(look: Look) -> Bars {
        Bars {
            look,
            screen: MultiProgress::new(),
            drawn: Mutex::default(),
            begun: Mutex::default(),
        }
    }

    pub(crate) fn take(&self, progress: Progress) {
        match self.look {
            Look::Quiet => {}
            Look::Plain => self.tell(progress),
            Look::Bars => self.draw(progress),
        }
    }

    /// One line for the beginning, one for the end where it says something else.
    fn tell(&self, progress: Progress) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let text = match progress {
            Progress::Started { key, label, .. } => {
                begun.insert(key, label.clone());
                label
            }
            Progress::Finished { key, label } => match begun.remove(&key) {
                Some(said) if said == label => return,
                _ => label,
            },
            Progress::Advanced { .. } => return,
            Progress::Note { text } | Progress::Output { text } => text,
        };
        let mut stderr = std::io::stderr().lock();
        for line in text.lines() {
            let _ = writeln!(stderr, "{}", printable(line));
        }
    }

    fn draw(&self, progress: Progress) {
        let mut bars = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Started { key, label, total } => {
                let bar = self.screen.add(match total {
                    Some(total) => ProgressBar::new(total).with_style(style(
                        "  {msg:42!} [{bar:24}] {bytes:>10} of {total_bytes:10} {bytes_per_sec}",
                    )),
                    None => ProgressBar::new_spinner().with_style(style("  {msg:42!} {spinner} {elapsed}")),
                });
                bar.set_message(printable(&label));
                bar.enable_steady_tick(Duration::from_millis(120));
                bars.insert(key, bar);
            }
            Progress::Advanced { key, done } => {
                if let Some(bar) = bars.get(&key) {
                    bar.set_position(done);
                }
            }
            Progress::Finished { key, label } => {
                if let Some(bar) = bars.remove(&key) {
                    bar.finish_and_clear();
                    self.screen.remove(&bar);
                }
                let _ = self.screen.println(format!("  {}", printable(&label)));
            }
            Progress::Note { text } => {
                let _ = self.screen.println(printable(&text));
            }
            Progress::Output { text } => {
                for line in text.lines() {
                    let _ = self.screen.println(format!("    {}", printable(line)));
                }
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is a constant")
        .progress_chars("=> ")
}

impl Drop for Bars {
    fn drop(&mut self) {
        let mut bars = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, bar) in bars.drain() {
            bar.finish_and_clear();
        }
    }
}
