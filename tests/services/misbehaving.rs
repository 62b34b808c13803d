//! Issuers that work at first and then misbehave: the last good keys stay, every fetch has its bounds, and
//! nothing of an answer or of the query gets into the log.

use std::fs;
use std::time::Duration;

use rcgen::generate_simple_self_signed;

use crate::issuers::{SigningKey, connect, key_set, server_with_token, service_with_certificate};
use crate::metric;
use crate::support::{Asked, Http, Server, Service, Socket};

/// In every answer and every URL. The log must not show it.
const SECRET: &str = "sesame";

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";

const UNBOUNDED: &str = "Transfer-Encoding: chunked\r\n\r\n";

/// A second answer of an issuer.
struct Misbehaviour {
    answer: fn(Asked),
    /// What the log says of it.
    logged: &'static str,
}

const MISBEHAVIOURS: [Misbehaviour; 17] = [
    Misbehaviour { answer: |asked| asked.answer(500, SECRET), logged: "status 500" },
    Misbehaviour { answer: |asked| asked.answer(204, ""), logged: "status 204" },
    // Nothing was asked for on a condition.
    Misbehaviour { answer: |asked| asked.answer(304, ""), logged: "status 304" },
    Misbehaviour {
        answer: |asked| {
            let headers = "Content-Type: text/html\r\n";
            asked.answer_with(200, headers, &format!("<html>{SECRET}</html>"));
        },
        logged: "not JSON: an unexpected character",
    },
    Misbehaviour {
        answer: |asked| asked.answer(200, &format!("{{\"keys\":[{{\"kid\":\"{SECRET}")),
        logged: "not JSON: the text ends too early",
    },
    Misbehaviour {
        answer: |asked| asked.answer(200, &format!("[\"{SECRET}\"]")),
        logged: "not a key set",
    },
    Misbehaviour {
        answer: |asked| asked.answer(200, &many(r#"{"kty":"OKP"}"#)),
        logged: "more than",
    },
    Misbehaviour {
        answer: |asked| {
            let key = SigningKey::new(SECRET).published().to_string();
            asked.answer(200, &many(&key));
        },
        logged: "longer than 262144 bytes",
    },
    Misbehaviour {
        answer: |asked| {
            let keys = r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AQAB"},{"kty":"oct","k":"sesame"},
                {"kty":"EC","crv":"P-521","x":"AQAB","y":"AQAB"},{"kty":"sesame"}"#;
            asked.answer(200, &format!(r#"{{"keys":[{keys}]}}"#));
        },
        logged: "no usable key",
    },
    Misbehaviour {
        answer: |asked| {
            let chunk = format!("400\r\n{}\r\n", " ".repeat(1024));
            asked.answer_endlessly(&format!("{HEAD}{UNBOUNDED}"), &chunk, Duration::ZERO);
        },
        logged: "longer than 262144 bytes",
    },
    // The length tells enough.
    Misbehaviour {
        answer: |asked| {
            asked.answer_bytes(format!("{HEAD}Content-Length: 9000000000\r\n\r\n{SECRET}"));
        },
        logged: "longer than 262144 bytes",
    },
    Misbehaviour {
        answer: |asked| asked.answer_endlessly(HEAD, "X-More: sesame\r\n", Duration::ZERO),
        logged: "message head is too large",
    },
    Misbehaviour {
        answer: |asked| asked.answer_bytes("\0\u{1b}[31msesame\r\n\r\n"),
        logged: "invalid HTTP version",
    },
    Misbehaviour { answer: drop, logged: "connection closed before message completed" },
    // Each of these takes as long as a fetch may take.
    Misbehaviour { answer: std::mem::forget, logged: "no answer in time" },
    Misbehaviour {
        answer: |asked| {
            asked.answer_bytes(format!("{HEAD}Content-Length: 100\r\n\r\n{{\"keys\":["));
        },
        logged: "no answer in time",
    },
    Misbehaviour {
        answer: |asked| {
            let head = format!("{HEAD}{UNBOUNDED}");
            asked.answer_endlessly(&head, "1\r\n \r\n", Duration::from_millis(20));
        },
        logged: "no answer in time",
    },
];

/// A key set of ten thousand keys.
fn many(key: &str) -> String {
    format!("{{\"keys\":[{}]}}", vec![key; 10_000].join(","))
}

/// A server with a route for each issuer, `/0` and so on.
fn server_of(issuers: &[Service]) -> Server {
    let mut config =
        "[node]\ncores = 2\n[api]\nbind = \"127.0.0.1:0\"\n[[edge]]\nbind = \"127.0.0.1:0\"\n"
            .to_owned();
    for (number, issuer) in issuers.iter().enumerate() {
        let url = format!("http://{}/keys?code={SECRET}", issuer.address);
        config +=
            &format!("[[edge.route]]\npath = \"/{number}\"\ntoken = {{ jwks = \"{url}\" }}\n");
    }
    Server::start(&config)
}

/// Begins a handshake on the route with this number.
fn begin(server: &Server, number: usize, key: &SigningKey) -> Http {
    let header = format!("Authorization: Bearer {}\r\n", key.token());
    let mut http = Http::connect(server.edge);
    http.send(Socket::upgrade_request(server.edge, &format!("/{number}"), &header));
    http
}

#[test]
fn whatever_an_issuer_answers_the_last_good_keys_stay_in_use() {
    let (good, unknown) = (SigningKey::new("good"), SigningKey::new("unknown"));
    let issuers: Vec<Service> = MISBEHAVIOURS.iter().map(|_| Service::start()).collect();
    let mut server = server_of(&issuers);
    for issuer in &issuers {
        issuer.next().answer(200, &key_set(&[&good]));
    }
    let admits_all = |server: &Server| {
        let mut handshakes: Vec<Http> =
            (0..issuers.len()).map(|number| begin(server, number, &good)).collect();
        handshakes.iter_mut().map(|http| http.response().status).collect::<Vec<_>>()
    };
    assert_eq!(admits_all(&server), vec![101; issuers.len()]);
    // An unknown key makes the node fetch again, from each issuer.
    let mut waiting: Vec<Http> =
        (0..issuers.len()).map(|number| begin(&server, number, &unknown)).collect();
    for (issuer, misbehaviour) in issuers.iter().zip(&MISBEHAVIOURS) {
        (misbehaviour.answer)(issuer.next());
    }
    // Those whose key is known do not wait for the fetches in progress.
    assert_eq!(admits_all(&server), vec![101; issuers.len()]);
    for (number, http) in waiting.iter_mut().enumerate() {
        let refused = http.response();
        assert_eq!(refused.status, 401, "{}", MISBEHAVIOURS[number].logged);
        assert!(refused.body.contains("unknown key"), "{refused:?}");
    }
    assert_eq!(admits_all(&server), vec![101; issuers.len()]);
    let fetches = issuers.len() as u64;
    assert_eq!(metric(&server, "gridcast_key_fetches_total"), 2 * fetches);
    assert_eq!(metric(&server, "gridcast_key_fetches_failed_total"), fetches);
    drop(waiting);
    server.terminate();
    let (_, lines) = server.finish();
    for (issuer, misbehaviour) in issuers.iter().zip(&MISBEHAVIOURS) {
        let start = format!("keys: http://{}/keys: ", issuer.address);
        let said: Vec<&String> = lines.iter().filter(|line| line.contains(&start)).collect();
        let logged = misbehaviour.logged;
        assert!(matches!(said[..], [line] if line.contains(logged)), "{logged}: {said:?}");
    }
    let leaks: Vec<&String> = lines.iter().filter(|line| line.contains(SECRET)).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
}

#[test]
fn a_redirect_is_not_followed_to_keys_of_somebody_else() {
    let (issuer, other) = (Service::start(), Service::start());
    let mut server = server_with_token(&format!("jwks = \"http://{}/keys\"", issuer.address));
    let location = format!("Location: http://{}/keys\r\n", other.address);
    issuer.next().answer_with(307, &location, "");
    server.logs("status 307");
    issuer.next().answer_with(301, &location, "");
    issuer.next();
    assert!(other.is_unasked());
}

#[test]
fn headers_for_caches_do_not_change_when_keys_are_fetched() {
    let key = SigningKey::new("a");
    let issuer = Service::start();
    let server = server_with_token(&format!("jwks = \"http://{}/keys\"", issuer.address));
    let headers = "Cache-Control: no-store, max-age=0\r\nExpires: 0\r\nAge: 4000000000\r\nETag: \"1\"\r\n\
        Content-Type: text/plain\r\n";
    issuer.next().answer_with(200, headers, &key_set(&[&key]));
    for _ in 0..10 {
        assert_eq!(connect(&server, &key.token()).0, 101);
    }
    assert_eq!(metric(&server, "gridcast_key_fetches_total"), 1);
    assert!(issuer.is_unasked());
}

#[test]
fn an_issuer_whose_certificate_has_another_name_is_not_asked() {
    let certified = generate_simple_self_signed(["login.example.org".to_owned()]);
    let (issuer, ca) = service_with_certificate("named", &certified.expect("a certificate"));
    let url = format!("https://localhost:{}/keys", issuer.address.port());
    let settings = format!("jwks = \"{url}\", ca = \"{}\"", ca.display());
    let mut server = server_with_token(&settings);
    server.logs("certificate not valid for name");
    assert_eq!(connect(&server, &SigningKey::new("a").token()).0, 503);
    assert!(issuer.is_unasked());
    fs::remove_file(ca).expect("it was written");
}
