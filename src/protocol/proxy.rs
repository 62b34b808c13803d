//! The PROXY protocol, versions 1 and 2: a header before all other bytes of a connection, in which a
//! proxy tells who connected to it
//! ([specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt)).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use memchr::memchr;

/// The bytes that begin a header of version 2. No header of version 1 and no request begins with them.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The bytes that begin a header of version 1.
const PREFIX: &[u8; 6] = b"PROXY ";

/// The longest header of version 1 in bytes, with its CR LF (section 2.1 of the specification).
const LINE_BYTES_MAX: usize = 107;

/// The length of a version 2 header before its addresses, in bytes.
const FIXED_BYTES: usize = 16;

/// The longest header of version 2 in bytes. The specification allows 65,551, most of them for
/// additional fields, which are skipped. Proxies send less than 1 KiB.
pub const HEADER_BYTES_MAX: usize = 4096;

/// A complete header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// The address of the client of the proxy. `None`: the proxy speaks for itself, as in a health check, or
    /// its client has no IP address.
    pub source: Option<SocketAddr>,
    /// The length of the header in bytes. The connection's own bytes follow.
    pub length: usize,
}

/// The reason why a header is refused. The connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyError {
    /// The connection begins with something else.
    Missing,
    /// A line of version 1 does not have the form that the specification requires.
    Line,
    /// Version 2 with an unknown version, command or address family, or with a block that is too short
    /// for its addresses.
    Block,
    /// Version 2 with more than [`HEADER_BYTES_MAX`].
    TooLong,
    /// The connection ended before the end of the header.
    Incomplete,
}

impl ProxyError {
    /// Returns the reason in words.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing => "expected a PROXY protocol header",
            Self::Line => "the PROXY protocol header of version 1 is malformed",
            Self::Block => "the PROXY protocol header of version 2 is malformed",
            Self::TooLong => "the PROXY protocol header has more than 4096 bytes",
            Self::Incomplete => "the connection ended within the PROXY protocol header",
        }
    }
}

impl fmt::Display for ProxyError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.reason())
    }
}

/// Parses the header at the start of a connection. Returns `None` if more bytes are needed, at most
/// [`HEADER_BYTES_MAX`] in all.
///
/// # Errors
/// The connection does not begin with a valid header.
pub fn parse(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    match input.first() {
        None => Ok(None),
        Some(b'P') => parse_line(input),
        Some(_) => parse_block(input),
    }
}

/// Reads the header at the start of a connection from the pieces in which it arrives.
#[derive(Debug, Default)]
pub struct ProxyHeaderReader {
    // The beginning of a header that has not arrived as a whole: less than HEADER_BYTES_MAX bytes.
    partial: Vec<u8>,
}

