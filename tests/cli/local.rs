//! Commands that need no node: `token`, `hash`, `completions`, `man`, and the help.

use std::fs;

use super::support::{CONFIG, Server, Socket, command, config_file, users};
use super::{Ended, Folder, at, ended, text};

const KEY: &str = "0d2c9f6b7a81e4530d2c9f6b7a81e453";

fn run(arguments: &[&str]) -> Ended {
    ended(&mut command(arguments), b"")
}

/// [`CONFIG`] with routes that take tokens.
fn config_with_tokens() -> String {
    let routes = format!(
        r#"
[[edge.route]]
path = "/token"
topic = "messages"
events = ["open"]
token = {{ algorithm = "HS256", key = "{KEY}", audience = ["chat"], issuer = "tests" }}
[[edge.route]]
path = "/keys"
topic = "messages"
[[edge.route.token.keys]]
kid = "old"
algorithm = "HS256"
key = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
[[edge.route.token.keys]]
kid = "new"
algorithm = "HS256"
key = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
"#
    );
    CONFIG.to_owned() + &routes
}

fn connects(server: &Server, path: &str, token: &str) -> bool {
    let header = format!("Authorization: Bearer {}\r\n", token.trim_end());
    Socket::connect(server.edge, path, &header).is_ok()
}

#[test]
fn a_token_lets_a_device_in() {
    let config = config_with_tokens();
    let server = Server::start(&config);
    let file = config_file(&config);
    let config = text(&file);
    let token =
        |further: &[&str]| run(&[&["token", "--config", &config], further].concat()).succeeded();
    let made = token(&["--sub", "10000", "--channel", "news"]);
    assert!(!made.contains(KEY));
    let mut consumer = server.consumer("messages");
    assert!(connects(&server, "/token", &made));
    assert_eq!(consumer.event()["d"]["context"]["user_id"], "10000");
    assert!(connects(&server, "/keys", &token(&["--route", "/keys"])));
    assert!(connects(&server, "/keys", &token(&["--route", "/keys", "--kid", "new"])));
    assert!(!connects(&server, "/token", &token(&["--claim", "aud=other"])));
    assert!(!connects(&server, "/token", &token(&["--claim", "exp=1"])));
    // With the key in a file.
    let folder = Folder::new();
    let key = folder.file("key", format!("{KEY}\n"));
    let claims = ["--claim", "aud=chat", "--claim", "iss=tests"];
    let arguments = [&["token", "--key-file", &key, "--algorithm", "HS256"][..], &claims].concat();
    assert!(connects(&server, "/token", &run(&arguments).succeeded()));
    fs::remove_file(file).expect("the file was there to be read");
}

#[test]
fn a_token_that_cannot_be_made_is_explained() {
    let file = config_file(&config_with_tokens());
    let config = text(&file);
    let error = |further: &[&str], part: &str| {
        let error = run(&[&["token"], further].concat()).failed(2);
        assert!(error.contains(part) && !error.contains(KEY), "{error}");
    };
    error(&["--config", &config, "--route", "/no"], "no route has the path \"/no\"");
    error(&["--config", &config, "--route", "/ws"], "/ws: the route takes no token");
    error(
        &["--config", &config, "--route", "/keys", "--kid", "x"],
        "no HS256 key with the kid \"x\"",
    );
    error(&["--config", "no/such"], "no/such: cannot be read");
    error(&[], "--config <FILE>");
    let folder = Folder::new();
    let key = folder.file("key", KEY);
    error(&["--key-file", &key, "--algorithm", "ES256"], "expected a private key for ES256 in PEM");
    error(&["--key-file", &key, "--algorithm", "none"], "expected one of HS256");
    fs::remove_file(file).expect("the file was there to be read");
}

#[test]
fn a_hashed_password_lets_its_user_in() {
    let hash = ended(&mut command(&["hash", "--memory", "8", "--passes", "1"]), b"sesame\n");
    let hash = hash.succeeded();
    let password = format!("password = \"{}\"", hash.trim_end());
    let server = Server::with(&users(&[("app", &password)]));
    let mut publish = at(server.api, &["publish", "news", "hello"]);
    ended(publish.env("GRIDCAST_USER", "app:sesame"), b"").succeeded();
    for wrong in [&b""[..], b"\n", b"a\nb\n", &[b'x'; 1025]] {
        ended(&mut command(&["hash"]), wrong).failed(2);
    }
}

#[test]
fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&["completions", shell]).succeeded();
        assert!(script.contains("publish") && script.contains("no-reconnect"), "{shell}");
    }
    run(&["completions", "cmd"]).failed(2);
}

#[test]
fn each_command_has_a_manual_page() {
    let page = run(&["man"]).succeeded();
    assert!(page.contains(".TH gridcast 1") && page.contains("Exit status"), "{page}");
    let folder = Folder::new();
    assert_eq!(run(&["man", &text(&folder.0)]).succeeded(), "");
    for name in ["gridcast.1", "gridcast-publish.1", "gridcast-serve.1"] {
        let page = fs::read_to_string(folder.0.join(name)).expect("the page was written");
        assert!(page.contains("Example"), "{name}");
    }
    let error = run(&["man", "no/such/folder"]).failed(1);
    assert!(error.contains("no/such/folder: "), "{error}");
}

#[test]
fn the_help_of_each_command_teaches_by_examples() {
    let help = run(&["--help"]).succeeded();
    let commands = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next());
    let names = commands.expect("commands are listed").lines().filter_map(|line| {
        let name = line.strip_prefix("  ")?.split(' ').next()?;
        (!name.is_empty() && name != "help").then_some(name)
    });
    let mut count = 0;
    for name in names {
        let help = run(&["help", name]).succeeded();
        assert!(help.contains("Example") && help.contains(&format!("gridcast {name}")), "{help}");
        count += 1;
    }
    assert!(count >= 14, "{count}");
}
