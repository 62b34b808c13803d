use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use toml::de::DeTable;

use super::definition::joined;
use super::*;
use crate::protocol::credentials::{Roles, Scheme, Secret, SecretHash, User};
use crate::protocol::token::{TokenRule, TokenSources};
use crate::queue::WhenFull;

const CPUS: [usize; 4] = [0, 1, 2, 5];

fn environment(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    variables.iter().map(owned).collect::<Vec<_>>().into_iter()
}

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse(text, "gridcast.toml", environment(variables), &CPUS)
}

fn parse(text: &str) -> Config {
    parse_with(text, &[]).expect("the text is a right configuration")
}

fn development(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::development(environment(variables), &CPUS)
}

/// Asserts the whole line with which `text` is refused.
fn refused(text: &str, line: &str) {
    assert_eq!(parse_with(text, &[]).map_err(|error| error.to_string()), Err(line.to_owned()));
}

fn refused_variable(name: &str, value: &str, line: &str) {
    let error = development(&[(name, value)]).map_err(|error| error.to_string());
    assert_eq!(error, Err(line.to_owned()));
}

/// A file with one edge and one route that has `lines`; the first of them is line 4.
fn route(lines: &str) -> String {
    format!("[[edge]]\n[[edge.route]]\npath = \"/ws\"\n{lines}")
}

#[test]
fn an_empty_file_means_the_defaults() {
    let config = parse("");
    assert_eq!(config.node, Node { id: 1, cores: CPUS.to_vec(), drain_s: 10, spin_us: 0 });
    assert_eq!(config.api.bind.to_string(), "127.0.0.1:6789");
    assert_eq!(config.api.advertise, config.api.bind);
    assert_eq!((config.edges, config.mesh), (vec![], None));
    assert_eq!(config.queue.topic_bytes, 67_108_864);
    assert_eq!(config.limits.answer_ms, 1500);
    assert_eq!(config.log, Log { level: Level::Info, format: Format::Text });
}

#[test]
fn without_a_file_there_are_the_routes_ws_and_echo() {
    let config = development(&[]).expect("the built-in configuration is right");
    let [edge] = &config.edges[..] else { panic!("one edge: {config:?}") };
    let [ws, echo] = &edge.routes[..] else { panic!("two routes: {config:?}") };
    assert_eq!(edge.bind.to_string(), "127.0.0.1:6790");
    assert_eq!((ws.path.as_str(), ws.topic.as_deref()), ("/ws", Some("messages")));
    assert_eq!(ws.events, Events { open: false, message: true, close: false });
    assert_eq!(ws.subscribe, ["*"]);
    assert_eq!((ws.message_bytes, ws.outbound_bytes), (65_536, 1_048_576));
    assert!(!ws.compression && !echo.compression);
    assert_eq!(
        (echo.path.as_str(), echo.handler, &echo.topic),
        ("/echo", Some(Handler::Echo), &None)
    );
    assert_eq!((echo.message_bytes, echo.outbound_bytes), (16_777_216, 67_108_864));
    let Limits { connections_per_address, handshakes_per_address_s, messages_per_s, .. } =
        config.limits;
    let all = [connections_per_address, handshakes_per_address_s, messages_per_s];
    assert_eq!((all, ws.messages_per_s), ([0; 3], 0));
}

