//! Runs `console` and `ws` blocks against a node of their own.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::page::{Block, Page, root};
use super::support::{Message, Server, Socket};

/// The client of the examples.
const CLIENT: &str = "1463819408261513216";

/// A node, a device on it, and what the page calls them.
struct Scene {
    // Goes before the server, which would otherwise wait for it.
    device: Option<Socket>,
    // The client id of the device, once it is known.
    client: Option<String>,
    server: Server,
}

impl Scene {
    fn set(block: &Block) -> Self {
        let config = configuration(block.server.as_deref());
        let server = Server::start(&config);
        let mut scene = Self { device: None, client: None, server };
        if !config.contains("path = \"/ws\"") {
            return scene;
        }
        let mut device = scene.server.device("/ws?channels=news");
        // The first message of a client that is held belongs to the block.
        if !config.contains("hold_until") {
            let mut consumer = scene.server.consumer("messages");
            device.send_text("who am I?");
            scene.client = consumer.event()["c"].as_str().map(str::to_owned);
            consumer.done("queue.unpop", &Value::Null);
        }
        scene.device = Some(device);
        scene
    }

    /// The text with the addresses and the client of this scene.
    fn translate(&self, text: &str) -> String {
        translate(text, &self.server, self.client.as_deref())
    }

    /// A client id that was not known yet may be in an event.
    fn learn(&mut self, event: &str) {
        if self.client.is_none()
            && let Ok(event) = serde_json::from_str::<Value>(event)
        {
            self.client = event["p"]["c"].as_str().map(str::to_owned);
        }
    }

    fn device(&mut self) -> &mut Socket {
        self.device.as_mut().expect("the configuration has a route /ws")
    }
}

pub fn translate(text: &str, server: &Server, client: Option<&str>) -> String {
    let (api, edge) = (server.api.to_string(), server.edge.to_string());
    let text = text.replace("localhost:6789", &api).replace("127.0.0.1:6789", &api);
    let text = text.replace("localhost:6790", &edge).replace("127.0.0.1:6790", &edge);
    let text = text.replace("\"port\":6789", &format!("\"port\":{}", server.api.port()));
    client.map_or(text.clone(), |client| text.replace(CLIENT, client))
}

/// A configuration whose listeners take ports that the system picks; without one, the embedded one.
pub fn configuration(written: Option<&str>) -> String {
    let development = include_str!("../../src/config/development.toml");
    let development = || format!("[node]\ncores = 1\n[api]\nbind = \"\"\n{development}");
    let config = written.map_or_else(development, str::to_owned);
    let line = |line: &str| match line.starts_with("bind = ") {
        true => "bind = \"127.0.0.1:0\"\n".to_owned(),
        false => format!("{line}\n"),
    };
    config.lines().map(line).collect()
}

/// Whether a text is what a pattern says, in which `…` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('…');
    let first = parts.next().expect("even an empty text has a part");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some((_, behind)) = rest.split_once(part) else { return false };
        rest = behind;
    }
    rest.ends_with(last)
}

#[test]
fn dots_stand_for_anything() {
    assert!(matches("a…c", "abc") && matches("a…c", "ac") && matches("…", "") && matches("a", "a"));
    assert!(!matches("a…c", "abd") && !matches("a", "ab") && !matches("a…b…c", "ac"));
}

#[test]
fn commands_print_what_the_pages_say() {
    if Command::new("curl").arg("--version").output().is_err() {
        return eprintln!("skipped: curl is not installed");
    }
    for_each("console", |block| {
        let scene = Scene::set(block);
        let text = scene.translate(&block.text);
        let mut count = 0;
        for part in format!("\n{text}").split("\n$ ").skip(1) {
            let (command, expected) = part.split_once('\n').unwrap_or((part, ""));
            let output = run(command, &scene.server);
            assert!(matches(expected.trim_end(), output.trim_end()), "{command}\n{output}");
            count += 1;
        }
        assert!(count > 0, "there is no command");
    });
}

/// Runs a shell command. Returns its standard output and standard error. The commands of gridcast speak to
/// the server.
fn run(command: &str, server: &Server) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_gridcast")).parent().expect("it is in a folder");
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap_or_default());
    let command = command.replace("curl ", "curl --silent --show-error --max-time 10 ");
    let output = Command::new("bash")
        .args(["-c", &format!("exec 2>&1; {command}")])
        .current_dir(root())
        .env("PATH", path)
        .env("GRIDCAST_SERVER", format!("http://{}", server.api))
        .output()
        .expect("there is bash");
    String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n")
}

#[test]
fn transcripts_happen_as_the_pages_say() {
    for_each("ws", |block| {
        let mut scene = Scene::set(block);
        let mut back_end = scene.server.backend();
        for line in block.text.lines() {
            let (who, text) = line.split_once(' ').unwrap_or((line, ""));
            match who {
                ">" => back_end.send_text(&scene.translate(text)),
                "<" => {
                    let message = back_end.text();
                    scene.learn(&message);
                    assert!(matches(&scene.translate(text), &message), "{line}\n{message}");
                }
                "device>" => scene.device().send_text(text),
                "device<" => {
                    assert_eq!(scene.device().read(), Message::Text(text.to_owned()), "{line}");
                }
                _ => panic!("a line begins with >, <, device> or device<: {line}"),
            }
        }
    });
}

fn for_each(info: &str, run: impl Fn(&Block)) {
    let mut count = 0;
    for page in Page::all() {
        for block in page.blocks().iter().filter(|block| block.info == info) {
            eprintln!("{}:{}", page.name, block.line);
            run(block);
            count += 1;
        }
    }
    assert!(count > 0, "no page has a block {info}");
}
