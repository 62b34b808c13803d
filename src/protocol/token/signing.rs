//! Signs tokens, so that a route can be tried without a login service.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use super::{KeySet, TokenAlgorithm, VerifyingKey, signatures};

/// A key that signs tokens of one algorithm. Never shown.
pub struct SigningKey {
    id: Option<String>,
    algorithm: TokenAlgorithm,
    key: EncodingKey,
}

impl SigningKey {
    /// Creates a key. For HS256 `key` is the secret, for the others a private key in PEM format. Returns
    /// `None` if the key is not valid for the algorithm.
    pub fn new(id: Option<&str>, algorithm: TokenAlgorithm, key: &str) -> Option<Self> {
        let bytes = key.as_bytes();
        let key = match algorithm {
            TokenAlgorithm::Hs256 => {
                (bytes.len() >= 32).then(|| EncodingKey::from_secret(bytes))?
            }
            TokenAlgorithm::Rs256 => EncodingKey::from_rsa_pem(bytes).ok()?,
            TokenAlgorithm::Es256 => EncodingKey::from_ec_pem(bytes).ok()?,
            TokenAlgorithm::EdDsa => EncodingKey::from_ed_pem(bytes).ok()?,
        };
        Some(Self { id: id.map(str::to_owned), algorithm, key })
    }

    /// Returns the token with these claims. `None`: the key cannot sign.
    pub fn sign(&self, claims: &Value) -> Option<String> {
        let mut header = json!({ "alg": self.algorithm.name(), "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = json!(id);
        }
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let signed = format!("{}.{}", encode(&header), encode(claims));
        let signature = signatures::sign(&self.key, self.algorithm, signed.as_bytes())?;
        Some(format!("{signed}.{signature}"))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SigningKey({:?}, {}, …)", self.id, self.algorithm.name())
    }
}

impl KeySet {
    /// Returns a key with which tokens for these keys can be signed: the one with this `kid`, or the first
    /// one of HS256. `None`: there is none, as the keys of other algorithms only verify.
    pub fn signing_key(&self, id: Option<&str>) -> Option<SigningKey> {
        let is_named = |key: &&VerifyingKey| id.is_none() || key.id() == id;
        let mut keys = self.0.iter().filter(|key| key.algorithm == TokenAlgorithm::Hs256);
        let key = keys.find(is_named)?;
        SigningKey::new(key.id(), key.algorithm, &key.material)
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};

    use super::*;

    #[test]
    fn what_a_key_signs_is_verified_by_another_library() {
        let keys = [
            (
                TokenAlgorithm::Rs256,
                include_str!("samples/rs256.key.pem"),
                Algorithm::RS256,
                DecodingKey::from_rsa_pem(include_bytes!("samples/rs256.pub.pem")),
            ),
            (
                TokenAlgorithm::Es256,
                include_str!("samples/es256.key.pem"),
                Algorithm::ES256,
                DecodingKey::from_ec_pem(include_bytes!("samples/es256.pub.pem")),
            ),
            (
                TokenAlgorithm::EdDsa,
                include_str!("samples/ed25519.key.pem"),
                Algorithm::EdDSA,
                DecodingKey::from_ed_pem(include_bytes!("samples/ed25519.pub.pem")),
            ),
        ];
        for (algorithm, private, name, public) in keys {
            let key = SigningKey::new(Some("k"), algorithm, private).expect("a private key");
            let token = key.sign(&json!({"exp": 4_102_444_800_u64, "sub": "7"})).expect("a token");
            let read = decode::<Value>(&token, &public.expect("its key"), &Validation::new(name));
            let read = read.expect("the signature is right");
            assert_eq!((read.header.kid.as_deref(), &read.claims["sub"]), (Some("k"), &json!("7")));
        }
    }
}
