//! Which nodes belong to the grid.
//!
//! All nodes derive the same certificate authority from the grid's key. Each node issues itself a
//! certificate, and accepts a peer that presents one, in both directions (TLS 1.3). Alternatively an
//! external authority issues certificates to nodes.
//!
//! Anybody who reaches a node's port can obtain its certificate and try keys against it offline. Against
//! that the derivation is slow, and the key should be random.

use std::fmt;
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Params, Version};
use blake2::digest::consts::U16;
use blake2::{Blake2b, Digest};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, date_time_ymd,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in the certificate of every node. The node's id is in its hello.
pub(super) const NAME: &str = "node.gridcast";

/// The ALPN protocol of links (RFC 7301), which distinguishes a node from other QUIC servers.
const PROTOCOL: &[u8] = b"gridcast-mesh";

// The same on all nodes of a grid, in all versions.
const SALT: &[u8] = b"gridcast mesh authority 1";

// OWASP's recommendation for passwords: about 20 ms, once at the start.
const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;

/// An Ed25519 key in PKCS #8 (RFC 8410, section 7), without the 32 bytes of its seed at the end.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A node's certificate, and the authorities whose certificates it accepts.
#[derive(Clone)]
pub struct NodeIdentity {
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
    provider: Arc<CryptoProvider>,
    channel_key: [u8; 16],
}

impl NodeIdentity {
    /// The identity in a grid whose nodes share this key.
    ///
    /// # Errors
    /// The derivation lacks memory, or the certificate's key lacks randomness.
    pub fn from_key(grid_key: &str) -> Result<Self, IdentityError> {
        let (authority_seed, channel_key) = secrets(grid_key)?;
        let (params, authority_key) = authority(&authority_seed)?;
        let root = params.self_signed(&authority_key).map_err(in_words)?;
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(in_words)?;
        let certificate = leaf()?.signed_by(&key, &issuer).map_err(in_words)?;
        let chain = vec![certificate.into()];
        let own = CertifiedKey::from_der(chain, key.into(), &default_provider());
        let identity = Self::from_certificates(own.map_err(in_words)?, vec![root.into()])?;
        Ok(Self { channel_key, ..identity })
    }

    /// The identity in a grid whose nodes have certificates of these authorities, for the name
    /// `node.gridcast`.
    ///
    /// # Errors
    /// Other nodes would reject the certificate, or an authority's certificate is invalid.
    pub fn from_certificates(
        own: CertifiedKey,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let provider = Arc::new(default_provider());
        let channel_key = common_key(&authorities);
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(in_words)?;
        }
        let roots = Arc::new(roots);
        let peer = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        let [leaf, between @ ..] = &own.cert[..] else { return Err(in_words("no certificate")) };
        let name = NAME.try_into().map_err(in_words)?;
        let peer = peer.build().map_err(in_words)?;
        peer.verify_server_cert(leaf, between, &name, &[], UnixTime::now())
            .map_err(|error| in_words(format!("other nodes would reject it: {error}")))?;
        Ok(Self { roots, own: Arc::new(own.into()), provider, channel_key })
    }

    /// The key of channel hashes, the same on all nodes.
    pub fn channel_key(&self) -> [u8; 16] {
        self.channel_key
    }

    /// The TLS configuration of links that this node dials.
    pub(super) fn client(&self) -> Result<ClientConfig, IdentityError> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(in_words)?
            .with_root_certificates(self.roots.clone())
            .with_client_cert_resolver(self.own.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Links are few and last long, so each has a full handshake.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    /// The TLS configuration of links that peers dial. They have to present a certificate, too.
    pub(super) fn server(&self) -> Result<ServerConfig, IdentityError> {
        let roots = self.roots.clone();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, self.provider.clone())
            .build()
            .map_err(in_words)?;
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(in_words)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.own.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        config.send_tls13_tickets = 0;
        Ok(config)
    }
}

impl fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeIdentity(…)")
    }
}

/// Why an identity cannot be made. Never contains the key.
#[derive(Debug)]
pub struct IdentityError(String);

impl fmt::Display for IdentityError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IdentityError {}

fn in_words(error: impl fmt::Display) -> IdentityError {
    IdentityError(error.to_string())
}

