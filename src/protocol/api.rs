//! The back ends' JSON ⇄ calls, replies and events; the table of API codes.

use std::borrow::Cow;
use std::net::SocketAddr;

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use hashbrown::HashMap;
use hashbrown::hash_map::Entry;
use simd_json::value::tape::Tape;
use simd_json::{Buffers, Node, StaticNode};

use super::close;
use super::frame::{self, Kind, Opcode};
use super::json::{end_of_string, put_number, put_string, raw_value};
use crate::address::{ClientId, NodeId};

/// The longest name of a channel, a topic or a context key, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// The most topics that one `queue.pop` may name.
pub const TOPICS_PER_POP_MAX: usize = 256;

/// Base64 as the API takes it: the standard alphabet, padded or not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a call failed, as a number that a program can test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// 101
    InvalidArgument,
    /// 102
    NotAuthorised,
    /// 103
    TooManyRequests,
    /// 104
    TooLarge,
    /// 201
    ConsumptionFailed,
    /// 202
    RepeatedConsumption,
    /// 203
    CancelFailed,
    /// 301
    ExecutionFailed,
    /// 401
    SendFailed,
}

impl Code {
    /// The number on the wire, and the HTTP status for those who ask for one (`X-Error-Mode`).
    fn row(self) -> (u64, u16) {
        match self {
            Self::InvalidArgument => (101, 400),
            Self::NotAuthorised => (102, 401),
            Self::TooManyRequests => (103, 429),
            Self::TooLarge => (104, 413),
            Self::ConsumptionFailed => (201, 500),
            Self::RepeatedConsumption => (202, 500),
            Self::CancelFailed => (203, 500),
            Self::ExecutionFailed => (301, 500),
            Self::SendFailed => (401, 502),
        }
    }

    /// The number on the wire.
    pub fn number(self) -> u64 {
        self.row().0
    }

    /// The HTTP status for those who ask for one.
    pub fn http_status(self) -> u16 {
        self.row().1
    }
}

/// A call that failed: its code, and why in words that help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What a program tests.
    pub code: Code,
    /// What a human reads.
    pub message: Cow<'static, str>,
}

impl Fault {
    /// A fault of this code with these words.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

/// A request over WebSocket: what it asks, and the id that its answer carries.
#[derive(Debug, PartialEq)]
pub struct Request<'a> {
    /// `i` as it was sent: the JSON text of a number, a string or null.
    pub id: &'a str,
    /// What is asked, or why it cannot be.
    pub call: Result<Call<'a>, Fault>,
}

/// What a back end asks for.
#[derive(Debug, PartialEq)]
pub enum Call<'a> {
    /// `mesh.send`
    Send(ClientId, Content<'a>),
    /// `mesh.publish`
    Publish(&'a str, Content<'a>),
    /// `conn.call`
    Call(ClientId, Function),
    /// `queue.pop`
    Pop(Vec<&'a str>),
    /// `queue.unpop`
    Unpop,
}

/// The message that a client is to get.
#[derive(Debug, PartialEq)]
pub struct Content<'a> {
    /// Text or binary.
    pub kind: Kind,
    /// Its bytes, base64 already undone.
    pub bytes: Cow<'a, [u8]>,
}

/// A function of `conn.call` with its arguments. JSON values are kept as the text that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Function {
    /// `set_context_value(key, value)`
    SetContextValue(Box<str>, Box<str>),
    /// `set_context(object)`
    SetContext(Vec<ContextEntry>),
    /// `subscribe(channel…)`
    Subscribe(Vec<Box<str>>),
    /// `unsubscribe(channel…)`
    Unsubscribe(Vec<Box<str>>),
    /// `close(code, reason)`
    Close(u16, Box<str>),
    /// `get_context()`
    GetContext,
    /// `info()`
    Info,
}

/// A key of a context, and its value as JSON text.
pub type ContextEntry = (Box<str>, Box<str>);

/// What a call that succeeded gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `{"s":true}`
    Done,
    /// `{"s":successes,"f":failures}`
    Published(Tally),
    /// `get_context`: the JSON text of the object.
    Context(String),
    /// `info`
    Info(Box<Info>),
    /// A text for people and probes, without an envelope: its content type, and itself. Over HTTP
    /// only.
    Page(&'static str, String),
}

/// How many connections took a message, and how many did not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Took it into their outbound buffer.
    pub delivered: u64,
    /// Did not.
    pub failed: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.delivered += other.delivered;
        self.failed += other.failed;
    }
}

/// What is known of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The node that holds it.
    pub node: NodeId,
    /// Where it connected from.
    pub remote: SocketAddr,
    /// When it connected, in Unix milliseconds.
    pub since_ms: u64,
    /// The channels it is subscribed to.
    pub channels: Vec<Box<str>>,
    /// Bytes that wait for it.
    pub buffered: u64,
}

