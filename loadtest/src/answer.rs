//! Answers of the API.

use std::fmt;

use anyhow::{Context, Result, bail};
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

/// The number of connections that took a message, and of those that did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Tally {
    /// Connections that took the message; 1 for a message to one client.
    #[serde(deserialize_with = "number_or_true")]
    pub s: u64,
    /// Connections that did not take the message.
    #[serde(default)]
    pub f: u64,
}

impl Tally {
    /// Reads the answer to a publish or a send, like [`Answer::parse`], but faster if it has the usual form.
    ///
    /// # Errors
    /// [`Answer::parse`] fails.
    pub fn parse(json: &[u8]) -> Result<(Option<u32>, Self)> {
        parse_usual(json).map_or_else(|| Answer::parse(json), Ok)
    }
}

/// Reads the answer to a successful publish in its usual form, `{"E":null,"r":{"s":9,"f":1},"i":7}`, over HTTP
/// without `i`. `None`: it has another form.
fn parse_usual(json: &[u8]) -> Option<(Option<u32>, Tally)> {
    let (s, rest) = take_number(json.strip_prefix(br#"{"E":null,"r":{"s":"#)?)?;
    let (f, rest) = take_number(rest.strip_prefix(br#","f":"#)?)?;
    let tally = Tally { s, f };
    if rest == b"}}" {
        return Some((None, tally));
    }
    let (i, rest) = take_number(rest.strip_prefix(br#"},"i":"#)?)?;
    (rest == b"}").then_some((Some(i.try_into().ok()?), tally))
}

/// The whole number at the start of `json`, and the rest. As in JSON, only 0 starts with a 0 (RFC 8259,
/// section 6).
pub fn take_number(json: &[u8]) -> Option<(u64, &[u8])> {
    let length = json.iter().position(|byte| !byte.is_ascii_digit())?;
    let (digits @ ([b'0'] | [b'1'..=b'9', ..]), rest) = json.split_at(length) else { return None };
    let add = |number: u64, digit: &u8| number.checked_mul(10)?.checked_add((digit - b'0').into());
    Some((digits.iter().try_fold(0, add)?, rest))
}

/// The result of a publish is a number, that of a send is `true`.
fn number_or_true<'a, D: Deserializer<'a>>(deserializer: D) -> Result<u64, D::Error> {
    struct Reached;

    impl Visitor<'_> for Reached {
        type Value = u64;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a number, or whether it was sent")
        }

        fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
            Ok(number)
        }

        fn visit_bool<E>(self, is_so: bool) -> Result<u64, E> {
            Ok(is_so.into())
        }
    }

    deserializer.deserialize_any(Reached)
}

/// An answer of the API, as defined by the protocol.
#[derive(Deserialize)]
pub struct Answer<R> {
    #[serde(rename = "E")]
    error: Option<Failure>,
    r: Option<R>,
    /// The id of the request; absent over HTTP.
    i: Option<u32>,
}

#[derive(Deserialize)]
struct Failure {
    c: i64,
    m: String,
}

impl<R: DeserializeOwned> Answer<R> {
    /// Reads an answer. Returns the id of the request and the result.
    ///
    /// # Errors
    /// The data is not an answer, or the answer reports a failure.
    pub fn parse(json: &[u8]) -> Result<(Option<u32>, R)> {
        let answer: Self = serde_json::from_slice(json)
            .with_context(|| format!("not an answer: {}", String::from_utf8_lossy(json)))?;
        if let Some(Failure { c, m }) = answer.error {
            bail!("the server answered with error {c}: {m}");
        }
        Ok((answer.i, answer.r.context("an answer without result and without error")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_gives_its_id_and_result() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1},"i":7}"#);
        assert_eq!(answer.expect("it reports success"), (Some(7), Tally { s: 9, f: 1 }));
    }

    #[test]
    fn an_answer_over_http_has_no_id() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":9,"f":1}}"#);
        assert_eq!(answer.expect("it reports success").0, None);
    }

    #[test]
    fn a_client_that_was_sent_to_is_one_that_was_reached() {
        let answer = Answer::<Tally>::parse(br#"{"E":null,"r":{"s":true},"i":7}"#);
        assert_eq!(answer.expect("it reports success").1, Tally { s: 1, f: 0 });
    }

    #[test]
    fn the_usual_answer_is_read_without_a_look_at_it_as_json() {
        let tally = Tally { s: u64::MAX, f: 10 };
        for (json, i) in [
            (r#"{"E":null,"r":{"s":18446744073709551615,"f":10},"i":4294967295}"#, Some(u32::MAX)),
            (r#"{"E":null,"r":{"s":18446744073709551615,"f":10},"i":0}"#, Some(0)),
            (r#"{"E":null,"r":{"s":18446744073709551615,"f":10}}"#, None),
        ] {
            assert_eq!(parse_usual(json.as_bytes()), Some((i, tally)), "{json}");
        }
    }

    #[test]
    fn every_answer_reads_the_same_whether_it_is_usual_or_not() {
        let usual = r#"{"E":null,"r":{"s":120,"f":30},"i":45}"#;
        let mut texts: Vec<_> = [
            r#"{"E":null,"r":{"s":0,"f":0},"i":0}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":4294967295}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":4294967296}"#,
            r#"{"E":null,"r":{"s":18446744073709551615,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":18446744073709551616,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":01,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":1,"f":00},"i":1}"#,
            r#"{"E":null,"r":{"s":-1,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":1.5,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":1e3,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":,"f":0},"i":1}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":null}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":"7"}"#,
            r#"{"E":null,"r":{"s":1,"f":2}}"#,
            r#"{"i":7,"r":{"f":2,"s":1},"E":null}"#,
            r#" { "E" : null, "r": {"s":1,"f":2}, "i": 7 } "#,
            r#"{"E":null,"r":{"s":true},"i":7}"#,
            r#"{"E":null,"r":{"s":1},"i":7}"#,
            r#"{"E":null,"r":null,"i":7}"#,
            r#"{"E":{"c":101,"m":"why"},"r":{"s":1,"f":2},"i":7}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":7}}"#,
            r#"{"E":null,"r":{"s":1,"f":2},"i":7,"i":8}"#,
        ]
        .map(str::to_owned)
        .into();
        // The usual form with every kind of damage: truncated, with a byte added, with a byte changed.
        for at in 0..=usual.len() {
            texts.push(usual[..at].into());
            for byte in ["0", "9", " ", "}", ",", "x"] {
                texts.push([&usual[..at], byte, &usual[at..]].concat());
                texts.push([&usual[..at], byte, usual.get(at + 1..).unwrap_or("")].concat());
            }
        }
        for text in texts {
            let [one, other] = [Tally::parse, Answer::parse]
                .map(|parse| parse(text.as_bytes()).map_err(|error| error.to_string()));
            assert_eq!(one, other, "{text}");
        }
    }

    #[test]
    fn a_failure_is_an_error_with_its_code_and_message() {
        let answer = Answer::<Tally>::parse(br#"{"E":{"c":101,"m":"why"},"i":7}"#);
        let error = answer.expect_err("it reports a failure").to_string();
        assert!(error.contains("101: why"), "{error}");
    }
}
