//! The TLS session of a connection.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

/// The first byte of a TLS handshake, which no request of HTTP begins with.
pub const HANDSHAKE: u8 = 0x16;

/// The session cannot go on.
#[derive(Debug)]
pub struct Broken;

/// The session of one client.
pub struct Session(ServerConnection);

/// Reads a certificate and its key from files in PEM. The sessions are TLS 1.3, without tickets.
///
/// # Errors
/// A file cannot be read, or the key is not that of the certificate.
pub fn config(certificate: &Path, key: &Path) -> io::Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
    config_of(certificate, key).map_err(io::Error::other)
}

/// Returns a configuration of TLS 1.3 without tickets.
///
/// # Errors
/// The key is not that of the certificate.
pub fn config_of(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

impl Session {
    pub fn new(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        let mut session = ServerConnection::new(config)?;
        // What is written is sealed at once.
        session.set_buffer_limit(None);
        Ok(Self(session))
    }

    /// Decrypts received bytes and appends the result to `plaintext`.
    ///
    /// # Errors
    /// The peer breaks the protocol.
    pub fn open(&mut self, mut received: &[u8], plaintext: &mut Vec<u8>) -> Result<(), Broken> {
        while !received.is_empty() {
            if self.0.read_tls(&mut received).is_err() {
                return Err(Broken);
            }
            self.0.process_new_packets().map_err(|_| Broken)?;
            match self.0.reader().read_to_end(plaintext) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(Broken),
            }
        }
        Ok(())
    }

    /// Whether the session has messages of its own to send.
    pub fn has_output(&self) -> bool {
        self.0.wants_write()
    }

    /// Encrypts data. Returns it with the messages of the session itself, or `None` if there is nothing to send.
    ///
    /// # Errors
    /// The session is closed.
    pub fn seal(
        &mut self,
        data: impl Iterator<Item = Arc<[u8]>>,
    ) -> Result<Option<Arc<[u8]>>, Broken> {
        for data in data {
            self.0.writer().write_all(&data).map_err(|_| Broken)?;
        }
        let mut sealed = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut sealed).map_err(|_| Broken)?;
        }
        Ok((!sealed.is_empty()).then(|| sealed.into()))
    }
}
