//! Trees into the sandbox.

use std::io::{self, Write};

use luna_core::{Error, Result};

use crate::protocol::Reply;

use super::explain;
use super::link::Handle;
use super::stream::StreamWriter;

/// Takes a tar archive as it is written and unpacks it inside. Dropped without [`CopyIn::finish`], the rest is left
/// out; what was unpacked stays.
#[derive(Debug)]
pub struct CopyIn {
    writer: StreamWriter,
    stream: Handle,
    directory: String,
}

impl CopyIn {
    pub(super) fn new(stream: Handle, directory: &str) -> CopyIn {
        CopyIn {
            writer: StreamWriter::new(&stream),
            stream,
            directory: directory.to_owned(),
        }
    }

    /// Ends the archive and waits until all of it is unpacked, however long that takes. Call it too where a write failed:
    /// it knows why.
    pub fn finish(self) -> Result<()> {
        let explained = |error: Error| error.context(message(&self.directory));
        let finished = self.writer.finish();
        match self.stream.wait_reply(None).map_err(explained)? {
            Reply::Done => finished.map_err(|error| Error::io(message(&self.directory), error)),
            Reply::Failed(failure) => Err(explained(explain::path(&failure, &self.directory))),
            _ => Err(self.stream.link().close(Some("a reply out of place"))),
        }
    }
}

fn message(directory: &str) -> String {
    format!("cannot copy into `{}` of the sandbox", directory.escape_debug())
}

impl Write for CopyIn {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.writer.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
