//! The server's side of the WebSocket opening handshake (RFC 6455, section 4.2).

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{GeneralPurpose, GeneralPurposeConfig, general_purpose},
};
use sha1::{Digest as _, Sha1};

use super::deflate::Agreement;
use super::extension::Extension;
use super::http::{Date, Method, Request, Version, is_token, list_members, write_header};

/// A valid request for a WebSocket.
#[derive(Debug)]
pub struct Upgrade<'r> {
    /// The value of `Sec-WebSocket-Accept` for the response.
    pub accept: Accept,
    request: &'r Request<'r>,
}

impl<'r> Upgrade<'r> {
    /// Yields the subprotocols that the client offers, in order of preference. Names that are not
    /// tokens are skipped (RFC 6455, section 4.1), so each name is safe to put into the response.
    pub fn subprotocols(&self) -> impl Iterator<Item = &'r str> {
        let members = self.request.header_values("sec-websocket-protocol").flat_map(list_members);
        members.filter(|name| is_token(name)).filter_map(|name| str::from_utf8(name).ok())
    }

    /// Whether the `User-Agent` header claims to be a browser.
    pub fn is_of_browser(&self) -> bool {
        self.request.header("user-agent").is_some_and(|agent| agent.starts_with(b"Mozilla/"))
    }

    /// Returns the first offered subprotocol that is accepted.
    pub fn accepted_subprotocol(&self, is_accepted: impl Fn(&str) -> bool) -> Option<&'r str> {
        self.subprotocols().find(|offered| is_accepted(offered))
    }

    /// Yields the extensions that the client offers, in order of preference.
    pub fn extensions(&self) -> impl Iterator<Item = Extension<'r>> {
        offers(self.request).flatten()
    }
}

fn offers<'r>(request: &Request<'r>) -> impl Iterator<Item = Option<Extension<'r>>> {
    request.header_values("sec-websocket-extensions").flat_map(Extension::list)
}

/// Whether the request has an `Upgrade` header. [`check`] says whether it is a valid WebSocket request.
pub fn is_upgrade(request: &Request<'_>) -> bool {
    request.header("upgrade").is_some()
}

/// Checks the requirements of RFC 6455, section 4.2.1. The HTTP parser has already checked `Host`; the
/// caller checks origin and path.
///
/// # Errors
/// The first requirement that is not met.
pub fn check<'r>(request: &'r Request<'_>) -> Result<Upgrade<'r>, UpgradeError> {
    if request.method != Method::Get {
        return Err(UpgradeError::Method);
    }
    // RFC 9110, section 7.8: a server ignores `Upgrade` in HTTP/1.0.
    if request.version != Version::Http11
        || !request.header_has_token("connection", "upgrade")
        || !request.header_has_token("upgrade", "websocket")
    {
        return Err(UpgradeError::NotAsked);
    }
    if request.only_header("sec-websocket-version") != Some(b"13") {
        return Err(UpgradeError::Version);
    }
    if !request.body.is_empty() {
        return Err(UpgradeError::Body);
    }
    // RFC 6455, section 9.1: a malformed list of extensions fails the handshake.
    if offers(request).any(|offer| offer.is_none()) {
        return Err(UpgradeError::Extensions);
    }
    let key = request.only_header("sec-websocket-key").filter(|key| is_key(key));
    let accept = Accept::of(key.ok_or(UpgradeError::Key)?);
    Ok(Upgrade { accept, request })
}

/// Whether this is the base64 of 16 bytes. The unused bits of the last character may be set: some
/// clients make the text up instead of encoding random bytes.
fn is_key(key: &[u8]) -> bool {
    const BASE64: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
    );
    // The length is checked first, so that the decoded bytes fit into the buffer.
    key.len() == 24 && BASE64.decode_slice(key, &mut [0; 18]) == Ok(16)
}

/// The value of `Sec-WebSocket-Accept`, which proves to the client that the server understood the
/// handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept([u8; 28]);

impl Accept {
    /// Computes the value for a key (RFC 6455, section 4.2.2, step 5.4).
    fn of(key: &[u8]) -> Self {
        const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
        let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
        let mut text = [0; 28];
        general_purpose::STANDARD
            .encode_slice(digest, &mut text)
            .expect("20 bytes are 28 characters");
        Self(text)
    }

    /// Returns the value as text.
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.0).expect("base64 is ASCII")
    }
}

