//! Tests of keys in a file and in variables, and of the errors about them.

use crate::config::client_variables;
use crate::config::document::variable_name;
use crate::config::tests::{development, parse_with, refused, refused_variable, route};
use crate::config::{Config, Level, Trust};
use crate::queue::WhenFull;

#[test]
fn what_is_not_toml_names_its_line() {
    let error = parse_with("[node]\nid = 1\nid = 2\n", &[]).unwrap_err();
    assert_eq!(error.to_string(), "gridcast.toml:3: not TOML: duplicate key");
    refused("[node", "gridcast.toml:1: not TOML: unclosed table, expected `]`");
}

#[test]
fn an_unknown_key_is_answered_with_the_nearest() {
    refused(
        "[api]\n\nbnd = \"127.0.0.1:6789\"",
        "gridcast.toml:3: api.bnd: unknown key; did you mean \"bind\"?",
    );
    refused("[limit]", "gridcast.toml:1: limit: unknown key; did you mean \"limits\"?");
    refused(
        &route("topics = 1"),
        "gridcast.toml:4: edge.route.topics: unknown key; did you mean \"topic\"?",
    );
    refused(
        "[log]\n\"x\\ny\" = 1",
        "gridcast.toml:2: log.x\\ny: unknown key; known are: level, format, access",
    );
}

#[test]
fn the_first_unknown_key_of_a_section_is_the_one_named() {
    refused(
        "[log]\nz = 1\na = 1",
        "gridcast.toml:2: log.z: unknown key; known are: level, format, access",
    );
}

#[test]
fn a_long_value_is_shown_cut() {
    let shown = "x".repeat(63);
    refused(
        &format!("[log]\nlevel = \"{}\"", "x".repeat(1000)),
        &format!(
            "gridcast.toml:2: log.level: expected \"error\" or \"warn\" or \"info\" or \
             \"debug\", found \"{shown}…"
        ),
    );
}

#[test]
fn a_section_of_the_wrong_shape_is_refused() {
    refused("node = 3", "gridcast.toml:1: node: expected one table, [node], found 3");
    refused("[[api]]", "gridcast.toml:1: api: expected one table, [api], found [a table]");
    refused(
        "[edge]",
        "gridcast.toml:1: edge: expected at most 1024 tables, [[edge]], found a table",
    );
}

