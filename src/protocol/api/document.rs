//! A parsed JSON text, and the text of its values as it was sent.

use simd_json::{Node, StaticNode};

use crate::protocol::json::{end_of_string, raw_value};

/// A parsed request: nodes in the order of the text, each container before what it holds.
pub struct Document<'t, 'a> {
    pub nodes: &'t [Node<'a>],
    pub raw: &'a [u8],
    // The address of the input's first byte: a key's address tells its place in `raw`.
    pub base: usize,
}

impl<'t, 'a> Document<'t, 'a> {
    pub fn root(&self) -> Value<'t, 'a> {
        Value(self.nodes)
    }

    /// The text of the value after a key or an item that is a string.
    pub fn raw_after(&self, key: &str) -> &'a str {
        let opening_quote = key.as_ptr() as usize - self.base - 1;
        let value = raw_value(self.raw, end_of_string(self.raw, opening_quote));
        std::str::from_utf8(value)
            .expect("valid JSON is UTF-8, and a value ends between characters")
    }
}

/// A value, with what it holds and all that follows it.
#[derive(Clone, Copy)]
pub struct Value<'t, 'a>(pub &'t [Node<'a>]);

impl<'t, 'a> Value<'t, 'a> {
    pub fn nodes(self) -> usize {
        match self.0[0] {
            Node::Object { count, .. } | Node::Array { count, .. } => 1 + count,
            Node::String(_) | Node::Static(_) => 1,
        }
    }

    pub fn text(self) -> Option<&'a str> {
        match self.0[0] {
            Node::String(text) => Some(text),
            _ => None,
        }
    }

    /// A whole number, also in the form `7.0` or `7e0`: some languages write every number so.
    pub fn unsigned(self) -> Option<u64> {
        match self.0[0] {
            Node::Static(StaticNode::U64(number)) => Some(number),
            Node::Static(StaticNode::I64(number)) => number.try_into().ok(),
            Node::Static(StaticNode::F64(number)) => whole(number),
            _ => None,
        }
    }

    pub fn flag(self) -> Option<bool> {
        match self.0[0] {
            Node::Static(StaticNode::Bool(flag)) => Some(flag),
            _ => None,
        }
    }

    pub fn is_null(self) -> bool {
        matches!(self.0[0], Node::Static(StaticNode::Null))
    }

    pub fn is_object(self) -> bool {
        matches!(self.0[0], Node::Object { .. })
    }

    /// How many items an array has, or fields an object, repeated ones included.
    pub fn len(self) -> usize {
        match self.0[0] {
            Node::Object { len, .. } | Node::Array { len, .. } => len,
            Node::String(_) | Node::Static(_) => 0,
        }
    }

    /// The items of an array; `None` if it is something else.
    pub fn items(self) -> Option<impl Iterator<Item = Value<'t, 'a>>> {
        let Node::Array { len, .. } = self.0[0] else { return None };
        let mut rest = &self.0[1..];
        Some((0..len).map(move |_| {
            let item = Value(rest);
            rest = &rest[item.nodes()..];
            item
        }))
    }

    /// The fields of an object; none if it is something else.
    pub fn fields(self) -> impl Iterator<Item = (&'a str, Value<'t, 'a>)> {
        let length = if let Node::Object { len, .. } = self.0[0] { len } else { 0 };
        let mut rest = &self.0[1..];
        (0..length).map(move |_| {
            let key = Value(rest).text().expect("a key is a string");
            let value = Value(&rest[1..]);
            rest = &rest[1 + value.nodes()..];
            (key, value)
        })
    }

    /// The last field of this name: duplicates are resolved so.
    pub fn field(self, name: &str) -> Option<Value<'t, 'a>> {
        self.fields().filter(|(key, _)| *key == name).last().map(|(_, value)| value)
    }
}

/// Larger floats do not hold every whole number: a client id would become another.
const FLOAT_MAX: f64 = 9_007_199_254_740_991.0;

fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..=FLOAT_MAX).contains(&number)).then_some(number as u64)
}
