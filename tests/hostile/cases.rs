//! The cases: what is sent, and what each listener does about it.

/// One request, or what looks like one.
pub struct Case {
    pub what: &'static str,
    /// [`WEBSOCKET_PATH`] stands for the path of the listener's WebSocket.
    pub sent: Vec<u8>,
    /// None: not sent to this listener.
    pub api: Option<Outcome>,
    pub edge: Option<Outcome>,
}

/// Cases of one kind.
pub struct Section {
    pub title: &'static str,
    pub cases: Vec<Case>,
}

/// A request of which byte after byte comes and that is never whole.
pub struct Trickle {
    pub what: &'static str,
    pub start: &'static str,
    /// Sent again and again behind it; nothing: silence.
    pub endless: &'static str,
    pub api: Option<Outcome>,
    pub edge: Option<Outcome>,
}

/// The answer to the case.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// None: nothing but the end of the connection.
    pub status: Option<u16>,
    /// A header that the answer has to carry.
    pub header: Option<(&'static str, &'static str)>,
    pub end: End,
}

/// The state of the connection afterwards.
#[derive(Clone, Copy)]
pub enum End {
    Closed,
    /// The connection takes the next request.
    Open,
    /// The connection is a WebSocket.
    Switched,
}

pub const WEBSOCKET_PATH: &str = "/PATH";

/// How most cases begin.
const GET: &str = "GET /version HTTP/1.1\r\nHost: localhost\r\n";
const POST: &str = "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\n";

/// The request that an attacker smuggles.
const HIDDEN: &str = "GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// By these names the page shows them.
pub const NAMED: [(&str, &str); 3] = [("GET…", GET), ("POST…", POST), ("HIDDEN", HIDDEN)];

const PUBLISH: &str = r#"{"c":"a","d":"b"}"#;

impl Case {
    /// Returns the bytes for a listener with this path.
    pub fn bytes(&self, websocket_path: &str) -> Vec<u8> {
        let at =
            self.sent.windows(WEBSOCKET_PATH.len()).position(|it| it == WEBSOCKET_PATH.as_bytes());
        let Some(at) = at else { return self.sent.clone() };
        let (before, after) = (&self.sent[..at], &self.sent[at + WEBSOCKET_PATH.len()..]);
        [before, websocket_path.as_bytes(), after].concat()
    }

