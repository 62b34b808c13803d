//! Whatever a back end sends is answered with one JSON object, and what is passed on is JSON.

use gridcast::protocol::api::{
    self, ApiMethod, ApiRequest, Call, Fault, Function, ListCall, ListMethod, PAGE_MAX, Parser,
    Reply,
};
use gridcast::protocol::frame::Kind;
use serde::de::IgnoredAny;

const METHODS: [ApiMethod; 10] = [
    ApiMethod::Send,
    ApiMethod::Publish,
    ApiMethod::Call,
    ApiMethod::Pop,
    ApiMethod::Unpop,
    ApiMethod::Ack,
    ApiMethod::List(ListMethod::Client),
    ApiMethod::List(ListMethod::Channel),
    ApiMethod::List(ListMethod::UserInfo),
    ApiMethod::List(ListMethod::ChannelInfo),
];

/// One request, in the buffers that another one used before.
pub fn run(data: &[u8]) {
    let mut parser = Parser::default();
    let mut before = data.to_vec();
    before.reverse();
    parser.request(&mut before);

    let first = read(&mut parser, data, |request| {
        assert!(is_json(request.id.as_bytes()), "the id is JSON: {:?}", request.id);
        check_call(&request.call);
        check_answers(request);
        check_verdict(data, &request.call);
        check_content(data, &request.call);
        format!("{request:?}")
    });
    let fresh = read(&mut Parser::default(), data, |request| format!("{request:?}"));
    assert_eq!(first, fresh, "a parser that was used reads as one that was not");
    for method in METHODS {
        let mut input = data.to_vec();
        let call = parser.params(method, &mut input);
        check_call(&call);
        check_params(serde_json::from_slice(data).ok(), &call);
    }
}

fn read<T>(parser: &mut Parser, data: &[u8], see: impl FnOnce(&ApiRequest<'_>) -> T) -> T {
    see(&parser.request(&mut data.to_vec()))
}

/// Asserts that no message is called bad JSON which another parser accepts, unless it is nested too deep.
fn check_verdict(data: &[u8], call: &Result<Call<'_>, Fault>) {
    let is_refused = |fault: &Fault| {
        fault.message.starts_with("not valid JSON") && !fault.message.contains("levels of nesting")
    };
    if call.as_ref().is_err_and(is_refused) {
        assert!(serde_json::from_slice::<serde_json::Value>(data).is_err(), "{call:?}");
    }
}

/// A text that is passed on is the one that a parser of another make reads.
fn check_content(data: &[u8], call: &Result<Call<'_>, Fault>) {
    let Ok(request) = serde_json::from_slice::<serde_json::Value>(data) else { return };
    check_params(Some(request["p"].clone()), call);
}

fn check_params(params: Option<serde_json::Value>, call: &Result<Call<'_>, Fault>) {
    let Ok(Call::Publish(_, content) | Call::Send(_, content)) = call else { return };
    let Some(params) = params else { return };
    let params = params.get(0).unwrap_or(&params);
    if let (Kind::Text, Some(text)) = (content.kind, params["d"].as_str()) {
        assert_eq!(content.bytes, text.as_bytes());
    }
    if let (Ok(Call::Publish(channel, _)), Some(name)) = (call, params["c"].as_str()) {
        assert_eq!(*channel, name);
    }
}

fn check_call(call: &Result<Call<'_>, Fault>) {
    match call {
        Ok(Call::Call(_, Function::SetContextValue(_, value))) => {
            assert!(is_strict_json(value));
        }
        Ok(Call::Call(_, Function::SetContext(entries))) => {
            assert!(entries.iter().all(|(key, value)| !key.is_empty() && is_strict_json(value)));
        }
        Ok(Call::Call(_, Function::Close(_, reason))) => assert!(reason.len() <= 123),
        Ok(Call::Pop(topics, ..)) => assert!(!topics.is_empty()),
        Ok(Call::List(ListCall::Client(call))) => {
            assert!((1..=PAGE_MAX).contains(&call.max));
            let clients = call.filter.clients.iter();
            assert!(clients.flatten().is_sorted());
        }
        Ok(Call::List(ListCall::Channel(call))) => assert!((1..=PAGE_MAX).contains(&call.max)),
        Ok(Call::List(ListCall::UserInfo(names) | ListCall::ChannelInfo(names))) => {
            assert!((1..=PAGE_MAX).contains(&names.len()) && names.is_sorted());
        }
        Ok(_) => {}
        Err(fault) => assert!(!fault.message.is_empty()),
    }
}

fn check_answers(request: &ApiRequest<'_>) {
    let fault = match &request.call {
        Ok(_) => Fault::new(api::Code::SendFailed, "no such client"),
        Err(fault) => fault.clone(),
    };
    for answer in [Ok(Reply::Done), Err(fault)] {
        let mut out = Vec::new();
        api::put_answer(&mut out, &answer, Some(request.id));
        assert!(is_json(&out), "{}", out.escape_ascii());
    }
}

/// Whether a strict parser reads all of it, numbers and escapes too.
fn is_strict_json(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

fn is_json(text: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(text).is_ok()
}
