//! Parses requests of any form, or reports a fault that names the wrong field.

use std::fmt;

use simd_json::value::tape::Tape;
use simd_json::{Buffers, Node, StaticNode};

use super::document::{JsonDocument, Value};
use super::fast::FastRequest;
use super::list::read_list;
use super::params::{quoted, read_params};
use super::{ApiRequest, Call, Fault, ListMethod};
use crate::protocol::json;

/// Parses requests in place with reusable buffers. One per shard. An unused parser holds no memory, so
/// taking it out with `mem::take` is free.
#[derive(Default)]
pub struct Parser(Option<Box<ParserBuffers>>);

/// A text message is not UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotUtf8;

#[derive(Default)]
struct ParserBuffers {
    buffers: Buffers,
    tape: Vec<Node<'static>>,
    // The request as it was sent. Parsing overwrites the input: strings are unescaped in place.
    raw: Vec<u8>,
    // A copy of the request for a second attempt, if it has numbers that simd_json refuses.
    retry: Vec<u8>,
}

impl Parser {
    /// Parses a request of the WebSocket API. `input` is overwritten.
    pub fn request<'a>(&'a mut self, input: &'a mut [u8]) -> ApiRequest<'a> {
        if let Some(request) = FastRequest::request(input) {
            return request.read(input);
        }
        self.request_of_any_form(input)
    }

    /// Parses a request in a text message, which need not have been checked to be UTF-8.
    ///
    /// # Errors
    /// The message is not UTF-8.
    pub fn text_request<'a>(&'a mut self, input: &'a mut [u8]) -> Result<ApiRequest<'a>, NotUtf8> {
        if let Some(request) = FastRequest::request(input) {
            // The text is checked there as a whole, and nothing else can be wrong with it.
            return request.read_valid(input).map_err(|_| NotUtf8);
        }
        json::check_utf8(input).map_err(|_| NotUtf8)?;
        Ok(self.request_of_any_form(input))
    }

    pub(super) fn request_of_any_form<'a>(&'a mut self, input: &'a mut [u8]) -> ApiRequest<'a> {
        self.parse(input, |document| match document {
            Ok(document) => read_envelope(document),
            Err(fault) => ApiRequest { id: "null", call: Err(fault) },
        })
    }

    /// Parses the parameters of `method` from the body of an HTTP request. `input` is overwritten.
    ///
    /// # Errors
    /// [`Code::InvalidArgument`](super::Code::InvalidArgument), with a message that names the field.
    pub fn params<'a>(
        &'a mut self,
        method: ApiMethod,
        input: &'a mut [u8],
    ) -> Result<Call<'a>, Fault> {
        if let Some(request) = FastRequest::params(method, input) {
            return request.read(input).call;
        }
        self.params_of_any_form(method, input)
    }

    pub(super) fn params_of_any_form<'a>(
        &'a mut self,
        method: ApiMethod,
        input: &'a mut [u8],
    ) -> Result<Call<'a>, Fault> {
        self.parse(input, |document| {
            let document = document?;
            read_params(method, Some(document.root()), document)
        })
    }

    pub(super) fn parse<'a, T>(
        &'a mut self,
        input: &'a mut [u8],
        read: impl FnOnce(Result<&JsonDocument<'_, 'a>, Fault>) -> T,
    ) -> T {
        let ParserBuffers { buffers, tape: nodes, raw, retry } =
            &mut **self.0.get_or_insert_default();
        raw.clear();
        raw.extend_from_slice(input);
        let mut base = input.as_ptr() as usize;
        let mut tape = Tape(std::mem::take(nodes)).reset();
        let mut parsed = simd_json::fill_tape(input, buffers, &mut tape).map_err(invalid_json);
        if parsed.is_err() {
            parsed = match hide_huge_numbers(raw, retry) {
                Err(flaw) => Err(invalid_json(flaw)),
                Ok(false) => parsed,
                Ok(true) => {
                    base = retry.as_ptr() as usize;
                    tape = tape.reset();
                    simd_json::fill_tape(retry, buffers, &mut tape).map_err(invalid_json)
                }
            };
        }
        let parsed = parsed.and_then(|()| check_depth(&tape.0, raw));
        let document = JsonDocument { nodes: &tape.0, raw, base };
        let result = read(parsed.map(|()| &document));
        *nodes = tape.reset().0;
        result
    }
}

/// Copies a text that simd_json refused, and replaces numbers that do not fit into a 64-bit float.
/// Returns whether there were any. Such a number is valid as a request's id, whose digits are taken
/// from the original text with [`JsonDocument::raw_after`].
fn hide_huge_numbers(raw: &[u8], copy: &mut Vec<u8>) -> Result<bool, json::Flaw> {
    // No parameter accepts a fraction, so a replaced number is refused there.
    const FRACTION: &[u8] = b"0.5";
    copy.clear();
    copy.extend_from_slice(raw);
    let mut are_there = false;
    json::check_but_numbers(raw, |place| {
        are_there = true;
        let hidden = &mut copy[place];
        hidden.fill(b' ');
        hidden[..FRACTION.len()].copy_from_slice(FRACTION);
    })?;
    Ok(are_there)
}

