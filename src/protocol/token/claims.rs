//! Parses the header and the claims of a token strictly. A field of the wrong type is an error, never
//! treated as absent; so is a repeated field (RFC 7515, section 4; RFC 7519, section 4).

use super::TokenError;
use crate::protocol::api::ContextEntry;
use crate::protocol::fields::{JsonFields, WrongField};
use crate::protocol::json;

/// The header of a token, which says how it was signed (RFC 7515, section 4).
pub(super) struct JoseHeader {
    /// The value of `alg`.
    pub algorithm: String,
    /// The value of `kid`, which names the key.
    pub key_id: Option<String>,
    /// Whether the header has a `crit` field.
    pub has_extensions: bool,
}

impl JoseHeader {
    /// Parses a header. The header is not trusted: the signature is not verified yet.
    pub(super) fn read(text: &[u8]) -> Result<Self, TokenError> {
        let fields = JsonFields::read(text).map_err(|_| TokenError::Malformed)?;
        let algorithm = fields.text("alg", "").ok().flatten();
        // Some issuers write `null` for a key without a name.
        let key_id: Option<Option<String>> =
            fields.value("kid", "").map_err(|_| TokenError::Malformed)?;
        Ok(Self {
            algorithm: algorithm.ok_or(TokenError::Malformed)?,
            key_id: key_id.flatten(),
            has_extensions: fields.has("crit"),
        })
    }
}

/// The claims of a token.
pub(super) struct Claims {
    /// The value of `exp`, in Unix seconds.
    pub expires: f64,
    /// The value of `nbf`, in Unix seconds.
    pub not_before: Option<f64>,
    /// The value of `aud`.
    pub audience: Option<Vec<String>>,
    /// The value of `iss`.
    pub issuer: Option<String>,
    /// The value of `sub`, as text.
    pub subject: Option<String>,
    /// The value of `channels`.
    pub channels: Vec<String>,
    /// The value of `context`, with `sub` added as `user_id`.
    pub context: Vec<ContextEntry>,
}

impl Claims {
    /// Parses claims whose signature was verified.
    pub(super) fn read(text: &[u8]) -> Result<Self, TokenError> {
        json::check(text).map_err(TokenError::NotJson)?;
        let fields = JsonFields::read(text).map_err(|_| {
            TokenError::Claims("they are not an object in which each name appears once")
        })?;
        fields.number("iat", "iat is not a number")?;
        let expires = fields.number("exp", "exp is not a number")?;
        let wrong_subject = "sub is neither a string nor a 64-bit integer";
        Ok(Self {
            expires: expires.ok_or(TokenError::Claims("exp is missing"))?,
            not_before: fields.number("nbf", "nbf is not a number")?,
            audience: audience(&fields)?,
            issuer: fields.text("iss", "iss is not a string")?,
            subject: fields.user("sub", wrong_subject)?,
            channels: fields.channels()?,
            context: fields.context("sub", wrong_subject)?,
        })
    }
}

/// Parses `aud`: one name, or a list of names (RFC 7519, section 4.1.3).
fn audience(fields: &JsonFields<'_>) -> Result<Option<Vec<String>>, WrongField> {
    if let Ok(name) = fields.text("aud", "") {
        return Ok(name.map(|name| vec![name]));
    }
    fields.value("aud", "aud is neither a string nor a list of strings")
}

impl From<WrongField> for TokenError {
    fn from(WrongField(wrong): WrongField) -> Self {
        Self::Claims(wrong)
    }
}
