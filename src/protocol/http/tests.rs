use proptest::prelude::*;

use super::*;

const LIMITS: RequestLimits = RequestLimits { head_bytes: 400, headers: 6, body_bytes: 40 };

/// A copy of the parts of a request that a test checks. The request itself is only borrowed.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    method: String,
    host: Option<String>,
    path: String,
    query: String,
    version: Version,
    keep_alive: bool,
    headers: Vec<(String, String)>,
    body: String,
}

impl Seen {
    fn of(request: &Request<'_>) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let method = match request.method {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Other(name) => name,
        };
        Self {
            method: method.to_owned(),
            host: request.host().map(text),
            path: request.path.to_owned(),
            query: request.query.to_owned(),
            version: request.version,
            keep_alive: request.keep_alive,
            headers: request
                .headers()
                .map(|(name, value)| (name.to_owned(), text(value)))
                .collect(),
            body: text(request.body),
        }
    }
}

/// Feeds pieces to a reader one after the other. Returns the requests, and the error that
/// ended them, if any.
fn read_pieces<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Seen>, Result<(), HttpError>) {
    let mut reader = RequestReader::default();
    let mut seen = Vec::new();
    for piece in pieces {
        let mut bytes = piece.to_vec();
        let mut input = bytes.as_mut_slice();
        loop {
            match reader.read(&mut input, &LIMITS) {
                Ok(RequestStep::NeedMore) => break,
                Ok(RequestStep::Head(head)) => assert!(head.body.is_empty()),
                Ok(RequestStep::Continue) => {}
                Ok(RequestStep::Request(request)) => seen.push(Seen::of(&request)),
                Err(error) => return (seen, Err(error)),
            }
        }
        assert!(input.is_empty(), "more was asked for while there was some");
        assert!(reader.kept.len() <= LIMITS.head_bytes + LIMITS.body_bytes);
    }
    (seen, Ok(()))
}

/// Reads `bytes` whole, in every two pieces, and byte by byte, and checks that it is all the same.
fn read(bytes: &[u8]) -> (Vec<Seen>, Result<(), HttpError>) {
    let whole = read_pieces([bytes]);
    for cut in 0..=bytes.len() {
        let (first, second) = bytes.split_at(cut);
        assert_eq!(read_pieces([first, second]), whole, "cut at {cut}: {}", bytes.escape_ascii());
    }
    assert_eq!(read_pieces(bytes.chunks(1)), whole, "byte by byte: {}", bytes.escape_ascii());
    whole
}

fn read_one(text: &str) -> Seen {
    let (mut seen, end) = read(text.as_bytes());
    assert_eq!((seen.len(), end), (1, Ok(())), "{text:?}");
    seen.remove(0)
}

fn refusal(bytes: &[u8]) -> HttpError {
    let (seen, end) = read(bytes);
    let error = end.expect_err(&format!("refused: {}, not {seen:?}", bytes.escape_ascii()));
    assert_eq!(seen, []);
    error
}

#[test]
fn every_part_of_a_request_is_found() {
    let seen = read_one(
        "POST /v1/mesh/send?a=%20b&c HTTP/1.1\r\nHost: localhost:6789\r\nX-One:  two words\t\r\n\
         X-Empty:\r\ncontent-length: 11\r\n\r\n{\"c\":\"1\"}\r\n",
    );
    let headers = [
        ("Host", "localhost:6789"),
        ("X-One", "two words"),
        ("X-Empty", ""),
        ("content-length", "11"),
    ];
    let expected = Seen {
        method: "POST".into(),
        host: Some("localhost:6789".into()),
        path: "/v1/mesh/send".into(),
        query: "a=%20b&c".into(),
        version: Version::Http11,
        keep_alive: true,
        headers: headers.map(|(name, value)| (name.into(), value.into())).into(),
        body: "{\"c\":\"1\"}\r\n".into(),
    };
    assert_eq!(seen, expected);
}

