//! Chromium, with its own sandbox or not at all.

use std::process::Stdio;
use std::time::Instant;

use tokio::process::Command;
use tokio::sync::watch;

use super::child::{Environment, Program};
use super::place::Place;
use super::{Patience, Stage, State, told};
use crate::journal;

const START_PAGE: &str = "file:///opt/luna/start/index.html";

const HINT: &str = "start it with `luna up`, or with `--security-opt nested-userns`";

/// What every start gets. Nothing here weakens the sandbox or site isolation: the flags only silence the browser's own calls
/// home and the questions it would ask a person, and keep it from holding processes (100 MB) for pages nobody opened.
const FLAGS: [&str; 16] = [
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-quic",
    "--disable-breakpad",
    "--disable-gpu",
    "--metrics-recording-only",
    "--password-store=basic",
    "--hide-crash-restore-bubble",
    // Fatal only: there is no bus in here, and it would say so for ever.
    "--log-level=3",
    "--start-maximized",
    "--force-color-profile=srgb",
    "--disable-features=Translate,MediaRouter,OptimizationHints,PreloadTopChromeWebUI,SpareRendererForSitePerProcess,WebUIOmniboxPopup,WebUIOmniboxAimPopup",
];

/// Keeps one Chromium open; when a person closes its last window, a new one comes.
pub(super) async fn keep(
    place: &Place,
    environment: &Environment,
    report: &watch::Sender<State>,
    mut stop: watch::Receiver<bool>,
) {
    let stage = |stage: Stage| {
        report.send_modify(|state| state.browser = stage);
    };
    if !nested_user_namespaces().await {
        journal::note(
            "luna",
            &format!("the browser's own sandbox needs nested user namespaces: {HINT}"),
        );
        stage(Stage::Failed {
            because: "its own sandbox needs nested user namespaces, and this computer was not granted them"
                .to_owned(),
            hint: Some(HINT.to_owned()),
        });
        told(&mut stop).await;
        return;
    }
    let program = Program::new("chromium", "/usr/bin/chromium")
        .arguments(FLAGS)
        .arguments([
            format!("--user-data-dir={}", place.profile.display()),
            START_PAGE.to_owned(),
        ]);
    let mut patience = Patience::default();
    while !*stop.borrow() {
        release_profile(place);
        let began = Instant::now();
        let words = match program.start(environment) {
            Ok(mut running) => {
                if !patience.lost() {
                    stage(Stage::Ready);
                }
                let recovered = async {
                    tokio::time::sleep(Patience::LONG_LIFE).await;
                    stage(Stage::Ready);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    () = running.ended() => running.last_words(),
                    () = recovered => unreachable!("it is pending for ever"),
                    () = told(&mut stop) => {
                        running.stop().await;
                        return;
                    }
                }
            }
            Err(error) => vec![error],
        };
        let pause = patience.after(began.elapsed());
        if patience.lost() {
            stage(Stage::Failed {
                because: words
                    .last()
                    .cloned()
                    .unwrap_or_else(|| "the browser keeps ending without a word".to_owned()),
                hint: None,
            });
        } else {
            stage(Stage::Starting);
        }
        tokio::select! {
            () = told(&mut stop) => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Whether a process here may make a user namespace, found out by doing it.
pub(crate) async fn nested_user_namespaces() -> bool {
    Command::new("/usr/bin/unshare")
        .args(["--user", "/bin/true"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await
        .is_ok_and(|status| status.success())
}

/// Chromium's locks name a host and a process of an earlier life; this service starts the only Chromium on the profile.
fn release_profile(place: &Place) {
    for lock in ["SingletonLock", "SingletonSocket", "SingletonCookie"] {
        let _ = std::fs::remove_file(place.profile.join(lock));
    }
}
