//! Listening and serving HTTP/1.1, with bounds on how many connect and how slowly they may speak.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// At once, WebSockets included. The next one waits in the kernel's queue.
const CONNECTIONS: usize = 256;
/// For a request's head, and for an idle connection.
const HEAD: Duration = Duration::from_secs(15);
const HEAD_BYTES: usize = 32 * 1024;

/// One address, or every one of both families, or of IPv4 where there is no IPv6.
pub async fn bind(address: Option<IpAddr>, port: u16) -> Result<Vec<TcpListener>, String> {
    let cannot = |error: io::Error| format!("cannot listen on port {port}: {error}");
    if let Some(address) = address {
        return TcpListener::bind((address, port))
            .await
            .map(|one| vec![one])
            .map_err(|error| format!("cannot listen on `{}`: {error}", SocketAddr::new(address, port)));
    }
    let six = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await;
    let four = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await;
    match (six, four) {
        (Ok(six), Ok(four)) => Ok(vec![six, four]),
        (Err(_), Ok(four)) => Ok(vec![four]),
        // `[::]` already takes IPv4 along, unless the system says otherwise (ipv6(7), IPV6_V6ONLY).
        (Ok(six), Err(error)) if error.kind() == io::ErrorKind::AddrInUse => Ok(vec![six]),
        (_, Err(error)) => Err(cannot(error)),
    }
}

/// Serves until dropped.
pub async fn serve(listeners: Vec<TcpListener>, router: Router) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut listeners = listeners.into_iter();
    let accept = async |listener: TcpListener| {
        loop {
            let Ok(seat) = Arc::clone(&room).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let router = router.clone();
                    tokio::spawn(async move {
                        let _ = converse(stream, router).await;
                        drop(seat);
                    });
                }
                // A peer that left at once, or no file descriptors: the next attempt must not spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    };
    match (listeners.next(), listeners.next()) {
        (Some(one), Some(other)) => {
            tokio::join!(accept(one), accept(other));
        }
        (Some(one), None) => accept(one).await,
        (None, _) => {}
    }
}

async fn converse(stream: TcpStream, router: Router) -> Result<(), hyper::Error> {
    // Pointer movements are tiny; each waits for nothing.
    let _ = stream.set_nodelay(true);
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        .with_upgrades()
        .await
}