/// Parses requests in place, with buffers that are used again. One per shard.
#[derive(Default)]
pub struct Parser {
    buffers: Buffers,
    tape: Vec<Node<'static>>,
    // The request as it came: strings are unescaped in place, numbers lose their digits.
    raw: Vec<u8>,
}

impl Parser {
    /// Reads a request of the WebSocket API. `input` is overwritten.
    pub fn request<'a>(&'a mut self, input: &'a mut [u8]) -> Request<'a> {
        self.parse(input, |document| match document {
            Ok(document) => read_envelope(document),
            Err(fault) => Request { id: "null", call: Err(fault) },
        })
    }

    /// Reads the parameters of `method` from the body of an HTTP request. `input` is overwritten.
    ///
    /// # Errors
    /// 101, with words that name the field.
    pub fn params<'a>(
        &'a mut self,
        method: Method,
        input: &'a mut [u8],
    ) -> Result<Call<'a>, Fault> {
        self.parse(input, |document| {
            let document = document?;
            read_params(method, Some(document.root()), document)
        })
    }

    fn parse<'a, T>(
        &'a mut self,
        input: &'a mut [u8],
        read: impl FnOnce(Result<&Document<'_, 'a>, Fault>) -> T,
    ) -> T {
        self.raw.clear();
        self.raw.extend_from_slice(input);
        let base = input.as_ptr() as usize;
        let mut tape = Tape(std::mem::take(&mut self.tape)).reset();
        let parsed = simd_json::fill_tape(input, &mut self.buffers, &mut tape);
        let document = Document { nodes: &tape.0, raw: &self.raw, base };
        let result = read(match parsed {
            Ok(()) => Ok(&document),
            Err(error) => Err(Fault::invalid(format!("not valid JSON: {error}"))),
        });
        self.tape = tape.reset().0;
        result
    }
}

/// A method of the API that takes parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// `mesh.send`
    Send,
    /// `mesh.publish`
    Publish,
    /// `conn.call`
    Call,
    /// `queue.pop`
    Pop,
    /// `queue.unpop`
    Unpop,
}

impl Method {
    fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "mesh.send" => Self::Send,
            "mesh.publish" => Self::Publish,
            "conn.call" => Self::Call,
            "queue.pop" => Self::Pop,
            "queue.unpop" => Self::Unpop,
            _ => return None,
        })
    }
}

/// A parsed request: nodes in the order of the text, each container before what it holds.
struct Document<'t, 'a> {
    nodes: &'t [Node<'a>],
    raw: &'a [u8],
    // The address of the input's first byte: a key's address tells its place in `raw`.
    base: usize,
}

impl<'t, 'a> Document<'t, 'a> {
    fn root(&self) -> Value<'t, 'a> {
        Value(self.nodes)
    }

    /// The text of the value after a key or an item that is a string.
    fn raw_after(&self, key: &str) -> &'a str {
        let opening_quote = key.as_ptr() as usize - self.base - 1;
        let value = raw_value(self.raw, end_of_string(self.raw, opening_quote));
        std::str::from_utf8(value)
            .expect("valid JSON is UTF-8, and a value ends between characters")
    }
}

/// A value, with what it holds and all that follows it.
#[derive(Clone, Copy)]
struct Value<'t, 'a>(&'t [Node<'a>]);

impl<'t, 'a> Value<'t, 'a> {
    fn nodes(self) -> usize {
        match self.0[0] {
            Node::Object { count, .. } | Node::Array { count, .. } => 1 + count,
            Node::String(_) | Node::Static(_) => 1,
        }
    }

