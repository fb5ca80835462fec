//! Xvnc: the X server that is also the VNC server, on a unix socket.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::child::{Environment, Program, Running};
use super::place::{Place, forget_dead_displays};
use super::xauthority;
use crate::settings::Geometry;

/// A screen that accepts connections.
#[derive(Debug)]
pub(super) struct Screen {
    pub(super) server: Running,
    /// `:0`.
    pub(super) display: String,
}

/// A second here; a minute on a busy machine that emulates its processor.
const PATIENCE: Duration = Duration::from_secs(90);

/// Returns when Xvnc accepts, which it says by writing the display's number to its `-displayfd`.
pub(super) async fn start(place: &Place, geometry: Geometry) -> Result<Screen, String> {
    forget_dead_displays();
    let socket = place.screen_socket();
    let _ = std::fs::remove_file(&socket);
    xauthority::write(&place.x_authority()).map_err(|error| format!("cannot write the X cookie: {error}"))?;

    let size = format!("{}x{}", geometry.width, geometry.height);
    let (socket, cookie) = (
        socket.display().to_string(),
        place.x_authority().display().to_string(),
    );
    let mut server = Program::new("xvnc", "/usr/bin/Xtigervnc")
        .arguments([
            "-displayfd",
            "1",
            "-geometry",
            &size,
            "-depth",
            "24",
            "-dpi",
            "96",
        ])
        // `local` is the abstract socket; the one in /tmp/.X11-unix stays.
        .arguments(["-auth", &cookie, "-nolisten", "tcp", "-nolisten", "local"])
        .arguments(["-rfbport", "-1", "-rfbunixpath", &socket, "-rfbunixmode", "0600"])
        // Who may speak RFB is decided before the socket: by its permissions and by the service's sessions.
        .arguments(["-SecurityTypes", "None", "-AlwaysShared", "-AcceptSetDesktopSize"])
        .arguments(["-desktop", "Luna", "-FrameRate", "60", "-Log", "*:stderr:10"])
        .announcing()
        .start(&Environment::base(place))?;
    let mut ready = BufReader::new(server.take_stdout().ok_or("cannot hear from Xvnc")?);
    let mut number = String::new();
    let said = tokio::time::timeout(PATIENCE, ready.read_line(&mut number)).await;
    let number = number.trim();
    if matches!(said, Ok(Ok(1..))) && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) {
        Ok(Screen {
            server,
            display: format!(":{number}"),
        })
    } else {
        let because = server
            .last_words()
            .pop()
            .unwrap_or_else(|| "it says nothing".to_owned());
        Err(format!("cannot start the screen: {because}"))
    }
}
