//! The whole configuration, and what the tests of its sections share. Each section is tested in its own
//! file.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use toml::de::DeTable;

use super::definition::{Definition, joined};
use super::*;
use crate::protocol::admission::AdmissionHook;
use crate::protocol::call_source::{CallEngine, CallSource, NatsConsumer, RedisGroup};
use crate::protocol::credentials::{Roles, Scheme, Secret, SecretHash, User};
use crate::protocol::service::HttpService;
use crate::protocol::signature::SigningSecret;
use crate::protocol::sink::{
    EngineAddress, Kafka, KafkaBroker, KafkaCluster, KafkaLogin, KafkaMechanism, KafkaTls, Nats,
    Redis, RedisUrl, Sink, Webhook,
};
use crate::protocol::token::{TokenAlgorithm, TokenRule, TokenSources};
use crate::queue::WhenFull;

pub(super) const CPUS: [usize; 4] = [0, 1, 2, 5];

pub(super) fn environment(variables: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    variables.iter().map(owned).collect::<Vec<_>>().into_iter()
}

pub(super) fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::parse(text, "gridcast.toml", environment(variables), &CPUS)
}

pub(super) fn parse(text: &str) -> Config {
    parse_with(text, &[]).expect("the text is a right configuration")
}

pub(super) fn development(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::development(environment(variables), &CPUS)
}

/// Asserts the whole line with which `text` is refused.
pub(super) fn refused(text: &str, line: &str) {
    assert_eq!(parse_with(text, &[]).map_err(|error| error.to_string()), Err(line.to_owned()));
}

/// Asserts the whole line with which one variable is refused.
pub(super) fn refused_variable(name: &str, value: &str, line: &str) {
    let error = development(&[(name, value)]).map_err(|error| error.to_string());
    assert_eq!(error, Err(line.to_owned()));
}

/// A file with one edge and one route that has `lines`; the first of them is line 4.
pub(super) fn route(lines: &str) -> String {
    format!("[[edge]]\n[[edge.route]]\npath = \"/ws\"\n{lines}")
}

/// A file with one user that has `lines`; the first of them is line 3.
pub(super) fn user(lines: &str) -> String {
    format!("[[api.user]]\nname = \"app\"\n{lines}")
}

