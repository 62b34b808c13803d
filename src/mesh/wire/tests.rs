mod samples;

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::address::ClientId;
use crate::address::remote::Remote;
use crate::message::{ClientCommand, ClientReply, FromConsumer, MessageNumber, PopId, Terms};
use crate::protocol::api::{Code, Fault, Function};
use samples::{all_messages, answer, ask, controls, from_consumer, hello};

/// A frame of the control lane without its length.
fn control_frame(control: &Control) -> Vec<u8> {
    let mut out = Vec::new();
    put_control(&mut out, control);
    out.split_off(4)
}

/// The frame of a batch of these, without its length.
fn batch_frame<'m>(messages: impl IntoIterator<Item = &'m AddressedMessage>) -> Vec<u8> {
    let mut out = Vec::new();
    begin_batch(&mut out);
    for message in messages {
        put_message(&mut out, message);
    }
    end_batch(&mut out, BatchNumber(77));
    out.split_off(4)
}

fn read_messages(frame: &[u8]) -> Result<Vec<AddressedMessage>, WireError> {
    super::messages(frame).collect()
}

/// The error of reading a batch of one message that `change` has changed.
fn changed(message: &AddressedMessage, change: impl FnOnce(&mut Vec<u8>)) -> Option<WireError> {
    let mut frame = batch_frame([message]);
    let mut body = frame.split_off(10);
    change(&mut body);
    frame.extend(body);
    read_messages(&frame).err()
}

#[test]
fn every_control_comes_back_as_it_was() {
    for control in controls() {
        assert_eq!(read_control(&control_frame(&control)), Ok(control));
    }
}

#[test]
fn every_message_comes_back_as_it_was_and_in_its_place() {
    let messages = all_messages();
    let frame = batch_frame(&messages);
    assert_eq!(batch_number(&frame), Ok(BatchNumber(77)));
    let read = read_messages(&frame).unwrap();
    assert_eq!(read.len(), messages.len());
    for (message, sent) in read.iter().zip(&messages) {
        assert_eq!(format!("{message:?}"), format!("{sent:?}"));
    }
}

#[test]
fn the_bytes_of_messages_never_change() {
    let expected = include_str!("batch.hex").lines().filter(|line| !line.starts_with('#'));
    let messages = all_messages();
    assert_eq!(expected.clone().count(), messages.len());
    for (message, expected) in messages.iter().zip(expected) {
        let bytes = batch_frame([message]).split_off(8);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected, "{message:?}");
    }
}

#[test]
fn the_mesh_and_shards_are_sent_messages_of_their_own() {
    for message in all_messages() {
        let mut frame = batch_frame([&message]);
        let other = match message {
            AddressedMessage::Shard(..) => Lane::Mesh,
            AddressedMessage::Mesh(_) => Lane::Shard(ShardId(3)),
        };
        frame[8..10].copy_from_slice(&other.number().to_le_bytes());
        let error = read_messages(&frame).err();
        assert!(matches!(error, Some(WireError::Unknown(_))), "{message:?}: {error:?}");
    }
}

#[test]
fn a_cut_frame_is_truncated() {
    for control in controls() {
        let frame = control_frame(&control);
        for end in 0..frame.len() {
            assert_eq!(read_control(&frame[..end]), Err(WireError::Truncated), "{control:?}");
        }
    }
    for message in all_messages() {
        let frame = batch_frame([&message]);
        assert_eq!(read_messages(&frame[..7]).err(), Some(WireError::Truncated));
        for end in 9..frame.len() {
            let error = read_messages(&frame[..end]).err();
            assert_eq!(error, Some(WireError::Truncated), "{message:?}, {end}");
        }
    }
}

#[test]
fn trailing_data_is_an_error_except_after_a_hello() {
    for control in controls() {
        let mut frame = control_frame(&control);
        frame.push(0);
        let read = match control {
            Control::Hello(_) => Ok(control),
            _ => Err(WireError::Trailing),
        };
        assert_eq!(read_control(&frame), read);
    }
    for message in all_messages() {
        let mut frame = batch_frame([&message]);
        frame.push(0);
        let read: Vec<_> = super::messages(&frame).map(|message| message.err()).collect();
        assert_eq!(read, [None, Some(WireError::Truncated)], "{message:?}");
    }
}

#[test]
fn hello_and_refused_never_change_their_form() {
    let form = [
        &b"\x01gridcast\x01\0\x03\0\xff\x03\x7b\x68\xe5\xcf\x8b\x01\0\0\0\x01"[..],
        b"\x04\x0a\0\0\x05\x84\x1a",
        b"\x06\xfe\x80\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x85\x1a\0\0\0\0\x07\0\0\0",
        b"\x05\0\0\x000.1.0\xff\xff\xff\xff\xff\xff\xff\xff\x05\0\0\0\0\0\0\0\x03\0\0\0",
        b"\x01\x01\x01\0\0\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\xff\0\x03\0\0\0\0\0\0\0",
    ];
    assert_eq!(control_frame(&Control::Hello(hello())), form.concat());
    assert_eq!(control_frame(&Control::Refused("no".into())), b"\x02\x02\0\0\0no");
}