    fn edge(self, outcome: Outcome) -> Self {
        Self { edge: Some(outcome), ..self }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Self {
        for outcome in [&mut self.api, &mut self.edge].into_iter().flatten() {
            outcome.header = Some((name, value));
        }
        self
    }
}

const fn outcome(status: u16, end: End) -> Outcome {
    Outcome { status: Some(status), header: None, end }
}

const fn closed(status: u16) -> Outcome {
    outcome(status, End::Closed)
}

const fn open(status: u16) -> Outcome {
    outcome(status, End::Open)
}

fn case(what: &'static str, sent: impl Into<Vec<u8>>, both: Outcome) -> Case {
    Case { what, sent: sent.into(), api: Some(both), edge: Some(both) }
}

/// The request cannot be read: both listeners say so and close.
fn refused(status: u16, what: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    case(what, sent, closed(status))
}

/// The request is good: the API answers it, and on the edge it has no route.
fn good(what: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    case(what, sent, open(200)).edge(open(404))
}

/// The request is good and has a body, which an edge takes none of.
fn good_body(what: &'static str, sent: impl Into<Vec<u8>>) -> Case {
    case(what, sent, open(200)).edge(closed(413))
}

fn get(rest: &str) -> String {
    GET.to_owned() + rest
}

fn post(rest: &str) -> String {
    POST.to_owned() + rest
}

fn chunked(body: &str) -> String {
    post(&format!("Transfer-Encoding: chunked\r\n\r\n{body}"))
}

fn coded(coding: &str) -> String {
    post(&format!("Transfer-Encoding: {coding}\r\n\r\n0\r\n\r\n{HIDDEN}"))
}

fn with_length(length: &str) -> String {
    post(&format!("Content-Length:{length}\r\n\r\n{PUBLISH}{HIDDEN}"))
}

fn line(request_line: &str) -> String {
    format!("{request_line}\r\nHost: localhost\r\n\r\n")
}

fn target(target: &str) -> String {
    line(&format!("GET {target} HTTP/1.1"))
}

/// A handshake in which `part` is replaced.
fn handshake(part: &str, by: &str) -> String {
    let good = format!(
        "GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    assert!(good.contains(part), "{part} is in a handshake");
    good.replacen(part, by, 1)
}

pub fn sections() -> Vec<Section> {
    vec![
        Section { title: "Length of the body", cases: lengths() },
        Section { title: "Transfer coding", cases: codings() },
        Section { title: "Chunks and trailers", cases: chunks() },
        Section { title: "Lines", cases: lines() },
        Section { title: "Request line", cases: request_lines() },
        Section { title: "Host", cases: hosts() },
        Section { title: "Limits and expectations", cases: limits() },
        Section { title: "Paths and methods", cases: paths() },
        Section { title: "Handshakes", cases: handshakes() },
    ]
}

fn lengths() -> Vec<Case> {
    let length_and_chunked = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let chunked_and_length = "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
    vec![
        refused(400, "two that differ", with_length(" 17\r\nContent-Length: 54")),
        refused(400, "two alike", with_length(" 17\r\nContent-Length: 17")),
        refused(400, "a list", with_length(" 17, 17")),
        refused(400, "length, then chunked", post(&format!("{length_and_chunked}{HIDDEN}"))),
        refused(400, "chunked, then length", post(&format!("{chunked_and_length}{HIDDEN}"))),
        refused(400, "negative", with_length(" -17")),
        refused(400, "with a sign", with_length(" +17")),
        refused(400, "empty", with_length("")),
        refused(400, "hexadecimal", with_length(" 0x11")),
        refused(400, "with a point", with_length(" 17.0")),
        refused(400, "with a space inside", with_length(" 1 7")),
        refused(400, "digits that are not ASCII", with_length(" ١٧")),
        refused(413, "64 bits", with_length(" 18446744073709551615")),
        refused(413, "65 bits", with_length(" 18446744073709551633")),
        refused(413, "over the limit", post("Content-Length: 4097\r\n\r\n")),
        good_body("zeros in front", post(&format!("Content-Length: 0017\r\n\r\n{PUBLISH}"))),
        good_body("white space around", post(&format!("Content-Length:\t17 \r\n\r\n{PUBLISH}"))),
        good_body(
            "a body that looks like a request",
            get(&format!("Content-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len())),
        ),
    ]
}

fn codings() -> Vec<Case> {
    let body = format!("\r\n\r\n11\r\n{PUBLISH}\r\n0\r\n\r\n");
    vec![
        refused(501, "unknown", coded("gzip")),
        refused(501, "unknown before chunked", coded("gzip, chunked")),
        refused(501, "nearly chunked", coded("xchunked")),
        refused(501, "chunked with a parameter", coded("chunked;q=1")),
        refused(501, "chunked in quotes", coded("\"chunked\"")),
        refused(501, "identity", coded("identity")),
        refused(501, "nothing", coded("")),
        refused(400, "chunked not last", coded("chunked, gzip")),
        refused(400, "chunked twice", coded("chunked, chunked")),
        refused(400, "chunked twice, in two lines", coded("chunked\r\nTransfer-Encoding: chunked")),
        refused(
            400,
            "chunked, then unknown, in two lines",
            coded("chunked\r\nTransfer-Encoding: x"),
        ),
        refused(400, "a vertical tab before it", coded("\x0bchunked")),
        refused(400, "in HTTP/1.0", coded("chunked").replace("HTTP/1.1", "HTTP/1.0")),
        good_body("chunked in capitals", post(&format!("Transfer-Encoding: CHUNKED{body}"))),
    ]
}

fn chunks() -> Vec<Case> {
    let good = |trailers: &str| chunked(&format!("11\r\n{PUBLISH}\r\n0\r\n{trailers}\r\n"));
    vec![
        refused(400, "size that is none", chunked("xyz\r\n")),
        refused(400, "no size", chunked("\r\n")),
        refused(400, "negative size", chunked("-1\r\n")),
        refused(400, "size with a sign", chunked("+1\r\n")),
        refused(400, "size with 0x", chunked("0x1\r\n")),
        refused(400, "space before the size", chunked(" 1\r\n")),
        refused(413, "size of 64 bits", chunked("ffffffffffffffff\r\n")),
        refused(400, "size of 68 bits", chunked("10000000000000000\r\n")),
        refused(400, "zeros without end", chunked(&"0".repeat(8192))),
        refused(400, "size line ends with LF alone", chunked("0\n\n").into_bytes()),
        refused(400, "CR inside the size line", chunked("0\r\r\n\r\n")),
        refused(400, "data longer than its size", chunked("1\r\nab\r\n0\r\n\r\n"))
            .edge(closed(413)),
        refused(400, "no line end behind the data", chunked("1\r\na0\r\n\r\n")).edge(closed(413)),
        refused(400, "LF alone behind the data", chunked("1\r\na\n0\r\n\r\n")).edge(closed(413)),
        refused(400, "LF inside an extension", chunked("1;a\nb\r\n")),
        refused(400, "extension without end", chunked(&format!("1;{}", "a".repeat(8192)))),
        refused(413, "over the limit", chunked("1001\r\n")),
        refused(431, "trailer without end", chunked(&format!("0\r\nA: {}", "b".repeat(8192)))),
        refused(431, "trailers without end", chunked(&format!("0\r\n{}", "A: b\r\n".repeat(51)))),
        refused(400, "LF alone in the trailers", chunked("0\r\nA: b\n\r\n")),
        refused(400, "NUL in the trailers", chunked("0\r\nA: \0\r\n\r\n")),
        good_body("an extension", chunked(&format!("11;a=b\r\n{PUBLISH}\r\n0\r\n\r\n"))),
        good_body("a trailer that names a length", good("Content-Length: 99\r\n")),
    ]
}

fn lines() -> Vec<Case> {
    vec![
        refused(400, "LF alone everywhere", "GET /version HTTP/1.1\nHost: localhost\n\n"),
        refused(400, "LF alone once", get("A: b\nC: d\r\n\r\n")),
        refused(400, "LF alone ends the head", get("\n")),
        refused(400, "CR inside a value", get("A: b\rContent-Length: 5\r\n\r\n")),
        refused(400, "CR twice", get("A: b\r\r\n\r\n")),
        refused(400, "NUL in a value", get("A: b\0c\r\n\r\n")),
        refused(400, "NUL in a name", get("A\0: b\r\n\r\n")),
        refused(400, "escape character", get("A: \x1b[31m\r\n\r\n")),
        refused(400, "DEL", get("A: \x7f\r\n\r\n")),
        refused(400, "folded header", get("A: b\r\n c\r\n\r\n")),
        refused(400, "folded with a tab", get("Content-Length:\r\n\t5\r\n\r\n")),
        refused(
            400,
            "folded before the first",
            "GET /version HTTP/1.1\r\n A: b\r\nHost: localhost\r\n\r\n",
        ),
        refused(400, "space before the colon", get("Content-Length : 5\r\n\r\n")),
        refused(400, "tab before the colon", get("Transfer-Encoding\t: chunked\r\n\r\n")),
        refused(400, "space inside a name", get("A B: c\r\n\r\n")),
        refused(400, "name with a slash", get("A/B: c\r\n\r\n")),
        refused(400, "name that is not ASCII", get("Ä: b\r\n\r\n")),
        refused(400, "no name", get(": b\r\n\r\n")),
        refused(400, "no colon", get("A\r\n\r\n")),
        refused(400, "two empty lines in front", format!("\r\n\r\n{}", get("\r\n"))),
        refused(400, "TLS where none is spoken", b"\x16\x03\x01\x02\x00\x01\x00\x01".as_slice()),
        good("one empty line in front", format!("\r\n{}", get("\r\n"))),
        good(
            "bytes above 127 in a value",
            [&get("A: ").into_bytes()[..], b"\xff\r\n\r\n"].concat(),
        ),
    ]
}

fn request_lines() -> Vec<Case> {
    vec![
        refused(400, "no method", line(" /version HTTP/1.1")),
        refused(400, "method that is no token", line("G@T /version HTTP/1.1")),
        refused(400, "two spaces", line("GET  /version HTTP/1.1")),
        refused(400, "tab for a space", line("GET\t/version\tHTTP/1.1")),
        refused(400, "no target", line("GET HTTP/1.1")),
        refused(400, "something behind the version", line("GET /version HTTP/1.1 x")),
        refused(400, "space behind the version", line("GET /version HTTP/1.1 ")),
        refused(400, "space inside the target", target("/ver sion")),
        refused(400, "target without a slash", target("version")),
        refused(400, "fragment", target("/version#a")),
        refused(400, "target that is not ASCII", target("/versiön")),
        refused(400, "asterisk for GET", target("*")),
        refused(400, "authority for CONNECT", line("CONNECT a:80 HTTP/1.1")),
        refused(400, "another scheme", target("ftp://a/version")),
        refused(400, "URL without a host", target("http:///version")),
        refused(400, "URL with a user", target("http://user@a/version")),
        refused(400, "HTTP/0.9, no version", "GET /version\r\n\r\n"),
        refused(505, "HTTP/0.9", line("GET /version HTTP/0.9")),
        refused(505, "HTTP/1.2", line("GET /version HTTP/1.2")),
        refused(505, "HTTP/2.0", line("GET /version HTTP/2.0")),
        refused(505, "preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        refused(400, "version in small letters", line("GET /version http/1.1")),
        refused(400, "version of three digits", line("GET /version HTTP/1.10")),
        good("URL", target("http://localhost/version")),
        case("asterisk for OPTIONS", line("OPTIONS * HTTP/1.1"), open(404)),
    ]
}

fn hosts() -> Vec<Case> {
    let with = |hosts: &str| format!("GET /version HTTP/1.1\r\n{hosts}\r\n");
    vec![
        refused(400, "missing", with("")),
        refused(400, "two that differ", get("Host: b\r\n\r\n")),
        refused(400, "two alike", get("Host: localhost\r\n\r\n")),
        refused(400, "with a space", with("Host: a b\r\n")),
        refused(400, "with a path", with("Host: a/b\r\n")),
        refused(400, "with a user", with("Host: user@a\r\n")),
        refused(400, "two ports", with("Host: a:b:c\r\n")),
        refused(400, "a bracket", with("Host: [\r\n")),
        refused(400, "a broken escape", with("Host: %zz\r\n")),
        refused(400, "a port of 17 bits", with("Host: localhost:99999\r\n")),
        refused(400, "a port with a sign", with("Host: localhost:+80\r\n")),
        refused(400, "two ports in a URL", target("http://a:b:c/version")),
        refused(400, "a port of 17 bits in a URL", target("http://localhost:99999/version")),
        case("a name that others may point here", with("Host: evil.example\r\n"), open(403))
            .edge(open(404)),
        refused(400, "missing beside a URL", "GET http://a/version HTTP/1.1\r\n\r\n"),
        good("empty", with("Host:\r\n")),
        case("missing in HTTP/1.0", "GET /version HTTP/1.0\r\n\r\n", closed(200)).edge(closed(404)),
    ]
}

fn limits() -> Vec<Case> {
    let post_expecting = |value: &str, length: &str| {
        post(&format!("Expect: {value}\r\nContent-Length: {length}\r\n\r\n"))
    };
    vec![
        refused(414, "target too long", target(&format!("/{}", "a".repeat(4096)))),
        refused(431, "header too long", get(&format!("A: {}\r\n\r\n", "b".repeat(4096)))),
        refused(414, "request line without end", "a".repeat(8192)),
        refused(431, "header without end", get(&format!("A: {}", "b".repeat(8192)))),
        refused(431, "too many headers", get(&format!("{}\r\n", "A: b\r\n".repeat(50)))),
        refused(431, "headers without end", get(&"A: b\r\n".repeat(1000))),
        refused(417, "an unknown expectation", post_expecting("the-moon", "17")),
        refused(413, "asks before it sends too much", post_expecting("100-continue", "4097")),
        good("as many headers as may be", get(&format!("{}\r\n", "A: b\r\n".repeat(49)))),
    ]
}

fn paths() -> Vec<Case> {
    let api = |case: Case| Case { edge: None, ..case };
    vec![
        case("unknown path", target("/nowhere"), open(404)),
        case("path that climbs", target("/../etc/passwd"), open(404)),
        case("path in disguise", target("/%76ersion"), open(404)),
        case("NUL in disguise", target("/version%00"), open(404)),
        api(case("GET for a call", target("/v1/mesh/send"), open(405)).with("Allow", "POST")),
        api(case("POST for a page", line("POST /version HTTP/1.1"), open(405))
            .with("Allow", "GET, HEAD")),
        api(case("method in small letters", line("get /version HTTP/1.1"), open(405))
            .with("Allow", "GET, HEAD")),
        api(case("TRACE", line("TRACE /version HTTP/1.1"), open(405)).with("Allow", "GET, HEAD")),
        api(case("foreign origin", get("Origin: http://evil.example\r\n\r\n"), open(403))),
        api(case("origin null", get("Origin: null\r\n\r\n"), open(403))),
        good(
            "an upgrade to HTTP/2",
            get(
                "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAA\r\n\r\n",
            ),
        ),
    ]
}

fn handshakes() -> Vec<Case> {
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "Sec-WebSocket-Version: 13\r\n";
    let upgrade = |what, part, by| {
        case(what, handshake(part, by), open(426)).with("Sec-WebSocket-Version", "13")
    };
    let bad = |what, part, by: &str| case(what, handshake(part, by), open(400));
    let asks = |query: &str, what, edge| {
        let path = format!("{WEBSOCKET_PATH}?{query} ");
        let case = case(what, handshake(&format!("{WEBSOCKET_PATH} "), &path), edge);
        Case { api: None, ..case }
    };
    let extension = |list: &str| format!("\r\nSec-WebSocket-Extensions: {list}\r\n\r\n");
    let body = format!("\r\nContent-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len());
    vec![
        case("a good one", handshake("", ""), outcome(101, End::Switched)),
        case("POST", handshake("GET", "POST"), open(405)).with("Allow", "GET"),
        upgrade("version 8", ": 13", ": 8"),
        upgrade(
            "two versions",
            version,
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n",
        ),
        upgrade("no version", version, ""),
        upgrade("no Upgrade", "Upgrade: websocket\r\n", ""),
        upgrade("another Upgrade", "websocket", "h2c"),
        upgrade("no Connection", "Connection: Upgrade\r\n", ""),
        upgrade("another Connection", "Connection: Upgrade", "Connection: keep-alive"),
        case("in HTTP/1.0", handshake("HTTP/1.1", "HTTP/1.0"), closed(426))
            .with("Sec-WebSocket-Version", "13"),
        asks("channels=a,b,a", "a channel twice", outcome(101, End::Switched)),
        asks(
            &format!("channels={}", "a,b,c,d,".repeat(400)),
            "as many as may be, 400 times",
            outcome(101, End::Switched),
        ),
        asks("channels=a,b,c,d,e", "more channels than may be", open(403)),
        asks(&format!("channels={}", "a".repeat(256)), "a channel's name too long", open(400)),
        asks("channels=%zz", "a broken escape in channels", open(400)),
        asks("x=%zz", "a broken escape elsewhere", outcome(101, End::Switched)),
        case(
            "an extension in a quoted string",
            handshake("\r\n\r\n", &extension("foo; x=\"bar\"")),
            outcome(101, End::Switched),
        ),
        bad(
            "a list in a quoted string",
            "\r\n\r\n",
            &extension("foo; x=\", permessage-deflate, \""),
        ),
        bad("a quoted string without end", "\r\n\r\n", &extension("foo; x=\"bar")),
        bad("no key", key, ""),
        bad("two keys", key, &key.repeat(2)),
        bad("key of 15 bytes", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j"),
        bad("key of 17 bytes", "dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25jZXM="),
        bad("key that is not base64", "dGhl", "dGh-"),
        case("a body that looks like a request", handshake("\r\n\r\n", &body), open(400))
            .edge(closed(413)),
    ]
}

/// Each outlives `handshake_ms`.
pub fn trickles() -> &'static [Trickle] {
    const LATE: Option<Outcome> = Some(closed(408));
    const SILENT: Option<Outcome> = Some(Outcome { status: None, header: None, end: End::Closed });
    &[
        Trickle { what: "nothing", start: "", endless: "", api: SILENT, edge: SILENT },
        Trickle {
            what: "half a request line",
            start: "GET /ver",
            endless: "",
            api: LATE,
            edge: LATE,
        },
        Trickle {
            what: "a head without end, byte by byte",
            start: "GET /version HTTP/1.1\r\nHost: localhost\r\nA: ",
            endless: "b",
            api: LATE,
            edge: LATE,
        },
        Trickle {
            what: "a body, byte by byte",
            start: "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n",
            endless: "b",
            api: LATE,
            edge: None,
        },
        Trickle {
            what: "chunks of one byte without end",
            start: "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
            endless: "1\r\na\r\n",
            api: LATE,
            edge: None,
        },
    ]
}
