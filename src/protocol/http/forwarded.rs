//! The address of a client behind proxies, from `X-Forwarded-For` or `Forwarded` (RFC 7239).

use std::net::{IpAddr, SocketAddr};

use super::Request;
use super::list::{ends_quoted, list_members, split_unquoted};
use crate::address::networks::Networks;
use crate::address::remote::Remote;

/// Returns the address of the client that sent a request through the trusted proxies: the last one in
/// the request's `X-Forwarded-For` that is not a proxy's. If all are, that is the first one. Without
/// `X-Forwarded-For` the request's `Forwarded` counts.
///
/// Each proxy appends the address that it was reached from. An entry that is no address ends the search
/// from the end: the proxy that wrote it is the last one known, so its own address is returned. `None`
/// stands for the proxy that is connected, as it does if there is no entry.
pub fn forwarded_for(request: &Request<'_>, proxies: &Networks) -> Option<Remote> {
    let mut listed = request.header_values("x-forwarded-for").flat_map(plain_members).peekable();
    if listed.peek().is_some() {
        return client(listed.map(parse_node), proxies);
    }
    let lines = request.header_values("forwarded");
    let elements = lines.flat_map(|line| {
        // A client may have sent a quote without its end, so that the proxy's element seems quoted.
        let is_whole = !ends_quoted(line);
        let quoted = is_whole.then(|| list_members(line)).into_iter().flatten();
        quoted.chain((!is_whole).then(|| plain_members(line)).into_iter().flatten())
    });
    let elements = elements.filter(|element| !element.is_empty());
    client(elements.map(|element| parse_node(for_parameter(element)?)), proxies)
}

/// Yields the members of a list that are not empty. Quotes have no meaning.
fn plain_members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Returns the client of a chain of entries in the order of the request. `None` in the chain is an
/// entry that is no address.
fn client(chain: impl Iterator<Item = Option<Remote>>, proxies: &Networks) -> Option<Remote> {
    let mut client = None;
    for entry in chain {
        let is_proxy = entry.is_some_and(|entry| proxies.contains(entry.ip()));
        // A proxy that passes on a client's address leaves it as it is.
        if !is_proxy || client.is_none() {
            client = entry;
        }
    }
    client
}

/// Returns the value of `for` in an element of `Forwarded`, without its quotes.
fn for_parameter(element: &[u8]) -> Option<&[u8]> {
    split_unquoted(element, b';').find_map(|pair| {
        let (name, value) = pair.split_at(pair.iter().position(|&byte| byte == b'=')?);
        let value = &value[1..];
        let unquoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        name.eq_ignore_ascii_case(b"for").then(|| unquoted.unwrap_or(value))
    })
}

/// Parses an address with or without a port. An IPv6 address with a port is in brackets; one without may
/// be.
fn parse_node(text: &[u8]) -> Option<Remote> {
    let text = str::from_utf8(text).ok()?;
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(address.into());
    }
    let bracketed = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bracketed {
        Some(address) => IpAddr::V6(address.parse().ok()?),
        None => text.parse().ok()?,
    };
    Some(Remote::Ip(address, None))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::http::{RequestLimits, RequestReader, RequestStep};

    /// Returns the client of a request with these header lines.
    fn found(headers: &[&str]) -> Option<String> {
        let networks = ["10.0.0.0/8", "fd00::/8"].map(|text| text.parse().expect("a network"));
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        let mut bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes();
        let limits = RequestLimits { head_bytes: 4096, headers: 16, body_bytes: 0 };
        let (mut reader, mut input) = (RequestReader::default(), &mut bytes[..]);
        let step = reader.read(&mut input, &limits).expect("a valid request");
        let RequestStep::Request(request) = step else { panic!("an incomplete request") };
        let remote = forwarded_for(&request, &Networks::from_iter(networks));
        remote.map(|remote| remote.to_string())
    }

    #[test]
    fn the_last_address_that_is_not_a_proxys_counts() {
        let table: [(&[&str], Option<&str>); 24] = [
            (&[], None),
            (&["X-Forwarded-For: 192.0.2.1"], Some("192.0.2.1")),
            (&["x-forwarded-for: 192.0.2.1:80"], Some("192.0.2.1:80")),
            (&["X-Forwarded-For: 2001:db8::1"], Some("2001:db8::1")),
            (&["X-Forwarded-For: [2001:db8::1]"], Some("2001:db8::1")),
            (&["X-Forwarded-For: [2001:db8::1]:80"], Some("[2001:db8::1]:80")),
            // The client wrote the first entry itself, so that entry is ignored.
            (&["X-Forwarded-For: 198.51.100.7, 192.0.2.1"], Some("192.0.2.1")),
            (&["X-Forwarded-For: 198.51.100.7", "X-Forwarded-For: 192.0.2.1"], Some("192.0.2.1")),
            (&["X-Forwarded-For: 10.0.0.9, 192.0.2.1, 10.0.0.2,fd00::1"], Some("192.0.2.1")),
            (&["X-Forwarded-For: 10.0.0.3, 10.0.0.2"], Some("10.0.0.3")),
            (&["X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.3, 10.0.0.2"], Some("10.0.0.3")),
            (&["X-Forwarded-For: 192.0.2.1, unknown"], None),
            (&["X-Forwarded-For: , 192.0.2.1,,"], Some("192.0.2.1")),
            (&["X-Forwarded-For: \"x, 192.0.2.1"], Some("192.0.2.1")),
            (&["X-Forwarded-For: \u{fc}"], None),
            (&["Forwarded: for=192.0.2.1;proto=https;by=10.0.0.1"], Some("192.0.2.1")),
            (&["Forwarded: proto=http; For=\"[2001:db8::1]:80\""], Some("[2001:db8::1]:80")),
            (&["Forwarded: for=198.51.100.7, for=\"192.0.2.1:80\""], Some("192.0.2.1:80")),
            (&["Forwarded: for=\"192.0.2.7, for=192.0.2.1"], Some("192.0.2.1")),
            (&["Forwarded: \"x, for=192.0.2.1;host=\"a,b\", for=10.0.0.4"], Some("10.0.0.4")),
            (&["Forwarded: for=192.0.2.1;host=\"a,b\""], Some("192.0.2.1")),
            (&["Forwarded: proto=http, for=10.0.0.4"], Some("10.0.0.4")),
            (&["Forwarded: for=192.0.2.1, for=_hidden, for=10.0.0.4"], Some("10.0.0.4")),
            (&["Forwarded: for=192.0.2.1", "X-Forwarded-For: 192.0.2.2"], Some("192.0.2.2")),
        ];
        for (headers, expected) in table {
            assert_eq!(found(headers).as_deref(), expected, "{headers:?}");
        }
    }
}
