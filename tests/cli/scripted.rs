//! An API whose every answer the test decides.

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use tungstenite::{Message, accept};

/// What the API does with a request.
pub enum Reply {
    /// Answers with this result, as it is written.
    Result(String),
    /// Answers with an error.
    Error(u16, &'static str),
    /// Answers with a result, and sends these events.
    Events(String, Vec<String>),
    /// Ends the connection without an answer.
    Lost,
    /// Does not answer.
    Silence,
}

/// An API on a port that the system selects.
pub struct Api {
    pub address: SocketAddr,
}

impl Api {
    /// Starts an API. `answer` gets each method with its params, whichever connection it comes on.
    pub fn start(answer: impl FnMut(&str, &Value) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let answer = Arc::new(Mutex::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answer = answer.clone();
                thread::spawn(move || {
                    let mut socket = accept(stream).expect("an upgrade comes");
                    while let Ok(message) = socket.read() {
                        let Message::Text(text) = message else { continue };
                        let request: Value = serde_json::from_str(&text).expect("JSON");
                        let method = request["m"].as_str().expect("a method");
                        let reply =
                            (answer.lock().expect("no test panics in it"))(method, &request["p"]);
                        let id = &request["i"];
                        let (answer, events) = match reply {
                            Reply::Result(r) => (ok(&r, id), Vec::new()),
                            Reply::Events(r, events) => (ok(&r, id), events),
                            Reply::Error(code, why) => {
                                let answer =
                                    format!(r#"{{"E":{{"c":{code},"m":"{why}"}},"i":{id}}}"#);
                                (answer, Vec::new())
                            }
                            Reply::Lost => return,
                            Reply::Silence => continue,
                        };
                        for text in [answer].into_iter().chain(events) {
                            // The command may have ended.
                            let _ = socket.send(Message::text(text));
                        }
                    }
                });
            }
        });
        Self { address }
    }
}

fn ok(result: &str, id: &Value) -> String {
    format!(r#"{{"E":null,"r":{result},"i":{id}}}"#)
}
