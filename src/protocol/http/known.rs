//! Remembers the head of a connection's last request, so that an identical head is not parsed again.
//!
//! Back ends send the same head with each call. Two values may differ: the number in
//! `Content-Length` and the credentials in `Authorization`. They are neither compared nor stored; each
//! request is judged by its own values. All other bytes must be identical.

use std::mem;
use std::ops::Range;

use super::{
    head::{Layout, Span, number},
    lines::has_control,
};

/// The longest head that is remembered, in bytes. Longer ones are parsed each time.
const BYTES_MAX: usize = 1024;

/// The number of consecutive misses after which no head is remembered for a while. Requests that each
/// carry a unique header, such as a trace id, then cost little more than a parse.
const MISSES_MAX: u8 = 4;

/// The number of requests after which a head is remembered again. Peers change: a connection of a pool
/// may get another user.
const REST_REQUESTS: u8 = 64;

/// The most digits of a `Content-Length` that is compared here. The parser handles longer numbers.
const DIGITS_MAX: usize = 20;

/// The last head of a connection, if it is likely to be repeated.
#[derive(Debug, Default)]
pub(super) struct LastHead {
    known: Option<Box<KnownHead>>,
    // Remembered heads that were displaced since the last hit: below MISSES_MAX.
    misses: u8,
    // Requests until a head is remembered again.
    rest: u8,
    // A head was parsed before. A connection with a single request does not pay for a copy.
    has_begun: bool,
}

/// A head with one `Content-Length`, split at its number.
#[derive(Debug)]
struct KnownHead {
    layout: Layout,
    before: Part,
    behind: Part,
}

/// A part of a head, in which the credentials are overwritten.
#[derive(Debug)]
struct Part {
    bytes: Box<[u8]>,
    // The range of the value of `Authorization`; empty if it is not in this part.
    redacted: Range<usize>,
}

impl LastHead {
    /// Returns the memory held by the remembered head, in bytes.
    pub(super) fn held_bytes(&self) -> usize {
        self.known.as_ref().map_or(0, |known| {
            size_of::<KnownHead>() + known.before.bytes.len() + known.behind.bytes.len()
        })
    }

    /// Returns the layout and body length of the head at the front of `input`, if it repeats the last
    /// head.
    pub(super) fn find(&mut self, input: &[u8]) -> Option<(Layout, u64)> {
        let found = self.known.as_deref()?.read(input)?;
        self.misses = 0;
        Some(found)
    }

    /// Remembers a head that was parsed, in place of the one that it does not repeat.
    pub(super) fn keep(&mut self, head: &[u8], layout: Layout) {
        if !mem::replace(&mut self.has_begun, true) {
            return;
        }
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        // Only what displaces a head is a miss. An incomplete input and a request without a body are not.
        self.misses += u8::from(self.known.take().is_some());
        if self.misses == MISSES_MAX {
            (self.misses, self.rest) = (0, REST_REQUESTS);
        } else if head.len() <= BYTES_MAX {
            self.known = KnownHead::of(head, layout).map(Box::new);
        }
    }

    /// Frees the memory of the remembered head. The next one is remembered again.
    pub(super) fn forget(&mut self) {
        self.known = None;
    }
}

impl KnownHead {
    /// Remembers a head. Returns `None` if a repetition could not be recognised.
    fn of(head: &[u8], layout: Layout) -> Option<Self> {
        let request = layout.head(head);
        let length = Span::of(request.only_header("content-length")?, head).range();
        let mut authorization = request.header_values("authorization");
        let credentials = authorization.next().map_or(0..0, |value| Span::of(value, head).range());
        if authorization.next().is_some() || layout.expects_continue {
            return None;
        }
        let part = |range: Range<usize>| {
            let bytes = &head[range.clone()];
            let is_here = range.start <= credentials.start && credentials.end <= range.end;
            let redacted = match is_here {
                true => credentials.start - range.start..credentials.end - range.start,
                false => bytes.len()..bytes.len(),
            };
            Part::of(bytes, redacted)
        };
        let (before, behind) = (part(0..length.start), part(length.end..head.len()));
        Some(Self { layout, before, behind })
    }

    /// Returns the layout and body length of the head at the front of `input`, if it repeats this one.
    fn read(&self, input: &[u8]) -> Option<(Layout, u64)> {
        let (before, rest) = input.split_at_checked(self.before.bytes.len())?;
        let digits = rest.iter().take(DIGITS_MAX).take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = rest.split_at(digits);
        let behind = rest.get(..self.behind.bytes.len())?;
        if !self.before.is_same(before) || !self.behind.is_same(behind) {
            return None;
        }
        let head_bytes = before.len() + digits.len() + behind.len();
        Some((self.layout.with_head_bytes(head_bytes), number(digits)?))
    }
}

