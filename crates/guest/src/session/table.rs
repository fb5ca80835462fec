//! What the host keeps of every stream and how a frame of init's changes it: no I/O, so that any bytes can be tried.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::protocol::{Body, Decoder, Frame, Reply, Violation, WINDOW, decode};

/// No stream gets more replies than this: `Started` and `Exited`, or `Done` twice.
const REPLIES: usize = 2;

/// The streams of a session.
#[derive(Debug, Default)]
pub(super) struct Table {
    streams: HashMap<u32, Arc<Stream>>,
    /// The highest id in use or used.
    last: u32,
    ending: Option<Ending>,
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The host closed it.
    Closed,
    /// Init is gone.
    Hangup,
    /// Init broke the protocol.
    Violation(&'static str),
}

/// One stream at the host.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    state: Mutex<State>,
    pub(super) changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    /// Came in and not yet taken by the reader.
    pub(super) inbox: VecDeque<u8>,
    /// What init may still send.
    pub(super) allowance: u32,
    pub(super) inbound: Inbound,
    /// What the host may still send.
    pub(super) credit: u32,
    /// Init wants no more.
    pub(super) stopped: bool,
    pub(super) replies: VecDeque<Reply>,
    replies_seen: usize,
    pub(super) ending: Option<Ending>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inbound {
    Open,
    Complete,
    Broken,
    /// The reader is gone: what still comes is dropped.
    Unwanted,
}

impl Stream {
    fn new(id: u32) -> Stream {
        Stream {
            id,
            state: Mutex::new(State {
                inbox: VecDeque::new(),
                allowance: WINDOW,
                inbound: Inbound::Open,
                credit: WINDOW,
                stopped: false,
                replies: VecDeque::new(),
                replies_seen: 0,
                ending: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// No code panics while it holds this lock, and the state is whole between statements; so poison means nothing.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// A new stream with the next id, unless the session is over or has used all 2³² ids.
    pub(super) fn open(&mut self) -> Result<Arc<Stream>, Ending> {
        if let Some(ending) = &self.ending {
            return Err(ending.clone());
        }
        let Some(id) = self.last.checked_add(1) else {
            return Err(Ending::Closed);
        };
        self.last = id;
        let stream = Arc::new(Stream::new(id));
        self.streams.insert(id, Arc::clone(&stream));
        Ok(stream)
    }

    pub(super) fn forget(&mut self, id: u32) {
        self.streams.remove(&id);
    }

    pub(super) fn find(&self, frame: &Frame<'_>) -> Result<Option<Arc<Stream>>, Violation> {
        if frame.stream == 0 || frame.stream > self.last {
            return Err(Violation("a frame for a stream that was never opened"));
        }
        Ok(self.streams.get(&frame.stream).cloned())
    }

    /// Tells every stream; the first ending stays.
    pub(super) fn end(&mut self, ending: Ending) -> Ending {
        if let Some(first) = &self.ending {
            return first.clone();
        }
        self.ending = Some(ending.clone());
        for stream in self.streams.values() {
            stream.state().ending = Some(ending.clone());
            stream.changed.notify_all();
        }
        ending
    }
}

impl Stream {
    /// What a frame does to its stream.
    pub(super) fn receive(&self, body: Body<'_>) -> Result<(), Violation> {
        let mut state = self.state();
        match body {
            Body::Data(bytes) => {
                if matches!(state.inbound, Inbound::Complete | Inbound::Broken) {
                    return Err(Violation("data after the end of a stream"));
                }
                state.allowance = state
                    .allowance
                    .checked_sub(bytes.len() as u32)
                    .ok_or(Violation("data beyond the credit"))?;
                if state.inbound == Inbound::Open {
                    state.inbox.extend(bytes);
                }
            }
            Body::End | Body::Reset => match state.inbound {
                Inbound::Complete | Inbound::Broken => return Err(Violation("a stream that ends twice")),
                Inbound::Unwanted => {}
                Inbound::Open if body == Body::End => state.inbound = Inbound::Complete,
                Inbound::Open => state.inbound = Inbound::Broken,
            },
            Body::Credit(amount) => {
                state.credit += amount;
                if state.credit > WINDOW {
                    return Err(Violation("more credit than the window"));
                }
            }
            Body::Stop => state.stopped = true,
            Body::Message(bytes) => {
                let reply: Reply = decode(bytes)?;
                state.replies_seen += 1;
                if state.replies_seen > REPLIES {
                    return Err(Violation("a reply nobody waits for"));
                }
                state.replies.push_back(reply);
            }
            Body::Part(_) => return Err(Violation("a message in parts")),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }
}

/// Feeds `bytes` to a session of `streams` open streams as if init had said them, and says whether the session stands.
/// For fuzzing: no bytes may panic or make the host keep more than a window and two replies per stream.
pub fn absorb(streams: u8, bytes: &[u8]) -> Result<(), Violation> {
    let mut table = Table::default();
    let mut all = Vec::new();
    for _ in 0..streams {
        all.extend(table.open());
    }
    let mut decoder = Decoder::new();
    let mut rest = bytes;
    let result = loop {
        match decoder.next() {
            Ok(Some(frame)) => {
                let found = table.find(&frame);
                if let Err(violation) =
                    found.and_then(|stream| stream.map_or(Ok(()), |stream| stream.receive(frame.body)))
                {
                    break Err(violation);
                }
            }
            Ok(None) if rest.is_empty() => break Ok(()),
            Ok(None) => {
                let space = decoder.space();
                let count = space.len().min(rest.len());
                space[..count].copy_from_slice(&rest[..count]);
                decoder.filled(count);
                rest = &rest[count..];
            }
            Err(violation) => break Err(violation),
        }
    };
    for stream in &all {
        let state = stream.state();
        assert!(state.inbox.len() <= WINDOW as usize, "an inbox beyond the window");
        assert!(state.replies.len() <= REPLIES, "replies beyond the bound");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FrameKind, encode, header};
    use proptest::prelude::*;

    fn wire(stream: u32, kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        [&header(stream, kind, payload.len())[..], payload].concat()
    }

    #[test]
    fn the_window_is_the_limit() {
        let chunk = wire(1, FrameKind::Data, &vec![0; 64 * 1024]);
        assert_eq!(absorb(1, &chunk.repeat(4)), Ok(()));
        assert!(absorb(1, &[chunk.repeat(4), wire(1, FrameKind::Data, &[0])].concat()).is_err());
    }

    #[test]
    fn two_replies_and_no_third() {
        let done = wire(2, FrameKind::Message, &encode(&Reply::Done));
        assert_eq!(absorb(2, &done.repeat(2)), Ok(()));
        assert!(absorb(2, &done.repeat(3)).is_err());
        assert!(absorb(1, &done).is_err(), "stream 2 was never opened");
    }

    /// Frames that are well formed, so that the states behind them are reached.
    fn frame() -> impl Strategy<Value = Vec<u8>> {
        let payload = prop::collection::vec(any::<u8>(), 1..600);
        prop_oneof![
            (1u32..5, payload.clone()).prop_map(|(stream, bytes)| wire(stream, FrameKind::Data, &bytes)),
            (1u32..5, payload).prop_map(|(stream, bytes)| wire(stream, FrameKind::Message, &bytes)),
            (1u32..5).prop_map(|stream| wire(stream, FrameKind::Message, &encode(&Reply::Done))),
            (1u32..5).prop_map(|stream| wire(stream, FrameKind::End, &[])),
            (1u32..5).prop_map(|stream| wire(stream, FrameKind::Stop, &[])),
            (1u32..5).prop_map(|stream| wire(stream, FrameKind::Reset, &[])),
            (1u32..5, any::<u32>()).prop_map(|(stream, amount)| wire(
                stream,
                FrameKind::Credit,
                &amount.to_le_bytes()
            )),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(streams in 0u8..5, bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _ = absorb(streams, &bytes);
        }

        #[test]
        fn any_frames_are_borne(frames in prop::collection::vec(frame(), 0..40)) {
            let _ = absorb(4, &frames.concat());
        }
    }
}
