//! `gridcast check --health`, against a node that runs.

#![forbid(unsafe_code)]

mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::{fs, process};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use support::{Server, command, config_file};

/// Checks the health of the node whose API listens at `address`, with further keys of `[api]`.
fn health(address: SocketAddr, keys: &str) -> Output {
    let file = config_file(&format!("[api]\nbind = \"{address}\"\n{keys}"));
    let check = command(&["check", "--health", "--config", file.to_str().expect("UTF-8")]);
    let output = { check }.output().expect("gridcast runs");
    fs::remove_file(file).expect("the file was there to be read");
    output
}

#[test]
fn a_node_that_runs_is_healthy_and_one_that_has_ended_is_not() {
    let server = Server::start(support::CONFIG);
    let address = server.api;
    let output = health(address, "");
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"healthy\n"[..]));
    drop(server);
    let output = health(address, "");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address.to_string()), "{said}");
}

/// A certificate for another name than the address, and its keys in a configuration.
fn certificate() -> (PathBuf, String) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("health-{}", process::id()));
    fs::create_dir_all(&folder).expect("the folder can be made");
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["api.example.org".to_owned()]).expect("a certificate");
    fs::write(folder.join("cert.pem"), cert.pem()).expect("it can be written");
    fs::write(folder.join("key.pem"), signing_key.serialize_pem()).expect("it can be written");
    let path = folder.display();
    let keys = format!("tls = {{ cert = \"{path}/cert.pem\", key = \"{path}/key.pem\" }}\n");
    (folder, keys)
}

#[test]
fn a_node_with_tls_is_healthy_whatever_name_its_certificate_has() {
    let (folder, keys) = certificate();
    let server = Server::start(&format!(
        "[node]\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n{keys}[[edge]]\nbind = \"127.0.0.1:0\"\n\
         [[edge.route]]\npath = \"/ws\"\n"
    ));
    let output = health(server.api, &keys);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let plain = health(server.api, "");
    assert_eq!(plain.status.code(), Some(1));
    drop(server);
    fs::remove_dir_all(folder).expect("the folder was made");
}
