//! Signs requests to a back end, so that the back end knows which node they are from.

use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

use hmac::{Hmac, Mac};
use sha2::Sha256;

/// The header that carries the signature.
pub const SIGNATURE_HEADER: &str = "gridcast-signature";

/// A secret that the node shares with a back end.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SigningSecret(Arc<str>);

impl SigningSecret {
    /// Creates a secret.
    pub fn new(secret: &str) -> Self {
        Self(secret.into())
    }

    /// Returns the value of the header for a request with this body that is sent at this time:
    /// `t=UNIX_SECONDS,v1=HEX`, where `HEX` is the HMAC-SHA256 of `UNIX_SECONDS.BODY`.
    pub fn sign(&self, unix_s: u64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.0.as_bytes())
            .expect("HMAC takes keys of any length");
        mac.update(format!("{unix_s}.").as_bytes());
        mac.update(body);
        let mut header = format!("t={unix_s},v1=");
        for byte in mac.finalize().into_bytes() {
            write!(header, "{byte:02x}").expect("a string takes all that is written");
        }
        header
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SigningSecret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_another_implementation() {
        // printf '1700000000.{"path":"/ws"}' | openssl dgst -sha256 -hmac secret
        let expected =
            "t=1700000000,v1=270dbf139e5935d7e65a7419d96e1d2477a2d44187e151e6137e90e47cb79459";
        let secret = SigningSecret::new("secret");
        assert_eq!(secret.sign(1_700_000_000, br#"{"path":"/ws"}"#), expected);
        assert!(!format!("{secret:?}").contains("secret"));
    }
}
