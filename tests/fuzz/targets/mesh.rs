//! The wire format between nodes: frames do not depend on how the bytes are cut, and what is read from a
//! frame is written again as it was, so that everything has one form.

use bytes::Bytes;
use gridcast::mesh::wire::{
    Control, FrameReader, WireError, batch_number, begin_batch, end_batch, messages, put_control,
    put_message, read_control,
};

use super::input::{Input, pieces};

/// Lengths of pieces, `c` for the control lane or `d` for one with data, then what comes on it.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let lengths = input.lengths();
    let is_control = input.byte() & 1 == 1;
    let whole = frames(&pieces(input.0, &[]));
    assert_eq!(frames(&pieces(input.0, &lengths)), whole, "in pieces of {lengths:?}");
    assert_eq!(frames(&pieces(input.0, &[1])), whole, "byte by byte");
    for frame in &whole.0 {
        match is_control {
            true => check_control(frame),
            false => check_batch(frame),
        }
    }
}

fn frames(pieces: &[&[u8]]) -> (Vec<Bytes>, Option<WireError>) {
    let mut reader = FrameReader::default();
    let mut frames = Vec::new();
    for piece in pieces {
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.next_frame() {
                Ok(None) => break,
                Ok(Some(frame)) => frames.push(frame),
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

fn check_control(frame: &[u8]) {
    let Ok(control) = read_control(frame) else { return };
    let mut out = Vec::new();
    put_control(&mut out, &control);
    assert_eq!(read_control(&out[4..]).as_ref(), Ok(&control));
    match control {
        // What a newer version says behind it is lost.
        Control::Hello(_) => assert!(frame.starts_with(&out[4..])),
        _ => assert_eq!(frame, &out[4..], "{control:?}"),
    }
}

fn check_batch(frame: &[u8]) {
    let Ok(number) = batch_number(frame) else {
        let read: Vec<_> = messages(frame).map(|message| message.err()).collect();
        return assert_eq!(read, [Some(WireError::Truncated)]);
    };
    let mut out = Vec::new();
    begin_batch(&mut out);
    let mut failed = false;
    for message in messages(frame) {
        assert!(!failed, "an error is the last item");
        match message {
            Ok(message) => put_message(&mut out, &message),
            Err(error) => failed = !error.to_string().is_empty(),
        }
    }
    end_batch(&mut out, number);
    match failed {
        true => assert!(frame.starts_with(&out[4..])),
        false => assert_eq!(frame, &out[4..]),
    }
}
