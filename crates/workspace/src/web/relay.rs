//! The live screen: RFB between a WebSocket and Xvnc's unix socket, byte for byte in both directions.
//!
//! Each direction waits for its own receiver and for nothing else, so a slow page slows only its own screen, and Xvnc sends it
//! whole updates less often. A page that vanished without a word is noticed by the pings.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

use super::{Computer, refusal};
use crate::desktop::Stage;

/// The largest message of a page: RFB's are small, but for pasted text.
const MESSAGE: usize = 1 << 20;
const CHUNK: usize = 64 * 1024;
const PING: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(60);
const SEND: Duration = Duration::from_secs(30);

/// `GET /ws/screen`.
pub(super) async fn screen(Shared(computer): Shared<Arc<Computer>>, upgrade: WebSocketUpgrade) -> Response {
    let unavailable = |why| {
        refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            why,
            Some("try again in a second"),
        )
    };
    let Ok(seat) = Arc::clone(&computer.viewers).try_acquire_owned() else {
        return unavailable("too many people watch this screen");
    };
    if computer.desktop.borrow().screen != Stage::Ready {
        return unavailable("the screen is not there yet");
    }
    let Ok(screen) = UnixStream::connect(&computer.screen_socket).await else {
        return unavailable("the screen does not answer");
    };
    upgrade
        .protocols(["binary"])
        .max_message_size(MESSAGE)
        .max_frame_size(MESSAGE)
        .on_upgrade(async move |page| {
            relay(page, screen).await;
            drop(seat);
        })
}

async fn relay(page: WebSocket, screen: UnixStream) {
    let (mut to_page, mut from_page) = page.split();
    let (mut from_screen, mut to_screen) = screen.into_split();

    let outward = async {
        let mut chunk = vec![0; CHUNK];
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        loop {
            let message = tokio::select! {
                read = from_screen.read(&mut chunk) => match read {
                    Ok(count @ 1..) => Message::Binary(Bytes::copy_from_slice(&chunk[..count])),
                    _ => break,
                },
                _ = ping.tick() => Message::Ping(Bytes::new()),
            };
            if !matches!(timeout(SEND, to_page.send(message)).await, Ok(Ok(()))) {
                break;
            }
        }
        let _ = timeout(Duration::from_secs(1), to_page.close()).await;
    };
    let inward = async {
        while let Ok(Some(Ok(message))) = timeout(SILENCE, from_page.next()).await {
            match message {
                Message::Binary(bytes) => {
                    if to_screen.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
                Message::Close(_) => break,
                Message::Text(_) | Message::Ping(_) | Message::Pong(_) => {}
            }
        }
    };
    tokio::select! {
        () = outward => {}
        () = inward => {}
    }
}
