//! The content codings that a client accepts (RFC 9110, section 12.5.3).

use super::Request;
use super::list::{list_members, split_unquoted};

impl Request<'_> {
    /// Whether the response may be compressed with gzip. False if the request names no codings: a client that
    /// does not mention gzip may be unable to read it.
    pub fn accepts_gzip(&self) -> bool {
        let mut accepts_any = false;
        for member in self.header_values("accept-encoding").flat_map(list_members) {
            let mut parts = split_unquoted(member, b';');
            let coding = parts.next().unwrap_or_default();
            let is_accepted = parts.all(|parameter| !is_zero_weight(parameter));
            if [&b"gzip"[..], b"x-gzip"].iter().any(|gzip| coding.eq_ignore_ascii_case(gzip)) {
                // What is said of gzip by name counts, not what is said of all codings.
                return is_accepted;
            }
            accepts_any |= coding == b"*" && is_accepted;
        }
        accepts_any
    }
}

/// Whether a parameter is a weight of zero, which means "not acceptable", or no number.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let Some((b"q=" | b"Q=", weight)) = parameter.split_first_chunk() else { return false };
    !weight.iter().any(|digit| (b'1'..=b'9').contains(digit))
}

#[cfg(test)]
mod tests {
    use crate::protocol::http::{RequestLimits, RequestReader, RequestStep};

    fn accepts_gzip(headers: &str) -> bool {
        let mut bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{headers}\r\n").into_bytes();
        let limits = RequestLimits { head_bytes: 1024, headers: 10, body_bytes: 0 };
        let (mut reader, mut input) = (RequestReader::default(), &mut bytes[..]);
        match reader.read(&mut input, &limits) {
            Ok(RequestStep::Request(request)) => request.accepts_gzip(),
            _ => panic!("not whole"),
        }
    }

    #[test]
    fn gzip_is_accepted_if_it_is_named_or_all_are_and_not_with_a_weight_of_zero() {
        for accepting in [
            "gzip",
            "deflate, GZIP;q=0.001, br",
            "x-gzip",
            "*",
            "identity;q=0.5 , * ; q=0.1",
            "gzip ; Q=1.0",
            "gzip, *;q=0",
            "br\r\nAccept-Encoding: gzip",
        ] {
            assert!(accepts_gzip(&format!("Accept-Encoding: {accepting}\r\n")), "{accepting}");
        }
        for refusing in [
            "",
            "identity",
            "br, deflate",
            "gzip;q=0",
            "gzip;q=0.000, *",
            "*, gzip; q=0",
            "*;q=0",
            "gzip;q=x",
            "gzipped",
        ] {
            assert!(!accepts_gzip(&format!("Accept-Encoding: {refusing}\r\n")), "{refusing}");
        }
        assert!(!accepts_gzip(""));
    }
}
