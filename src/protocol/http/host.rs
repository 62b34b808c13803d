//! Validates the host of a request, from `Host` or an absolute target (RFC 9110, section 7.2).

use std::net::Ipv6Addr;

/// Whether the text is `host[:port]` (RFC 3986, section 3.2.2). The host is a name, an IPv4 address or
/// an IPv6 address in brackets. The port is at most 65535 and may be empty after its colon. A user name
/// is refused, as RFC 9110, section 4.2.4, advises; so is a port without a host.
pub(super) fn is_host(text: &[u8]) -> bool {
    let Some(bracketed) = text.strip_prefix(b"[") else {
        let end = text.iter().position(|&byte| byte == b':').unwrap_or(text.len());
        let (name, port) = text.split_at(end);
        return is_name(name) && is_port(port) && (!name.is_empty() || port.is_empty());
    };
    let Some(end) = bracketed.iter().position(|&byte| byte == b']') else { return false };
    let address = str::from_utf8(&bracketed[..end]).ok();
    let is_address = address.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok());
    is_address && is_port(&bracketed[end + 1..])
}

/// Whether the text is a `reg-name` of RFC 3986. Every IPv4 address is one, too.
fn is_name(mut text: &[u8]) -> bool {
    loop {
        let plain = text.iter().take_while(|&&byte| IN_NAME[usize::from(byte)]).count();
        text = match &text[plain..] {
            [] => return true,
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                rest
            }
            _ => return false,
        }
    }
}

/// The bytes that may appear unescaped in a `reg-name` (`unreserved` and `sub-delims`).
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let marks = b"-._~!$&'()*+,;=";
    let mut at = 0;
    while at < marks.len() {
        table[marks[at] as usize] = true;
        at += 1;
    }
    table
};

/// Whether the text is empty, or a colon followed by an optional port number.
fn is_port(text: &[u8]) -> bool {
    let Some(digits) = text.strip_prefix(b":") else { return text.is_empty() };
    let value = digits.iter().try_fold(0_u16, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    });
    value.is_some()
}

#[cfg(test)]
mod tests {
    use super::is_host;

    #[test]
    fn a_host_is_a_name_or_an_address_with_a_port_or_without() {
        for host in [
            "",
            "a",
            "a:",
            "a:0",
            "a:80",
            "a:65535",
            "a:00080",
            "example.org.",
            "a_b~c",
            "10.0.0.1",
            "10.0.0.1:6789",
            "999.1.1.1",
            "xn--bcher-kva.example",
            "%C3%bc.example:1",
            "a,b;c=(d)",
            "[::1]",
            "[::1]:",
            "[::1]:443",
            "[2001:DB8::1]",
            "[::ffff:10.0.0.1]:1",
        ] {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        for host in [
            "a:b",
            "a:b:c",
            "a:1:2",
            "a::1",
            ":",
            ":80",
            "a:65536",
            "a:99999",
            "a:+1",
            "a: 1",
            "a:184467440737095516160",
            "[",
            "]",
            "[]",
            "[::1",
            "::1",
            "[::1]x",
            "[::1]:x",
            "[::1]1",
            "[1.2.3.4]",
            "[a]",
            "[v1.a]",
            "[::1%25lo]",
            "[[::1]]",
            "a]",
            "%",
            "%zz",
            "%4",
            "a%2:1",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "x@a",
            "x:y@a",
            "a\\b",
            "a\"b",
            "a<b",
            "a|b",
            "a^b",
            "a`b",
            "{a}",
            "ü",
            "a\tb",
            "a\0",
        ] {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
    }
}
