use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::address::remote::Remote;
use crate::address::{ClientId, ShardAddress};
use crate::message::{
    BackendId, ClientCommand, ClientReply, ClientsPart, ClientsQuestion, ConnectionKey, Delivery,
    FromConsumer, FromTapper, GridMessage, LastWillsMessage, ListAnswer, ListMessage, ListQuestion,
    MessageNumber, NamesPart, NamesQuestion, PopId, ProcessFacts, Publish, Requester, ShardFigures,
    SlottedClient, Terms, Ticket, ToConsumer, ToTapper, WatcherEpoch,
};
use crate::protocol::api::{
    ChannelRow, ClientFilter, ClientRow, Code, Fault, Function, Info, NAME_BYTES_MAX, NodeStanding,
    PerSecond, Tally, Tap, TapTarget, TopicRow,
};
use crate::protocol::frame::{Frame, Kind};

fn hello() -> Hello {
    Hello {
        versions: Versions { first: 1, last: 3 },
        node: NodeId::new(1023).unwrap(),
        incarnation: Incarnation(1_700_000_000_123),
        shards: 256,
        mesh: "10.0.0.5:6788".parse().unwrap(),
        api: "[fe80::1%7]:6789".parse().unwrap(),
        software: "0.1.0".into(),
        held: Some(SessionId(u64::MAX)),
        offered: SessionId(5),
        received: vec![
            receipt(Lane::Control, 1),
            receipt(Lane::Mesh, 2),
            receipt(Lane::Shard(ShardId(255)), 3),
        ],
    }
}

fn receipt(lane: Lane, last: u64) -> Receipt {
    Receipt { lane, last: BatchNumber(last) }
}

fn controls() -> Vec<Control> {
    let (one, two) = (AnnouncementNumber(1), AnnouncementNumber(2));
    let (on, off) = (vec![ChannelHash(7), ChannelHash(u64::MAX)], vec![ChannelHash(7)]);
    vec![
        Control::Hello(hello()),
        Control::Refused("wrong version".into()),
        Control::Hello(Hello { held: None, received: vec![], ..hello() }),
        Control::Interest { number: Some(one), is_whole: true, on, off: vec![] },
        Control::Interest { number: Some(two), is_whole: false, on: vec![], off: off.clone() },
        Control::Interest { number: None, is_whole: true, on: off, off: vec![] },
        Control::InterestKnown(two),
        Control::Ping { sent_ms: 3 },
        Control::Pong { sent_ms: 3, clients: 4 },
        Control::Received(receipt(Lane::Mesh, 4)),
    ]
}

fn backend() -> BackendId {
    BackendId {
        at: ShardAddress { node: NodeId::new(1000).unwrap(), shard: ShardId(200) },
        connection: ConnectionKey { index: u32::MAX, generation: ConnectionKey::GENERATION_MAX },
    }
}

fn frame() -> Frame {
    Frame::message(Kind::Text, "grüße".as_bytes())
}

/// A message for shard 3.
fn for_shard(message: GridMessage) -> AddressedMessage {
    AddressedMessage::Shard(ShardId(3), message)
}

fn ask(ticket: u64, command: ClientCommand) -> AddressedMessage {
    for_shard(GridMessage::Ask { ticket: Ticket(ticket), backend: backend(), command })
}

fn answer(ticket: u64, answer: Result<ClientReply, Fault>) -> AddressedMessage {
    for_shard(GridMessage::Answer(Ticket(ticket), answer))
}

fn from_consumer(topic: &str, message: FromConsumer) -> AddressedMessage {
    for_shard(GridMessage::FromConsumer { topic: topic.into(), consumer: backend(), message })
}

fn to_consumer(topic: &str, message: ToConsumer) -> AddressedMessage {
    for_shard(GridMessage::ToConsumer { topic: topic.into(), consumer: backend(), message })
}

