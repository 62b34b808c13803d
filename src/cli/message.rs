//! Messages of the API: answers and events. Results keep the text that the API wrote.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::explain::ApiError;

/// A message from the server.
#[derive(Debug)]
pub(super) enum Incoming {
    /// The answer to the request with this id, or to one that the server could not read.
    Answer { id: Option<u64>, result: Result<Box<RawValue>, ApiError> },
    /// An event with its `p`.
    Event { params: Box<RawValue> },
    /// Anything else, such as a pong.
    Other,
}

impl Incoming {
    /// Parses a text message.
    pub(super) fn parse(text: &str) -> Self {
        #[derive(Deserialize)]
        struct EnvelopeFields<'a> {
            #[serde(rename = "E", default)]
            error: Option<ApiError>,
            #[serde(borrow, default)]
            r: Option<&'a RawValue>,
            #[serde(default)]
            i: Option<u64>,
            #[serde(borrow, default)]
            e: Option<&'a RawValue>,
            #[serde(borrow, default)]
            p: Option<&'a RawValue>,
        }
        match serde_json::from_str(text) {
            Ok(EnvelopeFields { error: Some(error), i, .. }) => {
                Self::Answer { id: i, result: Err(error) }
            }
            Ok(EnvelopeFields { r: Some(r), i, .. }) => {
                Self::Answer { id: i, result: Ok(r.to_owned()) }
            }
            Ok(EnvelopeFields { e: Some(_), p: Some(p), .. }) => {
                Self::Event { params: p.to_owned() }
            }
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_keeps_its_text() {
        let text = r#"{"E":null,"r":{"s": 1.0,"f":18446744073709551616},"i":7}"#;
        let Incoming::Answer { id: Some(7), result: Ok(result) } = Incoming::parse(text) else {
            panic!("an answer")
        };
        assert_eq!(result.get(), r#"{"s": 1.0,"f":18446744073709551616}"#);
    }

    #[test]
    fn an_error_and_an_event_are_told_apart() {
        let text = r#"{"E":{"c":101,"m":"m: missing"},"i":null}"#;
        let Incoming::Answer { id: None, result: Err(error) } = Incoming::parse(text) else {
            panic!("an answer")
        };
        assert_eq!((error.code, &error.reason[..]), (101, "m: missing"));
        let text = r#"{"e":"queue.pop","p":{"n":1},"id":null}"#;
        let Incoming::Event { params } = Incoming::parse(text) else { panic!("an event") };
        assert_eq!(params.get(), r#"{"n":1}"#);
    }

    #[test]
    fn anything_else_is_no_error() {
        for text in ["pong", "", "{}", "[]", r#"{"e":"x"}"#] {
            assert!(matches!(Incoming::parse(text), Incoming::Other), "{text}");
        }
    }
}