#[test]
fn every_key_is_read() {
    let config = parse(include_str!("every_key.toml"));
    let bind = |text: &str| text.parse().expect("an address");
    assert_eq!(config.node, Node { id: 7, cores: vec![5, 0], drain_s: 20, spin_us: 50 });
    let origins = vec!["https://admin.example.org:8443".to_owned()];
    let (bind_api, advertise) = (bind("10.0.0.5:7000"), bind("10.0.0.5:6789"));
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";
    let users = vec![
        User {
            name: "app".to_owned(),
            scheme: Scheme::Basic,
            secret: Secret::Hashed(SecretHash::parse(hash).expect("a hash")),
            roles: Roles { read: true, write: false },
            from: ["10.0.0.0/8", "::1/128"]
                .map(|text| text.parse().expect("a range"))
                .into_iter()
                .collect(),
            requests_per_s: 12,
        },
        User {
            name: "ops".to_owned(),
            scheme: Scheme::Bearer,
            secret: Secret::Plain("open-sesame".into()),
            roles: Roles { read: false, write: true },
            from: Default::default(),
            requests_per_s: 0,
        },
    ];
    assert_eq!(config.api, Api { bind: bind_api, advertise, origins, tls: None, users });
    let route = Route {
        path: "/chat".to_owned(),
        topic: Some("chat".to_owned()),
        events: Events { open: true, message: false, close: true },
        subscribe: vec!["news".to_owned(), "room:*".to_owned()],
        hold_until: Some("user_id".to_owned()),
        origins: Some(vec!["https://example.org".to_owned()]),
        subprotocols: vec!["chat".to_owned(), "chat.v2".to_owned()],
        token: TokenRule::new(
            "HS256",
            "0123456789abcdef0123456789abcdef",
            TokenSources { header: false, protocol: true, query: true },
        )
        .map(|mut rule| {
            rule.audience = vec!["chat".to_owned()];
            rule.issuer = Some("login".to_owned());
            Arc::new(rule)
        }),
        handler: None,
        compression: true,
        message_bytes: 2048,
        outbound_bytes: 4096,
        messages_per_s: 13,
    };
    assert_eq!(config.edges, [Edge { bind: bind("0.0.0.0:7001"), tls: None, routes: vec![route] }]);
    let mesh = config.mesh.as_ref().expect("it is written");
    assert_eq!((mesh.bind, mesh.advertise), (bind("10.0.0.5:7002"), bind("192.0.2.5:6788")));
    assert_eq!(mesh.seeds, ["10.0.0.6:6788", "node-3.example.org:6788", "[fd00::7]:6788"]);
    assert_eq!(mesh.expect, 3);
    let Trust::Key(key) = &mesh.trust else { panic!("it is a key: {mesh:?}") };
    assert_eq!(key.secret(), "correct-horse-battery");
    let queue =
        Queue { topic_messages: 10, topic_bytes: 8192, when_full: WhenFull::DropOldest, topics: 3 };
    assert_eq!(config.queue, queue);
    let limits = Limits {
        edge_message_bytes: 1000,
        api_message_bytes: 2000,
        head_bytes: 3000,
        headers: 40,
        outbound_bytes: 5000,
        slow_client: SlowClient::Drop,
        channels_per_client: 60,
        clients: 70,
        api_connections: 74,
        memory_bytes: 1_000_000_000,
        connections_per_address: 71,
        handshakes_per_address_s: 72,
        messages_per_s: 73,
        handshake_ms: 80,
        ping_ms: 90,
        idle_ms: 100,
        answer_ms: 1110,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.data, Data { dir: Some("data".into()) });
    assert_eq!(config.log, Log { level: Level::Debug, format: Format::Json });
}

/// The whole names of the keys of a definition.
fn names(path: &str, definition: &Definition, is_asked: fn(&Key) -> bool) -> Vec<String> {
    let keys = definition.keys.iter().filter(|key| is_asked(key));
    let own = keys.map(|key| joined(path, key.name));
    let tables = definition.tables.iter();
    let inner =
        tables.flat_map(|table| names(&joined(path, table.name), &table.definition, is_asked));
    own.chain(inner).collect()
}

/// Whether `table`, or one of a list of tables in it, has something at `name`.
fn has(table: &DeTable, name: &str) -> bool {
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    let Some(value) = table.get(first).map(|value| value.get_ref()) else { return false };
    let tables =
        value.as_array().into_iter().flatten().filter_map(|item| item.get_ref().as_table());
    rest.is_empty() || value.as_table().into_iter().chain(tables).any(|table| has(table, rest))
}

#[test]
fn the_test_of_every_key_leaves_none_out() {
    let root = DeTable::parse(include_str!("every_key.toml")).expect("it is TOML");
    let names = names("", &Config::definition(), |_| true);
    let left_out: Vec<&String> = names.iter().filter(|name| !has(root.get_ref(), name)).collect();
    // Files that would have to be there, and what excludes another key.
    assert_eq!(
        left_out,
        [
            "api.tls.cert",
            "api.tls.key",
            "mesh.tls.cert",
            "mesh.tls.key",
            "mesh.tls.ca",
            "edge.tls.cert",
            "edge.tls.key",
            "edge.route.handler",
            "edge.route.token.key_file",
        ]
    );
}

#[test]
fn what_a_node_is_and_where_it_listens_needs_a_restart() {
    assert_eq!(
        names("", &Config::definition(), |key| key.needs_restart),
        [
            "node.id",
            "node.cores",
            "node.spin_us",
            "api.bind",
            "mesh.bind",
            "mesh.advertise",
            "mesh.seeds",
            "mesh.key",
            "mesh.tls.cert",
            "mesh.tls.key",
            "mesh.tls.ca",
            "edge.bind",
            "data.dir",
            "log.format",
        ]
    );
}

#[test]
fn a_table_is_no_variable() {
    let error = development(&[("GRIDCAST_API_TLS", "x")]).unwrap_err().to_string();
    assert!(error.starts_with("GRIDCAST_API_TLS: unknown variable; known are: "), "{error}");
}

#[test]
fn a_limit_a_second_is_a_number_that_its_route_may_change() {
    let limited = |own: &str| {
        let text = format!("{}\n[limits]\nmessages_per_s = 5", route(own));
        parse(&text).edges[0].routes[0].messages_per_s
    };
    assert_eq!(
        [limited(""), limited("messages_per_s = 7"), limited("messages_per_s = 0")],
        [5, 7, 0]
    );
    refused(
        "[limits]\nconnections_per_address = 1000001",
        "gridcast.toml:2: limits.connections_per_address: expected a whole number from 0 to \
         1000000, found 1000001",
    );
    refused(
        &user("token = \"t\"\nrequests_per_s = -1"),
        "gridcast.toml:4: api.user.requests_per_s: expected a whole number from 0 to 1000000, \
         found -1",
    );
}

