//! Parses the parameters of each method, or reports a fault that names the wrong field.

use std::borrow::Cow;
use std::collections::HashSet;

use base64::Engine;

use super::document::{JsonDocument, Value};
use super::list::read_list;
use super::read::ApiMethod;
use super::tap::read_tap;
use super::{
    BASE64, CHANNELS_PER_CALL_MAX, CHANNELS_PER_PUBLISH_MAX, CLOSE_REASON_BYTES_MAX,
    CONTEXT_KEYS_MAX, Call, Content, ContextEntry, DELAY_MS_MAX, EXCLUDED_MAX, Fault, Function,
    MultiPublish, NAME_BYTES_MAX, PUBLISH_KEY_BYTES_MAX, PushedEvent, Settling, TAKE_WAIT_MS_MAX,
    TAKEN_DEFAULT, TAKEN_MAX, TOPICS_PER_POP_MAX, Tags, TakeCall, TakenTag, UNSETTLED_DEFAULT,
    UNSETTLED_MAX, USERS_PER_CALL_MAX,
};
use crate::address::ClientId;
use crate::address::networks::Network;
use crate::protocol::close;
use crate::protocol::frame::Kind;
use crate::protocol::json;

/// Converts the parameters of a method to a call.
pub(super) fn read_params<'a>(
    method: ApiMethod,
    params: Option<Value<'_, 'a>>,
    document: &JsonDocument<'_, 'a>,
) -> Result<Call<'a>, Fault> {
    let given = match (method, params) {
        (ApiMethod::Unpop | ApiMethod::Reload, _) | (_, None) => {
            let missing = || Fault::invalid("p: missing; expected an object");
            return method.call_without_params().ok_or_else(missing);
        }
        (_, Some(given)) => given,
    };
    if method == ApiMethod::Pop
        && let Some(topics) = bare_topics(given)
    {
        return topics.map(|topics| Call::Pop(topics, Settling::Written, None));
    }
    let params = object_of(given)?;
    Ok(match method {
        ApiMethod::Send => Call::Send(read_client(params)?, read_content(params)?),
        ApiMethod::Publish => read_publish(params)?,
        ApiMethod::Call => Call::Call(read_client(params)?, read_function(params, document)?),
        ApiMethod::UserSend => Call::UserSend(read_users(params)?, read_content(params)?),
        ApiMethod::UserCall => {
            Call::UserCall(read_users(params)?, read_function(params, document)?)
        }
        ApiMethod::Pop => {
            let topics = read_topics(params.and_then(|p| p.field("t")))?;
            Call::Pop(topics, read_settling(params)?, read_group(params)?)
        }
        ApiMethod::Ack => Call::Ack(read_tags(params)?),
        ApiMethod::Take => Call::Take(read_take(params)?),
        ApiMethod::Push => Call::Push(read_pushed(params)?),
        ApiMethod::Nack => Call::Nack(read_tags(params)?, read_delay(params)?),
        ApiMethod::Tap => Call::Tap(read_tap(params)?),
        ApiMethod::Unpop => Call::Unpop,
        ApiMethod::Reload => Call::Reload,
        ApiMethod::Untap => Call::Untap,
        ApiMethod::List(list) => Call::List(read_list(list, params)?),
    })
}

