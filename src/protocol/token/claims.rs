//! Parses the header and the claims of a token strictly. A field of the wrong type is an error, never
//! treated as absent; so is a repeated field (RFC 7515, section 4; RFC 7519, section 4).

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::TokenError;
use crate::protocol::api::{ContextEntry, NAME_BYTES_MAX};
use crate::protocol::json;

/// The header of a token, which says how it was signed (RFC 7515, section 4).
pub(super) struct JoseHeader {
    /// The value of `alg`.
    pub algorithm: String,
    /// Whether the header has a `crit` field.
    pub has_extensions: bool,
}

impl JoseHeader {
    /// Parses a header. The header is not trusted: the signature is not verified yet.
    pub(super) fn read(text: &[u8]) -> Result<Self, TokenError> {
        let fields = ClaimFields::read(text).map_err(|_| TokenError::Malformed)?;
        let algorithm = fields.text("alg", "").ok().flatten().ok_or(TokenError::Malformed)?;
        Ok(Self { algorithm, has_extensions: fields.0.contains_key("crit") })
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
    /// The value of `channels`.
    pub channels: Vec<String>,
    /// The value of `context`, with `sub` added as `user_id`.
    pub context: Vec<ContextEntry>,
}

impl Claims {
    /// Parses claims whose signature was verified.
    pub(super) fn read(text: &[u8]) -> Result<Self, TokenError> {
        json::check(text).map_err(TokenError::NotJson)?;
        let fields = ClaimFields::read(text).map_err(|_| {
            TokenError::Claims("they are not an object in which each name appears once")
        })?;
        fields.number("iat", "iat is not a number")?;
        let expires = fields.number("exp", "exp is not a number")?;
        Ok(Self {
            expires: expires.ok_or(TokenError::Claims("exp is missing"))?,
            not_before: fields.number("nbf", "nbf is not a number")?,
            audience: fields.audience()?,
            issuer: fields.text("iss", "iss is not a string")?,
            channels: fields.channels()?,
            context: fields.context()?,
        })
    }
}

/// An object without repeated names: each name with the JSON text of its value.
struct ClaimFields<'t>(HashMap<String, &'t RawValue>);

impl<'t> ClaimFields<'t> {
    fn read(text: &'t [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Parses the value of a field as a `T`. Fails with the message `wrong` if it has another type.
    fn value<T: Deserialize<'t>>(
        &self,
        name: &str,
        wrong: &'static str,
    ) -> Result<Option<T>, TokenError> {
        let value = self.0.get(name).map(|value| serde_json::from_str(value.get()));
        value.transpose().map_err(|_| TokenError::Claims(wrong))
    }

    fn text(&self, name: &str, wrong: &'static str) -> Result<Option<String>, TokenError> {
        self.value(name, wrong)
    }

    fn number(&self, name: &str, wrong: &'static str) -> Result<Option<f64>, TokenError> {
        self.value(name, wrong)
    }

    /// Parses `aud`: one name, or a list of names (RFC 7519, section 4.1.3).
    fn audience(&self) -> Result<Option<Vec<String>>, TokenError> {
        if let Ok(name) = self.text("aud", "") {
            return Ok(name.map(|name| vec![name]));
        }
        self.value("aud", "aud is neither a string nor a list of strings")
    }

    fn channels(&self) -> Result<Vec<String>, TokenError> {
        let wrong = "channels is not a list of names of 1 to 255 bytes";
        let channels: Vec<String> = self.value("channels", wrong)?.unwrap_or_default();
        match channels.iter().all(|name| is_name(name)) {
            true => Ok(channels),
            false => Err(TokenError::Claims(wrong)),
        }
    }

    /// Parses `context` and adds `sub` as `user_id`, which replaces a `user_id` in `context`.
    fn context(&self) -> Result<Vec<ContextEntry>, TokenError> {
        let wrong = "context is not an object with unique keys of 1 to 255 bytes";
        let claim: Option<ClaimFields<'t>> = self.value("context", wrong)?;
        let mut claim = claim.map_or_else(HashMap::new, |fields| fields.0);
        if !claim.keys().all(|key| is_name(key)) {
            return Err(TokenError::Claims(wrong));
        }
        if let Some(&subject) = self.0.get("sub") {
            if !is_subject(subject.get()) {
                return Err(TokenError::Claims("sub is neither a string nor a 64-bit integer"));
            }
            claim.insert("user_id".to_owned(), subject);
        }
        let entry = |(key, value): (String, &RawValue)| (key.into(), value.get().into());
        let mut entries: Vec<ContextEntry> = claim.into_iter().map(entry).collect();
        entries.sort_unstable();
        Ok(entries)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
}

/// Whether this is the JSON text of a string or of a 64-bit integer.
fn is_subject(json: &str) -> bool {
    json.starts_with('"') || json.parse::<i64>().is_ok() || json.parse::<u64>().is_ok()
}

impl<'de> Deserialize<'de> for ClaimFields<'de> {
    // Derived code would also accept an array of the fields in order.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ClaimFieldsVisitor)
    }
}

struct ClaimFieldsVisitor;

impl<'de> Visitor<'de> for ClaimFieldsVisitor {
    type Value = ClaimFields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = HashMap::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if fields.insert(name, value).is_some() {
                return Err(Error::custom("a name is repeated"));
            }
        }
        Ok(ClaimFields(fields))
    }
}
