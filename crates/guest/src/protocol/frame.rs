//! Frames: eight bytes of header and a bounded payload. The format is in [`crate::protocol`].

use std::fmt;

/// Bytes of a frame's header.
pub const HEADER: usize = 8;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Bytes that may be under way on one stream in one direction.
pub const WINDOW: u32 = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    Message,
    Part,
    Data,
    End,
    Credit,
    Stop,
    Reset,
}

/// A frame as it lies in the decoder's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub stream: u32,
    pub body: Body<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body<'a> {
    Message(&'a [u8]),
    Part(&'a [u8]),
    /// Never empty.
    Data(&'a [u8]),
    End,
    /// 1 to [`WINDOW`].
    Credit(u32),
    Stop,
    Reset,
}

/// What the peer did that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation(pub &'static str);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Violation {}

/// The header of a frame whose payload has `length` bytes, at most [`MAX_PAYLOAD`].
pub fn header(stream: u32, kind: FrameKind, length: usize) -> [u8; HEADER] {
    debug_assert!(length <= MAX_PAYLOAD);
    let stream = stream.to_le_bytes();
    let word = (length as u32 | (kind as u32) << 24).to_le_bytes();
    [
        stream[0], stream[1], stream[2], stream[3], word[0], word[1], word[2], word[3],
    ]
}

fn parse_header(bytes: [u8; HEADER]) -> Result<(u32, FrameKind, usize), Violation> {
    let [s0, s1, s2, s3, w0, w1, w2, kind] = bytes;
    let stream = u32::from_le_bytes([s0, s1, s2, s3]);
    let length = u32::from_le_bytes([w0, w1, w2, 0]) as usize;
    let (kind, fits) = match kind {
        0 => (FrameKind::Message, length <= MAX_PAYLOAD),
        1 => (FrameKind::Part, (1..=MAX_PAYLOAD).contains(&length)),
        2 => (FrameKind::Data, (1..=MAX_PAYLOAD).contains(&length)),
        3 => (FrameKind::End, length == 0),
        4 => (FrameKind::Credit, length == 4),
        5 => (FrameKind::Stop, length == 0),
        6 => (FrameKind::Reset, length == 0),
        _ => return Err(Violation("a frame of unknown kind")),
    };
    if fits {
        Ok((stream, kind, length))
    } else {
        Err(Violation("a frame of impossible length"))
    }
}

/// Finds frames in a byte stream, in one buffer of fixed size: read into [`Decoder::space`], say how much with
/// [`Decoder::filled`], then take frames until there is none.
#[derive(Debug)]
pub struct Decoder {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// Room for two of the longest frames, so that a read that ends inside one still brings plenty.
    const CAPACITY: usize = 2 * (HEADER + MAX_PAYLOAD);

    pub fn new() -> Decoder {
        Decoder {
            buffer: vec![0; Decoder::CAPACITY].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Where the next bytes go; never empty once [`Decoder::next`] has said `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 && self.buffer.len() - self.end < HEADER + MAX_PAYLOAD {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes of [`Decoder::space`] were filled.
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next whole frame, or `None` where more bytes are needed. After a violation the stream is lost.
    #[allow(clippy::should_implement_trait)] // it lends from the buffer, which an iterator cannot
    pub fn next(&mut self) -> Result<Option<Frame<'_>>, Violation> {
        let available = &self.buffer[self.start..self.end];
        let Some(bytes) = available.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (stream, kind, length) = parse_header(*bytes)?;
        let Some(payload) = available.get(HEADER..HEADER + length) else {
            return Ok(None);
        };
        let body = match kind {
            FrameKind::Message => Body::Message(payload),
            FrameKind::Part => Body::Part(payload),
            FrameKind::Data => Body::Data(payload),
            FrameKind::End => Body::End,
            FrameKind::Credit => {
                let amount = payload
                    .first_chunk()
                    .map_or(0, |bytes| u32::from_le_bytes(*bytes));
                if !(1..=WINDOW).contains(&amount) {
                    return Err(Violation("a credit of impossible size"));
                }
                Body::Credit(amount)
            }
            FrameKind::Stop => Body::Stop,
            FrameKind::Reset => Body::Reset,
        };
        self.start += HEADER + length;
        Ok(Some(Frame { stream, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wire(stream: u32, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let mut bytes = header(stream, kind, payload.len()).to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[test]
    fn the_format_is_as_specified() {
        assert_eq!(
            wire(0x0102, FrameKind::Data, b"hi"),
            [2, 1, 0, 0, 2, 0, 0, 2, b'h', b'i']
        );
        assert_eq!(
            header(1, FrameKind::Message, MAX_PAYLOAD),
            [1, 0, 0, 0, 0, 0, 1, 0]
        );
    }

    #[test]
    fn impossible_headers_are_violations() {
        for bytes in [
            [0, 0, 0, 0, 0, 0, 0, 7],
            [0, 0, 0, 0, 1, 0, 1, 0],
            [0, 0, 0, 0, 0, 0, 0, 2],
            [0, 0, 0, 0, 1, 0, 0, 3],
            [0, 0, 0, 0, 3, 0, 0, 4],
            [0, 0, 0, 0, 1, 0, 0, 6],
        ] {
            let mut decoder = Decoder::new();
            decoder.space()[..8].copy_from_slice(&bytes);
            decoder.filled(8);
            assert!(decoder.next().is_err(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting(
            frames in prop::collection::vec((any::<u32>(), prop::collection::vec(any::<u8>(), 1..500)), 1..20),
            cut in 1usize..1500,
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(stream, payload)| wire(*stream, FrameKind::Data, payload)).collect();
            let mut decoder = Decoder::new();
            let mut seen = Vec::new();
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let space = decoder.space();
                let count = cut.min(space.len()).min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                decoder.filled(count);
                rest = &rest[count..];
                while let Some(frame) = decoder.next().unwrap() {
                    let Body::Data(payload) = frame.body else { panic!("{frame:?}") };
                    seen.push((frame.stream, payload.to_vec()));
                }
            }
            prop_assert_eq!(seen, frames);
        }

        #[test]
        fn any_bytes_are_frames_or_a_violation(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let mut decoder = Decoder::new();
            decoder.space()[..bytes.len()].copy_from_slice(&bytes);
            decoder.filled(bytes.len());
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