#[test]
fn a_file_with_any_one_character_changed_is_read_or_refused_in_one_line() {
    let text = include_str!("../every_key.toml");
    for (place, _) in text.char_indices() {
        for put in ["", "\n", "\r", "\0", "\"", "[", "=", "é", "\\", "9", "{"] {
            let changed = format!("{}{put}{}", &text[..place], &text[place + 1..]);
            if let Err(error) = parse_with(&changed, &[]) {
                let line = error.to_string();
                assert!(line.starts_with("gridcast.toml"), "{line:?}");
                assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}

#[test]
fn a_variable_overrides_the_file_and_the_defaults() {
    let variables = [
        ("GRIDCAST_API_BIND", "127.0.0.1:0"),
        ("GRIDCAST_API_ADVERTISE", "[fd00::1]:6789"),
        ("GRIDCAST_API_ORIGINS", "['https://a', 'https://b']"),
        ("GRIDCAST_NODE_CORES", "[0, 2]"),
        ("GRIDCAST_LIMITS_PING_MS", "1_000"),
        ("GRIDCAST_LOG_LEVEL", "warn"),
        ("GRIDCAST_QUEUE_WHEN_FULL", "close"),
        ("PATH", "/bin"),
    ];
    let text = "[api]\nbind = \"wrong\"\n[node]\ncores = 1";
    for config in [parse_with(text, &variables), development(&variables)] {
        let config = config.expect("the variables are right and override what is wrong");
        assert_eq!(config.api.bind.to_string(), "127.0.0.1:0");
        assert_eq!(config.api.advertise, Some("[fd00::1]:6789".parse().expect("an address")));
        assert_eq!(config.api.origins, ["https://a", "https://b"]);
        assert_eq!(config.node.cores, [0, 2]);
        assert_eq!(config.limits.ping_ms, 1000);
        assert_eq!(config.log.level, Level::Warn);
        assert_eq!(config.queue.when_full, WhenFull::Close);
    }
}

#[test]
fn variables_of_the_client_commands_are_ignored_and_not_shown() {
    let mut variables = client_variables::ALL.map(|name| (name, "sesame")).to_vec();
    assert!(development(&variables).is_ok());
    variables.push(("GRIDCAST_TOKENS", "sesame"));
    let error = development(&variables).expect_err("it names no key").to_string();
    assert!(error.starts_with("GRIDCAST_TOKENS: unknown variable; "), "{error}");
    assert!(!error.contains("sesame"), "{error}");
}

#[test]
fn an_error_in_a_variable_names_the_variable() {
    refused_variable(
        "GRIDCAST_LIMITS_PING_MS",
        "30s",
        "GRIDCAST_LIMITS_PING_MS: limits.ping_ms: expected a whole number of milliseconds from 1 \
         to 3600000, found \"30s\"",
    );
    refused_variable(
        "GRIDCAST_LIMITS_HEADERS",
        "1\nx = 2",
        "GRIDCAST_LIMITS_HEADERS: limits.headers: expected a whole number from 1 to 256, found \
         \"1\\nx = 2\"",
    );
    refused_variable(
        "GRIDCAST_LIMITS_IDLE_MS",
        "10",
        "GRIDCAST_LIMITS_IDLE_MS: limits.idle_ms: expected ping_ms (30000) to be less than \
         idle_ms (10)",
    );
    refused_variable(
        "GRIDCAST_QUEUE_TOPIC_BYTES",
        "4096",
        "GRIDCAST_QUEUE_TOPIC_BYTES: queue.topic_bytes: expected at least 135168 bytes, room for \
         a route's message of 65536 bytes; found 4096",
    );
    refused_variable(
        "GRIDCAST_API_BIND",
        "127.0.0.1:6790",
        "built-in configuration:4: edge.bind: 127.0.0.1:6790 is taken by GRIDCAST_API_BIND: \
         api.bind",
    );
}

#[test]
fn an_unknown_variable_is_refused_by_name() {
    refused_variable(
        "GRIDCAST_API_BINDS",
        "127.0.0.1:0",
        "GRIDCAST_API_BINDS: unknown variable; did you mean \"GRIDCAST_API_BIND\"?",
    );
    let error = development(&[("GRIDCAST_EDGE_ROUTE_PATH", "/")]).unwrap_err().to_string();
    let known = "GRIDCAST_EDGE_ROUTE_PATH: unknown variable; known are: GRIDCAST_NODE_ID, ";
    assert!(error.starts_with(known), "{error}");
}

#[test]
fn each_variable_alone_is_taken_or_refused_by_its_name_or_its_table() {
    let defaults = development(&[]).expect("the built-in configuration is right");
    for (path, key) in Config::definition().single_keys() {
        let name = variable_name(&path, key);
        // No key has this value by default, and few can have it.
        match development(&[(&name, "/no/such")]).map_err(|error| error.to_string()) {
            Ok(config) => assert_ne!(config, defaults, "{name} is ignored"),
            Err(error) => {
                let table = path.split('.').next().expect("a path has a beginning");
                let is_told = error.starts_with(&format!("{name}: {path}.{key}: "))
                    || error.contains(&format!(": {table}."));
                assert!(is_told, "{name}: {error}");
            }
        }
    }
    refused_variable(
        "GRIDCAST_MESH_TLS_CERT",
        "/no/such",
        "built-in configuration: mesh.bind: missing; a mesh needs one",
    );
}

#[test]
fn a_table_is_no_variable() {
    let error = development(&[("GRIDCAST_API_TLS", "x")]).unwrap_err().to_string();
    assert!(error.starts_with("GRIDCAST_API_TLS: unknown variable; known are: "), "{error}");
}

#[test]
fn a_long_name_is_cut_as_a_long_value_is() {
    let long = "x".repeat(1000);
    let cut = format!(
        "gridcast.toml:2: node.{}…: unknown key; known are: id, cores, driver, drain_s, lame_duck_s, spin_us",
        &long[..64]
    );
    refused(&format!("[node]\n{long} = 1"), &cut);
    let error = development(&[(&format!("GRIDCAST_{long}"), "1")]).unwrap_err().to_string();
    assert!(error.starts_with("GRIDCAST_xx") && error.contains("x…: unknown"), "{error}");
}

#[test]
fn a_variable_for_a_string_is_taken_as_it_is() {
    // Each would be something else as TOML.
    for text in ["1234567890123456", "0x12345678901234", "2026-12-01T00:00:00Z", "'a string of 18'"]
    {
        let variables = [
            ("GRIDCAST_NODE_ID", "3"),
            ("GRIDCAST_MESH_BIND", "127.0.0.1:0"),
            ("GRIDCAST_MESH_KEY", text),
        ];
        let mesh = development(&variables).expect("it is right").mesh.expect("it is there");
        let Trust::Key(key) = mesh.trust else { panic!("it has a key") };
        assert_eq!(key.secret(), text);
        // Keys that a word or an address is right for say what they found.
        for (name, key) in [
            ("GRIDCAST_API_BIND", "api.bind"),
            ("GRIDCAST_API_ADVERTISE", "api.advertise"),
            ("GRIDCAST_MESH_BIND", "mesh.bind"),
            ("GRIDCAST_MESH_ADVERTISE", "mesh.advertise"),
            ("GRIDCAST_QUEUE_WHEN_FULL", "queue.when_full"),
            ("GRIDCAST_LIMITS_SLOW_CLIENT", "limits.slow_client"),
            ("GRIDCAST_LOG_LEVEL", "log.level"),
            ("GRIDCAST_LOG_FORMAT", "log.format"),
        ] {
            let bind = ("GRIDCAST_MESH_BIND", "127.0.0.1:0");
            let variables = [(name, text), bind, variables[0], variables[2]];
            let error = development(&variables).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: {key}: expected ")), "{error}");
            assert!(error.ends_with(&format!("found {text:?}")), "{error}");
        }
        for (name, other) in [
            ("GRIDCAST_API_TLS_CERT", "GRIDCAST_API_TLS_KEY"),
            ("GRIDCAST_MESH_TLS_CERT", "GRIDCAST_MESH_TLS_KEY"),
        ] {
            let ca = ("GRIDCAST_MESH_TLS_CA", "x");
            let variables = [variables[0], variables[1], (name, text), (other, "x"), ca];
            let error = development(&variables).unwrap_err().to_string();
            assert!(error.contains(&format!(": {text}: cannot be read: ")), "{error}");
        }
    }
}

#[test]
fn a_variable_for_a_list_is_toml() {
    refused_variable(
        "GRIDCAST_API_ORIGINS",
        "https://a",
        "GRIDCAST_API_ORIGINS: api.origins: expected a list of at most 1024 strings, found \
         \"https://a\"",
    );
}
