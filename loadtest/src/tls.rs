//! A certificate of the load test, for servers that are started with TLS, and clients that trust it alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::client::Resumption;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The name in the certificate.
const NAME: &str = "localhost";

/// A certificate with its key (ECDSA on P-256), and the clients that trust it.
struct Identity {
    certificate_pem: String,
    key_pem: String,
    connector: TlsConnector,
}

/// The files of the certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl TlsFiles {
    /// Writes the files into a directory.
    ///
    /// # Errors
    /// The certificate cannot be made, or the files cannot be written.
    pub fn write(directory: &Path) -> Result<Self> {
        let Identity { certificate_pem, key_pem, .. } = identity()?;
        let [certificate, key] = ["tls.pem", "tls.key"].map(|name| directory.join(name));
        fs::write(&certificate, certificate_pem)?;
        fs::write(&key, key_pem)?;
        Ok(Self { certificate, key })
    }
}

/// Does the handshake of a client: TLS 1.3, in full each time.
///
/// # Errors
/// The server does not have the certificate, or refuses.
pub async fn connect(stream: TcpStream) -> Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(NAME)?;
    identity()?.connector.connect(name, stream).await.context("a TLS handshake")
}

/// Returns the certificate, which is made on the first call.
///
/// # Errors
/// The system has no random numbers.
fn identity() -> Result<&'static Identity> {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    if let Some(identity) = IDENTITY.get() {
        return Ok(identity);
    }
    let made = Identity::new()?;
    Ok(IDENTITY.get_or_init(|| made))
}

impl Identity {
    fn new() -> Result<Self> {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([NAME.to_owned()])?;
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone())?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let connector = TlsConnector::from(Arc::new(config));
        let (certificate_pem, key_pem) = (cert.pem(), signing_key.serialize_pem());
        Ok(Self { certificate_pem, key_pem, connector })
    }
}

#[cfg(test)]
mod tests {
    use rustls::ServerConfig;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::connection::Connection;

    #[tokio::test]
    async fn a_server_with_the_files_is_trusted_and_what_is_flushed_arrives() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let TlsFiles { certificate, key } = TlsFiles::write(directory.path())?;
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(
                vec![CertificateDer::from_pem_file(certificate)?],
                PrivateKeyDer::from_pem_file(key)?,
            )?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accept = async {
            let (stream, _) = listener.accept().await?;
            Ok(TlsAcceptor::from(Arc::new(config)).accept(stream).await?)
        };
        let client = async { connect(TcpStream::connect(address).await?).await };
        let (client, mut server) = tokio::try_join!(client, accept)?;
        let mut client = Connection::of(client);
        client.outbound().extend_from_slice(b"question");
        client.flush().await?;
        let mut question = [0; 8];
        server.read_exact(&mut question).await?;
        assert_eq!(&question, b"question");
        server.write_all(b"answer").await?;
        server.flush().await?;
        while client.unread() != b"answer" {
            client.receive().await?;
        }
        Ok(())
    }
}