    fn text(self) -> Option<&'a str> {
        match self.0[0] {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    fn unsigned(self) -> Option<u64> {
        match self.0[0] {
            Node::Static(StaticNode::U64(number)) => Some(number),
            Node::Static(StaticNode::I64(number)) => number.try_into().ok(),
            _ => None,
        }
    }

    fn is_object(self) -> bool {
        matches!(self.0[0], Node::Object { .. })
    }

    /// The items of an array; `None` if it is something else.
    fn items(self) -> Option<impl Iterator<Item = Value<'t, 'a>>> {
        let Node::Array { len, .. } = self.0[0] else { return None };
        let mut rest = &self.0[1..];
        Some((0..len).map(move |_| {
            let item = Value(rest);
            rest = &rest[item.nodes()..];
            item
        }))
    }

    /// The fields of an object; none if it is something else.
    fn fields(self) -> impl Iterator<Item = (&'a str, Value<'t, 'a>)> {
        let length = if let Node::Object { len, .. } = self.0[0] { len } else { 0 };
        let mut rest = &self.0[1..];
        (0..length).map(move |_| {
            let key = Value(rest).text().expect("a key is a string");
            let value = Value(&rest[1..]);
            rest = &rest[1 + value.nodes()..];
            (key, value)
        })
    }

    /// The last field of this name: duplicates are resolved so.
    fn field(self, name: &str) -> Option<Value<'t, 'a>> {
        self.fields().filter(|(key, _)| *key == name).last().map(|(_, value)| value)
    }
}

fn read_envelope<'a>(document: &Document<'_, 'a>) -> Request<'a> {
    let (mut method, mut params, mut id, mut alias) = (None, None, None, None);
    for (key, value) in document.root().fields() {
        match key {
            "m" => method = Some(value),
            "p" => params = Some(value),
            "i" => id = Some((key, value)),
            "id" => alias = Some((key, value)),
            _ => {}
        }
    }
    let (id, bad_id) = match id.or(alias) {
        None => ("null", None),
        Some((key, value)) => match value.0[0] {
            Node::Object { .. } | Node::Array { .. } | Node::Static(StaticNode::Bool(_)) => {
                ("null", Some(Fault::invalid("i: expected a number, a string or null")))
            }
            _ => (document.raw_after(key), None),
        },
    };
    let call = match bad_id {
        Some(fault) => Err(fault),
        None if !document.root().is_object() => {
            Err(Fault::invalid("expected a JSON object with m, p and i"))
        }
        None => read_method(method).and_then(|method| read_params(method, params, document)),
    };
    Request { id, call }
}

fn read_method(method: Option<Value<'_, '_>>) -> Result<Method, Fault> {
    let name = method
        .ok_or_else(|| Fault::invalid("m: missing; expected the name of a method"))?
        .text()
        .ok_or_else(|| Fault::invalid("m: expected a string"))?;
    Method::from_name(name).ok_or_else(|| {
        Fault::invalid(format!(
            "m: unknown method {}; known are mesh.send, mesh.publish, conn.call, queue.pop, \
             queue.unpop",
            quoted(name)
        ))
    })
}

/// A name of the peer's inside a message of ours: bounded, and escaped as a string literal.
fn quoted(name: &str) -> String {
    format!("{:?}", &name[..name.floor_char_boundary(64)])
}

fn read_params<'a>(
    method: Method,
    params: Option<Value<'_, 'a>>,
    document: &Document<'_, 'a>,
) -> Result<Call<'a>, Fault> {
    if method == Method::Unpop {
        return Ok(Call::Unpop);
    }
    let given = params.ok_or_else(|| Fault::invalid("p: missing; expected an object"))?;
    if method == Method::Pop
        && let Some(topics) = bare_topics(given)
    {
        return topics.map(Call::Pop);
    }
    let params = object_of(given)?;
    Ok(match method {
        Method::Send => Call::Send(read_client(params)?, read_content(params)?),
        Method::Publish => {
            Call::Publish(read_name("c", required(params, "c")?)?, read_content(params)?)
        }
        Method::Call => Call::Call(read_client(params)?, read_function(params, document)?),
        Method::Pop => Call::Pop(read_topics(params.and_then(|p| p.field("t")))?),
        Method::Unpop => Call::Unpop,
    })
}

/// The object of parameters: itself, or alone in an array, or the empty array for an empty object
/// (older clients send both).
fn object_of<'t, 'a>(given: Value<'t, 'a>) -> Result<Option<Value<'t, 'a>>, Fault> {
    if given.is_object() {
        return Ok(Some(given));
    }
    let wrong = || Fault::invalid("p: expected an object");
    let mut items = given.items().ok_or_else(wrong)?;
    match (items.next(), items.next()) {
        (None, _) => Ok(None),
        (Some(only), None) if only.is_object() => Ok(Some(only)),
        _ => Err(wrong()),
    }
}

/// The topics of `"p":["topic"]`, the form of older clients; `None` if it is not that.
fn bare_topics<'a>(given: Value<'_, 'a>) -> Option<Result<Vec<&'a str>, Fault>> {
    given.items()?.next()?.text()?;
    Some(read_topics(Some(given)))
}

fn read_topics<'a>(topics: Option<Value<'_, 'a>>) -> Result<Vec<&'a str>, Fault> {
    let wrong = || Fault::invalid("t: expected an array of one or more topic names");
    let items = topics.and_then(Value::items).ok_or_else(wrong)?;
    let mut names = Vec::new();
    for item in items {
        let name = read_name("t", item)?;
        if names.contains(&name) {
            continue;
        }
        if names.len() == TOPICS_PER_POP_MAX {
            return Err(Fault::invalid(format!("t: more than {TOPICS_PER_POP_MAX} topics")));
        }
        names.push(name);
    }
    if names.is_empty() { Err(wrong()) } else { Ok(names) }
}

fn required<'t, 'a>(
    params: Option<Value<'t, 'a>>,
    field: &'static str,
) -> Result<Value<'t, 'a>, Fault> {
    params
        .and_then(|params| params.field(field))
        .ok_or_else(|| Fault::invalid(format!("{field}: missing")))
}

