//! The certificate and key of a TLS listener, which are read again when they are renewed, and those of
//! a node among others.

use std::path::{Path, PathBuf};

use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::definition::{Definition, section};
use super::document::{ConfigError, Section};
use super::file::PemFile;
use super::read_bounded;

section! {
    struct TlsKeys(section) {
        /// The listener's certificate, followed by the intermediate certificates.
        cert: PathBuf = PemFile, required("TLS needs one", "\"/etc/gridcast/cert.pem\"");

        /// The private key of the certificate (PKCS #8, PKCS #1 or SEC 1), not encrypted. A handshake takes
        /// much less CPU time with an ECDSA key than with an RSA key.
        key: PathBuf = PemFile, required("TLS needs one", "\"/etc/gridcast/key.pem\"");
    }
}

section! {
    struct MutualTlsKeys(section) {
        /// This node's certificate for the name `node.gridcast`, followed by the intermediate certificates.
        cert: PathBuf = PemFile, required("TLS needs one", "\"/etc/gridcast/node.pem\""), restart;

        /// The private key of the certificate.
        key: PathBuf = PemFile, required("TLS needs one", "\"/etc/gridcast/node.key\""), restart;

        /// The certificates of the authorities that issue certificates to nodes of this grid, and to nobody
        /// else.
        ca: PathBuf = PemFile, required("nodes are known by one", "\"/etc/gridcast/grid.pem\""), restart;
    }
}

/// The certificate that a listener shows, and its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// A PEM file: the certificate, then those between it and the root.
    pub cert: PathBuf,
    /// A PEM file: the private key of that certificate.
    pub key: PathBuf,
    // Where the two are written, for messages.
    cert_place: String,
    key_place: String,
}

impl TlsFiles {
    /// Reads the table `tls` of a listener's section, and the files to see that they are right.
    pub(super) fn read(listener: &Section<'_>) -> Result<Option<Self>, ConfigError> {
        let section = listener.table("tls")?;
        if !section.is_written() {
            return Ok(None);
        }
        let TlsKeys { cert, key } = TlsKeys::read_keys(&section)?;
        Self::loaded(&section, cert, key).map(Some)
    }

    pub(super) fn definition() -> Definition {
        TlsKeys::definition()
    }

    fn loaded(section: &Section<'_>, cert: PathBuf, key: PathBuf) -> Result<Self, ConfigError> {
        let (cert_place, key_place) = (section.place("cert"), section.place("key"));
        let tls = Self { cert, key, cert_place, key_place };
        tls.load()?;
        Ok(tls)
    }

    /// Reads the two files as they are now.
    ///
    /// # Errors
    /// One cannot be read, holds no certificate or key, or the key is not the certificate's.
    pub fn load(&self) -> Result<CertifiedKey, ConfigError> {
        let chain = certificates(&self.cert_place, &self.cert)?;
        let key = self.private_key().map_err(|why| fault(&self.key_place, &self.key, &why))?;
        CertifiedKey::from_der(chain, key, &default_provider()).map_err(|error| {
            let why = format!("not the key of {}: {error}", self.cert.display());
            fault(&self.key_place, &self.key, &why)
        })
    }

    /// The certificates in `cert` that are not valid at this time: a line each. None if the file cannot
    /// be read, which [`Self::load`] says.
    pub fn warnings(&self, unix_ms: u64) -> Vec<String> {
        invalid_now(&self.cert_place, &self.cert, unix_ms)
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, String> {
        let text = read_text(&self.key)?;
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| match error {
            pem::Error::NoItemsFound => "no PEM private key in it".into(),
            error => not_pem(error),
        })
    }
}

/// The certificates by which nodes of a grid know each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualTls {
    /// The certificate of this node, and its key.
    pub own: TlsFiles,
    /// A PEM file: one or more certificates of those who issue certificates of nodes.
    pub ca: PathBuf,
    ca_place: String,
}

impl MutualTls {
    /// Reads the table `tls` of the mesh's section, and the files to see that they are right.
    pub(super) fn read(mesh: &Section<'_>) -> Result<Option<Self>, ConfigError> {
        let section = mesh.table("tls")?;
        if !section.is_written() {
            return Ok(None);
        }
        let MutualTlsKeys { cert, key, ca } = MutualTlsKeys::read_keys(&section)?;
        let own = TlsFiles::loaded(&section, cert, key)?;
        let tls = Self { own, ca, ca_place: section.place("ca") };
        tls.load_authorities()?;
        Ok(Some(tls))
    }

    pub(super) fn definition() -> Definition {
        MutualTlsKeys::definition()
    }

    /// The node's certificates and those of authorities that are not valid at this time: a line each.
    pub fn warnings(&self, unix_ms: u64) -> Vec<String> {
        let own = self.own.warnings(unix_ms);
        own.into_iter().chain(invalid_now(&self.ca_place, &self.ca, unix_ms)).collect()
    }

    /// Reads the authorities' file as it is now.
    ///
    /// # Errors
    /// The file cannot be read, or contains no certificate.
    pub fn load_authorities(&self) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
        certificates(&self.ca_place, &self.ca)
    }
}

