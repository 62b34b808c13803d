//! The server: reads what has arrived, then starts all sends, then submits.

use std::collections::HashMap;
use std::io;
use std::mem;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use nix::sys::socket::{Shutdown, shutdown};
use rustls::ServerConfig;

use crate::connection::{Connection, Role};
use crate::frame::{CLOSE, put_frame, take_frame};
use crate::request::{Request, take_request};
use crate::ring::{Completion, Ring};
use crate::session::{Broken, HANDSHAKE, Session};

/// A text frame that answers a message.
const ANSWER: &[u8] = b"\x81\x02{}";

/// The first byte of a text frame.
const TEXT: u8 = 0x81;

const PUBLISHED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";

/// The subscribers of a channel, and its frames of this turn.
#[derive(Default)]
struct Channel {
    subscribers: Vec<u32>,
    frames: Vec<u8>,
}

pub struct Server {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    ring: Ring,
    connections: Vec<Option<Connection>>,
    free: Vec<u32>,
    channels: Vec<Channel>,
    names: HashMap<String, usize>,
    // Channels and connections with output of this turn.
    published: Vec<usize>,
    with_output: Vec<u32>,
}

impl Server {
    /// Serves plain clients and, with `tls`, those that begin a session.
    ///
    /// # Errors
    /// The system has no io_uring.
    pub fn new(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        Ok(Self {
            listener,
            tls,
            ring: Ring::new()?,
            connections: Vec::new(),
            free: Vec::new(),
            channels: Vec::new(),
            names: HashMap::new(),
            published: Vec::new(),
            with_output: Vec::new(),
        })
    }

    /// Serves without end.
    ///
    /// # Errors
    /// The ring failed.
    pub fn serve(mut self) -> io::Result<()> {
        self.ring.accept(&self.listener)?;
        let mut completed = Vec::new();
        loop {
            self.ring.turn(&mut completed)?;
            for completion in completed.drain(..) {
                self.handle(completion)?;
            }
            self.fan_out();
            self.send()?;
        }
    }

    fn handle(&mut self, completion: Completion) -> io::Result<()> {
        match completion {
            Completion::Accepted(socket) => {
                let index = self.free.pop().unwrap_or_else(|| {
                    self.connections.push(None);
                    self.connections.len() as u32 - 1
                });
                self.ring.receive(index, socket.as_fd())?;
                self.connections[index as usize] = Some(Connection::new(socket));
            }
            Completion::Received { index, buffer, is_over } => {
                let input = self.ring.bytes(&buffer);
                // Taken out, so that the connection and the rest of the server can be borrowed together.
                let mut connection = self.connections[index as usize].take().expect("it receives");
                let mut tables = Tables {
                    channels: &mut self.channels,
                    names: &mut self.names,
                    published: &mut self.published,
                };
                begin_session(self.tls.as_ref(), &mut connection, input);
                if tables.open(index, &mut connection, input).is_err() {
                    break_off(&mut connection);
                }
                if connection.has_own_output() && !connection.has_output {
                    connection.has_output = true;
                    self.with_output.push(index);
                }
                self.ring.give_back(buffer);
                if is_over {
                    self.ring.receive(index, connection.socket.as_fd())?;
                }
                self.connections[index as usize] = Some(connection);
            }
            Completion::Starved(index) => {
                let connection = find(&mut self.connections, index);
                self.ring.receive(index, connection.socket.as_fd())?;
            }
            Completion::Ended(index) => {
                let connection = find(&mut self.connections, index);
                (connection.is_receiving, connection.is_broken) = (false, true);
                self.close_if_over(index);
            }
            Completion::Sent(index, written) => self.sent(index, written)?,
        }
        Ok(())
    }

    /// Queues the frames of this turn for the subscribers of their channels.
    fn fan_out(&mut self) {
        for channel in self.published.drain(..) {
            let channel = &mut self.channels[channel];
            let frames: Arc<[u8]> = mem::take(&mut channel.frames).into();
            for &index in &channel.subscribers {
                let connection = find(&mut self.connections, index);
                connection.queue.push_back(Arc::clone(&frames));
                if !connection.has_output {
                    connection.has_output = true;
                    self.with_output.push(index);
                }
            }
        }
    }

    /// Starts a send for each connection with output.
    fn send(&mut self) -> io::Result<()> {
        for index in self.with_output.drain(..) {
            let Some(connection) = &mut self.connections[index as usize] else { continue };
            connection.has_output = false;
            if !connection.own.is_empty() {
                connection.queue.push_back(mem::take(&mut connection.own).into());
            }
            if connection.sending.is_none() {
                send_next(&mut self.ring, index, connection)?;
            }
        }
        Ok(())
    }

    fn sent(&mut self, index: u32, written: Option<usize>) -> io::Result<()> {
        let connection = find(&mut self.connections, index);
        let Some((data, start)) = connection.sending.take() else { return Ok(()) };
        match written {
            Some(bytes) if start + bytes < data.len() => {
                return send_from(&mut self.ring, index, connection, data, start + bytes);
            }
            Some(_) => send_next(&mut self.ring, index, connection)?,
            None => break_off(connection),
        }
        self.close_if_over(index);
        Ok(())
    }