/// Returns the object that holds the parameters. Older clients wrap it in an array, and send an empty
/// array for no parameters.
pub(super) fn object_of<'t, 'a>(given: Value<'t, 'a>) -> Result<Option<Value<'t, 'a>>, Fault> {
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

/// Parses the topics in the form of older clients, `"p":["topic"]`. Returns `None` for any other form.
fn bare_topics<'a>(given: Value<'_, 'a>) -> Option<Result<Vec<&'a str>, Fault>> {
    given.items()?.next()?.text()?;
    Some(read_topics(Some(given)))
}

fn read_publish<'a>(params: Option<Value<'_, 'a>>) -> Result<Call<'a>, Fault> {
    let (given, excluded) = (required(params, "c")?, read_excluded(params)?);
    let key = read_publish_key(params)?;
    let is_list = given.items().is_some();
    let channels = match given.items() {
        Some(_) => read_channels_to_publish(given)?,
        None => vec![read_name("c", given)?],
    };
    let content = read_content(params)?;
    Ok(match channels[..] {
        [channel] if excluded.is_empty() && key.is_none() && !is_list => {
            Call::Publish(channel, content)
        }
        _ => {
            let publish = MultiPublish { channels, is_list, excluded, key, content };
            Call::MultiPublish(Box::new(publish))
        }
    })
}

fn read_publish_key<'a>(params: Option<Value<'_, 'a>>) -> Result<Option<&'a str>, Fault> {
    let Some(given) = optional(params, "k") else { return Ok(None) };
    match given.text() {
        Some(key) if (1..=PUBLISH_KEY_BYTES_MAX).contains(&key.len()) => Ok(Some(key)),
        Some(_) => {
            let why = format!("k: expected 1 to {PUBLISH_KEY_BYTES_MAX} bytes");
            Err(Fault::invalid(why))
        }
        None => Err(Fault::invalid("k: expected a string")),
    }
}

fn read_channels_to_publish<'a>(given: Value<'_, 'a>) -> Result<Vec<&'a str>, Fault> {
    let wrong = || Fault::invalid("c: expected a channel name, or an array of one or more");
    if given.len() > CHANNELS_PER_PUBLISH_MAX {
        return Err(Fault::invalid(format!("c: more than {CHANNELS_PER_PUBLISH_MAX} channels")));
    }
    let names = given.items().ok_or_else(wrong)?.map(|item| read_name("c", item));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    let mut seen = HashSet::with_capacity(names.len());
    names.retain(|&name| seen.insert(name));
    if names.is_empty() { Err(wrong()) } else { Ok(names) }
}

fn read_excluded(params: Option<Value<'_, '_>>) -> Result<Vec<ClientId>, Fault> {
    let Some(given) = optional(params, "x") else { return Ok(Vec::new()) };
    let wrong = || Fault::invalid("x: expected an array of client ids");
    let items = given.items().ok_or_else(wrong)?;
    if given.len() > EXCLUDED_MAX {
        return Err(Fault::invalid(format!("x: more than {EXCLUDED_MAX} clients")));
    }
    items.map(client_id).collect::<Option<_>>().ok_or_else(wrong)
}

fn read_topics<'a>(topics: Option<Value<'_, 'a>>) -> Result<Vec<&'a str>, Fault> {
    let wrong = || Fault::invalid("t: expected an array of one or more topic names");
    let topics = topics.ok_or_else(wrong)?;
    let items = topics.items().ok_or_else(wrong)?;
    // Repeated names count, so that removing them stays cheap.
    if topics.len() > TOPICS_PER_POP_MAX {
        return Err(Fault::invalid(format!("t: more than {TOPICS_PER_POP_MAX} topics")));
    }
    let mut names = Vec::new();
    for item in items {
        let name = read_name("t", item)?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { Err(wrong()) } else { Ok(names) }
}

fn read_settling(params: Option<Value<'_, '_>>) -> Result<Settling, Fault> {
    if !read_flag("a", optional(params, "a"))? {
        return Ok(Settling::Written);
    }
    let window = optional(params, "w").map_or(Some(UNSETTLED_DEFAULT as u64), Value::unsigned);
    match window.map(|window| window as usize) {
        Some(window) if (1..=UNSETTLED_MAX).contains(&window) => Ok(Settling::Acknowledged(window)),
        _ => Err(Fault::invalid(format!("w: expected an integer from 1 to {UNSETTLED_MAX}"))),
    }
}

fn read_tags(params: Option<Value<'_, '_>>) -> Result<Tags, Fault> {
    let wrong = || {
        let why = "g: expected the tag of an event, an integer or for a taken event a string, or an \
                   array of tags of one kind";
        Fault::invalid(why)
    };
    let given = required(params, "g")?;
    if let Some(text) = given.text() {
        return Ok(Tags::Taken(vec![read_taken_tag(text)?]));
    }
    if let Some(mut items) = given.items() {
        if given.len() > UNSETTLED_MAX {
            return Err(Fault::invalid(format!("g: more than {UNSETTLED_MAX} tags")));
        }
        if given.items().and_then(|mut items| items.next()?.text()).is_some() {
            let tag = |item: Value<'_, '_>| read_taken_tag(item.text().ok_or_else(wrong)?);
            return items.by_ref().map(tag).collect::<Result<_, _>>().map(Tags::Taken);
        }
        let tags: Option<Vec<u64>> = items.map(Value::unsigned).collect();
        return tags.filter(|tags| !tags.is_empty()).map(Tags::Each).ok_or_else(wrong);
    }
    let tag = given.unsigned().ok_or_else(wrong)?;
    let up_to = read_flag("u", optional(params, "u"))?;
    Ok(if up_to { Tags::UpTo(tag) } else { Tags::One(tag) })
}

fn read_taken_tag(text: &str) -> Result<TakenTag, Fault> {
    let wrong = || {
        let why = format!("g: {} is no tag of a taken event, or a damaged one", quoted(text));
        Fault::invalid(why)
    };
    TakenTag::from_text(text).ok_or_else(wrong)
}

fn read_take<'a>(params: Option<Value<'_, 'a>>) -> Result<TakeCall<'a>, Fault> {
    let topics = read_topics(params.and_then(|params| params.field("t")))?;
    let max = optional(params, "max").map_or(Some(TAKEN_DEFAULT as u64), Value::unsigned);
    let max = max
        .filter(|max| (1..=TAKEN_MAX as u64).contains(max))
        .ok_or_else(|| Fault::invalid(format!("max: expected an integer from 1 to {TAKEN_MAX}")))?;
    let wait_ms = optional(params, "wait_ms").map_or(Some(0), Value::unsigned);
    let wait_ms = wait_ms.filter(|&wait_ms| wait_ms <= u64::from(TAKE_WAIT_MS_MAX));
    let wait_ms = wait_ms.ok_or_else(|| {
        Fault::invalid(format!("wait_ms: expected an integer from 0 to {TAKE_WAIT_MS_MAX}"))
    })?;
    let group = read_group(params)?;
    Ok(TakeCall { topics, group, max: max as usize, wait_ms: wait_ms as u32 })
}

fn read_pushed<'a>(params: Option<Value<'_, 'a>>) -> Result<PushedEvent<'a>, Fault> {
    let topic = read_name("t", required(params, "t")?)?;
    let data = required(params, "d")?.text();
    let data = data.ok_or_else(|| Fault::invalid("d: expected a string"))?;
    let key = optional(params, "k").map(|key| read_name("k", key)).transpose()?;
    Ok(PushedEvent { topic, data, key, after_ms: read_delay(params)? })
}

fn read_group<'a>(params: Option<Value<'_, 'a>>) -> Result<Option<&'a str>, Fault> {
    optional(params, "group").map(|group| read_name("group", group)).transpose()
}

fn read_delay(params: Option<Value<'_, '_>>) -> Result<u32, Fault> {
    let delay = optional(params, "after_ms").map_or(Some(0), Value::unsigned);
    let delay = delay.and_then(|delay| u32::try_from(delay).ok());
    delay.filter(|&delay| delay <= DELAY_MS_MAX).ok_or_else(|| {
        Fault::invalid(format!("after_ms: expected an integer from 0 to {DELAY_MS_MAX}"))
    })
}

fn read_flag(name: &'static str, value: Option<Value<'_, '_>>) -> Result<bool, Fault> {
    value
        .map_or(Some(false), Value::flag)
        .ok_or_else(|| Fault::invalid(format!("{name}: expected true or false")))
}

/// Returns an optional field. `null` counts as absent.
pub(super) fn optional<'t, 'a>(
    params: Option<Value<'t, 'a>>,
    field: &str,
) -> Option<Value<'t, 'a>> {
    params.and_then(|params| params.field(field)).filter(|value| !value.is_null())
}

pub(super) fn required<'t, 'a>(
    params: Option<Value<'t, 'a>>,
    field: &'static str,
) -> Result<Value<'t, 'a>, Fault> {
    params
        .and_then(|params| params.field(field))
        .ok_or_else(|| Fault::invalid(format!("{field}: missing")))
}

pub(super) fn read_name<'a>(field: &'static str, value: Value<'_, 'a>) -> Result<&'a str, Fault> {
    match value.text() {
        Some(name) if (1..=NAME_BYTES_MAX).contains(&name.len()) => Ok(name),
        Some(_) => Err(Fault::invalid(format!("{field}: expected 1 to {NAME_BYTES_MAX} bytes"))),
        None => Err(Fault::invalid(format!("{field}: expected a string"))),
    }
}