fn all_messages() -> Vec<AddressedMessage> {
    let client = ClientId::from_value(1_463_786_910_324_359_168);
    let functions = [
        Function::SetContextValue("key".into(), r#"{"a":[1,"ü"]}"#.into()),
        Function::SetContext(vec![("a".into(), "1".into()), ("".into(), "\"b\"".into())]),
        Function::SetContext(vec![]),
        Function::Subscribe(vec!["room 1".into(), "x".repeat(NAME_BYTES_MAX).into()]),
        Function::Unsubscribe(vec!["ü".into()]),
        Function::Close(4999, "good bye".into()),
        Function::GetContext,
        Function::Info,
    ];
    let info = Info {
        node: NodeId::new(0).unwrap(),
        remote: ([127, 0, 0, 1], 1).into(),
        since_ms: 1,
        channels: vec!["a".into(), "b".into()],
        buffered: 1 << 20,
    };
    let answers = [
        Ok(ClientReply::Done),
        Ok(ClientReply::Context("{\"a\":1}".into())),
        Ok(ClientReply::Info(Box::new(info))),
        Err(Fault::new(Code::ExecutionFailed, "no such client")),
    ];
    let delivery = |is_acknowledged, is_redelivered| {
        ToConsumer::Deliver(Delivery {
            number: MessageNumber(6),
            pop: PopId(7),
            is_acknowledged,
            is_redelivered,
            frame: frame(),
        })
    };
    let terms = |unsettled_max| {
        Box::new(Terms {
            pop: PopId(1),
            group: Some("billing".into()),
            window_bytes: 1 << 40,
            unsettled_max,
        })
    };
    let to_consumers = [
        delivery(true, false),
        delivery(false, true),
        ToConsumer::Expired(vec![MessageNumber(3)]),
        ToConsumer::Evict,
    ];
    let from_consumers = [
        FromConsumer::Written(u32::MAX),
        FromConsumer::Settled([1, 2, u64::MAX].map(MessageNumber).into()),
        FromConsumer::Refused { numbers: vec![MessageNumber(4)], after_ms: 1000 },
        FromConsumer::Returned { number: MessageNumber(8), pop: PopId(9) },
        FromConsumer::Consume(terms(None)),
        FromConsumer::Consume(terms(Some(1024))),
        FromConsumer::StopConsuming,
        FromConsumer::Gone,
    ];
    let requester = Requester { ticket: Ticket(u64::MAX - 1), backend: backend() };
    let publish = Publish { channel: "channel".into(), frame: frame() };
    let tally = Tally { delivered: 9, failed: u64::MAX };
    let mut messages = vec![
        AddressedMessage::Mesh(MeshMessage::Publish(requester, publish)),
        AddressedMessage::Mesh(MeshMessage::Published(Ticket(3), tally)),
        ask(u64::MAX - 1, ClientCommand::Send(client, frame())),
    ];
    let calls = functions.map(|function| ClientCommand::Call(client, function));
    messages.extend(calls.map(|command| ask(u64::MAX - 1, command)));
    messages.extend(answers.map(|reply| answer(3, reply)));
    messages.extend(to_consumers.map(|message| to_consumer("topic", message)));
    messages.extend(from_consumers.map(|message| from_consumer("topic", message)));
    let last_wills = [
        LastWillsMessage::Begin(WatcherEpoch(1)),
        LastWillsMessage::Register("topic".into(), vec![client, client]),
        LastWillsMessage::Unregister("topic".into(), client),
        LastWillsMessage::Claim {
            incarnation: Incarnation(1_700_000_000_000),
            epoch: WatcherEpoch(2),
        },
    ];
    messages
        .extend(last_wills.map(|message| for_shard(GridMessage::LastWills(backend().at, message))));
    messages.extend(
        list_messages()
            .into_iter()
            .map(|message| for_shard(GridMessage::List(Ticket(u64::MAX - 1), message))),
    );
    messages.extend(tap_messages().map(for_shard));
    messages
}

fn list_messages() -> Vec<ListMessage> {
    let filter = ClientFilter {
        clients: Some([1, 2].map(ClientId::from_value).to_vec()),
        user: Some("10000".into()),
        channel: Some("news".into()),
        address: "10.0.0.0/8".parse().ok(),
        route: Some("/ws".into()),
    };
    let clients = |filter| {
        let question = ClientsQuestion { filter, from: 5, max: 1000, within_ms: 750 };
        ListMessage::Ask(ListQuestion::Client(Box::new(question)))
    };
    let names = |prefix: &str, after: Option<&str>| {
        let (prefix, after) = (prefix.into(), after.map(Box::from));
        Box::new(NamesQuestion { prefix, after, max: 1, within_ms: 750 })
    };
    let row = |user: Option<&str>| ClientRow {
        client: ClientId::from_value(3),
        user: user.map(Box::from),
        remote: ([127, 0, 0, 1], 1).into(),
        path: "/ws".into(),
        since_ms: 4,
        channels: 5,
        buffered: 6,
    };
    let rows = [(7, row(Some("10000"))), (9, row(None))];
    let rows = rows.map(|(slot, row)| SlottedClient { slot, row }).into();
    let channel = ChannelRow { name: "news".into(), clients: 8 };
    let topic = TopicRow {
        name: "messages".into(),
        messages: 1,
        bytes: 2,
        oldest_ms: 3,
        consumers: 4,
        in_flight: 5,
    };
    let answers = [
        ListAnswer::Client(Box::new(ClientsPart { rows, next: Some(10) })),
        ListAnswer::Client(Box::default()),
        ListAnswer::Channel(Box::new(NamesPart { rows: vec![channel], is_cut: true })),
        ListAnswer::Topic(Box::new(NamesPart { rows: vec![topic], is_cut: false })),
        ListAnswer::Busy,
        ListAnswer::Unfinished,
    ];
    let mut messages: Vec<_> = figures_messages().into();
    messages.extend([
        clients(filter),
        clients(ClientFilter::default()),
        ListMessage::Ask(ListQuestion::Channel(names("ne", Some("news")))),
        ListMessage::Ask(ListQuestion::Topic(names("", None))),
    ]);
    messages.extend(answers.map(ListMessage::Answer));
    messages
}

fn figures_messages() -> [ListMessage; 3] {
    let process = ProcessFacts {
        state: NodeStanding::LameDuck,
        uptime_ms: 1,
        driver: "epoll".into(),
        memory_bytes: 1 << 30,
        memory_limit_bytes: 1 << 31,
    };
    let figures = |process| ShardFigures {
        clients: 2,
        backends: 3,
        received: PerSecond(4),
        delivered: PerSecond(u64::MAX),
        process,
    };
    let answer = |figures| ListMessage::Answer(ListAnswer::Figures(Box::new(figures)));
    [ListMessage::Ask(ListQuestion::Figures), answer(figures(None)), answer(figures(Some(process)))]
}

fn tap_messages() -> impl Iterator<Item = GridMessage> {
    let address = |text: &str| TapTarget::Address(text.parse().expect("a network"));
    let targets = [
        TapTarget::Client(ClientId::from_value(7)),
        TapTarget::User("10000".into()),
        TapTarget::Channel("room 1".into()),
        TapTarget::Topic("topic".into()),
        address("10.0.0.0/8"),
        address("fd00::/8"),
    ];
    let start = |target| FromTapper::Start(Ticket(3), Box::new(Tap { target, max_per_s: 1000 }));
    let from = targets.into_iter().map(start).chain([FromTapper::Stop, FromTapper::Taken(32)]);
    let to = [
        ToTapper::Started { ticket: Ticket(3), is_watching: true },
        ToTapper::Event(frame()),
        ToTapper::Lost(9),
    ];
    let from = from.map(|message| GridMessage::FromTapper(backend(), message));
    let to = to.into_iter().map(|message| GridMessage::ToTapper(backend(), message));
    let requester = Requester { ticket: Ticket(3), backend: backend() };
    from.chain(to).chain([GridMessage::Caller(requester, "app".into())])
}

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
    // What is said of a back end begins 14 bytes into a message about such a topic.
    let said = 1 + 2 + 1 + 11;
    let many = |count| vec!["c".into(); count];
    type Change = Box<dyn FnOnce(&mut Vec<u8>)>;
    let set = |at: usize, byte: u8| -> Change { Box::new(move |body| body[at] = byte) };
    let keep: fn() -> Change = || Box::new(|_| ());
    let cases: [(AddressedMessage, Change, WireError); 19] = [
        (call(Function::Info), set(0, 9), WireError::Unknown(9)),
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