fn read_name<'a>(field: &'static str, value: Value<'_, 'a>) -> Result<&'a str, Fault> {
    match value.text() {
        Some(name) if (1..=NAME_BYTES_MAX).contains(&name.len()) => Ok(name),
        Some(_) => Err(Fault::invalid(format!("{field}: expected 1 to {NAME_BYTES_MAX} bytes"))),
        None => Err(Fault::invalid(format!("{field}: expected a string"))),
    }
}

fn read_client(params: Option<Value<'_, '_>>) -> Result<ClientId, Fault> {
    let value = required(params, "c")?;
    let from_text = || value.text()?.parse().ok();
    value.unsigned().map(ClientId::from_value).or_else(from_text).ok_or_else(|| {
        Fault::invalid("c: expected a client id, as a string of decimal digits or an integer")
    })
}

fn read_content<'a>(params: Option<Value<'_, 'a>>) -> Result<Content<'a>, Fault> {
    let data =
        required(params, "d")?.text().ok_or_else(|| Fault::invalid("d: expected a string"))?;
    let kind = params.and_then(|params| params.field("t")).map_or(Some("text"), Value::text);
    match kind {
        Some("text") => Ok(Content { kind: Kind::Text, bytes: data.as_bytes().into() }),
        Some("binary") => {
            let bytes = BASE64
                .decode(data)
                .map_err(|error| Fault::invalid(format!("d: not standard base64: {error}")))?;
            Ok(Content { kind: Kind::Binary, bytes: bytes.into() })
        }
        _ => Err(Fault::invalid("t: expected \"text\" or \"binary\"")),
    }
}

fn read_function(
    params: Option<Value<'_, '_>>,
    document: &Document<'_, '_>,
) -> Result<Function, Fault> {
    let name =
        required(params, "f")?.text().ok_or_else(|| Fault::invalid("f: expected a string"))?;
    let arguments: Vec<_> = match params.and_then(|params| params.field("a")) {
        None => Vec::new(),
        Some(value) => {
            value.items().ok_or_else(|| Fault::invalid("a: expected an array"))?.collect()
        }
    };
    match (name, &arguments[..]) {
        ("set_context_value", &[key, _]) => {
            let key = read_name("a[0]", key)?;
            Ok(Function::SetContextValue(key.into(), document.raw_after(key).into()))
        }
        ("set_context", &[object]) if object.is_object() => {
            read_context(object, document).map(Function::SetContext)
        }
        ("subscribe", [_, ..]) => read_channels(&arguments).map(Function::Subscribe),
        ("unsubscribe", [_, ..]) => read_channels(&arguments).map(Function::Unsubscribe),
        ("close", _) => read_close(&arguments),
        ("get_context", []) => Ok(Function::GetContext),
        ("info", []) => Ok(Function::Info),
        _ => Err(Fault::invalid(wrong_arguments(name))),
    }
}

fn wrong_arguments(name: &str) -> Cow<'static, str> {
    match name {
        "set_context_value" => "a: expected [key, value]".into(),
        "set_context" => "a: expected [object]".into(),
        "subscribe" | "unsubscribe" => "a: expected one or more channel names".into(),
        "get_context" | "info" => "a: expected no arguments".into(),
        _ => format!(
            "f: unknown function {}; known are set_context_value, set_context, subscribe, \
             unsubscribe, close, get_context, info",
            quoted(name)
        )
        .into(),
    }
}

fn read_context(
    object: Value<'_, '_>,
    document: &Document<'_, '_>,
) -> Result<Vec<ContextEntry>, Fault> {
    let mut context: Vec<ContextEntry> = Vec::new();
    for (key, _) in object.fields() {
        if key.len() > NAME_BYTES_MAX {
            return Err(Fault::invalid(format!("a: a key is over {NAME_BYTES_MAX} bytes")));
        }
        if context.len() == CONTEXT_KEYS_MAX {
            return Err(Fault::invalid(format!("a: more than {CONTEXT_KEYS_MAX} keys")));
        }
        let value = document.raw_after(key).into();
        match context.iter_mut().find(|(known, _)| **known == *key) {
            Some(entry) => entry.1 = value,
            None => context.push((key.into(), value)),
        }
    }
    Ok(context)
}

/// The most keys of one client's context.
pub const CONTEXT_KEYS_MAX: usize = 256;

/// The most channels of one call.
const CHANNELS_PER_CALL_MAX: usize = 1024;

fn read_channels(arguments: &[Value<'_, '_>]) -> Result<Vec<Box<str>>, Fault> {
    if arguments.len() > CHANNELS_PER_CALL_MAX {
        return Err(Fault::invalid(format!("a: more than {CHANNELS_PER_CALL_MAX} channels")));
    }
    arguments.iter().map(|&argument| read_name("a", argument).map(Box::from)).collect()
}

