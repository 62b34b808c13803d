//! Authenticates clients by JSON Web Tokens (RFC 7519) that a back end has signed. `claims.rs` reads
//! the claims.

mod claims;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, crypto};

use super::api::ContextEntry;
use super::http::{Request, query_pairs};
use super::json;
use super::upgrade::Upgrade;
use claims::{Claims, JoseHeader};

/// The tolerated difference between the clocks of the token's issuer and of this node, in milliseconds.
pub const LEEWAY_MS: u64 = 60_000;

/// The prefix of a token in the list of subprotocols.
const TOKEN_PREFIX: &str = "bearer.";

/// A subprotocol that a client can offer next to its token, so that the response does not repeat the
/// token.
const COMPANION: &str = "bearer";

/// The name of the query parameter that carries a token.
pub const QUERY_NAME: &str = "token";

/// The tokens that a route accepts, and where it looks for them.
#[derive(Clone)]
pub struct TokenRule {
    /// Where clients may put their token. The first token found is checked.
    pub sources: TokenSources,
    /// The accepted values of `aud`. Empty: a token must not have an `aud`.
    pub audience: Vec<String>,
    /// The accepted value of `iss`. `None`: any value is accepted.
    pub issuer: Option<String>,
    // The algorithm as tokens write it, such as `HS256`.
    algorithm_name: &'static str,
    algorithm: Algorithm,
    // The configured key, kept because `DecodingKey` cannot be compared.
    key_text: Arc<str>,
    key: DecodingKey,
}

/// Where a client may put its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSources {
    /// In the header: `Authorization: Bearer TOKEN`.
    pub header: bool,
    /// Among the subprotocols: `bearer.TOKEN`.
    pub protocol: bool,
    /// In the query: `?token=TOKEN`.
    pub query: bool,
}

/// The rights that a valid token grants.
#[derive(Debug, PartialEq, Eq)]
pub struct Pass {
    /// When the token expires, in Unix milliseconds, including [`LEEWAY_MS`].
    pub until_unix_ms: u64,
    /// The channels to subscribe the client to.
    pub channels: Vec<String>,
    /// The client's context. `sub` becomes `user_id`.
    pub context: Vec<ContextEntry>,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// The request has no token where the route looks for one.
    Missing,
    /// The text is not a JSON Web Token.
    Malformed,
    /// The token was signed with a different algorithm than the route's.
    Algorithm,
    /// The signature does not match the route's key.
    Signature,
    /// `crit` requires an extension; none is supported (RFC 7515, section 4.1.11).
    Extension,
    /// `aud` does not name this service.
    Audience,
    /// `iss` is not the issuer that the route accepts.
    Issuer,
    /// The claims are not strictly valid JSON. Reported only if the signature is valid.
    NotJson(json::Flaw),
    /// A claim is missing or invalid. Reported only if the signature is valid.
    Claims(&'static str),
    /// The time in `exp` has passed.
    Expired,
    /// The time in `nbf` is in the future.
    Early,
}

impl fmt::Display for TokenError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Missing => "this route requires a token",
            Self::Malformed => "the token is not a JSON Web Token",
            Self::Algorithm => "the token's alg is not the algorithm that this route accepts",
            Self::Signature => "the token's signature is wrong",
            Self::Extension => "the token's crit header requires an unsupported extension",
            Self::Audience => "the token's aud does not name this service",
            Self::Issuer => "the token's iss is not the issuer that this route accepts",
            Self::NotJson(flaw) => return write!(formatter, "the token's claims: {flaw}"),
            Self::Claims(wrong) => return write!(formatter, "the token's claims: {wrong}"),
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
        })
    }
}

impl std::error::Error for TokenError {}

impl TokenRule {
    /// Creates a rule for `algorithm`, one of HS256, RS256, ES256 and EdDSA. For HS256 `key` is the
    /// secret, of at least 32 bytes (RFC 7518, section 3.2); for the others it is a public key in PEM
    /// format. Returns `None` if the algorithm is unknown or the key is not valid for it.
    pub fn new(algorithm: &str, key: &str, sources: TokenSources) -> Option<Self> {
        let pem = key.as_bytes();
        let (algorithm_name, algorithm, decoding_key) = match algorithm {
            "HS256" if pem.len() >= 32 => {
                ("HS256", Algorithm::HS256, DecodingKey::from_secret(pem))
            }
            "RS256" => ("RS256", Algorithm::RS256, DecodingKey::from_rsa_pem(pem).ok()?),
            "ES256" => ("ES256", Algorithm::ES256, DecodingKey::from_ec_pem(pem).ok()?),
            "EdDSA" => ("EdDSA", Algorithm::EdDSA, DecodingKey::from_ed_pem(pem).ok()?),
            _ => return None,
        };
        Some(Self {
            sources,
            audience: Vec::new(),
            issuer: None,
            algorithm_name,
            algorithm,
            key_text: key.into(),
            key: decoding_key,
        })
    }