/// Appends the 101 response. WebSocket frames follow it on the connection. `subprotocol` must be one of
/// those offered.
pub fn write_switching(
    out: &mut Vec<u8>,
    date: Date,
    accept: &Accept,
    subprotocol: Option<&str>,
    compression: Option<Agreement>,
) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    date.put(out);
    write_header(out, "Upgrade", "websocket");
    write_header(out, "Connection", "Upgrade");
    write_header(out, "Sec-WebSocket-Accept", accept.as_str());
    if let Some(subprotocol) = subprotocol {
        write_header(out, "Sec-WebSocket-Protocol", subprotocol);
    }
    if let Some(agreement) = compression {
        write_header(out, "Sec-WebSocket-Extensions", &agreement.to_string());
    }
    out.extend_from_slice(b"\r\n");
}

/// Why a WebSocket handshake is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpgradeError {
    /// The method is not GET.
    Method,
    /// The request does not ask for an upgrade to WebSocket.
    NotAsked,
    /// The WebSocket version is not 13 (RFC 6455, section 4.4).
    Version,
    /// `Sec-WebSocket-Key` is missing, repeated, or not the base64 of 16 bytes.
    Key,
    /// The list of extensions is malformed.
    Extensions,
    /// The request has a body, which could be confused with the first frames.
    Body,
}

impl UpgradeError {
    /// Returns the HTTP status of the response.
    pub fn status(self) -> u16 {
        match self {
            Self::Method => 405,
            Self::NotAsked | Self::Version => 426,
            Self::Key | Self::Extensions | Self::Body => 400,
        }
    }

    /// Returns the headers that the response must carry, which say what the server supports.
    pub fn headers(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Method => &[("Allow", "GET")],
            // RFC 9110, section 15.5.22, and RFC 6455, section 4.2.2.
            Self::NotAsked | Self::Version => &[
                ("Upgrade", "websocket"),
                ("Connection", "Upgrade"),
                ("Sec-WebSocket-Version", "13"),
            ],
            Self::Key | Self::Extensions | Self::Body => &[],
        }
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Method => "a WebSocket handshake must use GET",
            Self::NotAsked => {
                "this path needs HTTP/1.1 with Connection: Upgrade and Upgrade: websocket"
            }
            Self::Version => "Sec-WebSocket-Version must be 13",
            Self::Key => "Sec-WebSocket-Key must be given once, as the base64 of 16 bytes",
            Self::Extensions => "Sec-WebSocket-Extensions is malformed",
            Self::Body => "a WebSocket handshake must not have a body",
        })
    }
}

impl std::error::Error for UpgradeError {}

#[cfg(test)]
mod tests {
    use super::super::http::{RequestLimits, RequestReader, RequestStep};
    use super::*;

    const LIMITS: RequestLimits = RequestLimits { head_bytes: 1024, headers: 20, body_bytes: 20 };

    /// The example of RFC 6455, section 1.2.
    const EXAMPLE: &str = "GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Version: 13\r\n\r\n";

