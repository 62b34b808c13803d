//! Listening sockets: one per shard on the same address. The kernel distributes new connections between
//! them (SO_REUSEPORT). `unix.rs`: Unix sockets.

mod unix;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::identity::TlsContext;
use crate::address::listen::ListenAddress;
pub use unix::SocketFile;

/// The most connections that may wait to be accepted, per shard. The kernel reduces this to
/// `net.core.somaxconn`.
pub const BACKLOG: i32 = 4096;

/// How long the kernel waits for the first bytes of a connection before it hands the connection over, in
/// seconds (TCP_DEFER_ACCEPT). The kernel rounds this up to the time of a SYN-ACK retransmission, so 1
/// is the minimum. `limits.handshake_ms` starts afterwards.
const SILENCE_S: libc::c_int = 1;

/// An address with one listening socket for each shard.
#[derive(Debug)]
pub struct Listening {
    /// The bound address. Its port is the actual one, even if port 0 was requested.
    pub address: ListenAddress,
    /// The file of a Unix socket, which is to be kept as long as the node listens.
    pub file: Option<SocketFile>,
    /// One socket for each shard.
    pub sockets: Vec<Socket>,
    /// The TLS configuration. `None`: plain TCP.
    pub tls: Option<TlsContext>,
}

impl Listening {
    /// Returns the same sockets once more, without the file of a Unix socket.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            address: self.address.clone(),
            file: None,
            sockets: self.sockets.iter().map(Socket::try_clone).collect::<Result<_, _>>()?,
            tls: self.tls.clone(),
        })
    }
}

/// Listens on an address with one socket for each shard. The kernel closes a connection whose peer
/// acknowledges no data for `peer_timeout`, even while the connection is not read from.
///
/// # Errors
/// The address does not belong to this machine, or is in use, also by another gridcast.
pub fn bind(
    address: &ListenAddress,
    shards: usize,
    tls: Option<TlsContext>,
    peer_timeout: Duration,
) -> io::Result<Listening> {
    let address = match address {
        ListenAddress::Tcp(address) => *address,
        ListenAddress::Unix(path) => {
            let (file, sockets) = unix::listen(path, shards)?;
            return Ok(Listening { address: address.clone(), file: Some(file), sockets, tls });
        }
    };
    if address.port() != 0 {
        // With SO_REUSEPORT another process of the same user could share the port, and each would get
        // some of the connections. A bind without it checks first that the port is free.
        socket(address)?.bind(&address.into())?;
    }
    let first = listen(address, peer_timeout)?;
    let address = first.local_addr()?.as_socket().expect("the socket was bound to an IP address");
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(listen(address, peer_timeout)?);
    }
    Ok(Listening { address: address.into(), file: None, sockets, tls })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not prevent the bind.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn listen(address: SocketAddr, peer_timeout: Duration) -> io::Result<Socket> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit both options. Frames are sent as soon as they are written.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(peer_timeout))?;
    socket.bind(&address.into())?;
    defer_accept(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Makes the kernel hand over connections when their first bytes have arrived, which saves a turn for
/// each: peers always speak first. A silent connection is handed over after [`SILENCE_S`].
#[allow(unsafe_code)]
fn defer_accept(socket: &Socket) -> io::Result<()> {
    let (fd, silence_s) = (socket.as_raw_fd(), SILENCE_S);
    let (value, length) = ((&raw const silence_s).cast(), size_of_val(&silence_s) as u32);
    // SAFETY: the descriptor is open, and `length` is the size of the value.
    let result =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns this machine's address on the route to `beyond`. Nothing is sent, so the target need not
/// exist.
///
/// # Errors
/// There is no route to `beyond`.
pub fn route_out(beyond: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match beyond {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(beyond)?;
    Ok(socket.local_addr()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER_TIMEOUT: Duration = Duration::from_secs(60);

    #[test]
    fn every_shard_listens_on_the_port_that_the_first_was_given() {
        let listening = bind(&"127.0.0.1:0".parse().unwrap(), 3, None, PEER_TIMEOUT).unwrap();
        assert_ne!(listening.address.port(), 0);
        assert_eq!(listening.sockets.len(), 3);
        for socket in &listening.sockets {
            let local = socket.local_addr().unwrap().as_socket();
            assert_eq!(local, listening.address.tcp());
        }
    }

    #[test]
    fn the_route_to_loopback_is_loopback() {
        assert!(route_out("127.0.0.1:9".parse().unwrap()).unwrap().is_loopback());
    }

    #[test]
    fn a_port_that_another_shares_willingly_is_still_in_use() {
        let listening = bind(&"127.0.0.1:0".parse().unwrap(), 1, None, PEER_TIMEOUT).unwrap();
        let error = bind(&listening.address, 1, None, PEER_TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
