//! Tokens by which clients prove who they are: JSON Web Tokens (RFC 7519), signed by a back end.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::api::{ContextEntry, NAME_BYTES_MAX};
use super::http::{Request, query_pairs};
use super::upgrade::Upgrade;

/// How far the clocks of whoever signs and of this node may be apart, in milliseconds.
pub const LEEWAY_MS: u64 = 60_000;

/// Before a token in the list of subprotocols.
const SUBPROTOCOL: &str = "bearer.";

/// The name of a token in the query.
pub const QUERY_NAME: &str = "token";

/// Which tokens a route takes, and from where.
#[derive(Clone)]
pub struct TokenRule {
    /// Where it looks for one; the first that is there counts.
    pub places: Places,
    algorithm: Algorithm,
    // As it was configured: DecodingKey cannot be compared.
    key_text: Arc<str>,
    key: DecodingKey,
    validation: Validation,
}

/// Where a client may put its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// `Authorization: Bearer TOKEN`
    pub header: bool,
    /// `bearer.TOKEN` among the subprotocols.
    pub protocol: bool,
    /// `?token=TOKEN`
    pub query: bool,
}

/// What a token grants.
#[derive(Debug, PartialEq, Eq)]
pub struct Pass {
    /// Until when, in Unix milliseconds.
    pub until_unix_ms: u64,
    /// Channels that the client is subscribed to.
    pub channels: Vec<String>,
    /// Its context: `sub` is `user_id`.
    pub context: Vec<ContextEntry>,
}

/// Why a token is not taken; `Display` says it in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// There is none where the route looks for it.
    Missing,
    /// Not a JSON Web Token.
    Malformed,
    /// Signed with another algorithm than the route's.
    Algorithm,
    /// Not signed with the route's key.
    Signature,
    /// `crit` asks for an extension that is not known here (RFC 7515, section 4.1.11).
    Extension,
    /// `aud` names another service.
    Audience,
    /// A claim is missing, or not as it should be. Told only to who has the key.
    Claims,
    /// `exp` has passed.
    Expired,
    /// `nbf` has not come.
    Early,
}

impl fmt::Display for TokenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Missing => "this route needs a token",
            Self::Malformed => "the token is not a JSON Web Token",
            Self::Algorithm => "the token was signed with another algorithm than this route takes",
            Self::Signature => "the token's signature is wrong",
            Self::Extension => "the token's crit header asks for an extension",
            Self::Audience => "the token is for another audience",
            Self::Claims => "a claim of the token is missing or not as it should be",
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
        })
    }
}

impl std::error::Error for TokenError {}

// A claim of another type than these is an error, never as good as absent.
#[derive(Deserialize)]
struct Claims {
    exp: f64,
    nbf: Option<f64>,
    sub: Option<String>,
    #[serde(default)]
    channels: Vec<String>,
    #[serde(default)]
    context: HashMap<String, Box<RawValue>>,
}

impl TokenRule {
    /// Takes tokens of `algorithm`, one of HS256, RS256, ES256 and EdDSA. `key` is the secret
    /// itself, of at least 32 bytes (RFC 7518, section 3.2), or else a public key in PEM. `None` if
    /// it is not.
    pub fn new(algorithm: &str, key: &str, places: Places) -> Option<Self> {
        let pem = key.as_bytes();
        let (algorithm, decoding_key) = match algorithm {
            "HS256" if pem.len() >= 32 => (Algorithm::HS256, DecodingKey::from_secret(pem)),
            "RS256" => (Algorithm::RS256, DecodingKey::from_rsa_pem(pem).ok()?),
            "ES256" => (Algorithm::ES256, DecodingKey::from_ec_pem(pem).ok()?),
            "EdDSA" => (Algorithm::EdDSA, DecodingKey::from_ed_pem(pem).ok()?),
            _ => return None,
        };
        let mut validation = Validation::new(algorithm);
        // Times are compared here, by the clock that the shard is told.
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        Some(Self { places, algorithm, key_text: key.into(), key: decoding_key, validation })
    }

    /// Reads the token of a handshake; `subprotocols` are those that the client offers.
    ///
    /// # Errors
    /// The client may not come in.
    pub fn check(
        &self,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
        unix_ms: u64,
    ) -> Result<Pass, TokenError> {
        let Places { header, protocol, query } = self.places;
        let in_header = || {
            let (scheme, token) =
                str::from_utf8(request.only_header("authorization")?).ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        };
        let in_protocol = || {
            upgrade
                .subprotocols()
                .find_map(|name| name.strip_prefix(SUBPROTOCOL))
                .map(str::to_owned)
        };
        let in_query = || {
            let mut pairs = query_pairs(request.query);
            pairs.find(|pair| pair.name == QUERY_NAME).map(|pair| pair.value.into_owned())
        };
        let token = header.then(in_header).flatten();
        let token = token.or_else(|| protocol.then(in_protocol).flatten());
        let token = token.or_else(|| query.then(in_query).flatten());
        self.read(&token.ok_or(TokenError::Missing)?, unix_ms)
    }