impl Part {
    fn of(bytes: &[u8], redacted: Range<usize>) -> Self {
        let mut bytes: Box<[u8]> = bytes.into();
        bytes[redacted.clone()].fill(b'*');
        Self { bytes, redacted }
    }

    /// Whether `other`, which has the same length, differs in the credentials at most.
    fn is_same(&self, other: &[u8]) -> bool {
        let Range { start, end } = self.redacted;
        other[..start] == self.bytes[..start]
            && other[end..] == self.bytes[end..]
            && may_be_value(&other[start..end])
    }
}

/// Whether a header may have this value. The parser handles values with white space at the ends.
fn may_be_value(text: &[u8]) -> bool {
    !has_control(text) && text.trim_ascii().len() == text.len()
}

#[cfg(test)]
mod tests {
    use super::super::{HttpError, RequestLimits, RequestReader};
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { head_bytes: 4096, headers: 8, body_bytes: 200 };

    const HEAD: &str = "POST /v1/mesh/publish?a HTTP/1.1\r\nHost: 127.0.0.1:6789\r\n\
                        Authorization: Basic YTpi\r\nX-Error-Mode: status\r\n\
                        Content-Length: 10\r\nAccept: */*\r\n\r\n";

    fn with_body(head: &str) -> Vec<u8> {
        [head.as_bytes(), &[b'x'; 200]].concat()
    }

    /// All that the reader gives out of the request at the front of these bytes, and what is left.
    fn read(reader: &mut RequestReader, bytes: &[u8]) -> Result<String, HttpError> {
        let mut bytes = bytes.to_vec();
        let mut input = &mut bytes[..];
        let step = reader.read(&mut input, &LIMITS)?;
        let said = format!("{step:?}");
        Ok(format!("{said}, {} left", input.len()))
    }

    fn knowing(head: &str) -> RequestReader {
        let mut reader = RequestReader::default();
        read(&mut reader, &with_body(head)).expect("a good request");
        assert!(reader.last.known.is_none(), "it may be the only one");
        read(&mut reader, &with_body(head)).expect("a good request");
        assert!(reader.last.known.is_some(), "{head}");
        reader
    }

    fn is_known(reader: &mut RequestReader, head: &str) -> bool {
        reader.last.find(&with_body(head)).is_some()
    }

    #[test]
    fn the_same_head_is_known_with_other_lengths_and_credentials() {
        for head in [HEAD, &HEAD.replace("Authorization: Basic YTpi\r\n", "")] {
            let mut reader = knowing(head);
            for length in ["10", "0", "7", "200", "000199"] {
                for credentials in ["Basic YTpi", "Bearer abc", "a b\tc ü!"] {
                    let length = format!("Content-Length: {length}");
                    let again = head.replace("Content-Length: 10", &length);
                    let is_known_form = credentials.len() == "Basic YTpi".len();
                    let again = again.replace("Basic YTpi", credentials);
                    assert_eq!(
                        is_known(&mut reader, &again),
                        is_known_form || !head.contains("Auth")
                    );
                    let mut reader = knowing(head);
                    let expected = read(&mut RequestReader::default(), &with_body(&again));
                    assert_eq!(read(&mut reader, &with_body(&again)), expected, "{again}");
                    assert!(expected.is_ok());
                }
            }
        }
    }

    #[test]
    fn another_head_is_read_as_if_nothing_was_known() {
        let marks = b"\r\n\t\0 :,;%/?#*aZ09[]\x7f\x80\xff";
        let bytes = with_body(HEAD);
        for at in 0..HEAD.len() {
            for &mark in marks {
                let (mut changed, mut longer, mut shorter) =
                    (bytes.clone(), bytes.clone(), bytes.clone());
                changed[at] = mark;
                longer.insert(at, mark);
                shorter.remove(at);
                for other in [changed, longer, shorter] {
                    let expected = read(&mut RequestReader::default(), &other);
                    let given = read(&mut knowing(HEAD), &other);
                    assert_eq!(given, expected, "{}", other.escape_ascii());
                }
            }
        }
    }

