//! Credentials: of options and variables, wrong ones, and users without the role.

use std::process::Command;

use super::support::{Server, users};
use super::{Ended, at, ended};

const READER: &str = "f6a2c1b09e83d7450f6a2c1b09e83d74";
const OPERATOR: &str = "0d2c9f6b7a81e4530d2c9f6b7a81e453";

/// The lines of a user with this token and role.
fn token(token: &str, role: &str) -> String {
    format!("token = \"{token}\"\nroles = [\"{role}\"]")
}

fn server() -> Server {
    let (reader, operator) = (token(READER, "read"), token(OPERATOR, "admin"));
    let app = "password = \"open: sesame\"\nroles = [\"write\"]";
    Server::with(&users(&[("app", app), ("dashboard", &reader), ("operator", &operator)]))
}

fn run(command: &mut Command) -> Ended {
    ended(command, b"")
}

#[test]
fn credentials_come_from_options_or_variables() {
    let server = server();
    let publish = ["publish", "news", "hello"];
    run(at(server.api, &publish).env("GRIDCAST_USER", "app:open: sesame")).succeeded();
    run(at(server.api, &publish).env("GRIDCAST_TOKEN", OPERATOR)).succeeded();
    run(&mut at(server.api, &[&publish[..], &["--user", "app:open: sesame"]].concat())).succeeded();
    // An option counts more than a variable.
    let arguments = [&publish[..], &["--token", OPERATOR]].concat();
    run(at(server.api, &arguments).env("GRIDCAST_USER", "app:wrong")).succeeded();
}

#[test]
fn missing_and_wrong_credentials_are_told_apart() {
    let server = server();
    let publish = ["publish", "news", "hello"];
    let error = run(&mut at(server.api, &publish)).failed(4);
    assert!(error.contains("the API asks for credentials. Set GRIDCAST_USER"), "{error}");
    for (variable, value) in [("GRIDCAST_USER", "app:sesame"), ("GRIDCAST_TOKEN", "sesame")] {
        let error = run(at(server.api, &publish).env(variable, value)).failed(4);
        assert!(error.contains("the credentials are refused: "), "{error}");
        assert!(!error.contains("sesame"), "{error}");
    }
}

#[test]
fn a_user_without_the_role_is_told_so() {
    let server = server();
    for arguments in [&["publish", "news", "hello"][..], &["close", "1"], &["reload"]] {
        let error = run(at(server.api, arguments).env("GRIDCAST_TOKEN", READER)).failed(4);
        assert!(
            error.contains("roles do not allow it") && error.contains("(error 102)"),
            "{error}"
        );
    }
    // `201` as the protocol has it: who may not consume has failed to consume.
    let error =
        run(at(server.api, &["consume", "messages"]).env("GRIDCAST_USER", "app:open: sesame"));
    assert_ne!(error.code, Some(0), "{error:?}");
    run(at(server.api, &["reload"]).env("GRIDCAST_TOKEN", OPERATOR)).succeeded();
}

#[test]
fn credentials_that_cannot_be_used_are_not_shown() {
    let server = server();
    let publish = ["publish", "news", "hello"];
    let both = run(at(server.api, &publish)
        .env("GRIDCAST_USER", "app:sesame")
        .env("GRIDCAST_TOKEN", "sesame"));
    let alone = run(at(server.api, &publish).env("GRIDCAST_USER", "sesame"));
    let broken = run(at(server.api, &publish).env("GRIDCAST_TOKEN", "se\nsame"));
    let in_url =
        run(&mut at(server.api, &[&publish[..], &["--server", "http://a:sesame@b"]].concat()));
    for error in [both, alone, broken, in_url].map(|ended| ended.failed(2)) {
        assert!(!error.contains("sesame"), "{error}");
    }
    run(&mut at(server.api, &[&publish[..], &["--user", "a:b", "--token", "c"]].concat()))
        .failed(2);
}
