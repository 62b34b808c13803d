//! The two JSON objects of a token, read strictly: a field of the wrong type is never as good as
//! absent, and one that is there twice has no meaning (RFC 7515, section 4; RFC 7519, section 4).

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::TokenError;
use crate::protocol::api::{ContextEntry, NAME_BYTES_MAX};
use crate::protocol::json;

/// What a token says of the way it was signed.
pub(super) struct Head {
    /// `alg`
    pub algorithm: String,
    /// Whether there is a `crit`, whatever it asks for.
    pub has_extensions: bool,
}

impl Head {
    /// Reads a header, which anybody may have written.
    pub fn read(text: &[u8]) -> Result<Self, TokenError> {
        let fields = Fields::read(text).map_err(|_| TokenError::Malformed)?;
        let algorithm = fields.text("alg", "").ok().flatten().ok_or(TokenError::Malformed)?;
        Ok(Self { algorithm, has_extensions: fields.0.contains_key("crit") })
    }
}

/// What a token says of its bearer.
pub(super) struct Claims {
    /// `exp`, in seconds.
    pub expires: f64,
    /// `nbf`, in seconds.
    pub not_before: Option<f64>,
    /// `aud`
    pub audience: Option<Vec<String>>,
    /// `iss`
    pub issuer: Option<String>,
    /// `channels`
    pub channels: Vec<String>,
    /// `context`, with `sub` as `user_id` in it.
    pub context: Vec<ContextEntry>,
}

impl Claims {
    /// Reads claims whose signature is known to be right.
    pub fn read(text: &[u8]) -> Result<Self, TokenError> {
        json::check(text).map_err(TokenError::NotJson)?;
        let fields = Fields::read(text).map_err(|_| {
            TokenError::Claims("they are not an object in which every name is there once")
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

/// An object whose names are there once, each with the text of its value.
struct Fields<'t>(HashMap<String, &'t RawValue>);

impl<'t> Fields<'t> {
    fn read(text: &'t [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// The value of a field as a `T`; what is none is told as `wrong`.
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

    /// One name, or a list of names (RFC 7519, section 4.1.3).
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

    /// `sub` is `user_id`, whatever the claim `context` says.
    fn context(&self) -> Result<Vec<ContextEntry>, TokenError> {
        let wrong = "context is not an object with keys of 1 to 255 bytes, each there once";
        let claim: Option<Fields<'t>> = self.value("context", wrong)?;
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

/// Whether the text of a value is that of a string or of an integer.
fn is_subject(json: &str) -> bool {
    json.starts_with('"') || json.parse::<i64>().is_ok() || json.parse::<u64>().is_ok()
}

impl<'de> Deserialize<'de> for Fields<'de> {
    // Derived code would take an array for the fields in their order.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = HashMap::new();
        while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
            if fields.insert(name, value).is_some() {
                return Err(Error::custom("a name is there twice"));
            }
        }
        Ok(Fields(fields))
    }
}
