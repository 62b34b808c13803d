//! Parses a complete request head: the request line, and the headers that decide how the body is framed
//! and whether the connection stays open.

use std::{mem::MaybeUninit, ops::Range};

use memchr::memchr;

use super::{
    HttpError, RequestLimits,
    body::BodyDecoder,
    host::is_host,
    list::list_members,
    request::{Method, NameSet, Request, Version},
};

/// The positions of a request's parts in its bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    // In order: method < authority <= path <= query < fields <= end of the head.
    method: Span,
    authority: Span,
    path: Span,
    query: Span,
    fields: Span,
    names: NameSet,
    version: Version,
    pub(super) keep_alive: bool,
    pub(super) expects_continue: bool,
}

impl Layout {
    pub(super) fn head_bytes(&self) -> usize {
        self.fields.range().end
    }

    /// Returns the layout of the same head when its `Content-Length` has more or fewer digits.
    pub(super) fn with_head_bytes(self, head_bytes: usize) -> Self {
        Self { fields: Span { end: narrow(head_bytes), ..self.fields }, ..self }
    }

    /// Returns the request. `bytes` must be the head that this layout was parsed from, followed by the
    /// body.
    pub(super) fn request<'a>(&self, bytes: &'a mut [u8]) -> Request<'a> {
        let (head, body) = bytes.split_at_mut(self.head_bytes());
        Request { body, ..self.head(head) }
    }

    /// Returns the request with an empty body. `head` must begin with the head that this layout was
    /// parsed from.
    pub(super) fn head<'a>(&self, head: &'a [u8]) -> Request<'a> {
        let text = |span: Span| match span.range() {
            range if range.is_empty() => "",
            range => str::from_utf8(&head[range]).expect("a request line was checked to be ASCII"),
        };
        Request {
            method: Method::named(text(self.method)),
            // RFC 9110, section 4.2.3: the path of an http URL may be empty.
            path: if self.path.range().is_empty() { "/" } else { text(self.path) },
            query: text(self.query),
            version: self.version,
            keep_alive: self.keep_alive,
            body: &mut [],
            authority: text(self.authority),
            fields: &head[self.fields.range()],
            names: self.names,
        }
    }
}

