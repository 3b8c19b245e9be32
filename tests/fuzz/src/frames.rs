//! The control channel between keeper and PID 1: both readers of frames understand the same, and what is read
//! is the same when it is written and read again.

use std::fmt::Debug;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, Write};

use cachot::keeper::frames::{Incoming, Outgoing};
use cachot_control::{
    FrameError, MAX_FRAME, StreamHeader, ToGuest, ToHost, read_frame, write_frame,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most bytes that arrive at once: what the keeper reads at once.
const CHUNK: usize = 4096;

/// First who reads, then how much arrives at once, then the bytes of a connection.
///
/// # Panics
/// Where a promise is broken.
pub fn run(input: &[u8]) -> bool {
    let [reader, chunk, wire @ ..] = input else {
        return false;
    };
    let chunk = 1 + usize::from(*chunk) * CHUNK / 256;
    match reader % 3 {
        0 => read_both::<ToHost>(wire, chunk),
        1 => read_both::<ToGuest>(wire, chunk),
        _ => read_both::<StreamHeader>(wire, chunk),
    }
}

fn read_both<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    wire: &[u8],
    chunk: usize,
) -> bool {
    let mut rest = wire;
    let mut messages = Vec::new();
    let end = loop {
        match read_frame::<T>(&mut rest) {
            Ok(message) => messages.push(message),
            Err(error) => break error,
        }
    };
    for message in &messages {
        let mut frame = Vec::new();
        write_frame(&mut frame, message).expect("it was read from a frame");
        let again = read_frame::<T>(&mut frame.as_slice()).expect("it was just written");
        assert_eq!(again, *message);
    }
    arrive(wire, chunk, &messages, &end);
    send(&messages);
    !messages.is_empty()
}

/// The keeper's reader, which does not wait.
fn arrive<T: DeserializeOwned + PartialEq + Debug>(
    wire: &[u8],
    chunk: usize,
    messages: &[T],
    end: &FrameError,
) {
    let (reader, mut writer): (PipeReader, PipeWriter) = std::io::pipe().expect("a pipe");
    let mut incoming = Incoming::new(MAX_FRAME);
    let mut expected = messages.iter();
    for bytes in wire.chunks(chunk) {
        writer.write_all(bytes).expect("it fits the pipe");
        assert!(incoming.fill(&reader));
        loop {
            match incoming.next::<T>() {
                Ok(Some(message)) => assert_eq!(Some(&message), expected.next()),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(expected.next(), None);
                    assert_eq!(error.to_string(), end.to_string());
                    return;
                }
            }
        }
    }
    assert_eq!(expected.next(), None);
    assert!(
        matches!(end, FrameError::Closed | FrameError::Io(_)),
        "{end}"
    );
    assert_eq!(
        incoming.rest().is_empty(),
        matches!(end, FrameError::Closed)
    );
}

/// The keeper's writer.
fn send<T: Serialize>(messages: &[T]) {
    let sink = File::options()
        .write(true)
        .open("/dev/null")
        .expect("it can be written to");
    let mut outgoing = Outgoing::default();
    for message in messages {
        outgoing.push(message).expect("it was read from a frame");
    }
    while outgoing.pending() {
        outgoing.flush(&sink);
    }
}
