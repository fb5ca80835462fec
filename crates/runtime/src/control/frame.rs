//! Reading and writing control frames on a stream socket.

use std::io::{self, Read, Write};

use luna_core::{Error, Kind, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No frame is longer; data is sent in pieces of at most [`PIECE`].
const MAX: usize = 1 << 20;
pub(crate) const PIECE: usize = 64 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FrameKind {
    Request = 0,
    Ok = 1,
    Error = 2,
    Stdin = 3,
    Stdout = 4,
    Stderr = 5,
    Eof = 6,
    Resize = 7,
    Signal = 8,
    Exit = 9,
}

impl FrameKind {
    fn parse(byte: u8) -> Option<FrameKind> {
        const ALL: [FrameKind; 10] = [
            FrameKind::Request,
            FrameKind::Ok,
            FrameKind::Error,
            FrameKind::Stdin,
            FrameKind::Stdout,
            FrameKind::Stderr,
            FrameKind::Eof,
            FrameKind::Resize,
            FrameKind::Signal,
            FrameKind::Exit,
        ];
        ALL.get(usize::from(byte)).copied()
    }
}

/// Writes one frame with one system call where the socket takes it whole.
pub(crate) fn write(stream: &mut impl Write, kind: FrameKind, payload: &[u8]) -> io::Result<()> {
    debug_assert!(payload.len() <= MAX);
    let mut header = [0; 5];
    header[0] = kind as u8;
    header[1..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let mut slices = [io::IoSlice::new(&header), io::IoSlice::new(payload)];
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => io::IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

pub(crate) fn write_json(stream: &mut impl Write, kind: FrameKind, value: &impl Serialize) -> io::Result<()> {
    let payload = serde_json::to_vec(value).map_err(io::Error::other)?;
    if payload.len() > MAX {
        return Err(io::Error::other("a control message is longer than 1 MiB"));
    }
    write(stream, kind, &payload)
}

/// Reads one frame into `payload`; `None` is the end of the stream between two frames.
pub(crate) fn read(stream: &mut impl Read, payload: &mut Vec<u8>) -> io::Result<Option<FrameKind>> {
    let mut header = [0; 5];
    let mut filled = 0;
    while filled < header.len() {
        match stream.read(&mut header[filled..]) {
            Ok(0) if filled == 0 => return Ok(None),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]) as usize;
    let kind = FrameKind::parse(header[0]).ok_or(io::ErrorKind::InvalidData)?;
    if length > MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    payload.clear();
    payload.resize(length, 0);
    stream.read_exact(payload)?;
    Ok(Some(kind))
}

pub(crate) fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T> {
    serde_json::from_slice(payload)
        .map_err(|e| Error::new(Kind::Corrupt, "cannot read a control message").because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_journey_and_odd_ones_are_refused() {
        let mut wire = Vec::new();
        write(&mut wire, FrameKind::Stdout, b"hello").unwrap();
        write(&mut wire, FrameKind::Eof, b"").unwrap();
        let mut reader = &wire[..];
        let mut payload = Vec::new();
        assert_eq!(read(&mut reader, &mut payload).unwrap(), Some(FrameKind::Stdout));
        assert_eq!(payload, b"hello");
        assert_eq!(read(&mut reader, &mut payload).unwrap(), Some(FrameKind::Eof));
        assert_eq!(read(&mut reader, &mut payload).unwrap(), None);
        for bad in [
            &[10, 0, 0, 0, 0][..],
            &[0, 255, 255, 255, 255],
            &[0, 1, 0],
            &[0, 2, 0, 0, 0, b'x'],
        ] {
            assert!(read(&mut &bad[..], &mut payload).is_err(), "{bad:?}");
        }
    }
}