    /// Finds and checks the token of a handshake at the time `unix_ms`.
    ///
    /// # Errors
    /// The token is missing or refused.
    pub fn check(
        &self,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
        unix_ms: u64,
    ) -> Result<Pass, TokenError> {
        let TokenSources { header, protocol, query } = self.sources;
        let in_header = || {
            let (scheme, token) =
                str::from_utf8(request.only_header("authorization")?).ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
        };
        let in_protocol = || {
            upgrade
                .subprotocols()
                .find_map(|name| name.strip_prefix(TOKEN_PREFIX))
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
        let claims = Claims::read(&self.signed_claims(token)?)?;
        let until_unix_ms = milliseconds(claims.expires).saturating_add(LEEWAY_MS);
        if until_unix_ms <= unix_ms {
            return Err(TokenError::Expired);
        }
        let begins_unix_ms = claims.not_before.map_or(0, milliseconds);
        if begins_unix_ms > unix_ms.saturating_add(LEEWAY_MS) {
            return Err(TokenError::Early);
        }
        self.check_parties(&claims)?;
        Ok(Pass { until_unix_ms, channels: claims.channels, context: claims.context })
    }

    /// Verifies the signature and returns the text of the claims (RFC 7515, section 5.2).
    fn signed_claims(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = (JoseHeader::read(&decode(header)?)?, decode(claims)?);
        if header.algorithm != self.algorithm_name {
            return Err(TokenError::Algorithm);
        }
        // RFC 7515, section 4.1.11: a token with an unsupported extension must be refused.
        if header.has_extensions {
            return Err(TokenError::Extension);
        }
        match crypto::verify(signature, signed.as_bytes(), &self.key, self.algorithm) {
            Ok(true) => Ok(claims),
            Ok(false) => Err(TokenError::Signature),
            Err(_) => Err(TokenError::Malformed),
        }
    }

    /// Checks that the issuer and the audience are those that the route accepts.
    fn check_parties(&self, claims: &Claims) -> Result<(), TokenError> {
        let is_ours = |name: &String| self.audience.contains(name);
        let is_for_us = match &claims.audience {
            None => self.audience.is_empty(),
            Some(names) => names.iter().any(is_ours),
        };
        if !is_for_us {
            return Err(TokenError::Audience);
        }
        if self.issuer.is_some() && self.issuer != claims.issuer {
            return Err(TokenError::Issuer);
        }
        Ok(())
    }
}

/// Converts a `NumericDate` (RFC 7519, section 2) to Unix milliseconds.
fn milliseconds(seconds: f64) -> u64 {
    // The conversion saturates: a time before 1970 becomes 0.
    (seconds * 1000.0) as u64
}

/// Chooses the subprotocol of the response for a client that put its token among the subprotocols and
/// offers none that its route `accepts`.
///
/// The response must name a subprotocol that the client offered, or a browser fails the connection (RFC
/// 6455, section 4.1). The first offered name that is not a token is chosen. If the route lists the
/// subprotocols that it accepts, only `bearer` qualifies. If no name qualifies, the token itself is
/// chosen. Returns `None` if the client offered no token.
pub fn answered_subprotocol<'r>(upgrade: &Upgrade<'r>, accepts: &[String]) -> Option<&'r str> {
    let is_token = |name: &&str| name.starts_with(TOKEN_PREFIX);
    let token = upgrade.subprotocols().find(is_token)?;
    let may_answer = |name: &&str| accepts.is_empty() || *name == COMPANION;
    let mut others = upgrade.subprotocols().filter(|name| !is_token(name));
    Some(others.find(may_answer).unwrap_or(token))
}

impl PartialEq for TokenRule {
    fn eq(&self, other: &Self) -> bool {
        (self.sources, &self.audience, &self.issuer, self.algorithm, &self.key_text)
            == (other.sources, &other.audience, &other.issuer, other.algorithm, &other.key_text)
    }
}

impl Eq for TokenRule {}

impl fmt::Debug for TokenRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TokenRule({:?}, {:?}, …)", self.algorithm, self.sources)
    }
}

#[cfg(test)]
mod tests;
