//! Routes and the handshake.

use super::*;

#[test]
fn channels_named_at_connect_are_subscribed() {
    let server = Server::new();
    let mut client = server.device("/ws?x=1&channels=a,caf%C3%A9");
    for channel in ["a", "café"] {
        assert_eq!(server.publish(channel, channel), (1, 0));
        assert_eq!(client.text(), channel);
    }
}

#[test]
fn a_channel_that_the_route_does_not_allow_gets_403() {
    let server = Server::new();
    let mut allowed = server.device("/private?channels=user-1,news");
    assert_eq!(server.publish("user-1", "x"), (1, 0));
    assert_eq!(allowed.text(), "x");
    for channels in ["users", "news2", "news,other", "*", "user"] {
        let path = format!("/private?channels={channels}");
        assert_eq!(status_of_refusal(&server, &path, ""), Some(403), "{channels}");
    }
    assert_eq!(server.publish("news", "x"), (1, 0));
}

#[test]
fn a_route_without_patterns_allows_no_channel() {
    let server = Server::new();
    assert_eq!(status_of_refusal(&server, "/echo?channels=a", ""), Some(403));
}

#[test]
fn an_unknown_route_gets_404() {
    let server = Server::new();
    for path in ["/", "/wss", "/ws/", "/ws/v1", "/v1/mesh/publish"] {
        assert_eq!(status_of_refusal(&server, path, ""), Some(404), "{path}");
    }
}

#[test]
fn plain_get_of_a_route_gets_426() {
    let server = Server::new();
    let response = support::http(server.edge, "GET /ws HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!((response.status, response.header("upgrade")), (426, Some("websocket")));
}

#[test]
fn another_websocket_version_gets_426_with_ours() {
    let server = Server::new();
    let request =
        Socket::upgrade_request(server.edge, "/ws", "").replace("Version: 13", "Version: 12");
    let response = support::http(server.edge, request);
    assert_eq!((response.status, response.header("sec-websocket-version")), (426, Some("13")));
}

#[test]
fn an_origin_that_the_route_does_not_list_gets_403() {
    let server = server_with_route("origins = [\"https://app.example\"]", "");
    let origin = |origin| format!("Origin: https://{origin}\r\n");
    assert_eq!(status_of_refusal(&server, "/ws", &origin("evil.example")), Some(403));
    assert_eq!(status_of_refusal(&server, "/ws", &origin("app.example")), None);
}

#[test]
fn a_second_edge_serves_its_own_routes() {
    let edge = "[[edge]]\nbind = \"127.0.0.1:0\"\n[[edge.route]]\npath = \"/first\"\n[[edge]]";
    let server = Server::start(&CONFIG.replace("[[edge]]", edge));
    assert_eq!(status_of_refusal(&server, "/first", ""), None);
    assert_eq!(status_of_refusal(&server, "/ws", ""), Some(404));
}

#[test]
fn a_half_open_handshake_is_closed_in_time() {
    let server = Server::with("[limits]\nhandshake_ms = 100");
    for address in [server.edge, server.api] {
        for bytes in ["", "GET /ws HTTP/1.1\r\nHost:"] {
            let mut connection = Http::connect(address);
            connection.send(bytes);
            connection.rest();
        }
    }
}
