//! The API over HTTP: status codes, limits, bodies, and the pages of a node.

use super::support::{Server, assert_error, http};
use super::{BODY, PUBLISHED_TO_NONE};

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
