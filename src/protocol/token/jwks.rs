//! Reads a JSON Web Key Set (RFC 7517), the document in which an issuer publishes its public keys.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::value::RawValue;

use super::keys::{KEYS_MAX, KeySet, TokenAlgorithm, VerifyingKey};
use super::signatures::{RSA_BITS, modulus_bits};
use crate::protocol::fields::JsonFields;
use crate::protocol::json;

/// The longest RSA exponent, in bytes. All common ones are 65537.
const RSA_EXPONENT_BYTES_MAX: usize = 4;

/// Why a key set is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySetError {
    /// The document is not strictly valid JSON.
    NotJson(json::Flaw),
    /// The document is not an object with a list `keys`.
    NotASet,
    /// There are more than [`KEYS_MAX`] keys.
    TooMany,
    /// None of the keys can verify tokens with the algorithms of the route.
    NoUsableKey,
}

impl fmt::Display for KeySetError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson(flaw) => write!(formatter, "the key set is not JSON: {flaw}"),
            Self::NotASet => formatter.write_str("not a key set: no object with a list \"keys\""),
            Self::TooMany => write!(formatter, "the key set has more than {KEYS_MAX} keys"),
            Self::NoUsableKey => formatter.write_str(
                "the key set has no usable key: RS256 with 2048 to 4096 bits, ES256 or EdDSA, for \
                 signatures, and of the configured algorithm",
            ),
        }
    }
}

impl std::error::Error for KeySetError {}

/// Reads a key set. Keys that cannot verify tokens are left out: those of other types and algorithms, for
/// encryption, and symmetric ones (`oct`), because a published secret proves nothing. With `only`, so
/// are keys of other algorithms.
///
/// # Errors
/// The document is no key set, or no key is left.
pub fn read_key_set(document: &[u8], only: Option<TokenAlgorithm>) -> Result<KeySet, KeySetError> {
    json::check(document).map_err(KeySetError::NotJson)?;
    let fields = JsonFields::read(document).map_err(|_| KeySetError::NotASet)?;
    let keys: Option<Vec<&RawValue>> = fields.value("keys", "").ok().flatten();
    let keys = keys.ok_or(KeySetError::NotASet)?;
    if keys.len() > KEYS_MAX {
        return Err(KeySetError::TooMany);
    }
    let keys = keys.iter().filter_map(|key| read_key(key.get(), only));
    KeySet::new(keys.collect()).ok_or(KeySetError::NoUsableKey)
}

/// Reads one key. Returns `None` if the key cannot verify tokens.
fn read_key(text: &str, only: Option<TokenAlgorithm>) -> Option<VerifyingKey> {
    let fields = JsonFields::read(text.as_bytes()).ok()?;
    let text = |name| fields.text(name, "").ok();
    // Absent parameters allow everything (RFC 7517, sections 4.2 to 4.4).
    let is_for_signatures = text("use")?.is_none_or(|purpose| purpose == "sig");
    let operations: Option<Vec<String>> = fields.value("key_ops", "").ok()?;
    let may_verify = operations.is_none_or(|all| all.iter().any(|one| one == "verify"));
    if !is_for_signatures || !may_verify {
        return None;
    }
    let (algorithm, material, key) = match &text("kty")??[..] {
        "RSA" => rsa_key(&text("n")??, &text("e")??)?,
        "EC" if text("crv")?? == "P-256" => p256_key(&text("x")??, &text("y")??)?,
        "OKP" if text("crv")?? == "Ed25519" => ed25519_key(&text("x")??)?,
        _ => return None,
    };
    let is_allowed = only.is_none_or(|only| only == algorithm);
    if !is_allowed || text("alg")?.is_some_and(|name| name != algorithm.name()) {
        return None;
    }
    Some(VerifyingKey::from_parts(text("kid")?, algorithm, material, key))
}

type Parameters = (TokenAlgorithm, String, DecodingKey);

fn rsa_key(modulus: &str, exponent: &str) -> Option<Parameters> {
    let n = decode(modulus)?;
    let e = decode(exponent)?;
    let first = n.iter().position(|&byte| byte != 0)?;
    if !RSA_BITS.contains(&modulus_bits(&n)?) || e.len() > RSA_EXPONENT_BYTES_MAX {
        return None;
    }
    let key = DecodingKey::from_rsa_raw_components(&n[first..], &e);
    Some((TokenAlgorithm::Rs256, format!("{modulus}.{exponent}"), key))
}

fn p256_key(x: &str, y: &str) -> Option<Parameters> {
    // RFC 7518, section 6.2.1.2: both coordinates have the full length.
    if [x, y].iter().any(|part| decode(part).is_none_or(|part| part.len() != 32)) {
        return None;
    }
    let key = DecodingKey::from_ec_components(x, y).ok()?;
    Some((TokenAlgorithm::Es256, format!("{x}.{y}"), key))
}

