//! HTTP/1.0 and 1.1 for a server: requests from bytes as they come, responses to bytes.
//!
//! Others may stand in front of this server, so whatever two readers could understand differently
//! is refused, never repaired (RFC 9112 sections 2.2, 3, 5.1, 5.2, 6.3, 7.1 and 11.2).
//!
//! - `mod.rs`: [`RequestReader`], what one connection keeps between reads; [`HttpError`].
//! - `lines.rs`: finds the end of a head or of trailers. `head.rs`: what a head says.
//!   `host.rs`: the host in it. `list.rs`: lists in its values. `known.rs`: the same head again.
//! - `body.rs`: bodies with a length and chunked ones.
//! - `request.rs`: the [`Request`] given out. `query.rs`: percent-encoding.
//! - `response.rs`: the [`Response`] written. `date.rs`: when it was.

mod body;
mod date;
mod head;
mod host;
mod known;
mod lines;
mod list;
mod query;
mod request;
mod response;

pub use date::{Calendar, Date};
pub use list::is_token;
pub(super) use list::{list_members, split_unquoted};
pub use query::{EscapeError, QueryPair, percent_decode, query_pairs};
pub use request::{KeptRequest, Method, Request, Version};
pub(super) use response::write_header;
pub use response::{CONTINUE, Exchange, Response};

use std::{fmt, mem};

use body::Body;
use head::Layout;
use known::LastHead;
use lines::LineScan;

/// How much of one request is taken before it is refused.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of the request line and header lines, with their line ends; of the trailers, too.
    /// Below 4 GiB.
    pub head_bytes: usize,
    /// Header lines of one request: at most [`Limits::HEADERS_MAX`], whatever is asked for here.
    pub headers: usize,
    /// Bytes of a body, without the framing of its chunks.
    pub body_bytes: usize,
}

impl Limits {
    /// Parsing takes 32 bytes of stack for each header that might come: 8 KiB for this many.
    pub const HEADERS_MAX: usize = 256;
}

/// Reads the requests of one connection, one after the other.
///
/// A request that lies whole in one input is lent from there. Any other is put together in a buffer
/// that never holds more than one head and one body within their limits, and that is freed by the
/// read after the one that gave the request out. The reader also remembers the last head that came
/// with a body, up to 1 KiB of it, and does not parse the same head again.
#[derive(Debug, Default)]
pub struct RequestReader {
    // The bytes of an unfinished request: its head, then its decoded body.
    kept: Vec<u8>,
    last: LastHead,
    stage: Stage,
}

#[derive(Debug, Default)]
enum Stage {
    /// Between requests; `kept` may still hold the one given out last.
    #[default]
    Idle,
    Head(LineScan),
    Body(Unfinished),
}

/// A request whose head is known. The head is in `kept` unless `kept` is empty; then it is still at
/// the front of the input.
#[derive(Debug)]
struct Unfinished {
    layout: Layout,
    body: Body,
    // Its head was given out: Step::Head comes once.
    is_announced: bool,
}

/// What a read came to.
#[derive(Debug)]
pub enum Step<'r> {
    /// All of the input was taken and the request is not whole yet.
    NeedMore,
    /// The head of a request whose body is not all here yet, with an empty body: whoever may not ask
    /// for this is refused before more of it is kept than came with the head. Read again at once,
    /// with what is left of the input, empty or not.
    Head(Request<'r>),
    /// The peer sends the body once it has [`CONTINUE`] (RFC 9110 section 10.1.1), and the body that
    /// it announced is within its limit. Read again, with what comes after.
    Continue,
    /// A whole request.
    Request(Request<'r>),
}

impl RequestReader {
    /// Memory that the half-read request and the last head take.
    pub fn held_bytes(&self) -> usize {
        self.kept.capacity() + self.last.held_bytes()
    }

    /// Reads on in `input`, which is moved past what was taken: what follows a whole request (the
    /// next one, or the frames of another protocol) stays in it. Read until [`Step::NeedMore`]; that
    /// also frees what the last request took.
    ///
    /// The fault of a peer is the same [`HttpError`] however its bytes were cut.
    /// After an error the connection is to be closed: where the next request starts is not known.
    pub fn read<'r, 'i: 'r>(
        &'r mut self,
        input: &mut &'i mut [u8],
        limits: &Limits,
    ) -> Result<Step<'r>, HttpError> {
        let unfinished = match mem::take(&mut self.stage) {
            Stage::Idle => {
                self.kept = Vec::new();
                if input.is_empty() {
                    return Ok(Step::NeedMore);
                }
                if let Some(request) = self.read_known(input, limits) {
                    return Ok(Step::Request(request));
                }
                self.read_head(LineScan::head(), input, limits)?
            }
            Stage::Head(scan) => self.read_head(scan, input, limits)?,
            Stage::Body(unfinished) => Some(unfinished),
        };
        match unfinished {
            Some(unfinished) => self.read_body(unfinished, input, limits),
            None => Ok(Step::NeedMore),
        }
    }

    /// The head of the request whose body is being read, with an empty body.
    pub fn head(&self) -> Option<Request<'_>> {
        match &self.stage {
            Stage::Body(unfinished) => Some(unfinished.layout.head(&self.kept)),
            Stage::Idle | Stage::Head(_) => None,
        }
    }

    /// Takes a request that is whole in `input`, if its head is the last one again.
    fn read_known<'i>(&mut self, input: &mut &'i mut [u8], limits: &Limits) -> Option<Request<'i>> {
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
        limits: &Limits,
    ) -> Result<Option<Unfinished>, HttpError> {
        let Some(end) = scan.feed(input, limits)? else {
            let fresh: &mut [u8] = mem::take(input);
            self.kept.extend_from_slice(fresh);
            self.stage = Stage::Head(scan);
            return Ok(None);
        };
        let head = if self.kept.is_empty() {
            &input[..end]
        } else {
            self.kept.extend_from_slice(take(input, end));
            &self.kept
        };
        let (layout, body) = head::parse(head, limits)?;
        Ok(Some(Unfinished { layout, body, is_announced: false }))
    }

    fn read_body<'r, 'i: 'r>(
        &'r mut self,
        mut unfinished: Unfinished,
        input: &mut &'i mut [u8],
        limits: &Limits,
    ) -> Result<Step<'r>, HttpError> {
        let Unfinished { layout, body, is_announced } = &mut unfinished;
        let head_bytes = if self.kept.is_empty() { layout.head_bytes() } else { 0 };
        let decoded = body.decode(&mut input[head_bytes..], limits)?;
        let taken = take(input, head_bytes + decoded.taken);
        let fresh = &mut taken[..head_bytes + decoded.data];
        if decoded.whole && self.kept.is_empty() {
            if layout.keep_alive && decoded.data > 0 && matches!(body, Body::Length { .. }) {
                self.last.keep(&fresh[..head_bytes], *layout);
            }
            return Ok(Step::Request(layout.request(fresh)));
        }
        self.kept.extend_from_slice(fresh);
        if decoded.whole {
            return Ok(Step::Request(layout.request(&mut self.kept)));
        }
        if !mem::replace(is_announced, true) {
            layout.expects_continue &= decoded.taken == 0;
            self.stage = Stage::Body(unfinished);
            return Ok(self.head().map_or(Step::NeedMore, Step::Head));
        }
        // Asked for once, and not by a peer that has begun to send the body anyhow.
        let asked = mem::take(&mut layout.expects_continue) && decoded.taken == 0;
        self.stage = Stage::Body(unfinished);
        Ok(if asked { Step::Continue } else { Step::NeedMore })
    }
}

