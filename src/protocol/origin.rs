//! Decides which web pages may call the API, by their `Origin` (RFC 6454) and `Host` headers.
//!
//! A hostile page can make its own host name resolve to this machine (DNS rebinding). Its requests
//! then carry that name in `Host`, so a matching host name proves nothing. An IP address or
//! `localhost` is safe: an attacker cannot control what they resolve to.

use std::net::IpAddr;

/// Whether `origin` is the API's own origin, for a request to `host`: the same IP address or
/// `localhost`, and the same port. An origin without a port and one with a trailing slash are accepted
/// too, because some clients send these.
pub fn is_own(origin: &[u8], host: &[u8]) -> bool {
    let (Some((scheme, origin)), Some(host)) = (split_origin(origin), Authority::parse(host))
    else {
        return false;
    };
    let Some(origin) = Authority::parse(origin) else { return false };
    let is_same_host = origin.host == host.host && !matches!(host.host, Host::Name(_));
    let port = host.port.unwrap_or(scheme.default_port());
    is_same_host && origin.port.is_none_or(|own| own == port)
}

/// Whether `host` is an IP address or `localhost`, with or without a port.
pub fn is_address(host: &[u8]) -> bool {
    let is_address = |authority: Authority| !matches!(authority.host, Host::Name(_));
    is_ipv4(host) || Authority::parse(host).is_some_and(is_address)
}

/// The fast path of [`is_address`]: whether `host` is an IPv4 address with a port of at most four
/// digits or without one. Most requests have such a host.
fn is_ipv4(host: &[u8]) -> bool {
    let (mut octets, mut octet, mut digits) = (0, 0, 0);
    for (at, &byte) in host.iter().enumerate() {
        match byte {
            b'0'..=b'9' if digits < 3 && (digits == 0 || octet > 0) => {
                octet = octet * 10 + u32::from(byte - b'0');
                digits += 1;
            }
            b'.' | b':' if digits > 0 && octet <= 255 => {
                (octets, octet, digits) = (octets + 1, 0, 0);
                if byte == b':' {
                    let port = &host[at + 1..];
                    return octets == 4 && port.len() <= 4 && port.iter().all(u8::is_ascii_digit);
                }
            }
            _ => return false,
        }
    }
    octets == 3 && digits > 0 && octet <= 255
}

/// Whether `origin` and `host` name the same host. Ports are ignored.
pub fn is_host_of(origin: &[u8], host: &[u8]) -> bool {
    let origin = split_origin(origin).and_then(|(_, origin)| Authority::parse(origin));
    origin.zip(Authority::parse(host)).is_some_and(|(origin, host)| origin.host == host.host)
}

/// The scheme of an origin.
#[derive(Clone, Copy)]
enum OriginScheme {
    Http,
    Https,
}

impl OriginScheme {
    fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Splits an origin into its scheme and its host with port, without a trailing slash.
fn split_origin(origin: &[u8]) -> Option<(OriginScheme, &[u8])> {
    let schemes = [(&b"http://"[..], OriginScheme::Http), (b"https://", OriginScheme::Https)];
    let (scheme, rest) = schemes.into_iter().find_map(|(prefix, scheme)| {
        let (start, rest) = origin.split_at_checked(prefix.len())?;
        start.eq_ignore_ascii_case(prefix).then_some((scheme, rest))
    })?;
    Some((scheme, rest.strip_suffix(b"/").unwrap_or(rest)))
}

/// A host and a port (RFC 3986, sections 3.2.2 and 3.2.3).
struct Authority {
    host: Host,
    // `None`: absent or empty, so the default port of the scheme applies.
    port: Option<u16>,
}

#[derive(PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Localhost,
    /// In lower case.
    Name(String),
}

impl Authority {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, rest)) => {
                (Host::Address(IpAddr::V6(address.parse().ok()?).to_canonical()), rest)
            }
            None => {
                let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                (Host::parse(name)?, rest)
            }
        };
        let port = match port {
            "" | ":" => None,
            _ => Some(port.strip_prefix(':').filter(|digits| is_number(digits))?.parse().ok()?),
        };
        Some(Self { host, port })
    }
}

impl Host {
    /// Parses a host name or an IPv4 address.
    fn parse(name: &str) -> Option<Self> {
        if let Ok(address) = name.parse() {
            return Some(Self::Address(IpAddr::V4(address)));
        }
        match name.to_ascii_lowercase() {
            name if name == "localhost" => Some(Self::Localhost),
            name => (!name.is_empty()).then_some(Self::Name(name)),
        }
    }
}

