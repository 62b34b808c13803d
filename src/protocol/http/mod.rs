//! HTTP/1.0 and HTTP/1.1 for a server: decodes requests incrementally and encodes responses.
//!
//! A proxy may stand in front of this server. Input that two parsers could interpret differently is
//! refused, never repaired, to prevent request smuggling (RFC 9112, sections 2.2, 3, 5.1, 5.2, 6.3, 7.1
//! and 11.2).
//!
//! - `mod.rs`: [`RequestReader`], the receive state of one connection; [`HttpError`].
//! - `lines.rs`: finds the end of a head or of trailers.
//! - `head.rs`: parses a head. `host.rs`: validates the host. `list.rs`: lists in header values.
//! - `known.rs`: recognises a head that repeats the last one.
//! - `body.rs`: decodes bodies, with a length or chunked.
//! - `request.rs`: [`Request`]. `coding.rs`: the codings that a client accepts. `query.rs`: percent-encoding.
//! - `forwarded.rs`: clients of proxies.
//! - `response.rs`: [`Response`]. `date.rs`: the `Date` header.

mod body;
mod coding;
mod date;
mod forwarded;
mod head;
mod host;
mod known;
mod lines;
mod list;
mod query;
mod request;
mod response;

pub use date::{Calendar, Date};
pub use forwarded::forwarded_for;
pub use list::is_token;
pub(super) use list::{list_members, split_unquoted};
pub use query::{EscapeError, QueryPair, percent_decode, query_pairs};
pub use request::{KeptRequest, Method, Request, Version};
pub(super) use response::write_header;
pub use response::{CONTINUE, Exchange, Response};

use std::{fmt, mem};

use body::BodyDecoder;
use head::Layout;
use known::LastHead;
use lines::LineScan;

/// The limits of one request. A request over a limit is refused.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Bytes of the request line and header lines, including line ends. Also the limit of the trailers.
    /// Must be below 4 GiB.
    pub head_bytes: usize,
    /// Header lines. Values above [`RequestLimits::HEADERS_MAX`] are reduced to it.
    pub headers: usize,
    /// Bytes of the decoded body.
    pub body_bytes: usize,
}

impl RequestLimits {
    /// The most header lines that can be configured. Parsing takes 32 bytes of stack for each possible
    /// header, so 8 KiB.
    pub const HEADERS_MAX: usize = 256;
}

/// Reads the requests of one connection, one after the other.
///
/// A request that is whole in one input is borrowed from there. Any other is assembled in a buffer,
/// which never holds more than one head and one body within their limits. The buffer is freed by the
/// first read after the request was returned. The reader also remembers the last head of a request with
/// a body, if it is at most 1 KiB long, and does not parse an identical head again.
#[derive(Debug, Default)]
pub struct RequestReader {
    // The bytes of an incomplete request: its head, then its decoded body.
    kept: Vec<u8>,
    last: LastHead,
    stage: ReadStage,
}

#[derive(Debug, Default)]
enum ReadStage {
    /// Between requests. `kept` may still hold the request that was returned last.
    #[default]
    Idle,
    Head(LineScan),
    Body(PendingBody),
}

/// A request whose head was parsed and whose body is incomplete. The head is in `kept`, or at the front
/// of the input if `kept` is empty.
#[derive(Debug)]
struct PendingBody {
    layout: Layout,
    body: BodyDecoder,
    // RequestStep::Head was returned for this request.
    is_announced: bool,
}