    fn read(&self, token: &str, unix_ms: u64) -> Result<Pass, TokenError> {
        let decoded = decode::<Claims>(token, &self.key, &self.validation);
        let decoded = decoded.map_err(|error| why_refused(error.kind(), token))?;
        if decoded.header.crit.is_some() {
            return Err(TokenError::Extension);
        }
        let claims = decoded.claims;
        let until_unix_ms = milliseconds(claims.exp).saturating_add(LEEWAY_MS);
        if until_unix_ms <= unix_ms {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| milliseconds(nbf) > unix_ms.saturating_add(LEEWAY_MS)) {
            return Err(TokenError::Early);
        }
        let names = claims.channels.iter().chain(claims.context.keys());
        if names.into_iter().any(|name| !(1..=NAME_BYTES_MAX).contains(&name.len())) {
            return Err(TokenError::Claims);
        }
        Ok(Pass {
            until_unix_ms,
            channels: claims.channels,
            context: context(claims.context, claims.sub),
        })
    }
}

/// What the library's error means here. Claims are read once the signature is known to be right, so
/// that their faults are told only to who has the key.
fn why_refused(kind: &ErrorKind, token: &str) -> TokenError {
    let mut parts = token.split('.');
    let is_base64 = |part: &str| general_purpose::URL_SAFE_NO_PAD.decode(part).is_ok();
    let is_well_formed = decode_header(token).is_ok() && parts.all(is_base64);
    match kind {
        ErrorKind::InvalidSignature => TokenError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => TokenError::Algorithm,
        _ if !is_well_formed => TokenError::Malformed,
        ErrorKind::InvalidAudience => TokenError::Audience,
        _ => TokenError::Claims,
    }
}

/// `sub` is `user_id`, whatever the claim `context` says.
fn context(claim: HashMap<String, Box<RawValue>>, sub: Option<String>) -> Vec<ContextEntry> {
    let mut entries: Vec<ContextEntry> =
        claim.into_iter().map(|(key, value)| (key.into(), Box::<str>::from(value))).collect();
    entries.sort_unstable();
    if let Some(sub) = sub {
        entries.retain(|(key, _)| **key != *"user_id");
        let mut json = Vec::new();
        super::json::put_string(&mut json, &sub);
        let json = String::from_utf8(json).expect("JSON of text is text");
        entries.push(("user_id".into(), json.into()));
    }
    entries
}

/// A time of RFC 7519, section 2 (`NumericDate`), in Unix milliseconds.
fn milliseconds(seconds: f64) -> u64 {
    // Saturates: a time before 1970 is 0.
    (seconds * 1000.0) as u64
}

/// The subprotocol that is answered to a client which may have put its token among them: the first
/// that is none, or else the token, since a browser takes only what it offered (RFC 6455, section
/// 4.1).
pub fn answered_subprotocol<'r>(upgrade: &Upgrade<'r>) -> Option<&'r str> {
    let has_token = upgrade.subprotocols().any(|name| name.starts_with(SUBPROTOCOL));
    let mut others = upgrade.subprotocols().filter(|name| !name.starts_with(SUBPROTOCOL));
    others.next().or_else(|| upgrade.subprotocols().next()).filter(|_| has_token)
}

impl PartialEq for TokenRule {
    fn eq(&self, other: &Self) -> bool {
        (self.places, self.algorithm, &self.key_text)
            == (other.places, other.algorithm, &other.key_text)
    }
}

impl Eq for TokenRule {}