/// Reads the certificates of authorities from the file that `key` names.
pub(super) fn authorities(
    section: &Section<'_>,
    key: &str,
    file: &Path,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    certificates(&section.place(key), file)
}

fn certificates(place: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read = || {
        let text = read_text(file)?;
        let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        match all {
            Ok(all) if all.is_empty() => Err("no PEM certificate in it".into()),
            all => all.map_err(not_pem),
        }
    };
    read().map_err(|why: String| fault(place, file, &why))
}

fn invalid_now(place: &str, file: &Path, unix_ms: u64) -> Vec<String> {
    let all = certificates(place, file).unwrap_or_default();
    let invalid = all.iter().filter_map(|certificate| why_invalid(certificate, unix_ms));
    invalid.map(|why| fault(place, file, &why).to_string()).collect()
}

/// Why a certificate is not valid at this time, if it can be read and is not.
fn why_invalid(certificate: &CertificateDer<'_>, unix_ms: u64) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let validity = certificate.validity();
    let subject = certificate.subject().to_string().replace(char::is_control, " ");
    let now_s = (unix_ms / 1000) as i64;
    if validity.not_after.timestamp() < now_s {
        return Some(format!("the certificate of {subject} expired on {}", validity.not_after));
    }
    (now_s < validity.not_before.timestamp()).then(|| {
        format!("the certificate of {subject} is not valid before {}", validity.not_before)
    })
}

fn fault(place: &str, file: &Path, why: &str) -> ConfigError {
    ConfigError::new(place, format!("{}: {why}", file.display()))
}

fn read_text(file: &Path) -> Result<String, String> {
    read_bounded(file).map_err(|error| format!("cannot be read: {error}"))
}

fn not_pem(error: pem::Error) -> String {
    if matches!(error, pem::Error::MissingSectionEnd { .. }) {
        return "cut off: a PEM section in it has no end; it may be being written".into();
    }
    // The error may quote lines of the file.
    format!("not PEM: {}", error.to_string().replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::config::tests::{Folder, development, parse, refused};

    #[test]
    fn tls_needs_both_files_which_are_read() {
        let missing = "missing; TLS needs one";
        refused("[api.tls]\n", &format!("gridcast.toml:1: api.tls.cert: {missing}"));
        refused("[api.tls]\ncert = 'a'", &format!("gridcast.toml:1: api.tls.key: {missing}"));
        refused(
            "[[edge]]\n[edge.tls]\ncert = 'no/such.pem'\nkey = ''\n[[edge.route]]\npath = '/'",
            "gridcast.toml:4: edge.tls.key: expected the path of a PEM file, found \"\"",
        );
        let variables = [("GRIDCAST_API_TLS_CERT", "no/such.pem"), ("GRIDCAST_API_TLS_KEY", "x")];
        let error = development(&variables).unwrap_err().to_string();
        let place =
            "GRIDCAST_API_TLS_CERT: api.tls.cert: no/such.pem: cannot be read: No such file";
        assert!(error.starts_with(place), "{error}");
    }

    #[test]
    fn a_file_that_is_being_written_is_cut_off() {
        let folder = Folder::new();
        let (cert, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
        let pair = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["example.org".to_owned()]).unwrap();
        let pem = params.self_signed(&pair).unwrap().pem();
        fs::write(&key, pair.serialize_pem()).unwrap();
        fs::write(&cert, &pem[..pem.len() / 2]).unwrap();
        let text = format!("[api.tls]\ncert = {cert:?}\nkey = {key:?}");
        let why = "cut off: a PEM section in it has no end; it may be being written";
        refused(&text, &format!("gridcast.toml:2: api.tls.cert: {}: {why}", cert.display()));
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_is_named_with_its_place() {
        let folder = Folder::new();
        let (cert, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
        let mut params = rcgen::CertificateParams::new(["example.org".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 2, 1);
        let pair = rcgen::KeyPair::generate().unwrap();
        fs::write(&cert, params.self_signed(&pair).unwrap().pem()).unwrap();
        fs::write(&key, pair.serialize_pem()).unwrap();
        let tls = format!("cert = {cert:?}\nkey = {key:?}\n");
        let route = "[[edge.route]]\npath = '/'\n";
        let config = parse(&format!("[api.tls]\n{tls}[[edge]]\n[edge.tls]\n{tls}{route}"));
        let at = |unix_s: u64| config.warnings(unix_s * 1000);
        // 2026-01-15.
        assert_eq!(at(1_768_435_200), Vec::<String>::new());
        for (unix_s, what) in [
            (1_767_139_200, " is not valid before Jan  1 "),
            (1_770_076_800, " expired on Feb  1 "),
        ] {
            let [api, edge] = &at(unix_s)[..] else { panic!("{:?}", at(unix_s)) };
            let start =
                format!("gridcast.toml:2: api.tls.cert: {}: the certificate of ", cert.display());
            assert!(api.starts_with(&start) && api.contains(what), "{api}");
            assert!(edge.starts_with("gridcast.toml:6: edge.tls.cert: "), "{edge}");
        }
    }
}