/// Checks the depth of nesting, which simd_json does not limit. A text with few arrays and objects
/// cannot be too deep, which avoids a second pass over most texts.
fn check_depth(nodes: &[Node<'_>], raw: &[u8]) -> Result<(), Fault> {
    let is_container = |node: &&Node<'_>| matches!(node, Node::Object { .. } | Node::Array { .. });
    if nodes.iter().filter(is_container).count() <= json::DEPTH_MAX as usize {
        return Ok(());
    }
    json::check_but_numbers(raw, |_| {}).map(drop).map_err(invalid_json)
}

pub(super) fn invalid_json(error: impl fmt::Display) -> Fault {
    Fault::invalid(format!("not valid JSON: {error}"))
}

/// A method of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiMethod {
    /// `mesh.send`
    Send,
    /// `mesh.publish`
    Publish,
    /// `conn.call`
    Call,
    /// `user.send`
    UserSend,
    /// `user.call`
    UserCall,
    /// `queue.pop`
    Pop,
    /// `queue.unpop`
    Unpop,
    /// `queue.ack`
    Ack,
    /// `queue.nack`
    Nack,
    /// `queue.take`, over HTTP only
    Take,
    /// `queue.push`
    Push,
    /// `admin.reload`
    Reload,
    /// A list of administration.
    List(ListMethod),
    /// `tap.start`
    Tap,
    /// `tap.stop`
    Untap,
}

impl ApiMethod {
    /// Whether the method needs the role `admin`.
    pub fn is_for_admins(self) -> bool {
        match self {
            Self::Reload => true,
            Self::List(list) => list.is_for_admins(),
            _ => false,
        }
    }

    /// Returns the call without parameters. `None`: the method needs some.
    pub fn call_without_params<'a>(self) -> Option<Call<'a>> {
        match self {
            Self::Unpop => Some(Call::Unpop),
            Self::Reload => Some(Call::Reload),
            Self::List(list) => read_list(list, None).ok().map(Call::List),
            Self::Untap => Some(Call::Untap),
            _ => None,
        }
    }

    pub(super) fn from_name(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"mesh.send" => Self::Send,
            b"mesh.publish" => Self::Publish,
            b"conn.call" => Self::Call,
            b"user.send" => Self::UserSend,
            b"user.call" => Self::UserCall,
            b"queue.pop" => Self::Pop,
            b"queue.unpop" => Self::Unpop,
            b"queue.ack" => Self::Ack,
            b"queue.nack" => Self::Nack,
            b"queue.push" => Self::Push,
            b"admin.reload" => Self::Reload,
            b"node.list" => Self::List(ListMethod::Node),
            b"client.list" => Self::List(ListMethod::Client),
            b"channel.list" => Self::List(ListMethod::Channel),
            b"topic.list" => Self::List(ListMethod::Topic),
            b"backend.list" => Self::List(ListMethod::Backend),
            b"channel.members" => Self::List(ListMethod::Members),
            b"user.info" => Self::List(ListMethod::UserInfo),
            b"channel.info" => Self::List(ListMethod::ChannelInfo),
            b"tap.start" => Self::Tap,
            b"tap.stop" => Self::Untap,
            _ => return None,
        })
    }
}

fn read_envelope<'a>(document: &JsonDocument<'_, 'a>) -> ApiRequest<'a> {
    let (mut method, mut params) = (None, None);
    for (key, value) in document.root().fields() {
        match key {
            "m" => method = Some(value),
            "p" => params = Some(value),
            _ => {}
        }
    }
    let (id, bad_id) = read_id(document);
    let call = match bad_id {
        Some(fault) => Err(fault),
        None if !document.root().is_object() => {
            Err(Fault::invalid("expected a JSON object with m, p and i"))
        }
        None => read_method(method).and_then(|method| read_params(method, params, document)),
    };
    ApiRequest { id, call }
}

/// Returns the JSON text of a request's id, and what is wrong with the id if it is invalid.
pub(super) fn read_id<'a>(document: &JsonDocument<'_, 'a>) -> (&'a str, Option<Fault>) {
    let (mut id, mut alias) = (None, None);
    for (key, value) in document.root().fields() {
        match key {
            "i" => id = Some((key, value)),
            "id" => alias = Some((key, value)),
            _ => {}
        }
    }
    match id.or(alias) {
        None => ("null", None),
        Some((key, value)) => match value.0[0] {
            Node::Object { .. } | Node::Array { .. } | Node::Static(StaticNode::Bool(_)) => {
                ("null", Some(Fault::invalid("i: expected a number, a string or null")))
            }
            _ => (document.raw_after(key), None),
        },
    }
}

fn read_method(method: Option<Value<'_, '_>>) -> Result<ApiMethod, Fault> {
    let name = method
        .ok_or_else(|| Fault::invalid("m: missing; expected the name of a method"))?
        .text()
        .ok_or_else(|| Fault::invalid("m: expected a string"))?;
    ApiMethod::from_name(name.as_bytes()).ok_or_else(|| {
        Fault::invalid(format!(
            "m: unknown method {}; known are mesh.send, mesh.publish, conn.call, user.send, user.call, \
             queue.pop, queue.unpop, queue.ack, queue.nack, queue.push, admin.reload, node.list, \
             client.list, channel.list, topic.list, backend.list, channel.members, user.info, \
             channel.info, tap.start, tap.stop",
            quoted(name)
        ))
    })
}

#[cfg(test)]
mod tests;