fn take<'i>(input: &mut &'i mut [u8], count: usize) -> &'i mut [u8] {
    let (taken, rest) = mem::take(input).split_at_mut(count);
    *input = rest;
    taken
}

/// Why a request is refused; `Display` says it in words. All are the peer's doing; the connection is
/// answered and closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpError {
    /// RFC 9112 section 2.2 lets a server take it for a line end; two servers then see two requests.
    BareLineFeed,
    /// RFC 9112 section 2.2.
    BareCarriageReturn,
    /// RFC 9110 section 5.5.
    ControlByte,
    /// RFC 9112 section 2.2 asks to skip one such line.
    EmptyLines,
    /// RFC 9112 section 3.
    RequestLine,
    /// RFC 9112 section 3.2.
    Target,
    /// RFC 9112 sections 5.1 and 5.2.
    HeaderLine,
    /// RFC 9112 section 3.2.
    Host,
    /// RFC 9110 section 8.6.
    Length,
    /// RFC 9112 section 6.3.
    RepeatedLength,
    /// RFC 9112 section 6.3.
    LengthAndCoding,
    /// RFC 9112 section 6.1.
    CodingInOldVersion,
    /// RFC 9112 section 6.3.
    ChunkedNotLast,
    /// RFC 9112 section 7.1.
    Chunk,
    /// RFC 9110 section 15.5.14.
    BodyTooLarge,
    /// RFC 9110 section 10.1.1.
    Expectation,
    /// RFC 9112 section 3.
    RequestLineTooLong,
    /// RFC 6585 section 5.
    HeadTooLarge,
    /// RFC 6585 section 5.
    TooManyHeaders,
    /// RFC 9112 section 6.1.
    UnknownCoding,
    /// RFC 9110 section 15.6.6.
    Version,
}

impl HttpError {
    /// The status to answer with.
    pub fn status(self) -> u16 {
        self.explained().0
    }

    fn explained(self) -> (u16, &'static str) {
        match self {
            Self::BareLineFeed => (400, "a line ends with LF alone instead of CR LF"),
            Self::BareCarriageReturn => (400, "a CR is not followed by LF"),
            Self::ControlByte => (400, "a line holds a control byte"),
            Self::EmptyLines => (400, "there is more than one empty line before the request"),
            Self::RequestLine => (400, "the request line is not METHOD TARGET VERSION"),
            Self::Target => (400, "the request target is neither a path nor an http URL"),
            Self::HeaderLine => {
                (400, "a header line is folded, or is not a name, a colon and a value")
            }
            Self::Host => (400, "the Host header is missing, repeated or not a host"),
            Self::Length => (400, "Content-Length is not a plain decimal number"),
            Self::RepeatedLength => (400, "Content-Length is there more than once"),
            Self::LengthAndCoding => (400, "there are both Content-Length and Transfer-Encoding"),
            Self::CodingInOldVersion => (400, "Transfer-Encoding needs HTTP/1.1"),
            Self::ChunkedNotLast => (400, "chunked is not the last transfer coding"),
            Self::Chunk => (400, "a chunk of the body is malformed"),
            Self::BodyTooLarge => (413, "the body is too large"),
            Self::RequestLineTooLong => (414, "the request line is too long"),
            Self::Expectation => (417, "the only expectation that can be met is 100-continue"),
            Self::HeadTooLarge => (431, "the header section is too large"),
            Self::TooManyHeaders => (431, "there are too many header lines"),
            Self::UnknownCoding => (501, "the only transfer coding known here is chunked"),
            Self::Version => (505, "the only versions spoken here are HTTP/1.0 and HTTP/1.1"),
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
