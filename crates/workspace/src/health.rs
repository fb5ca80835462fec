//! The image's health check, so that it needs no other program: one request to a running service.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// Less than the health check's own timeout (images/agent/Dockerfile), so that what is wrong gets said.
const PATIENCE: Duration = Duration::from_secs(10);

/// `address` is where it listens, if not everywhere.
pub fn check(address: Option<IpAddr>, port: u16) -> Result<(), String> {
    let address = address
        .filter(|address| !address.is_unspecified())
        .unwrap_or(Ipv4Addr::LOCALHOST.into());
    let ask = || -> std::io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.take(4096).read_to_end(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| format!("cannot ask port {port}: {error}"))?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        Ok(())
    } else {
        Err(format!("cannot find a healthy service on port {port}"))
    }
}
