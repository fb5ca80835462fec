//! What host and init say to each other: frames on one reliable byte stream, many streams in it.
//!
//! ```text
//! frame    stream: u32 LE | length: 24 bits LE | kind: u8 | payload (length bytes, at most 64 KiB)
//!
//! kind     0 message  a postcard value; its type follows from who sends it and what the stream is for
//!          1 part     the beginning of a message longer than a frame; host only; the rest follows at once
//!          2 data     bytes, never none; costs credit
//!          3 end      the sender's direction is complete
//!          4 credit   u32 LE: the receiver of a direction lets its sender send so many bytes more
//!          5 stop     the receiver of a direction wants no more of it
//!          6 reset    the sender's direction broke off and is not complete
//! ```
//!
//! Stream 0 carries one [`Hello`] each way, the host's first, and nothing after. Every other stream is opened by the
//! host with a [`Request`]; ids rise strictly, so none is used twice in a session. A process without a terminal takes
//! two ids: its own for standard input and output and the next one for standard error. Init answers with [`Reply`]s:
//!
//! ```text
//! Start, Exec        Started, then Exited after the last byte of output   data: stdin in, stdout out
//! Connect            Done                                                 data: both ways
//! Accept             Done, when somebody has connected inside             data: both ways
//! CopyIn             Done, then Done when the archive is unpacked         data: tar in
//! CopyOut            Done                                                 data: tar out; ends in `reset` after Failed
//! Processes          Done                                                 data: a postcard `GuestProcess` after another
//! Measure            Done                                                 data: one postcard `Surroundings`
//! Stat               Found
//! Signal, Resize     Done
//! anything           Failed in place of any reply; it is the last
//! ```
//!
//! Flow control is per stream and direction: each starts with a credit of [`WINDOW`] bytes, and only data costs. So a
//! reader that stands still blocks its own stream and no other, and messages always pass.
//!
//! Bounds: a payload is at most [`MAX_PAYLOAD`], an assembled message at most [`MAX_MESSAGE`], open streams at init at
//! most [`MAX_STREAMS`], the last [`RESERVED_STREAMS`] for processes alone. Frames for a stream that is over are ignored,
//! since the two ends learn of it at different times; a frame for a stream never opened, a wrong length, an unknown kind,
//! data beyond the credit or a reply nobody waits for ends the session.

mod frame;
pub mod machine;
mod message;
pub mod standalone;

pub use frame::{Body, Decoder, Frame, FrameKind, HEADER, MAX_PAYLOAD, Violation, WINDOW, header};
pub use message::{
    Attempt, Failure, FileKind, FileStatus, GuestProcess, Hello, MAX_ATTEMPTS, MAX_MESSAGE, MAX_STREAMS,
    Ownership, RESERVED_STREAMS, Reply, Request, Scope, Seen, Stage, Surroundings, VERSION, decode, encode,
};