/// The outcome of one [`RequestReader::read`].
#[derive(Debug)]
pub enum RequestStep<'r> {
    /// All input was consumed and the request is not complete.
    NeedMore,
    /// The head of a request whose body has not arrived completely. The request's body is empty here.
    /// A request that is not allowed can be refused now, before more of its body is stored. Read again
    /// at once with the rest of the input, even if that is empty.
    Head(Request<'r>),
    /// The peer waits for [`CONTINUE`] before it sends the body (RFC 9110, section 10.1.1). The
    /// announced body is within its limit. Send it and read again when more input arrives.
    Continue,
    /// A complete request.
    Request(Request<'r>),
}

impl RequestReader {
    /// Returns the memory held by an incomplete request and by the remembered head, in bytes.
    pub fn held_bytes(&self) -> usize {
        self.kept.capacity() + self.last.held_bytes()
    }

    /// Frees the memory of the remembered head.
    pub fn forget_head(&mut self) {
        self.last.forget();
    }

    /// Consumes bytes from the front of `input`. Bytes after a complete request stay in it: the next
    /// request, or the frames of another protocol. Call this until it returns
    /// [`RequestStep::NeedMore`], which also frees the buffer of the last request.
    ///
    /// # Errors
    /// The same [`HttpError`] for the same bytes, however they were split into reads. Close the
    /// connection after an error: the start of the next request is unknown.
    pub fn read<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i mut [u8],
        limits: &RequestLimits,
    ) -> Result<RequestStep<'r>, HttpError> {
        let pending = match mem::take(&mut self.stage) {
            ReadStage::Idle => {
                self.kept = Vec::new();
                if input.is_empty() {
                    return Ok(RequestStep::NeedMore);
                }
                if let Some(request) = self.read_known(input, limits) {
                    return Ok(RequestStep::Request(request));
                }
                self.read_head(LineScan::head(), input, limits)?
            }
            ReadStage::Head(scan) => self.read_head(scan, input, limits)?,
            ReadStage::Body(pending) => Some(pending),
        };
        match pending {
            Some(pending) => self.read_body(pending, input, limits),
            None => Ok(RequestStep::NeedMore),
        }
    }

    /// Returns the request whose body is incomplete, with an empty body.
    pub fn head(&self) -> Option<Request<'_>> {
        match &self.stage {
            ReadStage::Body(pending) => Some(pending.layout.head(&self.kept)),
            ReadStage::Idle | ReadStage::Head(_) => None,
        }
    }

    /// Returns a request that is whole in `input` if its head repeats the last one.
    fn read_known<'i>(
        &mut self,
        input: &mut &'i mut [u8],
        limits: &RequestLimits,
    ) -> Option<Request<'i>> {
        let (layout, body_bytes) = self.last.find(input)?;
        let body_bytes = usize::try_from(body_bytes).ok()?;
        let bytes = layout.head_bytes().checked_add(body_bytes)?;
        let is_within = layout.head_bytes() <= limits.head_bytes && body_bytes <= limits.body_bytes;
        (is_within && bytes <= input.len()).then(|| layout.request(take(input, bytes)))
    }

    fn read_head(
        &mut self,
        mut scan: LineScan,
        input: &mut &mut [u8],
        limits: &RequestLimits,
    ) -> Result<Option<PendingBody>, HttpError> {
        let Some(end) = scan.feed(input, limits)? else {
            let fresh: &mut [u8] = mem::take(input);
            self.kept.extend_from_slice(fresh);
            self.stage = ReadStage::Head(scan);
            return Ok(None);
        };
        let head = if self.kept.is_empty() {
            &input[..end]
        } else {
            self.kept.extend_from_slice(take(input, end));
            &self.kept
        };
        let (layout, body) = head::parse(head, limits)?;
        Ok(Some(PendingBody { layout, body, is_announced: false }))
    }

    fn read_body<'r, 'i: 'r>(
        &'r mut self,
        mut pending: PendingBody,
        input: &mut &'i mut [u8],
        limits: &RequestLimits,
    ) -> Result<RequestStep<'r>, HttpError> {
        let PendingBody { layout, body, is_announced } = &mut pending;
        let head_bytes = if self.kept.is_empty() { layout.head_bytes() } else { 0 };
        let decoded = body.decode(&mut input[head_bytes..], limits)?;
        let taken = take(input, head_bytes + decoded.taken);
        let fresh = &mut taken[..head_bytes + decoded.data];
        if decoded.whole && self.kept.is_empty() {
            let has_length = matches!(body, BodyDecoder::Length { .. });
            if layout.keep_alive && decoded.data > 0 && has_length {
                self.last.keep(&fresh[..head_bytes], *layout);
            }
            return Ok(RequestStep::Request(layout.request(fresh)));
        }
        self.kept.extend_from_slice(fresh);
        if decoded.whole {
            return Ok(RequestStep::Request(layout.request(&mut self.kept)));
        }
        if !mem::replace(is_announced, true) {
            layout.expects_continue &= decoded.taken == 0;
            self.stage = ReadStage::Body(pending);
            return Ok(self.head().map_or(RequestStep::NeedMore, RequestStep::Head));
        }
        // Returned once, and never if the peer has begun to send the body anyway.
        let asked = mem::take(&mut layout.expects_continue) && decoded.taken == 0;
        self.stage = ReadStage::Body(pending);
        Ok(if asked { RequestStep::Continue } else { RequestStep::NeedMore })
    }
}

