//! An HTTP service whose every answer the test decides.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::DEADLINE;

/// A service on a port that the system selects. Each connection has a thread, so that an answer that the
/// test holds back delays no other.
pub struct Service {
    pub address: SocketAddr,
    asked: Receiver<Asked>,
    // The number of connections that are open.
    connections: Arc<AtomicUsize>,
}

/// A request that waits for its answer. The connection is closed if the test drops the request.
pub struct Asked {
    /// The request line and the headers.
    pub head: String,
    pub body: String,
    answer: Sender<Answer>,
}

/// The bytes of an answer.
enum Answer {
    Whole(Vec<u8>),
    /// The chunk is repeated, after a pause each time, until the connection is closed.
    Endless {
        head: Vec<u8>,
        chunk: Vec<u8>,
        pause: Duration,
    },
}

impl Service {
    pub fn start() -> Self {
        Self::over(TcpListener::bind("127.0.0.1:0").expect("a port is free"), None)
    }

    pub fn with_tls(config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        Self::over(listener, Some(Arc::new(config)))
    }

    /// Listens on a port that [`refusing_port`] has kept until now.
    pub fn on(socket: socket2::Socket) -> Self {
        socket.listen(64).expect("it is bound");
        Self::over(socket.into(), None)
    }

    fn over(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let (sender, asked) = mpsc::channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let open = connections.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (sender, tls, open) = (sender.clone(), tls.clone(), open.clone());
                open.fetch_add(1, Ordering::Relaxed);
                thread::spawn(move || {
                    match tls {
                        None => serve(stream, &sender),
                        Some(tls) => {
                            let session = ServerConnection::new(tls);
                            let session = session.expect("the settings are right");
                            serve(StreamOwned::new(session, stream), &sender);
                        }
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        });
        Self { address, asked, connections }
    }

    /// Returns the number of connections that are open.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Whether no request has come since the last one that was taken.
    pub fn is_unasked(&self) -> bool {
        self.asked.try_recv().is_err()
    }

    /// Returns a request that has come, if there is one.
    pub fn try_next(&self) -> Option<Asked> {
        self.asked.try_recv().ok()
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
        self.answer_bytes([head.as_bytes(), body.as_bytes()].concat());
    }

    /// Answers with these bytes, whatever they are.
    pub fn answer_bytes(self, bytes: impl Into<Vec<u8>>) {
        // Fails if the connection was closed meanwhile.
        let _ = self.answer.send(Answer::Whole(bytes.into()));
    }

    /// Answers with a beginning, and a chunk that is repeated, after a pause each time, until the
    /// connection is closed.
    pub fn answer_endlessly(self, head: &str, chunk: &str, pause: Duration) {
        let (head, chunk) = (head.into(), chunk.into());
        let _ = self.answer.send(Answer::Endless { head, chunk, pause });
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
        let Ok(answer) = answered.recv() else { return };
        if put(stream.get_mut(), answer).is_err() {
            return;
        }
    }
}

fn put(stream: &mut impl Write, answer: Answer) -> io::Result<()> {
    let (bytes, repeated) = match answer {
        Answer::Whole(bytes) => (bytes, None),
        Answer::Endless { head, chunk, pause } => (head, Some((chunk, pause))),
    };
    stream.write_all(&bytes)?;
    stream.flush()?;
    let Some((chunk, pause)) = repeated else { return Ok(()) };
    loop {
        stream.write_all(&chunk)?;
        stream.flush()?;
        thread::sleep(pause);
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