#[test]
fn cores_are_a_count_or_a_list() {
    assert_eq!(parse("[node]\ncores = 3").node.cores, [0, 1, 2]);
    assert_eq!(parse("[node]\ncores = [5, 1]").node.cores, [5, 1]);
    assert_eq!(parse("[node]\ncores = 0x2").node.cores, [0, 1]);
}

#[test]
fn cores_that_the_process_may_not_use_are_refused() {
    let expected = "gridcast.toml:2: node.cores: expected a count from 1 to 4, or a list of \
                    different CPU numbers out of 0-2, 5, found ";
    for cores in ["0", "5", "-1", "[]", "[3]", "[1, 1]", "\"all\"", "[\"0\"]", "2.0"] {
        refused(&format!("[node]\ncores = {cores}"), &format!("{expected}{cores}"));
    }
}

#[test]
fn no_more_shards_are_built_than_a_client_id_can_name() {
    let many: Vec<usize> = (0..300).collect();
    let config = Config::parse("", "gridcast.toml", environment(&[]), &many);
    assert_eq!(config.map(|config| config.node.cores.len()), Ok(256));
    assert!(Config::parse("node.cores = 257", "", environment(&[]), &many).is_err());
}

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
        "gridcast.toml:2: log.x\\ny: unknown key; known are: level, format",
    );
}

#[test]
fn the_first_unknown_key_of_a_section_is_the_one_named() {
    refused("[log]\nz = 1\na = 1", "gridcast.toml:2: log.z: unknown key; known are: level, format");
}

