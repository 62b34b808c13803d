//! Reads the parameters of lists.

use super::{
    BackendsCall, ClientCursor, ClientFilter, ClientsCall, ListCall, ListMethod, NamesCall,
    PAGE_DEFAULT, PAGE_MAX,
};
use crate::address::{ClientId, NodeId};
use crate::protocol::api::document::Value;
use crate::protocol::api::params::{
    client_of, optional, read_name, read_network, read_user, read_users, required,
};
use crate::protocol::api::{Fault, NAME_BYTES_MAX, ROUTE_PATH_BYTES_MAX};

/// Reads the parameters of a list.
pub(in crate::protocol::api) fn read_list(
    method: ListMethod,
    params: Option<Value<'_, '_>>,
) -> Result<ListCall, Fault> {
    Ok(match method {
        ListMethod::Node => ListCall::Node,
        ListMethod::Client => ListCall::Client(Box::new(read_clients(params)?)),
        ListMethod::Channel => ListCall::Channel(read_channels(params)?),
        ListMethod::Topic => ListCall::Topic(read_names(params)?),
        ListMethod::Backend => ListCall::Backend(Box::new(read_backends(params)?)),
        ListMethod::Members => ListCall::Members(Box::new(read_members(params)?)),
        ListMethod::UserInfo => ListCall::UserInfo(read_users(params)?),
        ListMethod::ChannelInfo => ListCall::ChannelInfo(read_named_channels(params)?),
    })
}

fn read_clients(params: Option<Value<'_, '_>>) -> Result<ClientsCall, Fault> {
    let channel = optional(params, "channel").map(|value| read_name("channel", value));
    let filter = ClientFilter {
        clients: optional(params, "c").map(read_client_ids).transpose()?,
        user: optional(params, "user").map(|user| read_user("user", user)).transpose()?,
        channel: channel.transpose()?.map(Box::from),
        address: optional(params, "address").map(read_network).transpose()?,
        route: optional(params, "route").map(read_route).transpose()?,
    };
    let node = optional(params, "node").map(read_node).transpose()?;
    Ok(ClientsCall { filter, node, after: read_cursor(params)?, max: read_max(params)? })
}

fn read_members(params: Option<Value<'_, '_>>) -> Result<ClientsCall, Fault> {
    let channel = Some(read_name("c", required(params, "c")?)?.into());
    let filter = ClientFilter { channel, ..ClientFilter::default() };
    Ok(ClientsCall { filter, node: None, after: read_cursor(params)?, max: read_max(params)? })
}