impl ProxyHeaderReader {
    /// Whether a part of the header has arrived.
    pub fn has_begun(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Reads the next bytes of the connection. Returns `None` if the header goes on. Otherwise the returned
    /// length is the number of bytes of `input` that belong to the header. A header that arrives at once is
    /// not copied.
    ///
    /// # Errors
    /// The connection does not begin with a valid header.
    pub fn read(&mut self, input: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
        let before = self.partial.len();
        if before == 0 {
            let header = parse(input)?;
            if header.is_none() {
                self.partial.extend_from_slice(input);
            }
            return Ok(header);
        }
        let room = HEADER_BYTES_MAX - before;
        self.partial.extend_from_slice(&input[..input.len().min(room)]);
        let header = parse(&self.partial)?;
        Ok(header.map(|header| ProxyHeader { length: header.length - before, ..header }))
    }
}

/// Whether `input` and `expected` agree as far as both go.
fn agrees(input: &[u8], expected: &[u8]) -> bool {
    let length = input.len().min(expected.len());
    input[..length] == expected[..length]
}

/// Parses a header of version 1, such as `PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n`.
fn parse_line(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    if !agrees(input, PREFIX) {
        return Err(ProxyError::Missing);
    }
    let searched = &input[..input.len().min(LINE_BYTES_MAX)];
    let Some(end) = memchr(b'\n', searched) else {
        let is_too_long = searched.len() == LINE_BYTES_MAX;
        return if is_too_long { Err(ProxyError::Line) } else { Ok(None) };
    };
    let source = searched[..end]
        .strip_prefix(PREFIX)
        .and_then(|line| line.strip_suffix(b"\r"))
        .and_then(|line| str::from_utf8(line).ok())
        .and_then(parse_source)
        .ok_or(ProxyError::Line)?;
    Ok(Some(ProxyHeader { source, length: end + 1 }))
}

/// Parses what follows `PROXY ` in a line. The outer `None` says that the line is malformed.
fn parse_source(line: &str) -> Option<Option<SocketAddr>> {
    let mut fields = line.split(' ');
    let family = fields.next()?;
    if family == "UNKNOWN" {
        // The rest of the line has no meaning.
        return Some(None);
    }
    let address = |text: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => text.parse().ok().map(IpAddr::V4),
            "TCP6" => text.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let source = address(fields.next()?)?;
    address(fields.next()?)?;
    let source_port = parse_port(fields.next()?)?;
    parse_port(fields.next()?)?;
    fields.next().is_none().then(|| Some(SocketAddr::new(source, source_port)))
}

/// Parses a port without a sign or leading zeros.
fn parse_port(text: &str) -> Option<u16> {
    let is_plain = text == "0" || text.starts_with(|first: char| ('1'..='9').contains(&first));
    text.parse().ok().filter(|_| is_plain)
}

/// Parses a header of version 2.
fn parse_block(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyError> {
    if !agrees(input, SIGNATURE) {
        return Err(ProxyError::Missing);
    }
    let Some(fixed) = input.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let [.., version_and_command, family, high, low] = *fixed;
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > HEADER_BYTES_MAX {
        return Err(ProxyError::TooLong);
    }
    let Some(addresses) = input.get(FIXED_BYTES..length) else { return Ok(None) };
    let source = match (version_and_command, family) {
        // LOCAL: the addresses have no meaning.
        (0x20, _) => None,
        (0x21, TCP_OVER_IPV4) => Some(source_of::<4>(addresses)?),
        (0x21, TCP_OVER_IPV6) => Some(source_of::<16>(addresses)?),
        // The proxy knows no IP address of its client.
        (0x21, UNSPECIFIED | UNIX_STREAM) => None,
        _ => return Err(ProxyError::Block),
    };
    Ok(Some(ProxyHeader { source, length }))
}

const UNSPECIFIED: u8 = 0x00;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
const UNIX_STREAM: u8 = 0x31;

/// Returns the source in a block of two addresses of `N` bytes and two ports.
fn source_of<const N: usize>(block: &[u8]) -> Result<SocketAddr, ProxyError>
where
    IpAddr: From<[u8; N]>,
{
    let is_whole = block.len() >= 2 * N + 4;
    let address = block.first_chunk::<N>().filter(|_| is_whole).ok_or(ProxyError::Block)?;
    let port = u16::from_be_bytes([block[2 * N], block[2 * N + 1]]);
    Ok(SocketAddr::new(IpAddr::from(*address), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(version_and_command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).expect("a test's header is short");
        let fixed = [version_and_command, family];
        [&SIGNATURE[..], &fixed, &length.to_be_bytes(), addresses].concat()
    }

    fn whole(source: Option<&str>, header: &[u8]) -> ProxyHeader {
        let source = source.map(|source| source.parse().expect("an address"));
        ProxyHeader { source, length: header.len() }
    }

    #[test]
    fn a_header_is_parsed_wherever_it_is_split() {
        let ipv4 = [192, 0, 2, 1, 192, 0, 2, 9, 0xDC, 0x04, 0x01, 0xBB];
        let ipv6 = [&[0x20, 0x01, 0x0D, 0xB8], &[0; 11][..], &[1], &[0; 16], &[0xDC, 4, 1, 0xBB]];
        let with_fields = [&ipv4[..], &[0x04, 0, 2, 7, 7]].concat();
        let table: Vec<(Option<&str>, Vec<u8>)> = vec![
            (Some("192.0.2.1:56324"), b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n".to_vec()),
            (Some("[2001:db8::1]:1"), b"PROXY TCP6 2001:db8::1 2001:db8::9 1 0\r\n".to_vec()),
            (None, b"PROXY UNKNOWN\r\n".to_vec()),
            (None, b"PROXY UNKNOWN ffff::1 whatever\r\n".to_vec()),
            (Some("192.0.2.1:56324"), block(0x21, 0x11, &ipv4)),
            (Some("192.0.2.1:56324"), block(0x21, 0x11, &with_fields)),
            (Some("[2001:db8::1]:56324"), block(0x21, 0x21, &ipv6.concat())),
            (None, block(0x20, 0x00, &[])),
            (None, block(0x20, 0x11, &ipv4)),
            (None, block(0x20, 0xFF, &[])),
            (None, block(0x21, 0x00, &[])),
            (None, block(0x21, 0x31, &[0; 216])),
        ];
        for (source, header) in table {
            for length in 0..header.len() {
                assert_eq!(parse(&header[..length]), Ok(None), "{:?}", &header[..length]);
            }
            let followed = [&header[..], b"GET / HTTP/1.1\r\n"].concat();
            let expected = Ok(Some(whole(source, &header)));
            assert_eq!((parse(&header), parse(&followed)), (expected, expected));
        }
    }

    #[test]
    fn anything_else_is_refused_at_its_first_wrong_byte() {
        for start in ["GET / HTTP/1.1", "PRI * HTTP/2.0", "\r\nGET", "\x16\x03\x01", "proxy TCP4"] {
            assert_eq!(parse(start.as_bytes()), Err(ProxyError::Missing), "{start:?}");
        }
        assert_eq!(parse(b"\r\n\r\n\0\r\nQUIX"), Err(ProxyError::Missing));
    }

    #[test]
    fn a_malformed_line_is_refused() {
        for line in [
            "TCP4 192.0.2.1 192.0.2.9 1 2\n",
            "TCP4  192.0.2.1 192.0.2.9 1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.9 1 2 \r\n",
            "TCP4 192.0.2.1 192.0.2.9 1\r\n",
            "TCP4 192.0.2.1 192.0.2.9 1 2 3\r\n",
            "TCP4 192.0.2.1 192.0.2.9 01 2\r\n",
            "TCP4 192.0.2.1 192.0.2.9 +1 2\r\n",
            "TCP4 192.0.2.1 192.0.2.9 65536 2\r\n",
            "TCP4 192.0.2.01 192.0.2.9 1 2\r\n",
            "TCP4 ::1 ::2 1 2\r\n",
            "TCP6 192.0.2.1 192.0.2.9 1 2\r\n",
            "TCP5 192.0.2.1 192.0.2.9 1 2\r\n",
            "UNKNOWNS\r\n",
            "tcp4 192.0.2.1 192.0.2.9 1 2\r\n",
            "TCP4 \u{fc} 192.0.2.9 1 2\r\n",
            "\r\n",
        ] {
            let line = format!("PROXY {line}");
            assert_eq!(parse(line.as_bytes()), Err(ProxyError::Line), "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(parse(&endless.as_bytes()[..LINE_BYTES_MAX - 1]), Ok(None));
        assert_eq!(parse(endless.as_bytes()), Err(ProxyError::Line));
    }

    #[test]
    fn a_malformed_block_is_refused() {
        for (version_and_command, family, addresses) in [
            (0x11, 0x11, &[0; 12][..]),
            (0x31, 0x11, &[0; 12]),
            (0x22, 0x11, &[0; 12]),
            (0x21, 0x12, &[0; 12]),
            (0x21, 0x22, &[0; 36]),
            (0x21, 0x11, &[0; 11]),
            (0x21, 0x21, &[0; 35]),
            (0x21, 0x41, &[]),
        ] {
            let header = block(version_and_command, family, addresses);
            assert_eq!(parse(&header), Err(ProxyError::Block), "{header:?}");
        }
        let longest = block(0x20, 0, &[0; HEADER_BYTES_MAX - FIXED_BYTES]);
        assert_eq!(parse(&longest), Ok(Some(whole(None, &longest))));
        let longer = block(0x20, 0, &[0; HEADER_BYTES_MAX - FIXED_BYTES + 1]);
        assert_eq!(parse(&longer[..FIXED_BYTES]), Err(ProxyError::TooLong));
    }

    const LINE: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.9 56324 443\r\n";

    #[test]
    fn a_header_is_read_from_any_pieces_and_takes_no_byte_behind_it() {
        let source: Option<SocketAddr> = Some(([192, 0, 2, 1], 56324).into());
        let whole = [LINE, b"GET / HTTP/1.1"].concat();
        for first in 0..LINE.len() {
            for second in first..LINE.len() {
                let mut reader = ProxyHeaderReader::default();
                assert_eq!(reader.read(&whole[..first]), Ok(None));
                assert_eq!(reader.read(&whole[first..second]), Ok(None));
                let length = LINE.len() - second;
                assert_eq!(reader.read(&whole[second..]), Ok(Some(ProxyHeader { source, length })));
            }
        }
    }

    #[test]
    fn the_longest_header_is_read_byte_by_byte_and_no_more_is_kept() {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x20\0".to_vec();
        header.extend_from_slice(&(HEADER_BYTES_MAX as u16 - 16).to_be_bytes());
        header.resize(HEADER_BYTES_MAX, 0);
        let mut reader = ProxyHeaderReader::default();
        for byte in &header[..HEADER_BYTES_MAX - 1] {
            assert_eq!(reader.read(&[*byte]), Ok(None));
        }
        let large = vec![0; 1 << 16];
        let found = ProxyHeader { source: None, length: 1 };
        assert_eq!(reader.read(&large), Ok(Some(found)));
        assert_eq!(reader.partial.len(), HEADER_BYTES_MAX);
    }

    #[test]
    fn what_is_no_header_is_refused_in_any_pieces() {
        let mut reader = ProxyHeaderReader::default();
        assert_eq!(reader.read(b"P"), Ok(None));
        assert!(reader.has_begun());
        assert_eq!(reader.read(b"OST / HTTP/1.1"), Err(ProxyError::Missing));
    }
}
