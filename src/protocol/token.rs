//! Tokens by which clients prove who they are: JSON Web Tokens (RFC 7519), signed by a back end.
//! `claims.rs` reads what they say.

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
use claims::{Claims, Head};

/// How far the clocks of whoever signs and of this node may be apart, in milliseconds.
pub const LEEWAY_MS: u64 = 60_000;

/// Before a token in the list of subprotocols.
const SUBPROTOCOL: &str = "bearer.";

/// What a client offers beside its token, so that not the token is answered.
const COMPANION: &str = "bearer";

/// The name of a token in the query.
pub const QUERY_NAME: &str = "token";

/// Which tokens a route takes, and from where.
#[derive(Clone)]
pub struct TokenRule {
    /// Where it looks for one; the first that is there counts.
    pub places: Places,
    /// The names under which a token may mean this service in `aud`. None: a token with an `aud`
    /// means somebody else.
    pub audience: Vec<String>,
    /// What `iss` has to be; `None`: anything.
    pub issuer: Option<String>,
    // `HS256`, say.
    algorithm_name: &'static str,
    algorithm: Algorithm,
    // As it was configured: DecodingKey cannot be compared.
    key_text: Arc<str>,
    key: DecodingKey,
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
    /// `aud` does not name this service.
    Audience,
    /// `iss` is not who the route expects.
    Issuer,
    /// The claims are not JSON that every back end reads. Told only to who has the key.
    NotJson(json::Flaw),
    /// A claim is missing, or not as it should be. Told only to who has the key.
    Claims(&'static str),
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
            Self::Audience => "the token's aud does not name this service",
            Self::Issuer => "the token's iss is not the issuer that this route takes",
            Self::NotJson(flaw) => return write!(formatter, "the token's claims: {flaw}"),
            Self::Claims(wrong) => return write!(formatter, "the token's claims: {wrong}"),
            Self::Expired => "the token has expired",
            Self::Early => "the token is not valid yet",
        })
    }
}

impl std::error::Error for TokenError {}

impl TokenRule {
    /// Takes tokens of `algorithm`, one of HS256, RS256, ES256 and EdDSA. `key` is the secret
    /// itself, of at least 32 bytes (RFC 7518, section 3.2), or else a public key in PEM. `None` if
    /// it is not.
    pub fn new(algorithm: &str, key: &str, places: Places) -> Option<Self> {
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
            places,
            audience: Vec::new(),
            issuer: None,
            algorithm_name,
            algorithm,
            key_text: key.into(),
            key: decoding_key,
        })
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

    /// The text of the claims, once the signature is known to be right (RFC 7515, section 5.2).
    fn signed_claims(&self, token: &str) -> Result<Vec<u8>, TokenError> {
        let decode = |part| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (head, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let (head, claims) = (Head::read(&decode(head)?)?, decode(claims)?);
        if head.algorithm != self.algorithm_name {
            return Err(TokenError::Algorithm);
        }
        // RFC 7515, section 4.1.11: no extension is understood here.
        if head.has_extensions {
            return Err(TokenError::Extension);
        }
        match crypto::verify(signature, signed.as_bytes(), &self.key, self.algorithm) {
            Ok(true) => Ok(claims),
            Ok(false) => Err(TokenError::Signature),
            Err(_) => Err(TokenError::Malformed),
        }
    }

    /// Whether a token was made by whom, and for whom, the route expects.
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

/// A time of RFC 7519, section 2 (`NumericDate`), in Unix milliseconds.
fn milliseconds(seconds: f64) -> u64 {
    // Saturates: a time before 1970 is 0.
    (seconds * 1000.0) as u64
}

/// The subprotocol that is answered to a client which may have put its token among them, and has none
/// that its route `accepts`: the first that is no token, or where the route names what it accepts
/// `bearer` alone; or else the token, since a browser takes only what it offered (RFC 6455, section
/// 4.1).
pub fn answered_subprotocol<'r>(upgrade: &Upgrade<'r>, accepts: &[String]) -> Option<&'r str> {
    let is_token = |name: &&str| name.starts_with(SUBPROTOCOL);
    let token = upgrade.subprotocols().find(is_token)?;
    let may_answer = |name: &&str| accepts.is_empty() || *name == COMPANION;
    let mut others = upgrade.subprotocols().filter(|name| !is_token(name));
    Some(others.find(may_answer).unwrap_or(token))
}

impl PartialEq for TokenRule {
    fn eq(&self, other: &Self) -> bool {
        (self.places, &self.audience, &self.issuer, self.algorithm, &self.key_text)
            == (other.places, &other.audience, &other.issuer, other.algorithm, &other.key_text)
    }
}

impl Eq for TokenRule {}

impl fmt::Debug for TokenRule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "TokenRule({:?}, {:?}, …)", self.algorithm, self.places)
    }
}

#[cfg(test)]
mod tests;