/// Whether the text consists of digits only. `u16::from_str` would also accept a leading plus sign.
fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_own(expected: bool, host: &str, origins: &[&str]) {
        for origin in origins {
            assert_eq!(is_own(origin.as_bytes(), host.as_bytes()), expected, "{origin} to {host}");
        }
    }

    #[test]
    fn an_origin_is_the_apis_own_with_its_port_or_with_none() {
        let right = ["http://127.0.0.1", "http://127.0.0.1:6789", "HTTPS://127.0.0.1:6789/"];
        assert_own(true, "127.0.0.1:6789", &right);
        assert_own(true, "127.0.0.1:6789", &["http://127.0.0.1:", "http://127.0.0.1/"]);
        let wrong = ["http://127.0.0.1:80", "http://127.0.0.1:67890", "http://127.0.0.1:+6789"];
        assert_own(false, "127.0.0.1:6789", &wrong);
        assert_own(false, "127.0.0.1:6789", &["http://127.0.0.2", "http://localhost"]);
    }

    #[test]
    fn a_default_port_is_the_same_written_out_and_left_out() {
        for host in ["127.0.0.1", "127.0.0.1:", "127.0.0.1:80"] {
            assert_own(true, host, &["http://127.0.0.1", "http://127.0.0.1:80"]);
        }
        assert_own(true, "127.0.0.1:443", &["https://127.0.0.1", "https://127.0.0.1:443"]);
        assert_own(true, "127.0.0.1", &["https://127.0.0.1:443"]);
        assert_own(false, "127.0.0.1", &["http://127.0.0.1:443", "http://127.0.0.1:6789"]);
    }

    #[test]
    fn an_ipv6_address_is_the_same_however_it_is_written() {
        let right = ["http://[::1]", "http://[::1]:6789", "http://[0:0:0:0:0:0:0:1]"];
        assert_own(true, "[::1]:6789", &right);
        assert_own(true, "[FD00::A]:6789", &["http://[fd00::a]", "http://[fd00:0::A]:6789"]);
        assert_own(true, "[::ffff:10.0.0.5]:6789", &["http://10.0.0.5"]);
        let wrong = ["http://[::2]", "http://::1", "http://[::1", "http://[::1]6789"];
        assert_own(false, "[::1]:6789", &wrong);
        assert_own(false, "[::1]:6789", &["http://[::1%25lo]", "http://[127.0.0.1]", "http://[]"]);
    }

    #[test]
    fn localhost_is_nobody_elses_name_in_any_case() {
        assert_own(true, "localhost:6789", &["http://localhost", "HTTP://LocalHost:6789"]);
        assert_own(true, "LOCALHOST:6789", &["http://localhost"]);
        let wrong = ["http://localhost.", "http://localhost.evil.example", "http://127.0.0.1"];
        assert_own(false, "localhost:6789", &wrong);
    }

    #[test]
    fn a_host_name_is_never_the_apis_own() {
        assert_own(false, "evil.example:6789", &["http://evil.example:6789"]);
        assert_own(false, "evil.example", &["http://evil.example"]);
        assert_own(false, "", &["http://", "http:///", "http://:"]);
    }

    #[test]
    fn what_is_no_origin_of_a_page_is_not_the_apis_own() {
        let wrong = ["null", "*", "", "127.0.0.1", "//127.0.0.1", "ws://127.0.0.1", "file://"];
        assert_own(false, "127.0.0.1", &wrong);
        let wrong = ["http://user@127.0.0.1", "http://127.0.0.1/path", "http://127.0.0.1//"];
        assert_own(false, "127.0.0.1", &wrong);
        assert_own(false, "127.0.0.1", &["http://127.1", "http://0x7f000001", "http://2130706433"]);
        assert!(!is_own(b"http://127.0.0.1\xff", b"127.0.0.1"));
    }

    #[test]
    fn an_address_or_localhost_can_be_told_from_a_name() {
        for host in ["127.0.0.1:6789", "127.0.0.1", "[::1]:6789", "[::1]", "LocalHost:6789"] {
            assert!(is_address(host.as_bytes()), "{host}");
        }
        for host in ["evil.example:6789", "localhost.evil.example", "", ":80", "::1", "1.2.3.4:x"] {
            assert!(!is_address(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn the_usual_way_of_writing_an_address_is_one() {
        for host in ["127.0.0.1:6789", "255.255.255.255", "0.0.0.0:", "10.0.0.5:80"] {
            assert!(is_ipv4(host.as_bytes()) && Authority::parse(host.as_bytes()).is_some());
        }
        for host in [
            "127.0.0.256",
            "127.0.0",
            "127.0.0.1.1",
            "127.0.0.1.",
            ".0.0.1",
            "127..0.1",
            "01.0.0.1",
            "127.0.0.1:x",
            "127.0.0.1:80:",
            "127.0.0:80",
            "1.2.3.4a",
            "a.b.c.d",
            "",
            ":",
            "2130706433",
        ] {
            assert!(!is_ipv4(host.as_bytes()) && !is_address(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn a_host_belongs_to_an_origin_whatever_the_ports() {
        for host in ["admin.example", "ADMIN.example:6789"] {
            assert!(is_host_of(b"https://admin.example:8443", host.as_bytes()), "{host}");
        }
        for host in ["example", "x.admin.example", "", "admin.example:x"] {
            assert!(!is_host_of(b"https://admin.example:8443", host.as_bytes()), "{host}");
        }
    }
}
