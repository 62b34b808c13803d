//! The keys by which tokens are verified, and the choice of the key for a token.

use std::fmt;

use jsonwebtoken::DecodingKey;

use super::TokenError;
use super::claims::JoseHeader;
use super::signatures;

/// The most keys in a set.
pub const KEYS_MAX: usize = 64;

/// The most keys that a token is verified with. Only a token without a `kid`, or with one that several
/// keys share, is verified with more than one key. Each verification costs the shard time.
const KEYS_TRIED_MAX: usize = 4;

/// An algorithm that tokens are signed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenAlgorithm {
    /// HMAC with SHA-256, and a secret that both sides know.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl TokenAlgorithm {
    /// All algorithms, each with its name.
    pub const ALL: [(&'static str, Self); 4] = [
        ("HS256", Self::Hs256),
        ("RS256", Self::Rs256),
        ("ES256", Self::Es256),
        ("EdDSA", Self::EdDsa),
    ];

    /// Returns the name, as tokens write it in `alg`.
    pub fn name(self) -> &'static str {
        let named = Self::ALL.iter().find(|(_, algorithm)| *algorithm == self);
        named.expect("the list has all algorithms").0
    }
}

/// A key that verifies tokens of one algorithm.
///
/// The algorithm belongs to the key, never to the token: a token whose `alg` is another one is refused
/// (RFC 8725, section 3.1).
#[derive(Clone)]
pub struct VerifyingKey {
    id: Option<Box<str>>,
    pub(super) algorithm: TokenAlgorithm,
    // The text that the key was made from. Kept because `DecodingKey` cannot be compared.
    pub(super) material: Box<str>,
    key: DecodingKey,
}

impl VerifyingKey {
    /// Creates a configured key. For HS256 `key` is the secret, of at least 32 bytes (RFC 7518, section
    /// 3.2); for the others it is a public key in PEM format, for RS256 of 2048 to 4096 bits. Returns `None`
    /// if the key is not valid for the algorithm.
    pub fn configured(id: Option<&str>, algorithm: TokenAlgorithm, key: &str) -> Option<Self> {
        let pem = key.as_bytes();
        let decoding_key = match algorithm {
            TokenAlgorithm::Hs256 => (pem.len() >= 32).then(|| DecodingKey::from_secret(pem))?,
            TokenAlgorithm::Rs256 => DecodingKey::from_rsa_pem(pem).ok()?,
            TokenAlgorithm::Es256 => DecodingKey::from_ec_pem(pem).ok()?,
            TokenAlgorithm::EdDsa => DecodingKey::from_ed_pem(pem).ok()?,
        };
        signatures::is_usable(&decoding_key, algorithm).then(|| Self {
            id: id.map(Box::from),
            algorithm,
            material: key.into(),
            key: decoding_key,
        })
    }

    /// Creates a key from the parameters of a JSON Web Key. `material` identifies the key.
    pub(super) fn from_parts(
        id: Option<String>,
        algorithm: TokenAlgorithm,
        material: String,
        key: DecodingKey,
    ) -> Self {
        Self { id: id.map(Box::from), algorithm, material: material.into(), key }
    }

    /// Returns the `kid` that names the key in tokens.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }
}

impl PartialEq for VerifyingKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.id, self.algorithm, &self.material) == (&other.id, other.algorithm, &other.material)
    }
}

impl Eq for VerifyingKey {}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "VerifyingKey({:?}, {}, …)", self.id, self.algorithm.name())
    }
}

/// Keys that verify the tokens of a route: at most [`KEYS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySet(pub(super) Vec<VerifyingKey>);

impl KeySet {
    /// Creates a set. Returns `None` if there are no keys, or more than [`KEYS_MAX`].
    pub fn new(keys: Vec<VerifyingKey>) -> Option<Self> {
        (1..=KEYS_MAX).contains(&keys.len()).then_some(Self(keys))
    }

