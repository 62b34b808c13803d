//! Authenticates clients by JSON Web Tokens (RFC 7519) that a back end has signed.
//!
//! - `token.rs`: where a token is, and whether a route accepts it. `claims.rs`: reads header and claims.
//! - `keys.rs`: the keys, and the choice of the key for a token. `jwks.rs`: reads an issuer's key set.
//! - `signing.rs`: signs tokens for tests. `signatures.rs`: the cryptography of both.

mod claims;
mod jwks;
mod keys;
mod signatures;
mod signing;

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::api::ContextEntry;
use super::http::{Request, query_pairs};
use super::json;
use super::service::HttpService;
use super::upgrade::Upgrade;
use claims::{Claims, JoseHeader};
pub use jwks::{KeySetError, read_key_set};
pub use keys::{KEYS_MAX, KeySet, TokenAlgorithm, VerifyingKey};
pub use signing::SigningKey;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// Where clients may put their token. The first token found is checked.
    pub sources: TokenSources,
    /// The accepted values of `aud`. Empty: a token must not have an `aud`.
    pub audience: Vec<String>,
    /// The accepted value of `iss`. `None`: any value is accepted.
    pub issuer: Option<String>,
    /// The keys that verify the tokens.
    pub keys: RuleKeys,
}

/// The keys of a route, or where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuleKeys {
    /// The configured keys, which never change.
    Fixed(KeySet),
    /// The keys that an issuer publishes, which the node fetches again and again.
    Fetched(Arc<KeySource>),
}

/// A service from which the keys of an issuer are fetched, as a JSON Web Key Set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct KeySource {
    /// The address of the key set.
    pub service: HttpService,
    /// The only algorithm whose keys are used. `None`: each key has its own.
    pub algorithm: Option<TokenAlgorithm>,
    /// The time between two fetches, in seconds.
    pub refresh_s: u64,
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
    /// The subject, `sub`, as text. `None`: the token has none.
    pub subject: Option<Box<str>>,
    /// The channels to subscribe the client to.
    pub channels: Vec<String>,
    /// The client's context. `sub` becomes `user_id`.
    pub context: Vec<ContextEntry>,
    /// All claims of the token, as JSON.
    pub claims: Box<str>,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    /// The request has no token where the route looks for one.
    Missing,
    /// The text is not a JSON Web Token.
    Malformed,
    /// The token was signed with a different algorithm than that of the key.
    Algorithm,
    /// The signature does not match the route's keys.
    Signature,
    /// `kid` does not name a key of the route.
    UnknownKey,
    /// The issuer's keys were not fetched yet.
    NoKeys,
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
            Self::UnknownKey => "unknown key: the token's kid names no key of this route",
            Self::NoKeys => "the keys that verify tokens are not available yet",
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
    /// Creates a rule with these keys, which accepts any issuer, and no audience.
    pub fn new(keys: RuleKeys, sources: TokenSources) -> Self {
        Self { sources, audience: Vec::new(), issuer: None, keys }
    }

    /// Creates a rule with one configured key. Returns `None` if the key is not valid for the algorithm.
    pub fn with_key(algorithm: TokenAlgorithm, key: &str, sources: TokenSources) -> Option<Self> {
        let key = VerifyingKey::configured(None, algorithm, key)?;
        Some(Self::new(RuleKeys::Fixed(KeySet::new(vec![key])?), sources))
    }

    /// Returns the source of the keys, if they are fetched.
    pub fn key_source(&self) -> Option<&Arc<KeySource>> {
        match &self.keys {
            RuleKeys::Fixed(_) => None,
            RuleKeys::Fetched(source) => Some(source),
        }
    }

    /// Finds and checks the token of a handshake at the time `unix_ms`. `fetched` are the issuer's keys, if
    /// the rule has a [`Self::key_source`] and they are known.
    ///
    /// # Errors
    /// The token is missing or refused.
    pub fn check(
        &self,
        request: &Request<'_>,
        upgrade: &Upgrade<'_>,
        unix_ms: u64,
        fetched: Option<&KeySet>,
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
        self.check_token(&token.ok_or(TokenError::Missing)?, unix_ms, fetched)
    }

    /// Checks a token at the time `unix_ms`. `fetched` is as for [`Self::check`].
    ///
    /// # Errors
    /// The token is refused.
    pub fn check_token(
        &self,
        token: &str,
        unix_ms: u64,
        fetched: Option<&KeySet>,
    ) -> Result<Pass, TokenError> {
        let keys = match &self.keys {
            RuleKeys::Fixed(keys) => Some(keys),
            RuleKeys::Fetched(_) => fetched,
        };
        self.read(token, unix_ms, keys)
    }

    fn read(&self, token: &str, unix_ms: u64, keys: Option<&KeySet>) -> Result<Pass, TokenError> {
        let text = signed_claims(token, keys)?;
        let claims = Claims::read(&text)?;
        let until_unix_ms = milliseconds(claims.expires).saturating_add(LEEWAY_MS);
        if until_unix_ms <= unix_ms {
            return Err(TokenError::Expired);
        }
        let begins_unix_ms = claims.not_before.map_or(0, milliseconds);
        if begins_unix_ms > unix_ms.saturating_add(LEEWAY_MS) {
            return Err(TokenError::Early);
        }
        self.check_parties(&claims)?;
        let Claims { subject, channels, context, .. } = claims;
        let subject = subject.map(Box::from);
        let claims = String::from_utf8(text).expect("valid JSON is text").into();
        Ok(Pass { until_unix_ms, subject, channels, context, claims })
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

/// Verifies the signature and returns the text of the claims (RFC 7515, section 5.2).
fn signed_claims(token: &str, keys: Option<&KeySet>) -> Result<Vec<u8>, TokenError> {
    let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = (JoseHeader::read(&decode(header)?)?, decode(claims)?);
    // RFC 7515, section 4.1.11: a token with an unsupported extension must be refused.
    if header.has_extensions {
        return Err(TokenError::Extension);
    }
    keys.ok_or(TokenError::NoKeys)?.verify(&header, signed, signature)?;
    Ok(claims)
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

#[cfg(test)]
mod tests;
