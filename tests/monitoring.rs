//! The alert rules and the dashboard in `tuning/` against the metrics of a real node.

#![forbid(unsafe_code)]

mod support;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde_json::Value;
use support::{Http, Server};

const ALERTS: &str = "tuning/alerts.yml";
const UNIT_TESTS: &str = "tests/monitoring/alerts.yml";
const DASHBOARD: &str = "tuning/grafana-dashboard.json";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).expect("a file of the repository")
}

#[test]
fn every_metric_of_the_alert_rules_and_the_dashboard_exists() {
    let known = samples_of_a_node();
    let alerts = alert_expressions();
    let panels = dashboard_expressions();
    assert!(alerts.len() > 10 && panels.len() > 30, "{} and {}", alerts.len(), panels.len());
    for expression in alerts.iter().chain(&panels) {
        let metrics = metrics_of(expression);
        assert!(!metrics.is_empty(), "no metric in {expression}");
        for metric in metrics {
            // Prometheus makes `up` itself.
            assert!(metric == "up" || known.contains(&metric), "{metric} of {expression}");
        }
    }
}

/// Returns the name of every sample that a node with a mesh can have, from the types of its metrics.
fn samples_of_a_node() -> BTreeSet<String> {
    let mesh = "[mesh]\nbind = \"127.0.0.1:0\"\nkey = \"0123456789abcdef\"\n";
    let server =
        Server::start(&format!("[node]\nid = 1\ncores = 1\n[api]\nbind = \"127.0.0.1:0\"\n{mesh}"));
    let text = server.get("/metrics").body;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let samples = types.flat_map(|line| {
        let (name, kind) = line.split_once(' ').expect("a name and its type");
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            _ => panic!("{line}"),
        };
        endings.iter().map(move |ending| format!("{name}{ending}"))
    });
    samples.collect()
}

/// Returns the expressions of the alert rules. Each has a line of its own.
fn alert_expressions() -> Vec<String> {
    let text = read(ALERTS);
    let values = |key: &str| -> Vec<String> {
        let lines = text.lines().map(|line| line.trim_start().trim_start_matches("- "));
        lines.filter_map(|line| Some(line.strip_prefix(key)?.trim().to_owned())).collect()
    };
    let expressions = values("expr:");
    assert_eq!(expressions.len(), values("alert:").len());
    let is_whole =
        |line: &String| !line.is_empty() && !line.starts_with(['|', '>', '"', '\'', '#']);
    assert!(expressions.iter().all(is_whole), "{expressions:?}");
    expressions
}

/// Returns the expressions of all panels and variables of the dashboard.
fn dashboard_expressions() -> Vec<String> {
    fn walk(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, value) in members {
                    match value {
                        Value::String(text) if name == "expr" => found.push(text.clone()),
                        Value::String(text) if name == "definition" => {
                            let metric = text.strip_prefix("label_values(").expect("a query");
                            let (metric, _) = metric.split_once(',').expect("and a label");
                            found.push(metric.to_owned());
                        }
                        value => walk(value, found),
                    }
                }
            }
            Value::Array(values) => values.iter().for_each(|value| walk(value, found)),
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).expect("the dashboard is JSON");
    let mut found = Vec::new();
    walk(&dashboard, &mut found);
    found
}

/// A part of a PromQL expression.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Name(String),
    Open,
    Other,
}

/// Returns the metrics that a PromQL expression names: every name that is no function, operator or label. A
/// name that this does not know counts as a metric, so a mistake fails a test instead of hiding a metric.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    const WORDS: [&str; 9] =
        ["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start"];
    // A list of labels in parentheses follows these.
    const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
    let tokens = tokens_of(expression);
    let mut metrics = BTreeSet::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at += 1;
        let Token::Name(name) = token else { continue };
        let is_called = tokens.get(at) == Some(&Token::Open);
        if LISTS.contains(&name.as_str()) {
            assert!(is_called, "{name} without a list in {expression}");
            at += 1;
            at += tokens[at..].iter().take_while(|token| matches!(token, Token::Name(_))).count();
            continue;
        }
        let is_aggregation = ["sum", "min", "max", "avg", "count"].contains(&name.as_str());
        if !is_called && !is_aggregation && !WORDS.contains(&name.as_str()) {
            metrics.insert(name.clone());
        }
    }
    metrics
}

