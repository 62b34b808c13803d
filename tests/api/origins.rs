//! Who may use the API of a node without users: origins and hosts.

use super::support::{self, Server, Socket, assert_error, http};
use super::{BODY, PUBLISHED_TO_NONE, publish, published_to_none};

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