    fn close_if_over(&mut self, index: u32) {
        let connection = find(&mut self.connections, index);
        if !connection.is_over() {
            return;
        }
        if let Role::Subscriber { channel, place } = connection.role {
            let subscribers = &mut self.channels[channel].subscribers;
            subscribers.swap_remove(place);
            if let Some(&moved) = subscribers.get(place) {
                find(&mut self.connections, moved).role = Role::Subscriber { channel, place };
            }
        }
        self.connections[index as usize] = None;
        self.free.push(index);
    }
}

/// The connection that a completion names. It is kept until all its requests are complete.
fn find(connections: &mut [Option<Connection>], index: u32) -> &mut Connection {
    connections[index as usize].as_mut().expect("a connection with a request in progress")
}

/// Begins the TLS session of a client whose first bytes are those of a handshake.
fn begin_session(tls: Option<&Arc<ServerConfig>>, connection: &mut Connection, input: &[u8]) {
    let is_new = connection.role == Role::Http && connection.input.is_empty();
    if let Some(config) = tls
        && is_new
        && connection.session.is_none()
        && input.first() == Some(&HANDSHAKE)
        && let Ok(session) = Session::new(Arc::clone(config))
    {
        connection.session = Some(Box::new(session));
    }
}

/// Marks a connection as broken, and ends its receive.
fn break_off(connection: &mut Connection) {
    connection.is_broken = true;
    let _ = shutdown(connection.socket.as_raw_fd(), Shutdown::Both);
}

/// Sends what is first in the queue, if the connection works.
fn send_next(ring: &mut Ring, index: u32, connection: &mut Connection) -> io::Result<()> {
    match connection.next_data() {
        Ok(Some(data)) if !connection.is_broken => send_from(ring, index, connection, data, 0),
        Ok(_) => Ok(()),
        Err(Broken) => {
            break_off(connection);
            Ok(())
        }
    }
}

fn send_from(
    ring: &mut Ring,
    index: u32,
    connection: &mut Connection,
    data: Arc<[u8]>,
    start: usize,
) -> io::Result<()> {
    connection.sending = Some((Arc::clone(&data), start));
    ring.send(index, connection.socket.as_fd(), data, start)
}

/// What reading a connection's input may change beside the connection.
struct Tables<'a> {
    channels: &'a mut Vec<Channel>,
    names: &'a mut HashMap<String, usize>,
    published: &'a mut Vec<usize>,
}

