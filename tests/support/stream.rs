//! The transport of a test's connection: TCP or TLS.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};

pub enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    /// A TLS session with `localhost`. The handshake takes place when the first bytes are sent.
    pub fn tls(tcp: TcpStream, config: Arc<ClientConfig>) -> Self {
        let name = "localhost".try_into().expect("a name");
        let session = ClientConnection::new(config, name).expect("the configuration is right");
        Self::Tls(Box::new(StreamOwned::new(session, tcp)))
    }

    /// Sends the first bytes of a TLS handshake without waiting for the answer.
    pub fn greet(&mut self) {
        let Self::Tls(tls) = self else { panic!("there is no session") };
        while tls.conn.wants_write() {
            tls.conn.write_tls(&mut tls.sock).expect("the server reads");
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(tcp) => tcp,
            Self::Tls(tls) => tls.get_ref(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.read(buffer),
            Self::Tls(tls) => tls.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(tcp) => tcp.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(tcp) => tcp.flush(),
            Self::Tls(tls) => tls.flush(),
        }
    }
}
