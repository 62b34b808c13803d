//! The way to the server: addresses, TLS, and what is said when there is no API at the other end.

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use rcgen::{CertifiedKey, generate_simple_self_signed};

use super::scripted::{Api, Reply};
use super::support::{CONFIG, Process, Server, Service, command, config_file, refusing_port};
use super::{Folder, at, ended, run, text};

const PUBLISH: [&str; 3] = ["publish", "news", "hello"];

/// Publishes over the API at an address that is written in an option.
#[track_caller]
fn publish(address: &str, further: &[&str]) -> super::Ended {
    let arguments = [&PUBLISH[..], &["--server", address], further].concat();
    ended(&mut command(&arguments), b"")
}

#[test]
fn an_address_has_several_forms() {
    let server = Server::new();
    let api = server.api;
    for address in [format!("http://{api}"), format!("ws://{api}/ws/v1"), api.to_string()] {
        publish(&address, &[]).succeeded();
    }
    publish("ftp://127.0.0.1", &[]).failed(2);
}

#[test]
fn an_api_on_a_unix_socket_is_reached() {
    let folder = Folder::new();
    let socket = format!("unix:{}", text(&folder.0.join("api.sock")));
    let file = config_file(&format!("[node]\ncores = 1\n[api]\nbind = \"{socket}\"\n"));
    let mut node = Process::start(&["serve", "--config", &text(&file)]);
    while !node.line().expect("the node starts").contains("ready, ") {}
    publish(&socket, &[]).succeeded();
    drop(node);
    let error = publish(&socket, &[]).failed(3);
    assert!(error.contains("no such socket") || error.contains("connection refused"), "{error}");
    fs::remove_file(file).expect("the file was there to be read");
}

#[test]
fn a_port_where_nothing_listens_is_named() {
    let (_held, address) = refusing_port();
    let error = ended(&mut at(address, &PUBLISH), b"").failed(3);
    let expected = format!("gridcast: http://{address}: connection refused. Nothing listens there");
    assert!(error.starts_with(&expected), "{error}");
    let error = publish("no-such-host.invalid:6789", &[]).failed(3);
    assert!(error.starts_with("gridcast: http://no-such-host.invalid:6789: "), "{error}");
}

#[test]
fn an_edge_is_told_from_the_api() {
    let server = Server::new();
    let error = ended(&mut at(server.edge, &PUBLISH), b"").failed(3);
    assert!(error.contains("this is an edge, where devices connect"), "{error}");
}

#[test]
fn another_server_is_told_from_the_api() {
    let service = Service::start();
    let address = service.address;
    let asked = std::thread::spawn(move || {
        service.next().answer(200, "hi");
    });
    let error = ended(&mut at(address, &PUBLISH), b"").failed(3);
    asked.join().expect("a request came");
    assert!(error.contains("not the API of gridcast: it answers with status 200 OK"), "{error}");
}

#[test]
fn a_server_that_says_nothing_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address: SocketAddr = listener.local_addr().expect("it is bound");
    let closing = std::thread::spawn(move || drop(listener.accept()));
    let error = ended(&mut at(address, &PUBLISH), b"").failed(3);
    closing.join().expect("it accepts");
    assert!(error.contains("without an answer. If it speaks TLS, use https://"), "{error}");
}

/// A node whose API speaks TLS with a certificate for `localhost`, and the file of its authority.
fn over_tls(folder: &Folder) -> (Server, String) {
    let names = ["localhost".to_owned()];
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(names).expect("a certificate");
    let authority = folder.file("cert.pem", cert.pem());
    let key = folder.file("key.pem", signing_key.serialize_pem());
    let tls = format!("[api.tls]\ncert = \"{authority}\"\nkey = \"{key}\"\n");
    (Server::start(&format!("{CONFIG}{tls}")), authority)
}

#[test]
fn a_private_authority_vouches_for_the_server() {
    let folder = Folder::new();
    let (server, authority) = over_tls(&folder);
    let address = format!("https://localhost:{}", server.api.port());
    publish(&address, &["--ca", &authority]).succeeded();
    let mut in_variable = command(&[&PUBLISH[..], &["--server", &address]].concat());
    ended(in_variable.env("GRIDCAST_CA", &authority), b"").succeeded();
    let error = publish(&address, &[]).failed(3);
    assert!(error.contains("an authority that is not trusted"), "{error}");
}

#[test]
fn a_wrong_name_a_wrong_scheme_and_a_wrong_file_are_told() {
    let folder = Folder::new();
    let (server, authority) = over_tls(&folder);
    let api = server.api;
    let error = publish(&format!("https://{api}"), &["--ca", &authority]).failed(3);
    assert!(
        error.contains("certificate is for another name") && error.contains("localhost"),
        "{error}"
    );
    let error = publish(&format!("http://{api}"), &[]).failed(3);
    assert!(error.contains("use https://"), "{error}");
    let address = format!("https://localhost:{}", api.port());
    for (file, why) in [
        ("no/such".to_owned(), "No such file"),
        (folder.file("empty.pem", ""), "no certificate in PEM"),
    ] {
        let error = publish(&address, &["--ca", &file]).failed(2);
        assert!(error.contains(&format!("--ca {file}: ")) && error.contains(why), "{error}");
    }
    let plain = Server::new();
    let error = publish(&format!("https://{}", plain.api), &[]).failed(3);
    assert!(error.contains("does not speak TLS"), "{error}");
}

#[test]
fn variables_of_the_client_do_not_disturb_a_node() {
    let file = config_file(CONFIG);
    let mut check = command(&["check", "--config", &text(&file)]);
    check
        .env("GRIDCAST_SERVER", "x")
        .env("GRIDCAST_USER", "a:sesame")
        .env("GRIDCAST_TOKEN", "sesame");
    let said = ended(&mut check, b"").succeeded();
    assert!(!said.contains("sesame"), "{said}");
    fs::remove_file(file).expect("the file was there to be read");
    let server = Server::new();
    run(&server, &PUBLISH).succeeded();
}

#[test]
fn a_server_that_answers_without_end_is_left() {
    for line in ["x-filler: 0123456789abcdef\r\n", "HTTP/1.1 200 OK\r\n", "\0\u{1b}[2J\u{9b}31m"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address: SocketAddr = listener.local_addr().expect("it is bound");
        let flooding = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("the command connects");
            let _ = socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\n");
            let piece = line.repeat(1000);
            // At most 1 GB: it ends when the command has left.
            (0..1_000_000_000 / piece.len()).all(|_| socket.write_all(piece.as_bytes()).is_ok())
        });
        let error = ended(&mut at(address, &PUBLISH), b"").failed(3);
        assert!(!flooding.join().expect("it accepts"), "the command reads on");
        assert!(!error.trim_end().contains(char::is_control), "{error:?}");
    }
}

#[test]
fn an_event_of_the_largest_message_is_received() {
    let data = "x".repeat(17 << 20);
    let event = format!(r#"{{"e":"queue.pop","p":{{"t":"a","d":"{data}"}},"id":null}}"#);
    let api = Api::start(move |method, _| match method {
        "queue.pop" => Reply::Events(r#"{"s":true}"#.into(), vec![event.clone()]),
        _ => Reply::Result(r#"{"s":true}"#.into()),
    });
    let said = ended(&mut at(api.address, &["consume", "a", "--count", "1"]), b"").succeeded();
    assert_eq!(said.len(), data.len() + "{\"t\":\"a\",\"d\":\"\"}\n".len());
}