/// Reads a user, who may have a number instead of a name.
pub(super) fn read_user(field: &'static str, value: Value<'_, '_>) -> Result<Box<str>, Fault> {
    match (value.unsigned(), value.text()) {
        (Some(number), _) => Ok(number.to_string().into()),
        (None, Some(_)) => read_name(field, value).map(Box::from),
        (None, None) => Err(Fault::invalid(format!(
            "{field}: expected a user, as a string or an integer from 0 to {}",
            u64::MAX
        ))),
    }
}

/// Reads the users that a call is for: one, or an array. A user that is named twice counts once.
pub(super) fn read_users(params: Option<Value<'_, '_>>) -> Result<Vec<Box<str>>, Fault> {
    let given = required(params, "u")?;
    let Some(items) = given.items() else { return Ok(vec![read_user("u", given)?]) };
    if given.len() > USERS_PER_CALL_MAX {
        return Err(Fault::invalid(format!("u: more than {USERS_PER_CALL_MAX} users")));
    }
    let mut users = items.map(|item| read_user("u", item)).collect::<Result<Vec<_>, _>>()?;
    users.sort_unstable();
    users.dedup();
    match users.is_empty() {
        true => Err(Fault::invalid("u: expected a user, or an array of one or more")),
        false => Ok(users),
    }
}