fn read_close(arguments: &[Value<'_, '_>]) -> Result<Function, Fault> {
    let (code, reason) = match *arguments {
        [] => (Some(1000), Some("")),
        [code] => (code.unsigned(), Some("")),
        [code, reason] => (code.unsigned(), reason.text()),
        _ => (None, None),
    };
    let code = code.and_then(|code| u16::try_from(code).ok()).filter(|&c| close::may_be_asked(c));
    match (code, reason) {
        (Some(code), Some(reason)) if reason.len() <= CLOSE_REASON_BYTES_MAX => {
            Ok(Function::Close(code, reason.into()))
        }
        _ => Err(Fault::invalid(
            "a: expected [code, reason] with a code of 1000, 1001, 1008, 1011 to 1013 or 3000 to \
             4999 and a reason of at most 123 bytes",
        )),
    }
}

/// What fits a close frame beside its code.
const CLOSE_REASON_BYTES_MAX: usize = frame::CONTROL_BYTES_MAX - 2;

/// Appends the answer to a call. `id` is the JSON text of the request's `i`; HTTP has none.
pub fn put_answer(out: &mut Vec<u8>, answer: &Result<Reply, Fault>, id: Option<&str>) {
    match answer {
        Ok(reply) => {
            out.extend_from_slice(b"{\"E\":null,\"r\":");
            put_reply(out, reply);
        }
        Err(fault) => {
            out.extend_from_slice(b"{\"E\":{\"c\":");
            put_number(out, fault.code.number());
            out.extend_from_slice(b",\"m\":");
            put_string(out, &fault.message);
            out.push(b'}');
        }
    }
    if let Some(id) = id {
        out.extend_from_slice(b",\"i\":");
        out.extend_from_slice(id.as_bytes());
    }
    out.push(b'}');
}

fn put_reply(out: &mut Vec<u8>, reply: &Reply) {
    match reply {
        Reply::Done => out.extend_from_slice(b"{\"s\":true}"),
        Reply::Published(tally) => {
            out.extend_from_slice(b"{\"s\":");
            put_number(out, tally.delivered);
            out.extend_from_slice(b",\"f\":");
            put_number(out, tally.failed);
            out.push(b'}');
        }
        Reply::Context(json) => {
            out.extend_from_slice(b"{\"s\":true,\"context\":");
            out.extend_from_slice(json.as_bytes());
            out.push(b'}');
        }
        Reply::Info(info) => put_info(out, info),
        Reply::Page(_, text) => put_string(out, text),
    }
}

fn put_info(out: &mut Vec<u8>, info: &Info) {
    out.extend_from_slice(b"{\"s\":true,\"node\":");
    put_number(out, info.node.number().into());
    out.extend_from_slice(b",\"remote\":");
    put_string(out, &info.remote.to_string());
    out.extend_from_slice(b",\"since\":");
    put_number(out, info.since_ms);
    out.extend_from_slice(b",\"channels\":[");
    for (at, channel) in info.channels.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(out, channel);
    }
    out.extend_from_slice(b"],\"buffered\":");
    put_number(out, info.buffered);
    out.push(b'}');
}

/// Appends the frame of a `queue.pop` event; `put_data` appends the JSON value of its `d`.
pub fn put_event(
    out: &mut Vec<u8>,
    scratch: &mut Vec<u8>,
    (node, client, topic): (NodeId, ClientId, &str),
    put_data: impl FnOnce(&mut Vec<u8>),
) {
    scratch.clear();
    scratch.extend_from_slice(b"{\"e\":\"queue.pop\",\"p\":{\"n\":");
    put_number(scratch, node.number().into());
    scratch.extend_from_slice(b",\"c\":\"");
    put_number(scratch, client.value());
    scratch.extend_from_slice(b"\",\"t\":");
    put_string(scratch, topic);
    scratch.extend_from_slice(b",\"d\":");
    put_data(scratch);
    scratch.extend_from_slice(b"},\"id\":null}");
    frame::put_frame(out, Opcode::Data(Kind::Text), scratch);
}

/// Appends `d` of a message from a client: `{"frame":{…}}`, with its context beside it unless that
/// is empty. Text must be valid UTF-8.
pub fn put_message(out: &mut Vec<u8>, kind: Kind, data: &[u8], context: Option<&str>) {
    let kind_name: &[u8] = match kind {
        Kind::Text => b"{\"frame\":{\"type\":\"text\",\"data\":",
        Kind::Binary => b"{\"frame\":{\"type\":\"binary\",\"data\":",
    };
    out.extend_from_slice(kind_name);
    match std::str::from_utf8(data) {
        Ok(text) if kind == Kind::Text => put_string(out, text),
        _ => put_base64(out, data),
    }
    out.extend_from_slice(b",\"finish\":true}");
    put_context(out, context);
    out.push(b'}');
}

