//! `docs/reference/openapi.json` and `asyncapi.json` against the code and a real node: the same
//! paths, methods, functions, codes and fields in both directions, and answers of the described form.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod schema;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use gridcast::protocol::api::Code;
use schema::Document;
use serde_json::{Value, json};
use support::{Server, Socket, assert_error, http};

fn open_api() -> Document {
    Document::read("docs/reference/openapi.json")
}

fn async_api() -> Document {
    Document::read("docs/reference/asyncapi.json")
}

/// Reads the code of a folder without its tests and what only they use.
fn source(folder: &Path) -> String {
    let is_of_tests =
        |path: &Path| ["tests", "tests.rs", "fixture.rs"].iter().any(|name| path.ends_with(name));
    let mut code = String::new();
    for entry in fs::read_dir(folder).expect("the folder is there") {
        let path = entry.expect("the folder can be read").path();
        if is_of_tests(&path) {
            continue;
        }
        if path.is_dir() {
            code.push_str(&source(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = fs::read_to_string(path).expect("the source can be read");
            code.push_str(text.split("\n#[cfg(test)]\nmod tests").next().unwrap_or_default());
        }
    }
    code
}

fn layer(name: &str) -> String {
    source(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name))
}

/// The strings of a source file.
fn strings(code: &str) -> impl Iterator<Item = &str> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| line.split('"').skip(1).step_by(2))
}

fn texts(list: &Value) -> BTreeSet<String> {
    let items = list.as_array().expect("a list").iter();
    items.map(|item| item.as_str().expect("a string").to_owned()).collect()
}

#[test]
fn the_paths_of_the_code_are_those_of_the_document() {
    let code = layer("shard");
    let is_path = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '/';
    let known = strings(&code).filter(|text| text.starts_with('/') && text.chars().all(is_path));
    let known: BTreeSet<String> = known.map(str::to_owned).collect();
    let document = open_api();
    let described = document.at("/paths").as_object().expect("an object").keys();
    assert_eq!(known, described.cloned().collect());
}

#[test]
fn a_path_takes_the_methods_of_the_document_and_no_other() {
    let server = Server::new();
    let document = open_api();
    for (path, item) in document.at("/paths").as_object().expect("an object") {
        let allowed = texts_of_keys(item);
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
                server.api
            );
            let response = http(server.api, request);
            let is_allowed = allowed.contains(&method.to_lowercase());
            assert_eq!(response.status != 405, is_allowed, "{method} {path}: {response:?}");
            assert_ne!(response.status, 404, "{method} {path}");
            if !is_allowed {
                let named = response.header("allow").expect("405 names the right methods");
                let named: Vec<_> = named.split(", ").map(str::to_lowercase).collect();
                assert!(allowed.iter().all(|method| named.contains(method)), "{path}: {named:?}");
            }
        }
    }
}

fn texts_of_keys(item: &Value) -> BTreeSet<String> {
    item.as_object().expect("an object").keys().cloned().collect()
}

/// Returns the names that a message of the API lists after "known are".
fn known_names(message: &str) -> BTreeSet<String> {
    let (_, list) = message.split_once("known are ").expect("the message lists them");
    list.split(", ").map(str::to_owned).collect()
}