/// Splits a PromQL expression. Strings, numbers, ranges and the matchers in braces name no metric and are
/// left out. So are commas, which lists of labels have between their names.
fn tokens_of(expression: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = expression.chars().peekable();
    while let Some(first) = rest.next() {
        match first {
            '{' => drop(rest.by_ref().find(|&character| character == '}').expect("a brace")),
            '[' => drop(rest.by_ref().find(|&character| character == ']').expect("a bracket")),
            '"' | '\'' => drop(rest.by_ref().find(|&character| character == first)),
            '(' => tokens.push(Token::Open),
            ',' => {}
            first if first.is_whitespace() => {}
            first if first.is_ascii_digit() => {
                // A number or a duration: 0.99, 1e3, 5m.
                while rest.next_if(|next| next.is_ascii_alphanumeric() || *next == '.').is_some() {}
                tokens.push(Token::Other);
            }
            first if first.is_ascii_alphabetic() || first == '_' || first == ':' => {
                let mut name = String::from(first);
                let is_part = |next: &char| next.is_ascii_alphanumeric() || "_:".contains(*next);
                while let Some(next) = rest.next_if(is_part) {
                    name.push(next);
                }
                tokens.push(Token::Name(name));
            }
            _ => tokens.push(Token::Other),
        }
    }
    tokens
}

#[test]
fn the_metrics_of_an_expression_are_found() {
    for (expression, metrics) in [
        ("up{job=\"a_total\"} == 0", &["up"][..]),
        ("a / (b > 0) > 0.8", &["a", "b"]),
        ("sum by (x, y) (rate(a_total{b=~\"$c\"}[$__rate_interval]))", &["a_total"]),
        ("sum(a) by (x)", &["a"]),
        ("histogram_quantile(0.99, sum by (le) (rate(h_bucket[5m])))", &["h_bucket"]),
        ("a > on (job, instance) group_left (x) 0.01 * sum by (job) (b)", &["a", "b"]),
        ("a and on (x) b unless c offset 5m", &["a", "b", "c"]),
        ("changes(a[30m]) > 2 or time() - b < 14 * 86400", &["a", "b"]),
        ("unheard_of", &["unheard_of"]),
    ] {
        let found = metrics_of(expression);
        let found: Vec<&str> = found.iter().map(String::as_str).collect();
        assert_eq!(found, metrics, "{expression}");
    }
}

#[test]
fn every_alert_has_a_unit_test() {
    let named = |text: &str, key: &str| -> BTreeSet<String> {
        let parts = text.split(key).skip(1);
        let names = parts.filter_map(|part| part.split([',', '\n']).next());
        names.map(|name| name.trim().to_owned()).collect()
    };
    let alerts = named(&read(ALERTS), "- alert:");
    let mut firing = BTreeSet::new();
    for test in read(UNIT_TESTS).split("alertname:").skip(1) {
        if test.contains("exp_labels:") {
            firing.extend(named(&format!("alertname:{test}"), "alertname:"));
        }
    }
    assert_eq!(firing, alerts);
}

#[test]
fn promtool_accepts_the_alert_rules_and_their_unit_tests() {
    for arguments in [["check", "rules", ALERTS], ["test", "rules", UNIT_TESTS]] {
        let promtool = Command::new("promtool").args(arguments).current_dir(root()).output();
        let output = match promtool {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return eprintln!("skipped: promtool is not installed");
            }
            output => output.expect("promtool runs"),
        };
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
}