fn put_base64(out: &mut Vec<u8>, data: &[u8]) {
    out.push(b'"');
    let start = out.len();
    // Four characters for every three bytes that were begun.
    out.resize(start + data.len().div_ceil(3) * 4, 0);
    let length = BASE64.encode_slice(data, &mut out[start..]).expect("the room was just made");
    out.truncate(start + length);
    out.push(b'"');
}

fn put_context(out: &mut Vec<u8>, context: Option<&str>) {
    if let Some(context) = context {
        out.extend_from_slice(b",\"context\":");
        out.extend_from_slice(context.as_bytes());
    }
}

/// Appends `d` of an `open` event.
pub fn put_open<'a>(
    out: &mut Vec<u8>,
    path: &str,
    query: impl Iterator<Item = (Cow<'a, str>, Cow<'a, str>)>,
    headers: impl Iterator<Item = (String, Cow<'a, str>)>,
    remote: SocketAddr,
) {
    out.extend_from_slice(b"{\"event\":\"open\",\"path\":");
    put_string(out, path);
    out.extend_from_slice(b",\"query\":");
    put_object(out, query.map(|(name, value)| (name.into_owned(), value)));
    out.extend_from_slice(b",\"headers\":");
    put_object(out, headers);
    out.extend_from_slice(b",\"remote\":");
    put_string(out, &remote.to_string());
    out.push(b'}');
}

/// An object of strings. Of names that repeat the values are joined with a comma, as HTTP joins
/// header lines (RFC 9110, section 5.3).
fn put_object<'a>(out: &mut Vec<u8>, fields: impl Iterator<Item = (String, Cow<'a, str>)>) {
    let mut joined: Vec<(String, String)> = Vec::new();
    let mut places = HashMap::new();
    for (name, value) in fields {
        match places.entry(name.clone()) {
            Entry::Occupied(place) => {
                let (_, known): &mut (_, String) = &mut joined[*place.get()];
                known.push(',');
                known.push_str(&value);
            }
            Entry::Vacant(place) => {
                place.insert(joined.len());
                joined.push((name, value.into_owned()));
            }
        }
    }
    out.push(b'{');
    for (at, (name, value)) in joined.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(out, name);
        out.push(b':');
        put_string(out, value);
    }
    out.push(b'}');
}