    fn with_request<T>(text: &str, examine: impl FnOnce(&Request<'_>) -> T) -> T {
        let mut bytes = text.as_bytes().to_vec();
        let mut input = bytes.as_mut_slice();
        let mut reader = RequestReader::default();
        match reader.read(&mut input, &LIMITS) {
            Ok(RequestStep::Request(request)) => examine(&request),
            other => panic!("{text:?} was read as {other:?}"),
        }
    }

    fn refusal(text: &str) -> Option<UpgradeError> {
        with_request(text, |request| check(request).err())
    }

    #[test]
    fn the_example_of_the_rfc_is_accepted_with_the_value_given_there() {
        with_request(EXAMPLE, |request| {
            assert!(is_upgrade(request));
            let upgrade = check(request).unwrap();
            assert_eq!(upgrade.accept.as_str(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
            assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["chat", "superchat"]);

            let mut answer = Vec::new();
            write_switching(
                &mut answer,
                Date::at(784_111_777_000),
                &upgrade.accept,
                Some("chat"),
                None,
            );
            let expected = "HTTP/1.1 101 Switching Protocols\r\n\
                Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nUpgrade: websocket\r\n\
                Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\
                Sec-WebSocket-Protocol: chat\r\n\r\n";
            assert_eq!(String::from_utf8(answer).unwrap(), expected);
        });
    }

    #[test]
    fn tokens_are_found_in_lists_in_any_case() {
        let request = EXAMPLE
            .replace("Connection: Upgrade", "Connection: keep-alive\r\nConnection: x,upGRADE")
            .replace("Upgrade: websocket", "Upgrade: h2c, WebSocket");
        assert_eq!(refusal(&request), None);
    }

    #[test]
    fn subprotocols_of_several_lines_are_one_list_without_empty_names() {
        let request = EXAMPLE.replace("chat, superchat", "a,,b \r\nSec-WebSocket-Protocol: c");
        with_request(&request, |request| {
            let upgrade = check(request).unwrap();
            assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["a", "b", "c"]);
        });
    }

    #[test]
    fn extensions_of_several_lines_are_one_list_and_the_one_agreed_on_is_answered() {
        let two = "x; y=1 , permessage-deflate\r\nSec-WebSocket-Extensions: z";
        let request = EXAMPLE.replace("Protocol: chat, superchat", &format!("Extensions: {two}"));
        with_request(&request, |request| {
            let upgrade = check(request).unwrap();
            let offers: Vec<_> = upgrade.extensions().map(|extension| extension.name).collect();
            assert_eq!(offers, ["x", "permessage-deflate", "z"]);
            let agreement = Agreement::of(upgrade.extensions(), true);
            let mut answer = Vec::new();
            write_switching(
                &mut answer,
                Date::at(784_111_777_000),
                &upgrade.accept,
                None,
                agreement,
            );
            let answer = String::from_utf8(answer).unwrap();
            assert!(answer.ends_with(
                "\r\nSec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; \
                 client_no_context_takeover\r\n\r\n"
            ));
        });
    }

    #[test]
    fn a_subprotocol_that_is_no_token_is_not_offered() {
        let request = EXAMPLE.replace("chat, superchat", "a\tb, c d, chat, ü, \"e, f, g\"");
        with_request(&request, |request| {
            let upgrade = check(request).unwrap();
            assert_eq!(upgrade.subprotocols().collect::<Vec<_>>(), ["chat"]);
        });
    }

    #[test]
    fn a_key_with_stray_bits_at_its_end_is_accepted() {
        assert_eq!(refusal(&EXAMPLE.replace("ZQ==", "ZR==")), None);
    }

    #[test]
    fn what_is_no_handshake_is_refused_with_its_reason() {
        let table = [
            ("GET /chat", "OPTIONS /chat", UpgradeError::Method, 405),
            ("HTTP/1.1", "HTTP/1.0", UpgradeError::NotAsked, 426),
            ("Connection: Upgrade", "Connection: close", UpgradeError::NotAsked, 426),
            ("Upgrade: websocket", "Upgrade: websockets", UpgradeError::NotAsked, 426),
            ("Version: 13", "Version: 8", UpgradeError::Version, 426),
            ("Version: 13", "Version: 13\r\nSec-WebSocket-Version: 8", UpgradeError::Version, 426),
            ("Sec-WebSocket-Version", "X-Version", UpgradeError::Version, 426),
            ("Sec-WebSocket-Key", "X-Key", UpgradeError::Key, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZQ", UpgradeError::Key, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZXM=", UpgradeError::Key, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZXMh", UpgradeError::Key, 400),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZS-ub25jZQ==", UpgradeError::Key, 400),
            ("ZQ==", "ZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", UpgradeError::Key, 400),
            (
                "Protocol: chat, superchat",
                "Extensions: foo; x=\", permessage-deflate, \"",
                UpgradeError::Extensions,
                400,
            ),
            ("Protocol: chat, superchat", "Extensions: a, b;", UpgradeError::Extensions, 400),
            ("Connection: Upgrade", "Connection: a, \"b, Upgrade\"", UpgradeError::NotAsked, 426),
            ("Upgrade: websocket", "Upgrade: \"x, websocket\"", UpgradeError::NotAsked, 426),
            ("13\r\n\r\n", "13\r\nContent-Length: 1\r\n\r\nx", UpgradeError::Body, 400),
        ];
        for (good, bad, error, status) in table {
            let request = EXAMPLE.replace(good, bad);
            assert_ne!(request, EXAMPLE, "{good} is in the example");
            assert_eq!(refusal(&request), Some(error), "{request}");
            assert_eq!(error.status(), status);
        }
    }

    #[test]
    fn a_client_of_another_version_is_told_the_one_spoken_here() {
        assert!(UpgradeError::Version.headers().contains(&("Sec-WebSocket-Version", "13")));
    }
}
