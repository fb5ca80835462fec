//! The three things that bytes are sent into: a stream of init's, a system's console, a connection to a system's port.

use std::io::{self, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

use luna_guest::session::StreamWriter;
use luna_network::ports::Inward;

/// A stream that init carries; finishing it consumes the stream's writer.
pub(crate) struct IntoSandbox(pub(crate) Option<StreamWriter>);

impl Write for IntoSandbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.as_mut().ok_or(io::ErrorKind::BrokenPipe)?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inward for IntoSandbox {
    fn finish(&mut self) -> io::Result<()> {
        match self.0.take() {
            Some(writer) => writer.finish(),
            None => Ok(()),
        }
    }
}

/// A serial line, which has no end while its machine has power: whoever attaches next types on.
pub(crate) struct IntoConsole(pub(crate) UnixStream);

impl Write for IntoConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inward for IntoConsole {
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection to a port of a system's; one that is dropped before its end was said breaks off in both directions.
pub(crate) struct IntoPort {
    stream: TcpStream,
    finished: bool,
}

impl IntoPort {
    pub(crate) fn new(stream: TcpStream) -> IntoPort {
        IntoPort {
            stream,
            finished: false,
        }
    }
}

impl Write for IntoPort {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Inward for IntoPort {
    fn finish(&mut self) -> io::Result<()> {
        self.finished = true;
        self.stream.shutdown(Shutdown::Write)
    }
}

impl Drop for IntoPort {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
    }
}
