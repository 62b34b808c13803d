//! Answers to hostile or broken peers, case by case, on both listeners of a real server. The tables in
//! `tests/README.md` are made from the same cases.

mod cases;
mod frames;
mod page;
mod strangers;
#[path = "../support/mod.rs"]
mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cases::{Case, End, Outcome, Trickle};
use support::{Http, Message, Response, Server, Socket, frame, users};

/// So low that the cases are short; `page` tells of them.
const LIMITS: &str = "[limits]\nhead_bytes = 4096\nheaders = 50\napi_message_bytes = 4096\n\
                      channels_per_client = 4";

/// Long enough for a whole request even where the machine is busy.
const IMPATIENT: &str = "[limits]\nhandshake_ms = 1000";

/// Pings are answered in this time, and messages finished.
const LIVELY: &str = "[limits]\nping_ms = 1000\nidle_ms = 2000";

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
fn a_broken_frame_closes_its_connection_with_the_code_for_it() {
    let server = Server::with(LIMITS);
    for frames::Broken { what, sent, code } in frames::broken() {
        for listener in [Listener::Api, Listener::Edge] {
            let mut socket = listener.open(&server);
            socket.send(&sent);
            let Message::Close(found, why) = socket.read() else {
                panic!("{what} on {listener:?}: another message");
            };
            assert_eq!(found, code, "{what} on {listener:?}: {why}");
            assert!(socket.try_read().is_err(), "{what} on {listener:?}: nothing follows");
        }
        answers_as_ever(&server);
    }
}

#[test]
fn who_may_not_call_is_answered_before_the_body_and_cut_off() {
    let server = Server::with(&users(&strangers::USERS));
    for strangers::Stranger { what, head, status } in strangers::strangers() {
        let mut connection = Listener::Api.connect(&server);
        connection.send(&head);
        let response = connection.response();
        assert_eq!(response.status, status, "{what}: {response:?}");
        is_closed(connection, &response, what);
    }
    answers_as_ever(&server);
}

#[test]
fn a_message_that_is_never_finished_ends_its_connection_though_pings_are_sent() {
    let server = Server::with(LIVELY);
    for listener in [Listener::Api, Listener::Edge] {
        let with_ping = [frame(0x01, b"a fragment"), frame(0x89, b"alive")].concat();
        for (begun, is_between_frames) in [
            (frame(0x01, b"a fragment"), true),
            (with_ping, true),
            (vec![0x81, 0x80 | 126, 1], false),
        ] {
            let (mut socket, mut code) = (listener.open(&server), None);
            socket.send(&begun);
            while code.is_none() {
                if is_between_frames {
                    socket.send_ping(b"alive");
                }
                match socket.read() {
                    Message::Close(found, _) => code = Some(found),
                    Message::Pong(_) => thread::sleep(TRICKLE),
                    Message::Ping(_) => {}
                    other => panic!("{listener:?}: {other:?}"),
                }
            }
            assert_eq!(code, Some(1008), "{listener:?}");
        }
    }
}

#[test]
fn the_table_in_the_readme_is_that_of_the_cases() {
    page::check(&page::render(
        &cases::sections(),
        cases::trickles(),
        &frames::broken(),
        &strangers::strangers(),
    ));
}

#[derive(Clone, Copy, Debug)]
enum Listener {
    Api,
    Edge,
}

impl Listener {
    fn outcome(self, case: &Case) -> Option<Outcome> {
        match self {
            Self::Api => case.api,
            Self::Edge => case.edge,
        }
    }

    fn connect(self, server: &Server) -> Http {
        Http::connect(match self {
            Self::Api => server.api,
            Self::Edge => server.edge,
        })
    }

    fn open(self, server: &Server) -> Socket {
        let opened = Socket::upgrade(self.connect(server), self.websocket_path(), "");
        opened.unwrap_or_else(|response| panic!("{self:?}: {response:?}"))
    }

    fn websocket_path(self) -> &'static str {
        match self {
            Self::Api => "/ws/v1",
            Self::Edge => "/ws",
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
            Self::Api => {
                connection.send(server.raw("GET", "/healthz", "", ""));
                let response = connection.response();
                assert_eq!((response.status, &*response.body), (200, "ok\n"), "{name}");
            }
            Self::Edge => {
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
