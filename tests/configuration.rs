//! Documents generated from the definitions of keys: the reference page and the sample file.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

use gridcast::config::{self, Config, ConfigError};

const CPUS: [usize; 4] = [0, 1, 2, 3];

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "gridcast.toml", std::iter::empty(), &CPUS)
}

#[test]
fn the_reference_page_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operating/configuration.md");
    let page = config::reference_page();
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("it can be made");
        fs::write(&path, &page).expect("the page can be written");
    }
    assert!(
        fs::read_to_string(&path).is_ok_and(|committed| committed == page),
        "docs/operating/configuration.md is out of date; write it again with\n    \
         UPDATE_DOCS=1 cargo test --test configuration"
    );
}

#[test]
fn the_sample_file_says_what_holds_without_a_file() {
    let development = Config::development(std::iter::empty(), &CPUS);
    assert_eq!(parse(&config::sample_file()), development);
}

#[test]
fn the_command_config_prints_the_sample_file() {
    let output = Command::new(env!("CARGO_BIN_EXE_gridcast")).arg("config").output();
    let output = output.expect("gridcast runs");
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).as_deref(), Ok(&config::sample_file()[..]));
}

/// The sample file with the settings switched on that `is_on` says, by their table and key.
fn switched_on(is_on: impl Fn(&str, &str) -> bool) -> String {
    let mut table = String::new();
    let sample = config::sample_file();
    let lines = sample.lines().map(|line| {
        let is_setting = |rest: &&str| !rest.is_empty() && !rest.starts_with(' ');
        let setting = line.strip_prefix('#').filter(is_setting);
        if let Some(header) = setting.unwrap_or(line).strip_prefix('[') {
            table = header.trim_matches(['[', ']']).to_owned();
        }
        let key = line.trim_start_matches('#').split(' ').next().unwrap_or_default();
        let key = if key.starts_with('[') { "" } else { key };
        setting.filter(|_| is_on(&table, key)).unwrap_or(line).to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_setting_of_the_sample_file_can_be_switched_on() {
    // Each excludes another one, or names files that are not there.
    let excluded = |table: &str, key: &str| match table {
        "api.user" => key == "token",
        "edge.route" => key == "handler",
        "api.proxy" | "edge.proxy" => key == "forwarded",
        "edge.route.token" => ["key_file", "jwks", "refresh_s", "ca"].contains(&key),
        "edge.route.token.keys" | "sink.nats" | "sink.kafka" | "sink.redis" | "source.redis" => {
            true
        }
        "edge.route.admit" | "sink.webhook" => key == "ca",
        _ => table.ends_with(".tls"),
    };
    let config = parse(&switched_on(|table, key| !excluded(table, key)));
    let config = config.expect("all of them together are right");
    let (user, route) = (&config.api.users[0], &config.edges[0].routes[0]);
    assert_eq!((&user.name[..], user.from.len()), ("app", 2));
    assert!(route.token.is_some() && route.hold_until.is_some() && config.mesh.is_some());
}

#[test]
fn what_excludes_another_setting_can_be_switched_on_instead_of_it() {
    for (table, other, fault) in [
        ("api.user", "password", None),
        ("api.proxy", "protocol", None),
        ("edge.proxy", "protocol", None),
        ("edge.route.token", "key", Some("edge.route.token.jwks: a token has a key, a key_file")),
        ("edge.route.admit", "", Some("edge.route.admit.ca: /etc/gridcast/ca.pem: cannot be read")),
        ("edge.route.token.keys", "key", Some("edge.route.token.keys.key_file: cannot be read")),
        ("api.tls", "", Some("api.tls.cert: /etc/gridcast/cert.pem: cannot be read")),
        ("edge.tls", "", Some("edge.tls.cert: /etc/gridcast/cert.pem: cannot be read")),
    ] {
        let text = switched_on(|at, key| at == table && (key.is_empty() || key != other));
        match (parse(&text).map_err(|error| error.to_string()), fault) {
            (Ok(_), None) => {}
            (Err(error), Some(fault)) => assert!(error.contains(fault), "{error}"),
            (result, _) => panic!("{table}: {result:?}"),
        }
    }
}
