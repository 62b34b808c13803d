//! Encodes responses.

use super::date::Date;
use super::request::Version;

/// The interim response to send at [`RequestStep::Continue`](super::RequestStep::Continue).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The properties of a request that decide the form of its response. Small enough to keep until the
/// response is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// The peer's version. An HTTP/1.0 peer must be told that the connection stays open.
    pub version: Version,
    /// Whether another request may follow. False: close the connection after the response.
    pub keep_alive: bool,
    /// Whether to omit the body but still state its length: the response to HEAD.
    pub head_only: bool,
}

impl Exchange {
    /// The properties for a request that could not be parsed. The connection is closed after the
    /// response.
    pub const REFUSED: Self =
        Self { version: Version::Http11, keep_alive: false, head_only: false };
}

/// A final response with its complete body.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    /// The status, 200 to 599. The body must be empty for 204 and 304.
    pub status: u16,
    /// The `Content-Type`. Empty: the header is omitted.
    pub content_type: &'a str,
    /// Further headers besides `Date`, `Content-Type`, `Content-Length` and `Connection`. They must not
    /// contain CR or LF.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl Response<'_> {
    /// Appends the encoded response to `out`. The status line says HTTP/1.1 to HTTP/1.0 peers too, as
    /// RFC 9110, section 6.2, requires.
    pub fn write(&self, out: &mut Vec<u8>, exchange: Exchange, date: Date) {
        if self.status == 200 {
            out.extend_from_slice(b"HTTP/1.1 200 OK");
        } else {
            out.extend_from_slice(b"HTTP/1.1 ");
            write_number(out, usize::from(self.status));
            out.push(b' ');
            out.extend_from_slice(reason(self.status).as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        date.put(out);
        if !self.content_type.is_empty() {
            write_header(out, "Content-Type", self.content_type);
        }
        // RFC 9110, section 8.6, forbids a length with 204. With 304 it would be the length of the body
        // that a 200 would have had.
        if !matches!(self.status, 204 | 304) {
            out.extend_from_slice(b"Content-Length: ");
            write_number(out, self.body.len());
            out.extend_from_slice(b"\r\n");
        }
        match (exchange.keep_alive, exchange.version) {
            (true, Version::Http11) => {}
            (true, Version::Http10) => write_header(out, "Connection", "keep-alive"),
            (false, _) => write_header(out, "Connection", "close"),
        }
        for (name, value) in self.headers {
            write_header(out, name, value);
        }
        out.extend_from_slice(b"\r\n");
        if !exchange.head_only {
            out.extend_from_slice(self.body);
        }
    }
}

pub(in super::super) fn write_header(out: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(
        !value.bytes().any(|byte| byte.is_ascii_control()),
        "{name} contains a control character and could split the response"
    );
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn write_number(out: &mut Vec<u8>, number: usize) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Returns the reason phrase of a status (RFC 9110, section 15, and RFC 6585). A phrase may be empty
/// (RFC 9112, section 4).
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        413 => "Content Too Large",
        414 => "URI Too Long",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Exchange =
        Exchange { version: Version::Http11, keep_alive: true, head_only: false };

    fn written(response: Response<'_>, exchange: Exchange) -> String {
        let mut out = Vec::new();
        response.write(&mut out, exchange, Date::at(784_111_777_000));
        String::from_utf8(out).unwrap()
    }

    const JSON: Response<'_> = Response {
        status: 200,
        content_type: "application/json",
        headers: &[],
        body: b"{\"s\":true}",
    };

    #[test]
    fn an_answer_has_its_date_type_and_length() {
        let expected = "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                        Content-Type: application/json\r\nContent-Length: 10\r\n\r\n{\"s\":true}";
        assert_eq!(written(JSON, KEPT), expected);
    }

    #[test]
    fn an_answer_to_head_tells_the_length_of_the_body_it_leaves_out() {
        let answer = written(JSON, Exchange { head_only: true, ..KEPT });
        assert!(answer.ends_with("Content-Length: 10\r\n\r\n"), "{answer}");
    }

    #[test]
    fn each_version_is_told_what_it_would_not_assume_of_the_connection() {
        let old = written(JSON, Exchange { version: Version::Http10, ..KEPT });
        assert!(old.contains("\r\nConnection: keep-alive\r\n"), "{old}");
        let closing = written(JSON, Exchange { keep_alive: false, ..KEPT });
        assert!(closing.contains("\r\nConnection: close\r\n"), "{closing}");
        assert!(!written(JSON, KEPT).contains("Connection"));
    }

    #[test]
    fn extra_headers_are_written_and_a_type_may_be_missing() {
        let response = Response {
            status: 405,
            content_type: "",
            headers: &[("Allow", "GET, HEAD")],
            body: b"",
        };
        let expected = "HTTP/1.1 405 Method Not Allowed\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                        Content-Length: 0\r\nAllow: GET, HEAD\r\n\r\n";
        assert_eq!(written(response, KEPT), expected);
    }

    #[test]
    fn no_content_has_no_length() {
        let response = Response { status: 204, content_type: "", headers: &[], body: b"" };
        let answer = written(response, KEPT);
        assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n"), "{answer}");
        assert!(!answer.contains("Content-Length"), "{answer}");
    }
}
