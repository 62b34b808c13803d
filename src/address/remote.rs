//! The address of a peer.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Where a connection comes from, as events and logs show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remote {
    /// An IP address. The port is unknown where a proxy tells the address alone.
    Ip(IpAddr, Option<u16>),
    /// A Unix socket of this machine. Counts as loopback.
    Unix,
}

impl Remote {
    /// Returns the IP address by which the peer is counted and judged. A Unix socket has that of
    /// loopback.
    pub fn ip(self) -> IpAddr {
        match self {
            Self::Ip(address, _) => address,
            Self::Unix => Ipv4Addr::LOCALHOST.into(),
        }
    }
}

impl From<SocketAddr> for Remote {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address.ip(), Some(address.port()))
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for Remote {
    fn from((address, port): (I, u16)) -> Self {
        Self::Ip(address.into(), Some(port))
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Ip(address, Some(port)) => SocketAddr::new(address, port).fmt(formatter),
            Self::Ip(address, None) => address.fmt(formatter),
            Self::Unix => formatter.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_is_shown_with_its_port_if_that_is_known() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let table = [
            (Remote::Ip(ip("192.0.2.1"), Some(80)), "192.0.2.1:80", "192.0.2.1"),
            (Remote::Ip(ip("2001:db8::1"), Some(80)), "[2001:db8::1]:80", "2001:db8::1"),
            (Remote::Ip(ip("192.0.2.1"), None), "192.0.2.1", "192.0.2.1"),
            (Remote::Ip(ip("2001:db8::1"), None), "2001:db8::1", "2001:db8::1"),
            (Remote::Unix, "unix", "127.0.0.1"),
        ];
        for (remote, shown, address) in table {
            assert_eq!((remote.to_string(), remote.ip()), (shown.to_owned(), ip(address)));
        }
    }
}