#[test]
fn pipelined_requests_come_out_one_by_one() {
    let (seen, end) = read(
        b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\
          POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
          \r\nPOST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n0\r\n\r\n\
          HEAD /4 HTTP/1.0\r\n\r\n",
    );
    assert_eq!(end, Ok(()));
    let told: Vec<_> = seen.iter().map(|seen| (&*seen.method, &*seen.path, &*seen.body)).collect();
    assert_eq!(
        told,
        [("GET", "/1", ""), ("POST", "/2", "abc"), ("POST", "/3", "de"), ("HEAD", "/4", "")]
    );
}

#[test]
fn chunks_are_joined_and_their_extensions_and_trailers_dropped() {
    let seen = read_one(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n\
         5\r\nhello\r\n0001;name=\"va;lue\"\r\n \r\nA \t;x\r\n0123456789\r\n\
         000\r\nX-Sum: 1\r\nHost: b\r\n\r\n",
    );
    assert_eq!(seen.body, "hello 0123456789");
    assert_eq!(seen.host.as_deref(), Some("a"));
    assert_eq!(seen.headers.len(), 2);
}

#[test]
fn the_connection_stays_open_as_version_and_header_say() {
    let table = [
        ("HTTP/1.1", "", true),
        ("HTTP/1.1", "Connection: Close\r\n", false),
        ("HTTP/1.1", "Connection: upgrade\r\nConnection: a ,close\r\n", false),
        ("HTTP/1.1", "Connection: closed\r\n", true),
        ("HTTP/1.0", "", false),
        ("HTTP/1.0", "Connection: Keep-Alive\r\n", true),
        ("HTTP/1.0", "Connection: keep-alive, close\r\n", false),
    ];
    for (version, header, keep_alive) in table {
        let seen = read_one(&format!("GET / {version}\r\nHost: a\r\n{header}\r\n"));
        assert_eq!(seen.keep_alive, keep_alive, "{version} {header}");
    }
}