#[test]
fn a_number_out_of_bounds_or_of_another_type_is_refused() {
    let expected = "gridcast.toml:2: limits.ping_ms: expected a whole number of milliseconds from \
                    1 to 3600000, found ";
    for value in ["\"30s\"", "0", "-1", "3600001", "1.5", "true", "99999999999999999999999", "{}"] {
        let shown = if value == "{}" { "a table" } else { value };
        refused(&format!("[limits]\nping_ms = {value}"), &format!("{expected}{shown}"));
    }
    refused(
        "node.id = 1024",
        "gridcast.toml:1: node.id: expected a whole number from 0 to 1023, found 1024",
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
fn a_word_out_of_a_few_is_refused_with_all_of_them() {
    refused(
        "[queue]\nwhen_full = \"wait\"",
        "gridcast.toml:2: queue.when_full: expected \"hold\" or \"drop_oldest\" or \"close\", \
         found \"wait\"",
    );
    refused(
        "[limits]\nslow_client = 1",
        "gridcast.toml:2: limits.slow_client: expected \"close\" or \"drop\", found 1",
    );
    refused(
        &route("handler = \"ecco\""),
        "gridcast.toml:4: edge.route.handler: expected \"echo\", found \"ecco\"",
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
fn a_ping_comes_before_the_idle_time_is_over() {
    refused(
        "[limits]\nping_ms = 5000\nidle_ms = 5000",
        "gridcast.toml:3: limits.idle_ms: expected ping_ms (5000) to be less than idle_ms (5000)",
    );
    refused(
        "[limits]\nping_ms = 70000",
        "gridcast.toml:2: limits.ping_ms: expected ping_ms (70000) to be less than idle_ms (60000)",
    );
}

#[test]
fn a_topic_has_room_for_the_largest_message_of_its_routes() {
    let queue = |bytes| format!("{}\n[queue]\ntopic_bytes = {bytes}", route("topic = \"a\""));
    assert_eq!(parse(&queue(135_168)).queue.topic_bytes, 135_168);
    refused(
        &queue(135_167),
        "gridcast.toml:6: queue.topic_bytes: expected at least 135168 bytes, room for a route's \
         message of 65536 bytes; found 135167",
    );
}

#[test]
fn a_route_without_a_topic_needs_no_room_in_one() {
    let text = format!("{}\n[queue]\ntopic_bytes = 4096", route("handler = \"echo\""));
    assert_eq!(parse(&text).queue.topic_bytes, 4096);
}

#[test]
fn the_api_listens_on_loopback_only() {
    refused(
        "[api]\nbind = \"0.0.0.0:6789\"",
        "gridcast.toml:2: api.bind: without users the API listens on loopback only, such as \
         127.0.0.1:6789; found 0.0.0.0:6789",
    );
    assert_eq!(parse("api.bind = \"127.9.9.9:0\"").api.bind.port(), 0);
    assert!(parse("api.bind = \"[::ffff:127.0.0.1]:1\"").api.bind.is_ipv6());
}

#[test]
fn with_a_user_the_api_listens_anywhere() {
    let text = "[api]\nbind = \"0.0.0.0:6789\"\n[[api.user]]\nname = \"app\"\ntoken = \"t\"";
    let api = parse(text).api;
    assert!(api.bind.ip().is_unspecified());
    assert!(api.users[0].roles == Roles::ALL && api.users[0].from.is_empty());
}

/// A file with one user that has `lines`; the first of them is line 3.
fn user(lines: &str) -> String {
    format!("[[api.user]]\nname = \"app\"\n{lines}")
}

#[test]
fn a_user_has_a_name_of_its_own_and_one_secret() {
    refused(
        "[[api.user]]\ntoken = \"t\"",
        "gridcast.toml:1: api.user.name: missing; a user needs one",
    );
    refused(
        "[[api.user]]\nname = \"a:b\"",
        "gridcast.toml:2: api.user.name: expected a name of 1 to 255 bytes without control \
         characters and colons, found \"a:b\"",
    );
    refused(
        &user("token = \"t\"\n[[api.user]]\nname = \"app\"\ntoken = \"u\""),
        "gridcast.toml:5: api.user.name: \"app\" is the name of an earlier user",
    );
    refused(
        &user("token = \"t\"\n[[api.user]]\nname = \"b\"\ntoken = \"t\""),
        "gridcast.toml:6: api.user.token: is the token of an earlier user",
    );
    refused(
        &user(""),
        "gridcast.toml:1: api.user.password: missing; a user has a password or a token",
    );
    refused(
        &user("password = \"p\"\ntoken = \"t\""),
        "gridcast.toml:4: api.user.token: a user has a password or a token, not both",
    );
    refused(
        &user("pasword = \"p\""),
        "gridcast.toml:3: api.user.pasword: unknown key; did you mean \"password\"?",
    );
}

#[test]
fn a_secret_that_is_refused_is_not_shown() {
    let long = "x".repeat(1025);
    for password in ["", "open\\tsesame", &long] {
        refused(
            &user(&format!("password = \"{password}\"")),
            "gridcast.toml:3: api.user.password: expected a string of 1 to 1024 bytes without \
             control characters",
        );
    }
    for token in ["\"\"", "\"open sesame\"", "12345"] {
        refused(
            &user(&format!("token = {token}")),
            "gridcast.toml:3: api.user.token: expected a string of 1 to 1024 letters, digits and \
             -._~+/ (RFC 6750, section 2.1)",
        );
    }
    for hash in [
        "$argon2i$v=19$m=8,t=1,p=1$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs",
        "$argon2id$",
        "$argon2id$open",
    ] {
        refused(
            &user(&format!("password = \"{hash}\"")),
            "gridcast.toml:3: api.user.password: expected an argon2id hash, \
             $argon2id$v=19$m=…,t=…,p=…$…$…, with m up to 262144 (KiB) and t up to 16",
        );
    }
}

#[test]
fn hashes_take_the_same_time_and_hashed_tokens_are_few() {
    let hash = |cost| {
        format!("$argon2id$v=19${cost}$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs")
    };
    let hashed = |key, number, cost| {
        format!("[[api.user]]\nname = \"{number}\"\n{key} = \"{}\"\n", hash(cost))
    };
    let two = hashed("password", 1, "m=8,t=1,p=1") + &hashed("password", 2, "m=8,t=2,p=1");
    refused(
        &two,
        "gridcast.toml:6: api.user.password: expected the parameters of the hashes before it, \
         m=8,t=1,p=1",
    );
    let salts = "abcdefghi".chars().enumerate();
    let tokens: String = salts
        .map(|(number, salt)| {
            hashed("token", number, "m=8,t=1,p=1").replace("c29tZX", &format!("c29tZ{salt}"))
        })
        .collect();
    refused(
        &tokens,
        "gridcast.toml:27: api.user.token: expected at most 8 hashed tokens: each takes time",
    );
}

#[test]
fn roles_and_ranges_are_checked_item_by_item() {
    let with = |line: &str| user(&format!("token = \"t\"\n{line}"));
    refused(
        &with("roles = [\"read\", \"admin\"]"),
        "gridcast.toml:4: api.user.roles: expected \"read\" or \"write\", found \"admin\"",
    );
    assert_eq!(parse(&with("roles = []")).api.users[0].roles, Roles::default());
    for range in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0", "localhost", "", "::1/64"] {
        refused(
            &with(&format!("from = [\"{range}\"]")),
            &format!(
                "gridcast.toml:4: api.user.from: expected an IP address or a range that begins \
                 with its first, such as \"10.0.0.0/8\", found \"{range}\""
            ),
        );
    }
    for (range, own) in [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:a00:1", "10.0.0.1/32")] {
        refused(
            &with(&format!("from = [\"{range}\"]")),
            &format!(
                "gridcast.toml:4: api.user.from: expected {own}: IPv4 addresses in their own form, \
                 found \"{range}\""
            ),
        );
    }
    assert!(!parse(&with("from = [\"::/0\", \"0.0.0.0/0\"]")).api.users[0].from.is_empty());
    refused(
        &with("from = []"),
        "gridcast.toml:4: api.user.from: an empty list lets nobody in: leave it out for any",
    );
}

#[test]
fn an_address_is_an_ip_and_a_port() {
    let expected = "expected an IP address and port such as \"127.0.0.1:6789\"";
    for bind in ["\"localhost:6790\"", "\"127.0.0.1\"", "6790", "\"127.0.0.1:65536\""] {
        refused(
            &format!("[[edge]]\nbind = {bind}"),
            &format!("gridcast.toml:2: edge.bind: {expected}, found {bind}"),
        );
    }
    for advertise in ["\"0.0.0.0:6789\"", "\"[::]:6789\"", "\"10.0.0.5:0\""] {
        refused(
            &format!("[api]\nadvertise = {advertise}"),
            &format!("gridcast.toml:2: api.advertise: {expected}, found {advertise}"),
        );
    }
}

#[test]
fn two_listeners_do_not_share_an_address() {
    let edge = |bind| format!("[[edge]]\nbind = \"{bind}\"\nroute = [{{ path = \"/\" }}]\n");
    let two = |bind| format!("{}{}", edge(bind), edge(bind));
    refused(
        &two("127.0.0.1:7000"),
        "gridcast.toml:5: edge.bind: 127.0.0.1:7000 is taken by gridcast.toml:2: edge.bind",
    );
    refused(
        &edge("127.0.0.1:6789"),
        "gridcast.toml:2: edge.bind: 127.0.0.1:6789 is taken by gridcast.toml: api.bind",
    );
    assert_eq!(parse(&two("127.0.0.1:0")).edges.len(), 2, "with port 0 each gets its own");
}

#[test]
fn an_edge_has_routes_with_paths_that_differ() {
    refused("\n[[edge]]", "gridcast.toml:2: edge.route: missing; an edge needs at least one");
    refused(
        &route("[[edge.route]]\npath = \"/ws\""),
        "gridcast.toml:5: edge.route.path: \"/ws\" is the path of an earlier route",
    );
    refused(
        "[[edge]]\n\n[[edge.route]]\ntopic = \"a\"",
        "gridcast.toml:3: edge.route.path: missing; a route needs one",
    );
    let with_path = |path: &str| format!("[[edge]]\n[[edge.route]]\npath = '{path}'");
    for path in [
        "",
        "ws",
        "/a b",
        "/a?b",
        "/a#b",
        "/ä",
        "/ws/*",
        "*",
        "/{id}",
        "/a<b>",
        "/a^",
        "/a`",
        "/./a",
        "/a/..",
        "/../a",
        "/%2e%2E/a",
        "/.%2e",
    ] {
        refused(
            &with_path(path),
            &format!(
                "gridcast.toml:3: edge.route.path: expected a path such as \"/ws\", as clients send \
                 it: without parameters and patterns, found \"{path}\""
            ),
        );
    }
    for path in ["/", "//", "/a/", "/:id", "/...", "/a|b", "/%7Bid%7D", "/~a/.well-known/b;c=1,2@x"]
    {
        assert_eq!(parse(&with_path(path)).edges[0].routes[0].path, path);
    }
}

#[test]
fn a_route_has_a_handler_or_a_topic_or_neither() {
    refused(
        &route("topic = \"a\"\nhandler = \"echo\""),
        "gridcast.toml:5: edge.route.handler: a route has a handler or a topic, not both",
    );
    let config = parse(&route(""));
    let route = &config.edges[0].routes[0];
    assert_eq!((route.handler, &route.topic, route.events), (None, &None, Events::default()));
}

#[test]
fn a_token_has_an_algorithm_and_one_key_that_is_not_shown() {
    let refused = |line: &str, reason: &str| {
        refused(&route(line), &format!("gridcast.toml:4: edge.route.token{reason}"));
    };
    let key = "key = \"0123456789abcdef0123456789abcdef\"";
    refused(&format!("token = {{ {key} }}"), ".algorithm: missing; a token is of one algorithm");
    refused(
        &format!("token = {{ algorithm = \"none\", {key} }}"),
        ".algorithm: expected \"HS256\" or \"RS256\" or \"ES256\" or \"EdDSA\", found \"none\"",
    );
    refused(
        "token = { algorithm = \"HS256\", key = \"open sesame\" }",
        ".key: expected a secret of at least 32 bytes (RFC 7518, section 3.2)",
    );
    refused(
        &format!("token = {{ algorithm = \"ES256\", {key} }}"),
        ".key: expected a public key for ES256 in PEM",
    );
    refused("token = { algorithm = \"HS256\" }", ".key: missing; a token has a key or a key_file");
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, key_file = \"k\" }}"),
        ".key_file: a token has a key or a key_file, not both",
    );
    refused(
        "token = { algorithm = \"HS256\", key_file = \"no/such\" }",
        ".key_file: cannot be read: No such file or directory (os error 2)",
    );
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, from = [\"cookie\"] }}"),
        ".from: expected \"header\", \"protocol\" or \"query\", found \"cookie\"",
    );
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, from = [] }}"),
        ".from: an empty list lets nobody in",
    );
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, audience = [] }}"),
        ".audience: an empty list names nobody: leave it out to take tokens without an aud",
    );
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, audience = \"us\" }}"),
        ".audience: expected a list of at most 1024 strings, found \"us\"",
    );
    refused(
        &format!("token = {{ algorithm = \"HS256\", {key}, issuer = \"\" }}"),
        ".issuer: expected a string of 1 to 1024 bytes, as it stands in the token, found \"\"",
    );
}

