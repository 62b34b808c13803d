//! An HTTP service whose every answer the test decides.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::DEADLINE;

/// A service on a port that the system selects. Each connection has a thread, so that an answer that the
/// test holds back delays no other.
pub struct Service {
    pub address: SocketAddr,
    asked: Receiver<Asked>,
}

/// A request that waits for its answer. The connection is closed if the test drops the request.
pub struct Asked {
    /// The request line and the headers.
    pub head: String,
    pub body: String,
    answer: Sender<Vec<u8>>,
}

impl Service {
    pub fn start() -> Self {
        Self::over(None)
    }

    pub fn with_tls(config: ServerConfig) -> Self {
        Self::over(Some(Arc::new(config)))
    }

    fn over(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (sender, asked) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (sender, tls) = (sender.clone(), tls.clone());
                thread::spawn(move || match tls {
                    None => serve(stream, &sender),
                    Some(tls) => {
                        let session = ServerConnection::new(tls).expect("the settings are right");
                        serve(StreamOwned::new(session, stream), &sender);
                    }
                });
            }
        });
        Self { address, asked }
    }

    /// Waits for the next request.
    #[track_caller]
    pub fn next(&self) -> Asked {
        self.asked.recv_timeout(DEADLINE).expect("a request comes")
    }
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub fn answer(self, status: u16, body: &str) {
        self.answer_with(status, "", body);
    }

    /// Answers with further header lines, each with its CRLF.
    pub fn answer_with(self, status: u16, headers: &str, body: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n");
        // Fails if the connection was closed meanwhile.
        let _ = self.answer.send([head.as_bytes(), body.as_bytes()].concat());
    }
}

/// Passes the requests of a connection on, and writes their answers.
fn serve(stream: impl Read + Write, sender: &Sender<Asked>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match stream.read_line(&mut head) {
                Ok(1..) => {}
                Ok(0) | Err(_) => return,
            }
        }
        let (answer, answered) = mpsc::channel();
        let mut asked = Asked { head, body: String::new(), answer };
        let length = asked.header("content-length").map_or(0, |text| text.parse().expect("digits"));
        let mut body = vec![0; length];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        asked.body = String::from_utf8(body).expect("the body is text");
        if sender.send(asked).is_err() {
            return;
        }
        let Ok(bytes) = answered.recv() else { return };
        let stream = stream.get_mut();
        if stream.write_all(&bytes).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
}

/// A port that refuses connections for as long as the socket is kept: it is bound and does not listen.
pub fn refusing_port() -> (socket2::Socket, SocketAddr) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port is free");
    let address = socket.local_addr().expect("it is bound").as_socket().expect("it has a port");
    (socket, address)
}
