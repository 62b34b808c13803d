//! Signs tokens, so that a route can be tried without a login service.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{EncodingKey, crypto};
use serde_json::{Value, json};

use super::{KeySet, TokenAlgorithm, VerifyingKey};

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
        let signature = crypto::sign(signed.as_bytes(), &self.key, self.algorithm.code()).ok()?;
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