#[test]
fn a_single_wrong_bit_is_an_error_or_another_message_but_never_a_panic() {
    let flips = |frame: &[u8]| -> Vec<Vec<u8>> {
        let flip = |bit: usize| {
            let mut frame = frame.to_vec();
            frame[bit / 8] ^= 1 << (bit % 8);
            frame
        };
        (0..frame.len() * 8).map(flip).collect()
    };
    for control in controls() {
        for frame in flips(&control_frame(&control)) {
            if let Ok(read) = read_control(&frame) {
                let again = control_frame(&read);
                assert!(frame.starts_with(&again), "{read:?} has two forms");
            }
        }
    }
    for message in all_messages() {
        for frame in flips(&batch_frame([&message])) {
            if let Ok(read) = read_messages(&frame) {
                let mut again = frame[..8].to_vec();
                read.iter().for_each(|message| put_message(&mut again, message));
                assert_eq!(again, frame, "{read:?} has two forms");
            }
        }
    }
}

#[test]
fn what_is_out_of_bounds_is_refused() {
    let call = |function| ask(1, ClientCommand::Call(ClientId::from_value(1), function));
    // A call's function is 29 bytes into the message, its kind included.
    let function = 1 + 8 + 11 + 1 + 8;
    let about = |message| from_consumer("t", message);
    // The part about a back end begins 15 bytes into a message about such a topic.
    let said = 1 + 2 + 1 + 11;
    let many = |count| vec!["c".into(); count];
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let set = |at: usize, byte: u8| -> Change { Box::new(move |body| body[at] = byte) };
    let keep: fn() -> Change = || Box::new(|_| ());
    let cases: [(AddressedMessage, Change, WireError); 19] = [
        (call(Function::Info), set(0, 99), WireError::Unknown(99)),
        (call(Function::Info), set(20, 9), WireError::Unknown(9)),
        (call(Function::Info), set(function, 9), WireError::Unknown(9)),
        (call(Function::Subscribe(many(1025))), keep(), WireError::OutOfBounds),
        (call(Function::Unsubscribe(many(1025))), keep(), WireError::OutOfBounds),
        (call(Function::Subscribe(vec!["".into()])), keep(), WireError::OutOfBounds),
        (call(Function::Subscribe(many(1))), set(function + 6, 0xFF), WireError::NotUtf8),
        (call(Function::Subscribe(many(1))), set(function + 4, 0xFF), WireError::OutOfBounds),
        (
            call(Function::SetContext(vec![("".into(), "".into()); 257])),
            keep(),
            WireError::OutOfBounds,
        ),
        (call(Function::SetContextValue("".into(), "".into())), keep(), WireError::OutOfBounds),
        (
            call(Function::SetContextValue("k".into(), "1".into())),
            set(function + 7, 0xFF),
            WireError::NotUtf8,
        ),
        (call(Function::Close(1005, "".into())), keep(), WireError::OutOfBounds),
        (call(Function::Close(1000, "x".repeat(124).into())), keep(), WireError::OutOfBounds),
        (
            about(FromConsumer::Settled(vec![MessageNumber(0); 1025])),
            keep(),
            WireError::OutOfBounds,
        ),
        (about(FromConsumer::Gone), set(3, 99), WireError::Unknown(99)),
        (about(FromConsumer::Gone), set(5, 4), WireError::OutOfBounds),
        (about(FromConsumer::Gone), set(said - 1, 1), WireError::OutOfBounds),
        (answer(1, Err(Fault::new(Code::TooLarge, ""))), set(10, 1), WireError::OutOfBounds),
        (
            about(FromConsumer::Consume(Box::new(Terms {
                group: None,
                pop: PopId(1),
                window_bytes: 1,
                unsettled_max: Some(1025),
            }))),
            keep(),
            WireError::OutOfBounds,
        ),
    ];
    for (message, change, error) in cases {
        let shown = format!("{message:?}");
        assert_eq!(changed(&message, change), Some(error), "{shown}");
    }
    assert_eq!(read_control(b"\x09"), Err(WireError::Unknown(9)));
    assert_eq!(read_control(b"\x01GET / HT"), Err(WireError::NotAHello));
    assert_eq!(read_control(&[7, 2, 1]), Err(WireError::OutOfBounds));
}

#[test]
fn no_message_is_for_the_control_lane() {
    let mut frame = batch_frame([&answer(1, Ok(ClientReply::Done))]);
    frame[8..10].copy_from_slice(&Lane::Control.number().to_le_bytes());
    assert_eq!(read_messages(&frame).err(), Some(WireError::OutOfBounds));
}

