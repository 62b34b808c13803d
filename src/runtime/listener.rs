//! Listening sockets: one per shard on the same address, between which the kernel spreads new
//! connections (SO_REUSEPORT).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use super::identity::TlsContext;

/// Connections that may wait to be accepted, per shard. The kernel takes no more than
/// net.core.somaxconn.
pub const BACKLOG: i32 = 4096;

/// Seconds that the kernel keeps a connection on which nothing has come before it hands it to us
/// (TCP_DEFER_ACCEPT: rounded up to a repeated SYN-ACK, so the least is 1). Only then its
/// `limits.handshake_ms` begin.
const SILENCE_S: libc::c_int = 1;

/// An address, and one listening socket for each shard.
#[derive(Debug)]
pub struct Listening {
    /// The address; its port is real even where 0 was asked for.
    pub address: SocketAddr,
    /// As many as there are shards.
    pub sockets: Vec<Socket>,
    /// What it shows to its peers; `None`: it speaks plain TCP.
    pub tls: Option<TlsContext>,
}

/// Listens on an address for each shard, over TLS if there is something to show. A connection whose
/// peer's kernel acknowledges nothing for `peer_timeout` is gone, also if it is not read from at present.
///
/// # Errors
/// The address is not ours or is in use, be it by another gridcast.
pub fn bind(
    address: SocketAddr,
    shards: usize,
    tls: Option<TlsContext>,
    peer_timeout: Duration,
) -> io::Result<Listening> {
    if address.port() != 0 {
        // Sockets with SO_REUSEPORT would share the port with another process of the same user, and
        // each would get a part of the connections: so first see whether it is free.
        socket(address)?.bind(&address.into())?;
    }
    let first = listen(address, peer_timeout)?;
    let address = first.local_addr()?.as_socket().expect("it was bound to an IP address");
    let mut sockets = vec![first];
    for _ in 1..shards {
        sockets.push(listen(address, peer_timeout)?);
    }
    Ok(Listening { address, sockets, tls })
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run that are still winding down do not matter.
    socket.set_reuse_address(true)?;
    Ok(socket)
}

fn listen(address: SocketAddr, peer_timeout: Duration) -> io::Result<Socket> {
    let socket = socket(address)?;
    socket.set_reuse_port(true)?;
    // Accepted sockets inherit both. Frames leave when they are written.
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(peer_timeout))?;
    socket.bind(&address.into())?;
    defer_accept(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Has connections accepted when their first bytes are there, which saves a turn for each: those who
/// connect to us speak first. One that says nothing is accepted after [`SILENCE_S`].
#[allow(unsafe_code)]
fn defer_accept(socket: &Socket) -> io::Result<()> {
    let (fd, silence_s) = (socket.as_raw_fd(), SILENCE_S);
    let (value, length) = ((&raw const silence_s).cast(), size_of_val(&silence_s) as u32);
    // SAFETY: the descriptor is open, and the value is as long as is said.
    let result =
        unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// This machine's address on the route to `beyond`, which need not be there: nothing is sent.
///
/// # Errors
/// There is no such route.
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
        let listening = bind("127.0.0.1:0".parse().unwrap(), 3, None, PEER_TIMEOUT).unwrap();
        assert_ne!(listening.address.port(), 0);
        assert_eq!(listening.sockets.len(), 3);
        for socket in &listening.sockets {
            let local = socket.local_addr().unwrap().as_socket();
            assert_eq!(local, Some(listening.address));
        }
    }

    #[test]
    fn the_route_to_loopback_is_loopback() {
        assert!(route_out("127.0.0.1:9".parse().unwrap()).unwrap().is_loopback());
    }

    #[test]
    fn a_port_that_another_shares_willingly_is_still_in_use() {
        let listening = bind("127.0.0.1:0".parse().unwrap(), 1, None, PEER_TIMEOUT).unwrap();
        let error = bind(listening.address, 1, None, PEER_TIMEOUT).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
}
