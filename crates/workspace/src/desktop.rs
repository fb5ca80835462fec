//! The desktop: Xvnc, a window manager and Chromium, started in order, watched, restarted when they die, stopped gently.
//!
//! ```text
//! Xvnc ready (its -displayfd line) ─▶ window manager + Chromium ─▶ any of them dies ─▶ it is started again
//!   └─ Xvnc dies ─▶ all of them go, and it begins again
//! ```
//!
//! Screen and X sockets are closed to everything but this user: the VNC socket lies in a 0700 directory and is 0600; there is no
//! TCP and no abstract socket (an abstract one would be open to the whole network namespace, which may be the host's), and X
//! wants a cookie. Chromium runs with its own sandbox or not at all.

mod browser;
mod child;
mod place;
mod screen;
mod xauthority;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::watch;

use crate::journal;
use crate::settings::Geometry;
use child::{Environment, Program};
use place::Place;

/// How far the desktop has come, for the page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    pub screen: Stage,
    pub browser: Stage,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    #[default]
    Starting,
    Ready,
    /// Started again and again without success, or impossible here.
    Failed {
        because: String,
        hint: Option<String>,
    },
}

/// Everything the desktop needs on disk, made; nothing runs yet.
#[derive(Debug)]
pub struct Desktop {
    place: Place,
    geometry: Geometry,
}

impl Desktop {
    pub fn prepare(geometry: Geometry) -> Result<Desktop, String> {
        Ok(Desktop {
            place: Place::make()?,
            geometry,
        })
    }

    /// Where the screen is served, in RFB.
    pub fn screen_socket(&self) -> PathBuf {
        self.place.screen_socket()
    }

    /// Runs the desktop until `stop` turns true; then stops it, Chromium first.
    pub async fn run(self, report: watch::Sender<State>, mut stop: watch::Receiver<bool>) {
        let mut patience = Patience::default();
        while !*stop.borrow() {
            let began = Instant::now();
            report.send_replace(State::default());
            match screen::start(&self.place, self.geometry).await {
                Ok(mut screen) => {
                    journal::note(
                        "luna",
                        &format!("screen ready in {} ms", began.elapsed().as_millis()),
                    );
                    report.send_modify(|state| state.screen = Stage::Ready);
                    let environment = Environment::desktop(&self.place, &screen.display);
                    tokio::select! {
                        () = screen.server.ended() => journal::note("luna", "the screen is gone; starting it again"),
                        () = session(&self.place, &environment, &report, stop.clone()) => {}
                    }
                    screen.server.stop().await;
                }
                Err(because) => {
                    journal::note("luna", &because);
                    report.send_modify(|state| state.screen = Stage::Failed { because, hint: None });
                }
            }
            tokio::select! {
                () = told(&mut stop) => {}
                () = tokio::time::sleep(patience.after(began.elapsed())) => {}
            }
        }
    }
}

/// Waits until `stop` turns true or its sender is gone.
async fn told(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What runs on one screen; ends when `stop` turns true.
async fn session(
    place: &Place,
    environment: &Environment,
    report: &watch::Sender<State>,
    stop: watch::Receiver<bool>,
) {
    let windows = Program::new("jwm", "/usr/bin/jwm").arguments(["-f", "/opt/luna/jwmrc"]);
    tokio::join!(
        keep(&windows, environment, stop.clone()),
        browser::keep(place, environment, report, stop),
    );
}

/// Starts a program again whenever it ends.
async fn keep(program: &Program, environment: &Environment, mut stop: watch::Receiver<bool>) {
    let mut patience = Patience::default();
    while !*stop.borrow() {
        let began = Instant::now();
        match program.start(environment) {
            Ok(mut running) => tokio::select! {
                () = running.ended() => {}
                () = told(&mut stop) => running.stop().await,
            },
            Err(error) => journal::note("luna", &error),
        }
        tokio::select! {
            () = told(&mut stop) => {}
            () = tokio::time::sleep(patience.after(began.elapsed())) => {}
        }
    }
}

/// How long to wait before the next try: at once after a long life, longer after each short one.
#[derive(Debug, Default)]
struct Patience {
    short_lives: u32,
}

impl Patience {
    const LONG_LIFE: Duration = Duration::from_secs(20);
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(30);

    fn after(&mut self, life: Duration) -> Duration {
        if life >= Patience::LONG_LIFE {
            self.short_lives = 0;
        }
        self.short_lives += 1;
        Patience::FIRST
            .saturating_mul(1 << (self.short_lives - 1).min(16))
            .min(Patience::LONGEST)
    }

    /// Whether several short lives in a row say that the next will be short too.
    fn lost(&self) -> bool {
        self.short_lives >= 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_short_lives_and_recovers() {
        let mut patience = Patience::default();
        let short = Duration::from_millis(1);
        assert_eq!(patience.after(short), Duration::from_millis(200));
        assert_eq!(patience.after(short), Duration::from_millis(400));
        assert!(!patience.lost());
        for _ in 0..40 {
            patience.after(short);
        }
        assert!(patience.lost());
        assert_eq!(patience.after(short), Patience::LONGEST);
        assert_eq!(patience.after(Patience::LONG_LIFE), Patience::FIRST);
    }
}