#[test]
fn a_target_is_split_in_each_of_its_forms() {
    let table = [
        ("GET", "/", "/", "", "a"),
        ("GET", "//x?", "//x", "", "a"),
        ("GET", "/a?b?c=/", "/a", "b?c=/", "a"),
        ("GET", "/to?u=http://b/", "/to", "u=http://b/", "a"),
        ("GET", "http://b:80/x/y?z", "/x/y", "z", "b:80"),
        ("GET", "HTTPS://b?z", "/", "z", "b"),
        ("GET", "http://[::1]", "/", "", "[::1]"),
        ("OPTIONS", "*", "*", "", "a"),
        ("PATCH", "/|{}", "/|{}", "", "a"),
    ];
    for (method, target, path, query, host) in table {
        let seen = read_one(&format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let found = (&*seen.method, &*seen.path, &*seen.query, seen.host.as_deref());
        assert_eq!(found, (method, path, query, Some(host)), "{target}");
    }
}

#[test]
fn an_old_request_needs_no_host() {
    assert_eq!(read_one("GET / HTTP/1.0\r\n\r\n").host, None);
}

#[test]
fn list_members_are_found_over_several_lines_and_not_within_words() {
    let mut bytes =
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive,\tUpgrade\r\nX: y\r\nconnection: te\r\n\r\n"
            .to_vec();
    let mut input = bytes.as_mut_slice();
    let mut reader = RequestReader::default();
    let Ok(RequestStep::Request(request)) = reader.read(&mut input, &LIMITS) else {
        panic!("not whole")
    };
    assert!(request.header_has_token("CONNECTION", "upgrade"));
    assert!(request.header_has_token("connection", "TE"));
    assert!(!request.header_has_token("connection", "keep"));
    assert_eq!(request.header("x"), Some(&b"y"[..]));
    assert_eq!(request.header("nothing"), None);
    let exchange = Exchange { version: Version::Http11, keep_alive: true, head_only: false };
    assert_eq!(request.exchange(), exchange);
}

#[test]
fn bad_request_lines_are_refused() {
    let table = [
        ("GET /\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (" / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET path HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /#part HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /é HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http:///a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://user@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://a:b:c/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://[/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://[::1/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://%zz/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://a:99999/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET http://:80/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ];
    for (request, status) in table {
        assert_eq!(refusal(request.as_bytes()).status(), status, "{request:?}");
    }
}

#[test]
fn bad_header_lines_are_refused() {
    let table = [
        ("X : y", HttpError::HeaderLine),
        ("X", HttpError::HeaderLine),
        (": y", HttpError::HeaderLine),
        ("X y: z", HttpError::HeaderLine),
        ("X\u{e9}: z", HttpError::HeaderLine),
        (" X: y", HttpError::HeaderLine),
        ("X: y\r\n folded", HttpError::HeaderLine),
        ("X: y\r\n\tfolded", HttpError::HeaderLine),
        (" \r\nX: y", HttpError::HeaderLine),
        ("X: y\nZ: 1", HttpError::BareLineFeed),
        ("X: y\n", HttpError::BareLineFeed),
        ("X: y\rZ: 1", HttpError::BareCarriageReturn),
        ("X: y\r", HttpError::BareCarriageReturn),
        ("X: \0", HttpError::ControlByte),
        ("X: \u{7f}", HttpError::ControlByte),
        ("X: \u{b}y\nz", HttpError::ControlByte),
        ("Host: a", HttpError::Host),
        ("Host: b", HttpError::Host),
        ("Expect: 200-ok", HttpError::Expectation),
        ("Expect: 100-continue, x", HttpError::Expectation),
    ];
    for (line, error) in table {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\n{line}\r\n\r\n");
        assert_eq!(refusal(request.as_bytes()), error, "{line:?}");
    }
    for host in [
        "",
        "Host: a/b\r\n",
        "Host: a b\r\n",
        "Host: x@a\r\n",
        "Host: a:b:c\r\n",
        "Host: [\r\n",
        "Host: %zz\r\n",
        "Host: a:99999\r\n",
        "Host: ::1\r\n",
        "Host: :80\r\n",
    ] {
        let request = format!("GET / HTTP/1.1\r\n{host}\r\n");
        assert_eq!(refusal(request.as_bytes()), HttpError::Host, "{host:?}");
    }
    assert_eq!(refusal(b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n"), HttpError::Host);
}

#[test]
fn a_body_whose_end_two_servers_could_see_differently_is_refused() {
    let table = [
        ("Content-Length: 1\r\nContent-Length: 2", HttpError::RepeatedLength),
        ("Content-Length: 1\r\nContent-Length: 1", HttpError::RepeatedLength),
        ("Content-Length: 1, 1", HttpError::Length),
        ("Content-Length: +1", HttpError::Length),
        ("Content-Length: -1", HttpError::Length),
        ("Content-Length: 0x1", HttpError::Length),
        ("Content-Length: 1 1", HttpError::Length),
        ("Content-Length: 1.0", HttpError::Length),
        ("Content-Length:", HttpError::Length),
        ("Content-Length: 41", HttpError::BodyTooLarge),
        ("Content-Length: 18446744073709551617", HttpError::BodyTooLarge),
        ("Content-Length: 1\r\nTransfer-Encoding: chunked", HttpError::LengthAndCoding),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", HttpError::LengthAndCoding),
        ("Transfer-Encoding: gzip", HttpError::UnknownCoding),
        ("Transfer-Encoding: gzip, chunked", HttpError::UnknownCoding),
        ("Transfer-Encoding: identity", HttpError::UnknownCoding),
        ("Transfer-Encoding: xchunked", HttpError::UnknownCoding),
        ("Transfer-Encoding: chunked;q=1", HttpError::UnknownCoding),
        ("Transfer-Encoding: \"chunked\"", HttpError::UnknownCoding),
        ("Transfer-Encoding:", HttpError::UnknownCoding),
        ("Transfer-Encoding: chunked, gzip", HttpError::ChunkedNotLast),
        ("Transfer-Encoding: chunked, chunked", HttpError::ChunkedNotLast),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: x", HttpError::ChunkedNotLast),
    ];
    for (lines, error) in table {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n1");
        assert_eq!(refusal(request.as_bytes()), error, "{lines:?}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(refusal(old), HttpError::CodingInOldVersion);
}

#[test]
fn bad_chunks_are_refused() {
    let long_line = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(252));
    let too_long_line = format!("1;{}\r\na\r\n0\r\n\r\n", "x".repeat(253));
    let many_trailers = format!("0\r\n{}\r\n", "X: y\r\n".repeat(7));
    let large_trailers = format!("0\r\nX: {}\r\n\r\n", "y".repeat(400));
    let table = [
        ("\r\n", HttpError::Chunk),
        (";x\r\n", HttpError::Chunk),
        (" 1\r\na\r\n", HttpError::Chunk),
        ("0x1\r\na\r\n", HttpError::Chunk),
        ("-1\r\na\r\n", HttpError::Chunk),
        ("g\r\n", HttpError::Chunk),
        ("1 \r\na\r\n", HttpError::Chunk),
        ("1 1\r\na\r\n", HttpError::Chunk),
        ("1\na\r\n", HttpError::Chunk),
        ("1\ra\r\n", HttpError::Chunk),
        ("1;x\na\r\n", HttpError::Chunk),
        ("1;\0\r\na\r\n", HttpError::Chunk),
        ("1\r\nab\r\n", HttpError::Chunk),
        ("1\r\na\n0\r\n", HttpError::Chunk),
        ("1\r\na\r0\r\n", HttpError::Chunk),
        ("00000000000000001\r\na\r\n", HttpError::Chunk),
        (&too_long_line, HttpError::Chunk),
        ("29\r\n", HttpError::BodyTooLarge),
        ("ffffffffffffffff\r\n", HttpError::BodyTooLarge),
        ("1\r\na\r\n28\r\n", HttpError::BodyTooLarge),
        ("0\r\nX: y\n\r\n", HttpError::BareLineFeed),
        (&many_trailers, HttpError::TooManyHeaders),
        (&large_trailers, HttpError::HeadTooLarge),
    ];
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, error) in table {
        assert_eq!(refusal(format!("{head}{body}").as_bytes()), error, "{body:?}");
    }
    assert_eq!(read_one(&format!("{head}{long_line}")).body, "a");
}

#[test]
fn a_head_at_its_limits_is_taken_and_one_beyond_refused() {
    let with_headers = |count| format!("GET / HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(count));
    assert_eq!(read_one(&with_headers(LIMITS.headers)).headers.len(), LIMITS.headers);
    let error = refusal(with_headers(LIMITS.headers + 1).as_bytes());
    assert_eq!((error, error.status()), (HttpError::TooManyHeaders, 431));

    let with_bytes = |count: usize| {
        let frame = "GET / HTTP/1.0\r\n\r\n".len();
        format!("GET /{} HTTP/1.0\r\n\r\n", "x".repeat(count - frame))
    };
    assert_eq!(read_one(&with_bytes(LIMITS.head_bytes)).method, "GET");
    let error = refusal(with_bytes(LIMITS.head_bytes + 1).as_bytes());
    assert_eq!((error, error.status()), (HttpError::HeadTooLarge, 431));
}

#[test]
fn no_more_headers_are_taken_than_there_is_stack_for() {
    let limits = RequestLimits { head_bytes: 1 << 16, headers: usize::MAX, body_bytes: 0 };
    for (count, taken) in
        [(RequestLimits::HEADERS_MAX, true), (RequestLimits::HEADERS_MAX + 1, false)]
    {
        let mut bytes = format!("GET / HTTP/1.0\r\n{}\r\n", "X: y\r\n".repeat(count)).into_bytes();
        let mut reader = RequestReader::default();
        let read = reader.read(&mut bytes.as_mut_slice(), &limits);
        assert_eq!(matches!(read, Ok(RequestStep::Request(_))), taken);
        assert_eq!(matches!(read, Err(HttpError::TooManyHeaders)), !taken);
    }
}

#[test]
fn a_bad_byte_is_refused_before_the_head_is_whole() {
    for (start, error) in [
        ("GET / HTTP/1.1\n", HttpError::BareLineFeed),
        ("\n", HttpError::BareLineFeed),
        ("\r\n\r\n", HttpError::EmptyLines),
        ("\x16\x03\x01", HttpError::ControlByte),
        ("GET /\rx", HttpError::BareCarriageReturn),
    ] {
        assert_eq!(refusal(start.as_bytes()), error, "{start:?}");
    }
}

#[test]
fn a_body_too_large_is_refused_before_it_comes() {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 41\r\n\r\n";
    assert_eq!(refusal(head), HttpError::BodyTooLarge);
}

/// The steps that the reader takes over the pieces, by name.
fn steps<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<&'static str> {
    let mut reader = RequestReader::default();
    let mut steps = Vec::new();
    for piece in pieces {
        let mut bytes = piece.as_bytes().to_vec();
        steps.push(match reader.read(&mut bytes.as_mut_slice(), &LIMITS).unwrap() {
            RequestStep::NeedMore => "need more",
            RequestStep::Head(_) => "head",
            RequestStep::Continue => "continue",
            RequestStep::Request(_) => "request",
        });
    }
    steps
}

#[test]
fn a_peer_that_waits_to_send_its_body_is_asked_for_it_once() {
    for (framing, body) in
        [("Content-Length: 2", "ab"), ("Transfer-Encoding: chunked", "2\r\nab\r\n0\r\n\r\n")]
    {
        let head =
            format!("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\n{framing}\r\n\r\n");
        assert_eq!(
            steps([&*head, "", "", &body[..1], &body[1..]]),
            ["head", "continue", "need more", "need more", "request"]
        );
        let (first, second) = head.split_at(9);
        let expected = ["need more", "head", "continue", "request"];
        assert_eq!(steps([first, second, "", body]), expected);
        assert_eq!(steps([first, second, body]), ["need more", "head", "request"]);
    }
}

#[test]
fn a_peer_that_does_not_wait_is_not_asked() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: ";
    let begun = format!("{head}2\r\n\r\na");
    assert_eq!(steps([&*begun, "", "b"]), ["head", "need more", "request"]);
    assert_eq!(steps([&*format!("{head}2\r\n\r\nab")]), ["request"]);
    assert_eq!(steps([&*format!("{head}0\r\n\r\n")]), ["request"]);
    let old = "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    assert_eq!(steps([old, "", "a"]), ["head", "need more", "request"]);
}

#[test]
fn a_head_is_given_once_and_before_more_of_the_body_is_kept_than_came_with_it() {
    for (framing, first) in
        [("Content-Length: 40", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc")]
    {
        let head = format!("POST /a?b HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n");
        let mut bytes = format!("{head}{first}").into_bytes();
        let mut reader = RequestReader::default();
        match reader.read(&mut bytes.as_mut_slice(), &LIMITS) {
            Ok(RequestStep::Head(given)) => {
                let seen = Seen::of(&given);
                assert_eq!((&*seen.path, &*seen.query, &*seen.body), ("/a", "b", ""));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(reader.kept.len(), head.len() + "abc".len());
        assert_eq!(reader.head().map(|head| Seen::of(&head).path), Some("/a".into()));
        assert!(matches!(reader.read(&mut &mut [][..], &LIMITS), Ok(RequestStep::NeedMore)));
    }
}

#[test]
fn what_follows_a_request_stays_in_the_input() {
    for pieces in
        [vec!["GET / HTTP/1.0\r\n\r\n\x01frame"], vec!["GET / HTTP/1.0\r\n", "\r\n\x01frame"]]
    {
        let mut reader = RequestReader::default();
        let (last, before) = pieces.split_last().unwrap();
        for piece in before {
            let mut bytes = piece.as_bytes().to_vec();
            assert!(matches!(
                reader.read(&mut bytes.as_mut_slice(), &LIMITS),
                Ok(RequestStep::NeedMore)
            ));
        }
        let mut bytes = last.as_bytes().to_vec();
        let mut input = bytes.as_mut_slice();
        assert!(matches!(reader.read(&mut input, &LIMITS), Ok(RequestStep::Request(_))));
        assert_eq!(input, b"\x01frame");
    }
}

#[test]
fn a_request_that_is_whole_in_its_input_is_lent_from_there() {
    for request in [
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n0\r\n\r\n",
    ] {
        let mut bytes = request.as_bytes().to_vec();
        let addresses = bytes.as_ptr_range();
        let mut reader = RequestReader::default();
        match reader.read(&mut bytes.as_mut_slice(), &LIMITS) {
            Ok(RequestStep::Request(request)) => {
                assert_eq!(request.body, b"ab");
                assert!(addresses.contains(&request.body.as_ptr()));
                assert!(addresses.contains(&request.path.as_ptr()));
            }
            other => panic!("{request:?} was read as {other:?}"),
        }
        assert_eq!(reader.kept.capacity(), 0);
    }
}

#[test]
fn a_reader_between_requests_holds_no_memory() {
    let mut reader = RequestReader::default();
    for piece in ["GET / HT", "TP/1.0\r\n\r\n"] {
        let mut bytes = piece.as_bytes().to_vec();
        reader.read(&mut bytes.as_mut_slice(), &LIMITS).unwrap();
    }
    assert!(reader.kept.capacity() > 0, "the request is lent from here");
    assert!(matches!(reader.read(&mut [].as_mut_slice(), &LIMITS), Ok(RequestStep::NeedMore)));
    assert_eq!(reader.kept.capacity(), 0);
    assert!(size_of::<RequestReader>() <= 160, "it is part of every connection");
}

#[test]
fn errors_say_what_is_wrong_in_a_sentence() {
    assert_eq!(HttpError::Chunk.to_string(), "a chunk of the body is malformed");
}

/// Pieces of requests, good and bad, which make up something near a request when put together.
fn fragment() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => prop::sample::select(vec![
            "GET / HTTP/1.1\r\n", "POST /a?b HTTP/1.1\r\n", "POST http://c HTTP/1.0\r\n",
            "Host: a\r\n", "Host: a\r\n", "Host: a\r\n\r\n", "\r\n", "\r\n", "\r", "\n",
            "Content-Length: 4\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n",
            "Expect: 100-continue\r\n", "Connection: close\r\n", "4\r\n", "4;x\r\n", "abcd",
            "abcd\r\n", "0\r\n\r\n", "0\r\nX: y\r\n\r\n", "GET / HTTP/1.0\r\n\r\n",
        ]).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

proptest! {
    #[test]
    fn requests_do_not_depend_on_how_their_bytes_are_cut(
        fragments in prop::collection::vec(fragment(), 0..12),
        sizes in prop::collection::vec(1_usize..40, 1..20),
    ) {
        let bytes = fragments.concat();
        let mut rest = bytes.as_slice();
        let pieces = sizes.iter().cycle().map_while(|&size| {
            let piece = rest.split_off(..size.min(rest.len()))?;
            (!piece.is_empty()).then_some(piece)
        });
        prop_assert_eq!(read_pieces(pieces), read_pieces([bytes.as_slice()]));
        prop_assert_eq!(read_pieces(bytes.chunks(1)), read_pieces([bytes.as_slice()]));
    }

    #[test]
    fn a_body_comes_out_as_it_went_in_however_it_is_chunked(
        chunks in prop::collection::vec("[ -~]{1,8}", 0..5),
        size in 1_usize..60,
    ) {
        let mut request = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned();
        for chunk in &chunks {
            request += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
        }
        request += "0\r\n\r\n";
        let (seen, end) = read_pieces(request.as_bytes().chunks(size));
        prop_assert_eq!(end, Ok(()));
        prop_assert_eq!(seen.len(), 1);
        prop_assert_eq!(&seen[0].body, &chunks.concat());
    }
}
