//! The page of the first minute: what the server fills in, and that a browser runs it.

mod support;

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{Server, browser, users};

/// More routes for the edge of the common configuration, and no tables that would end it.
const ROUTES: &str = r#"
[[edge.route]]
path = "/odd"
topic = "</script>"
[[edge.route]]
path = "/members"
token = { algorithm = "HS256", key = "0123456789abcdef0123456789abcdef", from = ["query"] }
"#;

/// Returns the data that the server put into the page.
fn described(server: &Server) -> Value {
    let page = server.get("/").body;
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"node\">").expect("it");
    let (text, _) = rest.split_once("</script>").expect("its end");
    serde_json::from_str(text).expect("it is JSON")
}

fn route<'a>(node: &'a Value, path: &str) -> &'a Value {
    let routes = node["routes"].as_array().expect("a list");
    routes.iter().find(|route| route["path"] == path).expect("the route")
}

#[test]
fn the_page_knows_where_the_node_listens_and_what_its_routes_do() {
    let server = Server::with(ROUTES);
    let node = described(&server);
    assert_eq!(node["port"], server.api.port());
    assert_eq!((&node["tls"], &node["users"]), (&json!(false), &json!(false)));
    let private = json!({
        "port": server.edge.port(), "tls": false, "host": "127.0.0.1", "path": "/private",
        "token": "", "echo": false, "topic": "messages2", "channels": ["user-*", "news"],
    });
    assert_eq!(route(&node, "/private"), &private);
    assert_eq!(route(&node, "/echo")["echo"], true);
    assert_eq!(route(&node, "/members")["token"], "query");
    assert_eq!(route(&node, "/odd")["topic"], "</script>");
}

#[test]
fn where_there_are_users_strangers_learn_no_topics_and_channels() {
    let server = Server::with(&users(&[("app", "password = \"secret\"")]));
    let node = described(&server);
    assert_eq!(node["users"], true);
    for route in node["routes"].as_array().expect("a list") {
        assert_eq!((route.get("topic"), route.get("channels")), (None, None), "{route}");
    }
}

#[test]
fn nothing_on_the_page_may_come_from_elsewhere_or_be_framed() {
    let page = Server::new().get("/");
    let policy = page.header("content-security-policy").expect("a policy");
    for directive in ["default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'"] {
        assert!(policy.contains(directive), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
}

/// Without a browser this is skipped with a word.
#[test]
fn a_browser_runs_the_page() {
    let Some(browser) = browser() else { return };
    let server = Server::with(ROUTES);
    let (api, edge) = (server.api, server.edge);
    let profile = tempdir();
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("http://{api}/"))
        .stderr(Stdio::null())
        .output()
        .expect("the browser starts");
    let _ = std::fs::remove_dir_all(&profile);
    let page = String::from_utf8_lossy(&output.stdout);
    // Written by the script, which the policy therefore let run.
    assert!(page.contains(&format!("curl http://{api}/v1/mesh/publish")), "{page}");
    assert!(page.contains(&format!("new WebSocket(\"ws://{edge}/ws?channels=news\")")), "{page}");
    assert!(page.contains(&format!("<option>/private on port {}, topic messages2", edge.port())));
}

fn tempdir() -> PathBuf {
    let folder = env::temp_dir().join(format!("gridcast-page-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the browser");
    folder
}
