//! The address of a listener.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a Unix socket, in bytes (unix(7)): one less than `sun_path` has.
const PATH_BYTES_MAX: usize = 107;

/// The prefix of the path of a Unix socket, in the configuration and in messages.
const UNIX: &str = "unix:";

/// Where a listener accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// An IP address and a TCP port.
    Tcp(SocketAddr),
    /// The absolute path of a Unix socket. Only processes of this machine can connect.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Returns the IP address and port, if there is one.
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns the IP address, if there is one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.tcp().map(|address| address.ip())
    }

    /// Returns the TCP port; 0 for a Unix socket.
    pub fn port(&self) -> u16 {
        self.tcp().map_or(0, |address| address.port())
    }

    /// Whether only processes of this machine can connect.
    pub fn is_local(&self) -> bool {
        self.ip().is_none_or(|ip| ip.to_canonical().is_loopback())
    }
}

impl From<SocketAddr> for ListenAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for ListenAddress {
    fn from(address: (I, u16)) -> Self {
        Self::Tcp(address.into())
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "{UNIX}{}", path.display()),
        }
    }
}

impl FromStr for ListenAddress {
    type Err = ();

    /// Reads an IP address and port, or `unix:` and an absolute path without control characters.
    fn from_str(text: &str) -> Result<Self, ()> {
        let Some(path) = text.strip_prefix(UNIX) else {
            return text.parse().map(Self::Tcp).map_err(|_| ());
        };
        let is_path = path.starts_with('/') && !path.ends_with('/');
        let is_short = path.len() <= PATH_BYTES_MAX;
        let is_plain = !path.contains(char::is_control);
        (is_path && is_short && is_plain).then(|| Self::Unix(path.into())).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_has_a_tcp_address_or_a_path() {
        let tcp: ListenAddress = "127.0.0.1:80".parse().expect("an address");
        assert_eq!(
            (tcp.port(), tcp.is_local(), tcp.to_string()),
            (80, true, "127.0.0.1:80".into())
        );
        let unix: ListenAddress = "unix:/run/a b".parse().expect("a path");
        assert_eq!(unix, ListenAddress::Unix("/run/a b".into()));
        assert_eq!(
            (unix.port(), unix.is_local(), unix.to_string()),
            (0, true, "unix:/run/a b".into())
        );
        assert!(!"0.0.0.0:80".parse::<ListenAddress>().expect("an address").is_local());
        let long = format!("unix:/{}", "x".repeat(PATH_BYTES_MAX));
        for bad in ["/run/a", "unix:run/a", "unix:", "unix:/", "unix:/a\0b", &long, "127.0.0.1"] {
            assert_eq!(bad.parse::<ListenAddress>(), Err(()), "{bad:?}");
        }
        assert!(long[..long.len() - 1].parse::<ListenAddress>().is_ok());
    }
}
