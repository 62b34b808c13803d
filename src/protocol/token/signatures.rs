//! Signatures of tokens, with the cryptography that TLS brings along.

use std::ops::RangeInclusive;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{DecodingKey, DecodingKeyKind, EncodingKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair,
    Ed25519KeyPair, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair,
    RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm,
};
use ring::{error, hmac};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;

use super::{TokenAlgorithm, TokenError};

/// The accepted sizes of an RSA modulus, in bits. RFC 7518, section 3.3, requires 2048 or more. The upper bound
/// limits what a handshake costs a shard.
pub(super) const RSA_BITS: RangeInclusive<usize> = 2048..=4096;

/// The bytes of a point of P-256: the number 4 (not compressed), and two coordinates of 32 bytes.
const P256_POINT_BYTES: usize = 65;

const ED25519_KEY_BYTES: usize = 32;

/// Whether a public key, as it stands in a PEM file, can verify tokens of an algorithm.
pub(super) fn is_usable(key: &DecodingKey, algorithm: TokenAlgorithm) -> bool {
    let Ok(bytes) = key.try_get_as_bytes() else { return false };
    match algorithm {
        TokenAlgorithm::Hs256 => true,
        TokenAlgorithm::Rs256 => RSAPublicKey::from_der(bytes)
            .is_ok_and(|(_, key)| modulus_bits(key.modulus).is_some_and(|n| RSA_BITS.contains(&n))),
        TokenAlgorithm::Es256 => bytes.len() == P256_POINT_BYTES && bytes[0] == 4,
        TokenAlgorithm::EdDsa => bytes.len() == ED25519_KEY_BYTES,
    }
}

/// Returns the number of bits of a modulus, whose first byte is the highest; `None` for zero.
pub(super) fn modulus_bits(modulus: &[u8]) -> Option<usize> {
    let first = modulus.iter().position(|&byte| byte != 0)?;
    Some((modulus.len() - first) * 8 - modulus[first].leading_zeros() as usize)
}

/// Verifies a signature, which is encoded as base64url.
///
/// # Errors
/// The signature is not encoded so, or it is wrong.
pub(super) fn verify(
    key: &DecodingKey,
    algorithm: TokenAlgorithm,
    signed: &[u8],
    signature: &[u8],
) -> Result<(), TokenError> {
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
    let verified = match (algorithm, key.kind()) {
        (TokenAlgorithm::Hs256, DecodingKeyKind::SecretOrDer(secret)) => {
            hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed, &signature)
        }
        (TokenAlgorithm::Rs256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
            let key = RsaPublicKeyComponents { n, e };
            key.verify(&RSA_PKCS1_2048_8192_SHA256, signed, &signature)
        }
        (TokenAlgorithm::Rs256, DecodingKeyKind::SecretOrDer(key)) => {
            verify_with(&RSA_PKCS1_2048_8192_SHA256, key, signed, &signature)
        }
        (TokenAlgorithm::Es256, DecodingKeyKind::SecretOrDer(key)) => {
            verify_with(&ECDSA_P256_SHA256_FIXED, key, signed, &signature)
        }
        (TokenAlgorithm::EdDsa, DecodingKeyKind::SecretOrDer(key)) => {
            verify_with(&ED25519, key, signed, &signature)
        }
        (_, DecodingKeyKind::RsaModulusExponent { .. }) => Err(error::Unspecified),
    };
    verified.map_err(|_| TokenError::Signature)
}

fn verify_with(
    algorithm: &'static dyn VerificationAlgorithm,
    key: &[u8],
    signed: &[u8],
    signature: &[u8],
) -> Result<(), error::Unspecified> {
    UnparsedPublicKey::new(algorithm, key).verify(signed, signature)
}

/// Returns a signature, encoded as base64url. `None`: the key cannot sign.
pub(super) fn sign(key: &EncodingKey, algorithm: TokenAlgorithm, text: &[u8]) -> Option<String> {
    let (key, random) = (key.as_bytes(), SystemRandom::new());
    let signature = match algorithm {
        TokenAlgorithm::Hs256 => {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key);
            hmac::sign(&key, text).as_ref().to_vec()
        }
        TokenAlgorithm::Rs256 => {
            let key = RsaKeyPair::from_der(key).ok()?;
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).ok()?;
            signature
        }
        TokenAlgorithm::Es256 => {
            let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key, &random);
            key.ok()?.sign(&random, text).ok()?.as_ref().to_vec()
        }
        TokenAlgorithm::EdDsa => {
            // The files of openssl lack the public key.
            let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key).ok()?;
            key.sign(text).as_ref().to_vec()
        }
    };
    Some(URL_SAFE_NO_PAD.encode(signature))
}