/// Reads one channel, or an array of them. A channel that is named twice counts once.
fn read_named_channels(params: Option<Value<'_, '_>>) -> Result<Vec<Box<str>>, Fault> {
    let given = required(params, "c")?;
    let Some(items) = given.items() else { return Ok(vec![read_name("c", given)?.into()]) };
    if !(1..=PAGE_MAX).contains(&given.len()) {
        return Err(Fault::invalid(format!("c: expected 1 to {PAGE_MAX} channels")));
    }
    let names = items.map(|item| read_name("c", item).map(Box::from));
    let mut names = names.collect::<Result<Vec<Box<str>>, _>>()?;
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

fn read_cursor(params: Option<Value<'_, '_>>) -> Result<Option<ClientCursor>, Fault> {
    let Some(after) = optional(params, "after") else { return Ok(None) };
    let cursor = after.text().and_then(|text| text.parse().ok());
    let wrong = || Fault::invalid("after: expected the \"next\" of an earlier answer");
    cursor.map(Some).ok_or_else(wrong)
}

/// Reads one client id, or an array of them.
fn read_client_ids(value: Value<'_, '_>) -> Result<Vec<ClientId>, Fault> {
    let Some(items) = value.items() else { return client_of(value).map(|client| vec![client]) };
    if !(1..=PAGE_MAX).contains(&value.len()) {
        return Err(Fault::invalid(format!("c: expected 1 to {PAGE_MAX} client ids")));
    }
    let mut clients = items.map(client_of).collect::<Result<Vec<_>, _>>()?;
    clients.sort_unstable();
    clients.dedup();
    Ok(clients)
}

/// Reads the path of a route, which may be longer than a name. No route has a path with other bytes.
fn read_route(value: Value<'_, '_>) -> Result<Box<str>, Fault> {
    let path = value.text().filter(|path| path.starts_with('/'));
    let path = path.filter(|path| path.bytes().all(|byte| byte.is_ascii_graphic()));
    let path =
        path.ok_or_else(|| Fault::invalid("route: expected the path of a route, such as \"/ws\""))?;
    match path.len() <= ROUTE_PATH_BYTES_MAX {
        true => Ok(path.into()),
        false => Err(Fault::invalid(format!("route: more than {ROUTE_PATH_BYTES_MAX} bytes"))),
    }
}

fn read_node(value: Value<'_, '_>) -> Result<NodeId, Fault> {
    let number = value.unsigned().and_then(|number| u16::try_from(number).ok());
    let node = number.and_then(NodeId::new);
    node.ok_or_else(|| Fault::invalid("node: expected the id of a node, an integer from 0 to 1023"))
}

fn read_channels(params: Option<Value<'_, '_>>) -> Result<NamesCall, Fault> {
    let prefix = match optional(params, "prefix").map(Value::text) {
        None => "",
        Some(Some(prefix)) if prefix.len() <= NAME_BYTES_MAX => prefix,
        Some(Some(_)) => return Err(Fault::invalid("prefix: expected at most 255 bytes")),
        Some(None) => return Err(Fault::invalid("prefix: expected a string")),
    };
    Ok(NamesCall { prefix: prefix.into(), ..read_names(params)? })
}

fn read_backends(params: Option<Value<'_, '_>>) -> Result<BackendsCall, Fault> {
    let topic = optional(params, "topic").map(|topic| read_name("topic", topic).map(Box::from));
    Ok(BackendsCall { topic: topic.transpose()?, page: read_names(params)? })
}

fn read_names(params: Option<Value<'_, '_>>) -> Result<NamesCall, Fault> {
    let after = optional(params, "after").map(|after| read_name("after", after).map(Box::from));
    Ok(NamesCall { prefix: "".into(), after: after.transpose()?, max: read_max(params)? })
}

fn read_max(params: Option<Value<'_, '_>>) -> Result<usize, Fault> {
    let max = optional(params, "max").map_or(Some(PAGE_DEFAULT as u64), Value::unsigned);
    match max.map(|max| max as usize) {
        Some(max) if (1..=PAGE_MAX).contains(&max) => Ok(max),
        _ => Err(Fault::invalid(format!("max: expected an integer from 1 to {PAGE_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::api::{ApiMethod, Call, Parser};

    fn read(method: ListMethod, params: &str) -> Result<ListCall, String> {
        let mut input = params.as_bytes().to_vec();
        match Parser::default().params(ApiMethod::List(method), &mut input) {
            Ok(Call::List(call)) => Ok(call),
            Ok(other) => panic!("unexpected {other:?}"),
            Err(fault) => Err(fault.message.into_owned()),
        }
    }

    fn clients(params: &str) -> Result<ClientsCall, String> {
        match read(ListMethod::Client, params)? {
            ListCall::Client(call) => Ok(*call),
            other => panic!("unexpected {other:?}"),
        }
    }

    #[test]
    fn without_params_everything_is_listed_in_pages_of_a_hundred() {
        for params in ["{}", "[]", "[{}]", r#"{"c":null,"user":null,"max":null,"x":1}"#] {
            let call = clients(params).expect("it is valid");
            assert_eq!((call.filter, call.max), (ClientFilter::default(), 100));
            assert_eq!((call.node, call.after), (None, None));
        }
        for method in [ListMethod::Channel, ListMethod::Topic] {
            let call = read(method, "{}").expect("it is valid");
            let (ListCall::Channel(names) | ListCall::Topic(names)) = call else { panic!("names") };
            assert_eq!(names, NamesCall { prefix: "".into(), after: None, max: 100 });
        }
        let page = NamesCall { prefix: "".into(), after: None, max: 100 };
        let backends = BackendsCall { topic: None, page };
        assert_eq!(read(ListMethod::Backend, "{}"), Ok(ListCall::Backend(Box::new(backends))));
    }

    #[test]
    fn every_condition_is_read() {
        let call = clients(
            r#"{"c":["7",5,"7"],"user":"10000","channel":"news","address":"::ffff:10.0.0.1",
                "route":"/ws","node":1023,"after":"2-17","max":1000}"#,
        )
        .expect("it is valid");
        let ids = [5, 7].map(ClientId::from_value).to_vec();
        assert_eq!(call.filter.clients, Some(ids));
        assert_eq!(call.filter.address, "10.0.0.1/32".parse().ok());
        assert_eq!((call.filter.user.as_deref(), call.max), (Some("10000"), 1000));
        let numbered = clients(r#"{"user":10000}"#).expect("a number is a user");
        assert_eq!(numbered.filter.user, call.filter.user);
        let after = ClientCursor { node: NodeId::new(2).expect("a small number"), place: 17 };
        assert_eq!((call.node.map(NodeId::number), call.after), (Some(1023), Some(after)));
    }

    #[test]
    fn users_and_channels_are_named_alone_or_in_an_array_and_count_once() {
        let names = |names: &[&str]| names.iter().map(|&name| Box::from(name)).collect::<Vec<_>>();
        let users = |params| read(ListMethod::UserInfo, params);
        assert_eq!(users(r#"{"u":7}"#), Ok(ListCall::UserInfo(names(&["7"]))));
        assert_eq!(
            users(r#"{"u":["b",7,"a","7"]}"#),
            Ok(ListCall::UserInfo(names(&["7", "a", "b"])))
        );
        let channels = |params| read(ListMethod::ChannelInfo, params);
        assert_eq!(channels(r#"{"c":"a"}"#), Ok(ListCall::ChannelInfo(names(&["a"]))));
        assert_eq!(
            channels(r#"{"c":["b","a","b"]}"#),
            Ok(ListCall::ChannelInfo(names(&["a", "b"])))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let max = "max: expected an integer from 1 to 1000";
        let after = "after: expected the \"next\" of an earlier answer";
        let ids = "c: expected 1 to 1000 client ids";
        let path = "route: expected the path of a route, such as \"/ws\"";
        let id = "c: expected a client id, as a string of decimal digits or an integer";
        let many = format!("{{\"c\":[{}1]}}", "1,".repeat(PAGE_MAX));
        let route = |bytes: usize| format!("{{\"route\":\"/{}\"}}", "x".repeat(bytes - 1));
        let (longest, longer) = (route(ROUTE_PATH_BYTES_MAX), route(ROUTE_PATH_BYTES_MAX + 1));
        assert!(clients(&longest).is_ok());
        let table = [
            (r#"{"max":0}"#, max),
            (r#"{"max":1001}"#, max),
            (r#"{"max":-1}"#, max),
            (r#"{"max":1.5}"#, max),
            (r#"{"max":"9"}"#, max),
            (r#"{"after":"x"}"#, after),
            (r#"{"after":"1-"}"#, after),
            (r#"{"after":"1-+1"}"#, after),
            (r#"{"after":"01-1"}"#, after),
            (r#"{"after":"1024-1"}"#, after),
            (r#"{"after":"1-18446744073709551616"}"#, after),
            (r#"{"after":7}"#, after),
            (r#"{"c":[]}"#, ids),
            (&many, ids),
            (r#"{"c":["x"]}"#, id),
            (r#"{"c":{}}"#, id),
            (r#"{"user":""}"#, "user: expected 1 to 255 bytes"),
            (
                r#"{"user":true}"#,
                "user: expected a user, as a string or an integer from 0 to 18446744073709551615",
            ),
            (r#"{"channel":[]}"#, "channel: expected a string"),
            (
                r#"{"address":"10.0.0.0/33"}"#,
                "address: expected an IP address, or a network such as \"10.0.0.0/8\"",
            ),
            (r#"{"route":"ws"}"#, path),
            (r#"{"route":"/w s"}"#, path),
            (r#"{"route":"/é"}"#, path),
            (&longer, "route: more than 1024 bytes"),
            (r#"{"node":1024}"#, "node: expected the id of a node, an integer from 0 to 1023"),
        ];
        for (params, message) in table {
            assert_eq!(clients(params), Err(message.to_owned()), "{params}");
        }
        let channels = |params| read(ListMethod::Channel, params);
        assert_eq!(channels(r#"{"prefix":1}"#), Err("prefix: expected a string".into()));
        assert_eq!(channels(r#"{"after":""}"#), Err("after: expected 1 to 255 bytes".into()));
        let members = |params| read(ListMethod::Members, params);
        assert_eq!(members(r#"{"after":"1-1"}"#), Err("c: missing".into()));
        assert_eq!(members(r#"{"c":""}"#), Err("c: expected 1 to 255 bytes".into()));
        assert_eq!(members(r#"{"c":"a","after":"x"}"#), Err(after.into()));
        let infos = |params| read(ListMethod::ChannelInfo, params);
        let many = format!("{{\"c\":[{}\"a\"]}}", "\"a\",".repeat(PAGE_MAX));
        for params in [r#"{"c":[]}"#, &many] {
            assert_eq!(infos(params), Err("c: expected 1 to 1000 channels".into()));
        }
        assert_eq!(infos("{}"), Err("c: missing".into()));
        assert_eq!(infos(r#"{"c":[1]}"#), Err("c: expected a string".into()));
        let users = |params| read(ListMethod::UserInfo, params);
        assert_eq!(users("{}"), Err("u: missing".into()));
        let backends = |params| read(ListMethod::Backend, params);
        assert_eq!(backends(r#"{"topic":1}"#), Err("topic: expected a string".into()));
        assert_eq!(backends(r#"{"max":0}"#), Err(max.into()));
    }
}
