//! Web origins, as browsers send them in `Origin`. One that is written otherwise would never match.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::shape::List;

const ORIGIN: &str = "an origin such as \"https://example.org\", without a path";
const WHOLE: &str = "an origin such as \"https://example.org\", written out: there are no patterns";

/// A list of origins, in lower case.
pub(super) const ORIGINS: List<String> = List { expected: ORIGIN, parse: origin, empty: None };

fn origin(text: &str) -> Result<String, String> {
    let written = text.to_ascii_lowercase();
    match as_sent(&written) {
        Some(sent) if sent == written => Ok(sent),
        Some(sent) => Err(format!("{sent:?}, as browsers send it")),
        None if text.contains('*') => Err(WHOLE.to_owned()),
        None => Err(ORIGIN.to_owned()),
    }
}

/// The origin that a browser sends for pages at this address (RFC 6454, section 6.2; WHATWG URL,
/// sections 3.5 and 4.5); `None` if it is no address of pages. `null` is no origin to name: every
/// sandboxed page and every local file has it.
fn as_sent(address: &str) -> Option<String> {
    let (scheme, rest) = address.split_once("://")?;
    let is_scheme_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
    if !scheme.starts_with(|c: char| c.is_ascii_alphabetic()) || !scheme.bytes().all(is_scheme_byte)
    {
        return None;
    }
    // A page is not loaded over a WebSocket.
    let scheme = match scheme {
        "ws" => "http",
        "wss" => "https",
        other => other,
    };
    let authority = rest.split(['/', '?', '#']).next()?;
    let host_and_port = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (host, port) = split_port(host_and_port);
    let host = host_as_sent(host)?;
    let port = match port {
        "" => None,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse::<u16>().ok()?)
        }
        _ => return None,
    };
    Some(match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => format!("{scheme}://{host}"),
        (_, Some(port)) => format!("{scheme}://{host}:{port}"),
    })
}

/// The colons of an IPv6 address stand in brackets.
fn split_port(text: &str) -> (&str, &str) {
    let host_end = if text.starts_with('[') { text.find(']').unwrap_or(0) } else { 0 };
    match text[host_end..].find(':') {
        Some(colon) => (&text[..host_end + colon], &text[host_end + colon + 1..]),
        None => (text, ""),
    }
}

fn host_as_sent(host: &str) -> Option<String> {
    if let Some(bracketed) = host.strip_prefix('[') {
        let address: Ipv6Addr = bracketed.strip_suffix(']')?.parse().ok()?;
        return Some(match (address.to_ipv4_mapped(), address.segments()) {
            // Browsers write the IPv4 address in it as the two numbers that it is.
            (Some(_), [.., high, low]) => format!("[::ffff:{high:x}:{low:x}]"),
            (None, _) => format!("[{address}]"),
        });
    }
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_host_byte) {
        return None;
    }
    // Browsers take a host that ends in a number for an IPv4 address.
    let last = host.trim_end_matches('.').rsplit('.').next()?;
    if !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit()) {
        let address: Ipv4Addr = host.trim_end_matches('.').parse().ok()?;
        return Some(address.to_string());
    }
    Some(host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::as_sent;
    use crate::config::tests::{refused, route};

    #[test]
    fn an_origin_is_known_as_browsers_send_it() {
        for origin in [
            "https://example.org",
            "http://localhost:8080",
            "https://a_b.xn--bcher-kva.example.",
            "http://10.0.0.5:6789",
            "http://[::1]:3000",
            "https://[2001:db8::1]",
            "http://example.org:443",
            "https://example.org:80",
            "https://3com.example",
            "https://example.x1",
            "chrome-extension://abcdefghijklmnop",
            "capacitor://localhost",
        ] {
            assert_eq!(as_sent(origin).as_deref(), Some(origin));
        }
        for (written, sent) in [
            ("https://example.org/", "https://example.org"),
            ("https://example.org/app?x#y", "https://example.org"),
            ("https://example.org?x", "https://example.org"),
            ("https://example.org:", "https://example.org"),
            ("https://example.org:443", "https://example.org"),
            ("http://example.org:80/", "http://example.org"),
            ("https://example.org:08443", "https://example.org:8443"),
            ("https://user@example.org", "https://example.org"),
            ("https://user:word@example.org:1", "https://example.org:1"),
            ("wss://example.org", "https://example.org"),
            ("ws://example.org:6790", "http://example.org:6790"),
            ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
            ("http://[::ffff:10.0.0.1]", "http://[::ffff:a00:1]"),
            ("http://10.0.0.5./", "http://10.0.0.5"),
        ] {
            assert_eq!(as_sent(written).as_deref(), Some(sent), "{written}");
        }
        for address in [
            "",
            "null",
            "*",
            "example.org",
            "//example.org",
            "https://",
            "https:///a",
            "https://:1",
            "://a",
            "1a://b",
            "https://*.example.org",
            "https://*",
            "https://a b",
            "https://bücher.de",
            "https://a%41",
            "https://a:b",
            "https://a:65536",
            "https://a:1:2",
            "https://::1",
            "https://[::1",
            "https://[::1]x",
            "https://[a]",
            "http://127.1",
            "http://1.2.3.4.5",
            "http://010.0.0.1",
            "https://a,https://b",
            "file:///a",
        ] {
            assert_eq!(as_sent(address), None, "{address}");
        }
    }

    #[test]
    fn an_origin_is_a_scheme_and_a_host() {
        let refused = |origin: &str, expected: &str| {
            let list = format!("origins = [\"https://a.example\", \"{origin}\"]");
            let reason = format!("origins: expected {expected}, found \"{origin}\"");
            refused(&format!("[api]\n{list}"), &format!("gridcast.toml:2: api.{reason}"));
            refused(&route(&list), &format!("gridcast.toml:4: edge.route.{reason}"));
        };
        for origin in
            ["example.org", "https://", "null", "https://a b", "https://a:70000", "http://127.1"]
        {
            refused(origin, "an origin such as \"https://example.org\", without a path");
        }
        for origin in ["*", "https://*.example.org", "https://*"] {
            refused(
                origin,
                "an origin such as \"https://example.org\", written out: there are no patterns",
            );
        }
        for (origin, sent) in [
            ("https://example.org/", "https://example.org"),
            ("https://example.org/app", "https://example.org"),
            ("https://Example.org:443", "https://example.org"),
            ("http://example.org:80", "http://example.org"),
            ("https://example.org:", "https://example.org"),
            ("https://user@example.org", "https://example.org"),
            ("wss://example.org", "https://example.org"),
            ("http://[0:0::1]:80", "http://[::1]"),
        ] {
            refused(origin, &format!("{sent:?}, as browsers send it"));
        }
    }
}