    #[test]
    fn a_body_beyond_the_limit_is_refused_after_a_known_head_too() {
        for length in ["201", "4294967306", "18446744073709551616", "99999999999999999999999"] {
            let length = format!("Content-Length: {length}");
            let other = HEAD.replace("Content-Length: 10", &length);
            assert_eq!(
                read(&mut knowing(HEAD), &with_body(&other)),
                Err(HttpError::BodyTooLarge),
                "{other}"
            );
        }
    }

    #[test]
    fn credentials_are_not_kept() {
        let reader = knowing(HEAD);
        let known = reader.last.known.as_deref().expect("it was read");
        let kept = [&known.before.bytes[..], b"10", &known.behind.bytes].concat();
        assert_eq!(kept, HEAD.replace("Basic YTpi", "**********").into_bytes());
        assert!(reader.last.held_bytes() < HEAD.len() + 200);
    }

    #[test]
    fn a_head_is_kept_only_if_it_is_likely_to_come_again() {
        let without_body = HEAD.replace("Content-Length: 10", "Content-Length: 0");
        let long = HEAD.replace("*/*", &"x".repeat(BYTES_MAX));
        let last = HEAD.replace("Accept: */*", "Connection: close");
        let waiting = HEAD.replace("Accept: */*", "Expect: 100-continue");
        let ambiguous = HEAD.replace("Accept: */*", "Authorization: x");
        let chunked = HEAD.replace("Content-Length: 10", "Transfer-Encoding: chunked");
        for head in [without_body, long, last, waiting, ambiguous] {
            let mut reader = RequestReader::default();
            for _ in 0..3 {
                read(&mut reader, &with_body(&head)).expect("a good request");
                assert!(reader.last.known.is_none(), "{head}");
            }
        }
        let mut reader = RequestReader::default();
        for _ in 0..3 {
            let request = format!("{chunked}1\r\na\r\n0\r\n\r\n");
            read(&mut reader, request.as_bytes()).expect("a good request");
            assert!(reader.last.known.is_none());
        }
    }

    #[test]
    fn a_peer_whose_heads_all_differ_has_none_kept() {
        let mut reader = RequestReader::default();
        let head = |trace: usize| HEAD.replace("*/*", &trace.to_string());
        for trace in 0..usize::from(MISSES_MAX) + 2 {
            assert_eq!(reader.last.known.is_some(), trace > 1);
            read(&mut reader, &with_body(&head(trace))).expect("a good request");
        }
        for _ in 0..=REST_REQUESTS {
            assert!(reader.last.known.is_none());
            read(&mut reader, &with_body(&head(0))).expect("a good request");
        }
        assert!(is_known(&mut reader, &head(0)), "the peer no longer changes its head");
        let mut reader = knowing(HEAD);
        for trace in 0..100 {
            read(&mut reader, &with_body(&head(trace / 4))).expect("a good request");
        }
        assert!(reader.last.known.is_some(), "most were known");
    }

    #[test]
    fn a_head_that_comes_in_runs_between_others_is_known_again() {
        let (a, b) = (HEAD.to_owned(), HEAD.replace("*/*", "text/plain"));
        let mut reader = knowing(&a);
        for head in [&a, &b].into_iter().cycle().take(100) {
            read(&mut reader, &with_body(head)).expect("a good request");
        }
        let mut found = 0;
        for _ in 0..2 * usize::from(REST_REQUESTS) {
            found += usize::from(is_known(&mut reader, &a));
            read(&mut reader, &with_body(&a)).expect("a good request");
        }
        assert!(found >= usize::from(REST_REQUESTS) - 2, "{found} were found");
    }

    #[test]
    fn neither_other_requests_nor_parts_of_a_head_are_misses() {
        let mut reader = knowing(HEAD);
        for end in 0..HEAD.len() {
            assert!(reader.last.find(&HEAD.as_bytes()[..end]).is_none());
        }
        read(&mut reader, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").expect("a good request");
        assert_eq!(reader.last.misses, 0);
        assert!(is_known(&mut reader, HEAD));
    }

    #[test]
    fn a_forgotten_head_is_remembered_when_it_comes_again() {
        let mut reader = knowing(HEAD);
        reader.forget_head();
        assert_eq!(reader.held_bytes(), 0);
        read(&mut reader, &with_body(HEAD)).expect("a good request");
        assert!(is_known(&mut reader, HEAD));
    }

    #[test]
    fn requests_without_a_body_displace_no_head() {
        let mut reader = knowing(HEAD);
        for _ in 0..300 {
            let said = read(&mut reader, b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n");
            assert!(said.is_ok_and(|said| said.contains("/version")));
        }
        assert!(is_known(&mut reader, HEAD));
    }
}
