//! A peer without TLS that does only what it is told to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

/// Receive buffer of a peer in bytes, so that what it does not read soon fills the server's queue.
const RECEIVE_BUFFER: usize = 4096;

pub struct Plain {
    tcp: TcpStream,
    unsaid: Vec<u8>,
    /// All that it has read.
    pub got: Vec<u8>,
    /// The server has closed the connection.
    pub is_ended: bool,
}

impl Plain {
    pub fn connect(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        socket.connect(&address.into()).unwrap();
        let tcp = TcpStream::from(socket);
        tcp.set_nonblocking(true).unwrap();
        tcp.set_nodelay(true).unwrap();
        Self { tcp, unsaid: Vec::new(), got: Vec::new(), is_ended: false }
    }

    /// Says `bytes`, as much as the socket takes now.
    pub fn say(&mut self, bytes: &[u8]) {
        self.unsaid.extend_from_slice(bytes);
        self.write();
    }

    /// Says more of what the socket had no room for.
    pub fn write(&mut self) {
        let written = or_none(self.tcp.write(&self.unsaid));
        self.unsaid.drain(..written.unwrap_or(0));
    }

    /// Reads up to `bytes` of what is there.
    pub fn read(&mut self, bytes: usize) {
        let mut scratch = vec![0; bytes];
        match or_none(self.tcp.read(&mut scratch)) {
            Some(0) => self.is_ended = true,
            Some(count) => self.got.extend_from_slice(&scratch[..count]),
            None => {}
        }
    }
}

/// Returns the number of bytes; `None`: the call would block. A broken connection counts as ended.
fn or_none(result: io::Result<usize>) -> Option<usize> {
    match result {
        Ok(count) => Some(count),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(_) => Some(0),
    }
}