/// Reads an IP address, which stands for a network of one address, or a network.
pub(super) fn read_network(value: Value<'_, '_>) -> Result<Network, Fault> {
    let network = value.text().and_then(|text| text.parse().ok());
    network.ok_or_else(|| {
        Fault::invalid("address: expected an IP address, or a network such as \"10.0.0.0/8\"")
    })
}

pub(super) fn read_client(params: Option<Value<'_, '_>>) -> Result<ClientId, Fault> {
    client_of(required(params, "c")?)
}

/// Returns the client id that a value of the field `c` is.
pub(super) fn client_of(value: Value<'_, '_>) -> Result<ClientId, Fault> {
    client_id(value).ok_or_else(|| {
        Fault::invalid("c: expected a client id, as a string of decimal digits or an integer")
    })
}

fn client_id(value: Value<'_, '_>) -> Option<ClientId> {
    let from_text = || value.text()?.parse().ok();
    value.unsigned().map(ClientId::from_value).or_else(from_text)
}

pub(super) fn read_content<'a>(params: Option<Value<'_, 'a>>) -> Result<Content<'a>, Fault> {
    let data =
        required(params, "d")?.text().ok_or_else(|| Fault::invalid("d: expected a string"))?;
    let kind = optional(params, "t").map_or(Some("text"), Value::text);
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
    document: &JsonDocument<'_, '_>,
) -> Result<Function, Fault> {
    let name =
        required(params, "f")?.text().ok_or_else(|| Fault::invalid("f: expected a string"))?;
    let arguments: Vec<_> = match optional(params, "a") {
        None => Vec::new(),
        Some(value) => {
            value.items().ok_or_else(|| Fault::invalid("a: expected an array"))?.collect()
        }
    };
    match (name, &arguments[..]) {
        ("set_context_value", &[key, _]) => {
            let key = read_name("a[0]", key)?;
            Ok(Function::SetContextValue(key.into(), read_context_value(key, document)?))
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
    document: &JsonDocument<'_, '_>,
) -> Result<Vec<ContextEntry>, Fault> {
    // Repeated keys count, so that removing them stays cheap.
    if object.len() > CONTEXT_KEYS_MAX {
        return Err(Fault::invalid(format!("a: more than {CONTEXT_KEYS_MAX} keys")));
    }
    let mut context: Vec<ContextEntry> = Vec::new();
    for (key, _) in object.fields() {
        if !(1..=NAME_BYTES_MAX).contains(&key.len()) {
            return Err(Fault::invalid(format!("a: expected keys of 1 to {NAME_BYTES_MAX} bytes")));
        }
        let value = read_context_value(key, document)?;
        match context.iter_mut().find(|(known, _)| **known == *key) {
            Some(entry) => entry.1 = value,
            None => context.push((key.into(), value)),
        }
    }
    Ok(context)
}

/// Returns the raw text of the value after a key, which is forwarded to back ends verbatim.
fn read_context_value(key: &str, document: &JsonDocument<'_, '_>) -> Result<Box<str>, Fault> {
    let value = document.raw_after(key);
    match json::check(value.as_bytes()) {
        Err(flaw) => Err(Fault::invalid(format!("a: the value of {}: {flaw}", quoted(key)))),
        Ok(value) => Ok(value.into()),
    }
}

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

/// Quotes a name for an error message: at most 64 bytes of it, escaped as a string literal.
pub(super) fn quoted(name: &str) -> String {
    format!("{:?}", &name[..name.floor_char_boundary(64)])
}