#[test]
fn what_only_a_topic_gives_effect_is_refused_without_one() {
    for (line, key) in [("events = [\"open\"]", "events"), ("hold_until = \"a\"", "hold_until")] {
        refused(
            &route(line),
            &format!("gridcast.toml:4: edge.route.{key}: has no effect without a topic"),
        );
    }
}

#[test]
fn a_list_is_refused_with_the_item_that_is_wrong() {
    refused(
        &route("topic = \"a\"\nevents = [\"open\", \"closed\"]"),
        "gridcast.toml:5: edge.route.events: expected \"open\", \"message\" or \"close\", found \
         \"closed\"",
    );
    refused(
        &route("subscribe = \"*\""),
        "gridcast.toml:4: edge.route.subscribe: expected a list of at most 1024 strings, found \
         \"*\"",
    );
    refused(
        &route("subscribe = [\"a*b\"]"),
        "gridcast.toml:4: edge.route.subscribe: expected a channel's name, or the beginning of \
         one and \"*\", without commas: they separate channels, found \"a*b\"",
    );
}

#[test]
fn a_pattern_has_its_star_at_the_end_or_none() {
    let config = parse(&route("subscribe = [\"*\", \"café\", \"café*\"]"));
    assert_eq!(config.edges[0].routes[0].subscribe, ["*", "café", "café*"]);
    for pattern in ["", "*a", "a**", "a,b", "a,*"] {
        assert!(parse_with(&route(&format!("subscribe = [\"{pattern}\"]")), &[]).is_err());
    }
}

