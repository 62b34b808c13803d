//! Shapes of values: what a key may be set to, how it is read, and what to call that.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::document::{ConfigError, Section, whole_number};
use crate::address::listen::ListenAddress;
use crate::protocol::api::NAME_BYTES_MAX;

/// The values that a key may have.
pub(super) trait ValueShape {
    /// The type that a value is read as.
    type Value;

    /// Whether no message shows a value.
    const IS_SECRET: bool = false;

    /// Whether a value is the path of a file that the node reads.
    const IS_FILE: bool = false;

    /// The values in words, as they follow "expected".
    fn expected(&self) -> String;

    /// Reads the value at `key`; `None` if nothing is written there.
    ///
    /// # Errors
    /// The value has another shape. The error names the place and what was expected.
    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<Self::Value>, ConfigError>;
}

/// A shape whose values can be written as TOML, for defaults.
pub(super) trait Literal: ValueShape {
    /// The value as TOML.
    fn literal(&self, value: &Self::Value) -> String;
}

/// Whether no message shows the values of a shape.
pub(super) fn is_secret<S: ValueShape>(_: &S) -> bool {
    S::IS_SECRET
}

/// Whether the values of a shape are paths of files.
pub(super) fn is_file<S: ValueShape>(_: &S) -> bool {
    S::IS_FILE
}

/// The values of a shape in words, where the type of the values is known and that of the shape is not.
pub(super) fn expected_of<T, S: ValueShape<Value = T>>(shape: &S) -> String {
    shape.expected()
}

/// A whole number within bounds.
pub(super) struct WholeNumber<T> {
    /// The words after "number": `" of bytes"`, or nothing.
    unit: &'static str,
    bounds: RangeInclusive<T>,
}

/// A whole number without a unit.
pub(super) fn whole<T>(bounds: RangeInclusive<T>) -> WholeNumber<T> {
    WholeNumber { unit: "", bounds }
}

/// A number of bytes.
pub(super) fn bytes<T>(bounds: RangeInclusive<T>) -> WholeNumber<T> {
    WholeNumber { unit: " of bytes", bounds }
}

/// A number of milliseconds.
pub(super) fn milliseconds(bounds: RangeInclusive<u64>) -> WholeNumber<u64> {
    WholeNumber { unit: " of milliseconds", bounds }
}

/// A number of `unit`, which is written `" of seconds"`.
pub(super) fn whole_of<T>(unit: &'static str, bounds: RangeInclusive<T>) -> WholeNumber<T> {
    WholeNumber { unit, bounds }
}

/// A limit of which 0 means unlimited.
pub(super) fn limit() -> WholeNumber<u32> {
    whole(0..=1_000_000)
}

impl<T: TryFrom<i64> + PartialOrd + Display> ValueShape for WholeNumber<T> {
    type Value = T;

    fn expected(&self) -> String {
        let Self { unit, bounds } = self;
        format!("a whole number{unit} from {} to {}", bounds.start(), bounds.end())
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<T>, ConfigError> {
        section.read(key, &self.expected(), |value| {
            whole_number(value).filter(|number| self.bounds.contains(number))
        })
    }
}

impl<T: TryFrom<i64> + PartialOrd + Display> Literal for WholeNumber<T> {
    fn literal(&self, value: &T) -> String {
        value.to_string()
    }
}

/// Yes or no.
pub(super) struct Switch;

impl ValueShape for Switch {
    type Value = bool;