/// Derives the seed of the authority's key, and the key of channel hashes, from the grid's key.
fn secrets(grid_key: &str) -> Result<([u8; 32], [u8; 16]), IdentityError> {
    let (mut seed, mut channel_key) = ([0; 32], [0; 16]);
    let mut both = [0; 48];
    let params = Params::new(MEMORY_KIB, PASSES, 1, Some(both.len())).map_err(in_words)?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(grid_key.as_bytes(), SALT, &mut both).map_err(in_words)?;
    seed.copy_from_slice(&both[..32]);
    channel_key.copy_from_slice(&both[32..]);
    Ok((seed, channel_key))
}

/// A key that nodes with the same authorities share, whatever their order. It is known to whoever knows
/// the authorities' certificates, which only nodes do.
fn common_key(authorities: &[CertificateDer<'static>]) -> [u8; 16] {
    let mut key = [0; 16];
    for authority in authorities {
        let digest = Blake2b::<U16>::digest(authority);
        key.iter_mut().zip(digest).for_each(|(byte, part)| *byte ^= part);
    }
    key
}

/// The parameters of the certificate of the grid's authority, and its key.
fn authority(seed: &[u8; 32]) -> Result<(CertificateParams, KeyPair), IdentityError> {
    let pkcs8 = [&PKCS8_PREFIX[..], seed].concat();
    let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8);
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, &PKCS_ED25519).map_err(in_words)?;
    let mut params = always_valid(CertificateParams::default());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    // Each key has its own name. So the alert for another grid's certificate is that its authority is
    // unknown, not that its signature is bad.
    let name = format!("gridcast grid {}", hex(key.public_key_raw()));
    params.distinguished_name.push(DnType::CommonName, name);
    Ok((params, key))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn leaf() -> Result<CertificateParams, IdentityError> {
    let mut params = always_valid(CertificateParams::new([NAME.to_owned()]).map_err(in_words)?);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Makes a certificate valid at all times, as the grid's key is. Clocks of machines differ, some start in
/// 1970, and a node may run for years with the certificate that it made at its start.
fn always_valid(mut params: CertificateParams) -> CertificateParams {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = date_time_ymd(4096, 1, 1);
    params
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, ServerConnection};

    use super::*;

    /// A handshake in memory. Returns the first error of either side.
    fn handshake(dialling: &str, dialled: &str) -> Result<(), rustls::Error> {
        let client = NodeIdentity::from_key(dialling).unwrap().client().unwrap();
        let server = NodeIdentity::from_key(dialled).unwrap().server().unwrap();
        let name = NAME.try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            let mut bytes = Vec::new();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn nodes_with_the_same_key_trust_each_other_and_no_others() {
        handshake("0123456789abcdef", "0123456789abcdef").unwrap();
        let unknown = rustls::CertificateError::UnknownIssuer.into();
        assert_eq!(handshake("0123456789abcdef", "0123456789abcdeg"), Err(unknown));
    }

    #[test]
    fn the_authority_of_a_key_never_changes() {
        let (_, key) = authority(&secrets("0123456789abcdef").unwrap().0).unwrap();
        let public = "94628ac59ea102eb28768473be1f2fb8075e76a9995c0e42499d55e23dc31894";
        assert_eq!(hex(key.public_key_raw()), public);
    }

    #[test]
    fn a_certificate_that_other_nodes_would_not_take_is_refused_at_the_start() {
        let (params, authority_key) = authority(&[1; 32]).unwrap();
        let (other, other_key) = authority(&[2; 32]).unwrap();
        let roots = || vec![params.self_signed(&authority_key).unwrap().into()];
        let of_node = |params: &CertificateParams, key: &KeyPair, name: &str| {
            let own = KeyPair::generate_for(&PKCS_ED25519).unwrap();
            let leaf = CertificateParams::new([name.to_owned()]).unwrap();
            let chain =
                vec![leaf.signed_by(&own, &Issuer::from_params(params, key)).unwrap().into()];
            let own = CertifiedKey::from_der(chain, own.into(), &default_provider()).unwrap();
            NodeIdentity::from_certificates(own, roots())
                .map(drop)
                .map_err(|error| error.to_string())
        };
        assert_eq!(of_node(&params, &authority_key, NAME), Ok(()));
        let name = of_node(&params, &authority_key, "example.org").unwrap_err();
        assert!(name.contains("not valid for name \"node.gridcast\""), "{name}");
        let issuer = of_node(&other, &other_key, NAME).unwrap_err();
        assert!(issuer.ends_with("UnknownIssuer"), "{issuer}");
    }

    #[test]
    fn an_identity_does_not_show_its_key() {
        let identity = NodeIdentity::from_key("0123456789abcdef").unwrap();
        assert_eq!(format!("{identity:?}"), "NodeIdentity(…)");
    }
}
