//! The JSON object that back ends attach to a client.

use std::borrow::Cow;

use crate::protocol::api::{CONTEXT_KEYS_MAX, ContextEntry};
use crate::protocol::json::put_string;

/// Maximum size of a client's context, in bytes of JSON. Each event of the client carries the
/// context.
const CONTEXT_BYTES_MAX: usize = 64 * 1024;

/// A client's context. An empty context has the size of one pointer.
#[derive(Debug, Default)]
pub struct Context(Option<Box<Filled>>);

#[derive(Debug)]
struct Filled {
    entries: Vec<ContextEntry>,
    json: String,
}

/// The context would exceed [`CONTEXT_KEYS_MAX`] keys or 64 KiB.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

impl Context {
    /// Returns the context as JSON. `None` if it is empty.
    pub fn json(&self) -> Option<&str> {
        self.0.as_ref().map(|filled| &filled.json[..])
    }

    /// Returns the memory taken, in bytes.
    pub fn held_bytes(&self) -> usize {
        // Two pointers with lengths, and the overhead of two allocations.
        let entry = |(key, value): &ContextEntry| key.len() + value.len() + 32 + 2 * 24;
        self.0.as_ref().map_or(0, |filled| {
            filled.json.capacity() + filled.entries.iter().map(entry).sum::<usize>()
        })
    }

    /// Returns the user of the client, as text.
    pub fn user(&self) -> Option<Cow<'_, str>> {
        user_of(&self.0.as_ref()?.entries)
    }

    /// Whether the context has this key.
    pub fn has(&self, key: &str) -> bool {
        self.0
            .as_ref()
            .is_some_and(|filled| filled.entries.iter().any(|(known, _)| **known == *key))
    }

    /// Sets one key to a value given as JSON.
    ///
    /// # Errors
    /// The context would be too large. The old context is kept.
    pub fn set(&mut self, key: Box<str>, value: Box<str>) -> Result<(), TooLarge> {
        let mut entries = self.0.as_ref().map_or(Vec::new(), |filled| filled.entries.clone());
        match entries.iter_mut().find(|(known, _)| *known == key) {
            Some(entry) => entry.1 = value,
            None => entries.push((key, value)),
        }
        self.replace(entries)
    }

    /// Adds entries. An entry replaces an earlier one with the same key.
    ///
    /// # Errors
    /// The context would be too large. The old context is kept.
    pub fn extend(&mut self, entries: Vec<ContextEntry>) -> Result<(), TooLarge> {
        let mut all = self.0.as_ref().map_or(Vec::new(), |filled| filled.entries.clone());
        all.retain(|(key, _)| !entries.iter().any(|(new, _)| new == key));
        all.extend(entries);
        self.replace(all)
    }

    /// Replaces the whole context.
    ///
    /// # Errors
    /// The context would be too large. The old context is kept.
    pub fn replace(&mut self, entries: Vec<ContextEntry>) -> Result<(), TooLarge> {
        let json = to_json(&entries);
        if entries.len() > CONTEXT_KEYS_MAX || json.len() > CONTEXT_BYTES_MAX {
            return Err(TooLarge);
        }
        self.0 = (!entries.is_empty()).then(|| Box::new(Filled { entries, json }));
        Ok(())
    }
}

/// Returns the user that a context names, as text: the value of `user_id`, a string or a number.
pub(super) fn user_of(entries: &[ContextEntry]) -> Option<Cow<'_, str>> {
    let (_, value) = entries.iter().find(|(key, _)| **key == *"user_id")?;
    match value.bytes().next()? {
        // Without a backslash the text stands as it is between the quotation marks.
        b'"' if !value.contains('\\') => {
            Some(Cow::Borrowed(value.strip_prefix('"')?.strip_suffix('"')?))
        }
        b'"' => serde_json::from_str(value).ok().map(Cow::Owned),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(value)),
        _ => None,
    }
}

fn to_json(entries: &[ContextEntry]) -> String {
    let mut out = vec![b'{'];
    for (at, (key, value)) in entries.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        put_string(&mut out, key);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
    String::from_utf8(out).expect("keys and values are text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_a_key_again_replaces_it_and_an_empty_context_is_none() {
        let mut context = Context::default();
        context.set("a".into(), "1".into()).unwrap();
        context.set("b\"".into(), "[2]".into()).unwrap();
        context.set("a".into(), "null".into()).unwrap();
        assert_eq!(context.json(), Some(r#"{"a":null,"b\"":[2]}"#));
        assert!(context.has("a") && !context.has("c"));
        context.replace(Vec::new()).unwrap();
        assert_eq!(context.json(), None);
    }

    #[test]
    fn entries_that_are_added_replace_those_of_the_same_key() {
        let entry = |key: &str, value: &str| (Box::from(key), Box::from(value));
        let mut context = Context::default();
        context.extend(vec![entry("a", "1"), entry("b", "2")]).unwrap();
        context.extend(vec![entry("a", "3"), entry("c", "4")]).unwrap();
        assert_eq!(context.json(), Some(r#"{"b":2,"a":3,"c":4}"#));
    }

    #[test]
    fn the_user_of_a_client_is_a_string_or_a_number() {
        let user = |value: &str| {
            let mut context = Context::default();
            context.set("user_id".into(), value.into()).unwrap();
            context.user().map(Cow::into_owned)
        };
        assert_eq!(user(r#""a\"b\u00e9""#).as_deref(), Some("a\"b\u{e9}"));
        assert_eq!(user("\"a/é\"").as_deref(), Some("a/é"));
        assert_eq!(user("\"\"").as_deref(), Some(""));
        assert_eq!(user("10000").as_deref(), Some("10000"));
        assert_eq!((user("null"), user("true"), user("[1]")), (None, None, None));
        assert_eq!(Context::default().user(), None);
    }

    #[test]
    fn a_context_that_would_be_too_large_is_unchanged() {
        let mut context = Context::default();
        context.set("a".into(), "1".into()).unwrap();
        let long = format!("\"{}\"", "x".repeat(CONTEXT_BYTES_MAX)).into();
        assert_eq!(context.set("b".into(), long), Err(TooLarge));
        let many = (0..=CONTEXT_KEYS_MAX).map(|n| (n.to_string().into(), "0".into())).collect();
        assert_eq!(context.replace(many), Err(TooLarge));
        assert_eq!(context.json(), Some(r#"{"a":1}"#));
    }
}