/// A folder of one test, removed on drop.
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    pub(super) fn new() -> Self {
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
fn an_empty_file_means_the_defaults() {
    let config = parse("");
    assert_eq!(
        config.node,
        Node {
            id: 1,
            cores: CPUS.to_vec(),
            driver: DriverChoice::Auto,
            drain_s: 10,
            lame_duck_s: 0,
            spin_us: 0
        }
    );
    assert_eq!(config.api.bind.to_string(), "127.0.0.1:6789");
    assert_eq!(config.api.advertise, None);
    assert_eq!((config.edges, config.mesh), (vec![], None));
    assert_eq!(config.queue.topic_bytes, 67_108_864);
    assert_eq!(config.limits.answer_ms, 1500);
    assert_eq!(config.log, Log { level: Level::Info, format: Format::Text, access: false });
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
    let bind = |text: &str| text.parse::<std::net::SocketAddr>().expect("an address");
    assert_eq!(
        config.node,
        Node {
            id: 7,
            cores: vec![5, 0],
            driver: DriverChoice::Epoll,
            drain_s: 20,
            lame_duck_s: 5,
            spin_us: 50
        }
    );
    let origins = vec!["https://admin.example.org:8443".to_owned()];
    let (bind_api, advertise) = (bind("10.0.0.5:7000").into(), Some(bind("10.0.0.5:6789")));
    let hash = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$hB+3w+XCqbeX/gTIqKvDd3rvONixo8T2Dgv6KiwCGcs";
    let proxy = |protocol| {
        let from = ["10.0.0.2/32", "10.1.0.0/16"].map(|text| text.parse().expect("a range"));
        Some(Proxy { from: from.into(), protocol, forwarded: !protocol })
    };
    let users = vec![
        User {
            name: "app".to_owned(),
            scheme: Scheme::Basic,
            secret: Secret::Hashed(SecretHash::parse(hash).expect("a hash")),
            roles: Roles { read: true, write: false, admin: false },
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
            roles: Roles { read: false, write: true, admin: false },
            from: Default::default(),
            requests_per_s: 0,
        },
    ];
    assert_eq!(
        config.api,
        Api { bind: bind_api, advertise, origins, tls: None, proxy: proxy(true), users }
    );
    let route = Route {
        path: "/chat".to_owned(),
        topic: Some("chat".to_owned()),
        events: Events { open: true, message: false, close: true },
        subscribe: vec!["news".to_owned(), "room:*".to_owned()],
        hold_until: Some("user_id".to_owned()),
        origins: Some(vec!["https://example.org".to_owned()]),
        subprotocols: vec!["chat".to_owned(), "chat.v2".to_owned()],
        token: TokenRule::with_key(
            TokenAlgorithm::Hs256,
            "0123456789abcdef0123456789abcdef",
            TokenSources { header: false, protocol: true, query: true },
        )
        .map(|mut rule| {
            rule.audience = vec!["chat".to_owned()];
            rule.issuer = Some("login".to_owned());
            Arc::new(rule)
        }),
        admit: Some(Arc::new(AdmissionHook {
            service: HttpService::new("https://login.example.org/admit", 500).expect("a URL"),
            secret: Some(SigningSecret::new("shared")),
        })),
        handler: None,
        compression: true,
        message_bytes: 2048,
        outbound_bytes: 4096,
        messages_per_s: 13,
    };
    assert_eq!(
        config.edges,
        [Edge {
            bind: bind("0.0.0.0:7001").into(),
            tls: None,
            proxy: proxy(false),
            routes: vec![route]
        }]
    );
    let mesh = config.mesh.as_ref().expect("it is written");
    assert_eq!((mesh.bind, mesh.advertise), (bind("10.0.0.5:7002"), bind("192.0.2.5:6788")));
    assert_eq!(mesh.seeds, ["10.0.0.6:6788", "node-3.example.org:6788", "[fd00::7]:6788"]);
    assert_eq!((mesh.expect, mesh.threads), (3, 2));
    let Trust::Key(key) = &mesh.trust else { panic!("it is a key: {mesh:?}") };
    assert_eq!(key.secret(), "correct-horse-battery");
    let queue =
        Queue { topic_messages: 10, topic_bytes: 8192, when_full: WhenFull::DropOldest, topics: 3 };
    assert_eq!(config.queue, queue);
    let topic = TopicConfig {
        name: "chat".to_owned(),
        store: Store::Memory,
        groups: vec!["archive".to_owned()],
        default_group: Some(true),
        ack_s: 5,
        tries: 6,
        dead: Some("chat.dead".to_owned()),
        max_age_s: 7,
        messages: 8,
        bytes: 9000,
        when_full: WhenFull::Close,
    };
    assert_eq!(config.topics, [topic]);
    let sink = Sink {
        name: "chat-to-orders".into(),
        topic: "chat".into(),
        engine: EngineAddress::Webhook(Webhook {
            service: HttpService::new("https://orders.example.org/events", 900).expect("a URL"),
            secret: Some(SigningSecret::new("shared")),
            batch: 8,
            in_flight: 2,
        }),
    };
    let nats =
        Nats { servers: ["nats://127.0.0.1:4222".into()].into(), subject: "chat.{client}".into() };
    let engine = EngineAddress::Nats(nats);
    let nats = Sink { name: "chat-to-nats".into(), topic: "chat".into(), engine };
    let cluster = KafkaCluster {
        brokers: KafkaBroker::parse("127.0.0.1:9092").into_iter().collect(),
        tls: Some(KafkaTls { authorities: None }),
        login: Some(KafkaLogin {
            user: "app".into(),
            password: "hush".into(),
            mechanism: KafkaMechanism::Plain,
        }),
    };
    let engine = EngineAddress::Kafka(Kafka { cluster, topic: "chat".into() });
    let kafka = Sink { name: "chat-to-kafka".into(), topic: "chat".into(), engine };
    let url = RedisUrl::new("redis://:hush@127.0.0.1:6379/2").expect("a URL");
    let redis = Redis { url, stream: "chat:{client}".into(), max_len: Some(1000) };
    let engine = EngineAddress::Redis(redis);
    let redis = Sink { name: "chat-to-redis".into(), topic: "chat".into(), engine };
    assert_eq!(config.sinks, [Arc::new(sink), Arc::new(nats), Arc::new(kafka), Arc::new(redis)]);
    let nats = CallEngine::Nats(NatsConsumer {
        servers: ["nats://127.0.0.1:4222".into()].into(),
        stream: "CALLS".into(),
        consumer: "edge".into(),
    });
    let url = RedisUrl::new("redis://:hush@127.0.0.1:6379/2").expect("a URL");
    let redis = CallEngine::Redis(RedisGroup { url, stream: "calls".into(), group: "edge".into() });
    let source = |name: &str, engine| Arc::new(CallSource { name: name.into(), engine });
    let sources = [source("calls-from-nats", nats), source("calls-from-redis", redis)];
    assert_eq!(config.call_sources, sources);
    let limits = Limits {
        edge_message_bytes: 1000,
        api_message_bytes: 2000,
        head_bytes: 3000,
        headers: 40,
        outbound_bytes: 5000,
        slow_client: SlowClient::Drop,
        channels_per_client: 60,
        history_bytes: 2_000_000,
        presence_bytes: 3_000_000,
        clients: 70,
        api_connections: 74,
        memory_bytes: 1_000_000_000,
        connections_per_address: 71,
        handshakes_per_address_s: 72,
        handshakes_per_s: 75,
        messages_per_s: 73,
        handshake_ms: 80,
        ping_ms: 90,
        idle_ms: 100,
        answer_ms: 1110,
    };
    assert_eq!(config.limits, limits);
    assert_eq!(config.data, Data { dir: Some("data".into()) });
    assert_eq!(config.log, Log { level: Level::Debug, format: Format::Json, access: true });
}

/// The whole names of the keys of a definition.
fn names(path: &str, definition: &Definition) -> Vec<String> {
    let own = definition.keys.iter().map(|key| joined(path, key.name));
    let tables = definition.tables.iter();
    let inner = tables.flat_map(|table| names(&joined(path, table.name), &table.definition));
    own.chain(inner).collect()
}

/// Whether `table`, or one of a list of tables in it, has something at `name`.
fn has(table: &DeTable<'_>, name: &str) -> bool {
    let (first, rest) = name.split_once('.').unwrap_or((name, ""));
    let Some(value) = table.get(first).map(|value| value.get_ref()) else { return false };
    let tables =
        value.as_array().into_iter().flatten().filter_map(|item| item.get_ref().as_table());
    rest.is_empty() || value.as_table().into_iter().chain(tables).any(|table| has(table, rest))
}

#[test]
fn the_test_of_every_key_leaves_none_out() {
    let root = DeTable::parse(include_str!("every_key.toml")).expect("it is TOML");
    let names = names("", &Config::definition());
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
            "edge.route.token.jwks",
            "edge.route.token.refresh_s",
            "edge.route.token.ca",
            "edge.route.token.keys.kid",
            "edge.route.token.keys.algorithm",
            "edge.route.token.keys.key",
            "edge.route.token.keys.key_file",
            "edge.route.admit.ca",
            "sink.kafka.ca",
            "sink.webhook.ca",
            "channel.match",
            "channel.history",
            "channel.history_s",
            "channel.presence",
            "channel.presence_grace_s",
            "channel.topic",
        ]
    );
}

/// Returns the whole names of the keys that a running node cannot change.
fn restart_keys(path: &str, definition: &Definition) -> Vec<String> {
    let keys = definition.keys.iter().filter(|key| key.needs_restart);
    let mut keys: Vec<String> = keys.map(|key| joined(path, key.name)).collect();
    for table in &definition.tables {
        keys.extend(restart_keys(&joined(path, table.name), &table.definition));
    }
    keys
}

#[test]
fn what_a_node_is_and_where_it_listens_needs_a_restart() {
    assert_eq!(
        restart_keys("", &Config::definition()),
        [
            "node.id",
            "node.cores",
            "node.driver",
            "node.spin_us",
            "api.bind",
            "mesh.bind",
            "mesh.advertise",
            "mesh.seeds",
            "mesh.expect",
            "mesh.threads",
            "mesh.key",
            "mesh.tls.cert",
            "mesh.tls.key",
            "mesh.tls.ca",
            "limits.history_bytes",
            "limits.presence_bytes",
            "edge.bind",
            "data.dir",
            "topic.store",
            "topic.groups",
            "channel.match",
            "channel.history",
            "channel.history_s",
            "channel.presence",
            "channel.presence_grace_s",
            "channel.topic",
            "log.format",
        ]
    );
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