/// A byte range within a head. Takes half the memory of `Range<usize>`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Returns the range of `part`, which must be a subslice of `head`.
    pub(super) fn of(part: &[u8], head: &[u8]) -> Self {
        let start = part.as_ptr().addr() - head.as_ptr().addr();
        Self { start: narrow(start), end: narrow(start + part.len()) }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

fn narrow(offset: usize) -> u32 {
    u32::try_from(offset).expect("RequestLimits::head_bytes is below 4 GiB")
}

/// Parses a complete head: [`LineScan`](super::lines::LineScan) has found its end.
pub(super) fn parse(
    head: &[u8],
    limits: &RequestLimits,
) -> Result<(Layout, BodyDecoder), HttpError> {
    let lines = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut headers = [const { MaybeUninit::uninit() }; RequestLimits::HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let status = request.parse_with_uninit_headers(lines, &mut headers);
    let (Ok(httparse::Status::Complete(_)), Some(method), Some(target)) =
        (status, request.method, request.path)
    else {
        return Err(refusal(status.err(), lines));
    };

    let version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
    let parts = Target::split(target, method)?;
    let mut framing = Framing::default();
    for header in request.headers.iter() {
        framing.note(header.name, header.value)?;
    }
    framing.check(version)?;

    let fields = memchr(b'\n', lines).map_or(lines, |line_end| &lines[line_end + 1..]);
    let layout = Layout {
        method: Span::of(method.as_bytes(), head),
        authority: Span::of(parts.authority.as_bytes(), head),
        path: Span::of(parts.path.as_bytes(), head),
        query: Span::of(parts.query.as_bytes(), head),
        fields: Span::of(fields, head),
        names: framing.names,
        version,
        keep_alive: framing.keeps_alive(version),
        expects_continue: framing.expects_continue && version == Version::Http11,
    };
    Ok((layout, framing.body(limits)?))
}

fn refusal(error: Option<httparse::Error>, lines: &[u8]) -> HttpError {
    match error {
        Some(httparse::Error::HeaderName | httparse::Error::HeaderValue) => HttpError::HeaderLine,
        Some(httparse::Error::Version) if names_a_version(lines) => HttpError::Version,
        _ => HttpError::RequestLine,
    }
}

/// Whether the request line is well-formed, so that only its version is unknown: three words, the last
/// of the form `HTTP/1.1` (RFC 9112, sections 2.3 and 3).
fn names_a_version(lines: &[u8]) -> bool {
    let line = lines.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    let version = words.next().filter(|_| words.next().is_none()).unwrap_or_default();
    matches!(version, [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
        if major.is_ascii_digit() && minor.is_ascii_digit())
}

/// The parts of a request target (RFC 9112, section 3.2). Each is a subslice of the target, even if
/// empty.
struct Target<'a> {
    authority: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Target<'a> {
    fn split(target: &'a str, method: &str) -> Result<Self, HttpError> {
        // Clients do not send fragments. Browsers do send `|`, `{` and similar characters, although
        // RFC 3986 forbids them.
        if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(HttpError::Target);
        }
        let (authority, rest) = match http_url(target) {
            Some(url) => url.split_at(url.find(['/', '?']).unwrap_or(url.len())),
            None => target.split_at(0),
        };
        let (path, query) = rest.split_at(rest.find('?').unwrap_or(rest.len()));
        let good = if rest.len() < target.len() {
            !authority.is_empty() && is_host(authority.as_bytes())
        } else {
            path.starts_with('/') || (target == "*" && method == "OPTIONS")
        };
        if !good {
            return Err(HttpError::Target);
        }
        Ok(Self { authority, path, query: query.strip_prefix('?').unwrap_or(query) })
    }
}

/// Returns the part after the scheme if `target` is an http or https URL.
fn http_url(target: &str) -> Option<&str> {
    if target.starts_with('/') {
        return None;
    }
    let (scheme, rest) = target.split_once("://")?;
    let known = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    known.then_some(rest)
}

/// The headers that decide about framing and about the connection.
#[derive(Default)]
struct Framing {
    names: NameSet,
    host: bool,
    length: Option<u64>,
    coded: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Framing {
    fn note(&mut self, name: &str, value: &[u8]) -> Result<(), HttpError> {
        self.names.insert(name);
        // The length of a name rules out most headers before any text is compared.
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        match name.len() {
            4 if is("host") => self.note_host(value),
            6 if is("expect") => self.note_expectation(value),
            10 if is("connection") => {
                self.note_connection(value);
                Ok(())
            }
            14 if is("content-length") => self.note_length(value),
            17 if is("transfer-encoding") => self.note_coding(value),
            _ => Ok(()),
        }
    }

    fn note_host(&mut self, value: &[u8]) -> Result<(), HttpError> {
        if self.host || !is_host(value) {
            return Err(HttpError::Host);
        }
        self.host = true;
        Ok(())
    }

    fn note_length(&mut self, value: &[u8]) -> Result<(), HttpError> {
        if self.length.is_some() {
            return Err(HttpError::RepeatedLength);
        }
        self.length = Some(number(value).ok_or(HttpError::Length)?);
        Ok(())
    }

    /// Accepts `chunked`, once; anything else gets the error that fits best.
    fn note_coding(&mut self, value: &[u8]) -> Result<(), HttpError> {
        for coding in list_members(value) {
            if self.coded {
                return Err(HttpError::ChunkedNotLast);
            }
            if !coding.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::UnknownCoding);
            }
            self.coded = true;
        }
        Ok(())
    }

    fn note_expectation(&mut self, value: &[u8]) -> Result<(), HttpError> {
        if !value.eq_ignore_ascii_case(b"100-continue") {
            return Err(HttpError::Expectation);
        }
        self.expects_continue = true;
        Ok(())
    }

    fn note_connection(&mut self, value: &[u8]) {
        for option in list_members(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    /// Checks the headers against each other and against the version.
    fn check(&self, version: Version) -> Result<(), HttpError> {
        if self.coded && version == Version::Http10 {
            return Err(HttpError::CodingInOldVersion);
        }
        if self.coded && self.length.is_some() {
            return Err(HttpError::LengthAndCoding);
        }
        if !self.host && version == Version::Http11 {
            return Err(HttpError::Host);
        }
        Ok(())
    }

    /// Whether the connection stays open after the response (RFC 9112, section 9.3).
    fn keeps_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Returns the decoder for the body. A request with neither `Content-Length` nor
    /// `Transfer-Encoding` has no body (RFC 9112, section 6.3).
    fn body(&self, limits: &RequestLimits) -> Result<BodyDecoder, HttpError> {
        if self.coded {
            return Ok(BodyDecoder::chunked());
        }
        match usize::try_from(self.length.unwrap_or(0)) {
            Ok(length) if length <= limits.body_bytes => Ok(BodyDecoder::with_length(length)),
            _ => Err(HttpError::BodyTooLarge),
        }
    }
}

/// Parses a decimal number. A number that does not fit into 64 bits becomes `u64::MAX`, which exceeds
/// every limit.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    let append = |number: u64, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        Some(number.saturating_mul(10).saturating_add(digit))
    };
    digits.iter().try_fold(0, append).filter(|_| !digits.is_empty())
}
