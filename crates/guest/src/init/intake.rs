//! The order of frames from the host: hello first, then requests on rising streams, then whatever belongs to them. No
//! I/O, so that any bytes can be tried.

use crate::protocol::{Body, Decoder, Frame, Hello, MAX_MESSAGE, Request, VERSION, Violation, decode};

#[derive(Debug, Default)]
pub(super) struct Intake {
    greeted: bool,
    /// The highest stream that is or was open.
    last: u32,
    /// The beginning of a request whose rest is still to come, and its stream.
    parts: Vec<u8>,
    partial: Option<u32>,
}

/// What a frame means.
#[derive(Debug)]
pub(super) enum Heard<'a> {
    Hello,
    /// More of it is to come.
    Part,
    Request(u32, Request),
    /// For a stream that was opened, but may be over: data, end, credit, stop or reset.
    Stream(u32, Body<'a>),
}

impl Intake {
    pub(super) fn take<'a>(&mut self, frame: Frame<'a>) -> Result<Heard<'a>, Violation> {
        let Frame { stream, body } = frame;
        if !self.greeted || stream == 0 {
            return self.greet(stream, body);
        }
        if self.partial.is_some_and(|open| open != stream) {
            return Err(Violation("a frame between the parts of a message"));
        }
        match body {
            Body::Part(bytes) => {
                self.append(stream, bytes)?;
                self.partial = Some(stream);
                Ok(Heard::Part)
            }
            Body::Message(bytes) => {
                self.append(stream, bytes)?;
                self.partial = None;
                let request = decode(&std::mem::take(&mut self.parts))?;
                self.last = stream + u32::from(takes_two(&request) && stream < u32::MAX);
                Ok(Heard::Request(stream, request))
            }
            _ if stream > self.last || self.partial.is_some() => {
                Err(Violation("a frame for a stream that was never opened"))
            }
            body => Ok(Heard::Stream(stream, body)),
        }
    }

    fn greet<'a>(&mut self, stream: u32, body: Body<'a>) -> Result<Heard<'a>, Violation> {
        let Body::Message(bytes) = body else {
            return Err(Violation("no hello"));
        };
        if stream != 0 || self.greeted {
            return Err(Violation("a message out of place"));
        }
        let hello: Hello = decode(bytes)?;
        if hello.version != VERSION {
            return Err(Violation("a hello of another version"));
        }
        self.greeted = true;
        Ok(Heard::Hello)
    }

    /// Only a new stream brings a message.
    fn append(&mut self, stream: u32, bytes: &[u8]) -> Result<(), Violation> {
        if stream <= self.last || self.parts.len() + bytes.len() > MAX_MESSAGE {
            return Err(Violation("a message on an open stream, or one too long"));
        }
        self.parts.extend_from_slice(bytes);
        Ok(())
    }
}

/// A process without a terminal has a stream of its own for standard error.
fn takes_two(request: &Request) -> bool {
    match request {
        Request::Start(process) | Request::Exec(process) => process.terminal.is_none(),
        _ => false,
    }
}

/// Feeds `bytes` to init's side as if the host had said them, without doing any of it; returns how many requests were
/// understood. For fuzzing: no bytes may panic or make init keep more than one message.
pub fn absorb(bytes: &[u8]) -> Result<usize, Violation> {
    let mut intake = Intake::default();
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    let mut requests = 0;
    loop {
        while let Some(frame) = decoder.next()? {
            if let Heard::Request(..) = intake.take(frame)? {
                requests += 1;
            }
            assert!(intake.parts.len() <= MAX_MESSAGE, "a message beyond the bound");
        }
        if rest.is_empty() {
            return Ok(requests);
        }
        let space = decoder.space();
        let count = space.len().min(rest.len());
        space[..count].copy_from_slice(&rest[..count]);
        decoder.filled(count);
        rest = &rest[count..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FrameKind, encode, header};
    use proptest::prelude::*;

    fn wire(stream: u32, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&header(stream, kind, payload.len())[..], payload].concat()
    }

    fn hello() -> Vec<u8> {
        wire(0, FrameKind::Message, &encode(&Hello { version: VERSION }))
    }

    fn request(stream: u32) -> Vec<u8> {
        wire(stream, FrameKind::Message, &encode(&Request::Processes))
    }

    #[test]
    fn order_is_kept() {
        let end = |stream| wire(stream, FrameKind::End, &[]);
        let part = |stream, bytes: &[u8]| wire(stream, FrameKind::Part, bytes);
        let split = {
            let whole = encode(&Request::Stat {
                path: "/etc".to_owned(),
                follow: true,
            });
            [part(9, &whole[..2]), wire(9, FrameKind::Message, &whole[2..])].concat()
        };
        let old = wire(0, FrameKind::Message, &encode(&Hello { version: VERSION + 1 }));
        for (frames, expected) in [
            (vec![hello(), request(1), request(7), end(1), split], Some(3)),
            (vec![request(1)], None),
            (vec![old], None),
            (vec![hello(), hello()], None),
            (vec![hello(), request(2), request(2)], None),
            (vec![hello(), request(2), request(1)], None),
            (vec![hello(), end(1)], None),
            (vec![hello(), end(0)], None),
            (vec![hello(), part(1, b"x"), request(2)], None),
            (vec![hello(), request(1), part(2, b"x"), end(1)], None),
            (vec![hello(), wire(1, FrameKind::Message, b"\xff")], None),
        ] {
            assert_eq!(absorb(&frames.concat()).ok(), expected, "{frames:?}");
        }
    }

    #[test]
    fn a_message_has_a_bound() {
        let part = wire(1, FrameKind::Part, &vec![0; 64 * 1024]);
        let mut bytes = hello();
        for _ in 0..16 {
            bytes.extend_from_slice(&part);
        }
        assert_eq!(absorb(&bytes), Ok(0));
        bytes.extend_from_slice(&part);
        assert!(absorb(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_obeyed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            let _ = absorb(&bytes);
            let _ = absorb(&[hello(), bytes].concat());
        }
    }
}
