//! A whole request, as lent to whoever answers it.

use memchr::memchr;

use super::list::list_members;
use super::response::Exchange;

/// A request that was checked: it has one meaning, and its body is whole.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method, in the case it was sent in: methods are case-sensitive.
    pub method: Method<'a>,
    /// The path as sent, percent-encoded, without the query: starts with `/`, or is `*` for OPTIONS.
    pub path: &'a str,
    /// The query as sent, without its `?`; empty if there is none. See [`query_pairs`](super::query_pairs).
    pub query: &'a str,
    /// The version of the peer.
    pub version: Version,
    /// Whether the connection stays open after the answer (RFC 9112 section 9.3).
    pub keep_alive: bool,
    /// The body without its framing; the reader of it may overwrite it.
    pub body: &'a mut [u8],
    // From an absolute target; empty for any other.
    pub(super) authority: &'a str,
    // The header lines and the empty line behind them, each with CR LF.
    pub(super) fields: &'a [u8],
    // The names in them.
    pub(super) names: NameSet,
}

/// A filter of the header names in a request. Most headers that are looked up are absent; the filter
/// says so without a look at the lines.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct NameSet(u64);

impl NameSet {
    pub(super) fn insert(&mut self, name: &str) {
        self.0 |= Self::bit(name);
    }

    /// False if no header has this name, in any case. True proves nothing.
    fn may_have(self, name: &str) -> bool {
        self.0 & Self::bit(name) != 0
    }

    /// Picks one of 64 bits by the first letter, in either case, and by an odd or even length.
    fn bit(name: &str) -> u64 {
        let first = name.bytes().next().unwrap_or_default();
        1 << (u64::from(first & 0x1F) * 2 + (name.len() as u64 & 1))
    }
}

/// A request that outlives the bytes it was read from.
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
    /// Memory that it takes.
    pub fn held_bytes(&self) -> usize {
        let texts = [&self.method, &self.path, &self.query, &self.authority];
        let texts: usize = texts.into_iter().map(String::capacity).sum();
        texts + self.body.capacity() + self.fields.capacity()
    }

    /// The request, to be answered.
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

/// A request method (RFC 9110 section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method<'a> {
    /// GET
    Get,
    /// HEAD: answered as GET, without the body.
    Head,
    /// POST
    Post,
    /// Any other.
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

    /// The method as it was sent.
    pub fn name(self) -> &'a str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Other(name) => name,
        }
    }
}

/// An HTTP version that is spoken here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

impl<'a> Request<'a> {
    /// A copy of all of it, for as long as it cannot be answered.
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

    /// The headers in the order they came, their values without white space at the ends.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        // Only the empty line that ends the head has no colon.
        lines(self.fields).map_while(|line| {
            let (name, value) = line.split_at(memchr(b':', line)?);
            let name = str::from_utf8(name).expect("header names were checked to be ASCII");
            Some((name, value[1..].trim_ascii()))
        })
    }

    /// The values of each header of that name, in any case.
    #[inline]
    pub fn header_values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = if self.names.may_have(name) { self.fields } else { b"" };
        lines(fields).filter_map(move |line| {
            let (other, rest) = line.split_at_checked(name.len())?;
            let value = rest.strip_prefix(b":")?;
            other.eq_ignore_ascii_case(name.as_bytes()).then(|| value.trim_ascii())
        })
    }

    /// The value of the first header of that name, in any case.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.header_values(name).next()
    }

    /// The value of the header of that name, in any case, if there is one and no second.
    pub fn only_header(&self, name: &str) -> Option<&'a [u8]> {
        let mut values = self.header_values(name);
        values.next().filter(|_| values.next().is_none())
    }

    /// Whether `token`, in any case, is a member of the comma-separated list that all headers of that
    /// name make together (RFC 9110 section 5.3).
    pub fn header_has_token(&self, name: &str, token: &str) -> bool {
        self.header_values(name)
            .flat_map(list_members)
            .any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The host, and port if any, that the request is meant for. RFC 9112 section 3.2.2: that of an
    /// absolute target goes before the header.
    pub fn host(&self) -> Option<&'a [u8]> {
        if self.authority.is_empty() {
            return self.header("host");
        }
        Some(self.authority.as_bytes())
    }

    /// What the answer needs to know of this request, which may be gone by then.
    pub fn exchange(&self) -> Exchange {
        Exchange {
            version: self.version,
            keep_alive: self.keep_alive,
            head_only: self.method == Method::Head,
        }
    }
}

/// The lines of a header section, without their ends.
fn lines(mut fields: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (line, after) = fields.split_at(memchr(b'\r', fields)?);
        fields = &after[b"\r\n".len()..];
        Some(line)
    })
}
