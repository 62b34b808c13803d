//! Frames of every kind, and frames that break the protocol.

use super::*;

#[test]
fn an_echo_has_every_length_of_frame() {
    let server = Server::new();
    let mut client = server.device("/echo");
    for length in [0, 1, 125, 126, 65_535, 65_536, 1 << 20] {
        client.send_binary(&vec![0xa5; length]);
        assert_eq!(client.read(), Message::Binary(vec![0xa5; length]));
        client.send_text(&"a".repeat(length));
        assert_eq!(client.read(), Message::Text("a".repeat(length)));
    }
}

#[test]
fn fragments_are_put_together_around_control_frames() {
    let server = Server::new();
    let mut client = server.device("/echo");
    for (first, part) in [
        (0x01, "h".as_bytes()),
        (0x89, b"1"),
        (0x00, "é".as_bytes()),
        (0x8a, b""),
        (0x89, b"2"),
        (0x00, &[0xf0, 0x9f]),
        (0x80, &[0x98, 0x80]),
    ] {
        client.send(&frame(first, part));
    }
    assert_eq!(client.read(), Message::Pong(b"1".into()));
    assert_eq!(client.read(), Message::Pong(b"2".into()));
    assert_eq!(client.read(), Message::Text("hé\u{1f600}".into()));
}

#[test]
fn frames_sent_byte_by_byte_are_read() {
    let server = Server::new();
    let mut client = server.device("/echo");
    let bytes = [frame(0x01, b"he"), frame(0x89, b"x"), frame(0x80, &[b'l'; 200])].concat();
    bytes.chunks(1).for_each(|byte| client.send(byte));
    assert_eq!(client.read(), Message::Pong(b"x".into()));
    assert_eq!(client.read(), Message::Text(format!("he{}", "l".repeat(200))));
}

#[test]
fn what_breaks_the_protocol_is_closed_with_1002() {
    let server = Server::new();
    for (rule, bytes) in [
        ("a client masks", vec![0x81, 1, b'x']),
        ("no reserved bit", frame(0xc1, b"x")),
        ("no unknown data opcode", frame(0x83, b"x")),
        ("no unknown control opcode", frame(0x8b, b"x")),
        ("no long ping", frame(0x89, &[0; 126])),
        ("no fragment of a ping", frame(0x09, b"x")),
        ("no end without a start", frame(0x80, b"x")),
        ("no start inside a message", [frame(0x01, b"x"), frame(0x81, b"y")].concat()),
        ("no half code", frame(0x88, &[3])),
        ("no reserved code", frame(0x88, &1005_u16.to_be_bytes())),
        ("no code below 1000", frame(0x88, &999_u16.to_be_bytes())),
    ] {
        let mut client = server.device("/echo");
        client.send(&bytes);
        assert_eq!(client.closed().0, 1002, "{rule}");
        client.ended();
    }
}

#[test]
fn a_message_beyond_its_limit_is_closed_with_1009() {
    let server = Server::new();
    let whole = frame(0x82, &[0; 65_537]);
    let fragments = [frame(0x02, &[0; 40_000]), frame(0x80, &[0; 40_000])].concat();
    for bytes in [whole, fragments] {
        let mut client = server.device("/ws");
        write_aside(&client, bytes);
        assert_eq!(client.closed().0, 1009);
    }
}

#[test]
fn a_message_at_its_limit_is_taken() {
    let server = Server::new();
    let mut consumer = server.consumer("plain");
    server.device("/plain").send_text(&"x".repeat(65_536));
    assert_eq!(consumer.data().len(), 65_536);
}

#[test]
fn text_that_is_not_utf_8_is_closed_with_1007() {
    let server = Server::new();
    for bytes in [
        frame(0x81, &[b'a', 0xff]),
        frame(0x81, &[0xc3]),
        frame(0x81, &[0xed, 0xa0, 0x80]),
        [frame(0x01, &[0xc3]), frame(0x80, &[0x28])].concat(),
        frame(0x88, &[0x03, 0xe8, 0xff]),
    ] {
        let mut client = server.device("/echo");
        client.send(&bytes);
        assert_eq!(client.closed().0, 1007, "{bytes:x?}");
    }
}
