//! Access to a parsed JSON text, and to the raw text of its values.

use simd_json::{Node, StaticNode};

use crate::protocol::json::{end_of_string, raw_value};

/// A parsed request.
pub(super) struct JsonDocument<'t, 'a> {
    /// The nodes in the order of the text, each container before its content.
    pub nodes: &'t [Node<'a>],
    /// The text as it was sent.
    pub raw: &'a [u8],
    /// The address of the first byte of the parsed buffer. A key's address minus this is the key's
    /// offset in `raw`.
    pub base: usize,
}

impl<'t, 'a> JsonDocument<'t, 'a> {
    pub(super) fn root(&self) -> Value<'t, 'a> {
        Value(self.nodes)
    }

    /// Returns the raw text of the value that follows `key`, which must be a string of this document.
    pub(super) fn raw_after(&self, key: &str) -> &'a str {
        let opening_quote = key.as_ptr() as usize - self.base - 1;
        let value = raw_value(self.raw, end_of_string(self.raw, opening_quote));
        std::str::from_utf8(value)
            .expect("valid JSON is UTF-8, and a value ends between characters")
    }
}

/// A value: the nodes from its own to the end of the document.
#[derive(Clone, Copy)]
pub(super) struct Value<'t, 'a>(pub &'t [Node<'a>]);

impl<'t, 'a> Value<'t, 'a> {
    /// Returns the number of nodes of this value, including its content.
    pub(super) fn nodes(self) -> usize {
        match self.0[0] {
            Node::Object { count, .. } | Node::Array { count, .. } => 1 + count,
            Node::String(_) | Node::Static(_) => 1,
        }
    }

    /// Returns the text of a string.
    pub(super) fn text(self) -> Option<&'a str> {
        match self.0[0] {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    /// Returns an unsigned integer. The forms `7.0` and `7e0` are accepted, because some languages write
    /// all numbers as floats.
    pub(super) fn unsigned(self) -> Option<u64> {
        match self.0[0] {
            Node::Static(StaticNode::U64(number)) => Some(number),
            Node::Static(StaticNode::I64(number)) => number.try_into().ok(),
            Node::Static(StaticNode::F64(number)) => whole(number),
            _ => None,
        }
    }

    /// Returns a boolean.
    pub(super) fn flag(self) -> Option<bool> {
        match self.0[0] {
            Node::Static(StaticNode::Bool(flag)) => Some(flag),
            _ => None,
        }
    }

    pub(super) fn is_null(self) -> bool {
        matches!(self.0[0], Node::Static(StaticNode::Null))
    }

    pub(super) fn is_object(self) -> bool {
        matches!(self.0[0], Node::Object { .. })
    }

    /// Returns the number of items of an array, or of fields of an object, including repeated fields.
    pub(super) fn len(self) -> usize {
        match self.0[0] {
            Node::Object { len, .. } | Node::Array { len, .. } => len,
            Node::String(_) | Node::Static(_) => 0,
        }
    }

    /// Yields the items of an array. Returns `None` for any other value.
    pub(super) fn items(self) -> Option<impl Iterator<Item = Value<'t, 'a>>> {
        let Node::Array { len, .. } = self.0[0] else { return None };
        let mut rest = &self.0[1..];
        Some((0..len).map(move |_| {
            let item = Value(rest);
            rest = &rest[item.nodes()..];
            item
        }))
    }

    /// Yields the fields of an object. Yields nothing for any other value.
    pub(super) fn fields(self) -> impl Iterator<Item = (&'a str, Value<'t, 'a>)> {
        let length = if let Node::Object { len, .. } = self.0[0] { len } else { 0 };
        let mut rest = &self.0[1..];
        (0..length).map(move |_| {
            let key = Value(rest).text().expect("a key is a string");
            let value = Value(&rest[1..]);
            rest = &rest[1 + value.nodes()..];
            (key, value)
        })
    }

    /// Returns the value of the last field with this name: the last of repeated fields counts.
    pub(super) fn field(self, name: &str) -> Option<Self> {
        self.fields().filter(|(key, _)| *key == name).last().map(|(_, value)| value)
    }
}

/// The largest float below which every integer is exact: 2^53 - 1. A larger client id could be rounded
/// to that of another client.
const FLOAT_MAX: f64 = 9_007_199_254_740_991.0;

fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=FLOAT_MAX).contains(&number)).then_some(number as u64)
}
