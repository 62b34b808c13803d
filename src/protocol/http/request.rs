//! A complete HTTP request.

use memchr::memchr;

use super::list::list_members;
use super::response::Exchange;

/// A validated request with its complete body. Borrows from the bytes that it was read from.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method. Methods are case-sensitive.
    pub method: Method<'a>,
    /// The path as sent, percent-encoded, without the query. Starts with `/`, or is `*` for OPTIONS.
    pub path: &'a str,
    /// The query as sent, without its `?`; empty if there is none. [`query_pairs`](super::query_pairs)
    /// decodes it.
    pub query: &'a str,
    /// The peer's HTTP version.
    pub version: Version,
    /// Whether the connection stays open after the response (RFC 9112, section 9.3).
    pub keep_alive: bool,
    /// The body, decoded. The receiver may overwrite it.
    pub body: &'a mut [u8],
    // The authority of an absolute target; empty for other targets.
    pub(super) authority: &'a str,
    // The header lines and the empty line after them, each with CR LF.
    pub(super) fields: &'a [u8],
    // A filter of the header names.
    pub(super) names: NameSet,
}

/// A filter of the header names in a request, like a Bloom filter with one hash. Most headers that are
/// looked up are absent, and the filter says so without a scan of the header lines.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NameSet(u64);

impl NameSet {
    pub(super) fn insert(&mut self, name: &str) {
        self.0 |= Self::bit(name);
    }

    /// Returns false if no header has this name, ignoring case. True means that one may have it.
    fn may_have(self, name: &str) -> bool {
        self.0 & Self::bit(name) != 0
    }

    /// Selects one of 64 bits by the first letter, ignoring case, and the parity of the length.
    fn bit(name: &str) -> u64 {
        let first = name.bytes().next().unwrap_or_default();
        1 << (u64::from(first & 0x1F) * 2 + (name.len() as u64 & 1))
    }
}

/// An owned copy of a request, for a response that has to wait.
#[derive(Debug)]
pub struct KeptRequest {
    method: String,
    path: String,
    query: String,
    version: Version,
    keep_alive: bool,
    body: Vec<u8>,
    authority: String,
    fields: Vec<u8>,
    names: NameSet,
}

impl KeptRequest {
    /// Returns the memory held, in bytes.
    pub fn held_bytes(&self) -> usize {
        let texts = [&self.method, &self.path, &self.query, &self.authority];
        let texts: usize = texts.into_iter().map(String::capacity).sum();
        texts + self.body.capacity() + self.fields.capacity()
    }

    /// Borrows the request.
    pub fn lend(&mut self) -> Request<'_> {
        Request {
            method: Method::named(&self.method),
            path: &self.path,
            query: &self.query,
            version: self.version,
            keep_alive: self.keep_alive,
            body: &mut self.body,
            authority: &self.authority,
            fields: &self.fields,
            names: self.names,
        }
    }
}

/// A request method (RFC 9110, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method<'a> {
    /// GET
    Get,
    /// HEAD: like GET, but the response has no body.
    Head,
    /// POST
    Post,
    /// Any other method.
    Other(&'a str),
}

impl<'a> Method<'a> {
    pub(super) fn named(name: &'a str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            _ => Self::Other(name),
        }
    }

    /// Returns the method's name.
    pub fn name(self) -> &'a str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Other(name) => name,
        }
    }
}

/// A supported HTTP version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl<'a> Request<'a> {
    /// Copies the request, to answer it later.
    pub fn keep(&self) -> KeptRequest {
        KeptRequest {
            method: self.method.name().to_owned(),
            path: self.path.to_owned(),
            query: self.query.to_owned(),
            version: self.version,
            keep_alive: self.keep_alive,
            body: self.body.to_vec(),
            authority: self.authority.to_owned(),
            fields: self.fields.to_vec(),
            names: self.names,
        }
    }

    /// Yields the headers in order, each name with its trimmed value.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        // Only the empty line that ends the head has no colon.
        lines(self.fields).map_while(|line| {
            let (name, value) = line.split_at(memchr(b':', line)?);
            let name = str::from_utf8(name).expect("header names were checked to be ASCII");
            Some((name, value[1..].trim_ascii()))
        })
    }

    /// Yields the values of all headers with this name, ignoring case.
    #[inline]
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = if self.names.may_have(name) { self.fields } else { b"" };
        lines(fields).filter_map(move |line| {
            let (other, rest) = line.split_at_checked(name.len())?;
            let value = rest.strip_prefix(b":")?;
            other.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
        })
    }

    /// Returns the value of the first header with this name, ignoring case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.header_values(name).next()
    }

    /// Returns the value of the header with this name, ignoring case, if there is exactly one.
    pub fn only_header(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.header_values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether `token`, ignoring case, is a member of the comma-separated list formed by all headers
    /// with this name (RFC 9110, section 5.3).
    pub fn header_has_token(&self, name: &str, token: &str) -> bool {
        self.header_values(name)
            .flat_map(list_members)
            .any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// Returns the requested host, with its port if there is one. An absolute target takes precedence
    /// over the `Host` header (RFC 9112, section 3.2.2).
    pub fn host(&self) -> Option<&'a [u8]> {
        if self.authority.is_empty() {
            return self.header("host");
        }
        Some(self.authority.as_bytes())
    }

    /// Returns the properties of the request that the response depends on. They outlive the request.
    pub fn exchange(&self) -> Exchange {
        Exchange {
            version: self.version,
            keep_alive: self.keep_alive,
            head_only: self.method == Method::Head,
        }
    }
}

/// Yields the lines of a header section, without their line ends.
fn lines(mut fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (line, after) = fields.split_at(memchr(b'\r', fields)?);
        fields = &after[b"\r\n".len()..];
        Some(line)
    })
}