/// Appends `d` of a `close` event.
pub fn put_close(out: &mut Vec<u8>, code: u16, reason: &str, context: Option<&str>) {
    out.extend_from_slice(b"{\"event\":\"close\",\"code\":");
    put_number(out, code.into());
    out.extend_from_slice(b",\"reason\":");
    put_string(out, reason);
    put_context(out, context);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> (String, Result<String, (Code, String)>) {
        let mut parser = Parser::default();
        let mut input = text.as_bytes().to_vec();
        let request = parser.request(&mut input);
        let call = request.call.map(|call| format!("{call:?}"));
        (request.id.to_owned(), call.map_err(|fault| (fault.code, fault.message.into_owned())))
    }

    fn id_of(text: &str) -> String {
        request(text).0
    }

    fn fault_of(text: &str) -> String {
        let (code, message) = request(text).1.unwrap_err();
        assert_eq!(code, Code::InvalidArgument);
        message
    }

    #[test]
    fn an_id_comes_back_as_it_was_sent_digits_and_all() {
        for id in [
            "12345",
            "-7",
            "0",
            "-0",
            "18446744073709551615",
            "123456789012345678901234567890",
            "1.50",
            "1e2",
            "null",
            "\"abc\"",
            r#""a\u0041\"\\é""#,
        ] {
            for (m, key) in [("queue.unpop", "i"), ("queue.unpop", "id"), ("nobody.knows", "i")] {
                for text in [
                    format!(r#"{{"m":"{m}","p":{{}},"{key}":{id}}}"#),
                    format!("{{ \"{key}\" : {id} , \"p\": [] ,\"m\" :\"{m}\" }}"),
                    format!(r#"{{"x\"\u0041":"\\","{key}":{id},"m":"{m}"}}"#),
                ] {
                    assert_eq!(id_of(&text), id, "{text}");
                }
            }
        }
        assert_eq!(id_of(r#"{"m":"queue.unpop"}"#), "null");
        assert_eq!(id_of(r#"{"i":1,"id":2,"m":"queue.unpop","i":3}"#), "3");
    }

    #[test]
    fn a_parser_that_is_used_again_remembers_nothing() {
        let mut parser = Parser::default();
        for round in 0..3 {
            let mut bad = b"{\"m\":".to_vec();
            assert!(parser.request(&mut bad).call.is_err());
            let good = format!(r#"{{"m":"queue.pop","p":{{"t":["t{round}"]}},"i":{round}}}"#);
            let mut good = good.into_bytes();
            let request = parser.request(&mut good);
            assert_eq!(request.id, round.to_string());
            assert_eq!(request.call, Ok(Call::Pop(vec![&format!("t{round}")])));
        }
    }

    #[test]
    fn every_method_reads_its_parameters() {
        let cases = [
            (
                r#"{"m":"mesh.send","p":{"c":"1463786910324359168","d":"data"}}"#,
                "Send(ClientId(1463786910324359168), Content { kind: Text, bytes: [100, 97, 116, 97] })",
            ),
            (
                r#"{"m":"mesh.send","p":{"c":7,"d":"AAEC","t":"binary"}}"#,
                "Send(ClientId(7), Content { kind: Binary, bytes: [0, 1, 2] })",
            ),
            (
                r#"{"m":"mesh.publish","p":[{"c":"a","d":"\u00e9","c":"b"}]}"#,
                "Publish(\"b\", Content { kind: Text, bytes: [195, 169] })",
            ),
            (r#"{"m":"queue.pop","p":{"t":["a","b","a"]}}"#, r#"Pop(["a", "b"])"#),
            (r#"{"m":"queue.pop","p":["a"]}"#, r#"Pop(["a"])"#),
            (r#"{"m":"queue.pop","p":[{"t":["a"]}]}"#, r#"Pop(["a"])"#),
            (r#"{"m":"queue.unpop","p":[]}"#, "Unpop"),
        ];
        for (text, call) in cases {
            assert_eq!(request(text).1.as_deref(), Ok(call), "{text}");
        }
    }

    #[test]
    fn base64_is_taken_with_and_without_padding() {
        for (data, bytes) in [("AA==", "[0]"), ("AA", "[0]"), ("AAE=", "[0, 1]"), ("", "[]")] {
            let text =
                format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}","t":"binary"}}}}"#);
            assert!(request(&text).1.unwrap().contains(bytes));
        }
        assert!(
            fault_of(r#"{"m":"mesh.publish","p":{"c":"a","d":"A*","t":"binary"}}"#)
                .starts_with("d: not standard base64")
        );
    }

    #[test]
    fn every_function_reads_its_arguments_and_keeps_values_as_they_were_sent() {
        let cases = [
            (
                r#""set_context_value","a":["user_id", 10000000000000000000001]"#,
                r#"SetContextValue("user_id", "10000000000000000000001")"#,
            ),
            (
                r#""set_context_value","a":["k\n",{"a":[1.50,"]"]}]"#,
                r#"SetContextValue("k\n", "{\"a\":[1.50,\"]\"]}")"#,
            ),
            (
                r#""set_context","a":[{"user_id":10000,"a":null,"user_id":"x"}]"#,
                r#"SetContext([("user_id", "\"x\""), ("a", "null")])"#,
            ),
            (
                r#""subscribe","a":["channel1","channel2"]"#,
                r#"Subscribe(["channel1", "channel2"])"#,
            ),
            (r#""unsubscribe","a":["channel1"]"#, r#"Unsubscribe(["channel1"])"#),
            (r#""close","a":[4001,"bye"]"#, r#"Close(4001, "bye")"#),
            (r#""close""#, r#"Close(1000, "")"#),
            (r#""get_context","a":[]"#, "GetContext"),
            (r#""info""#, "Info"),
        ];
        for (call, expected) in cases {
            let text = format!(r#"{{"m":"conn.call","p":{{"c":"5","f":{call}}}}}"#);
            assert_eq!(request(&text).1, Ok(format!("Call(ClientId(5), {expected})")), "{text}");
        }
    }

    #[test]
    fn a_bad_request_is_told_which_field_and_why() {
        let long = "x".repeat(256);
        let cases = [
            ("[1]", "expected a JSON object"),
            ("7", "expected a JSON object"),
            ("{}", "m: missing"),
            (r#"{"m":1}"#, "m: expected a string"),
            (r#"{"m":"mesh.sent"}"#, "m: unknown method \"mesh.sent\""),
            (r#"{"m":"mesh.send"}"#, "p: missing"),
            (r#"{"m":"mesh.send","p":"x"}"#, "p: expected an object"),
            (r#"{"m":"mesh.send","p":[{},{}]}"#, "p: expected an object"),
            (r#"{"m":"mesh.send","p":[]}"#, "c: missing"),
            (r#"{"m":"mesh.send","p":{"c":"x","d":""}}"#, "c: expected a client id"),
            (r#"{"m":"mesh.send","p":{"c":-1,"d":""}}"#, "c: expected a client id"),
            (r#"{"m":"mesh.send","p":{"c":1.5,"d":""}}"#, "c: expected a client id"),
            (r#"{"m":"mesh.send","p":{"c":1}}"#, "d: missing"),
            (r#"{"m":"mesh.send","p":{"c":1,"d":{}}}"#, "d: expected a string"),
            (r#"{"m":"mesh.send","p":{"c":1,"d":"","t":"blob"}}"#, "t: expected \"text\""),
            (r#"{"m":"mesh.send","p":{"c":1,"d":"","t":1}}"#, "t: expected \"text\""),
            (r#"{"m":"mesh.publish","p":{"c":1,"d":""}}"#, "c: expected a string"),
            (r#"{"m":"mesh.publish","p":{"c":"","d":""}}"#, "c: expected 1 to 255 bytes"),
            (r#"{"m":"queue.pop","p":{}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":[]}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":"a"}}"#, "t: expected an array"),
            (r#"{"m":"queue.pop","p":{"t":["a",1]}}"#, "t: expected a string"),
            (r#"{"m":"conn.call","p":{"c":1}}"#, "f: missing"),
            (r#"{"m":"conn.call","p":{"c":1,"f":"x"}}"#, "f: unknown function \"x\""),
            (r#"{"m":"conn.call","p":{"c":1,"f":"subscribe"}}"#, "a: expected one or more"),
            (r#"{"m":"conn.call","p":{"c":1,"f":"set_context","a":[1]}}"#, "a: expected [object]"),
            (
                r#"{"m":"conn.call","p":{"c":1,"f":"close","a":[1005]}}"#,
                "a: expected [code, reason]",
            ),
            (r#"{"m":"queue.unpop","i":{}}"#, "i: expected a number, a string or null"),
            (r#"{"m":"queue.unpop","#, "not valid JSON"),
        ];
        for (text, start) in cases {
            assert!(fault_of(text).starts_with(start), "{text} gave {}", fault_of(text));
        }
        let text = format!(r#"{{"m":"mesh.publish","p":{{"c":"{long}","d":""}}}}"#);
        assert_eq!(fault_of(&text), "c: expected 1 to 255 bytes");
    }

    fn written(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn answers_have_the_keys_and_the_order_of_the_protocol() {
        let tally = Tally { delivered: 9, failed: 0 };
        let published = Ok(Reply::Published(tally));
        let fault = Err(Fault::new(Code::RepeatedConsumption, "\"again\""));
        let cases = [
            (Ok(Reply::Done), Some("12345"), r#"{"E":null,"r":{"s":true},"i":12345}"#),
            (Ok(Reply::Done), None, r#"{"E":null,"r":{"s":true}}"#),
            (published, Some("null"), r#"{"E":null,"r":{"s":9,"f":0},"i":null}"#),
            (fault, Some("1"), r#"{"E":{"c":202,"m":"\"again\""},"i":1}"#),
            (
                Ok(Reply::Context("{\"a\":1}".into())),
                None,
                r#"{"E":null,"r":{"s":true,"context":{"a":1}}}"#,
            ),
        ];
        for (answer, id, expected) in cases {
            assert_eq!(written(|out| put_answer(out, &answer, id)), expected);
        }
    }

    #[test]
    fn an_event_has_the_shape_of_the_protocol() {
        let mut out = Vec::new();
        let ids = (NodeId::new(1).unwrap(), ClientId::from_value(1463819408261513216), "topic1");
        put_event(&mut out, &mut Vec::new(), ids, |out| {
            put_message(out, Kind::Text, b"json \"str\"", None);
        });
        let json = std::str::from_utf8(&out[4..]).unwrap();
        assert_eq!(
            json,
            r#"{"e":"queue.pop","p":{"n":1,"c":"1463819408261513216","t":"topic1","d":{"frame":{"type":"text","data":"json \"str\"","finish":true}}},"id":null}"#
        );
    }

    #[test]
    fn what_clients_do_is_told_with_its_circumstances() {
        assert_eq!(
            written(|out| put_message(out, Kind::Binary, &[0, 1, 2, 3], Some("{\"a\":1}"))),
            r#"{"frame":{"type":"binary","data":"AAECAw==","finish":true},"context":{"a":1}}"#
        );
        let pair = |name: &'static str, value: &'static str| (Cow::from(name), Cow::from(value));
        assert_eq!(
            written(|out| put_open(
                out,
                "/ws",
                [pair("channels", "a"), pair("channels", "b")].into_iter(),
                [("host".to_owned(), Cow::from("h"))].into_iter(),
                "127.0.0.1:5".parse().unwrap(),
            )),
            r#"{"event":"open","path":"/ws","query":{"channels":"a,b"},"headers":{"host":"h"},"remote":"127.0.0.1:5"}"#
        );
        assert_eq!(
            written(|out| put_close(out, 1000, "bye", None)),
            r#"{"event":"close","code":1000,"reason":"bye"}"#
        );
    }
}