impl fmt::Debug for TokenRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TokenRule({:?}, {:?}, …)", self.algorithm, self.places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    const KEY: &str = "0123456789abcdef0123456789abcdef";
    const NOW_MS: u64 = 1_700_000_000_000;
    const NOW: u64 = NOW_MS / 1000;

    /// Of each algorithm with a public key: the key, and a token that another program (openssl)
    /// signed with the private one, which was thrown away.
    const SIGNED: [(&str, &str, &str); 3] = [
        (
            "RS256",
            "-----BEGIN PUBLIC KEY-----\n\
         MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAsE1Kg64iuSnZYIg+j6fC\n\
         PJinI5ZHi7LZvXjjYOxsC5VLG07/8QiAtwBESPJo9k2uLUt28PD9G5j0NS6FD9WA\n\
         yCrcWeRiEKP+HkeWVjOA1/+Vm+61vntMVAJrqmYl0LAPnH+dxRDO4YY1fPkbIHV2\n\
         ZYXJ7Yyfzl+7BlocchsPg/vpOUXC5JfLiSgyFeSn90T+NQZBdU33dJJFeAIqEy/j\n\
         FeEMBON4TR1LUk+0eXMzp5GyTJtcZXrj6+EAjGrymMAevR95Klki2GW5Gd+YrUT9\n\
         xLM1ZyYRX1yuQpj8NxLYXgRluzF9oOKR0veedznsoS6/aSL2FhVd5NFaTIVPRa0B\n\
         OQIDAQAB\n\
         -----END PUBLIC KEY-----",
            "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.rmM42q0PE1BPmmJUxZ0L6KX481\
         RMVyBsqwpu7nOkAaJ7j82g_VhPGT0VChK3RbQPq5t1RSzNWBu6XlR3NDB92mWxK_KwNdPDNkt_JzB7Qi9Ngn1G\
         3-4_oFq7Fyjq1j_5fde7OnNcxWgwvC6uNhXj-8LuHXt1gm3M-Bcq-1x5tqiIM8NfEWW4_a-n-AoG2IB2ozgE4V\
         KUcBW56DFz4NU84AVLs02obVu2BOiHLFhg54t9qCyUW4cFOQVvLwkpYDYamIArOyEOsHIhBt0JeKbdOrLoabEn\
         K68GHt9cc1HiM5xina70zrHNIja55MGrVWC_GGv7pfjeV_EAa7pU_cYcBg",
        ),
        (
            "ES256",
            "-----BEGIN PUBLIC KEY-----\n\
         MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEtOk1f9j83K+cxNUzYhy5eGKLxm3Q\n\
         3q1x6tqI1dn4ij9GASUU9kCsm0z5Ce6p5u8UrDhhB2O4x1aRj/Bm0n02+A==\n\
         -----END PUBLIC KEY-----",
            "eyJhbGciOiJFUzI1NiJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.NBpzzzGUVHw84H8xPc1bco-\
         4bk73b4MXk8SK2A0NSnZ2ZJ0c_x2xq3p4xqQR2oy7j7Y2U4pmxzbGsmTum2dOfw",
        ),
        (
            "EdDSA",
            "-----BEGIN PUBLIC KEY-----\n\
         MCowBQYDK2VwAyEAgOwNDvkFDiE4rpaQmiiJ1kuy+tKHA4JRFtc9pwjabHA=\n\
         -----END PUBLIC KEY-----",
            "eyJhbGciOiJFZERTQSJ9.eyJleHAiOjQxMDI0NDQ4MDAsInN1YiI6IjcifQ.uTEn5QqOsrdK0Yiw5hWDRDIgi4\
         r3MwV9hoVx2ExXFg89IbOXY5ZQn7jcL5IpzbVWKEGqztq0sN_YSBVmQeBoDA",
        ),
    ];

    fn rule() -> TokenRule {
        TokenRule::new("HS256", KEY, Places::default()).expect("the key is long enough")
    }

    fn signed(header: &Header, key: &str, claims: &Value) -> String {
        encode(header, claims, &EncodingKey::from_secret(key.as_bytes())).expect("claims are JSON")
    }

    fn read(claims: &Value) -> Result<Pass, TokenError> {
        rule().read(&signed(&Header::default(), KEY, claims), NOW_MS)
    }

    #[test]
    fn claims_become_context_and_channels() {
        let claims = json!({"exp": NOW + 10, "sub": "a\"7", "channels": ["x", "y"],
            "context": {"user_id": 1, "big": 18446744073709551615u64, "a": {"b": [1.5]}}});
        let pass = read(&claims).expect("it is valid");
        assert_eq!((pass.until_unix_ms, pass.channels.len()), (NOW_MS + 70_000, 2));
        let entry = |key: &str, value: &str| (Box::from(key), Box::from(value));
        let expected = [
            entry("a", r#"{"b":[1.5]}"#),
            entry("big", "18446744073709551615"),
            entry("user_id", r#""a\"7""#),
        ];
        assert_eq!(pass.context, expected);
    }

    #[test]
    fn times_are_checked_with_a_minute_to_spare() {
        for (claims, expected) in [
            (json!({"exp": NOW - 59}), Ok(())),
            (json!({"exp": NOW - 60}), Err(TokenError::Expired)),
            (json!({"exp": -1}), Err(TokenError::Expired)),
            (json!({"exp": NOW + 1, "nbf": NOW + 60}), Ok(())),
            (json!({"exp": NOW + 1, "nbf": NOW as f64 + 60.5}), Err(TokenError::Early)),
            (json!({"exp": 1e300}), Ok(())),
        ] {
            assert_eq!(read(&claims).map(drop), expected, "{claims}");
        }
    }

    #[test]
    fn a_claim_of_the_wrong_type_is_not_taken_for_absent() {
        for claims in [
            json!({}),
            json!({"exp": (NOW + 10).to_string()}),
            json!({"exp": null}),
            json!({"exp": NOW + 10, "nbf": "0"}),
            json!({"exp": NOW + 10, "sub": 7}),
            json!({"exp": NOW + 10, "channels": "a"}),
            json!({"exp": NOW + 10, "channels": [""]}),
            json!({"exp": NOW + 10, "context": []}),
            json!({"exp": NOW + 10, "context": {"": 1}}),
        ] {
            assert_eq!(read(&claims).map(drop), Err(TokenError::Claims), "{claims}");
        }
        let claims = json!({"exp": NOW + 10, "aud": "another service"});
        assert_eq!(read(&claims).map(drop), Err(TokenError::Audience));
    }

    #[test]
    fn a_token_that_was_signed_otherwise_is_invalid() {
        let claims = json!({"exp": NOW + 10});
        let right = signed(&Header::default(), KEY, &claims);
        assert!(rule().read(&right, NOW_MS).is_ok());
        let (message, _) = right.rsplit_once('.').expect("three parts");
        // {"alg":"none"}
        let none = format!("eyJhbGciOiJub25lIn0.{}.", message.split_once('.').expect("two").1);
        let crit = Header { crit: Some(vec!["exp".into()]), ..Header::default() };
        let foreign = signed(&Header::default(), "another key of enough bytes to pass", &claims);
        let (head, rest) = right.split_once('.').expect("three parts");
        let (claims_part, signature) = rest.split_once('.').expect("three parts");
        for (token, expected) in [
            (foreign, TokenError::Signature),
            (signed(&Header::new(Algorithm::HS384), KEY, &claims), TokenError::Algorithm),
            (signed(&crit, KEY, &claims), TokenError::Extension),
            (none, TokenError::Malformed),
            (format!("{message}."), TokenError::Signature),
            (format!("{message}.{}", &signature[..20]), TokenError::Signature),
            (format!("{head}.{claims_part}x.{signature}"), TokenError::Signature),
            (format!("{message}.%%%"), TokenError::Malformed),
            (message.to_owned(), TokenError::Malformed),
            (format!("{right}.x"), TokenError::Malformed),
            ("a.b.c".into(), TokenError::Malformed),
            (String::new(), TokenError::Malformed),
        ] {
            assert_eq!(rule().read(&token, NOW_MS).map(drop), Err(expected), "{token}");
        }
    }

    #[test]
    fn a_token_of_each_algorithm_is_read_with_its_own_key_alone() {
        for (at, (algorithm, key, token)) in SIGNED.into_iter().enumerate() {
            let rule = TokenRule::new(algorithm, key, Places::default()).expect("its key");
            let pass = rule.read(token, NOW_MS).expect("its token");
            assert_eq!(pass.until_unix_ms, 4_102_444_860_000, "{algorithm}");
            for (other, (_, other_key, other_token)) in SIGNED.into_iter().enumerate() {
                let read = rule.read(other_token, NOW_MS);
                assert_eq!(read.is_ok(), at == other, "{algorithm}");
                let made = TokenRule::new(algorithm, other_key, Places::default());
                // What this key cannot read was refused as a key, or reads nothing.
                let read = made.map(|rule| rule.read(token, NOW_MS).is_ok());
                assert_eq!(read == Some(true), at == other, "{algorithm}");
            }
            // RFC 8725, section 2.1: a public key is no secret to sign with.
            let forged = signed(&Header::default(), key, &json!({"exp": NOW + 10}));
            assert!(rule.read(&forged, NOW_MS).is_err());
        }
    }

    #[test]
    fn a_key_is_long_enough_or_of_its_algorithm() {
        let places = Places::default();
        assert!(TokenRule::new("HS256", &KEY[1..], places).is_none());
        for algorithm in ["RS256", "ES256", "EdDSA", "none", "HS384"] {
            assert!(TokenRule::new(algorithm, KEY, places).is_none(), "{algorithm}");
        }
    }

    #[test]
    fn a_rule_does_not_show_its_key() {
        assert!(!format!("{:?}", rule()).contains(KEY));
    }
}
