//! Bytes ⇄ meaning.

use bytes::Bytes;
use gridcast::address::{ClientId, NodeId, ShardAddress, ShardId};
use gridcast::mesh::numbers::BatchNumber;
use gridcast::mesh::wire::{
    self, AddressedMessage, FrameReader, MeshMessage, begin_batch, end_batch, put_message,
};
use gridcast::message::{BackendId, ConnectionKey, Publish, Requester, Ticket};
use gridcast::protocol::api::{self, Parser, Reply, Tally};
use gridcast::protocol::assembler::{Assembler, Received};
use gridcast::protocol::frame::{Frame, Kind};
use gridcast::protocol::http::{RequestLimits, RequestReader, RequestStep};
use gridcast::protocol::upgrade;

use super::{client_frame, handshake, publish_call};

/// The head of a handshake is read and checked.
pub struct Handshake {
    bytes: Vec<u8>,
    limits: RequestLimits,
    reader: RequestReader,
}

impl Handshake {
    pub fn new() -> Self {
        Self {
            bytes: handshake("/ws?channels=news").into_bytes(),
            limits: RequestLimits { head_bytes: 16_384, headers: 100, body_bytes: 0 },
            reader: RequestReader::default(),
        }
    }

    pub fn run(&mut self) {
        let mut input = &mut self.bytes[..];
        match self.reader.read(&mut input, &self.limits) {
            Ok(RequestStep::Request(request)) => assert!(upgrade::check(&request).is_ok()),
            _ => panic!("a handshake is a request"),
        }
    }
}

/// A client's message is found in its frame and unmasked, in place.
pub struct Decoding {
    frame: Vec<u8>,
    scratch: Vec<u8>,
    assembler: Assembler,
}

impl Decoding {
    pub fn new(bytes: usize) -> Self {
        let frame = client_frame(2, &vec![b'x'; bytes]);
        Self { scratch: frame.clone(), frame, assembler: Assembler::default() }
    }

    /// With the copy that makes the frame new each time.
    pub fn run(&mut self) -> u8 {
        self.scratch.copy_from_slice(&self.frame);
        let mut input = &mut self.scratch[..];
        match self.assembler.read(&mut input, 1 << 24, None) {
            Ok(Some(Received::Message(Kind::Binary, data))) => data[data.len() - 1],
            _ => panic!("a frame is a message"),
        }
    }
}

/// A back end's call is read, and its answer written.
pub struct Parsing {
    call: Vec<u8>,
    scratch: Vec<u8>,
    parser: Parser,
    answer: Vec<u8>,
}

impl Parsing {
    pub fn new(bytes: usize) -> Self {
        let call = publish_call("channel1", bytes).into_bytes();
        Self { scratch: call.clone(), call, parser: Parser::default(), answer: Vec::new() }
    }

    pub fn read(&mut self) {
        self.scratch.copy_from_slice(&self.call);
        let request = self.parser.request(&mut self.scratch);
        assert!(request.call.is_ok());
    }

    pub fn answer(&mut self) -> usize {
        self.answer.clear();
        let tally = Tally { delivered: 1000, failed: 0 };
        api::put_answer(&mut self.answer, &Ok(Reply::Published(tally)), Some("12345"));
        self.answer.len()
    }
}

/// Encoding of a client's message as the frame of an event.
pub struct EncodingEvent {
    data: Vec<u8>,
    out: Vec<u8>,
    scratch: Vec<u8>,
}

impl EncodingEvent {
    pub fn new(bytes: usize) -> Self {
        Self { data: vec![b'x'; bytes], out: Vec::new(), scratch: Vec::new() }
    }

    pub fn run(&mut self) -> usize {
        let Self { data, out, scratch } = self;
        out.clear();
        let client = ClientId::from_value(1_463_819_408_261_513_216);
        let head = api::EventHead { node: node(), client, topic: "messages" };
        api::put_event(out, scratch, head, |out| {
            api::put_message(out, Kind::Text, data, None);
        });
        out.len()
    }
}

/// Publishes to another node, in one batch of a lane of the mesh.
pub struct RemotePublishes {
    message: AddressedMessage,
    batch: Vec<u8>,
    encoded: Bytes,
}

impl RemotePublishes {
    pub const COUNT: usize = 64;

    pub fn new(bytes: usize) -> Self {
        let at = ShardAddress { node: node(), shard: ShardId(0) };
        let backend = BackendId { at, connection: ConnectionKey { index: 7, generation: 0 } };
        let frame = Frame::message(Kind::Text, &vec![b'x'; bytes]);
        let publish = Publish { channel: "channel1".into(), frame, excluded: None };
        let message = MeshMessage::Publish(Requester { ticket: Ticket(1), backend }, publish);
        let message = AddressedMessage::Mesh(message);
        let mut case = Self { message, batch: Vec::new(), encoded: Bytes::new() };
        case.encode();
        case.encoded = Bytes::copy_from_slice(&case.batch);
        case
    }

    pub fn encode(&mut self) -> usize {
        self.batch.clear();
        begin_batch(&mut self.batch);
        for _ in 0..Self::COUNT {
            put_message(&mut self.batch, &self.message);
        }
        end_batch(&mut self.batch, BatchNumber(1));
        self.batch.len()
    }

    pub fn decode(&mut self) {
        let mut reader = FrameReader::default();
        reader.push(self.encoded.clone());
        let frame = reader.next_frame().expect("our own bytes").expect("a whole frame");
        assert_eq!(wire::messages(&frame).filter(Result::is_ok).count(), Self::COUNT);
    }
}

fn node() -> NodeId {
    NodeId::new(1).expect("1 is at most 1023")
}
