//! Limits of clients and of addresses.

use super::*;

/// A limit's count in `/metrics`.
#[track_caller]
fn limit_hit(server: &Server, limit: &str) -> u64 {
    let name = format!("gridcast_limits_hit_total{{limit=\"{limit}\"}} ");
    let text = server.get("/metrics").body;
    let value = text.lines().find_map(|line| line.strip_prefix(&name[..]));
    value.unwrap_or_else(|| panic!("no {name} in {text}")).parse().expect("a number")
}

#[test]
fn an_address_has_no_more_connections_than_it_may() {
    let sections = "[limits]\nconnections_per_address = 3\n";
    let server = server_with_route("handler = \"echo\"", sections);
    let mut clients: Vec<Socket> = (0..3).map(|_| server.device("/ws")).collect();
    assert_eq!(Http::connect(server.edge).rest(), b"", "closed without a word");
    assert_eq!(limit_hit(&server, "connections_per_address"), 1);
    server.backend();
    clients.pop();
    // The place of one that is gone is free once the server has heard of it.
    until(|| {
        let request = Socket::upgrade_request(server.edge, "/ws", "");
        Http::connect(server.edge).try_send(request)
    });
    for client in &mut clients {
        client.send_text("still here");
        assert_eq!(client.text(), "still here");
    }
}

#[test]
fn a_client_over_its_rate_is_heard_in_the_end() {
    let server = server_with_route("handler = \"echo\"\nmessages_per_s = 100", "");
    let mut client = server.device("/ws");
    client.send(&numbers(0..150));
    for number in 0..150 {
        assert_eq!(client.text(), number.to_string());
    }
    assert!(limit_hit(&server, "messages_per_s") > 0);
}
