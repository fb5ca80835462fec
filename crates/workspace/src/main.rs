//! `luna-workspace`: see the library for what it is.

use std::process::ExitCode;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use workspace::access::{Access, token::Token};
use workspace::desktop::{Desktop, State};
use workspace::facts::Told;
use workspace::settings::Settings;
use workspace::web::{self, Computer};
use workspace::{health, journal};

const HELP: &str = "\
luna-workspace: the service on port 8080 inside Luna's image

Usage: luna-workspace [serve]     run the desktop and the page
       luna-workspace health      exit 0 if a running service answers, for HEALTHCHECK
       luna-workspace --version

Environment:
  LUNA_TOKEN           the bearer token, at least 16 bytes; or
  LUNA_TOKEN_FILE      a file that holds it, which programs on the desktop must not be able to read later: prefer LUNA_TOKEN;
                       with neither, one is made and a URL with a ticket is logged
  LUNA_WALL            container | vm: the wall this computer stands behind, told by whoever started it
  LUNA_ACCELERATOR     kvm | tcg, where the wall is a vm
  LUNA_VERSION         the version of Luna outside
  LUNA_NAME            what the sandbox is called outside
  LUNA_ALLOWED_HOSTS   more names the page may be asked under, by comma; localhost and loopback always are
  LUNA_ADDRESS         the one address to listen on; every one of this machine where unset
  LUNA_PORT            8080
  LUNA_GEOMETRY        1280x800
";

fn main() -> ExitCode {
    // Before the environment is read and before anything else runs under this uid: from here on /proc/self/environ, /proc/self/mem,
    // /proc/self/fd and ptrace are closed to other processes of the same user (proc(5), ptrace(2)).
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        return fail(&format!("cannot hide the token from other processes: {error}"));
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["serve"] => serve(),
        ["health"] => match Settings::from_environment()
            .and_then(|settings| health::check(settings.address, settings.port))
        {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        ["--version"] => {
            journal::raw(&format!("luna-workspace {}\n", env!("CARGO_PKG_VERSION")));
            ExitCode::SUCCESS
        }
        ["--help" | "-h"] => {
            journal::raw(HELP);
            ExitCode::SUCCESS
        }
        _ => {
            journal::raw(HELP);
            ExitCode::from(2)
        }
    }
}

fn fail(error: &str) -> ExitCode {
    journal::note("luna", &format!("error: {error}"));
    ExitCode::FAILURE
}

fn serve() -> ExitCode {
    let settings = match Settings::from_environment() {
        Ok(settings) => settings,
        Err(error) => return fail(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => match runtime.block_on(run(settings)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&error),
        },
        Err(error) => fail(&format!("cannot start threads: {error}")),
    }
}

async fn run(settings: Settings) -> Result<(), String> {
    let signals = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
    let mut terminate = signals(SignalKind::terminate())?;
    let mut interrupt = signals(SignalKind::interrupt())?;

    let (token, generated) = match settings.token {
        Some(token) => (token, false),
        None => (Token::generate(), true),
    };
    let access = Access::new(token, settings.allowed_hosts);
    let (report, desktop_state) = watch::channel(State::default());
    let desktop = Desktop::prepare(settings.geometry)?;
    let computer = Computer::new(
        access,
        Told {
            wall: settings.wall,
            accelerator: settings.accelerator,
            luna: settings.version,
            name: settings.name,
        },
        desktop_state,
        desktop.screen_socket(),
    );

    let listeners = web::listen::bind(settings.address, settings.port).await?;
    journal::note("luna", &format!("listening on port {}", settings.port));
    if generated {
        let ticket = computer.access.issue_ticket(Access::FIRST_TICKET);
        journal::note(
            "luna",
            &format!(
                "no LUNA_TOKEN given: open http://127.0.0.1:{}/?ticket={ticket} (once, within {} minutes)",
                settings.port,
                Access::FIRST_TICKET.as_secs() / 60
            ),
        );
    }
    let serving = web::listen::serve(listeners, web::router(computer));
    let (stop, stopped) = watch::channel(false);
    let desktop = tokio::spawn(desktop.run(report, stopped));
    tokio::select! {
        () = serving => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // Chromium writes its profile on SIGTERM; killing it outright would lose the last seconds.
    stop.send_replace(true);
    desktop
        .await
        .map_err(|error| format!("cannot stop the desktop: {error}"))
}
