//! Reads the fields of a JSON object strictly: a field of the wrong type is an error, never treated as
//! absent, and so is a repeated field.

use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::api::{ContextEntry, NAME_BYTES_MAX};

/// An object without repeated names: each name with the JSON text of its value.
pub struct JsonFields<'t>(HashMap<String, &'t RawValue>);

/// A field has the wrong type or value. Says which one, and what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongField(pub &'static str);

impl fmt::Display for WrongField {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

impl<'t> JsonFields<'t> {
    /// Parses an object.
    ///
    /// # Errors
    /// The text is not a JSON object, or a name is repeated.
    pub fn read(text: &'t [u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(text)
    }

    /// Whether the object has this field, with any value.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Parses the value of a field as a `T`. Returns `None` if the field is absent.
    ///
    /// # Errors
    /// The value has another type. The error carries the message `wrong`.
    pub fn value<T: Deserialize<'t>>(
        &self,
        name: &str,
        wrong: &'static str,
    ) -> Result<Option<T>, WrongField> {
        let value = self.0.get(name).map(|value| serde_json::from_str(value.get()));
        value.transpose().map_err(|_| WrongField(wrong))
    }

    /// Parses the value of a field as a string.
    ///
    /// # Errors
    /// As for [`Self::value`].
    pub fn text(&self, name: &str, wrong: &'static str) -> Result<Option<String>, WrongField> {
        self.value(name, wrong)
    }

    /// Parses the value of a field as a number.
    ///
    /// # Errors
    /// As for [`Self::value`].
    pub fn number(&self, name: &str, wrong: &'static str) -> Result<Option<f64>, WrongField> {
        self.value(name, wrong)
    }

    /// Parses `channels`: a list of names of channels.
    ///
    /// # Errors
    /// The value is no list of strings, or a name is empty or too long.
    pub fn channels(&self) -> Result<Vec<String>, WrongField> {
        let wrong = "channels is not a list of names of 1 to 255 bytes";
        let channels: Vec<String> = self.value("channels", wrong)?.unwrap_or_default();
        match channels.iter().all(|name| is_name(name)) {
            true => Ok(channels),
            false => Err(WrongField(wrong)),
        }
    }

    /// Parses the value of a field as a user: a string, or a 64-bit integer as text.
    ///
    /// # Errors
    /// As for [`Self::value`].
    pub fn user(&self, name: &str, wrong: &'static str) -> Result<Option<String>, WrongField> {
        match self.0.get(name).map(|value| value.get()) {
            Some(number) if is_user(number) && !number.starts_with('"') => {
                Ok(Some(number.to_owned()))
            }
            _ => self.text(name, wrong),
        }
    }

    /// Parses `context`, and adds the field `user` as `user_id`, which replaces a `user_id` in `context`.
    ///
    /// # Errors
    /// `context` is no object with valid keys, or `user` is not a user (`wrong_user`).
    pub fn context(
        &self,
        user: &str,
        wrong_user: &'static str,
    ) -> Result<Vec<ContextEntry>, WrongField> {
        let wrong = "context is not an object with unique keys of 1 to 255 bytes";
        let context: Option<JsonFields<'t>> = self.value("context", wrong)?;
        let mut context = context.map_or_else(HashMap::new, |fields| fields.0);
        if !context.keys().all(|key| is_name(key)) {
            return Err(WrongField(wrong));
        }
        if let Some(&user) = self.0.get(user) {
            if !is_user(user.get()) {
                return Err(WrongField(wrong_user));
            }
            context.insert("user_id".to_owned(), user);
        }
        let entry = |(key, value): (String, &RawValue)| (key.into(), value.get().into());
        let mut entries: Vec<ContextEntry> = context.into_iter().map(entry).collect();
        entries.sort_unstable();
        Ok(entries)
    }
}

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len())
}

/// Whether this is the JSON text of a string or of a 64-bit integer.
fn is_user(json: &str) -> bool {
    json.starts_with('"') || json.parse::<i64>().is_ok() || json.parse::<u64>().is_ok()
}

impl<'de> Deserialize<'de> for JsonFields<'de> {
    // Derived code would also accept an array of the fields in order.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(JsonFieldsVisitor)
    }
}

struct JsonFieldsVisitor;

impl<'de> Visitor<'de> for JsonFieldsVisitor {
    type Value = JsonFields<'de>;

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
        Ok(JsonFields(fields))
    }
}