#[test]
fn a_file_with_any_one_character_changed_is_read_or_refused_in_one_line() {
    let text = include_str!("every_key.toml");
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
fn an_origin_is_a_scheme_and_a_host() {
    let refused = |origin: &str, expected: &str| {
        let list = format!("origins = [\"https://a.example\", \"{origin}\"]");
        let reason = format!("origins: expected {expected}, found \"{origin}\"");
        refused(&format!("[api]\n{list}"), &format!("gridcast.toml:2: api.{reason}"));
        refused(&route(&list), &format!("gridcast.toml:4: edge.route.{reason}"));
    };
    for origin in
        ["example.org", "https://", "null", "https://a b", "https://a:70000", "http://127.1"]
    {
        refused(origin, "an origin such as \"https://example.org\", without a path");
    }
    for origin in ["*", "https://*.example.org", "https://*"] {
        refused(
            origin,
            "an origin such as \"https://example.org\", written out: there are no patterns",
        );
    }
    for (origin, sent) in [
        ("https://example.org/", "https://example.org"),
        ("https://example.org/app", "https://example.org"),
        ("https://Example.org:443", "https://example.org"),
        ("http://example.org:80", "http://example.org"),
        ("https://example.org:", "https://example.org"),
        ("https://user@example.org", "https://example.org"),
        ("wss://example.org", "https://example.org"),
        ("http://[0:0::1]:80", "http://[::1]"),
    ] {
        refused(origin, &format!("{sent:?}, as browsers send it"));
    }
}

#[test]
fn a_subprotocol_is_a_token_and_no_name_of_the_gateway() {
    let refused = |name: &str, expected: &str| {
        refused(
            &route(&format!("subprotocols = [\"chat\", \"{name}\"]")),
            &format!(
                "gridcast.toml:4: edge.route.subprotocols: expected {expected}, found \"{name}\""
            ),
        );
    };
    for name in ["", "a b", "a,b", "ä"] {
        refused(name, "the name of a subprotocol: letters, digits and !#$%&'*+-.^_`|~");
    }
    for (name, prefix) in [("bearer.x", "bearer."), ("gridcast.v1", "gridcast.")] {
        refused(name, &format!("a subprotocol of your own: {prefix:?} begins gridcast's"));
    }
}

#[test]
fn a_name_has_a_length_and_no_control_characters() {
    let longest = "é".repeat(127) + "x";
    let config = parse(&route(&format!("topic = \"{longest}\"")));
    assert_eq!(config.edges[0].routes[0].topic.as_deref(), Some(longest.as_str()));
    let expected = "expected a name of 1 to 255 bytes without control characters";
    for (topic, shown) in [("\"\"", "\"\""), ("\"a\\tb\"", "\"a\\tb\""), ("1", "1")] {
        refused(
            &route(&format!("topic = {topic}")),
            &format!("gridcast.toml:4: edge.route.topic: {expected}, found {shown}"),
        );
    }
    assert!(parse_with(&route(&format!("topic = \"{longest}y\"")), &[]).is_err());
}

#[test]
fn a_mesh_needs_an_address_a_key_and_an_id_of_the_node() {
    let key = "key = \"0123456789abcdef\"";
    let missing = "missing; a mesh needs one";
    refused("\n[mesh]\nseeds = []", &format!("gridcast.toml:2: mesh.bind: {missing}"));
    refused("[mesh]\nbind = \"127.0.0.1:0\"", &format!("gridcast.toml:1: mesh.key: {missing}"));
    let id = "missing; with a mesh each node has an id of its own, 0 to 1023";
    let mesh = format!("[mesh]\nbind = \"0.0.0.0:0\"\n{key}");
    refused(&mesh, &format!("gridcast.toml: node.id: {id}"));
    let short = "limits.answer_ms: expected at least 1100 with a mesh, found 1099: a subscribe waits a \
                 second for a node that is silent";
    let limits = "node.id = 1\nlimits.answer_ms = 1099";
    refused(&format!("{limits}\n{mesh}"), &format!("gridcast.toml:2: {short}"));
    assert_eq!(parse(limits).limits.answer_ms, 1099);
    let config = parse(&format!("node.id = 0\n{mesh}"));
    let mesh = config.mesh.expect("it is written");
    assert_eq!((mesh.advertise, mesh.seeds.len()), (mesh.bind, 0));
    refused(
        &format!("node.id = 0\n[mesh]\n{key}\nbind = \"localhost:1\""),
        "gridcast.toml:4: mesh.bind: expected an IP address and port such as \"127.0.0.1:6789\", \
         found \"localhost:1\"",
    );
}

#[test]
fn variables_alone_can_put_a_node_into_a_grid() {
    let variables = [
        ("GRIDCAST_NODE_ID", "3"),
        ("GRIDCAST_MESH_BIND", "127.0.0.1:0"),
        ("GRIDCAST_MESH_SEEDS", "['a:1', '127.0.0.1:2']"),
        ("GRIDCAST_MESH_KEY", "0123456789abcdef"),
    ];
    let mesh = development(&variables).expect("they are right").mesh.expect("they make one");
    assert_eq!(mesh.seeds, ["a:1", "127.0.0.1:2"]);
    refused_variable(
        "GRIDCAST_MESH_BIND",
        "127.0.0.1:0",
        "built-in configuration: mesh.key: missing; a mesh needs one",
    );
}

#[test]
fn the_key_of_a_grid_is_long_and_not_shown() {
    let with = |key: &str| format!("node.id = 1\n[mesh]\nbind = \"127.0.0.1:0\"\nkey = {key}");
    for key in
        ["\"\"", "\"0123456789abcde\"", "1234567890123456", &format!("{:?}", "x".repeat(1025))]
    {
        refused(
            &with(key),
            "gridcast.toml:4: mesh.key: expected a secret of 16 to 1024 bytes, such as \
             `openssl rand -hex 32` makes",
        );
    }
    let config = parse(&with("\"0123456789abcdef\""));
    assert!(!format!("{config:?} {config}").contains("0123456789abcdef"));
}

#[test]
fn a_grid_has_a_key_or_certificates() {
    let with = |lines: &str| format!("node.id = 1\n[mesh]\nbind = \"127.0.0.1:0\"\n{lines}");
    let tls = "[mesh.tls]\ncert = 'no/such.pem'";
    refused(&with(tls), "gridcast.toml:4: mesh.tls.key: missing; TLS needs one");
    refused(
        &with(&format!("{tls}\nkey = 'x'")),
        "gridcast.toml:4: mesh.tls.ca: missing; nodes are known by one",
    );
    let error =
        parse_with(&with(&format!("{tls}\nkey = 'x'\nca = 'x'")), &[]).unwrap_err().to_string();
    assert!(error.starts_with("gridcast.toml:5: mesh.tls.cert: no/such.pem: cannot"), "{error}");
}

#[test]
fn a_seed_is_a_host_and_a_port() {
    for seed in ["10.0.0.5", "10.0.0.5:0", "0.0.0.0:1", ":1", "a:", "a:x", "a b:1", "a:1:2", "ä:1"]
    {
        refused(
            &format!(
                "[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\nseeds = [\"{seed}\"]"
            ),
            &format!(
                "gridcast.toml:4: mesh.seeds: expected a host and port such as \
                 \"10.0.0.5:6788\" or \"node-2.example.org:6788\", found \"{seed}\""
            ),
        );
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
        assert_eq!(config.api.advertise.to_string(), "[fd00::1]:6789");
        assert_eq!(config.api.origins, ["https://a", "https://b"]);
        assert_eq!(config.node.cores, [0, 2]);
        assert_eq!(config.limits.ping_ms, 1000);
        assert_eq!(config.log.level, Level::Warn);
        assert_eq!(config.queue.when_full, WhenFull::Close);
    }
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
fn tls_needs_both_files_which_are_read() {
    let missing = "missing; TLS needs one";
    refused("[api.tls]\n", &format!("gridcast.toml:1: api.tls.cert: {missing}"));
    refused("[api.tls]\ncert = 'a'", &format!("gridcast.toml:1: api.tls.key: {missing}"));
    refused(
        "[[edge]]\n[edge.tls]\ncert = 'no/such.pem'\nkey = ''\n[[edge.route]]\npath = '/'",
        "gridcast.toml:4: edge.tls.key: expected the path of a PEM file, found \"\"",
    );
    let variables = [("GRIDCAST_API_TLS_CERT", "no/such.pem"), ("GRIDCAST_API_TLS_KEY", "x")];
    let error = development(&variables).unwrap_err().to_string();
    let place = "GRIDCAST_API_TLS_CERT: api.tls.cert: no/such.pem: cannot be read: No such file";
    assert!(error.starts_with(place), "{error}");
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
fn a_long_name_is_cut_as_a_long_value_is() {
    let long = "x".repeat(1000);
    let cut = format!(
        "gridcast.toml:2: node.{}…: unknown key; known are: id, cores, drain_s, spin_us",
        &long[..64]
    );
    refused(&format!("[node]\n{long} = 1"), &cut);
    let error = development(&[(&format!("GRIDCAST_{long}"), "1")]).unwrap_err().to_string();
    assert!(error.starts_with("GRIDCAST_xx") && error.contains("x…: unknown"), "{error}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let read = |file: &Path| Config::read(file, environment(&[]), &CPUS).unwrap_err().to_string();
    let error = read(Path::new("no/such.toml"));
    assert!(error.starts_with("no/such.toml: cannot be read: No such file"), "{error}");
    // A device, a folder: they would never end, or cannot be read at all.
    for path in ["/dev/zero", "/"] {
        let error = read(Path::new(path));
        assert_eq!(error, format!("{path}: cannot be read: not a regular file"));
    }
    let folder = Folder::new();
    let large = folder.0.join("large.toml");
    fs::write(&large, vec![b'#'; 1_048_577]).unwrap();
    assert!(read(&large).ends_with("cannot be read: larger than 1048576 bytes"));
}

/// A folder of one test, removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let number = FOLDERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("gridcast-config-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
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

#[test]
fn a_certificate_that_is_not_valid_now_is_named_with_its_place() {
    let folder = Folder::new();
    let (cert, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    let mut params = rcgen::CertificateParams::new(["example.org".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2026, 1, 1);
    params.not_after = rcgen::date_time_ymd(2026, 2, 1);
    let pair = rcgen::KeyPair::generate().unwrap();
    fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
    fs::write(&key, pair.serialize_pem()).unwrap();
    let tls = format!("cert = {cert:?}\nkey = {key:?}\n");
    let route = "[[edge.route]]\npath = '/'\n";
    let config = parse(&format!("[api.tls]\n{tls}[[edge]]\n[edge.tls]\n{tls}{route}"));
    let at = |unix_s: u64| config.warnings(unix_s * 1000);
    // 2026-01-15.
    assert_eq!(at(1_768_435_200), Vec::<String>::new());
    for (unix_s, what) in
        [(1_767_139_200, " is not valid before Jan  1 "), (1_770_076_800, " expired on Feb  1 ")]
    {
        let [api, edge] = &at(unix_s)[..] else { panic!("{:?}", at(unix_s)) };
        let start =
            format!("gridcast.toml:2: api.tls.cert: {}: the certificate of ", cert.display());
        assert!(api.starts_with(&start) && api.contains(what), "{api}");
        assert!(edge.starts_with("gridcast.toml:6: edge.tls.cert: "), "{edge}");
    }
}

#[test]
fn a_node_without_an_edge_is_worth_a_word() {
    let warning = "no [[edge]] is configured: no device can connect to this node";
    assert_eq!(parse("[api]\nbind = \"127.0.0.1:0\"").warnings(0), [warning]);
    assert_eq!(development(&[]).unwrap().warnings(0), Vec::<String>::new());
}

#[test]
fn a_right_configuration_is_summed_up() {
    let config = development(&[]).expect("the built-in configuration is right");
    let summary = "node 1 on CPUs 0-2, 5\n\
                   api 127.0.0.1:6789, advertised as 127.0.0.1:6789\n\
                   edge 127.0.0.1:6790: /ws (topic \"messages\"), /echo (echo)";
    assert_eq!(config.to_string(), summary);
    let summary = parse(include_str!("every_key.toml")).to_string();
    assert!(summary.contains("\napi 10.0.0.5:7000, advertised as 10.0.0.5:6789, for app, ops\n"));
    assert!(summary.ends_with(
        "\nmesh 10.0.0.5:7002, advertised as 192.0.2.5:6788, seeds 10.0.0.6:6788, \
         node-3.example.org:6788, [fd00::7]:6788, of 3 nodes"
    ));
}