fn take<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

/// Why a request is refused. Every variant is the peer's fault: the request gets an error response, and
/// the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpError {
    /// A line ends with LF alone. RFC 9112, section 2.2, lets a server accept that, but then two servers
    /// can see different requests.
    BareLineFeed,
    /// A CR is not followed by LF (RFC 9112, section 2.2).
    BareCarriageReturn,
    /// A line contains a control byte (RFC 9110, section 5.5).
    ControlByte,
    /// More than one empty line precedes the request (RFC 9112, section 2.2, asks to skip one).
    EmptyLines,
    /// The request line is malformed (RFC 9112, section 3).
    RequestLine,
    /// The request target is neither a path nor an http URL (RFC 9112, section 3.2).
    Target,
    /// A header line is malformed or folded (RFC 9112, sections 5.1 and 5.2).
    HeaderLine,
    /// `Host` is missing, repeated or invalid (RFC 9112, section 3.2).
    Host,
    /// `Content-Length` is not a decimal number (RFC 9110, section 8.6).
    Length,
    /// `Content-Length` appears more than once (RFC 9112, section 6.3).
    RepeatedLength,
    /// Both `Content-Length` and `Transfer-Encoding` are present (RFC 9112, section 6.3).
    LengthAndCoding,
    /// `Transfer-Encoding` appears in an HTTP/1.0 request (RFC 9112, section 6.1).
    CodingInOldVersion,
    /// `chunked` is not the last transfer coding (RFC 9112, section 6.3).
    ChunkedNotLast,
    /// A chunk of the body is malformed (RFC 9112, section 7.1).
    Chunk,
    /// The body exceeds its limit (RFC 9110, section 15.5.14).
    BodyTooLarge,
    /// `Expect` asks for something other than `100-continue` (RFC 9110, section 10.1.1).
    Expectation,
    /// The request line exceeds the limit of the head (RFC 9112, section 3).
    RequestLineTooLong,
    /// The head exceeds its limit (RFC 6585, section 5).
    HeadTooLarge,
    /// The request has too many header lines (RFC 6585, section 5).
    TooManyHeaders,
    /// The transfer coding is not `chunked` (RFC 9112, section 6.1).
    UnknownCoding,
    /// The HTTP version is not supported (RFC 9110, section 15.6.6).
    Version,
}

impl HttpError {
    /// Returns the HTTP status of the error response.
    pub fn status(self) -> u16 {
        self.explained().0
    }

    fn explained(self) -> (u16, &'static str) {
        match self {
            Self::BareLineFeed => (400, "a line ends with LF alone instead of CR LF"),
            Self::BareCarriageReturn => (400, "a CR is not followed by LF"),
            Self::ControlByte => (400, "a line contains a control byte"),
            Self::EmptyLines => (400, "there is more than one empty line before the request"),
            Self::RequestLine => (400, "the request line is not METHOD TARGET VERSION"),
            Self::Target => (400, "the request target is neither a path nor an http URL"),
            Self::HeaderLine => {
                (400, "a header line is folded, or is not a name, a colon and a value")
            }
            Self::Host => (400, "the Host header is missing, repeated or not a host"),
            Self::Length => (400, "Content-Length is not a plain decimal number"),
            Self::RepeatedLength => (400, "Content-Length is repeated"),
            Self::LengthAndCoding => {
                (400, "Content-Length and Transfer-Encoding must not be combined")
            }
            Self::CodingInOldVersion => (400, "Transfer-Encoding needs HTTP/1.1"),
            Self::ChunkedNotLast => (400, "chunked is not the last transfer coding"),
            Self::Chunk => (400, "a chunk of the body is malformed"),
            Self::BodyTooLarge => (413, "the body is too large"),
            Self::RequestLineTooLong => (414, "the request line is too long"),
            Self::Expectation => (417, "the only supported expectation is 100-continue"),
            Self::HeadTooLarge => (431, "the header section is too large"),
            Self::TooManyHeaders => (431, "there are too many header lines"),
            Self::UnknownCoding => (501, "the only supported transfer coding is chunked"),
            Self::Version => (505, "the only supported versions are HTTP/1.0 and HTTP/1.1"),
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.explained().1)
    }
}

impl std::error::Error for HttpError {}

#[cfg(test)]
mod tests;