#[test]
fn a_long_text_for_people_is_cut_between_characters() {
    let long: Arc<str> = format!("a{}", "ü".repeat(TEXT_BYTES_MAX)).into();
    let refused = control_frame(&Control::Refused(long.to_string()));
    let Ok(Control::Refused(text)) = read_control(&refused) else { panic!("it is read") };
    assert!(long.starts_with(&text) && text.len() == TEXT_BYTES_MAX - 1);
    let fault = Fault::new(Code::TooLarge, long.to_string());
    let frame = batch_frame([&answer(1, Err(fault))]);
    assert_eq!(read_messages(&frame).unwrap().len(), 1);
    let mut longer = refused;
    longer.push(b'x');
    longer[1..5].copy_from_slice(&(TEXT_BYTES_MAX as u32 + 1).to_le_bytes());
    longer.push(b'x');
    assert_eq!(read_control(&longer), Err(WireError::OutOfBounds));
}

/// A stream of frames, one of them empty, and what they are.
fn stream() -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut frames: Vec<_> = controls().iter().map(control_frame).collect();
    frames.insert(1, Vec::new());
    frames.push(batch_frame(&all_messages()));
    frames.push(Vec::new());
    let framed = |frame: &Vec<u8>| [&(frame.len() as u32).to_le_bytes()[..], frame].concat();
    (frames.iter().flat_map(framed).collect(), frames)
}

fn drain(reader: &mut FrameReader, frames: &mut Vec<Vec<u8>>) {
    while let Some(frame) = reader.next_frame().unwrap() {
        frames.push(frame.to_vec());
    }
}

#[test]
fn frames_are_the_same_wherever_the_stream_is_cut() {
    let (stream, expected) = stream();
    for size in 1..=stream.len() {
        let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
        for piece in stream.chunks(size) {
            reader.push(Bytes::copy_from_slice(piece));
            drain(&mut reader, &mut frames);
        }
        assert_eq!(frames, expected, "in pieces of {size}");
    }
    for at in 0..=stream.len() {
        let (mut reader, mut frames) = (FrameReader::default(), Vec::new());
        reader.push(Bytes::copy_from_slice(&stream[..at]));
        reader.push(Bytes::copy_from_slice(&stream[at..]));
        drain(&mut reader, &mut frames);
        assert_eq!(frames, expected, "cut at {at}");
    }
}

#[test]
fn a_frame_that_came_in_one_piece_is_not_copied() {
    let (stream, expected) = stream();
    let stream = Bytes::from(stream);
    let mut reader = FrameReader::default();
    reader.push(stream.clone());
    let mut start = stream.as_ptr() as usize;
    for length in expected.iter().map(Vec::len) {
        let frame = reader.next_frame().unwrap().unwrap();
        assert!(frame.is_empty() || frame.as_ptr() as usize == start + 4);
        start += 4 + length;
    }
}

#[test]
fn a_frame_over_the_limit_is_refused_before_it_comes() {
    let head = (FRAME_BYTES_MAX as u32 + 1).to_le_bytes();
    for at in 0..4 {
        let mut reader = FrameReader::default();
        reader.push(Bytes::copy_from_slice(&head[..at]));
        assert_eq!(reader.next_frame(), Ok(None));
        reader.push(Bytes::copy_from_slice(&head[at..]));
        assert_eq!(reader.next_frame(), Err(WireError::TooLarge));
    }
}

#[test]
fn a_frame_that_is_announced_and_does_not_come_takes_no_memory() {
    let mut reader = FrameReader::default();
    reader.push(Bytes::copy_from_slice(&(FRAME_BYTES_MAX as u32).to_le_bytes()));
    for came in 1..100 {
        reader.push(Bytes::from_static(&[0; 1000]));
        assert_eq!(reader.next_frame(), Ok(None));
        assert!(reader.memory_bytes() <= 2 * 1000 * came + 64, "{came}");
    }
}

#[test]
fn a_node_has_as_many_shards_as_there_may_be() {
    for shards in [0, 257] {
        let frame = control_frame(&Control::Hello(Hello { shards, ..hello() }));
        assert_eq!(read_control(&frame), Err(WireError::OutOfBounds));
    }
}

#[test]
fn the_address_of_a_client_is_read_as_it_was_written() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let remotes = [
        Remote::Ip(ip("192.0.2.1"), Some(80)),
        Remote::Ip(ip("192.0.2.1"), None),
        Remote::Ip(ip("2001:db8::1"), Some(80)),
        Remote::Ip(ip("2001:db8::1"), None),
        Remote::Unix,
    ];
    for remote in remotes {
        let mut bytes = Vec::new();
        fields::put_remote(&mut bytes, remote);
        assert_eq!(fields::Fields::new(&bytes).remote(), Ok(remote));
    }
}