impl Tables<'_> {
    /// Decrypts what was received, if there is a session, and reads it.
    ///
    /// # Errors
    /// The peer breaks the protocol of TLS.
    fn open(
        &mut self,
        index: u32,
        connection: &mut Connection,
        received: &mut [u8],
    ) -> Result<(), Broken> {
        let Some(session) = &mut connection.session else {
            self.read(index, connection, received);
            return Ok(());
        };
        let mut plaintext = Vec::new();
        session.open(received, &mut plaintext)?;
        self.read(index, connection, &mut plaintext);
        Ok(())
    }

    /// Reads all that is complete of the connection's input, and keeps the rest.
    fn read(&mut self, index: u32, connection: &mut Connection, received: &mut [u8]) {
        if connection.input.is_empty() {
            let read = self.read_complete(index, connection, received);
            connection.input.extend_from_slice(&received[read..]);
        } else {
            let mut input = mem::take(&mut connection.input);
            input.extend_from_slice(received);
            let read = self.read_complete(index, connection, &mut input);
            input.drain(..read);
            connection.input = input;
        }
    }

    /// Returns how many bytes are read.
    fn read_complete(
        &mut self,
        index: u32,
        connection: &mut Connection,
        input: &mut [u8],
    ) -> usize {
        let mut read = 0;
        while read < input.len() {
            let rest = &mut input[read..];
            if connection.role == Role::Http {
                match take_request(rest) {
                    Ok(Some(request)) => {
                        self.answer(index, connection, &request, &rest[request.body.clone()]);
                        read += request.body.end;
                        continue;
                    }
                    Ok(None) => break,
                    Err(_) => {
                        connection.own.extend_from_slice(NOT_FOUND);
                        return input.len();
                    }
                }
            }
            let Some(frame) = take_frame(rest) else { break };
            let payload = &rest[frame.payload.clone()];
            match connection.role {
                _ if frame.first == CLOSE => put_frame(&mut connection.own, CLOSE, payload),
                Role::Publisher { channel, is_answered } => {
                    self.publish(channel, frame.first, payload);
                    if is_answered {
                        connection.own.extend_from_slice(ANSWER);
                    }
                }
                Role::Echo => put_frame(&mut connection.own, frame.first, payload),
                Role::Http | Role::Subscriber { .. } => {}
            }
            read += frame.payload.end;
        }
        read
    }

    fn answer(&mut self, index: u32, connection: &mut Connection, request: &Request, body: &[u8]) {
        let mut parts = request.path.splitn(3, '/').skip(1);
        let (kind, name) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let Some(accept) = &request.accept else {
            let answer = match kind {
                "pub" => {
                    let channel = self.channel(name);
                    self.publish(channel, TEXT, body);
                    PUBLISHED
                }
                _ => NOT_FOUND,
            };
            return connection.own.extend_from_slice(answer);
        };
        let channel = self.channel(name);
        connection.role = match kind {
            "sub" => {
                let subscribers = &mut self.channels[channel].subscribers;
                subscribers.push(index);
                Role::Subscriber { channel, place: subscribers.len() - 1 }
            }
            "pub" | "in" => Role::Publisher { channel, is_answered: kind == "pub" },
            _ => Role::Echo,
        };
        let head =
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
        let answer = format!("{head}Sec-WebSocket-Accept: {accept}\r\n\r\n");
        connection.own.extend_from_slice(answer.as_bytes());
    }

    fn channel(&mut self, name: &str) -> usize {
        if let Some(&channel) = self.names.get(name) {
            return channel;
        }
        self.channels.push(Channel::default());
        self.names.insert(name.to_owned(), self.channels.len() - 1);
        self.channels.len() - 1
    }

    fn publish(&mut self, channel: usize, first: u8, payload: &[u8]) {
        let frames = &mut self.channels[channel].frames;
        if frames.is_empty() {
            self.published.push(channel);
        }
        put_frame(frames, first, payload);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::thread;

    use rustls::crypto::ring::default_provider;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

    use super::*;
    use crate::session::config_of;

    fn open(address: SocketAddr, path: &str) -> TcpStream {
        upgrade(TcpStream::connect(address).expect("it listens"), path)
    }

    fn upgrade<S: Read + Write>(mut stream: S, path: &str) -> S {
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .expect("it is open");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(0);
            let end = head.len() - 1;
            stream.read_exact(&mut head[end..]).expect("an answer");
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "));
        stream
    }

    fn expect(stream: &mut impl Read, bytes: &[u8]) {
        let mut read = vec![0; bytes.len()];
        stream.read_exact(&mut read).expect("it is open");
        assert_eq!(read, bytes);
    }

    /// Starts a server. Returns `None` without io_uring.
    fn started(tls: Option<Arc<ServerConfig>>) -> Option<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (tell, told) = std::sync::mpsc::channel();
        thread::spawn(move || match Server::new(listener, tls) {
            Ok(server) => {
                tell.send(None).expect("the test waits");
                server.serve()
            }
            Err(error) => {
                tell.send(Some(error)).expect("the test waits");
                Ok(())
            }
        });
        if let Some(error) = told.recv().expect("the thread tells") {
            eprintln!("skipped: no io_uring here: {error}");
            return None;
        }
        Some(address)
    }

    #[test]
    fn clients_over_tls_and_without_share_channels() {
        let name = "localhost".to_owned();
        let made = rcgen::generate_simple_self_signed([name.clone()]).expect("a certificate");
        let certificate = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let tls = config_of(certificate.clone(), key).expect("they fit");
        let Some(address) = started(Some(tls)) else { return };
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("it is a certificate");
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3 is there")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(name).expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let stream = TcpStream::connect(address).expect("it listens");
        let mut over_tls = upgrade(StreamOwned::new(session, stream), "/sub/a");
        let mut plain = open(address, "/sub/a");
        let mut publisher = open(address, "/pub/a");
        let masked = [0x81, 0x82, 1, 1, 1, 1, b'h' ^ 1, b'i' ^ 1];
        publisher.write_all(&masked).expect("it is open");
        expect(&mut publisher, ANSWER);
        expect(&mut over_tls, b"\x81\x02hi");
        expect(&mut plain, b"\x81\x02hi");
    }

    #[test]
    fn a_message_reaches_every_subscriber_and_is_answered() {
        let Some(address) = started(None) else { return };
        let mut subscribers = ["/sub/a", "/sub/a", "/sub/b"].map(|path| open(address, path));
        let mut publisher = open(address, "/pub/a");
        let masked = [0x81, 0x82, 1, 1, 1, 1, b'h' ^ 1, b'i' ^ 1];
        publisher.write_all(&masked).expect("it is open");
        expect(&mut publisher, ANSWER);
        let mut feeder = open(address, "/in/b");
        feeder.write_all(&masked).expect("it is open");
        let mut http = TcpStream::connect(address).expect("it listens");
        let post = b"POST /pub/b HTTP/1.1\r\nContent-Length: 2\r\n\r\nok";
        expect(&mut subscribers[2], b"\x81\x02hi");
        http.write_all(post).expect("it is open");
        expect(&mut http, PUBLISHED);
        expect(&mut subscribers[2], b"\x81\x02ok");
        expect(&mut subscribers[0], b"\x81\x02hi");
        expect(&mut subscribers[1], b"\x81\x02hi");
        let mut echo = open(address, "/echo");
        echo.write_all(&masked).expect("it is open");
        expect(&mut echo, b"\x81\x02hi");
    }
}
