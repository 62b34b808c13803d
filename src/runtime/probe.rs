//! Asks a running node on this machine whether it is healthy, for supervisors that run a command, such as
//! `HEALTHCHECK` of a container image without a shell.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, Stream,
};

use crate::address::listen::ListenAddress;

/// The longest wait for the connection, and for each part of the answer.
const WAIT_MAX: Duration = Duration::from_secs(3);

/// The beginning of a response with status 200.
const HEALTHY: &[u8] = b"HTTP/1.1 200";

/// Asks the node whose API is bound to `bind` for `/healthz`.
///
/// # Errors
/// The node cannot be reached, does not answer in time, or answers anything but 200. One line.
pub fn probe(bind: &ListenAddress, has_tls: bool) -> Result<(), String> {
    let address = match bind {
        ListenAddress::Tcp(bind) => reachable(*bind).into(),
        ListenAddress::Unix(_) => bind.clone(),
    };
    let status = ask(&address, has_tls).map_err(|error| format!("{address}: {error}"))?;
    if status == HEALTHY {
        return Ok(());
    }
    Err(format!("{address}: /healthz is answered with {:?}", String::from_utf8_lossy(&status)))
}

/// The address at which a process of this machine reaches a listener.
fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

/// Sends the request and returns as many bytes of the response as [`HEALTHY`] has.
fn ask(address: &ListenAddress, has_tls: bool) -> std::io::Result<Vec<u8>> {
    match address {
        ListenAddress::Tcp(address) => {
            let socket = TcpStream::connect_timeout(address, WAIT_MAX)?;
            socket.set_read_timeout(Some(WAIT_MAX))?;
            socket.set_write_timeout(Some(WAIT_MAX))?;
            ask_over(socket, *address, has_tls)
        }
        ListenAddress::Unix(path) => {
            let socket = UnixStream::connect(path)?;
            socket.set_read_timeout(Some(WAIT_MAX))?;
            socket.set_write_timeout(Some(WAIT_MAX))?;
            ask_over(socket, (Ipv4Addr::LOCALHOST, 0).into(), has_tls)
        }
    }
}

fn ask_over(
    mut socket: impl Read + Write,
    host: SocketAddr,
    has_tls: bool,
) -> std::io::Result<Vec<u8>> {
    if has_tls {
        let mut session = session(host).map_err(std::io::Error::other)?;
        exchange(&mut Stream::new(&mut session, &mut socket), host)
    } else {
        exchange(&mut socket, host)
    }
}

fn exchange(stream: &mut (impl Read + Write), host: SocketAddr) -> std::io::Result<Vec<u8>> {
    write!(stream, "GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    stream.flush()?;
    let mut status = vec![0; HEALTHY.len()];
    stream.read_exact(&mut status)?;
    Ok(status)
}

fn session(address: SocketAddr) -> Result<ClientConnection, Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    ClientConnection::new(Arc::new(config), ServerName::IpAddress(address.ip().into()))
}

/// Accepts every certificate. The node's certificate is for its public name, which the probe does not
/// know. The probe sends no secret and learns nothing but a status.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_unspecified_address_is_reached_over_loopback() {
        let reached = |bind: &str| reachable(bind.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:6789"), "127.0.0.1:6789");
        assert_eq!(reached("[::]:6789"), "[::1]:6789");
        assert_eq!(reached("10.0.0.5:1"), "10.0.0.5:1");
    }

    /// The result of a probe whose request is answered with `answer`, after which the connection ends.
    fn answered_with(answer: &'static [u8]) -> Result<(), String> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let mut received = 0;
            while !request[..received].ends_with(b"\r\n\r\n") {
                received += socket.read(&mut request[received..]).unwrap();
            }
            socket.write_all(answer).unwrap();
        });
        let result = probe(&address.into(), false);
        server.join().unwrap();
        result
    }

    #[test]
    fn only_status_200_is_healthy() {
        assert_eq!(answered_with(b"HTTP/1.1 200 OK\r\n\r\n"), Ok(()));
        let why = answered_with(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").unwrap_err();
        assert!(why.contains("\"HTTP/1.1 503\""), "{why}");
        assert!(answered_with(b"HTTP/1.1").is_err());
        assert!(answered_with(b"").is_err());
    }

    #[test]
    fn a_node_that_does_not_run_is_not_healthy() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let why = probe(&address.into(), false).unwrap_err();
        assert!(why.starts_with(&format!("{address}: ")), "{why}");
    }
}
