//! The API's envelope, its HTTP and its WebSocket, over real sockets: sections 2 and 3 of the
//! specification beyond what the protocol's own text says.

#![forbid(unsafe_code)]

mod support;

use std::thread;

use support::{Http, Message, Server, Socket, assert_error, frame, http};

const PUBLISHED_TO_NONE: &str = r#"{"E":null,"r":{"s":0,"f":0}}"#;
const BODY: &str = r#"{"c":"channel1","d":"data"}"#;

/// The answer to a publish that nobody gets, with the request's id as JSON.
fn published_to_none(id: &str) -> String {
    format!(r#"{{"E":null,"r":{{"s":0,"f":0}},"i":{id}}}"#)
}

/// A publish that nobody gets, with `rest` behind its params.
fn publish(rest: &str) -> String {
    format!(r#"{{"m":"mesh.publish","p":{BODY}{rest}}}"#)
}

#[test]
fn request_ids_come_back_to_the_digit() {
    let server = Server::new();
    let mut backend = server.backend();
    for id in [
        "0",
        "12345",
        "-7",
        "18446744073709551615",
        "-9223372036854775808",
        "12345678901234567890123",
        "1.50",
        "1E+2",
        "null",
        r#""""#,
        r#""12345""#,
        r#""a \"quoted\" é""#,
    ] {
        let answer = backend.call(&publish(&format!(r#","i":{id}"#)));
        assert_eq!(answer, published_to_none(id));
    }
}

#[test]
fn request_ids_come_back_in_errors_to_the_digit() {
    let server = Server::new();
    let mut backend = server.backend();
    for id in ["18446744073709551615", "12345678901234567890123", "1.50", r#""x""#, "null"] {
        let answer = backend.call(&format!(r#"{{"i":{id},"m":"dance"}}"#));
        assert_error(&answer, 101, Some(id));
    }
}

#[test]
fn a_missing_request_id_is_null() {
    let server = Server::new();
    assert_eq!(server.backend().call(&publish("")), published_to_none("null"));
}

#[test]
fn params_may_stand_in_an_array() {
    let server = Server::new();
    let request = format!(r#"{{"m":"mesh.publish","p":[{BODY}],"i":1}}"#);
    assert_eq!(server.backend().call(&request), published_to_none("1"));
}

#[test]
fn an_empty_array_stands_for_empty_params() {
    let server = Server::new();
    let mut consumer = server.consumer("messages");
    let answer = consumer.call(r#"{"m":"queue.unpop","p":[],"i":12345}"#);
    assert_eq!(answer, support::SUCCESS);
}

#[test]
fn queue_pop_takes_a_bare_array_of_topics() {
    let server = Server::new();
    let mut consumer = server.backend();
    let answer = consumer.call(r#"{"m":"queue.pop","p":["plain","messages2"],"i":12345}"#);
    assert_eq!(answer, support::SUCCESS);
    server.device("/plain").send_text("data");
    assert_eq!(consumer.data(), "data");
}

#[test]
fn the_last_of_two_equal_keys_holds() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=b");
    let request =
        r#"{"m":"dance","i":1,"m":"mesh.publish","p":{"c":"a","d":"x","c":"b","d":"y"},"i":2}"#;
    assert_eq!(server.backend().call(request), r#"{"E":null,"r":{"s":1,"f":0},"i":2}"#);
    assert_eq!(client.text(), "y");
}

#[test]
fn unknown_fields_are_ignored() {
    let server = Server::new();
    let request = r#"{"x":[{"m":"dance"}],"m":"mesh.publish","p":{"c":"a","y":{"d":1},"d":"x"},"i":1,"z":null}"#;
    assert_eq!(server.backend().call(request), published_to_none("1"));
    let answer = server.post("/v1/mesh/publish", r#"{"c":"a","d":"x","more":{"c":7}}"#);
    assert_eq!(answer, PUBLISHED_TO_NONE);
}

#[test]
fn white_space_between_tokens_is_ignored() {
    let server = Server::new();
    let request = "\r\n{ \"m\" : \"mesh.publish\" ,\t\"p\" : { \"c\" : \"a\" , \"d\" : \"x\" } ,\n\"i\" : 1 }\n";
    assert_eq!(server.backend().call(request), published_to_none("1"));
}

#[test]
fn a_request_may_come_as_binary() {
    let server = Server::new();
    let mut backend = server.backend();
    backend.send_binary(publish(r#","i":1"#).as_bytes());
    assert_eq!(backend.text(), published_to_none("1"));
}

#[test]
fn what_is_no_request_gets_101_and_the_connection_stays_open() {
    let server = Server::new();
    let mut backend = server.backend();
    for request in [
        "",
        "x",
        "{",
        "null",
        "7",
        "[]",
        r#""ping""#,
        "{}",
        r#"{"m":7}"#,
        r#"{"m":"mesh.publish"}"#,
    ] {
        assert_error(&backend.call(request), 101, Some("null"));
    }
    assert_eq!(backend.call("ping"), "pong");
}

#[test]
fn deeply_nested_json_gets_101_and_harms_nobody() {
    let server = Server::new();
    let mut backend = server.backend();
    let nested = "[".repeat(200_000);
    assert_error(&backend.call(&nested), 101, Some("null"));
    assert_eq!(backend.call("ping"), "pong");
}

#[test]
fn a_client_id_may_be_an_integer() {
    let server = Server::new();
    let (mut client, id) = server.client();
    let answer = server.post("/v1/mesh/send", &format!(r#"{{"c":{id},"d":"data"}}"#));
    assert_eq!(answer, r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(client.text(), "data");
    let answer = server.post("/v1/conn/call", &format!(r#"{{"c":{id},"f":"get_context","a":[]}}"#));
    assert_eq!(answer, r#"{"E":null,"r":{"s":true,"context":{}}}"#);
}

#[test]
fn base64_may_have_padding_or_none() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    for data in ["+/8=", "+/8"] {
        let request = format!(r#"{{"c":"a","d":"{data}","t":"binary"}}"#);
        server.post("/v1/mesh/publish", &request);
        assert_eq!(client.read(), Message::Binary(vec![0xfb, 0xff]));
    }
}

#[test]
fn base64_that_is_invalid_gets_101() {
    let server = Server::new();
    for data in ["A", "!!!!", "AA=A", "AAA=====", "A A="] {
        let request = format!(r#"{{"c":"a","d":"{data}","t":"binary"}}"#);
        assert_error(&server.post("/v1/mesh/publish", &request), 101, None);
    }
}

#[test]
fn escapes_in_data_are_decoded() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    server.post("/v1/mesh/publish", r#"{"c":"\u0061","d":"\u00e9\ud83d\ude00\n\"\\\/"}"#);
    assert_eq!(client.text(), "é\u{1f600}\n\"\\/");
}

#[test]
fn conn_call_works_over_http() {
    let server = Server::new();
    let (_client, id) = server.client();
    let request = format!(r#"{{"c":"{id}","f":"subscribe","a":["channel1"]}}"#);
    assert_eq!(server.post("/v1/conn/call", &request), r#"{"E":null,"r":{"s":true}}"#);
    assert_eq!(server.publish("channel1", "data"), (1, 0));
}

#[test]
fn errors_of_the_api_have_status_200_unless_asked_otherwise() {
    let server = Server::new();
    let nobody = r#"{"c":"1463786910324359168","d":"x","f":"info","a":[]}"#;
    for (path, body, code, status) in [
        ("/v1/mesh/publish", "{}", 101, 400),
        ("/v1/mesh/publish", "{", 101, 400),
        ("/v1/mesh/send", nobody, 401, 502),
        ("/v1/conn/call", nobody, 301, 500),
        ("/v1/mesh/publish", BODY, 0, 200),
    ] {
        let plain = server.request("POST", path, "", body);
        let asked = server.request("POST", path, "X-Error-Mode: status\r\n", body);
        assert_eq!((plain.status, asked.status), (200, status), "{path}");
        assert_eq!(plain.body, asked.body);
        assert_eq!(plain.json()["E"]["c"].as_u64().unwrap_or(0), code, "{path}");
    }
}

#[test]
fn an_unknown_path_gets_404_in_the_envelope() {
    let server = Server::new();
    for path in ["/v2", "/v1/mesh", "/v1/mesh/send/", "/ws", "/ws/v2"] {
        let response = server.get(path);
        assert_eq!(response.status, 404, "{path}");
        assert!(response.json()["E"]["c"].is_u64(), "{}", response.body);
    }
}

#[test]
fn a_wrong_method_gets_405_with_those_allowed() {
    let server = Server::new();
    for (method, path, allow) in [
        ("GET", "/v1/mesh/send", "POST"),
        ("PUT", "/v1/mesh/publish", "POST"),
        ("GET", "/v1/conn/call", "POST"),
        ("POST", "/version", "GET"),
        ("DELETE", "/healthz", "GET"),
    ] {
        let response = server.request(method, path, "", "");
        assert_eq!(response.status, 405, "{path}");
        assert!(response.header("allow").is_some_and(|methods| methods.contains(allow)), "{path}");
        assert!(response.json()["E"]["c"].is_u64(), "{}", response.body);
    }
}

#[test]
fn ambiguous_or_broken_http_is_refused_and_the_connection_ends() {
    let server = Server::new();
    let post = "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\n";
    for (status, request) in [
        (400, "nonsense\r\n\r\n".to_string()),
        (400, "GET /version HTTP/1.1\r\n\r\n".into()),
        (400, "GET /version HTTP/1.1\r\nHost: localhost\r\nHost: y\r\n\r\n".into()),
        (400, "GET /version HTTP/1.1\nHost: x\n\n".into()),
        (400, "GET /version HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n".into()),
        (400, "GET /version HTTP/1.1\r\nHost : x\r\n\r\n".into()),
        (400, format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}")),
        (400, format!("{post}Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")),
        (400, format!("{post}Content-Length: +2\r\n\r\n{{}}")),
        (400, format!("{post}Transfer-Encoding: chunked\r\n\r\nxyz\r\n")),
        (501, format!("{post}Transfer-Encoding: gzip\r\n\r\n")),
        (505, "GET /version HTTP/2.0\r\nHost: localhost\r\n\r\n".into()),
    ] {
        let mut connection = server.http();
        connection.send(&request);
        let response = connection.response();
        assert_eq!(response.status, status, "{request:?}");
        assert!(response.json()["E"]["c"].is_u64(), "{}", response.body);
        assert!(connection.rest().is_empty(), "{request:?}");
    }
}

#[test]
fn a_head_beyond_its_limits_gets_431() {
    let server = Server::with("[limits]\nhead_bytes = 1024\nheaders = 10");
    let long = format!("X-Long: {}\r\n", "x".repeat(1024));
    for headers in [long, "A: b\r\n".repeat(11)] {
        assert_eq!(server.request("GET", "/version", &headers, "").status, 431);
    }
}

#[test]
fn a_body_beyond_its_limit_gets_413_before_it_is_sent() {
    let server = Server::with("[limits]\napi_message_bytes = 4096");
    let head = "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4097\r\n\r\n";
    let response = http(server.api, head);
    assert_eq!(response.status, 413);
    assert_error(&response.body, 104, None);
}

#[test]
fn a_chunked_body_beyond_its_limit_gets_413() {
    let server = Server::with("[limits]\napi_message_bytes = 4096");
    let head =
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n";
    let response = http(server.api, format!("{head}1001\r\n"));
    assert_eq!(response.status, 413);
}

#[test]
fn a_websocket_request_beyond_its_limit_is_closed_with_1009() {
    let server = Server::with("[limits]\napi_message_bytes = 4096");
    let mut backend = server.backend();
    backend.send_text(&"x".repeat(4097));
    assert_eq!(backend.closed().0, 1009);
}

#[test]
fn head_gets_the_headers_of_get_without_a_body() {
    let server = Server::new();
    let length = server.get("/version").body.len().to_string();
    let mut connection = server.http();
    connection.send("HEAD /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let head = connection.head();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
    assert!(connection.rest().is_empty());
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let server = Server::new();
    let mut connection = server.http();
    let length = BODY.len();
    connection
        .send(format!("POST /v1/mesh/publish HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{BODY}"));
    assert_eq!(connection.response().body, PUBLISHED_TO_NONE);
    assert!(connection.rest().is_empty());
}

#[test]
fn connection_close_is_heeded() {
    let server = Server::new();
    let mut connection = server.http();
    connection.send(server.raw("POST", "/v1/mesh/publish", "Connection: close\r\n", BODY));
    assert_eq!(connection.response().body, PUBLISHED_TO_NONE);
    assert!(connection.rest().is_empty());
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Server::new();
    let mut connection = server.http();
    for _ in 0..3 {
        connection.send(server.raw("POST", "/v1/mesh/publish", "", BODY));
        assert_eq!(connection.response().body, PUBLISHED_TO_NONE);
    }
}

/// Three requests behind one another, and the answers that they get.
fn pipeline(server: &Server) -> (String, [&'static str; 3]) {
    let requests = [BODY, "{", BODY].map(|body| server.raw("POST", "/v1/mesh/publish", "", body));
    (requests.concat(), [r#"{"E":null"#, r#"{"E":{"c":101"#, r#"{"E":null"#])
}

fn assert_answers(connection: &mut Http, answers: [&str; 3]) {
    for answer in answers {
        let body = connection.response().body;
        assert!(body.starts_with(answer), "{body}");
    }
}

#[test]
fn pipelined_requests_in_one_segment_are_answered_in_order() {
    let server = Server::new();
    let (requests, answers) = pipeline(&server);
    let mut connection = server.http();
    connection.send(requests);
    assert_answers(&mut connection, answers);
}

#[test]
fn pipelined_requests_sent_byte_by_byte_are_answered_in_order() {
    let server = Server::new();
    let (requests, answers) = pipeline(&server);
    let mut connection = server.http();
    connection.send_byte_by_byte(requests);
    assert_answers(&mut connection, answers);
}

#[test]
fn a_chunked_body_is_put_together() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=channel1");
    let (start, end) = BODY.split_at(9);
    let request = format!(
        "POST /v1/mesh/publish HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n\
         {:x};a=b\r\n{start}\r\n{:X}\r\n{end}\r\n0\r\nTrailer: x\r\n\r\n",
        start.len(),
        end.len()
    );
    let mut connection = server.http();
    connection.send(&request);
    connection.send_byte_by_byte(&request);
    for _ in 0..2 {
        assert_eq!(connection.response().body, r#"{"E":null,"r":{"s":1,"f":0}}"#);
        assert_eq!(client.text(), "data");
    }
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let server = Server::new();
    let request = server.raw("POST", "/v1/mesh/publish", "Expect: 100-continue\r\n", BODY);
    let (head, body) = request.split_at(request.len() - BODY.len());
    let mut connection = server.http();
    connection.send(head);
    assert_eq!(connection.response().status, 100);
    connection.send(body);
    assert_eq!(connection.response().body, PUBLISHED_TO_NONE);
}

#[test]
fn a_foreign_origin_gets_403_over_http_and_before_an_upgrade() {
    let server = Server::new();
    for origin in ["http://evil.example", "https://127.0.0.1:1", "http://127.0.0.2", "null", "*"] {
        let header = format!("Origin: {origin}\r\n");
        let response = server.request("POST", "/v1/mesh/publish", &header, BODY);
        assert_eq!(response.status, 403, "{origin:?}");
        assert!(response.json()["E"]["c"].is_u64(), "{}", response.body);
        let refused = Socket::connect(server.api, "/ws/v1", &header).err();
        assert_eq!(refused.map(|response| response.status), Some(403), "{origin:?}");
    }
}

#[test]
fn the_api_s_own_origin_is_let_in_with_its_port_or_with_none() {
    let server = Server::new();
    let port = server.api.port();
    for (host, origin) in [
        (server.api.to_string(), format!("http://{}", server.api)),
        (server.api.to_string(), "http://127.0.0.1".into()),
        (server.api.to_string(), "HTTPS://127.0.0.1/".into()),
        (format!("localhost:{port}"), "http://LOCALHOST".into()),
        (format!("[::1]:{port}"), format!("http://[::1]:{port}")),
        (format!("[::1]:{port}"), "http://[0:0:0:0:0:0:0:1]".into()),
    ] {
        let length = BODY.len();
        let response = http(
            server.api,
            format!(
                "POST /v1/mesh/publish HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\
                 Content-Length: {length}\r\n\r\n{BODY}"
            ),
        );
        assert_eq!((response.status, response.body.as_str()), (200, PUBLISHED_TO_NONE), "{origin}");
    }
    let header = format!("Origin: http://{}\r\n", server.api);
    assert!(Socket::connect(server.api, "/ws/v1", &header).is_ok());
}

/// The handshakes of PHP's WebSocket clients, byte for byte but for host, port and key: Pawl with
/// guzzle/psr7, textalk/websocket alone and with an origin given, and phrity/websocket.
const PHP_HANDSHAKES: [&str; 4] = [
    "GET /ws/v1 HTTP/1.1\r\nHost: HOST:PORT\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
     Sec-WebSocket-Version: 13\r\nUser-Agent: Ratchet-Pawl/0.4.1\r\n\
     Sec-WebSocket-Key: TEQyeXNZZUx5Uk5IYnB2dw==\r\nOrigin: http://HOST\r\n\r\n",
    "GET /ws/v1 HTTP/1.1\r\nhost: HOST:PORT\r\nuser-agent: websocket-client-php\r\n\
     connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: JCVbYWJjZGVmZ2hpamtsbQ==\r\n\
     sec-websocket-version: 13\r\n\r\n",
    "GET /ws/v1 HTTP/1.1\r\nhost: HOST:PORT\r\nuser-agent: websocket-client-php\r\n\
     connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: JCVbYWJjZGVmZ2hpamtsbQ==\r\n\
     sec-websocket-version: 13\r\norigin: http://HOST/\r\n\r\n",
    "GET /ws/v1 HTTP/1.1\r\nHost: HOST:PORT\r\nUser-Agent: phrity/websocket\r\n\
     Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: JCVbYWJjZGVmZ2hpamtsbQ==\r\n\
     Sec-WebSocket-Version: 13\r\n\r\n",
];

#[test]
fn php_s_websocket_clients_are_let_in() {
    let server = Server::new();
    let port = server.api.port().to_string();
    for handshake in PHP_HANDSHAKES {
        for host in ["127.0.0.1", "localhost", "[::1]"] {
            let handshake = handshake.replace("HOST", host).replace("PORT", &port);
            let mut connection = server.http();
            connection.send(&handshake);
            let response = connection.response();
            assert_eq!(response.status, 101, "{handshake} {response:?}");
            assert_eq!(Socket::upgraded(connection).call(&publish("")), published_to_none("null"));
        }
    }
}

#[test]
fn without_users_a_name_that_was_pointed_here_reads_nothing() {
    let server = Server::new();
    for name in ["evil.example", "evil.example:6789", "localhost.evil.example", "node"] {
        for path in ["/", "/metrics", "/v1/nodes", "/version", "/ws/v1", "/v1/mesh/publish"] {
            let response = http(server.api, format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n"));
            assert_eq!(response.status, 403, "{name} {path}");
            assert!(assert_error(&response.body, 102, None).contains("localhost"), "{response:?}");
        }
        // A probe may come by a name.
        for path in ["/healthz", "/readyz"] {
            let response = http(server.api, format!("GET {path} HTTP/1.1\r\nHost: {name}\r\n\r\n"));
            assert_eq!(response.status, 200, "{name} {path}");
        }
        // A target that names another host than the header does counts (RFC 9112, section 3.2.2).
        let request = format!("GET http://{name}/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
        assert_eq!(http(server.api, request).status, 403, "{name}");
    }
    for host in ["127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:6789", "192.0.2.1"] {
        let response = http(server.api, format!("GET /version HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(response.status, 200, "{host}");
    }
    assert_eq!(http(server.api, "GET /version HTTP/1.0\r\n\r\n").status, 200);
}

#[test]
fn the_host_of_a_configured_origin_is_answered() {
    let origins = "[api]\norigins = [\"https://app.example\"]";
    let server = Server::start(&support::CONFIG.replace("[api]", origins));
    let get = |host| format!("GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n");
    assert_eq!(http(server.api, get("App.example:6789")).status, 200);
    assert_eq!(http(server.api, get("x.app.example")).status, 403);
}

#[test]
fn a_configured_origin_is_let_in() {
    let origins = "[api]\norigins = [\"https://app.example\"]";
    let server = Server::start(&support::CONFIG.replace("[api]", origins));
    let header = "Origin: https://app.example\r\n";
    assert_eq!(server.request("POST", "/v1/mesh/publish", header, BODY).status, 200);
    assert!(Socket::connect(server.api, "/ws/v1", header).is_ok());
}

#[test]
fn health_and_readiness_are_200() {
    let server = Server::new();
    assert_eq!(server.get("/healthz").status, 200);
    assert_eq!(server.get("/readyz").status, 200);
}

#[test]
fn version_has_the_shape_that_clients_expect() {
    let response = Server::new().get("/version");
    assert_eq!(response.header("content-type"), Some("application/json"));
    let body = response.body;
    let version = body.strip_prefix(r#"{"apis":["v1"],"api":["v1"],"version":""#);
    let version = version.and_then(|rest| rest.strip_suffix(r#""}"#));
    assert!(version.is_some_and(|version| version.contains('.')), "{body}");
}

#[test]
fn nodes_have_the_shape_that_clients_expect() {
    let server = Server::new();
    let (api, ip, port) = (server.api, server.api.ip(), server.api.port());
    assert_eq!(
        server.get("/v1/nodes").body,
        format!(
            r#"{{"nodes":[{{"id":1,"api_server":"{api}","host":"{api}","ip":"{ip}","port":{port}}}]}}"#
        )
    );
}

#[test]
fn the_first_page_is_html() {
    let page = Server::new().get("/");
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/html")));
}

#[test]
fn plain_get_of_the_websocket_path_gets_426() {
    let response = Server::new().get("/ws/v1");
    assert_eq!((response.status, response.header("upgrade")), (426, Some("websocket")));
}

#[test]
fn two_thousand_pipelined_requests_are_answered_in_order() {
    let server = Server::new();
    let mut backend = server.backend();
    let mut writer = backend.writer();
    let requests = (0..2000).map(|id| frame(0x81, publish(&format!(r#","i":{id}"#)).as_bytes()));
    let requests = requests.collect::<Vec<_>>().concat();
    let sent = thread::spawn(move || std::io::Write::write_all(&mut writer, &requests));
    for id in 0..2000 {
        assert_eq!(backend.text(), published_to_none(&id.to_string()));
    }
    sent.join().expect("the writer ran").expect("the server read");
}

#[test]
fn different_methods_in_one_segment_are_answered_in_order() {
    let server = Server::new();
    let (_client, id) = server.client();
    let mut backend = server.backend();
    let call = |function, id_of_request| {
        let p = format!(r#"{{"c":"{id}","f":"{function}","a":["a"]}}"#);
        format!(r#"{{"m":"conn.call","p":{p},"i":{id_of_request}}}"#)
    };
    let publish = |id| format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"x"}},"i":{id}}}"#);
    let requests = [
        call("subscribe", 1),
        publish(2),
        "{".into(),
        "ping".into(),
        call("unsubscribe", 3),
        publish(4),
    ];
    backend.send(&requests.map(|request| frame(0x81, request.as_bytes())).concat());
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":true},"i":1}"#);
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":1,"f":0},"i":2}"#);
    assert_error(&backend.text(), 101, Some("null"));
    assert_eq!(backend.text(), "pong");
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":true},"i":3}"#);
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":0,"f":0},"i":4}"#);
}

#[test]
fn an_upgrade_and_its_first_request_may_share_a_segment() {
    let server = Server::new();
    let mut connection = server.http();
    let upgrade = Socket::upgrade_request(server.api, "/ws/v1", "");
    connection.send([upgrade.as_bytes(), &frame(0x81, b"ping")].concat());
    assert_eq!(connection.response().status, 101);
    assert_eq!(Socket::upgraded(connection).text(), "pong");
}

#[test]
fn an_upgrade_and_requests_sent_byte_by_byte_are_answered() {
    let server = Server::new();
    let mut connection = server.http();
    connection.send_byte_by_byte(Socket::upgrade_request(server.api, "/ws/v1", ""));
    assert_eq!(connection.response().status, 101);
    for id in ["1", "2"] {
        connection.send_byte_by_byte(frame(0x81, publish(&format!(r#","i":{id}"#)).as_bytes()));
    }
    let mut backend = Socket::upgraded(connection);
    assert_eq!(backend.text(), published_to_none("1"));
    assert_eq!(backend.text(), published_to_none("2"));
}

#[test]
fn a_request_in_fragments_of_4096_bytes_is_put_together() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=a");
    let mut backend = server.backend();
    let data = "0123456789".repeat(1_000);
    let request = format!(r#"{{"m":"mesh.publish","p":{{"c":"a","d":"{data}"}},"i":1}}"#);
    let [first, middle @ .., last] = &request.as_bytes().chunks(4096).collect::<Vec<_>>()[..]
    else {
        panic!("more than one fragment")
    };
    backend.send(&frame(0x01, first));
    middle.iter().for_each(|part| backend.send(&frame(0x00, part)));
    backend.send(&frame(0x80, last));
    assert_eq!(backend.text(), r#"{"E":null,"r":{"s":1,"f":0},"i":1}"#);
    assert_eq!(client.text(), data);
}

#[test]
fn a_back_end_that_resets_in_the_middle_harms_nobody() {
    let server = Server::new();
    let mut client = server.device("/ws?channels=channel1");
    for _ in 0..20 {
        let mut backend = server.backend();
        backend.send(&frame(0x81, publish("").as_bytes()).repeat(100));
        backend.reset();
    }
    server.publish("channel1", "end");
    while client.text() != "end" {}
}
