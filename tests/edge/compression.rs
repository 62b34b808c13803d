//! Compressed messages.

use super::*;

/// The offer of a browser.
pub(super) const OFFER: &str = "User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
    Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";

/// A frame, and its payload if it is compressed.
pub(super) fn compressed(socket: &mut Socket) -> Vec<u8> {
    let Message::Deflated(payload) = socket.read() else { panic!("not compressed") };
    let end = [0, 0, 0xFF, 0xFF, 1, 0, 0, 0xFF, 0xFF];
    miniz_oxide::inflate::decompress_to_vec(&[&payload[..], &end].concat()).expect("DEFLATE")
}

#[test]
fn compression_is_granted_where_the_route_says_so_and_nowhere_else() {
    let server = server_with_route(
        "handler = \"echo\"\ncompression = true",
        "[[edge.route]]\npath = \"/plain\"\nhandler = \"echo\"",
    );
    let grant = |path: &str, headers: &str| {
        let mut http = Http::connect(server.edge);
        http.send(Socket::upgrade_request(server.edge, path, headers));
        http.response().header("sec-websocket-extensions").map(str::to_owned)
    };
    let granted = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    assert_eq!(grant("/ws", OFFER).as_deref(), Some(granted));
    assert_eq!(grant("/ws", ""), None);
    assert_eq!(grant("/plain", OFFER), None);

    let text = "the same again, ".repeat(20);
    let deflated = [miniz_oxide::deflate::compress_to_vec(text.as_bytes(), 6), vec![0]].concat();
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    client.send(&frame(0xC1, &deflated));
    assert_eq!(compressed(&mut client), text.as_bytes());
    client.send(&frame(0xC1, &[0]));
    assert_eq!(client.text(), "");
    client.send_text("short");
    assert_eq!(client.text(), "short");
    client.send(&frame(0xC2, &[0xFF; 9]));
    assert_eq!(client.closed().0, 1007);

    let mut client = Socket::connect(server.edge, "/plain", OFFER).expect("granted");
    client.send(&frame(0xC1, &deflated));
    assert_eq!(client.closed().0, 1002);
}

#[test]
fn a_message_that_inflates_beyond_the_limit_closes_with_1009() {
    let keys = "handler = \"echo\"\ncompression = true\nmessage_bytes = 1000";
    let server = server_with_route(keys, "");
    let of = |length: usize| {
        let deflated = miniz_oxide::deflate::compress_to_vec(&vec![b'a'; length], 6);
        frame(0xC1, &[&deflated[..], &[0]].concat())
    };
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    client.send(&of(1000));
    assert_eq!(compressed(&mut client), [b'a'; 1000]);
    client.send(&of(1001));
    assert_eq!(client.closed().0, 1009);
}

#[test]
fn a_fan_out_compresses_once_for_each_shard_and_window() {
    const CLIENTS: u64 = 10;
    let server = server_with_route("compression = true\nsubscribe = [\"*\"]", "");
    let small = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10\r\n";
    let connect =
        |headers| Socket::connect(server.edge, "/ws?channels=a", headers).expect("granted");
    let mut plain: Vec<_> = (0..CLIENTS).map(|_| connect("")).collect();
    let mut large: Vec<_> = (0..CLIENTS).map(|_| connect(OFFER)).collect();
    let mut narrow: Vec<_> = (0..CLIENTS).map(|_| connect(small)).collect();
    let text = "what is new, ".repeat(30);
    assert_eq!(server.publish("a", &text), (3 * CLIENTS, 0));
    plain.iter_mut().for_each(|client| assert_eq!(client.text(), text));
    for client in large.iter_mut().chain(&mut narrow) {
        assert_eq!(compressed(client), text.as_bytes());
    }
    let metrics = server.get("/metrics").body;
    let count = |name: &str| {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|count| count.parse::<u64>().ok()).expect("it is counted")
    };
    assert_eq!(count("gridcast_compressed_total"), 2 * CLIENTS);
    // Two shards, two windows.
    assert!((2..=4).contains(&count("gridcast_compressions_total")), "{metrics}");
    assert!(count("gridcast_compression_saved_bytes_total") > 2 * CLIENTS * 300);
}

#[test]
fn a_message_to_one_client_is_compressed_too() {
    let server = server_with_route("topic = \"t\"\nevents = [\"open\"]\ncompression = true", "");
    let mut consumer = server.consumer("t");
    let mut client = Socket::connect(server.edge, "/ws", OFFER).expect("granted");
    let id = consumer.opened();
    let text = "only for you, ".repeat(10);
    let request = json!({"c": id, "d": text}).to_string();
    for _ in 0..4 {
        server.post("/v1/mesh/send", &request);
        assert_eq!(compressed(&mut client), text.as_bytes());
    }
}