    fn expected(&self) -> String {
        "true or false".to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<bool>, ConfigError> {
        section.read(key, &self.expected(), |value| value.as_bool())
    }
}

impl Literal for Switch {
    fn literal(&self, value: &bool) -> String {
        value.to_string()
    }
}

/// One of a few words, each with what it stands for.
pub(super) struct Choice<T: 'static>(pub(super) &'static [(&'static str, T)]);

impl<T: Copy> ValueShape for Choice<T> {
    type Value = T;

    fn expected(&self) -> String {
        let words: Vec<String> = self.0.iter().map(|(word, _)| format!("{word:?}")).collect();
        words.join(" or ")
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<T>, ConfigError> {
        section.read_text(key, &self.expected(), |written| {
            self.0.iter().find(|(word, _)| *word == written).map(|(_, choice)| *choice)
        })
    }
}

impl<T: Copy + PartialEq> Literal for Choice<T> {
    fn literal(&self, value: &T) -> String {
        let word = self.0.iter().find(|(_, choice)| choice == value);
        format!("{:?}", word.expect("a default is one of the choices").0)
    }
}

/// A string that stands for a value.
pub(super) struct Text<T> {
    /// The strings in words.
    pub(super) expected: &'static str,
    /// The value that a string stands for; `None` for one that is not allowed.
    pub(super) parse: fn(&str) -> Option<T>,
}

impl<T> ValueShape for Text<T> {
    type Value = T;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<T>, ConfigError> {
        section.read_text(key, self.expected, self.parse)
    }
}

impl<T: Display> Literal for Text<T> {
    fn literal(&self, value: &T) -> String {
        format!("{:?}", value.to_string())
    }
}

/// An IP address and a port. The port of the example is no listener's default.
pub(super) const ADDRESS: Text<SocketAddr> = Text {
    expected: "an IP address and port such as \"127.0.0.1:7000\"",
    parse: |text| text.parse().ok(),
};

/// The address of a listener.
pub(super) const LISTEN: Text<ListenAddress> = Text {
    expected: "an IP address and port such as \"127.0.0.1:7000\", or the path of a Unix socket such as \
               \"unix:/run/gridcast/a.sock\"",
    parse: |text| text.parse().ok(),
};

/// An address that others can connect to.
pub(super) const REACHABLE: Text<SocketAddr> = Text {
    expected: "an IP address and port that others can connect to, such as \"10.0.0.5:7000\"; not \
               0.0.0.0, [::] or port 0",
    parse: |text| {
        (ADDRESS.parse)(text)
            .filter(|address| !address.ip().is_unspecified() && address.port() != 0)
    },
};

/// The name of a topic, a group or a sink.
pub(super) const NAME: Text<String> = Text {
    expected: "a name of 1 to 255 bytes",
    parse: |text| (1..=NAME_BYTES_MAX).contains(&text.len()).then(|| text.to_owned()),
};

/// A string that no message shows.
pub(super) struct SecretText<T> {
    /// The strings in words.
    pub(super) expected: &'static str,
    /// The value that a string stands for, or what was expected instead.
    pub(super) parse: fn(&str) -> Result<T, String>,
}

impl<T> ValueShape for SecretText<T> {
    type Value = T;

    const IS_SECRET: bool = true;

    fn expected(&self) -> String {
        self.expected.to_owned()
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<T>, ConfigError> {
        let Some(text) = section.secret(key) else { return Ok(None) };
        let refused = |expected: String| section.fault(&[key], format!("expected {expected}"));
        (self.parse)(text).map(Some).map_err(refused)
    }
}

/// A list of strings, each of which stands for a value.
pub(super) struct List<T> {
    /// The strings in words.
    pub(super) expected: &'static str,
    /// The value that a string stands for, or what was expected instead.
    pub(super) parse: fn(&str) -> Result<T, String>,
    /// Why an empty list is refused, if it is.
    pub(super) empty: Option<&'static str>,
}

impl<T> ValueShape for List<T> {
    type Value = Vec<T>;

    fn expected(&self) -> String {
        format!("a list of strings, each {}", self.expected)
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<Vec<T>>, ConfigError> {
        let Some(items) = section.strings(key)? else { return Ok(None) };
        if let Some(reason) = self.empty.filter(|_| items.is_empty()) {
            return Err(section.fault(&[key], reason));
        }
        let parse = |item: &DeValue<'_>| {
            let text = item.as_str().ok_or_else(|| self.expected.to_owned());
            let parsed = text.and_then(self.parse);
            parsed.map_err(|expected| section.mismatch(key, &expected, item))
        };
        items.into_iter().map(parse).collect::<Result<_, _>>().map(Some)
    }
}

impl<T> Literal for List<T> {
    fn literal(&self, value: &Vec<T>) -> String {
        assert!(value.is_empty(), "a list that is a default is empty");
        "[]".to_owned()
    }
}

/// A list out of a few words, and what those that are in it stand for together.
pub(super) struct Words<T> {
    /// The words.
    pub(super) words: &'static [&'static str],
    /// The value of a list, told which words are in it, or why it is refused.
    pub(super) collect: fn(&Has<'_>) -> Result<T, &'static str>,
}

/// Whether a word is in a list.
pub(super) type Has<'a> = dyn Fn(&str) -> bool + 'a;

impl<T> Words<T> {
    fn any_of(&self) -> String {
        let words: Vec<String> = self.words.iter().map(|word| format!("{word:?}")).collect();
        let (last, others) = words.split_last().expect("there are a few words");
        format!("{} or {last}", others.join(", "))
    }
}

impl<T> ValueShape for Words<T> {
    type Value = T;

    fn expected(&self) -> String {
        format!("a list of {}", self.any_of())
    }

    fn read(&self, section: &Section<'_>, key: &str) -> Result<Option<T>, ConfigError> {
        let Some(items) = section.strings(key)? else { return Ok(None) };
        let is_word =
            |item: &DeValue<'_>| item.as_str().is_some_and(|text| self.words.contains(&text));
        if let Some(other) = items.iter().find(|item| !is_word(item)) {
            return Err(section.mismatch(key, &self.any_of(), other));
        }
        let has = |word: &str| items.iter().any(|item| item.as_str() == Some(word));
        (self.collect)(&has).map(Some).map_err(|reason| section.fault(&[key], reason))
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::{refused, route};

    #[test]
    fn a_number_out_of_bounds_or_of_another_type_is_refused() {
        let expected = "gridcast.toml:2: limits.ping_ms: expected a whole number of milliseconds from \
                        1 to 3600000, found ";
        for value in
            ["\"30s\"", "0", "-1", "3600001", "1.5", "true", "99999999999999999999999", "{}"]
        {
            let shown = if value == "{}" { "a table" } else { value };
            refused(&format!("[limits]\nping_ms = {value}"), &format!("{expected}{shown}"));
        }
        refused(
            "node.id = 1024",
            "gridcast.toml:1: node.id: expected a whole number from 0 to 1023, found 1024",
        );
    }

    #[test]
    fn a_word_out_of_a_few_is_refused_with_all_of_them() {
        refused(
            "[queue]\nwhen_full = \"wait\"",
            "gridcast.toml:2: queue.when_full: expected \"hold\" or \"drop_oldest\" or \"close\", \
             found \"wait\"",
        );
        refused(
            "[limits]\nslow_client = 1",
            "gridcast.toml:2: limits.slow_client: expected \"close\" or \"drop\", found 1",
        );
        refused(
            &route("handler = \"ecco\""),
            "gridcast.toml:4: edge.route.handler: expected \"echo\", found \"ecco\"",
        );
    }

    #[test]
    fn an_address_is_an_ip_and_a_port() {
        let expected = "expected an IP address and port such as \"127.0.0.1:7000\", or the path of a \
                        Unix socket such as \"unix:/run/gridcast/a.sock\"";
        for bind in ["\"localhost:6790\"", "\"127.0.0.1\"", "6790", "\"127.0.0.1:65536\""] {
            refused(
                &format!("[[edge]]\nbind = {bind}"),
                &format!("gridcast.toml:2: edge.bind: {expected}, found {bind}"),
            );
        }
        let expected = "expected an IP address and port that others can connect to, such as \
                        \"10.0.0.5:7000\"; not 0.0.0.0, [::] or port 0";
        for advertise in ["\"0.0.0.0:6789\"", "\"[::]:6789\"", "\"10.0.0.5:0\""] {
            refused(
                &format!("[api]\nadvertise = {advertise}"),
                &format!("gridcast.toml:2: api.advertise: {expected}, found {advertise}"),
            );
        }
    }

    #[test]
    fn a_list_is_refused_with_the_item_that_is_wrong() {
        refused(
            &route("topic = \"a\"\nevents = [\"open\", \"closed\"]"),
            "gridcast.toml:5: edge.route.events: expected \"open\", \"message\" or \"close\", found \
             \"closed\"",
        );
        refused(
            &route("subscribe = \"*\""),
            "gridcast.toml:4: edge.route.subscribe: expected a list of at most 1024 strings, found \
             \"*\"",
        );
        refused(
            &route("subscribe = [\"a*b\"]"),
            "gridcast.toml:4: edge.route.subscribe: expected a channel's name, or the beginning of \
             one and \"*\", without commas: they separate channels, found \"a*b\"",
        );
    }
}