#[test]
fn the_methods_and_functions_of_the_code_are_those_of_the_documents() {
    let server = Server::new();
    let mut back_end = server.backend();
    let answer = back_end.call(r#"{"m":"x","p":{},"i":1}"#);
    let methods = known_names(assert_error(&answer, 101, Some("1")));
    let document = async_api();
    let described = texts_of_keys(document.at("/operations"));
    let described = described.into_iter().filter(|name| name.contains('.'));
    assert_eq!(methods, described.collect());
    let answer = back_end.call(r#"{"m":"conn.call","p":{"c":"1","f":"x"},"i":1}"#);
    let functions = known_names(assert_error(&answer, 101, Some("1")));
    for document in [open_api(), async_api()] {
        let described = document.at("/components/schemas/Call/properties/f/enum");
        assert_eq!(functions, texts(described));
    }
    for (path, item) in open_api().at("/paths").as_object().expect("an object") {
        if let Some(call) = item.get("post") {
            let method = call["operationId"].as_str().expect("a name");
            assert!(methods.contains(method) || method == "queue.take", "{method}");
            assert_eq!(*path, format!("/v1/{}", method.replace('.', "/")));
        }
    }
}

#[test]
fn the_codes_of_the_code_are_those_of_the_documents() {
    let codes: Vec<Value> =
        (0..1000).filter_map(Code::from_number).map(|code| json!(code.number())).collect();
    for document in [open_api(), async_api()] {
        assert_eq!(*document.at("/components/schemas/Error/properties/c/enum"), json!(codes));
    }
}

#[test]
fn both_documents_say_the_same_of_what_they_share() {
    let (open, r#async) = (open_api(), async_api());
    let schemas = |document: &Document| {
        document.at("/components/schemas").as_object().expect("an object").clone()
    };
    let (open, r#async) = (schemas(&open), schemas(&r#async));
    let shared: Vec<_> = open.keys().filter(|name| r#async.contains_key(*name)).collect();
    assert!(shared.len() > 10, "{shared:?}");
    // Over WebSocket a failure carries the id of its request.
    for name in shared.into_iter().filter(|name| *name != "Failure") {
        assert_eq!(open[name], r#async[name], "{name}");
    }
}

/// The schemas of parameters, by method.
const PARAMS: [(&str, &str); 16] = [
    ("mesh.send", "Send"),
    ("mesh.publish", "Publish"),
    ("conn.call", "Call"),
    ("user.send", "UserSend"),
    ("user.call", "UserCall"),
    ("user.info", "UserInfo"),
    ("channel.members", "MembersFilter"),
    ("channel.info", "ChannelInfo"),
    ("queue.pop", "Pop/oneOf/0"),
    ("queue.ack", "Ack"),
    ("queue.nack", "Nack"),
    ("queue.push", "Push"),
    ("client.list", "ClientFilter"),
    ("channel.list", "ChannelFilter"),
    ("topic.list", "TopicFilter"),
    ("backend.list", "BackendFilter"),
];

#[test]
fn the_fields_of_the_code_are_those_of_the_documents() {
    let code = layer("protocol/api");
    let after = |start: &str| {
        let parts: Vec<String> = code.split(start).skip(1).map(str::to_owned).collect();
        parts.into_iter().filter_map(|rest| Some(rest.split('"').next()?.to_owned()))
    };
    let known = after("required(params, \"").chain(after("optional(params, \""));
    let known: BTreeSet<String> = known.chain(after("p.field(\"")).collect();
    let document = async_api();
    // Its fields exclude each other: see the tests of `protocol::api::tap`.
    let tap = ("tap.start", "Tap");
    let described = PARAMS.iter().chain([&tap]).flat_map(|(_, schema)| {
        texts_of_keys(document.at(&format!("/components/schemas/{schema}/properties")))
    });
    let of_devices =
        ["DevicePush", "Subscribe", "Unsubscribe", "Token"].into_iter().flat_map(|schema| {
            texts_of_keys(document.at(&format!("/components/schemas/{schema}/properties")))
        });
    // Over HTTP only.
    let take = texts_of_keys(open_api().at("/components/schemas/Take/properties"));
    assert_eq!(known, described.chain(of_devices).chain(take).collect());
}

#[test]
fn the_methods_of_devices_are_those_of_the_document() {
    let server = Server::new();
    let offer = "Sec-WebSocket-Protocol: gridcast.v1\r\n";
    let mut device = Socket::connect(server.edge, "/ws", offer).expect("it is granted");
    let answer = device.call(r#"{"m":"x","p":{},"i":1}"#);
    let methods = known_names(assert_error(&answer, 101, Some("1")));
    let document = async_api();
    let operations = document.at("/operations").as_object().expect("an object");
    let of_devices = operations.iter().filter(|(name, operation)| {
        operation["channel"]["$ref"] == "#/channels/device"
            && operation["action"] == "receive"
            && *name != "devicePing"
    });
    assert_eq!(methods, of_devices.map(|(name, _)| name.clone()).collect());
}

/// Each field is read by its method: a value of no sensible type is refused with its name, and a field
/// that has to be there is missed.
#[test]
fn a_method_reads_the_fields_that_the_documents_give_it() {
    let server = Server::new();
    let mut back_end = server.backend();
    let whole = json!({
        "mesh.send": { "c": "1", "d": "x" },
        "mesh.publish": { "c": "x", "d": "x" },
        "conn.call": { "c": "1", "f": "info" },
        "user.send": { "u": "1", "d": "x" },
        "user.call": { "u": "1", "f": "info" },
        "user.info": { "u": "x" },
        "channel.members": { "c": "x" },
        "channel.info": { "c": "x" },
        "queue.pop": { "t": ["x"], "a": true },
        "queue.ack": { "g": 1 },
        "queue.nack": { "g": 1 },
        "queue.push": { "t": "x", "d": "x" },
        "client.list": {},
        "channel.list": {},
        "topic.list": {},
        "backend.list": {},
    });
    let document = async_api();
    for (method, schema) in PARAMS {
        let schema = document.at(&format!("/components/schemas/{schema}"));
        let required = texts(&schema["required"]);
        for field in texts_of_keys(&schema["properties"]) {
            let mut params = whole[method].clone();
            params[&field] = json!({});
            let answer = back_end.ask(method, &params);
            let message = answer["E"]["m"].as_str().unwrap_or_default();
            assert!(message.starts_with(&format!("{field}: ")), "{method} {params}: {answer}");
            params.as_object_mut().expect("an object").remove(&field);
            let answer = back_end.ask(method, &params);
            let is_missed = answer["E"]["c"] == 101;
            assert_eq!(is_missed, required.contains(&field), "{method} {params}: {answer}");
            // A consumer pops once.
            back_end.ask("queue.unpop", &json!({}));
        }
    }
}

#[test]
fn the_examples_are_of_the_described_form() {
    let document = open_api();
    for (path, item) in document.at("/paths").as_object().expect("an object") {
        let Some(call) = item.get("post") else { continue };
        let bodies = [&call["requestBody"]["content"], &call["responses"]["200"]["content"]];
        for body in bodies.map(|content| &content["application/json"]) {
            assert_eq!(document.check(&body["schema"], &body["example"]), Ok(()), "{path}");
        }
    }
}

/// A client that generates values from the document sends what it allows, such as 10^36.
#[test]
fn every_integer_of_a_call_has_bounds() {
    let document = open_api();
    for (path, item) in document.at("/paths").as_object().expect("an object") {
        let body = &item["post"]["requestBody"]["content"]["application/json"]["schema"];
        for integer in document.integers(body) {
            let bounds = ["minimum", "maximum"].map(|bound| integer[bound].is_number());
            assert_eq!(bounds, [true, true], "{path}: {integer}");
        }
    }
}

#[test]
fn every_reference_leads_somewhere() {
    for document in [open_api(), async_api()] {
        document.check_references();
    }
}