    /// Returns the number of keys: at least one.
    #[allow(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Verifies the signature of a token, whose signed part is `signed`.
    ///
    /// The token's `kid` names the key. If no key has this `kid`, the keys without one are used. A token
    /// without a `kid` may be signed with any key. Of several possible keys, at most
    /// [`KEYS_TRIED_MAX`] are used.
    pub(super) fn verify(
        &self,
        header: &JoseHeader,
        signed: &str,
        signature: &str,
    ) -> Result<(), TokenError> {
        let mut keys = self.choose(header.key_id.as_deref()).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        let keys = keys.filter(|key| key.algorithm.name() == header.algorithm);
        let mut keys = keys.take(KEYS_TRIED_MAX).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::Algorithm);
        }
        for VerifyingKey { key, algorithm, .. } in keys {
            match signatures::verify(key, *algorithm, signed.as_bytes(), signature.as_bytes()) {
                Err(TokenError::Signature) => {}
                verified => return verified,
            }
        }
        Err(TokenError::Signature)
    }

    /// Returns the keys that a token with this `kid` may be signed with.
    fn choose(&self, id: Option<&str>) -> impl Iterator<Item = &VerifyingKey> {
        let is_known = id.is_some() && self.0.iter().any(|key| key.id() == id);
        self.0.iter().filter(move |key| match is_known {
            true => key.id() == id,
            false => id.is_none() || key.id.is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::EncodingKey;

    use super::*;

    fn secret(id: Option<&str>, byte: char) -> VerifyingKey {
        let secret = byte.to_string().repeat(32);
        VerifyingKey::configured(id, TokenAlgorithm::Hs256, &secret).expect("a secret")
    }

    /// Verifies a token with this header that was signed with a secret of [`secret`].
    fn verify(
        keys: &KeySet,
        algorithm: &str,
        id: Option<&str>,
        byte: char,
    ) -> Result<(), TokenError> {
        let header = JoseHeader {
            algorithm: algorithm.into(),
            key_id: id.map(str::to_owned),
            has_extensions: false,
        };
        let key = EncodingKey::from_secret(byte.to_string().repeat(32).as_bytes());
        let signature = signatures::sign(&key, TokenAlgorithm::Hs256, b"head.claims");
        let signature = signature.expect("a secret");
        keys.verify(&header, "head.claims", &signature)
    }

    #[test]
    fn a_kid_names_the_one_key_that_counts() {
        let keys = vec![secret(Some("a"), 'A'), secret(Some("b"), 'B')];
        let keys = KeySet::new(keys).expect("two keys");
        for (id, byte, expected) in [
            (Some("a"), 'A', Ok(())),
            (Some("b"), 'B', Ok(())),
            (Some("a"), 'B', Err(TokenError::Signature)),
            (Some("c"), 'A', Err(TokenError::UnknownKey)),
            (Some(""), 'A', Err(TokenError::UnknownKey)),
            (None, 'A', Ok(())),
            (None, 'B', Ok(())),
            (None, 'C', Err(TokenError::Signature)),
        ] {
            assert_eq!(verify(&keys, "HS256", id, byte), expected, "{id:?} {byte}");
        }
        assert_eq!(verify(&keys, "RS256", Some("a"), 'A'), Err(TokenError::Algorithm));
        assert_eq!(verify(&keys, "none", None, 'A'), Err(TokenError::Algorithm));
    }

    #[test]
    fn a_key_without_a_kid_counts_for_tokens_whose_kid_no_key_has() {
        let keys = KeySet::new(vec![secret(None, 'A'), secret(Some("b"), 'B')]).expect("two keys");
        assert_eq!(verify(&keys, "HS256", Some("x"), 'A'), Ok(()));
        assert_eq!(verify(&keys, "HS256", Some("x"), 'B'), Err(TokenError::Signature));
        assert_eq!(verify(&keys, "HS256", Some("b"), 'A'), Err(TokenError::Signature));
    }

    #[test]
    fn a_token_without_a_kid_costs_a_bounded_number_of_verifications() {
        let bytes = ['A', 'B', 'C', 'D', 'E'];
        let keys = bytes.map(|byte| secret(Some(&byte.to_string()), byte));
        let keys = KeySet::new(keys.to_vec()).expect("five keys");
        assert_eq!(verify(&keys, "HS256", None, bytes[KEYS_TRIED_MAX - 1]), Ok(()));
        let next = verify(&keys, "HS256", None, bytes[KEYS_TRIED_MAX]);
        assert_eq!(next, Err(TokenError::Signature));
        assert_eq!(verify(&keys, "HS256", Some("E"), 'E'), Ok(()));
    }

    #[test]
    fn a_set_has_at_least_one_key_and_a_bounded_number() {
        assert_eq!(KeySet::new(Vec::new()), None);
        assert!(KeySet::new(vec![secret(None, 'A'); KEYS_MAX]).is_some());
        assert_eq!(KeySet::new(vec![secret(None, 'A'); KEYS_MAX + 1]), None);
    }

    #[test]
    fn a_key_is_not_shown() {
        assert!(!format!("{:?}", secret(Some("a"), 'Q')).contains("QQQ"));
    }
}
