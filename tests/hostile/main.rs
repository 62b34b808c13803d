//! What a hostile or broken HTTP peer gets, case by case, on both listeners of a real server. The
//! table in `tests/README.md` is made from the same cases.

mod cases;
mod page;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cases::{Case, End, Outcome, Trickle};
use support::{Http, Message, Response, Server, Socket};

/// So low that the cases are short; `page` tells of them.
const LIMITS: &str = "[limits]\nhead_bytes = 4096\nheaders = 50\napi_message_bytes = 4096";

/// Long enough for a whole request even where the machine is busy.
const IMPATIENT: &str = "[limits]\nhandshake_ms = 1000";

/// Between two bytes of a peer that sends them one by one.
const TRICKLE: Duration = Duration::from_millis(10);

#[test]
fn each_bad_request_gets_its_answer_and_the_server_goes_on() {
    let server = Server::with(LIMITS);
    for case in cases::sections().into_iter().flat_map(|section| section.cases) {
        for listener in [Listener::Api, Listener::Edge] {
            if let Some(outcome) = listener.outcome(&case) {
                listener.check(&server, &case, outcome);
                answers_as_ever(&server);
            }
        }
    }
}

#[test]
fn a_request_that_trickles_in_is_ended_in_time() {
    let server = Server::with(IMPATIENT);
    thread::scope(|scope| {
        for trickle in cases::trickles() {
            for (address, outcome) in [(server.api, trickle.api), (server.edge, trickle.edge)] {
                if let Some(outcome) = outcome {
                    scope.spawn(move || check_trickle(address, trickle, outcome));
                }
            }
        }
    });
    answers_as_ever(&server);
}

#[test]
fn the_table_in_the_readme_is_that_of_the_cases() {
    page::check(&cases::sections(), cases::trickles());
}

#[derive(Clone, Copy, Debug)]
enum Listener {
    Api,
    Edge,
}

impl Listener {
    fn outcome(self, case: &Case) -> Option<Outcome> {
        match self {
            Listener::Api => case.api,
            Listener::Edge => case.edge,
        }
    }

    fn connect(self, server: &Server) -> Http {
        Http::connect(match self {
            Listener::Api => server.api,
            Listener::Edge => server.edge,
        })
    }

    fn websocket_path(self) -> &'static str {
        match self {
            Listener::Api => "/ws/v1",
            Listener::Edge => "/ws",
        }
    }

    /// Sends the case on a connection of its own; checks the answer, and what becomes of the
    /// connection.
    fn check(self, server: &Server, case: &Case, Outcome { status, header, end }: Outcome) {
        let name = format!("{} on {self:?}", case.what);
        let mut connection = self.connect(server);
        connection.send(case.bytes(self.websocket_path()));
        let response = connection.response();
        assert_eq!(Some(response.status), status, "{name}: {response:?}");
        if let Some((field, value)) = header {
            assert_eq!(response.header(field), Some(value), "{name}");
        }
        if response.status >= 400 {
            assert!(response.json()["E"]["c"].is_u64(), "{name}: {response:?}");
        }
        match end {
            End::Closed => is_closed(connection, &response, &name),
            End::Open => self.takes_another(server, connection, &name),
            End::Switched => self.speaks_websocket(connection, &name),
        }
    }

    /// The next answer is that to the next request: nothing was left over of the one before.
    fn takes_another(self, server: &Server, mut connection: Http, name: &str) {
        match self {
            Listener::Api => {
                connection.send(server.raw("GET", "/healthz", "", ""));
                let response = connection.response();
                assert_eq!((response.status, &*response.body), (200, "ok\n"), "{name}");
            }
            Listener::Edge => {
                let upgraded = Socket::upgrade(connection, self.websocket_path(), "");
                assert!(upgraded.is_ok(), "{name}");
            }
        }
    }

    fn speaks_websocket(self, connection: Http, name: &str) {
        let mut socket = Socket::upgraded(connection);
        socket.send_ping(b"still there?");
        assert_eq!(socket.read(), Message::Pong(b"still there?".into()), "{name}");
    }
}

fn is_closed(connection: Http, response: &Response, name: &str) {
    assert_eq!(response.header("connection"), Some("close"), "{name}");
    let rest = connection.rest();
    assert!(rest.is_empty(), "{name}: answered again: {}", rest.escape_ascii());
}

/// Somebody else's good request is answered on both listeners.
fn answers_as_ever(server: &Server) {
    assert_eq!(server.get("/healthz").status, 200);
    drop(server.device("/ws"));
}

fn check_trickle(address: SocketAddr, trickle: &Trickle, outcome: Outcome) {
    let mut stream = TcpStream::connect(address).expect("the server accepts");
    stream.set_nodelay(true).expect("small segments can be sent");
    let mut connection = Http::over(stream.try_clone().expect("a second descriptor"));
    let is_answered = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let endless = trickle.endless.as_bytes().iter().cycle();
            for byte in trickle.start.as_bytes().iter().chain(endless) {
                // Once the server has closed the connection there is nobody to send to.
                if is_answered.load(Ordering::Relaxed) || stream.write_all(&[*byte]).is_err() {
                    break;
                }
                thread::sleep(TRICKLE);
            }
        });
        let status = outcome.status.map(|_| connection.response().status);
        is_answered.store(true, Ordering::Relaxed);
        assert_eq!(status, outcome.status, "{}", trickle.what);
        assert!(connection.rest().is_empty(), "{}", trickle.what);
    });
}