/// A Prometheus that scrapes one node. Its process ends with the value.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// How long Prometheus may take for anything.
const WAIT_MAX: Duration = Duration::from_secs(60);

impl Prometheus {
    /// Starts a Prometheus with the alert rules, which scrapes `node` every second. `None`: it is not
    /// installed.
    fn start(node: SocketAddr) -> Option<Self> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("gridcast-prometheus-{}", process::id()));
        fs::create_dir_all(&folder).expect("the test's folder can be written");
        let config = folder.join("prometheus.yml");
        let rules = root().join(ALERTS);
        let settings = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [{rules:?}]\n\
             scrape_configs:\n- job_name: gridcast\n  static_configs: [{{ targets: [\"{node}\"] }}]\n"
        );
        fs::write(&config, settings).expect("the folder is there");
        // Prometheus does not tell which port it got for port 0. Another process may take a port that was
        // just free: then Prometheus ends, and another port is tried.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
            let address = free.expect("a free port");
            let spawned = Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
                .arg(format!("--web.listen-address={address}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            let process = match spawned {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let _ = fs::remove_dir_all(&folder);
                    return None;
                }
                spawned => spawned.expect("prometheus runs"),
            };
            let mut started = Self { process, address, folder: folder.clone() };
            if started.wait_until_ready() {
                return Some(started);
            }
        }
        panic!("prometheus does not start");
    }

    /// Waits until Prometheus answers. Returns false if its process has ended.
    fn wait_until_ready(&mut self) -> bool {
        let start = Instant::now();
        while start.elapsed() < WAIT_MAX {
            if self.process.try_wait().expect("a child").is_some() {
                return false;
            }
            let is_ready = || std::net::TcpStream::connect(self.address).ok().map(Http::over);
            if let Some(mut http) = is_ready() {
                http.send(request("/-/ready"));
                if http.response().status == 200 {
                    return true;
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("prometheus is not ready in time");
    }

    /// Asks until a query has a result that is not empty, and returns it.
    fn query(&self, query: &str) -> Value {
        let start = Instant::now();
        while start.elapsed() < WAIT_MAX {
            let mut http = Http::connect(self.address);
            http.send(request(&format!("/api/v1/query?query={query}")));
            let answer = http.response().json();
            assert_eq!(answer["status"], "success", "{query}: {answer}");
            let result = &answer["data"]["result"];
            if result.as_array().is_some_and(|found| !found.is_empty()) {
                return result.clone();
            }
            thread::sleep(Duration::from_millis(50));
        }
        panic!("{query} has no result");
    }
}

/// A request whose response is not chunked.
fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")
}

#[test]
fn a_real_prometheus_scrapes_a_node() {
    let server = Server::new();
    let Some(prometheus) = Prometheus::start(server.api) else {
        return eprintln!("skipped: prometheus is not installed");
    };
    let _device = server.device("/echo");
    let up = prometheus.query("up%7Bjob=%22gridcast%22%7D%20==%201");
    assert_eq!(up[0]["metric"]["instance"], server.api.to_string());
    let clients = prometheus.query("sum(gridcast_clients_open)%20==%201");
    assert_eq!(clients[0]["value"][1], "1");
    let build = prometheus.query("gridcast_build_info");
    assert_eq!(build[0]["metric"]["version"], env!("CARGO_PKG_VERSION"));
    prometheus.query("process_resident_memory_bytes%7Bjob=%22gridcast%22%7D%20%3E%201e6");
    prometheus.query("process_cpu_seconds_total%7Bjob=%22gridcast%22%7D%20%3E%200");
    let rules = {
        let mut http = Http::connect(prometheus.address);
        http.send(request("/api/v1/rules"));
        http.response().json()
    };
    let rules = rules["data"]["groups"][0]["rules"].as_array().cloned().unwrap_or_default();
    assert_eq!(rules.len(), alert_expressions().len());
}