fn ed25519_key(x: &str) -> Option<Parameters> {
    decode(x).filter(|key| key.len() == 32)?;
    let key = DecodingKey::from_ed_components(x).ok()?;
    Some((TokenAlgorithm::EdDsa, x.to_owned(), key))
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::token::{RuleKeys, TokenError, TokenRule, TokenSources};

    /// The examples of RFC 7515, sections A.2 and A.3, and of RFC 8037, section A.4: the public key, and
    /// what the private key signed.
    const EXAMPLES: [(&str, &str); 3] = [
        (
            r#"{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}"#,
            "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        (
            r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#,
            "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        ),
        (
            r#"{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#,
            "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        ),
    ];

    fn read(keys: &[&str]) -> Result<KeySet, KeySetError> {
        read_key_set(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes(), None)
    }

    fn is_signed_with(keys: &KeySet, token: &str) -> bool {
        let rule = TokenRule::new(RuleKeys::Fixed(keys.clone()), TokenSources::default());
        match rule.read(token, 0, Some(keys)) {
            Err(TokenError::Signature | TokenError::Algorithm) => false,
            // One of the examples signs something other than claims.
            Ok(_) | Err(TokenError::NotJson(_)) => true,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_token_of_each_algorithm_is_verified_with_the_published_key() {
        let all = read(&EXAMPLES.map(|(key, _)| key)).expect("three keys");
        for (at, (key, token)) in EXAMPLES.into_iter().enumerate() {
            let keys = read(&[key]).expect("a key");
            assert!(is_signed_with(&keys, token) && is_signed_with(&all, token), "{key}");
            for (_, other) in EXAMPLES.iter().enumerate().filter(|(other, _)| *other != at) {
                assert!(!is_signed_with(&keys, other.1), "{key}");
            }
            let (head, rest) = token.split_once('.').expect("three parts");
            let forged = format!("{head}.A{}", &rest[1..]);
            assert!(!is_signed_with(&all, &forged), "{key}");
        }
    }

    #[test]
    fn a_public_key_never_verifies_a_token_of_another_algorithm() {
        // RFC 8725, section 2.1: HMAC with the public key as the secret.
        let keys = read(&EXAMPLES.map(|(key, _)| key)).expect("three keys");
        for (key, token) in EXAMPLES {
            let (_, rest) = token.split_once('.').expect("three parts");
            for head in [r#"{"alg":"HS256"}"#, r#"{"alg":"none"}"#, r#"{"alg":"RS384"}"#] {
                let head = URL_SAFE_NO_PAD.encode(head);
                assert!(!is_signed_with(&keys, &format!("{head}.{rest}")), "{key}");
            }
        }
        let secret = URL_SAFE_NO_PAD.encode("0123456789abcdef0123456789abcdef");
        let symmetric = format!(r#"{{"kty":"oct","k":"{secret}","alg":"HS256"}}"#);
        assert_eq!(read(&[&symmetric]), Err(KeySetError::NoUsableKey));
    }

    #[test]
    fn a_key_that_cannot_verify_tokens_is_left_out() {
        let [rsa, p256, ed25519] = EXAMPLES.map(|(key, _)| key.trim_end_matches('}'));
        let long = "_".repeat(800);
        for key in [
            format!(r#"{rsa},"use":"enc"}}"#),
            format!(r#"{rsa},"use":1}}"#),
            format!(r#"{rsa},"key_ops":["sign"]}}"#),
            format!(r#"{rsa},"key_ops":"verify"}}"#),
            format!(r#"{rsa},"alg":"RS512"}}"#),
            format!(r#"{rsa},"alg":"HS256"}}"#),
            format!(r#"{p256},"alg":"RS256"}}"#),
            format!(r#"{rsa},"kid":7}}"#),
            format!(r#"{rsa},"kty":"RSA"}}"#),
            r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.into(),
            format!(r#"{{"kty":"RSA","n":"{long}","e":"AQAB"}}"#),
            r#"{"kty":"RSA","e":"AQAB"}"#.into(),
            p256.replace("P-256", "P-384") + "}",
            p256.replace("\"f83O", "\"") + "}",
            p256.replace("\"y\"", "\"z\"") + "}",
            ed25519.replace("Ed25519", "X25519") + "}",
            ed25519.replace("11qY", "") + "}",
            ed25519.replace("11qY", "+/+/") + "}",
            r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AQAB"}"#.into(),
            "{}".into(),
            "[]".into(),
            "null".into(),
        ] {
            assert_eq!(read(&[&key]), Err(KeySetError::NoUsableKey), "{key}");
            let beside = read(&[&key, EXAMPLES[2].0]).expect("one is usable");
            assert_eq!(beside.len(), 1, "{key}");
        }
        for key in [
            format!(r#"{rsa},"use":"sig","key_ops":["verify"],"alg":"RS256","kid":"a"}}"#),
            format!(r#"{rsa},"x5c":["…"],"d":"private","kid":"a"}}"#),
        ] {
            assert!(read(&[&key]).is_ok(), "{key}");
        }
    }

    #[test]
    fn keys_of_other_algorithms_than_the_configured_one_are_left_out() {
        let all = format!(r#"{{"keys":[{}]}}"#, EXAMPLES.map(|(key, _)| key).join(","));
        let only = |algorithm| read_key_set(all.as_bytes(), Some(algorithm));
        let keys = only(TokenAlgorithm::Es256).expect("there is one");
        assert_eq!(EXAMPLES.map(|(_, token)| is_signed_with(&keys, token)), [false, true, false]);
        assert_eq!(only(TokenAlgorithm::Hs256), Err(KeySetError::NoUsableKey));
    }

    #[test]
    fn what_is_no_key_set_is_refused() {
        for (document, expected) in [
            ("[]", KeySetError::NotASet),
            ("{}", KeySetError::NotASet),
            (r#"{"keys":{}}"#, KeySetError::NotASet),
            (r#"{"keys":[],"keys":[]}"#, KeySetError::NotASet),
            (r#"{"keys":[]}"#, KeySetError::NoUsableKey),
        ] {
            assert_eq!(read_key_set(document.as_bytes(), None), Err(expected), "{document}");
        }
        let not_json = read_key_set(b"<html>", None);
        assert!(matches!(not_json, Err(KeySetError::NotJson(_))), "{not_json:?}");
        assert!(read(&vec![EXAMPLES[2].0; KEYS_MAX]).is_ok());
        assert_eq!(read(&vec![EXAMPLES[2].0; KEYS_MAX + 1]), Err(KeySetError::TooMany));
    }
}
